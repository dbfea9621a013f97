//! The client protocol, version 1, as JSON: every frame, reply, push and event kind by its wire name.
//!
//! Owns: the types and the tables of codes. docs/protocol.md is their contract; nothing here decides anything.
//! Always holds: a field marked `?` is left out when unset and never null; all others are always there.

export type RoomKind = "group" | "direct" | "broadcast";
export type Role = "none" | "reader" | "member" | "admin" | "owner";
export type Mode = "live" | "passive";

export interface WireError {
  code: number;
  name: string;
  message: string;
  retry_after_ms?: number;
}

export interface Limits {
  frame_bytes: number;
  text_bytes: number;
  data_bytes: number;
  in_flight: number;
  rooms_per_subscribe: number;
  subscriptions: number;
  sends_per_s: number;
}

/** Seqs `from..to`, both included. */
export interface Gap {
  from: number;
  to: number;
  expired?: boolean;
}

export interface LastMessage {
  seq: number;
  at: number;
  sender_name: string;
  text: string;
}

export interface Room {
  room: string;
  kind: RoomKind;
  /** Of a direct room: the display name of the other one. */
  name: string;
  public: boolean;
  role: Role;
  peer?: string;
  log: string;
  head: number;
  n: number;
  delivered: number;
  seen: number;
  seen_n: number;
  last?: LastMessage;
}

export interface Member {
  user: string;
  name: string;
  role: Role;
  joined_seq: number;
  delivered?: number;
  seen?: number;
}

export interface Message {
  text: string;
  content_type: string;
  reply_to?: number;
  mentions?: string[];
  data?: unknown;
}

export interface RoomEvent {
  room: string;
  seq: number;
  at: number;
  n: number;
  sender: string;
  sender_name: string;
  client_msg_id?: string;
  created?: { kind: RoomKind; name: string; public: boolean };
  message?: Message;
  joined?: { user: string; name: string; role: Role; by?: string };
  left?: { user: string };
  removed?: { user: string; by: string };
  role_changed?: { user: string; role: Role; by: string };
  room_changed?: { name?: string; public?: boolean };
}

export interface SubscribeRoom {
  room: string;
  after?: number;
  log?: string;
  last?: number;
  mode?: Mode;
}

export interface SubscribedRoom {
  room: string;
  log: string;
  head: number;
  n: number;
  /** The first seq that will be pushed; head + 1 if none. */
  from: number;
  role: Role;
  delivered: number;
  seen: number;
  seen_n: number;
  gap?: Gap;
  reset?: boolean;
  pending?: boolean;
  error?: WireError;
}

export interface UserMarks {
  user: string;
  delivered: number;
  seen: number;
}

export interface History {
  events: RoomEvent[];
  gaps: Gap[];
  log: string;
  head: number;
  more: boolean;
}

type Empty = Record<string, never>;

/** Request and reply of each command. */
export interface Commands {
  auth: [
    { token: string; client?: string },
    {
      user: string;
      name: string;
      connection: string;
      node: string;
      expires_at: number;
      server_time: number;
      ping_interval_ms: number;
      limits: Limits;
    },
  ];
  refresh: [{ token: string }, { expires_at: number }];
  subscribe: [{ rooms: SubscribeRoom[] }, { rooms: SubscribedRoom[] }];
  unsubscribe: [{ rooms: string[] }, Empty];
  send: [
    {
      room: string;
      client_msg_id: string;
      since?: number;
      text?: string;
      content_type?: string;
      reply_to?: number;
      mentions?: string[];
      data?: unknown;
    },
    { room: string; seq: number; at: number; duplicate: boolean },
  ];
  history: [{ room: string; before?: number; after?: number; limit?: number }, History];
  mark: [{ room: string; delivered?: number; seen?: number }, { delivered: number; seen: number; seen_n: number }];
  create_room: [
    { room?: string; kind: RoomKind; name?: string; public?: boolean; members?: string[] },
    Room & { created: boolean },
  ];
  update_room: [{ room: string; name?: string; public?: boolean }, Empty];
  add_members: [{ room: string; users: string[] }, Empty];
  remove_member: [{ room: string; user: string }, Empty];
  set_role: [{ room: string; user: string; role: Role }, Empty];
  join: [{ room: string }, { head: number; role: Role }];
  leave: [{ room: string }, Empty];
  members: [{ room: string; after?: string; limit?: number }, { members: Member[]; count: number; more: boolean }];
  rooms: [{ after?: string; limit?: number }, { rooms: Room[]; more: boolean }];
  find_user: [{ username: string }, { user: string; name: string }];
  ping: [Empty, { server_time: number }];
}

export type Command = keyof Commands;
export type Request<C extends Command> = Commands[C][0];
export type Reply<C extends Command> = Commands[C][1];

/** Body of each push. */
export interface Pushes {
  event: RoomEvent;
  head: { room: string; head: number; n: number };
  marks: { room: string; marks: UserMarks[] };
  gap: { room: string; from: number; to: number; expired?: boolean };
  subscribed: SubscribedRoom;
  unsubscribed: { room: string; code: number; reason: string };
  room: Room;
  room_gone: { room: string; code: number };
  token_expiring: { expires_at: number };
  reconnect: { after_ms: number; reason: string };
}

/** Error codes. */
export const Code = {
  internal: 100,
  unauthenticated: 101,
  unknown_room: 102,
  permission_denied: 103,
  unknown_command: 104,
  already_exists: 105,
  limit_exceeded: 106,
  bad_request: 107,
  unavailable: 108,
  token_expired: 109,
  too_many_requests: 111,
  overloaded: 112,
  retry_too_old: 113,
  client_msg_id_reused: 120,
  message_too_large: 121,
  unknown_user: 122,
  not_a_member: 123,
} as const;

/** Close codes. */
export const Close = {
  stopped: 3000,
  draining: 3001,
  token_expired: 3002,
  server_error: 3004,
  too_slow: 3008,
  no_pong: 3012,
  too_many_connections: 3013,
  bad_token: 3500,
  bad_frame: 3501,
  no_auth: 3502,
  ended: 3503,
} as const;

/** What a refusal says about a `send` (docs/protocol.md, "Delivery"). */
export type Verdict =
  | "unknown" // says nothing about the send: same id and same since again
  | "not_this_try" // this try is not in the log; an earlier one may be: same id and same since again
  | "too_old" // the log must be searched before anything is sent again
  | "definite"; // no try of it is in the log

export function verdict(code: number): Verdict {
  switch (code) {
    case Code.internal:
    case Code.unavailable:
      return "unknown";
    case Code.unauthenticated:
    case Code.limit_exceeded:
    case Code.token_expired:
    case Code.too_many_requests:
    case Code.overloaded:
      return "not_this_try";
    case Code.retry_too_old:
      return "too_old";
    default:
      return "definite";
  }
}

/** What a close code asks of the client. */
export type AfterClose =
  | "come_back" // with backoff
  | "renew" // the token is over: a new one first
  | "sign_in" // this login is over
  | "stop"; // coming back unchanged would end the same way

export function afterClose(code: number): AfterClose {
  switch (code) {
    case Close.token_expired:
      return "renew";
    case Close.bad_token:
    case Close.ended:
      return "sign_in";
    case Close.bad_frame:
    case Close.no_auth:
    case 1002: // protocol error
    case 1003: // unacceptable kind of data
    case 1007: // bad UTF-8
    case 1009: // message too big
      return "stop";
    default:
      // 3500..3999 are all "not unchanged", also those that this client is too old to know
      return code >= 3500 && code < 4000 ? "stop" : "come_back";
  }
}

/** What a role may do in a room of a kind: one row of the permission table each. */
export function maySend(kind: RoomKind, role: Role): boolean {
  if (role === "owner" || role === "admin") return true;
  return role === "member" && kind !== "broadcast";
}

export function mayManage(kind: RoomKind, role: Role): boolean {
  return kind !== "direct" && (role === "owner" || role === "admin");
}

const RANK: Record<Role, number> = { none: 0, reader: 1, member: 2, admin: 3, owner: 4 };

/** Roles that `role` may give to a member who has `theirs` (the present one first when it may be changed at all). */
export function mayGive(kind: RoomKind, role: Role, theirs: Role): Role[] {
  if (kind === "direct") return [];
  if (role === "owner") return theirs === "owner" ? [] : ["reader", "member", "admin", "owner"];
  if (role === "admin") return RANK[theirs] < RANK.admin ? ["reader", "member"] : [];
  return [];
}

export function mayRemove(kind: RoomKind, role: Role, theirs: Role): boolean {
  return mayManage(kind, role) && theirs !== "owner" && RANK[theirs] <= RANK[role];
}
