//! This node among others: shows itself, follows the ring, owns what the ring gives it, and comes back as another run
//! when it was fenced.
//!
//! Owns: the runs of this node, one after the other, and what belongs to one run: its owners of rooms, the port for other
//! nodes, the ring's machine. Beside them, for the life of the process, the [`Switchboard`].
//! Does not: decide anything about slots (`banyan-router`) or carry it out in etcd (`banyan-router-etcd`).

mod around;
mod inbound;
mod reach;
mod rows;
mod switchboard;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banyan_gateway::backend::{Backend, Shards};
use banyan_gateway::worker;
use banyan_proto::id::{Incarnation, SlotId};
use banyan_proto::wire::{NodeMessage, WANTED_MAX};
use banyan_router::SlotCount;
use banyan_router::meta::{ClusterId, Founding, Meta};
use banyan_router::node::{End as RunEnd, Input, Limits, Node, Options, Standing};
use banyan_router::node_key::{NodeEntry, Role, State};
use banyan_router::slot_key::{NodeId, Peer};
use banyan_router_etcd::coordination::{Coordination, Error as RingError};
use banyan_router_etcd::runner::{self, Ended, Runner, RunnerHandle, Why};
use banyan_router_etcd::servers;
use banyan_router_etcd::{Etcd, View};
use banyan_router_peer::{
    Error as PeerError, Handle as PortHandle, Me, Options as LinkOptions, Security, Server, Tls, TlsFiles,
    register_metrics,
};
use banyan_shard::{Drained, End, Handle};
use banyan_storage::LogStore;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Roles};
use crate::failure::{Exit, Failure};
use crate::node::{Drained as OperatorsDrain, Ends, Hands, shard_options, slot};
use crate::ring_cmd::told;
use crate::version::VERSION;
use around::Around;
use inbound::{Doors, Run};
use reach::Reach;
pub(crate) use rows::Rows;
use switchboard::{OfOthers, Parts, Switchboard};

/// Changes of the ring that wait for the switchboard; above that, they wait in etcd.
const RING_BUFFER: usize = 1_024;
/// What gateways say of owners that the table does not know, deaths that were seen: lost above that, and said again.
const HINTS: usize = 256;
/// How often the ring is told that the workers live.
const TICK: Duration = Duration::from_millis(100);
/// What could not be had is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// A run that is over is followed by the next after this time; twice as long after each that did not last, at most
/// [`PAUSE_MAX`]. A node that comes and goes makes the others take and give its slots, on a store that may be too busy
/// already.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A run that lasted so long was a good one.
const LASTED: Duration = Duration::from_secs(60);
/// How often the files of certificates are looked at.
const TLS_LOOK: Duration = Duration::from_secs(5);

/// How the newest run of this node is spoken to, once there is one.
pub(crate) type CurrentRun = Arc<Mutex<Option<RunnerHandle>>>;

/// A node's place in a cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    board: Switchboard,
    status: watch::Receiver<Status>,
    drained: watch::Receiver<OperatorsDrain>,
    /// Of a gateway.
    reach: Option<Reach>,
    run: CurrentRun,
    leaving: CancellationToken,
    stop: CancellationToken,
    runs: JoinHandle<Result<(), Failure>>,
    upkeep: JoinHandle<()>,
    drain_deadline: Duration,
}

/// How the node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// Its first run has not come up yet.
    Joining,
    Run(Standing),
    /// Between two runs.
    Rejoining,
    /// Its slots are others'.
    Left,
    Failed,
}

impl Cluster {
    /// Agrees on what the cluster was founded with, and begins the first run. Waits for what is away, and says so.
    pub(crate) async fn join(
        config: &Config,
        workers: usize,
        store: Arc<dyn LogStore>,
        etcd: Arc<dyn Coordination>,
        ends: &Ends,
        hands: Hands,
    ) -> Result<(Self, worker::Routes), Failure> {
        let Config { cluster, .. } = config;
        let founding = founding(config)?;
        let slots = agree(&*etcd, founding).await?;
        let identity = Identity::of(config, ends)?;
        let security = security(config)?;
        let incarnation = new_incarnation();
        // A gateway too: shards would send it away one by one, and nobody would know why.
        security
            .check(&identity.me(incarnation))
            .map_err(|error| Failure::new(Exit::Usage, format!("peer.cert: {error}")))?;

        let (notice, noticed) = mpsc::channel(HINTS.max(slots.get() as usize));
        let (tell, news) = mpsc::channel(HINTS);
        let parts = Parts {
            slots,
            workers: if cluster.roles.shard { workers } else { 0 },
            security: security.clone(),
            inboxes: ends.senders.clone(),
            controls: ends.controls.clone(),
            noticed,
            tell,
        };
        let (board, upkeep) = Switchboard::new(parts, etcd.watch(RING_BUFFER));
        let routes = worker::Routes {
            slots: slots.get(),
            slot_of: slot,
            links: board.links(),
            ways: Vec::new(),
            known: Arc::new([]),
            noticed: Some(notice),
        };
        let stop = CancellationToken::new();
        let leaving = CancellationToken::new();
        let doors = Doors::new(ends.senders.len());
        let server = if cluster.roles.shard {
            Some(open_port(config, &security, identity.me(incarnation), &doors, &stop).await?)
        } else {
            None
        };
        if let Security::Tls(tls) = &security {
            let (tls, stop) = (Arc::clone(tls), stop.clone());
            tokio::spawn(async move { tls.watch(TLS_LOOK, stop).await });
        }
        let (said, status) = watch::channel(Status::Joining);
        let (drains, drained) = watch::channel(OperatorsDrain::default());
        let run = Arc::new(Mutex::new(None));
        crate::last_words::revoke(etcd_options(config)?, Arc::clone(&run));
        let runs = Runs {
            identity,
            incarnation,
            doors,
            server,
            roles: cluster.roles,
            slots,
            workers,
            shard: shard_options(config, workers),
            local_ends: ends.senders.clone(),
            store,
            etcd,
            board: board.clone(),
            hands,
            news,
            status: said,
            drained: drains,
            run: Arc::clone(&run),
            leaving: leaving.clone(),
            stop: stop.clone(),
        };
        let mut joined = Self {
            board,
            status,
            drained,
            reach: cluster.roles.gateway.then(Reach::default),
            run,
            leaving,
            upkeep: tokio::spawn(upkeep.run(stop.clone())),
            stop,
            runs: tokio::spawn(runs.run()),
            drain_deadline: config.server.drain_deadline,
        };
        joined.is_up().await?;
        Ok((joined, routes))
    }

    async fn is_up(&mut self) -> Result<(), Failure> {
        // A first run that ends is followed by another one, or by the reason why none follows.
        let up = |status: &Status| {
            use Standing::{Dead, Starting};
            !matches!(status, Status::Joining | Status::Rejoining | Status::Run(Starting | Dead))
        };
        match self.status.wait_for(up).await.map(|status| *status) {
            Ok(Status::Failed) | Err(_) => Err(self.failed_run().await),
            Ok(_) => Ok(()),
        }
    }

    async fn failed_run(&mut self) -> Failure {
        match (&mut self.runs).await {
            Ok(Err(failure)) => failure,
            ended => Failure::new(Exit::Internal, format!("the node's runs ended by themselves: {ended:?}")),
        }
    }

    pub(crate) fn shards(&self) -> Arc<dyn Shards> {
        Arc::new(self.board.clone())
    }

    pub(crate) async fn serves(&self, backend: Backend) {
        self.board.serves(backend).await;
    }

    /// What a person should look at, if anything.
    pub(crate) fn degraded(&self) -> Option<String> {
        match *self.status.borrow() {
            Status::Run(Standing::Degraded) => {
                Some("etcd does not answer: rooms are served, none can change its owner".to_owned())
            }
            Status::Run(Standing::Frozen) => Some(
                "etcd is older than the store: no room changes its owner until `banyan ring recover`"
                    .to_owned(),
            ),
            Status::Rejoining | Status::Run(Standing::Starting | Standing::Dead) => {
                Some("the node was fenced and comes back as another run".to_owned())
            }
            Status::Joining
            | Status::Left
            | Status::Failed
            | Status::Run(Standing::Up | Standing::Draining | Standing::Left) => None,
        }
    }

    /// For those who only look.
    pub(crate) fn current_run(&self) -> CurrentRun {
        Arc::clone(&self.run)
    }

    /// Why no client should come here now, if so.
    pub(crate) fn unready(&mut self) -> Option<&'static str> {
        let has_way = self.board.has_way();
        self.reach.as_mut()?.look(has_way, Instant::now())
    }

    /// What an operator wants of this node, as far as its run has heard.
    pub(crate) fn drained(&self) -> watch::Receiver<OperatorsDrain> {
        self.drained.clone()
    }

    /// Why the node's runs have ended by themselves, if they have.
    pub(crate) fn failed(&mut self) -> Option<Failure> {
        let failed = *self.status.borrow() == Status::Failed;
        failed.then(|| {
            Failure::new(
                Exit::Unavailable,
                "this node cannot stay in its cluster: the log says why".to_owned(),
            )
        })
    }

    /// Hands every slot to another node, as far as there is one, and leaves the ring. Clients are served on.
    pub(crate) async fn give_slots_away(&self) {
        self.leaving.cancel();
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(run) = run {
            run.input(Input::Drain).await.ok();
        }
        let mut status = self.status.clone();
        let left = status.wait_for(|status| matches!(status, Status::Left | Status::Failed));
        if timeout(self.drain_deadline / 3, left).await.is_err() {
            tracing::warn!("some slots found no other node in time: they are taken over");
        }
    }

    pub(crate) async fn leave(self) {
        self.stop.cancel();
        match self.runs.await {
            Ok(Ok(())) => {}
            ended => tracing::error!(?ended, "the node's last run did not end well"),
        }
        if let Err(error) = self.upkeep.await {
            tracing::error!(%error, "the switchboard did not end well");
        }
    }
}

/// What this node was told of its cluster.
fn founding(config: &Config) -> Result<Founding, Failure> {
    let slots = SlotCount::new(config.cluster.slots)
        .map_err(|error| Failure::new(Exit::Usage, format!("cluster.slots: {error}")))?;
    let scylla = &config.scylla;
    Ok(Founding {
        slots,
        data_center: scylla.datacenter.clone(),
        keyspace: scylla.keyspace.clone(),
        // At most 7.
        replication: scylla.replication as u16,
    })
}

/// Where etcd is, and how it is spoken to.
pub(crate) fn etcd_options(config: &Config) -> Result<servers::Options, Failure> {
    let cluster = &config.cluster;
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|error| {
            let words = crate::failure::words(&error);
            Failure::new(Exit::Io, format!("cannot read {}: {words}", path.display()))
        })
    };
    let ca = cluster.etcd_ca.as_ref().map(read).transpose()?;
    let identity = match (&cluster.etcd_cert, &cluster.etcd_key) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        (_, _) => None,
    };
    let login = cluster.etcd_user.clone().zip(cluster.etcd_password.0.clone());
    Ok(servers::Options {
        // Not everybody asks the same server first.
        first: uuid::Uuid::new_v4().as_u128() as usize,
        user: login.map(|(name, password)| servers::User { name, password }),
        tls: ca.map(|ca| servers::Tls { ca, identity, domain: None }),
        ..servers::Options::new(cluster.etcd.clone(), &cluster.name)
    })
}

/// Connects to etcd. Waits while it is away, and says so; not where it refuses this node.
pub(crate) async fn connect(config: &Config) -> Result<Etcd, Failure> {
    let options = etcd_options(config)?;
    let mut said = false;
    loop {
        match Etcd::connect(options.clone()).await {
            Ok(etcd) => return Ok(etcd),
            Err(error @ RingError::Etcd { .. }) => {
                wait(&mut said, &error).await;
            }
            Err(error) => return Err(told(&error)),
        }
    }
}

async fn wait(said: &mut bool, error: &RingError) {
    if !std::mem::replace(said, true) {
        tracing::warn!(%error, "waits for etcd");
    }
    sleep(AGAIN).await;
}

/// What the cluster was founded with. A node that was told otherwise is refused.
async fn agree(etcd: &dyn Coordination, founding: Founding) -> Result<SlotCount, Failure> {
    let mine = Meta { cluster: ClusterId(uuid::Uuid::new_v4().as_u128()), founding };
    let mut said = false;
    loop {
        match etcd.meta(mine.clone()).await {
            Ok(meta) => return Ok(meta.founding.slots),
            Err(error @ RingError::Etcd { .. }) => wait(&mut said, &error).await,
            Err(error) => return Err(told(&error)),
        }
    }
}

fn security(config: &Config) -> Result<Security, Failure> {
    let peer = &config.peer;
    match (&peer.ca, &peer.cert, &peer.key) {
        (Some(ca), Some(cert), Some(key)) => {
            let files = TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
            Tls::load(files).map(Security::Tls).map_err(|error| {
                Failure::new(Exit::Io, format!("peer.ca, peer.cert, peer.key: {error}"))
                    .with_hint("`banyan gencerts` makes the three files")
            })
        }
        (_, _, _) if peer.insecure => Ok(Security::PlainEverywhere),
        (_, _, _) => Ok(Security::Plain),
    }
}

/// Opens the port for other nodes.
async fn open_port(
    config: &Config,
    security: &Security,
    me: Me,
    doors: &Doors,
    stop: &CancellationToken,
) -> Result<PortHandle, Failure> {
    let listen = config.peer.listen;
    let server = Server::bind(listen, security.clone(), me, LinkOptions::default(), Arc::new(doors.clone()));
    let server = server.await.map_err(|error| match error {
        PeerError::Bind { address, why } => crate::serve::cannot_listen(address, "--peer-listen", &why),
        error => Failure::new(Exit::Usage, error.to_string()),
    })?;
    let handle = server.handle();
    tokio::spawn(server.run(stop.clone()));
    Ok(handle)
}

/// What stays the same from run to run.
#[derive(Debug, Clone)]
struct Identity {
    cluster: String,
    node: NodeId,
    entry: NodeEntry,
    links: u16,
}

impl Identity {
    fn of(config: &Config, ends: &Ends) -> Result<Self, Failure> {
        let Config { server, cluster, peer, .. } = config;
        let node = NodeId::parse(&server.node_id)
            .map_err(|error| Failure::new(Exit::Usage, format!("server.node_id: {error}")))?;
        let mut roles = Vec::new();
        if cluster.roles.gateway {
            roles.push(Role::Gateway);
        }
        if cluster.roles.shard {
            roles.push(Role::Shard);
        }
        let entry = NodeEntry {
            incarnation: Incarnation(0),
            peer_address: cluster.advertise.clone().unwrap_or_else(|| peer.listen.to_string()),
            roles,
            weight: cluster.weight,
            state: State::Up,
            release: VERSION.to_owned(),
        };
        let links = u16::try_from(ends.senders.len()).unwrap_or(u16::MAX);
        Ok(Self { cluster: cluster.name.clone(), node, entry, links })
    }

    fn me(&self, incarnation: Incarnation) -> Me {
        Me {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            incarnation,
            roles: self.entry.roles.clone(),
            links: self.links,
            release: self.entry.release.clone(),
            wire: banyan_proto::wire::VERSION,
        }
    }
}

/// The runs of this node, one after the other.
struct Runs {
    identity: Identity,
    /// Of the next run.
    incarnation: Incarnation,
    doors: Doors,
    /// The port for other nodes, where this one owns rooms.
    server: Option<PortHandle>,
    roles: Roles,
    slots: SlotCount,
    workers: usize,
    shard: banyan_shard::Options,
    local_ends: Vec<mpsc::Sender<Vec<banyan_proto::link::FromShard>>>,
    store: Arc<dyn LogStore>,
    etcd: Arc<dyn Coordination>,
    board: Switchboard,
    hands: Hands,
    news: mpsc::Receiver<OfOthers>,
    status: watch::Sender<Status>,
    drained: watch::Sender<OperatorsDrain>,
    run: Arc<Mutex<Option<RunnerHandle>>>,
    leaving: CancellationToken,
    stop: CancellationToken,
}

/// How long to wait between two runs.
#[derive(Debug, Default)]
struct Pauses {
    /// Runs in a row that did not last.
    short: u32,
}

impl Pauses {
    fn next(&mut self, lasted: Duration) -> Duration {
        self.short = if lasted >= LASTED { 0 } else { self.short + 1 };
        let doubled = PAUSE * 2_u32.saturating_pow(self.short.saturating_sub(1)).min(1 << 10);
        doubled.min(PAUSE_MAX)
    }
}

/// The owners of rooms of one run.
struct Owners {
    handle: Handle,
    drained: mpsc::Receiver<Drained>,
    ended: Vec<oneshot::Receiver<End>>,
    drain: CancellationToken,
}

fn rejoins(why: RunEnd) -> metrics::Counter {
    metrics::counter!("banyan_cluster_rejoins_total", "why" => format!("{why:?}"))
}

fn new_incarnation() -> Incarnation {
    Incarnation(uuid::Uuid::new_v4().as_u128())
}

impl Runs {
    async fn run(mut self) -> Result<(), Failure> {
        // A counter that begins with its first event shows no increase by it.
        for why in RunEnd::ALL {
            rejoins(why).absolute(0);
        }
        register_metrics();
        let ended = self.all().await;
        let status = if ended.is_ok() { Status::Left } else { Status::Failed };
        if let Err(failure) = &ended {
            tracing::error!(reason = failure.lines.join("; "), "this node cannot stay in its cluster");
        }
        self.status.send_replace(status);
        ended
    }

    async fn all(&mut self) -> Result<(), Failure> {
        let me = Peer { node: self.identity.node.clone(), incarnation: self.incarnation };
        let options = Options {
            me,
            entry: self.identity.entry.clone(),
            slots: self.slots,
            workers: if self.roles.shard { self.workers as u16 } else { 0 },
            limits: Limits::default(),
        };
        let mut node = Node::new(options, 0);
        let mut pauses = Pauses::default();
        loop {
            let begun = Instant::now();
            let Ended { node: before, why } = self.one(node).await;
            match why {
                Why::Left | Why::Stopped => return Ok(()),
                Why::Taken(other) => {
                    let words = format!(
                        "another node {} of this cluster lives (at {}): every node needs a name of its own",
                        self.identity.node, other.peer_address
                    );
                    let hint = "choose one with --node-id NAME";
                    return Err(Failure::new(Exit::Usage, words).with_hint(hint));
                }
                Why::Dead(_) if self.leaving.is_cancelled() || self.stop.is_cancelled() => return Ok(()),
                Why::Dead(end) => {
                    rejoins(end).increment(1);
                    self.status.send_replace(Status::Rejoining);
                    sleep(pauses.next(begun.elapsed())).await;
                    let incarnation = new_incarnation();
                    if let Some(server) = &self.server {
                        server.rejoin(self.identity.me(incarnation));
                    }
                    node = before.rejoin(incarnation, 0);
                }
            }
        }
    }

    /// One run, from its registration to its end.
    async fn one(&mut self, node: Node) -> Ended {
        let incarnation = node.me().incarnation;
        let over = CancellationToken::new();
        let owners = self.roles.shard.then(|| self.owners(incarnation, &over));
        let handle = owners.as_ref().map(|owners| owners.handle.clone());
        let around = Arc::new(Around {
            rows: Rows(Arc::clone(&self.store)),
            board: self.board.clone(),
            handle: handle.clone(),
            drained: Mutex::new(BTreeMap::new()),
            over: over.clone(),
        });
        let workers = handle.as_ref().map_or(0, Handle::workers) as u16;
        let surroundings = Arc::<Around>::clone(&around);
        let (runner, run) = Runner::new(
            node,
            self.slots,
            workers,
            Arc::clone(&self.etcd),
            surroundings,
            runner::Limits::default(),
        );
        *self.run.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.clone());
        self.board.begun(self.identity.me(incarnation), handle).await;

        let beside = CancellationToken::new();
        let follow = follow(run.view(), self.status.clone(), self.drained.clone(), beside.clone());
        let mut tasks = vec![tokio::spawn(follow)];
        let (mut ended, mut drain) = (Vec::new(), CancellationToken::new());
        if let Some(owners) = owners {
            self.doors.lead_to(Some(Run { handle: owners.handle.clone(), ring: run.clone() }));
            tasks.push(tokio::spawn(tick(owners.handle, run.clone(), beside.clone())));
            tasks.push(tokio::spawn(drained(owners.drained, around, run.clone(), beside.clone())));
            (ended, drain) = (owners.ended, owners.drain);
        }
        let mut ends = tokio::spawn(watch_ends(ended, run.clone()));

        let stopped = self.stop.clone();
        let mut running = Box::pin(runner.run(stopped));
        let end = loop {
            tokio::select! {
                end = &mut running => break end,
                Some(news) = self.news.recv() => match news {
                    OfOthers::Died(incarnation) => self.refused(incarnation, &run).await,
                    OfOthers::Wanted(slots) => self.wanted(slots, &run),
                },
            }
        };
        // Whoever left has handed everything over: what its owners of rooms still have is not theirs. A run that was stopped
        // completes what is in flight; a dead one has dropped it.
        self.doors.lead_to(None);
        drain.cancel();
        if (&mut ends).await.is_err() {
            tracing::error!("an owner of rooms is gone");
        }
        over.cancel();
        self.board.over().await;
        beside.cancel();
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the run did not end well");
            }
        }
        end
    }

    /// Makes the owners of rooms of a run.
    fn owners(&self, incarnation: Incarnation, over: &CancellationToken) -> Owners {
        let (sender, drained) = mpsc::channel(self.slots.get() as usize);
        let mut options = self.shard.clone();
        options.incarnation = incarnation;
        options.all_slots = None;
        options.slots = self.slots;
        options.cluster = Some(banyan_shard::Cluster {
            drained: sender,
            elsewhere: Arc::new(self.board.clone()),
            over: over.clone(),
        });
        let (handle, workers) =
            banyan_shard::build(options, Arc::clone(&self.store), self.local_ends.clone());
        let drain = CancellationToken::new();
        let ended = self.hands.shards(workers, &drain);
        Owners { handle, drained, ended, drain }
    }

    /// This node was refused where another one listened.
    async fn refused(&self, incarnation: Incarnation, run: &RunnerHandle) {
        let witness = self.identity.node.clone();
        run.input(Input::Refused { incarnation, witness }).await.ok();
        // Of a node that is a gateway only, others take no such word: its certificate is worth less. It would lose its links.
        if self.roles.shard {
            self.board.tell_all(&NodeMessage::Refused { incarnation });
        }
    }

    /// Clients of this node wait for slots that are out of reach. Whoever takes them takes them first.
    fn wanted(&self, slots: Vec<SlotId>, run: &RunnerHandle) {
        for part in slots.chunks(WANTED_MAX) {
            self.board.tell_all(&NodeMessage::Wanted { slots: part.to_vec() });
        }
        // Full: a short cut, as for the others.
        run.try_input(Input::Wanted { slots }).ok();
    }
}

/// Tells the status what the ring's machine says of itself.
async fn follow(
    mut view: watch::Receiver<View>,
    status: watch::Sender<Status>,
    drained: watch::Sender<OperatorsDrain>,
    stop: CancellationToken,
) {
    loop {
        let (standing, drain) = {
            let view = view.borrow_and_update();
            let serves = view.serving > 0;
            // A run that has not heard of the target says nothing against the one before it.
            let target = view.target.as_ref();
            let asked = target.map(|target| target.drained().contains(&view.me.node));
            (view.standing, asked.map(|asked| OperatorsDrain { asked, serves }))
        };
        if let Some(drain) = drain {
            drained.send_if_modified(|drained| std::mem::replace(drained, drain) != drain);
        }
        status.send_if_modified(|status| {
            let new = Status::Run(standing);
            std::mem::replace(status, new) != new
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells the ring which workers have had a turn.
async fn tick(handle: Handle, run: RunnerHandle, stop: CancellationToken) {
    let mut before: Vec<u64> = handle.ticks().collect();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(TICK) => {}
        }
        if handle.is_stalled() {
            run.stuck();
        }
        for (worker, (tick, before)) in (0_u16..).zip(handle.ticks().zip(&mut before)) {
            if std::mem::replace(before, tick) != tick {
                run.alive(worker);
            }
        }
    }
}

/// Passes drained slots on to the ring.
async fn drained(
    mut drained: mpsc::Receiver<Drained>,
    around: Arc<Around>,
    run: RunnerHandle,
    stop: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = drained.recv() => next,
        };
        let Some(next) = next else { return };
        let (slot, drain) = (next.slot, next.drain);
        around.note(next);
        let input = Input::Slot { slot, input: banyan_router::slot_owner::Input::Drained { drain } };
        if run.input(input).await.is_err() {
            return;
        }
    }
}

/// Waits for all workers; the ring hears why the first one ended.
async fn watch_ends(ended: Vec<oneshot::Receiver<End>>, run: RunnerHandle) {
    let mut waiting: futures_util::stream::FuturesUnordered<_> = ended.into_iter().collect();
    while let Some(end) = futures_util::StreamExt::next(&mut waiting).await {
        match end {
            Ok(End::Fenced) => run.fenced(),
            Ok(End::Stuck) => run.stuck(),
            Ok(End::Drained | End::Over) => {}
            // The thread is gone: nothing of this run may be taken for alive.
            Err(_) => run.stuck(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_cannot_stay_comes_back_less_and_less_often() {
        let mut pauses = Pauses::default();
        let short = Duration::from_secs(5);
        let ms: Vec<u128> = (0..8).map(|_| pauses.next(short).as_millis()).collect();
        assert_eq!(ms, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(pauses.next(LASTED), PAUSE);
        assert_eq!(pauses.next(short), PAUSE);
        assert_eq!(pauses.next(short), PAUSE * 2);
    }
}
