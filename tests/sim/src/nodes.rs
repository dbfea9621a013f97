//! A node's process around `shard_core::Worker` and the machines of the router: store, links to gateways, other nodes.
//!
//! Does what the shell of a shard does, without threads. Does not: decide about rooms or slots.

use std::collections::BTreeMap;
use std::sync::Arc;

use banyan_checker as checker;
use banyan_proto::codes::Code;
use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, UserId};
use banyan_proto::link::{FromShard, LinkId, ToShard};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_router::node::{self, End, KeptAlive, Listing, TargetOutcome, Watched};
use banyan_router::node_key::{NodeEntry, Role, State};
use banyan_router::slot_key::{NodeId, OwnerRow, Peer, SlotKey};
use banyan_router::slot_owner::{self, CasOutcome};
use banyan_router::target::{self, Target};
use banyan_router::{SlotCount, user_slot};
use banyan_shard_core::config::Config;
use banyan_shard_core::gate::ReadId;
use banyan_shard_core::log::{self, Failed};
use banyan_shard_core::room::{HandedRoom, Now, RoomRead};
use banyan_shard_core::worker::{Input, Options, Output, Read, ReadAnswer, SlotOpening, Worker};
use banyan_storage::log_store::{RoomWrite, SlotOwner, Write};
use banyan_storage::page::{Page, ReadLimit};
use banyan_storage::{self as storage, NotDone, Outcome};

use crate::coordination::{Ask, Key, Tag, Told, Value};
use crate::etcd::Lease;
use crate::network::{Batch, Link, Way};
use crate::plan::Who;
use crate::random::Random;
use crate::recovery::{self, OPERATOR};
use crate::schedule::{MS, SECOND, Time};
use crate::sometimes;
use crate::store::{Answer, Change, Question, Reading};
use crate::world::{Caller, Event, Process, START, World};

/// The shard worker of a process that runs ticks at least so often, for the watchdog.
const TICK: Time = 300 * MS;
/// Marks are written so often at most.
const MARKS_PERIOD: Time = SECOND;
/// Pages that a stream takes once all is healed: what one between processes holds at least (32 MiB, pages of 64 KiB at most).
/// Readers far behind must not wait for each other then: what they wait for has no bound but the deadline.
const PAGES_HEALED: usize = 512;

/// What a node asked the store for.
#[derive(Debug, Clone, Copy)]
pub enum Asked {
    Write(u64),
    Read(u64, ReadKind),
    Fence(ReadId),
    Register,
    Fenced(Incarnation),
    SlotPut(u16, OwnerRow),
    SlotOwners(u16),
    SlotOwnFence(u16),
    /// By the number of the write.
    Marks(u32),
    /// The operator's.
    Recover(recovery::Step),
}

#[derive(Debug, Clone, Copy)]
pub enum ReadKind {
    Segments,
    Said,
    Rows,
    Room,
    UserRooms,
}

/// What a node asked etcd for.
#[derive(Debug, Clone)]
pub enum RingTag {
    SlotRead(u16),
    SlotCas(u16),
    NodeRead(Incarnation),
    Grant(Box<NodeEntry>),
    NodeKey,
    NodePut,
    KeepAlive,
    Revoke,
    Target,
    Frozen,
    Nothing,
}

/// From node to node.
#[derive(Debug)]
pub enum PeerMessage {
    State {
        slot: u16,
        epoch: Epoch,
        complete: bool,
        rooms: Vec<HandedRoom>,
    },
    Notify {
        user: UserId,
        push: Arc<v1::server_frame::Body>,
    },
    AskReady(Peer),
    Ready(Peer),
    /// What a gateway says.
    Wanted(SlotId),
}

/// The router of a node run, and what its shell keeps for it.
#[derive(Debug)]
struct Ring {
    node: node::Node,
    /// Rooms of slots that were drained for their next owner.
    drained: BTreeMap<u16, Vec<HandedRoom>>,
    lease: Option<Lease>,
    /// Whose each slot is, as the watch told.
    owners: Vec<Option<SlotKey>>,
    ticks_at: Time,
}

#[derive(Debug)]
pub struct Node {
    pub process: Process,
    worker: Option<Box<Worker>>,
    incarnation: Incarnation,
    ring: Option<Ring>,
    pub cut_store: bool,
    /// Answers of the store that came while the process was frozen.
    pub answers: Vec<(Caller, Answer)>,
    marks: Marks,
    pub generation: u32,
    pub revision: usize,
    outputs: Vec<Output>,
}

/// Marks on their way to the store, as its client keeps them: the larger of each field, and what fails waits again.
#[derive(Debug)]
struct Marks {
    waiting: BTreeMap<(RoomId, UserId), storage::Marks>,
    under_way: BTreeMap<u32, Vec<(RoomId, UserId, storage::Marks)>>,
    writes: u32,
    planned: bool,
}

impl Marks {
    const fn new() -> Self {
        Self { waiting: BTreeMap::new(), under_way: BTreeMap::new(), writes: 0, planned: false }
    }
}

impl Node {
    pub const fn new(process: Process) -> Self {
        Self {
            process,
            worker: None,
            incarnation: Incarnation(0),
            ring: None,
            cut_store: false,
            answers: Vec::new(),
            marks: Marks::new(),
            generation: u32::MAX,
            revision: 0,
            outputs: Vec::new(),
        }
    }
}

impl World {
    fn node_now(&self, node: u8) -> Now {
        let clock = self.nodes[usize::from(node)].process.clock;
        Now { mono_ms: clock.mono(self.now()), unix: clock.unix(self.now()) }
    }

    pub fn start_node(&mut self, number: u8) {
        let now = self.node_now(number);
        let run = self.nodes[usize::from(number)].process.run;
        let mut random = Random::new(self.plan.seed, 20_000 + u64::from(number) * 1_000 + u64::from(run));
        let fresh = Incarnation(u128::from(random.next()) << 64 | u128::from(random.next()));
        let node = &mut self.nodes[usize::from(number)];
        let again = run > 0 && plant::is(Bug::IncarnationReused);
        let incarnation = if again { node.incarnation } else { fresh };
        let options = Options {
            index: 0,
            workers: 1,
            slots: SlotCount::new(self.plan.slots).unwrap_or_default(),
            incarnation,
            seed: random.next(),
            open_rooms: 1_000,
            idle_ms: self.plan.idle_ms,
            room: Arc::new(Config {
                hash_seed: 7,
                tail_events: self.plan.tail_events,
                since_events: self.plan.since_events,
                join_events_members: self.plan.join_events_members,
                pull_events: self.plan.page_events,
                marks_every_ms: 200,
                answer_within_ms: self.plan.answer_within_ms,
                log: Arc::new(log::Limits {
                    window_ms: self.plan.window_ms,
                    bucket_bytes: self.plan.bucket_bytes,
                    tail: ReadLimit { events: 300, bytes: 1 << 20 },
                    ..log::Limits::default()
                }),
                ..Config::default()
            }),
        };
        node.process.up = true;
        node.process.tick_at = Time::MAX;
        node.worker = Some(Box::new(Worker::new(options, now)));
        node.incarnation = incarnation;
        node.answers.clear();
        (node.generation, node.revision) = (u32::MAX, 0);
        let me = Peer { node: node_id(number), incarnation };
        let entry = NodeEntry {
            incarnation,
            peer_address: format!("n{number}:1"),
            roles: vec![Role::Shard],
            weight: 1,
            state: State::Up,
            release: "sim".to_owned(),
        };
        let ttl_ms = self.plan.ttl / MS;
        let limits =
            node::Limits { ttl_ms, settle_ms: 500, claim_after_ms: ttl_ms, ..node::Limits::default() };
        let slots = SlotCount::new(self.plan.slots).unwrap_or_default();
        let options = node::Options { me, entry, slots, workers: 1, limits };
        node.ring = Some(Ring {
            node: node::Node::new(options, now.mono_ms),
            drained: BTreeMap::new(),
            lease: None,
            owners: vec![None; self.plan.slots as usize],
            ticks_at: 0,
        });
        sometimes!(self.coverage, Rejoined, run > 0);
        self.incarnations.insert(incarnation, (number, run));
        self.recorder.note(|| format!("n{number} starts as {incarnation}"));
        self.router(number, node::Input::Start);
        self.watch_soon(Who::Node(number));
        self.turn(Who::Node(number));
    }

    pub fn node_died(&mut self, number: u8) {
        self.retire_node(number);
        self.run_ended(self.nodes[usize::from(number)].incarnation.0);
        let node = &mut self.nodes[usize::from(number)];
        node.ring = None;
        node.answers.clear();
        node.marks = Marks::new();
        for gateway in 0..self.plan.gateways {
            let at = self.link_of(gateway, number);
            let link = &mut self.links[usize::from(at)];
            link.node_end = false;
            let life = link.life;
            let delay = if link.cut[1] { 4 * SECOND } else { self.link_delay() };
            self.schedule.after(delay, Event::LinkEnds { link: at, life, gateway: true });
        }
    }

    pub fn retire_node(&mut self, number: u8) {
        let Some(worker) = self.nodes[usize::from(number)].worker.take() else { return };
        let counters = worker.counters();
        self.recorder.history.counted.fenced_utterances += counters.silenced;
        sometimes!(self.coverage, FencedInFlight, counters.silenced > 0);
        sometimes!(self.coverage, Rolled, counters.rolls > 0);
        sometimes!(self.coverage, HandoffUsed, counters.opened_passed > 0);
        sometimes!(self.coverage, ReadOpened, counters.read_only > 0);
        sometimes!(self.coverage, MarksLifted, counters.late_marks_used > 0);
    }

    /// It may not go on under its incarnation.
    fn rejoin(&mut self, number: u8, why: &str) {
        if !self.nodes[usize::from(number)].process.up {
            return;
        }
        self.recorder.note(|| format!("n{number} rejoins: {why}"));
        self.crash(Who::Node(number));
        let run = self.nodes[usize::from(number)].process.run;
        self.schedule.after(START, Event::Start { who: Who::Node(number), run });
    }

    pub fn node_thawed(&mut self, number: u8) {
        let fenced = self.fenced.contains(&self.nodes[usize::from(number)].incarnation);
        sometimes!(self.coverage, FrozenThroughTakeover, fenced);
        for (caller, answer) in std::mem::take(&mut self.nodes[usize::from(number)].answers) {
            self.store_answered(caller, answer);
        }
    }

    /// Of each slot that nobody serves, what every node knows of it and waits for: once a second, for who reads the timeline.
    pub fn note_accounts(&mut self) {
        if self.recorder.timeline.is_none() || self.now() < self.accounts_at {
            return;
        }
        self.accounts_at = self.now() + SECOND;
        let runs = || self.nodes.iter().filter_map(|node| Some((&node.process, &node.ring.as_ref()?.node)));
        let is_served = |slot: SlotId| {
            runs().filter(|(process, _)| !process.frozen).any(|(_, node)| {
                node.slot(slot).is_some_and(|own| matches!(own.standing(), slot_owner::Standing::Serving(_)))
            })
        };
        let mut lines = Vec::new();
        for slot in (0..self.plan.slots as u16).map(SlotId).filter(|slot| !is_served(*slot)) {
            for (process, node) in runs() {
                let now = process.clock.mono(self.now());
                let asleep = if process.frozen { " (asleep)" } else { "" };
                if let Some(account) = node.account(now, slot) {
                    lines.push(format!("{}{asleep} at {now} ms, {account}", node.me().node));
                }
            }
        }
        for line in lines {
            self.recorder.note(|| line);
        }
    }

    // ------------------------------------------------------------ turns

    /// One input of the shard worker, and what follows from it at once.
    fn shard(&mut self, number: u8, input: Input) {
        let now = self.node_now(number);
        self.input(0x100 | u64::from(number));
        let node = &mut self.nodes[usize::from(number)];
        let Some(worker) = node.worker.as_deref_mut() else { return };
        let mut outputs = std::mem::take(&mut node.outputs);
        worker.handle(now, input, &mut outputs);
        for output in outputs.drain(..) {
            self.perform(number, output);
        }
        self.nodes[usize::from(number)].outputs = outputs;
        for (node, link, messages) in std::mem::take(&mut self.full) {
            self.shard(node, Input::LinkFull { link, messages });
        }
        for (node, link) in std::mem::take(&mut self.gone) {
            self.shard(node, Input::LinkGone(link));
        }
    }

    pub fn node_tick(&mut self, number: u8) {
        let now = self.node_now(number);
        let node = &self.nodes[usize::from(number)];
        let due = node.worker.as_ref().and_then(|worker| worker.next_deadline());
        let router_due = node.ring.as_ref().and_then(|ring| ring.node.next_deadline());
        if due.is_some_and(|due| due <= now.mono_ms) {
            self.shard(number, Input::Tick);
        }
        self.router(number, node::Input::Alive { worker: 0 });
        if router_due.is_some_and(|due| due <= now.mono_ms) {
            self.router(number, node::Input::Tick);
        }
        if let Some(ring) = &mut self.nodes[usize::from(number)].ring {
            ring.ticks_at = self.schedule.now() + TICK;
        }
    }

    pub fn node_turn(&mut self, number: u8) {
        self.shard(number, Input::EndTurn);
        let node = &self.nodes[usize::from(number)];
        let clock = node.process.clock;
        let Some(ring) = &node.ring else { return };
        let mut at = ring.ticks_at;
        if let Some(due) = node.worker.as_ref().and_then(|worker| worker.next_deadline()) {
            at = at.min(clock.when(due));
        }
        if let Some(due) = ring.node.next_deadline() {
            at = at.min(clock.when(due));
        }
        self.wake(Who::Node(number), at);
    }

    fn perform(&mut self, number: u8, output: Output) {
        match output {
            Output::Write(RoomWrite { ticket, room, write }) => {
                sometimes!(
                    self.coverage,
                    ZombieWrite,
                    matches!(write, Write::Rows { .. })
                        && self.fenced.contains(&self.nodes[usize::from(number)].incarnation)
                );
                self.ask_store_to_write(number, Asked::Write(ticket), Change::Room(room, write));
            }
            Output::Read { ticket, room, read } => {
                let (kind, question) = match read {
                    Read::Segments => (ReadKind::Segments, Question::Segments(room)),
                    Read::Said => (ReadKind::Said, Question::Said(room)),
                    Read::Rows { spans, range, limit } => {
                        (ReadKind::Rows, Question::Rows { room, spans, range, limit })
                    }
                    Read::Room => (ReadKind::Room, Question::Room(room)),
                };
                self.ask_store(number, Asked::Read(ticket, kind), question);
            }
            Output::UserRooms { ticket, user, after, limit } => {
                let question = Question::UserRooms { user, after, limit: limit as usize };
                self.ask_store(number, Asked::Read(ticket, ReadKind::UserRooms), question);
            }
            Output::PutMarks { room, marks } => {
                self.put_marks(number, marks.into_iter().map(|(user, marks)| ((room.clone(), user), marks)));
            }
            Output::FenceRead { read } => {
                let incarnation = self.nodes[usize::from(number)].incarnation;
                self.ask_store(number, Asked::Fence(read), Question::Fenced(incarnation));
            }
            Output::ToLink { link, messages } => self.send_gateway(number, link, messages),
            Output::Notify { user, push } => self.notify(number, user, push),
            Output::Drained { slot, drain, rooms, .. } => {
                if let Some(ring) = &mut self.nodes[usize::from(number)].ring {
                    ring.drained.insert(slot.0, rooms);
                }
                self.slot(number, slot.0, slot_owner::Input::Drained { drain });
            }
            Output::Fenced => {
                sometimes!(self.coverage, Fenced);
                self.router(number, node::Input::Fenced);
            }
            Output::Stuck => self.router(number, node::Input::Stuck),
            Output::Damaged { room, after } => {
                self.wrong(|| format!("n{number} found {room} damaged after {after}"))
            }
            Output::TooManySegments { room } => {
                self.wrong(|| format!("n{number} found too many segments of {room}"))
            }
        }
    }

    // ------------------------------------------------------------ the store

    fn ask_store_to_write(&mut self, number: u8, asked: Asked, change: Change) {
        let node = &self.nodes[usize::from(number)];
        let caller = Caller { node: number, run: node.process.run, asked };
        if node.cut_store {
            self.schedule.after(self.plan.weather.timeout, Event::StoreCut { caller, write: true });
            return;
        }
        let now = self.now();
        self.store.write(now, caller, change);
        self.store_planned();
    }

    fn ask_store(&mut self, number: u8, asked: Asked, question: Question) {
        let node = &self.nodes[usize::from(number)];
        let caller = Caller { node: number, run: node.process.run, asked };
        if node.cut_store {
            self.schedule.after(self.plan.weather.timeout, Event::StoreCut { caller, write: false });
            return;
        }
        let now = self.now();
        self.store.read(now, caller, question);
        self.store_planned();
    }

    /// Marks wait for their second.
    fn put_marks(&mut self, number: u8, group: impl IntoIterator<Item = ((RoomId, UserId), storage::Marks)>) {
        let Node { process, marks, .. } = &mut self.nodes[usize::from(number)];
        for (key, put) in group {
            let waits = marks.waiting.entry(key).or_default();
            *waits = waits.max(put);
        }
        if !std::mem::replace(&mut marks.planned, true) {
            self.schedule.after(MARKS_PERIOD, Event::Marks { node: number, run: process.run });
        }
    }

    pub fn write_marks(&mut self, number: u8) {
        let marks = &mut self.nodes[usize::from(number)].marks;
        marks.planned = false;
        let mut rooms: BTreeMap<RoomId, Vec<(RoomId, UserId, storage::Marks)>> = BTreeMap::new();
        for ((room, user), put) in std::mem::take(&mut marks.waiting) {
            rooms.entry(room.clone()).or_default().push((room, user, put));
        }
        for (room, group) in rooms {
            let marks = &mut self.nodes[usize::from(number)].marks;
            marks.writes += 1;
            let write = marks.writes;
            marks.under_way.insert(write, group.clone());
            self.recorder.note(|| {
                let words: Vec<String> = group
                    .iter()
                    .map(|(_, user, put)| format!("{user} {}/{}", put.delivered, put.seen))
                    .collect();
                format!("  n{number} writes marks of {room}: {}", words.join(", "))
            });
            self.ask_store_to_write(number, Asked::Marks(write), Change::Marks(group));
        }
    }

    /// What the store did not take waits again.
    fn marks_written(&mut self, number: u8, write: u32, done: bool) {
        let group = self.nodes[usize::from(number)].marks.under_way.remove(&write).unwrap_or_default();
        if !done {
            sometimes!(self.coverage, MarksAgain);
            self.put_marks(number, group.into_iter().map(|(room, user, put)| ((room, user), put)));
        }
    }

    pub fn store_unreached(&mut self, caller: Caller, write: bool) {
        let answer = if write { Answer::Wrote(Outcome::Unknown) } else { Answer::ReadFailed };
        self.store_answered(caller, answer);
    }

    pub fn store_answered(&mut self, caller: Caller, answer: Answer) {
        let number = caller.node;
        if let (OPERATOR, Asked::Recover(step)) = (number, caller.asked) {
            return self.recovery_told(step, answer);
        }
        if self.nodes[usize::from(number)].process.run != caller.run {
            return;
        }
        sometimes!(self.coverage, ReadFailed, matches!(answer, Answer::ReadFailed));
        let done = match &answer {
            Answer::Wrote(Outcome::Done) => Ok(()),
            _ => Err(slot_owner::Failed),
        };
        match (caller.asked, answer) {
            (Asked::Write(ticket), Answer::Wrote(outcome)) => {
                sometimes!(
                    self.coverage,
                    WriteRefused,
                    matches!(outcome, Outcome::NotDone(NotDone::Overloaded))
                );
                self.shard(number, Input::Wrote { ticket, outcome });
            }
            (Asked::Read(ticket, kind), answer) => {
                let answer = read_answer(kind, answer);
                self.shard(number, Input::Read { ticket, answer });
            }
            (Asked::Fence(read), answer) => {
                let result = match answer {
                    Answer::Read(Reading::Fenced(fenced)) => Ok(fenced),
                    _ => Err(Failed),
                };
                sometimes!(
                    self.coverage,
                    FenceReadLate,
                    result == Ok(false) && self.fenced.contains(&self.nodes[usize::from(number)].incarnation)
                );
                self.shard(number, Input::FenceRead { read, result });
            }
            (Asked::Register, _) => self.router(number, node::Input::IncarnationRegistered(done)),
            (Asked::Fenced(incarnation), _) => {
                if done.is_ok() {
                    self.recorder.note(|| format!("n{number} has fenced {incarnation}"));
                    self.fence_written(incarnation);
                }
                self.router(number, node::Input::FenceWritten { incarnation, result: done });
            }
            (Asked::SlotPut(slot, row), _) => {
                self.slot(number, slot, slot_owner::Input::OwnerPut { row, result: done });
            }
            (Asked::SlotOwners(slot), answer) => {
                let owners = match answer {
                    Answer::Read(Reading::SlotOwners(owners)) => Ok(owners.into_iter().map(row_of).collect()),
                    _ => Err(slot_owner::Failed),
                };
                self.slot(number, slot, slot_owner::Input::Owners(owners));
            }
            (Asked::SlotOwnFence(slot), answer) => {
                let fenced = match answer {
                    Answer::Read(Reading::Fenced(fenced)) => Ok(fenced),
                    _ => Err(slot_owner::Failed),
                };
                self.slot(number, slot, slot_owner::Input::OwnFence(fenced));
            }
            (Asked::Marks(write), _) => self.marks_written(number, write, done.is_ok()),
            (Asked::Write(_) | Asked::Recover(_), _) => {}
        }
        self.turn(Who::Node(number));
    }

    pub fn fence_written(&mut self, incarnation: Incarnation) {
        if self.fenced.insert(incarnation) {
            self.recorder.history.fences.push(checker::Fence {
                at: checker::Time(self.schedule.now()),
                incarnation: checker::Incarnation(incarnation.0),
            });
        }
    }

    // ------------------------------------------------------------ links

    /// A gateway's worker and its backend are links of their own to the node.
    pub fn node_hears(&mut self, number: u8, gateway: u8, lane: u8, messages: Vec<ToShard>) {
        let link = self.links[usize::from(self.link_of(gateway, number))].id(gateway, lane);
        for message in messages {
            self.note_question(number, gateway, &message);
            self.shard(number, Input::Link { link, message });
        }
        self.turn(Who::Node(number));
    }

    pub fn node_link_gone(&mut self, at: u16) {
        let (gateway, node) = self.ends_of(at);
        let link = &mut self.links[usize::from(at)];
        link.node_end = false;
        for link in [0, 1].map(|lane| link.id(gateway, lane)) {
            self.shard(node, Input::LinkGone(link));
        }
        self.turn(Who::Node(node));
    }

    fn send_gateway(&mut self, number: u8, link: LinkId, messages: Vec<FromShard>) {
        let (gateway, lane) = Link::end_of(link);
        let at = self.link_of(gateway, number);
        let time = self.now() + self.link_delay();
        let of = &mut self.links[usize::from(at)];
        if !of.node_end || of.id(gateway, lane) != link {
            // Nobody is there, whoever has come since.
            sometimes!(self.coverage, AnswerToGone, of.node_end);
            return self.gone.push((number, link));
        }
        if of.waiting(Way::Down) >= self.plan.link_capacity {
            of.full[usize::from(lane)] = true;
            self.full.push((number, link, messages));
            return;
        }
        let (live, mut pages) = match self.plan.page_lag {
            Some(_) => messages.into_iter().partition(|message| !matches!(message, FromShard::Page { .. })),
            None => (messages, Vec::new()),
        };
        if !live.is_empty() {
            let batch = Batch::FromShard { lane, messages: live };
            self.put_on_link(at, Way::Down, batch, time);
        }
        if !pages.is_empty() {
            let space = if self.healed { PAGES_HEALED } else { self.plan.link_capacity };
            if self.links[usize::from(at)].pages_waiting() >= space {
                // Their stream is full: the question is answered all the same.
                for message in &mut pages {
                    if let FromShard::Page { page, .. } = message {
                        *page = Err(Code::Overloaded.error("too many pages wait"));
                    }
                }
            }
            let lag = self.page_random.below(self.plan.page_lag.unwrap_or_default() + 1);
            let batch = Batch::FromShard { lane, messages: pages };
            self.put_on_link(at, Way::Pages, batch, time + lag);
        }
        if self.network_random.chance(self.plan.link_resets) {
            self.reset_link(at);
        }
    }

    /// Puts a batch on its way, and plans its arrival.
    pub fn put_on_link(&mut self, at: u16, way: Way, batch: Batch, time: Time) {
        let link = &mut self.links[usize::from(at)];
        let life = link.life;
        let time = link.put(way, batch, time);
        self.schedule.at(time, Event::LinkArrives { link: at, life, way });
    }

    /// One batch has left the link at its other end.
    pub fn node_link_took(&mut self, at: u16) {
        let (gateway, node) = self.ends_of(at);
        for lane in [0_u8, 1] {
            let link = &mut self.links[usize::from(at)];
            if link.node_end && std::mem::replace(&mut link.full[usize::from(lane)], false) {
                // Told when the node runs: a frozen one sees it later.
                let id = link.id(gateway, lane);
                let run = self.nodes[usize::from(node)].process.run;
                self.schedule.after(10, Event::LinkTook { node, run, link: id });
            }
        }
    }

    pub fn link_took(&mut self, node: u8, link: LinkId) {
        self.shard(node, Input::LinkTook(link));
        self.turn(Who::Node(node));
    }

    fn notify(&mut self, number: u8, user: UserId, push: Arc<v1::server_frame::Body>) {
        let slots = SlotCount::new(self.plan.slots).unwrap_or_default();
        let slot = usize::from(user_slot(user.as_str(), slots).0);
        let Some(ring) = &self.nodes[usize::from(number)].ring else { return };
        let Some(key) = &ring.owners[slot] else { return };
        let owner = key.incarnation;
        self.send_run(number, owner, PeerMessage::Notify { user, push });
    }

    /// To a run of another node (or of this one), if it is reached; nobody waits for an answer for ever.
    fn send_run(&mut self, from: u8, to: Incarnation, message: PeerMessage) {
        let Some(&(to, run)) = self.incarnations.get(&to) else { return };
        if self.coordination.is_cut(from, to) {
            return;
        }
        let delay = self.link_delay();
        self.schedule.after(delay, Event::Peer { from, to, run, message: Box::new(message) });
    }

    /// A gateway's clients wait for a slot: every run that lives is told, sooner or later.
    pub fn want(&mut self, slot: SlotId) {
        for to in 0..self.nodes.len() as u8 {
            let process = &self.nodes[usize::from(to)].process;
            if process.up {
                let run = process.run;
                let delay = self.link_delay();
                let message = Box::new(PeerMessage::Wanted(slot));
                self.schedule.after(delay, Event::Peer { from: to, to, run, message });
            }
        }
    }

    pub fn peer_message(&mut self, number: u8, message: PeerMessage) {
        if !self.nodes[usize::from(number)].process.up {
            return;
        }
        match message {
            PeerMessage::State { slot, epoch, complete, rooms } => {
                self.shard(number, Input::Handed { slot: SlotId(slot), epoch, rooms });
                self.slot(number, slot, slot_owner::Input::StatePassed { epoch, complete });
            }
            PeerMessage::AskReady(by) => self.router(number, node::Input::ReadyAsked { by }),
            PeerMessage::Ready(by) => self.router(number, node::Input::Ready { incarnation: by.incarnation }),
            PeerMessage::Wanted(slot) => self.router(number, node::Input::Wanted { slots: vec![slot] }),
            PeerMessage::Notify { user, push } => {
                // No gateway has this number.
                let link = LinkId(u32::MAX);
                self.shard(number, Input::Link { link, message: ToShard::Notify { user, push } });
            }
        }
        self.turn(Who::Node(number));
    }

    // ------------------------------------------------------------ slots

    fn slot(&mut self, number: u8, slot: u16, input: slot_owner::Input) {
        self.router(number, node::Input::Slot { slot: SlotId(slot), input });
    }

    /// One input of the router, and what follows from it.
    pub fn router(&mut self, number: u8, input: node::Input) {
        let now = self.node_now(number).mono_ms;
        self.input(0x200 | u64::from(number));
        let Some(ring) = &mut self.nodes[usize::from(number)].ring else { return };
        let mut actions = Vec::new();
        ring.node.handle(now, input, &mut actions);
        let run = self.nodes[usize::from(number)].process.run;
        for action in actions {
            if self.nodes[usize::from(number)].process.run == run {
                self.router_action(number, action);
            }
        }
        self.turn(Who::Node(number));
    }

    fn router_action(&mut self, number: u8, action: node::Action) {
        let who = Who::Node(number);
        let mine = (Key::Node(number), self.node_entry(number));
        match action {
            node::Action::RegisterIncarnation => {
                let incarnation = self.nodes[usize::from(number)].incarnation;
                let change = Change::Incarnation(incarnation, format!("n{number}"));
                self.ask_store_to_write(number, Asked::Register, change);
            }
            node::Action::Join { entry } => {
                let ttl = self.plan.ttl;
                self.etcd_ask(who, Ask::Grant(ttl), Tag::Ring(RingTag::Grant(Box::new(entry))));
            }
            node::Action::KeepAlive => {
                let lease = self.lease(number);
                self.etcd_ask(who, Ask::KeepAlive(lease), Tag::Ring(RingTag::KeepAlive));
            }
            node::Action::PutNode { entry } => {
                let lease = Some(self.lease(number));
                let put = vec![(Key::Node(number), Some(Value::Node(entry)))];
                let compare = vec![mine];
                self.etcd_ask(who, Ask::Transact { compare, put, lease }, Tag::Ring(RingTag::NodePut));
            }
            node::Action::Revoke => {
                let lease = self.lease(number);
                self.etcd_ask(who, Ask::Revoke(lease), Tag::Ring(RingTag::Revoke));
            }
            node::Action::CasTarget { expect, new } => {
                let compare = vec![(Key::Target, expect.map(Value::Target))];
                let put = vec![(Key::Target, Some(Value::Target(new)))];
                self.etcd_ask(who, Ask::Transact { compare, put, lease: None }, Tag::Ring(RingTag::Target));
            }
            node::Action::ReadNode { incarnation } => {
                let node = self.incarnations.get(&incarnation).map_or(u8::MAX, |(node, _)| *node);
                self.etcd_ask(who, Ask::Get(Key::Node(node)), Tag::Ring(RingTag::NodeRead(incarnation)));
            }
            node::Action::WriteFence { incarnation } => {
                self.ask_store_to_write(number, Asked::Fenced(incarnation), Change::Fence(incarnation));
            }
            node::Action::DeleteNode { peer } => {
                let Some(&(node, _)) = self.incarnations.get(&peer.incarnation) else { return };
                let there = self.coordination.etcd.get(&Key::Node(node)).cloned();
                let names =
                    matches!(&there, Some(Value::Node(entry)) if entry.incarnation == peer.incarnation);
                if names {
                    let (compare, put) = (vec![(Key::Node(node), there)], vec![(Key::Node(node), None)]);
                    self.etcd_ask(
                        who,
                        Ask::Transact { compare, put, lease: None },
                        Tag::Ring(RingTag::Nothing),
                    );
                }
            }
            node::Action::AskReady { peer } => {
                self.send_run(number, peer.incarnation, PeerMessage::AskReady(self.peer(number)))
            }
            node::Action::SayReady { to } => {
                self.send_run(number, to.incarnation, PeerMessage::Ready(self.peer(number)))
            }
            node::Action::WriteFrozen { slot, why, expect } => {
                sometimes!(self.coverage, Frozen);
                self.recorder.note(|| format!("n{number} freezes ownership because of slot {slot}: {why:?}"));
                let put = vec![(Key::Frozen, Some(Value::Frozen))];
                let compare = vec![(Key::Slot(slot.0), expect.map(Value::Slot))];
                let ask = Ask::Transact { compare, put, lease: None };
                self.etcd_ask(who, ask, Tag::Ring(RingTag::Frozen));
            }
            node::Action::Slot { slot, action } => self.slot_action(number, slot.0, action),
            node::Action::Dead { why } => {
                sometimes!(self.coverage, Fenced, why == End::Fenced);
                self.rejoin(number, &format!("{why:?}"));
            }
            node::Action::Left => {
                self.recorder.note(|| format!("n{number} has left"));
                sometimes!(self.coverage, Left);
                // Started again when its stop is over.
                self.crash(who);
            }
        }
    }

    fn peer(&self, number: u8) -> Peer {
        Peer { node: node_id(number), incarnation: self.nodes[usize::from(number)].incarnation }
    }

    fn lease(&self, number: u8) -> Lease {
        let ring = self.nodes[usize::from(number)].ring.as_ref();
        ring.and_then(|ring| ring.lease).unwrap_or(Lease(0))
    }

    /// What etcd shows of this node, if it is of this run.
    fn node_entry(&self, number: u8) -> Option<Value> {
        let mine = self.nodes[usize::from(number)].incarnation;
        let there = self.coordination.etcd.get(&Key::Node(number)).cloned();
        // Another run's is something that no compare will hold for.
        match there {
            Some(Value::Node(entry)) if entry.incarnation == mine => Some(Value::Node(entry)),
            _ => Some(Value::Frozen),
        }
    }

    fn slot_action(&mut self, number: u8, slot: u16, action: slot_owner::Action) {
        use slot_owner::Action;
        let who = Who::Node(number);
        let id = SlotId(slot);
        match action {
            Action::ReadKey => {
                self.etcd_ask(who, Ask::Get(Key::Slot(slot)), Tag::Ring(RingTag::SlotRead(slot)))
            }
            Action::Cas { expect, new } => {
                let compare = vec![(Key::Slot(slot), expect.map(Value::Slot)), (Key::Frozen, None)];
                let put = vec![(Key::Slot(slot), Some(Value::Slot(new)))];
                self.etcd_ask(
                    who,
                    Ask::Transact { compare, put, lease: None },
                    Tag::Ring(RingTag::SlotCas(slot)),
                );
            }
            Action::PutOwner { row, closes } => {
                let owner = SlotOwner {
                    epoch: row.tenure.epoch,
                    incarnation: row.tenure.incarnation,
                    closed: row.closed,
                };
                let closes = closes.map(|tenure| (tenure.epoch, tenure.incarnation));
                let change = Change::SlotOwner { slot: id, owner, closes };
                self.ask_store_to_write(number, Asked::SlotPut(slot, row), change);
            }
            Action::ReadOwners => self.ask_store(number, Asked::SlotOwners(slot), Question::SlotOwners(id)),
            Action::ReadOwnFence => {
                let incarnation = self.nodes[usize::from(number)].incarnation;
                self.ask_store(number, Asked::SlotOwnFence(slot), Question::Fenced(incarnation));
            }
            Action::Serve { tenure, opening } => {
                self.recorder
                    .note(|| format!("n{number} serves slot {slot} at epoch {}: {opening:?}", tenure.epoch));
                self.slot_served(slot, tenure.epoch, tenure.incarnation.0);
                let opening = match opening {
                    slot_owner::Opening::Full => SlotOpening::Full,
                    slot_owner::Opening::HandedOver { state } => SlotOpening::HandedOver { state },
                };
                self.shard(number, Input::Serve { slot: id, tenure, opening });
            }
            Action::Drain { drain } => {
                self.recorder.note(|| format!("n{number} drains slot {slot}"));
                self.shard(number, Input::Drain { slot: id, drain });
            }
            Action::SendState { to, epoch, complete } => {
                let Some(ring) = &mut self.nodes[usize::from(number)].ring else { return };
                let rooms = ring.drained.remove(&slot).unwrap_or_default();
                let from = self.nodes[usize::from(number)].incarnation;
                self.coordination.handoffs.insert(slot, (from.0, to.incarnation.0));
                self.send_run(number, to.incarnation, PeerMessage::State { slot, epoch, complete, rooms });
            }
            Action::Resume { tenure } => {
                self.recorder.note(|| format!("n{number} resumes slot {slot} at epoch {}", tenure.epoch));
                self.slot_served(slot, tenure.epoch, tenure.incarnation.0);
                self.shard(number, Input::Resume { slot: id, tenure });
            }
            Action::Release { to } => {
                self.recorder.note(|| format!("n{number} releases slot {slot}"));
                self.shard(number, Input::Release { slot: id, to });
            }
            Action::ReadNode { .. } | Action::WriteFence { .. } | Action::Freeze { .. } | Action::Dead => {
                self.wrong(|| format!("n{number}: {action:?} is the node's, not a slot's"));
            }
        }
    }

    // ------------------------------------------------------------ the ring

    pub fn ring_watched(&mut self, number: u8, fresh: bool, changes: Vec<(Key, Option<Value>)>) {
        let mut listing = Listing { slots: Vec::new(), nodes: Vec::new(), target: None, frozen: false };
        for (key, value) in changes {
            let watched = match (key, value) {
                (Key::Slot(slot), Some(Value::Slot(key))) => {
                    self.slot_seen(number, slot, &key);
                    Watched::Slot { slot: SlotId(slot), key: Some(key) }
                }
                (Key::Slot(slot), _) => Watched::Slot { slot: SlotId(slot), key: None },
                (Key::Node(node), value) => {
                    let entry = match value {
                        Some(Value::Node(entry)) => Some(entry),
                        _ => None,
                    };
                    Watched::Node { node: node_id(node), entry }
                }
                (Key::Target, Some(Value::Target(target))) => Watched::Target(Some(target)),
                (Key::Target, _) => Watched::Target(None),
                (Key::Frozen, value) => Watched::Frozen(value.is_some()),
            };
            if !fresh {
                self.router(number, node::Input::Watched(watched));
                continue;
            }
            match watched {
                Watched::Slot { slot, key } => listing.slots.extend(key.map(|key| (slot, key))),
                Watched::Node { node, entry } => listing.nodes.extend(entry.map(|entry| (node, entry))),
                Watched::Target(target) => listing.target = target,
                Watched::Frozen(frozen) => listing.frozen = frozen,
            }
        }
        if fresh {
            self.router(number, node::Input::Listed(Box::new(listing)));
        }
    }

    fn slot_seen(&mut self, number: u8, slot: u16, key: &SlotKey) {
        let me = self.nodes[usize::from(number)].incarnation;
        let Some(ring) = &mut self.nodes[usize::from(number)].ring else { return };
        ring.owners[usize::from(slot)] = Some(key.clone());
        let owner = Some(key.incarnation).filter(|owner| *owner != me);
        self.shard(number, Input::Owner { slot: SlotId(slot), epoch: key.epoch, owner });
    }

    /// The watch is broken; a new one will begin with all that there is.
    pub fn etcd_gone(&mut self, number: u8) {
        if self.nodes[usize::from(number)].generation != u32::MAX {
            self.nodes[usize::from(number)].generation = u32::MAX;
            self.router(number, node::Input::EtcdGone);
        }
    }

    pub fn ring_told(&mut self, number: u8, tag: RingTag, told: Told) {
        let who = Who::Node(number);
        let input = match (tag, told) {
            (RingTag::SlotRead(slot), told) => {
                let key = match told {
                    Told::Value(Some(Value::Slot(key))) => Ok(Some(key)),
                    Told::Value(_) => Ok(None),
                    _ => Err(slot_owner::Failed),
                };
                return self.slot(number, slot, slot_owner::Input::KeyRead(key));
            }
            (RingTag::SlotCas(slot), told) => {
                return self.slot(number, slot, slot_owner::Input::Cas(outcome_of(told)));
            }
            (RingTag::NodeRead(incarnation), told) => {
                let gone = match told {
                    Told::Value(Some(Value::Node(entry))) => Ok(entry.incarnation != incarnation),
                    Told::Value(_) => Ok(true),
                    _ => Err(slot_owner::Failed),
                };
                node::Input::NodeRead { incarnation, gone }
            }
            (RingTag::Grant(entry), Told::Granted(lease)) => {
                if let Some(ring) = &mut self.nodes[usize::from(number)].ring {
                    ring.lease = Some(lease);
                }
                let put = vec![(Key::Node(number), Some(Value::Node(*entry)))];
                let ask = Ask::Transact { compare: Vec::new(), put, lease: Some(lease) };
                return self.etcd_ask(who, ask, Tag::Ring(RingTag::NodeKey));
            }
            (RingTag::Grant(_), _) => node::Input::Joined(Err(slot_owner::Failed)),
            (RingTag::NodeKey, Told::Won) => node::Input::Joined(Ok(())),
            (RingTag::NodeKey, _) => node::Input::Joined(Err(slot_owner::Failed)),
            (RingTag::NodePut, told) => node::Input::NodePut(match told {
                Told::Won => Ok(true),
                Told::Lost(_) => Ok(false),
                _ => Err(slot_owner::Failed),
            }),
            (RingTag::KeepAlive, told) => node::Input::KeptAlive(match told {
                Told::Alive(true) => KeptAlive::Done,
                Told::Alive(false) => KeptAlive::LeaseGone,
                _ => KeptAlive::Failed,
            }),
            (RingTag::Revoke, _) => node::Input::Revoked,
            (RingTag::Target, told) => node::Input::TargetCas(match told {
                Told::Won => TargetOutcome::Won,
                Told::Lost(Some(Value::Target(target))) => TargetOutcome::Lost(Some(target)),
                Told::Lost(_) => TargetOutcome::Lost(None),
                _ => TargetOutcome::Unknown,
            }),
            (RingTag::Frozen, told) => node::Input::FrozenWritten(outcome_of(told)),
            (RingTag::Nothing, _) => return,
        };
        self.router(number, input);
    }

    /// An operator moves a slot by hand.
    pub fn pin(&mut self, slot: u16, node: u8) {
        let Some(Value::Target(old)) = self.coordination.etcd.get(&Key::Target).cloned() else { return };
        if self.coordination.down {
            return;
        }
        let mut new = Target::clone(&old);
        new.pin(SlotId(slot), Some(node_id(node)));
        let members = new.members().to_vec();
        let new = target::solve(&new, members);
        self.coordination.etcd.transact(&[], vec![(Key::Target, Some(Value::Target(Arc::new(new))))], None);
        for node in 0..self.plan.nodes {
            self.watch_soon(Who::Node(node));
        }
    }

    pub fn stop_node(&mut self, number: u8) {
        if !self.nodes[usize::from(number)].process.frozen {
            self.router(number, node::Input::Drain);
        }
    }

    /// Whoever has left starts again; who could not in this time goes on as it is.
    pub fn stop_ends(&mut self, number: u8) {
        let process = &self.nodes[usize::from(number)].process;
        if process.frozen || self.is_broken(Who::Node(number)) {
            return;
        }
        if process.up {
            self.rejoin(number, "it was stopped");
        } else {
            let run = process.run;
            self.schedule.after(START, Event::Start { who: Who::Node(number), run });
        }
    }
}

/// Of a transaction that compares a slot's key.
fn outcome_of(told: Told) -> CasOutcome {
    match told {
        Told::Won => CasOutcome::Won,
        Told::Lost(Some(Value::Slot(key))) => CasOutcome::Lost(Some(key)),
        Told::Lost(_) => CasOutcome::Lost(None),
        _ => CasOutcome::Unknown,
    }
}

pub fn node_id(number: u8) -> NodeId {
    NodeId::parse(&format!("n{number}")).expect("a node's name")
}

pub fn row_of(owner: SlotOwner) -> OwnerRow {
    let tenure = banyan_proto::id::Tenure { epoch: owner.epoch, incarnation: owner.incarnation };
    OwnerRow { tenure, closed: owner.closed }
}

fn read_answer(kind: ReadKind, answer: Answer) -> ReadAnswer {
    let reading = match answer {
        Answer::Read(reading) => Some(reading),
        _ => None,
    };
    match (kind, reading) {
        (ReadKind::Segments, Some(Reading::Segments(records))) => ReadAnswer::Segments(Ok(records)),
        (ReadKind::Segments, _) => ReadAnswer::Segments(Err(Failed)),
        (ReadKind::Said, Some(Reading::Said(said))) => ReadAnswer::Said(Ok(said)),
        (ReadKind::Said, _) => ReadAnswer::Said(Err(Failed)),
        (ReadKind::Rows, Some(Reading::Rows(rows, more))) => ReadAnswer::Rows(Ok(Page { rows, more })),
        (ReadKind::Rows, _) => ReadAnswer::Rows(Err(Failed)),
        (ReadKind::Room, Some(Reading::Room(row, members))) => {
            ReadAnswer::Room(Ok(Box::new(RoomRead { row, members })))
        }
        (ReadKind::Room, _) => ReadAnswer::Room(Err(Failed)),
        (ReadKind::UserRooms, Some(Reading::UserRooms(rooms, more))) => {
            ReadAnswer::UserRooms(Ok((rooms, more)))
        }
        (ReadKind::UserRooms, _) => ReadAnswer::UserRooms(Err(Failed)),
    }
}
