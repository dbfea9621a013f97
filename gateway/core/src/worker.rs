//! The core of one gateway worker: its connections, the rooms they read, and what is sent to whom next.
//!
//! Owns: every connection of one thread, from the upgrade on, and the rings of the rooms that they read.
//! Always holds (docs/protocol.md): each cursor gets its room's events in order, each once, gaps announced; the reply to
//! a send stands in the place of its event; a removed user's cursor ends at the removal; replies are owed exactly once.
//! Does not: read or write sockets (the shell does, through [`Wire`]), look at a clock, check tokens, find out who owns a
//! room's slot (it is told). It never waits: what it needs from others leaves as an [`Effect`] or a message to a shard and
//! comes back as an input.

mod catch_up;
mod commands;
mod deliver;
mod logins;
mod rooms;
mod routes;
mod subscribe;
mod timers;

use std::collections::VecDeque;
use std::sync::Arc;

use banyan_proto::codes::{Close, Code};
use banyan_proto::frame::{self, Format};
use banyan_proto::id::{Epoch, Incarnation, Origin, RoomId, SlotId, UnixMs, UserId};
use banyan_proto::link::{Person, Ticket, ToShard};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;
use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState as RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::bucket::Buckets;
use crate::command::{self, Checked};
use crate::connection::{Connection, Flight, NOBODY, Out, Phase, Place};
use crate::dirty::DirtySet;
use crate::latency::Latency;
use crate::room::Room;
use crate::slab::{INDEX_BITS, Key, Slab};
use crate::spare::Spare;
use crate::timing_wheel::TimingWheel;
use crate::ws::encode::{put_close, put_close_reply, put_frame};
use crate::ws::{self, Item, Opcode};

pub(crate) use catch_up::Pull;
use routes::Routes;

/// The time, as the shell reads it once per turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a clock that never falls, from any beginning above 0.
    pub ms: u64,
    pub unix: UnixMs,
}

/// Limits and names of one worker. Every default is in the configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of this worker, below 256: a part of the origin of its connections' sends.
    pub worker: u8,
    /// Random per run, 24 bits of it are used: tells this run's origins from another's.
    pub nonce: u32,
    pub node: Arc<str>,
    /// Bytes of one room's ring.
    pub ring_bytes: usize,
    /// Bytes of all rings; above, the oldest events of the largest rings go first.
    pub rings_bytes: usize,
    pub ping_interval_ms: u64,
    pub pong_deadline_ms: u64,
    pub auth_deadline_ms: u64,
    /// A socket that takes no byte for so long is closed 3008.
    pub slow_deadline_ms: u64,
    /// Cursors of one connection.
    pub subscriptions: usize,
    /// Sends of one user, and what clients are told of it.
    pub sends: Arc<Buckets>,
    pub sends_per_s: u32,
    pub frame_bytes: u32,
    pub fragments: u32,
    pub in_flight: usize,
    /// Connections of one user on this worker.
    pub connections_per_user: usize,
    pub command: command::Limits,
    /// How long a question waits for an owner of its slot: the lifetime of a lease and the time that a takeover needs.
    pub hold_ms: u64,
    /// Bytes of all that waits so; above, a command is 108 at once.
    pub hold_bytes: usize,
    /// In how long all connections have been looked up in the store once. `None`: this process hears of every login that
    /// ends.
    pub login_check_ms: Option<u64>,
    /// Of the hash maps. Random, unless a run must repeat another one bit for bit.
    pub seed: Option<u64>,
}

/// What the shell (or an asynchronous part beside it) must do.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Check a token; the answer is [`Worker::authenticated`].
    Authenticate { connection: Key, token: String, client: Option<String> },
    /// Carry out a command that needs look-ups; the answer is [`Worker::backend_replied`].
    Backend { connection: Key, id: u64, person: Person, command: Checked },
    /// Look whether the token of this connection still holds; where it does not, [`Worker::login_ended`].
    CheckLogin { connection: Key, user: UserId, login: Option<Arc<str>>, issued_at: UnixMs },
    /// Read from this socket again (it was paused).
    Resume { connection: u32 },
    /// Close the socket. The connection is gone from the core already.
    Drop { connection: u32 },
    /// Somebody has named an ownership that the table does not know (`owner`: only its number was seen): look it up.
    /// Until [`Worker::route_changed`] says who it is, questions for the slot wait.
    Moved { slot: SlotId, epoch: Epoch, owner: Option<Incarnation> },
    /// Commands wait for this slot, and the way to its owner is lost: whoever takes it had better begin with it. Once for
    /// each loss.
    Wanted { slot: SlotId },
}

/// What came of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub person: Person,
    pub expires_at: UnixMs,
    /// The login that made the token; ends with it.
    pub login: Option<Arc<str>>,
    pub issued_at: UnixMs,
    /// The number of the last revocation that was known when the token was checked.
    pub as_of: u64,
}

/// What ends a connection from outside: see [`Worker::disconnect`].
#[derive(Debug)]
struct Login {
    login: Option<Arc<str>>,
    issued_at: UnixMs,
    as_of: u64,
}

/// What a socket did with bytes offered to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It took so many. Fewer than offered means that it is full: [`Worker::writable`] follows.
    Bytes(usize),
    Full,
    Broken,
}

/// The sockets, as the core sees them.
pub trait Wire {
    fn send(&mut self, connection: u32, bytes: &[u8]) -> Sent;
}

/// Counts since the start, for metrics. Plain numbers: the shell publishes differences.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counters {
    pub commands: u64,
    pub events_applied: u64,
    pub deliveries: u64,
    pub send_calls: u64,
    pub bytes_sent: u64,
    pub fell_to_log: u64,
    pub gaps_announced: u64,
    pub gaps_repaired: u64,
    pub pulls: u64,
    pub auth_failures: u64,
    pub in_flight_refused: u64,
    pub rate_limited: u64,
    pub pushes_skipped: u64,
    /// Questions that waited for an owner, and of these those that waited too long, or found no room to wait.
    pub held: u64,
    pub hold_expired: u64,
    pub hold_refused: u64,
    /// Questions that were asked again of another owner.
    pub handed_again: u64,
    /// Questions and interests that were not taken by who was asked.
    pub moved: u64,
    /// What owners of earlier epochs said too late.
    pub stale: u64,
    /// Absences told to rooms with readers of heads alone whose events had not come.
    pub absences_ahead: u64,
    pub closed_slow: u64,
    pub closed_no_pong: u64,
    pub closed_no_auth: u64,
    pub closed_bad_frame: u64,
    pub closed_other: u64,
    /// From a send's arrival to its `sent`, which waits in no queue here but the socket's.
    pub acks: Latency,
}

#[derive(Debug)]
struct User {
    person: Person,
    /// Of its channel, and the place there.
    slot: u16,
    slot_place: u32,
    connections: SmallVec<[u32; 2]>,
}

/// Bytes queued for a connection beyond which nothing optional is added and no command is read until they are out.
const QUEUED_SOFT: usize = 64 << 10;
/// Beyond which the connection is closed: it asks for much and reads nothing.
const QUEUED_HARD: usize = 8 << 20;
/// Commands with large replies that are under way at once for one connection.
const HEAVY_MAX: usize = 8;
/// How long the client has to answer a close frame.
const CLOSE_MS: u64 = 2_000;
/// A read pause for who keeps sending commands above the limit.
const PAUSE_MS: u64 = 1_000;
const WHEEL_TICK_MS: u64 = 250;
const WHEEL_SPAN_MS: u64 = 32_000;

#[derive(Debug)]
pub struct Worker {
    options: Options,
    routes: Routes,
    connections: Slab<Connection>,
    logins: HashMap<u32, Login, RandomState>,
    rooms: Slab<Room>,
    room_ids: HashMap<RoomId, u32, RandomState>,
    users: Slab<User>,
    user_ids: HashMap<UserId, u32, RandomState>,
    dirty: DirtySet,
    /// Rooms of more than a few live cursors that have something to send, in turn.
    big: VecDeque<u32>,
    /// Rooms whose passive readers are owed a head.
    heads: Vec<u32>,
    /// When the first of them may be told.
    heads_at: u64,
    /// Rooms with a ring, looked at every second.
    ringed: Vec<u32>,
    /// Rooms that nobody reads any more (or did not when they were put here).
    unused: Vec<u32>,
    rings_bytes: usize,
    pulls: HashMap<Ticket, Pull, RandomState>,
    /// Cursors that wait for one of the few pulls.
    pull_queue: VecDeque<(Key, u32)>,
    /// Failed pulls, to be tried again at a time.
    pull_retries: Vec<(u64, Option<Key>, u32)>,
    next_pull: u64,
    wheel: TimingWheel,
    due: Vec<(u32, u32)>,
    housekeeping_at: u64,
    /// Whose login is asked for next, of all connections by turns.
    login_cursor: u32,
    /// Messages for each link to owners, handed over once per turn.
    to_shards: Vec<Vec<ToShard>>,
    effects: Vec<Effect>,
    counters: Counters,
    /// Why clients are told to come back elsewhere, once they are.
    draining: Option<Box<str>>,
    /// Stands for the caller while there is none.
    nobody: UserId,
    payload: Vec<u8>,
    sweep: Vec<u32>,
    /// For connections that get something to do.
    outs: Spare<Out>,
    flights: Spare<Flight>,
}

impl Worker {
    /// `links`: how many ways to owners there are. `slots`: how many of them the cluster has, a power of two; `slot_of`
    /// gives the slot of a room, and of a user's channel under the name `~` + user. No slot has an owner until
    /// [`Self::route_changed`] says so.
    pub fn new(options: Options, links: usize, slots: u32, slot_of: fn(&str) -> u16, now: Now) -> Self {
        let hasher = options.seed.map_or_else(RandomState::random, |seed| {
            RandomState::with_seed(seed, SharedSeed::global_fixed())
        });
        Self {
            options,
            routes: Routes::new(slots, slot_of),
            connections: Slab::default(),
            logins: HashMap::with_hasher(hasher.clone()),
            rooms: Slab::default(),
            room_ids: HashMap::with_hasher(hasher.clone()),
            users: Slab::default(),
            user_ids: HashMap::with_hasher(hasher.clone()),
            dirty: DirtySet::default(),
            big: VecDeque::new(),
            heads: Vec::new(),
            heads_at: u64::MAX,
            ringed: Vec::new(),
            unused: Vec::new(),
            rings_bytes: 0,
            pulls: HashMap::with_hasher(hasher),
            pull_queue: VecDeque::new(),
            pull_retries: Vec::new(),
            next_pull: 0,
            wheel: TimingWheel::new(now.ms, WHEEL_TICK_MS, WHEEL_SPAN_MS),
            due: Vec::new(),
            housekeeping_at: now.ms + 1_000,
            login_cursor: 0,
            to_shards: (0..links).map(|_| Vec::new()).collect(),
            effects: Vec::new(),
            counters: Counters::default(),
            draining: None,
            nobody: UserId::system(),
            payload: Vec::new(),
            sweep: Vec::new(),
            outs: Spare::default(),
            flights: Spare::default(),
        }
    }

    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections, rooms, bytes of rings: for gauges.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.rooms.len(), self.rings_bytes)
    }

    /// Takes what must be done; call it after every round of inputs. The number of a dropped connection may be given
    /// to a new one from now on, not before.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        let effects = std::mem::take(&mut self.effects);
        for effect in &effects {
            if let Effect::Drop { connection } = effect {
                self.connections.release(*connection);
            }
        }
        effects
    }

    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Bytes of the questions that wait for an owner.
    pub const fn held_bytes(&self) -> usize {
        self.routes.held_bytes()
    }

    /// The messages that wait for each link. The shell takes them when it can hand them over; what it cannot
    /// hand over stays, in order.
    pub fn shard_queues(&mut self) -> &mut [Vec<ToShard>] {
        &mut self.to_shards
    }

    /// A socket has been upgraded; the answer to its upgrade goes out first. `None`: no slot is free, or the worker
    /// drains; close it.
    pub fn accept(&mut self, now: Now, format: Format, response: &[u8]) -> Option<u32> {
        if self.draining.is_some() {
            return None;
        }
        let key = self.connections.insert(Connection::new(format, now.ms))?;
        if let Some(connection) = self.connections.get_mut(key.index) {
            out_of(&mut self.outs, connection).extend_from_slice(response);
        }
        self.dirty.mark(key.index);
        self.arm(now, key.index);
        Some(key.index)
    }

    /// Whether the shell may read this socket now.
    pub fn wants_read(&self, index: u32) -> bool {
        self.connections.get(index).is_some_and(|connection| connection.paused_until == 0 && !connection.full)
    }

    /// The peer is gone, or the socket broke.
    pub fn lost(&mut self, index: u32) {
        self.forget(index);
    }

    /// Bytes from a socket. They are used up.
    pub fn received(&mut self, now: Now, index: u32, bytes: &mut [u8]) {
        let mut at = 0;
        loop {
            let Some(connection) = self.connections.get_mut(index) else { return };
            connection.heard_at = now.ms;
            connection.pinged_at = 0;
            let limits = ws::Limits {
                message_bytes: self.options.frame_bytes,
                fragments: self.options.fragments,
                accept: match connection.format {
                    Format::Json => ws::Accept::Text,
                    Format::Proto => ws::Accept::Binary,
                },
            };
            let Some(item) = connection.decoder.next(bytes, &mut at, &limits) else { break };
            match item {
                Item::Text(text) => self.frame(now, index, frame::parse_json(&text)),
                Item::Binary(payload) => self.frame(now, index, frame::parse_proto(&payload)),
                Item::Ping(payload) => {
                    if !connection.is_closing() && connection.queued() < QUEUED_SOFT {
                        put_frame(out_of(&mut self.outs, connection), Opcode::Pong, &payload);
                        self.dirty.mark(index);
                    }
                }
                Item::Pong => {}
                Item::Close { code, .. } => {
                    let closing = connection.is_closing();
                    connection.phase = Phase::Closing { answered: true };
                    connection.phase_since = now.ms;
                    if !closing {
                        put_close_reply(out_of(&mut self.outs, connection), code);
                    }
                    self.dirty.mark(index);
                    self.leave_all(index);
                    self.arm(now, index);
                    return;
                }
                Item::Error { close, reason } => {
                    self.counters.closed_bad_frame += 1;
                    self.close_with(now, index, close.number(), reason, true);
                    return;
                }
            }
        }
        // Control frames cost an answer and carry no command: a flood of them is paused like one of commands.
        if let Some(connection) = self.connections.get_mut(index)
            && connection.decoder.take_control_frames() > 100
        {
            self.pause(now, index);
        }
        if let Some(connection) = self.connections.get_mut(index)
            && connection.queued() > QUEUED_SOFT
        {
            connection.full = true;
        }
    }

    /// The socket takes bytes again.
    pub fn writable(&mut self, now: Now, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if !connection.blocked {
            return;
        }
        connection.blocked = false;
        // The clock of the pong stood still.
        if connection.pinged_at != 0 {
            connection.pinged_at = now.ms;
        }
        self.dirty.mark(index);
        self.mark_all_rooms(index);
    }

    /// Every room in which this connection has a live cursor may have something for it.
    fn mark_all_rooms(&mut self, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let live = connection.rooms.iter().filter(|reference| matches!(reference.place, Place::Live(_)));
        connection.dirty_rooms.clear();
        connection.dirty_rooms.extend(live.map(|reference| reference.room));
    }

    /// Ends every connection of a user (of one login, if named) that authenticated before this revocation: disabled,
    /// logged out, disconnected.
    pub fn disconnect(&mut self, now: Now, user: &UserId, login: Option<&str>, number: u64) {
        let Some(index) = self.user_ids.get(user.as_str()) else { return };
        let Some(user) = self.users.get(*index) else { return };
        for connection in user.connections.clone() {
            let ends = self.logins.get(&connection).is_none_or(|entry| {
                entry.as_of < number && (login.is_none() || entry.login.as_deref() == login)
            });
            if ends {
                self.close(now, connection, Close::Ended, "signed out, disabled or disconnected");
            }
        }
    }

    /// It is there and its first token is being checked.
    pub fn is_new(&self, connection: Key) -> bool {
        self.connections.get_key(connection).is_some_and(|entry| entry.phase == Phase::Checking)
    }

    /// Ends one connection.
    pub fn end(&mut self, now: Now, connection: Key, close: Close, reason: &str) {
        if self.connections.get_key(connection).is_some() {
            self.close(now, connection.index, close, reason);
        }
    }

    /// Tells every client to come back elsewhere, spread over `window_ms`. No connection is taken any more.
    /// Who authenticates after this is told at once.
    pub fn drain(&mut self, _: Now, window_ms: u64, reason: &str) {
        self.draining = Some(reason.into());
        let indices: Vec<u32> = self.connections.iter().map(|(index, _)| index).collect();
        let count = indices.len().max(1) as u64;
        for (place, index) in indices.into_iter().enumerate() {
            let after_ms = window_ms * (place as u64 + 1) / count;
            let push = Body::Reconnect(v1::Reconnect { after_ms, reason: reason.to_owned() });
            if self.connections.get(index).is_some_and(|connection| connection.phase == Phase::Open) {
                self.push(index, push);
            }
        }
    }

    /// Nobody is told to go any more, and connections are taken again. Who was told may have gone.
    pub fn undrain(&mut self) {
        self.draining = None;
    }

    pub const fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Nothing is owed to anybody: no command waits for its reply, nothing queued for a socket that takes bytes.
    pub fn is_settled(&self) -> bool {
        self.connections.iter().all(|(_, connection)| {
            connection.flight.as_ref().is_none_or(|flight| flight.is_empty())
                && (connection.blocked || connection.out.is_none())
        })
    }

    /// Ends all connections with this code.
    pub fn close_all(&mut self, now: Now, close: Close, reason: &str) {
        let indices: Vec<u32> = self.connections.iter().map(|(index, _)| index).collect();
        for index in indices {
            self.close(now, index, close, reason);
        }
    }

    // ------------------------------------------------------------ frames to one connection

    /// Queues a frame of the server behind what is queued already.
    fn queue(&mut self, index: u32, frame: &v1::ServerFrame) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.is_closing() {
            return;
        }
        put_server_frame(&mut self.payload, connection.format, frame, out_of(&mut self.outs, connection));
        self.dirty.mark(index);
    }

    fn push(&mut self, index: u32, body: Body) {
        self.queue(index, &v1::ServerFrame { id: None, body: Some(body) });
    }

    fn reply(&mut self, index: u32, id: u64, body: Body) {
        self.queue(index, &v1::ServerFrame { id: Some(id), body: Some(body) });
    }

    fn reply_error(&mut self, index: u32, id: u64, error: v1::Error) {
        self.reply(index, id, Body::Error(error));
    }

    fn reply_code(&mut self, index: u32, id: u64, code: Code, message: impl Into<String>) {
        self.reply_error(index, id, code.error(message));
    }

    // ------------------------------------------------------------ ends

    fn close(&mut self, now: Now, index: u32, close: Close, reason: &str) {
        if self.connections.get(index).is_none_or(Connection::is_closing) {
            return;
        }
        match close {
            Close::TooSlow => self.counters.closed_slow += 1,
            Close::NoPong => self.counters.closed_no_pong += 1,
            Close::NoAuth => self.counters.closed_no_auth += 1,
            Close::BadFrame => self.counters.closed_bad_frame += 1,
            _ => self.counters.closed_other += 1,
        }
        self.close_with(now, index, close.number(), reason, false);
    }

    /// Queues a close frame. `answered`: the client broke the protocol, its own close is not waited for.
    fn close_with(&mut self, now: Now, index: u32, code: u16, reason: &str, answered: bool) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.is_closing() {
            return;
        }
        connection.phase = Phase::Closing { answered };
        connection.phase_since = now.ms;
        if connection.paused_until != 0 || connection.full {
            // Its answer must be read.
            connection.paused_until = 0;
            connection.full = false;
            self.effects.push(Effect::Resume { connection: index });
        }
        put_close(out_of(&mut self.outs, connection), code, reason);
        self.dirty.mark(index);
        self.leave_all(index);
        self.arm(now, index);
    }

    /// Takes the connection out of its rooms and its user.
    fn leave_all(&mut self, index: u32) {
        while let Some(reference) =
            self.connections.get(index).and_then(|connection| connection.rooms.last().copied())
        {
            self.remove_cursor(index, reference.room);
        }
        self.abandon_flight(index);
        let Some(connection) = self.connections.get_mut(index) else { return };
        let user = std::mem::replace(&mut connection.user, NOBODY);
        self.logins.remove(&index);
        let Some(entry) = self.users.get_mut(user) else { return };
        entry.connections.retain(|of| *of != index);
        if entry.connections.is_empty()
            && let Some(entry) = self.users.remove(user)
        {
            self.user_ids.remove(entry.person.user.as_str());
            if let Some(moved) = self.routes.remove_user(entry.slot, entry.slot_place)
                && let Some(moved) = self.users.get_mut(moved)
            {
                moved.slot_place = entry.slot_place;
            }
            self.tell(entry.slot, ToShard::UserOffline { user: entry.person.user });
        }
    }

    fn forget(&mut self, index: u32) {
        self.leave_all(index);
        if let Some(gone) = self.connections.remove_held(index) {
            if let Some(out) = gone.out {
                self.outs.put(out);
            }
            self.dirty.unmark(index);
            self.effects.push(Effect::Drop { connection: index });
        }
    }

    fn pause(&mut self, now: Now, index: u32) {
        if let Some(connection) = self.connections.get_mut(index) {
            connection.paused_until = now.ms + PAUSE_MS;
            self.arm(now, index);
        }
    }

    // ------------------------------------------------------------ small helpers

    /// Names a connection's sends in the log. See [`Origin`].
    fn origin_of(&self, key: Key) -> Origin {
        let nonce = u64::from(self.options.nonce & 0x00ff_ffff);
        Origin(nonce << 40 | u64::from(self.options.worker) << 32 | u64::from(key.to_bits()))
    }

    /// The connection that an origin names, if it is one of this worker in this run.
    fn key_of_origin(&self, origin: Origin) -> Option<Key> {
        let mine = self.origin_of(Key { index: 0, generation: 0 });
        (origin.0 >> 32 == mine.0 >> 32).then(|| Key::from_bits(origin.0 as u32))
    }

    fn person(&self, index: u32) -> Option<Person> {
        let connection = self.connections.get(index)?;
        Some(self.users.get(connection.user)?.person.clone())
    }
}

/// A ticket of a connection's command.
const fn ticket(key: Key, count: u32) -> Ticket {
    Ticket((key.to_bits() as u64) << 32 | count as u64)
}

const fn split_ticket(ticket: Ticket) -> (Key, u32) {
    (Key::from_bits((ticket.0 >> 32) as u32), ticket.0 as u32)
}

const _: () = assert!(INDEX_BITS < 32);

fn out_of<'a>(spare: &mut Spare<Out>, connection: &'a mut Connection) -> &'a mut Vec<u8> {
    &mut connection.out.get_or_insert_with(|| spare.take()).bytes
}

fn flight_of<'a>(spare: &mut Spare<Flight>, connection: &'a mut Connection) -> &'a mut Flight {
    connection.flight.get_or_insert_with(|| spare.take())
}

const fn opcode_of(format: Format) -> Opcode {
    match format {
        Format::Json => Opcode::Text,
        Format::Proto => Opcode::Binary,
    }
}

/// Appends a whole WebSocket frame that holds `frame`. `payload` is scratch.
fn put_server_frame(payload: &mut Vec<u8>, format: Format, frame: &v1::ServerFrame, out: &mut Vec<u8>) {
    payload.clear();
    frame::encode(format, frame, payload);
    put_frame(out, opcode_of(format), payload);
}

#[cfg(test)]
mod tests;
