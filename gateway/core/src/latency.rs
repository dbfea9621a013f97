//! How long something took, counted in plain numbers: a worker counts each reply, and the shell publishes the differences.

/// Upper bounds of the buckets, in milliseconds, inclusive; one more has what took longer. Those of the process's
/// histograms of seconds, as far as whole milliseconds can tell: what is told of a bucket is counted in the same one there.
const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000];
const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// A histogram: of each bucket, how many there were and how long they took together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    buckets: [(u64, u64); BUCKETS],
}

impl Latency {
    pub(crate) fn count(&mut self, ms: u64) {
        let (count, total_ms) = &mut self.buckets[BOUNDS_MS.partition_point(|bound| *bound < ms)];
        *count += 1;
        *total_ms += ms;
    }

    /// What has come since: for each bucket with something new how many, and what each of them took on average, in seconds.
    /// What took less than a millisecond counts as one.
    pub fn since(&self, before: &Self) -> impl Iterator<Item = (usize, f64)> {
        let pairs = self.buckets.into_iter().zip(before.buckets);
        let new =
            pairs.map(|((count, total), (count_then, total_then))| (count - count_then, total - total_then));
        new.filter(|(count, _)| *count > 0)
            .map(|(count, total_ms)| (count as usize, (total_ms as f64 / count as f64).max(1.0) / 1_000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples_ms: &[u64]) -> Latency {
        let mut latency = Latency::default();
        samples_ms.iter().for_each(|ms| latency.count(*ms));
        latency
    }

    #[test]
    fn what_is_new_is_told_by_buckets() {
        let before = of(&[0, 1, 7, 60_000]);
        let now = of(&[0, 1, 7, 60_000, 0, 2, 6, 8, 10, 11, 2_501, u64::from(u32::MAX)]);
        let new: Vec<(usize, f64)> = now.since(&before).collect();
        assert_eq!(
            new,
            [(1, 0.001), (1, 0.002), (3, 0.008), (1, 0.011), (1, 2.501), (1, f64::from(u32::MAX) / 1_000.0)]
        );
        assert_eq!(now.since(&now).count(), 0);
    }
}
