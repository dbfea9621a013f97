//! Kills the server under load, again and again, and checks that nothing acked is gone.
//!
//! Owns: the order of a run: start, sign up, load, kill (at a random moment, or in the instant in which a client
//! reads an ack), cut what was not synced when asked to, start again; at the end settle, read all back, check.
//! Always holds: the same seed makes the same choices (the machine's timing differs all the same).
//! Does not: know how the server stores anything.

pub mod client;
pub mod load;
pub mod recorder;

use crate::power_cut::Shim;
use crate::random::Random;
use crate::server::Server;
use anyhow::{Context, ensure};
use banyan_checker::{
    self as checker, Call, Demand, FaultKind, Liveness, Range, Row, Rules, Seq, Session, Slot, Store,
    StoredRoom, Time, UnixMs, What,
};
use client::Connection;
use load::{Manner, Orders, Phase, Sender, Subscriber, Trigger};
use recorder::Recorder;
use serde_json::json;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long settling and catching up may take at the end (I15 gives 16 s with the default TTL).
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(60);

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
    /// Changes that no sync covered, and how many bytes and names of them were taken away.
    pub unsynced: u64,
    pub cut_bytes: u64,
    pub cut_names: u64,
    pub syncs: u64,
    /// What a client was told directly and must never be told here, and a server that does not start again.
    pub wrong: Vec<String>,
    /// What the histories show.
    pub checked: Option<checker::Report>,
}

impl Report {
    /// All that is wrong, in words.
    pub fn violations(&self) -> Vec<String> {
        let checked = self.checked.iter().flat_map(checker::Report::violations);
        self.wrong.iter().cloned().chain(checked.map(ToString::to_string)).collect()
    }

    /// Fails for a run that proves nothing, whatever it found.
    pub fn is_meaningful(&self, options: &Options) -> anyhow::Result<()> {
        ensure!(self.kills == options.kills, "only {} of {} kills were done", self.kills, options.kills);
        let checked = self.checked.as_ref().context("nothing was checked")?;
        let missing = Demand::killed_process(options.kills.into()).missing(&checked.coverage);
        ensure!(missing.is_empty(), "the run proves nothing: {}", missing.join("; "));
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
    let recorder = Recorder::default();
    let scene = Scene::set(server.addresses.clients, options, &mut random, &recorder).await?;
    // A planted bug begins after the scene is set, so that it is the messages that are lost.
    if options.plant_no_fsync {
        server = host.restart(server, 0, true).await?;
    }

    let trigger = Arc::new(Trigger::default());
    let first = Orders { gateways: [server.addresses.clients].into(), phase: Phase::Load };
    let (orders, _) = watch::channel(first);
    let mut senders = JoinSet::new();
    let mut subscribers = JoinSet::new();
    for sender in scene.senders {
        let (watch, trigger) = (orders.subscribe(), Arc::clone(&trigger));
        senders.spawn(async move { sender.run(watch, &*trigger).await });
    }
    let listening: Vec<Session> = scene.subscribers.iter().map(|subscriber| subscriber.session).collect();
    for subscriber in scene.subscribers {
        let watch = orders.subscribe();
        subscribers.spawn(async move { subscriber.run(watch).await });
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
        recorder.fault(if options.shim { FaultKind::PowerCut } else { FaultKind::Kill });
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
                report.wrong.push(format!("the server does not start again: {e:#}"));
                orders.send_modify(|orders| orders.phase = Phase::Stop);
                return Ok(report);
            }
        }
        let address = server.addresses.clients;
        orders.send_modify(|orders| orders.gateways = [address].into());
    }

    let healed = recorder.now();
    orders.send_modify(|orders| orders.phase = Phase::Settle);
    let late_senders = finish(&mut senders, &mut report.wrong).await;
    let reader = Reader { session: scene.reader_session, user: scene.reader, recorder: recorder.clone() };
    let stored = reader.read(server.addresses.clients, &scene.rooms).await;
    let phase = match &stored {
        Ok(stored) => {
            let head = |room: &StoredRoom| room.head.map_or(0, |head| head.0);
            let heads = scene.rooms.iter().cloned().zip(stored.iter().map(head));
            Phase::CatchUp(heads.collect())
        }
        Err(e) => {
            report.wrong.push(format!("reading back: {e:#}"));
            Phase::Stop
        }
    };
    orders.send_modify(|orders| orders.phase = phase);
    let late_subscribers = finish(&mut subscribers, &mut report.wrong).await;
    if late_senders + late_subscribers > 0 {
        let log = server.log_tail();
        report.wrong.push(format!(
            "{late_senders} senders and {late_subscribers} subscribers did not end within {SETTLE_LIMIT:?}; the log ends with:\n{log}"
        ));
    }
    if let Ok(stored) = stored {
        let rooms: Vec<_> = stored.iter().map(|room| room.room).collect();
        let mut history = recorder.finish();
        let deadline = Time(healed.0.saturating_add(u64::try_from(SETTLE_LIMIT.as_micros())?));
        let subscribers =
            listening.iter().flat_map(|session| rooms.iter().map(|room| (*session, *room))).collect();
        history.liveness = Some(Liveness { healed, deadline, rooms, subscribers, settled: true });
        history.store = Some(Store { rooms: stored });
        report.checked = Some(checker::check(&history, &Rules::default()));
    }
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
    reader_session: Session,
    senders: Vec<Sender>,
    subscribers: Vec<Subscriber>,
}

impl Scene {
    async fn set(
        address: SocketAddr,
        options: &Options,
        random: &mut Random,
        recorder: &Recorder,
    ) -> anyhow::Result<Self> {
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
            .map(|number| {
                let (rooms, known) = (rooms.clone(), known.clone());
                Sender::new(number, user(number), recorder.clone(), rooms, random.fork(), known)
            })
            .collect();
        let subscribers = (0..options.subscribers)
            .map(|number| {
                let user = user(number + 1);
                let session = recorder.session(&user.id);
                let manner = Manner::default();
                Subscriber { number, user, session, recorder: recorder.clone(), rooms: rooms.clone(), manner }
            })
            .collect();
        let reader_session = recorder.session(&user(0).id);
        Ok(Self { reader: user(0), reader_session, rooms, senders, subscribers })
    }
}

/// Reads all back when all is quiet, as a client like any other.
#[derive(Debug)]
pub struct Reader {
    pub session: Session,
    pub user: client::User,
    pub recorder: Recorder,
}

impl Reader {
    /// Sends one message to each room, then reads it from the first seq to the head.
    pub async fn read(&self, address: SocketAddr, rooms: &[String]) -> anyhow::Result<Vec<StoredRoom>> {
        let connection = Connection::open(address, &self.user.token).await;
        let mut connection = connection.map_err(|e| anyhow::anyhow!("cannot connect: {e:?}"))?;
        let on = self.recorder.begin(self.session);
        let mut all = Vec::new();
        for room in rooms {
            self.send(&mut connection, on, room).await?;
            let mut stored = StoredRoom::new(self.recorder.room(room), Slot(0));
            while !self.page(&mut connection, on, room, &mut stored).await? {}
            all.push(stored);
        }
        Ok(all)
    }

    /// The room takes a send.
    async fn send(
        &self,
        connection: &mut Connection,
        on: checker::Connection,
        room: &str,
    ) -> anyhow::Result<()> {
        let call = Call(connection.next_id());
        let (id, text) = (format!("last-{room}"), "the last one");
        self.recorder.record(on, |names| What::Send {
            call,
            room: names.room(room),
            message: names.message(&id),
            since: Some(Seq(0)),
            content: recorder::content_of_text(text),
        });
        let body = json!({ "room": room, "client_msg_id": id, "since": 0, "text": text });
        let frame = connection.call("send", &body).await?;
        let reply = &frame["send"];
        let seq = recorder::seq(reply, "seq").with_context(|| format!("{room}: send: {frame}"))?;
        let at = UnixMs(reply["at"].as_u64().context("a send reply without time")?);
        let duplicate = reply["duplicate"].as_bool() == Some(true);
        self.recorder.record(on, |_| What::Sent { call, seq, at, duplicate });
        Ok(())
    }

    /// The next page; true if it was the last.
    async fn page(
        &self,
        connection: &mut Connection,
        on: checker::Connection,
        room: &str,
        stored: &mut StoredRoom,
    ) -> anyhow::Result<bool> {
        let after = stored.rows.last().map_or(Seq(0), |row| row.event.seq);
        let (call, limit) = (Call(connection.next_id()), 100);
        let range = Range::After(after);
        self.recorder.record(on, |_| What::History { call, room: stored.room, range, limit });
        let frame =
            connection.call("history", &json!({ "room": room, "after": after, "limit": limit })).await?;
        let page = frame.get("history").with_context(|| format!("{room}: history: {frame}"))?;
        let events = page["events"].as_array().context("history without events")?;
        for event in events {
            self.recorder.try_record(on, |names| {
                let (_, event) = recorder::event(names, event)?;
                stored.rows.push(Row { event, written: None });
                Ok(What::PageEvent { call, event })
            })?;
        }
        for gap in page["gaps"].as_array().into_iter().flatten() {
            let (from, to) = (recorder::seq(gap, "from")?, recorder::seq(gap, "to")?);
            let expired = gap["expired"].as_bool() == Some(true);
            self.recorder.record(on, |_| What::PageGap { call, from, to, expired });
        }
        let (head, log) = (recorder::seq(page, "head")?, recorder::log(page)?);
        let more = page["more"].as_bool() == Some(true);
        self.recorder.record(on, |_| What::Page { call, head, log, more });
        (stored.head, stored.log) = (Some(head), Some(log));
        Ok(!more || events.is_empty())
    }
}

/// Waits for the tasks that end in time; how many do not.
pub(crate) async fn finish(tasks: &mut JoinSet<Result<(), String>>, wrong: &mut Vec<String>) -> usize {
    let all = async {
        while let Some(Ok(ended)) = tasks.join_next().await {
            wrong.extend(ended.err());
        }
    };
    // Late ones are counted; they are not an error of the run itself.
    drop(tokio::time::timeout(SETTLE_LIMIT, all).await);
    let late = tasks.len();
    tasks.abort_all();
    late
}

async fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() && Instant::now() < until {
        sleep(Duration::from_millis(2)).await;
    }
}
