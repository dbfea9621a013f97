//! `idle`: what a connection costs the server's memory while nothing happens.
//!
//! How it is divided: users, rooms and memberships are made in a first life of the server, which is then restarted, so
//! that no memory freed by the set-up hides what connections take. Then one observer opens every room; from there on, what is
//! added is what connections cost. The rooms' own memory (the shard's members) is told beside it. Not counted here:
//! the kernel's sockets (about 4 KiB each).

use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::cli::Idle;
use crate::control::{Command, Load, Modes, Pace, User};
use crate::pool::{Place, Pool};
use crate::report::{Progress, Report, Table, data};
use crate::server::Server;
use crate::setup::{self, Setup};
use crate::stats::Spread;

/// How long memory may take to stand still.
const SETTLE: Duration = Duration::from_secs(60);
/// Bars of the design (docs/architecture.md): KiB of user memory per connection.
const BAR_ROOMS_KIB: f64 = 3.0;
/// Events of the burst that are not acked yet: below what one connection may have in flight.
const BURST_IN_FLIGHT: u64 = 32;

/// The server's RssAnon in bytes, each after it stood still.
#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    /// Restarted on the data, nobody there.
    started: u64,
    /// One observer has opened every room.
    rooms_open: u64,
    /// Everybody is connected and authenticated, with no room.
    no_room: u64,
    /// Everybody has a live room and passive ones.
    idle: u64,
    /// Right after the last event of the burst was delivered.
    burst: u64,
    after_burst: u64,
    settled: bool,
    connections: u32,
    connect_seconds: f64,
}

/// Which rooms each connection has: the first is its live one.
struct Layout {
    rooms: Vec<String>,
    of: Vec<Vec<u32>>,
}

impl Layout {
    /// Live rooms are filled one after the other, passive ones crosswise, so that two connections of a live room share few
    /// of them. Every room has about `live_members` members.
    fn new(connections: u32, rooms_each: u32, live_members: u32) -> Self {
        let live = connections.div_ceil(live_members);
        let passive = (rooms_each - 1) * live;
        let of = (0..connections).map(|index| {
            let others = (0..rooms_each - 1).map(|turn| live + (index + turn * live) % passive);
            std::iter::once(index / live_members).chain(others).collect()
        });
        Self {
            rooms: (0..live + passive).map(|room| format!("bench-idle-{room}")).collect(),
            of: of.collect(),
        }
    }
}

pub(crate) fn run(options: &Idle) -> anyhow::Result<Report> {
    let mut options = options.clone();
    let quick = options.common.quick;
    if quick {
        options.connections = options.connections.min(200);
        options.live_members = options.live_members.min(100);
        options.after_burst = options.after_burst.min(8);
    }
    let setup = Setup::of(&options.common)?;
    let mut report = Report::new("idle");
    setup.describe(&mut report, quick)?;
    report.set("connections", format!("{}, each its own user, plain TCP on loopback", options.connections));
    let layout = Layout::new(options.connections, options.rooms, options.live_members);
    report.set(
        "rooms",
        format!(
            "{} of each user: one live of {} members, the others passive; {} rooms in all",
            options.rooms,
            options.live_members,
            layout.rooms.len()
        ),
    );
    let progress = Progress::new(1 + setup.runs as usize);
    let (mut server, users) = prepare(&setup, &options, &layout, &progress)?;
    progress.step();
    let mut runs = Vec::new();
    for run in 1..=setup.runs {
        server.restart()?;
        runs.push(measure(&setup, &mut server, &options, &layout, &users, &|what| {
            progress.say(format!("run {run} of {}: {what}", setup.runs));
        })?);
        progress.step();
    }
    server.stop()?;
    progress.done();
    fill(&mut report, &options, &runs)?;
    Ok(report)
}

/// The first life of the server: users, rooms, memberships.
fn prepare(
    setup: &Setup,
    options: &Idle,
    layout: &Layout,
    progress: &Progress,
) -> anyhow::Result<(Server, Vec<User>)> {
    progress.say("starting the server, making tokens");
    let server = setup.server()?;
    let users = server.tokens(options.connections as usize + 1)?;
    progress.say(format!("making {} users, {} rooms and their members", users.len(), layout.rooms.len()));
    let mut pool = setup.pool(users.len())?;
    let places = pool.connect(server.address, &users)?;
    let (&observer, members) = places.split_first().context("no connections")?;
    setup::fill_rooms(&mut pool, &layout.rooms, observer, &plan(members, layout))?;
    Ok((server, users))
}

fn plan(members: &[Place], layout: &Layout) -> Vec<(Place, Vec<u32>)> {
    members.iter().copied().zip(layout.of.iter().cloned()).collect()
}

fn measure(
    setup: &Setup,
    server: &mut Server,
    options: &Idle,
    layout: &Layout,
    users: &[User],
    say: &dyn Fn(&str),
) -> anyhow::Result<Run> {
    let mut settled = true;
    let mut at_rest = |server: &mut Server| -> anyhow::Result<u64> {
        settled &= server.settle(SETTLE)?;
        server.rss_anon()
    };
    say("the server alone");
    let started = at_rest(server)?;

    say("opening every room");
    let mut observers = Pool::start(&setup.generator_cpus, 1)?;
    let observer = observers.connect(server.address, &users[..1])?[0];
    let heads = setup::look_at_heads(&mut observers, &layout.rooms, observer)?;
    let rooms_open = at_rest(server)?;

    say("connecting everybody");
    let mut pool = setup.pool(users.len() - 1)?;
    let begun_ns = crate::clock::now_ns();
    let members = pool.connect(server.address, &users[1..])?;
    let connect_seconds = crate::clock::now_ns().saturating_sub(begun_ns) as f64 / 1e9;
    let no_room = at_rest(server)?;

    say("subscribing everybody");
    setup::subscribe(&mut pool, &layout.rooms, &plan(&members, layout), Modes::FirstLive, &heads)?;
    let idle = at_rest(server)?;

    say("the burst");
    let events = u64::from(options.burst) * layout.rooms.len() as u64;
    let load = Load {
        sender: observer.connection,
        rooms: layout.rooms.clone(),
        // In turn, so with fewer in flight than rooms each room has one.
        pace: Pace::Acked { in_flight: BURST_IN_FLIGHT.min(layout.rooms.len() as u64) },
        events,
        seconds: 600.0,
        payload: 200,
    };
    let (sent, heads, _) =
        setup::loaded(observers.generators[observer.generator].call(&Command::Load(load))?)?;
    ensure!(sent == events, "the burst took longer than 10 minutes: {sent} of {events} events");
    let heads: Vec<_> = layout.rooms.iter().cloned().zip(heads).collect();
    pool.all(|_| Command::Await { heads: heads.clone() })?;
    let burst = server.rss_anon()?;

    say("waiting after the burst");
    std::thread::sleep(Duration::from_secs(u64::from(options.after_burst)));
    let after_burst = at_rest(server)?;
    // Whatever came wrong meanwhile (a close, a gap, a duplicate) fails this.
    pool.all(|_| Command::Await { heads: heads.clone() })?;
    let connections = u32::try_from(users.len() - 1)?;
    Ok(Run { started, rooms_open, no_room, idle, burst, after_burst, settled, connections, connect_seconds })
}

/// The memory at one of a run's moments.
type Memory = fn(&Run) -> u64;

fn fill(report: &mut Report, options: &Idle, runs: &[Run]) -> anyhow::Result<()> {
    let mut table = Table::new(
        "User memory of the server (RssAnon)",
        &["", "MiB", "KiB/connection", "with the rooms' own", "bar"],
    );
    let spread = |value: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(value)).context("no runs");
    let mib = |value: fn(&Run) -> u64| spread(&|run| value(run) as f64 / f64::from(1 << 20));
    let each = |value: fn(&Run) -> u64, from: fn(&Run) -> u64| {
        spread(&|run| (value(run) as f64 - from(run) as f64) / 1024.0 / f64::from(run.connections))
    };
    table.row(["server started, nobody there".to_owned(), mib(|run| run.started)?.show(1)]);
    table.row([
        "all rooms open, nobody but one observer".to_owned(),
        mib(|run| run.rooms_open)?.show(1),
        String::new(),
        each(|run| run.rooms_open, |run| run.started)?.show(2),
    ]);
    let after = format!("{} s after a burst of {} events each", options.after_burst, options.burst);
    let ten = format!("idle, {} rooms, one live", options.rooms);
    let states: [(&str, Memory, bool); 4] = [
        ("connected, no room", |run| run.no_room, false),
        (&ten, |run| run.idle, true),
        ("right after the burst", |run| run.burst, false),
        (&after, |run| run.after_burst, true),
    ];
    let mut summary = serde_json::Map::new();
    for (name, value, has_bar) in states {
        let connection = each(value, |run| run.rooms_open)?;
        let whole = each(value, |run| run.started)?;
        let bar = match (has_bar, connection.median <= BAR_ROOMS_KIB) {
            (false, _) => String::new(),
            (true, within) => format!("≤ {BAR_ROOMS_KIB} KiB {}", if within { "✓" } else { "✗" }),
        };
        table.row([name.to_owned(), mib(value)?.show(1), connection.show(2), whole.show(2), bar]);
        summary.insert(
            name.to_owned(),
            serde_json::json!({ "kib_per_connection": connection, "with_rooms": whole }),
        );
    }
    report.tables.push(table);
    let connect = spread(&|run| f64::from(run.connections) / run.connect_seconds)?;
    report.notes.push(format!("connecting and authenticating: {} a second", connect.show(0)));
    report.notes.push(
        "KiB/connection counts from \"all rooms open\"; with the rooms' own counts from the server alone"
            .to_owned(),
    );
    if runs.iter().any(|run| !run.settled) {
        report
            .notes
            .push(format!("in some run memory or CPU did not stand still within {} s", SETTLE.as_secs()));
    }
    report.data = data(&runs, &summary);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn every_room_has_as_many_members_and_nobody_a_room_twice() {
        for (connections, rooms_each, live_members) in
            [(10_000, 10, 1_000), (200, 10, 100), (50, 2, 100), (7, 3, 2)]
        {
            let layout = Layout::new(connections, rooms_each, live_members);
            let mut members: BTreeMap<u32, u32> = BTreeMap::new();
            for rooms in &layout.of {
                assert_eq!(rooms.iter().collect::<BTreeSet<_>>().len(), rooms_each as usize);
                rooms.iter().for_each(|&room| *members.entry(room).or_default() += 1);
            }
            assert!(members.keys().all(|&room| (room as usize) < layout.rooms.len()));
            if connections % live_members == 0 {
                assert_eq!(members.values().collect::<BTreeSet<_>>().len(), 1, "{members:?}");
                assert_eq!(members.len(), layout.rooms.len());
            }
        }
    }
}
