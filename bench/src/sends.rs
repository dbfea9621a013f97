//! `sends`: the store end to end. Many connections, each with one send in flight over its own rooms; every ack means
//! fsync. Beside it, in the same run and folder: bare append + fdatasync of as many rows at once as the server's commits had.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use banyan_proto::v1;
use prost::Message as _;
use serde::Serialize;

use crate::cli;
use crate::clock::now_ns;
use crate::control::{Command, Modes, Reply};
use crate::cpus::Cpus;
use crate::meter::{Meter, Usage, limit_note};
use crate::pool::{Place, Pool};
use crate::report::{Progress, Report, Table, data};
use crate::server::Server;
use crate::setup::Setup;
use crate::stats::{Latencies, Spread};

/// The bar of the design (docs/architecture.md).
const BAR_PER_S: f64 = 50_000.0;
/// What a store adds to a row: key, checksum, origin. About; the disk's cost is the sync, not these bytes.
const ROW_OVERHEAD: usize = 64;

#[derive(Debug, Clone, Serialize)]
struct Run {
    acked: u64,
    acked_per_s: f64,
    ack_p50_ms: f64,
    ack_p99_ms: f64,
    us_per_send: f64,
    rows_per_commit: f64,
    commits_per_s: f64,
    bare_rows_per_s: f64,
    bare_p50_ms: f64,
    bare_p99_ms: f64,
    ratio: f64,
    usage: Usage,
}

pub(crate) fn run(options: &cli::Sends) -> anyhow::Result<Report> {
    let setup = Setup::of(&options.common)?;
    let (mut connections, mut rooms) = (options.connections, options.rooms);
    if options.common.quick {
        (connections, rooms) = (connections.min(20), rooms.min(40));
    }
    ensure!(
        rooms >= connections,
        "--rooms must be at least --connections: each connection sends to rooms of its own"
    );
    let seconds = if options.common.quick { 0.5 } else { options.seconds };
    let mut report = Report::new("sends");
    setup.describe(&mut report, options.common.quick)?;
    report.set(
        "load",
        format!(
            "{connections} connections, one send in flight each, over {rooms} rooms; {} B of text",
            options.payload
        ),
    );
    let progress = Progress::new(1 + setup.runs as usize);
    progress.say("starting the server, making users and rooms");
    let mut server = setup.server()?;
    let users = server.tokens(connections as usize)?;
    let mut pool = setup.pool(users.len())?;
    let places = pool.connect(server.address, &users)?;
    open_rooms(&mut pool, &places, rooms)?;
    let payload = options.payload as usize;
    measure(&setup, &server, &mut pool, &places, payload, seconds / 5.0)?;
    progress.step();
    let mut runs = Vec::new();
    for run in 1..=setup.runs {
        progress.say(format!("run {run} of {}", setup.runs));
        server.check()?;
        runs.push(measure(&setup, &server, &mut pool, &places, payload, seconds)?);
        progress.step();
    }
    server.stop()?;
    progress.done();
    fill(&mut report, &runs)?;
    Ok(report)
}

/// Every connection makes its share of the rooms and is live in them, as a person's client is.
fn open_rooms(pool: &mut Pool, places: &[Place], rooms: u32) -> anyhow::Result<()> {
    let names: Vec<String> = (0..rooms).map(|room| format!("bench-sends-{room}")).collect();
    let count = u32::try_from(places.len())?;
    let plan: Vec<(Place, Vec<u32>)> = (0..count)
        .zip(places)
        .map(|(index, &place)| (place, (index..rooms).step_by(count as usize).collect()))
        .collect();
    pool.plan(&plan, |plan| Command::Create { rooms: names.clone(), plan })?;
    pool.plan(&plan, |plan| Command::Subscribe {
        rooms: names.clone(),
        plan,
        modes: Modes::Live,
        after: Some(vec![1; names.len()]),
    })?;
    Ok(())
}

fn measure(
    setup: &Setup,
    server: &Server,
    pool: &mut Pool,
    places: &[Place],
    payload: usize,
    seconds: f64,
) -> anyhow::Result<Run> {
    let before = server.metrics()?;
    let meter = Meter::start(server, pool, &setup.server_cpus)?;
    let replies = pool.all(|index| {
        let of_generator = places.iter().filter(|place| place.generator == index);
        Command::Sends(crate::control::Sends {
            seconds,
            payload,
            connections: of_generator.map(|place| place.connection).collect(),
        })
    })?;
    let usage = meter.stop(server, pool, &setup.server_cpus, &setup.generator_cpus)?;
    let after = server.metrics()?;
    let (mut acked, mut longest_s, mut latencies) = (0, 0.0_f64, Latencies::new());
    for reply in replies {
        let Reply::Sent { acked: part, seconds, latencies: of_part } = reply else {
            bail!("a generator answered {reply:?}")
        };
        acked += part;
        longest_s = longest_s.max(seconds);
        latencies.add(&of_part);
    }
    ensure!(acked > 0, "no send was acked");
    let grown = |name: &str| {
        let (Some(before), Some(after)) = (before.sum(name).or(Some(0.0)), after.sum(name)) else {
            bail!("the server has no metric {name}")
        };
        Ok(after - before)
    };
    let (rows, commits) =
        (grown("banyan_storage_batch_rows_sum")?, grown("banyan_storage_batch_rows_count")?);
    ensure!(commits > 0.0, "the server's metrics know of no commit");
    let rows_per_commit = rows / commits;
    let bare = Bare::measure(
        server.folder(),
        &setup.server_cpus,
        rows_per_commit,
        row_bytes(payload),
        seconds / 2.0,
    )?;
    let acked_per_s = acked as f64 / longest_s;
    Ok(Run {
        acked,
        acked_per_s,
        ack_p50_ms: latencies.quantile_ms(0.5).context("no latencies")?,
        ack_p99_ms: latencies.quantile_ms(0.99).context("no latencies")?,
        us_per_send: usage.server_cpu_ns as f64 / 1e3 / acked as f64,
        rows_per_commit,
        commits_per_s: commits / longest_s,
        bare_rows_per_s: bare.rows_per_s,
        bare_p50_ms: bare.latencies.quantile_ms(0.5).context("no appends")?,
        bare_p99_ms: bare.latencies.quantile_ms(0.99).context("no appends")?,
        ratio: acked_per_s / bare.rows_per_s,
        usage,
    })
}

/// Bytes that one message takes in a store.
fn row_bytes(payload: usize) -> usize {
    let event = v1::Event {
        room: "bench-sends-999".to_owned(),
        seq: 100_000,
        at: 1_795_262_760_123,
        n: 100_000,
        sender: "bench-100".to_owned(),
        sender_name: "bench-100".to_owned(),
        client_msg_id: Some("100000-100000000000".to_owned()),
        kind: Some(v1::event::Kind::Message(v1::Message {
            text: "x".repeat(payload),
            content_type: "text/plain".to_owned(),
            ..v1::Message::default()
        })),
    };
    event.encoded_len() + ROW_OVERHEAD
}

struct Bare {
    rows_per_s: f64,
    latencies: Latencies,
}

impl Bare {
    /// Appends to one file and syncs, batch after batch, on the server's processors.
    fn measure(
        folder: &Path,
        cpus: &Cpus,
        rows: f64,
        row_bytes: usize,
        seconds: f64,
    ) -> anyhow::Result<Self> {
        let path = folder.join("bare-append");
        // At least one row, whatever a rounded mean says.
        let rows = rows.round().max(1.0);
        let batch = vec![0x5a; rows as usize * row_bytes];
        let bare = cpus.on_them(|| {
            let mut file = File::create(&path)?;
            let (started_ns, mut batches, mut latencies) = (now_ns(), 0_u64, Latencies::new());
            let ends_ns = started_ns + (seconds * 1e9) as u64;
            let mut now = started_ns;
            while now < ends_ns {
                file.write_all(&batch)?;
                file.sync_data()?;
                let then = now_ns();
                latencies.record_ns(then.saturating_sub(now));
                (now, batches) = (then, batches + 1);
            }
            let elapsed_s = now.saturating_sub(started_ns) as f64 / 1e9;
            Ok(Self { rows_per_s: batches as f64 * rows / elapsed_s, latencies })
        });
        let bare = bare.context("bare append + fdatasync")?;
        std::fs::remove_file(&path)?;
        Ok(bare)
    }
}

/// One figure of a run.
type Value = fn(&Run) -> f64;

fn fill(report: &mut Report, runs: &[Run]) -> anyhow::Result<()> {
    let spread = |value: fn(&Run) -> f64| Spread::of(runs.iter().map(value)).context("no runs");
    let mut table = Table::new("Durable sends, and the disk's own", &["", "median (min–max)", "bar"]);
    let per_s = spread(|run| run.acked_per_s)?;
    let bar = format!("≥ 50 k/s (goal of the design) {}", if per_s.median >= BAR_PER_S { "✓" } else { "✗" });
    table.row(["acked sends/s".to_owned(), per_s.show(0), bar]);
    let rows: [(&str, Value, usize); 9] = [
        ("ack p50, ms", |run| run.ack_p50_ms, 2),
        ("ack p99, ms", |run| run.ack_p99_ms, 2),
        ("server CPU, µs/send", |run| run.us_per_send, 2),
        ("rows per commit", |run| run.rows_per_commit, 1),
        ("commits/s", |run| run.commits_per_s, 0),
        ("bare append + fdatasync, rows/s", |run| run.bare_rows_per_s, 0),
        ("bare append + fdatasync p50, ms", |run| run.bare_p50_ms, 2),
        ("bare append + fdatasync p99, ms", |run| run.bare_p99_ms, 2),
        ("server CPU, % of its processors", |run| run.usage.server_share * 100.0, 0),
    ];
    for (name, value, decimals) in rows {
        table.row([name.to_owned(), spread(value)?.show(decimals)]);
    }
    let ratio = spread(|run| run.ratio)?;
    table.row(["acked sends/s ÷ bare rows/s".to_owned(), ratio.show(2)]);
    table.row(["generator CPU, %".to_owned(), spread(|run| run.usage.generator_share * 100.0)?.show(0)]);
    report.tables.push(table);
    report.notes.extend(limit_note("sends", runs.iter().map(|run| &run.usage)));
    report.notes.push("rows per commit are the server's own metric (banyan_storage_batch_rows); bare appends have as many, one file, one thread".to_owned());
    report.data = data(&runs, &serde_json::json!({ "acked_per_s": per_s, "ratio": ratio }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_appends_are_counted_and_cleaned_up() {
        let folder = tempfile::tempdir().unwrap();
        let bare = Bare::measure(folder.path(), &Cpus::allowed().unwrap(), 7.6, 300, 0.05).unwrap();
        assert!(bare.rows_per_s > 0.0 && bare.latencies.count() > 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_row_is_its_text_and_a_little() {
        let bytes = row_bytes(200);
        assert!((300..500).contains(&bytes), "{bytes}");
    }
}
