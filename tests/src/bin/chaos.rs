//! Chaos as a command: `cargo xtask chaos` runs it; CI runs a short subset through `tests/chaos.rs`.
//!
//! Owns: the command line, the directory of the report, the exit code: 0 all is well, 1 a promise is broken, 2 it could not
//! be done or proves nothing.
//! Does not: test anything that `banyan_tests::chaos` does not.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a command for people")]

use anyhow::{Context, ensure};
use banyan_tests::chaos::cost;
use banyan_tests::chaos::meter::percentile;
use banyan_tests::chaos::nemesis::{Lengths, Nemesis};
use banyan_tests::chaos::report::{Report, STRIKES};
use banyan_tests::chaos::{Options, Say, run};
use banyan_tests::cluster::network::{self, Network};
use banyan_tests::server;
use clap::{Parser, ValueEnum};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Starts a cluster of real processes, breaks one thing after the other under load, and checks that clients were kept every
/// promise.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  chaos --minutes 20                          everything that these servers allow, in rounds\n  \
chaos --minutes 20 --cql 3 --etcd 3         the same with three servers each\n  \
chaos --nemesis kill --nemesis freeze       each once\n  \
chaos --nemesis kill --times 30             so often, with no longer a pause than it takes to heal\n  \
chaos --netns --nemesis cut --nemesis unplug   links cut by the kernel (as root)\n  \
chaos --bench-cost --cql 3                  what the barrier costs\n  \
chaos --minutes 20 --resume target/chaos    adds another run to a report"
)]
struct Arguments {
    /// Go on for so long, in rounds; without it each nemesis strikes once
    #[arg(long)]
    minutes: Option<f64>,
    /// What to do to the cluster (may be repeated) [default: everything that the servers allow]
    #[arg(long, value_name = "NAME")]
    nemesis: Vec<Nemesis>,
    /// Each strikes so often, with no longer a pause than the cluster needs; rounds of --bench-cost [default: 1; 5]
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    times: Option<usize>,
    /// Adds this run to the report of a directory
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// No run: only writes the page of --resume anew, and prints its tables
    #[arg(long, requires = "resume")]
    redraw: bool,
    /// Repeats the choices of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// The server [default: the `banyan` beside this program]
    #[arg(long)]
    server: Option<PathBuf>,
    /// Nodes at the beginning, each a gateway and a shard (but see --apart)
    #[arg(short = 'n', long, default_value_t = 3)]
    nodes: usize,
    /// Servers of etcd: 1 or 3
    #[arg(long, default_value_t = 1)]
    etcd: usize,
    /// Servers of the store: 1 or 3, each about 1 GiB
    #[arg(long, default_value_t = 1)]
    cql: u8,
    /// Each node in a network namespace, so that the kernel cuts links: packets are lost and nobody is told. As root, with `ip`
    /// and `unshare`; the machine's own network is left alone
    #[arg(long, conflicts_with_all = ["bench_cost", "redraw"])]
    netns: bool,
    /// What the program had before --netns started it anew
    #[arg(long, value_name = "VIEWS", hide = true, requires = "netns")]
    left: Option<String>,
    /// Slots that rooms hash to
    #[arg(long, default_value_t = 4096)]
    slots: u32,
    #[arg(long, default_value_t = 48)]
    rooms: usize,
    /// Sending connections [default: 12]
    #[arg(long)]
    senders: Option<usize>,
    /// Subscribed connections, each to all rooms
    #[arg(long, default_value_t = 4)]
    subscribers: usize,
    /// Sends a second of all senders together [default: 100; 50 with --bench-join]
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds that a frozen process stays so
    #[arg(long, default_value_t = 20)]
    freeze: u64,
    /// Nodes that join, and leave again
    #[arg(long, default_value_t = 3)]
    joiners: usize,
    /// Gateways and shards in processes of their own, --nodes of each; clients come in through HAProxy
    #[arg(long, conflicts_with = "netns")]
    apart: bool,
    /// Shows what a join costs: three shards and three gateways behind HAProxy, 2,000 clients in 1,000 rooms;
    /// two shards join. The numbers of nodes, rooms, clients and joiners above do not count then
    #[arg(long, conflicts_with_all = ["minutes", "nemesis"])]
    bench_join: bool,
    /// Shows what the barrier costs: the same sends with it, without it, and with a lightweight transaction for each append,
    /// in turns on the same servers of the store (--cql): as fast as --senders go (8 unless told), and at 100 sends/s (--rate)
    #[arg(long, conflicts_with_all = ["minutes", "nemesis", "bench_join", "resume", "server"])]
    bench_cost: bool,
    /// With --bench-cost: the figures as JSON
    #[arg(long, requires = "bench_cost")]
    json: bool,
    /// Keep data and logs also when all is well
    #[arg(long)]
    keep: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match chaos(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

async fn chaos(arguments: Arguments) -> anyhow::Result<bool> {
    let rate = arguments.rate.unwrap_or(100.0);
    ensure!(rate > 0.0 && rate <= 200.0, "--rate is above 0 and at most 200");
    let seed = arguments.seed.unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9);
    if arguments.bench_cost {
        return bench_cost(&arguments, seed).await;
    }
    if let (true, Some(directory)) = (arguments.redraw, &arguments.resume) {
        let report = Report::read(directory)?;
        report.write(directory)?;
        print(&report);
        return Ok(!report.is_broken());
    }
    let network = match (arguments.netns, &arguments.left) {
        (true, None) => match network::enter("--left")? {},
        (true, Some(left)) => Some(Network::make(left).await?),
        (false, _) => None,
    };
    let everything = arguments.nemesis.is_empty() && !arguments.bench_join;
    let possible =
        |nemesis: &Nemesis| nemesis.wants(arguments.etcd, arguments.cql, arguments.netns).is_none();
    let nemeses = if everything {
        Nemesis::value_variants().iter().copied().filter(possible).collect()
    } else {
        arguments.nemesis.clone()
    };
    let work =
        tempfile::Builder::new().prefix("banyan-chaos-").tempdir().context("no temporary directory")?;
    let lengths = Lengths {
        freeze: Duration::from_secs(arguments.freeze),
        joiners: arguments.joiners,
        ..Lengths::default()
    };
    let mut options = Options {
        server: arguments.server.clone().map_or_else(server::binary, Ok)?,
        work_dir: work.path().to_owned(),
        seed,
        nodes: arguments.nodes,
        apart: arguments.apart,
        etcd: arguments.etcd,
        cql: arguments.cql,
        network,
        slots: arguments.slots,
        rooms: arguments.rooms,
        senders: arguments.senders.unwrap_or(12),
        subscribers: arguments.subscribers,
        one_room_each: false,
        sends_per_s: rate,
        nemeses,
        minutes: arguments.minutes,
        times: arguments.times.unwrap_or(1),
        lengths,
        // Where one thing is done many times, only as long as sends must be seen undisturbed.
        quiet: Duration::from_secs(if arguments.times.is_some() { 2 } else { 4 }),
    };
    if arguments.bench_join {
        (options.apart, options.one_room_each) = (true, true);
        (options.rooms, options.senders, options.subscribers) = (1_000, 1_000, 1_000);
        // Beside three CQL servers two cores are at their end with 200/s: then waiting for a processor is what is measured.
        (options.sends_per_s, options.quiet) = (arguments.rate.unwrap_or(50.0), Duration::from_secs(20));
        (options.nodes, options.lengths.joiners, options.nemeses) = (3, 2, vec![Nemesis::Join]);
    }
    let directory = match &arguments.resume {
        Some(directory) => directory.clone(),
        None => directory_of_its_own()?,
    };
    let mut report = Report::read(&directory)?;
    println!("seed {seed}; repeat the choices with --seed {seed}");
    println!("logs in {}", work.path().display());
    let say = |line: &str| {
        println!("{line}");
        // Whoever watches through a pipe wants it now.
        std::io::stdout().flush().ok();
    };
    let outcome = tokio::select! {
        outcome = run(&options, Arc::new(say)) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted: the run is not added to the report")),
    };
    let keep = arguments.keep || outcome.as_ref().map_or(true, |run| run.is_broken());
    if keep {
        println!("data and logs are kept in {}", work.keep().display());
    }
    let done = outcome?;
    let broken = done.is_broken();
    for wrong in done.wrong.iter().chain(&done.violations) {
        println!("{wrong}");
    }
    report.runs.push(done);
    report.write(&directory)?;
    print(&report);
    println!("report: {}", directory.join("report.html").display());
    if broken {
        return Ok(false);
    }
    let missing = report.missing(everything);
    ensure!(missing.is_empty(), "the runs prove nothing: {}", missing.join("; "));
    Ok(true)
}

async fn bench_cost(arguments: &Arguments, seed: u64) -> anyhow::Result<bool> {
    let options = cost::Options {
        cql: arguments.cql,
        rounds: arguments.times.unwrap_or(5),
        length: Duration::from_secs(8),
        warm_up: Duration::from_secs(2),
        senders: arguments.senders.unwrap_or(8),
        rate: arguments.rate.unwrap_or(100.0),
        rooms: arguments.rooms,
        seed,
    };
    // The figures alone go where they may be read by a program.
    let say: Say = Arc::new(|line: &str| eprintln!("{line}"));
    let measured = tokio::select! {
        measured = cost::measure(&options, &say) => measured?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
    } else {
        print!("{}", cost::table(&measured));
    }
    Ok(true)
}

/// `chaos-N` beside this program's build.
fn directory_of_its_own() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let target = me.ancestors().nth(2).context("this program lies in no directory")?;
    let free = (1..1_000).map(|number| target.join(format!("chaos-{number}"))).find(|path| !path.exists());
    free.context("a thousand reports are enough: remove some")
}

fn print(report: &Report) {
    println!(
        "\n{:<16} {:>5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7} {:>6} {:>7} {:>5}  CHECKER",
        "NEMESIS",
        "TIMES",
        "ROOMS",
        "NEXT p50",
        "p99",
        "max",
        "SEND p99",
        "FENCED",
        "UNKNOWN",
        "REPAIR",
        "REFUSED",
        "LOST"
    );
    for (nemesis, sum) in report.by_nemesis() {
        let ms = |list: &[f64], percent| format!("{:.0} ms", percentile(list, percent));
        println!(
            "{:<16} {:>5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>6} {:>7} {:>6} {:>7} {:>5}  {}",
            nemesis.name(),
            sum.strikes,
            sum.next_ack_ms.len(),
            ms(&sum.next_ack_ms, 50.0),
            ms(&sum.next_ack_ms, 99.0),
            ms(&sum.next_ack_ms, 100.0),
            ms(&sum.stall_ms, 99.0),
            sum.counter("fenced utterances"),
            sum.counter("unknown outcomes"),
            sum.counter("gap repairs"),
            sum.refused,
            sum.lost,
            sum.verdict()
        );
    }
    for hit in report.runs.iter().flat_map(|run| &run.hits) {
        let Some(moved) = hit.moved else { continue };
        println!(
            "\n{}\n  sends to moved rooms meanwhile {}, beyond the undisturbed p99 of {:.1} ms: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms\n  \
             changes of owner {}, tries refused {}, connections lost {}",
            hit.what,
            hit.sends.n,
            hit.undisturbed_p99_ms,
            hit.sends.p50_ms,
            hit.sends.p99_ms,
            hit.sends.max_ms,
            moved.changes,
            hit.refused.values().sum::<u64>(),
            hit.lost
        );
    }
    println!();
    for (words, times) in report.coverage().rows().into_iter().filter(|(_, times)| *times > 0) {
        println!("{words:<40} {times:>12}");
    }
    let sums = report.by_nemesis();
    let seldom: Vec<String> = Nemesis::value_variants()
        .iter()
        .filter(|nemesis| sums.get(nemesis).is_none_or(|sum| sum.strikes < STRIKES))
        .map(|nemesis| nemesis.name())
        .collect();
    if !seldom.is_empty() {
        println!("\nfewer than {STRIKES} times so far: {}", seldom.join(", "));
    }
}
