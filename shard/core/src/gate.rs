//! The barrier: everything that an owner says waits here until a read of its own fence, begun afterwards, found nothing.
//!
//! Owns: what waits, in order, and which fence reads are under way.
//! Always holds (DESIGN.md, section 5, rules 5 and 6): nothing is released by a read that was begun before it was said;
//! what is released keeps the order in which it was said; after one sight of the fence nothing is released ever again.
//! One gate serves all rooms of a worker: its reads do not grow in number with load, and there are none when nobody waits.
//! Does not: read the store. It says when a read is to begin and is told how it ended.

use std::collections::VecDeque;

use banyan_proto::plant::{self, Bug};

use crate::log::Failed;

/// Fence reads of one gate that may be under way at once.
pub const READS_MAX: usize = 4;
/// A further read begins only when the youngest under way is older than this.
const OVERLAP_AFTER_MS: u64 = 1;
/// After a failed read.
const RETRY_MS: u64 = 20;
/// So long without a readable fence while somebody waits, and the node leaves.
const STUCK_MS: u64 = 2_000;

/// Why something has to wait. Both wait alike; planted bugs tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// What it says became durable just now.
    Stored,
    /// It answers what was asked just now.
    Asked,
}

/// One of the places for reads under way. It is used again: each begun read is answered exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u8);

/// How a fence read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    Passed,
    /// The own fence was seen: this incarnation is dead.
    Fenced,
    /// It failed; another one begins soon.
    Again,
    /// It failed, and so did every other for too long: the node leaves and comes back as another incarnation.
    Stuck,
}

/// `T`: an utterance, or the wake-up of a room that waits for a barrier.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gate<T> {
    /// Oldest first. Bound: whoever speaks stops making more when [`Self::len`] is high ([`crate::worker`]).
    waiting: VecDeque<(Why, T)>,
    /// How many of `waiting`, from its front, were said before the read began. `None`: the place is free.
    reads: [Option<usize>; READS_MAX],
    /// When the youngest read under way began.
    youngest_ms: u64,
    /// No read begins before it: the last one failed.
    not_before_ms: u64,
    /// Since when somebody has waited without any read that succeeded.
    since_ms: Option<u64>,
    fenced: bool,
}

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Gate<T> {
    pub const fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            reads: [None; READS_MAX],
            youngest_ms: 0,
            not_before_ms: 0,
            since_ms: None,
            fenced: false,
        }
    }

    /// Takes what is to be said; it comes out of [`Self::answered`].
    pub fn say(&mut self, now_ms: u64, why: Why, utterance: T) {
        if self.fenced {
            return;
        }
        self.since_ms.get_or_insert(now_ms);
        self.waiting.push_back((why, utterance));
        if plant::is(Bug::BarrierBegunEarly) && why == Why::Stored {
            // A read that is under way already will do.
            let waits = self.waiting.len();
            for covers in self.reads.iter_mut().flatten() {
                *covers = waits;
            }
        }
    }

    /// The fence read to begin now, if one is due.
    pub fn begin(&mut self, now_ms: u64) -> Option<ReadId> {
        if self.begins_at()? > now_ms {
            return None;
        }
        let place = self.reads.iter().position(Option::is_none)?;
        self.reads[place] = Some(self.waiting.len());
        self.youngest_ms = now_ms;
        // At most four places.
        Some(ReadId(place as u8))
    }

    /// A read has ended; `Ok(true)`: it found the fence. `Passed` releases what was said before it began, in order; an older
    /// read that is still under way will have nothing left to release.
    pub fn answered(
        &mut self,
        now_ms: u64,
        read: ReadId,
        found: Result<bool, Failed>,
        released: &mut Vec<T>,
    ) -> Ended {
        match found {
            Ok(true) if plant::is(Bug::NoBarrier) => self.passed(now_ms, read, released),
            Ok(false) => self.passed(now_ms, read, released),
            Ok(true) => {
                self.release_planted(read, released);
                self.fenced();
                return Ended::Fenced;
            }
            Err(Failed) => {
                if self.end(read).is_some() {
                    self.not_before_ms = now_ms + RETRY_MS;
                }
                return if self.tick(now_ms) { Ended::Stuck } else { Ended::Again };
            }
        }
        Ended::Passed
    }

    /// True: stuck. Whoever asks at [`Self::next_deadline`] learns it in time, even if reads do not end at all.
    #[must_use]
    pub fn tick(&mut self, now_ms: u64) -> bool {
        let stuck = self.since_ms.is_some_and(|since| now_ms >= since + STUCK_MS);
        if stuck {
            // Said once per wait, so that a deadline that was told of lies in the past only once.
            self.since_ms = Some(now_ms);
        }
        stuck
    }

    /// The own fence was seen: this incarnation says nothing more, in any room.
    pub fn fenced(&mut self) {
        *self = Self { fenced: true, ..Self::new() };
    }

    pub const fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// When [`Self::begin`] or [`Self::tick`] will have something to do. The caller has just called both.
    pub fn next_deadline(&self) -> Option<u64> {
        let stuck = self.since_ms.map(|since| since + STUCK_MS);
        [self.begins_at(), stuck].into_iter().flatten().min()
    }

    /// From when on a read may begin; `None`: none is needed, or all places are taken.
    fn begins_at(&self) -> Option<u64> {
        let covered = self.reads.iter().flatten().max().copied().unwrap_or(0);
        if covered >= self.waiting.len() || self.reads.iter().all(Option::is_some) {
            return None;
        }
        let under_way = self.reads.iter().any(Option::is_some);
        let overlap = if under_way { self.youngest_ms + OVERLAP_AFTER_MS + 1 } else { 0 };
        Some(overlap.max(self.not_before_ms))
    }

    fn passed(&mut self, now_ms: u64, read: ReadId, released: &mut Vec<T>) {
        let Some(covers) = self.end(read) else { return };
        released.extend(self.waiting.drain(..covers).map(|(_, utterance)| utterance));
        for other in self.reads.iter_mut().flatten() {
            *other = other.saturating_sub(covers);
        }
        self.since_ms = (!self.waiting.is_empty()).then_some(now_ms);
        self.not_before_ms = 0;
    }

    /// Part of the utterances do not care for the fence.
    fn release_planted(&mut self, read: ReadId, released: &mut Vec<T>) {
        let careless = if plant::is(Bug::NoBarrierOnAcks) {
            Why::Stored
        } else if plant::is(Bug::NoBarrierOnReplies) {
            Why::Asked
        } else {
            return;
        };
        let Some(covers) = self.end(read) else { return };
        let said = self.waiting.drain(..covers).filter(|(why, _)| *why == careless);
        released.extend(said.map(|(_, utterance)| utterance));
    }

    /// Frees the place of a read and says what it covered.
    fn end(&mut self, read: ReadId) -> Option<usize> {
        let covers = self.reads.get_mut(usize::from(read.0))?.take();
        if self.reads.iter().all(Option::is_none) {
            self.youngest_ms = 0;
        }
        covers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed<T>(gate: &mut Gate<T>, now_ms: u64, read: ReadId) -> Vec<T> {
        let mut released = Vec::new();
        assert_eq!(gate.answered(now_ms, read, Ok(false), &mut released), Ended::Passed);
        released
    }

    fn failed(gate: &mut Gate<u32>, now_ms: u64, read: ReadId) -> Ended {
        gate.answered(now_ms, read, Err(Failed), &mut Vec::new())
    }

    #[test]
    fn a_read_releases_what_was_said_before_it_began() {
        let mut gate = Gate::new();
        assert_eq!(gate.begin(0), None, "nobody waits");
        gate.say(0, Why::Stored, 1);
        gate.say(0, Why::Asked, 2);
        let read = gate.begin(0).unwrap();
        gate.say(0, Why::Stored, 3);
        assert_eq!(passed(&mut gate, 0, read), [1, 2]);
        // None is under way: the next begins at once.
        let read = gate.begin(0).unwrap();
        assert_eq!(passed(&mut gate, 0, read), [3]);
        assert!(gate.is_empty() && gate.next_deadline().is_none());
    }

    #[test]
    fn reads_overlap_after_a_while_and_four_at_most() {
        let mut gate = Gate::new();
        let mut reads = Vec::new();
        for i in 0..4 {
            gate.say(2 * i, Why::Stored, i as u32);
            if i > 0 {
                assert_eq!(gate.begin(2 * i - 1), None, "the youngest is 1 ms old");
                assert_eq!(gate.next_deadline(), Some(2 * i));
            }
            reads.push(gate.begin(2 * i).unwrap());
            assert_eq!(gate.begin(2 * i), None, "nobody waits who is not covered");
        }
        gate.say(100, Why::Stored, 4);
        assert_eq!(gate.begin(100), None, "four are under way");
        // The third releases what the first and second would have.
        assert_eq!(passed(&mut gate, 100, reads[2]), [0, 1, 2]);
        assert_eq!(passed(&mut gate, 100, reads[0]), [0; 0]);
        let again = gate.begin(100).unwrap();
        assert_eq!(passed(&mut gate, 101, reads[3]), [3]);
        assert_eq!(passed(&mut gate, 101, reads[1]), [0; 0]);
        assert_eq!(passed(&mut gate, 101, again), [4]);
        assert_eq!(passed(&mut gate, 101, again), [0; 0], "an answer counts once");
        assert_eq!(gate, Gate::new(), "nothing is remembered of what is done");
    }

    #[test]
    fn a_failed_read_begins_again_and_two_seconds_are_stuck() {
        let mut gate = Gate::new();
        gate.say(10, Why::Asked, 1);
        let read = gate.begin(10).unwrap();
        assert_eq!(failed(&mut gate, 15, read), Ended::Again);
        assert_eq!(gate.begin(15), None);
        assert_eq!(gate.next_deadline(), Some(35));
        let read = gate.begin(35).unwrap();
        assert_eq!(failed(&mut gate, 2_010, read), Ended::Stuck);
        assert!(!gate.tick(2_010), "said once");
        assert_eq!(gate.next_deadline(), Some(2_030));
        let read = gate.begin(2_030).unwrap();
        assert_eq!(passed(&mut gate, 2_031, read), [1]);
        assert!(!gate.tick(9_000));
    }

    #[test]
    fn a_read_that_never_ends_is_stuck_too() {
        let mut gate = Gate::new();
        gate.say(0, Why::Stored, 1);
        let _never = gate.begin(0).unwrap();
        assert_eq!(gate.next_deadline(), Some(2_000));
        assert!(!gate.tick(1_999));
        assert!(gate.tick(2_000));
        assert_eq!(gate.next_deadline(), Some(4_000), "tick_at_the_deadline_moves_the_deadline");
    }

    #[test]
    fn a_success_starts_the_wait_of_the_others_anew() {
        let mut gate = Gate::new();
        gate.say(0, Why::Stored, 1);
        let read = gate.begin(0).unwrap();
        gate.say(1_000, Why::Stored, 2);
        assert_eq!(passed(&mut gate, 1_500, read), [1]);
        let _open = gate.begin(1_500).unwrap();
        assert!(!gate.tick(2_500));
        assert!(gate.tick(3_500));
    }

    #[test]
    fn fenced_is_for_ever() {
        let mut gate = Gate::new();
        gate.say(0, Why::Stored, 1);
        let (read, mut released) = (gate.begin(0).unwrap(), Vec::new());
        assert_eq!(gate.answered(0, read, Ok(true), &mut released), Ended::Fenced);
        assert!(gate.is_fenced() && released.is_empty());
        gate.say(0, Why::Stored, 2);
        assert_eq!(gate.len(), 0);
        assert_eq!(gate.begin(10), None);
        assert_eq!(passed(&mut gate, 10, read), [0; 0], "an answer that comes late");
        assert_eq!(gate.next_deadline(), None);
    }

    proptest::proptest! {
        /// Against the rule itself: each utterance remembers when it was said, each read when it began.
        #[test]
        fn never_released_by_a_read_begun_before(steps in proptest::collection::vec(0_u8..10, 1..200)) {
            let mut gate: Gate<u64> = Gate::new();
            let (mut now, mut clock, mut next_out) = (0, 0_u64, 0_u64);
            let mut said_at = Vec::new();
            let mut reads: Vec<(ReadId, u64)> = Vec::new();
            for step in steps {
                clock += 1;
                match step {
                    0..=3 => {
                        gate.say(now, if step == 0 { Why::Asked } else { Why::Stored }, said_at.len() as u64);
                        said_at.push(clock);
                    }
                    4..=5 => {
                        if let Some(read) = gate.begin(now) {
                            assert!(reads.iter().all(|(other, _)| *other != read) && reads.len() < READS_MAX);
                            reads.push((read, clock));
                        }
                    }
                    6..=7 if !reads.is_empty() => {
                        let (read, begun) = reads.remove(clock as usize % reads.len());
                        for out in passed(&mut gate, now, read) {
                            assert_eq!(out, next_out, "in order");
                            assert!(said_at[out as usize] < begun);
                            next_out += 1;
                        }
                        // Nothing that this read covers is left.
                        assert!(said_at.get(next_out as usize).is_none_or(|at| *at > begun));
                    }
                    8 if !reads.is_empty() => {
                        let (read, _) = reads.remove(clock as usize % reads.len());
                        let _ended = gate.answered(now, read, Err(Failed), &mut Vec::new());
                    }
                    _ => now += 1,
                }
            }
            for (read, _) in reads {
                let _rest = passed(&mut gate, now, read);
            }
            while let Some(read) = gate.begin(now + RETRY_MS) {
                next_out = passed(&mut gate, now, read).last().map_or(next_out, |out| out + 1);
            }
            assert!(gate.is_empty());
        }
    }
}
