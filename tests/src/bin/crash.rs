//! The crash test as a command: `cargo xtask crash` runs it; CI runs a few kills through `tests/crash.rs`.
//!
//! Owns: the command line and the report.
//! Does not: test anything that `banyan_tests::crash` does not.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command for people")]

use anyhow::Context;
use banyan_tests::crash::{Options, Report, run};
use banyan_tests::server;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Kills `banyan serve` under load with SIGKILL, restarts it, and checks that nothing acked is lost, seqs are
/// dense and no subscriber is told anything twice.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  crash --kills 50            fifty kills; the page cache survives them\n  \
crash --kills 50 --shim     the same, and all that was not synced is cut away\n  \
crash --kills 8 --shim --plant-no-fsync    shows that the test can fail"
)]
struct Arguments {
    /// How often the server is killed, half at random moments, half in the instant in which an ack is read
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// After each kill, take back from the files what was not synced, but for a random part
    #[arg(long)]
    shim: bool,
    /// Let every fsync of the server do nothing; the run succeeds if the loss is found
    #[arg(long, requires = "shim")]
    plant_no_fsync: bool,
    /// Repeats the choices of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// The server to kill [default: the `banyan` beside this program]
    #[arg(long)]
    server: Option<PathBuf>,
    /// Sending connections
    #[arg(long, default_value_t = 8)]
    senders: usize,
    /// Subscribed connections
    #[arg(long, default_value_t = 3)]
    subscribers: usize,
    /// Rooms that they share
    #[arg(long, default_value_t = 4)]
    rooms: usize,
    /// Keep data and logs also when all is well
    #[arg(long)]
    keep: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match crash(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

async fn crash(arguments: Arguments) -> anyhow::Result<bool> {
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9);
    let server = arguments.server.map_or_else(server::binary, Ok)?;
    let work =
        tempfile::Builder::new().prefix("banyan-crash-").tempdir().context("no temporary directory")?;
    let options = Options {
        server,
        work_dir: work.path().to_owned(),
        kills: arguments.kills,
        shim: arguments.shim,
        plant_no_fsync: arguments.plant_no_fsync,
        seed,
        senders: arguments.senders,
        subscribers: arguments.subscribers,
        rooms: arguments.rooms,
    };
    println!("seed {seed}; repeat the choices with --seed {seed}");
    // indicatif draws on terminals only; elsewhere the lines are printed.
    let bar = indicatif::ProgressBar::new(u64::from(arguments.kills));
    let outcome = run(&options, |line| {
        bar.inc(1);
        if bar.is_hidden() { println!("{line}") } else { bar.println(line) }
    })
    .await;
    bar.finish_and_clear();
    let keep =
        arguments.keep || outcome.as_ref().is_ok_and(|r| r.violations().is_empty() == options.plant_no_fsync);
    if keep || outcome.is_err() {
        println!("data and logs are kept in {}", work.keep().display());
    }
    let report = outcome?;
    print(&report);
    if options.plant_no_fsync {
        let found = !report.violations().is_empty();
        println!(
            "{}",
            if found {
                "the missing fsync was found, as it must be"
            } else {
                "THE MISSING FSYNC WAS NOT FOUND"
            }
        );
        return Ok(found);
    }
    report.is_meaningful(&options)?;
    Ok(report.violations().is_empty())
}

fn print(report: &Report) {
    let rows = [
        ("kills", u64::from(report.kills)),
        ("  of them at an ack", u64::from(report.kills_at_ack)),
        ("syncs seen", report.syncs),
        ("changes not synced at a kill", report.unsynced),
        ("  bytes taken away", report.cut_bytes),
        ("  names taken away", report.cut_names),
    ];
    for (what, n) in rows {
        println!("{what:<40} {n:>12}");
    }
    for wrong in &report.wrong {
        println!("{wrong}");
    }
    if let Some(checked) = &report.checked {
        print!("{checked}");
    }
}
