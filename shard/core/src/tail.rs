//! The newest events of an open room, in memory.
//!
//! Always holds: seqs are dense and end at the room's head; at most the configured count and bytes.

use std::collections::VecDeque;
use std::sync::Arc;

use banyan_proto::event::LoggedEvent;
use banyan_proto::id::Seq;
use banyan_proto::v1::event::Kind;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tail {
    events: VecDeque<Arc<LoggedEvent>>,
    bytes: usize,
}

impl Tail {
    /// Adds the next event and drops the oldest above the bounds; the newest always stays.
    pub fn push(&mut self, event: Arc<LoggedEvent>, max_events: usize, max_bytes: usize) {
        debug_assert!(
            self.events.back().is_none_or(|last| last.seq().next() == event.seq()),
            "a tail is dense"
        );
        self.bytes += event.encoded.len();
        self.events.push_back(event);
        while self.events.len() > 1 && (self.events.len() > max_events || self.bytes > max_bytes) {
            if let Some(oldest) = self.events.pop_front() {
                self.bytes -= oldest.encoded.len();
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// Keeps the newest `events` only, and no more memory than they take.
    pub(crate) fn shrink(&mut self, events: usize) {
        while self.events.len() > events.max(1) {
            if let Some(oldest) = self.events.pop_front() {
                self.bytes -= oldest.encoded.len();
            }
        }
        self.events.shrink_to_fit();
    }

    /// The lowest seq held.
    pub fn first(&self) -> Option<Seq> {
        self.events.front().map(|event| event.seq())
    }

    /// Events `low..=high`, when all of them are here.
    pub fn range(&self, low: Seq, high: Seq) -> Option<impl DoubleEndedIterator<Item = &Arc<LoggedEvent>>> {
        let first = self.first()?;
        if low < first || high.0 >= first.0 + self.events.len() as u64 || high < low {
            return None;
        }
        // Both within the deque's length.
        let from = (low.0 - first.0) as usize;
        let to = (high.0 - first.0) as usize;
        Some(self.events.range(from..=to))
    }

    /// Newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Arc<LoggedEvent>> {
        self.events.iter().rev()
    }

    /// Messages up to `seq`, if the tail can tell.
    pub fn n_at(&self, seq: Seq) -> Option<u64> {
        let first = self.events.front()?;
        if seq.next() == first.seq() {
            return Some(first.event.n - u64::from(is_message(first)));
        }
        let mut one = self.range(seq, seq)?;
        one.next().map(|event| event.event.n)
    }
}

pub fn is_message(event: &LoggedEvent) -> bool {
    matches!(event.event.kind, Some(Kind::Message(_)))
}
