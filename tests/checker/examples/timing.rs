//! How long a check takes: `cargo run --release -p banyan-checker --example timing -- 1000000`.
#![allow(clippy::print_stdout, reason = "it is a command for people")]

use banyan_checker::specimen::Specimen;
use banyan_checker::{Rules, check};
use std::hint::black_box;
use std::process::ExitCode;

fn main() -> ExitCode {
    let records = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let history = Specimen { seed: 1, records, rooms: 40, users: 50 }.make();
    #[expect(clippy::disallowed_methods, reason = "it measures")]
    let begun = std::time::Instant::now();
    let report = black_box(check(&history, &Rules::default()));
    let took = begun.elapsed();
    print!("{report}");
    let rate = history.records.len() as f64 / took.as_secs_f64();
    println!("{} records in {took:.2?}: {rate:.0} a second", history.records.len());
    if report.is_violated() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
