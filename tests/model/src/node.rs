//! One run of one node, as the explorer moves it: the real slot machine, gate and log, and between them what the shard's
//! worker and a room of it do with their answers.
//!
//! Holds no protocol rule: what may be said, written or served, and when, is decided by `Ownership`, `Gate` and `Log`. What
//! is here carries their actions out, one room in one slot.

use banyan_proto::id::{Epoch, Incarnation, LogId, Origin, Seq, Tenure, UnixMs, UserId};
use banyan_proto::plant::{self, Bug};
use banyan_router::slot_key::{NodeId, Peer, SlotKey};
use banyan_router::slot_owner::{self, Ownership, Standing};
use banyan_shard_core::gate::{Ended, Gate, ReadId, Why};
use banyan_shard_core::log::{self, Handed, Log, Which};
use banyan_shard_core::room::Now;
use banyan_storage::Outcome;
use banyan_storage::log_store::{Said, Write};
use banyan_storage::{Derived, MemberRow, Row};
use bytes::Bytes;
use std::sync::Arc;

use crate::bits::Bits;
use crate::store::{Mutation, ReadFor, Table};
use crate::universe::Universe;
use crate::world::{Pass, World};

/// What an event of the log is about. One user's membership is enough to see derived rows go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Message,
    Removed,
    Joined,
}

/// An event, told apart by where and when it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event {
    pub kind: Kind,
    pub run: u8,
    pub epoch: Epoch,
    pub opening: u32,
    pub seq: Seq,
}

/// What goes through the gate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Utterance {
    /// The log as it is told to somebody; `asked`: how much had been said by anybody when the question came.
    Log { log: u32, asked: u8 },
    /// The log of the room of this opening waits for a barrier.
    Wake { tenure: Tenure, opening: u32 },
    /// `rooms.said` is written behind a barrier.
    Rests(Said),
}

/// A request of the slot machine that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request {
    Fence { incarnation: Incarnation, what: Bits },
    Put { row: banyan_router::slot_key::OwnerRow, what: Bits },
    Cas { expect: Option<SlotKey>, new: SlotKey },
    ReadOwners,
    ReadOwnFence,
}

/// State of the room that an old owner passed on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Passed {
    pub epoch: Epoch,
    pub complete: bool,
    /// `None`: it was not open in full there.
    pub room: Option<(Handed, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reading {
    Segments,
    Said,
    Rows(Vec<banyan_storage::log_store::Span>, banyan_storage::Range, banyan_storage::ReadLimit),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Room {
    pub log: Log,
    pub opening: u32,
    /// What this owner takes the log to be.
    pub entries: u32,
    /// What it will be when the append in flight is done.
    pub next: Option<u32>,
    pub reading: Option<Reading>,
    /// The mutations of each write under way, by [`Which`].
    pub writes: [Option<Bits>; 3],
    /// The newest rows, while the older ones are read.
    pub newest: Option<Vec<Row>>,
    /// Opened, and the members are read.
    pub usable: bool,
    /// Members are being read.
    pub members: bool,
    /// The head at which members were changed last without an event.
    pub counted: Seq,
    /// Only for a planted bug: opened before the slot was owned.
    pub early: bool,
    /// It was to be opened for reads only.
    pub for_reads: bool,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub run: u8,
    pub peer: Peer,
    pub own: Ownership,
    pub gate: Gate<Utterance>,
    pub requests: Vec<Request>,
    pub serving: Option<Tenure>,
    pub draining: Option<u32>,
    /// Drains so far.
    pub drains: u32,
    pub passed: Vec<Passed>,
    /// What the room is opened with.
    pub start: Start,
    /// Openings of the room under this tenure.
    pub openings: u32,
    /// Appends under this tenure.
    pub appended: u8,
    pub room: Option<Box<Room>>,
    /// Fenced, or stopped for good.
    pub dead: bool,
    /// Runs of this node under one incarnation: more than one only with a planted bug.
    pub lives: u8,
}

/// How the room is to be opened under the present tenure.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Start {
    Full,
    /// Every life of the room under this tenure has ended when it was idle.
    Again,
    /// It was open in full at the old owner.
    HandedOver,
    Passed(Box<Handed>, u32),
    /// An open has failed in a way that will not change.
    Never,
}

/// Something happens to a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    Slot(slot_owner::Input),
    SlotTick,
    /// The target says that the slot is this node's, whose watch has shown it this.
    Take(Option<SlotKey>),
    /// Request number so-and-so has ended.
    Ended(u8, slot_owner::Input),
    Mail(Passed),
    Open {
        read_only: bool,
    },
    Reopen,
    Rest {
        stays: bool,
    },
    Ask {
        said: u8,
    },
    Append {
        kinds: [Option<Kind>; 2],
        window: u8,
    },
    /// A join or leave that no event tells of.
    Change,
    Wrote {
        which: Which,
        outcome: Outcome,
    },
    /// The read of the log sees this.
    Read(Bits),
    ReadSaid(Option<Said>),
    Members(Bits),
    /// A fence read begins.
    GateBegins,
    GateEnds {
        read: u8,
        fenced: bool,
    },
    /// A fence read begins and ends.
    Barrier {
        fenced: bool,
    },
    LogTick,
    /// Only for planted bugs.
    Prefetch {
        key: SlotKey,
    },
    Restart,
}

/// What a node wants of the world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Ask {
    Issue(Bits),
    Begin(ReadFor),
    Forget(ReadFor),
    ForgetAll,
    ReadKey,
    ReadNode(Incarnation),
    Cas {
        expect: Option<SlotKey>,
        new: SlotKey,
    },
    /// The request with this number is under way.
    Request(u8),
    Say {
        log: u32,
        asked: u8,
    },
    Send {
        to: Incarnation,
        passed: Passed,
    },
    Freeze(String),
    /// The log says so, the members say so.
    View {
        log: u8,
        members: u8,
    },
    Violation(String),
    /// Worth counting.
    Cover(&'static str),
}

pub fn now() -> Now {
    Now { mono_ms: 0, unix: UnixMs(0) }
}

pub fn incarnation(run: u8) -> Incarnation {
    Incarnation(u128::from(run) + 1)
}

pub fn run_of(incarnation: Incarnation) -> u8 {
    (incarnation.0 - 1) as u8
}

pub fn name(run: u8) -> char {
    char::from(b'A' + run)
}

fn slot_limits() -> slot_owner::Limits {
    slot_owner::Limits::default()
}

impl Node {
    pub fn new(run: u8) -> Self {
        let node = NodeId::parse(&name(run).to_string()).expect("a letter is a node id");
        let peer = Peer { node, incarnation: incarnation(run) };
        Self {
            run,
            own: Ownership::new(peer.clone(), slot_limits()),
            peer,
            gate: Gate::new(),
            requests: Vec::new(),
            serving: None,
            draining: None,
            drains: 0,
            passed: Vec::new(),
            start: Start::Full,
            openings: 0,
            appended: 0,
            room: None,
            dead: false,
            lives: 1,
        }
    }

    pub fn is_idle(&self) -> bool {
        !self.dead && self.own.standing() == Standing::Idle
    }
}

/// Applies an input to a node; what it wants goes to `asks`.
#[derive(Debug)]
pub struct Turn<'a> {
    pub universe: &'a mut Universe,
    pub world: &'a World,
    pub node: &'a mut Node,
    pub asks: &'a mut Vec<Ask>,
}

impl Turn<'_> {
    pub fn step(&mut self, input: Input) {
        match input {
            Input::Slot(input) => self.slot(0, input),
            Input::SlotTick => {
                if let Some(at) = self.node.own.next_deadline() {
                    self.slot(at, slot_owner::Input::Tick);
                }
            }
            Input::Take(key) => {
                self.slot(0, slot_owner::Input::Key(key));
                if self.node.is_idle() {
                    self.slot(0, slot_owner::Input::Take);
                }
            }
            Input::Ended(at, input) => {
                self.node.requests.remove(usize::from(at));
                self.slot(0, input);
            }
            Input::Mail(passed) => {
                let (epoch, complete) = (passed.epoch, passed.complete);
                self.node.passed.push(passed);
                self.node.passed.sort_by_key(|passed| (passed.epoch, passed.complete));
                self.slot(0, slot_owner::Input::StatePassed { epoch, complete });
            }
            Input::Open { read_only } => self.open(read_only),
            Input::Reopen => {
                self.drop_room();
                self.node.start = Start::Full;
                self.open(false);
            }
            Input::Rest { stays } => self.rest(stays),
            Input::Ask { said } => {
                if let Some(room) = self.node.room.as_deref() {
                    let utterance = Utterance::Log { log: room.entries, asked: said };
                    self.node.gate.say(0, Why::Asked, utterance);
                }
            }
            Input::Append { kinds, window } => self.append(kinds, window),
            Input::Change => {
                let Some(room) = self.node.room.as_deref_mut() else { return };
                let head = room.log.head();
                room.counted = head;
                let mut out = log::Actions::new();
                room.log.change(Derived { room: None, members: vec![member(true, head)] }, &mut out);
                self.log_actions(out);
            }
            Input::Wrote { which, outcome } => {
                if let Some(room) = self.node.room.as_deref_mut() {
                    room.writes[which as usize] = None;
                    self.log(now(), log::Input::Wrote { which, outcome });
                }
            }
            Input::Read(seen) => self.read(&seen),
            Input::ReadSaid(said) => self.log_read(log::Input::Said(Ok(said))),
            Input::Members(seen) => self.members(&seen),
            Input::GateBegins => {
                // Reads overlap when time passes between them; not for ever, or there would be no end of times.
                let overlaps = self.world.overlaps as u64;
                let later = self.node.gate.next_deadline().filter(|at| overlaps > 1 && *at <= 2 * overlaps);
                if let Some(ReadId(read)) = self.node.gate.begin(later.unwrap_or(0)) {
                    self.asks.push(Ask::Begin(ReadFor::Gate(read)));
                }
            }
            Input::GateEnds { read, fenced } => self.gate_ends(ReadId(read), fenced),
            Input::Barrier { fenced } => {
                if let Some(read) = self.node.gate.begin(0) {
                    self.gate_ends(read, fenced);
                }
            }
            Input::LogTick => {
                let at = self.node.room.as_deref().and_then(|room| room.log.next_deadline());
                if let Some(mono_ms) = at {
                    self.log(Now { mono_ms, ..now() }, log::Input::Tick);
                }
            }
            Input::Prefetch { key } => {
                let tenure =
                    Tenure { epoch: Epoch(key.epoch.0 + 1), incarnation: self.node.peer.incarnation };
                self.new_room(tenure, log::Opening::ReadOnly { again: false }, 0);
                if let Some(room) = self.node.room.as_deref_mut() {
                    room.early = true;
                }
            }
            Input::Restart => {
                let lives = self.node.lives + 1;
                *self.node = Node { lives, ..Node::new(self.node.run) };
                self.asks.push(Ask::ForgetAll);
            }
        }
        self.drained();
    }

    // ---------------------------------------------------------------- the slot

    fn slot(&mut self, now_ms: u64, input: slot_owner::Input) {
        let mut out = Vec::new();
        self.node.own.handle(now_ms, input, &mut out);
        for action in out {
            self.slot_action(action);
        }
        if self.node.own.standing() == Standing::Dead {
            self.die();
        }
    }

    fn request(&mut self, request: Request) {
        self.node.requests.push(request);
        // A handful at most.
        self.asks.push(Ask::Request((self.node.requests.len() - 1) as u8));
    }

    fn slot_action(&mut self, action: slot_owner::Action) {
        use slot_owner::Action;
        match action {
            Action::ReadKey => self.asks.push(Ask::ReadKey),
            Action::ReadNode { incarnation } => self.asks.push(Ask::ReadNode(incarnation)),
            Action::WriteFence { incarnation } => {
                let what = self.issue(Mutation::Fence(run_of(incarnation)));
                self.request(Request::Fence { incarnation, what });
            }
            Action::Cas { expect, new } => {
                self.asks.push(Ask::Cas { expect: expect.clone(), new: new.clone() });
                self.request(Request::Cas { expect, new });
            }
            Action::PutOwner { row, closes } => {
                let mut what = Bits::EMPTY;
                for mutation in closes.map(Mutation::Closed).into_iter().chain([if row.closed {
                    Mutation::Closed(row.tenure)
                } else {
                    Mutation::Owner(row.tenure)
                }]) {
                    what = what.or(&self.issue(mutation));
                }
                self.request(Request::Put { row, what });
            }
            Action::ReadOwners => {
                self.asks.push(Ask::Begin(ReadFor::Owners));
                self.request(Request::ReadOwners);
            }
            Action::ReadOwnFence => {
                self.asks.push(Ask::Begin(ReadFor::OwnFence));
                self.request(Request::ReadOwnFence);
            }
            Action::Serve { tenure, opening } => self.serve(tenure, opening),
            Action::Drain { drain } => {
                self.node.draining = Some(drain);
                self.node.drains = drain;
                if self.node.room.as_deref().is_some_and(|room| !room.log.is_open_in_full()) {
                    self.drop_room();
                }
            }
            Action::SendState { to, epoch, complete } => {
                let room =
                    self.node.room.as_deref().and_then(|room| Some((room.log.hand_over()?, room.entries)));
                let passed = Passed { epoch, complete, room };
                self.asks.push(Ask::Send { to: to.incarnation, passed });
            }
            Action::Resume { tenure } => self.resume(tenure),
            Action::Release { .. } => {
                self.drop_room();
                self.node.serving = None;
                self.node.draining = None;
                self.node.start = Start::Full;
            }
            Action::Freeze { why } => self.asks.push(Ask::Freeze(format!("{why:?}"))),
            Action::Dead => {}
        }
    }

    fn serve(&mut self, tenure: Tenure, opening: slot_owner::Opening) {
        let early = self.node.room.as_deref().is_some_and(|room| room.early);
        if !early {
            self.drop_room();
        }
        self.begin_tenure(tenure);
        self.node.openings = u32::from(early);
        self.node.start = match opening {
            slot_owner::Opening::Full => Start::Full,
            slot_owner::Opening::HandedOver { state } => {
                let passed = self.node.passed.iter().rev().find(|passed| passed.epoch == state);
                match (passed.and_then(|passed| passed.room.clone()), self.world.pass) {
                    (Some((handed, entries)), Pass::State) => Start::Passed(Box::new(handed), entries),
                    (Some(_), Pass::Names) => Start::HandedOver,
                    _ if plant::is(Bug::HandoffUnopenedRoomSkips) => Start::HandedOver,
                    _ => Start::Full,
                }
            }
        };
        self.node.passed.retain(|passed| passed.epoch > tenure.epoch);
        if !self.world.read_open && !early {
            self.open(false);
        }
    }

    fn begin_tenure(&mut self, tenure: Tenure) {
        self.node.serving = Some(tenure);
        self.node.draining = None;
        self.node.openings = 0;
        self.node.appended = 0;
    }

    fn resume(&mut self, tenure: Tenure) {
        if self.node.serving == Some(tenure) {
            self.node.draining = None;
            if self.node.room.is_none() && !self.world.read_open {
                self.open(false);
            }
            return;
        }
        let room = self.node.room.as_deref();
        let kept = room.and_then(|room| Some((room.log.hand_over()?, room.entries)));
        self.asks.push(Ask::Cover("goes on under an epoch of its own"));
        self.drop_room();
        self.begin_tenure(tenure);
        self.node.start = match kept {
            Some((handed, entries)) => Start::Passed(Box::new(handed), entries),
            None => Start::Full,
        };
        if !self.world.read_open {
            self.open(false);
        }
    }

    /// Every append is complete and everything said has passed.
    fn drained(&mut self) {
        let Some(drain) = self.node.draining else { return };
        let busy = self.node.room.as_deref().is_some_and(|room| !room.log.is_idle());
        if busy || !self.node.gate.is_empty() || self.node.dead {
            return;
        }
        if matches!(self.node.own.standing(), Standing::Changing) {
            self.slot(0, slot_owner::Input::Drained { drain });
        }
    }

    fn die(&mut self) {
        self.asks.push(Ask::Cover("dead by its own fence"));
        self.asks.push(Ask::ForgetAll);
        *self.node = Node { dead: true, lives: self.node.lives, ..Node::new(self.node.run) };
    }

    // ---------------------------------------------------------------- the gate

    fn gate_ends(&mut self, read: ReadId, fenced: bool) {
        let mut released = Vec::new();
        let ended = self.node.gate.answered(0, read, Ok(fenced), &mut released);
        for utterance in released {
            self.uttered(&utterance);
        }
        if ended == Ended::Fenced {
            self.slot(0, slot_owner::Input::Fenced);
            self.die();
        }
    }

    fn uttered(&mut self, utterance: &Utterance) {
        match *utterance {
            Utterance::Log { log, asked } => self.asks.push(Ask::Say { log, asked }),
            Utterance::Wake { tenure, opening } => {
                let here = self.node.serving == Some(tenure)
                    && self.node.room.as_deref().is_some_and(|room| room.opening == opening);
                if here {
                    self.log(now(), log::Input::Passed);
                }
            }
            Utterance::Rests(said) => {
                let _said = self.issue(Mutation::Said(said));
            }
        }
    }

    // ---------------------------------------------------------------- the room

    fn drop_room(&mut self) {
        let Some(room) = self.node.room.take() else { return };
        if room.reading.is_some() {
            self.asks.push(Ask::Forget(ReadFor::Log));
        }
        if room.members {
            self.asks.push(Ask::Forget(ReadFor::Members));
        }
    }

    fn open(&mut self, read_only: bool) {
        let Some(tenure) = self.node.serving else { return };
        let (how, entries) = match std::mem::replace(&mut self.node.start, Start::Full) {
            Start::Passed(handed, entries) => {
                self.asks.push(Ask::Cover("opens from passed state"));
                (log::Opening::Passed(handed), entries)
            }
            Start::HandedOver => {
                self.asks.push(Ask::Cover("opens a room that was open there"));
                (log::Opening::HandedOver, 0)
            }
            Start::Full if read_only => (log::Opening::ReadOnly { again: false }, 0),
            Start::Again if read_only => (log::Opening::ReadOnly { again: true }, 0),
            Start::Again => {
                self.asks.push(Ask::Cover("goes on in its own segment"));
                (log::Opening::Again, 0)
            }
            Start::Full => (log::Opening::Full, 0),
            Start::Never => {
                self.node.start = Start::Never;
                return;
            }
        };
        if let Some(room) = self.node.room.as_deref_mut() {
            // From reads only to in full.
            debug_assert!(room.log.is_read_open());
            room.usable = false;
            let mut out = log::Actions::new();
            room.log.open(now(), how, &mut out);
            return self.log_actions(out);
        }
        self.new_room(tenure, how, entries);
    }

    fn new_room(&mut self, tenure: Tenure, how: log::Opening, entries: u32) {
        let opening = self.node.openings;
        let for_reads = matches!(how, log::Opening::ReadOnly { .. });
        self.node.openings += 1;
        let mut log = Log::new(tenure, opening, LogId(tenure.epoch.0), Arc::clone(&self.universe.limits));
        let mut out = log::Actions::new();
        log.open(now(), how, &mut out);
        self.node.room = Some(Box::new(Room {
            log,
            opening,
            entries,
            next: None,
            reading: None,
            writes: [None; 3],
            newest: None,
            usable: false,
            members: false,
            counted: Seq(0),
            early: false,
            for_reads,
        }));
        self.log_actions(out);
    }

    fn rest(&mut self, stays: bool) {
        let Some(said) = self.node.room.as_deref().and_then(|room| room.log.said()) else { return };
        if plant::is(Bug::SaidWithoutBarrier) {
            let _said = self.issue(Mutation::Said(said));
        } else {
            self.node.gate.say(0, Why::Stored, Utterance::Rests(said));
        }
        if !stays {
            self.drop_room();
            self.node.start = if self.world.goes_on { Start::Again } else { Start::Full };
        }
    }

    fn append(&mut self, kinds: [Option<Kind>; 2], window: u8) {
        let (run, tenure) = (self.node.run, self.node.serving);
        let (Some(room), Some(tenure)) = (self.node.room.as_deref_mut(), tenure) else { return };
        let first = room.log.head().next();
        let mut entries = self.universe.logs.get(room.entries).clone();
        let mut rows = Vec::new();
        let mut derived = None;
        for (seq, kind) in (first.0..).zip(kinds.into_iter().flatten()) {
            let event = Event { kind, run, epoch: tenure.epoch, opening: room.opening, seq: Seq(seq) };
            let number = self.universe.events.intern(event);
            entries.push(number as u16);
            if kind != Kind::Message {
                derived = Some(Derived { room: None, members: vec![member(kind == Kind::Joined, Seq(seq))] });
            }
            rows.push(Row {
                seq: Seq(seq),
                batch_first: first,
                n: seq,
                origin: Origin(0),
                event: Bytes::copy_from_slice(&number.to_le_bytes()),
                derived: None,
            });
        }
        if let Some(last) = rows.last_mut() {
            last.derived = derived.map(Arc::new);
        }
        room.next = Some(self.universe.logs.intern(entries));
        self.node.appended += 1;
        let at = UnixMs(u64::from(window) * self.universe.limits.window_ms);
        let mut out = log::Actions::new();
        room.log.append(Now { unix: at, ..now() }, rows.into(), &mut out);
        self.log_actions(out);
    }

    fn log(&mut self, now: Now, input: log::Input) {
        let Some(room) = self.node.room.as_deref_mut() else { return };
        let mut out = log::Actions::new();
        room.log.handle(now, input, &mut out);
        self.log_actions(out);
    }

    fn log_read(&mut self, input: log::Input) {
        if let Some(room) = self.node.room.as_deref_mut() {
            room.reading = None;
            self.log(now(), input);
        }
    }

    /// The read that is under way sees this.
    fn read(&mut self, seen: &Bits) {
        let Some(room) = self.node.room.as_deref_mut() else { return };
        let input = match &room.reading {
            Some(Reading::Segments) => log::Input::Segments(Ok(self.universe.records(seen))),
            Some(Reading::Rows(spans, range, limit)) => {
                let mut page = self.universe.page(seen, spans, *range, *limit);
                if let Some(newest) = room.newest.take() {
                    room.reading = None;
                    page.rows.extend(newest);
                    return self.whole(&page.rows);
                }
                log::Input::Rows(Ok(page))
            }
            Some(Reading::Said) | None => return,
        };
        self.log_read(input);
    }

    fn members(&mut self, seen: &Bits) {
        let members = self.universe.member(seen);
        let Some(room) = self.node.room.as_deref_mut() else { return };
        room.members = false;
        room.usable = true;
        let log = self.universe.fold(room.entries);
        self.asks.push(Ask::View { log, members });
    }

    fn log_actions(&mut self, actions: log::Actions) {
        use log::Action;
        for action in actions {
            let Some(room) = self.node.room.as_deref_mut() else { return };
            if room.early && matches!(action, Action::Write { .. } | Action::Opened { .. } | Action::Absent) {
                // Not even who has the bug opens it in full so early.
                return self.drop_room();
            }
            match action {
                Action::ReadSegments => self.begin(Reading::Segments),
                Action::ReadSaid => self.begin(Reading::Said),
                Action::ReadRows { spans, range, limit } => self.begin(Reading::Rows(spans, range, limit)),
                Action::Write { which, write } => {
                    let what = self.write(write);
                    if let Some(room) = self.node.room.as_deref_mut() {
                        room.writes[which as usize] = Some(what);
                    }
                }
                Action::Barrier => {
                    let opening = room.opening;
                    if let Some(tenure) = self.node.serving {
                        self.node.gate.say(0, Why::Stored, Utterance::Wake { tenure, opening });
                    }
                }
                Action::Opened { rows } => {
                    self.asks.push(Ask::Cover("opened in full"));
                    if room.for_reads {
                        self.asks.push(Ask::Cover("cannot be opened for reads"));
                    }
                    self.opened(&rows);
                }
                Action::ReadOpened { rows } => {
                    self.asks.push(Ask::Cover("opened for reads"));
                    self.opened(&rows);
                }
                Action::Absent => self.opened(&[]),
                Action::OpenFailed(log::NotOpened::Superseded) => {
                    self.asks.push(Ask::Cover("finds a later owner's record"));
                    self.drop_room();
                    self.node.start = Start::Never;
                }
                Action::OpenFailed(why) => {
                    let name = name(self.node.run);
                    self.asks.push(Ask::Violation(format!("{name} cannot open the room: {why:?}")));
                }
                Action::Appended => {
                    if let Some(next) = room.next.take() {
                        room.entries = next;
                        self.node.gate.say(0, Why::Stored, Utterance::Log { log: next, asked: 0 });
                    }
                }
                Action::NotAppended(_) => room.next = None,
                Action::Changed | Action::NotChanged(_) => {}
            }
        }
    }

    fn begin(&mut self, reading: Reading) {
        if let Some(room) = self.node.room.as_deref_mut() {
            room.reading = Some(reading);
        }
        self.asks.push(Ask::Begin(ReadFor::Log));
    }

    /// The newest rows are there. What lies below them is read as a room would read history.
    fn opened(&mut self, rows: &[Row]) {
        let Some(room) = self.node.room.as_deref_mut() else { return };
        let Some(first) = rows.first().map(|row| row.seq).filter(|first| *first > Seq(1)) else {
            return self.whole(rows);
        };
        let spans = room.log.spans(Seq(1), Seq(first.0 - 1));
        room.newest = Some(rows.to_vec());
        let range = banyan_storage::Range::after(Seq(0));
        let limit = banyan_storage::ReadLimit { events: 64, bytes: 1 << 20 };
        self.begin(Reading::Rows(spans, range, limit));
    }

    fn whole(&mut self, rows: &[Row]) {
        let entries = self.universe.entries(rows);
        let Some(room) = self.node.room.as_deref_mut() else { return };
        // After passed state the rows came with it.
        if !rows.is_empty() || room.log.head() == Seq(0) {
            room.entries = entries;
            if !rows.iter().zip(1..=room.log.head().0).all(|(row, seq)| row.seq.0 == seq)
                || rows.len() as u64 != room.log.head().0
            {
                let log = self.universe.log_text(entries);
                let text =
                    format!("{} opens at head {} and reads {log}", name(self.node.run), room.log.head());
                self.asks.push(Ask::Violation(text));
            }
        }
        room.early = false;
        if self.world.changes {
            room.members = true;
            self.asks.push(Ask::Begin(ReadFor::Members));
        } else {
            room.usable = true;
        }
    }

    // ---------------------------------------------------------------- writes

    fn issue(&mut self, mutation: Mutation) -> Bits {
        let what = Bits::one(self.universe.mutation(mutation));
        self.asks.push(Ask::Issue(what));
        what
    }

    fn write(&mut self, write: Write) -> Bits {
        match write {
            Write::Record(record) => self.issue(Mutation::Record(*record)),
            Write::Rows { segment, rows, .. } if self.world.torn => {
                let mut what = Bits::EMPTY;
                for row in rows.iter() {
                    what = what.or(&self.issue(Mutation::Rows { segment, rows: vec![row.clone()] }));
                }
                what
            }
            Write::Rows { segment, rows, .. } => self.issue(Mutation::Rows { segment, rows: rows.to_vec() }),
            Write::Derived(derived) => self.issue(Mutation::Derived(*derived)),
            Write::Said(said) => self.issue(Mutation::Said(said)),
        }
    }
}

pub fn member(joined: bool, changed: Seq) -> MemberRow {
    MemberRow {
        user: UserId::parse("x").expect("a letter is a user id"),
        name: String::new(),
        role: u8::from(joined),
        joined_seq: Seq(0),
        left_seq: None,
        out: Vec::new(),
        changed,
    }
}

/// The table that a read of this node looks into, and the part of it that can matter.
pub fn table_of(universe: &Universe, node: &Node, what: ReadFor) -> Bits {
    match what {
        ReadFor::Log => match node.room.as_deref().and_then(|room| room.reading.as_ref()) {
            Some(Reading::Segments) => universe.table(Table::Segments),
            Some(Reading::Said) => universe.table(Table::Said),
            Some(Reading::Rows(spans, ..)) => universe.rows_in(spans),
            None => Bits::EMPTY,
        },
        ReadFor::Members => universe.table(Table::Derived),
        ReadFor::Owners => universe.table(Table::Owners),
        ReadFor::OwnFence | ReadFor::Gate(_) => universe.fence_of(node.run),
    }
}
