//! `fanout`: one room, everything stored. Server CPU per delivery and the latency of the last receiver, with one event
//! strictly in flight and with several, beside the floor of the same run.
//!
//! What counts as a delivery: an event on a receiver's socket. The sender's reply, the parsing, the append and its fsync
//! are not deliveries but their CPU is counted: the figure is all that the server did, divided by deliveries.

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::cli::Fanout;
use crate::control::{Command, Finished, Load, Modes, Pace, Reply};
use crate::floor::{CASES, Case, Floor, Order, Ran};
use crate::meter::{Meter, Usage, limit_note};
use crate::pool::{Place, Pool};
use crate::report::{Progress, Report, Table, data};
use crate::server::Server;
use crate::setup::{self, Setup};
use crate::stats::{Latencies, Spread};

const ROOM: &str = "bench-fanout";

/// One measurement.
#[derive(Debug, Clone, Serialize)]
struct Run {
    members: u32,
    in_flight: u32,
    events: u64,
    deliveries: u64,
    us_per_delivery: f64,
    /// The same from all that the server's processors did.
    us_per_delivery_by_processor: f64,
    deliveries_per_s: f64,
    last_receiver_p50_ms: f64,
    last_receiver_p99_ms: f64,
    delivery_p50_ms: f64,
    delivery_p99_ms: f64,
    usage: Usage,
    /// By case of [`CASES`]: µs per delivery.
    floor_us: Vec<f64>,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Summary {
    members: u32,
    in_flight: u32,
    us_per_delivery: Spread,
    floor_us: Spread,
    ratio: Spread,
    last_receiver_p50_ms: Spread,
    last_receiver_p99_ms: Spread,
    bar: String,
    within_bar: bool,
}

pub(crate) fn run(options: &Fanout) -> anyhow::Result<Report> {
    let setup = Setup::of(&options.common)?;
    let mut report = Report::new("fanout");
    setup.describe(&mut report, options.common.quick)?;
    report.set("messages", format!("JSON, {} B of text, stored before they are delivered", options.payload));
    let seconds = if options.common.quick { 0.3 } else { options.seconds };
    let steps = options.members.len() * (1 + setup.runs as usize * options.in_flight.len());
    let progress = Progress::new(steps);
    let mut runs = Vec::new();
    for &members in &options.members {
        let mut room = FullRoom::open(&setup, members, &progress)?;
        progress.step();
        for run in 1..=setup.runs {
            for &in_flight in &options.in_flight {
                progress
                    .say(format!("{members} members, {in_flight} in flight, run {run} of {}", setup.runs));
                runs.push(room.measure(&setup, in_flight, options.payload as usize, seconds)?);
                progress.step();
            }
        }
        room.server.stop()?;
    }
    progress.done();
    fill(&mut report, options, &runs)?;
    Ok(report)
}

/// A server with one room, its members, and the floor with as many sockets.
struct FullRoom {
    server: Server,
    pool: Pool,
    floor: Floor,
    sender: Place,
    coordinator: Option<std::net::SocketAddr>,
    members: u32,
}

impl FullRoom {
    fn open(setup: &Setup, members: u32, progress: &Progress) -> anyhow::Result<Self> {
        progress.say(format!("{members} members: starting the server"));
        let server = setup.server()?;
        let users = server.tokens(members as usize + 1)?;
        progress.say(format!("{members} members: connecting and joining"));
        let mut pool = setup.pool(users.len())?;
        let places = pool.connect(server.address, &users)?;
        let rooms = [ROOM.to_owned()];
        let everybody: Vec<_> = places.iter().map(|&place| (place, vec![0])).collect();
        let (&sender, others) = places.split_first().context("no connections")?;
        setup::fill_rooms(&mut pool, &rooms, sender, &everybody[everybody.len() - others.len()..])?;
        let heads = setup::look_at_heads(&mut pool, &rooms, sender)?;
        setup::subscribe(&mut pool, &rooms, &everybody, Modes::Live, &heads)?;
        let coordinator = match pool.generators.len() {
            1 => None,
            count => {
                match pool.generators[sender.generator].call(&Command::Coordinate { peers: count - 1 })? {
                    Reply::Coordinating { address } => Some(address),
                    other => bail!("a generator answered {other:?}"),
                }
            }
        };
        progress.say(format!("{members} members: connecting the floor"));
        let floor = Floor::start(&setup.server_cpus, &mut pool, members as usize)?;
        Ok(Self { server, pool, floor, sender, coordinator, members })
    }

    fn measure(
        &mut self,
        setup: &Setup,
        in_flight: u32,
        payload: usize,
        seconds: f64,
    ) -> anyhow::Result<Run> {
        // The first events pay for what is made once: rings, branch predictors, the kernel's buffers.
        self.load(in_flight, payload, seconds / 6.0)?;
        self.server.check()?;
        self.watch()?;
        let meter = Meter::start(&self.server, &self.pool, &setup.server_cpus)?;
        let events = self.send(in_flight, payload, seconds)?;
        let usage = meter.stop(&self.server, &self.pool, &setup.server_cpus, &setup.generator_cpus)?;
        let seen = self.finish(events)?;

        let frame = seen.payload.context("no event was seen")?;
        let mut floor_us = Vec::new();
        for case in CASES {
            let ran = self.floor.run(&mut self.pool, case, &frame, seconds / 3.0)?;
            floor_us.push(us_per_delivery(ran, self.members));
        }
        let us_per_delivery = usage.server_cpu_ns as f64 / 1e3 / seen.deliveries as f64;
        Ok(Run {
            members: self.members,
            in_flight,
            events,
            deliveries: seen.deliveries,
            us_per_delivery,
            us_per_delivery_by_processor: usage.server_processors_busy_ns as f64
                / 1e3
                / seen.deliveries as f64,
            deliveries_per_s: seen.deliveries as f64 / usage.seconds,
            last_receiver_p50_ms: seen.last_receiver.quantile_ms(0.5).unwrap_or_default(),
            last_receiver_p99_ms: seen.last_receiver.quantile_ms(0.99).unwrap_or_default(),
            delivery_p50_ms: seen.deliveries_latency.quantile_ms(0.5).unwrap_or_default(),
            delivery_p99_ms: seen.deliveries_latency.quantile_ms(0.99).unwrap_or_default(),
            usage,
            ratio: us_per_delivery / floor_us[floor_case(in_flight)],
            floor_us,
        })
    }

    fn load(&mut self, in_flight: u32, payload: usize, seconds: f64) -> anyhow::Result<()> {
        self.watch()?;
        let events = self.send(in_flight, payload, seconds)?;
        self.finish(events)?;
        Ok(())
    }

    fn watch(&mut self) -> anyhow::Result<()> {
        let (sender, coordinator) = (self.sender, self.coordinator);
        self.pool.all(|index| {
            let sends = index == sender.generator;
            Command::Watch {
                room: Some(ROOM.to_owned()),
                sender: sends.then_some(sender.connection),
                coordinator: coordinator.filter(|_| !sends),
            }
        })?;
        Ok(())
    }

    fn send(&mut self, in_flight: u32, payload: usize, seconds: f64) -> anyhow::Result<u64> {
        let load = Load {
            sender: self.sender.connection,
            rooms: vec![ROOM.to_owned()],
            pace: Pace::LastReceiver { in_flight: u64::from(in_flight) },
            events: u64::MAX,
            seconds,
            payload,
        };
        Ok(setup::loaded(self.pool.generators[self.sender.generator].call(&Command::Load(load))?)?.0)
    }

    fn finish(&mut self, events: u64) -> anyhow::Result<Seen> {
        let replies = self.pool.all(|_| Command::Finish { events })?;
        let finished = replies.into_iter().map(|reply| match reply {
            Reply::Finished(finished) => Ok(finished),
            other => bail!("a generator answered {other:?}"),
        });
        let finished: Vec<_> = finished.collect::<anyhow::Result<_>>()?;
        let deliveries: u64 = finished.iter().map(|part| part.deliveries).sum();
        ensure!(
            deliveries == events * u64::from(self.members),
            "{deliveries} deliveries of {events} events to {} members",
            self.members
        );
        let seen = Seen::merge(&finished, events);
        ensure!(
            seen.last_receiver.count() == events,
            "{} of {events} events have a time",
            seen.last_receiver.count()
        );
        Ok(seen)
    }
}

/// What all generators saw of a run.
pub(crate) struct Seen {
    pub(crate) deliveries: u64,
    pub(crate) last_receiver: Latencies,
    pub(crate) deliveries_latency: Latencies,
    pub(crate) payload: Option<String>,
}

impl Seen {
    pub(crate) fn merge(parts: &[Finished], events: u64) -> Self {
        let (mut last_receiver, mut deliveries_latency) = (Latencies::new(), Latencies::new());
        for event in 0..usize::try_from(events).unwrap_or_default() {
            let sent_ns = parts.iter().find_map(|part| part.sent_ns.get(event)).copied();
            let completed_ns = parts.iter().filter_map(|part| part.completed_ns.get(event)).max().copied();
            if let (Some(sent_ns), Some(completed_ns)) = (sent_ns, completed_ns) {
                last_receiver.record_ns(completed_ns.saturating_sub(sent_ns));
            }
        }
        for part in parts {
            deliveries_latency.add(&part.latencies);
        }
        Self {
            deliveries: parts.iter().map(|part| part.deliveries).sum(),
            last_receiver,
            deliveries_latency,
            payload: parts.iter().find_map(|part| part.payload.clone()),
        }
    }
}

fn us_per_delivery(ran: Ran, members: u32) -> f64 {
    ran.cpu_ns as f64 / 1e3 / (ran.events as f64 * f64::from(members))
}

/// Which of [`CASES`] is the floor of so many in flight: with one nothing can be put together, with more up to eight
/// could.
fn floor_case(in_flight: u32) -> usize {
    let frames_per_send = if in_flight == 1 { 1 } else { 8 };
    CASES.iter().position(|case| *case == Case { order: Order::Memory, frames_per_send }).unwrap_or_default()
}

fn fill(report: &mut Report, options: &Fanout, runs: &[Run]) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Server CPU per delivery, and when the last receiver had the event",
        &[
            "members",
            "in flight",
            "µs/delivery",
            "floor µs",
            "× floor",
            "bar",
            "last p50 ms",
            "last p99 ms",
            "deliveries/s",
            "generator CPU",
        ],
    );
    let mut floors = Table::new(
        "The floor in all its forms (µs per delivery): the kernel alone",
        &["members", "1 frame a send", "strided", "8 frames a send", "strided"],
    );
    let mut summaries = Vec::new();
    for &members in &options.members {
        for &in_flight in &options.in_flight {
            let of: Vec<&Run> =
                runs.iter().filter(|run| run.members == members && run.in_flight == in_flight).collect();
            let spread =
                |value: fn(&Run) -> f64| Spread::of(of.iter().map(|run| value(run))).context("no runs");
            let floor_us =
                Spread::of(of.iter().map(|run| run.floor_us[floor_case(in_flight)])).context("no runs")?;
            let (us_per_delivery, ratio) = (spread(|run| run.us_per_delivery)?, spread(|run| run.ratio)?);
            let (bar, within_bar) = match in_flight {
                1 => ("≤ 1.6 × floor".to_owned(), ratio.median <= 1.6),
                _ => ("≤ 1.0 µs".to_owned(), us_per_delivery.median <= 1.0),
            };
            let (p50, p99) =
                (spread(|run| run.last_receiver_p50_ms)?, spread(|run| run.last_receiver_p99_ms)?);
            table.row([
                members.to_string(),
                in_flight.to_string(),
                us_per_delivery.show(2),
                floor_us.show(2),
                ratio.show(2),
                format!("{bar} {}", if within_bar { "✓" } else { "✗" }),
                p50.show(1),
                p99.show(1),
                spread(|run| run.deliveries_per_s)?.show(0),
                format!("{:.0} %", spread(|run| run.usage.generator_share * 100.0)?.median),
            ]);
            let what = format!("{members} members, {in_flight} in flight");
            report.notes.extend(limit_note(&what, of.iter().map(|run| &run.usage)));
            summaries.push(Summary {
                members,
                in_flight,
                us_per_delivery,
                floor_us,
                ratio,
                last_receiver_p50_ms: p50,
                last_receiver_p99_ms: p99,
                bar,
                within_bar,
            });
        }
        let of_members = runs.iter().filter(|run| run.members == members);
        let floor = |case: usize| {
            Spread::of(of_members.clone().map(|run| run.floor_us[case]))
                .map_or_else(String::new, |us| us.show(2))
        };
        floors.row(std::iter::once(members.to_string()).chain((0..CASES.len()).map(floor)));
    }
    report.tables.extend([table, floors]);
    report.notes.push(
        "every event was checked on every connection: the next seq, the same content; none was lost, doubled or out of order".to_owned(),
    );
    report.notes.push(
        "floor: a process on the server's processors that sends the same bytes to as many sockets of the same receivers; \
         one in flight is held against one frame a send, more against 8 frames a send; strided: every (n/5)th socket"
            .to_owned(),
    );
    report.data = data(&runs, &summaries);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_receiver_is_the_last_of_all_generators() {
        let part = |completed: &[u64]| Finished {
            deliveries: 2,
            sent_ns: vec![0, 1_000_000],
            completed_ns: completed.to_vec(),
            ..Finished::default()
        };
        let seen = Seen::merge(&[part(&[2_000_000, 3_000_000]), part(&[9_000_000, 2_000_000])], 2);
        assert_eq!((seen.deliveries, seen.last_receiver.count()), (4, 2));
        assert!((seen.last_receiver.quantile_ms(1.0).unwrap() - 9.0).abs() < 0.02);
        assert!((seen.last_receiver.quantile_ms(0.0).unwrap() - 2.0).abs() < 0.02);
    }

    #[test]
    fn one_in_flight_has_the_floor_of_single_sends() {
        assert_eq!(CASES[floor_case(1)].frames_per_send, 1);
        assert_eq!(CASES[floor_case(8)].frames_per_send, 8);
    }
}
