//! What the page knows: rooms, timelines, members, receipts, who is signed in. No DOM.
//!
//! Owns: everything that is shown. Takes the session's outputs, and turns what a person does into commands.
//! Always holds: listeners hear of each change once a turn, by topic.
//! Bounds: HELD_MAX timelines (the one longest unopened is dropped), KEPT_MAX events each, one preview asked at a time.

import { type Member, type Room, type RoomEvent, type Role, type RoomKind } from "./protocol.ts";
import { type Link, type Output, Refused, type Session } from "./session.ts";
import { excerpt, mentioned } from "./text.ts";
import { KEPT_MAX, Timeline } from "./timeline.ts";

export type Topic = "link" | "rooms" | "room" | "log" | "members" | "me";

/** One room as the page sees it. */
export interface RoomState {
  info: Room;
  timeline: Timeline;
  /** The timeline has been started; else nothing of the log is here yet. */
  held: boolean;
  members: Map<string, Member>;
  memberCount: number;
  membersMore: boolean;
  /** The last of the last page: others join meanwhile. */
  membersLast: string | undefined;
  membersLoaded: boolean;
  /** When something last happened, for the order of the list. */
  activity: number;
  /** Messages above this seq are new since the room was opened; null: no line is shown. */
  newAbove: number | null;
  ended: { code: number } | null;
  draft: string;
  replyTo: RoomEvent | null;
  loading: boolean;
  loadError: string | null;
  /** Where the reader is: decides which end a too long timeline loses. */
  reader: "start" | "end";
  opened: number;
}

/** What the address names. */
export type Place =
  | { at: "home" }
  | { at: "room"; room: string }
  /** A room that is not in the list: may it be joined? */
  | { at: "door"; room: string; state: "asking" | "public" | "left" | "unknown" | "failed"; message: string };

const HELD_MAX = 12;
const PREVIEW_EVERY_MS = 250;
const PREVIEW_PAGE = 5;
const NAMES_MAX = 20_000;

export class Store {
  readonly rooms = new Map<string, RoomState>();
  readonly names = new Map<string, string>();
  place: Place = { at: "home" };
  link: Link = { state: "off" };
  me = { user: "", name: "" };
  /** The list of rooms has been read at least once. */
  listed = false;
  session!: Session;
  private readonly later: (ms: number, run: () => void) => void;
  private readonly now: () => number;
  private readonly listeners = new Set<(topics: Set<Topic>) => void>();
  private changed = new Set<Topic>();
  private opens = 0;
  private readonly previews = new Set<string>();
  private previewing = false;

  constructor(now: () => number, later: (ms: number, run: () => void) => void) {
    this.now = now;
    this.later = later;
  }

  listen(listener: (topics: Set<Topic>) => void): void {
    this.listeners.add(listener);
  }

  /** Listeners are told at the end of this turn, once for all that changed in it. */
  touch(...topics: Topic[]): void {
    if (this.changed.size === 0) {
      queueMicrotask(() => {
        const changed = this.changed;
        this.changed = new Set();
        for (const listener of this.listeners) listener(changed);
      });
    }
    for (const topic of topics) this.changed.add(topic);
  }

  clear(): void {
    this.rooms.clear();
    this.names.clear();
    this.previews.clear();
    this.listed = false;
    this.me = { user: "", name: "" };
    this.place = { at: "home" };
    this.touch("link", "rooms", "room", "log", "members", "me");
  }

  // ------------------------------------------------------------ reading

  get openRoom(): RoomState | null {
    return this.place.at === "room" ? (this.rooms.get(this.place.room) ?? null) : null;
  }

  unread(room: RoomState): number {
    return Math.max(0, room.info.n - room.info.seen_n);
  }

  get totalUnread(): number {
    let total = 0;
    for (const room of this.rooms.values()) total += this.unread(room);
    return total;
  }

  /** Rooms, the most recently active first. */
  get sorted(): RoomState[] {
    return [...this.rooms.values()].sort((a, b) => b.activity - a.activity || a.info.name.localeCompare(b.info.name));
  }

  nameOf(user: string): string {
    return this.names.get(user) ?? "a former member";
  }

  roomName(info: Room): string {
    return info.name || (info.kind === "direct" ? "Direct chat" : "Unnamed room");
  }

  /** Others who have got and seen the message at `seq`; null where the server does not tell. */
  receipts(room: RoomState, seq: number): { others: number; delivered: number; seen: Member[] } | null {
    if (!room.membersLoaded || room.memberCount > 100) return null;
    let others = 0;
    let delivered = 0;
    const seen: Member[] = [];
    for (const member of room.members.values()) {
      if (member.user === this.me.user || member.role === "none") continue;
      others++;
      if ((member.delivered ?? 0) >= seq) delivered++;
      if ((member.seen ?? 0) >= seq) seen.push(member);
    }
    return { others, delivered, seen };
  }

  // ------------------------------------------------------------ what the session says

  apply(output: Output): void {
    switch (output.kind) {
      case "link":
        this.link = output.link;
        this.touch("link");
        break;
      case "hello":
        this.me = { user: output.user, name: output.name };
        this.learn(output.user, output.name);
        this.touch("me");
        break;
      case "rooms":
        this.onRooms(output.rooms);
        break;
      case "room":
        this.onRoom(output.room);
        break;
      case "room_gone":
        this.onGone(output.room, output.code);
        break;
      case "subscribed": {
        const room = this.rooms.get(output.info.room);
        if (!room) break;
        // a reset has come before this and has put head and n to zero
        room.info.log = output.info.log;
        room.info.head = Math.max(room.info.head, output.info.head);
        room.info.role = output.info.role;
        if (output.info.n > room.info.n) this.previewLater(room.info.room);
        room.info.n = Math.max(room.info.n, output.info.n);
        if (output.mode === "live") void this.loadMembers(room.info.room);
        this.touch("rooms", "room");
        break;
      }
      case "reset": {
        const room = this.rooms.get(output.room);
        if (!room) break;
        room.timeline.reset();
        room.held = false;
        room.newAbove = null;
        room.info = { ...room.info, delivered: 0, seen: 0, seen_n: 0, n: 0, head: 0 };
        this.touch("rooms", "log");
        break;
      }
      case "start": {
        const room = this.rooms.get(output.room);
        if (!room) break;
        room.timeline.start(output.from);
        room.held = true;
        room.loadError = null;
        this.touch("log");
        break;
      }
      case "event":
        this.onEvent(output.event);
        break;
      case "gap": {
        this.rooms.get(output.room)?.timeline.appendGap(output.from, output.to, output.expired);
        this.touch("log");
        break;
      }
      case "head": {
        const room = this.rooms.get(output.room);
        if (!room) break;
        if (output.n > room.info.n) {
          room.activity = this.now();
          this.previewLater(output.room);
        }
        room.info.head = output.head;
        room.info.n = Math.max(room.info.n, output.n);
        this.touch("rooms");
        break;
      }
      case "marks": {
        const room = this.rooms.get(output.room);
        if (!room) break;
        for (const mark of output.marks) {
          const member = room.members.get(mark.user);
          if (!member) continue;
          member.delivered = Math.max(member.delivered ?? 0, mark.delivered);
          member.seen = Math.max(member.seen ?? 0, mark.seen);
        }
        this.touch("members", "log");
        break;
      }
      case "my_marks": {
        const info = this.rooms.get(output.room)?.info;
        if (!info) break;
        info.delivered = Math.max(info.delivered, output.delivered);
        if (output.seen >= info.seen) {
          info.seen = output.seen;
          info.seen_n = output.seen_n;
        }
        this.touch("rooms");
        break;
      }
      case "unsubscribed":
        this.onGone(output.room, output.code);
        break;
      case "acked": {
        const room = this.rooms.get(output.room);
        if (room && output.seq > (room.info.last?.seq ?? 0)) {
          room.info.last = { seq: output.seq, at: output.at, sender_name: this.me.name, text: excerpt(output.pending.text) };
          room.activity = Math.max(room.activity, output.at);
        }
        this.touch("rooms", "log");
        break;
      }
      case "outbox":
        this.touch("log", "rooms");
        break;
    }
  }

  private learn(user: string, name: string): void {
    if (this.names.size >= NAMES_MAX) this.names.clear();
    if (name) this.names.set(user, name);
  }

  private stateOf(info: Room): RoomState {
    return {
      info,
      timeline: new Timeline(),
      held: false,
      members: new Map(),
      memberCount: 0,
      membersMore: false,
      membersLast: undefined,
      membersLoaded: false,
      activity: info.last?.at ?? 0,
      newAbove: null,
      ended: null,
      draft: "",
      replyTo: null,
      loading: false,
      loadError: null,
      reader: "end",
      opened: 0,
    };
  }

  private adopt(info: Room): RoomState {
    let room = this.rooms.get(info.room);
    if (!room) {
      room = this.stateOf(info);
      this.rooms.set(info.room, room);
    } else {
      // ours may be ahead of what was said when the list was made
      const same = room.info.log === info.log;
      const seen = same ? Math.max(room.info.seen, info.seen) : info.seen;
      const was = room.info;
      room.info = { ...info, seen, seen_n: same && was.seen > info.seen ? was.seen_n : info.seen_n };
      if (same) {
        room.info.head = Math.max(was.head, info.head);
        room.info.n = Math.max(was.n, info.n);
        if (was.last && was.last.seq > (info.last?.seq ?? 0)) room.info.last = was.last;
      }
      if (info.last) room.activity = Math.max(room.activity, info.last.at);
    }
    room.ended = null;
    if (info.peer !== undefined) this.learn(info.peer, info.name);
    return room;
  }

  private onRooms(rooms: Room[]): void {
    const listed = new Set(rooms.map((r) => r.room));
    for (const info of rooms) this.adopt(info);
    for (const id of this.rooms.keys()) {
      // the open one stays on the screen; the session tells how it ended
      if (!listed.has(id) && !(this.place.at === "room" && this.place.room === id)) this.rooms.delete(id);
    }
    this.listed = true;
    this.touch("rooms", "room", "log");
    if (this.place.at === "door") this.go(this.place.room);
  }

  private onRoom(info: Room): void {
    const isNew = !this.rooms.has(info.room);
    const room = this.adopt(info);
    if (isNew) room.activity = Math.max(room.activity, this.now());
    this.touch("rooms", "room");
    if (this.place.at === "door" && this.place.room === info.room) this.go(info.room);
  }

  private onGone(id: string, code: number): void {
    const room = this.rooms.get(id);
    if (!room) return;
    room.ended = { code };
    room.info.role = "none";
    if (!(this.place.at === "room" && this.place.room === id)) this.drop(id);
    this.touch("rooms", "room", "log", "members");
  }

  private drop(id: string): void {
    this.rooms.delete(id);
    this.session.release(id);
  }

  private onEvent(event: RoomEvent): void {
    const room = this.rooms.get(event.room);
    if (!room) return;
    const { info } = room;
    this.learn(event.sender, event.sender_name);
    info.head = Math.max(info.head, event.seq);
    info.n = Math.max(info.n, event.n);
    room.timeline.append(event);
    if (room.timeline.items.length > KEPT_MAX) room.timeline.trim(room.reader);
    room.activity = Math.max(room.activity, event.at);
    if (event.message) {
      if (event.seq > (info.last?.seq ?? 0)) {
        info.last = { seq: event.seq, at: event.at, sender_name: event.sender_name, text: excerpt(event.message.text) };
      }
      // a send lifts its sender's marks: no `marks` push says so
      const sender = room.members.get(event.sender);
      if (sender) {
        sender.delivered = Math.max(sender.delivered ?? 0, event.seq);
        sender.seen = Math.max(sender.seen ?? 0, event.seq);
        this.touch("members");
      }
      if (event.sender === this.me.user && event.seq > info.seen) {
        info.seen = event.seq;
        info.seen_n = Math.max(info.seen_n, event.n);
      }
    }
    this.applyMembership(room, event);
    this.session.mark(event.room, { delivered: event.seq });
    this.touch("rooms", "log");
  }

  private applyMembership(room: RoomState, event: RoomEvent): void {
    const { joined, left, removed, role_changed, room_changed } = event;
    if (joined) {
      this.learn(joined.user, joined.name);
      if (room.membersLoaded && !room.members.has(joined.user)) {
        room.memberCount++;
        room.members.set(joined.user, { user: joined.user, name: joined.name, role: joined.role, joined_seq: event.seq });
      }
      if (joined.user === this.me.user) room.info.role = joined.role;
    }
    const gone = left?.user ?? removed?.user;
    if (gone !== undefined && room.members.delete(gone)) room.memberCount--;
    if (role_changed) {
      // there is one owner: who hands over becomes admin
      if (role_changed.role === "owner") {
        for (const member of room.members.values()) if (member.role === "owner") member.role = "admin";
      }
      const member = room.members.get(role_changed.user);
      if (member) member.role = role_changed.role;
      if (role_changed.user === this.me.user) room.info.role = role_changed.role;
      else if (role_changed.role === "owner" && room.info.role === "owner") room.info.role = "admin";
    }
    if (room_changed?.name !== undefined) room.info.name = room_changed.name;
    if (room_changed?.public !== undefined) room.info.public = room_changed.public;
    if (joined || gone !== undefined || role_changed || room_changed) this.touch("members", "room", "rooms");
  }

  // ------------------------------------------------------------ previews of rooms that are not open

  private previewLater(room: string): void {
    if (this.place.at === "room" && this.place.room === room) return;
    this.previews.add(room);
    if (this.previewing) return;
    this.previewing = true;
    this.later(PREVIEW_EVERY_MS, () => void this.nextPreview());
  }

  private async nextPreview(): Promise<void> {
    const id = this.previews.values().next().value;
    if (id !== undefined) {
      this.previews.delete(id);
      try {
        const page = await this.session.history(id, {}, PREVIEW_PAGE);
        const room = this.rooms.get(id);
        const last = page.events.findLast((e) => e.message);
        if (room && last?.message && last.seq >= (room.info.last?.seq ?? 0)) {
          room.info.last = { seq: last.seq, at: last.at, sender_name: last.sender_name, text: excerpt(last.message.text) };
          room.activity = Math.max(room.activity, last.at);
          this.learn(last.sender, last.sender_name);
          // the page has shown that something is there, which is what "delivered" tells the sender
          this.session.mark(id, { delivered: last.seq });
          this.touch("rooms");
        }
      } catch {
        // the next head asks again
      }
    }
    if (this.previews.size === 0) this.previewing = false;
    else this.later(PREVIEW_EVERY_MS, () => void this.nextPreview());
  }

  // ------------------------------------------------------------ what a person does

  /** Follows the address: null is the front page. */
  go(id: string | null): void {
    const before = this.openRoom;
    if (before) before.newAbove = null;
    if (id === null) {
      this.place = { at: "home" };
      this.session.openRoom(null);
    } else {
      const room = this.rooms.get(id);
      if (room) {
        this.place = { at: "room", room: id };
        room.newAbove = this.unread(room) > 0 ? room.info.seen : null;
        room.opened = ++this.opens;
        room.reader = "end";
        this.previews.delete(id);
        this.session.openRoom(id);
        this.dropOldTimelines();
        if (room.held && this.link.state === "online" && !room.membersLoaded) void this.loadMembers(id);
      } else {
        this.place = { at: "door", room: id, state: "asking", message: "" };
        this.session.openRoom(null);
        if (this.listed && this.link.state === "online") void this.knock(id);
      }
    }
    if (before?.ended && before.info.room !== id) this.drop(before.info.room);
    this.touch("rooms", "room", "log", "members");
  }

  /** Called when the link comes up with the door open. */
  knockAgain(): void {
    if (this.place.at === "door" && this.link.state === "online") void this.knock(this.place.room);
  }

  private async knock(id: string): Promise<void> {
    const set = (state: "public" | "left" | "unknown" | "failed", message = "") => {
      if (this.place.at !== "door" || this.place.room !== id) return;
      this.place = { at: "door", room: id, state, message };
      this.touch("room");
    };
    try {
      await this.session.history(id, {}, 1);
      set("left");
    } catch (error) {
      if (!(error instanceof Refused)) set("failed", messageOf(error));
      else if (error.error.code === 123) set("public");
      else if (error.error.code === 102) set("unknown");
      else set("failed", error.message);
    }
  }

  private dropOldTimelines(): void {
    const held = [...this.rooms.values()].filter((r) => r.held).sort((a, b) => b.opened - a.opened);
    for (const room of held.slice(HELD_MAX)) {
      room.timeline.reset();
      room.held = false;
      this.session.forget(room.info.room);
    }
  }

  seen(id: string, seq: number): void {
    const room = this.rooms.get(id);
    if (!room || room.ended || seq <= room.info.seen) return;
    const event = room.timeline.event(seq);
    room.info.seen = seq;
    if (event) room.info.seen_n = Math.max(room.info.seen_n, event.n);
    if (seq >= room.info.head) room.info.seen_n = room.info.n;
    this.session.mark(id, { seen: seq });
    this.touch("rooms");
  }

  async loadOlder(id: string): Promise<void> {
    const room = this.rooms.get(id);
    const first = room?.timeline.first;
    if (!room || room.loading || first === undefined) return;
    if (!room.timeline.more) {
      // it was a gap that could not be filled: it is tried again where it stands
      room.loadError = null;
      this.touch("log");
      return;
    }
    await this.page(room, async () => {
      const { log } = room.info;
      const page = await this.session.history(id, { before: first });
      if (page.log !== log || room.timeline.first !== first) return;
      for (const event of page.events) this.learn(event.sender, event.sender_name);
      room.timeline.mergeBefore(first, page);
      room.timeline.trim("start");
    });
  }

  async fillGap(id: string, gap: { from: number; to: number }): Promise<void> {
    const room = this.rooms.get(id);
    if (!room || room.loading) return;
    await this.page(room, async () => {
      const { log } = room.info;
      const page = await this.session.history(id, { before: gap.to + 1 }, 100);
      if (page.log !== log) return;
      for (const event of page.events) this.learn(event.sender, event.sender_name);
      room.timeline.fill(gap, page);
    });
  }

  private async page(room: RoomState, load: () => Promise<void>): Promise<void> {
    room.loading = true;
    room.loadError = null;
    this.touch("log");
    try {
      await load();
    } catch (error) {
      room.loadError = messageOf(error);
    } finally {
      room.loading = false;
      this.touch("log");
    }
  }

  send(id: string, text: string): void {
    const room = this.rooms.get(id);
    if (!room) return;
    const mentions = mentioned(text, room.members.values());
    const replyTo = room.replyTo?.seq;
    this.session.send(id, text, replyTo === undefined ? { mentions } : { mentions, reply_to: replyTo });
    room.replyTo = null;
    room.draft = "";
    room.newAbove = null;
    room.activity = Math.max(room.activity, this.now());
    this.touch("log", "rooms", "room");
  }

  async loadMembers(id: string, next = false): Promise<void> {
    const room = this.rooms.get(id);
    if (!room) return;
    const after = next ? room.membersLast : undefined;
    try {
      const reply = await this.session.request("members", after === undefined ? { room: id, limit: 100 } : { room: id, after, limit: 100 });
      if (!next) room.members = new Map();
      for (const member of reply.members) {
        room.members.set(member.user, member);
        this.learn(member.user, member.name);
      }
      room.memberCount = reply.count;
      room.membersMore = reply.more;
      room.membersLast = reply.members.at(-1)?.user;
      room.membersLoaded = true;
      this.touch("members", "log", "room");
    } catch {
      // shown as not loaded; asked again at the next opening or resume
    }
  }

  /** Finds each by username; fails with a word on the first that is not there. */
  async findUsers(usernames: string[]): Promise<{ user: string; name: string }[]> {
    const found: { user: string; name: string }[] = [];
    for (const username of usernames) {
      try {
        const user = await this.session.request("find_user", { username });
        this.learn(user.user, user.name);
        found.push(user);
      } catch (error) {
        if (error instanceof Refused && error.error.code === 122) throw new Error(`There is no user called “${username}”.`);
        throw error;
      }
    }
    return found;
  }

  /** `id` is made by the caller once, so pressing the button again after a lost reply makes no second room. */
  async createRoom(id: string, kind: RoomKind, name: string, isPublic: boolean, usernames: string[]): Promise<string> {
    const members = (await this.findUsers(usernames)).map((u) => u.user).filter((u) => u !== this.me.user);
    const reply = await this.session.request("create_room", { room: id, kind, name, public: isPublic, members });
    return this.arrive(reply);
  }

  async direct(username: string): Promise<string> {
    const [peer] = await this.findUsers([username]);
    if (!peer || peer.user === this.me.user) throw new Error("That is you. Name somebody else.");
    const reply = await this.session.request("create_room", { kind: "direct", members: [peer.user] });
    return this.arrive(reply);
  }

  private async arrive(info: Room): Promise<string> {
    // the push `room` comes as well, before or after this reply
    if (!this.rooms.has(info.room)) await this.session.refreshRooms();
    const room = this.rooms.get(info.room);
    if (room) room.activity = Math.max(room.activity, this.now());
    return info.room;
  }

  async join(id: string): Promise<void> {
    await this.session.request("join", { room: id });
    if (!this.rooms.has(id)) await this.session.refreshRooms();
    if (this.place.at === "door" && this.place.room === id) this.go(id);
  }

  async leave(id: string): Promise<void> {
    await this.session.request("leave", { room: id });
  }

  async update(id: string, change: { name?: string; public?: boolean }): Promise<void> {
    await this.session.request("update_room", { room: id, ...change });
  }

  async addMembers(id: string, usernames: string[]): Promise<void> {
    const users = (await this.findUsers(usernames)).map((u) => u.user);
    await this.session.request("add_members", { room: id, users });
    await this.loadMembers(id);
  }

  async removeMember(id: string, user: string): Promise<void> {
    await this.session.request("remove_member", { room: id, user });
    await this.loadMembers(id);
  }

  async setRole(id: string, user: string, role: Role): Promise<void> {
    await this.session.request("set_role", { room: id, user, role });
    await this.loadMembers(id);
  }
}

export function messageOf(error: unknown): string {
  if (error instanceof Refused) {
    const { code } = error.error;
    if (code === 102) return "This room does not exist, or you may not see it.";
    if (code === 103) return "You may not do that here.";
    if (code === 108 || code === 112) return "The server cannot do that right now. Try again in a moment.";
    if (code === 111) return "That was too fast. Try again in a moment.";
    if (code === 123) return "You are not a member of this room.";
  }
  return error instanceof Error && error.message ? error.message : "That did not work.";
}
