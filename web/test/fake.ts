//! A world for the session that the test owns: clock, timers, chance, sockets, token.

import { type Host, type Output, Session, type SocketHandlers } from "../src/session.ts";
import type { Limits, Room, RoomEvent, SubscribedRoom } from "../src/protocol.ts";

export const LIMITS: Limits = {
  frame_bytes: 65536,
  text_bytes: 8192,
  data_bytes: 8192,
  in_flight: 64,
  rooms_per_subscribe: 200,
  subscriptions: 1000,
  sends_per_s: 10,
};

interface Frame {
  id: number;
  [command: string]: unknown;
}

export class FakeSocket {
  sent: Frame[] = [];
  closedWith: number | null = null;
  readonly handlers: SocketHandlers;
  constructor(handlers: SocketHandlers) {
    this.handlers = handlers;
  }
  send(text: string): void {
    this.sent.push(JSON.parse(text) as Frame);
  }
  close(code: number): void {
    this.closedWith = code;
  }
}

export class World {
  time = 0;
  chance = 0.5;
  timersSet = 0;
  theToken: string | null = "token-1";
  renewals: ("renewed" | "refused" | "unreachable")[] = [];
  sockets: FakeSocket[] = [];
  outputs: Output[] = [];
  private timers: { at: number; run: () => void }[] = [];
  private ids = 0;
  readonly session: Session;

  constructor() {
    const host: Host = {
      now: () => this.time,
      random: () => this.chance,
      timer: (ms, run) => {
        this.timersSet++;
        const timer = { at: this.time + ms, run };
        this.timers.push(timer);
        return () => {
          this.timers = this.timers.filter((t) => t !== timer);
        };
      },
      connect: (handlers) => {
        const socket = new FakeSocket(handlers);
        this.sockets.push(socket);
        return socket;
      },
      token: () => this.theToken,
      renewToken: () => {
        const result = this.renewals.shift() ?? "unreachable";
        if (result === "renewed") this.theToken = `${this.theToken}+`;
        return Promise.resolve(result);
      },
      freshId: () => `m${++this.ids}`,
    };
    this.session = new Session(host, (output) => this.outputs.push(output));
  }

  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (!socket) throw new Error("no socket was opened");
    return socket;
  }

  /** Lets promises run. */
  async settle(): Promise<void> {
    for (let i = 0; i < 20; i++) await Promise.resolve();
  }

  /** Lets time pass, timers in order. */
  async pass(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      const next = this.timers.filter((t) => t.at <= end).sort((a, b) => a.at - b.at)[0];
      if (!next) break;
      this.timers = this.timers.filter((t) => t !== next);
      this.time = Math.max(this.time, next.at);
      next.run();
      await this.settle();
    }
    this.time = end;
    await this.settle();
  }

  /** Takes the oldest unanswered frame of a command from the newest socket. */
  take(command: string): { id: number; body: never } {
    const at = this.socket.sent.findIndex((f) => command in f);
    const [frame] = at < 0 ? [] : this.socket.sent.splice(at, 1);
    if (!frame) throw new Error(`no ${command} among ${JSON.stringify(this.socket.sent)}`);
    return { id: frame.id, body: frame[command] as never };
  }

  has(command: string): boolean {
    return this.socket.sent.some((f) => command in f);
  }

  async say(frame: Record<string, unknown>): Promise<void> {
    this.socket.handlers.message(JSON.stringify(frame));
    await this.settle();
  }

  async answer(command: string, body: unknown): Promise<never> {
    const request = this.take(command);
    await this.say({ id: request.id, [command]: body });
    return request.body;
  }

  async refuse(command: string, code: number, extra: Record<string, unknown> = {}): Promise<never> {
    const request = this.take(command);
    await this.say({ id: request.id, error: { code, name: `e${code}`, message: "", ...extra } });
    return request.body;
  }

  /** Opens the socket and answers auth, rooms and the first subscribe. */
  async online(rooms: Room[] = [], subscribed: Partial<Record<string, Partial<SubscribedRoom>>> = {}): Promise<void> {
    if (this.sockets.length === 0) this.session.start();
    this.socket.handlers.open();
    await this.settle();
    await this.answer("auth", {
      user: "u1",
      name: "Ada",
      connection: "c1",
      node: "n1",
      expires_at: 86_400_000,
      server_time: 0,
      ping_interval_ms: 25_000,
      limits: LIMITS,
    });
    await this.answer("rooms", { rooms, more: false });
    if (this.has("subscribe")) await this.answerSubscribe(rooms, subscribed);
  }

  async answerSubscribe(
    rooms: Room[],
    subscribed: Partial<Record<string, Partial<SubscribedRoom>>> = {},
  ): Promise<{ room: string; after?: number; log?: string; last?: number; mode?: string }[]> {
    const { id, body } = this.take("subscribe") as { id: number; body: { rooms: { room: string; after?: number }[] } };
    const replies = body.rooms.map((asked) => {
      const room = rooms.find((r) => r.room === asked.room) ?? aRoom(asked.room);
      return {
        room: asked.room,
        log: room.log,
        head: room.head,
        n: room.n,
        from: asked.after === undefined ? Math.max(1, room.head - 49) : asked.after + 1,
        role: room.role,
        delivered: 0,
        seen: 0,
        seen_n: 0,
        ...subscribed[asked.room],
      };
    });
    await this.say({ id, subscribe: { rooms: replies } });
    return body.rooms;
  }

  async close(code: number): Promise<void> {
    this.socket.handlers.closed(code, "");
    await this.settle();
  }

  of<K extends Output["kind"]>(kind: K): Extract<Output, { kind: K }>[] {
    return this.outputs.filter((o): o is Extract<Output, { kind: K }> => o.kind === kind);
  }

  /** What came out of a room's log, in order: seqs, and gaps as "from-to". */
  log(): (number | string)[] {
    return this.outputs.flatMap((o): (number | string)[] =>
      o.kind === "event" ? [o.event.seq] : o.kind === "gap" ? [`${o.from}-${o.to}`] : o.kind === "reset" ? ["reset"] : [],
    );
  }
}

export function aRoom(room: string, head = 0, more: Partial<Room> = {}): Room {
  return {
    room,
    kind: "group",
    name: room,
    public: false,
    role: "member",
    log: "log-a",
    head,
    n: head,
    delivered: 0,
    seen: 0,
    seen_n: 0,
    ...more,
  };
}

export function anEvent(room: string, seq: number, more: Partial<RoomEvent> = {}): RoomEvent {
  return {
    room,
    seq,
    at: 1_700_000_000_000 + seq * 1000,
    n: seq,
    sender: "u2",
    sender_name: "Bob",
    message: { text: `text ${seq}`, content_type: "text/plain", mentions: [] },
    ...more,
  };
}
