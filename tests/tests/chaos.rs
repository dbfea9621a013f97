//! A short subset of chaos for every run of the tests; `cargo xtask chaos --minutes 20` does it all.
//!
//! Owns: one run: three shards, three gateways behind HAProxy, one etcd, one CQL server; a kill, a freeze, an end and a new start, an owner cut off
//! from etcd, a fourth node; and one of the program itself, in a network of its own, where the kernel cuts links.
//! Does not: run long.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use banyan_tests::chaos::nemesis::{Lengths, Nemesis};
use banyan_tests::chaos::report::Report;
use banyan_tests::chaos::{Options, run};
use banyan_tests::cluster::network;
use banyan_tests::server;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// A cluster is heavy: one after the other.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn a_cluster_keeps_its_promises_while_nodes_die_freeze_end_and_join() {
    let _alone = ALONE.lock().await;
    let work = tempfile::Builder::new().prefix("banyan-chaos-").tempdir().unwrap();
    let nemeses = vec![Nemesis::Kill, Nemesis::Freeze, Nemesis::Term, Nemesis::CutFromEtcd, Nemesis::Join];
    let lengths = Lengths { freeze: Duration::from_secs(6), joiners: 1, ..Lengths::default() };
    let seed = u64::from(std::process::id());
    let options = Options {
        lengths,
        apart: true,
        ..Options::new(server::binary().unwrap(), work.path().to_owned(), seed, nemeses)
    };
    let done = run(&options, Arc::new(|line: &str| println!("{line}"))).await.unwrap();
    let broken: Vec<String> = done.wrong.iter().chain(&done.violations).cloned().collect();
    let report = Report { runs: vec![done] };
    let missing = report.missing(false);
    if !broken.is_empty() || !missing.is_empty() {
        println!("seed {}; logs are kept in {}", options.seed, work.keep().display());
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(missing.is_empty(), "the run proves nothing: {}", missing.join("; "));
    assert_eq!(report.runs[0].hits.len(), options.nemeses.len());
}

#[tokio::test]
async fn a_cluster_keeps_its_promises_while_the_kernel_cuts_links() {
    let _alone = ALONE.lock().await;
    if let Err(why) = network::possible() {
        println!("skipped: {why:#}");
        return;
    }
    let work = tempfile::Builder::new().prefix("banyan-chaos-netns-").tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_chaos"));
    command.args(["--netns", "--nemesis", "cut", "--nemesis", "unplug", "--times", "1", "--slots", "256"]);
    command.args(["--rooms", "24", "--senders", "6", "--subscribers", "2", "--rate", "40"]);
    command.arg("--server").arg(server::binary().unwrap()).arg("--resume").arg(work.path());
    let output = command.kill_on_drop(true).output().await.unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it ended with {}", output.status);

    let Report { runs } = Report::read(work.path()).unwrap();
    let [run] = &runs[..] else { panic!("{} runs", runs.len()) };
    let struck: Vec<Nemesis> = run.hits.iter().map(|hit| hit.nemesis).collect();
    assert_eq!((run.netns, &struck[..]), (true, &[Nemesis::Cut, Nemesis::Unplug][..]));
    for hit in &run.hits {
        let longest = hit.stall_ms.last().copied().unwrap_or_default();
        assert!(longest > 1_000.0, "nobody felt it: {}, longest send {longest:.0} ms", hit.what);
        assert!(
            hit.silent == 0 && !hit.next_ack_ms.is_empty(),
            "{}: {} rooms stayed silent",
            hit.what,
            hit.silent
        );
    }
}
