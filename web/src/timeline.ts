//! What this page holds of one room's log: events in order of seq, and the gaps between them.
//!
//! Always holds: items ascend and do not overlap; each seq between the first item and the last is an event or inside
//! a gap. Does not: fetch. `merge` takes pages that others fetched.
//! Bound: `trim` keeps at most KEPT_MAX events and says so by a gap or by `more`.

import type { Gap, RoomEvent } from "./protocol.ts";

export type Item =
  | { type: "event"; event: RoomEvent }
  /** `lost`: the server will never show these (expired, or we were not a member then). */
  | { type: "gap"; from: number; to: number; lost: boolean };

/** Some 5 MB of text; what lies further away is fetched again. */
export const KEPT_MAX = 5_000;

export const firstSeq = (item: Item): number => (item.type === "event" ? item.event.seq : item.from);
export const lastSeq = (item: Item): number => (item.type === "event" ? item.event.seq : item.to);

export class Timeline {
  items: Item[] = [];
  /** There is more of the log below the first item. */
  more = false;
  /** Rises when what was held is thrown away. */
  life = 0;

  get first(): number | undefined {
    const item = this.items[0];
    return item && firstSeq(item);
  }

  get last(): number | undefined {
    const item = this.items.at(-1);
    return item && lastSeq(item);
  }

  reset(): void {
    this.items = [];
    this.more = false;
    this.life++;
  }

  /** Begins at `from`: what is below was not asked for. */
  start(from: number): void {
    this.reset();
    this.more = from > 1;
  }

  append(event: RoomEvent): void {
    const last = this.last;
    if (last !== undefined && event.seq <= last) return;
    this.items.push({ type: "event", event });
  }

  appendGap(from: number, to: number, lost: boolean): void {
    const start = Math.max(from, (this.last ?? 0) + 1);
    if (start > to) return;
    this.items.push({ type: "gap", from: start, to, lost });
  }

  /** Puts in a page of history that speaks for all of `low..high`. */
  merge(low: number, high: number, events: RoomEvent[], gaps: Gap[]): void {
    if (low > high) return;
    const known = new Set<number>();
    const kept: Item[] = [];
    for (const item of this.items) {
      if (item.type === "event") {
        known.add(item.event.seq);
        kept.push(item);
        continue;
      }
      // what the page does not speak for stays a gap
      if (item.from < low) kept.push({ ...item, to: Math.min(item.to, low - 1) });
      if (item.to > high) kept.push({ ...item, from: Math.max(item.from, high + 1) });
    }
    for (const event of events) {
      if (event.seq >= low && event.seq <= high && !known.has(event.seq)) kept.push({ type: "event", event });
    }
    for (const gap of gaps) {
      const from = Math.max(gap.from, low);
      const to = Math.min(gap.to, high);
      if (from <= to) kept.push({ type: "gap", from, to, lost: true });
    }
    kept.sort((a, b) => firstSeq(a) - firstSeq(b));
    this.items = kept;
  }

  /** The page of `history {before}`: it speaks from its lowest seq (or the beginning) up to the bound. */
  mergeBefore(before: number, page: { events: RoomEvent[]; gaps: Gap[]; more: boolean }): void {
    let low = 1;
    if (page.more) {
      low = before;
      for (const event of page.events) low = Math.min(low, event.seq);
      for (const gap of page.gaps) low = Math.min(low, gap.from);
    }
    const reachesFirst = before <= (this.first ?? before);
    this.merge(low, before - 1, page.events, page.gaps);
    if (reachesFirst) this.more = page.more;
  }

  /** The page of `history {before: gap.to + 1}`, for the gap alone. */
  fill(gap: { from: number; to: number }, page: { events: RoomEvent[]; gaps: Gap[]; more: boolean }): void {
    let low = gap.to + 1;
    for (const event of page.events) low = Math.min(low, event.seq);
    for (const lost of page.gaps) low = Math.min(low, lost.from);
    if (!page.more) low = gap.from;
    low = Math.max(low, gap.from);
    this.merge(low, gap.to, page.events, page.gaps);
    // a page that brought nothing would leave a button that never does anything
    if (low > gap.to) this.merge(gap.from, gap.to, [], [{ from: gap.from, to: gap.to }]);
  }

  /** Keeps the newest (`"end"`: the reader is there) or the oldest KEPT_MAX. */
  trim(reader: "start" | "end"): void {
    if (this.items.length <= KEPT_MAX) return;
    if (reader === "end") {
      this.items = this.items.slice(-Math.floor(KEPT_MAX * 0.8));
      this.more = true;
    } else {
      const kept = this.items.slice(0, KEPT_MAX);
      const from = lastSeq(kept.at(-1) as Item) + 1;
      const to = this.last as number;
      this.items = [...kept, { type: "gap", from, to, lost: false }];
    }
  }

  event(seq: number): RoomEvent | undefined {
    let low = 0;
    let high = this.items.length - 1;
    while (low <= high) {
      const mid = (low + high) >> 1;
      const item = this.items[mid] as Item;
      if (lastSeq(item) < seq) low = mid + 1;
      else if (firstSeq(item) > seq) high = mid - 1;
      else return item.type === "event" ? item.event : undefined;
    }
    return undefined;
  }
}
