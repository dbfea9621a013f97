//! Numbers of several runs, and latencies.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// One figure over the runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) runs: usize,
}

impl Spread {
    /// `None` without a run.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { median, min, max, runs: values.len() })
    }

    /// The median, and from where to where when there was more than one run.
    pub(crate) fn show(&self, decimals: usize) -> String {
        let Self { median, min, max, runs } = *self;
        match runs {
            1 => format!("{median:.decimals$}"),
            _ => format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})"),
        }
    }
}

/// Latencies in microseconds, three digits exact, one minute at most.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u32>);

const LONGEST_US: u64 = 60_000_000;

impl Latencies {
    #[expect(clippy::expect_used, reason = "the bounds are constants that the crate accepts")]
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("valid bounds"))
    }

    pub(crate) fn record_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns.div_ceil(1000).max(1));
    }

    pub(crate) fn add(&mut self, other: &Packed) {
        for &(value, count) in &other.0 {
            self.0.saturating_record_n(value, count);
        }
    }

    pub(crate) fn pack(&self) -> Packed {
        Packed(self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The quantile in milliseconds; `None` when nothing was recorded.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile) as f64 / 1000.0)
    }
}

/// [`Latencies`] on their way between processes: (microseconds, count).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Packed(Vec<(u64, u32)>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max, odd.runs), (2.0, 1.0, 3.0, 3));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(odd.show(1), "2.0 (1.0–3.0)");
        assert_eq!(Spread::of([2.0]).unwrap().show(2), "2.00");
    }

    #[test]
    fn latencies_survive_the_way_between_processes() {
        let mut here = Latencies::new();
        for ms in 1..=100_u64 {
            here.record_ns(ms * 1_000_000);
        }
        let packed: Packed = serde_json::from_str(&serde_json::to_string(&here.pack()).unwrap()).unwrap();
        let mut there = Latencies::new();
        there.add(&packed);
        there.add(&packed);
        assert_eq!(there.count(), 200);
        for quantile in [0.5, 0.99, 1.0] {
            let (one, two) = (here.quantile_ms(quantile).unwrap(), there.quantile_ms(quantile).unwrap());
            assert!((one - two).abs() / one < 0.002 && (one - quantile * 100.0).abs() < 1.0, "{one} {two}");
        }
        assert_eq!(Latencies::new().quantile_ms(0.5), None);
        here.record_ns(u64::MAX);
        assert_eq!(here.count(), 101, "absurd values are kept at the bound");
    }
}
