//! One room on its owner: gives every event a dense sequence number and decides who is told what.
//!
//! Owns: log position, members, marks, tail, ids of recent sends, interest of links, and everything under way.
//! Always holds (DESIGN.md, section 10): I3 seqs are dense; I2, I7 a seq has one content, a client message one seq;
//! I9 nothing that depends on the room's state is said before the store says durable and the barrier is passed:
//! every such action needs a [`Passed`]. One append in flight; what comes meanwhile is judged when it is its turn,
//! against durable state alone, so a batch that was not stored leaves nothing to undo.
//! Does not: touch the store, links or clocks. It returns [`Action`]s; the shard's worker carries them out.

mod admit;
mod dedupe;
mod draft;
mod history;
mod marks;
mod membership;
mod send;

use std::collections::VecDeque;
use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{Epoch, LogId, RoomId, Seq, UnixMs, UserId};
use banyan_proto::link::{Answer, LinkId, Page, RoomCall, RoomCommand, Ticket};
use banyan_proto::v1;
use banyan_storage::room_log::{Derived, LoadedRoom, Marks, Range, ReadLimit, RoomRow, Row};
use banyan_storage::{NotDone, Outcome};

use crate::config::Config;
use crate::members::{Member, Members};
use crate::tail::Tail;

use dedupe::{Scan, Window};
use draft::{Batch, Draft};
use history::Run;
use marks::MarkTimes;

/// The time of an input: one clock that never goes back, for waits, and the one that people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub mono_ms: u64,
    pub unix: UnixMs,
}

/// What can happen to a room. Closed on purpose: a reader sees every cause in one place.
#[derive(Debug, Clone)]
pub enum Input {
    Call {
        link: LinkId,
        call: Box<RoomCall>,
    },
    Pull(PullRequest),
    /// No cursor of the link stands in the room any more, or the link is gone.
    Uninterest {
        link: LinkId,
    },
    /// Answers [`Action::Load`]. `None`: nothing was ever stored for the room.
    Loaded(Option<Box<LoadedRoom>>),
    LoadFailed,
    /// Answers [`Action::Append`].
    Stored {
        ticket: u32,
        outcome: Outcome,
    },
    /// Answers [`Action::Read`]. `None`: the store could not read.
    ReadDone {
        ticket: u32,
        rows: Option<(Vec<Row>, bool)>,
    },
    /// All inputs of this turn are in: what waits may be put into a batch. Comes after every other input.
    Flush,
    /// A deadline has passed.
    Tick,
    /// The room is about to be closed: marks that were not written are handed out.
    Close,
}

/// What the worker must do next, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Load,
    Append {
        ticket: u32,
        rows: Vec<Row>,
        derived: Option<Box<Derived>>,
    },
    Read {
        ticket: u32,
        range: Range,
        limit: ReadLimit,
    },
    PutMarks(Vec<(UserId, Marks)>),
    Answer {
        link: LinkId,
        ticket: Ticket,
        answer: Answer,
    },
    Events {
        link: LinkId,
        events: Arc<[Arc<LoggedEvent>]>,
    },
    Marks {
        link: LinkId,
        marks: Arc<[v1::UserMarks]>,
    },
    Page {
        link: LinkId,
        ticket: Ticket,
        page: Result<Page, v1::Error>,
    },
    /// A member is out of the room: the link ends their cursors.
    Left {
        link: LinkId,
        user: UserId,
        at: Seq,
    },
    /// To every connection of the user.
    NotifyUser {
        user: UserId,
        push: Arc<v1::server_frame::Body>,
    },
    /// The store gave back what cannot have been written: a person must look.
    Damaged {
        after: Seq,
    },
}

/// [`banyan_proto::link::ToShard::Pull`] and the link that it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullRequest {
    pub link: LinkId,
    pub ticket: Ticket,
    pub after: Seq,
    pub through: Option<Seq>,
    pub max_events: u32,
    pub max_bytes: u32,
}

/// Where a room stands: what a head beacon says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beacon {
    pub epoch: Epoch,
    pub head: Seq,
    pub n: u64,
    pub last_membership: Seq,
}

#[derive(Debug, Clone)]
pub struct Room {
    id: RoomId,
    epoch: Epoch,
    /// The log's id if this room is made now.
    fresh_log: LogId,
    config: Arc<Config>,
    phase: Phase,
    /// Durable state, as it may be said. `None` until loaded, and while there is no such room.
    state: Option<Box<State>>,
    /// Links that want the room's events, ascending.
    interest: Vec<LinkId>,
    /// Commands that wait for a load, the append in flight, or a change before them. Bound: `queue_commands`,
    /// `queue_bytes`, together with `parked`; full: 112.
    queue: VecDeque<Op>,
    queue_bytes: usize,
    /// Commands in the queue that may change who may do what: reads queue up behind them.
    structural: u32,
    /// Sends that wait for `scan`.
    parked: Vec<Op>,
    /// Pulls that wait for a load. Bound: `reads`; full: 112.
    pulls: Vec<PullRequest>,
    in_flight: Option<Box<Batch>>,
    /// The one look for a twin in the log that is under way.
    scan: Option<(u32, Scan)>,
    /// Other reads under way. Bound: `reads`; full: 112.
    reads: Vec<(u32, ReadFor)>,
    next_ticket: u32,
    marks: MarkTimes,
    /// When to look whether the tail may shrink; it does if nothing was written for the time of rest.
    rest_at_ms: Option<u64>,
    written_at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Cold,
    Loading,
    Ready,
}

/// What is durable and was said, or may be.
#[derive(Debug, Clone)]
struct State {
    row: RoomRow,
    head: Seq,
    n: u64,
    /// `at` of the newest event.
    at: UnixMs,
    /// Seq of the newest event that changed who may read, or a bound above it.
    last_membership: Seq,
    members: Members,
    tail: Tail,
    window: Window,
}

/// A command that waits.
#[derive(Debug, Clone)]
struct Op {
    link: LinkId,
    call: Box<RoomCall>,
    arrived_ms: u64,
    bytes: usize,
    /// Sends: the log up to here is known to hold no twin.
    clear: Seq,
}

/// What a read of the log is for.
#[derive(Debug, Clone)]
enum ReadFor {
    History {
        link: LinkId,
        ticket: Ticket,
        upper: Seq,
        run: Run,
    },
    Pull {
        pull: PullRequest,
        through: Seq,
    },
    /// The count of messages at a seq, for who marked it or left at it.
    Count {
        link: LinkId,
        ticket: Ticket,
        user: UserId,
        at: Seq,
        then: ThenCount,
    },
}

#[derive(Debug, Clone, Copy)]
enum ThenCount {
    Subscribe,
    Mark { delivered: Option<Seq>, seen: Option<Seq> },
}

/// What is to be said about a command, from durable state, at the moment it is said.
#[derive(Debug, Clone)]
enum Say {
    Sent { seq: Seq, at: UnixMs, duplicate: bool },
    Body(Box<v1::server_frame::Body>),
    Joined,
    Created { created: bool },
    Admit,
    Error(Box<v1::Error>),
}

/// Proof that the barrier was passed after the question arrived and after what is said was durable.
#[derive(Debug, Clone, Copy)]
struct Passed(());

impl Room {
    /// `fresh_log`: random, used if the room is made in this life of the value.
    pub fn new(id: RoomId, epoch: Epoch, fresh_log: LogId, config: Arc<Config>) -> Self {
        Self {
            id,
            epoch,
            fresh_log,
            config,
            phase: Phase::Cold,
            state: None,
            interest: Vec::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            structural: 0,
            parked: Vec::new(),
            pulls: Vec::new(),
            in_flight: None,
            scan: None,
            reads: Vec::new(),
            next_ticket: 0,
            marks: MarkTimes::default(),
            rest_at_ms: None,
            written_at_ms: 0,
        }
    }

    pub fn id(&self) -> &RoomId {
        &self.id
    }

    /// Applies one input and pushes what must be done onto `out`.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Call { link, call } => self.call(now, link, call, out),
            Input::Pull(pull) => self.pull(pull, out),
            Input::Uninterest { link } => self.interest.retain(|other| *other != link),
            Input::Loaded(loaded) => self.loaded(now, loaded, out),
            Input::LoadFailed => self.load_failed(out),
            Input::Stored { ticket, outcome } => self.stored(now, ticket, outcome, out),
            Input::ReadDone { ticket, rows } => self.read_done(now, ticket, rows, out),
            Input::Flush => {
                self.gather(now, out);
                self.tell_marks(now, out);
            }
            Input::Tick => self.tick(now, out),
            Input::Close => self.write_marks(out),
        }
    }

    /// When the caller must send [`Input::Tick`] if nothing else happens first.
    pub fn next_deadline(&self) -> Option<u64> {
        let waits = self.config.answer_within_ms;
        let batch = self.in_flight.as_deref();
        [
            self.queue.front().map(|op| op.arrived_ms + waits),
            self.parked.first().map(|op| op.arrived_ms + waits),
            self.scan.as_ref().and_then(|(_, scan)| scan.arrived_ms()).map(|arrived| arrived + waits),
            batch.and_then(|batch| batch.draft.oldest_ms).map(|arrived| arrived + waits),
            batch.and_then(|batch| batch.retry_at_ms),
            self.marks.next_deadline(),
            self.rest_at_ms,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Nothing is under way and nobody listens: it may be closed, after [`Input::Close`].
    pub fn is_quiet(&self) -> bool {
        self.interest.is_empty() && self.is_settled() && self.reads.is_empty()
    }

    /// No command waits and no append is in flight.
    pub fn is_settled(&self) -> bool {
        self.phase != Phase::Loading
            && self.queue.is_empty()
            && self.parked.is_empty()
            && self.pulls.is_empty()
            && self.scan.is_none()
            && self.in_flight.is_none()
    }

    /// There is no such room (or it was not loaded): nothing is lost by forgetting it.
    pub fn is_absent(&self) -> bool {
        self.state.is_none()
    }

    pub fn wants(&self, link: LinkId) -> bool {
        self.interest.contains(&link)
    }

    /// For a link that dropped something.
    pub fn beacon(&self) -> Option<Beacon> {
        let state = self.state.as_deref()?;
        Some(Beacon {
            epoch: self.epoch,
            head: state.head,
            n: state.n,
            last_membership: state.last_membership,
        })
    }

    /// Whatever an owner says waits until it knows that it still was the owner after what it says became durable and
    /// after it was asked (DESIGN.md, section 5, rule 5). With one process on one store, whose directory is locked,
    /// that is always so and the barrier passes at once.
    #[expect(clippy::unused_self, reason = "the place where a cluster's room will wait")]
    fn barrier(&self) -> Passed {
        Passed(())
    }

    fn ticket(&mut self) -> u32 {
        self.next_ticket = self.next_ticket.wrapping_add(1);
        self.next_ticket
    }

    fn call(&mut self, now: Now, link: LinkId, call: Box<RoomCall>, out: &mut Vec<Action>) {
        let op = Op::new(now, link, call);
        if self.phase == Phase::Cold {
            self.phase = Phase::Loading;
            out.push(Action::Load);
        }
        if self.phase == Phase::Ready {
            // Known ids come first: a retry of what is stored is answered however full the queue is.
            if let RoomCommand::Send(send) = &op.call.command {
                if let Some(said) = self.known(&op.call.caller.user, send) {
                    return self.say(link, op.call.ticket, &op.call.caller.user, said, self.barrier(), out);
                }
                if self.joins_refusal(&op) {
                    return;
                }
            } else if op.is_read()
                && !self.changes_are_pending()
                && !self.enters_lazily(&op.call.caller.user, &op)
            {
                return self.answer_read(now, &op, out);
            }
        }
        if self.queue.len() + self.parked.len() >= self.config.queue_commands
            || self.queue_bytes + op.bytes > self.config.queue_bytes
        {
            let error = Code::Overloaded
                .error_retry_after("the room has more to do than it can take", self.config.retry_after_ms);
            return refuse(link, op.call.ticket, error, out);
        }
        self.push_back(op);
    }

    /// A change of members or of the room waits or is in flight: what is read now may be what it changes.
    fn changes_are_pending(&self) -> bool {
        self.structural > 0 || self.in_flight.as_deref().is_some_and(|batch| batch.draft.is_structural())
    }

    fn push_back(&mut self, op: Op) {
        self.queue_bytes += op.bytes;
        self.structural += u32::from(op.is_structural());
        self.queue.push_back(op);
    }

    fn push_front(&mut self, op: Op) {
        self.queue_bytes += op.bytes;
        self.structural += u32::from(op.is_structural());
        self.queue.push_front(op);
    }

    fn pop_front(&mut self) -> Option<Op> {
        let op = self.queue.pop_front()?;
        self.queue_bytes -= op.bytes;
        self.structural -= u32::from(op.is_structural());
        Some(op)
    }

    /// Sends that waited for the log go before everything that came after them.
    fn unpark(&mut self) {
        for op in std::mem::take(&mut self.parked).into_iter().rev() {
            self.queue_bytes -= op.bytes;
            self.push_front(op);
        }
    }

    fn park(&mut self, op: Op) {
        self.queue_bytes += op.bytes;
        self.parked.push(op);
    }

    /// Fills a batch from the queue and hands it to the store; answers on the way what needs no batch.
    fn gather(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.phase != Phase::Ready || self.in_flight.is_some() || self.queue.is_empty() {
            return;
        }
        let mut draft = Draft::after(self.state.as_deref());
        while let Some(op) = self.pop_front() {
            if !draft.has_room_for(&op, &self.config) {
                self.push_front(op);
                break;
            }
            if matches!(op.call.command, RoomCommand::Send(_)) {
                self.judge_send(now, op, &mut draft, out);
            } else if op.is_read() && !self.enters_lazily(&op.call.caller.user, &op) {
                // It reads what is durable: it waits for the changes before it.
                if !draft.is_empty() {
                    self.push_front(op);
                    break;
                }
                self.answer_read(now, &op, out);
            } else {
                self.judge_change(now, &op, &mut draft, out);
            }
        }
        if draft.is_empty() {
            return;
        }
        let ticket = self.ticket();
        let batch = Batch::new(draft, ticket);
        out.push(batch.append());
        self.in_flight = Some(Box::new(batch));
    }

    /// Says it now if nothing was changed before it in this batch, else with the batch.
    fn settle(&mut self, draft: &mut Draft, op: &Op, said: Say, out: &mut Vec<Action>) {
        if draft.is_empty() {
            self.say(op.link, op.call.ticket, &op.call.caller.user, said, self.barrier(), out);
        } else {
            draft.reply(op.link, op.call.ticket, op.call.caller.user.clone(), op.arrived_ms, said);
        }
    }

    fn stored(&mut self, now: Now, ticket: u32, outcome: Outcome, out: &mut Vec<Action>) {
        let Some(mut batch) = self.in_flight.take_if(|batch| batch.ticket == ticket) else { return };
        match outcome {
            Outcome::Done => self.commit(now, batch.draft, out),
            // Nothing of this try is there. Of an earlier one of unknown outcome that says nothing: its rows may yet
            // turn up, so these seqs must get this content and no other.
            Outcome::NotDone(_) if batch.unsettled => {
                batch.settle_later(now, &self.config);
                self.in_flight = Some(batch);
            }
            Outcome::NotDone(why) => {
                let error = not_done(why);
                for reply in batch.draft.replies {
                    refuse(reply.link, reply.ticket, error.clone(), out);
                }
            }
            Outcome::Unknown => {
                batch.unsettled = true;
                batch.settle_later(now, &self.config);
                self.in_flight = Some(batch);
            }
        }
    }

    /// The batch is durable: it becomes the room's state and is told.
    fn commit(&mut self, now: Now, draft: Draft, out: &mut Vec<Action>) {
        let Draft { head, n, at, row, members, events, keys, replies, notices, changed, .. } = draft;
        if let Some(row) = row {
            match &mut self.state {
                Some(state) => state.row = *row,
                none => *none = Some(Box::new(State::new(*row, Window::whole()))),
            }
        }
        let Some(state) = self.state.as_deref_mut() else { return };
        for row in members {
            state.members.put(row);
        }
        (state.head, state.n, state.at) = (head, n, at);
        for event in &events {
            if event.changes_membership() {
                state.last_membership = event.seq();
            }
            if let Some(v1::event::Kind::Message(_)) = event.event.kind
                && let Some(member) = state.members.get_mut(&event.event.sender)
            {
                // Who sends has seen: no need to tell others, the event says so.
                let lifted = Marks { delivered: event.seq(), seen: event.seq(), seen_n: event.event.n };
                self.marks.lift(now, member, lifted, false, &self.config);
            }
        }
        for event in &events {
            state.tail.push(Arc::clone(event), self.config.tail_events, self.config.tail_bytes);
        }
        for (key, entry) in keys {
            state.window.push(key, entry);
        }
        state.window.cut(head, self.config.window_events);
        if !events.is_empty() {
            self.watch_tail(now);
        }

        let passed = self.barrier();
        if !events.is_empty() {
            let events: Arc<[Arc<LoggedEvent>]> = events.into();
            for link in &self.interest {
                out.push(Action::Events { link: *link, events: Arc::clone(&events) });
            }
        }
        for reply in replies {
            self.say(reply.link, reply.ticket, &reply.user, reply.say, passed, out);
        }
        self.notify(&notices, changed, passed, out);
    }

    /// Answers a command from durable state.
    fn say(
        &mut self,
        link: LinkId,
        ticket: Ticket,
        user: &UserId,
        said: Say,
        passed: Passed,
        out: &mut Vec<Action>,
    ) {
        use v1::server_frame::Body;
        let answer = match said {
            Say::Sent { seq, at, duplicate } => Answer::Sent(Box::new(v1::SendReply {
                room: self.id.as_str().to_owned(),
                seq: seq.0,
                at: at.0,
                duplicate,
            })),
            Say::Body(body) => Answer::Body(body),
            Say::Error(error) => Answer::Error(error),
            Say::Joined => {
                let head = self.state.as_deref().map_or(Seq(0), |state| state.head);
                let role = self.role_of(user);
                Answer::Body(Box::new(Body::Join(v1::JoinReply { head: head.0, role: role as i32 })))
            }
            Say::Created { created } => match self.summary(user, passed) {
                Ok(room) => Answer::Body(Box::new(Body::CreateRoom(created_reply(room, created)))),
                Err(error) => Answer::Error(Box::new(error)),
            },
            Say::Admit => return self.subscribe(link, ticket, user, None, out),
        };
        out.push(Action::Answer { link, ticket, answer });
    }

    fn loaded(&mut self, now: Now, loaded: Option<Box<LoadedRoom>>, out: &mut Vec<Action>) {
        if self.phase != Phase::Loading {
            return;
        }
        if let Some(loaded) = loaded {
            match State::load(*loaded, now, &self.config) {
                Ok(state) => self.state = Some(Box::new(state)),
                Err(after) => {
                    out.push(Action::Damaged { after });
                    return self.load_failed(out);
                }
            }
        }
        self.phase = Phase::Ready;
        self.watch_tail(now);
        for pull in std::mem::take(&mut self.pulls) {
            self.pull(pull, out);
        }
    }

    /// The tail has grown: it is looked at when the room may have come to rest.
    fn watch_tail(&mut self, now: Now) {
        self.written_at_ms = now.mono_ms;
        if self.state.as_deref().is_some_and(|state| state.tail.len() > self.config.rest_events) {
            self.rest_at_ms.get_or_insert(now.mono_ms + self.config.rest_ms);
        }
    }

    fn load_failed(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Cold;
        let error = Code::Unavailable.error("the room cannot be read now");
        while let Some(op) = self.pop_front() {
            refuse(op.link, op.call.ticket, error.clone(), out);
        }
        for pull in std::mem::take(&mut self.pulls) {
            out.push(Action::Page { link: pull.link, ticket: pull.ticket, page: Err(error.clone()) });
        }
    }

    fn read_done(&mut self, now: Now, ticket: u32, rows: Option<(Vec<Row>, bool)>, out: &mut Vec<Action>) {
        if self.scan.as_ref().is_some_and(|(scan, _)| *scan == ticket) {
            return self.scanned(now, rows, out);
        }
        let Some(index) = self.reads.iter().position(|(read, _)| *read == ticket) else { return };
        let (_, read) = self.reads.swap_remove(index);
        match read {
            ReadFor::History { link, ticket, upper, run } => {
                self.history_read(link, ticket, upper, &run, rows, out)
            }
            ReadFor::Pull { pull, through } => self.pull_read(pull, through, rows, out),
            ReadFor::Count { link, ticket, user, at, then } => {
                let n = rows
                    .as_ref()
                    .and_then(|(rows, _)| rows.first())
                    .filter(|row| row.seq == at)
                    .map(|row| row.n);
                let Some(n) = n else {
                    return refuse(link, ticket, Code::Unavailable.error("the log cannot be read now"), out);
                };
                match then {
                    ThenCount::Subscribe => self.subscribe(link, ticket, &user, Some((at, n)), out),
                    ThenCount::Mark { delivered, seen } => {
                        self.mark(now, link, ticket, &user, (delivered, seen), Some((at, n)), out);
                    }
                }
            }
        }
    }

    /// Begins a read of the log, or says that there are too many.
    fn read(&mut self, read: ReadFor, range: Range, limit: ReadLimit, out: &mut Vec<Action>) {
        if self.reads.len() >= self.config.reads {
            let error = Code::Overloaded
                .error_retry_after("too many reads of this room's log at once", self.config.retry_after_ms);
            match read {
                ReadFor::History { link, ticket, .. } | ReadFor::Count { link, ticket, .. } => {
                    refuse(link, ticket, error, out);
                }
                ReadFor::Pull { pull, .. } => {
                    out.push(Action::Page { link: pull.link, ticket: pull.ticket, page: Err(error) });
                }
            }
            return;
        }
        let ticket = self.ticket();
        self.reads.push((ticket, read));
        out.push(Action::Read { ticket, range, limit });
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let Some(late) = now.mono_ms.checked_sub(self.config.answer_within_ms) else {
            return self.tick_timers(now, out);
        };
        let error = || Code::Unavailable.error("the room's store did not answer in time");
        while self.queue.front().is_some_and(|op| op.arrived_ms <= late) {
            if let Some(op) = self.pop_front() {
                refuse(op.link, op.call.ticket, error(), out);
            }
        }
        if self.parked.first().is_some_and(|op| op.arrived_ms <= late) {
            let (expired, parked) =
                std::mem::take(&mut self.parked).into_iter().partition(|op| op.arrived_ms <= late);
            self.parked = parked;
            let expired: Vec<Op> = expired;
            for op in expired {
                self.queue_bytes -= op.bytes;
                refuse(op.link, op.call.ticket, error(), out);
            }
        }
        if let Some((_, scan)) = &mut self.scan
            && scan.arrived_ms().is_some_and(|arrived| arrived <= late)
            && let Some(op) = scan.give_up()
        {
            self.queue_bytes -= op.bytes;
            refuse(op.link, op.call.ticket, error(), out);
        }
        if let Some(batch) = self.in_flight.as_deref_mut() {
            // What becomes of the batch is found out all the same.
            for reply in batch.draft.expire(late) {
                refuse(reply.link, reply.ticket, error(), out);
            }
        }
        self.tick_timers(now, out);
    }

    fn tick_timers(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.in_flight.as_deref().and_then(|batch| batch.retry_at_ms).is_some_and(|at| at <= now.mono_ms) {
            let ticket = self.ticket();
            if let Some(batch) = self.in_flight.as_deref_mut() {
                batch.ticket = ticket;
                batch.retry_at_ms = None;
                out.push(batch.append());
            }
        }
        self.tell_marks(now, out);
        if self.marks.write_is_due(now) {
            self.write_marks(out);
        }
        if self.rest_at_ms.is_some_and(|at| at <= now.mono_ms) {
            let rests_at = self.written_at_ms + self.config.rest_ms;
            self.rest_at_ms = (rests_at > now.mono_ms).then_some(rests_at);
            if self.rest_at_ms.is_none()
                && let Some(state) = self.state.as_deref_mut()
            {
                state.tail.shrink(self.config.rest_events);
            }
        }
    }
}

impl State {
    fn new(row: RoomRow, window: Window) -> Self {
        Self {
            head: Seq(0),
            n: 0,
            at: row.created_at,
            last_membership: Seq(0),
            row,
            members: Members::default(),
            tail: Tail::default(),
            window,
        }
    }

    /// Err: the seq above which the log cannot be read.
    fn load(loaded: LoadedRoom, now: Now, config: &Config) -> Result<Self, Seq> {
        let LoadedRoom { row, head, n, members, tail, .. } = loaded;
        let mut state = Self::new(row, Window::whole());
        (state.head, state.n) = (head, n);
        for (row, marks) in members {
            state.members.insert(Member::new(row, marks));
        }
        let mut before = Seq(head.0.checked_sub(tail.len() as u64).ok_or(Seq(0))?);
        state.window = Window::above(before);
        state.last_membership = before;
        for row in tail {
            let event = decode(&row, before)?;
            before = row.seq;
            state.at = UnixMs(event.event.at);
            if event.changes_membership() {
                state.last_membership = before;
            }
            if let Some((key, entry)) = dedupe::entry_of(config.hash_seed, &event.event) {
                state.window.push(key, entry);
            }
            state.tail.push(Arc::new(event), config.tail_events, config.tail_bytes);
        }
        let oldest = state.tail.newest().last().map(|event| UnixMs(event.event.at));
        state.window.reached(state.window.start(), oldest, state.row.floor, head, now, config);
        Ok(state)
    }

    fn kind(&self) -> v1::RoomKind {
        kind(&self.row)
    }
}

impl Op {
    fn new(now: Now, link: LinkId, call: Box<RoomCall>) -> Self {
        let bytes = match &call.command {
            RoomCommand::Send(send) => {
                // What stands around text and data in the event, at its largest.
                512 + send.text.as_ref().map_or(0, String::len)
                    + send.data.as_ref().map_or(0, |data| data.len())
                    + send.mentions.iter().map(|user| user.len() + 32).sum::<usize>()
            }
            RoomCommand::Create { members, .. } | RoomCommand::Add { users: members } => {
                256 + members.len() * 320
            }
            _ => 256,
        };
        Self { link, call, arrived_ms: now.mono_ms, bytes, clear: Seq(0) }
    }

    /// Answered from durable state without changing it (marks change nothing that others read).
    fn is_read(&self) -> bool {
        matches!(
            self.call.command,
            RoomCommand::Mark { .. }
                | RoomCommand::History { .. }
                | RoomCommand::Members { .. }
                | RoomCommand::Summary
                | RoomCommand::Subscribe
        )
    }

    fn is_structural(&self) -> bool {
        !self.is_read() && !matches!(self.call.command, RoomCommand::Send(_))
    }

    /// Events that it may make at most.
    fn events(&self) -> usize {
        match &self.call.command {
            RoomCommand::Create { members, .. } | RoomCommand::Add { users: members } => members.len() + 1,
            _ => 2,
        }
    }
}

/// An answer that does not depend on the room's state: needs no barrier.
fn refuse(link: LinkId, ticket: Ticket, error: v1::Error, out: &mut Vec<Action>) {
    out.push(Action::Answer { link, ticket, answer: Answer::Error(Box::new(error)) });
}

/// The words for a refusal by the table of permissions.
fn refusal(code: Code) -> v1::Error {
    code.error(match code {
        Code::UnknownRoom => "there is no such room",
        Code::NotAMember => "you are not a member of this room",
        _ => "your role in this room does not allow this",
    })
}

fn not_done(why: NotDone) -> v1::Error {
    match why {
        NotDone::Full => Code::Unavailable.error("the server's disk is full"),
        NotDone::Overloaded => Code::Unavailable.error("the store has more to do than it can take"),
        NotDone::Unavailable | NotDone::Closed => Code::Unavailable.error("the store is not available"),
        NotDone::TooLarge => Code::Internal.error("the store refused the batch"),
    }
}

fn kind(row: &RoomRow) -> v1::RoomKind {
    v1::RoomKind::try_from(i32::from(row.kind)).unwrap_or_default()
}

/// Reads a stored row that must follow `before`. Err: `before`.
fn decode(row: &Row, before: Seq) -> Result<LoggedEvent, Seq> {
    if row.seq != before.next() {
        return Err(before);
    }
    LoggedEvent::decode(row.event.clone(), row.origin).map_err(|_| before)
}

fn created_reply(room: v1::Room, created: bool) -> v1::CreateRoomReply {
    v1::CreateRoomReply {
        room: room.room,
        kind: room.kind,
        name: room.name,
        public: room.public,
        role: room.role,
        peer: room.peer,
        log: room.log,
        head: room.head,
        n: room.n,
        delivered: room.delivered,
        seen: room.seen,
        seen_n: room.seen_n,
        last: room.last,
        created,
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
