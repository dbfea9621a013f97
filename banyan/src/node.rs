//! The node: every role of one process, wired together.
//!
//! Owns: the order in which the parts are made, the threads that run them, and the order in which they stop: gateways
//! tell their clients and finish what is in flight, then the owners of rooms finish their appends, then the store closes.
//! Each worker thread runs one gateway worker and one shard worker on a runtime of its own; everything asynchronous
//! beside them (HTTP, accounts, the ops port) runs on the runtime that starts the node.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use banyan_gateway::accounts::keys::{Algorithm, Keys};
use banyan_gateway::accounts::password::Cost;
use banyan_gateway::accounts::{self, Service};
use banyan_gateway::admission::{Admission, Caps};
use banyan_gateway::aside::Aside;
use banyan_gateway::backend::{self, Backend};
use banyan_gateway::clock;
use banyan_gateway::http::{self, Page};
use banyan_gateway::local::ToWorker;
use banyan_gateway::worker::{self, Deps, Door, Route, Way};
use banyan_gateway::{handover, listener, tls};
use banyan_gateway_core::bucket::{Buckets, Rate};
use banyan_gateway_core::command;
use banyan_gateway_core::forwarded::IpNet;
use banyan_gateway_core::head::{self, Origins};
use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use banyan_proto::link::LinkId;
use banyan_router::local::{self, Local, Step};
use banyan_router::{SlotCount, slot_of};
use banyan_shard::End;
use banyan_storage::embedded::{self, Embedded, OpenError};
use banyan_storage::log_store::SlotOwner;
use banyan_storage::{Accounts, LogStore};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::config::Lazy;
use crate::config::kind::Network;
use crate::failure::{Exit, Failure, words};
use crate::{page, token_cmd};

/// Batches that may wait for a link or a worker's control. A batch is what one turn of a worker produced.
const QUEUE: usize = 1_024;
/// Cells of the table of users' send rates, eight bytes each; two users of one cell share its rate. Of 18,000 users at
/// once one in fifteen meets another, who must send as well to be noticed.
const BUCKETS: usize = 1 << 18;
/// Bytes that the kernel may hold unsent for one socket.
const UNSENT_BYTES: u32 = 16 << 10;
/// How long clients may take to leave by themselves before they are told to go: on one node there is nowhere else to go.
const DRAIN_WINDOW: Duration = Duration::from_millis(200);
/// How long commands wait for an owner of their slot: a lease's time to live (3 s) and what a takeover needs after it.
const HOLD: Duration = Duration::from_secs(5);
/// Bytes of such commands that one worker holds.
const HOLD_BYTES: usize = 4 << 20;
/// How long requests of HTTP may go on while the node stops.
const HTTP_DRAIN: Duration = Duration::from_secs(5);

/// One process owns all slots at once: the rows of the first one speak for all of them.
const ALL_SLOTS: SlotId = SlotId(0);

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) clients: SocketAddr,
    store: Arc<Embedded>,
    gateways: Vec<oneshot::Receiver<io::Result<()>>>,
    shards: Vec<oneshot::Receiver<End>>,
    threads: Vec<thread::JoinHandle<()>>,
    drain_gateways: CancellationToken,
    drain_http: CancellationToken,
    drain_shards: CancellationToken,
    http: JoinHandle<()>,
    beside: Vec<JoinHandle<()>>,
    backend: JoinHandle<()>,
    stop_backend: CancellationToken,
}

/// The slot of a room or user channel, were there as many as there can be.
fn slot(room: &str) -> u16 {
    slot_of(room, SlotCount::MAX).0
}

/// One process that owns every slot: a link to each of its workers, said once and for ever.
fn local_routes(owners: &banyan_shard::Handle, epoch: Epoch) -> worker::Routes {
    let ways = (0..owners.workers())
        .map(|worker| Arc::new(ToWorker { handle: owners.clone(), worker }) as Arc<dyn Way>)
        .collect();
    let slots = SlotCount::DEFAULT.get();
    let known = (0..slots)
        // At most 65,536.
        .map(|slot| SlotId(slot as u16))
        .map(|slot| Route { slot, epoch, link: u16::try_from(owners.worker_of_slot(slot)).ok() })
        .collect();
    worker::Routes { slots, slot_of: slot, links: owners.workers(), ways, known, unknown_owners: None }
}

impl Node {
    /// Opens the store, binds, starts every thread. Must be called on the runtime that serves HTTP.
    pub(crate) async fn start(config: &Config) -> Result<Self, Failure> {
        let workers = config.gateway.workers.map_or_else(default_workers, |workers| workers as usize);
        let door = door(config)?;
        let listeners = listener::bind(config.server.listen, workers)
            .map_err(|error| crate::serve::cannot_listen(config.server.listen, "--listen", &error))?;
        let clients = listeners[0].local_addr().map_err(|error| cannot("tell the own address", &error))?;

        let store = Arc::new(open_store(config)?);
        let log: Arc<dyn LogStore> = Arc::<Embedded>::clone(&store);
        let account_store: Arc<dyn Accounts> = Arc::<Embedded>::clone(&store);

        // Links: one for each gateway worker, one for what is asked beside them.
        let (links, inboxes): (Vec<_>, Vec<_>) = (0..=workers).map(|_| mpsc::channel(QUEUE)).unzip();
        let (controls, control_inboxes): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| mpsc::channel(QUEUE)).unzip();
        let mut inboxes = inboxes.into_iter();

        let tenure = begin_run(&*log, &config.server.node_id).await?;
        let mut shard_options = banyan_shard::Options {
            workers,
            incarnation: tenure.incarnation,
            all_slots: Some(tenure.epoch),
            open_rooms: config.rooms.open_rooms as usize,
            idle: config.rooms.idle_close,
            drain_deadline: config.server.drain_deadline / 2,
            ..banyan_shard::Options::default()
        };
        shard_options.room.members = u64::from(config.rooms.max_members);
        shard_options.room.lazy_public = config.rooms.lazy == Lazy::Public;
        let (owners, shard_workers) = banyan_shard::build(shard_options, log, links);
        let routes = local_routes(&owners, tenure.epoch);

        let accounts = accounts(config, account_store)?;
        let started = Instant::now();
        let rates = Arc::new(Buckets::new(BUCKETS, sends(config)));
        let backend_link = LinkId(u16::try_from(workers).unwrap_or(u16::MAX));
        let backend =
            Backend::new(backend::Options::new(backend_link), Arc::new(owners.clone()), accounts.clone());
        let aside = Aside::new(tokio::runtime::Handle::current(), backend.clone(), controls.clone());
        let admission = Arc::new(Admission::new(
            Caps {
                connections: config.limits.connections as usize,
                unauthenticated: config.limits.unauthenticated as usize,
                per_address: config.limits.connections_per_ip,
                per_user: config.limits.connections_per_user,
            },
            workers,
        ));

        let (drain_gateways, drain_http, drain_shards, stop_backend) = (
            CancellationToken::new(),
            CancellationToken::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let router = http::router(http::State {
            accounts: accounts.clone(),
            backend: backend.clone(),
            sends: Arc::clone(&rates),
            started,
            limits: command_limits(config),
            allowed_origins: door.origins.clone(),
            trusted_proxies: door.trusted_proxies.clone(),
            page: Page::new(page::FILES),
        });
        let http_options = http::Options { drain_deadline: HTTP_DRAIN, ..http::Options::default() };
        let (http_handle, http_server) = http::Server::new(http_options, router);
        let (handovers, handed_over) = mpsc::channel(QUEUE);

        let nonce = uuid_bits();
        let mut node = Self {
            clients,
            store,
            gateways: Vec::new(),
            shards: Vec::new(),
            threads: Vec::new(),
            http: tokio::spawn(http_server.run(drain_http.clone())),
            beside: vec![
                tokio::spawn(handover::run(handed_over, http_handle, drain_http.clone())),
                tokio::spawn(aside.clone().run(stop_backend.clone())),
                tokio::spawn(accounts.maintain(stop_backend.clone())),
            ],
            backend: tokio::spawn(async {}),
            drain_gateways,
            drain_http,
            drain_shards,
            stop_backend,
        };
        let per_worker = listeners.into_iter().zip(control_inboxes).zip(shard_workers);
        for (number, ((listener, control), shard)) in per_worker.enumerate() {
            let Some(inbox) = inboxes.next() else { break };
            let deps = Deps {
                link: LinkId(u16::try_from(number).unwrap_or(u16::MAX)),
                routes: routes.clone(),
                inbox,
                control,
                workers: controls.clone(),
                admission: Arc::clone(&admission),
                aside: aside.clone(),
                http: handovers.clone(),
            };
            node.start_worker(
                number,
                gateway_options(config, number, workers, nonce, &door, &rates, started),
                listener,
                deps,
                shard,
            )?;
        }
        if let Some(inbox) = inboxes.next() {
            node.backend = tokio::spawn(backend.run(inbox, node.stop_backend.clone()));
        }
        Ok(node)
    }

    /// One thread: a gateway worker and a shard worker.
    fn start_worker(
        &mut self,
        number: usize,
        options: worker::Options,
        listener: TcpListener,
        deps: Deps,
        shard: banyan_shard::Worker,
    ) -> Result<(), Failure> {
        let (gateway_ended, gateway) = oneshot::channel();
        let (shard_ended, shard_end) = oneshot::channel();
        let (drain_gateway, drain_shard) = (self.drain_gateways.clone(), self.drain_shards.clone());
        let started = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let runtime =
                match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        drop(gateway_ended.send(Err(error)));
                        return;
                    }
                };
            runtime.block_on(async {
                let shard = tokio::task::spawn_local(async move {
                    shard_ended.send(shard.run(drain_shard).await).ok();
                });
                let ended = match worker::Worker::new(options, listener, deps) {
                    Ok(gateway) => gateway.run(drain_gateway).await,
                    Err(error) => Err(error),
                };
                // Rooms go on until everybody who asks them has stopped.
                drop(gateway_ended.send(ended));
                drop(shard.await);
            });
        });
        self.threads.push(started.map_err(|error| cannot("start a worker", &error))?);
        self.gateways.push(gateway);
        self.shards.push(shard_end);
        Ok(())
    }

    /// What a person should look at, if anything.
    pub(crate) fn degraded(&self) -> Option<String> {
        let status = self.store.status();
        match (status.degraded, status.full) {
            (Some(why), _) => Some(why),
            (None, true) => {
                Some(format!("the disk is full: {} MiB free; sends are refused", status.free_bytes >> 20))
            }
            (None, false) => None,
        }
    }

    /// Resolves when a worker ends by itself, which it never should.
    pub(crate) async fn failed(&mut self) -> Failure {
        loop {
            for gateway in &mut self.gateways {
                if let Ok(ended) = gateway.try_recv() {
                    let why =
                        ended.err().map_or_else(|| "without a reason".to_owned(), |error| error.to_string());
                    return Failure::new(Exit::Internal, format!("a worker ended by itself: {why}"));
                }
            }
            for shard in &mut self.shards {
                let why = match shard.try_recv() {
                    Ok(End::Fenced) => "this run has been fenced: another one has taken over",
                    Ok(End::Stuck) => "the store does not say whether this run may go on",
                    Ok(End::Drained | End::Over) => "an owner of rooms ended by itself",
                    Err(_) => continue,
                };
                return Failure::new(Exit::Unavailable, why.to_owned());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Stops in order. What takes too long is for the caller to cut.
    pub(crate) async fn drain(self) {
        self.drain_gateways.cancel();
        for gateway in self.gateways {
            match gateway.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a worker did not stop well"),
                Err(_) => tracing::error!("a worker is gone"),
            }
        }
        self.drain_http.cancel();
        join(self.http).await;
        self.stop_backend.cancel();
        for task in self.beside {
            join(task).await;
        }
        join(self.backend).await;
        self.drain_shards.cancel();
        for shard in self.shards {
            if shard.await.is_err() {
                tracing::error!("an owner of rooms is gone");
            }
        }
        let (store, threads) = (self.store, self.threads);
        let closed = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a worker's thread ended in a panic");
                }
            }
            store.close();
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "the store was not closed");
        }
    }
}

async fn join(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "a task did not end well");
    }
}

fn cannot(what: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::Unavailable, format!("cannot {what}: {}", words(error)))
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// One for each core, as far as their numbers go: they are a byte of what names a connection.
fn default_workers() -> usize {
    cores().min(256)
}

/// Random bits of this run.
fn uuid_bits() -> u32 {
    uuid::Uuid::new_v4().as_u128() as u32
}

fn sends(config: &Config) -> Rate {
    Rate::per_second(config.limits.sends_per_s, config.limits.sends_burst)
}

fn command_limits(config: &Config) -> command::Limits {
    command::Limits {
        text_bytes: config.limits.text_bytes as usize,
        data_bytes: config.limits.data_bytes as usize,
        ..command::Limits::default()
    }
}

fn door(config: &Config) -> Result<Door, Failure> {
    let origins = config.gateway.allowed_origins.iter().map(String::as_str);
    let origins = Origins::parse(origins)
        .map_err(|error| Failure::new(Exit::Usage, format!("gateway.allowed_origins: {error}")))?;
    let tls = match (&config.tls.cert, &config.tls.key) {
        (Some(certificate), Some(key)) => Some(tls::load(certificate, key).map_err(|error| {
            let exit = match error {
                tls::Error::Pem { .. } => Exit::Io,
                tls::Error::Empty(_) | tls::Error::Unfit(_) => Exit::Usage,
            };
            Failure::new(exit, format!("TLS: {error}")).with_hint("tls.cert and tls.key name PEM files: the certificate chain, its own first, and its private key")
        })?),
        (_, _) => None,
    };
    Ok(Door {
        proxy_protocol: config.gateway.proxy_protocol,
        trusted_proxies: config.gateway.trusted_proxies.iter().map(net).collect::<Result<_, _>>()?,
        origins,
        head: head::Limits::default(),
        tls,
    })
}

fn net(network: &Network) -> Result<IpNet, Failure> {
    let text = format!("{}/{}", network.address, network.prefix);
    text.parse()
        .map_err(|error| Failure::new(Exit::Usage, format!("gateway.trusted_proxies: {text}: {error}")))
}

fn open_store(config: &Config) -> Result<Embedded, Failure> {
    let mut options = embedded::Options::new(config.server.data_dir.join("store"));
    options.min_free_bytes = config.storage.min_free;
    options.cache_bytes = config.storage.cache;
    Embedded::open(options).map_err(|error| {
        let (exit, hint) = match &error {
            OpenError::Locked { .. } => (Exit::Unavailable, "only one server may use a data directory: stop the other one, or choose another with --data-dir DIR"),
            OpenError::NewerFormat { .. } => (Exit::Io, "run the release that wrote it or a newer one, or choose another directory with --data-dir DIR"),
            OpenError::OlderFormat { .. } => (Exit::Io, "choose another directory with --data-dir DIR, or move this one away"),
            OpenError::NotOurs { .. } => (Exit::Io, "choose an empty or missing directory with --data-dir DIR"),
            OpenError::Directory { .. } => (Exit::Io, "make it readable and writable for this user, or choose another with --data-dir DIR"),
            OpenError::Damaged(_) => (Exit::Io, "restore the directory from a copy; it was not changed"),
            OpenError::Thread(_) => (Exit::Unavailable, "the system has no thread left: look at ulimit -u"),
        };
        Failure::new(exit, format!("data directory: {error}")).with_hint(hint)
    })
}

/// Ends the run before, gives this one its name and an epoch above all earlier ones.
async fn begin_run(store: &dyn LogStore, node: &str) -> Result<Tenure, Failure> {
    let mut local = Local::new(Incarnation(uuid::Uuid::new_v4().as_u128()));
    let mut before = None;
    loop {
        let done = match local.step() {
            Step::Serve(tenure) => {
                let Tenure { epoch, incarnation } = tenure;
                tracing::info!(epoch = epoch.0, %incarnation, "this run owns all slots");
                return Ok(tenure);
            }
            Step::Load => store.slot_owners(ALL_SLOTS).await.map(|owners| {
                let newest = owners.into_iter().max();
                before = newest.map(|SlotOwner { epoch, incarnation, .. }| Tenure { epoch, incarnation });
                local::Answer::Loaded(before)
            }),
            Step::Fence(incarnation) => store.write_fence(incarnation).await.map(|()| local::Answer::Done),
            Step::Register(incarnation) => {
                let registered = store.register_incarnation(incarnation, node.to_owned()).await;
                registered.map(|()| local::Answer::Done)
            }
            Step::Keep(Tenure { epoch, incarnation }) => {
                let owner = SlotOwner { epoch, incarnation, closed: false };
                let closes = before.map(|before| (before.epoch, before.incarnation));
                store.put_slot_owner(ALL_SLOTS, owner, closes).await.map(|()| local::Answer::Done)
            }
        };
        match done {
            Ok(answer) => local.next(answer),
            Err(error) => {
                let why = format!("cannot begin a run on the data directory: {error}");
                return Err(Failure::new(Exit::Unavailable, why));
            }
        };
    }
}

fn accounts(config: &Config, store: Arc<dyn Accounts>) -> Result<Service, Failure> {
    let directory = &config.server.data_dir;
    let keys = token_cmd::keys(Keys::load_or_create(directory, Algorithm::default(), clock::unix_ms()))?;
    let wanted = &config.accounts;
    let options = accounts::Options {
        signup: wanted.signup,
        token_lifetime: wanted.token_lifetime,
        password_min: wanted.min_password as usize,
        hashing: Cost {
            memory_kib: u32::try_from(wanted.hashing_memory >> 10).unwrap_or(u32::MAX),
            passes: wanted.hashing_passes,
            concurrency: wanted
                .hashing_concurrency
                .map_or_else(|| cores().div_ceil(2), |count| count as usize),
            queue: wanted.hashing_queue as usize,
        },
        ..accounts::Options::default()
    };
    Service::new(options, store, keys, Some(directory.clone()))
        .map_err(|error| Failure::new(Exit::Usage, format!("accounts: {error}")))
}

fn gateway_options(
    config: &Config,
    number: usize,
    workers: usize,
    nonce: u32,
    door: &Door,
    rates: &Arc<Buckets>,
    begun: Instant,
) -> worker::Options {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (gateway, limits) = (&config.gateway, &config.limits);
    let accepts = (limits.accepts_per_s / u32::try_from(workers).unwrap_or(1).max(1)).max(1);
    worker::Options {
        core: banyan_gateway_core::worker::Options {
            worker: u8::try_from(number).unwrap_or(u8::MAX),
            nonce,
            node: config.server.node_id.as_str().into(),
            ring_bytes: gateway.ring_bytes_per_room as usize,
            rings_bytes: gateway.ring_bytes_per_worker as usize,
            ping_interval_ms: ms(gateway.ping_interval),
            pong_deadline_ms: ms(gateway.pong_deadline),
            auth_deadline_ms: ms(gateway.auth_timeout),
            slow_deadline_ms: ms(gateway.progress_deadline),
            subscriptions: limits.subscriptions as usize,
            sends: Arc::clone(rates),
            sends_per_s: limits.sends_per_s,
            frame_bytes: limits.frame_bytes as u32,
            fragments: 16,
            in_flight: limits.in_flight as usize,
            connections_per_user: limits.connections_per_user as usize,
            command: command_limits(config),
            hold_ms: ms(HOLD),
            hold_bytes: HOLD_BYTES,
            seed: None,
        },
        door: door.clone(),
        handshake_deadline_ms: ms(gateway.handshake_timeout),
        accepts: Rate::per_second(accepts, accepts),
        unsent_bytes: UNSENT_BYTES,
        drain_window: DRAIN_WINDOW,
        begun,
        drain_deadline: config.server.drain_deadline / 2,
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::Epoch;
    use banyan_storage::Memory;

    use super::*;

    #[tokio::test]
    async fn a_run_ends_the_one_before_and_has_an_epoch_of_its_own() {
        let store = Memory::new();
        let first = begin_run(&store, "node-1").await.unwrap();
        assert_eq!(first.epoch, Epoch(1));
        let second = begin_run(&store, "node-1").await.unwrap();
        assert!(second.epoch == Epoch(2) && second.incarnation != first.incarnation);
        for (run, fenced) in [(first, true), (second, false)] {
            assert_eq!(store.is_fenced(run.incarnation).get().await, Ok(fenced));
        }
        let owners = store.slot_owners(ALL_SLOTS).await.unwrap();
        assert_eq!(owners.iter().map(|owner| owner.closed).collect::<Vec<_>>(), [true, false]);
        assert_eq!(store.incarnations().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_run_that_cannot_be_begun_serves_nothing() {
        let store = Memory::new();
        store.faults().fail_owner_writes(Some(banyan_storage::Error::Closed), true);
        let failure = begin_run(&store, "node-1").await.unwrap_err();
        assert_eq!(failure.exit as u8, Exit::Unavailable as u8);
        store.faults().fail_owner_writes(None, false);
        // Whatever came of the first try, its names are not used again.
        let run = begin_run(&store, "node-1").await.unwrap();
        assert_eq!(store.is_fenced(run.incarnation).get().await, Ok(false));
    }
}
