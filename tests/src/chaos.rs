//! A cluster of real processes under load and under attack, judged by what its clients saw.
//!
//! Owns: the order of a run: start everything, load, one nemesis after the other, each healed and waited for; at the end
//! settle, read everything back through clients, read the store and the slots' history, judge.
//! Always holds: every wait ends; the same seed makes the same choices (the machine's timing differs all the same).
//! Does not: know how a node does what it does.

pub mod cost;
mod dump;
mod gauges;
pub mod meter;
pub mod nemesis;
mod ownership;
mod page;
pub mod report;
mod stage;

use anyhow::{Context, ensure};
use banyan_checker::{self as checker, Counted, Fence, Liveness, Rules, Session, Store, Time};
use banyan_proto::id::SlotId;
use banyan_router::SlotCount;
use banyan_test_servers::cassandra::CommitLog;
use serde_json::json;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::cluster::network::Network;
use crate::cluster::{Cluster, NodePlan, Plan};
use crate::crash::client::{self, Connection};
use crate::crash::load::{Manner, Orders, Phase, Sender, Subscriber};
use crate::crash::recorder::Recorder;
use crate::crash::{Reader, SETTLE_LIMIT, finish};
use crate::random::Random;
use gauges::Gauges;
use meter::{Meter, Span};
use nemesis::{Concerned, Lengths, Nemesis, Struck, strike, whole};
use ownership::Ownership;
use report::{Excess, Hit, Run, Second};
use stage::Stage;

/// As the nodes' defaults have it.
const CLUSTER: &str = "banyan";
const KEYSPACE: &str = "banyan";

/// A gateway that owes an answer so long is left: it may hold a send for a lease's time to live and two seconds (DESIGN.md,
/// section 4) before it says anything.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a healed cluster may take until its sends go as before.
const CALM_LIMIT: Duration = Duration::from_secs(10);
/// Garbage collectors of the store's servers.
const CALM_SLACK_MS: f64 = 30.0;

/// The first sends open all the rooms at once: what they take is not what sends take.
const FIRST_SENDS: Duration = Duration::from_secs(3);

/// I15: two leases' times to live (3 s each) and 10 s.
const LIVE_AGAIN: Duration = Duration::from_secs(16);

/// What the reader may take for each room beyond that: it sends to one after the other.
const READ_BACK: Duration = Duration::from_millis(50);

/// Who is there.
const USERS: [&str; 3] = ["chaos-ada", "chaos-ben", "chaos-cleo"];

/// How often a room is made, if need be.
const CREATE_TRIES: usize = 20;

/// Rooms that are made at once.
const AT_ONCE: usize = 32;

/// How a run is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `banyan` binary.
    pub server: PathBuf,
    /// An empty directory for data and logs.
    pub work_dir: PathBuf,
    pub seed: u64,
    /// Each a gateway and a shard.
    pub nodes: usize,
    /// As many gateways and as many shards instead, behind HAProxy.
    pub apart: bool,
    /// One, or three.
    pub etcd: usize,
    /// One, or three.
    pub cql: u8,
    /// Nodes live in namespaces of it and the kernel cuts their links; else proxies do.
    pub network: Option<Network>,
    pub slots: u32,
    pub rooms: usize,
    pub senders: usize,
    pub subscribers: usize,
    /// Each client has one room; else each has all.
    pub one_room_each: bool,
    /// Of all senders together.
    pub sends_per_s: f64,
    /// One after the other in this order, or in rounds of another order each as long as `minutes` last.
    pub nemeses: Vec<Nemesis>,
    pub minutes: Option<f64>,
    /// Each so often, one after the other; does not count where there are minutes.
    pub times: usize,
    pub lengths: Lengths,
    /// Load without a fault before the first one, and between one that is healed and the next.
    pub quiet: Duration,
}

impl Options {
    /// A small load on three nodes and one server of each kind.
    pub fn new(server: PathBuf, work_dir: PathBuf, seed: u64, nemeses: Vec<Nemesis>) -> Self {
        Self {
            server,
            work_dir,
            seed,
            nodes: 3,
            apart: false,
            etcd: 1,
            cql: 1,
            network: None,
            slots: 256,
            rooms: 12,
            senders: 6,
            subscribers: 2,
            one_room_each: false,
            sends_per_s: 40.0,
            nemeses,
            minutes: None,
            times: 1,
            lengths: Lengths::default(),
            quiet: Duration::from_secs(4),
        }
    }
}

/// Takes lines for people.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// Does one run. `Err` means that it could not be done; what is broken is in the result.
pub async fn run(options: &Options, say: Say) -> anyhow::Result<Run> {
    for nemesis in &options.nemeses {
        if let Some(wants) = nemesis.wants(options.etcd, options.cql, options.network.is_some()) {
            anyhow::bail!("{} {wants}", nemesis.name());
        }
    }
    ensure!(options.senders > 0 && options.rooms > 0, "a run needs senders and rooms");
    let mut random = Random::new(options.seed);
    let cluster = start(options, &say).await?;
    let recorder = Recorder::default();
    let scene = Scene::set(&cluster, options, &mut random, &recorder).await?;
    let meter = Arc::new(Meter::new(recorder.clone(), &scene.rooms));
    let endpoints = cluster.etcd.endpoints();
    let (ownership, _watch) = Ownership::watch(endpoints, CLUSTER, recorder.clone()).await?;

    let first = Orders { gateways: cluster.doors().into(), phase: Phase::Load };
    let (orders, _) = watch::channel(first);
    let mut load = Load::begin(scene, &orders, &meter);
    let mut stage = Stage {
        cluster,
        ownership,
        recorder,
        meter,
        gauges: Arc::default(),
        lengths: options.lengths,
        joined: Vec::new(),
        joiners: 0,
        joiner_roles: if options.apart { "shard" } else { "gateway,shard" },
        slots: SlotCount::new(options.slots)?,
        rooms: load.rooms.clone(),
        user: load.reader.clone(),
        orders,
        random: random.fork(),
    };
    stage.look();
    let live = Live::begin(&stage, Arc::clone(&say));

    let mut run = Run { seed: options.seed, ..Run::default() };
    let struck = attack(options, &mut stage, &live, &mut run, &mut random, &say).await;
    if let Err(error) = struck {
        // What the clients saw until then is judged all the same.
        run.wrong.push(format!("{error:#}"));
    }
    live.under_way(Some("settling"));
    let judged = settle_and_judge(options, &mut stage, &mut load, &mut run).await;
    if let Err(error) = judged {
        run.wrong.push(format!("{error:#}"));
    }
    live.sample(&stage.gauges).await;
    run.processor = stage.gauges.processor();
    run.counters = stage.gauges.sums().into_iter().map(|(name, sum)| (name.to_owned(), sum)).collect();
    run.seconds = live.end();
    (run.nodes, run.etcd, run.cql, run.slots) = (options.nodes, options.etcd, options.cql, options.slots);
    run.netns = options.network.is_some();
    run.note_logs(&stage.cluster);
    Ok(run)
}

async fn start(options: &Options, say: &Say) -> anyhow::Result<Cluster> {
    let named = |kind: &'static str, roles| {
        (1..=options.nodes).map(move |number| NodePlan::new(format!("{kind}{number}"), roles))
    };
    let nodes = if options.apart {
        named("s", "shard").chain(named("g", "gateway")).collect()
    } else {
        named("n", "gateway,shard").collect()
    };
    let limits = ["SENDS_PER_S", "SENDS_BURST", "CONNECTIONS_PER_USER", "CONNECTIONS_PER_IP"];
    let plan = Plan {
        binary: options.server.clone(),
        directory: options.work_dir.clone(),
        nodes,
        etcd: options.etcd,
        cql: options.cql,
        commit_log: CommitLog::Group,
        slots: options.slots,
        haproxy: options.apart,
        proxies: options.network.is_none(),
        clocks: options.nemeses.contains(&Nemesis::ClockJump),
        // A few users with many connections, all of one machine, make the load; nothing else differs from the default.
        environment: limits.map(|limit| (format!("BANYAN_LIMITS__{limit}"), "100000".to_owned())).into(),
    };
    let begun = Instant::now();
    let say = |step: &str| say(&format!("{:>6.1} s  starting: {step}", begun.elapsed().as_secs_f64()));
    Cluster::start_in(options.network.clone(), plan, say).await
}

/// One nemesis after the other, until the list or the time is over.
async fn attack(
    options: &Options,
    stage: &mut Stage,
    live: &Live,
    run: &mut Run,
    random: &mut Random,
    say: &Say,
) -> anyhow::Result<()> {
    whole(stage).await?;
    sleep(FIRST_SENDS).await;
    let begun = stage.meter.now_us();
    sleep(options.quiet).await;
    ensure!(
        stage.meter.acks() > 0,
        "no send was acked within {:?}, before anything was broken",
        options.quiet
    );
    let usual = stage.meter.span(begun, stage.meter.now_us()).p99_ms;
    let until = options.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0));
    loop {
        let mut round = options.nemeses.clone();
        if until.is_some() {
            shuffle(&mut round, random);
        } else {
            round = round.into_iter().flat_map(|nemesis| vec![nemesis; options.times]).collect();
        }
        for nemesis in round {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
            stage.gauges.sample().await;
            let counted = stage.gauges.sums();
            let begun = stage.meter.now_us();
            live.under_way(Some(&nemesis.name()));
            let struck = strike(nemesis, stage).await;
            let healed = stage.meter.now_us();
            live.under_way(None);
            let struck = struck.with_context(|| format!("{} at {} s", nemesis.name(), begun / 1_000_000))?;
            calm(stage, options.quiet, usual).await;
            stage.gauges.sample().await;
            let before = begun.saturating_sub(options.quiet.as_micros() as u64);
            let just_before = stage.meter.span(before, begun).p99_ms;
            let mut hit = measure(&stage.meter, nemesis, &struck, [begun, healed], just_before);
            let more = |(name, sum): (&'static str, u64)| {
                (name.to_owned(), sum - counted.get(name).copied().unwrap_or_default())
            };
            hit.counters = stage.gauges.sums().into_iter().map(more).collect();
            say(&format!("{:>6.1} s  {}", healed as f64 / 1e6, hit.line()));
            run.hits.push(hit);
        }
        if until.is_none() {
            return Ok(());
        }
    }
}

/// Waits until sends go about as they did before the first fault (twice their time and a little, for the p99 of a second is
/// one of a few sends), and not less than `quiet`. A cluster that does not calm down has its next fault all the same.
async fn calm(stage: &Stage, quiet: Duration, usual_ms: f64) {
    sleep(quiet).await;
    let until = Instant::now() + CALM_LIMIT;
    while Instant::now() < until {
        let now = stage.meter.now_us();
        let last = stage.meter.span(now.saturating_sub(1_000_000), now);
        if last.acks > 0 && last.refused.is_empty() && last.p99_ms <= usual_ms * 2.0 + CALM_SLACK_MS {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Another order each round; who left joins before.
fn shuffle(round: &mut [Nemesis], random: &mut Random) {
    for last in (1..round.len()).rev() {
        let other = usize::try_from(random.below(last as u64 + 1)).unwrap_or_default();
        round.swap(last, other);
    }
    let place = |round: &[Nemesis], of| round.iter().position(|nemesis| *nemesis == of);
    if let (Some(join), Some(leave)) = (place(round, Nemesis::Join), place(round, Nemesis::Leave))
        && leave < join
    {
        round.swap(join, leave);
    }
}

fn measure(meter: &Meter, nemesis: Nemesis, struck: &Struck, [begun, healed]: [u64; 2], usual: f64) -> Hit {
    let mut next: Vec<f64> = Vec::new();
    let (mut silent, mut stalls, mut sends) = (0, Vec::new(), Vec::new());
    for Concerned { from_us, to_us, rooms } in &struck.concerned {
        let acks = meter.next_acks(rooms, *from_us);
        silent += acks.iter().filter(|next| next.is_none()).count();
        next.extend(acks.into_iter().flatten());
        stalls.extend(meter.stalls(rooms, *from_us, *to_us));
        sends.extend(meter.sends(rooms, *from_us, *to_us));
    }
    for list in [&mut next, &mut stalls, &mut sends] {
        list.sort_by(f64::total_cmp);
    }
    let Span { acks, refused, lost, turned_away, .. } = meter.span(begun, healed);
    Hit {
        nemesis,
        what: struck.what.clone(),
        begun_s: begun as f64 / 1e6,
        healed_s: healed as f64 / 1e6,
        next_ack_ms: next,
        stall_ms: stalls,
        silent: silent as u64,
        acks,
        refused: refused.into_iter().map(|(code, n)| (code.to_string(), n)).collect(),
        lost,
        turned_away,
        counters: Default::default(),
        undisturbed_p99_ms: usual,
        sends: Excess::of(&sends, usual),
        moved: struck.moved,
    }
}

/// Everything comes to rest, is read back and judged.
async fn settle_and_judge(
    options: &Options,
    stage: &mut Stage,
    load: &mut Load,
    run: &mut Run,
) -> anyhow::Result<()> {
    let healed = stage.recorder.now();
    // Sends after the last fault, for I15.
    sleep(options.quiet).await;
    stage.order(Phase::Settle);
    let late = finish(&mut load.senders, &mut run.wrong).await;
    if late > 0 {
        run.wrong.push(format!("{late} senders did not settle within {SETTLE_LIMIT:?}"));
    }
    let reader =
        Reader { session: load.reader_session, user: load.reader.clone(), recorder: stage.recorder.clone() };
    let gateways = stage.cluster.doors();
    let gateway = *gateways.first().context("there is no gateway left")?;
    let read = reader.read(gateway, &load.rooms).await;
    let heads = match &read {
        Ok(rooms) => {
            let head = |room: &checker::StoredRoom| room.head.map_or(0, |head| head.0);
            load.rooms.iter().cloned().zip(rooms.iter().map(head)).collect()
        }
        Err(error) => {
            run.wrong.push(format!("reading back: {error:#}"));
            stage.order(Phase::Stop);
            Default::default()
        }
    };
    if read.is_ok() {
        stage.order(Phase::CatchUp(heads));
    }
    let late = finish(&mut load.subscribers, &mut run.wrong).await;
    if late > 0 {
        run.wrong
            .push(format!("{late} subscribers did not reach the end of the logs within {SETTLE_LIMIT:?}"));
    }

    stage.gauges.sample().await;
    let (recorder, slots) = (&stage.recorder, stage.slots);
    let store = dump::open(stage.cluster.cql.contact_points(), KEYSPACE).await?;
    let mut dumped = dump::rooms(&store, recorder, slots, &load.rooms).await?;
    for (stored, told) in dumped.rooms.iter_mut().zip(read.iter().flatten()) {
        stored.head = told.head;
    }
    let registered: Vec<(SlotId, _)> = dump::slot_owners(&store, slots).await?;
    let ended = dump::fenced(&store).await?;
    store.close().await;

    let rooms: Vec<_> = dumped.rooms.iter().map(|room| room.room).collect();
    let subscribers = load.listening.iter().map(|(session, room)| (*session, recorder.room(room))).collect();
    let seen = stage.ownership.seen();
    let at = recorder.now();
    let mut history = recorder.finish();
    let patience = LIVE_AGAIN + READ_BACK * u32::try_from(load.rooms.len())?;
    let deadline = Time(healed.0.saturating_add(u64::try_from(patience.as_micros())?));
    history.liveness = Some(Liveness { healed, deadline, rooms, subscribers, settled: true });
    history.slots = ownership::history(&registered, &seen, &dumped.wrote);
    history.fences = ended.into_iter().map(|incarnation| Fence { at, incarnation }).collect();
    history.store = Some(Store { rooms: dumped.rooms });
    let sums = stage.gauges.sums();
    let sum = |name: &str| sums.get(name).copied().unwrap_or_default();
    history.counted = Counted {
        fenced_utterances: sum("fenced utterances"),
        unknown_outcomes: sum("unknown outcomes"),
        gap_repairs: sum("gap repairs"),
    };
    let checked = checker::check(&history, &Rules::default());
    run.judged(&checked);
    if checked.is_violated() {
        let path = stage.cluster.plan.directory.join("history.jsonl");
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
        checker::jsonl::write(&history, &mut file)?;
    }
    Ok(())
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
        cluster: &Cluster,
        options: &Options,
        random: &mut Random,
        recorder: &Recorder,
    ) -> anyhow::Result<Self> {
        let address = *cluster.doors().first().context("no node is a gateway")?;
        let mut users = Vec::new();
        for name in USERS {
            users.push(client::sign_up(address, name).await?);
        }
        let opened = Connection::open(address, &users[0].token).await;
        let mut owner = opened.map_err(|e| anyhow::anyhow!("cannot connect: {e:?}"))?;
        let others: Vec<&str> = users[1..].iter().map(|user| user.id.as_str()).collect();
        let rooms: Vec<String> = (0..options.rooms).map(|n| format!("chaos-{n}")).collect();
        let mut known = HashMap::new();
        for some in rooms.chunks(AT_ONCE) {
            let mut asked = HashMap::new();
            for room in some {
                let body = json!({ "room": room, "kind": "group", "name": room, "members": others });
                asked.insert(owner.ask("create_room", &body).await?, (room, body, 1));
            }
            while !asked.is_empty() {
                let frame = owner.next().await?;
                let Some((room, body, tries)) = frame["id"].as_u64().and_then(|id| asked.remove(&id)) else {
                    continue;
                };
                let later = matches!(frame["error"]["code"].as_u64(), Some(100 | 108 | 112));
                if let Some(head) = frame["create_room"]["head"].as_u64() {
                    known.insert(room.clone(), head);
                } else if later && tries < CREATE_TRIES {
                    // A busy machine's store may keep us waiting.
                    sleep(Duration::from_millis(500)).await;
                    asked.insert(owner.ask("create_room", &body).await?, (room, body, tries + 1));
                } else {
                    // It exists if an earlier try was late. Nobody knows anything of it then, which is always right.
                    ensure!(tries > 1 && !later, "create_room was answered with {frame}");
                    known.insert(room.clone(), 0);
                }
            }
        }
        let user = |n: usize| users[n % users.len()].clone();
        let pace = Duration::from_secs_f64(options.senders as f64 / options.sends_per_s.max(0.1));
        let own = |number: usize| {
            let only = options.one_room_each.then(|| vec![rooms[number % rooms.len()].clone()]);
            only.unwrap_or_else(|| rooms.clone())
        };
        // With a room each they are many, and each is seldom heard of.
        let patience = if options.one_room_each { PATIENCE * 10 } else { PATIENCE };
        // A gateway whose clock is wrong may take a token for one of the future.
        let elsewhere_if_refused = options.nemeses.contains(&Nemesis::ClockJump);
        let sender = |number| {
            let (rooms, known) = (own(number), known.clone());
            let mut sender = Sender::new(number, user(number), recorder.clone(), rooms, random.fork(), known);
            sender.manner = Manner { pace: Some(pace), patience, elsewhere_if_refused };
            sender
        };
        let senders = (0..options.senders).map(sender).collect();
        let subscriber = |number| {
            let user = user(number + 1);
            let session = recorder.session(&user.id);
            let manner = Manner { pace: None, patience, elsewhere_if_refused };
            Subscriber { number, user, session, recorder: recorder.clone(), rooms: own(number), manner }
        };
        let subscribers = (0..options.subscribers).map(subscriber).collect();
        let reader_session = recorder.session(&user(0).id);
        Ok(Self { reader: user(0), reader_session, rooms, senders, subscribers })
    }
}

/// The clients at work.
struct Load {
    rooms: Vec<String>,
    reader: client::User,
    reader_session: Session,
    /// Who listens to what.
    listening: Vec<(Session, String)>,
    senders: JoinSet<Result<(), String>>,
    subscribers: JoinSet<Result<(), String>>,
}

impl Load {
    fn begin(scene: Scene, orders: &watch::Sender<Orders>, meter: &Arc<Meter>) -> Self {
        let all = |subscriber: &Subscriber| -> Vec<(Session, String)> {
            subscriber.rooms.iter().map(|room| (subscriber.session, room.clone())).collect()
        };
        let listening = scene.subscribers.iter().flat_map(all).collect();
        let (mut senders, mut subscribers) = (JoinSet::new(), JoinSet::new());
        for sender in scene.senders {
            let (watch, meter) = (orders.subscribe(), Arc::clone(meter));
            senders.spawn(async move { sender.run(watch, &*meter).await });
        }
        for subscriber in scene.subscribers {
            let watch = orders.subscribe();
            subscribers.spawn(async move { subscriber.run(watch).await });
        }
        let Scene { rooms, reader, reader_session, .. } = scene;
        Self { rooms, reader, reader_session, listening, senders, subscribers }
    }
}

/// The view of the moment: a line a second, and the series for the report. Ends with the value.
struct Live {
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// What is being done to the cluster, and since when.
    under_way: Option<(String, Instant)>,
    seconds: Vec<Second>,
}

impl Live {
    fn begin(stage: &Stage, say: Say) -> Self {
        let shared = Arc::<Mutex<Shared>>::default();
        let (theirs, meter) = (Arc::clone(&shared), Arc::clone(&stage.meter));
        let (gauges, ownership) = (Arc::clone(&stage.gauges), stage.ownership.clone());
        let task = tokio::spawn(async move {
            let mut every = interval(Duration::from_secs(1));
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut from = meter.now_us();
            loop {
                every.tick().await;
                let to = meter.now_us();
                let span = meter.span(from, to);
                let second = Second {
                    at_s: to as f64 / 1e6,
                    sends_per_s: span.acks as f64 * 1e6 / (to - from).max(1) as f64,
                    p50_ms: span.p50_ms,
                    p99_ms: span.p99_ms,
                    refused: span.refused.values().sum(),
                    lost: span.lost,
                    owners: ownership.counts(),
                };
                from = to;
                let line = {
                    let mut shared = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                    let line =
                        second.line(shared.under_way.as_ref().map(|(what, since)| (what, since.elapsed())));
                    shared.seconds.push(second);
                    line
                };
                say(&line);
                gauges.sample().await;
            }
        });
        Self { shared, task }
    }

    fn under_way(&self, what: Option<&str>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.under_way = what.map(|what| (what.to_owned(), Instant::now()));
    }

    async fn sample(&self, gauges: &Gauges) {
        // Processes that hang are left out: each has its own limit, and this is the last look.
        timeout(Duration::from_secs(10), gauges.sample()).await.ok();
    }

    fn end(self) -> Vec<Second> {
        self.task.abort();
        std::mem::take(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner).seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_leaves_before_somebody_joined() {
        for seed in 0..50 {
            let mut round = [Nemesis::Leave, Nemesis::Kill, Nemesis::Join, Nemesis::Term];
            shuffle(&mut round, &mut Random::new(seed));
            let place = |of| round.iter().position(|nemesis| *nemesis == of);
            assert!(place(Nemesis::Join) < place(Nemesis::Leave), "seed {seed}: {round:?}");
        }
    }
}
