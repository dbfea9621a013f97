//! A world of rooms: the real `Room` and `Gate` at owners that follow each other by fences, a client that sends one message
//! until it has an answer, and somebody who removes that client and lets it in again.
//!
//! How owners follow each other is explored with the slot machine elsewhere (`explore.rs`); here each takes the room from
//! the one before it: fence, awaited, then open. What the gateway does with a refusal (an older owner's does not count once
//! the message was handed to a newer one) and with `since` (the head known at the first try) is part of the client here.

use std::rc::Rc;
use std::sync::Arc;

use banyan_proto::codes::{Code, Verdict};
use banyan_proto::id::{Epoch, LogId, Origin, RoomId, SegmentId, Tenure, UnixMs, UserId};
use banyan_proto::link::{Answer, LinkId, Person, RoomCall, RoomCommand, Ticket};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_proto::v1::event::Kind;
use banyan_shard_core::config::Config;
use banyan_shard_core::gate::{Gate, Why};
use banyan_shard_core::log::{self, Limits, Log, Which};
use banyan_shard_core::room::{Action, Input, Now, Room, RoomRead, Start};
use banyan_storage::Outcome;
use banyan_storage::log_store::{SegmentRecord, Span, Write};
use banyan_storage::{Derived, Marks, MemberRow, Page, Range, ReadLimit, RoomRow, Row};
use hashbrown::{HashMap, HashSet};
use prost::Message as _;

use crate::bits::Bits;
use crate::intern::Interner;
use crate::node::{incarnation, name};
use crate::search::{Space, Steps, Violation, hash128};
use crate::store::{Model, Mutation, ReadFor, Store, TABLES, Table, page};

const OWNERS_MAX: usize = 4;
/// The id of the one message.
const MESSAGE: &str = "m";
/// Answers to the commands of the operator.
const OPERATOR: u64 = 100;

#[derive(Debug, Clone)]
pub struct RoomWorld {
    pub name: &'static str,
    pub about: &'static str,
    pub owners: u8,
    /// The client sends.
    pub sends: bool,
    /// It is removed, once.
    pub removes: bool,
    /// It is let in again, once.
    pub adds: bool,
    /// Tries of the message that one owner may get.
    pub tries: u8,
    /// The operator says something: one more event.
    pub talks: bool,
    /// Newest events that an open reads; a twin may lie below them.
    pub tail: usize,
    /// A refusal takes its time from the owner to the client.
    pub late: bool,
    /// Rooms come to rest, and are opened for reads.
    pub rests: bool,
    pub quick: bool,
}

const BASE: RoomWorld = RoomWorld {
    name: "",
    about: "",
    owners: 2,
    sends: true,
    removes: false,
    adds: false,
    tries: 1,
    talks: false,
    tail: 64,
    late: false,
    rests: false,
    quick: true,
};

pub fn room_worlds() -> Vec<RoomWorld> {
    vec![
        RoomWorld { name: "room", about: "rooms: one message, tried at every owner", tries: 2, ..BASE },
        RoomWorld {
            name: "room-removed",
            about: "rooms: the sender is removed meanwhile",
            removes: true,
            ..BASE
        },
        RoomWorld {
            name: "room-again",
            about: "rooms: the sender is removed and let in again",
            removes: true,
            adds: true,
            sends: false,
            ..BASE
        },
        RoomWorld {
            name: "room-talks",
            about: "rooms: other events come between the tries",
            owners: 3,
            talks: true,
            tail: 1,
            ..BASE
        },
        RoomWorld {
            name: "room-late",
            about: "rooms: refusals that take their time, the sender is removed and let in again",
            removes: true,
            adds: true,
            late: true,
            ..BASE
        },
        RoomWorld {
            name: "room-rests",
            about: "rooms: opened for reads, the sender is removed and let in again",
            removes: true,
            adds: true,
            rests: true,
            quick: false,
            ..BASE
        },
        RoomWorld {
            name: "room-3",
            about: "rooms: three owners, the sender is removed meanwhile",
            owners: 3,
            removes: true,
            quick: false,
            ..BASE
        },
    ]
}

pub fn room_bugs() -> Vec<(Bug, RoomWorld)> {
    let all = room_worlds();
    let world =
        |name: &str| all.iter().find(|world| world.name == name).cloned().expect("a world of that name");
    vec![
        (Bug::DedupeNotRebuilt, world("room")),
        (Bug::AckBeforeAppend, world("room")),
        (Bug::PermissionBeforeKnownId, world("room-removed")),
        (Bug::SinceRefreshed, world("room-talks")),
        (Bug::GatewayTakesOldRefusal, world("room-late")),
        (Bug::RefusalFromReadOpen, world("room-rests")),
        (Bug::DerivedByWallClock, world("room-again")),
    ]
}

/// What waits in an owner's gate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Said {
    Sent {
        seq: u64,
    },
    Refused {
        code: u32,
    },
    /// To the operator, whose event is at this seq; the client hears of it too.
    Told {
        seq: u64,
    },
    Done,
    Wake {
        ticket: u32,
    },
    Rests(banyan_storage::log_store::Said),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Reading {
    Segments,
    Said,
    Rows(Vec<Span>, Range, ReadLimit),
    Room,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stand {
    /// Not yet an owner.
    Waits,
    /// The fence of the one before is being written.
    Fences,
    Owns,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Owner {
    run: u8,
    stand: Stand,
    room: Option<Box<Room>>,
    gate: Gate<Said>,
    /// Reads under way, in places that are used again.
    reads: [Option<(u32, Reading)>; 4],
    writes: Vec<(u32, Bits)>,
    /// Commands that wait for the end of a turn.
    flush: bool,
    tries: u8,
    /// A try of the message is with it, unanswered.
    asked: bool,
    openings: u32,
}

/// What the client and the operator know and have done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Outside {
    /// Who is the owner by the slot key.
    current: u8,
    /// The head that has been told to anybody.
    head: u64,
    since: Option<u64>,
    /// The highest owner that the message was handed to.
    handed: u8,
    /// Where the message is, as it was told.
    sent: Option<u64>,
    /// It was told that the message is not and will not be in the log.
    refused: bool,
    removed: bool,
    added: bool,
    talked: bool,
    /// Refusals on their way: from whom, which.
    late: Vec<(u8, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoomState {
    store: u32,
    outside: u32,
    owners: [u32; OWNERS_MAX],
}

type LogRows = Result<(Rc<[Row]>, Option<Derived>), Arc<str>>;

#[derive(Debug)]
pub struct Rooms<'w> {
    world: &'w RoomWorld,
    mutations: Interner<Mutation>,
    tables: [Bits; TABLES],
    stores: Interner<Rc<Store>>,
    outsides: Interner<Outside>,
    owners: Interner<Rc<Owner>>,
    config: Arc<Config>,
    opened: HashMap<Bits, LogRows, foldhash::fast::FixedState>,
    checked: HashSet<u128, foldhash::fast::FixedState>,
    coverage: Vec<(&'static str, u64)>,
    longest: usize,
    labels: Option<Vec<String>>,
}

fn room_id() -> RoomId {
    RoomId::parse("r").expect("a letter is a room id")
}

fn person(user: &str) -> Person {
    Person { user: UserId::parse(user).expect("a letter is a user id"), name: user.into() }
}

fn tenure(run: u8) -> Tenure {
    Tenure { epoch: Epoch(u64::from(run) + 1), incarnation: incarnation(run) }
}

fn event(row: &Row) -> v1::Event {
    v1::Event::decode(row.event.clone()).expect("an event that we wrote")
}

fn is_message(event: &v1::Event) -> bool {
    event.client_msg_id.as_deref() == Some(MESSAGE)
}

/// Whether the client is a member after these events; `Err`: it acts while it is not.
fn fold(rows: &[Row]) -> Result<bool, u64> {
    let mut member = false;
    for event in rows.iter().map(event) {
        if is_message(&event) && !member {
            return Err(event.seq);
        }
        match &event.kind {
            Some(Kind::Joined(joined)) if joined.user == "x" => member = true,
            Some(Kind::Removed(removed)) if removed.user == "x" => member = false,
            Some(Kind::Left(left)) if left.user == "x" => member = false,
            _ => {}
        }
    }
    Ok(member)
}

impl<'w> Rooms<'w> {
    pub fn new(world: &'w RoomWorld) -> Self {
        let tail = ReadLimit { events: world.tail, bytes: 1 << 20 };
        let limits = Limits { settle_first_ms: 1, settle_max_ms: 1, tail, ..Limits::default() };
        let config = Config { log: Arc::new(limits), ..Config::default() };
        let mut rooms = Self {
            world,
            mutations: Interner::default(),
            tables: [Bits::EMPTY; TABLES],
            stores: Interner::default(),
            outsides: Interner::default(),
            owners: Interner::default(),
            config: Arc::new(config),
            opened: HashMap::default(),
            checked: HashSet::default(),
            coverage: Vec::new(),
            longest: 0,
            labels: None,
        };
        for run in 0..world.owners {
            let _fence = rooms.mutation(Mutation::Fence(run));
        }
        rooms
    }

    fn cover(&mut self, what: &'static str) {
        match self.coverage.iter_mut().find(|(known, _)| *known == what) {
            Some((_, count)) => *count += 1,
            None => self.coverage.push((what, 1)),
        }
    }

    fn mutation(&mut self, mutation: Mutation) -> u16 {
        let table = mutation.table();
        let at = self.mutations.intern(mutation) as u16;
        assert!(usize::from(at) < Bits::MAX, "the world has more different writes than fit a set");
        self.tables[table as usize].insert(at);
        at
    }

    fn get(&self, at: u16) -> &Mutation {
        self.mutations.get(u32::from(at))
    }

    fn fence(&self, run: u8) -> Bits {
        // The first ones made.
        Bits::one(u16::from(run))
    }

    fn table(&self, table: Table) -> Bits {
        self.tables[table as usize]
    }

    fn of<'a>(&'a self, seen: &'a Bits) -> impl Iterator<Item = &'a Mutation> {
        seen.iter().map(|at| self.get(at))
    }

    fn records(&self, seen: &Bits) -> Vec<SegmentRecord> {
        let mut records: Vec<SegmentRecord> = Vec::new();
        for mutation in self.of(seen) {
            if let Mutation::Record(record) = mutation {
                records.push(record.clone());
            }
        }
        records.sort_by_key(|record| record.id);
        records
    }

    fn page(&self, seen: &Bits, spans: &[Span], range: Range, limit: ReadLimit) -> Page {
        let mut rows: Vec<(SegmentId, &Row)> = Vec::new();
        for mutation in self.of(seen) {
            if let Mutation::Rows { segment, rows: batch } = mutation {
                rows.extend(batch.iter().map(|row| (*segment, row)));
            }
        }
        page(rows.into_iter(), spans, range, limit)
    }

    /// Row by row the newest of what is visible.
    fn room_read(&self, seen: &Bits, again: Option<&Derived>) -> RoomRead {
        let (mut row, mut members): (Option<RoomRow>, Vec<(MemberRow, Marks)>) = (None, Vec::new());
        let visible = self.of(seen).filter_map(|mutation| match mutation {
            Mutation::Derived(derived) => Some(derived),
            _ => None,
        });
        for derived in visible.chain(again) {
            if let Some(new) = &derived.room
                && row.as_ref().is_none_or(|old| old.changed <= new.changed)
            {
                row = Some(new.clone());
            }
            for new in &derived.members {
                match members.iter_mut().find(|(old, _)| old.user == new.user) {
                    Some((old, _)) if old.changed <= new.changed => *old = new.clone(),
                    Some(_) => {}
                    None => members.push((new.clone(), Marks::default())),
                }
            }
        }
        members.sort_by(|(a, _), (b, _)| a.user.cmp(&b.user));
        RoomRead { row, members }
    }

    // ---------------------------------------------------------------- one owner

    fn issue(&mut self, store: &mut Store, mutation: Mutation) -> Result<Bits, Violation> {
        let at = self.mutation(mutation);
        let table = self.table(self.get(at).table());
        for other in store.issued.and(&table).iter() {
            if self.get(at).clashes(self.get(other)) {
                let (new, old) = (self.get(at).text(), self.get(other).text());
                return Err(Violation(format!("KEY CLASH: {old} and {new}")));
            }
        }
        store.issued.insert(at);
        Ok(Bits::one(at))
    }

    fn write(&mut self, store: &mut Store, write: Write) -> Result<Bits, Violation> {
        match write {
            Write::Record(record) => self.issue(store, Mutation::Record(*record)),
            Write::Rows { segment, rows, .. } => {
                self.issue(store, Mutation::Rows { segment, rows: rows.to_vec() })
            }
            Write::Said(said) => self.issue(store, Mutation::Said(said)),
            Write::Derived(derived) => {
                // Each row is a partition of its own.
                let Derived { room, members } = *derived;
                let mut what = Bits::EMPTY;
                let room = room.map(|room| Derived { room: Some(room), members: Vec::new() });
                let members = members.into_iter().map(|row| Derived { room: None, members: vec![row] });
                for part in room.into_iter().chain(members) {
                    what = what.or(&self.issue(store, Mutation::Derived(part))?);
                }
                Ok(what)
            }
        }
    }

    fn now(owner: &Owner) -> Now {
        // Clocks differ between nodes. Only a planted bug looks at them.
        Now { mono_ms: 0, unix: UnixMs(10_000 - 100 * u64::from(owner.run)) }
    }

    /// Gives the room inputs and carries out what it asks.
    fn give(&mut self, owner: &mut Owner, store: &mut Store, inputs: Vec<Input>) -> Result<(), Violation> {
        let now = Self::now(owner);
        for input in inputs {
            let Some(room) = owner.room.as_deref_mut() else { return Ok(()) };
            let mut out = Vec::new();
            room.handle(now, input, &mut out);
            for action in out {
                self.act(owner, store, action)?;
            }
        }
        Ok(())
    }

    fn act(&mut self, owner: &mut Owner, store: &mut Store, action: Action) -> Result<(), Violation> {
        match action {
            Action::ReadSegments { ticket } => self.begin(owner, store, ticket, Reading::Segments),
            Action::ReadSaid { ticket } => self.begin(owner, store, ticket, Reading::Said),
            Action::ReadRows { ticket, spans, range, limit } => {
                self.begin(owner, store, ticket, Reading::Rows(spans, range, limit));
            }
            Action::ReadRoom { ticket } => self.begin(owner, store, ticket, Reading::Room),
            Action::Write { ticket, write } => {
                let what = self.write(store, write)?;
                owner.writes.push((ticket, what));
            }
            Action::Barrier { ticket } => owner.gate.say(0, Why::Stored, Said::Wake { ticket }),
            Action::Answer { ticket, answer, .. } => {
                let said = match answer {
                    Answer::Sent { seq, .. } if ticket.0 >= OPERATOR => Said::Told { seq: seq.0 },
                    Answer::Sent { seq, .. } => Said::Sent { seq: seq.0 },
                    Answer::Error(error) if ticket.0 < OPERATOR => Said::Refused { code: error.code },
                    _ => Said::Done,
                };
                owner.gate.say(0, Why::Stored, said);
            }
            Action::Damaged { after } => {
                let text = format!("{} cannot open the room: damaged after {after}", name(owner.run));
                return Err(Violation(text));
            }
            Action::TooManySegments => {
                return Err(Violation(format!("{} finds too many segments", name(owner.run))));
            }
            // Nobody listens here.
            Action::Events { .. }
            | Action::Head { .. }
            | Action::Marks { .. }
            | Action::Page { .. }
            | Action::Left { .. }
            | Action::NotifyUser { .. }
            | Action::Return { .. }
            | Action::PutMarks(_) => {}
        }
        Ok(())
    }

    fn begin(&self, owner: &mut Owner, store: &mut Store, ticket: u32, reading: Reading) {
        let place = owner.reads.iter().position(Option::is_none).expect("a room reads little at once");
        let table = self.read_table(&reading);
        owner.reads[place] = Some((ticket, reading));
        store.begin(Model::Abs, owner.run, ReadFor::Gate(place as u8), &table);
    }

    fn read_table(&self, reading: &Reading) -> Bits {
        match reading {
            Reading::Segments => self.table(Table::Segments),
            Reading::Said => self.table(Table::Said),
            Reading::Room => self.table(Table::Derived),
            Reading::Rows(spans, ..) => {
                let within = |at: &u16| match self.get(*at) {
                    Mutation::Rows { segment, .. } => spans.iter().any(|span| span.segment == *segment),
                    _ => false,
                };
                self.table(Table::Messages).iter().filter(within).collect()
            }
        }
    }

    fn call(
        &mut self,
        owner: &mut Owner,
        store: &mut Store,
        user: &str,
        ticket: u64,
        command: RoomCommand,
    ) -> Result<(), Violation> {
        let call = RoomCall { ticket: Ticket(ticket), caller: person(user), origin: Origin(0), command };
        owner.flush = true;
        self.give(owner, store, vec![Input::Call { link: LinkId(0), call: Box::new(call) }])
    }

    // ---------------------------------------------------------------- the first owner makes the room

    fn first_state(&mut self) -> RoomState {
        let mut store = Store::default();
        let owner = |run| Owner {
            run,
            stand: Stand::Waits,
            room: None,
            gate: Gate::new(),
            reads: [const { None }; 4],
            writes: Vec::new(),
            flush: false,
            tries: 0,
            asked: false,
            openings: 0,
        };
        let mut first = owner(0);
        first.stand = Stand::Owns;
        self.new_room(&mut first);
        let members = vec![person("x")];
        let create =
            RoomCommand::Create { kind: v1::RoomKind::Group, name: "r".to_owned(), public: false, members };
        let made = self.call(&mut first, &mut store, "o", OPERATOR, create);
        debug_assert!(made.is_ok());
        for _ in 0..64 {
            let all = store.issued;
            store.put(&all);
            let mut inputs = Vec::new();
            for place in 0..4 {
                if let Some((ticket, reading)) = first.reads[place].take() {
                    store.forget(0, ReadFor::Gate(place as u8));
                    inputs.extend(
                        self.answer(ticket, &reading, &all).into_iter().map(|(input, _)| input).take(1),
                    );
                }
            }
            let writes = std::mem::take(&mut first.writes);
            inputs.extend(
                writes.iter().map(|(ticket, _)| Input::Wrote { ticket: *ticket, outcome: Outcome::Done }),
            );
            if let Some(read) = first.gate.begin(0) {
                let mut released = Vec::new();
                let _passed = first.gate.answered(0, read, Ok(false), &mut released);
                inputs.extend(released.into_iter().filter_map(|said| match said {
                    Said::Wake { ticket } => Some(Input::Passed { ticket }),
                    _ => None,
                }));
            }
            inputs.push(Input::Flush);
            let done = self.give(&mut first, &mut store, inputs);
            debug_assert!(done.is_ok());
        }
        first.flush = false;
        let head = first.room.as_deref().and_then(Room::said).map_or(0, |said| said.head.0);
        assert!(head > 0, "the first owner has made the room");
        let all = store.issued;
        store.put(&all);
        let mut owners = [0; OWNERS_MAX];
        owners[0] = self.owners.intern(Rc::new(first));
        for run in 1..self.world.owners {
            owners[usize::from(run)] = self.owners.intern(Rc::new(owner(run)));
        }
        let outside = Outside {
            current: 0,
            head,
            since: None,
            handed: 0,
            sent: None,
            refused: false,
            removed: false,
            added: false,
            talked: false,
            late: Vec::new(),
        };
        RoomState {
            store: self.stores.intern(Rc::new(store)),
            outside: self.outsides.intern(outside),
            owners,
        }
    }

    fn new_room(&self, owner: &mut Owner) {
        let run = owner.run;
        owner.openings += 1;
        let room = Room::new(
            room_id(),
            tenure(run),
            owner.openings,
            LogId(1),
            Start::Cold,
            Arc::clone(&self.config),
        );
        owner.room = Some(Box::new(room));
    }

    /// What a read of the room may come to, given what it sees of its table.
    fn answer(&self, ticket: u32, reading: &Reading, seen: &Bits) -> Vec<(Input, String)> {
        match reading {
            Reading::Segments => {
                vec![(Input::Segments { ticket, records: Ok(self.records(seen)) }, self.seen_text(seen))]
            }
            Reading::Rows(spans, range, limit) => {
                let page = self.page(seen, spans, *range, *limit);
                vec![(Input::Rows { ticket, page: Ok(page) }, self.seen_text(seen))]
            }
            Reading::Room => {
                let read = self.room_read(seen, None);
                let text = format!("{} members rows", read.members.len());
                vec![(Input::RoomRead { ticket, read: Ok(Box::new(read)) }, text)]
            }
            Reading::Said => {
                let mut said: Vec<Option<banyan_storage::log_store::Said>> = self
                    .of(seen)
                    .filter_map(|mutation| match mutation {
                        Mutation::Said(said) => Some(Some(*said)),
                        _ => None,
                    })
                    .collect();
                if said.is_empty() {
                    said.push(None);
                }
                said.into_iter()
                    .map(|said| {
                        let text =
                            said.map_or_else(|| "no said".to_owned(), |said| format!("said {}", said.head));
                        (Input::Said { ticket, said: Ok(said) }, text)
                    })
                    .collect()
            }
        }
    }

    fn seen_text(&self, seen: &Bits) -> String {
        let texts: Vec<String> = self.of(seen).map(Mutation::text).collect();
        if texts.is_empty() { "nothing".to_owned() } else { texts.join(" and ") }
    }

    // ---------------------------------------------------------------- the virtual owner

    fn open(&mut self, seen: &Bits) -> LogRows {
        if let Some(known) = self.opened.get(seen) {
            return known.clone();
        }
        let opened = self.open_anew(seen).map_err(Arc::from);
        self.opened.insert(*seen, opened.clone());
        opened
    }

    fn open_anew(&self, seen: &Bits) -> Result<(Rc<[Row]>, Option<Derived>), String> {
        let last = Tenure { epoch: Epoch(1 << 50), incarnation: incarnation(200) };
        let mut log = Log::new(last, 0, LogId(0), Arc::default());
        let (mut todo, mut derived) = (log::Actions::new(), None);
        let now = Now { mono_ms: 0, unix: UnixMs(0) };
        log.open(now, log::Opening::Full, &mut todo);
        for _ in 0..32 {
            let actions = std::mem::take(&mut todo);
            for action in actions {
                let input = match action {
                    log::Action::ReadSegments => log::Input::Segments(Ok(self.records(seen))),
                    log::Action::ReadRows { spans, range, limit } => {
                        log::Input::Rows(Ok(self.page(seen, &spans, range, limit)))
                    }
                    log::Action::Write { which, write } => {
                        if let (Which::Derived, Write::Derived(again)) = (which, write) {
                            derived = Some(*again);
                        }
                        log::Input::Wrote { which, outcome: Outcome::Done }
                    }
                    log::Action::Barrier => log::Input::Passed,
                    log::Action::Opened { rows } => {
                        if rows.len() as u64 != log.head().0 {
                            return Err("a hole".to_owned());
                        }
                        return Ok((rows.into(), derived));
                    }
                    other => return Err(format!("{other:?}")),
                };
                log.handle(now, input, &mut todo);
            }
        }
        Err("something that must be there is not".to_owned())
    }

    fn check_state(&mut self, state: &RoomState) -> Result<(), Violation> {
        if !self.checked.insert(hash128(&[u64::from(state.store), u64::from(state.outside)])) {
            return Ok(());
        }
        let store = Rc::clone(self.stores.get(state.store));
        let outside = self.outsides.get(state.outside).clone();
        let records = store.views(Model::Abs, &self.table(Table::Segments));
        let rows = store.views(Model::Abs, &self.table(Table::Messages));
        for records in &records {
            for rows in &rows {
                let (log, again) = self
                    .open(&records.or(rows))
                    .map_err(|why| Violation(format!("LOST: a further owner cannot open the room: {why}")))?;
                let text = log_text(&log);
                if (log.len() as u64) < outside.head {
                    return Err(Violation(format!(
                        "LOST: head {} was told, the log is {text}",
                        outside.head
                    )));
                }
                let at: Vec<u64> = log.iter().map(event).filter(is_message).map(|event| event.seq).collect();
                if at.len() > 1 {
                    return Err(Violation(format!("TWO SEQS for one message: {text}")));
                }
                if let Some(sent) = outside.sent
                    && at != [sent]
                {
                    return Err(Violation(format!(
                        "LOST: the message was told to be at {sent}, the log is {text}"
                    )));
                }
                if outside.refused && !at.is_empty() {
                    return Err(Violation(format!("REFUSED: the message is in the log {text}")));
                }
                let member = fold(&log).map_err(|seq| {
                    Violation(format!("ACTED: at {seq} by somebody who is no member: {text}"))
                })?;
                for seen in store.views(Model::Abs, &self.table(Table::Derived)) {
                    let read = self.room_read(&seen, again.as_ref());
                    let row = read.members.iter().find(|(row, _)| row.user.as_str() == "x");
                    let view = row.is_some_and(|(row, _)| row.role != 0);
                    if view != member {
                        return Err(Violation(format!(
                            "VIEW: the members table says {view}, the log {text} says {member}"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    // ---------------------------------------------------------------- steps

    fn push(
        &mut self,
        steps: &mut Steps<RoomState>,
        from: &RoomState,
        (owner, store, outside): (Owner, Store, Outside),
        label: String,
    ) {
        let mut to = *from;
        let run = usize::from(owner.run);
        to.owners[run] = self.owners.intern(Rc::new(owner));
        to.store = self.stores.intern(Rc::new(store));
        to.outside = self.outsides.intern(outside);
        steps.out.push(to);
        if let Some(labels) = &mut self.labels {
            labels.push(label);
        }
    }

    /// As [`Self::push`], for a step that may break a rule.
    fn step(
        &mut self,
        steps: &mut Steps<RoomState>,
        from: &RoomState,
        parts: (Owner, Store, Outside),
        label: String,
        inputs: Vec<Input>,
    ) -> Result<(), Violation> {
        let (mut owner, mut store, outside) = parts;
        if let Err(violation) = self.give(&mut owner, &mut store, inputs) {
            if let Some(labels) = &mut self.labels {
                labels.push(label);
            }
            return Err(violation);
        }
        self.push(steps, from, (owner, store, outside), label);
        Ok(())
    }

    fn all_steps(&mut self, state: &RoomState, steps: &mut Steps<RoomState>) -> Result<(), Violation> {
        let store = Rc::clone(self.stores.get(state.store));
        let outside = self.outsides.get(state.outside).clone();
        for run in 0..self.world.owners {
            let owner = Rc::clone(self.owners.get(state.owners[usize::from(run)]));
            let parts = || (Owner::clone(&owner), Store::clone(&store), outside.clone());
            let who = name(run);
            match owner.stand {
                Stand::Waits if outside.current + 1 == run => {
                    let (mut owner, mut store, outside) = parts();
                    owner.stand = Stand::Fences;
                    store.issued = store.issued.or(&self.fence(run - 1));
                    self.push(
                        steps,
                        state,
                        (owner, store, outside),
                        format!("{who} fences {}", name(run - 1)),
                    );
                }
                Stand::Fences => {
                    let (mut owner, mut store, mut outside) = parts();
                    owner.stand = Stand::Owns;
                    outside.current = run;
                    store.has[0] = store.has[0].or(&self.fence(run - 1));
                    self.new_room(&mut owner);
                    self.push(steps, state, (owner, store, outside), format!("{who} owns the room"));
                }
                Stand::Waits => {}
                Stand::Owns => self.owner_steps(state, run, &owner, &store, &outside, steps)?,
            }
        }
        Ok(())
    }

    fn owner_steps(
        &mut self,
        state: &RoomState,
        run: u8,
        owner: &Owner,
        store: &Store,
        outside: &Outside,
        steps: &mut Steps<RoomState>,
    ) -> Result<(), Violation> {
        let world = self.world;
        let who = name(run);
        let parts = || (owner.clone(), store.clone(), outside.clone());
        // ---- what is on its way to the client
        if let Some(at) = outside.late.iter().position(|(from, _)| *from == run) {
            let (mut owner, store, mut outside) = parts();
            let (_, code) = outside.late.remove(at);
            let label = format!("the client hears that {who} REFUSES the message with {code}");
            if let Err(violation) = self.refused(&mut owner, &mut outside, code) {
                self.labels.iter_mut().for_each(|labels| labels.push(label.clone()));
                return Err(violation);
            }
            self.push(steps, state, (owner, store, outside), label);
        }
        // ---- what is under way
        for place in 0..4_u8 {
            let Some((ticket, reading)) = &owner.reads[usize::from(place)] else { continue };
            let Some(at) = store.begun_at(run, ReadFor::Gate(place)) else { continue };
            let table = self.read_table(reading);
            for (answered, seen) in store.answers(Model::Abs, at, &table) {
                let Some(seen) = seen else { continue };
                for (input, text) in self.answer(*ticket, reading, &seen) {
                    let (mut owner, _, outside) = parts();
                    owner.reads[usize::from(place)] = None;
                    let parts = (owner, answered.clone(), outside);
                    self.step(steps, state, parts, format!("{who} reads {text}"), vec![input, Input::Flush])?;
                }
            }
        }
        for (at, (ticket, what)) in owner.writes.iter().enumerate() {
            let (mut owner, mut store, outside) = parts();
            owner.writes.remove(at);
            store.has[0] = store.has[0].or(what);
            let label = format!("{who}: stored {}", self.seen_text(what));
            let done = Input::Wrote { ticket: *ticket, outcome: Outcome::Done };
            self.step(steps, state, (owner, store, outside), label, vec![done, Input::Flush])?;
        }
        if owner.flush {
            let (mut owner, store, outside) = parts();
            owner.flush = false;
            let label = format!("{who}: the turn ends");
            self.step(steps, state, (owner, store, outside), label, vec![Input::Flush])?;
        }
        if !owner.gate.is_empty() && !store.has[0].meets(&self.fence(run)) {
            self.barrier(state, owner, store, outside, steps)?;
        }
        // ---- commands
        let Some(room) = owner.room.as_deref() else { return Ok(()) };
        if world.sends
            && !owner.asked
            && owner.tries < world.tries
            && outside.sent.is_none()
            && !outside.refused
        {
            let (mut owner, mut store, mut outside) = parts();
            let refreshed = plant::is(Bug::SinceRefreshed).then_some(outside.head);
            let since = refreshed.or(outside.since).unwrap_or(outside.head);
            outside.since = Some(since);
            outside.handed = outside.handed.max(run);
            owner.asked = true;
            owner.tries += 1;
            let send = v1::Send {
                client_msg_id: MESSAGE.to_owned(),
                since: Some(since),
                text: Some("x".to_owned()),
                ..v1::Send::default()
            };
            let label = format!("{who} gets the message, since {since}");
            if let Err(violation) =
                self.call(&mut owner, &mut store, "x", u64::from(run), RoomCommand::Send(send))
            {
                self.labels.iter_mut().for_each(|labels| labels.push(label.clone()));
                return Err(violation);
            }
            self.push(steps, state, (owner, store, outside), label);
        }
        for what in ["removes x", "lets x in again", "says something"] {
            let (mut owner, mut store, mut outside) = parts();
            let command = match what {
                "removes x" if world.removes && !outside.removed => {
                    outside.removed = true;
                    RoomCommand::Remove { user: person("x").user }
                }
                "lets x in again" if world.adds && outside.removed && !outside.added => {
                    outside.added = true;
                    RoomCommand::Add { users: vec![person("x")] }
                }
                "says something" if world.talks && !outside.talked => {
                    outside.talked = true;
                    let text = Some("o".to_owned());
                    let client_msg_id = "o".to_owned();
                    RoomCommand::Send(v1::Send { client_msg_id, text, ..v1::Send::default() })
                }
                _ => continue,
            };
            let label = format!("{who}: the operator {what}");
            if let Err(violation) = self.call(&mut owner, &mut store, "o", OPERATOR, command) {
                self.labels.iter_mut().for_each(|labels| labels.push(label.clone()));
                return Err(violation);
            }
            self.push(steps, state, (owner, store, outside), label);
        }
        if world.rests {
            // Somebody looks: opens it for reads, if it is not open.
            if owner.openings == 1
                && run > 0
                && room.beacon().is_none()
                && owner.reads.iter().all(Option::is_none)
            {
                let (mut owner, mut store, outside) = parts();
                owner.openings += 1;
                let label = format!("{who} is asked for the members");
                let members = RoomCommand::Members { after: None, limit: 10 };
                if self.call(&mut owner, &mut store, "o", OPERATOR, members).is_ok() {
                    self.push(steps, state, (owner, store, outside), label);
                }
            }
            if owner.gate.is_empty()
                && owner.writes.is_empty()
                && store.issued.and(&self.table(Table::Said)).iter().count() < 2
                && let Some(said) = room.said()
            {
                let (mut owner, store, outside) = parts();
                owner.gate.say(0, Why::Stored, Said::Rests(said));
                self.push(steps, state, (owner, store, outside), format!("{who} writes where the log ends"));
            }
        }
        Ok(())
    }

    fn barrier(
        &mut self,
        state: &RoomState,
        owner: &Owner,
        store: &Store,
        outside: &Outside,
        steps: &mut Steps<RoomState>,
    ) -> Result<(), Violation> {
        let (mut owner, mut store, mut outside) = (owner.clone(), store.clone(), outside.clone());
        let mut label = format!("{}: barrier passed", name(owner.run));
        let Some(read) = owner.gate.begin(0) else { return Ok(()) };
        let mut released = Vec::new();
        let _passed = owner.gate.answered(0, read, Ok(false), &mut released);
        let mut inputs = Vec::new();
        for said in released {
            let told = match said {
                Said::Wake { ticket } => {
                    inputs.push(Input::Passed { ticket });
                    Ok(())
                }
                Said::Rests(said) => self.issue(&mut store, Mutation::Said(said)).map(|_| ()),
                Said::Sent { seq } => {
                    label += &format!("; TELLS the client that the message is at {seq}");
                    self.sent(&mut owner, &mut outside, seq)
                }
                Said::Told { seq } => {
                    outside.head = outside.head.max(seq);
                    Ok(())
                }
                Said::Refused { code } if self.world.late => {
                    // Said, and on its way.
                    outside.late.push((owner.run, code));
                    outside.late.sort_unstable();
                    Ok(())
                }
                Said::Refused { code } => {
                    label += &format!("; REFUSES the message with {code}");
                    self.refused(&mut owner, &mut outside, code)
                }
                Said::Done => Ok(()),
            };
            if let Err(violation) = told {
                self.labels.iter_mut().for_each(|labels| labels.push(label.clone()));
                return Err(violation);
            }
        }
        inputs.push(Input::Flush);
        self.step(steps, state, (owner, store, outside), label, inputs)
    }

    fn sent(&mut self, owner: &mut Owner, outside: &mut Outside, seq: u64) -> Result<(), Violation> {
        owner.asked = false;
        self.cover("the message is told to be in the log");
        if outside.sent.is_some_and(|sent| sent != seq) {
            return Err(Violation(format!(
                "TWO SEQS for one message: {:?} and {seq} were told",
                outside.sent
            )));
        }
        if outside.refused {
            return Err(Violation("the message was refused, and is told to be in the log".to_owned()));
        }
        outside.sent = Some(seq);
        outside.head = outside.head.max(seq);
        self.longest = self.longest.max(seq as usize);
        Ok(())
    }

    fn refused(&mut self, owner: &mut Owner, outside: &mut Outside, code: u32) -> Result<(), Violation> {
        owner.asked = false;
        let definite = Code::try_from(code).is_ok_and(|code| code.verdict() == Verdict::Definite);
        if !definite {
            return Ok(());
        }
        // A newer owner may have it.
        if owner.run < outside.handed && !plant::is(Bug::GatewayTakesOldRefusal) {
            self.cover("a refusal of an older owner");
            return Ok(());
        }
        self.cover("the message is refused");
        if outside.sent.is_some() {
            return Err(Violation(format!(
                "REFUSED: the message, which was told to be at {:?}",
                outside.sent
            )));
        }
        outside.refused = true;
        Ok(())
    }
}

fn log_text(rows: &[Row]) -> String {
    let events: Vec<String> = rows
        .iter()
        .map(event)
        .map(|event| match &event.kind {
            Some(Kind::Created(_)) => "created".to_owned(),
            Some(Kind::Message(_)) => format!("message of {}", event.sender),
            Some(Kind::Joined(joined)) => format!("+{}", joined.user),
            Some(Kind::Left(left)) => format!("-{}", left.user),
            Some(Kind::Removed(removed)) => format!("-{}", removed.user),
            Some(Kind::RoleChanged(_) | Kind::RoomChanged(_)) | None => "other".to_owned(),
        })
        .collect();
    format!("[{}]", events.join(", "))
}

impl Space for Rooms<'_> {
    type State = RoomState;

    fn initial(&mut self) -> RoomState {
        self.first_state()
    }

    fn hash(state: &RoomState) -> u128 {
        let [a, b, c, d] = state.owners.map(u64::from);
        hash128(&[u64::from(state.store) << 32 | u64::from(state.outside), a << 32 | b, c << 32 | d])
    }

    fn check(&mut self, state: &RoomState) -> Result<(), Violation> {
        self.check_state(state)
    }

    fn successors(&mut self, state: &RoomState, steps: &mut Steps<RoomState>) -> Result<(), Violation> {
        self.all_steps(state, steps)
    }

    fn labels(&mut self) -> &mut Option<Vec<String>> {
        &mut self.labels
    }

    fn found(&self) -> (usize, Vec<(&'static str, u64)>) {
        (self.longest, self.coverage.clone())
    }
}
