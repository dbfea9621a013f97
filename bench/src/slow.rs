//! `slow`: a busy room with two bad readers. One stops for less than 15 s while more than 20 MB pass, then reads everything:
//! every event once, in order. One never reads and must be closed for it, while the others notice neither.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::cli::Slow;
use crate::clock::now_ns;
use crate::control::{Command, Connect, Load, Modes, Pace, Reply, User};
use crate::fanout::Seen;
use crate::pool::{Place, Pool};
use crate::report::{Progress, Report, Table, data};
use crate::server::Server;
use crate::setup::{self, Setup};
use crate::stats::Spread;

const ROOM: &str = "bench-slow";
/// The receive buffer of both bad readers, as asked; the kernel doubles it.
const RECEIVE_BUFFER: usize = 4096;
/// Longest that the one that stops may stand still: the server closes who takes nothing for 20 s.
const STOP_MAX_S: f64 = 15.0;
/// How long the one that never reads may live.
const CLOSED_WITHIN_S: f64 = 30.0;
/// How long we look for its end.
const LOOK_FOR: Duration = Duration::from_secs(45);
/// Between two looks at the server's sockets under load: the kernel walks its whole table of connections (measured: 1.4 ms
/// when it is empty), on the processor of those who read. At five looks a second that alone nearly doubled their p99.
const LOOK_EVERY_S: f64 = 1.0;
/// An address that no connection has.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)), 9);
/// How much must pass the one that stops, in bytes.
const PASSED_MIN: f64 = 20e6;
/// How much the others' p99 may rise.
const P99_BAR: f64 = 1.2;

#[derive(Debug, Clone, Serialize)]
struct Run {
    p99_without_ms: f64,
    p99_with_ms: f64,
    p99_ratio: f64,
    memory_without: u64,
    memory_with: u64,
    stopped_s: f64,
    passed_bytes: f64,
    caught_up_s: f64,
    fell_to_log: Option<f64>,
    never_closed_after_s: Option<f64>,
    /// Highest send queue of the server's socket to the one that never reads.
    never_queue_bytes: u64,
    never_events: u64,
    never_how: String,
    closed_3008: Option<f64>,
}

pub(crate) fn run(options: &Slow) -> anyhow::Result<Report> {
    let mut options = options.clone();
    let quick = options.common.quick;
    if quick {
        options.events = options.events.min(400);
    }
    let setup = Setup::of(&options.common)?;
    let mut report = Report::new("slow");
    setup.describe(&mut report, quick)?;
    report.set(
        "load",
        format!(
            "room of {} (one sends, two are slow, SO_RCVBUF {RECEIVE_BUFFER}); {} events of {} B of text at {}/s",
            options.members, options.events, options.payload, options.rate
        ),
    );
    let progress = Progress::new(1 + setup.runs as usize);
    progress.say("starting the server, filling the room");
    let mut room = Room::open(&setup, &options)?;
    progress.step();
    let mut runs = Vec::new();
    for run in 1..=setup.runs {
        runs.push(room.measure(&setup, &options, &|what| {
            progress.say(format!("run {run} of {}: {what}", setup.runs))
        })?);
        progress.step();
    }
    room.server.stop()?;
    progress.done();
    fill(&mut report, &options, &runs)?;
    Ok(report)
}

struct Room {
    server: Server,
    pool: Pool,
    sender: Place,
    /// The one that stops, and the one that never reads.
    slow: Vec<User>,
}

/// What a stretch of load did to those who read.
struct Stretch {
    p99_ms: f64,
    memory: u64,
    bytes: f64,
}

impl Room {
    fn open(setup: &Setup, options: &Slow) -> anyhow::Result<Self> {
        let server = setup.server()?;
        let mut users = server.tokens(options.members as usize)?;
        let slow = users.split_off(users.len() - 2);
        // One process for those who read, so that the sender's clock is theirs.
        let mut pool = Pool::start(&setup.generator_cpus, 1)?;
        let places = pool.connect(server.address, &users)?;
        let (&sender, _) = places.split_first().context("no connections")?;
        let rooms = [ROOM.to_owned()];
        let everybody: Vec<_> = places.iter().map(|&place| (place, vec![0])).collect();
        setup::fill_rooms(&mut pool, &rooms, sender, &everybody[1..])?;
        // The slow ones join on connections that end, before anybody has a cursor.
        let mut joining = Pool::start(&setup.generator_cpus, 1)?;
        let joiners: Vec<_> =
            joining.connect(server.address, &slow)?.into_iter().map(|place| (place, vec![0])).collect();
        joining.plan(&joiners, |plan| Command::Join { rooms: rooms.to_vec(), plan })?;
        joining.all(|_| Command::Disconnect)?;
        let heads = setup::look_at_heads(&mut pool, &rooms, sender)?;
        setup::subscribe(&mut pool, &rooms, &everybody, Modes::Live, &heads)?;
        Ok(Self { server, pool, sender, slow })
    }

    fn measure(&mut self, setup: &Setup, options: &Slow, say: &dyn Fn(&str)) -> anyhow::Result<Run> {
        say("without slow readers");
        // Looked at as often as the other stretch, for a look costs those who read some milliseconds.
        let mut watcher = Watcher::new(self.server.address, NOBODY);
        let without = self.stretch(options, |_| watcher.look_now_and_then())?;

        say("with slow readers");
        let before = self.server.metrics()?;
        let mut slow = Pool::start(&setup.generator_cpus, 1)?;
        let (stopper, never, never_address) = (0, 1, self.connect_slow(&mut slow)?);
        for connection in [stopper, never] {
            slow.generators[0].call(&Command::Pause { connection })?;
        }
        let paused_ns = now_ns();
        let mut watcher = Watcher::new(self.server.address, never_address);
        let with = self.stretch(options, |_| watcher.look_now_and_then())?;
        let stopped_s = seconds_since(paused_ns);

        say("the one that stopped reads everything");
        let rooms = [ROOM.to_owned()];
        let head = setup::head_from_a_live_place(&mut self.pool, &rooms, self.sender)?;
        let resumed_ns = now_ns();
        slow.generators[0].begin(&Command::Resume {
            connection: stopper,
            room: ROOM.to_owned(),
            through: head,
        })?;
        let events = loop {
            watcher.look()?;
            match slow.generators[0]
                .end_within(Duration::from_millis(200))
                .context("the reader that stopped")?
            {
                Some(Reply::Resumed { events }) => break events,
                Some(other) => bail!("a generator answered {other:?}"),
                None => {}
            }
        };
        let caught_up_s = seconds_since(resumed_ns);
        ensure!(
            events == u64::from(options.events),
            "the reader that stopped got {events} events instead of {}",
            options.events
        );

        say("the one that never reads");
        let look_for = if options.common.quick { Duration::from_secs(3) } else { LOOK_FOR };
        while watcher.closed_ns.is_none() && seconds_since(paused_ns) < look_for.as_secs_f64() {
            std::thread::sleep(Duration::from_millis(200));
            watcher.look()?;
            self.server.check()?;
        }
        let never_closed_after_s =
            watcher.closed_ns.map(|closed_ns| closed_ns.saturating_sub(paused_ns) as f64 / 1e9);
        let (never_events, never_how) = match never_closed_after_s {
            Some(_) => match slow.generators[0].call(&Command::ReadToEnd { connection: never })? {
                Reply::Ended { events, how } => (events, how),
                other => bail!("a generator answered {other:?}"),
            },
            None => (0, format!("still open after {} s", look_for.as_secs())),
        };
        // Workers publish what they count once a second.
        std::thread::sleep(Duration::from_millis(1500));
        let after = self.server.metrics()?;
        let grown = |words: &[&str]| {
            Some(after.sum_of_words(words)? - before.sum_of_words(words).unwrap_or_default())
        };
        Ok(Run {
            p99_without_ms: without.p99_ms,
            p99_with_ms: with.p99_ms,
            p99_ratio: with.p99_ms / without.p99_ms,
            memory_without: without.memory,
            memory_with: with.memory,
            stopped_s,
            passed_bytes: with.bytes,
            caught_up_s,
            fell_to_log: grown(&["banyan_gateway_fell_to_log_total"]),
            never_closed_after_s,
            never_queue_bytes: watcher.highest_queue,
            never_events,
            never_how,
            closed_3008: grown(&["banyan_gateway_closed_total", "reason=\"slow\""]),
        })
    }

    /// Connects both slow ones with a live cursor; the address of the one that will never read.
    fn connect_slow(&mut self, slow: &mut Pool) -> anyhow::Result<SocketAddr> {
        let rooms = [ROOM.to_owned()];
        let head = setup::head_from_a_live_place(&mut self.pool, &rooms, self.sender)?;
        let connected = slow.generators[0].call(&Command::Connect(Connect {
            server: self.server.address,
            sources: vec![Ipv4Addr::new(127, 0, 0, 3)],
            users: self.slow.clone(),
            raw: false,
            receive_buffer: Some(RECEIVE_BUFFER),
        }))?;
        let Reply::Connected { addresses, .. } = connected else {
            bail!("a generator answered {connected:?}")
        };
        let places = slow.places(self.slow.len());
        let plan: Vec<_> = places.into_iter().map(|place| (place, vec![0])).collect();
        setup::subscribe(slow, &rooms, &plan, Modes::Live, &[head])?;
        addresses.last().copied().context("no address")
    }

    /// One stretch of load, watched on everybody who reads.
    fn stretch(
        &mut self,
        options: &Slow,
        mut look: impl FnMut(&Server) -> anyhow::Result<()>,
    ) -> anyhow::Result<Stretch> {
        let generator = &mut self.pool.generators[self.sender.generator];
        generator.call(&Command::Watch {
            room: Some(ROOM.to_owned()),
            sender: Some(self.sender.connection),
            coordinator: None,
        })?;
        let load = Load {
            sender: self.sender.connection,
            rooms: vec![ROOM.to_owned()],
            pace: Pace::Rate { per_s: f64::from(options.rate) },
            events: u64::from(options.events),
            seconds: 600.0,
            payload: options.payload as usize,
        };
        generator.begin(&Command::Load(load))?;
        let mut memory = 0;
        let (sent, ..) = loop {
            memory = memory.max(self.server.rss_anon()?);
            look(&self.server)?;
            if let Some(reply) = generator.end_within(Duration::from_millis(200))? {
                break setup::loaded(reply)?;
            }
        };
        ensure!(sent == u64::from(options.events), "{sent} events were sent instead of {}", options.events);
        let Reply::Finished(finished) = generator.call(&Command::Finish { events: sent })? else {
            bail!("a generator did not finish")
        };
        let frame_bytes = finished.payload.as_ref().map_or(0, String::len);
        let seen = Seen::merge(&[finished], sent);
        let p99_ms = seen.deliveries_latency.quantile_ms(0.99).context("no deliveries")?;
        Ok(Stretch { p99_ms, memory, bytes: sent as f64 * frame_bytes as f64 })
    }
}

fn seconds_since(ns: u64) -> f64 {
    now_ns().saturating_sub(ns) as f64 / 1e9
}

/// Looks at the server's socket to one client from outside: what waits in it, and whether it is closed.
struct Watcher {
    server: SocketAddr,
    client: SocketAddr,
    highest_queue: u64,
    closed_ns: Option<u64>,
    looked_ns: Option<u64>,
}

impl Watcher {
    fn new(server: SocketAddr, client: SocketAddr) -> Self {
        Self { server, client, highest_queue: 0, closed_ns: None, looked_ns: None }
    }

    /// Looks when the last look is [`LOOK_EVERY_S`] ago, so that looking does not show in the 99th percentile.
    fn look_now_and_then(&mut self) -> anyhow::Result<()> {
        if self.looked_ns.is_some_and(|looked_ns| seconds_since(looked_ns) < LOOK_EVERY_S) {
            return Ok(());
        }
        self.looked_ns = Some(now_ns());
        self.look()
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let sockets = std::fs::read_to_string("/proc/net/tcp")?;
        match send_queue(&sockets, self.server, self.client) {
            Some(bytes) => self.highest_queue = self.highest_queue.max(bytes),
            None => _ = self.closed_ns.get_or_insert_with(now_ns),
        }
        Ok(())
    }
}

/// Bytes in the send queue of an established socket; `None` when there is no such (any longer).
fn send_queue(sockets: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let hex = |address: SocketAddr| match address {
        // The kernel prints the address as one number of this machine's byte order.
        SocketAddr::V4(v4) => Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())),
        SocketAddr::V6(_) => None,
    };
    let (local, remote) = (hex(local)?, hex(remote)?);
    sockets.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let found = words.next()? == local && words.next()? == remote && words.next()? == "01";
        let (queue, _) = words.next()?.split_once(':')?;
        u64::from_str_radix(queue, 16).ok().filter(|_| found)
    })
}

fn fill(report: &mut Report, options: &Slow, runs: &[Run]) -> anyhow::Result<()> {
    let spread = |value: &dyn Fn(&Run) -> f64| Spread::of(runs.iter().map(value)).context("no runs");
    let maybe = |value: &dyn Fn(&Run) -> Option<f64>| Spread::of(runs.iter().filter_map(value));
    let mib = f64::from(1 << 20);
    let mark = |good: bool| if good { "✓" } else { "✗" };
    let mut table = Table::new("Slow readers", &["", "median (min–max)", "bar"]);
    let mut line = |name: &str, value: String, bar: String| table.row([name.to_owned(), value, bar]);
    line("others' p99 without them, ms", spread(&|run| run.p99_without_ms)?.show(2), String::new());
    line("others' p99 with them, ms", spread(&|run| run.p99_with_ms)?.show(2), String::new());
    let ratio = spread(&|run| run.p99_ratio)?;
    line("ratio", ratio.show(2), format!("≤ {P99_BAR} {}", mark(ratio.median <= P99_BAR)));
    let (without, with) =
        (spread(&|run| run.memory_without as f64 / mib)?, spread(&|run| run.memory_with as f64 / mib)?);
    line("server memory without, at most, MiB", without.show(1), String::new());
    line("server memory with, at most, MiB", with.show(1), "flat".to_owned());
    let stopped = spread(&|run| run.stopped_s)?;
    line(
        "one stood still, s",
        stopped.show(1),
        format!("≤ {STOP_MAX_S} {}", mark(stopped.max <= STOP_MAX_S)),
    );
    let passed = spread(&|run| run.passed_bytes)?;
    let passed_mb =
        Spread { median: passed.median / 1e6, min: passed.min / 1e6, max: passed.max / 1e6, ..passed };
    line("passed it meanwhile, MB", passed_mb.show(1), format!("≥ 20 {}", mark(passed.min >= PASSED_MIN)));
    line(
        "then it read everything in, s",
        spread(&|run| run.caught_up_s)?.show(2),
        "every event once, in order ✓".to_owned(),
    );
    let fell = maybe(&|run| run.fell_to_log);
    let shown = fell.map_or_else(|| "no such metric".to_owned(), |fell| fell.show(0));
    line(
        "readers that fell to the log",
        shown,
        format!("> 0 {}", mark(fell.is_some_and(|fell| fell.min > 0.0))),
    );
    let closed = maybe(&|run| run.never_closed_after_s);
    let shown = closed.map_or_else(|| "never".to_owned(), |closed| closed.show(1));
    let in_time = closed.is_some_and(|closed| closed.runs == runs.len() && closed.max <= CLOSED_WITHIN_S);
    line(
        "the other, which never reads, was closed after, s",
        shown,
        format!("≤ {CLOSED_WITHIN_S} {}", mark(in_time)),
    );
    let codes = maybe(&|run| run.closed_3008);
    let shown = codes.map_or_else(|| "no such metric".to_owned(), |codes| codes.show(0));
    line(
        "closes with 3008 that the server counted",
        shown,
        format!("> 0 {}", mark(codes.is_some_and(|codes| codes.min > 0.0))),
    );
    let queue = spread(&|run| run.never_queue_bytes as f64 / 1024.0)?;
    line(
        "its send queue in the kernel, at most, KiB",
        queue.show(1),
        format!("≤ 32 {}", mark(queue.max <= 32.0)),
    );
    report.tables.push(table);
    if let Some(run) = runs.last() {
        report.notes.push(format!(
            "reading the closed one to its end: {} events, then: {}",
            run.never_events, run.never_how
        ));
    }
    if options.common.quick {
        report.notes.push("a quick run does not wait until the one that never reads is closed".to_owned());
    }
    report.data = data(
        &runs,
        &serde_json::json!({ "p99_ratio": ratio, "memory_without_mib": without, "memory_with_mib": with }),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_real_send_queue_and_its_end() {
        use std::io::Write;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, remote) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        while server.write(&[0; 1 << 16]).is_ok() {}
        let look = || {
            send_queue(
                &std::fs::read_to_string("/proc/net/tcp").unwrap(),
                listener.local_addr().unwrap(),
                remote,
            )
        };
        assert!(look().unwrap() > 0, "what the client did not take waits here");
        drop(server);
        assert_eq!(look(), None, "closed by the server, though the client has not noticed");
        drop(client);
    }
}
