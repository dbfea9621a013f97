//! A batch as it is made, and while it is in flight.
//!
//! Always holds: it adds to durable state and never changes it, so a batch that is not stored is simply dropped. What it
//! changes beside the log stands on its last row, so that whoever opens the room after a crash can write it again.

use std::sync::Arc;

use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{Origin, RoomId, Seq, UnixMs, UserId};
use banyan_proto::link::{LinkId, Person, Ticket};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_storage::{Derived, MemberRow, RoomRow, Row};
use smallvec::SmallVec;

use super::dedupe::Entry;
use super::{Now, Op, Say, State};
use crate::config::Config;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Draft {
    /// Seq before the batch.
    pub(super) base: Seq,
    pub(super) head: Seq,
    pub(super) n: u64,
    pub(super) at: UnixMs,
    pub(super) bytes: usize,
    pub(super) events: Vec<Arc<LoggedEvent>>,
    /// The room's row if it changes.
    pub(super) row: Option<Box<RoomRow>>,
    /// Rows that change or are written once more, each user once.
    pub(super) members: Vec<MemberRow>,
    /// How many are members as the batch leaves it.
    pub(super) members_now: u64,
    /// Ids of the sends in it. Most batches are one send.
    pub(super) keys: SmallVec<[(u128, Entry); 1]>,
    /// Ids of the sends that it refuses when it is durable: a try that comes until then is refused with them.
    pub(super) refused: Vec<(u128, v1::Error)>,
    pub(super) replies: SmallVec<[Reply; 1]>,
    pub(super) notices: Vec<Notice>,
    /// Name, kind or visibility changed: every member is told.
    pub(super) changed: bool,
    /// When the oldest command that waits for it came.
    pub(super) oldest_ms: Option<u64>,
}

/// What is said to one command when the batch is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reply {
    pub(super) link: LinkId,
    pub(super) ticket: Ticket,
    pub(super) user: UserId,
    pub(super) arrived_ms: u64,
    pub(super) say: Say,
}

/// To a user's channel when the batch is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Notice {
    /// The user is in the room, or stands differently in it.
    Room(UserId),
    /// The user is out since this seq; it may be back within the batch.
    Gone(UserId, Seq),
}

impl Draft {
    pub(super) fn after(state: Option<&State>) -> Self {
        match state {
            Some(state) => Self {
                base: state.head,
                head: state.head,
                n: state.n,
                at: state.at,
                members_now: state.members.count(),
                ..Self::default()
            },
            None => Self::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && !self.is_structural()
    }

    pub(super) fn is_structural(&self) -> bool {
        self.row.is_some() || !self.members.is_empty()
    }

    /// The first command always has.
    pub(super) fn has_room_for(&self, op: &Op, config: &Config) -> bool {
        let events = if op.is_structural() { op.events() } else { 1 };
        self.is_empty()
            || (self.events.len() + events <= config.batch_events
                && self.bytes + op.bytes <= config.batch_bytes)
    }

    pub(super) fn reply(&mut self, link: LinkId, ticket: Ticket, user: UserId, arrived_ms: u64, say: Say) {
        self.oldest_ms = Some(self.oldest_ms.map_or(arrived_ms, |oldest| oldest.min(arrived_ms)));
        self.replies.push(Reply { link, ticket, user, arrived_ms, say });
    }

    /// Takes out the replies of commands that came at or before `late_ms`.
    pub(super) fn expire(&mut self, late_ms: u64) -> SmallVec<[Reply; 1]> {
        if self.oldest_ms.is_none_or(|oldest| oldest > late_ms) {
            return SmallVec::new();
        }
        let (expired, waiting) =
            std::mem::take(&mut self.replies).into_iter().partition(|reply| reply.arrived_ms <= late_ms);
        self.replies = waiting;
        self.oldest_ms = self.replies.iter().map(|reply| reply.arrived_ms).min();
        expired
    }

    /// Adds the next event and returns its seq.
    pub(super) fn push(
        &mut self,
        room: &RoomId,
        now: Now,
        sender: &Person,
        origin: Origin,
        client_msg_id: Option<String>,
        kind: v1::event::Kind,
    ) -> Seq {
        self.head = self.head.next();
        self.n += u64::from(matches!(kind, v1::event::Kind::Message(_)));
        // For display only, and it never falls.
        self.at = self.at.max(now.unix);
        let event = v1::Event {
            room: room.as_str().to_owned(),
            seq: self.head.0,
            at: self.at.0,
            n: self.n,
            sender: sender.user.as_str().to_owned(),
            sender_name: sender.name.as_ref().to_owned(),
            client_msg_id,
            kind: Some(kind),
        };
        let event = LoggedEvent::new(event, origin);
        self.bytes += event.encoded.len();
        self.events.push(Arc::new(event));
        self.head
    }

    /// The row of a member as this batch leaves it.
    pub(super) fn put_member(&mut self, mut row: MemberRow) {
        row.changed = self.head;
        match self.members.iter_mut().find(|other| other.user == row.user) {
            Some(other) => *other = row,
            None => self.members.push(row),
        }
    }

    /// The row of a member as it is, to be written once more.
    pub(super) fn keep_member(&mut self, row: &MemberRow) {
        if self.members.iter().all(|other| other.user != row.user) {
            self.members.push(row.clone());
        }
    }

    /// What it changes beside the log.
    pub(super) fn derived(&self, now: Now) -> Option<Derived> {
        if !self.is_structural() {
            return None;
        }
        let mut room = self.row.as_deref().cloned();
        let mut members = self.members.clone();
        if plant::is(Bug::DerivedByWallClock) {
            let changed = room.iter_mut().map(|row| &mut row.changed);
            for changed in changed.chain(members.iter_mut().map(|row| &mut row.changed)) {
                *changed = Seq(now.unix.0);
            }
        }
        Some(Derived { room, members })
    }

    /// As the log keeps it.
    pub(super) fn rows(&self, derived: Option<&Derived>) -> Arc<[Row]> {
        let last = self.head;
        let row = |event: &Arc<LoggedEvent>| Row {
            seq: event.seq(),
            batch_first: self.base.next(),
            n: event.event.n,
            origin: event.origin,
            event: event.encoded.clone(),
            derived: derived.filter(|_| event.seq() == last).cloned().map(Arc::new),
        };
        self.events.iter().map(row).collect()
    }
}
