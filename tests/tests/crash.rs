//! A few kills of the real server under load; `cargo xtask crash --kills 50` does many.
//!
//! Owns: the crash test's part in every run of the tests.
//! Does not: run long.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use banyan_checker::{Promise, State};
use banyan_tests::crash::{Options, Report, run};
use banyan_tests::server;

async fn crash(kills: u32, shim: bool, plant_no_fsync: bool) -> Report {
    let work = tempfile::Builder::new().prefix("banyan-crash-").tempdir().unwrap();
    let options = Options {
        server: server::binary().unwrap(),
        work_dir: work.path().to_owned(),
        kills,
        shim,
        plant_no_fsync,
        seed: u64::from(std::process::id()),
        senders: 6,
        subscribers: 2,
        rooms: 3,
    };
    let report = run(&options, |line| println!("{line}")).await.unwrap();
    if report.violations().is_empty() == plant_no_fsync {
        println!("seed {}; data and logs are kept in {}", options.seed, work.keep().display());
    } else if !plant_no_fsync {
        report.is_meaningful(&options).unwrap();
    }
    report
}

#[tokio::test]
async fn nothing_acked_is_lost_by_kill_9() {
    let report = crash(10, false, false).await;
    assert!(report.violations().is_empty(), "{}", report.violations().join("\n"));
}

#[tokio::test]
async fn nothing_acked_is_lost_by_a_power_cut() {
    let report = crash(10, true, false).await;
    assert!(report.violations().is_empty(), "{}", report.violations().join("\n"));
}

#[tokio::test]
async fn a_missing_fsync_is_found_by_a_power_cut() {
    let report = crash(4, true, true).await;
    assert!(!report.violations().is_empty(), "the missing fsync was not found: {report:#?}");
    // Unless the server does not even start on what is left, the loss is told as what it is.
    if let Some(checked) = &report.checked {
        assert_eq!(checked.outcome(Promise::I1).state, State::Violated, "{checked}");
        assert_eq!(checked.outcome(Promise::I9).state, State::Violated, "{checked}");
    }
}
