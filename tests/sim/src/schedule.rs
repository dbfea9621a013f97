//! What happens next: one heap of events in simulated microseconds.
//!
//! Always holds: events of one moment come in the order in which they were put, so a run is a function of its seed.
//! Does not: forget events. Who is gone by then is told apart by a generation inside the event.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds since the run began.
pub type Time = u64;

pub const MS: Time = 1_000;
pub const SECOND: Time = 1_000_000;

/// Events wait in a slab; the heap moves three words for each.
#[derive(Debug)]
pub struct Schedule<E> {
    heap: BinaryHeap<Reverse<(Time, u64, u32)>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    count: u64,
    now: Time,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), count: 0, now: 0 }
    }
}

impl<E> Schedule<E> {
    pub const fn now(&self) -> Time {
        self.now
    }

    /// At `time`, or now if that has passed.
    pub fn at(&mut self, time: Time, event: E) {
        let index = match self.free.pop() {
            Some(index) => {
                self.events[index as usize] = Some(event);
                index
            }
            None => {
                self.events.push(Some(event));
                (self.events.len() - 1) as u32
            }
        };
        self.count += 1;
        self.heap.push(Reverse((time.max(self.now), self.count, index)));
    }

    pub fn after(&mut self, delay: Time, event: E) {
        self.at(self.now + delay, event);
    }

    /// Moves the time to the next event and takes it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse((time, _, index)) = self.heap.pop()?;
        self.now = time;
        self.free.push(index);
        self.events[index as usize].take()
    }

    pub fn next_time(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((time, ..))| *time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earliest_first_and_first_put_first() {
        let mut schedule = Schedule::default();
        schedule.at(5, "c");
        schedule.at(3, "a");
        schedule.at(5, "d");
        schedule.at(3, "b");
        assert_eq!(schedule.pop(), Some("a"));
        schedule.at(1, "late, so now");
        assert_eq!(schedule.pop(), Some("b"));
        assert_eq!(schedule.pop(), Some("late, so now"));
        assert_eq!(schedule.now(), 3);
        schedule.after(1, "between");
        let rest: Vec<_> = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(rest, ["between", "c", "d"]);
    }
}
