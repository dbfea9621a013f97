//! The store over a real session, whose server each test plays by hand.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Store } from "../src/store.ts";
import type { Room, RoomEvent, SubscribedRoom } from "../src/protocol.ts";
import { aRoom, anEvent, World } from "./fake.ts";

class Page extends World {
  readonly store: Store;
  private readonly late: (() => void)[] = [];

  constructor() {
    super();
    this.store = new Store(
      () => this.time,
      (_ms, run) => void this.late.push(run),
    );
    this.store.session = this.session;
    const push = this.outputs.push.bind(this.outputs);
    this.outputs.push = (...outputs) => {
      for (const output of outputs) this.store.apply(output);
      return push(...outputs);
    };
  }

  async runLate(): Promise<void> {
    for (const run of this.late.splice(0)) run();
    await this.settle();
  }

  room(id: string) {
    const room = this.store.rooms.get(id);
    assert.ok(room, `room ${id} is in the list`);
    return room;
  }

  seqs(id: string): (number | string)[] {
    return this.room(id).timeline.items.map((i) => (i.type === "event" ? i.event.seq : `${i.from}-${i.to}`));
  }

  static async open(rooms: Room[], open: string, subscribed: Record<string, Partial<SubscribedRoom>> = {}): Promise<Page> {
    const page = new Page();
    await page.online(rooms, subscribed);
    page.store.go(open);
    const room = rooms.find((r) => r.room === open) ?? aRoom(open);
    await page.answerSubscribe(rooms, { [open]: { seen: room.seen, seen_n: room.seen_n, delivered: room.delivered, ...subscribed[open] } });
    return page;
  }
}

const line = (room: string, seq: number, n: number, more: Partial<RoomEvent>): RoomEvent => {
  const { message: _, ...event } = anEvent(room, seq, { n });
  return { ...event, ...more };
};

test("unread is n minus seen_n, in every room", async () => {
  const page = new Page();
  await page.online([aRoom("a", 9, { n: 7, seen: 5, seen_n: 4 }), aRoom("b", 2, { n: 2, seen: 2, seen_n: 2 })], {
    a: { seen: 5, seen_n: 4, n: 7 },
    b: { seen: 2, seen_n: 2 },
  });
  assert.equal(page.store.unread(page.room("a")), 3);
  assert.equal(page.store.totalUnread, 3);
  await page.say({ head: { room: "b", head: 5, n: 4 } });
  assert.equal(page.store.unread(page.room("b")), 2);
});

test("a head of a room that is not open brings its last message into the list, once for many heads", async () => {
  const page = await Page.open([aRoom("a", 1), aRoom("b", 1)], "a");
  await page.say({ head: { room: "b", head: 2, n: 2 } });
  await page.say({ head: { room: "b", head: 3, n: 3 } });
  await page.runLate();
  await page.answer("history", { events: [anEvent("b", 2), anEvent("b", 3)], gaps: [], log: "log-a", head: 3, more: false });
  assert.equal(page.room("b").info.last?.text, "text 3");
  assert.equal(page.has("history"), false);
  assert.deepEqual(page.store.sorted.map((r) => r.info.room), ["b", "a"]);
});

test("what is seen lowers the count at once and is said to the server", async () => {
  const page = await Page.open([aRoom("a", 4, { seen: 1, seen_n: 1 })], "a", { a: { from: 1, seen: 1, seen_n: 1 } });
  for (const seq of [1, 2, 3, 4]) await page.say({ event: anEvent("a", seq) });
  assert.equal(page.room("a").newAbove, 1);
  page.store.seen("a", 3);
  assert.equal(page.store.unread(page.room("a")), 1);
  page.store.seen("a", 2);
  assert.equal(page.store.unread(page.room("a")), 1, "marks never fall");
  await page.pass(600);
  assert.deepEqual(page.take("mark").body, { room: "a", delivered: 4, seen: 3 });
});

test("a send counts as seen, and its reply stands in the place of the event", async () => {
  const page = await Page.open([aRoom("a", 1)], "a", { a: { from: 1 } });
  await page.say({ event: anEvent("a", 1) });
  page.store.send("a", "hello");
  assert.equal(page.session.outbox.of("a").length, 1);
  await page.say({ event: anEvent("a", 2) });
  await page.answer("send", { room: "a", seq: 3, at: 5, duplicate: false });
  assert.deepEqual(page.seqs("a"), [1, 2, 3]);
  assert.equal(page.session.outbox.of("a").length, 0);
  assert.equal(page.store.unread(page.room("a")), 0);
  assert.equal(page.room("a").info.last?.text, "hello");
});

test("older pages go in front, a failed one says why and can be tried again", async () => {
  const page = await Page.open([aRoom("a", 60)], "a", { a: { from: 59 } });
  await page.say({ event: anEvent("a", 59) });
  await page.say({ event: anEvent("a", 60) });
  const failed = page.store.loadOlder("a");
  await page.refuse("history", 108);
  await failed;
  assert.match(page.room("a").loadError ?? "", /cannot do that right now/);
  const loaded = page.store.loadOlder("a");
  assert.deepEqual(await page.answer("history", { events: [anEvent("a", 57), anEvent("a", 58)], gaps: [], log: "log-a", head: 60, more: true }), { room: "a", before: 59, limit: 50 });
  await loaded;
  assert.deepEqual(page.seqs("a"), [57, 58, 59, 60]);
  assert.equal(page.room("a").loadError, null);
});

test("a page of another log is not mixed in", async () => {
  const page = await Page.open([aRoom("a", 60)], "a", { a: { from: 60 } });
  await page.say({ event: anEvent("a", 60) });
  const loaded = page.store.loadOlder("a");
  await page.answer("history", { events: [anEvent("a", 59)], gaps: [], log: "log-b", head: 60, more: false });
  await loaded;
  assert.deepEqual(page.seqs("a"), [60]);
});

test("an announced gap is shown and can be loaded", async () => {
  const page = await Page.open([aRoom("a", 1)], "a", { a: { from: 1 } });
  await page.say({ event: anEvent("a", 1) });
  await page.say({ gap: { room: "a", from: 2, to: 5 } });
  await page.say({ event: anEvent("a", 6) });
  assert.deepEqual(page.seqs("a"), [1, "2-5", 6]);
  const filled = page.store.fillGap("a", { from: 2, to: 5 });
  await page.answer("history", { events: [4, 5].map((s) => anEvent("a", s)), gaps: [], log: "log-a", head: 6, more: true });
  await filled;
  assert.deepEqual(page.seqs("a"), [1, "2-3", 4, 5, 6]);
});

test("news about a room that is older than what is here takes nothing back", async () => {
  const page = await Page.open([aRoom("a", 1)], "a", { a: { from: 1 } });
  for (const seq of [1, 2, 3]) await page.say({ event: anEvent("a", seq) });
  await page.say({ room: aRoom("a", 2, { name: "Renamed", last: { seq: 2, at: 1, sender_name: "Bob", text: "text 2" } }) });
  const { info } = page.room("a");
  assert.deepEqual([info.name, info.head, info.n, info.last?.text], ["Renamed", 3, 3, "text 3"]);
});

test("members, roles and names follow the events", async () => {
  const page = await Page.open([aRoom("a", 1, { role: "owner" })], "a", { a: { from: 1, role: "owner" } });
  await page.answer("members", {
    members: [{ user: "u1", name: "Ada", role: "owner", joined_seq: 1 }, { user: "u2", name: "Bob", role: "member", joined_seq: 1, seen: 1 }],
    count: 2,
    more: false,
  });
  await page.say({ event: anEvent("a", 1) });
  await page.say({ event: line("a", 2, 1, { joined: { user: "u3", name: "Cleo", role: "member" } }) });
  await page.say({ event: line("a", 3, 1, { role_changed: { user: "u2", role: "owner", by: "u1" } }) });
  await page.say({ event: line("a", 4, 1, { room_changed: { name: "New name", public: true } }) });
  await page.say({ event: line("a", 5, 1, { removed: { user: "u3", by: "u2" } }) });
  const room = page.room("a");
  assert.deepEqual([...room.members.values()].map((m) => [m.user, m.role]), [["u1", "admin"], ["u2", "owner"]]);
  assert.equal(room.memberCount, 2);
  assert.equal(room.info.role, "admin", "who hands over becomes admin");
  assert.deepEqual([room.info.name, room.info.public], ["New name", true]);
  assert.equal(page.store.nameOf("u3"), "Cleo", "the name outlives the membership");
  assert.equal(page.store.unread(room), 1, "only messages count");
});

test("the next page of members begins behind the last one, whoever joins meanwhile", async () => {
  const page = await Page.open([aRoom("a", 1)], "a", { a: { from: 1 } });
  const member = (user: string) => ({ user, name: user, role: "member", joined_seq: 1 });
  await page.answer("members", { members: [member("u1"), member("u2")], count: 3, more: true });
  await page.say({ event: anEvent("a", 1) });
  await page.say({ event: line("a", 2, 1, { joined: { user: "zz", name: "Zoe", role: "member" } }) });
  void page.store.loadMembers("a", true);
  assert.deepEqual(await page.answer("members", { members: [member("u3"), member("zz")], count: 4, more: false }), { room: "a", after: "u2", limit: 100 });
  assert.deepEqual([...page.room("a").members.keys()].sort(), ["u1", "u2", "u3", "zz"]);
});

test("receipts come from the member list and rise with the pushes", async () => {
  const page = await Page.open([aRoom("a", 1)], "a", { a: { from: 1 } });
  await page.answer("members", {
    members: [{ user: "u1", name: "Ada", role: "member", joined_seq: 1 }, { user: "u2", name: "Bob", role: "member", joined_seq: 1, delivered: 1, seen: 0 }],
    count: 2,
    more: false,
  });
  const seen = () => page.store.receipts(page.room("a"), 1)?.seen.map((m) => m.name);
  assert.deepEqual(seen(), []);
  assert.equal(page.store.receipts(page.room("a"), 1)?.delivered, 1);
  await page.say({ marks: { room: "a", marks: [{ user: "u2", delivered: 1, seen: 1 }] } });
  assert.deepEqual(seen(), ["Bob"]);
});

test("who sends has seen what was there", async () => {
  const page = await Page.open([aRoom("a", 1)], "a", { a: { from: 1 } });
  await page.answer("members", {
    members: [{ user: "u1", name: "Ada", role: "member", joined_seq: 1 }, { user: "u2", name: "Bob", role: "member", joined_seq: 1, delivered: 0, seen: 0 }],
    count: 2,
    more: false,
  });
  await page.say({ event: anEvent("a", 2, { sender: "u2" }) });
  assert.deepEqual(page.store.receipts(page.room("a"), 1)?.seen.map((m) => m.name), ["Bob"]);
});

test("the door: public rooms may be joined, unseen ones are not there, joining leads in", async () => {
  for (const [code, state] of [[123, "public"], [102, "unknown"], [108, "failed"]] as const) {
    const page = new Page();
    await page.online([]);
    page.store.go("x");
    await page.refuse("history", code);
    assert.equal(page.store.place.at === "door" && page.store.place.state, state);
    if (code !== 123) continue;
    const joined = page.store.join("x");
    await page.answer("join", { head: 4, role: "member" });
    await page.answer("rooms", { rooms: [aRoom("x", 4)], more: false });
    await joined;
    assert.deepEqual(page.store.place, { at: "room", room: "x" });
  }
});

test("a removed room stays on the screen until one goes elsewhere, and starts afresh after a return", async () => {
  const page = await Page.open([aRoom("a", 1), aRoom("b", 1)], "a", { a: { from: 1 } });
  await page.say({ event: anEvent("a", 1) });
  await page.say({ unsubscribed: { room: "a", code: 123, reason: "removed" } });
  await page.say({ room_gone: { room: "a", code: 123 } });
  assert.deepEqual(page.room("a").ended, { code: 123 });
  page.store.go("b");
  assert.equal(page.store.rooms.has("a"), false);
  await page.answerSubscribe([aRoom("b", 1)]);
  await page.say({ room: aRoom("a", 3) });
  await page.answerSubscribe([aRoom("a", 3)]);
  page.store.go("a");
  const asked = await page.answerSubscribe([aRoom("a", 3), aRoom("b", 1)]);
  assert.deepEqual(asked[0], { room: "a", mode: "live", last: 50 });
  for (const seq of [1, 2, 3]) await page.say({ event: anEvent("a", seq) });
  assert.deepEqual(page.seqs("a"), [1, 2, 3]);
});

test("a new room's id survives a second press, and an unknown member is named", async () => {
  const page = new Page();
  await page.online([]);
  const failed = page.store.createRoom("id-1", "group", "Room", true, ["nobody"]);
  await page.refuse("find_user", 122);
  await assert.rejects(failed, /There is no user called “nobody”/);
  const made = page.store.createRoom("id-1", "group", "Room", true, ["bob"]);
  await page.answer("find_user", { user: "u2", name: "Bob" });
  const info = aRoom("id-1", 2, { role: "owner", name: "Room" });
  await page.say({ room: info });
  await page.answerSubscribe([info]);
  assert.deepEqual(await page.answer("create_room", { ...info, created: true }), { room: "id-1", kind: "group", name: "Room", public: true, members: ["u2"] });
  assert.equal(await made, "id-1");
});
