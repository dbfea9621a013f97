//! Opening a room: its log first ([`crate::log`]), then what stands beside the log.
//!
//! A room that is only read opens as far as reading goes, if its last owner has left it at rest; then no command that
//! could change anything, or be refused for good, is judged before it is open in full. While it opens in full, what can
//! be answered from the state at hand still is.

use banyan_proto::codes::Code;
use banyan_proto::id::{Seq, UserId};
use banyan_proto::link::LinkId;
use banyan_proto::v1;
use banyan_storage::Outcome;
use banyan_storage::log_store::{Said, SegmentRecord};
use banyan_storage::{Page, Row};

use super::{Action, Now, Op, Room, RoomRead, Start, State, refuse};
use crate::log::{self, Failed, Log, NotOpened, Opening, Which};

/// Marks the tickets of the log. It has at most one question of a kind under way, so the kind is the ticket.
pub(super) const OF_LOG: u32 = 1 << 31;
const SEGMENTS: u32 = OF_LOG | 1;
const SAID: u32 = OF_LOG | 2;
const ROWS: u32 = OF_LOG | 3;
const BARRIER: u32 = OF_LOG | 4;
const WRITE_RECORD: u32 = OF_LOG | 5;
const WRITE_ROWS: u32 = OF_LOG | 6;
const WRITE_DERIVED: u32 = OF_LOG | 7;

/// As what a room is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Grade {
    /// As its last owner left it: reads are answered.
    ReadOpen,
    Full,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Nothing is under way.
    #[default]
    Rest,
    /// The log opens.
    Opening,
    /// The log is open; the room's row and members are being read.
    Loading { ticket: u32, grade: Grade, rows: Vec<Row> },
    /// They could not be read.
    NotLoaded { grade: Grade, rows: Vec<Row> },
}

impl Phase {
    pub(super) fn is_under_way(&self) -> bool {
        match self {
            Self::Rest | Self::NotLoaded { .. } => false,
            Self::Opening | Self::Loading { .. } => true,
        }
    }
}

impl Room {
    /// Sees to it that the room gets open, as `grade` at least.
    pub(super) fn open(&mut self, now: Now, grade: Grade, out: &mut Vec<Action>) {
        if self.grade >= Some(grade) || self.phase.is_under_way() {
            return;
        }
        match std::mem::take(&mut self.phase) {
            Phase::NotLoaded { grade: reached, rows } if reached >= grade => {
                return self.load(reached, rows, out);
            }
            _ => self.phase = Phase::Opening,
        }
        if self.grade.is_some() && self.read_log.is_none() {
            self.read_log = Some(Box::new(self.log.clone()));
        }
        let how = match &self.start {
            // In full, if it was not closed in good order: what it says then is [`log::Action::Opened`].
            Start::Cold if grade == Grade::ReadOpen => Opening::ReadOnly { again: true },
            Start::CutShort if grade == Grade::ReadOpen => Opening::ReadOnly { again: false },
            // Every earlier life of the room in this tenure was quiet when the worker forgot it.
            Start::Cold => Opening::Again,
            Start::CutShort => Opening::Full,
            Start::HandedOver => Opening::HandedOver,
            Start::Passed(handed) => Opening::Passed(Box::new(handed.log.clone())),
        };
        self.with_log(now, out, |log, told| log.open(now, how, told));
    }

    /// Lets the log do something, and does what it asks for.
    pub(super) fn with_log(
        &mut self,
        now: Now,
        out: &mut Vec<Action>,
        act: impl FnOnce(&mut Log, &mut log::Actions),
    ) {
        let mut told = log::Actions::new();
        act(&mut self.log, &mut told);
        for action in told {
            self.log_asks(now, action, out);
        }
    }

    fn log_asks(&mut self, now: Now, action: log::Action, out: &mut Vec<Action>) {
        match action {
            log::Action::ReadSegments => out.push(Action::ReadSegments { ticket: SEGMENTS }),
            log::Action::ReadSaid => out.push(Action::ReadSaid { ticket: SAID }),
            log::Action::ReadRows { spans, range, limit } => {
                out.push(Action::ReadRows { ticket: ROWS, spans, range, limit });
            }
            log::Action::Write { which, write } => {
                let ticket = match which {
                    Which::Record => WRITE_RECORD,
                    Which::Rows => WRITE_ROWS,
                    Which::Derived => WRITE_DERIVED,
                };
                out.push(Action::Write { ticket, write });
            }
            log::Action::Barrier => out.push(Action::Barrier { ticket: BARRIER }),
            log::Action::Opened { rows } => self.log_opened(now, rows, out),
            log::Action::ReadOpened { rows } => self.log_read(now, Grade::ReadOpen, rows, out),
            log::Action::Absent => {
                self.state = None;
                self.opened(now, Grade::Full, out);
            }
            log::Action::OpenFailed(why) => {
                self.phase = Phase::Rest;
                let error = match why {
                    NotOpened::Read => Code::Unavailable.error("the room cannot be read now"),
                    NotOpened::Superseded => Code::Unavailable.error("the room is being moved"),
                    NotOpened::TooManySegments => {
                        out.push(Action::TooManySegments);
                        Code::Internal.error("the room's log has too many parts to be read")
                    }
                    NotOpened::Damaged { after } => {
                        out.push(Action::Damaged { after });
                        Code::Unavailable.error("the room's log is damaged")
                    }
                };
                self.not_opened(now, &error, out);
            }
            log::Action::Appended | log::Action::Changed => self.commit(now, out),
            log::Action::NotAppended(why) | log::Action::NotChanged(why) => self.not_stored(why, out),
        }
    }

    pub(super) fn segments_read(
        &mut self,
        now: Now,
        ticket: u32,
        records: Result<Vec<SegmentRecord>, Failed>,
        out: &mut Vec<Action>,
    ) {
        if ticket == SEGMENTS {
            self.with_log(now, out, |log, told| log.handle(now, log::Input::Segments(records), told));
        }
    }

    pub(super) fn said_read(
        &mut self,
        now: Now,
        ticket: u32,
        said: Result<Option<Said>, Failed>,
        out: &mut Vec<Action>,
    ) {
        if ticket == SAID {
            self.with_log(now, out, |log, told| log.handle(now, log::Input::Said(said), told));
        }
    }

    pub(super) fn log_rows_read(
        &mut self,
        now: Now,
        ticket: u32,
        page: Result<Page, Failed>,
        out: &mut Vec<Action>,
    ) {
        if ticket == ROWS {
            self.with_log(now, out, |log, told| log.handle(now, log::Input::Rows(page), told));
        }
    }

    pub(super) fn wrote(&mut self, now: Now, ticket: u32, outcome: Outcome, out: &mut Vec<Action>) {
        let which = match ticket {
            WRITE_RECORD => Which::Record,
            WRITE_ROWS => Which::Rows,
            WRITE_DERIVED => Which::Derived,
            _ => return,
        };
        self.with_log(now, out, |log, told| log.handle(now, log::Input::Wrote { which, outcome }, told));
    }

    pub(super) fn passed(&mut self, now: Now, ticket: u32, out: &mut Vec<Action>) {
        if ticket == BARRIER {
            self.with_log(now, out, |log, told| log.handle(now, log::Input::Passed, told));
        }
    }

    fn log_opened(&mut self, now: Now, rows: Vec<Row>, out: &mut Vec<Action>) {
        if let Start::Passed(handed) = std::mem::take(&mut self.start) {
            self.adopt(now, *handed);
            return self.opened(now, Grade::Full, out);
        }
        self.log_read(now, Grade::Full, rows, out);
    }

    fn log_read(&mut self, now: Now, grade: Grade, rows: Vec<Row>, out: &mut Vec<Action>) {
        if self.log.head() == Seq(0) {
            // An owner died as it made the room: there are no rows.
            self.state = None;
            return self.opened(now, grade, out);
        }
        self.load(grade, rows, out);
    }

    fn load(&mut self, grade: Grade, rows: Vec<Row>, out: &mut Vec<Action>) {
        let ticket = self.ticket();
        self.phase = Phase::Loading { ticket, grade, rows };
        out.push(Action::ReadRoom { ticket });
    }

    pub(super) fn loaded(
        &mut self,
        now: Now,
        ticket: u32,
        read: Result<Box<RoomRead>, Failed>,
        out: &mut Vec<Action>,
    ) {
        let (grade, rows) = match std::mem::take(&mut self.phase) {
            Phase::Loading { ticket: asked, grade, rows } if asked == ticket => (grade, rows),
            other => {
                self.phase = other;
                return;
            }
        };
        let (head, n) = (self.log.head(), self.log.n());
        let loaded = read.map(|read| State::load(*read, &rows, head, n, self.seed, &self.config));
        let error = match loaded {
            Ok(Ok(mut state)) => {
                // It was open for reading, and has told marks that may lie on one replica still.
                if let Some(before) = &self.state {
                    state.members.keep_marks(&before.members);
                    self.marks.adopt(now, &state.members, &self.config);
                }
                self.state = Some(Box::new(state));
                return self.opened(now, grade, out);
            }
            Ok(Err(after)) => {
                out.push(Action::Damaged { after });
                Code::Unavailable.error("the room's log is damaged")
            }
            Err(Failed) => Code::Unavailable.error("the room cannot be read now"),
        };
        self.phase = Phase::NotLoaded { grade, rows };
        self.not_opened(now, &error, out);
    }

    /// `state` may be used now; what waits in the queue is looked at when the turn ends.
    fn opened(&mut self, now: Now, grade: Grade, out: &mut Vec<Action>) {
        self.phase = Phase::Rest;
        self.grade = Some(grade);
        if grade == Grade::Full {
            self.start = Start::Cold;
            self.read_log = None;
        }
        self.reopen_at_ms = None;
        self.watch_tail(now);
        // Links that an earlier owner had, and, if it was open for reading before, what has turned up since. Before the
        // pages, which may show what came after somebody's leave.
        self.tell_heads(now, out);
        for (_, pull) in std::mem::take(&mut self.pulls) {
            self.pull(now, pull, out);
        }
    }

    fn not_opened(&mut self, now: Now, error: &v1::Error, out: &mut Vec<Action>) {
        while let Some(op) = self.pop_front() {
            refuse(op.link, op.call.ticket, error.clone(), out);
        }
        for (_, pull) in std::mem::take(&mut self.pulls) {
            out.push(Action::Page { link: pull.link, ticket: pull.ticket, page: Err(error.clone()) });
        }
        self.reopen_later(now);
    }

    fn reopen_later(&mut self, now: Now) {
        if self.grade.is_none() && !self.interest.is_empty() && !self.leaving {
            self.reopen_at_ms = Some(now.mono_ms + self.config.reopen_ms);
        }
    }

    pub(super) fn interested(&mut self, now: Now, link: LinkId, after: Seq, out: &mut Vec<Action>) {
        self.interest_of(link);
        if self.leaving || self.grade.is_none() {
            match self.stated.iter_mut().find(|(other, _)| *other == link) {
                Some((_, stated)) => *stated = after.min(*stated),
                None => self.stated.push((link, after)),
            }
            // While the slot may move it is told if it stays.
            if !self.leaving {
                self.open(now, Grade::ReadOpen, out);
            }
            return;
        }
        self.tell_left(link, after, out);
        out.extend(self.beacon().map(|beacon| Action::Head { link, beacon }));
    }

    pub(super) fn uninterested(&mut self, link: LinkId) {
        self.interest.retain(|other| *other != link);
        self.stated.retain(|(other, _)| *other != link);
    }

    /// Every absence that began since, in order: where a room only counts its members, who leaves leaves no event that
    /// the link could find. Who has returned needs a new cursor all the same.
    fn tell_left(&self, link: LinkId, after: Seq, out: &mut Vec<Action>) {
        let Some(state) = self.state.as_deref() else { return };
        let mut absences: Vec<(Seq, &UserId)> = Vec::new();
        for member in state.members.all() {
            let row = &member.row;
            let lefts = row.out.iter().map(|(left, _)| *left).chain(row.left_seq);
            absences.extend(lefts.filter(|at| *at >= after).map(|at| (at, &row.user)));
        }
        absences.sort_unstable();
        out.extend(absences.into_iter().map(|(at, user)| Action::Left { link, user: user.clone(), at }));
    }

    /// Tells every link that wants the room where it stands; opens it first, if need be.
    pub(super) fn tell_heads(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.interest.is_empty() {
            return;
        }
        if self.grade.is_none() {
            return self.open(now, Grade::ReadOpen, out);
        }
        for (link, after) in std::mem::take(&mut self.stated) {
            self.tell_left(link, after, out);
        }
        if let Some(beacon) = self.beacon() {
            out.extend(self.interest.iter().map(|link| Action::Head { link: *link, beacon }));
        }
    }

    /// From now on the link gets the room's events.
    pub(super) fn interest_of(&mut self, link: LinkId) {
        if let Err(place) = self.interest.binary_search(&link) {
            self.interest.insert(place, link);
        }
    }

    /// What a room that is only open for reading answers.
    pub(super) fn answers_read_open(&self, op: &Op) -> bool {
        op.reads_only() && !self.enters_lazily(&op.call.caller.user, op)
    }

    /// Answers what can be answered; the rest waits until the room is open in full.
    pub(super) fn gather_reads(&mut self, now: Now, out: &mut Vec<Action>) {
        let mut behind_change = false;
        for _ in 0..self.queue.len() {
            let Some(op) = self.pop_front() else { break };
            if !behind_change && self.answers_read_open(&op) {
                self.answer_read(now, &op, out);
            } else {
                behind_change |= !matches!(op.call.command, super::RoomCommand::Send(_));
                self.push_back(op);
            }
        }
        if !self.queue.is_empty() {
            self.open(now, Grade::Full, out);
        }
    }
}
