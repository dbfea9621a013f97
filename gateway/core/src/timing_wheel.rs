//! Deadlines of many connections (pings, pongs, handshakes), coarse and cheap: a hashed timing wheel (Varghese and
//! Lauck, 1987, scheme 5) without rounds.
//!
//! Owns: 8 bytes per waiting entry, in the vector of the tick at which it fires; nothing per entry elsewhere, and nothing for ticks
//! that have fired.
//! Always holds: an entry fires exactly once, at most one tick (and the caller's own delay) after its deadline.
//! It fires early only when its deadline lies beyond the wheel's span.
//! Does not: move or take back entries. A deadline that moved is found out at the firing: the caller looks up the
//! connection's true deadline, drops the entry if the generation is old, inserts it again if the time has not come.
//! So traffic on a connection costs the wheel nothing, and the caller keeps one entry per connection, which bounds the wheel.

/// A wheel of `span` ticks. Time is in milliseconds of any clock that the caller keeps to.
#[derive(Debug)]
pub struct TimingWheel {
    tick_ms: u64,
    /// Entries of tick `t` are in slot `t % slots.len()`.
    slots: Box<[Vec<(u32, u32)>]>,
    /// One bit per slot that is not empty, so that the next deadline is found without touching the slots.
    occupied: Box<[u64]>,
    /// The first tick that has not fired; all entries lie in `next_tick .. next_tick + slots.len()`.
    next_tick: u64,
    len: usize,
}

impl TimingWheel {
    /// The gateway's tick: deadlines are seconds, and four wakes a second are nothing.
    pub const TICK_MS: u64 = 250;

    /// `span_ms` is how far ahead a deadline can be without firing early: the longest usual one plus a tick.
    pub fn new(now_ms: u64, tick_ms: u64, span_ms: u64) -> Self {
        assert!(tick_ms > 0, "a tick takes time");
        // One slot more, because the current tick has begun.
        let slots =
            usize::try_from(span_ms.div_ceil(tick_ms) + 1).expect("a span of fewer ticks than addresses");
        Self {
            tick_ms,
            slots: (0..slots).map(|_| Vec::new()).collect(),
            occupied: vec![0; slots.div_ceil(64)].into(),
            next_tick: now_ms / tick_ms + 1,
            len: 0,
        }
    }

    /// Entries that wait.
    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets `(index, generation)` fire at `deadline_ms`, or with the next tick if that has passed.
    pub fn insert(&mut self, deadline_ms: u64, index: u32, generation: u32) {
        let last_tick = self.next_tick + self.slots.len() as u64 - 1;
        let tick = deadline_ms.div_ceil(self.tick_ms).clamp(self.next_tick, last_tick);
        let slot = self.slot(tick);
        self.slots[slot].push((index, generation));
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
    }

    /// Moves everything that is due at `now_ms` to the end of `fired`, in order of ticks. A clock that went back fires nothing.
    pub fn advance(&mut self, now_ms: u64, fired: &mut Vec<(u32, u32)>) {
        let end = now_ms / self.tick_ms + 1;
        // After a long sleep every slot comes once, not once per missed turn of the wheel.
        let turn = self.next_tick.saturating_add(self.slots.len() as u64);
        for tick in self.next_tick..end.min(turn) {
            let slot = self.slot(tick);
            // The vector is given back: else each slot would keep room for the largest crowd that ever wandered by.
            let entries = std::mem::take(&mut self.slots[slot]);
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            self.len -= entries.len();
            fired.extend(entries);
        }
        self.next_tick = self.next_tick.max(end);
    }

    /// When [`Self::advance`] will have something to do; `None` while nothing waits.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let (first, slots) = (self.slot(self.next_tick), self.slots.len());
        let slot = self.occupied_from(first).or_else(|| self.occupied_from(0))?;
        let ticks_ahead = (slot + slots - first) % slots;
        Some((self.next_tick + ticks_ahead as u64) * self.tick_ms)
    }

    /// The first occupied slot at or above `first`.
    fn occupied_from(&self, first: usize) -> Option<usize> {
        let head = self.occupied[first / 64] & (u64::MAX << (first % 64));
        let tail = self.occupied.iter().copied().enumerate().skip(first / 64 + 1);
        let (word, bits) = std::iter::once((first / 64, head)).chain(tail).find(|(_, bits)| *bits != 0)?;
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    const fn slot(&self, tick: u64) -> usize {
        // The remainder is below a usize.
        (tick % self.slots.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Inserts `(deadline, index)` at 1,000 ms into a wheel of 4 × 100 ms, then advances to each time; what fired there.
    #[track_caller]
    fn check(deadlines: &[(u64, u32)], want: &[(u64, &[u32])]) {
        let mut wheel = TimingWheel::new(1000, 100, 300);
        for (deadline, index) in deadlines {
            wheel.insert(*deadline, *index, 7);
        }
        for (now, want) in want {
            let mut fired = Vec::new();
            wheel.advance(*now, &mut fired);
            let want: Vec<_> = want.iter().map(|index| (*index, 7)).collect();
            assert_eq!(fired, want, "at {now}");
        }
    }

    #[test]
    fn fires_at_the_tick_behind_the_deadline_and_once() {
        check(&[(1050, 1)], &[(1099, &[]), (1100, &[1]), (1100, &[]), (9999, &[])]);
        check(&[(1100, 1)], &[(1099, &[]), (1100, &[1])]);
        check(&[(1101, 1)], &[(1199, &[]), (1200, &[1])]);
        check(&[(1250, 3), (1150, 2), (1250, 4), (1050, 1)], &[(1300, &[1, 2, 3, 4])]);
    }

    #[test]
    fn a_deadline_in_the_past_fires_with_the_next_tick() {
        check(&[(0, 1), (1000, 2)], &[(1000, &[]), (1099, &[]), (1100, &[1, 2])]);
    }

    #[test]
    fn a_deadline_beyond_the_span_fires_early_at_its_end() {
        check(&[(60_000, 1), (u64::MAX, 2)], &[(1399, &[]), (1400, &[1, 2])]);
        check(&[(1300, 1)], &[(1299, &[]), (1300, &[1])]); // the whole span is usable
    }

    #[test]
    fn a_clock_that_jumps_ahead_or_back() {
        check(&[(1300, 3), (1100, 1), (1200, 2)], &[(u64::MAX / 2, &[1, 2, 3])]);
        check(&[(1200, 1)], &[(1100, &[]), (0, &[]), (1150, &[]), (1200, &[1])]);
    }

    #[test]
    fn tick_at_the_deadline_moves_the_deadline() {
        let mut wheel = TimingWheel::new(1000, TimingWheel::TICK_MS, 30_000);
        wheel.insert(5000, 1, 0);
        wheel.insert(25_000, 2, 0);
        assert_eq!(wheel.next_deadline_ms(), Some(5000));
        wheel.advance(5000, &mut Vec::new());
        assert_eq!(wheel.next_deadline_ms(), Some(25_000));
        wheel.advance(25_000, &mut Vec::new());
        assert_eq!(wheel.next_deadline_ms(), None);
    }

    #[test]
    fn drained_slots_give_their_memory_back() {
        let mut wheel = TimingWheel::new(0, 100, 300);
        for index in 0..1000 {
            wheel.insert(50, index, 0);
        }
        wheel.advance(100, &mut Vec::new());
        assert!(wheel.slots.iter().all(|slot| slot.capacity() == 0));
    }

    proptest! {
        /// Against a map of true deadlines, with the caller's lazy re-arming: nothing is lost, invented, late by a tick, or
        /// early without a reason; and the next deadline is exactly the next time at which something fires.
        #[test]
        fn keeps_the_deadlines_of_a_map(
            tick_ms in 1_u64..300,
            span_ms in 1_u64..30_000,
            start in 0_u64..1_000_000,
            steps in proptest::collection::vec((0_u64..5_000, proptest::collection::vec(0_u64..60_000, 0..6)), 1..60),
        ) {
            let mut wheel = TimingWheel::new(start, tick_ms, span_ms);
            // index -> (true deadline, when it was last inserted)
            let mut model = BTreeMap::new();
            let (mut now, mut next_index) = (start, 0);
            for (pass, ahead) in steps {
                for ahead in ahead {
                    wheel.insert(now + ahead, next_index, !next_index);
                    model.insert(next_index, (now + ahead, now));
                    next_index += 1;
                }
                let expected = wheel.next_deadline_ms();
                prop_assert_eq!(expected.is_some(), !model.is_empty());
                now += pass;
                if let Some(expected) = expected && expected <= now {
                    prop_assert!(expected > now - pass);
                    let mut early = Vec::new();
                    wheel.advance(expected - 1, &mut early);
                    prop_assert_eq!(early, []);
                }
                let mut fired = Vec::new();
                wheel.advance(now, &mut fired);
                prop_assert_eq!(!fired.is_empty(), expected.is_some_and(|expected| expected <= now));
                for (index, generation) in fired {
                    prop_assert_eq!(generation, !index);
                    let Some((deadline, inserted)) = model.remove(&index) else {
                        return Err(TestCaseError::fail(format!("{index} fired twice or never was")));
                    };
                    if deadline > now {
                        prop_assert!(deadline - inserted > span_ms, "early without a reason");
                        wheel.insert(deadline, index, generation);
                        model.insert(index, (deadline, now));
                    }
                }
                prop_assert!(model.values().all(|(deadline, _)| deadline + tick_ms > now), "late");
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }
}
