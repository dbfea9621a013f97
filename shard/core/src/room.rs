//! One room on its owner: gives every event a dense sequence number and decides who is told what.
//!
//! Owns: the room's [`Log`], members, marks, tail, ids of recent sends, interest of links, and everything under way.
//! Always holds (DESIGN.md, section 10): I3 seqs are dense; I2, I7 a seq has one content, a client message one seq;
//! I9 nothing is said of what is not durable. One batch in flight; what comes meanwhile is judged when it is its turn,
//! against durable state alone, so a batch that was not stored leaves nothing to undo. A send is judged, and so refused,
//! only when the room is open in full.
//! Does not: touch the store, links or clocks, and does not wait for the barrier: whatever it says it says at once, and
//! whoever carries out its [`Action`]s holds back each utterance, in order, until a barrier begun after it has passed
//! ([`crate::gate`]).

mod admit;
mod dedupe;
mod draft;
mod handed_wire;
mod handoff;
mod history;
mod marks;
mod membership;
mod open;
mod send;

use std::collections::VecDeque;
use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{Epoch, LogId, RoomId, Seq, Tenure, UnixMs, UserId};
use banyan_proto::link::{Answer, LinkId, Page, RoomCall, RoomCommand, Ticket};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_storage::log_store::{Said, SegmentRecord, Span, Write};
use banyan_storage::{Marks, MemberRow, Range, ReadLimit, RoomRow, Row};
use banyan_storage::{NotDone, Outcome};

use crate::config::{Config, Shared};
use crate::log::{Failed, Log};
use crate::members::{Member, Members};
use crate::tail::Tail;

pub use handed_wire::NotUsable;
pub use handoff::{HandedRoom, Start};

use dedupe::{Scan, Window};
use draft::Draft;
use history::Run;
use marks::MarkTimes;
use open::{Grade, Phase};

/// The time of an input: one clock that never goes back, for waits, and the one that people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Now {
    pub mono_ms: u64,
    pub unix: UnixMs,
}

/// The first of some times. A room is asked for it twice a send, and this takes a seventh of what an array's
/// `into_iter().flatten().min()` takes (13 ns of 88, nine times).
pub(crate) fn earliest<const N: usize>(times: [Option<u64>; N]) -> Option<u64> {
    let never = u64::MAX;
    let first = times.iter().fold(never, |first, at| at.map_or(first, |at| first.min(at)));
    (first != never).then_some(first)
}

/// What can happen to a room. Closed on purpose: a reader sees every cause in one place.
#[derive(Debug, Clone)]
pub enum Input {
    Call {
        link: LinkId,
        call: Box<RoomCall>,
    },
    Pull(PullRequest),
    /// Cursors of the link stand in the room, admitted by an earlier owner, and have got every event up to `after`.
    /// Answered by an [`Action::Left`] for each absence that has begun since, then by [`Action::Head`].
    Interest {
        link: LinkId,
        after: Seq,
    },
    /// No cursor of the link stands in the room any more, or the link is gone.
    Uninterest {
        link: LinkId,
    },
    // Answers of the store, each once, by the ticket of the action; tickets that the room does not know are ignored.
    Segments {
        ticket: u32,
        records: Result<Vec<SegmentRecord>, Failed>,
    },
    Said {
        ticket: u32,
        said: Result<Option<Said>, Failed>,
    },
    Rows {
        ticket: u32,
        page: Result<banyan_storage::Page, Failed>,
    },
    RoomRead {
        ticket: u32,
        read: Result<Box<RoomRead>, Failed>,
    },
    Wrote {
        ticket: u32,
        outcome: Outcome,
    },
    /// A barrier begun after [`Action::Barrier`] has passed.
    Passed {
        ticket: u32,
    },
    /// All inputs of this turn are in: what waits may be put into a batch. Comes after every other input.
    Flush,
    /// A deadline has passed.
    Tick,
    /// The room is about to be closed: marks that were not written are handed out.
    Close,
    /// The slot is to move: nothing is admitted any more, what waits is given back, the batch in flight is completed.
    Drain,
    /// The slot stays after all, under the same tenure.
    Resume,
}

/// Answers [`Action::ReadRoom`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomRead {
    pub row: Option<RoomRow>,
    /// Everyone, present and past, by user id.
    pub members: Vec<(MemberRow, Marks)>,
}

/// What the worker must do next, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    // To the store, at once.
    ReadSegments {
        ticket: u32,
    },
    ReadSaid {
        ticket: u32,
    },
    ReadRows {
        ticket: u32,
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    },
    /// The room's row and all of its members.
    ReadRoom {
        ticket: u32,
    },
    Write {
        ticket: u32,
        write: Write,
    },
    /// Tell [`Input::Passed`] when a barrier begun after now has passed.
    Barrier {
        ticket: u32,
    },

    // Utterances: each waits for a barrier begun after now; their order stays.
    /// To the store; no answer. Marks may name seqs of which only a barrier shows that they count, and no fence
    /// protects the table.
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
    Head {
        link: LinkId,
        beacon: Beacon,
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

    /// Nothing was or will be done about this question here: another owner is to be asked. Says nothing of the room.
    Return {
        link: LinkId,
        ticket: Ticket,
    },
    /// The store gave back what cannot have been written: a person must look.
    Damaged {
        after: Seq,
    },
    /// The room has more segments than can be read, so it was not opened: a person must look.
    TooManySegments,
}

/// [`banyan_proto::link::ToShard::Pull`] and the link that it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PullRequest {
    pub link: LinkId,
    pub ticket: Ticket,
    pub after: Seq,
    pub through: Option<Seq>,
    pub max_events: u32,
    pub max_bytes: u32,
}

/// Where a room stands: what a head beacon says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Beacon {
    pub epoch: Epoch,
    pub head: Seq,
    pub n: u64,
    pub last_membership: Seq,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Room {
    id: RoomId,
    tenure: Tenure,
    /// The log's id if this room is made now.
    fresh_log: LogId,
    /// Of the hashes of ids and bodies. Comes with the state that an earlier owner passes on.
    seed: u64,
    config: Shared,
    log: Log,
    /// The log as it was open for reading, while `log` opens in full.
    read_log: Option<Box<Log>>,
    /// How it is to be opened.
    start: Start,
    phase: Phase,
    /// As what `state` may be used. `None` until it was opened.
    grade: Option<Grade>,
    /// Links wait for the head, and the last try to open the room failed.
    reopen_at_ms: Option<u64>,
    /// The slot is to move: nothing is admitted.
    leaving: bool,
    /// Durable state, as it may be said. `None` until opened, and while there is no such room.
    state: Option<Box<State>>,
    /// Links that want the room's events, ascending.
    interest: Vec<LinkId>,
    /// Those of them that were admitted by an earlier owner and have not been answered yet, each once.
    stated: Vec<(LinkId, Seq)>,
    /// Commands that wait for an open, the batch in flight, or a change before them. Bound: `queue_commands`,
    /// `queue_bytes`, together with `parked`; full: 112.
    queue: VecDeque<Op>,
    queue_bytes: usize,
    /// Commands in the queue that may change who may do what: reads queue up behind them.
    structural: u32,
    /// Sends that wait for `scan`.
    parked: Vec<Op>,
    /// Pulls that wait for an open, and since when. Bound: `reads`; full: 112.
    pulls: Vec<(u64, PullRequest)>,
    /// What the log has and has not completed.
    in_flight: Option<Box<Draft>>,
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

/// What is durable and was said, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Op {
    link: LinkId,
    call: Box<RoomCall>,
    arrived_ms: u64,
    bytes: usize,
    /// Sends: the log up to here is known to hold no twin.
    clear: Seq,
}

/// What a read of the log is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ThenCount {
    Subscribe,
    Mark { delivered: Option<Seq>, seen: Option<Seq> },
}

/// What is to be said about a command, from durable state, at the moment it is said.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Say {
    Sent { seq: Seq, at: UnixMs, duplicate: bool },
    Body(Box<v1::server_frame::Body>),
    Joined,
    Created { created: bool },
    Admit,
    Error(Box<v1::Error>),
}

impl Room {
    /// `opening`: a number that no other room value of this tenure with this id was given. `fresh_log`: random, used if
    /// the room is made in this life of the value. Nothing is read or written before an input needs it.
    pub fn new(
        id: RoomId,
        tenure: Tenure,
        opening: u32,
        fresh_log: LogId,
        start: Start,
        config: Arc<Config>,
    ) -> Self {
        let seed = match &start {
            Start::Passed(handed) => handed.seed,
            Start::Cold | Start::CutShort | Start::HandedOver => config.hash_seed,
        };
        Self {
            id,
            tenure,
            fresh_log,
            seed,
            log: Log::new(tenure, opening, fresh_log, Arc::clone(&config.log)),
            config: Shared(config),
            read_log: None,
            start,
            phase: Phase::Rest,
            grade: None,
            reopen_at_ms: None,
            leaving: false,
            state: None,
            interest: Vec::new(),
            stated: Vec::new(),
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

    pub fn tenure(&self) -> Tenure {
        self.tenure
    }

    /// Applies one input and pushes what must be done onto `out`.
    pub fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Call { link, call } => self.call(now, link, call, out),
            Input::Pull(pull) => self.pull(now, pull, out),
            Input::Interest { link, after } => self.interested(now, link, after, out),
            Input::Uninterest { link } => self.uninterested(link),
            Input::Segments { ticket, records } => self.segments_read(now, ticket, records, out),
            Input::Said { ticket, said } => self.said_read(now, ticket, said, out),
            Input::Rows { ticket, page } => self.rows_read(now, ticket, page, out),
            Input::RoomRead { ticket, read } => self.loaded(now, ticket, read, out),
            Input::Wrote { ticket, outcome } => self.wrote(now, ticket, outcome, out),
            Input::Passed { ticket } => self.passed(now, ticket, out),
            Input::Flush => {
                self.gather(now, out);
                self.tell_marks(now, out);
                self.marks.plan(now, &self.config);
            }
            Input::Tick => self.tick(now, out),
            Input::Close => self.write_marks(out),
            Input::Drain => self.drain(out),
            Input::Resume => self.resume(now, out),
        }
    }

    /// When the caller must send [`Input::Tick`] if nothing else happens first.
    pub fn next_deadline(&self) -> Option<u64> {
        let waits = self.config.answer_within_ms;
        earliest([
            self.queue.front().map(|op| op.arrived_ms + waits),
            self.parked.first().map(|op| op.arrived_ms + waits),
            self.pulls.first().map(|(arrived_ms, _)| arrived_ms + waits),
            self.scan.as_ref().and_then(|(_, scan)| scan.arrived_ms()).map(|arrived| arrived + waits),
            self.in_flight.as_deref().and_then(|batch| batch.oldest_ms).map(|arrived| arrived + waits),
            self.log.next_deadline(),
            self.marks.next_deadline(),
            self.rest_at_ms,
            self.reopen_at_ms,
        ])
    }

    /// Nothing is under way and nobody listens: it may be closed, after [`Input::Close`].
    pub fn is_quiet(&self) -> bool {
        self.interest.is_empty() && self.is_settled() && self.reads.is_empty() && !self.phase.is_under_way()
    }

    /// It opens or appends: what it has told the store to write may not be complete.
    pub fn is_writing(&self) -> bool {
        self.phase.is_under_way() || self.in_flight.is_some()
    }

    /// No command waits and no batch is in flight. Who drains need not wait for an open: what it still writes lies
    /// below whatever the next owner writes.
    pub fn is_settled(&self) -> bool {
        (self.leaving || !self.phase.is_under_way())
            && self.queue.is_empty()
            && self.parked.is_empty()
            && self.pulls.is_empty()
            && self.scan.is_none()
            && self.in_flight.is_none()
    }

    /// There is no such room (or it was not opened): nothing is lost by forgetting it.
    pub fn is_absent(&self) -> bool {
        self.state.is_none()
    }

    pub fn wants(&self, link: LinkId) -> bool {
        self.interest.binary_search(&link).is_ok()
    }

    /// For a link that dropped something.
    pub fn beacon(&self) -> Option<Beacon> {
        let state = self.state.as_deref().filter(|_| !plant::is(Bug::HeadNeverAdvertised))?;
        Some(Beacon {
            epoch: self.tenure.epoch,
            head: state.head,
            n: state.n,
            last_membership: state.last_membership,
        })
    }

    /// Never one of the log's ([`open`]).
    fn ticket(&mut self) -> u32 {
        self.next_ticket = (self.next_ticket + 1) & !open::OF_LOG;
        self.next_ticket
    }

    fn call(&mut self, now: Now, link: LinkId, call: Box<RoomCall>, out: &mut Vec<Action>) {
        if self.leaving {
            return out.push(Action::Return { link, ticket: call.ticket });
        }
        let op = Op::new(now, link, call);
        let user = &op.call.caller.user;
        if self.grade == Some(Grade::Full) {
            // Known ids come first: a retry of what is stored is answered however full the queue is.
            if let RoomCommand::Send(send) = &op.call.command {
                let key = dedupe::key_of(self.seed, user.as_str(), &send.client_msg_id);
                let known = self.known(key, send).filter(|_| !plant::is(Bug::PermissionBeforeKnownId));
                if let Some(said) = known {
                    return self.say(link, op.call.ticket, &op.call.caller.user, said, out);
                }
                if self.joins_refusal(&op, key) {
                    return;
                }
            } else if op.is_read() && !self.changes_are_pending() && !self.enters_lazily(user, &op) {
                return self.answer_read(now, &op, out);
            }
        } else if self.grade == Some(Grade::ReadOpen) {
            if self.structural == 0 && self.answers_read_open(&op) {
                return self.answer_read(now, &op, out);
            }
            if plant::is(Bug::RefusalFromReadOpen)
                && matches!(op.call.command, RoomCommand::Send(_))
                && let Err(error) = self.may(user, crate::permission::Act::Send)
            {
                return refuse(link, op.call.ticket, error, out);
            }
        }
        if self.queue.len() + self.parked.len() >= self.config.queue_commands
            || self.queue_bytes + op.bytes > self.config.queue_bytes
        {
            let error = Code::Overloaded
                .error_retry_after("the room has more to do than it can take", self.config.retry_after_ms);
            return refuse(link, op.call.ticket, error, out);
        }
        let grade = if self.grade.is_none() && op.reads_only() { Grade::ReadOpen } else { Grade::Full };
        self.push_back(op);
        self.open(now, grade, out);
    }

    /// A change of members or of the room waits or is in flight: what is read now may be what it changes.
    fn changes_are_pending(&self) -> bool {
        self.structural > 0 || self.in_flight.as_deref().is_some_and(Draft::is_structural)
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

    /// Fills a batch from the queue and hands it to the log; answers on the way what needs no batch.
    fn gather(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.queue.is_empty() || self.in_flight.is_some() {
            return;
        }
        match self.grade {
            Some(Grade::Full) => {}
            Some(Grade::ReadOpen) => return self.gather_reads(now, out),
            None => return,
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
        if plant::is(Bug::AckBeforeAppend) {
            for reply in std::mem::take(&mut draft.replies) {
                self.say(reply.link, reply.ticket, &reply.user, reply.say, out);
            }
        }
        let derived = draft.derived(now);
        let rows = draft.rows(derived.as_ref());
        self.in_flight = Some(Box::new(draft));
        self.with_log(now, out, |log, told| match derived {
            // Nothing but memberships that no event tells.
            Some(derived) if rows.is_empty() => log.change(derived, told),
            _ => log.append(now, rows, told),
        });
    }

    /// Says it now if nothing was changed before it in this batch, else with the batch.
    fn settle(&mut self, draft: &mut Draft, op: &Op, said: Say, out: &mut Vec<Action>) {
        if draft.is_empty() {
            self.say(op.link, op.call.ticket, &op.call.caller.user, said, out);
        } else {
            draft.reply(op.link, op.call.ticket, op.call.caller.user.clone(), op.arrived_ms, said);
        }
    }

    /// Nothing of the batch is there and nothing will be.
    fn not_stored(&mut self, why: NotDone, out: &mut Vec<Action>) {
        let Some(batch) = self.in_flight.take() else { return };
        let error = not_done(why);
        for reply in batch.replies {
            refuse(reply.link, reply.ticket, error.clone(), out);
        }
    }

    /// The batch is durable: it becomes the room's state and is told.
    fn commit(&mut self, now: Now, out: &mut Vec<Action>) {
        let Some(batch) = self.in_flight.take() else { return };
        let Draft { head, n, at, row, members, events, keys, replies, notices, changed, .. } = *batch;
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
                && let Some(mut member) = state.members.marks_of(&event.event.sender)
            {
                // Who sends has seen: no need to tell others, the event says so.
                let lifted = Marks { delivered: event.seq(), seen: event.seq(), seen_n: event.event.n };
                self.marks.lift(now, &mut member, lifted, false, &self.config);
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

        let events: Arc<[Arc<LoggedEvent>]> = events.into();
        if !plant::is(Bug::ReplyBeforeLowerEvent) {
            self.tell_events(&events, out);
        }
        for reply in replies {
            self.say(reply.link, reply.ticket, &reply.user, reply.say, out);
        }
        if plant::is(Bug::ReplyBeforeLowerEvent) {
            self.tell_events(&events, out);
        }
        self.notify(&notices, changed, out);
    }

    fn tell_events(&self, events: &Arc<[Arc<LoggedEvent>]>, out: &mut Vec<Action>) {
        if events.is_empty() {
            return;
        }
        for link in &self.interest {
            out.push(Action::Events { link: *link, events: Arc::clone(events) });
        }
    }

    /// Answers a command from durable state.
    fn say(&mut self, link: LinkId, ticket: Ticket, user: &UserId, said: Say, out: &mut Vec<Action>) {
        use v1::server_frame::Body;
        let answer = match said {
            Say::Sent { seq, at, duplicate } => Answer::Sent { seq, at, duplicate },
            Say::Body(body) => Answer::Body(body),
            Say::Error(error) => Answer::Error(error),
            Say::Joined => {
                let head = self.state.as_deref().map_or(Seq(0), |state| state.head);
                let role = self.role_of(user);
                Answer::Body(Box::new(Body::Join(v1::JoinReply { head: head.0, role: role as i32 })))
            }
            Say::Created { created } => match self.summary(user) {
                Ok(room) => {
                    self.vouch_for(user.as_str());
                    Answer::Body(Box::new(Body::CreateRoom(created_reply(room, created))))
                }
                Err(error) => Answer::Error(Box::new(error)),
            },
            Say::Admit => return self.subscribe(link, ticket, user, None, out),
        };
        out.push(Action::Answer { link, ticket, answer });
    }

    /// The tail has grown: it is looked at when the room may have come to rest.
    fn watch_tail(&mut self, now: Now) {
        self.written_at_ms = now.mono_ms;
        if self.state.as_deref().is_some_and(|state| state.tail.len() > self.config.rest_events) {
            self.rest_at_ms.get_or_insert(now.mono_ms + self.config.rest_ms);
        }
    }

    fn rows_read(
        &mut self,
        now: Now,
        ticket: u32,
        page: Result<banyan_storage::Page, Failed>,
        out: &mut Vec<Action>,
    ) {
        if ticket & open::OF_LOG != 0 {
            return self.log_rows_read(now, ticket, page, out);
        }
        let rows = page.ok().map(|page| (page.rows, page.more));
        if self.scan.as_ref().is_some_and(|(scan, _)| *scan == ticket) {
            return self.scanned(rows, out);
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
        if self.leaving {
            let (link, ticket) = read.question();
            return out.push(Action::Return { link, ticket });
        }
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
        out.push(self.read_rows(ticket, range, limit));
    }

    /// A read of what lies in the range, over all segments of the chain.
    fn read_rows(&self, ticket: u32, range: Range, limit: ReadLimit) -> Action {
        let (first, last) = match range {
            Range::After { after, through } => (after.next(), through),
            Range::Before { before, above } => (above.next(), Seq(before.0.saturating_sub(1))),
        };
        let log = self.read_log.as_deref().unwrap_or(&self.log);
        Action::ReadRows { ticket, spans: log.spans(first, last), range, limit }
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        if let Some(late) = now.mono_ms.checked_sub(self.config.answer_within_ms) {
            self.answer_late(late, out);
        }
        if self.log.next_deadline().is_some_and(|at| at <= now.mono_ms) {
            self.with_log(now, out, |log, told| log.handle(now, crate::log::Input::Tick, told));
        }
        if self.reopen_at_ms.is_some_and(|at| at <= now.mono_ms) {
            self.reopen_at_ms = None;
            self.open(now, Grade::ReadOpen, out);
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

    /// Answers what came at or before `late` and still waits.
    fn answer_late(&mut self, late: u64, out: &mut Vec<Action>) {
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
        while self.pulls.first().is_some_and(|(arrived_ms, _)| *arrived_ms <= late) {
            let (_, pull) = self.pulls.remove(0);
            out.push(Action::Page { link: pull.link, ticket: pull.ticket, page: Err(error()) });
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
            for reply in batch.expire(late) {
                let error = if plant::is(Bug::DefiniteErrorAfterUnknown) {
                    refusal(Code::PermissionDenied)
                } else {
                    error()
                };
                refuse(reply.link, reply.ticket, error, out);
            }
        }
    }
}

impl ReadFor {
    /// Who waits for it.
    fn question(&self) -> (LinkId, Ticket) {
        match self {
            Self::History { link, ticket, .. } | Self::Count { link, ticket, .. } => (*link, *ticket),
            Self::Pull { pull, .. } => (pull.link, pull.ticket),
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

    /// From the newest rows, and what was read beside the log. Err: the seq above which the log cannot be read.
    fn load(
        read: RoomRead,
        rows: &[Row],
        head: Seq,
        n: u64,
        seed: u64,
        config: &Config,
    ) -> Result<Self, Seq> {
        // The batch that made the room has brought its row along.
        let mut state = Self::new(read.row.ok_or(Seq(0))?, Window::whole());
        (state.head, state.n) = (head, n);
        for (row, marks) in read.members {
            state.members.insert(Member::new(row, marks));
        }
        let mut before = Seq(head.0.checked_sub(rows.len() as u64).ok_or(Seq(0))?);
        state.window = Window::above(before);
        state.last_membership = before;
        for row in rows {
            let event = decode(row, before)?;
            before = row.seq;
            state.at = UnixMs(event.event.at);
            if event.changes_membership() {
                state.last_membership = before;
            }
            if let Some((key, entry)) = dedupe::entry_of(seed, &event.event) {
                state.window.push(key, entry);
            }
            state.tail.push(Arc::new(event), config.tail_events, config.tail_bytes);
        }
        if plant::is(Bug::DedupeNotRebuilt) {
            state.window = Window::whole();
            return Ok(state);
        }
        let start = state.window.start();
        state.window.reached(start, state.row.floor, head, config);
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

    /// What a room that is only read-open may answer.
    fn reads_only(&self) -> bool {
        self.is_read() && !matches!(self.call.command, RoomCommand::Mark { .. })
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

/// Says that it is not done.
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
mod disk;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod open_tests;
#[cfg(test)]
mod tests;
