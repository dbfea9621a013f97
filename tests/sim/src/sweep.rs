//! Many seeds at once, and what they came to together.
//!
//! Owns: which seeds are done. Always holds: a sweep that is broken off goes on where it was, if nothing about it has
//! changed; sums do not depend on how many threads made them.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use banyan_checker::Coverage as Seen;
use banyan_proto::plant::{self, Bug};
use serde::{Deserialize, Serialize};

use crate::coverage::Coverage;
use crate::plan::{Mode, Plan};
use crate::run::{Failure, Finished, run};
use crate::schedule::Time;

/// Seeds that are written down together.
const CHUNK: u64 = 50;

/// Which runs a sweep makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modes {
    Safety,
    Liveness,
    /// Even seeds the one, odd ones the other.
    Both,
}

impl Modes {
    pub const fn of(self, seed: u64) -> Mode {
        match self {
            Self::Safety => Mode::Safety,
            Self::Liveness => Mode::Liveness,
            Self::Both if seed.is_multiple_of(2) => Mode::Safety,
            Self::Both => Mode::Liveness,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    pub first: u64,
    pub seeds: u64,
    pub modes: Modes,
    pub bug: Option<Bug>,
    /// Each seed twice, hashes compared.
    pub twice: bool,
    pub threads: usize,
    /// Where the seeds that are done are written down.
    pub state: Option<PathBuf>,
    /// End at the first failure.
    pub stop_at_failure: bool,
}

/// What seeds came to together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Sum {
    pub seeds: u64,
    pub inputs: u64,
    /// Seeds in which a slot changed its owner.
    pub changed: u64,
    pub owner_changes: u64,
    pub simulated_us: Time,
    /// Seeds whose second run was another.
    pub differing: Vec<u64>,
    /// By [`crate::coverage::Situation`].
    pub situations: Vec<u64>,
    /// By the rows of the checker's coverage.
    pub seen: Vec<u64>,
    /// The seeds that failed, lowest first, with the kind of failure.
    pub failed: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.inputs += other.inputs;
        self.changed += other.changed;
        self.owner_changes += other.owner_changes;
        self.simulated_us += other.simulated_us;
        self.differing.extend(&other.differing);
        self.failed.extend(other.failed.iter().cloned());
        self.failed.sort();
        add_all(&mut self.situations, &other.situations);
        add_all(&mut self.seen, &other.seen);
    }

    fn count(&mut self, seed: u64, finished: &Finished) {
        self.seeds += 1;
        self.inputs += finished.inputs;
        self.changed += u64::from(finished.owner_changes > 0);
        self.owner_changes += finished.owner_changes;
        self.simulated_us += finished.ended;
        let seen: Vec<u64> = finished.report.coverage.rows().into_iter().map(|(_, count)| count).collect();
        add_all(&mut self.situations, finished.coverage.counts());
        add_all(&mut self.seen, &seen);
        if let Some(Failure { what, .. }) = &finished.failure {
            self.failed.push((seed, what.clone()));
        }
    }

    pub fn coverage(&self) -> Coverage {
        Coverage::from_counts(&self.situations)
    }

    /// The checker's counters with their words.
    pub fn seen(&self) -> Vec<(&'static str, u64)> {
        let words = Seen::default().rows();
        words.into_iter().zip(&self.seen).map(|((words, _), count)| (words, *count)).collect()
    }
}

fn add_all(here: &mut Vec<u64>, there: &[u64]) {
    here.resize(here.len().max(there.len()), 0);
    for (here, there) in here.iter_mut().zip(there) {
        *here += there;
    }
}

/// One line of the state file.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    chunk: u64,
    sum: Sum,
}

/// Runs one seed, with the bug planted.
pub fn run_seed(seed: u64, modes: Modes, bug: Option<Bug>) -> Finished {
    plant::with(bug, || run(Plan::new(seed, modes.of(seed)), false, Time::MAX))
}

/// Runs all seeds. `progress` is told how many are done.
pub fn sweep(options: &Options, progress: &(dyn Fn(u64) + Sync)) -> std::io::Result<Sum> {
    let chunks = options.seeds.div_ceil(CHUNK);
    let mut total = Sum::default();
    let mut known = vec![false; chunks as usize];
    if let Some(path) = &options.state
        && let Ok(text) = fs::read_to_string(path)
    {
        // A line that was cut off in the middle is done again.
        for done in text.lines().filter_map(|line| serde_json::from_str::<Done>(line).ok()) {
            if let Some(known) = known.get_mut(done.chunk as usize)
                && !std::mem::replace(known, true)
            {
                total.add(&done.sum);
            }
        }
        progress(total.seeds);
    }
    let file = match &options.state {
        Some(path) => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            Some(Mutex::new(fs::OpenOptions::new().create(true).append(true).open(path)?))
        }
        None => None,
    };
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(total);
    let work = || -> std::io::Result<()> {
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks || stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if known[chunk as usize] {
                continue;
            }
            let first = options.first + chunk * CHUNK;
            let last = (first + CHUNK).min(options.first + options.seeds);
            let mut sum = Sum::default();
            for seed in first..last {
                let mut finished = run_seed(seed, options.modes, options.bug);
                // What fails without the bug too does not show it.
                if options.bug.is_some()
                    && finished.failure.is_some()
                    && run_seed(seed, options.modes, None).failure.is_some()
                {
                    finished.failure = None;
                }
                sum.count(seed, &finished);
                if options.twice && run_seed(seed, options.modes, options.bug).trace != finished.trace {
                    sum.differing.push(seed);
                }
                progress(1);
                if options.stop_at_failure && (finished.failure.is_some() || stop.load(Ordering::Relaxed)) {
                    stop.store(true, Ordering::Relaxed);
                    break;
                }
            }
            if let Some(file) = file.as_ref().filter(|_| !stop.load(Ordering::Relaxed)) {
                let line = serde_json::to_string(&Done { chunk, sum: sum.clone() })?;
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                writeln!(file, "{line}")?;
            }
            total.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(&sum);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    Ok(total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}
