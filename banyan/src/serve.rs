//! `banyan serve`: builds the node, runs it until a signal or a failure, drains it.
//!
//! Owns: the order of start and stop. Always holds: nothing is bound before the data directory is usable, and readiness
//! says "ready" only once everything answers.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, Token};
use crate::config::Config;
use crate::failure::{Exit, Failure, words};
use crate::heap::{self, Heap};
use crate::metrics::{Metrics, UPKEEP_INTERVAL};
use crate::node::{Drained, Node};
use crate::ops::{self, Ops};
use crate::readiness::{Readiness, State};
use crate::{data_dir, output, process, telemetry};

/// How often the node is asked how it does.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Runs a node with this configuration until it is told to stop.
pub(crate) fn run(mut config: Config) -> Result<(), Failure> {
    let telemetry = telemetry::start(&config.log)?;
    let ended = start(&mut config, telemetry.text);
    if let Err(failure) = &ended {
        // Whoever collects the log sees why it ends; on a terminal the line on standard error is enough.
        if !telemetry.text {
            tracing::error!(
                exit_code = failure.exit as u8,
                reason = failure.lines.join("; "),
                hint = failure.hint,
                "stopped"
            );
        }
    }
    ended
}

fn start(config: &mut Config, for_people: bool) -> Result<(), Failure> {
    let metrics = Metrics::install()?;
    data_dir::prepare(&config.server.data_dir)?;
    limit_connections(config, process::raise_open_files());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Failure::new(Exit::Unavailable, format!("cannot start: {}", words(&error))))?;
    let ended = runtime.block_on(node(config, metrics, for_people));
    // Dropped, it would wait for what blocks a thread: beyond the drain deadline, and deaf to signals.
    runtime.shutdown_background();
    ended
}

/// Binds, says where to open the page, waits for a signal, drains.
async fn node(config: &Config, metrics: Metrics, for_people: bool) -> Result<(), Failure> {
    let admin = Admin::new(Token::of(&config.server)?, metrics.clone());
    let mut signals = Signals::catch()?;
    let ops_listener = bind(config.server.ops_listen, "--ops-listen").await?;
    let ops_address = local(&ops_listener)?;

    // Before the node: it may have to wait for the servers that it needs, and whoever looks sees that it starts.
    let readiness = Readiness::starting();
    let stop = CancellationToken::new();
    let ops = Ops { readiness: readiness.clone(), metrics: metrics.clone(), admin: admin.clone() };
    let mut ops_port = tokio::spawn(ops::run(ops_listener, ops, stop.clone()));
    let upkeep = tokio::spawn(upkeep(metrics, stop.clone()));
    let mut node = tokio::select! {
        node = Node::start(config) => node?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before it was ready");
            return Ok(());
        }
    };
    let addresses = Addresses { clients: node.clients, ops: ops_address };

    admin.show(node.ring(config));
    let mut drained = node.drained();
    let (mut announced, mut told) = (false, false);
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, deadline = ?config.server.drain_deadline, "draining");
                break;
            }
            failure = node.failed() => return Err(failure),
            // A drain is said at once.
            () = changed(&mut drained) => {}
            _ = looks.tick() => {}
            // It ends only when told to, so this is a panic that the hook has told of already.
            ended = &mut ops_port => {
                return Err(Failure::new(Exit::Internal, format!("the ops port ended by itself: {ended:?}")));
            }
        }
        let state = node.look();
        readiness.set(state.clone());
        if !announced {
            // A gateway without owners of rooms waits for them.
            announced = !matches!(state, State::Unready { .. });
            match (&state, announced) {
                (_, true) => announce(config, &addresses, admin.is_on(), for_people)?,
                (State::Unready { why }, false) if !told => {
                    told = true;
                    tracing::warn!(why, "waits");
                }
                _ => {}
            }
        }
    }
    readiness.set(State::Draining);

    let drained = async {
        node.drain().await;
        stop.cancel();
        join(upkeep).await;
        join(ops_port).await;
    };
    tokio::select! {
        ended = timeout(config.server.drain_deadline, drained) => match ended {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!("stopped at the drain deadline"),
        },
        name = signals.next() => tracing::warn!(signal = name, "stopped at the second signal"),
    }
    Ok(())
}

/// Resolves when an operator wants something else of the node.
async fn changed(drained: &mut Option<watch::Receiver<Drained>>) {
    let gone = match drained {
        Some(drained) => drained.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending::<()>().await;
    }
}

/// A task that was told to end; a panic in it has ended the process before this can see it.
async fn join(task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(%error, "task did not end well");
    }
}

/// Folds histogram samples into their buckets now and then, and gives memory back after a burst.
async fn upkeep(metrics: Metrics, stop: CancellationToken) {
    let mut ticks = interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = interval(heap::LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heap = Heap::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => metrics.upkeep(),
            _ = looks.tick() => heap.look(),
        }
    }
}

/// Keeps a tenth of the open files for the store, the log and the ops port.
fn limit_connections(config: &mut Config, open_files: Option<u64>) {
    let Some(open_files) = open_files else { return };
    let room = u32::try_from(open_files - open_files / 10).unwrap_or(u32::MAX).max(1);
    if config.limits.connections > room {
        tracing::warn!(
            wanted = config.limits.connections,
            connections = room,
            open_files,
            "fewer connections: raise the limit of open files (ulimit -n, LimitNOFILE=)"
        );
        config.limits.connections = room;
        config.limits.unauthenticated = config.limits.unauthenticated.min(room);
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| cannot_listen(address, flag, &error))
}

pub(crate) fn cannot_listen(address: SocketAddr, flag: &str, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another process has this port: stop it, or choose another with {flag} ADDRESS")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address: choose one of its own with {flag} ADDRESS")
        }
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need CAP_NET_BIND_SERVICE: choose another with {flag} ADDRESS")
        }
        _ => format!("choose another address with {flag} ADDRESS"),
    };
    Failure::new(Exit::Unavailable, format!("cannot listen on {address}: {}", words(error))).with_hint(hint)
}

fn local(listener: &TcpListener) -> Result<SocketAddr, Failure> {
    let address = listener.local_addr();
    address.map_err(|error| {
        Failure::new(Exit::Unavailable, format!("cannot tell the own address: {}", words(&error)))
    })
}

/// Where the node listens, with the ports that the system chose for port 0.
struct Addresses {
    clients: Option<SocketAddr>,
    ops: SocketAddr,
}

/// Says where to open the page.
fn announce(
    config: &Config,
    addresses: &Addresses,
    has_admin: bool,
    for_people: bool,
) -> Result<(), Failure> {
    let url = match addresses.clients {
        Some(address) => page(address, config.tls.cert.is_some()),
        None => "none: this node is no gateway".to_owned(),
    };
    let ops = page(addresses.ops, false);
    if !for_people {
        let (version, node, data_dir) =
            (crate::version::VERSION, &config.server.node_id, config.server.data_dir.display());
        tracing::info!(version, node, url, ops, %data_dir, "ready");
        return Ok(());
    }
    let data = match config.is_cluster() {
        false => format!("Data       {}", config.server.data_dir.display()),
        true => format!("Cluster    {}, as {}", config.cluster.name, config.server.node_id),
    };
    let admin = if has_admin { format!("  Admin      {ops}admin\n") } else { String::new() };
    output::print(&format!(
        "\n  Banyan is ready.\n\n  Chat       {url}\n  Health     {ops}readyz\n{admin}  {data}\n\n  Ctrl-C stops it.\n\n"
    ))
}

/// The address as one can open it in a browser on this machine.
fn page(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    match address.ip().is_unspecified() {
        true => format!("{scheme}://localhost:{}/", address.port()),
        false => format!("{scheme}://{address}/"),
    }
}

/// The signals that ask a node to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn catch() -> Result<Self, Failure> {
        let cannot = |error: io::Error| {
            Failure::new(Exit::Unavailable, format!("cannot catch signals: {}", words(&error)))
        };
        let interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        Ok(Self { interrupt, terminate })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_that_opens() {
        assert_eq!(page("0.0.0.0:8000".parse().unwrap(), false), "http://localhost:8000/");
        assert_eq!(page("[::1]:8443".parse().unwrap(), true), "https://[::1]:8443/");
    }

    #[test]
    fn connections_leave_files_for_the_rest() {
        let mut config = Config::default();
        limit_connections(&mut config, None);
        limit_connections(&mut config, Some(1_000_000));
        assert_eq!(config, Config::default());
        limit_connections(&mut config, Some(1024));
        assert_eq!((config.limits.connections, config.limits.unauthenticated), (922, 922));
    }

    #[test]
    fn each_reason_not_to_listen_has_its_hint() {
        for (errno, words) in [
            (98, "another process has this port"),
            (99, "no such address"),
            (13, "CAP_NET_BIND_SERVICE"),
            (5, "choose another address"),
        ] {
            let failure = cannot_listen(
                "1.2.3.4:80".parse().unwrap(),
                "--listen",
                &io::Error::from_raw_os_error(errno),
            );
            assert_eq!((failure.exit, failure.lines.len()), (Exit::Unavailable, 1));
            assert!(failure.hint.is_some_and(|hint| hint.contains(words) && hint.contains("--listen")));
        }
    }
}
