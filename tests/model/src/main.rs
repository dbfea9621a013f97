//! `model`: explores worlds and says whether the frontier came out empty; plants bugs and shows how each is caught.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "it is a command for people, and says how long it took"
)]

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use banyan_model::explore::Explorer;
use banyan_model::rooms::{RoomWorld, Rooms, room_bugs, room_worlds};
use banyan_model::search::{Bounds, Progress, Report, Search, Verdict};
use banyan_model::world::{Planted, World, bugs, worlds};
use banyan_proto::plant::{self, Bug};
use clap::Parser;

/// Exhaustive check of the log protocol over small worlds, with the cores of the server.
#[derive(Debug, Parser)]
#[command(name = "model")]
struct Cli {
    /// Says which worlds there are.
    #[arg(long)]
    list: bool,
    /// Only this one; may be given several times.
    #[arg(long = "world", value_name = "NAME")]
    worlds: Vec<String>,
    /// Only the small ones.
    #[arg(long)]
    quick: bool,
    /// Plants bugs instead; each must be caught.
    #[arg(long)]
    bugs: bool,
    /// Only this one, as `--bugs` names it; may be given several times.
    #[arg(long = "bug", value_name = "NAME")]
    only: Vec<String>,
    /// Prints every counterexample step by step.
    #[arg(long)]
    trace: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Gives a world up above so many states.
    #[arg(long, default_value_t = 100_000_000)]
    max_states: usize,
    /// Gives a world up after so long.
    #[arg(long, default_value_t = 1_800)]
    max_seconds: u64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

struct Job {
    /// Of the planted bug, or of what the world leaves out.
    name: String,
    bug: Option<Bug>,
    planted: bool,
    world: Either,
}

enum Either {
    Logs(Box<World>),
    Rooms(Box<RoomWorld>),
}

impl Either {
    fn name(&self) -> &'static str {
        match self {
            Self::Logs(world) => world.name,
            Self::Rooms(world) => world.name,
        }
    }

    fn too_large(&self) -> bool {
        matches!(self, Self::Logs(world) if world.too_large)
    }

    fn about(&self) -> (&'static str, bool) {
        match self {
            Self::Logs(world) => (world.about, world.quick),
            Self::Rooms(world) => (world.about, world.quick),
        }
    }
}

fn all_worlds() -> Vec<Either> {
    let logs = worlds().into_iter().map(|world| Either::Logs(Box::new(world)));
    let rooms = room_worlds().into_iter().map(|world| Either::Rooms(Box::new(world)));
    logs.chain(rooms).collect()
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for world in all_worlds() {
            let (about, quick) = world.about();
            println!("{:16} {:5} {about}", world.name(), if quick { "quick" } else { "" });
        }
        return ExitCode::SUCCESS;
    }
    let jobs = jobs(&cli);
    if jobs.is_empty() {
        eprintln!("model: nothing of that name; --list says what there is");
        return ExitCode::from(64);
    }
    let (width, count) = (jobs.iter().map(|job| job.name.len()).max().unwrap_or(0), jobs.len());
    if !cli.json {
        println!(
            "{:width$}  {:14} {:>11} {:>6} {:>12} {:>8}  result",
            "", "world", "states", "depth", "transitions", "seconds"
        );
    }
    let bounds = Bounds { states: cli.max_states, time: Duration::from_secs(cli.max_seconds) };
    let queue = Mutex::new(VecDeque::from(jobs));
    let (done, results) = mpsc::channel();
    let mut failed = 0;
    std::thread::scope(|scope| {
        for _ in 0..cli.threads.max(1) {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || {
                loop {
                    let job = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(job) = job else { return };
                    let report = run(&job, bounds);
                    if done.send((job, report)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for (job, report) in results {
            failed += usize::from(!print(&cli, width, &job, &report));
        }
    });
    if !cli.json {
        println!("{} of {count} as they must be", count - failed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn jobs(cli: &Cli) -> Vec<Job> {
    let chosen = |job: &Job| cli.worlds.is_empty() || cli.worlds.iter().any(|name| name == job.world.name());
    if cli.bugs || !cli.only.is_empty() {
        let logs = bugs().into_iter().map(|planted: Planted| Job {
            name: planted.name(),
            bug: planted.bug,
            planted: true,
            world: Either::Logs(Box::new(planted.world)),
        });
        let rooms = room_bugs().into_iter().map(|(bug, world)| Job {
            name: format!("{bug:?}"),
            bug: Some(bug),
            planted: true,
            world: Either::Rooms(Box::new(world)),
        });
        return logs
            .chain(rooms)
            .filter(|job| cli.only.is_empty() || cli.only.contains(&job.name))
            .filter(chosen)
            .collect();
    }
    all_worlds()
        .into_iter()
        .map(|world| Job { name: String::new(), bug: None, planted: false, world })
        .filter(|job| chosen(job) && (job.world.about().1 || !cli.quick))
        .collect()
}

fn run(job: &Job, bounds: Bounds) -> Report {
    let start = Instant::now();
    let mut told = Duration::ZERO;
    let name = if job.name.is_empty() { job.world.name() } else { &job.name };
    let clock = || start.elapsed();
    let progress = |Progress { states, frontier, depth, took }| {
        if took >= told + Duration::from_secs(2) {
            told = took;
            let rate = states as f64 / took.as_secs_f64() / 1_000.0;
            eprint!("\r\x1b[K{name}: {states} states, frontier {frontier}, depth {depth}, {rate:.0} k/s ");
        }
    };
    plant::with(job.bug, || match &job.world {
        Either::Logs(world) => Search::new(Explorer::new(world)).run(bounds, clock, progress),
        Either::Rooms(world) => Search::new(Rooms::new(world)).run(bounds, clock, progress),
    })
}

/// True: as it must be.
fn print(cli: &Cli, width: usize, job: &Job, report: &Report) -> bool {
    let good = match (&report.verdict, job.planted) {
        (Verdict::Safe, false) | (Verdict::Violated { .. }, true) => true,
        (Verdict::Bounded { .. }, false) => job.world.too_large(),
        (Verdict::Safe | Verdict::Violated { .. } | Verdict::Bounded { .. }, _) => false,
    };
    let seconds = report.took.as_secs_f64();
    if cli.json {
        let (verdict, why, steps) = match &report.verdict {
            Verdict::Safe => ("frontier empty", String::new(), 0),
            Verdict::Bounded { depth } => ("bounded", format!("complete to depth {depth}"), 0),
            Verdict::Violated { why, trace } => ("violated", why.clone(), trace.len()),
        };
        println!(
            "{}",
            serde_json::json!({
                "bug": job.name, "world": job.world.name(), "verdict": verdict, "why": why, "steps": steps,
                "states": report.states, "depth": report.depth, "transitions": report.transitions,
                "seconds": seconds, "longest_said": report.longest_said,
                "coverage": report.coverage.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
            })
        );
        return good;
    }
    let result = match &report.verdict {
        Verdict::Safe => format!("frontier empty; longest log said: {}", report.longest_said),
        Verdict::Bounded { depth } => {
            format!("given up, complete to depth {depth} (further: --max-states, --max-seconds)")
        }
        Verdict::Violated { why, trace } => format!("{} steps: {why}", trace.len()),
    };
    let Report { states, depth, transitions, .. } = report;
    let mark = if good { "" } else { "   <-- NOT AS IT MUST BE" };
    eprint!("\r\x1b[K");
    println!(
        "{:width$}  {:14} {states:>11} {depth:>6} {transitions:>12} {seconds:>8.1}  {result}{mark}",
        job.name,
        job.world.name()
    );
    if let Verdict::Violated { trace, .. } = &report.verdict
        && (cli.trace || !good)
    {
        for (at, step) in trace.iter().enumerate() {
            println!("    {:3}  {step}", at + 1);
        }
    }
    if good && !job.planted {
        for (what, count) in &report.coverage {
            println!("{:width$}  {:14} {count:>11} × {what}", "", "");
        }
    }
    good
}
