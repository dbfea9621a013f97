//! What this node bears, from its own metrics.

use std::time::Duration;

use serde::Serialize;

/// It is measured over at least so long.
const EVERY: Duration = Duration::from_secs(2);
/// An older measure tells nothing of now.
const OLD: Duration = Duration::from_secs(10);

/// What one node bears.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Load {
    connections: u64,
    /// Rooms that it owns and holds open.
    rooms: u64,
    sends_per_s: Option<f64>,
    /// Of one core: 1.5 is one and a half.
    cpu: Option<f64>,
    memory_bytes: u64,
}

/// Measures it when somebody looks.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    before: Option<(Duration, Counted)>,
    load: Load,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    sends: f64,
    cpu_s: f64,
}

impl Gauge {
    /// `metrics` are read if the last measure is old.
    pub(super) fn look(&mut self, at: Duration, metrics: impl FnOnce() -> String) -> Load {
        let since = self.before.map(|(before, _)| at.saturating_sub(before));
        if since.is_some_and(|since| since < EVERY) {
            return self.load;
        }
        let metrics = metrics();
        let sum = |name: &str| sum(&metrics, name);
        let counted = Counted {
            sends: sum("banyan_shard_sends_total{outcome=\"stored\"}"),
            cpu_s: sum("process_cpu_seconds_total"),
        };
        self.load = Load {
            connections: sum("banyan_gateway_connections") as u64,
            rooms: sum("banyan_shard_rooms_open") as u64,
            memory_bytes: sum("process_resident_memory_bytes") as u64,
            sends_per_s: None,
            cpu: None,
        };
        // Of a measure that is old it would be a mean over all the time that nobody looked.
        if let (Some((_, before)), Some(since)) = (self.before, since.filter(|since| *since <= OLD)) {
            let rate = |now: f64, before: f64| {
                ((now - before).max(0.0) / since.as_secs_f64() * 100.0).round() / 100.0
            };
            self.load.sends_per_s = Some(rate(counted.sends, before.sends));
            self.load.cpu = Some(rate(counted.cpu_s, before.cpu_s));
        }
        self.before = Some((at, counted));
        self.load
    }
}

/// Over all labels of a metric, or of one series that is named with its labels.
fn sum(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.split_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.parse::<f64>().ok()
    });
    lines.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(sends: u32, cpu: f64) -> String {
        format!(
            "# TYPE banyan_gateway_connections gauge\nbanyan_gateway_connections{{worker=\"0\"}} 3\n\
             banyan_gateway_connections{{worker=\"1\"}} 4\nbanyan_gateway_connections_peak 90\n\
             banyan_shard_rooms_open{{worker=\"0\"}} 2\nprocess_resident_memory_bytes 1048576\n\
             banyan_shard_sends_total{{outcome=\"stored\"}} {sends}\n\
             banyan_shard_sends_total{{outcome=\"duplicate\"}} 7\nprocess_cpu_seconds_total {cpu}\n"
        )
    }

    #[test]
    fn it_is_measured_from_look_to_look() {
        let mut gauge = Gauge::default();
        let first = gauge.look(Duration::from_secs(10), || metrics(100, 1.0));
        let want = Load { connections: 7, rooms: 2, memory_bytes: 1 << 20, ..Load::default() };
        assert_eq!(first, want);
        let soon = gauge.look(Duration::from_secs(11), || panic!("it is not old"));
        assert_eq!(soon, want);
        let then = gauge.look(Duration::from_secs(14), || metrics(300, 3.0));
        assert_eq!(then, Load { sends_per_s: Some(50.0), cpu: Some(0.5), ..want });
        let after_hours = gauge.look(Duration::from_secs(14_000), || metrics(9_300, 90.0));
        assert_eq!(after_hours, want, "a mean over hours is not what goes on now");
        let then = gauge.look(Duration::from_secs(14_002), || metrics(9_400, 91.0));
        assert_eq!(then, Load { sends_per_s: Some(50.0), cpu: Some(0.5), ..want });
    }
}
