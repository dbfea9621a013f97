//! How much does it carry? The load generator and the benches of Banyan.
//!
//! Owns: `banyan-bench` and its sub-commands. Always holds: a figure comes from the server's own binary as it is shipped,
//! with the configuration that is printed beside it; every client is its own user; every event is checked, and one that is
//! lost, doubled or out of order voids the run. Does not: build anything, or ask the server to behave otherwise
//! than it does for people.

mod cli;
mod clock;
mod codec;
mod control;
mod cpus;
mod fanout;
mod floor;
mod floor_only;
mod generator;
mod guard;
mod host;
mod http;
mod idle;
mod meter;
mod pool;
mod process;
mod report;
mod sends;
mod server;
mod setup;
mod slow;
mod stats;

pub use cli::Cli;

use cli::Command;
use host::Host;

/// Does what the command line says.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let host = Host::look();
    let (report, common) = match cli.command {
        Command::Generator => return generator::run(),
        Command::FloorSender => return floor::run(),
        Command::Guard { pid } => return guard::run(pid),
        Command::Idle(options) => (idle::run(&options)?, options.common),
        Command::Fanout(options) => (fanout::run(&options)?, options.common),
        Command::Sends(options) => (sends::run(&options)?, options.common),
        Command::Slow(options) => (slow::run(&options)?, options.common),
        Command::Floor(options) => (floor_only::run(&options)?, options.common),
    };
    Ok(report.print(&host, common.json)?)
}
