//! `cargo xtask`: everything that working on Banyan needs, with nothing but cargo installed.
//!
//! Owns: the command line. Each command is a module of its own.
//! Does not: know what the tests test; `stages.rs` is the list of them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command for people")]

mod fresh;
mod licences;
mod run;
mod stages;
mod terminal;
mod test_binaries;
#[cfg(test)]
mod tidy;
mod tools;
mod workspace;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::process::{Command, ExitCode};
use workspace::Workspace;

/// Builds, checks and tests Banyan.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Start with:\n  cargo xtask test                  what CI runs\n  \
cargo xtask test --stage clippy   one stage of it\n  cargo xtask test --allow-missing  on a machine where tools cannot be installed"
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs the tools that tests need, pinned, into the target directory (apt only as root). Safe to repeat
    Setup(Missing),
    /// Runs setup, then every check and test, and ends with a table of times and a summary
    Test(Test),
    /// Runs both commands of the README on a fresh Debian in a chroot with an empty home (as root)
    Fresh(Fresh),
    /// Kills the server under load and checks that nothing acked is lost
    #[command(disable_help_flag = true)]
    Crash(Rest),
    /// Starts a whole cluster on this machine: etcd, a CQL store, nodes, HAProxy
    #[command(disable_help_flag = true)]
    Cluster(Rest),
    /// Breaks one thing after the other in a whole cluster under load, and checks what its clients saw
    #[command(disable_help_flag = true)]
    Chaos(Rest),
    /// Simulates the whole cluster over its cores, seed by seed, and checks what its clients saw
    #[command(disable_help_flag = true)]
    Sim(Rest),
    /// Runs the load generator, built for release
    #[command(disable_help_flag = true)]
    Bench(Rest),
    /// Checks allowed licences, banned crates and sources of all dependencies against deny.toml
    Licences,
}

#[derive(Debug, Args)]
struct Missing {
    /// Go on without tools that cannot be installed; the tests that need them are skipped and counted
    #[arg(long)]
    allow_missing: bool,
}

#[derive(Debug, Args)]
struct Test {
    #[command(flatten)]
    missing: Missing,
    /// Run only this stage (may be repeated); `--stage list` names them all
    #[arg(long, value_name = "NAME")]
    stage: Vec<String>,
}

#[derive(Debug, Args)]
struct Fresh {
    /// Where the chroot is made [default: a temporary directory]; must not exist
    #[arg(long, value_name = "DIR")]
    dir: Option<std::path::PathBuf>,
    /// Only try the chroot: show the toolchain's version inside it and stop
    #[arg(long)]
    probe: bool,
    /// Leave the chroot in place afterwards
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct Rest {
    /// Passed on; `--help` shows what there is
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    match start(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{}: {e:#}", terminal::red("error"));
            ExitCode::FAILURE
        }
    }
}

/// False: what was asked for was done, and found something wrong.
fn start(task: Task) -> anyhow::Result<bool> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup(missing) => {
            let tools = tools::setup(&workspace, tools::ALL)?;
            tools.print();
            Ok(missing.allow_missing || tools.missing().count() == 0)
        }
        Task::Test(test) => stages::test(&workspace, &test.stage, test.missing.allow_missing),
        Task::Fresh(fresh) => {
            fresh::run(&workspace, fresh.dir.as_deref(), fresh.probe, fresh.keep).map(|()| true)
        }
        Task::Crash(rest) => {
            // The server first: the test binary looks for it beside itself.
            pass_on(workspace.cargo().args(["build", "--package", "banyan"]))?;
            let arguments = ["run", "--quiet", "--package", "banyan-tests", "--bin", "crash", "--"];
            pass_on(workspace.cargo().args(arguments).args(rest.arguments))
        }
        Task::Cluster(rest) => {
            pass_on(workspace.cargo().args(["build", "--package", "banyan"]))?;
            let arguments = ["run", "--quiet", "--package", "banyan-tests", "--bin", "cluster", "--"];
            pass_on(workspace.cargo().args(arguments).args(rest.arguments))
        }
        Task::Chaos(rest) => {
            pass_on(workspace.cargo().args(["build", "--package", "banyan"]))?;
            let arguments = ["run", "--quiet", "--package", "banyan-tests", "--bin", "chaos", "--"];
            pass_on(workspace.cargo().args(arguments).args(rest.arguments))
        }
        Task::Sim(rest) => {
            let arguments =
                ["run", "--quiet", "--profile", "sweep", "--package", "banyan-sim", "--bin", "sim", "--"];
            pass_on(workspace.cargo().args(arguments).args(rest.arguments))
        }
        Task::Bench(rest) => {
            pass_on(workspace.cargo().args(["build", "--release", "--package", "banyan"]))?;
            let arguments = ["run", "--quiet", "--release", "--package", "banyan-bench", "--"];
            pass_on(workspace.cargo().args(arguments).args(rest.arguments))
        }
        Task::Licences => {
            let counted = licences::check(&workspace)?;
            println!("{counted} packages: licences, bans and sources are as deny.toml allows");
            Ok(true)
        }
    }
}

/// Runs a command in the foreground; whether it succeeded.
fn pass_on(command: &mut Command) -> anyhow::Result<bool> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    Ok(status.success())
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
}
