//! One worker of a shard: the only writer of the rooms in the slots that it serves, and the home of user channels.
//!
//! Owns: its slots, its open rooms, its part of the user channels, what waits for links, and the [`Gate`].
//! Always holds: what concerns a room is said in the name of the slot's newest tenure, in order, and only after a fence read
//! that began after it was decided (DESIGN.md, section 5, rule 5); after a slot is drained nothing more is said for it;
//! once fenced the worker is silent for ever (rule 6); every question is answered once, unless its link or the tenure that
//! it was asked under is gone. Nothing waits for a slow party.
//! Does not: decide about a room ([`Room`]) or who owns a slot (`banyan-router`), nor touch store, channels and clocks: its
//! shell and the simulator carry out its [`Output`]s.

mod late_marks;
mod outbox;
mod rooms;
mod slots;
mod tickets;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::id::{Epoch, Incarnation, LogId, Part, RoomId, SegmentId, Seq, SlotId, Tenure, UserId};
use banyan_proto::link::{Answer, FromShard, LinkId, Ticket, ToShard};
use banyan_proto::v1;
use banyan_router::{SlotCount, slot_of, user_slot};
use banyan_storage::Outcome;
use banyan_storage::log_store::{RoomWrite, Said, SegmentRecord, Span, Write};
use banyan_storage::{Marks, Page, Range, ReadLimit, RoomPage};

use crate::config::Config;
use crate::gate::{Ended, Gate, ReadId, Why};
use crate::log::Failed;
use crate::room::{self, Action, Beacon, HandedRoom, Now, PullRequest, Room, RoomRead, Start};
use late_marks::LateMarks;
use outbox::{Missed, Outbox};
use rooms::{Place, Rooms};
use slots::{Phase, Slots};
use tickets::Tickets;
use users::Users;

/// How often idle rooms are looked for, at least.
const SWEEP_MS: u64 = 60_000;
/// What waits at the gate before rooms make no further batches: their own queues fill then, and answer 112. Above it are
/// only answers to questions, which gateways bound. A second of 65,000 sends; longer than two the gate never waits.
const GATE_MAX: usize = 65_536;

/// What one worker is told of itself.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which worker of the process this is: it is asked of the slots that [`banyan_router::worker_of`] gives it.
    pub index: usize,
    pub workers: usize,
    pub slots: SlotCount,
    /// The run of the node.
    pub incarnation: Incarnation,
    /// Seeds the ids of new logs; random per worker and run.
    pub seed: u64,
    /// Rooms that this worker holds open. Above it the longest unused one that nobody listens to is closed; if there is
    /// none, a further room is answered 112.
    pub open_rooms: usize,
    /// A room that nobody listens to and that nothing happens in is closed after this time.
    pub idle_ms: u64,
    pub room: Arc<Config>,
}

/// What can happen to a worker. Any number of them, then [`Input::EndTurn`].
#[derive(Debug, Clone)]
pub enum Input {
    Link {
        link: LinkId,
        message: ToShard,
    },
    /// Nobody is at the other end: what the link wanted is forgotten.
    LinkGone(LinkId),
    /// The link has not taken its last batch. It gets nothing more until [`Input::LinkTook`].
    LinkFull {
        link: LinkId,
        messages: Vec<FromShard>,
    },
    LinkTook(LinkId),

    /// The node owns the slot in this tenure, and has registered: the worker may write and speak for it. Over an older
    /// tenure of the slot: that one's rooms are dropped where they stand.
    Serve {
        slot: SlotId,
        tenure: Tenure,
        opening: SlotOpening,
    },
    /// What an old owner passes on, made for the epoch that follows its own. Comes before the [`Input::Serve`] that uses
    /// it, or is not used.
    Handed {
        slot: SlotId,
        epoch: Epoch,
        rooms: Vec<HandedRoom>,
    },
    /// Admit nothing more for the slot, complete what is in flight, then [`Output::Drained`] with the same number.
    Drain {
        slot: SlotId,
        drain: u32,
    },
    /// It stays ours: by a compare-and-swap of our own with a new epoch, registered; or in the same tenure, because the
    /// drain was called off before anybody else could have got it.
    Resume {
        slot: SlotId,
        tenure: Tenure,
    },
    /// It is not ours any more; `to`: the newest ownership known.
    Release {
        slot: SlotId,
        to: Option<Tenure>,
    },
    /// Whose a slot is that we do not serve, as far as is known now.
    Owner {
        slot: SlotId,
        epoch: Epoch,
        owner: Option<Incarnation>,
    },

    /// Answers [`Output::FenceRead`]. True: this incarnation is fenced.
    FenceRead {
        read: ReadId,
        result: Result<bool, Failed>,
    },
    /// Answers [`Output::Write`].
    Wrote {
        ticket: u64,
        outcome: Outcome,
    },
    /// Answers [`Output::Read`] with the answer of its kind.
    Read {
        ticket: u64,
        answer: ReadAnswer,
    },
    /// A deadline has passed.
    Tick,
    /// All inputs of this turn are in: rooms make their batches, a fence read begins if somebody waits, each link gets what
    /// there is for it. Again after a [`Input::FenceRead`] that was answered within the turn.
    EndTurn,
    /// The process ends: rooms admit nothing more (108), and are closed when what is in flight is done.
    Stop,
}

/// How the rooms of a slot may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotOpening {
    /// By reading their logs and writing the newest part of them again.
    Full,
    /// As [`Input::Handed`] of this epoch says; rooms that it does not name in full.
    HandedOver { state: Epoch },
}

/// What to ask the store about a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    Segments,
    Said,
    Rows {
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    },
    /// The room's row and all members, present and past.
    Room,
}

#[derive(Debug, Clone)]
pub enum ReadAnswer {
    Segments(Result<Vec<SegmentRecord>, Failed>),
    Said(Result<Option<Said>, Failed>),
    Rows(Result<Page, Failed>),
    Room(Result<Box<RoomRead>, Failed>),
    UserRooms(Result<RoomPage, Failed>),
}

/// What the shell must do, in order. Nothing of it is waited for.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Answered once by [`Input::Wrote`].
    Write(RoomWrite),
    /// Answered once by [`Input::Read`].
    Read {
        ticket: u64,
        room: RoomId,
        read: Read,
    },
    /// Answered once by [`Input::Read`].
    UserRooms {
        ticket: u64,
        user: UserId,
        after: Option<RoomId>,
        limit: u32,
    },
    PutMarks {
        room: RoomId,
        marks: Vec<(UserId, Marks)>,
    },
    /// Ask the store now whether this incarnation is fenced; answered once by [`Input::FenceRead`].
    FenceRead {
        read: ReadId,
    },
    /// What there is for a link: at most one for each and turn.
    ToLink {
        link: LinkId,
        messages: Vec<FromShard>,
    },
    /// To the owner of the user's channel, where it arrives as [`ToShard::Notify`].
    Notify {
        user: UserId,
        push: Arc<v1::server_frame::Body>,
    },
    /// Nothing is in flight for the slot, all that was said has passed the gate, and nothing more is said. The rooms are
    /// what its next owner, of the epoch that follows, may be handed.
    Drained {
        slot: SlotId,
        drain: u32,
        tenure: Tenure,
        rooms: Vec<HandedRoom>,
    },
    /// The fence was seen: the worker has dropped everything, and the node is dead under this incarnation.
    Fenced,
    /// The worker may not go on under this incarnation: the fence could not be read for too long.
    Stuck,
    /// The store gave back what cannot have been written: a person must look.
    Damaged {
        room: RoomId,
        after: Seq,
    },
    /// The room has more segments than can be read, so it cannot be opened: a person must look.
    TooManySegments {
        room: RoomId,
    },
}

/// Counts since the start, for metrics. Plain numbers: the shell publishes differences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub sends_stored: u64,
    pub sends_duplicate: u64,
    /// Messages that a full link did not take (head beacons and pulls repair events, absences are told again).
    pub link_dropped: u64,
    pub rooms_opened: u64,
    pub rooms_closed: u64,
    /// Rooms that went on from what an old owner had passed on.
    pub opened_passed: u64,
    /// Rooms that began a segment of their own, and further segments that they began.
    pub opened_in_full: u64,
    pub rolls: u64,
    /// Rooms that were closed without having begun one: they were only read, or went on in one of an earlier life.
    pub read_only: u64,
    /// Reads of logs for pages and twins, and of what opens rooms.
    pub reads: u64,
    pub fence_reads: u64,
    /// What was never said because the fence was seen.
    pub silenced: u64,
    /// Rooms that opened again, and knew of higher marks than the store.
    pub late_marks_used: u64,
    /// Marks that were forgotten before the store can be trusted to have them: [`late_marks`] was full.
    pub late_marks_forgotten: u64,
    /// Questions that were sent elsewhere.
    pub moved: u64,
    /// Error answers by code.
    pub errors: BTreeMap<u32, u64>,
}

/// What waits at the gate.
#[derive(Debug, Clone, PartialEq)]
enum Utterance {
    ToLink {
        link: LinkId,
        message: FromShard,
    },
    Notify {
        user: UserId,
        push: Arc<v1::server_frame::Body>,
    },
    /// Told to the store.
    Marks {
        room: RoomId,
        marks: Vec<(UserId, Marks)>,
    },
    /// A room waits for a barrier.
    Barrier {
        place: Place,
        ticket: u32,
    },
    /// Where a log ended when its room was closed.
    Said {
        room: RoomId,
        said: Said,
    },
    /// Before it stands all that is ever said for the slot in this tenure.
    Last {
        slot: SlotId,
        drain: u32,
    },
}

/// Whose question a ticket of the store is.
#[derive(Debug, Clone)]
enum Asked {
    Room { place: Place, ticket: u32 },
    Said,
    UserRooms { link: LinkId, ticket: Ticket },
}

#[derive(Debug, Clone)]
pub struct Worker {
    options: Options,
    /// State of the generator of log ids.
    random: u64,
    slots: Slots,
    rooms: Rooms,
    late_marks: LateMarks,
    users: Users,
    /// Of each link that has said something. Bound: the links of the process.
    outboxes: BTreeMap<LinkId, Outbox>,
    gate: Gate<Utterance>,
    tickets: Tickets<Asked>,
    /// Slots that drain and have something in flight.
    draining: BTreeSet<SlotId>,
    counters: Counters,
    sweep_ms: u64,
    stopping: bool,
    /// Fenced.
    dead: bool,
    /// Said once.
    stuck: bool,

    // What a turn collects; kept for their memory.
    actions: Vec<Action>,
    touched: Vec<Place>,
    released: Vec<Utterance>,
}

impl Worker {
    pub fn new(options: Options, now: Now) -> Self {
        let slots = Slots::new(options.incarnation, options.slots, options.workers, options.index);
        Self {
            random: options.seed,
            rooms: Rooms::new(options.room.hash_seed, slots.len()),
            late_marks: LateMarks::default(),
            slots,
            users: Users::new(options.room.hash_seed),
            outboxes: BTreeMap::new(),
            gate: Gate::new(),
            tickets: Tickets::default(),
            draining: BTreeSet::new(),
            counters: Counters::default(),
            sweep_ms: now.mono_ms + SWEEP_MS.min(options.idle_ms).max(1),
            stopping: false,
            dead: false,
            stuck: false,
            actions: Vec::new(),
            touched: Vec::new(),
            released: Vec::new(),
            options,
        }
    }

    /// Applies one input and pushes what must be done onto `out`.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Output>) {
        if self.dead {
            return;
        }
        match input {
            Input::Link { link, message } => self.message(now, link, message, out),
            Input::LinkGone(link) => self.link_gone(now, link, out),
            Input::LinkFull { link, messages } => {
                if let Some(outbox) = self.outboxes.get_mut(&link) {
                    self.counters.link_dropped += outbox.given_back(messages);
                }
            }
            Input::LinkTook(link) => self.link_took(now, link, out),
            Input::Serve { slot, tenure, opening } => self.serve(now, slot, tenure, opening, out),
            Input::Handed { slot, epoch, rooms } => {
                if let Some(slot) = self.slots.get_mut(slot) {
                    slot.hand(now.mono_ms, epoch, rooms);
                }
            }
            Input::Drain { slot, drain } => self.drain(now, slot, drain, out),
            Input::Resume { slot, tenure } => self.resume(now, slot, tenure, out),
            Input::Release { slot, to } => self.release(now, slot, to, out),
            Input::Owner { slot, epoch, owner } => {
                if let Some(slot) = self.slots.get_mut(slot) {
                    slot.learn(epoch, owner);
                }
            }
            Input::FenceRead { read, result } => self.fence_read(now, read, result, out),
            Input::Wrote { ticket, outcome } => {
                if let Some(Asked::Room { place, ticket }) = self.tickets.take(ticket) {
                    self.input(now, place, room::Input::Wrote { ticket, outcome }, out);
                }
            }
            Input::Read { ticket, answer } => self.read(now, ticket, answer, out),
            Input::Tick => self.tick(now, out),
            Input::EndTurn => self.end_turn(now, out),
            Input::Stop => self.stopping = true,
        }
    }

    /// When the caller must send [`Input::Tick`] and [`Input::EndTurn`] if nothing else happens first.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.dead {
            return None;
        }
        [self.rooms.next_wake(), self.gate.next_deadline(), Some(self.sweep_ms)].into_iter().flatten().min()
    }

    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Open rooms, users with a channel, slots served: for gauges.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.rooms.len(), self.users.len(), self.slots.serving())
    }

    /// What was decided and waits for a fence read, for a gauge.
    pub fn unsaid(&self) -> usize {
        self.gate.len()
    }

    pub const fn is_fenced(&self) -> bool {
        self.dead
    }

    /// After [`Input::Stop`]: every room is closed, nothing is under way and every answer is with its link.
    pub fn is_done(&self) -> bool {
        self.dead
            || (self.stopping
                && self.rooms.len() == 0
                && self.tickets.is_empty()
                && self.gate.is_empty()
                && !self.outboxes.values().any(Outbox::holds_answers))
    }

    /// In whose name the worker speaks for a slot.
    pub fn serves(&self, slot: SlotId) -> Option<Tenure> {
        let slot = self.slots.get(slot)?;
        slot.tenure.filter(|_| slot.phase == Phase::Serving)
    }

    // ---------------------------------------------------------------- links

    fn message(&mut self, now: Now, link: LinkId, message: ToShard, out: &mut Vec<Output>) {
        match message {
            ToShard::Room { room, call } => {
                let ticket = call.ticket;
                if self.stopping {
                    let error = Code::Unavailable.error("the server is stopping: come back");
                    return self.refuse(now, link, ticket, &room, error);
                }
                match self.open(now, &room, out) {
                    Opened::At(place) => self.input(now, place, room::Input::Call { link, call }, out),
                    Opened::Elsewhere(slot) => self.moved(link, slot, Some(ticket)),
                    Opened::TooMany => {
                        let error = self.too_many_rooms();
                        self.refuse(now, link, ticket, &room, error);
                    }
                }
            }
            ToShard::Pull { room, ticket, after, through, max_events, max_bytes } => {
                match self.open(now, &room, out) {
                    Opened::At(place) => {
                        let pull = PullRequest { link, ticket, after, through, max_events, max_bytes };
                        self.input(now, place, room::Input::Pull(pull), out);
                    }
                    Opened::Elsewhere(slot) => self.moved(link, slot, Some(ticket)),
                    Opened::TooMany => {
                        let page = Err(self.too_many_rooms());
                        let epoch = self.epoch_of(&room);
                        self.say(now, Why::Asked, link, FromShard::Page { ticket, room, epoch, page });
                    }
                }
            }
            ToShard::Interest { room, after } => match self.open(now, &room, out) {
                Opened::At(place) => self.input(now, place, room::Input::Interest { link, after }, out),
                Opened::Elsewhere(slot) => self.moved(link, slot, None),
                // Nothing will come; who asks states it again, or learns of the room by its own pulls.
                Opened::TooMany => {}
            },
            ToShard::Uninterest { room } => {
                if let Some(place) = self.rooms.find(&room).map(|entry| entry.place) {
                    self.input(now, place, room::Input::Uninterest { link }, out);
                }
            }
            ToShard::UserOnline { user } => {
                let slot = user_slot(user.as_str(), self.options.slots);
                if self.slots.is_serving(slot) {
                    self.outboxes.entry(link).or_default();
                    self.users.online(user, slot, link);
                } else {
                    self.moved(link, slot, None);
                }
            }
            ToShard::UserOffline { user } => self.users.offline(&user, link),
            ToShard::UserRooms { ticket, user, after, limit } => {
                let slot = user_slot(user.as_str(), self.options.slots);
                if self.slots.is_serving(slot) {
                    self.outboxes.entry(link).or_default();
                    let ticket = self.tickets.give(Asked::UserRooms { link, ticket });
                    out.push(Output::UserRooms { ticket, user, after, limit });
                } else {
                    self.moved(link, slot, Some(ticket));
                }
            }
            // Said by the room's owner behind its own barrier; who does not own the channel any more drops it, as a full
            // link would: clients ask for the truth when they come.
            ToShard::Notify { user, push } => {
                for link in self.users.links(&user) {
                    if let Some(outbox) = self.outboxes.get_mut(link) {
                        let message = FromShard::User { user: user.clone(), push: Arc::clone(&push) };
                        self.counters.link_dropped += outbox.push(message);
                    }
                }
            }
            // Says nothing of a room, and only that somebody should look: it waits for no barrier.
            ToShard::LoginsEnded { user } => {
                for link in self.users.links(&user) {
                    if let Some(outbox) = self.outboxes.get_mut(link) {
                        let message = FromShard::LoginsEnded { user: user.clone() };
                        self.counters.link_dropped += outbox.push(message);
                    }
                }
            }
        }
    }

    fn link_gone(&mut self, now: Now, link: LinkId, out: &mut Vec<Output>) {
        self.outboxes.remove(&link);
        self.users.link_gone(link);
        for place in self.rooms.places() {
            if self.rooms.entry(place).is_some_and(|entry| entry.room.wants(link)) {
                self.input(now, place, room::Input::Uninterest { link }, out);
            }
        }
    }

    /// Tells a link that takes something again what it has missed: of rooms where they stand, and who has left them.
    fn link_took(&mut self, now: Now, link: LinkId, out: &mut Vec<Output>) {
        let Some(outbox) = self.outboxes.get_mut(&link) else { return };
        let Missed { dirty, unheard } = outbox.took();
        for (room, after) in &unheard {
            self.tell_absences(now, link, room, *after, out);
        }
        for room in dirty {
            if unheard.contains_key(&room) {
                continue;
            }
            let Some(entry) = self.rooms.find(&room) else { continue };
            if entry.silent || !entry.room.wants(link) {
                continue;
            }
            if let Some(beacon) = entry.room.beacon() {
                self.say(now, Why::Asked, link, head(room, beacon));
            }
        }
    }

    /// As if the link had stated its interest just now.
    fn tell_absences(&mut self, now: Now, link: LinkId, room: &RoomId, after: Seq, out: &mut Vec<Output>) {
        let slot = slot_of(room.as_str(), self.options.slots);
        if let Some(entry) = self.rooms.find(room).filter(|_| self.slots.is_serving(slot)) {
            let (place, wants) = (entry.place, entry.room.wants(link));
            if wants {
                self.input(now, place, room::Input::Interest { link, after }, out);
            }
            return;
        }
        // It states its interests to the next owner, from what it has heard of before all else that waits.
        let moved = self.moved_to(slot, None);
        if let Some(outbox) = self.outboxes.get_mut(&link) {
            outbox.push_first(moved);
        }
    }

    /// To somebody else, or to nobody yet. It says nothing of a room, and a slot's epochs order what is said of it: so it
    /// does not wait at the gate.
    fn moved(&mut self, link: LinkId, slot: SlotId, ticket: Option<Ticket>) {
        let message = self.moved_to(slot, ticket);
        self.outboxes.entry(link).or_default().push(message);
    }

    fn moved_to(&mut self, slot: SlotId, ticket: Option<Ticket>) -> FromShard {
        self.counters.moved += 1;
        let known = self.slots.known(slot);
        FromShard::Moved { slot, ticket, epoch: known.epoch, owner: known.owner }
    }

    fn too_many_rooms(&self) -> v1::Error {
        Code::Overloaded.error_retry_after("too many rooms are open", self.options.room.retry_after_ms)
    }

    fn epoch_of(&self, room: &RoomId) -> Epoch {
        let slot = self.slots.get(slot_of(room.as_str(), self.options.slots));
        slot.and_then(|slot| slot.tenure).map_or(Epoch(0), |tenure| tenure.epoch)
    }

    /// Answers in a slot's name what no room was asked.
    fn refuse(&mut self, now: Now, link: LinkId, ticket: Ticket, room: &RoomId, error: v1::Error) {
        let slot = slot_of(room.as_str(), self.options.slots);
        if !self.slots.is_serving(slot) {
            return self.moved(link, slot, Some(ticket));
        }
        let epoch = self.epoch_of(room);
        self.answer(now, link, ticket, epoch, Answer::Error(Box::new(error)));
    }

    fn answer(&mut self, now: Now, link: LinkId, ticket: Ticket, epoch: Epoch, answer: Answer) {
        let mut why = Why::Asked;
        match &answer {
            Answer::Sent { duplicate: true, .. } => self.counters.sends_duplicate += 1,
            Answer::Sent { .. } => {
                why = Why::Stored;
                self.counters.sends_stored += 1;
            }
            Answer::Error(error) => *self.counters.errors.entry(error.code).or_default() += 1,
            _ => {}
        }
        self.say(now, why, link, FromShard::Answer { ticket, epoch, answer });
    }

    /// Says something to a link, once the gate lets it through.
    fn say(&mut self, now: Now, why: Why, link: LinkId, message: FromShard) {
        self.gate.say(now.mono_ms, why, Utterance::ToLink { link, message });
    }

    // ---------------------------------------------------------------- slots

    fn serve(&mut self, now: Now, slot: SlotId, tenure: Tenure, opening: SlotOpening, out: &mut Vec<Output>) {
        if self.slots.get(slot).is_none() {
            return;
        }
        self.drop_rooms(now, slot, out);
        if let Some(entry) = self.slots.get_mut(slot) {
            let state = match opening {
                SlotOpening::Full => None,
                SlotOpening::HandedOver { state } => Some(state),
            };
            entry.serve(tenure, state);
        }
    }

    /// Forgets the rooms of a slot whose tenure is over. What waits in them goes to the next owner; of what was in flight
    /// nothing is known, and nothing is said.
    fn drop_rooms(&mut self, now: Now, slot: SlotId, out: &mut Vec<Output>) {
        self.draining.remove(&slot);
        let at = self.slots.at(slot);
        for place in self.rooms.in_slot(at).to_vec() {
            self.input(now, place, room::Input::Drain, out);
            self.forget(now, place);
        }
    }

    fn drain(&mut self, now: Now, slot: SlotId, drain: u32, out: &mut Vec<Output>) {
        let at = self.slots.at(slot);
        match self.slots.get_mut(slot) {
            Some(entry) if entry.phase == Phase::Serving => {
                (entry.phase, entry.drain) = (Phase::Draining, drain);
            }
            Some(_) | None => return,
        }
        self.draining.insert(slot);
        for place in self.rooms.in_slot(at).to_vec() {
            self.input(now, place, room::Input::Drain, out);
        }
    }

    fn resume(&mut self, now: Now, slot: SlotId, tenure: Tenure, out: &mut Vec<Output>) {
        let at = self.slots.at(slot);
        let Some(entry) = self.slots.get_mut(slot) else { return };
        if entry.tenure != Some(tenure) {
            return self.serve(now, slot, tenure, SlotOpening::Full, out);
        }
        // Rooms that are closed already are opened again, under names of their own.
        entry.phase = Phase::Serving;
        self.draining.remove(&slot);
        for place in self.rooms.in_slot(at).to_vec() {
            if let Some(entry) = self.rooms.entry(place) {
                entry.silent = false;
            }
            self.input(now, place, room::Input::Resume, out);
        }
    }

    fn release(&mut self, now: Now, slot: SlotId, to: Option<Tenure>, out: &mut Vec<Output>) {
        let Some(entry) = self.slots.get_mut(slot) else { return };
        entry.release(to);
        self.drop_rooms(now, slot, out);
        self.users.slot_gone(slot);
    }

    /// Lets slots go on whose rooms have nothing in flight any more.
    fn drain_on(&mut self, now: Now) {
        let settled: Vec<SlotId> = self
            .draining
            .iter()
            .copied()
            .filter(|slot| self.rooms.slot_is_settled(self.slots.at(*slot)))
            .collect();
        for slot in settled {
            self.draining.remove(&slot);
            let at = self.slots.at(slot);
            let Some(entry) = self.slots.get_mut(slot) else { continue };
            entry.phase = Phase::Silent;
            let drain = entry.drain;
            for place in self.rooms.in_slot(at).to_vec() {
                if let Some(entry) = self.rooms.entry(place) {
                    entry.silent = true;
                }
            }
            self.gate.say(now.mono_ms, Why::Stored, Utterance::Last { slot, drain });
        }
    }

    /// All that was said for the slot has passed the gate.
    fn drained(&mut self, now: Now, slot: SlotId, drain: u32, out: &mut Vec<Output>) {
        let at = self.slots.at(slot);
        let Some(entry) = self.slots.get_mut(slot) else { return };
        let Some(tenure) = entry.tenure else { return };
        // Called off, or a later drain has its own last word.
        if entry.phase != Phase::Silent || entry.drain != drain {
            return;
        }
        entry.phase = Phase::Drained;
        let mut rooms = Vec::new();
        for place in self.rooms.in_slot(at).to_vec() {
            // Before it is closed: the marks that it writes then wait for a barrier that this process may not live to see.
            rooms.extend(self.rooms.entry(place).and_then(|entry| entry.room.hand_over()));
            self.input(now, place, room::Input::Close, out);
            let Some(room) = self.forget(now, place) else { continue };
            if let Some(said) = room.said() {
                self.write_said(room.id().clone(), said, out);
            }
        }
        out.push(Output::Drained { slot, drain, tenure, rooms });
    }

    // ---------------------------------------------------------------- rooms

    /// Finds a room or opens it.
    fn open(&mut self, now: Now, room: &RoomId, out: &mut Vec<Output>) -> Opened {
        if let Some(entry) = self.rooms.find(room) {
            let (slot, place) = (entry.slot, entry.place);
            return if self.slots.is_serving(slot) { Opened::At(place) } else { Opened::Elsewhere(slot) };
        }
        let slot = slot_of(room.as_str(), self.options.slots);
        if !self.slots.is_serving(slot) {
            return Opened::Elsewhere(slot);
        }
        if self.rooms.len() >= self.options.open_rooms.max(1) {
            match self.rooms.closable() {
                Some(place) => self.close(now, place, out),
                None => return Opened::TooMany,
            }
        }
        let (at, fresh_log) = (self.slots.at(slot), self.fresh_log());
        let Some(entry) = self.slots.get_mut(slot) else { return Opened::Elsewhere(slot) };
        let (Some(tenure), Some(opening)) = (entry.tenure, entry.next_opening()) else {
            return Opened::TooMany;
        };
        let start = entry.start_of(room);
        self.counters.rooms_opened += 1;
        self.counters.opened_passed += u64::from(matches!(start, Start::Passed(_)));
        let config = Arc::clone(&self.options.room);
        let room = Room::new(room.clone(), tenure, opening, fresh_log, start, config);
        Opened::At(self.rooms.open(room, opening, slot, at, now.mono_ms))
    }

    /// Forgets a quiet room; where its log ends is written behind a barrier.
    fn close(&mut self, now: Now, place: Place, out: &mut Vec<Output>) {
        self.input(now, place, room::Input::Close, out);
        let Some(room) = self.forget(now, place) else { return };
        if let Some(said) = room.said() {
            let room = room.id().clone();
            self.gate.say(now.mono_ms, Why::Stored, Utterance::Said { room, said });
        }
    }

    fn forget(&mut self, now: Now, place: Place) -> Option<Room> {
        let entry = self.rooms.entry(place)?;
        let (slot, only_read) = (entry.slot, entry.begun.is_none() && !entry.room.is_absent());
        if entry.marks_ms.is_some_and(|given| now.mono_ms < given + late_marks::KEPT_MS) {
            let room = &entry.room;
            self.counters.late_marks_forgotten +=
                self.late_marks.note(now.mono_ms, room.id(), room.own_marks());
        }
        if entry.room.is_writing()
            && let Some(slot) = self.slots.get_mut(slot)
        {
            slot.cuts_short();
        }
        self.counters.rooms_closed += 1;
        self.counters.read_only += u64::from(only_read);
        self.rooms.close(place, self.slots.at(slot))
    }

    /// An economy for the next opening: what becomes of it does not matter.
    fn write_said(&mut self, room: RoomId, said: Said, out: &mut Vec<Output>) {
        let ticket = self.tickets.give(Asked::Said);
        out.push(Output::Write(RoomWrite { ticket, room, write: Write::Said(said) }));
    }

    /// The next number of splitmix64.
    fn fresh_log(&mut self) -> LogId {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        LogId((mixed ^ (mixed >> 31)).max(1))
    }

    /// Gives an input to a room and carries out what it decides.
    fn input(&mut self, now: Now, place: Place, input: room::Input, out: &mut Vec<Output>) {
        let Some(entry) = self.rooms.entry(place) else { return };
        if !entry.touched {
            entry.touched = true;
            self.touched.push(place);
        }
        if let room::Input::Call { link, .. } | room::Input::Interest { link, .. } = &input {
            self.outboxes.entry(*link).or_default();
            entry.used_ms = now.mono_ms;
        }
        if let room::Input::Pull(pull) = &input {
            self.outboxes.entry(pull.link).or_default();
            entry.used_ms = now.mono_ms;
        }
        let mut actions = std::mem::take(&mut self.actions);
        entry.room.handle(now, input, &mut actions);
        if actions.is_empty() {
            self.actions = actions;
            return;
        }
        let speaker = Speaker {
            room: entry.room.id().clone(),
            place,
            slot: entry.slot,
            epoch: entry.room.tenure().epoch,
            silent: entry.silent,
        };
        for action in actions.drain(..) {
            self.perform(now, &speaker, action, out);
        }
        self.actions = actions;
    }

    fn perform(&mut self, now: Now, speaker: &Speaker, action: Action, out: &mut Vec<Output>) {
        let epoch = speaker.epoch;
        let room = || speaker.room.clone();
        match action {
            Action::ReadSegments { ticket } => self.ask(speaker, ticket, Read::Segments, out),
            Action::ReadSaid { ticket } => self.ask(speaker, ticket, Read::Said, out),
            Action::ReadRoom { ticket } => self.ask(speaker, ticket, Read::Room, out),
            Action::ReadRows { ticket, spans, range, limit } => {
                self.ask(speaker, ticket, Read::Rows { spans, range, limit }, out);
            }
            Action::Write { ticket, write } => {
                if let Write::Record(record) = &write {
                    self.note_record(speaker, record.id);
                }
                let ticket = self.tickets.give(Asked::Room { place: speaker.place, ticket });
                out.push(Output::Write(RoomWrite { ticket, room: room(), write }));
            }
            // They name seqs, and their table is not fenced.
            Action::PutMarks(marks) => {
                if let Some(entry) = self.rooms.entry(speaker.place) {
                    entry.marks_ms = Some(now.mono_ms);
                }
                let utterance = Utterance::Marks { room: room(), marks };
                self.gate.say(now.mono_ms, Why::Stored, utterance);
            }
            Action::Barrier { ticket } => {
                let utterance = Utterance::Barrier { place: speaker.place, ticket };
                self.gate.say(now.mono_ms, Why::Stored, utterance);
            }
            Action::Return { link, ticket } => self.moved(link, speaker.slot, Some(ticket)),
            Action::Damaged { after } => out.push(Output::Damaged { room: room(), after }),
            Action::TooManySegments => out.push(Output::TooManySegments { room: room() }),
            // Utterances.
            _ if speaker.silent => {}
            Action::Answer { link, ticket, answer } => self.answer(now, link, ticket, epoch, answer),
            Action::Events { link, events } => {
                self.say(now, Why::Stored, link, FromShard::Events { room: room(), epoch, events });
            }
            Action::Marks { link, marks } => {
                self.say(now, Why::Asked, link, FromShard::Marks { room: room(), epoch, marks });
            }
            Action::Left { link, user, at } => {
                self.say(now, Why::Stored, link, FromShard::Left { room: room(), epoch, user, at });
            }
            Action::Page { link, ticket, page } => {
                self.say(now, Why::Asked, link, FromShard::Page { ticket, room: room(), epoch, page });
            }
            Action::Head { link, beacon } => self.say(now, Why::Asked, link, head(room(), beacon)),
            Action::NotifyUser { user, push } => {
                self.gate.say(now.mono_ms, Why::Stored, Utterance::Notify { user, push });
            }
        }
    }

    /// Counts segments that the room begins; those of its predecessors are only written again.
    fn note_record(&mut self, speaker: &Speaker, id: SegmentId) {
        let Some(entry) = self.rooms.entry(speaker.place) else { return };
        let own = id.epoch == speaker.epoch && id.part >= Part::of_opening(entry.opening);
        if own && entry.begun < Some(id.part) {
            let rolled = entry.begun.replace(id.part).is_some();
            self.counters.opened_in_full += u64::from(!rolled);
            self.counters.rolls += u64::from(rolled);
        }
    }

    fn ask(&mut self, speaker: &Speaker, ticket: u32, read: Read, out: &mut Vec<Output>) {
        self.counters.reads += 1;
        let ticket = self.tickets.give(Asked::Room { place: speaker.place, ticket });
        out.push(Output::Read { ticket, room: speaker.room.clone(), read });
    }

    fn read(&mut self, now: Now, ticket: u64, answer: ReadAnswer, out: &mut Vec<Output>) {
        match self.tickets.take(ticket) {
            Some(Asked::Room { place, ticket }) => {
                let input = match answer {
                    ReadAnswer::Segments(records) => room::Input::Segments { ticket, records },
                    ReadAnswer::Said(said) => room::Input::Said { ticket, said },
                    ReadAnswer::Rows(page) => room::Input::Rows { ticket, page },
                    ReadAnswer::Room(mut read) => {
                        if let (Ok(read), Some(entry)) = (&mut read, self.rooms.entry(place)) {
                            let lifted =
                                self.late_marks.lift(now.mono_ms, entry.room.id(), &mut read.members);
                            self.counters.late_marks_used += u64::from(lifted);
                        }
                        room::Input::RoomRead { ticket, read }
                    }
                    ReadAnswer::UserRooms(_) => unreachable!("a room was asked about"),
                };
                self.input(now, place, input, out);
            }
            Some(Asked::UserRooms { link, ticket }) => {
                let answer = match answer {
                    ReadAnswer::UserRooms(Ok((rooms, more))) => Answer::UserRooms { rooms, more },
                    _ => Answer::Error(Box::new(Code::Unavailable.error("the rooms cannot be read now"))),
                };
                // No room, no slot: no epoch.
                self.answer(now, link, ticket, Epoch(0), answer);
            }
            Some(Asked::Said) | None => {}
        }
    }

    // ---------------------------------------------------------------- gate, time, turns

    fn fence_read(&mut self, now: Now, read: ReadId, result: Result<bool, Failed>, out: &mut Vec<Output>) {
        let mut released = std::mem::take(&mut self.released);
        let waiting = self.gate.len();
        match self.gate.answered(now.mono_ms, read, result, &mut released) {
            Ended::Passed => {
                for utterance in released.drain(..) {
                    self.release_utterance(now, utterance, out);
                }
            }
            Ended::Fenced => {
                self.counters.silenced += waiting as u64;
                self.die(out);
            }
            Ended::Again => {}
            Ended::Stuck => self.note_stuck(true, out),
        }
        released.clear();
        self.released = released;
    }

    /// One sight of the own fence: nothing is said any more, and nothing is kept that could be.
    fn die(&mut self, out: &mut Vec<Output>) {
        self.dead = true;
        self.rooms.clear();
        self.late_marks.clear();
        self.users.clear();
        self.outboxes.clear();
        self.tickets.clear();
        self.draining.clear();
        self.touched.clear();
        out.push(Output::Fenced);
    }

    fn note_stuck(&mut self, stuck: bool, out: &mut Vec<Output>) {
        if stuck && !self.stuck {
            self.stuck = true;
            out.push(Output::Stuck);
        }
    }

    /// It may be said now.
    fn release_utterance(&mut self, now: Now, utterance: Utterance, out: &mut Vec<Output>) {
        match utterance {
            // A link that is gone cannot be told anything.
            Utterance::ToLink { link, message } => {
                if let Some(outbox) = self.outboxes.get_mut(&link) {
                    self.counters.link_dropped += outbox.push(message);
                }
            }
            Utterance::Marks { room, marks } => out.push(Output::PutMarks { room, marks }),
            Utterance::Notify { user, push } => out.push(Output::Notify { user, push }),
            Utterance::Barrier { place, ticket } => {
                self.input(now, place, room::Input::Passed { ticket }, out);
            }
            Utterance::Said { room, said } => self.write_said(room, said, out),
            Utterance::Last { slot, drain } => self.drained(now, slot, drain, out),
        }
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Output>) {
        let stuck = self.gate.tick(now.mono_ms);
        self.note_stuck(stuck, out);
        while let Some(place) = self.rooms.pop_due(now.mono_ms) {
            self.input(now, place, room::Input::Tick, out);
        }
        if now.mono_ms >= self.sweep_ms {
            self.sweep_ms = now.mono_ms + SWEEP_MS.min(self.options.idle_ms).max(1);
            if let Some(before) = now.mono_ms.checked_sub(self.options.idle_ms) {
                self.slots.forget_handed_before(before);
                for place in self.rooms.idle_since(before) {
                    self.close(now, place, out);
                }
            }
        }
    }

    fn flush_rooms(&mut self, now: Now, out: &mut Vec<Output>) {
        let mut touched = std::mem::take(&mut self.touched);
        for place in touched.drain(..) {
            self.input(now, place, room::Input::Flush, out);
            let Some(entry) = self.rooms.entry(place) else { continue };
            entry.touched = false;
            if entry.room.is_absent() && entry.room.is_quiet() {
                // Asked for, and not there: nothing to keep.
                self.forget(now, place);
            } else {
                self.rooms.schedule(place);
            }
        }
        // Flushing has touched them again.
        self.touched.clear();
        touched.clear();
        self.touched = touched;
    }

    /// Lets the rooms make their batches, and hands over what the turn has collected.
    fn end_turn(&mut self, now: Now, out: &mut Vec<Output>) {
        if self.gate.len() < GATE_MAX {
            self.flush_rooms(now, out);
        }
        if !self.draining.is_empty() {
            self.drain_on(now);
        }
        if self.stopping && self.rooms.len() > 0 && self.rooms.all_settled() {
            for place in self.rooms.places() {
                self.close(now, place, out);
            }
            self.touched.clear();
        }
        if let Some(read) = self.gate.begin(now.mono_ms) {
            self.counters.fence_reads += 1;
            out.push(Output::FenceRead { read });
        }
        for (link, outbox) in &mut self.outboxes {
            if let Some(messages) = outbox.batch() {
                out.push(Output::ToLink { link: *link, messages });
            }
        }
    }
}

enum Opened {
    At(Place),
    /// Not ours: whose slot it is.
    Elsewhere(SlotId),
    TooMany,
}

/// The room whose actions are carried out.
struct Speaker {
    room: RoomId,
    place: Place,
    slot: SlotId,
    epoch: Epoch,
    silent: bool,
}

fn head(room: RoomId, beacon: Beacon) -> FromShard {
    let Beacon { epoch, head, n, last_membership } = beacon;
    FromShard::Head { room, epoch, head, n, last_membership }
}

#[cfg(test)]
mod tests;
