//! What is done to a cluster under load, one thing at a time, each with its healing.
//!
//! Owns: the list of nemeses, what each does in which order.
//! Always holds: after a strike everything that was broken has been mended, or the strike is an error; every wait ends.
//! Does not: judge. It says whose rooms were concerned and from when on, and the meter tells how those fared.

use anyhow::{Context, bail, ensure};
use banyan_checker::FaultKind;
use banyan_test_servers::proxy::{Fault, FaultProxy};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

use super::USERS;
use super::stage::Stage;
use crate::clock::Setting;
use crate::crash::client;

/// Until a node is ready again: a store that was away may keep it waiting.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Until rooms take sends again after a node died.
const TAKEN_LIMIT: Duration = Duration::from_secs(60);
/// Until every node has its share again. Slots that went elsewhere while the whole store was away go home four at a time,
/// each with the fence reads of a store that has just come up: a minute and more where all share two processors.
const WHOLE_LIMIT: Duration = Duration::from_secs(180);

/// How long a thawed node has nobody but its fence to tell it what it missed.
const ALONE: Duration = Duration::from_secs(1);

/// How long things last.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    pub freeze: Duration,
    pub etcd_down: Duration,
    pub cql_down: Duration,
    pub cut: Duration,
    /// How many nodes join, and leave.
    pub joiners: usize,
}

impl Default for Lengths {
    fn default() -> Self {
        Self {
            freeze: Duration::from_secs(20),
            etcd_down: Duration::from_secs(60),
            cql_down: Duration::from_secs(15),
            cut: Duration::from_secs(8),
            joiners: 3,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nemesis {
    /// kill -9 of a node, and a new start when its rooms have found another owner. Others are refused where it was
    Kill,
    /// The same as if its machine were gone: nobody is refused, nobody is told, and only its lease tells
    KillUnseen,
    /// SIGSTOP of an owner for longer than it can stay one, then SIGCONT
    Freeze,
    /// SIGTERM, and a new start
    Term,
    /// SIGTERM and a new start of every node, one after the other
    Rolling,
    /// More nodes join, one after the other
    Join,
    /// Those that joined leave again
    Leave,
    /// All of etcd killed, started again after a minute
    EtcdDown,
    /// Every server of etcd stopped and started, one after the other
    EtcdRestart,
    /// The leader of etcd killed (three servers)
    EtcdLeader,
    /// etcd set back to an older snapshot while an owner is frozen, `banyan ring recover`, then the owner thawed
    EtcdRestore,
    /// One of three servers of the store killed
    CqlDown,
    /// One of three servers of the store frozen
    CqlFreeze,
    /// All servers of the store killed and started again
    CqlAllDown,
    /// Nothing gets through to an owner from other nodes, nor back
    Cut,
    /// What other nodes send to an owner does not arrive
    CutToOwner,
    /// What an owner sends to other nodes does not arrive
    CutFromOwner,
    /// An owner does not reach etcd, and goes on: its lease runs out, others take its rooms, and only the fence tells it
    CutFromEtcd,
    /// An owner's cable is pulled out until others serve its rooms, then put in again (--netns)
    Unplug,
    /// Wall clocks of two owners jump by 30 s and by an hour, one forwards and one back, then run too fast and too slow
    ClockJump,
}

impl Nemesis {
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Why it cannot be done to a cluster of so many servers, with or without a network of its own, if so.
    pub const fn wants(self, etcd: usize, cql: u8, netns: bool) -> Option<&'static str> {
        match self {
            Self::Unplug if !netns => Some("wants --netns: a proxy cannot take all of a node's links away"),
            Self::EtcdLeader if etcd < 3 => Some("wants three servers of etcd"),
            Self::CqlDown | Self::CqlFreeze | Self::CqlAllDown if cql < 3 => {
                Some("wants three servers of the store")
            }
            _ => None,
        }
    }

    /// Slots must have found other owners by it.
    pub const fn changes_owners(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::KillUnseen
                | Self::Freeze
                | Self::Term
                | Self::Rolling
                | Self::Join
                | Self::Leave
                | Self::EtcdRestore
                | Self::CutFromEtcd
                | Self::Unplug
        )
    }
}

/// What was struck.
#[derive(Debug, Default)]
pub struct Struck {
    /// For people.
    pub what: String,
    pub concerned: Vec<Concerned>,
    pub moved: Option<Moved>,
}

/// Rooms that must have found a new owner, or felt it.
#[derive(Debug)]
pub struct Concerned {
    /// How long until each took a send counts from here.
    pub from_us: u64,
    /// When all was well again.
    pub to_us: u64,
    pub rooms: Vec<String>,
}

/// Slots that found another owner though nobody died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    pub slots: u64,
    /// Of them, those that went to a node that had been there before.
    pub between_survivors: u64,
    /// Changes of owner, seen one by one: more than `slots` where one moved twice.
    pub changes: u64,
    pub took_s: f64,
}

impl Struck {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::default() }
    }

    fn rooms_from(mut self, from_us: u64, to_us: u64, rooms: Vec<String>) -> Self {
        self.concerned.push(Concerned { from_us, to_us, rooms });
        self
    }
}

/// Does it, and mends it.
pub async fn strike(nemesis: Nemesis, stage: &mut Stage) -> anyhow::Result<Struck> {
    match nemesis {
        Nemesis::Kill => kill(stage, Fault::Refuse).await,
        Nemesis::KillUnseen => kill(stage, Fault::Cut).await,
        Nemesis::Freeze => freeze(stage).await,
        Nemesis::Term => term(stage).await,
        Nemesis::Rolling => rolling(stage).await,
        Nemesis::Join => join(stage).await,
        Nemesis::Leave => leave(stage).await,
        Nemesis::EtcdDown => etcd_down(stage).await,
        Nemesis::EtcdRestart => etcd_restart(stage).await,
        Nemesis::EtcdLeader => etcd_leader(stage).await,
        Nemesis::EtcdRestore => etcd_restore(stage).await,
        Nemesis::CqlDown => cql_down(stage).await,
        Nemesis::CqlFreeze => cql_freeze(stage).await,
        Nemesis::CqlAllDown => cql_all_down(stage).await,
        Nemesis::Cut => cut(stage, Fault::Cut).await,
        Nemesis::CutToOwner => cut(stage, Fault::CutToServer).await,
        Nemesis::CutFromOwner => cut(stage, Fault::CutToClient).await,
        Nemesis::CutFromEtcd => cut_from_etcd(stage).await,
        Nemesis::Unplug => unplug(stage).await,
        Nemesis::ClockJump => clock_jump(stage).await,
    }
}

/// `seen`: what other nodes find where it was. The proxy before it must do as the kernel would: it accepts by itself.
async fn kill(stage: &mut Stage, seen: Fault) -> anyhow::Result<Struck> {
    let victim = stage.an_owner()?;
    let rooms = stage.rooms_of(&victim);
    if seen == Fault::Cut {
        stage.cluster.node(&victim)?.before(seen).await?;
    }
    stage.cluster.node(&victim)?.process.kill().await?;
    let at = stage.meter.now_us();
    stage.cluster.node(&victim)?.before(seen).await?;
    stage.recorder.fault(FaultKind::Kill);
    stage.look();
    taken_over(stage, &rooms, at).await?;
    start_again(stage, &victim).await?;
    Ok(Struck::new(format!("killed {victim}")).rooms_from(at, stage.meter.now_us(), rooms))
}

/// Waits until each of the rooms has acked a send since then.
async fn taken_over(stage: &Stage, rooms: &[String], from_us: u64) -> anyhow::Result<()> {
    let until = Instant::now() + TAKEN_LIMIT;
    loop {
        let silent = stage.meter.next_acks(rooms, from_us).iter().filter(|next| next.is_none()).count();
        if silent == 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "{silent} of {} rooms have acked no send for {TAKEN_LIMIT:?}",
            rooms.len()
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a node, and waits until it is ready and owns its share.
async fn start_again(stage: &mut Stage, node: &str) -> anyhow::Result<()> {
    stage.cluster.launch(node)?;
    stage.cluster.node(node)?.before(Fault::Pass).await?;
    stage.look();
    stage.cluster.node(node)?.wait_ready_within(READY_LIMIT).await?;
    whole(stage).await
}

/// Waits until every slot has an owner that lives, and every node its share.
pub(super) async fn whole(stage: &mut Stage) -> anyhow::Result<()> {
    let until = Instant::now() + WHOLE_LIMIT;
    loop {
        let counts = stage.ownership.counts();
        let shards: Vec<&String> = stage.shards().collect();
        let fair = stage.cluster.plan.slots / u32::try_from(shards.len())?;
        let share = shards.iter().all(|node| counts.get(*node).copied().unwrap_or_default() >= fair);
        if stage.ownership.is_whole(stage.cluster.plan.slots) && share {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "the ring is not whole after {WHOLE_LIMIT:?}: slots {counts:?}, nodes {:?}{}",
            stage.ownership.nodes(),
            if stage.ownership.is_frozen() { ", frozen" } else { "" }
        );
        sleep(Duration::from_millis(50)).await;
    }
}

async fn freeze(stage: &mut Stage) -> anyhow::Result<Struck> {
    let victim = stage.an_owner()?;
    let rooms = stage.rooms_of(&victim);
    stage.cluster.node(&victim)?.process.freeze()?;
    let at = stage.meter.now_us();
    stage.recorder.fault(FaultKind::Other);
    // Every other time etcd does not reach it at first when it wakes up, so that nothing but its own fence can stop it.
    let alone = stage.random_below(2) == 0;
    if alone {
        stage.cluster.node(&victim)?.towards_etcd(Fault::Cut).await?;
    }
    sleep(stage.lengths.freeze).await;
    stage.cluster.node(&victim)?.process.thaw()?;
    if alone {
        sleep(ALONE).await;
        stage.cluster.node(&victim)?.towards_etcd(Fault::Pass).await?;
    }
    taken_over(stage, &rooms, at).await?;
    stage.cluster.node(&victim)?.wait_ready_within(READY_LIMIT).await?;
    whole(stage).await?;
    let length = stage.lengths.freeze.as_secs();
    let alone = if alone { ", woke it without etcd" } else { "" };
    Ok(Struck::new(format!("froze {victim} for {length} s{alone}")).rooms_from(
        at,
        stage.meter.now_us(),
        rooms,
    ))
}

/// Asks a node to end and starts it again. Its rooms, and since when.
async fn end_and_start(stage: &mut Stage, node: &str) -> anyhow::Result<(u64, Vec<String>)> {
    let rooms = stage.rooms_of(node);
    let at = stage.meter.now_us();
    stage.recorder.fault(FaultKind::Other);
    stage.cluster.node(node)?.process.stop().await?;
    stage.cluster.node(node)?.before(Fault::Refuse).await?;
    start_again(stage, node).await?;
    Ok((at, rooms))
}

async fn term(stage: &mut Stage) -> anyhow::Result<Struck> {
    let victim = stage.an_owner()?;
    let (at, rooms) = end_and_start(stage, &victim).await?;
    Ok(Struck::new(format!("ended {victim} and started it again")).rooms_from(
        at,
        stage.meter.now_us(),
        rooms,
    ))
}

async fn rolling(stage: &mut Stage) -> anyhow::Result<Struck> {
    let mut struck = Struck::new("ended and started every node in turn");
    let nodes: Vec<String> = stage.cluster.nodes.keys().cloned().collect();
    for node in nodes {
        let (at, rooms) = end_and_start(stage, &node).await?;
        struck = struck.rooms_from(at, stage.meter.now_us(), rooms);
    }
    Ok(struck)
}

async fn join(stage: &mut Stage) -> anyhow::Result<Struck> {
    let (before, mut struck, mut sum) = (stage.cluster.nodes.len(), Struck::new(""), Moved::default());
    for _ in 0..stage.lengths.joiners {
        let (rooms, slots) = (stage.room_owners(), stage.ownership.owners());
        let (at, changes) = (stage.meter.now_us(), stage.ownership.changes());
        let joined = stage.add_node().await?;
        whole(stage).await?;
        let now = stage.meter.now_us();
        let moved = stage.room_owners().into_iter().filter(|(room, owner)| rooms.get(room) != Some(owner));
        struck = struck.rooms_from(at, now, moved.map(|(room, _)| room).collect());
        for (slot, owner) in stage.ownership.owners() {
            let moved = slots.get(&slot) != Some(&owner);
            sum.slots += u64::from(moved);
            sum.between_survivors += u64::from(moved && owner != joined);
        }
        sum.changes += (stage.ownership.changes() - changes) as u64;
        sum.took_s += (now - at) as f64 / 1e6;
        struck.what += &format!("{}{joined}", if struck.what.is_empty() { "" } else { ", " });
    }
    let now = stage.cluster.nodes.len();
    struck.what += &format!(
        " joined: {before} to {now} nodes; {} slots moved, {} between those that were there, in {:.1} s",
        sum.slots, sum.between_survivors, sum.took_s
    );
    struck.moved = Some(sum);
    Ok(struck)
}

async fn leave(stage: &mut Stage) -> anyhow::Result<Struck> {
    if stage.joined.is_empty() {
        return join(stage).await;
    }
    let before = stage.cluster.nodes.len();
    let mut struck = Struck::new("");
    for node in std::mem::take(&mut stage.joined) {
        let rooms = stage.rooms_of(&node);
        let at = stage.meter.now_us();
        stage.recorder.fault(FaultKind::Other);
        stage.remove_node(&node).await?;
        whole(stage).await?;
        struck = struck.rooms_from(at, stage.meter.now_us(), rooms);
        struck.what += &format!("{}{node}", if struck.what.is_empty() { "" } else { ", " });
    }
    let now = stage.cluster.nodes.len();
    struck.what += &format!(" left: {before} to {now} nodes");
    Ok(struck)
}

// ---------------------------------------------------------------- etcd

async fn all_ready(stage: &mut Stage) -> anyhow::Result<()> {
    for node in stage.cluster.nodes.values_mut() {
        node.wait_ready_within(READY_LIMIT).await?;
    }
    whole(stage).await
}

async fn etcd_down(stage: &mut Stage) -> anyhow::Result<Struck> {
    let at = stage.meter.now_us();
    stage.cluster.etcd.kill_all().await?;
    stage.recorder.fault(FaultKind::Other);
    stage.look();
    sleep(stage.lengths.etcd_down).await;
    stage.cluster.etcd.start_all().await?;
    stage.look();
    all_ready(stage).await?;
    let rooms = stage.rooms();
    let length = stage.lengths.etcd_down.as_secs();
    Ok(Struck::new(format!("no etcd for {length} s")).rooms_from(at, stage.meter.now_us(), rooms))
}

async fn etcd_restart(stage: &mut Stage) -> anyhow::Result<Struck> {
    let at = stage.meter.now_us();
    stage.recorder.fault(FaultKind::Other);
    for member in 0..stage.cluster.etcd.members() {
        stage.cluster.etcd.member(member).restart().await?;
        stage.look();
    }
    all_ready(stage).await?;
    Ok(Struck::new("restarted every server of etcd").rooms_from(at, stage.meter.now_us(), stage.rooms()))
}

async fn etcd_leader(stage: &mut Stage) -> anyhow::Result<Struck> {
    let leader = stage.cluster.etcd.leader().await?;
    let at = stage.meter.now_us();
    stage.cluster.etcd.member(leader).kill().await?;
    stage.recorder.fault(FaultKind::Other);
    stage.look();
    sleep(Duration::from_secs(5)).await;
    stage.cluster.etcd.member(leader).restart().await?;
    stage.look();
    all_ready(stage).await?;
    Ok(Struck::new(format!("killed the leader of etcd, server {leader}")).rooms_from(
        at,
        stage.meter.now_us(),
        stage.rooms(),
    ))
}

/// The snapshot is made; then slots change their owners, so that it is old; then an owner is frozen and etcd set back.
async fn etcd_restore(stage: &mut Stage) -> anyhow::Result<Struck> {
    let snapshot = stage.cluster.plan.directory.join(format!("etcd-{}.snapshot", stage.meter.now_us()));
    stage.cluster.etcd.snapshot_save(&snapshot).await?;
    let died = stage.an_owner()?;
    let rooms = stage.rooms_of(&died);
    stage.cluster.node(&died)?.process.kill().await?;
    let killed_at = stage.meter.now_us();
    stage.cluster.node(&died)?.before(Fault::Refuse).await?;
    stage.recorder.fault(FaultKind::Kill);
    stage.look();
    taken_over(stage, &rooms, killed_at).await?;
    start_again(stage, &died).await?;

    let frozen = loop {
        let owner = stage.an_owner()?;
        if owner != died || stage.cluster.nodes.len() == 1 {
            break owner;
        }
    };
    stage.cluster.node(&frozen)?.process.freeze()?;
    let at = stage.meter.now_us();
    stage.recorder.fault(FaultKind::Other);
    stage.cluster.etcd.snapshot_restore(&snapshot).await?;
    stage.look();
    // Whoever registers for an epoch that the store knows already stops everything.
    let until = Instant::now() + Duration::from_secs(30);
    while !stage.ownership.is_frozen() && Instant::now() < until {
        sleep(Duration::from_millis(50)).await;
    }
    let noticed = stage.ownership.is_frozen();
    let recovered_at = stage.meter.now_us();
    stage.recover().await?;
    sleep(Duration::from_secs(2)).await;
    stage.cluster.node(&frozen)?.process.thaw()?;
    all_ready(stage).await?;
    std::fs::remove_file(&snapshot).with_context(|| format!("cannot remove {}", snapshot.display()))?;
    let noticed = if noticed { "was noticed" } else { "was not noticed" };
    let what = format!(
        "killed {died}, froze {frozen}, set etcd back: it {noticed}; recovered after {:.1} s, then thawed",
        (recovered_at - at) as f64 / 1e6
    );
    Ok(Struck::new(what).rooms_from(at, stage.meter.now_us(), stage.rooms()))
}

// ---------------------------------------------------------------- the store

async fn cql_down(stage: &mut Stage) -> anyhow::Result<Struck> {
    let server = stage.random_below(stage.cluster.cql.nodes());
    let at = stage.meter.now_us();
    stage.cluster.cql.node(server).kill().await?;
    stage.recorder.fault(FaultKind::Other);
    stage.look();
    sleep(stage.lengths.cql_down).await;
    stage.cluster.cql.start_all().await?;
    stage.look();
    all_ready(stage).await?;
    Ok(Struck::new(format!("killed server {server} of the store")).rooms_from(
        at,
        stage.meter.now_us(),
        stage.rooms(),
    ))
}

async fn cql_freeze(stage: &mut Stage) -> anyhow::Result<Struck> {
    let server = stage.random_below(stage.cluster.cql.nodes());
    let at = stage.meter.now_us();
    stage.cluster.cql.node(server).freeze()?;
    stage.recorder.fault(FaultKind::Other);
    sleep(stage.lengths.cql_down).await;
    stage.cluster.cql.node(server).thaw()?;
    stage.cluster.cql.wait_ready().await?;
    all_ready(stage).await?;
    let length = stage.lengths.cql_down.as_secs();
    let what = format!("froze server {server} of the store for {length} s");
    Ok(Struck::new(what).rooms_from(at, stage.meter.now_us(), stage.rooms()))
}

async fn cql_all_down(stage: &mut Stage) -> anyhow::Result<Struck> {
    stage.cluster.cql.kill_all().await?;
    stage.recorder.fault(FaultKind::Other);
    stage.look();
    sleep(stage.lengths.cql_down).await;
    stage.cluster.cql.start_all().await?;
    // It is the way back that is measured.
    let at = stage.meter.now_us();
    stage.look();
    all_ready(stage).await?;
    Ok(Struck::new("killed the whole store").rooms_from(at, stage.meter.now_us(), stage.rooms()))
}

// ---------------------------------------------------------------- between nodes

async fn cut(stage: &mut Stage, fault: Fault) -> anyhow::Result<Struck> {
    let victim = stage.an_owner()?;
    let rooms = stage.rooms_of(&victim);
    let at = stage.meter.now_us();
    let length = stage.lengths.cut;
    let node = stage.cluster.node(&victim)?;
    ensure!(node.proxy.is_some() || node.place.is_some(), "nothing could cut the links of {victim}");
    node.before(fault).await?;
    stage.recorder.fault(FaultKind::Other);
    sleep(length).await;
    let node = stage.cluster.node(&victim)?;
    node.before(Fault::Pass).await?;
    if let Some(trouble) = node.proxy.as_ref().and_then(FaultProxy::trouble) {
        bail!("the proxy before {victim}: {trouble}");
    }
    taken_over(stage, &rooms, stage.meter.now_us()).await?;
    all_ready(stage).await?;
    Ok(Struck::new(format!("{fault:?} before {victim} for {} s", length.as_secs())).rooms_from(
        at,
        stage.meter.now_us(),
        rooms,
    ))
}

async fn cut_from_etcd(stage: &mut Stage) -> anyhow::Result<Struck> {
    let victim = stage.an_owner()?;
    let rooms = stage.rooms_of(&victim);
    let at = stage.meter.now_us();
    let length = stage.lengths.cut;
    stage.cluster.node(&victim)?.towards_etcd(Fault::Cut).await?;
    stage.recorder.fault(FaultKind::Other);
    sleep(length).await;
    stage.cluster.node(&victim)?.towards_etcd(Fault::Pass).await?;
    taken_over(stage, &rooms, at).await?;
    all_ready(stage).await?;
    let what = format!("{victim} did not reach etcd for {} s", length.as_secs());
    Ok(Struck::new(what).rooms_from(at, stage.meter.now_us(), rooms))
}

/// Whoever sends to it, or from it, waits for an answer that does not come: etcd, the store, other nodes, clients.
async fn unplug(stage: &mut Stage) -> anyhow::Result<Struck> {
    let victim = stage.an_owner()?;
    let rooms = stage.rooms_of(&victim);
    stage.cluster.node(&victim)?.placed()?.unplug().await?;
    let at = stage.meter.now_us();
    stage.recorder.fault(FaultKind::Other);
    let until = Instant::now() + stage.lengths.cut;
    let served = taken_over(stage, &rooms, at).await;
    sleep_until(until).await;
    let still = stage.rooms_of(&victim).len();
    let plugged_at = stage.meter.now_us();
    // Also when it went wrong: clients are to read back what there is.
    stage.cluster.node(&victim)?.placed()?.plug().await?;
    served.with_context(|| format!("while {victim} was unplugged"))?;
    ensure!(still == 0, "{victim} was unplugged and still the owner of {still} rooms");
    all_ready(stage).await?;
    let what = format!("{victim} was unplugged for {:.1} s", (plugged_at - at) as f64 / 1e6);
    Ok(Struck::new(what).rooms_from(at, stage.meter.now_us(), rooms))
}

// ---------------------------------------------------------------- clocks

/// What two owners' clocks are set to, one after the other: the second one's to the opposite. The last: twice as fast as
/// time, and standing still.
const CLOCKS: [Setting; 4] = [
    Setting { ahead_ms: 30_000, drift_ppm: 0 },
    Setting { ahead_ms: 3_600_000, drift_ppm: 0 },
    Setting { ahead_ms: -3_600_000, drift_ppm: 0 },
    Setting { ahead_ms: 0, drift_ppm: 1_000_000 },
];
/// How long each lasts.
const CLOCK_STEP: Duration = Duration::from_secs(4);
/// Tokens end with whole seconds, and a busy machine may be late.
const CLOCK_SLACK_S: f64 = 2.0;

/// Nothing depends on clocks: nobody is refused, nothing changes its owner. That they did jump is proved by the times that
/// the nodes tell.
async fn clock_jump(stage: &mut Stage) -> anyhow::Result<Struck> {
    let one = stage.an_owner()?;
    let mut others: Vec<String> = stage.room_owners().into_values().filter(|owner| *owner != one).collect();
    others.sort();
    others.dedup();
    ensure!(!others.is_empty(), "one node owns all rooms: there is nobody whose clock could differ");
    let chosen = stage.random_below(others.len());
    let other = others.swap_remove(chosen);
    let (begun, changes) = (stage.meter.now_us(), stage.ownership.changes());
    // All clocks are true now.
    let mut victims = Vec::new();
    for (victim, sign) in [(one, 1_i32), (other, -1)] {
        let rooms = stage.rooms_of(&victim);
        let truth = told_s(stage, &victim).await?;
        victims.push((victim, sign, rooms, truth));
    }
    let mut struck = Struck::new("");
    let mut turned = Vec::new();
    for Setting { ahead_ms, drift_ppm } in CLOCKS {
        let at = stage.meter.now_us();
        for (victim, sign, ..) in &victims {
            let sign = i64::from(*sign);
            let setting = Setting { ahead_ms: sign * ahead_ms, drift_ppm: sign * drift_ppm };
            stage.cluster.node(victim)?.set_clock(setting)?;
        }
        stage.recorder.fault(FaultKind::Other);
        sleep(CLOCK_STEP).await;
        for (victim, sign, rooms, truth) in &victims {
            taken_over(stage, rooms, at).await?;
            let is = told_s(stage, victim).await? - truth;
            let now = stage.meter.now_us();
            let gained = (now - at) as f64 / 1e6 * drift_ppm as f64 / 1e6;
            let ahead = f64::from(*sign) * (ahead_ms as f64 / 1e3 + gained);
            ensure!(
                (is - ahead).abs() <= CLOCK_SLACK_S,
                "the clock of {victim} should be {ahead:.1} s ahead, and the time that it tells is {is:.1} s ahead"
            );
            if let Some(why) = stage.refuses_tokens(victim).await? {
                turned.push(format!("{victim}, {ahead:+.0} s: {why}"));
            }
            struck = struck.rooms_from(at, now, rooms.clone());
        }
    }
    for (victim, ..) in &victims {
        stage.cluster.node(victim)?.set_clock(Setting::default())?;
    }
    let at = stage.meter.now_us();
    for (_, _, rooms, _) in &victims {
        taken_over(stage, rooms, at).await?;
    }
    let refused = stage.meter.span(begun, stage.meter.now_us()).refused;
    ensure!(refused.is_empty(), "sends were refused while clocks jumped: {refused:?}");
    let moved = stage.ownership.changes() - changes;
    ensure!(moved == 0, "{moved} slots changed their owners while clocks jumped");
    let names: Vec<&str> = victims.iter().map(|(victim, ..)| victim.as_str()).collect();
    struck.what =
        format!("set the clocks of {} a minute and two hours apart, let them drift", names.join(" and "));
    if !turned.is_empty() {
        struck.what += &format!("; new connections not taken: {}", turned.join(", "));
    }
    Ok(struck)
}

/// The time that a node tells, in seconds beyond this run's clock and some constant: when a token ends that it makes now.
async fn told_s(stage: &Stage, node: &str) -> anyhow::Result<f64> {
    let node = stage.cluster.nodes.get(node).with_context(|| format!("there is no node {node}"))?;
    let address = node.clients().context("it takes no clients, so it tells no time")?;
    let told_ms = client::log_in(address, USERS[0]).await?;
    Ok(told_ms as f64 / 1e3 - stage.meter.now_us() as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nemesis_has_a_name_of_its_own() {
        let mut names: Vec<String> = Nemesis::value_variants().iter().map(|nemesis| nemesis.name()).collect();
        assert!(names.contains(&"etcd-restore".to_owned()) && names.contains(&"kill".to_owned()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Nemesis::value_variants().len());
    }

    #[test]
    fn what_wants_three_servers_says_so() {
        let wants = |nemesis: Nemesis, etcd, cql| nemesis.wants(etcd, cql, false).is_some();
        assert!(wants(Nemesis::EtcdLeader, 1, 3) && !wants(Nemesis::EtcdLeader, 3, 1));
        assert!(wants(Nemesis::CqlDown, 3, 1) && !wants(Nemesis::Kill, 1, 1));
    }

    #[test]
    fn only_a_cable_can_be_pulled_out() {
        assert!(Nemesis::Unplug.wants(3, 3, false).is_some_and(|why| why.contains("--netns")));
        let not_alone = Nemesis::value_variants().iter().filter(|of| of.wants(3, 3, true).is_some()).count();
        assert_eq!(not_alone, 0);
    }
}
