//! Messages that were written here and are not yet known to be in the log.
//!
//! Owns: each message's `client_msg_id` and `since`, its state, and when it is tried again.
//! Always holds: at most one message of a room is on its way, so a retry never overtakes; a message whose fate is
//! unknown keeps its id and its `since`; one that was refused for good gets a new id when it is tried again.
//! Does not: talk. The session sends what `ready` names and reports back.
//! Bound: MAX_PENDING messages; a further one is refused in words.

import { verdict, type WireError } from "./protocol.ts";

/** More than a person writes while away; keeps a runaway script from filling the memory. */
export const MAX_PENDING = 200;
/** Tries that go by themselves before the person is asked: about three minutes with the delays below. */
export const MAX_TRIES = 12;
const RETRY_BASE_MS = 500;
const RETRY_CAP_MS = 20_000;

export type PendingState =
  | "waiting" // for its turn, or for the connection
  | "sending" // on its way, no reply yet
  | "retrying" // refused for now, tried again at `retry_at`
  | "searching" // its retry is too old: the log is searched for it
  | "failed"; // the person decides

export interface Pending {
  room: string;
  client_msg_id: string;
  /** The highest seq or head that was known at the first try; undefined until then. */
  since?: number;
  text: string;
  reply_to?: number;
  mentions: string[];
  written_at: number;
  state: PendingState;
  tries: number;
  retry_at: number;
  error?: WireError;
  /** Set with `failed`: nothing of it is in the log, so another try is a new message. */
  definite: boolean;
}

export class OutboxFull extends Error {
  constructor() {
    super(`${MAX_PENDING} messages are waiting already. Wait until some have gone.`);
  }
}

export class Outbox {
  private readonly rooms = new Map<string, Pending[]>();
  private count = 0;

  add(now: number, message: Pick<Pending, "room" | "client_msg_id" | "text" | "mentions"> & { reply_to?: number }): Pending {
    if (this.count >= MAX_PENDING) throw new OutboxFull();
    const pending: Pending = { ...message, written_at: now, state: "waiting", tries: 0, retry_at: 0, definite: false };
    const queue = this.rooms.get(pending.room);
    if (queue) queue.push(pending);
    else this.rooms.set(pending.room, [pending]);
    this.count++;
    return pending;
  }

  of(room: string): readonly Pending[] {
    return this.rooms.get(room) ?? [];
  }

  find(room: string, clientMsgId: string): Pending | undefined {
    return this.rooms.get(room)?.find((p) => p.client_msg_id === clientMsgId);
  }

  get size(): number {
    return this.count;
  }

  /** Messages that the person would lose by leaving now. */
  get unsettled(): number {
    let n = 0;
    for (const queue of this.rooms.values()) n += queue.filter((p) => p.state !== "failed").length;
    return n;
  }

  /** The next message of each room, where none is on its way and its time has come. */
  ready(now: number): Pending[] {
    const ready: Pending[] = [];
    for (const queue of this.rooms.values()) {
      const first = queue.find((p) => p.state !== "failed");
      if (first && (first.state === "waiting" || first.state === "retrying") && first.retry_at <= now) ready.push(first);
    }
    return ready;
  }

  /** When `ready` may name a message that it does not name now; undefined: only after another input. */
  deadline(now: number): number | undefined {
    let at: number | undefined;
    for (const queue of this.rooms.values()) {
      const first = queue.find((p) => p.state !== "failed");
      if (first?.state === "retrying" && first.retry_at > now && (at === undefined || first.retry_at < at)) at = first.retry_at;
    }
    return at;
  }

  /** `head` is what the room was last known to be at; only the first try of an id fixes `since`. */
  sending(pending: Pending, head: number): void {
    pending.since ??= head;
    pending.state = "sending";
    pending.tries++;
    delete pending.error;
  }

  /** The connection went, or no reply came in time: nothing is known. */
  lost(pending: Pending, now: number): void {
    if (pending.state !== "sending" && pending.state !== "searching") return;
    pending.state = "waiting";
    pending.retry_at = now;
  }

  refused(pending: Pending, error: WireError, now: number, random: number): void {
    pending.error = error;
    const said = verdict(error.code);
    if (said === "too_old") {
      pending.state = "searching";
      return;
    }
    if (said === "definite") {
      pending.state = "failed";
      pending.definite = true;
      return;
    }
    if (pending.tries >= MAX_TRIES) {
      pending.state = "failed";
      return;
    }
    pending.state = "retrying";
    const backoff = random * Math.min(RETRY_CAP_MS, RETRY_BASE_MS * 2 ** pending.tries);
    // many are told the same at once: they do not come again together
    pending.retry_at = now + (error.retry_after_ms ?? 0) + backoff;
  }

  /** The search found nothing above `since`: the next try starts from where the search ended. */
  notFound(pending: Pending, head: number, now: number): void {
    pending.since = head;
    pending.state = "waiting";
    pending.retry_at = now;
  }

  /** The person wants another try of a failed message. */
  retry(pending: Pending, freshId: string, now: number): void {
    if (pending.state !== "failed") return;
    if (pending.definite) {
      pending.client_msg_id = freshId;
      delete pending.since;
      pending.definite = false;
    }
    delete pending.error;
    pending.state = "waiting";
    pending.tries = 0;
    pending.retry_at = now;
  }

  /** The message is in the log, or the person gave it up. True if it was here. */
  remove(room: string, clientMsgId: string): boolean {
    const queue = this.rooms.get(room);
    const at = queue?.findIndex((p) => p.client_msg_id === clientMsgId) ?? -1;
    if (!queue || at < 0) return false;
    queue.splice(at, 1);
    this.count--;
    if (queue.length === 0) this.rooms.delete(room);
    return true;
  }

  clear(): void {
    this.rooms.clear();
    this.count = 0;
  }

  /** Nothing that was on its way will be answered on the old connection. */
  connectionLost(now: number): void {
    for (const queue of this.rooms.values()) for (const p of queue) this.lost(p, now);
  }
}
