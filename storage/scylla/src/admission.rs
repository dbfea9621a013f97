//! How much may be under way: writes to rooms that are accepted, and statements that are with the servers.
//!
//! Full-queue policy: a write beyond the bounds is refused at once and definitely; an accepted one waits its turn. A read beyond the
//! bound of those that wait is refused as overloaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use banyan_storage::Error;
use metrics::{Counter, Gauge};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Counts writes to rooms from their acceptance to their answer.
#[derive(Debug)]
pub(crate) struct Writes {
    count: AtomicUsize,
    bytes: AtomicUsize,
    count_max: usize,
    bytes_max: usize,
}

/// One accepted write.
#[derive(Debug)]
pub(crate) struct Accepted {
    writes: Arc<Writes>,
    bytes: usize,
}

impl Writes {
    pub(crate) fn new(count_max: usize, bytes_max: usize) -> Self {
        Self { count: AtomicUsize::new(0), bytes: AtomicUsize::new(0), count_max, bytes_max }
    }

    /// None: too much is under way.
    pub(crate) fn accept(self: &Arc<Self>, bytes: usize) -> Option<Accepted> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // Dropped again if it is one too many.
        let accepted = Accepted { writes: Arc::clone(self), bytes };
        (count < self.count_max && before.saturating_add(bytes) <= self.bytes_max).then_some(accepted)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.writes.count.fetch_sub(1, Ordering::Relaxed);
        self.writes.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Lets so many statements be with the servers at once.
pub(crate) struct Gate {
    permits: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
    in_flight: Gauge,
    refused: Counter,
}

/// A statement may be with the servers while this lives.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
    in_flight: InFlight,
}

struct InFlight(Gauge);

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InFlight")
    }
}

impl Gate {
    pub(crate) fn new(in_flight_max: usize, waiting_max: usize, in_flight: Gauge, refused: Counter) -> Self {
        Self {
            permits: Semaphore::new(in_flight_max),
            waiting: AtomicUsize::new(0),
            waiting_max,
            in_flight,
            refused,
        }
    }

    /// Waits for a turn, unless too many wait.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Error> {
        let permit = match self.permits.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::join(&self.waiting, self.waiting_max).ok_or_else(|| {
                    self.refused.increment(1);
                    Error::Overloaded
                })?;
                self.permits.acquire().await.map_err(|_| Error::Closed)?
            }
        };
        self.in_flight.increment(1.0);
        Ok(Turn { _permit: permit, in_flight: InFlight(self.in_flight.clone()) })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.in_flight.0.decrement(1.0);
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// Counted while it lives, so that a caller that goes away leaves no trace.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn join(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let waiting = Self(count);
        (before < max).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_bounded_by_number_and_by_bytes() {
        let writes = Arc::new(Writes::new(2, 100));
        let first = writes.accept(60).unwrap();
        assert!(writes.accept(41).is_none());
        let second = writes.accept(40).unwrap();
        assert!(writes.accept(0).is_none());
        assert_eq!((writes.count(), writes.bytes()), (2, 100));
        drop(first);
        assert!(writes.accept(60).is_some());
        drop(second);
        assert_eq!((writes.count(), writes.bytes()), (0, 0));
    }

    #[tokio::test]
    async fn what_finds_no_turn_waits_and_no_more_than_so_many() {
        let gate = Arc::new(Gate::new(1, 1, Gauge::noop(), Counter::noop()));
        let turn = gate.turn().await.unwrap();
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.turn().await.map(drop) }
        });
        while gate.waiting.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.turn().await.map(drop), Err(Error::Overloaded));
        drop(turn);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
        assert!(gate.turn().await.is_ok());
    }
}
