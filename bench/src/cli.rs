//! The command line of `banyan-bench`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::cpus::Cpus;

/// How much does Banyan carry? Starts the release binary with its default configuration and measures it.
///
/// Every client is authenticated as its own user and every sequence number is checked: a loss or a duplicate voids the
/// run. The kernel's own cost of the same sends ("floor") is measured in the same run, beside the server's.
#[derive(Debug, Parser)]
#[command(
    name = "banyan-bench",
    version,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  banyan-bench fanout
  banyan-bench fanout --members 1000 --in-flight 1 --runs 9 --json
  banyan-bench idle --connections 10000
  banyan-bench fanout --quick --members 50

Exit codes:
  0   figures are on standard output
  1   void: an event was lost, came twice or out of order, or something failed; the reason is on standard error
  2   the command line is wrong"
)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Memory per idle connection: with no room, in ten rooms, after a burst
    Idle(Idle),
    /// Server CPU per delivery in one room, and the latency of the last receiver
    Fanout(Fanout),
    /// Durable sends per second over many rooms, beside bare append + fdatasync
    Sends(Sends),
    /// A busy room with a reader that stops and one that never reads
    Slow(Slow),
    /// Only the kernel's own cost of the same sends; needs no server
    Floor(FloorOnly),
    /// One load generator; started by the others
    #[command(hide = true)]
    Generator,
    /// The floor's sender; started by the others
    #[command(hide = true)]
    FloorSender,
    /// Stops a process when standard input ends; started by the others
    #[command(hide = true)]
    Guard { pid: i32 },
}

/// What all benches take.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// The server to measure [default: the banyan beside this program, else target/release/banyan]
    #[arg(long, value_name = "PATH")]
    pub(crate) server: Option<PathBuf>,
    /// Processors of the server and of the floor
    #[arg(long, value_name = "LIST", default_value = "0")]
    pub(crate) server_cpus: Cpus,
    /// Processors of the load generators [default: the others]
    #[arg(long, value_name = "LIST")]
    pub(crate) generator_cpus: Option<Cpus>,
    /// Where data directories are made, on a real disk [default: bench-data beside this program]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) dir: Option<PathBuf>,
    /// Runs; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// One short run, to see that it works; its figures mean nothing
    #[arg(long)]
    pub(crate) quick: bool,
    /// One JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Idle {
    /// Connections, each its own user
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub(crate) connections: u32,
    /// Rooms of each user: one live, the others passive
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub(crate) rooms: u32,
    /// Members of each room
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) live_members: u32,
    /// Events in each room during the burst
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) burst: u32,
    /// Seconds from the burst to the last look at memory
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(crate) after_burst: u32,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Fanout {
    /// Receivers in the room; the sender is one more
    #[arg(long, value_delimiter = ',', default_value = "1000,5000", value_parser = clap::value_parser!(u32).range(1..=90_000))]
    pub(crate) members: Vec<u32>,
    /// Bytes of text in each message
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(16..=8_192))]
    pub(crate) payload: u32,
    /// Events that not every receiver has yet; 1: the next is sent when the last receiver has the one before
    #[arg(long, value_delimiter = ',', default_value = "1,8", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) in_flight: Vec<u32>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Sends {
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rooms: u32,
    /// Connections, each with one send in flight
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=9_000))]
    pub(crate) connections: u32,
    /// Bytes of text in each message
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(16..=8_192))]
    pub(crate) payload: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Slow {
    /// Members of the room: one sends, two are slow
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(4..=5_000))]
    pub(crate) members: u32,
    /// Bytes of text in each message
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(16..=8_192))]
    pub(crate) payload: u32,
    /// Events while the reader stands still; below 10,000, behind which the server leaves a gap
    #[arg(long, default_value_t = 5_200, value_parser = clap::value_parser!(u32).range(1..=9_999))]
    pub(crate) events: u32,
    /// Events a second
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rate: u32,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct FloorOnly {
    #[arg(long, value_delimiter = ',', default_value = "1000,5000", value_parser = clap::value_parser!(u32).range(1..=90_000))]
    pub(crate) members: Vec<u32>,
    /// Bytes of text in each message
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(16..=8_192))]
    pub(crate) payload: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.5, value_parser = seconds)]
    pub(crate) seconds: f64,
    #[command(flatten)]
    pub(crate) common: Common,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=600.0).contains(seconds));
    seconds.ok_or_else(|| "must be from 0.1 to 600 seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_and_bounds() {
        let cli =
            Cli::try_parse_from(["banyan-bench", "fanout", "--members", "50,60", "--in-flight=4"]).unwrap();
        let Command::Fanout(fanout) = cli.command else { panic!("parses") };
        assert_eq!((fanout.members, fanout.in_flight, fanout.payload), (vec![50, 60], vec![4], 200));
        for bad in [
            &["fanout", "--in-flight", "64"][..],
            &["slow", "--events", "10000"],
            &["fanout", "--seconds", "NaN"],
        ] {
            assert!(Cli::try_parse_from([&["banyan-bench"], bad].concat()).is_err(), "{bad:?}");
        }
    }
}
