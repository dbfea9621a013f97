//! What one worker has for one link: collected over a turn, handed over at its end in one piece.
//!
//! Always holds: answers are never dropped (their number is bounded by the questions that the link has under way).
//! A link that is full loses events, marks and pushes to users; the rooms of lost events are dirty until the link has
//! taken a beacon of each.

use banyan_proto::id::RoomId;
use banyan_proto::link::FromShard;
use foldhash::fast::RandomState;
use hashbrown::HashSet;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

#[derive(Debug)]
pub(super) struct Outbox {
    sender: mpsc::Sender<Vec<FromShard>>,
    next: Vec<FromShard>,
    /// Answers that the link did not take yet, oldest first.
    held: Vec<FromShard>,
    /// Bound: the rooms open in the worker.
    dirty: HashSet<RoomId, RandomState>,
    closed: bool,
}

/// How a flush went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Everything is with the link.
    All,
    /// The link is full: so many messages were dropped, the rest is to be tried again.
    Full { dropped: u64 },
    /// Nobody is at the other end: found out now.
    Closed,
}

impl Outbox {
    pub(super) fn new(sender: mpsc::Sender<Vec<FromShard>>) -> Self {
        Self { sender, next: Vec::new(), held: Vec::new(), dirty: HashSet::default(), closed: false }
    }

    pub(super) fn push(&mut self, message: FromShard) {
        if !self.closed {
            self.next.push(message);
        }
    }

    /// The link has not taken everything.
    pub(super) fn is_blocked(&self) -> bool {
        !self.held.is_empty() || !self.dirty.is_empty()
    }

    /// Answers wait for the link.
    pub(super) fn holds_answers(&self) -> bool {
        !self.held.is_empty()
    }

    /// `beacon`: where a dirty room stands, `None` if the link no longer wants it.
    pub(super) fn flush(&mut self, mut beacon: impl FnMut(&RoomId) -> Option<FromShard>) -> Flushed {
        if self.next.is_empty() && !self.is_blocked() {
            return Flushed::All;
        }
        let batch = if self.is_blocked() && self.sender.capacity() > 0 {
            // Beacons first: they show the gap below the events that follow.
            let mut batch: Vec<FromShard> = self.dirty.iter().filter_map(&mut beacon).collect();
            batch.append(&mut self.held);
            batch.append(&mut self.next);
            batch
        } else {
            std::mem::take(&mut self.next)
        };
        if self.is_blocked() && self.sender.capacity() == 0 && !self.sender.is_closed() {
            return Flushed::Full { dropped: self.keep(batch) };
        }
        if batch.is_empty() {
            self.dirty.clear();
            return Flushed::All;
        }
        match self.sender.try_send(batch) {
            Ok(()) => {
                self.dirty.clear();
                Flushed::All
            }
            Err(TrySendError::Full(batch)) => Flushed::Full { dropped: self.keep(batch) },
            Err(TrySendError::Closed(_)) => {
                self.closed = true;
                self.held = Vec::new();
                self.dirty.clear();
                Flushed::Closed
            }
        }
    }

    /// Keeps what may not be lost and counts the rest.
    fn keep(&mut self, batch: Vec<FromShard>) -> u64 {
        let mut dropped = 0;
        for message in batch {
            match message {
                FromShard::Answer { .. }
                | FromShard::Moved { .. }
                | FromShard::Page { .. }
                | FromShard::Left { .. } => {
                    self.held.push(message);
                }
                FromShard::Events { room, .. } => {
                    self.dirty.insert(room);
                    dropped += 1;
                }
                // Its room is dirty still.
                FromShard::Head { .. } => {}
                FromShard::Marks { .. } | FromShard::User { .. } => dropped += 1,
            }
        }
        dropped
    }
}
