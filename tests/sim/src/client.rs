//! One client: a device of a user, as a careful application would be written, over any number of connections.
//!
//! Owns: what it knows of each room (log, last seq), its sends until each has a verdict, the commands in flight.
//! Always holds (docs/protocol.md): a retry has the first try's `client_msg_id`, `since` and body; after a reconnect every room is
//! resumed with `after` and `log`; what is sent is recorded before, what is read after.
//! Does not: judge. The checker does, from the records.

use std::collections::VecDeque;

use banyan_checker as checker;
use banyan_checker::{Ask, Call, Mode, Range, Session, Start, What};
use banyan_gateway_core::ws::client::put_frame;
use banyan_gateway_core::ws::encode::frame_len;
use banyan_proto::codes::{Code, Verdict};
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::server_frame::Body;
use prost::Message as _;

use crate::coverage::Coverage;
use crate::random::Random;
use crate::record::{Recorder, Words, content_of};
use crate::schedule::{MS, SECOND, Time};
use crate::sometimes;

/// What stands for the answer to an upgrade: dropped by the client.
pub const GREETING: &[u8] = b"\r\n";

/// How eager a client is, and at what; drawn per seed.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Mean time between two actions.
    pub pace: Time,
    /// Shares of what it does, in per mille; the rest are sends.
    pub retries_of_acked: u32,
    pub history: u32,
    pub marks: u32,
    pub members: u32,
    pub moves: u32,
    pub switches: u32,
    /// What the owner of the rooms does beyond its share of `members`. Then it takes people in, and only now and then out:
    /// most of them are members most of the time.
    pub governs: u32,
    /// Subscriptions that take heads only.
    pub passive: u32,
    /// Sends without `since`.
    pub without_since: u32,
    /// Nothing heard for so long: the connection counts as dead.
    pub patience: Time,
    /// Commands in flight at most.
    pub in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No connection; a new one is tried at this time.
    Away {
        until: Time,
    },
    Connecting,
    /// `auth` is under way.
    Greeting,
    Open,
}

/// What the world must do for a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    Nothing,
    Connect {
        gateway: usize,
    },
    /// Bytes for the connection are in `out`.
    Send,
    /// Ends the connection, in its own way.
    Hang,
}

#[derive(Debug, Clone)]
struct View {
    log: Option<u64>,
    /// Everything up to here was pushed, announced as a gap, or told in a reply.
    last: u64,
    /// Highest seq or head told of the room: what `since` is.
    told: u64,
    mode: Option<Mode>,
    /// A subscribe that has no answer yet.
    asking: bool,
    next_try: Time,
    role: i32,
    /// Highest marks stated.
    seen: u64,
    was_removed: bool,
    /// When the server has said that it is no member.
    barred: Option<Time>,
}

/// A send until it has a verdict.
#[derive(Debug, Clone)]
struct Outgoing {
    room: usize,
    client_msg_id: String,
    text: String,
    since: Option<u64>,
    tries: u32,
    in_flight: bool,
    next_try: Time,
    /// An earlier try may be in the log.
    unknown: bool,
    acked: bool,
    /// One of [`Client::owes`]: refused for good, it is owed still.
    owed: bool,
    /// The epoch of nothing: gateway of the last try, to know retries elsewhere.
    first_gateway: usize,
}

#[derive(Debug)]
enum Open {
    Auth,
    Send { client_msg_id: String },
    Subscribe { rooms: Vec<(usize, Mode)> },
    Unsubscribe { room: usize },
    History,
    Mark { room: usize },
    Ask { room: usize },
    Make { room: usize },
}

#[derive(Debug)]
pub struct Client {
    pub session: u32,
    pub user: usize,
    pub name: String,
    habits: Habits,
    random: Random,
    phase: Phase,
    /// Number of the connection in the history.
    pub connection: u32,
    begun: bool,
    gateway: usize,
    greeted: bool,
    partial: Vec<u8>,
    next_id: u64,
    open: Vec<(u64, Time, Open)>,
    views: Vec<View>,
    sends: VecDeque<Outgoing>,
    /// Acked ones, to be sent once more.
    done: VecDeque<Outgoing>,
    count: u64,
    heard_at: Time,
    failures: u32,
    /// Commands of the last call, as bytes.
    pub out: Vec<u8>,
    payload: Vec<u8>,
    /// No new business, only what is open.
    pub finishing: bool,
    /// Since when.
    pub finish_at: Time,
    /// Rooms that shall get one more send each (liveness).
    pub owes: Vec<usize>,
    /// Rooms that it makes, with their first members, until each is there; whether that is asked for.
    makes: Vec<(usize, Vec<usize>, bool)>,
}

/// What a client may know of the world: names.
#[derive(Debug)]
pub struct Cast {
    pub rooms: Vec<String>,
    pub users: Vec<String>,
    pub gateways: usize,
    /// Rooms that only count who comes and goes.
    pub broadcast: Vec<bool>,
}

impl Cast {
    fn room(&self, name: &str) -> Option<usize> {
        self.rooms.iter().position(|room| room == name)
    }
}

impl Client {
    pub fn new(session: u32, user: usize, cast: &Cast, habits: Habits, random: Random) -> Self {
        let view = View {
            log: None,
            last: 0,
            told: 0,
            mode: None,
            asking: false,
            next_try: 0,
            role: 0,
            seen: 0,
            was_removed: false,
            barred: None,
        };
        Self {
            session,
            user,
            name: format!("{}/{session}", cast.users[user]),
            habits,
            random,
            phase: Phase::Away { until: 0 },
            connection: 0,
            begun: false,
            gateway: 0,
            greeted: false,
            partial: Vec::new(),
            next_id: 1,
            open: Vec::new(),
            views: vec![view; cast.rooms.len()],
            sends: VecDeque::new(),
            done: VecDeque::new(),
            count: 0,
            heard_at: 0,
            failures: 0,
            out: Vec::new(),
            payload: Vec::new(),
            finishing: false,
            finish_at: 0,
            owes: Vec::new(),
            makes: Vec::new(),
        }
    }

    pub const fn is_away(&self) -> bool {
        matches!(self.phase, Phase::Away { .. })
    }

    /// Nothing is open and nothing waits for another try.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
            && self.sends.is_empty()
            && self.owes.is_empty()
            && self.makes.is_empty()
            && self.phase == Phase::Open
    }

    /// Something of what it wants done may still change a room.
    pub fn has_business(&self) -> bool {
        !self.sends.is_empty()
            || !self.owes.is_empty()
            || !self.makes.is_empty()
            || self.open.iter().any(|(.., open)| matches!(open, Open::Ask { .. }))
    }

    /// Whether it has all that it may have of a room with this head, or has been told, not before `still`, that it may have
    /// nothing more: until then the room may have been made, its user taken in again.
    pub fn has_reached(&self, room: usize, head: u64, still: Time) -> bool {
        let view = &self.views[room];
        match view.mode {
            // Who is out reads up to its removal, and `unsubscribed` ends that.
            Some(Mode::Live) => view.last >= head,
            Some(Mode::Passive) => true,
            None => !view.asking && view.barred.is_some_and(|at| at >= still),
        }
    }

    pub fn is_passive(&self, room: usize) -> bool {
        self.views[room].mode == Some(Mode::Passive)
    }

    /// When [`Self::act`] wants to be called next.
    pub fn pause(&mut self) -> Time {
        MS + self.random.exponential(self.habits.pace)
    }

    // ------------------------------------------------------------ the connection

    pub fn connected(
        &mut self,
        now: Time,
        connection: u32,
        gateway: usize,
        cast: &Cast,
        recorder: &mut Recorder,
    ) {
        self.phase = Phase::Greeting;
        self.connection = connection;
        self.gateway = gateway;
        self.greeted = false;
        self.begun = false;
        self.partial.clear();
        self.heard_at = now;
        recorder.note(|| format!("{} connects to g{gateway} (connection {connection})", self.name));
        let token = cast.users[self.user].clone();
        self.ask(now, Command::Auth(v1::Auth { token, client: None }), Open::Auth);
    }

    pub fn refused(&mut self, now: Time) {
        self.failures += 1;
        let wait = self.random.below(200 * MS * u64::from(self.failures.min(8)) + 1);
        self.phase = Phase::Away { until: now + wait };
    }

    /// The connection is gone, as far as this side knows.
    pub fn lost(&mut self, now: Time, recorder: &mut Recorder) {
        if matches!(self.phase, Phase::Away { .. } | Phase::Connecting) {
            return self.refused(now);
        }
        if self.begun {
            recorder.record(self.connection, What::End);
        }
        recorder.note(|| format!("{} has lost connection {}", self.name, self.connection));
        self.open.clear();
        for send in &mut self.sends {
            if send.in_flight {
                send.in_flight = false;
                send.unknown = true;
            }
            send.next_try = now;
        }
        for view in &mut self.views {
            view.asking = false;
            view.barred = None;
        }
        for (.., asked) in &mut self.makes {
            *asked = false;
        }
        self.refused(now);
    }

    fn ask(&mut self, now: Time, command: Command, open: Open) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.payload.clear();
        let frame = v1::ClientFrame { id, command: Some(command) };
        // A Vec takes all.
        frame.encode_raw(&mut self.payload);
        let mask = (self.random.next() as u32).to_le_bytes();
        put_frame(&mut self.out, 0x82, mask, &self.payload);
        self.open.push((id, now, open));
        id
    }

    /// The id that the next command will have: what is recorded before it is sent.
    const fn call(&self) -> Call {
        Call(self.next_id)
    }

    // ------------------------------------------------------------ what it does

    pub fn act(&mut self, now: Time, cast: &Cast, recorder: &mut Recorder, coverage: &mut Coverage) -> Wish {
        self.out.clear();
        match self.phase {
            Phase::Away { until } if until <= now => {
                self.phase = Phase::Connecting;
                let gateway = if self.random.one_in(3) && self.failures == 0 {
                    self.gateway
                } else {
                    self.random.index(cast.gateways)
                };
                return Wish::Connect { gateway };
            }
            Phase::Away { .. } | Phase::Connecting => return Wish::Nothing,
            Phase::Greeting | Phase::Open => {}
        }
        let oldest = self.open.first().map_or(now, |(_, since, _)| *since);
        if self.heard_at + self.habits.patience < now || oldest + 13 * SECOND < now {
            sometimes!(coverage, HalfOpen, self.begun);
            return Wish::Hang;
        }
        if self.phase != Phase::Open {
            return Wish::Nothing;
        }
        self.make(now, cast, recorder);
        self.resubscribe(now, cast, recorder);
        self.retry(now, cast, recorder);
        // Nothing is sent to a room that is still to be made: "there is no such room" would be true.
        let is_made = |room: &usize| !self.makes.iter().any(|(of, ..)| of == room);
        if let Some(place) = self.owes.iter().rposition(is_made) {
            let room = self.owes.remove(place);
            self.send_new(now, room, true, cast, recorder);
        }
        if !self.finishing && self.open.len() < self.habits.in_flight {
            self.business(now, cast, recorder, coverage);
        }
        if !self.finishing && self.random.chance(self.habits.switches) && self.random.one_in(4) {
            return Wish::Hang;
        }
        if self.out.is_empty() { Wish::Nothing } else { Wish::Send }
    }

    fn resubscribe(&mut self, now: Time, cast: &Cast, recorder: &mut Recorder) {
        let wanting: Vec<usize> = (0..self.views.len())
            .filter(|room| {
                let view = &self.views[*room];
                view.mode.is_none() && !view.asking && view.next_try <= now
            })
            .collect();
        if !wanting.is_empty() {
            let rooms = wanting.into_iter().map(|room| {
                let passive = self.random.chance(self.habits.passive) && !self.finishing;
                (room, if passive { Mode::Passive } else { Mode::Live })
            });
            let rooms: Vec<_> = rooms.collect();
            self.subscribe(now, rooms, cast, recorder);
        }
    }

    fn subscribe(&mut self, now: Time, rooms: Vec<(usize, Mode)>, cast: &Cast, recorder: &mut Recorder) {
        let call = self.call();
        let mut asked = Vec::with_capacity(rooms.len());
        for (room, mode) in &rooms {
            let view = &mut self.views[*room];
            view.asking = true;
            view.mode = None;
            let fresh = view.log.is_none();
            let start = match (fresh, self.random.below(4)) {
                (false, _) => Start::After { seq: checker::Seq(view.last), log: view.log.map(checker::Log) },
                (true, 0) => Start::Last(self.random.below(20) as u32),
                (true, 1) => Start::Unread,
                (true, _) => Start::After { seq: checker::Seq(0), log: None },
            };
            recorder.record(
                self.connection,
                What::Subscribe { call, room: checker::Room(*room as u32), start, mode: *mode },
            );
            let (after, last) = match start {
                Start::After { seq, .. } => (Some(seq.0), None),
                Start::Last(last) => (None, Some(last)),
                Start::Unread => (None, None),
            };
            asked.push(v1::SubscribeRoom {
                room: cast.rooms[*room].clone(),
                after,
                log: view.log.map(|log| format!("{log:016x}")),
                last,
                mode: Some(match mode {
                    Mode::Live => v1::Mode::Live.into(),
                    Mode::Passive => v1::Mode::Passive.into(),
                }),
            });
        }
        recorder.note(|| {
            let words: Vec<String> = asked
                .iter()
                .zip(&rooms)
                .map(|(one, (_, mode))| format!("{} after {:?} {mode:?}", one.room, one.after))
                .collect();
            format!("{} subscribes {}", self.name, words.join(", "))
        });
        self.ask(now, Command::Subscribe(v1::Subscribe { rooms: asked }), Open::Subscribe { rooms });
    }

    fn retry(&mut self, now: Time, cast: &Cast, recorder: &mut Recorder) {
        for place in 0..self.sends.len() {
            if self.open.len() >= self.habits.in_flight {
                return;
            }
            let send = &self.sends[place];
            if !send.in_flight && send.next_try <= now {
                self.try_send(now, place, cast, recorder);
            }
        }
    }

    fn try_send(&mut self, now: Time, place: usize, cast: &Cast, recorder: &mut Recorder) {
        let call = self.call();
        let send = &mut self.sends[place];
        send.in_flight = true;
        send.tries += 1;
        let message = recorder.message(&send.client_msg_id);
        recorder.record(
            self.connection,
            What::Send {
                call,
                room: checker::Room(send.room as u32),
                message,
                since: send.since.map(checker::Seq),
                content: content_of(&send.text),
            },
        );
        recorder.note(|| {
            let (since, tries) = (send.since, send.tries);
            format!(
                "{} sends {} to {} since {since:?}, try {tries}",
                self.name, send.client_msg_id, cast.rooms[send.room]
            )
        });
        let command = Command::Send(v1::Send {
            room: cast.rooms[send.room].clone(),
            client_msg_id: send.client_msg_id.clone(),
            since: send.since,
            text: Some(send.text.clone()),
            ..v1::Send::default()
        });
        let client_msg_id = send.client_msg_id.clone();
        self.ask(now, command, Open::Send { client_msg_id });
    }

    fn send_new(&mut self, now: Time, room: usize, owed: bool, cast: &Cast, recorder: &mut Recorder) {
        self.count += 1;
        // Ids are unique per sender, not over senders: half of them meet those of others.
        let client_msg_id = if self.count.is_multiple_of(2) {
            format!("m{}", self.count)
        } else {
            format!("s{}-{}", self.session, self.count)
        };
        // Two devices of one user must not meet by accident.
        let second = self.session as usize >= cast.users.len();
        let client_msg_id = if second { format!("{client_msg_id}'") } else { client_msg_id };
        let text = format!("{}.{}.{:x}", self.session, self.count, self.random.next() as u16);
        let since = (!self.random.chance(self.habits.without_since)).then_some(self.views[room].told);
        self.sends.push_back(Outgoing {
            room,
            client_msg_id,
            text,
            since,
            tries: 0,
            in_flight: false,
            next_try: now,
            unknown: false,
            acked: false,
            owed,
            first_gateway: self.gateway,
        });
        self.try_send(now, self.sends.len() - 1, cast, recorder);
    }

    fn business(&mut self, now: Time, cast: &Cast, recorder: &mut Recorder, coverage: &mut Coverage) {
        let habits = self.habits;
        let room = self.random.index(self.views.len());
        let name = || cast.rooms[room].clone();
        let at = checker::Room(room as u32);
        let mut draw = self.random.below(1_000) as u32;
        let mut is = |share: u32| {
            let hit = draw < share;
            draw = draw.wrapping_sub(share);
            hit
        };
        if is(habits.retries_of_acked) {
            if let Some(mut send) = self.done.pop_front() {
                send.next_try = now;
                send.in_flight = false;
                self.sends.push_back(send);
                self.try_send(now, self.sends.len() - 1, cast, recorder);
            }
        } else if is(habits.history) {
            let told = self.views[room].told;
            let limit = 1 + self.random.below(30) as u32;
            let (range, before, after) = match self.random.below(3) {
                0 => (Range::Newest, None, None),
                1 => {
                    let before = 1 + self.random.below(told + 2);
                    (Range::Before(checker::Seq(before)), Some(before), None)
                }
                _ => {
                    let after = self.random.below(told + 1);
                    (Range::After(checker::Seq(after)), None, Some(after))
                }
            };
            recorder.record(self.connection, What::History { call: self.call(), room: at, range, limit });
            let command = v1::History { room: name(), before, after, limit: Some(limit) };
            self.ask(now, Command::History(command), Open::History);
        } else if is(habits.marks) {
            let view = &mut self.views[room];
            if view.role == 0 || view.last == 0 {
                return;
            }
            // Sometimes a lower one: the server must not let it fall.
            let seen = if self.random.one_in(4) { self.random.between(1, view.last) } else { view.last };
            sometimes!(coverage, MarkKept, seen <= view.seen);
            view.seen = view.seen.max(seen);
            let (delivered, seen) = (Some(view.last), Some(seen));
            recorder.record(
                self.connection,
                What::Mark {
                    call: self.call(),
                    room: at,
                    delivered: delivered.map(checker::Seq),
                    seen: seen.map(checker::Seq),
                },
            );
            self.ask(now, Command::Mark(v1::Mark { room: name(), delivered, seen }), Open::Mark { room });
        } else if is(habits.members + if self.user == 0 { habits.governs } else { 0 }) {
            self.change_members(now, room, cast, recorder);
        } else if is(habits.moves) {
            let call = self.call();
            let view = &mut self.views[room];
            match view.mode {
                Some(mode) if !self.random.one_in(3) => {
                    let other = if mode == Mode::Live { Mode::Passive } else { Mode::Live };
                    self.subscribe(now, vec![(room, other)], cast, recorder);
                }
                Some(_) => {
                    view.mode = None;
                    view.next_try = now + self.random.below(2 * SECOND);
                    recorder.record(self.connection, What::Unsubscribe { call, room: at });
                    let command = Command::Unsubscribe(v1::Unsubscribe { rooms: vec![name()] });
                    self.ask(now, command, Open::Unsubscribe { room });
                }
                None => {}
            }
        } else {
            // Most of the time where it may.
            let mine: Vec<usize> = (0..self.views.len()).filter(|room| self.views[*room].role != 0).collect();
            let room =
                if mine.is_empty() || self.random.one_in(30) { room } else { *self.random.pick(&mine) };
            self.send_new(now, room, false, cast, recorder);
        }
    }

    fn change_members(&mut self, now: Time, room: usize, cast: &Cast, recorder: &mut Recorder) {
        let name = cast.rooms[room].clone();
        let other = self.random.index(cast.users.len());
        let them = cast.users[other].clone();
        let whom = checker::User(other as u32);
        // The first user made every room and stays its owner.
        let (about, command) = if self.user == 0 {
            if other == 0 {
                let command =
                    v1::UpdateRoom { room: name, name: Some(format!("n{}", self.count)), public: None };
                (Ask::Update, Command::UpdateRoom(command))
            } else {
                let draw = match self.habits.governs {
                    0 => self.random.below(5),
                    _ if self.random.one_in(7) => 0,
                    _ => 2,
                };
                match draw {
                    0 | 1 => (
                        Ask::Remove(whom),
                        Command::RemoveMember(v1::RemoveMember { room: name, user: them }),
                    ),
                    2 | 3 => (
                        Ask::Add(whom),
                        Command::AddMembers(v1::AddMembers { room: name, users: vec![them] }),
                    ),
                    _ => {
                        let role = if self.random.one_in(3) { v1::Role::Reader } else { v1::Role::Member };
                        let command = v1::SetRole { room: name, user: them, role: role.into() };
                        (Ask::SetRole(whom), Command::SetRole(command))
                    }
                }
            }
        } else if self.views[room].role == 0 {
            (Ask::Join, Command::Join(v1::Join { room: name }))
        } else if self.random.one_in(2) {
            (Ask::Leave, Command::Leave(v1::Leave { room: name }))
        } else {
            return;
        };
        recorder.note(|| format!("{} asks {about:?} in {}", self.name, cast.rooms[room]));
        let call = self.call();
        recorder.record(self.connection, What::Ask { call, room: checker::Room(room as u32), about });
        self.ask(now, command, Open::Ask { room });
    }

    /// Makes this room, with these members and itself, as soon as it can.
    pub fn shall_make(&mut self, room: usize, members: Vec<usize>) {
        self.makes.push((room, members, false));
    }

    fn make(&mut self, now: Time, cast: &Cast, recorder: &mut Recorder) {
        for place in 0..self.makes.len() {
            let (room, members, asked) = &mut self.makes[place];
            if std::mem::replace(asked, true) {
                continue;
            }
            let room = *room;
            let members = members.iter().map(|user| cast.users[*user].clone()).collect();
            recorder.record(
                self.connection,
                What::Ask { call: self.call(), room: checker::Room(room as u32), about: Ask::Create },
            );
            recorder.note(|| format!("{} makes {}", self.name, cast.rooms[room]));
            let kind = if cast.broadcast[room] { v1::RoomKind::Broadcast } else { v1::RoomKind::Group };
            let command = v1::CreateRoom {
                room: Some(cast.rooms[room].clone()),
                kind: kind.into(),
                name: Some("a room".to_owned()),
                public: Some(true),
                members,
            };
            self.ask(now, Command::CreateRoom(command), Open::Make { room });
        }
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    // ------------------------------------------------------------ what it reads

    /// Bytes from the connection. False: the server has closed it.
    pub fn read(
        &mut self,
        now: Time,
        bytes: &[u8],
        cast: &Cast,
        recorder: &mut Recorder,
        coverage: &mut Coverage,
    ) -> bool {
        self.out.clear();
        self.heard_at = now;
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(bytes);
        let mut at = 0;
        if !self.greeted && partial.len() >= GREETING.len() {
            at = GREETING.len();
            self.greeted = true;
        }
        let mut goes_on = true;
        while let Some(length) = frame_len(&partial[at..]).filter(|length| at + length <= partial.len()) {
            let frame = &partial[at..at + length];
            at += length;
            let header = match frame[1] {
                126 => 4,
                127 => 10,
                _ => 2,
            };
            let payload = &frame[header..];
            match frame[0] {
                0x82 => {
                    recorder.trace.bytes(payload);
                    match v1::ServerFrame::decode(payload) {
                        Ok(frame) => self.frame(now, frame, cast, recorder, coverage),
                        Err(error) => panic!("{}: not a ServerFrame: {error}", self.name),
                    }
                }
                0x88 => {
                    recorder.note(|| format!("{} is told to close: {:?}", self.name, &payload.get(..2)));
                    goes_on = false;
                    break;
                }
                0x89 => {
                    let mask = [7, 8, 9, 10];
                    put_frame(&mut self.out, 0x8a, mask, payload);
                }
                0x8a => {}
                other => panic!("{}: a frame that begins with {other:02x}", self.name),
            }
        }
        partial.drain(..at);
        self.partial = partial;
        goes_on
    }

    fn take_open(&mut self, id: u64) -> Option<Open> {
        let place = self.open.iter().position(|(of, ..)| *of == id)?;
        Some(self.open.remove(place).2)
    }

    fn frame(
        &mut self,
        now: Time,
        frame: v1::ServerFrame,
        cast: &Cast,
        recorder: &mut Recorder,
        coverage: &mut Coverage,
    ) {
        let body = frame.body.expect("a frame with a body");
        match frame.id {
            Some(id) => {
                let open =
                    self.take_open(id).unwrap_or_else(|| panic!("{}: a reply to {id}, not owed", self.name));
                self.reply(now, Call(id), open, body, cast, recorder, coverage);
            }
            None => self.push(now, body, cast, recorder, coverage),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one place hands all of it on")]
    fn reply(
        &mut self,
        now: Time,
        call: Call,
        open: Open,
        body: Body,
        cast: &Cast,
        recorder: &mut Recorder,
        coverage: &mut Coverage,
    ) {
        let on = self.connection;
        match (open, body) {
            (Open::Auth, Body::Auth(_)) => {
                self.phase = Phase::Open;
                self.begun = true;
                sometimes!(coverage, Resumed, self.views.iter().any(|view| view.log.is_some()));
                self.failures = 0;
                recorder.record(on, What::Begin { session: Session(self.session) });
                for view in &mut self.views {
                    view.mode = None;
                    view.barred = None;
                    view.asking = false;
                    view.next_try = now;
                }
            }
            (Open::Auth, _) => {}
            (Open::Send { client_msg_id }, body) => {
                self.send_answered(now, call, &client_msg_id, body, recorder, coverage);
            }
            (Open::Subscribe { rooms }, Body::Subscribe(reply)) => {
                for ((room, mode), told) in rooms.into_iter().zip(&reply.rooms) {
                    if told.pending == Some(true) {
                        sometimes!(coverage, Pending);
                        self.pending(room, call, mode);
                    } else {
                        self.subscribed(now, call, room, mode, told, recorder, coverage);
                    }
                }
            }
            (Open::Subscribe { rooms }, Body::Error(error)) => {
                for (room, _) in rooms {
                    self.views[room].asking = false;
                    self.views[room].next_try = now + 500 * MS;
                    let at = Some(checker::Room(room as u32));
                    recorder.record(on, What::Refused { call, room: at, code: error.code as u16 });
                }
            }
            (Open::Unsubscribe { room }, Body::Unsubscribe(_)) => {
                recorder.record(on, What::UnsubscribeDone { call, room: checker::Room(room as u32) });
            }
            (Open::History, Body::History(page)) => {
                recorder.note(|| {
                    let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
                    let gaps: Vec<(u64, u64)> = page.gaps.iter().map(|gap| (gap.from, gap.to)).collect();
                    let (name, call, head, more) = (&self.name, call.0, page.head, page.more);
                    format!("{name}: #{call} page of {seqs:?}, gaps {gaps:?}, head {head}, more {more}")
                });
                for event in &page.events {
                    let event = recorder.event(event);
                    recorder.record(on, What::PageEvent { call, event });
                }
                for gap in &page.gaps {
                    recorder.record(
                        on,
                        What::PageGap {
                            call,
                            from: checker::Seq(gap.from),
                            to: checker::Seq(gap.to),
                            expired: gap.expired == Some(true),
                        },
                    );
                }
                let log = checker::Log(u64::from_str_radix(&page.log, 16).unwrap_or_default());
                recorder.record(on, What::Page { call, head: checker::Seq(page.head), log, more: page.more });
            }
            (Open::Mark { room }, Body::Mark(marks)) => {
                let _ = room;
                recorder.record(
                    on,
                    What::Marked {
                        call,
                        marks: checker::Marks {
                            delivered: checker::Seq(marks.delivered),
                            seen: checker::Seq(marks.seen),
                            seen_n: marks.seen_n,
                        },
                    },
                );
            }
            (Open::Make { room }, body) => {
                if let Body::CreateRoom(reply) = body {
                    self.makes.retain(|(of, ..)| *of != room);
                    self.views[room].next_try = now;
                    recorder.record(on, What::Answered { call, head: Some(checker::Seq(reply.head)) });
                    return;
                }
                for (of, _, asked) in &mut self.makes {
                    *asked &= *of != room;
                }
                if let Body::Error(error) = body {
                    recorder.note(|| {
                        format!("{}: making {} refused with {}", self.name, cast.rooms[room], error.code)
                    });
                    recorder.record(on, What::Refused { call, room: None, code: error.code as u16 });
                }
            }
            (Open::Ask { room }, body) if !matches!(body, Body::Error(_)) => {
                let head = match &body {
                    Body::Join(reply) => {
                        let view = &mut self.views[room];
                        sometimes!(coverage, JoinedAgain, view.was_removed);
                        view.role = reply.role;
                        view.next_try = now;
                        Some(reply.head)
                    }
                    Body::Leave(_) => {
                        self.views[room].role = 0;
                        None
                    }
                    _ => None,
                };
                recorder.record(on, What::Answered { call, head: head.map(checker::Seq) });
            }
            (_, Body::Error(error)) => {
                recorder.note(|| format!("{}: #{} refused with {}", self.name, call.0, error.code));
                recorder.record(on, What::Refused { call, room: None, code: error.code as u16 });
            }
            (open, body) => panic!("{}: {body:?} answers {open:?} in {:?}", self.name, cast.rooms),
        }
    }

    fn send_answered(
        &mut self,
        now: Time,
        call: Call,
        client_msg_id: &str,
        body: Body,
        recorder: &mut Recorder,
        coverage: &mut Coverage,
    ) {
        let on = self.connection;
        let place = self
            .sends
            .iter()
            .position(|send| send.client_msg_id == client_msg_id)
            .expect("a send in flight is kept");
        match body {
            Body::Send(sent) => {
                let mut send = self.sends.remove(place).expect("it is there");
                sometimes!(coverage, RetryAcked, send.unknown);
                sometimes!(
                    coverage,
                    DuplicateAfterMove,
                    sent.duplicate && send.first_gateway != self.gateway
                );
                recorder.note(|| {
                    let (name, seq, twin) = (&self.name, sent.seq, sent.duplicate);
                    format!("{name} is acked {client_msg_id} at {} seq {seq}, duplicate {twin}", sent.room)
                });
                recorder.record(
                    on,
                    What::Sent {
                        call,
                        seq: checker::Seq(sent.seq),
                        at: checker::UnixMs(sent.at),
                        duplicate: sent.duplicate,
                    },
                );
                let view = &mut self.views[send.room];
                // The reply stands in the place of its event.
                if view.mode == Some(Mode::Live) {
                    view.last = view.last.max(sent.seq);
                }
                view.told = view.told.max(sent.seq);
                send.acked = true;
                send.unknown = false;
                if self.done.len() < 30 {
                    self.done.push_back(send);
                }
            }
            Body::Error(error) => {
                recorder
                    .note(|| format!("{}: send of {client_msg_id} refused with {}", self.name, error.code));
                recorder.record(on, What::Refused { call, room: None, code: error.code as u16 });
                let verdict = Code::try_from(error.code).map_or(Verdict::Unknown, Code::verdict);
                sometimes!(coverage, Unavailable, error.code == Code::Unavailable.number());
                let send = &mut self.sends[place];
                send.in_flight = false;
                send.next_try = now + self.random.exponential(200 * MS);
                send.unknown |= verdict == Verdict::Unknown;
                let gives_up =
                    (!self.finishing && self.random.one_in(12)) || error.code == Code::RetryTooOld.number();
                if verdict == Verdict::Definite || gives_up {
                    let send = self.sends.remove(place);
                    self.owes.extend(send.filter(|send| send.owed).map(|send| send.room));
                }
            }
            other => panic!("{}: {other:?} answers a send", self.name),
        }
    }

    /// Finished later by the push `subscribed`.
    fn pending(&mut self, room: usize, call: Call, mode: Mode) {
        self.open.push((PENDING | call.0, self.heard_at, Open::Subscribe { rooms: vec![(room, mode)] }));
    }

    #[expect(clippy::too_many_arguments, reason = "one place hands all of it on")]
    fn subscribed(
        &mut self,
        now: Time,
        call: Call,
        room: usize,
        mode: Mode,
        told: &v1::SubscribedRoom,
        recorder: &mut Recorder,
        coverage: &mut Coverage,
    ) {
        let at = checker::Room(room as u32);
        let view = &mut self.views[room];
        view.asking = false;
        if let Some(error) = &told.error {
            view.mode = None;
            view.next_try = now + 300 * MS + self.random.below(SECOND);
            if error.code == Code::UnknownRoom.number() || error.code == Code::NotAMember.number() {
                view.role = 0;
                view.barred = Some(now);
            }
            recorder
                .note(|| format!("{}: subscribe of {} refused with {}", self.name, told.room, error.code));
            let what = What::Refused { call, room: Some(at), code: error.code as u16 };
            recorder.record(self.connection, what);
            return;
        }
        let log = u64::from_str_radix(&told.log, 16).unwrap_or_default();
        recorder.note(|| {
            let v1::SubscribedRoom { room, head, from, role, gap, reset, .. } = told;
            let name = &self.name;
            format!("{name} is subscribed to {room}: head {head}, from {from}, role {role}, gap {gap:?}, reset {reset:?}")
        });
        recorder.record(
            self.connection,
            What::Subscribed {
                call,
                room: at,
                reply: Box::new(checker::Subscribed {
                    log: checker::Log(log),
                    head: checker::Seq(told.head),
                    n: told.n,
                    from: checker::Seq(told.from),
                    role: told.role as u8,
                    marks: checker::Marks {
                        delivered: checker::Seq(told.delivered),
                        seen: checker::Seq(told.seen),
                        seen_n: told.seen_n,
                    },
                    gap: told
                        .gap
                        .as_ref()
                        .map(|gap| checker::Gap { from: checker::Seq(gap.from), to: checker::Seq(gap.to) }),
                    reset: told.reset == Some(true),
                }),
            },
        );
        sometimes!(coverage, GapTold, told.gap.is_some());
        sometimes!(coverage, RemovedWhileAway, told.role == 0 && view.role != 0);
        if view.log != Some(log) || told.reset == Some(true) {
            view.log = Some(log);
            view.last = 0;
        }
        view.mode = Some(mode);
        view.barred = None;
        view.role = told.role;
        if mode == Mode::Live {
            view.last = view.last.max(told.from.saturating_sub(1));
        }
        view.told = view.told.max(told.head);
    }

    fn push(&mut self, now: Time, body: Body, cast: &Cast, recorder: &mut Recorder, coverage: &mut Coverage) {
        let on = self.connection;
        match body {
            Body::Event(event) => {
                let Some(room) = cast.room(&event.room) else { panic!("an event of {}", event.room) };
                recorder.note(|| format!("{} gets {}", self.name, Words(&event)));
                let what = What::Event { room: checker::Room(room as u32), event: recorder.event(&event) };
                recorder.record(on, what);
                let view = &mut self.views[room];
                view.last = view.last.max(event.seq);
                view.told = view.told.max(event.seq);
                if let Some(v1::event::Kind::RoleChanged(changed)) = &event.kind
                    && changed.user == cast.users[self.user]
                {
                    view.role = changed.role;
                }
            }
            Body::Gap(gap) => {
                let Some(room) = cast.room(&gap.room) else { panic!("a gap of {}", gap.room) };
                sometimes!(coverage, GapTold);
                recorder
                    .note(|| format!("{} gets a gap of {}: {} to {}", self.name, gap.room, gap.from, gap.to));
                recorder.record(
                    on,
                    What::Gap {
                        room: checker::Room(room as u32),
                        from: checker::Seq(gap.from),
                        to: checker::Seq(gap.to),
                        expired: gap.expired == Some(true),
                    },
                );
                let view = &mut self.views[room];
                view.last = view.last.max(gap.to);
                view.told = view.told.max(gap.to);
            }
            Body::Head(head) => {
                let Some(room) = cast.room(&head.room) else { panic!("a head of {}", head.room) };
                recorder.record(
                    on,
                    What::Head { room: checker::Room(room as u32), head: checker::Seq(head.head), n: head.n },
                );
                let view = &mut self.views[room];
                view.told = view.told.max(head.head);
            }
            Body::Marks(push) => {
                let Some(room) = cast.room(&push.room) else { panic!("marks of {}", push.room) };
                for marks in &push.marks {
                    let user = recorder.history.names.user(&marks.user);
                    recorder.record(
                        on,
                        What::Marks {
                            room: checker::Room(room as u32),
                            user,
                            delivered: checker::Seq(marks.delivered),
                            seen: checker::Seq(marks.seen),
                        },
                    );
                }
            }
            Body::Subscribed(told) => {
                let Some(room) = cast.room(&told.room) else { panic!("subscribed to {}", told.room) };
                // The oldest one that is pending for this room.
                let place = self.open.iter().position(|(id, _, open)| {
                    id & PENDING != 0
                        && matches!(open, Open::Subscribe { rooms } if rooms.iter().any(|(of, _)| *of == room))
                });
                let Some(place) = place else { panic!("{}: {} was not pending", self.name, told.room) };
                let (id, _, open) = self.open.remove(place);
                let Open::Subscribe { rooms } = open else { return };
                for (room, mode) in rooms {
                    self.subscribed(now, Call(id & !PENDING), room, mode, &told, recorder, coverage);
                }
            }
            Body::Unsubscribed(gone) => {
                let Some(room) = cast.room(&gone.room) else { panic!("unsubscribed from {}", gone.room) };
                recorder.note(|| format!("{} is unsubscribed from {}: {}", self.name, gone.room, gone.code));
                recorder.record(
                    on,
                    What::Unsubscribed { room: checker::Room(room as u32), code: gone.code as u16 },
                );
                let view = &mut self.views[room];
                sometimes!(coverage, RemovedLive, view.mode == Some(Mode::Live));
                sometimes!(coverage, RemovedPassive, view.mode == Some(Mode::Passive));
                view.mode = None;
                view.role = 0;
                view.was_removed = true;
                view.next_try = now + 300 * MS + self.random.below(2 * SECOND);
            }
            Body::Room(room) => {
                if let Some(room) = cast.room(&room.room) {
                    self.views[room].next_try = now;
                }
            }
            Body::RoomGone(_) | Body::TokenExpiring(_) | Body::Reconnect(_) => {}
            other => panic!("{}: {other:?} is not a push", self.name),
        }
    }
}

/// Marks the entries of subscriptions that a push will finish.
const PENDING: u64 = 1 << 60;
