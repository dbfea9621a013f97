//! What processes say and use, sampled from outside: counters of the nodes' `/metrics`, processor time of everything.
//!
//! Owns: sums over restarts. Always holds: a counter that falls belongs to another run of the process, and all of it is new.
//! Does not: see what a killed process counted since the last sample.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

use crate::cluster::get;

/// A node that does not answer so long is asked again at the next sample.
const LIMIT: Duration = Duration::from_millis(300);

/// Counters that are added up, by the name that they have here.
const COUNTERS: [(&str, &[&str]); 6] = [
    ("fenced utterances", &["banyan_shard_silenced_total"]),
    (
        "unknown outcomes",
        &["banyan_shard_append_unknown_total", "banyan_router_etcd_requests_total{outcome=\"unknown\"}"],
    ),
    ("gap repairs", &["banyan_gateway_gaps_repaired_total"]),
    ("rejoins", &["banyan_cluster_rejoins_total"]),
    ("sends held", &["banyan_gateway_held_total"]),
    ("sends handed again", &["banyan_gateway_handed_again_total"]),
];

/// A process to look at.
#[derive(Debug, Clone)]
pub struct Subject {
    pub name: String,
    pub process: Option<u32>,
    /// Where it says its counters, if it is a node.
    pub ops: Option<SocketAddr>,
}

#[derive(Debug, Default)]
pub struct Gauges {
    state: Mutex<State>,
    /// One look at a time: of two, the earlier answer might be counted later, and would look like a restart.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    subjects: Vec<Subject>,
    /// The last value of each counter of each process.
    last: BTreeMap<(String, &'static str), f64>,
    sums: BTreeMap<&'static str, f64>,
    /// Seconds of a processor, of each process when last seen and of each name in all.
    processor_last: BTreeMap<u32, f64>,
    processor: BTreeMap<String, f64>,
}

impl Gauges {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to look at from now on.
    pub fn look_at(&self, subjects: Vec<Subject>) {
        self.lock().subjects = subjects;
    }

    /// Looks at everything once.
    pub async fn sample(&self) {
        let _turn = self.looking.lock().await;
        let subjects = self.lock().subjects.clone();
        for Subject { name, process, ops } in subjects {
            if let Some(used) = process.and_then(processor_seconds).zip(process) {
                self.lock().used(&name, used.1, used.0);
            }
            let Some(ops) = ops else { continue };
            // A frozen or dead one says nothing; what it counts comes with the next sample.
            if let Ok(Ok(text)) = timeout(LIMIT, get(ops, "/metrics")).await {
                self.lock().counted(&name, &text);
            }
        }
    }

    /// The sums so far.
    pub fn sums(&self) -> BTreeMap<&'static str, u64> {
        self.lock().sums.iter().map(|(name, sum)| (*name, *sum as u64)).collect()
    }

    /// Seconds of a processor that each process has used so far.
    pub fn processor(&self) -> BTreeMap<String, f64> {
        self.lock().processor.clone()
    }
}

impl State {
    fn used(&mut self, name: &str, process: u32, seconds: f64) {
        let before = self.processor_last.insert(process, seconds).unwrap_or(0.0);
        *self.processor.entry(name.to_owned()).or_default() += (seconds - before).max(0.0);
    }

    fn counted(&mut self, node: &str, text: &str) {
        for (name, parts) in COUNTERS {
            let now: f64 = parts.iter().map(|part| read(text, part)).sum();
            let before = self.last.insert((node.to_owned(), name), now).unwrap_or(0.0);
            *self.sums.entry(name).or_default() += if now >= before { now - before } else { now };
        }
    }
}

/// The sum of a metric over its labels, or over those that hold the one that is named.
fn read(text: &str, wanted: &str) -> f64 {
    let (name, label) = match wanted.split_once('{') {
        Some((name, label)) => (name, label.trim_end_matches('}')),
        None => (wanted, ""),
    };
    let value = |line: &str| -> Option<f64> {
        let rest = line.strip_prefix(name)?;
        let mine = rest.starts_with([' ', '{']) && rest.contains(label);
        mine.then(|| rest.rsplit(' ').next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(value).sum()
}

/// What a process has used of processors since its start. `None`: it is gone, or this system does not tell.
pub(super) fn processor_seconds(process: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything; utime and stime are the 14th and 15th fields.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_with_and_without_labels() {
        let text = "# HELP x y\nx_total 3\nx_total_more 7\nl{outcome=\"unknown\",request=\"a\"} 2\nl{outcome=\"won\"} 9\nl{request=\"b\",outcome=\"unknown\"} 1\n";
        assert_eq!(read(text, "x_total"), 3.0);
        assert_eq!(read(text, "l{outcome=\"unknown\"}"), 3.0);
        assert_eq!(read(text, "l"), 12.0);
        assert_eq!(read(text, "y"), 0.0);
    }

    #[test]
    fn sums_go_on_over_restarts() {
        let mut state = State::default();
        for (value, sum) in [(5, 5.0), (7, 7.0), (2, 9.0), (2, 9.0)] {
            state.counted("a", &format!("banyan_gateway_gaps_repaired_total {value}\n"));
            assert_eq!(state.sums["gap repairs"], sum, "{value}");
        }
    }

    #[test]
    fn our_own_processor_time_is_known() {
        assert!(processor_seconds(std::process::id()).is_some());
        assert_eq!(processor_seconds(u32::MAX), None);
    }
}
