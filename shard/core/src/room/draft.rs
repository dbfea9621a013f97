//! A batch as it is made, and while it is in flight.
//!
//! Always holds: it adds to durable state and never changes it, so a batch that is not stored is simply dropped.

use std::sync::Arc;

use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{Origin, RoomId, Seq, UnixMs, UserId};
use banyan_proto::link::{LinkId, Person, Ticket};
use banyan_proto::v1;
use banyan_storage::room_log::{Derived, MemberRow, RoomRow, Row};

use super::dedupe::Entry;
use super::{Action, Now, Op, Say, State};
use crate::config::Config;

#[derive(Debug, Clone, Default)]
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
    /// Rows that change, each user once.
    pub(super) members: Vec<MemberRow>,
    /// Ids of the sends in it.
    pub(super) keys: Vec<(u128, Entry)>,
    /// Ids of the sends that it refuses when it is durable: a try that comes until then is refused with them.
    pub(super) refused: Vec<(u128, v1::Error)>,
    pub(super) replies: Vec<Reply>,
    pub(super) notices: Vec<Notice>,
    /// Name, kind or visibility changed: every member is told.
    pub(super) changed: bool,
    /// When the oldest command that waits for it came.
    pub(super) oldest_ms: Option<u64>,
}

/// What is said to one command when the batch is durable.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) link: LinkId,
    pub(super) ticket: Ticket,
    pub(super) user: UserId,
    pub(super) arrived_ms: u64,
    pub(super) say: Say,
}

/// To a user's channel when the batch is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// The user is in the room, or stands differently in it.
    Room(UserId),
    Gone(UserId),
}

impl Draft {
    pub(super) fn after(state: Option<&State>) -> Self {
        match state {
            Some(state) => {
                Self { base: state.head, head: state.head, n: state.n, at: state.at, ..Self::default() }
            }
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
    pub(super) fn expire(&mut self, late_ms: u64) -> Vec<Reply> {
        if self.oldest_ms.is_none_or(|oldest| oldest > late_ms) {
            return Vec::new();
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
}

/// A draft that the store has.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) draft: Draft,
    /// Of the newest try.
    pub(super) ticket: u32,
    tries: u32,
    /// A try ended with unknown outcome: from then on only the same rows can be stored under these seqs.
    pub(super) unsettled: bool,
    pub(super) retry_at_ms: Option<u64>,
}

impl Batch {
    pub(super) fn new(draft: Draft, ticket: u32) -> Self {
        Self { draft, ticket, tries: 1, unsettled: false, retry_at_ms: None }
    }

    pub(super) fn settle_later(&mut self, now: Now, config: &Config) {
        let doubled = config.settle_first_ms.saturating_mul(1 << (self.tries - 1).min(20));
        self.retry_at_ms = Some(now.mono_ms + doubled.min(config.settle_max_ms).max(1));
        self.tries = self.tries.saturating_add(1);
    }

    /// The same at every try.
    pub(super) fn append(&self) -> Action {
        let draft = &self.draft;
        let rows = draft
            .events
            .iter()
            .map(|event| Row {
                seq: event.seq(),
                batch_first: draft.base.next(),
                n: event.event.n,
                origin: event.origin,
                event: event.encoded.clone(),
                derived: None,
            })
            .collect();
        let derived = draft.is_structural().then(|| {
            Box::new(Derived { room: draft.row.as_deref().cloned(), members: draft.members.clone() })
        });
        Action::Append { ticket: self.ticket, rows, derived }
    }
}
