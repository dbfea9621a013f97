//! The simulator as a command: `cargo xtask sim` runs it; CI runs its fixed seeds and a few random ones.
//!
//! Owns: the command line and the report. Does not: test anything that the library does not.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command for people")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use banyan_checker::Demand;
use banyan_proto::plant::{self, Bug};
use banyan_sim::coverage::Situation;
use banyan_sim::plan::Plan;
use banyan_sim::run::{Finished, run};
use banyan_sim::shrink::shrink;
use banyan_sim::sweep::{Modes, Options, Sum, run_seed, sweep};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// What CI runs each time.
const CI_SEEDS: u64 = 400;
/// And a few that nobody has run before.
const CI_RANDOM: u64 = 20;
/// What is said of seeds in the mean, and of what happens in some of them, is not asked of fewer.
const SEEDS_FOR_MEANS: u64 = 100;
/// A sweep of fewer seeds need not reach every situation.
const SEEDS_FOR_COVERAGE: u64 = 1_000;
/// Seeds within which a planted bug must be caught.
const SEEDS_FOR_A_BUG: u64 = 1_000;
/// Mean inputs of the cores that a seed must have, and share of seeds with a change of owner in percent.
const INPUTS_A_SEED: u64 = 5_000;
const CHANGED_PERCENT: u64 = 80;
/// Lines of a timeline that are shown before its end.
const LINES: usize = 120;

/// The bugs that the checker must catch, as people make them.
const BUGS: &[Bug] = &[
    Bug::AckBeforeAppend,
    Bug::NoBarrier,
    Bug::BarrierBegunEarly,
    Bug::RetryUnderNewSeq,
    Bug::EpochReused,
    Bug::IncarnationReused,
    Bug::DedupeNotRebuilt,
    Bug::DedupeWithoutSender,
    Bug::DedupeWithoutSince,
    Bug::DefiniteErrorAfterUnknown,
    Bug::GatewayDeliversOnGap,
    Bug::GatewayIgnoresEpoch,
    Bug::RemovalAppliedAtReceipt,
    Bug::PassiveMissesRemoval,
    Bug::HeadNeverAdvertised,
    Bug::ResumeOffByOne,
    Bug::MarkFalls,
    Bug::InterestLostAfterOwnerChange,
    Bug::ReplyBeforeLowerEvent,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeWord {
    Safety,
    Liveness,
    Both,
}

/// Simulates the whole cluster over its cores, seed by seed, and checks what its clients saw.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask sim",
    after_help = "Examples:\n  sim --seeds 1000             a sweep; broken off, it goes on where it was\n  \
sim --seed 4711              one seed, with its timeline if it fails\n  \
sim --bugs                   plants each bug and looks how many seeds it takes to catch it\n  \
sim --plant no-barrier --seed 7   one seed with a bug\n  sim --same-twice 100         each seed twice: the hashes must be equal"
)]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Only this seed; with --seeds the first of them
    #[arg(long)]
    seed: Option<u64>,
    /// Faults to the end; or healed at the end, and all must come back; or seed by seed the one and the other
    #[arg(long, value_enum, default_value = "both")]
    mode: ModeWord,
    /// Plants a bug (its name as in proto/src/plant.rs, words joined by -); the run succeeds if it is caught
    #[arg(long, value_name = "BUG")]
    plant: Option<String>,
    /// Plants each bug of the list, in turn
    #[arg(long)]
    bugs: bool,
    /// Runs so many seeds twice and compares what happened
    #[arg(long, value_name = "N")]
    same_twice: Option<u64>,
    /// A fixed list of seeds and a few random ones, as CI does
    #[arg(long)]
    ci: bool,
    /// Begin anew where an earlier sweep was broken off
    #[arg(long)]
    fresh: bool,
    /// The summary as JSON
    #[arg(long)]
    json: bool,
    /// The whole timeline of the one seed, failed or not
    #[arg(long, requires = "seed")]
    timeline: bool,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    threads: usize,
}

fn main() -> ExitCode {
    match sim(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn sim(arguments: &Arguments) -> anyhow::Result<bool> {
    let modes = match arguments.mode {
        ModeWord::Safety => Modes::Safety,
        ModeWord::Liveness => Modes::Liveness,
        ModeWord::Both => Modes::Both,
    };
    let bug = arguments.plant.as_deref().map(bug_named).transpose()?;
    if arguments.bugs {
        return bugs(arguments, modes);
    }
    if let Some(seeds) = arguments.same_twice {
        return same_twice(arguments, modes, seeds);
    }
    if arguments.ci {
        return ci(arguments, modes);
    }
    if let Some(bug) = bug
        && arguments.seed.is_none()
    {
        let caught = catch(arguments, modes, bug)?;
        print_bugs(arguments, &[(bug, caught.clone())]);
        return Ok(caught.is_some());
    }
    match arguments.seed {
        Some(seed) if arguments.seeds == 200 => Ok(one(seed, modes, bug, arguments.timeline)),
        first => swept(arguments, modes, first.unwrap_or(0), arguments.seeds),
    }
}

/// A bug by its name, in any spelling of words.
fn bug_named(name: &str) -> anyhow::Result<Bug> {
    let plain = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    let found = BUGS.iter().copied().find(|bug| plain(&format!("{bug:?}")) == plain(name));
    found.with_context(|| format!("no bug of the list is called `{name}`: {BUGS:?}"))
}

// ---------------------------------------------------------------- one seed

fn one(seed: u64, modes: Modes, bug: Option<Bug>, always: bool) -> bool {
    let plan = Plan::new(seed, modes.of(seed));
    if always {
        let finished = plant::with(bug, || run(plan.clone(), true, u64::MAX));
        for (at, line) in &finished.timeline {
            println!("{:>12.6} {line}", *at as f64 / 1e6);
        }
    }
    let finished = run_seed(seed, modes, bug);
    println!(
        "seed {seed} ({:?}): {} inputs, {} changes of owner, {:.1} s simulated, trace {:016x}",
        plan.mode,
        finished.inputs,
        finished.owner_changes,
        finished.ended as f64 / 1e6,
        finished.trace
    );
    explain(plan, finished, bug)
}

/// Shows a failure as small as it can be made. True: there is none.
fn explain(plan: Plan, finished: Finished, bug: Option<Bug>) -> bool {
    let Some(failure) = finished.failure else { return true };
    println!("FAILED: {}\n\nlooking for a smaller run that fails so ...", failure.words);
    let seed = plan.seed;
    let faults = plan.faults.len();
    let small = plant::with(bug, || shrink(plan, failure));
    let shown = plant::with(bug, || run(small.plan.clone(), true, small.until));
    let words = small.failure.words;
    println!(
        "seed {seed}, the first {:.3} s, {} of {faults} faults ({} runs):",
        small.until.min(shown.ended) as f64 / 1e6,
        small.plan.faults.len(),
        small.tries
    );
    for planned in &small.plan.faults {
        println!("  {planned}");
    }
    println!("not needed: {}", if small.calm.is_empty() { "-".to_owned() } else { small.calm.join(", ") });
    // Lines of other rooms than the one that it is about tell nothing.
    let rooms = (0..small.plan.rooms).map(|room| format!("room{room}"));
    let about: Vec<String> = rooms.clone().filter(|room| words.contains(room.as_str())).collect();
    let others: Vec<String> = rooms.filter(|room| !about.is_empty() && !about.contains(room)).collect();
    let mine = |line: &str| {
        about.iter().any(|room| line.contains(room.as_str()))
            || !others.iter().any(|room| line.contains(room.as_str()))
    };
    let lines: Vec<_> = shown.timeline.iter().filter(|(_, line)| mine(line)).collect();
    let left_out = lines.len().saturating_sub(LINES);
    println!(
        "timeline{}:",
        if left_out > 0 { format!(" (the last {LINES} of {} lines)", lines.len()) } else { String::new() }
    );
    for (at, line) in lines.into_iter().skip(left_out) {
        println!("  {:>12.6} {line}", *at as f64 / 1e6);
    }
    println!("{words}");
    false
}

// ---------------------------------------------------------------- sweeps

fn bar(seeds: u64) -> ProgressBar {
    let bar = ProgressBar::new(seeds);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} seeds, {per_sec}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Where a sweep writes down what is done: another build or another question begins anew.
fn state_path(arguments: &Arguments, modes: Modes, first: u64, seeds: u64) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("where am I?")?;
    let about = std::fs::metadata(&program)?;
    let built = about.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let folder = program.parent().unwrap_or_else(|| Path::new(".")).join("sim-sweeps");
    let path = folder.join(format!("{first}-{seeds}-{modes:?}-{built:x}.jsonl"));
    if arguments.fresh {
        std::fs::remove_file(&path).ok();
    }
    Ok(path)
}

fn swept(arguments: &Arguments, modes: Modes, first: u64, seeds: u64) -> anyhow::Result<bool> {
    let state = Some(state_path(arguments, modes, first, seeds)?);
    let threads = arguments.threads;
    let options =
        Options { first, seeds, modes, bug: None, twice: false, threads, state, stop_at_failure: false };
    let (sum, took) = timed(arguments, &options)?;
    report(arguments, &options, &sum, took)
}

fn timed(arguments: &Arguments, options: &Options) -> anyhow::Result<(Sum, Duration)> {
    let bar = if arguments.json { ProgressBar::hidden() } else { bar(options.seeds) };
    let sum = sweep(options, &|done| bar.inc(done)).context("the sweep's state cannot be written")?;
    let took = bar.elapsed();
    bar.finish_and_clear();
    Ok((sum, took))
}

/// Prints what a sweep came to. True: it is all right and proves something.
fn report(arguments: &Arguments, options: &Options, sum: &Sum, took: Duration) -> anyhow::Result<bool> {
    let per_second = sum.inputs as f64 / took.as_secs_f64().max(0.001);
    let missing: Vec<&str> = sum.coverage().missing().map(Situation::text).collect();
    let seen = sum.seen();
    let short: Vec<String> = Demand::cluster()
        .least
        .rows()
        .into_iter()
        .zip(&seen)
        .filter(|((_, least), (_, found))| found < least)
        .map(|((words, least), (_, found))| format!("{words}: {found}, at least {least} wanted"))
        .collect();
    let mut wrong = Vec::new();
    if !sum.failed.is_empty() {
        wrong.push(format!("{} seeds failed", sum.failed.len()));
    }
    if !sum.differing.is_empty() {
        wrong.push(format!("seeds that were not the same twice: {:?}", sum.differing));
    }
    let has_means = sum.seeds >= SEEDS_FOR_MEANS;
    if has_means && sum.inputs < INPUTS_A_SEED * sum.seeds {
        wrong.push(format!("a seed has fewer than {INPUTS_A_SEED} inputs in the mean"));
    }
    if has_means && sum.changed * 100 < CHANGED_PERCENT * sum.seeds {
        wrong.push(format!("only {} of {} seeds change an owner", sum.changed, sum.seeds));
    }
    if sum.seeds >= SEEDS_FOR_COVERAGE && !missing.is_empty() {
        wrong.push(format!("never reached: {}", missing.join("; ")));
    }
    if has_means {
        wrong.extend(short);
    }
    if arguments.json {
        let situations: BTreeMap<&str, u64> =
            Situation::ALL.iter().map(|of| (of.text(), sum.coverage().count(*of))).collect();
        let seen: BTreeMap<&str, u64> = seen.into_iter().collect();
        let summary = json!({
            "first_seed": options.first, "seeds": sum.seeds, "inputs": sum.inputs, "inputs_per_s": per_second,
            "threads": options.threads, "took_s": took.as_secs_f64(), "simulated_s": sum.simulated_us as f64 / 1e6,
            "seeds_with_owner_change": sum.changed, "owner_changes": sum.owner_changes, "failed": sum.failed,
            "situations": situations, "checker": seen, "wrong": wrong,
        });
        println!("{summary:#}");
        return Ok(wrong.is_empty());
    }
    println!("{:<58} {:>14}", "seeds", sum.seeds);
    println!("{:<58} {:>14}", "inputs of the cores", sum.inputs);
    println!("{:<58} {:>14.0}", "  a second", per_second);
    println!("{:<58} {:>14.0}", "  a second and thread", per_second / options.threads as f64);
    println!("{:<58} {:>14}", "  a seed", sum.inputs / sum.seeds.max(1));
    println!("{:<58} {:>14.0}", "seconds simulated", sum.simulated_us as f64 / 1e6);
    println!("{:<58} {:>14.1}", "seconds taken", took.as_secs_f64());
    println!("{:<58} {:>14}", "seeds with a change of owner", sum.changed);
    println!("{:<58} {:>14}", "changes of owner", sum.owner_changes);
    for (words, count) in seen {
        println!("  {words:<56} {count:>14}");
    }
    println!("seeds that reached:");
    for situation in Situation::ALL {
        println!("  {:<56} {:>14}", situation.text(), sum.coverage().count(*situation));
    }
    for (seed, what) in sum.failed.iter().take(20) {
        println!("seed {seed} failed: {what} (cargo xtask sim --seed {seed})");
    }
    for words in &wrong {
        println!("WRONG: {words}");
    }
    if let Some((seed, _)) = sum.failed.first() {
        let plan = Plan::new(*seed, options.modes.of(*seed));
        explain(plan, run_seed(*seed, options.modes, None), None);
    }
    Ok(wrong.is_empty())
}

fn same_twice(arguments: &Arguments, modes: Modes, seeds: u64) -> anyhow::Result<bool> {
    let (first, threads) = (arguments.seed.unwrap_or(0), arguments.threads);
    let options =
        Options { first, seeds, modes, bug: None, twice: true, threads, state: None, stop_at_failure: false };
    let (sum, _) = timed(arguments, &options)?;
    if sum.differing.is_empty() {
        println!("{} seeds, each run twice: equal hashes", sum.seeds);
    } else {
        println!("not the same twice: seeds {:?}", sum.differing);
    }
    Ok(sum.differing.is_empty())
}

/// Fixed seeds, random ones, and some of them twice.
fn ci(arguments: &Arguments, modes: Modes) -> anyhow::Result<bool> {
    let threads = arguments.threads;
    let fixed = Options {
        first: 0,
        seeds: CI_SEEDS,
        modes,
        bug: None,
        twice: false,
        threads,
        state: None,
        stop_at_failure: false,
    };
    let (sum, took) = timed(arguments, &fixed)?;
    let mut fine = report(arguments, &fixed, &sum, took)?;
    let start = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    println!("\nrandom seeds: {start} to {}", start + CI_RANDOM - 1);
    let random = Options { first: start, seeds: CI_RANDOM, ..fixed };
    let (sum, took) = timed(arguments, &random)?;
    fine &= report(arguments, &random, &sum, took)?;
    fine &= same_twice(arguments, modes, 20)?;
    Ok(fine)
}

// ---------------------------------------------------------------- planted bugs

/// How a bug was caught: in which seed, counted from 1, and as what.
type Caught = Option<(u64, u64, String)>;

/// Runs seeds until the bug shows.
fn catch(arguments: &Arguments, modes: Modes, bug: Bug) -> anyhow::Result<Caught> {
    let first = arguments.seed.unwrap_or(0);
    let options = Options {
        first,
        seeds: SEEDS_FOR_A_BUG,
        modes,
        bug: Some(bug),
        twice: false,
        threads: arguments.threads,
        state: None,
        stop_at_failure: true,
    };
    let sum = sweep(&options, &|_| {})?;
    Ok(sum.failed.first().map(|(seed, what)| (sum.seeds, *seed, what.clone())))
}

fn bugs(arguments: &Arguments, modes: Modes) -> anyhow::Result<bool> {
    let unplanted = Options {
        first: 0,
        seeds: 40,
        modes,
        bug: None,
        twice: false,
        threads: arguments.threads,
        state: None,
        stop_at_failure: false,
    };
    let sum = sweep(&unplanted, &|_| {})?;
    ensure!(sum.failed.is_empty(), "seeds fail without any bug: {:?}", sum.failed);
    let mut table = Vec::new();
    for bug in BUGS {
        let caught = catch(arguments, modes, *bug)?;
        if !arguments.json {
            print_bugs(arguments, &[(*bug, caught.clone())]);
        }
        table.push((*bug, caught));
    }
    if arguments.json {
        print_bugs(arguments, &table);
    }
    let missed: Vec<_> = table.iter().filter(|(_, caught)| caught.is_none()).map(|(bug, _)| *bug).collect();
    ensure!(missed.is_empty(), "not caught: {missed:?}");
    Ok(true)
}

fn print_bugs(arguments: &Arguments, table: &[(Bug, Caught)]) {
    if arguments.json {
        let rows: Vec<_> = table
            .iter()
            .map(|(bug, caught)| match caught {
                Some((seeds, seed, what)) => {
                    json!({"bug": format!("{bug:?}"), "seeds": seeds, "seed": seed, "caught_by": what})
                }
                None => json!({"bug": format!("{bug:?}"), "caught_by": null}),
            })
            .collect();
        println!("{:#}", json!(rows));
        return;
    }
    for (bug, caught) in table {
        let bug = format!("{bug:?}");
        match caught {
            Some((seeds, seed, what)) => {
                println!("{bug:<32} caught by {what:<8} in seed {seed:>6}, {seeds:>4} seeds run");
            }
            None => println!("{bug:<32} NOT CAUGHT in {SEEDS_FOR_A_BUG} seeds"),
        }
    }
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
    assert!(BUGS.iter().all(|bug| bug_named(&format!("{bug:?}")).is_ok()));
}
