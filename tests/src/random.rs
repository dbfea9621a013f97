//! A small seeded generator for tests: the same seed gives the same run.
//!
//! Owns: splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
//! Does not: serve anything that must not be guessed.

/// A stream of numbers that follows from its seed alone.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; 0 when the bound is 0. (The bias of the remainder does not matter to a test.)
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }

    /// A stream of its own for a part of the test, so that parts do not disturb each other.
    pub fn fork(&mut self) -> Self {
        Self(self.next_u64())
    }
}

#[test]
fn the_same_seed_gives_the_same_stream() {
    let mut first = Random::new(7);
    let mut second = Random::new(7);
    let numbers: Vec<u64> = (0..100).map(|_| first.below(1000)).collect();
    assert_eq!(numbers, (0..100).map(|_| second.below(1000)).collect::<Vec<_>>());
    assert!(numbers.iter().collect::<std::collections::BTreeSet<_>>().len() > 50, "{numbers:?}");
}
