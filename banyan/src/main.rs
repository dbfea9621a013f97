//! `banyan`: the server and the commands of those who use it.

mod admin;
mod certs_cmd;
mod cli;
mod cluster;
mod config;
mod data_dir;
mod failure;
mod healthcheck;
mod heap;
mod last_words;
mod log_queue;
mod metrics;
mod node;
mod node_cmd;
mod ops;
mod output;
mod page;
mod process;
mod readiness;
mod ring_cmd;
mod schema_cmd;
mod serve;
mod shares;
mod table;
mod telemetry;
mod token_cmd;
mod version;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::failure::{Exit, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return tell(&told),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::print_error(&failure.to_string());
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(settings) => serve::run(settings.load()?.config),
        Command::Version { json } => version::run(json),
        Command::Gentoken(asked) => token_cmd::gentoken(&asked),
        Command::Checktoken(asked) => token_cmd::checktoken(&asked),
        Command::Keys(asked) => token_cmd::keys_command(&asked),
        Command::Genconfig => output::print(&config::example()),
        Command::Checkconfig { settings, json: false } => output::print(&config::text(&settings.load()?)),
        Command::Checkconfig { settings, json: true } => {
            output::print(&format!("{:#}\n", config::json(&settings.load()?)))
        }
        Command::Schema(asked) => schema_cmd::run(&asked),
        Command::Gencerts(asked) => certs_cmd::run(&asked),
        Command::Ring(asked) => ring_cmd::run(&asked),
        Command::Node(asked) => node_cmd::run(&asked),
        Command::Healthcheck(asked) => healthcheck::run(asked.address()?, asked.timeout),
    }
}

/// What clap has to say: help and version, or what is wrong with the command line.
fn tell(told: &clap::Error) -> ExitCode {
    // Nothing is left to do where even this cannot be printed.
    drop(told.print());
    if told.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS }
}
