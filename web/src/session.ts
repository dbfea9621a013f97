//! One client's connection: auth, cursors, resume, dedupe, and sends that reach the log once.
//!
//! Owns: the socket, the requests in flight, one cursor (log, last seq) a room, the marks to state, the outbox.
//! Always holds: for each room, events and gaps come out in order of seq, each once, and a `reset` comes first when the
//! log is another one; a send is tried with the same id and `since` until its fate is known.
//! Does not: know the page, the clock, timers, sockets or chance; the `Host` lends them, so tests own them all.
//! Bounds: requests in flight as the server says (further ones wait, WAITING_MAX, then are refused).

import { Outbox, type Pending } from "./outbox.ts";
import {
  afterClose,
  Code,
  type Command,
  type History,
  type Limits,
  type Mode,
  type Pushes,
  type Reply,
  type Request,
  type Room,
  type RoomEvent,
  type SubscribedRoom,
  type SubscribeRoom,
  type UserMarks,
  type WireError,
  verdict,
} from "./protocol.ts";

export interface Socket {
  send(text: string): void;
  close(code: number, reason: string): void;
}

export interface SocketHandlers {
  open(): void;
  message(data: unknown): void;
  closed(code: number, reason: string): void;
}

/** What the session may use of the world. */
export interface Host {
  /** Milliseconds since some start; never falls. */
  now(): number;
  /** In [0, 1). */
  random(): number;
  /** Runs `run` once after `ms`; the result cancels it. */
  timer(ms: number, run: () => void): () => void;
  connect(handlers: SocketHandlers): Socket;
  /** The token as it is now; null: signed out. */
  token(): string | null;
  /** Gets a new token for the same login and keeps it. */
  renewToken(): Promise<"renewed" | "refused" | "unreachable">;
  /** A fresh id, never given before by anybody. */
  freshId(): string;
}

export type Link =
  | { state: "off" }
  | { state: "connecting"; again: boolean }
  | { state: "online" }
  | { state: "waiting"; until: number; again: boolean }
  | { state: "signed_out"; reason: "ended" | "expired" | "refused" }
  | { state: "stopped"; code: number; reason: string };

/** Everything that the session tells its owner. */
export type Output =
  | { kind: "link"; link: Link }
  | { kind: "hello"; user: string; name: string; limits: Limits }
  | { kind: "rooms"; rooms: Room[] }
  | { kind: "room"; room: Room }
  | { kind: "room_gone"; room: string; code: number }
  | { kind: "subscribed"; info: SubscribedRoom; mode: Mode }
  | { kind: "reset"; room: string }
  /** Events below `from` are in the log but were not asked for. */
  | { kind: "start"; room: string; from: number }
  | { kind: "event"; event: RoomEvent }
  | { kind: "gap"; room: string; from: number; to: number; expired: boolean }
  | { kind: "head"; room: string; head: number; n: number }
  | { kind: "marks"; room: string; marks: UserMarks[] }
  | { kind: "my_marks"; room: string; delivered: number; seen: number; seen_n: number }
  | { kind: "unsubscribed"; room: string; code: number; reason: string }
  /** A message of ours is at `seq`, but its place in the room is not shown now. */
  | { kind: "acked"; room: string; seq: number; at: number; pending: Pending }
  | { kind: "outbox"; room: string };

/** The server refused a command. */
export class Refused extends Error {
  readonly error: WireError;
  constructor(error: WireError) {
    super(error.message || error.name);
    this.error = error;
  }
}

/** No reply came: the connection went, or took too long. Nothing is known about the command. */
export class Unanswered extends Error {
  constructor() {
    super("The connection to the server was lost.");
  }
}

export const CLIENT_NAME = "banyan-web/0.1.0";
export const FIRST_PAGE = 50;
const CONNECT_TIMEOUT_MS = 15_000;
const REPLY_TIMEOUT_MS = 15_000;
/** As long as the server gives us to answer its own pings. */
const PONG_TIMEOUT_MS = 10_000;
/** After a wake-up the doubt is bigger: a dead socket should be found before the person types. */
const PROBE_TIMEOUT_MS = 4_000;
const BACKOFF_BASE_MS = 500;
const BACKOFF_CAP_MS = 20_000;
const STABLE_MS = 60_000;
/** A room that cannot be subscribed is asked again, ever more seldom. */
const RESUBSCRIBE_CAP_MS = 30_000;
const MARK_EVERY_MS = 600;
/** After a refusal, more or less by half. */
const MARK_AGAIN_MS = 5_000;
const MARKS_A_ROUND = 20;
const WAITING_MAX = 256;
const RENEW_WHEN_LEFT_MS = 12 * 3_600_000;
const RENEW_AGAIN_MS = 600_000;
/** 100 events a page; five times the longest log that the server itself searches. */
const SEARCH_PAGES_MAX = 500;
/** Close code by which we end a connection that is silent. */
const LOCAL_CLOSE = 4000;

const DEFAULT_LIMITS: Limits = {
  frame_bytes: 65_536,
  text_bytes: 8_192,
  data_bytes: 8_192,
  in_flight: 64,
  rooms_per_subscribe: 200,
  subscriptions: 10_000,
  sends_per_s: 20,
};

interface Cursor {
  mode: Mode;
  /** Of the log that `last` belongs to; null: not known yet. */
  log: string | null;
  /** Everything up to here has come out (events or gaps); null: nothing is kept of this room. */
  last: number | null;
  /** Messages up to `last`; null: not known, since `last` is the end of a gap. */
  lastN: number | null;
  head: number;
  n: number;
  /** none: to be asked; asked, pending: reply or push to come; on: cursor set; ended: no more will come. */
  state: "none" | "asked" | "pending" | "on" | "ended";
  /** Counts our subscribes, so that the reply to an outdated one is known as such. */
  asked: number;
  delivered: number;
  seen: number;
}

interface InFlight {
  command: Command;
  resolve(reply: never): void;
  reject(error: Error): void;
  cancelTimer(): void;
}

export class Session {
  readonly outbox = new Outbox();
  private readonly host: Host;
  private readonly out: (output: Output) => void;
  private link: Link = { state: "off" };
  private socket: Socket | null = null;
  /** Counts sockets: what an old one says is dropped. */
  private generation = 0;
  private ready = false;
  private everOnline = false;
  private nextId = 1;
  private readonly inFlight = new Map<number, InFlight>();
  private waiting: (() => void)[] = [];
  private readonly cursors = new Map<string, Cursor>();
  private open: string | null = null;
  private readonly marksDue = new Set<string>();
  /** Refused for now. */
  private readonly marksRefused = new Set<string>();
  private limits = DEFAULT_LIMITS;
  private pingIntervalMs = 25_000;
  private user = "";
  private userName = "";
  private lastHeard = 0;
  private attempt = 0;
  private serverWaitUntil: number | null = null;
  private renewedAt = -Infinity;
  private resubscribes = 0;
  /** Of each listing that is being read: the rooms pushed since it began; null: it is gone. */
  private readonly listings = new Set<Map<string, Room | null>>();
  private timers: Record<"connect" | "retry" | "alive" | "stable" | "mark" | "mark_again" | "outbox" | "move" | "resubscribe" | "list", (() => void) | null> = {
    connect: null,
    retry: null,
    alive: null,
    stable: null,
    mark: null,
    mark_again: null,
    outbox: null,
    move: null,
    resubscribe: null,
    list: null,
  };

  constructor(host: Host, out: (output: Output) => void) {
    this.host = host;
    this.out = out;
  }

  // ------------------------------------------------------------ what the owner asks

  start(): void {
    if (this.link.state === "connecting" || this.link.state === "online") return;
    this.attempt = 0;
    this.connect();
  }

  /** Ends the connection for good; the outbox and all cursors are forgotten. */
  stop(): void {
    this.drop(1000, "signed out");
    this.cursors.clear();
    this.outbox.clear();
    this.marksDue.clear();
    this.marksRefused.clear();
    this.open = null;
    this.everOnline = false;
    this.setLink({ state: "off" });
  }

  get state(): Link {
    return this.link;
  }

  get textLimitBytes(): number {
    return this.limits.text_bytes;
  }

  /** The person pressed "try now", or the network came back. */
  hurry(): void {
    if (this.link.state === "waiting") this.connect();
    else if (this.link.state === "online") this.probe(PROBE_TIMEOUT_MS);
  }

  /** Sends one command; fails with `Refused` or `Unanswered`. */
  request<C extends Command>(command: C, body: Request<C>): Promise<Reply<C>> {
    if (!this.ready) return Promise.reject(new Unanswered());
    return this.transmit(command, body);
  }

  /** Makes `room` the one whose events come in full; all others bring their heads only. */
  openRoom(room: string | null): void {
    const before = this.open;
    if (before === room) return;
    this.open = room;
    const changed: string[] = [];
    if (before !== null) {
      const cursor = this.cursors.get(before);
      if (cursor && cursor.state !== "ended") {
        cursor.mode = "passive";
        cursor.state = "none";
        changed.push(before);
      }
    }
    if (room !== null) {
      const cursor = this.cursor(room);
      if (cursor.state !== "ended") {
        cursor.mode = "live";
        cursor.state = "none";
        changed.push(room);
      }
    }
    if (this.ready) this.subscribe(changed);
  }

  /** Says that nothing is kept of `room` any longer: its next opening starts afresh. */
  forget(room: string): void {
    const cursor = this.cursors.get(room);
    if (cursor && this.open !== room) cursor.last = null;
  }

  /** Forgets an ended room altogether, so that a return to it starts afresh. */
  release(room: string): void {
    if (this.open !== room) this.cursors.delete(room);
  }

  send(room: string, text: string, options: { reply_to?: number; mentions?: string[] } = {}): Pending {
    const pending = this.outbox.add(this.host.now(), {
      room,
      client_msg_id: this.host.freshId(),
      text,
      mentions: options.mentions ?? [],
      ...(options.reply_to === undefined ? {} : { reply_to: options.reply_to }),
    });
    // fixed now, at its writing: what the room was then known to be at
    const cursor = this.cursors.get(room);
    if (cursor) pending.since = Math.max(cursor.last ?? 0, cursor.head);
    this.out({ kind: "outbox", room });
    this.pump();
    return pending;
  }

  retry(room: string, clientMsgId: string): void {
    const pending = this.outbox.find(room, clientMsgId);
    if (!pending) return;
    this.outbox.retry(pending, this.host.freshId(), this.host.now());
    this.out({ kind: "outbox", room });
    this.pump();
  }

  discard(room: string, clientMsgId: string): void {
    if (this.outbox.remove(room, clientMsgId)) this.out({ kind: "outbox", room });
    this.pump();
  }

  /** States how far this user has got or seen a room; only ever rises, is said at most once per MARK_EVERY_MS. */
  mark(room: string, marks: { delivered?: number; seen?: number }): void {
    const cursor = this.cursors.get(room);
    if (!cursor || cursor.state === "ended") return;
    const top = Math.max(cursor.last ?? 0, cursor.head);
    const seen = Math.min(Math.max(cursor.seen, marks.seen ?? 0), top);
    const delivered = Math.min(Math.max(cursor.delivered, marks.delivered ?? 0, seen), top);
    if (seen === cursor.seen && delivered === cursor.delivered) return;
    cursor.seen = seen;
    cursor.delivered = delivered;
    this.markLater(room);
  }

  // ------------------------------------------------------------ connection

  private setLink(link: Link): void {
    this.link = link;
    this.out({ kind: "link", link });
  }

  private setTimer(name: keyof Session["timers"], ms: number, run: () => void): void {
    this.timers[name]?.();
    this.timers[name] = this.host.timer(ms, () => {
      this.timers[name] = null;
      run();
    });
  }

  private cancel(...names: (keyof Session["timers"])[]): void {
    for (const name of names) {
      this.timers[name]?.();
      this.timers[name] = null;
    }
  }

  private connect(): void {
    this.drop(1000, "reconnecting");
    if (this.host.token() === null) {
      this.setLink({ state: "signed_out", reason: "ended" });
      return;
    }
    this.serverWaitUntil = null;
    this.setLink({ state: "connecting", again: this.everOnline });
    const generation = ++this.generation;
    const current = (run: () => void) => () => {
      if (generation === this.generation) run();
    };
    this.setTimer("connect", CONNECT_TIMEOUT_MS, () => this.closed(LOCAL_CLOSE, "no answer"));
    this.socket = this.host.connect({
      open: current(() => void this.hello(generation)),
      message: (data) => {
        if (generation === this.generation) this.receive(data);
      },
      closed: (code, reason) => {
        if (generation === this.generation) this.closed(code, reason);
      },
    });
  }

  /** Forgets the socket and everything that hung on it. */
  private drop(code: number, reason: string): void {
    this.generation++;
    this.ready = false;
    this.cancel("connect", "retry", "alive", "stable", "mark", "mark_again", "outbox", "move", "resubscribe", "list");
    for (const room of this.marksRefused) this.marksDue.add(room);
    this.marksRefused.clear();
    const socket = this.socket;
    this.socket = null;
    socket?.close(code, reason);
    const lost = [...this.inFlight.values()];
    this.inFlight.clear();
    const waiting = this.waiting;
    this.waiting = [];
    for (const cursor of this.cursors.values()) if (cursor.state !== "ended") cursor.state = "none";
    for (const request of lost) {
      request.cancelTimer();
      request.reject(new Unanswered());
    }
    for (const run of waiting) run(); // each sees that its connection is gone
    this.outbox.connectionLost(this.host.now());
  }

  private closed(code: number, reason: string): void {
    this.drop(code === LOCAL_CLOSE ? LOCAL_CLOSE : 1000, reason);
    switch (afterClose(code)) {
      case "come_back":
        this.wait();
        break;
      case "renew":
        this.renewThenConnect();
        break;
      case "sign_in":
        this.setLink({ state: "signed_out", reason: code === 3500 ? "refused" : "ended" });
        break;
      case "stop":
        this.setLink({ state: "stopped", code, reason });
        break;
    }
  }

  private wait(serverSaysMs?: number): void {
    const now = this.host.now();
    const backoff = this.host.random() * Math.min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** Math.min(this.attempt, 10));
    // many were told the same: they do not come back together
    let ms = serverSaysMs === undefined ? backoff : serverSaysMs + backoff;
    if (serverSaysMs === undefined && this.serverWaitUntil !== null) ms = Math.max(0, this.serverWaitUntil - now);
    this.serverWaitUntil = null;
    this.attempt++;
    this.setLink({ state: "waiting", until: now + ms, again: this.everOnline });
    this.setTimer("retry", ms, () => this.connect());
  }

  private renewThenConnect(): void {
    this.setLink({ state: "connecting", again: this.everOnline });
    const generation = this.generation;
    void this.host.renewToken().then((result) => {
      if (generation !== this.generation) return;
      if (result === "renewed") this.connect();
      else if (result === "refused") this.setLink({ state: "signed_out", reason: "expired" });
      else this.wait();
    });
  }

  private async hello(generation: number): Promise<void> {
    const token = this.host.token();
    if (token === null) {
      this.drop(1000, "signed out");
      this.setLink({ state: "signed_out", reason: "ended" });
      return;
    }
    this.lastHeard = this.host.now();
    try {
      const me = await this.transmit("auth", { token, client: CLIENT_NAME });
      if (generation !== this.generation) return;
      this.user = me.user;
      this.userName = me.name;
      this.limits = me.limits ?? DEFAULT_LIMITS;
      this.pingIntervalMs = me.ping_interval_ms || 25_000;
      this.out({ kind: "hello", user: me.user, name: me.name, limits: this.limits });
      // one room whose owner is away does not keep the others from going on as they are known
      let later: number | null = null;
      const rooms = await this.listRooms().catch((error: unknown) => {
        const known = this.everOnline && error instanceof Refused && verdict(error.error.code) === "unknown";
        if (!known) throw error;
        later = error.error.retry_after_ms ?? 0;
        return null;
      });
      if (generation !== this.generation) return;
      this.cancel("connect");
      this.ready = true;
      this.everOnline = true;
      this.resubscribes = 0;
      if (rooms) this.adopt(rooms);
      if (later !== null) this.listAgain(later);
      this.setLink({ state: "online" });
      this.setTimer("stable", STABLE_MS, () => {
        this.attempt = 0;
      });
      this.keepAlive();
      this.subscribe([...this.cursors.keys()]);
      this.pump();
      if (me.expires_at - me.server_time < RENEW_WHEN_LEFT_MS) this.renewInPlace();
    } catch (error) {
      if (generation !== this.generation) return;
      if (!(error instanceof Refused)) {
        this.closed(LOCAL_CLOSE, "no answer");
        return;
      }
      const { code, retry_after_ms } = error.error;
      this.drop(1000, "not authenticated");
      if (code === Code.unauthenticated) this.setLink({ state: "signed_out", reason: "refused" });
      else if (code === Code.token_expired) this.renewThenConnect();
      else this.wait(retry_after_ms);
    }
  }

  /** All rooms once the last page is here: without those that went meanwhile, with those that came. */
  private async listRooms(): Promise<Room[]> {
    const pushed = new Map<string, Room | null>();
    this.listings.add(pushed);
    const read = await this.readRooms().finally(() => this.listings.delete(pushed));
    const listed = read.filter(({ room }) => pushed.get(room) !== null);
    const names = new Set(listed.map(({ room }) => room));
    for (const [room, info] of pushed) if (info !== null && !names.has(room)) listed.push(info);
    return listed;
  }

  private async readRooms(): Promise<Room[]> {
    const rooms: Room[] = [];
    let after: string | undefined;
    for (;;) {
      const page = await this.transmit("rooms", after === undefined ? { limit: 100 } : { after, limit: 100 });
      rooms.push(...page.rooms);
      const last = page.rooms.at(-1);
      if (!page.more || !last || rooms.length >= this.limits.subscriptions) return rooms;
      after = last.room;
      // it goes on, however long the list is
      if (this.timers.connect) this.setTimer("connect", CONNECT_TIMEOUT_MS, () => this.closed(LOCAL_CLOSE, "no answer"));
    }
  }

  /** The rooms are asked for after a while: one of their owners did not answer. */
  private listAgain(afterMs = 0): void {
    this.setTimer("list", afterMs + this.askAgainMs(), () => {
      const generation = this.generation;
      this.refreshRooms().catch((error: unknown) => {
        if (generation === this.generation) this.listAgain(error instanceof Refused ? error.error.retry_after_ms : 0);
      });
    });
  }

  /** Asks for the list again, after a change that no push is sure to tell. */
  async refreshRooms(): Promise<void> {
    const generation = this.generation;
    const rooms = await this.listRooms();
    if (generation !== this.generation) return;
    this.adopt(rooms);
    this.subscribe([...this.cursors].filter(([, c]) => c.state === "none").map(([room]) => room));
  }

  private adopt(rooms: Room[]): void {
    const listed = new Set(rooms.map((r) => r.room));
    for (const room of rooms) this.adoptRoom(room);
    for (const [room, cursor] of this.cursors) {
      // the open room is asked for once more: whoever was removed still gets everything up to that
      if (!listed.has(room) && room !== this.open) this.cursors.delete(room);
      else if (!listed.has(room) && cursor.last === null && cursor.state !== "on") this.end(room, Code.not_a_member, "no longer a member");
    }
    this.out({ kind: "rooms", rooms });
  }

  private adoptRoom(room: Room): void {
    const cursor = this.cursor(room.room);
    if (cursor.state === "ended") cursor.state = "none"; // listed again: we are back in
    if (cursor.log !== null && cursor.log !== room.log) {
      this.reset(room.room, cursor);
      cursor.head = room.head;
      cursor.n = room.n;
    }
    cursor.log = room.log;
    cursor.head = Math.max(cursor.head, room.head);
    cursor.n = Math.max(cursor.n, room.n);
  }

  private reset(room: string, cursor: Cursor): void {
    const held = cursor.last !== null;
    cursor.last = null;
    cursor.head = 0;
    cursor.n = 0;
    cursor.delivered = 0;
    cursor.seen = 0;
    if (held) this.out({ kind: "reset", room });
  }

  private keepAlive(): void {
    this.setTimer("alive", this.pingIntervalMs, () => {
      if (this.host.now() - this.lastHeard >= this.pingIntervalMs) this.probe(PONG_TIMEOUT_MS);
      this.keepAlive();
    });
  }

  /** The browser hides the server's pings from us, so a silent connection is asked. */
  private probe(withinMs: number): void {
    if (!this.ready) return;
    const generation = this.generation;
    const asked = this.host.now();
    this.transmit("ping", {}).catch(() => undefined); // what counts is that anything comes
    this.host.timer(withinMs, () => {
      if (generation === this.generation && this.lastHeard < asked) this.closed(LOCAL_CLOSE, "silent");
    });
  }

  private renewInPlace(): void {
    const now = this.host.now();
    if (now - this.renewedAt < RENEW_AGAIN_MS) return;
    this.renewedAt = now;
    const generation = this.generation;
    void this.host.renewToken().then((result) => {
      const token = this.host.token();
      if (result !== "renewed") {
        if (result === "unreachable") this.renewedAt = -Infinity;
        return;
      }
      // a refused refresh leaves the connection alive to its expiry, and then the new token is there
      if (generation === this.generation && token !== null) this.request("refresh", { token }).catch(() => undefined);
    });
  }

  // ------------------------------------------------------------ requests

  private transmit<C extends Command>(command: C, body: Request<C>): Promise<Reply<C>> {
    return new Promise((resolve, reject) => {
      const generation = this.generation;
      const go = () => {
        const socket = this.socket;
        if (generation !== this.generation || !socket) {
          reject(new Unanswered());
          return;
        }
        const id = this.nextId++;
        this.inFlight.set(id, {
          command,
          resolve: resolve as (reply: never) => void,
          reject,
          // the id stays taken until its reply, since the server still counts it. A send waits as long as the
          // connection lives: its reply has a place among the events, and that place must not be missed.
          cancelTimer:
            command === "send" ? () => undefined : this.host.timer(REPLY_TIMEOUT_MS, () => reject(new Unanswered())),
        });
        socket.send(JSON.stringify({ id, [command]: body }));
      };
      if (this.inFlight.size < this.limits.in_flight) go();
      else if (this.waiting.length < WAITING_MAX) this.waiting.push(go);
      else reject(new Refused({ code: Code.limit_exceeded, name: "limit_exceeded", message: "Too much at once. Try again." }));
    });
  }

  private receive(data: unknown): void {
    this.lastHeard = this.host.now();
    let frame: Record<string, unknown> | null = null;
    try {
      const value: unknown = typeof data === "string" ? JSON.parse(data) : null;
      if (typeof value === "object" && value !== null) frame = value as Record<string, unknown>;
    } catch {
      // told below
    }
    if (!frame) {
      this.drop(LOCAL_CLOSE, "not a JSON object");
      this.setLink({ state: "stopped", code: 1003, reason: "the server said something that this page does not understand" });
      return;
    }
    if (typeof frame["id"] === "number") this.reply(frame["id"], frame);
    else for (const name of Object.keys(frame)) this.push(name as keyof Pushes, frame[name]);
  }

  private reply(id: number, frame: Record<string, unknown>): void {
    const request = this.inFlight.get(id);
    if (!request) return;
    this.inFlight.delete(id);
    request.cancelTimer();
    if (frame["error"] !== undefined) request.reject(new Refused(frame["error"] as WireError));
    else request.resolve(frame[request.command] as never);
    if (this.inFlight.size < this.limits.in_flight) this.waiting.shift()?.();
  }

  private push(name: keyof Pushes, body: unknown): void {
    switch (name) {
      case "event":
        this.onEvent(body as RoomEvent);
        break;
      case "head":
        this.onHead(body as Pushes["head"]);
        break;
      case "marks":
        this.onMarks(body as Pushes["marks"]);
        break;
      case "gap": {
        const gap = body as Pushes["gap"];
        this.onGap(gap.room, gap.from, gap.to, gap.expired ?? false);
        break;
      }
      case "subscribed":
        this.onSubscribed(body as SubscribedRoom);
        break;
      case "unsubscribed": {
        const { room, code, reason } = body as Pushes["unsubscribed"];
        this.end(room, code, reason);
        break;
      }
      case "room": {
        const room = body as Room;
        for (const pushed of this.listings) pushed.set(room.room, room);
        this.adoptRoom(room);
        this.out({ kind: "room", room });
        if (this.ready && this.cursor(room.room).state === "none") this.subscribe([room.room]);
        break;
      }
      case "room_gone": {
        const { room, code } = body as Pushes["room_gone"];
        for (const pushed of this.listings) pushed.set(room, null);
        this.marksRefused.delete(room);
        this.marksDue.delete(room);
        if (this.open !== room) this.cursors.delete(room);
        this.out({ kind: "room_gone", room, code });
        break;
      }
      case "token_expiring":
        this.renewedAt = -Infinity;
        this.renewInPlace();
        break;
      case "reconnect": {
        const { after_ms } = body as Pushes["reconnect"];
        this.serverWaitUntil = this.host.now() + after_ms;
        // normally the server closes first; if not, we go at the time that it gave us
        this.setTimer("move", after_ms, () => {
          if (this.socket) this.connect();
        });
        break;
      }
      default: // a push that this client is too old to know
        break;
    }
  }

  // ------------------------------------------------------------ rooms

  private cursor(room: string): Cursor {
    let cursor = this.cursors.get(room);
    if (!cursor) {
      const mode: Mode = room === this.open ? "live" : "passive";
      cursor = { mode, log: null, last: null, lastN: null, head: 0, n: 0, state: "none", asked: 0, delivered: 0, seen: 0 };
      this.cursors.set(room, cursor);
    }
    return cursor;
  }

  private subscribe(rooms: string[]): void {
    // the open room first: it is what the person waits for
    const asked = rooms.filter((room) => this.cursors.get(room)?.state === "none");
    asked.sort((a, b) => Number(b === this.open) - Number(a === this.open));
    let taken = 0;
    for (const { state } of this.cursors.values()) if (state !== "none" && state !== "ended") taken++;
    asked.length = Math.min(asked.length, Math.max(1, this.limits.subscriptions - taken)); // the server takes no more
    for (let i = 0; i < asked.length; i += this.limits.rooms_per_subscribe) {
      this.subscribePage(asked.slice(i, i + this.limits.rooms_per_subscribe));
    }
  }

  private subscribePage(rooms: string[]): void {
    const asked = new Map<string, number>();
    const entries = rooms.map((room): SubscribeRoom => {
      const cursor = this.cursor(room);
      cursor.state = "asked";
      asked.set(room, ++cursor.asked);
      const { mode, log } = cursor;
      if (cursor.last !== null) return { room, mode, after: cursor.last, ...(log === null ? {} : { log }) };
      return mode === "live" ? { room, mode, last: FIRST_PAGE } : { room, mode, after: cursor.head, ...(log === null ? {} : { log }) };
    });
    const generation = this.generation;
    this.transmit("subscribe", { rooms: entries }).then(
      (reply) => {
        if (generation !== this.generation) return;
        for (const info of reply.rooms) {
          if (this.cursors.get(info.room)?.asked === asked.get(info.room)) this.onSubscribed(info);
        }
        this.pump();
      },
      () => {
        if (generation !== this.generation) return;
        for (const room of rooms) {
          const cursor = this.cursors.get(room);
          if (cursor?.state === "asked" && cursor.asked === asked.get(room)) cursor.state = "none";
        }
        this.subscribeAgain();
      },
    );
  }

  /** Ever longer, while what is asked for on this connection is refused. */
  private askAgainMs(): number {
    return 500 + this.host.random() * Math.min(RESUBSCRIBE_CAP_MS, 1_000 * 2 ** Math.min(this.resubscribes++, 10));
  }

  private subscribeAgain(retryAfterMs?: number): void {
    const backoff = this.askAgainMs();
    this.setTimer("resubscribe", retryAfterMs ?? backoff, () => this.subscribe([...this.cursors.keys()]));
  }

  private onSubscribed(info: SubscribedRoom): void {
    const cursor = this.cursors.get(info.room);
    if (!cursor || cursor.state === "ended") return;
    if (info.error) {
      if (info.error.code === Code.unknown_room || info.error.code === Code.not_a_member) {
        this.end(info.room, info.error.code, info.error.message);
      } else {
        cursor.state = "none";
        this.subscribeAgain(info.error.retry_after_ms);
      }
      return;
    }
    if (info.pending) {
      cursor.state = "pending";
      return;
    }
    cursor.state = "on";
    if (info.reset || (cursor.log !== null && cursor.log !== info.log)) this.reset(info.room, cursor);
    cursor.log = info.log;
    cursor.head = Math.max(cursor.head, info.head);
    cursor.n = Math.max(cursor.n, info.n);
    this.out({ kind: "subscribed", info, mode: cursor.mode });
    // marks may have been lost with the server's last second: ours are said again where they are higher
    const higher = cursor.seen > info.seen || cursor.delivered > info.delivered;
    cursor.seen = Math.max(cursor.seen, info.seen);
    cursor.delivered = Math.max(cursor.delivered, info.delivered);
    if (higher || this.marksDue.has(info.room)) this.markLater(info.room);
    this.out({ kind: "my_marks", room: info.room, delivered: info.delivered, seen: info.seen, seen_n: info.seen_n });
    if (cursor.mode === "live") {
      if (cursor.last === null) {
        cursor.last = info.from - 1;
        cursor.lastN = info.from > info.head ? info.n : null;
        this.out({ kind: "start", room: info.room, from: info.from });
      } else {
        if (info.gap) this.onGap(info.room, info.gap.from, info.gap.to, info.gap.expired ?? false);
        if (info.from > cursor.last + 1) this.onGap(info.room, cursor.last + 1, info.from - 1, false);
      }
    }
    this.pump();
  }

  private end(room: string, code: number, reason: string): void {
    const cursor = this.cursors.get(room);
    if (!cursor || cursor.state === "ended") return;
    cursor.state = "ended";
    this.marksDue.delete(room);
    this.marksRefused.delete(room);
    this.out({ kind: "unsubscribed", room, code, reason });
    this.pump(); // what still waits there gets its definite refusal
  }

  private onEvent(event: RoomEvent): void {
    const cursor = this.cursors.get(event.room);
    if (!cursor) return;
    if (event.sender === this.user && event.client_msg_id !== undefined) {
      if (this.outbox.remove(event.room, event.client_msg_id)) this.out({ kind: "outbox", room: event.room });
    }
    if (cursor.last !== null && event.seq <= cursor.last) return;
    if (cursor.mode === "passive" && cursor.last !== null && event.seq !== cursor.last + 1) {
      // a straggler from before the room was put aside; reopening brings it in order
      this.onHead({ room: event.room, head: event.seq, n: event.n });
      return;
    }
    if (cursor.last === null) {
      if (cursor.mode === "passive") return;
      this.out({ kind: "start", room: event.room, from: event.seq });
    } else if (event.seq > cursor.last + 1) {
      this.onGap(event.room, cursor.last + 1, event.seq - 1, false); // never silent, even where the server was
    }
    this.place(cursor, event);
  }

  private place(cursor: Cursor, event: RoomEvent): void {
    cursor.last = event.seq;
    cursor.lastN = event.n;
    cursor.head = Math.max(cursor.head, event.seq);
    cursor.n = Math.max(cursor.n, event.n);
    this.out({ kind: "event", event });
  }

  private onGap(room: string, from: number, to: number, expired: boolean): void {
    const cursor = this.cursors.get(room);
    if (!cursor || cursor.last === null || to <= cursor.last) return;
    const start = Math.max(from, cursor.last + 1);
    cursor.last = to;
    cursor.lastN = null;
    cursor.head = Math.max(cursor.head, to);
    this.out({ kind: "gap", room, from: start, to, expired });
  }

  private onHead({ room, head, n }: Pushes["head"]): void {
    const cursor = this.cursors.get(room);
    if (!cursor || head < cursor.head) return;
    cursor.head = head;
    cursor.n = Math.max(cursor.n, n);
    this.out({ kind: "head", room, head, n: cursor.n });
  }

  private onMarks({ room, marks }: Pushes["marks"]): void {
    const cursor = this.cursors.get(room);
    const mine = marks.find((m) => m.user === this.user);
    if (cursor && mine && mine.seen > cursor.seen) {
      cursor.seen = mine.seen;
      cursor.delivered = Math.max(cursor.delivered, mine.delivered);
      this.markLater(room); // its reply brings seen_n, which a push does not
    }
    this.out({ kind: "marks", room, marks });
  }

  // ------------------------------------------------------------ marks

  private markLater(room: string): void {
    this.marksDue.add(room);
    if (this.ready && !this.timers.mark) this.setTimer("mark", MARK_EVERY_MS, () => this.sayMarks());
  }

  /** A mark that was refused for now: after a while, and those of other rooms do not wait for it. */
  private markAgain(room: string, afterMs: number): void {
    this.marksRefused.add(room);
    if (this.timers.mark_again) return;
    this.setTimer("mark_again", afterMs + MARK_AGAIN_MS * (0.5 + this.host.random()), () => {
      for (const refused of this.marksRefused) this.markLater(refused);
      this.marksRefused.clear();
    });
  }

  private sayMarks(): void {
    let left = MARKS_A_ROUND;
    for (const room of this.marksDue) {
      const cursor = this.cursors.get(room);
      if (cursor && cursor.state !== "on" && cursor.state !== "ended") continue; // said when it is on
      this.marksDue.delete(room);
      if (!cursor || cursor.state === "ended") continue;
      const { delivered, seen } = cursor;
      const generation = this.generation;
      this.request("mark", { room, delivered, seen }).then(
        (reply) => {
          cursor.delivered = Math.max(cursor.delivered, reply.delivered);
          cursor.seen = Math.max(cursor.seen, reply.seen);
          this.out({ kind: "my_marks", room, ...reply });
        },
        (error: unknown) => {
          // after a connection that was lost, marks are stated again with the next subscribe
          if (generation !== this.generation) return;
          const refused = error instanceof Refused ? error.error : null;
          if (refused === null || verdict(refused.code) !== "definite") this.markAgain(room, refused?.retry_after_ms ?? 0);
        },
      );
      if (--left === 0) break;
    }
    if (this.marksDue.size > 0 && this.ready) this.setTimer("mark", MARK_EVERY_MS, () => this.sayMarks());
  }

  // ------------------------------------------------------------ sends

  private pump(): void {
    if (!this.ready) return;
    const now = this.host.now();
    for (const pending of this.outbox.ready(now)) {
      const state = this.cursors.get(pending.room)?.state;
      // the reply's place is only defined once the room's cursor is set
      if (state === "none" || state === "asked" || state === "pending") continue;
      this.trySend(pending);
    }
    // one whose time has come, and whose room is not on yet, goes once it is
    const at = this.outbox.deadline(now);
    if (at !== undefined) this.setTimer("outbox", at - now, () => this.pump());
  }

  private trySend(pending: Pending): void {
    const { room } = pending;
    const cursor = this.cursors.get(room);
    this.outbox.sending(pending, Math.max(cursor?.last ?? 0, cursor?.head ?? 0));
    this.out({ kind: "outbox", room });
    const id = pending.client_msg_id;
    this.transmit("send", {
      room,
      client_msg_id: id,
      since: pending.since ?? 0,
      text: pending.text,
      ...(pending.reply_to === undefined ? {} : { reply_to: pending.reply_to }),
      ...(pending.mentions.length === 0 ? {} : { mentions: pending.mentions }),
    }).then(
      (reply) => this.acked(pending, id, reply.seq, reply.at),
      (error: Error) => {
        if (this.outbox.find(room, id) !== pending) return; // settled by its event meanwhile
        const now = this.host.now();
        if (error instanceof Refused) {
          this.outbox.refused(pending, error.error, now, this.host.random());
          if (pending.state === "searching") void this.search(pending);
        } else {
          this.outbox.lost(pending, now);
        }
        this.out({ kind: "outbox", room });
        this.pump();
      },
    );
  }

  /** The reply stands in the place of the event, so the event is made from what was sent. */
  private acked(pending: Pending, id: string, seq: number, at: number): void {
    const { room } = pending;
    if (!this.outbox.remove(room, id)) return;
    const cursor = this.cursors.get(room);
    if (cursor) {
      const live = cursor.mode === "live" && cursor.last !== null;
      if (live && seq > (cursor.last ?? 0) + 1) this.onGap(room, (cursor.last ?? 0) + 1, seq - 1, false);
      // n counts messages: this is the next one, since nothing lies between
      const n = (cursor.lastN ?? cursor.n) + 1;
      cursor.seen = Math.max(cursor.seen, seq); // a send lifts its sender's marks
      cursor.delivered = Math.max(cursor.delivered, seq);
      if (live && seq === (cursor.last ?? 0) + 1) {
        this.place(cursor, {
          room,
          seq,
          at,
          n,
          sender: this.user,
          sender_name: this.userName,
          client_msg_id: id,
          message: {
            text: pending.text,
            content_type: "text/plain",
            mentions: pending.mentions,
            ...(pending.reply_to === undefined ? {} : { reply_to: pending.reply_to }),
          },
        });
      } else {
        this.out({ kind: "acked", room, seq, at, pending });
        this.markLater(room); // brings seen_n
      }
    }
    this.out({ kind: "outbox", room });
    this.pump();
  }

  /** After 113: the log above `since` says whether an earlier try is in it. */
  private async search(pending: Pending): Promise<void> {
    const { room, client_msg_id: id } = pending;
    const generation = this.generation;
    let after = pending.since ?? 0;
    try {
      for (let page = 0; page < SEARCH_PAGES_MAX; page++) {
        const reply = await this.request("history", { room, after, limit: 100 });
        const twin = reply.events.find((e) => e.sender === this.user && e.client_msg_id === id);
        if (twin) {
          this.acked(pending, id, twin.seq, twin.at);
          return;
        }
        after = Math.max(after, reply.events.at(-1)?.seq ?? 0, reply.gaps.at(-1)?.to ?? 0);
        if (!reply.more) {
          this.outbox.notFound(pending, reply.head, this.host.now());
          this.out({ kind: "outbox", room });
          this.pump();
          return;
        }
      }
      pending.state = "failed"; // still unknown: the person may look, or try again
    } catch (error) {
      if (error instanceof Refused) {
        this.outbox.refused(pending, error.error, this.host.now(), this.host.random());
        pending.definite = false; // it was the search that was refused: an earlier try may be in the log
      } else if (generation === this.generation) this.outbox.lost(pending, this.host.now());
    }
    this.out({ kind: "outbox", room });
    this.pump();
  }

  /** One page of a room's log, for a reader who scrolls. */
  history(room: string, bounds: { before?: number; after?: number }, limit = FIRST_PAGE): Promise<History> {
    return this.request("history", { room, ...bounds, limit });
  }
}
