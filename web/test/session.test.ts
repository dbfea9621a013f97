//! The session against a server that each test plays by hand.

import assert from "node:assert/strict";
import { test } from "node:test";
import { aRoom, anEvent, World } from "./fake.ts";

/** Online, with room "r" open at head 3 and its three events shown. */
async function inRoom(): Promise<World> {
  const world = new World();
  world.session.openRoom("r");
  await world.online([aRoom("r", 3)]);
  for (const seq of [1, 2, 3]) await world.say({ event: anEvent("r", seq) });
  assert.deepEqual(world.log(), [1, 2, 3]);
  return world;
}

test("auth goes first, then the list of rooms, then one subscribe: the open room live, the others passive", async () => {
  const world = new World();
  world.session.openRoom("b");
  world.session.start();
  world.socket.handlers.open();
  await world.settle();
  assert.deepEqual(world.socket.sent.map((f) => Object.keys(f)[1]), ["auth"]);
  await world.online([aRoom("a", 7), aRoom("b", 9)]);
  const said = world.of("subscribed").map((o) => [o.info.room, o.mode]);
  assert.deepEqual(said, [["b", "live"], ["a", "passive"]]);
  assert.equal(world.session.state.state, "online");
});

test("all pages of the list are read before anything is subscribed", async () => {
  const world = new World();
  world.session.start();
  world.socket.handlers.open();
  await world.settle();
  await world.answer("auth", { user: "u1", name: "Ada", expires_at: 9e12, server_time: 0, ping_interval_ms: 25000, limits: { in_flight: 64, rooms_per_subscribe: 2, subscriptions: 100 } });
  await world.answer("rooms", { rooms: [aRoom("a"), aRoom("b")], more: true });
  assert.equal(world.has("subscribe"), false);
  assert.deepEqual(await world.answer("rooms", { rooms: [aRoom("c")], more: false }), { after: "b", limit: 100 });
  assert.deepEqual((await world.answerSubscribe([])).map((r) => r.room), ["a", "b"]);
  assert.deepEqual((await world.answerSubscribe([])).map((r) => r.room), ["c"], "as many frames as needed");
});

test("events at or below the last seq are dropped", async () => {
  const world = await inRoom();
  await world.say({ event: anEvent("r", 2) });
  await world.say({ event: anEvent("r", 3) });
  await world.say({ event: anEvent("r", 4) });
  assert.deepEqual(world.log(), [1, 2, 3, 4]);
});

test("a hole that the server did not announce becomes a gap", async () => {
  const world = await inRoom();
  await world.say({ event: anEvent("r", 7) });
  assert.deepEqual(world.log(), [1, 2, 3, "4-6", 7]);
});

test("a pushed gap moves the cursor, and a part that is known already is cut off", async () => {
  const world = await inRoom();
  await world.say({ gap: { room: "r", from: 2, to: 10 } });
  await world.say({ event: anEvent("r", 10) });
  await world.say({ event: anEvent("r", 11) });
  assert.deepEqual(world.log(), [1, 2, 3, "4-10", 11]);
});

test("after a lost connection every room is subscribed with its seq and log", async () => {
  const world = await inRoom();
  await world.close(1006);
  assert.equal(world.session.state.state, "waiting");
  await world.pass(20_000);
  world.socket.handlers.open();
  await world.settle();
  await world.answer("auth", { user: "u1", name: "Ada", expires_at: 9e12, server_time: 0, ping_interval_ms: 25000 });
  await world.answer("rooms", { rooms: [aRoom("r", 5)], more: false });
  const asked = await world.answerSubscribe([aRoom("r", 5)]);
  assert.deepEqual(asked, [{ room: "r", mode: "live", after: 3, log: "log-a" }]);
  await world.say({ event: anEvent("r", 4) });
  await world.say({ event: anEvent("r", 5) });
  assert.deepEqual(world.log(), [1, 2, 3, 4, 5]);
});

test("the gap of a subscribe reply comes before the events behind it", async () => {
  const world = await inRoom();
  await world.close(3001);
  await world.pass(20_000);
  await world.online([aRoom("r", 2000)], { r: { from: 1001, gap: { from: 4, to: 1000 } } });
  await world.say({ event: anEvent("r", 1001) });
  assert.deepEqual(world.log(), [1, 2, 3, "4-1000", 1001]);
});

test("another log resets the room, also when only the list tells of it", async () => {
  for (const where of ["list", "reply"]) {
    const world = await inRoom();
    await world.close(1006);
    await world.pass(20_000);
    const now = aRoom("r", 1, { log: where === "list" ? "log-b" : "log-a" });
    await world.online([now], { r: { log: "log-b", from: 1, reset: true, head: 1 } });
    await world.say({ event: anEvent("r", 1) });
    assert.deepEqual(world.log(), [1, 2, 3, "reset", 1], where);
  }
});

test("a pending room is finished by the push", async () => {
  const world = new World();
  world.session.openRoom("r");
  await world.online([aRoom("r", 3)], { r: { pending: true } });
  world.session.send("r", "hi");
  assert.equal(world.has("send"), false, "no place for its reply yet");
  await world.say({ subscribed: { room: "r", log: "log-a", head: 3, n: 3, from: 1, role: "member", delivered: 0, seen: 0, seen_n: 0 } });
  assert.equal(world.of("start")[0]?.from, 1);
  assert.equal(world.has("send"), true);
});

test("a room whose owner did not answer is asked again", async () => {
  const world = new World();
  world.session.openRoom("r");
  await world.online([aRoom("r", 3)], { r: { error: { code: 108, name: "unavailable", message: "", retry_after_ms: 300 } } });
  assert.equal(world.has("subscribe"), false);
  await world.pass(300);
  assert.equal(world.has("subscribe"), true);
});

test("a subscribe that is refused as a whole is tried again, ever more seldom, and never beyond the server's limit", async () => {
  const world = new World();
  world.chance = 0.999;
  world.session.openRoom("r");
  await world.online(Array.from({ length: 1_005 }, (_, i) => aRoom(i === 0 ? "r" : `r${i}`)), {});
  let asked = world.of("subscribed").length;
  while (world.has("subscribe")) asked += (await world.answerSubscribe([])).length;
  assert.equal(asked, 1_000);
  const waits: number[] = [];
  await world.close(1006);
  await world.pass(20_000);
  world.socket.handlers.open();
  await world.settle();
  await world.answer("auth", { user: "u1", name: "Ada", expires_at: 9e12, server_time: 0, ping_interval_ms: 9e6 });
  await world.answer("rooms", { rooms: [aRoom("r")], more: false });
  for (let i = 0; i < 7; i++) {
    await world.refuse("subscribe", 108);
    const from = world.time;
    while (!world.has("subscribe")) await world.pass(100);
    waits.push(world.time - from);
  }
  assert.ok(waits.every((ms, i) => i === 0 || ms >= (waits[i - 1] as number)), `${waits}`);
  assert.ok((waits[0] as number) < 2_000 && (waits.at(-1) as number) > 20_000, `${waits}`);
});

test("opening another room swaps live and passive and keeps the place of the old one", async () => {
  const world = new World();
  world.session.openRoom("a");
  await world.online([aRoom("a", 1), aRoom("b", 1)]);
  await world.say({ event: anEvent("a", 1) });
  world.session.openRoom("b");
  assert.deepEqual(await world.answerSubscribe([aRoom("b", 1)]), [
    { room: "b", mode: "live", last: 50 },
    { room: "a", mode: "passive", after: 1, log: "log-a" },
  ]);
  await world.say({ head: { room: "a", head: 9, n: 9 } });
  world.session.openRoom("a");
  const asked = (world.take("subscribe").body as { rooms: unknown[] }).rooms;
  assert.deepEqual(asked[0], { room: "a", mode: "live", after: 1, log: "log-a" });
});

test("a passive room tells its head and does not take events out of order", async () => {
  const world = new World();
  world.session.openRoom("b");
  await world.online([aRoom("a", 1), aRoom("b", 1)]);
  await world.say({ head: { room: "a", head: 4, n: 3 } });
  await world.say({ event: anEvent("a", 6) });
  assert.deepEqual(world.log(), []);
  assert.deepEqual(world.of("head").map((o) => [o.head, o.n]), [[4, 3]]);
});

test("the reply to a send stands in the place of its event", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  await world.say({ event: anEvent("r", 4) });
  const body: Record<string, unknown> = await world.answer("send", { room: "r", seq: 5, at: 77, duplicate: false });
  assert.deepEqual(body, { room: "r", client_msg_id: "m1", since: 3, text: "mine" });
  await world.say({ event: anEvent("r", 6) });
  assert.deepEqual(world.log(), [1, 2, 3, 4, 5, 6]);
  const mine = world.of("event").find((o) => o.event.seq === 5)?.event;
  assert.equal(mine?.sender, "u1");
  assert.equal(mine?.message?.text, "mine");
  assert.equal(mine?.n, 5);
  assert.equal(world.session.outbox.size, 0);
});

test("a send whose connection went is tried again with the same id and since", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  const first = world.take("send").body;
  await world.close(1006);
  await world.pass(20_000);
  await world.online([aRoom("r", 9)], { r: { from: 4 } });
  assert.deepEqual(world.take("send").body, first);
});

test("an own event that comes back settles the send, and the late reply adds nothing", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  await world.close(1006);
  await world.pass(20_000);
  await world.online([aRoom("r", 4)], { r: { from: 4 } });
  await world.say({ event: anEvent("r", 4, { sender: "u1", sender_name: "Ada", client_msg_id: "m1" }) });
  assert.equal(world.session.outbox.size, 0);
  await world.answer("send", { room: "r", seq: 4, at: 1, duplicate: true });
  assert.deepEqual(world.log(), [1, 2, 3, 4]);
});

test("a reply to a retry that lies below the cursor does not move it", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  await world.answer("send", { room: "r", seq: 2, at: 1, duplicate: true });
  assert.deepEqual(world.log(), [1, 2, 3]);
  assert.equal(world.of("acked").length, 1);
});

test("messages of a room go one after the other, those of two rooms side by side", async () => {
  const world = new World();
  world.session.openRoom("a");
  await world.online([aRoom("a", 0), aRoom("b", 0)]);
  world.session.send("a", "1");
  world.session.send("a", "2");
  world.session.send("b", "3");
  const texts = () => world.socket.sent.filter((f) => "send" in f).map((f) => (f["send"] as { text: string }).text);
  assert.deepEqual(texts(), ["1", "3"]);
  await world.answer("send", { room: "a", seq: 1, at: 1, duplicate: false });
  assert.deepEqual(texts(), ["3", "2"]);
});

test("what each refusal does to a send", async () => {
  const rows: [code: number, retried: boolean][] = [
    [100, true], [108, true], [101, true], [106, true], [109, true], [111, true], [112, true],
    [102, false], [103, false], [107, false], [120, false], [121, false], [123, false],
  ];
  for (const [code, retried] of rows) {
    const world = await inRoom();
    world.session.send("r", "mine");
    const first = await world.refuse("send", code, { retry_after_ms: 700 });
    const pending = world.session.outbox.of("r")[0];
    assert.equal(pending?.state, retried ? "retrying" : "failed", `code ${code}`);
    await world.pass(1_199); // of half a second of backoff more: others were told the same
    assert.equal(world.has("send"), false, `code ${code}: not before the server's retry_after_ms`);
    await world.pass(1);
    assert.equal(world.has("send"), retried, `code ${code}`);
    if (retried) assert.deepEqual(world.take("send").body, first, `code ${code}: same id, same since`);
    else {
      world.session.retry("r", "m1");
      const again = world.take("send").body as { client_msg_id: string };
      assert.equal(again.client_msg_id, "m2", `code ${code}: nothing is in the log, so it is a new message`);
    }
  }
});

test("a message whose room is not on yet sets no timer that is over already", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  await world.refuse("send", 108, { retry_after_ms: 700 });
  await world.close(1006);
  await world.pass(60_000);
  world.socket.handlers.open();
  await world.settle();
  await world.answer("auth", { user: "u1", name: "Ada", expires_at: 9e12, server_time: 0, ping_interval_ms: 9e6 });
  await world.answer("rooms", { rooms: [aRoom("r", 3)], more: false });
  const before = world.timersSet;
  await world.pass(1_000);
  assert.equal(world.timersSet, before, "nothing is left to wait for but the reply to the subscribe");
  await world.answerSubscribe([aRoom("r", 3)]);
  assert.equal(world.has("send"), true);
});

test("a search that is refused says nothing of the message", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  await world.refuse("send", 113);
  await world.refuse("history", 103);
  const pending = world.session.outbox.of("r")[0];
  assert.deepEqual([pending?.state, pending?.definite], ["failed", false]);
  world.session.retry("r", "m1");
  assert.equal((world.take("send").body as { client_msg_id: string }).client_msg_id, "m1", "it may be in the log: the same id");
});

test("what is pushed while the list is read is not undone by it", async () => {
  const world = new World();
  world.session.start();
  world.socket.handlers.open();
  await world.settle();
  await world.answer("auth", { user: "u1", name: "Ada", expires_at: 9e12, server_time: 0, ping_interval_ms: 9e6 });
  await world.answer("rooms", { rooms: [aRoom("a"), aRoom("b")], more: true });
  await world.say({ room: aRoom("aa") });
  await world.say({ room_gone: { room: "b", code: 123 } });
  await world.answer("rooms", { rooms: [aRoom("c")], more: false });
  assert.deepEqual(world.of("rooms")[0]?.rooms.map(({ room }) => room), ["a", "c", "aa"]);
  const asked = (world.take("subscribe").body as { rooms: { room: string }[] }).rooms.map(({ room }) => room);
  assert.deepEqual(asked.sort(), ["a", "aa", "c"]);
});

test("a list that is refused for now keeps nobody offline who has been online", async () => {
  const world = await inRoom();
  await world.close(1006);
  await world.pass(1_000);
  const again = async () => {
    world.socket.handlers.open();
    await world.settle();
    await world.answer("auth", { user: "u1", name: "Ada", expires_at: 9e12, server_time: 0, ping_interval_ms: 9e6 });
    await world.refuse("rooms", 108, { retry_after_ms: 500 });
  };
  await again();
  assert.equal(world.session.state.state, "online");
  await world.answerSubscribe([aRoom("r", 3)]);
  await world.pass(1_499);
  assert.equal(world.has("rooms"), false);
  await world.pass(1);
  await world.refuse("rooms", 108, { retry_after_ms: 500 });
  await world.pass(2_000);
  await world.answer("rooms", { rooms: [aRoom("r", 3), aRoom("new")], more: false });
  assert.deepEqual(world.of("rooms").at(-1)?.rooms.map(({ room }) => room), ["r", "new"]);
  assert.equal(world.has("subscribe"), true);
  await world.pass(600_000);
  assert.equal(world.has("rooms"), false, "once is enough");
});

test("a mark that is refused for now is stated again", async () => {
  const world = await inRoom();
  world.session.mark("r", { delivered: 2, seen: 2 });
  await world.pass(600);
  await world.refuse("mark", 108, { retry_after_ms: 500 });
  await world.pass(5_499 + 600);
  assert.equal(world.has("mark"), false);
  await world.pass(1);
  await world.refuse("mark", 108, { retry_after_ms: 500 });
  world.session.mark("r", { seen: 3 });
  await world.pass(600);
  assert.deepEqual(await world.refuse("mark", 103), { room: "r", delivered: 3, seen: 3 }, "a new one does not wait for the refused one");
  await world.pass(5_500);
  await world.refuse("mark", 103);
  await world.pass(60_000);
  assert.equal(world.has("mark"), false, "a refusal for good is not asked again");
});

test("after 113 the log is searched: found there, it is settled", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  await world.refuse("send", 113);
  const filler = Array.from({ length: 100 }, (_, i) => anEvent("r", 4 + i));
  assert.deepEqual(await world.answer("history", { events: filler, gaps: [], log: "log-a", head: 104, more: true }), { room: "r", after: 3, limit: 100 });
  const twin = anEvent("r", 104, { sender: "u1", client_msg_id: "m1" });
  assert.deepEqual(await world.answer("history", { events: [twin], gaps: [], log: "log-a", head: 104, more: false }), { room: "r", after: 103, limit: 100 });
  assert.equal(world.session.outbox.size, 0);
  assert.equal(world.has("send"), false);
});

test("after 113 the log is searched: not there, it is sent with the head of the last page", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  await world.refuse("send", 113);
  await world.answer("history", { events: [anEvent("r", 4)], gaps: [], log: "log-a", head: 12, more: false });
  const again = world.take("send").body as { client_msg_id: string; since: number };
  assert.deepEqual([again.client_msg_id, again.since], ["m1", 12]);
});

test("a search that loses its connection starts over with the same id and since", async () => {
  const world = await inRoom();
  world.session.send("r", "mine");
  const first = await world.refuse("send", 113);
  assert.equal(world.session.outbox.of("r")[0]?.state, "searching");
  await world.close(1006);
  await world.pass(20_000);
  await world.online([aRoom("r", 3)]);
  assert.deepEqual(world.take("send").body, first);
});

test("the reply to an outdated subscribe does not say where a room starts", async () => {
  const world = new World();
  world.session.openRoom("b");
  await world.online([aRoom("b", 1)]);
  await world.say({ room: aRoom("a", 80) });
  const passive = world.take("subscribe");
  world.session.openRoom("a");
  const info = { room: "a", log: "log-a", head: 80, n: 80, from: 81, role: "member", delivered: 0, seen: 0, seen_n: 0 };
  await world.say({ id: passive.id, subscribe: { rooms: [info] } });
  assert.equal(world.of("start").filter((o) => o.room === "a").length, 0);
  await world.answerSubscribe([aRoom("a", 80), aRoom("b", 1)]);
  assert.deepEqual(world.of("start").filter((o) => o.room === "a").map((o) => o.from), [31]);
});

test("close codes: who comes back, who does not", async () => {
  const rows: [code: number, state: string][] = [
    [1000, "waiting"], [1001, "waiting"], [1006, "waiting"], [3000, "waiting"], [3001, "waiting"], [3004, "waiting"],
    [3008, "waiting"], [3012, "waiting"], [3013, "waiting"], [3500, "signed_out"], [3503, "signed_out"],
    [3501, "stopped"], [3502, "stopped"], [3777, "stopped"], [1002, "stopped"], [1003, "stopped"], [1007, "stopped"], [1009, "stopped"],
  ];
  for (const [code, state] of rows) {
    const world = await inRoom();
    await world.close(code);
    assert.equal(world.session.state.state, state, `close ${code}`);
    const sockets = world.sockets.length;
    await world.pass(60_000);
    assert.equal(world.sockets.length > sockets, state === "waiting", `close ${code}`);
  }
});

test("the wait is uniform below a doubling bound, and starts over after a stable minute", async () => {
  const world = new World();
  world.chance = 0.999999;
  world.session.start();
  const bounds: number[] = [];
  for (let i = 0; i < 8; i++) {
    await world.close(1006);
    const link = world.session.state;
    assert.equal(link.state, "waiting");
    const ms = (link.state === "waiting" ? link.until : 0) - world.time;
    bounds.push(Math.round(ms));
    await world.pass(Math.ceil(ms));
  }
  assert.deepEqual(bounds, [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000]);
  await world.online();
  for (let i = 0; i < 13; i++) {
    await world.pass(5_000);
    if (world.has("ping")) await world.answer("ping", { server_time: 1 });
  }
  await world.close(1006);
  const link = world.session.state;
  assert.equal(Math.round((link.state === "waiting" ? link.until : 0) - world.time), 500);
});

test("reconnect: the server's time wins over the backoff", async () => {
  const world = await inRoom();
  await world.say({ reconnect: { after_ms: 3456, reason: "draining" } });
  await world.pass(1000);
  await world.close(3001);
  assert.deepEqual(world.session.state, { state: "waiting", until: world.time + 2456, again: true });
  await world.pass(2455);
  assert.equal(world.sockets.length, 1);
  await world.pass(1);
  assert.equal(world.sockets.length, 2);
});

test("reconnect: a server that does not close is left at the given time", async () => {
  const world = await inRoom();
  await world.say({ reconnect: { after_ms: 500, reason: "moving" } });
  const old = world.socket;
  await world.pass(500);
  assert.equal(world.sockets.length, 2);
  assert.equal(old.closedWith, 1000);
});

test("an expiring token is renewed in place", async () => {
  const world = await inRoom();
  world.renewals = ["renewed"];
  await world.say({ token_expiring: { expires_at: 1 } });
  assert.deepEqual(await world.answer("refresh", { expires_at: 9 }), { token: "token-1+" });
});

test("close 3002: a new token first; refused means signed out", async () => {
  for (const [result, state] of [["renewed", "connecting"], ["refused", "signed_out"], ["unreachable", "waiting"]] as const) {
    const world = await inRoom();
    world.renewals = [result];
    await world.close(3002);
    assert.equal(world.session.state.state, state, result);
  }
});

test("a refused token ends in signed out, an overloaded server in a wait", async () => {
  for (const [code, state] of [[101, "signed_out"], [112, "waiting"], [108, "waiting"]] as const) {
    const world = new World();
    world.session.start();
    world.socket.handlers.open();
    await world.settle();
    await world.refuse("auth", code, { retry_after_ms: 1500 });
    assert.equal(world.session.state.state, state, `auth error ${code}`);
    if (state === "waiting") assert.deepEqual(world.session.state, { state, until: 1750, again: false });
  }
});

test("a silent connection is probed and then left", async () => {
  const world = await inRoom();
  await world.pass(25_000);
  assert.equal(world.has("ping"), true);
  await world.pass(10_000);
  assert.equal(world.session.state.state, "waiting");
  assert.equal(world.sockets[0]?.closedWith, 4000);
});

test("any traffic counts as life", async () => {
  const world = await inRoom();
  await world.pass(25_000);
  await world.say({ head: { room: "r", head: 3, n: 3 } });
  await world.pass(10_000);
  assert.equal(world.session.state.state, "online");
});

test("a server that accepts and says nothing is left after the connect deadline", async () => {
  const world = new World();
  world.session.start();
  await world.pass(15_000);
  assert.equal(world.session.state.state, "waiting");
  assert.equal(world.sockets[0]?.closedWith, 4000);
});

test("what an old socket says is dropped", async () => {
  const world = await inRoom();
  const old = world.socket;
  await world.close(1006);
  old.handlers.message(JSON.stringify({ event: anEvent("r", 4) }));
  old.handlers.closed(3500, "");
  await world.settle();
  assert.deepEqual(world.log(), [1, 2, 3]);
  assert.equal(world.session.state.state, "waiting");
});

test("marks are gathered, never fall, never pass the head, and are stated again after a resume", async () => {
  const world = await inRoom();
  world.session.mark("r", { delivered: 2 });
  world.session.mark("r", { seen: 3 });
  world.session.mark("r", { seen: 1 });
  world.session.mark("r", { seen: 99 });
  assert.equal(world.has("mark"), false);
  await world.pass(600);
  assert.deepEqual(await world.answer("mark", { delivered: 3, seen: 3, seen_n: 3 }), { room: "r", delivered: 3, seen: 3 });
  assert.equal(world.has("mark"), false);
  await world.close(1006);
  await world.pass(20_000);
  await world.online([aRoom("r", 3)], { r: { seen: 1, delivered: 3, seen_n: 1 } });
  await world.pass(600);
  assert.deepEqual(world.take("mark").body, { room: "r", delivered: 3, seen: 3 });
});

test("own marks from another device are asked back, for their seen_n", async () => {
  const world = await inRoom();
  await world.say({ marks: { room: "r", marks: [{ user: "u1", delivered: 2, seen: 2 }] } });
  await world.pass(600);
  await world.answer("mark", { delivered: 2, seen: 2, seen_n: 2 });
  assert.deepEqual(world.of("my_marks").at(-1), { kind: "my_marks", room: "r", delivered: 2, seen: 2, seen_n: 2 });
});

test("who was removed while away still gets everything up to that, and then no more", async () => {
  const world = await inRoom();
  await world.close(1006);
  await world.pass(20_000);
  await world.online([], { r: { head: 4, from: 4, role: "none" } });
  await world.say({ event: anEvent("r", 4, { message: undefined, removed: { user: "u1", by: "u2" } } as never) });
  await world.say({ unsubscribed: { room: "r", code: 123, reason: "removed" } });
  assert.deepEqual(world.log(), [1, 2, 3, 4]);
  assert.equal(world.of("unsubscribed").length, 1);
  world.session.send("r", "still here?");
  await world.refuse("send", 123);
  assert.equal(world.session.outbox.of("r")[0]?.state, "failed");
});

test("a room that we were added to is subscribed; after a removal and a return it goes on where it ended", async () => {
  const world = await inRoom();
  await world.say({ room: aRoom("new", 2) });
  assert.deepEqual(await world.answerSubscribe([aRoom("new", 2)]), [{ room: "new", mode: "passive", after: 2, log: "log-a" }]);
  await world.say({ unsubscribed: { room: "r", code: 123, reason: "removed" } });
  await world.say({ room_gone: { room: "r", code: 123 } });
  await world.say({ room: aRoom("r", 8) });
  assert.deepEqual(await world.answerSubscribe([aRoom("r", 8)]), [{ room: "r", mode: "live", after: 3, log: "log-a" }]);
});

test("more than 64 commands wait for a free place", async () => {
  const world = await inRoom();
  const asked = Array.from({ length: 70 }, () => world.session.request("find_user", { username: "x" }));
  const count = () => world.socket.sent.filter((f) => "find_user" in f).length;
  assert.equal(count(), 64);
  for (let i = 0; i < 6; i++) await world.answer("find_user", { user: "u", name: "n" });
  assert.equal(count(), 64);
  await world.close(1006);
  const results = await Promise.allSettled(asked);
  assert.equal(results.filter((r) => r.status === "fulfilled").length, 6);
});

test("garbage from the server stops the session with a word", async () => {
  for (const garbage of ["{", "7", "null", '"x"']) {
    const world = await inRoom();
    world.socket.handlers.message(garbage);
    await world.settle();
    assert.equal(world.session.state.state, "stopped", garbage);
  }
});

test("pushes and fields of a later version are ignored", async () => {
  const world = await inRoom();
  await world.say({ typing: { room: "r", user: "u2" } });
  await world.say({ event: { ...anEvent("r", 4), shiny: true } });
  assert.deepEqual(world.log(), [1, 2, 3, 4]);
});
