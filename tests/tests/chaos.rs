//! A short subset of chaos for every run of the tests; `cargo xtask chaos --minutes 20` does it all.
//!
//! Owns: one run: three nodes, one etcd, one CQL server; a kill, a freeze, an end and a new start, an owner cut off
//! from etcd, a fourth node.
//! Does not: run long.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use banyan_tests::chaos::nemesis::{Lengths, Nemesis};
use banyan_tests::chaos::report::Report;
use banyan_tests::chaos::{Options, run};
use banyan_tests::server;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn a_cluster_keeps_its_promises_while_nodes_die_freeze_end_and_join() {
    let work = tempfile::Builder::new().prefix("banyan-chaos-").tempdir().unwrap();
    let nemeses = vec![Nemesis::Kill, Nemesis::Freeze, Nemesis::Term, Nemesis::CutFromEtcd, Nemesis::Join];
    let lengths = Lengths { freeze: Duration::from_secs(6), joiners: 1, ..Lengths::default() };
    let seed = u64::from(std::process::id());
    let options =
        Options { lengths, ..Options::new(server::binary().unwrap(), work.path().to_owned(), seed, nemeses) };
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
