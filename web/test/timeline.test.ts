//! The held part of a log: order, gaps, pages, bound.

import assert from "node:assert/strict";
import { test } from "node:test";
import { KEPT_MAX, Timeline } from "../src/timeline.ts";
import { anEvent } from "./fake.ts";

const events = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => anEvent("r", from + i));

/** "3 4 5-9 12": gaps with a dash, lost ones with a cross. */
function show(timeline: Timeline): string {
  return timeline.items.map((i) => (i.type === "event" ? `${i.event.seq}` : `${i.from}-${i.to}${i.lost ? "x" : ""}`)).join(" ");
}

function holding(from: number, to: number): Timeline {
  const timeline = new Timeline();
  timeline.start(from);
  for (const event of events(from, to)) timeline.append(event);
  return timeline;
}

test("a page goes in front, and says whether there is more", () => {
  const timeline = holding(7, 8);
  timeline.mergeBefore(7, { events: events(4, 6), gaps: [], more: true });
  assert.equal(show(timeline), "4 5 6 7 8");
  assert.equal(timeline.more, true);
  timeline.mergeBefore(4, { events: events(1, 3), gaps: [], more: false });
  assert.equal(show(timeline), "1 2 3 4 5 6 7 8");
  assert.equal(timeline.more, false);
});

test("the time in which we were out is a lost gap", () => {
  const timeline = holding(9, 9);
  timeline.mergeBefore(9, { events: [...events(1, 2), ...events(7, 8)], gaps: [{ from: 3, to: 6 }], more: false });
  assert.equal(show(timeline), "1 2 3-6x 7 8 9");
});

test("a gap is filled from its end, page by page, and only inside", () => {
  const timeline = holding(1, 2);
  timeline.appendGap(3, 8, false);
  timeline.append(anEvent("r", 9));
  timeline.fill({ from: 3, to: 8 }, { events: events(6, 8), gaps: [], more: true });
  assert.equal(show(timeline), "1 2 3-5 6 7 8 9");
  timeline.fill({ from: 3, to: 5 }, { events: events(1, 5), gaps: [], more: false });
  assert.equal(show(timeline), "1 2 3 4 5 6 7 8 9");
});

test("a gap for which the server has nothing becomes lost", () => {
  const timeline = holding(1, 2);
  timeline.appendGap(3, 8, false);
  timeline.fill({ from: 3, to: 8 }, { events: [], gaps: [], more: true });
  assert.equal(show(timeline), "1 2 3-8x");
});

test("gaps and events that are held already are cut or dropped", () => {
  const timeline = holding(1, 3);
  timeline.append(anEvent("r", 3));
  timeline.appendGap(2, 5, true);
  timeline.appendGap(1, 5, false);
  assert.equal(show(timeline), "1 2 3 4-5x");
});

test("the bound holds at both ends and nothing disappears silently", () => {
  const atEnd = holding(1, KEPT_MAX + 1);
  atEnd.trim("end");
  assert.ok(atEnd.items.length <= KEPT_MAX);
  assert.equal(atEnd.last, KEPT_MAX + 1);
  assert.equal(atEnd.more, true);
  const atStart = holding(1, KEPT_MAX + 10);
  atStart.trim("start");
  assert.equal(atStart.items.length, KEPT_MAX + 1);
  assert.deepEqual(atStart.items.at(-1), { type: "gap", from: KEPT_MAX + 1, to: KEPT_MAX + 10, lost: false });
  atStart.append(anEvent("r", KEPT_MAX + 11));
  assert.equal(atStart.last, KEPT_MAX + 11);
});

test("an event is found by its seq, a gap is not one", () => {
  const timeline = holding(5, 9);
  timeline.appendGap(10, 19, false);
  timeline.append(anEvent("r", 20));
  assert.equal(timeline.event(7)?.seq, 7);
  assert.equal(timeline.event(20)?.seq, 20);
  assert.equal(timeline.event(15), undefined);
  assert.equal(timeline.event(4), undefined);
});
