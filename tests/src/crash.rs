//! Kills the server under load, again and again, and checks that nothing acked is gone.
//!
//! Owns: the order of a run: start, sign up, load, kill (at a random moment, or in the instant in which a client
//! reads an ack), cut what was not synced when asked to, start again; at the end settle, read all back, check.
//! Always holds: the same seed makes the same choices (the machine's timing differs all the same).
//! Does not: know how the server stores anything.

pub mod checker;
pub mod client;
pub mod load;

use crate::power_cut::Shim;
use crate::random::Random;
use crate::server::Server;
use anyhow::{Context, ensure};
use checker::{History, Stored, Violation};
use client::Connection;
use load::{Orders, Phase, Sender, SenderReport, Subscriber, SubscriberReport, Trigger};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long settling and catching up may take at the end (I15 gives 16 s with the default TTL).
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// How a run is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `banyan` binary.
    pub server: PathBuf,
    /// An empty directory for data, logs and the shim.
    pub work_dir: PathBuf,
    pub kills: u32,
    /// Cut the files back to what was synced after each kill.
    pub shim: bool,
    /// Make every sync of the server do nothing. Needs the shim; the check must find it.
    pub plant_no_fsync: bool,
    pub seed: u64,
    pub senders: usize,
    pub subscribers: usize,
    pub rooms: usize,
}

/// What a run did and found.
#[derive(Debug, Default)]
pub struct Report {
    pub kills: u32,
    pub kills_at_ack: u32,
    pub sent: u64,
    pub acked: u64,
    pub retried: u64,
    pub duplicates: u64,
    pub pushed: u64,
    pub resumes: u64,
    /// Changes that no sync covered, and how many bytes and names of them were taken away.
    pub unsynced: u64,
    pub cut_bytes: u64,
    pub cut_names: u64,
    pub syncs: u64,
    pub violations: Vec<Violation>,
}

impl Report {
    /// Fails for a run that proves nothing, whatever it found.
    pub fn is_meaningful(&self, options: &Options) -> anyhow::Result<()> {
        ensure!(self.kills == options.kills, "only {} of {} kills were done", self.kills, options.kills);
        ensure!(self.acked > u64::from(self.kills) * 10, "only {} sends were acked: no load", self.acked);
        ensure!(self.kills < 4 || self.retried > 0, "no send was cut off by a kill: no load at the kills");
        ensure!(self.pushed > 0, "no event was pushed to a subscriber");
        ensure!(
            !options.shim || self.syncs > 0,
            "the shim saw no sync: it was not loaded, or the server never syncs"
        );
        Ok(())
    }
}

/// Does one run. `say` gets a line for each life. `Err` means that the run could not be done.
pub async fn run(options: &Options, mut say: impl FnMut(&str)) -> anyhow::Result<Report> {
    ensure!(options.shim || !options.plant_no_fsync, "planting out the fsync needs the shim: give both");
    ensure!(options.senders > 0 && options.rooms > 0, "a run needs senders and rooms");
    let mut random = Random::new(options.seed);
    let mut report = Report::default();
    let host = Host::new(options)?;
    let mut server = host.start(0, false).await?;
    let scene = Scene::set(server.addresses.clients, options, &mut random).await?;
    // A planted bug begins after the scene is set, so that it is the messages that are lost.
    if options.plant_no_fsync {
        server = host.restart(server, 0, true).await?;
    }

    let trigger = Arc::new(Trigger::default());
    let first = Orders { address: server.addresses.clients, phase: Phase::Load };
    let (orders, _) = watch::channel(first);
    let mut senders = JoinSet::new();
    let mut subscribers = JoinSet::new();
    for sender in scene.senders {
        let (watch, trigger) = (orders.subscribe(), Arc::clone(&trigger));
        senders.spawn(async move { (sender.number, sender.run(watch, &trigger).await) });
    }
    for subscriber in scene.subscribers {
        let watch = orders.subscribe();
        subscribers.spawn(async move { (subscriber.number, subscriber.run(watch).await) });
    }

    for life in 1..=options.kills {
        let acks_before = trigger.acks();
        // Not before some sends are through: a kill of an idle server shows little.
        wait_until(Duration::from_secs(20), || trigger.acks() >= acks_before + 20 || !server.is_alive())
            .await;
        ensure!(server.is_alive(), "the server ended by itself; its log ends with:\n{}", server.log_tail());
        let at_ack = random.below(2) == 0;
        if at_ack {
            trigger.arm(server.id(), 1 + random.below(200));
            wait_until(Duration::from_secs(10), || !server.is_alive()).await;
        } else {
            sleep(Duration::from_micros(random.below(400_000))).await;
        }
        let died_at_ack = !server.is_alive();
        server.kill()?;
        report.kills += 1;
        report.kills_at_ack += u32::from(died_at_ack);
        let cut = host.cut(&mut random)?;
        report.unsynced += cut.unsynced;
        report.cut_bytes += cut.bytes;
        report.cut_names += cut.names;
        report.syncs += cut.syncs;
        let acks = trigger.acks() - acks_before;
        let how = if died_at_ack { "at an ack" } else { "at a random moment" };
        let lost = if options.shim {
            format!(", cut {} B and {} names", cut.bytes, cut.names)
        } else {
            String::new()
        };
        say(&format!("kill {life} {how} after {acks} acks{lost}"));
        match host.start(life, options.plant_no_fsync).await {
            Ok(started) => server = started,
            Err(e) => {
                report.violations.push(Violation::DoesNotStart { why: format!("{e:#}") });
                orders.send_modify(|orders| orders.phase = Phase::Stop);
                return Ok(report);
            }
        }
        let address = server.addresses.clients;
        orders.send_modify(|orders| orders.address = address);
    }

    orders.send_modify(|orders| orders.phase = Phase::Settle);
    let (sender_reports, late_senders) = finish(&mut senders).await;
    let stored = read_back(server.addresses.clients, &scene.reader.token, &scene.rooms).await;
    let phase = match &stored {
        Ok(stored) => Phase::CatchUp(stored.iter().map(|s| (s.room.clone(), s.head)).collect()),
        Err(e) => {
            report.violations.push(Violation::Refused { what: format!("reading back: {e:#}") });
            Phase::Stop
        }
    };
    orders.send_modify(|orders| orders.phase = phase);
    let (subscriber_reports, late_subscribers) = finish(&mut subscribers).await;
    if late_senders + late_subscribers > 0 {
        let what = format!(
            "{late_senders} senders and {late_subscribers} subscribers did not end within {SETTLE_LIMIT:?}; the log ends with:\n{}",
            server.log_tail()
        );
        report.violations.push(Violation::Refused { what });
    }
    let history = gather(&mut report, sender_reports, subscriber_reports, stored.unwrap_or_default());
    report.violations.extend(checker::check(&history));
    server.kill()?;
    Ok(report)
}

/// Where servers of this run live.
struct Host<'a> {
    options: &'a Options,
    data: PathBuf,
    shim: Option<Shim>,
}

impl<'a> Host<'a> {
    fn new(options: &'a Options) -> anyhow::Result<Self> {
        let data = options.work_dir.join("data");
        std::fs::create_dir_all(&data)?;
        let shim = if options.shim { Some(Shim::build(&options.work_dir)?) } else { None };
        Ok(Self { options, data, shim })
    }

    async fn start(&self, life: u32, plant: bool) -> anyhow::Result<Server> {
        let log = self.options.work_dir.join(format!("server-{life}.log"));
        Server::start(&self.options.server, &self.data, &log, |command| {
            // A few users with many connections make the load; nothing else differs from the default.
            for limit in ["SENDS_PER_S", "SENDS_BURST", "CONNECTIONS_PER_USER"] {
                command.env(format!("BANYAN_LIMITS__{limit}"), "100000");
            }
            if let Some(shim) = &self.shim {
                shim.watch(command, &self.data, plant);
            }
        })
        .await
    }

    async fn restart(&self, server: Server, life: u32, plant: bool) -> anyhow::Result<Server> {
        server.kill()?;
        if let Some(shim) = &self.shim {
            shim.forget()?;
        }
        self.start(life, plant).await
    }

    fn cut(&self, random: &mut Random) -> anyhow::Result<crate::power_cut::Cut> {
        self.shim.as_ref().map_or_else(|| Ok(Default::default()), |shim| shim.cut(&self.data, random))
    }
}

/// Users, rooms, and who does what in them.
struct Scene {
    rooms: Vec<String>,
    reader: client::User,
    senders: Vec<Sender>,
    subscribers: Vec<Subscriber>,
}

impl Scene {
    async fn set(address: SocketAddr, options: &Options, random: &mut Random) -> anyhow::Result<Self> {
        // Few users with several connections each: sign-ups are rationed by default.
        let mut users = Vec::new();
        for name in ["crash-ada", "crash-ben", "crash-cleo"] {
            users.push(client::sign_up(address, name).await?);
        }
        let rooms: Vec<String> = (0..options.rooms).map(|n| format!("crash-{n}")).collect();
        let mut known = HashMap::new();
        let open = |token: String| async move {
            Connection::open(address, &token).await.map_err(|e| anyhow::anyhow!("cannot connect: {e:?}"))
        };
        let mut owner = open(users[0].token.clone()).await?;
        let others: Vec<&str> = users[1..].iter().map(|user| user.id.as_str()).collect();
        for room in &rooms {
            let body = json!({ "room": room, "kind": "group", "name": room, "members": others });
            let reply = owner.call("create_room", &body).await?;
            let head = reply["create_room"]["head"].as_u64();
            known.insert(
                room.clone(),
                head.with_context(|| format!("create_room was answered with {reply}"))?,
            );
        }
        let user = |n: usize| users[n % users.len()].clone();
        let senders = (0..options.senders)
            .map(|number| Sender {
                number,
                user: user(number),
                rooms: rooms.clone(),
                random: random.fork(),
                known: known.clone(),
            })
            .collect();
        let subscribers = (0..options.subscribers)
            .map(|number| Subscriber { number, user: user(number + 1), rooms: rooms.clone() })
            .collect();
        Ok(Self { reader: user(0), rooms, senders, subscribers })
    }
}

/// All rooms, from the first seq to the head.
async fn read_back(address: SocketAddr, token: &str, rooms: &[String]) -> anyhow::Result<Vec<Stored>> {
    let connection = Connection::open(address, token).await;
    let mut connection = connection.map_err(|e| anyhow::anyhow!("cannot connect: {e:?}"))?;
    let mut all = Vec::new();
    for room in rooms {
        let mut stored = Stored { room: room.clone(), head: 0, events: Vec::new() };
        loop {
            let after = stored.events.last().map_or(0, |event| event.seq);
            let page =
                connection.call("history", &json!({ "room": room, "after": after, "limit": 100 })).await?;
            let page =
                page.get("history").with_context(|| format!("{room}: history was answered with {page}"))?;
            stored.head = page["head"].as_u64().context("history without head")?;
            let events = page["events"].as_array().context("history without events")?;
            for event in events {
                stored.events.push(client::event(event)?);
            }
            if page["more"].as_bool() != Some(true) || events.is_empty() {
                break;
            }
        }
        all.push(stored);
    }
    Ok(all)
}

/// The reports of the tasks that end in time, by number, and how many do not.
async fn finish<T: 'static>(tasks: &mut JoinSet<(usize, T)>) -> (BTreeMap<usize, T>, usize) {
    let mut reports = BTreeMap::new();
    let all = async {
        while let Some(Ok((number, report))) = tasks.join_next().await {
            reports.insert(number, report);
        }
    };
    // Late ones are counted; they are not an error of the run itself.
    drop(tokio::time::timeout(SETTLE_LIMIT, all).await);
    let late = tasks.len();
    tasks.abort_all();
    (reports, late)
}

fn gather(
    report: &mut Report,
    senders: BTreeMap<usize, SenderReport>,
    subscribers: BTreeMap<usize, SubscriberReport>,
    stored: Vec<Stored>,
) -> History {
    let mut history = History { stored, ..History::default() };
    for (_, sender) in senders {
        report.retried += sender.retried;
        report.duplicates += sender.duplicates;
        report.violations.extend(sender.refused.into_iter().map(|what| Violation::Refused { what }));
        history.sent.extend(sender.sent);
    }
    for (_, subscriber) in subscribers {
        report.resumes += subscriber.resumes;
        report.pushed +=
            subscriber.told.iter().filter(|t| matches!(t, checker::Told::Event(_))).count() as u64;
        report.violations.extend(subscriber.refused.into_iter().map(|what| Violation::Refused { what }));
        history.told.push(subscriber.told);
    }
    report.sent = history.sent.len() as u64;
    report.acked = history.sent.iter().filter(|sent| !sent.acks.is_empty()).count() as u64;
    history
}

async fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() && Instant::now() < until {
        sleep(Duration::from_millis(2)).await;
    }
}
