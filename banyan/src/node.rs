//! The node: every role of one process, wired together.
//!
//! Owns: the order in which the parts are made, the threads that run them, and the order in which they stop: gateways
//! tell their clients and finish what is in flight, then the owners of rooms finish their appends, then the store closes. A
//! node of a cluster gives its slots away first, while its clients talk on.
//! Each worker thread runs one gateway worker and one shard worker on a runtime of its own; everything asynchronous
//! beside them (HTTP, accounts, the ring, the ops port) runs on the runtime that starts the node.

mod alone;
mod drain;
mod gateways;
mod store;
mod threads;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use banyan_router::{SlotCount, slot_of};
use banyan_router_etcd::Etcd;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::Source;
use crate::cluster::{self, Cluster};
use crate::config::Config;
use crate::failure::{Exit, Failure, words};
use crate::readiness::State;

use alone::Alone;
use gateways::Gateways;
use store::Store;
use threads::Threads;

pub(crate) use alone::shard_options;
pub(crate) use drain::Drained;
pub(crate) use gateways::Ends;
pub(crate) use threads::Hands;

/// Batches that may wait for a link or a worker's control. A batch is what one turn of a worker produced.
pub(crate) const QUEUE: usize = 1_024;
/// How long clients may take to leave by themselves before they are told to go: on one node there is nowhere else to go.
const DRAIN_WINDOW: Duration = Duration::from_millis(200);

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where clients connect, if they do.
    pub(crate) clients: Option<SocketAddr>,
    store: Store,
    gateways: Option<Gateways>,
    owners: Owners,
    threads: Threads,
}

/// Who owns rooms.
#[derive(Debug)]
enum Owners {
    /// This process, all of them, always.
    Alone(Alone),
    /// The nodes of a cluster, this one perhaps among them.
    Cluster(Cluster),
}

/// The slot of a room or user channel, were there as many as there can be.
pub(crate) fn slot(room: &str) -> u16 {
    slot_of(room, SlotCount::MAX).0
}

impl Node {
    /// Opens the store, binds, starts every thread. Must be called on the runtime that serves HTTP.
    pub(crate) async fn start(config: &Config) -> Result<Self, Failure> {
        let workers = config.gateway.workers.map_or_else(default_workers, |workers| workers as usize);
        if config.is_cluster() {
            // Side by side: what one of them refuses is told though the other is away.
            let (store, etcd) = tokio::try_join!(Store::open(config), cluster::connect(config))?;
            let threads = Threads::start(workers)?;
            return Self::start_in_cluster(config, workers, store, etcd, threads).await;
        }
        let store = Store::open(config).await?;
        let threads = Threads::start(workers)?;
        let ends = Ends::new(workers);
        let (owners, routes) = Alone::start(config, store.log(), &ends, &threads.hands()).await?;
        let shards = Arc::new(owners.handle.clone());
        let gateways =
            Gateways::start(config, store.accounts(), ends, &routes, shards, DRAIN_WINDOW, &threads)?;
        let clients = Some(gateways.clients);
        Ok(Self { clients, store, gateways: Some(gateways), owners: Owners::Alone(owners), threads })
    }

    async fn start_in_cluster(
        config: &Config,
        workers: usize,
        store: Store,
        etcd: Etcd,
        threads: Threads,
    ) -> Result<Self, Failure> {
        let roles = config.cluster.roles;
        // Without clients there is one end, for pushes to user channels.
        let ends = Ends::new(if roles.gateway { workers } else { 0 });
        let etcd = Arc::new(etcd);
        let (cluster, routes) =
            Cluster::join(config, workers, store.log(), etcd, &ends, threads.hands()).await?;
        let gateways = if roles.gateway {
            // A third of the time that a stop may take: the next third is for who does not leave.
            let window = config.server.drain_deadline / 3;
            let shards = cluster.shards();
            let mut gateways =
                Gateways::start(config, store.accounts(), ends, &routes, shards, window, &threads)?;
            gateways.follow(cluster.drained(), window);
            cluster.serves(gateways.backend.clone()).await;
            Some(gateways)
        } else {
            None
        };
        let clients = gateways.as_ref().map(|gateways| gateways.clients);
        Ok(Self { clients, store, gateways, owners: Owners::Cluster(cluster), threads })
    }

    /// What a person should look at, if anything.
    fn degraded(&self) -> Option<String> {
        let ring = match &self.owners {
            Owners::Alone(_) => None,
            Owners::Cluster(cluster) => cluster.degraded(),
        };
        ring.or_else(|| self.store.degraded())
    }

    /// Where the admin page sees the ring.
    pub(crate) fn ring(&self, config: &Config) -> Source {
        match &self.owners {
            Owners::Alone(alone) => Source::Alone {
                node: config.server.node_id.clone(),
                address: self.clients.map(|address| address.to_string()).unwrap_or_default(),
                tenure: alone.tenure,
            },
            Owners::Cluster(cluster) => {
                Source::Cluster { name: config.cluster.name.clone(), run: cluster.current_run() }
            }
        }
    }

    /// What an operator wants of it; `None` where there is nobody to ask.
    pub(crate) fn drained(&self) -> Option<watch::Receiver<Drained>> {
        match &self.owners {
            Owners::Alone(_) => None,
            Owners::Cluster(cluster) => Some(cluster.drained()),
        }
    }

    /// How ready it is, while it is not told to stop.
    pub(crate) fn look(&mut self) -> State {
        if let Owners::Cluster(cluster) = &mut self.owners {
            if cluster.drained().borrow().asked {
                return State::Drained;
            }
            if let Some(why) = cluster.unready() {
                return State::Unready { why };
            }
        }
        self.degraded().map_or(State::Ready, |why| State::Degraded { why })
    }

    /// Resolves when a part ends by itself, which it never should.
    pub(crate) async fn failed(&mut self) -> Failure {
        loop {
            if let Some(failure) = self.gateways.as_mut().and_then(Gateways::failed) {
                return failure;
            }
            let failure = match &mut self.owners {
                Owners::Alone(alone) => alone.failed(),
                Owners::Cluster(cluster) => cluster.failed(),
            };
            if let Some(failure) = failure {
                return failure;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Stops in order. What takes too long is for the caller to cut.
    pub(crate) async fn drain(self) {
        if let Owners::Cluster(cluster) = &self.owners {
            cluster.give_slots_away().await;
        }
        if let Some(gateways) = self.gateways {
            gateways.drain().await;
        }
        match self.owners {
            Owners::Alone(alone) => alone.drain().await,
            Owners::Cluster(cluster) => cluster.leave().await,
        }
        let (store, threads, runtime) = (self.store, self.threads, Handle::current());
        let closed = tokio::task::spawn_blocking(move || {
            threads.join();
            store.close(&runtime);
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
fn random_bits() -> u32 {
    uuid::Uuid::new_v4().as_u128() as u32
}
