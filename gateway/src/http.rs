//! HTTP beside the WebSocket: the API of docs/protocol.md ("HTTP") and the page.
//!
//! Owns: connections that workers hand over with the bytes already read, the routes, and what their answers look like.
//! Always holds: at most `connections` are open and `queue` wait to be taken, the next is given back to the worker; a
//! head, a body, an answer and an idle connection each have a deadline; every error is a JSON problem with a code.
//! Does not: accept sockets or speak TLS (workers do), or decide anything about rooms (their owners do).

pub mod page;

mod api;
mod extract;
mod guard;
mod middleware;
mod problem;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use banyan_gateway_core::bucket::Buckets;
use banyan_gateway_core::command::Limits;
use banyan_gateway_core::forwarded::IpNet;
use banyan_gateway_core::head::Origins;
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use self::guard::{Deadlines, Guard, Phase};
pub use self::page::{File, Page};
pub use self::problem::Problem;
use crate::accounts::Service;
use crate::backend::Backend;

/// Largest body of a request.
pub const BODY_MAX: usize = 64 << 10;
/// Largest head, as hyper buffers it; workers have already refused a first head above 8 KiB.
const HEAD_MAX: usize = 16 << 10;

/// What the routes need.
#[derive(Debug)]
pub struct State {
    pub accounts: Service,
    pub backend: Backend,
    /// Sends of each user; the same as the workers', so that both ways share one bucket.
    pub sends: Arc<Buckets>,
    /// What `sends` counts milliseconds from; the workers' too.
    pub started: Instant,
    pub limits: Limits,
    /// Whose pages may read answers, beside our own.
    pub allowed_origins: Origins,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    pub page: Page,
}

/// All routes: the API, the page for everything that it has, 404 for the rest.
pub fn router(state: State) -> Router {
    api::router(Arc::new(state))
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Open at once; some 20 KiB each while a request is served.
    pub connections: usize,
    /// Handed over and not yet taken.
    pub queue: usize,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// Between requests. Longer than balancers keep theirs (60 s is usual), so that we are not the first to close.
    pub idle_timeout: Duration,
    /// How long a client may take none of an answer.
    pub write_timeout: Duration,
    /// How long requests may go on once the server drains.
    pub drain_deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 4_096,
            queue: 256,
            head_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(20),
            drain_deadline: Duration::from_secs(10),
        }
    }
}

/// Anything that bytes go through, such as a TLS stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// The socket of a connection.
pub enum Stream {
    /// Non-blocking.
    Tcp(std::net::TcpStream),
    /// Already driven by the runtime that [`Server::run`] runs on, or by none.
    Other(Box<dyn Io>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(stream) => f.debug_tuple("Tcp").field(stream).finish(),
            Self::Other(_) => f.write_str("Other"),
        }
    }
}

/// A connection that is no WebSocket.
#[derive(Debug)]
pub struct Connection {
    pub stream: Stream,
    /// What was read of it, from its first byte.
    pub prefix: Bytes,
    /// The other end, or what PROXY protocol said of it. `X-Forwarded-For` is looked at request by request.
    pub peer: IpAddr,
}

/// Takes connections from any thread.
#[derive(Debug, Clone)]
pub struct Handle {
    connections: mpsc::Sender<(Connection, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

impl Handle {
    /// Hands a connection over; gives it back when there is no room for it: answer 503 and close.
    pub fn give(&self, connection: Connection) -> Result<(), Connection> {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else { return Err(connection) };
        self.connections.try_send((connection, permit)).map_err(|error| error.into_inner().0)
    }
}

/// Serves the connections that its [`Handle`]s are given.
#[derive(Debug)]
pub struct Server {
    options: Options,
    router: Router,
    connections: mpsc::Receiver<(Connection, OwnedSemaphorePermit)>,
    open: Gauge,
}

impl Server {
    pub fn new(options: Options, router: Router) -> (Handle, Self) {
        let (sender, connections) = mpsc::channel(options.queue.max(1));
        let room = Arc::new(Semaphore::new(options.connections.clamp(1, Semaphore::MAX_PERMITS)));
        let open = metrics::gauge!("banyan_gateway_http_connections");
        (Handle { connections: sender, room }, Self { options, router, connections, open })
    }

    /// Until it is told to drain: then no new connection is taken, requests under way are finished within the drain
    /// deadline, idle connections close at once.
    pub async fn run(mut self, drain: CancellationToken) {
        let tracker = TaskTracker::new();
        let abort = CancellationToken::new();
        loop {
            let next = tokio::select! {
                biased;
                () = drain.cancelled() => break,
                next = self.connections.recv() => next,
            };
            let Some((connection, permit)) = next else { break };
            let served = serve(self.options, self.router.clone(), connection, drain.clone());
            let (abort, open) = (abort.clone(), self.open.clone());
            tracker.spawn(async move {
                open.increment(1);
                tokio::select! {
                    biased;
                    () = abort.cancelled() => {}
                    () = served => {}
                }
                open.decrement(1);
                drop(permit);
            });
        }
        self.connections.close();
        tracker.close();
        if timeout(self.options.drain_deadline, tracker.wait()).await.is_err() {
            tracing::warn!(requests = tracker.len(), "requests cut off at the drain deadline");
            abort.cancel();
            tracker.wait().await;
        }
    }
}

/// The other end of a request's connection.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

async fn serve(options: Options, router: Router, connection: Connection, drain: CancellationToken) {
    let Connection { stream, prefix, peer } = connection;
    let stream: Box<dyn Io> = match stream {
        Stream::Other(stream) => stream,
        Stream::Tcp(stream) => match tokio::net::TcpStream::from_std(stream) {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                tracing::warn!(%error, "a connection was lost on its way to HTTP");
                return;
            }
        },
    };
    let phase = Phase::new();
    let deadlines = Deadlines { head: options.head_timeout, write: options.write_timeout };
    let guarded = Guard::new(stream, prefix, phase.clone(), deadlines);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let (router, served) = (router.clone(), phase.begin());
        async move {
            let response = router.oneshot(request).await;
            drop(served);
            response
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Its clock runs between requests too; the head's own is the guard's.
        .header_read_timeout(options.idle_timeout)
        .max_buf_size(HEAD_MAX)
        .half_close(false);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(guarded), service));
    let mut draining = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => {
                // Clients go away in a hundred ways; none is ours to handle.
                if let Err(error) = ended {
                    tracing::trace!(%error, "HTTP connection");
                }
                return;
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
