//! Token buckets in eight bytes each: how often somebody may do something, and when to come back.
//!
//! Owns: the arithmetic (the generic cell rate algorithm, ITU-T I.371: one timestamp stands for a whole bucket) and
//! [`Buckets`], a table of fixed size that all threads of a process share without a lock.
//! Always holds: a bucket never gives more than `burst` at once, nor more than the rate in the long run; time is an
//! argument, in milliseconds of any clock that does not go back.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};

/// Microseconds: a rate of 50/s is exact, one of 4,096/s still is to 0.1 %.
const PER_MS: u64 = 1_000;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Microseconds that one token takes.
    interval_us: u64,
    burst: u32,
}

impl Rate {
    /// Zero of either counts as one.
    pub const fn per_second(tokens: u32, burst: u32) -> Self {
        Self::every_us(if tokens == 0 { 1_000_000 } else { 1_000_000 / tokens as u64 }, burst)
    }

    pub const fn per_minute(tokens: u32, burst: u32) -> Self {
        Self::every_us(if tokens == 0 { 60_000_000 } else { 60_000_000 / tokens as u64 }, burst)
    }

    const fn every_us(interval_us: u64, burst: u32) -> Self {
        Self {
            interval_us: if interval_us == 0 { 1 } else { interval_us },
            burst: if burst == 0 { 1 } else { burst },
        }
    }

    /// How far a bucket may be in debt before it is empty.
    const fn tolerance_us(self) -> u64 {
        self.interval_us * (self.burst as u64 - 1)
    }
}

/// One bucket, full at first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it is full again.
    full_at_us: u64,
}

impl Bucket {
    /// Takes one token, or says in how many milliseconds there will be one.
    pub fn take(&mut self, now_ms: u64, rate: Rate) -> Result<(), u64> {
        let now_us = now_ms.saturating_mul(PER_MS);
        let earliest = self.full_at_us.saturating_sub(rate.tolerance_us());
        if earliest > now_us {
            return Err((earliest - now_us).div_ceil(PER_MS));
        }
        self.full_at_us = self.full_at_us.max(now_us).saturating_add(rate.interval_us);
        Ok(())
    }

    /// Puts one token back, for what turned out not to count.
    pub fn give_back(&mut self, rate: Rate) {
        self.full_at_us = self.full_at_us.saturating_sub(rate.interval_us);
    }
}

/// Buckets by key, a fixed number of them. Keys are hashed with a random seed of this table; two keys that meet in
/// one cell share its bucket. So the table never grows, nothing is ever thrown out of it, and nobody can aim at
/// somebody else's cell.
#[derive(Debug)]
pub struct Buckets {
    cells: Box<[AtomicU64]>,
    rate: Rate,
    hasher: foldhash::fast::SeedableRandomState,
}

impl Buckets {
    /// `cells` is rounded up to a power of two; 8 bytes each.
    pub fn new(cells: usize, rate: Rate) -> Self {
        Self::hashed(cells, rate, foldhash::fast::SeedableRandomState::random())
    }

    /// With a seed of its own, for a run that must repeat another one bit for bit.
    pub fn seeded(cells: usize, rate: Rate, seed: u64) -> Self {
        let shared = foldhash::SharedSeed::global_fixed();
        Self::hashed(cells, rate, foldhash::fast::SeedableRandomState::with_seed(seed, shared))
    }

    fn hashed(cells: usize, rate: Rate, hasher: foldhash::fast::SeedableRandomState) -> Self {
        let cells = cells.max(1).next_power_of_two();
        Self { cells: (0..cells).map(|_| AtomicU64::new(0)).collect(), rate, hasher }
    }

    fn cell<K: Hash + ?Sized>(&self, key: &K) -> &AtomicU64 {
        let hash = self.hasher.hash_one(key);
        &self.cells[hash as usize & (self.cells.len() - 1)]
    }

    /// Takes one token of this key, or says in how many milliseconds there will be one.
    pub fn take<K: Hash + ?Sized>(&self, key: &K, now_ms: u64) -> Result<(), u64> {
        let cell = self.cell(key);
        // Relaxed: the number stands for itself, nothing else is published by it.
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let mut bucket = Bucket { full_at_us: seen };
            bucket.take(now_ms, self.rate)?;
            match cell.compare_exchange_weak(seen, bucket.full_at_us, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now_there) => seen = now_there,
            }
        }
    }

    /// Puts one token of this key back.
    pub fn give_back<K: Hash + ?Sized>(&self, key: &K) {
        let give = |full_at_us| {
            let mut bucket = Bucket { full_at_us };
            bucket.give_back(self.rate);
            Some(bucket.full_at_us)
        };
        // The closure never says no.
        self.cell(key).fetch_update(Ordering::Relaxed, Ordering::Relaxed, give).ok();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENDS: Rate = Rate::per_second(50, 200);

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = Bucket::default();
        let start = 1_000_000;
        for _ in 0..200 {
            assert_eq!(bucket.take(start, SENDS), Ok(()));
        }
        assert_eq!(bucket.take(start, SENDS), Err(20));
        assert_eq!(bucket.take(start + 19, SENDS), Err(1));
        assert_eq!(bucket.take(start + 20, SENDS), Ok(()));
        assert_eq!(bucket.take(start + 20, SENDS), Err(20));
    }

    #[test]
    fn a_pause_fills_it_to_the_burst_and_no_further() {
        let mut bucket = Bucket::default();
        bucket.take(0, SENDS).unwrap();
        let taken = (0..1_000).filter(|_| bucket.take(u64::from(u32::MAX), SENDS).is_ok()).count();
        assert_eq!(taken, 200);
    }

    #[test]
    fn what_did_not_count_comes_back() {
        let rate = Rate::per_minute(10, 1);
        let buckets = Buckets::new(16, rate);
        assert_eq!(buckets.take("a", 10_000), Ok(()));
        assert_eq!(buckets.take("a", 10_000), Err(6_000));
        buckets.give_back("a");
        assert_eq!(buckets.take("a", 10_000), Ok(()));
    }

    #[test]
    fn threads_share_one_bucket() {
        let buckets = Buckets::new(1, Rate::per_second(1, 1_000));
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1_000).filter(|_| buckets.take("u", 5).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }

    proptest! {
        /// Over any stretch of time: at most burst + rate × time.
        #[test]
        fn never_above_the_rate(per_second in 1u32..2_000, burst in 1u32..300, pauses in prop::collection::vec(0u64..200, 1..400)) {
            let rate = Rate::per_second(per_second, burst);
            let mut bucket = Bucket::default();
            let (start, mut now, mut taken) = (777u64, 777u64, 0u64);
            for pause in pauses {
                now += pause;
                match bucket.take(now, rate) {
                    Ok(()) => taken += 1,
                    Err(wait) => {
                        prop_assert!(wait >= 1);
                        // The promise holds: at that time there is one.
                        prop_assert!(bucket.clone().take(now + wait, rate).is_ok());
                    }
                }
                let most = u64::from(burst) + (now - start) * 1_000 / rate.interval_us;
                prop_assert!(taken <= most, "{taken} > {most}");
            }
        }
    }
}
