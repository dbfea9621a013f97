//! The gateway part of a node: its workers, the HTTP API, accounts, and what is asked beside the workers.
//!
//! Owns: the order in which they are made and stopped: workers tell their clients and finish what is in flight, then HTTP
//! ends, then what both asked.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use banyan_gateway::accounts::keys::{Algorithm, Keys};
use banyan_gateway::accounts::password::Cost;
use banyan_gateway::accounts::{self, Service};
use banyan_gateway::admission::{Admission, Caps};
use banyan_gateway::aside::Aside;
use banyan_gateway::backend::{self, Backend, Shards};
use banyan_gateway::http::{self, Page};
use banyan_gateway::worker::{self, Control, Deps, Door};
use banyan_gateway::{clock, handover, listener, tls};
use banyan_gateway_core::bucket::{Buckets, Rate};
use banyan_gateway_core::command;
use banyan_gateway_core::forwarded::IpNet;
use banyan_gateway_core::head::{self, Origins};
use banyan_proto::link::{FromShard, LinkId};
use banyan_storage::Accounts;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::drain::{self, Drained, Patience};
use super::threads::Threads;
use super::{QUEUE, cores, join, random_bits};
use crate::config::Config;
use crate::config::kind::Network;
use crate::failure::{Exit, Failure};
use crate::{page, token_cmd};

/// Cells of the table of users' send rates, eight bytes each; two users of one cell share its rate. Of 18,000 users at
/// once one in fifteen meets another, who must send as well to be noticed.
const BUCKETS: usize = 1 << 18;
/// Bytes that the kernel may hold unsent for one socket.
const UNSENT_BYTES: u32 = 16 << 10;
/// How long commands wait for an owner of their slot: a lease's time to live (3 s) and what a takeover needs after it.
const HOLD: Duration = Duration::from_secs(5);
/// Bytes of such commands that one worker holds.
const HOLD_BYTES: usize = 4 << 20;
/// In how long a gateway of a cluster has looked up the logins of all its connections once. What ends logins tells the
/// others; this is for what they did not hear.
const LOGIN_CHECK: Duration = Duration::from_secs(5 * 60);
/// How long requests of HTTP may go on while the node stops.
const HTTP_DRAIN: Duration = Duration::from_secs(5);

/// The ends of the gateway's links, by number: one for each worker, then the one of what is asked beside them.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) senders: Vec<mpsc::Sender<Vec<FromShard>>>,
    inboxes: Vec<mpsc::Receiver<Vec<FromShard>>>,
    pub(crate) controls: Vec<mpsc::Sender<Control>>,
    control_inboxes: Vec<mpsc::Receiver<Control>>,
}

impl Ends {
    pub(crate) fn new(workers: usize) -> Self {
        let (senders, inboxes) = (0..=workers).map(|_| mpsc::channel(QUEUE)).unzip();
        let (controls, control_inboxes) = (0..workers).map(|_| mpsc::channel(QUEUE)).unzip();
        Self { senders, inboxes, controls, control_inboxes }
    }
}

/// The gateway of a node, running.
#[derive(Debug)]
pub(super) struct Gateways {
    pub(super) clients: SocketAddr,
    pub(super) backend: Backend,
    controls: Vec<mpsc::Sender<Control>>,
    ended: Vec<oneshot::Receiver<io::Result<()>>>,
    drain_workers: CancellationToken,
    drain_http: CancellationToken,
    stop_beside: CancellationToken,
    http: JoinHandle<()>,
    beside: Vec<JoinHandle<()>>,
}

impl Gateways {
    /// Binds and starts everything. Must be called on the runtime that serves HTTP.
    pub(super) fn start(
        config: &Config,
        store: Arc<dyn Accounts>,
        ends: Ends,
        routes: &worker::Routes,
        shards: Arc<dyn Shards>,
        drain_window: Duration,
        threads: &Threads,
    ) -> Result<Self, Failure> {
        let Ends { inboxes, controls, control_inboxes, .. } = ends;
        let workers = controls.len();
        let door = door(config)?;
        let listeners = listener::bind(config.server.listen, workers)
            .map_err(|error| crate::serve::cannot_listen(config.server.listen, "--listen", &error))?;
        let clients =
            listeners[0].local_addr().map_err(|error| super::cannot("tell the own address", &error))?;

        let accounts = accounts(config, store)?;
        let started = Instant::now();
        let rates = Arc::new(Buckets::new(BUCKETS, sends(config)));
        let backend_link = LinkId(workers as u32);
        let backend = Backend::new(backend::Options::new(backend_link), shards, accounts.clone());
        let aside = Aside::new(tokio::runtime::Handle::current(), backend.clone(), controls.clone());
        let aside = if config.is_cluster() { aside.in_cluster() } else { aside };
        let admission = Arc::new(Admission::new(
            Caps {
                connections: config.limits.connections as usize,
                unauthenticated: config.limits.unauthenticated as usize,
                per_address: config.limits.connections_per_ip,
                per_user: config.limits.connections_per_user,
            },
            workers,
        ));

        let [drain_workers, drain_http, stop_beside] = std::array::from_fn(|_| CancellationToken::new());
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

        let mut gateways = Self {
            clients,
            backend: backend.clone(),
            controls: controls.clone(),
            ended: Vec::new(),
            http: tokio::spawn(http_server.run(drain_http.clone())),
            beside: vec![
                tokio::spawn(handover::run(handed_over, http_handle, drain_http.clone())),
                tokio::spawn(aside.clone().run(stop_beside.clone())),
                tokio::spawn(accounts.maintain(stop_beside.clone())),
            ],
            drain_workers,
            drain_http,
            stop_beside,
        };
        let nonce = random_bits();
        let mut inboxes = inboxes.into_iter();
        for (number, (listener, control)) in listeners.into_iter().zip(control_inboxes).enumerate() {
            let Some(inbox) = inboxes.next() else { break };
            let deps = Deps {
                link: LinkId(number as u32),
                routes: routes.clone(),
                inbox,
                control,
                workers: controls.clone(),
                admission: Arc::clone(&admission),
                aside: aside.clone(),
                http: handovers.clone(),
            };
            let mut options = gateway_options(config, number, workers, nonce, &door, &rates, started);
            options.drain_window = drain_window;
            gateways.ended.push(threads.gateway(
                number,
                options,
                listener,
                deps,
                gateways.drain_workers.clone(),
            ));
        }
        if let Some(inbox) = inboxes.next() {
            gateways.beside.push(tokio::spawn(backend.run(inbox, gateways.stop_beside.clone())));
        }
        Ok(gateways)
    }

    /// Clients are sent to others while an operator has drained the node.
    pub(super) fn follow(&mut self, drained: watch::Receiver<Drained>, patience: Duration) {
        let (controls, stop) = (self.controls.clone(), self.stop_beside.clone());
        self.beside.push(tokio::spawn(drain::follow(drained, controls, Patience(patience), stop)));
    }

    /// Why a worker has ended by itself, if one has.
    pub(super) fn failed(&mut self) -> Option<Failure> {
        let ended = self.ended.iter_mut().find_map(|gateway| gateway.try_recv().ok())?;
        let why = ended.err().map_or_else(|| "without a reason".to_owned(), |error| error.to_string());
        Some(Failure::new(Exit::Internal, format!("a worker ended by itself: {why}")))
    }

    /// Clients are told to go, and what they asked is finished. Owners of rooms must serve on meanwhile.
    pub(super) async fn drain(self) {
        self.drain_workers.cancel();
        for gateway in self.ended {
            match gateway.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a worker did not stop well"),
                Err(_) => tracing::error!("a worker is gone"),
            }
        }
        self.drain_http.cancel();
        join(self.http).await;
        self.stop_beside.cancel();
        for task in self.beside {
            join(task).await;
        }
    }
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

fn accounts(config: &Config, store: Arc<dyn Accounts>) -> Result<Service, Failure> {
    let directory = config.keys_dir();
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
    Service::new(options, store, keys, Some(directory.to_owned()))
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
            login_check_ms: config.is_cluster().then(|| ms(LOGIN_CHECK)),
            seed: None,
        },
        door: door.clone(),
        handshake_deadline_ms: ms(gateway.handshake_timeout),
        accepts: Rate::per_second(accepts, accepts),
        unsent_bytes: UNSENT_BYTES,
        drain_window: Duration::ZERO,
        begun,
        drain_deadline: config.server.drain_deadline / 2,
    }
}
