//! The ring of the admin page: what is told, where slots lie, how nodes are told apart.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Geometry } from "../src/admin/geometry.ts";
import { mark } from "../src/admin/marks.ts";
import { news, Ring, type RingNode, type Told } from "../src/admin/ring.ts";

const node = (name: string, number: number | null, more: Partial<RingNode> = {}): RingNode => ({
  number, node: name, state: "up", roles: ["shard"], address: null, release: null, weight: 100,
  wanted: 0, owned: 0, coming: 0, going: 0, load: null, ...more,
});
const told = (slots: Told["slots"], more: Partial<Told> = {}): Told => ({
  version: "r-0-1", cluster: "x", node: "a", standing: "up", fresh: true, frozen: false, target_version: 1,
  slot_count: 4, moving: 0, without_owner: 0, pinned: 0, nodes: [node("a", 0, { owned: 2 }), node("b", 1, { owned: 2 })], slots, ...more,
});
const all = (owner: number[], wanted = owner, pinned: number[] = []): Told["slots"] => ({ all: { owner, wanted, pinned } });

test("what changed comes onto what was known", () => {
  const ring = new Ring();
  assert.deepEqual(ring.apply(told(all([0, 0, 1, 1]))), { touched: [], moves: [], whole: true });
  const changes = ring.apply(told({ changed: [[0, 0, 1, 0], [1, 1, 1, 1], [3, -1, 1, 0], [9, 0, 0, 0]] }, { version: "r-0-2" }));
  assert.deepEqual(changes, { touched: [0, 1, 3], moves: [{ slot: 1, from: 0, to: 1 }, { slot: 3, from: 1, to: -1 }], whole: false });
  assert.equal(ring.version, "r-0-2");
  assert.deepEqual([0, 1, 2, 3].map((slot) => ring.isMoving(slot)), [true, false, false, false]);
  assert.deepEqual([...ring.pinned], [1]);
  ring.apply(told({ changed: [[1, 1, 1, 0]] }));
  assert.equal(ring.pinned.size, 0);
  assert.equal(ring.name(1), "b");
  assert.equal(ring.name(-1), "nobody");
  assert.equal(ring.name(7), "a node that is gone");
});

test("gateways have no colour", () => {
  const ring = new Ring();
  ring.apply(told(all([1, 0]), { nodes: [node("g", null), node("b", 1), node("a", 0)] }));
  assert.deepEqual(ring.owners().map((owner) => owner.node), ["a", "b"]);
});

test("what is said is what a person would want to hear", () => {
  const before = told(all([0, 0, 1, 1]));
  assert.deepEqual(news(null, before), ["4 slots on 2 nodes."]);
  assert.deepEqual(news(before, before), []);
  const nodes = [node("a", 0, { owned: 2, state: "stopping" }), node("c", 2)];
  const joined = told({ changed: [] }, { nodes, moving: 1, fresh: false });
  assert.deepEqual(news(before, joined), [
    "Node a is stopping.", "Node c has joined.", "Node b is gone.", "etcd does not answer: what is shown may be old.", "1 slot is moving.",
  ]);
  assert.deepEqual(news(joined, told({ changed: [] }, { nodes })), ["etcd answers again.", "Every slot is where it should be."]);
  const frozen = told({ changed: [] }, { without_owner: 2, frozen: true });
  assert.deepEqual(news(before, frozen), ["The ring is frozen: no slot changes its owner.", "2 slots without an owner."]);
  assert.deepEqual(news(frozen, told({ changed: [] }, { without_owner: 1, frozen: true })), []);
  assert.deepEqual(news(frozen, before), ["The ring is no longer frozen.", "Every slot has an owner."]);
});

test("every slot has a place of its own, and is found there", () => {
  for (const slots of [1, 2, 16, 256, 4096, 65536]) {
    const geometry = new Geometry(slots, 280);
    assert.equal(geometry.tracks * geometry.spokes, slots);
    for (let slot = 0; slot < slots; slot += Math.max(slots / 512, 1)) {
      const { x, y } = geometry.centre(slot);
      assert.equal(geometry.slotAt(x, y), slot, `${slot} of ${slots}`);
    }
    assert.equal(geometry.slotAt(0, 0), null);
    assert.equal(geometry.slotAt(281, 0), null);
    if (slots >= 16) {
      const { inner, outer, from, to } = geometry.cell(0);
      const shape = ((to - from) * (inner + outer)) / 2 / (outer - inner);
      assert.ok(shape > 0.5 && shape < 2, `a cell of ${slots} is about square: ${shape}`);
    }
  }
});

test("neighbours that look alike are one arc, and nothing is left out", () => {
  const geometry = new Geometry(4096, 280);
  const runs = geometry.runs(3, (slot) => (slot < 2048 ? 0 : 1));
  assert.equal(runs.length, 2);
  assert.equal(runs[0]?.from, -Math.PI / 2);
  assert.equal(runs[0]?.to, runs[1]?.from);
  assert.ok(Math.abs((runs[1]?.to ?? 0) - 1.5 * Math.PI) < 1e-9);
});

test("thirty-two nodes look different, and each has ink that is read on it", () => {
  const looks = new Set(Array.from({ length: 32 }, (_, number) => `${mark(number).colour} ${mark(number).pattern}`));
  assert.equal(looks.size, 32);
  assert.deepEqual([mark(0).letter, mark(26).letter, mark(52).letter], ["A", "a", "52"]);
  const light = (colour: string) => {
    const part = (at: number) => {
      const value = Number.parseInt(colour.slice(at, at + 2), 16) / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5);
  };
  for (let number = 0; number < 8; number++) {
    const { colour, ink } = mark(number);
    const [a, b] = [light(colour), light(ink)].sort((x, y) => y - x) as [number, number];
    assert.ok((a + 0.05) / (b + 0.05) >= 4.5, `${ink} on ${colour}`);
  }
});
