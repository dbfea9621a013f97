//! `banyan-bench`: see the library.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match banyan_bench::run(banyan_bench::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do if standard error is closed.
            drop(writeln!(std::io::stderr().lock(), "banyan-bench: no figure: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
