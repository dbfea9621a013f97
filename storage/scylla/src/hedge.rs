//! When a request is made a second time, of another server, because the first one keeps us waiting.
//!
//! A hedge after a fixed time is right while one server is slow. When all are, every request takes longer than that, and three times the
//! requests keep slow servers slow. So it waits for three times what such requests take, too: of servers that are all busy hardly
//! anything is asked twice, and one that is alone in its slowness moves the median by nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scylla::policies::speculative_execution::{Context, SpeculativeExecutionPolicy};

use crate::metrics::Kind;

/// So many further servers are asked, one after the other: of three, one is down and the next is in a pause of its collector.
const HEDGES: usize = 2;

/// Of what a request takes.
const PATIENCE: u64 = 3;

/// Part of the estimate by which one request moves it.
const STEP: u64 = 32;

/// For requests of one sort.
#[derive(Debug)]
pub(crate) struct Hedge {
    /// Not earlier in any case.
    least: Duration,
    /// About the median, in µs: each request moves it a little towards itself, however far away it is.
    typical_us: AtomicU64,
}

/// Each sort has its own: a fence is read in a fraction of what a page takes.
#[derive(Debug, Clone)]
pub(crate) struct Hedges {
    pub(crate) writes: Arc<Hedge>,
    pub(crate) reads: Arc<Hedge>,
    pub(crate) fences: Arc<Hedge>,
}

impl Hedges {
    pub(crate) fn new(least: Duration, least_of_fences: Duration) -> Self {
        let of = |least| Arc::new(Hedge { least, typical_us: AtomicU64::new(0) });
        Self { writes: of(least), reads: of(least), fences: of(least_of_fences) }
    }

    /// A request has taken so long.
    pub(crate) fn note(&self, kind: Kind, took: Duration) {
        match kind {
            Kind::FenceRead => self.fences.note(took),
            Kind::Read => self.reads.note(took),
            Kind::Derived | Kind::Marks | Kind::Owner => self.writes.note(took),
            // Made once only, or of several statements and sorts.
            Kind::Append | Kind::Record | Kind::Said | Kind::Account => {}
        }
    }
}

impl Hedge {
    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let typical = self.typical_us.load(Ordering::Relaxed);
        let step = typical / STEP + 1;
        let next =
            if took > typical { (typical + step).min(took) } else { typical.saturating_sub(step).max(took) };
        // Of two at once one may be lost: it is an estimate.
        self.typical_us.store(next, Ordering::Relaxed);
    }

    fn after(&self) -> Duration {
        let typical = Duration::from_micros(self.typical_us.load(Ordering::Relaxed).saturating_mul(PATIENCE));
        typical.max(self.least)
    }
}

impl SpeculativeExecutionPolicy for Hedge {
    fn max_retry_count(&self, _: &Context) -> usize {
        HEDGES
    }

    fn retry_interval(&self, _: &Context) -> Duration {
        self.after()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(100);

    fn hedge() -> Hedge {
        Hedge { least: LEAST, typical_us: AtomicU64::new(0) }
    }

    #[test]
    fn one_slow_server_of_three_is_hedged_as_before() {
        let hedge = hedge();
        for request in 0..10_000 {
            hedge.note(Duration::from_millis(if request % 3 == 0 { 105 } else { 5 }));
        }
        assert_eq!(hedge.after(), LEAST);
    }

    #[test]
    fn where_all_are_slow_it_waits_longer_and_no_longer_than_need_be() {
        let hedge = hedge();
        for _ in 0..1_000 {
            hedge.note(Duration::from_millis(400));
        }
        assert_eq!(hedge.after(), Duration::from_millis(1_200));
        for _ in 0..1_000 {
            hedge.note(Duration::from_millis(4));
        }
        assert_eq!(hedge.after(), LEAST, "and it comes back");
    }
}
