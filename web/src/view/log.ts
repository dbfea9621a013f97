//! The messages of the open room: a window of rows over its timeline.
//!
//! Always holds: at most ROWS_MAX items are in the document; what the reader looks at does not move when rows come or
//! go above it; at the end, new messages are followed.

import type { Pending } from "../outbox.ts";
import type { RoomEvent } from "../protocol.ts";
import type { RoomState, Store } from "../store.ts";
import { clock, count, dayLabel, excerpt, fullTime, hue, initials, mentionName, pieces, sameDay } from "../text.ts";
import { firstSeq, type Item, lastSeq } from "../timeline.ts";
import { avatar, bdi, h, icon, Keyed } from "./dom.ts";
import { isHeld } from "./held.ts";

const ROWS_MAX = 240;
const STEP = 60;
const NEAR_PX = 700;
/** Messages of one person within this stand together. */
const TOGETHER_MS = 5 * 60_000;
const ANNOUNCED_MAX = 5;

interface Row {
  key: string;
  sig: string;
  make: () => HTMLElement;
}

export class LogView {
  readonly element: HTMLElement;
  private readonly scroller: HTMLElement;
  private readonly rows: HTMLElement;
  private readonly jump: HTMLButtonElement;
  private readonly jumpCount: HTMLElement;
  private readonly announcer: HTMLElement;
  private readonly keyed = new Keyed(() => this.render());
  private readonly store: Store;
  private room: string | null = null;
  private life = 0;
  /** First and last seq in the window; null: from there to the end. */
  private fromSeq: number | null = null;
  private toSeq: number | null = null;
  private atEnd = true;
  private placed = false;
  private announcedUpTo = 0;
  private lastPaged: number | undefined;
  private settling = false;

  constructor(store: Store) {
    this.store = store;
    this.rows = h("ol", { class: "rows" });
    this.scroller = h("div", { class: "scroller", role: "log", "aria-live": "off", tabindex: 0, "aria-label": "Messages" }, this.rows);
    this.jumpCount = h("span", { class: "jump-count" });
    this.jump = h(
      "button",
      { class: "jump", type: "button", "aria-label": "Go to the newest message", hidden: true, click: () => this.toEnd() },
      icon("down"),
      this.jumpCount,
    );
    // only what comes in is read out, not what scrolling brings
    this.announcer = h("div", { class: "hidden-text", "aria-live": "polite", "aria-atomic": "false" });
    this.element = h("div", { class: "log" }, this.scroller, this.jump, this.announcer);
    this.scroller.addEventListener("scroll", () => this.onScroll(), { passive: true });
    new ResizeObserver(() => {
      if (this.atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    }).observe(this.scroller);
  }

  /** Forgets what was drawn: somebody else may sign in next. */
  clear(): void {
    this.room = null;
    this.keyed.clear();
    this.rows.replaceChildren();
    this.announcer.replaceChildren();
  }

  /** Shows the newest message and follows from there. */
  toEnd(): void {
    this.fromSeq = null;
    this.toSeq = null;
    this.atEnd = true;
    this.render();
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.onScroll();
  }

  render(): void {
    const state = this.store.openRoom;
    if (!state) {
      this.clear();
      return;
    }
    if (state.info.room !== this.room || state.timeline.life !== this.life) {
      this.room = state.info.room;
      this.life = state.timeline.life;
      this.fromSeq = null;
      this.toSeq = null;
      this.atEnd = true;
      this.placed = false;
      this.lastPaged = undefined;
      this.announcedUpTo = Number.MAX_SAFE_INTEGER;
      this.keyed.clear();
      this.rows.replaceChildren();
      this.scroller.setAttribute("aria-label", `Messages in ${this.store.roomName(state.info)}`);
    }
    const anchor = this.atEnd ? null : this.anchor();
    this.keyed.sync(this.rows, this.build(state));
    this.settling = true;
    const caughtUp = state.held && (state.timeline.last ?? 0) >= state.info.head;
    if (!this.placed && caughtUp) {
      this.placed = true;
      this.announcedUpTo = state.timeline.last ?? 0;
      const line = this.keyed.get("new");
      this.scroller.scrollTop = this.scroller.scrollHeight;
      if (line && line.offsetTop < this.scroller.scrollTop) {
        this.scroller.scrollTop = Math.max(0, line.offsetTop - this.scroller.clientHeight / 3);
      }
    } else if (anchor) {
      const element = this.keyed.get(anchor.key);
      if (element) this.scroller.scrollTop += element.getBoundingClientRect().top - anchor.top;
    } else if (this.atEnd) {
      this.scroller.scrollTop = this.scroller.scrollHeight;
    }
    this.settling = false;
    this.announce(state);
    this.afterMove(state);
  }

  /** The first row that is in sight, and where. */
  private anchor(): { key: string; top: number } | null {
    const top = this.scroller.getBoundingClientRect().top;
    for (const row of this.rows.children) {
      const box = row.getBoundingClientRect();
      const key = (row as HTMLElement).dataset["key"];
      // the button and the day above may vanish with what is loaded; messages stay
      if (box.bottom > top && key !== undefined && /^[ep]/.test(key)) return { key, top: box.top };
    }
    return null;
  }

  private onScroll(): void {
    if (this.settling) return;
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.atEnd = this.toSeq === null && scrollHeight - scrollTop - clientHeight < 48;
    const state = this.store.openRoom;
    if (state) this.afterMove(state);
  }

  /** What a new place in the log asks for: more rows, more history, marks. */
  private afterMove(state: RoomState): void {
    // while a row is held down none is moved: the release renders
    if (!this.placed || isHeld(this.rows)) return;
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    state.reader = this.atEnd ? "end" : "start";
    const { items } = state.timeline;
    const [start, end] = this.range(items);
    const top = items[start];
    // who reads back keeps the rows that are there, however many come in below
    if (!this.atEnd && this.fromSeq === null && top) this.fromSeq = firstSeq(top);
    if (scrollTop < NEAR_PX && start > 0) {
      this.moveWindow(items, start - STEP, Math.min(end, start - STEP + ROWS_MAX));
      return;
    }
    if (scrollHeight - scrollTop - clientHeight < NEAR_PX && end < items.length) {
      this.moveWindow(items, Math.max(start, end + STEP - ROWS_MAX), end + STEP);
      return;
    }
    const first = state.timeline.first;
    if (scrollTop < NEAR_PX && start === 0 && state.timeline.more && !state.loading && state.loadError === null && first !== this.lastPaged) {
      this.lastPaged = first;
      void this.store.loadOlder(state.info.room);
    }
    this.showJump(state);
    this.markSeen(state);
  }

  private moveWindow(items: Item[], start: number, end: number): void {
    const from = items[Math.max(0, start)];
    const to = end >= items.length ? undefined : items[end - 1];
    this.fromSeq = start <= 0 || !from ? null : firstSeq(from);
    this.toSeq = to ? lastSeq(to) : null;
    if (start <= 0) this.fromSeq = items[0] ? firstSeq(items[0]) : null;
    this.render();
  }

  /** The window as indexes. */
  private range(items: Item[]): [number, number] {
    const find = (seq: number) => {
      let low = 0;
      let high = items.length;
      while (low < high) {
        const mid = (low + high) >> 1;
        if (lastSeq(items[mid] as Item) < seq) low = mid + 1;
        else high = mid;
      }
      return low;
    };
    const end = this.toSeq === null ? items.length : Math.min(items.length, find(this.toSeq) + 1);
    let start = this.fromSeq === null ? Math.max(0, end - ROWS_MAX / 2) : find(this.fromSeq);
    if (end - start > ROWS_MAX) {
      if (this.atEnd) {
        start = end - ROWS_MAX / 2;
        const item = items[start];
        this.fromSeq = item ? firstSeq(item) : null;
      } else if (this.toSeq === null) {
        // the reader looks at older ones: the window stops growing at its end
        const item = items[start + ROWS_MAX - 1] as Item;
        this.toSeq = lastSeq(item);
        return [start, start + ROWS_MAX];
      }
    }
    return [start, end];
  }

  private showJump(state: RoomState): void {
    this.jump.hidden = this.atEnd;
    const unread = this.store.unread(state);
    this.jumpCount.textContent = unread > 0 ? count(unread) : "";
    this.jump.setAttribute("aria-label", unread > 0 ? `Go to the newest message, ${unread} unread` : "Go to the newest message");
  }

  /** The lowest message in sight counts as seen, if anybody is looking. */
  markSeen(state: RoomState | null = this.store.openRoom): void {
    if (!state || !this.placed || document.visibilityState !== "visible" || !document.hasFocus()) return;
    const bottom = this.scroller.getBoundingClientRect().bottom + 8;
    for (let i = this.rows.children.length - 1; i >= 0; i--) {
      const row = this.rows.children[i] as HTMLElement;
      const seq = row.dataset["seq"];
      if (seq === undefined) continue;
      const box = row.getBoundingClientRect();
      // a message taller than the window is seen once its end or most of the window shows it
      if (box.bottom <= bottom || box.top < bottom - 200) {
        this.store.seen(state.info.room, Number(seq));
        return;
      }
    }
  }

  private announce(state: RoomState): void {
    if (!this.placed) return;
    const { items } = state.timeline;
    const fresh: RoomEvent[] = [];
    for (let i = items.length - 1; i >= 0; i--) {
      const item = items[i] as Item;
      if (lastSeq(item) <= this.announcedUpTo) break;
      if (item.type === "event" && item.event.message && item.event.sender !== this.store.me.user) fresh.unshift(item.event);
    }
    this.announcedUpTo = Math.max(this.announcedUpTo, state.timeline.last ?? 0);
    if (fresh.length === 0) return;
    const lines =
      fresh.length > ANNOUNCED_MAX
        ? [`${fresh.length} new messages`]
        : fresh.map((e) => `${e.sender_name}: ${excerpt(e.message?.text ?? "", 300)}`);
    this.announcer.append(...lines.map((line) => h("p", {}, line)));
    while (this.announcer.children.length > 10) this.announcer.firstElementChild?.remove();
  }

  // ------------------------------------------------------------ rows

  private build(state: RoomState): Row[] {
    const rows: Row[] = [];
    const { items } = state.timeline;
    const [start, end] = this.range(items);
    const id = state.info.room;
    const now = Date.now();

    if (start === 0) {
      if (state.loadError !== null) {
        rows.push(this.button("more", `error:${state.loadError}`, `${state.loadError} Try again`, () => {
          this.lastPaged = undefined;
          void this.store.loadOlder(id);
        }));
      } else if (state.timeline.more) {
        rows.push({ key: "more", sig: `${state.loading}`, make: () => h("li", { class: "row sys", "data-key": "more" }, h("span", {}, "Loading older messages…")) });
      } else if (!state.held) {
        rows.push({ key: "more", sig: "wait", make: () => h("li", { class: "row sys", "data-key": "more" }, h("span", {}, "Loading messages…")) });
      }
    }

    let before: RoomEvent | null = null;
    const previous = items[start - 1];
    if (previous?.type === "event") before = previous.event;
    let lineDone = state.newAbove === null;
    const lastOwn = this.lastOwnSeq(items);
    for (let i = start; i < end; i++) {
      const item = items[i] as Item;
      if (item.type === "gap") {
        rows.push(this.gapRow(state, item));
        before = null;
        continue;
      }
      const { event } = item;
      if (!before || !sameDay(before.at, event.at)) {
        rows.push(this.dayRow(event, now));
        before = null;
      }
      if (!lineDone && event.seq > (state.newAbove ?? 0) && event.message && event.sender !== this.store.me.user) {
        lineDone = true;
        rows.push({ key: "new", sig: "new", make: () => h("li", { class: "row new-line", "data-key": "new" }, h("span", {}, "New messages")) });
        before = null;
      }
      if (event.message) rows.push(this.messageRow(state, event, before, this.nextOf(items, i, end), event.seq === lastOwn));
      else rows.push(this.lineRow(event));
      before = event;
    }
    if (end === items.length) {
      for (const pending of this.store.session.outbox.of(id)) rows.push(this.pendingRow(state, pending));
    }
    return rows;
  }

  private nextOf(items: Item[], i: number, end: number): RoomEvent | null {
    const next = i + 1 < end ? items[i + 1] : undefined;
    return next?.type === "event" ? next.event : null;
  }

  private lastOwnSeq(items: Item[]): number {
    for (let i = items.length - 1; i >= 0 && i > items.length - ROWS_MAX; i--) {
      const item = items[i] as Item;
      if (item.type === "event" && item.event.message && item.event.sender === this.store.me.user) return item.event.seq;
    }
    return -1;
  }

  private button(key: string, sig: string, label: string, run: () => void): Row {
    return {
      key,
      sig,
      make: () => h("li", { class: "row sys", "data-key": key }, h("button", { class: "button small", type: "button", "data-part": "run", click: run }, label)),
    };
  }

  private gapRow(state: RoomState, gap: { from: number; to: number; lost: boolean }): Row {
    const n = gap.to - gap.from + 1;
    const key = `g${gap.to}`;
    const entries = n === 1 ? "1 entry" : `${n.toLocaleString()} entries`;
    if (gap.lost) {
      return {
        key,
        sig: `${gap.from} lost`,
        make: () => h("li", { class: "row sys gap", "data-key": key }, h("span", {}, `${entries} not available to you`)),
      };
    }
    const label = state.loading ? "Loading…" : `Load missing (${entries})`;
    const row = this.button(key, `${gap.from} ${label}`, label, () => void this.store.fillGap(state.info.room, gap));
    return row;
  }

  private dayRow(event: RoomEvent, now: number): Row {
    const label = dayLabel(event.at, now);
    const key = `d${event.seq}`;
    return { key, sig: label, make: () => h("li", { class: "row day", "data-key": key }, h("span", {}, label)) };
  }

  private lineRow(event: RoomEvent): Row {
    const { store } = this;
    const name = (user: string) => (user === store.me.user ? "You" : user === event.sender && event.sender_name ? event.sender_name : store.nameOf(user));
    const who = event.sender === store.me.user ? "You" : event.sender_name || name(event.sender);
    const object = (user: string) => bdi(user === store.me.user ? "you" : store.nameOf(user));
    const parts: (string | HTMLElement)[] = [];
    const { created, joined, left, removed, role_changed, room_changed } = event;
    if (created) parts.push(bdi(who), created.kind === "direct" ? " started this chat" : " created the room");
    else if (joined) {
      if (joined.by !== undefined && joined.by !== joined.user) parts.push(bdi(name(joined.by)), " added ", bdi(joined.user === store.me.user ? "you" : joined.name));
      else parts.push(bdi(joined.user === store.me.user ? "You" : joined.name), " joined");
    } else if (left) parts.push(bdi(name(left.user)), " left");
    else if (removed) parts.push(bdi(name(removed.by)), " removed ", object(removed.user));
    else if (role_changed) {
      const role = role_changed.role === "admin" ? "an admin" : role_changed.role === "owner" ? "the owner" : `a ${role_changed.role}`;
      parts.push(bdi(name(role_changed.by)), " made ", object(role_changed.user), ` ${role}`);
    } else if (room_changed) {
      parts.push(bdi(who));
      if (room_changed.name !== undefined) parts.push(" renamed the room to ", bdi(room_changed.name));
      if (room_changed.public !== undefined) parts.push(`${room_changed.name === undefined ? "" : " and"} made it ${room_changed.public ? "public" : "private"}`);
    } else parts.push("Something that this page is too old to show");
    const text = parts.map((p) => (typeof p === "string" ? p : p.textContent)).join("");
    const key = `e${event.seq}`;
    return {
      key,
      sig: text,
      make: () => h("li", { class: "row sys", "data-key": key, "data-seq": event.seq }, h("span", { title: fullTime(event.at) }, ...parts)),
    };
  }

  private messageRow(state: RoomState, event: RoomEvent, before: RoomEvent | null, next: RoomEvent | null, newestOwn: boolean): Row {
    const { store } = this;
    const own = event.sender === store.me.user;
    const together = (a: RoomEvent | null, b: RoomEvent | null) =>
      a !== null && b !== null && a.message !== undefined && b.message !== undefined && a.sender === b.sender && Math.abs(b.at - a.at) < TOGETHER_MS && sameDay(a.at, b.at);
    const first = !together(before, event);
    const last = !together(event, next);
    const receipts = own ? store.receipts(state, event.seq) : null;
    let ticks: "check" | "checks" = "check";
    let ticksLabel = "Sent";
    let seenAll = false;
    if (receipts && receipts.others > 0) {
      if (receipts.seen.length >= receipts.others) {
        ticks = "checks";
        seenAll = true;
        ticksLabel = receipts.others === 1 ? "Seen" : "Seen by everybody";
      } else if (receipts.seen.length > 0) {
        ticks = "checks";
        ticksLabel = `Seen by ${receipts.seen.length} of ${receipts.others}: ${receipts.seen.slice(0, 10).map((m) => m.name).join(", ")}`;
      } else if (receipts.delivered >= receipts.others) {
        ticks = "checks";
        ticksLabel = "Delivered";
      }
    }
    const seenBy = newestOwn && receipts && receipts.others > 1 && receipts.seen.length > 0 ? (seenAll ? "Seen by all" : `Seen by ${receipts.seen.length}`) : "";
    const quoted = event.message?.reply_to === undefined ? undefined : state.timeline.event(event.message.reply_to);
    const maySend = state.ended === null;
    const sig = [first, last, ticksLabel, seenBy, quoted !== undefined, maySend, state.info.kind].join("|");
    const key = `e${event.seq}`;
    return {
      key,
      sig,
      make: () =>
        h(
          "li",
          {
            class: `row msg ${own ? "own" : "theirs"}${first ? " first" : ""}${last ? " last" : ""}`,
            "data-key": key,
            "data-seq": event.seq,
          },
          own || state.info.kind === "direct" ? null : last ? avatar(event.sender, initials(event.sender_name), hue(event.sender)) : h("span", { class: "avatar-space" }),
          h(
            "div",
            { class: "bubble" },
            own ? h("span", { class: "hidden-text" }, "You: ") : null,
            !own && state.info.kind !== "direct"
              ? h("div", { class: `author ink-${hue(event.sender)}${first ? "" : " hidden-text"}` }, bdi(event.sender_name))
              : null,
            event.message?.reply_to === undefined ? null : this.quote(event.message.reply_to, quoted),
            this.body(event),
            h(
              "div",
              { class: "meta" },
              h("time", { datetime: new Date(event.at).toISOString(), title: fullTime(event.at) }, clock(event.at)),
              own ? h("span", { class: `ticks${seenAll ? " seen" : ""}`, role: "img", "aria-label": ticksLabel, title: ticksLabel }, icon(ticks)) : null,
            ),
          ),
          maySend
            ? h(
                "button",
                { class: "icon-button reply", type: "button", "data-part": "reply", "aria-label": `Reply to ${own ? "yourself" : event.sender_name}`, title: "Reply", click: () => this.onReply(event) },
                icon("reply"),
              )
            : null,
          seenBy ? h("div", { class: "seen-by" }, seenBy) : null,
        ),
    };
  }

  /** Set by the owner: a person wants to answer that message. */
  onReply: (event: RoomEvent) => void = () => undefined;

  private quote(seq: number, event: RoomEvent | undefined): HTMLElement {
    const text = event?.message ? excerpt(event.message.text, 90) : "An earlier message";
    return h(
      "button",
      { class: "quote", type: "button", "data-part": "quote", title: "Go to that message", click: () => this.reveal(seq) },
      h("span", { class: "hidden-text" }, "In reply to "),
      event ? h("strong", {}, bdi(event.sender_name)) : null,
      h("span", { dir: "auto" }, text),
    );
  }

  private reveal(seq: number): void {
    const state = this.store.openRoom;
    if (!state?.timeline.event(seq)) return;
    if (!this.keyed.get(`e${seq}`)) {
      const { items } = state.timeline;
      const at = items.findIndex((i) => lastSeq(i) >= seq);
      this.atEnd = false;
      this.moveWindow(items, Math.max(0, at - STEP), at + STEP);
    }
    const row = this.keyed.get(`e${seq}`);
    row?.scrollIntoView({ block: "center" });
    row?.classList.add("flash");
    setTimeout(() => row?.classList.remove("flash"), 1_600);
  }

  private body(event: RoomEvent): HTMLElement {
    const message = event.message;
    const text = message?.text ?? "";
    if (!text && message?.data !== undefined) return h("div", { class: "text soft" }, "Data that this page cannot show");
    const known = new Set<string>();
    for (const user of message?.mentions ?? []) known.add(mentionName(this.store.nameOf(user)));
    const me = mentionName(this.store.me.name);
    const parts = pieces(text, (name) => known.has(mentionName(name))).map((piece) => {
      if (piece.link !== undefined) {
        return h("a", { href: piece.link, target: "_blank", rel: "noopener noreferrer nofollow" }, piece.text);
      }
      if (piece.mention) return h("mark", { class: mentionName(piece.text.slice(1)) === me ? "mention mine" : "mention" }, piece.text);
      return piece.text;
    });
    return h("div", { class: "text", dir: "auto" }, ...parts);
  }

  private pendingRow(state: RoomState, pending: Pending): Row {
    const { session } = this.store;
    const id = state.info.room;
    const online = this.store.link.state === "online";
    const failed = pending.state === "failed";
    const label = failed
      ? pending.definite
        ? "Not sent"
        : "Perhaps not sent"
      : pending.state === "retrying"
        ? "Not sent yet, trying again"
        : online
          ? "Sending"
          : "Waiting for the connection";
    const why = failed && pending.error ? refusal(pending.error.code, pending.error.message) : "";
    const quoted = pending.reply_to === undefined ? undefined : state.timeline.event(pending.reply_to);
    const key = `p${pending.written_at}-${pending.client_msg_id}`;
    return {
      key,
      sig: `${label}|${why}`,
      make: () =>
        h(
          "li",
          { class: `row msg own first last pending${failed ? " failed" : ""}`, "data-key": key },
          h(
            "div",
            { class: "bubble" },
            h("span", { class: "hidden-text" }, "You: "),
            pending.reply_to === undefined ? null : this.quote(pending.reply_to, quoted),
            h("div", { class: "text", dir: "auto" }, pending.text),
            h(
              "div",
              { class: "meta" },
              failed || !online || pending.state === "retrying" ? h("span", {}, label) : null,
              h("span", { class: "ticks", role: "img", "aria-label": label, title: label }, icon(failed ? "alert" : "clock")),
            ),
          ),
          failed
            ? h(
                "div",
                { class: "failure", role: "alert" },
                why ? h("span", {}, why) : null,
                h("button", { class: "link", type: "button", "data-part": "retry", click: () => session.retry(id, pending.client_msg_id) }, "Try again"),
                h("button", { class: "link", type: "button", "data-part": "discard", click: () => session.discard(id, pending.client_msg_id) }, "Discard"),
              )
            : null,
        ),
    };
  }
}

function refusal(code: number, message: string): string {
  switch (code) {
    case 103:
      return "You may not write here.";
    case 102:
    case 123:
      return "You are not in this room any longer.";
    case 121:
      return "The message is too long.";
    case 111:
    case 112:
    case 108:
    case 100:
      return "The server did not take it.";
    default:
      return message;
  }
}
