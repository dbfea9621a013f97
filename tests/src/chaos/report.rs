//! What runs did and found: one file that runs add up in, and whether it is enough.
//!
//! Owns: `report.json`, and `report.html` beside it. Always holds: a run is added whole or not at all.
//! Does not: judge promises (`banyan-checker`).

use anyhow::Context;
use banyan_checker::{self as checker, Coverage, Demand};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::meter::percentile;
use super::nemesis::{Moved, Nemesis};
use super::page;
use crate::cluster::Cluster;

/// How often each nemesis must have struck over all runs of a report that claims everything.
pub const STRIKES: usize = 3;

/// Bytes of a node's log that are looked at for panics.
const LOG_MAX: u64 = 256 << 20;

/// All runs so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub runs: Vec<Run>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    pub seed: u64,
    pub nodes: usize,
    pub etcd: usize,
    pub cql: u8,
    pub slots: u32,
    /// Each node had a network namespace, and the kernel cut links.
    pub netns: bool,
    pub hits: Vec<Hit>,
    pub seconds: Vec<Second>,
    pub coverage: Coverage,
    /// Of each promise that could have been broken: how often, and how often it was.
    pub promises: BTreeMap<String, (u64, u64)>,
    pub violations: Vec<String>,
    /// What else went wrong.
    pub wrong: Vec<String>,
    pub counters: BTreeMap<String, u64>,
    /// Seconds of a processor that each process used.
    pub processor: BTreeMap<String, f64>,
}

/// One strike of a nemesis.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hit {
    pub nemesis: Nemesis,
    pub what: String,
    pub begun_s: f64,
    pub healed_s: f64,
    /// Of each room concerned, ascending: until the next acked send.
    pub next_ack_ms: Vec<f64>,
    /// Of each room concerned, ascending: the longest that a send of this time took.
    pub stall_ms: Vec<f64>,
    /// Rooms concerned that took no send.
    pub silent: u64,
    pub acks: u64,
    pub refused: BTreeMap<String, u64>,
    /// Connections that ended or fell silent.
    pub lost: u64,
    /// Connections that were not taken, since the token was not good there.
    #[serde(default)]
    pub turned_away: u64,
    /// What the nodes counted meanwhile.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// 99 of 100 sends were faster just before.
    #[serde(default)]
    pub undisturbed_p99_ms: f64,
    /// Of sends to the rooms concerned, made until all was well: by how much they took longer than that.
    #[serde(default)]
    pub sends: Excess,
    #[serde(default)]
    pub moved: Option<Moved>,
}

/// Of so many values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Excess {
    pub n: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Excess {
    /// `ascending`: how long each took.
    pub(super) fn of(ascending: &[f64], beyond_ms: f64) -> Self {
        let at = |percent| (percentile(ascending, percent) - beyond_ms).max(0.0);
        Self { n: ascending.len() as u64, p50_ms: at(50.0), p99_ms: at(99.0), max_ms: at(100.0) }
    }
}

/// One second of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Second {
    pub at_s: f64,
    pub sends_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub refused: u64,
    pub lost: u64,
    /// Slots of each node.
    pub owners: BTreeMap<String, u32>,
}

impl Second {
    /// One line for whoever watches.
    pub(super) fn line(&self, under_way: Option<(&String, Duration)>) -> String {
        let Self { at_s, sends_per_s, p50_ms, p99_ms, refused, lost, owners } = self;
        let mut line = format!(
            "{at_s:>6.1} s  {sends_per_s:>4.0} sends/s  ack p50 {p50_ms:>6.1} ms  p99 {p99_ms:>7.1} ms  refused {refused:>3}  lost {lost:>2}  owners"
        );
        for (node, slots) in owners {
            let _ok = write!(line, " {node} {slots}"); // a string takes all
        }
        if let Some((what, since)) = under_way {
            let _ok = write!(line, "  [{what} {:.0} s]", since.as_secs_f64());
        }
        line
    }
}

impl Hit {
    pub(super) fn line(&self) -> String {
        let refused: u64 = self.refused.values().sum();
        format!(
            "{}: {}; next ack of {} rooms p50 {:.0} ms, p99 {:.0} ms; {refused} tries refused, {} connections lost",
            self.nemesis.name(),
            self.what,
            self.next_ack_ms.len(),
            percentile(&self.next_ack_ms, 50.0),
            percentile(&self.next_ack_ms, 99.0),
            self.lost
        )
    }
}

impl Run {
    pub(super) fn judged(&mut self, checked: &checker::Report) {
        self.coverage = checked.coverage;
        self.violations = checked.violations().iter().map(ToString::to_string).collect();
        let counted = |outcome: &&checker::Outcome| outcome.checked + outcome.broken > 0;
        self.promises = checked
            .outcomes
            .iter()
            .filter(counted)
            .map(|outcome| (outcome.promise.to_string(), (outcome.checked, outcome.broken)))
            .collect();
    }

    /// A node that panicked is wrong, and so is one that another one had to send away, whatever the clients saw.
    pub(super) fn note_logs(&mut self, cluster: &Cluster) {
        for node in cluster.nodes.values() {
            let path = node.process.log_path();
            let small = fs::metadata(&path).is_ok_and(|file| file.len() < LOG_MAX);
            let text = if small { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
            let wrong = ["panicked", "said what it may not"];
            let line = text.lines().find(|line| wrong.iter().any(|words| line.contains(words)));
            self.wrong.extend(line.map(|line| format!("{}: {line}", node.plan.name)));
        }
    }

    pub fn is_broken(&self) -> bool {
        !self.violations.is_empty() || !self.wrong.is_empty()
    }
}

/// All strikes of one nemesis.
#[derive(Debug, Default)]
pub struct Sum {
    pub strikes: usize,
    pub next_ack_ms: Vec<f64>,
    pub stall_ms: Vec<f64>,
    pub silent: u64,
    pub acks: u64,
    pub refused: u64,
    pub lost: u64,
    pub turned_away: u64,
    pub counters: BTreeMap<String, u64>,
    /// Runs in which it struck, and those of them in which something was wrong: a promise, or anything else.
    pub runs: usize,
    pub broken: usize,
}

impl Sum {
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or_default()
    }

    /// In a few words.
    pub fn verdict(&self) -> String {
        match self.broken {
            0 => "0/0/0".to_owned(),
            broken => format!("{broken} of {} runs broken", self.runs),
        }
    }

    fn written(&self, nemesis: Nemesis) -> Written {
        let [next_ack_ms, longest_send_ms] = [&self.next_ack_ms, &self.stall_ms].map(|list| Percentiles {
            n: list.len() as u64,
            p50: percentile(list, 50.0),
            p99: percentile(list, 99.0),
            max: percentile(list, 100.0),
        });
        Written {
            nemesis,
            times: self.strikes,
            next_ack_ms,
            longest_send_ms,
            rooms_without_a_send: self.silent,
            sends_acked: self.acks,
            tries_refused: self.refused,
            connections_lost: self.lost,
            connections_not_taken: self.turned_away,
            counters: self.counters.clone(),
            runs: self.runs,
            runs_broken: self.broken,
        }
    }
}

/// A nemesis' line in `report.json`.
#[derive(Debug, Serialize)]
struct Written {
    nemesis: Nemesis,
    times: usize,
    /// Of each room concerned: from the fault to the next acked send.
    next_ack_ms: Percentiles,
    longest_send_ms: Percentiles,
    rooms_without_a_send: u64,
    sends_acked: u64,
    tries_refused: u64,
    connections_lost: u64,
    connections_not_taken: u64,
    counters: BTreeMap<String, u64>,
    runs: usize,
    runs_broken: usize,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    n: u64,
    p50: f64,
    p99: f64,
    max: f64,
}

/// What `report.json` holds; only the runs are read again.
#[derive(Debug, Serialize)]
struct Summed<'a> {
    nemeses: Vec<Written>,
    coverage: Coverage,
    broken: bool,
    runs: &'a [Run],
}

impl Report {
    /// The report of a directory; an empty one if there is none yet.
    pub fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("report.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no report", path.display()))
    }

    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        let put = |name: &str, bytes: &[u8]| {
            let (path, new) = (directory.join(name), directory.join(format!("{name}.new")));
            fs::write(&new, bytes)
                .and_then(|()| fs::rename(&new, &path))
                .with_context(|| format!("cannot write {}", path.display()))
        };
        let nemeses = self.by_nemesis().iter().map(|(nemesis, sum)| sum.written(*nemesis)).collect();
        let (coverage, broken, runs) = (self.coverage(), self.is_broken(), &self.runs[..]);
        put("report.json", &serde_json::to_vec(&Summed { nemeses, coverage, broken, runs })?)?;
        put("report.html", page::html(self).as_bytes())
    }

    pub fn coverage(&self) -> Coverage {
        let mut sum = Coverage::default();
        for run in &self.runs {
            sum += run.coverage;
        }
        sum
    }

    pub fn is_broken(&self) -> bool {
        self.runs.iter().any(Run::is_broken)
    }

    pub fn by_nemesis(&self) -> BTreeMap<Nemesis, Sum> {
        let mut sums = BTreeMap::<Nemesis, Sum>::new();
        for hit in self.runs.iter().flat_map(|run| &run.hits) {
            let sum = sums.entry(hit.nemesis).or_default();
            sum.strikes += 1;
            sum.next_ack_ms.extend(&hit.next_ack_ms);
            sum.stall_ms.extend(&hit.stall_ms);
            sum.silent += hit.silent;
            sum.acks += hit.acks;
            sum.refused += hit.refused.values().sum::<u64>();
            sum.lost += hit.lost;
            sum.turned_away += hit.turned_away;
            for (name, counted) in &hit.counters {
                *sum.counters.entry(name.clone()).or_default() += counted;
            }
        }
        for run in &self.runs {
            let struck: BTreeSet<Nemesis> = run.hits.iter().map(|hit| hit.nemesis).collect();
            for nemesis in struck {
                let sum = sums.entry(nemesis).or_default();
                sum.runs += 1;
                sum.broken += usize::from(run.is_broken());
            }
        }
        for sum in sums.values_mut() {
            sum.next_ack_ms.sort_by(f64::total_cmp);
            sum.stall_ms.sort_by(f64::total_cmp);
        }
        sums
    }

    /// What these runs fall short of to prove something. `everything`: of all that chaos is for, and not only of what was
    /// asked for.
    pub fn missing(&self, everything: bool) -> Vec<String> {
        let sums = self.by_nemesis();
        let strikes = |of: Nemesis| sums.get(&of).map_or(0, |sum| sum.strikes as u64);
        let demand = if everything { Demand::cluster() } else { self.smaller_demand(&strikes) };
        let mut missing = demand.missing(&self.coverage());
        if sums.is_empty() {
            missing.push("nothing was done to the cluster".to_owned());
        }
        missing
    }

    /// What the nemeses that struck must have led to, whatever the timing was.
    fn smaller_demand(&self, strikes: &dyn Fn(Nemesis) -> u64) -> Demand {
        let hits = || self.runs.iter().flat_map(|run| &run.hits);
        let kills = strikes(Nemesis::Kill) + strikes(Nemesis::KillUnseen);
        // Nodes that are away too long without being told.
        let given_up = strikes(Nemesis::Freeze) + strikes(Nemesis::Unplug);
        let changing = hits().filter(|hit| hit.nemesis.changes_owners()).count() as u64;
        let least = Coverage {
            acked: 100,
            pushed: 100,
            tried_again: u64::from(kills > 0),
            owner_changes: changing,
            takeovers: kills + given_up,
            handoffs: strikes(Nemesis::Join),
            fences: kills + given_up,
            kills: kills + strikes(Nemesis::EtcdRestore),
            ..Coverage::default()
        };
        Demand { least, indefinite_percent: 20 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(nemesis: Nemesis, acks: u64) -> Run {
        let hit = Hit {
            nemesis,
            what: "<killed>".to_owned(),
            begun_s: 4.0,
            healed_s: 9.0,
            next_ack_ms: vec![10.0, 3_000.0],
            stall_ms: vec![10.0, 3_000.0],
            silent: 0,
            acks,
            refused: [("108".to_owned(), 2)].into(),
            lost: 1,
            turned_away: 0,
            counters: [("fenced utterances".to_owned(), 3)].into(),
            undisturbed_p99_ms: 9.0,
            sends: Excess::of(&[5.0, 9.5, 30.0], 9.0),
            moved: None,
        };
        let second = |at: u32| Second {
            at_s: f64::from(at),
            sends_per_s: 100.0,
            p50_ms: 3.0,
            p99_ms: 9.0,
            owners: [("n1".to_owned(), 8), ("n2".to_owned(), 8)].into(),
            ..Second::default()
        };
        let coverage = Coverage {
            acked: acks,
            pushed: acks,
            tried_again: 1,
            owner_changes: 5,
            takeovers: 5,
            fences: 1,
            kills: 1,
            ..Coverage::default()
        };
        let (hits, seconds) = (vec![hit], (1..12).map(second).collect());
        Run { hits, seconds, coverage, ..Run::default() }
    }

    #[test]
    fn runs_add_up_over_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut report = Report::read(directory.path()).unwrap();
        assert!(!report.missing(false).is_empty(), "nothing was done yet");
        for _ in 0..2 {
            report.runs.push(run(Nemesis::Kill, 400));
            report.write(directory.path()).unwrap();
            report = Report::read(directory.path()).unwrap();
        }
        let sums = report.by_nemesis();
        let sum = &sums[&Nemesis::Kill];
        assert_eq!((sum.strikes, sum.acks, sum.refused, sum.next_ack_ms.len()), (2, 800, 4, 4));
        assert_eq!((sum.counter("fenced utterances"), sum.runs, sum.broken), (6, 2, 0));
        let text = fs::read(directory.path().join("report.json")).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(written["nemeses"][0]["nemesis"], "kill");
        assert_eq!(written["nemeses"][0]["next_ack_ms"]["p99"], 3_000.0);
        assert_eq!(report.coverage().acked, 800);
        assert!(report.missing(false).is_empty(), "{:?}", report.missing(false));
        let all = report.missing(true);
        assert!(all.iter().any(|missing| missing.contains("fenced utterances")), "{all:?}");
        let html = fs::read_to_string(directory.path().join("report.html")).unwrap();
        assert!(html.contains("<svg") && html.contains("&lt;killed&gt;") && !html.contains("<killed>"));
    }

    #[test]
    fn an_excess_is_what_lies_beyond_the_usual() {
        let of = Excess::of(&[5.0, 9.5, 30.0], 9.0);
        assert_eq!(of, Excess { n: 3, p50_ms: 0.5, p99_ms: 21.0, max_ms: 21.0 });
        assert_eq!(Excess::of(&[], 9.0), Excess::default());
    }

    #[test]
    fn a_run_without_what_its_nemesis_leads_to_proves_nothing() {
        let mut run = run(Nemesis::Freeze, 400);
        run.coverage.takeovers = 0;
        let report = Report { runs: vec![run] };
        assert!(report.missing(false).iter().any(|missing| missing.contains("takeovers")));
    }
}
