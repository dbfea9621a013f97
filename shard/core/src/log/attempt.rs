//! One write under way, said again with growing pauses until its outcome is known.

use banyan_storage::{NotDone, Outcome};

use super::Limits;

/// Where a write stands. Times are on the clock that never goes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    /// `None`: with the store.
    again_at_ms: Option<u64>,
    /// The wait before the next try.
    backoff_ms: u32,
    /// A try ended without a definite answer: it may be stored, now or later.
    unknown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    Done,
    /// Definite: no try of it is stored, or ever will be.
    NotDone(NotDone),
    /// Not settled: the same again, later.
    Not,
}

impl Attempt {
    pub(super) const fn sent(limits: &Limits) -> Self {
        Self { again_at_ms: None, backoff_ms: limits.settle_first_ms, unknown: false }
    }

    /// `may_end`: whoever waits can live with a definite no.
    pub(super) fn answered(
        &mut self,
        now_ms: u64,
        outcome: Outcome,
        may_end: bool,
        limits: &Limits,
    ) -> Settled {
        match outcome {
            Outcome::Done => return Settled::Done,
            // A definite answer to this try says nothing of an earlier one.
            Outcome::NotDone(why) if may_end && !self.unknown => return Settled::NotDone(why),
            Outcome::NotDone(_) => {}
            Outcome::Unknown => self.unknown = true,
        }
        self.again_at_ms = Some(now_ms + u64::from(self.backoff_ms));
        self.backoff_ms = self.backoff_ms.saturating_mul(2).min(limits.settle_max_ms);
        Settled::Not
    }

    pub(super) const fn again_at_ms(&self) -> Option<u64> {
        self.again_at_ms
    }

    /// True: it is time for the next try, which counts as sent.
    pub(super) fn is_due(&mut self, now_ms: u64) -> bool {
        let due = self.again_at_ms.is_some_and(|at| at <= now_ms);
        if due {
            self.again_at_ms = None;
        }
        due
    }
}
