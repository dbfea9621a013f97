//! Takes links of other processes: gateways that want something of the shard here, owners that tell theirs.
//!
//! Owns: the listener, every connection of it, the order and bounds of what goes out.
//! Always holds: [`Accept::opened`] is called once per link and [`Inbound::closed`] once after it; a process has one link
//! (a newer one ends the older first); questions whose time has passed are not handed on; what a peer may not say, and
//! what cannot be understood, ends its link with words.
//! Does not: know workers, slots or rooms.

mod session;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use banyan_proto::id::Incarnation;
use banyan_proto::link::{FromShard, LinkId, ToShard};
use banyan_proto::wire::{FRAME_MAX, Handed, NodeMessage};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;

use crate::codec::Frames;
use crate::hello::{Hello, Me};
use crate::options::{CONNECTION_WINDOW, HTTP2_FRAME, Options, STREAM_WINDOW};
use crate::socket::{Ended, Watched, prepare};
use crate::tls::{Identity, Security, identity};
use crate::why::Why;
use crate::{Error, metrics};

use session::Session;

pub(crate) const LIVE: &str = "/banyan.node.v1.Link/Live";
pub(crate) const BULK: &str = "/banyan.node.v1.Link/Bulk";
/// When the system gives no more sockets.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// The two calls of a link, and room for refusals of more.
const STREAMS: u32 = 8;
const HEADERS_BYTES: u32 = 16 << 10;

/// A message and until when an answer to it is worth having.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `None`: no question, or one whose answer always matters.
    pub until: Option<Instant>,
    pub message: ToShard,
}

/// Decides who may open a link.
pub trait Accept: Send + Sync + 'static {
    /// A process has opened its link; nothing of an earlier link of it holds any more. `outs[n]` leads to its end `n`: a full
    /// one gives back what it is handed. Gives who takes what comes by the link; or words why it is not taken.
    fn opened(
        &self,
        peer: &Hello,
        outs: Vec<mpsc::Sender<Vec<FromShard>>>,
    ) -> Result<Arc<dyn Inbound>, String>;
}

/// Takes what comes by one link. Called by two tasks, one for each stream; never waits.
pub trait Inbound: Send + Sync + 'static {
    /// In order. Gives back what cannot be taken now (a worker's inbox is full), in order: it is offered again soon, and
    /// nothing of the link comes before that.
    fn to_shard(&self, end: LinkId, messages: Vec<Asked>) -> Vec<Asked>;
    fn told(&self, message: NodeMessage);
    /// Whole; rooms that were too much are left out.
    fn handed(&self, handed: Handed);
    /// Nothing follows. What was stated by this link is gone.
    fn closed(&self);
}

/// Bound, and not yet serving.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
    me: watch::Sender<Arc<Me>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// To a server that runs.
#[derive(Debug, Clone)]
pub struct Handle {
    me: watch::Sender<Arc<Me>>,
}

impl Handle {
    /// The process goes on as another run: all links end, with words, and new ones must mean the new run.
    pub fn rejoin(&self, me: Me) {
        self.me.send_replace(Arc::new(me));
    }
}

struct Shared {
    me: watch::Receiver<Arc<Me>>,
    security: Security,
    options: Options,
    accept: Arc<dyn Accept>,
    /// By process. Bound: `connections`.
    sessions: Mutex<HashMap<Incarnation, Arc<Connection>>>,
}

/// What the calls of one connection share.
struct Connection {
    shared: Arc<Shared>,
    from: SocketAddr,
    /// What its certificate says, where there are certificates.
    identity: Option<Result<Identity, Why>>,
    /// As whom it was taken.
    me: Arc<Me>,
    ended: Ended,
    live_taken: AtomicBool,
    session: OnceLock<Session>,
    /// Why it ends, if it ends from this side.
    farewell: OnceLock<Why>,
    stop: CancellationToken,
    /// It has ended, and has said so.
    over: CancellationToken,
    tasks: TaskTracker,
}

impl Connection {
    /// Ends it with words. The first call counts.
    fn end(&self, why: Why) {
        self.farewell.get_or_init(|| why);
        self.stop.cancel();
    }

    /// Sends a peer away before its link is up.
    fn send_away(&self, why: &Why) -> Status {
        metrics::ended("sent_away", why.word());
        tracing::warn!(from = %self.from, why = %why, "a node was sent away");
        why.status()
    }

    fn last_words(&self) -> Status {
        let why = self.farewell.get_or_init(|| Why::Goodbye("the node is going".to_owned()));
        why.status()
    }
}

impl Server {
    pub async fn bind(
        listen: SocketAddr,
        security: Security,
        me: Me,
        options: Options,
        accept: Arc<dyn Accept>,
    ) -> Result<Self, Error> {
        if !security.allows(listen.ip()) {
            return Err(Error::PlainText { address: listen });
        }
        security.check(&me)?;
        if matches!(security, Security::PlainEverywhere) && !listen.ip().is_loopback() {
            tracing::warn!(%listen, "links between nodes are in plain text: whoever reaches this port is one of the cluster");
        }
        let listener = TcpListener::bind(listen).await.map_err(|why| Error::Bind { address: listen, why })?;
        let (me, seen) = watch::channel(Arc::new(me));
        let sessions = Mutex::default();
        let shared = Arc::new(Shared { me: seen, security, options, accept, sessions });
        Ok(Self { listener, shared, me })
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub fn handle(&self) -> Handle {
        Handle { me: self.me.clone() }
    }

    /// Serves until `stop`; then says goodbye on every link, and comes back when all have ended.
    pub async fn run(self, stop: CancellationToken) {
        let Self { listener, shared, me } = self;
        let tasks = TaskTracker::new();
        let room = Arc::new(Semaphore::new(shared.options.connections));
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((tcp, from)) => match Arc::clone(&room).try_acquire_owned() {
                    Ok(permit) => {
                        tasks.spawn(connection(Arc::clone(&shared), tcp, from, stop.child_token(), permit));
                    }
                    Err(_) => metrics::full("connection", 1),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot take connections of nodes");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
        drop(me);
    }
}

async fn connection(
    shared: Arc<Shared>,
    tcp: TcpStream,
    from: SocketAddr,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    let options = shared.options;
    if let Err(error) = prepare(&tcp) {
        tracing::debug!(%from, %error, "a connection of a node is unusable");
        return;
    }
    let (socket, ended, identity) = match &shared.security {
        Security::Tls(tls) => {
            let handshake = TlsAcceptor::from(tls.server()).accept(tcp);
            let why = match stop.run_until_cancelled(timeout(options.connect, handshake)).await {
                None => return,
                Some(Ok(Ok(tls))) => Ok(tls),
                Some(Ok(Err(error))) => Err(Why::of_io(&error)),
                Some(Err(_)) => Err(Why::Timeout),
            };
            match why {
                Ok(tls) => {
                    let identity = identity(tls.get_ref().1.peer_certificates());
                    let (socket, ended) = Watched::new(tls);
                    (socket, ended, Some(identity))
                }
                Err(why) => {
                    metrics::ended("sent_away", why.word());
                    tracing::warn!(%from, why = %why, "no secure connection with a node");
                    return;
                }
            }
        }
        Security::Plain | Security::PlainEverywhere => {
            let (socket, ended) = Watched::new(tcp);
            (socket, ended, None)
        }
    };
    let mut renamed = shared.me.clone();
    let me = Arc::clone(&renamed.borrow_and_update());
    let connection = Arc::new(Connection {
        shared,
        from,
        identity,
        me,
        ended,
        live_taken: AtomicBool::new(false),
        session: OnceLock::new(),
        farewell: OnceLock::new(),
        stop,
        over: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    let serving = serve(Arc::clone(&connection), socket);
    tokio::pin!(serving);
    let no_hello = async {
        tokio::time::sleep(options.connect * 2).await;
        if connection.session.get().is_some() {
            std::future::pending::<()>().await;
        }
    };
    let renamed = async {
        if renamed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let why = tokio::select! {
        () = &mut serving => None,
        () = no_hello => Some(Why::Timeout),
        () = renamed => Some(Why::Goodbye("the process goes on as another run of its node".to_owned())),
    };
    if let Some(why) = why {
        connection.end(why);
        serving.await;
    }
    connection.stop.cancel();
    connection.tasks.close();
    connection.tasks.wait().await;
    if let Some(session) = connection.session.get() {
        session.ended(&connection);
    }
    connection.over.cancel();
}

/// HTTP/2 until the other side, the network or `stop` ends it; then what is to be said last has a moment to get out.
fn serve(connection: Arc<Connection>, socket: Watched) -> impl Future<Output = ()> {
    let options = connection.shared.options;
    let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .keep_alive_interval(options.keep_alive_every)
        .keep_alive_timeout(options.keep_alive_within)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(HTTP2_FRAME)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS_BYTES)
        .max_send_buf_size(STREAM_WINDOW as usize);
    let stop = connection.stop.clone();
    let from = connection.from;
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(call(connection, request).await) }
    });
    let serving = http2.serve_connection(TokioIo::new(socket), service);
    async move {
        tokio::pin!(serving);
        let result = tokio::select! {
            result = &mut serving => result,
            () = stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                timeout(options.goodbye, serving).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            tracing::debug!(%from, %error, "a connection of a node has ended");
        }
    }
}

async fn call(connection: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
    let mut grpc = tonic::server::Grpc::new(Frames)
        .max_decoding_message_size(FRAME_MAX)
        .max_encoding_message_size(FRAME_MAX);
    match request.uri().path() {
        LIVE => {
            let service = tower::service_fn(|request| session::live(Arc::clone(&connection), request));
            grpc.streaming(service, request).await
        }
        BULK => {
            let service = tower::service_fn(|request| session::bulk(Arc::clone(&connection), request));
            grpc.streaming(service, request).await
        }
        _ => Status::unimplemented("between nodes there is banyan.node.v1.Link only").into_http(),
    }
}

impl Shared {
    /// Notes the connection as the one of its process, after the earlier one has ended.
    async fn register(&self, process: Incarnation, connection: &Arc<Connection>) -> Result<(), Why> {
        loop {
            let earlier = {
                let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
                match sessions.get(&process) {
                    None => {
                        sessions.insert(process, Arc::clone(connection));
                        return Ok(());
                    }
                    Some(earlier) => Arc::clone(earlier),
                }
            };
            earlier.end(Why::Goodbye("a newer link of the same process has come".to_owned()));
            if timeout(self.options.connect, earlier.over.cancelled()).await.is_err() {
                return Err(Why::Goodbye("an earlier link of the same process has not ended yet".to_owned()));
            }
        }
    }

    fn unregister(&self, process: Incarnation, connection: &Arc<Connection>) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(&process).is_some_and(|registered| Arc::ptr_eq(registered, connection)) {
            sessions.remove(&process);
        }
    }
}
