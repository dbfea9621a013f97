//! The link to one run of one shard node: dials, says who is meant, and dials again until it is closed.
//!
//! Owns: the connection, what waits for it, and when the next try is made.
//! Always holds: [`Events::up`] and [`Events::down`] alternate, and nothing is handed to [`Events::messages`] outside them;
//! a [`Link`] belongs to one connection: after its end it takes nothing, so what was meant for an earlier one never
//! arrives on a later one; [`Why::Refused`] is said only where the peer's machine refused.
//! Does not: hold messages while there is no connection, nor judge what a refusal means.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banyan_proto::link::{FromShard, LinkId, ToShard, ToShardBatch};
use banyan_proto::wire::{
    self, FRAME_MAX, Handed, LIST_MAX, NodeMessage, put_handed, put_node, put_to_shard,
};
use banyan_router::slot_key::Peer;
use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream;
use http::Uri;
use http::uri::PathAndQuery;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::{Request, Status, Streaming};

use crate::codec::Frames;
use crate::hello::{Hello, Me, hello, read_dialled};
use crate::metrics;
use crate::options::{CONNECTION_WINDOW, HTTP2_FRAME, Options, STREAM_WINDOW};
use crate::server::{BULK, LIVE};
use crate::socket::{Ended, Watched, dial, prepare};
use crate::tls::{Security, identity, name};
use crate::why::Why;

/// Batches that are encoded in one go.
const PASS_BATCHES: usize = 64;

/// What comes of a link. Called by its task alone.
pub trait Events: Send + Sync + 'static {
    /// There is a new link: nothing that was stated by an earlier one holds.
    fn up(&self, link: &Link);
    /// It has ended; said once after each `up`. What was in flight may have arrived or not. After [`Why::Reset`] the next try
    /// is made at once.
    fn down(&self, why: &Why);
    /// A try has failed. Said after each.
    fn failed(&self, why: &Why);
    /// For one end, in order. The link reads on when this is done.
    fn messages(&self, end: LinkId, messages: Vec<FromShard>) -> BoxFuture<'_, ()>;
}

enum Said {
    Batch { batch: ToShardBatch, until: Instant },
    Node(NodeMessage),
}

/// One connection's way to the peer. Cheap to clone; dead after its `down`.
#[derive(Clone)]
pub struct Link {
    peer: Arc<Hello>,
    live: mpsc::Sender<Said>,
    bulk: mpsc::Sender<Handed>,
    bulk_bytes: Arc<AtomicUsize>,
    bulk_bytes_max: usize,
    over: CancellationToken,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Link {
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// The very same connection.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.peer, &other.peer)
    }

    pub fn is_up(&self) -> bool {
        !self.over.is_cancelled()
    }

    /// Puts a batch on its way; `worth` is how long an answer to its questions is worth having. Comes back when too many
    /// wait, or the link is down.
    pub fn try_send(&self, batch: ToShardBatch, worth: Duration) -> Result<(), ToShardBatch> {
        if !self.is_up() {
            return Err(batch);
        }
        let until = Instant::now() + worth;
        match self.live.try_send(Said::Batch { batch, until }) {
            Ok(()) => Ok(()),
            Err(error) => {
                metrics::full("batch", 1);
                match error.into_inner() {
                    Said::Batch { batch, .. } => Err(batch),
                    Said::Node(_) => Ok(()),
                }
            }
        }
    }

    /// As [`Self::try_send`].
    pub fn try_tell(&self, message: NodeMessage) -> Result<(), NodeMessage> {
        if !self.is_up() {
            return Err(message);
        }
        let Ok(permit) = self.live.try_reserve() else {
            metrics::full("node", 1);
            return Err(message);
        };
        permit.send(Said::Node(message));
        Ok(())
    }

    /// As [`Self::try_send`], beside live messages.
    pub fn try_hand(&self, handed: Handed) -> Result<(), Handed> {
        let bytes = handed.bytes();
        let waiting = self.bulk_bytes.fetch_add(bytes, Ordering::Relaxed);
        let full = waiting > 0 && waiting + bytes > self.bulk_bytes_max;
        let sent = if full || !self.is_up() {
            Err(handed)
        } else {
            self.bulk.try_send(handed).map_err(|error| error.into_inner())
        };
        sent.inspect_err(|_| {
            self.bulk_bytes.fetch_sub(bytes, Ordering::Relaxed);
            metrics::full("handoff", 1);
        })
    }
}

/// Dials one run of one node until it is closed or dropped.
#[derive(Debug)]
pub struct Outgoing {
    current: Arc<Mutex<Option<Link>>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

struct Dialler {
    /// `host:port`.
    address: String,
    expected: Peer,
    security: Security,
    me: Me,
    options: Options,
    events: Arc<dyn Events>,
}

impl Outgoing {
    /// Begins to dial.
    pub fn open(
        address: String,
        expected: Peer,
        security: Security,
        me: Me,
        options: Options,
        events: Arc<dyn Events>,
    ) -> Self {
        let stop = CancellationToken::new();
        let current = Arc::new(Mutex::new(None));
        let dialler = Dialler { address, expected, security, me, options, events };
        let task = tokio::spawn(dialler.run(Arc::clone(&current), stop.clone()));
        Self { current, stop, task }
    }

    /// The link, while it is up.
    pub fn link(&self) -> Option<Link> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the link, if it is up, and all tries. Comes back when nothing more is said to [`Events`].
    pub async fn close(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the task of a link has failed");
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A connection whose hellos were exchanged.
struct Connected {
    link: Link,
    live: Streaming<Bytes>,
    bulk: Streaming<Bytes>,
    ended: Ended,
    _driver: AbortOnDropHandle<()>,
}

impl Dialler {
    async fn run(self, current: Arc<Mutex<Option<Link>>>, stop: CancellationToken) {
        let set = |link| *current.lock().unwrap_or_else(PoisonError::into_inner) = link;
        let mut tries = 0_u32;
        while let Some(connected) = stop.run_until_cancelled(self.connect()).await {
            let wait = match connected {
                Ok(connected) => {
                    let began = Instant::now();
                    let over = connected.link.over.clone();
                    tracing::info!(node = %self.expected.node, incarnation = %self.expected.incarnation, "the link to a node is up");
                    metrics::links("dialled").increment(1.0);
                    set(Some(connected.link.clone()));
                    self.events.up(&connected.link);
                    let why = stop.run_until_cancelled(self.serve(connected)).await.unwrap_or(Why::Closed);
                    over.cancel();
                    set(None);
                    metrics::links("dialled").decrement(1.0);
                    metrics::ended("down", why.word());
                    tracing::info!(node = %self.expected.node, incarnation = %self.expected.incarnation, %why, "the link to a node is down");
                    self.events.down(&why);
                    if began.elapsed() >= self.options.settled {
                        tries = 0;
                    }
                    tries == 0
                }
                Err(why) => {
                    metrics::ended("failed", why.word());
                    if tries == 0 {
                        tracing::warn!(node = %self.expected.node, address = self.address, %why, "no link to a node; it is tried again");
                    } else {
                        tracing::debug!(node = %self.expected.node, address = self.address, %why, tries, "no link to a node");
                    }
                    self.events.failed(&why);
                    false
                }
            };
            // The first try after a loss tells whether the peer is gone.
            let pause = if wait { Duration::ZERO } else { self.pause(tries) };
            tries = tries.saturating_add(1);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
    }

    fn pause(&self, tries: u32) -> Duration {
        let doubled = self.options.retry_first.saturating_mul(1 << tries.min(16));
        let base = doubled.min(self.options.retry_max);
        // Without randomness all would dial at once, but they would dial.
        let spread = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
        base.mul_f64(0.5 + spread)
    }

    async fn connect(&self) -> Result<Connected, Why> {
        let within = self.options.connect;
        let (socket, ended, identity) = timeout(within, self.reach()).await.map_err(|_| Why::Timeout)??;
        let over = CancellationToken::new();
        let (sender, driver) = self.http2(socket).await?;
        let service = tower::service_fn(move |request| {
            let mut sender = sender.clone();
            async move { sender.send_request(request).await }
        });
        let mut grpc = tonic::client::Grpc::with_origin(service, Uri::from_static("http://banyan.node"))
            .max_decoding_message_size(FRAME_MAX)
            .max_encoding_message_size(FRAME_MAX);

        let (live_sender, live_queue) = mpsc::channel(self.options.queue_batches);
        let (bulk_sender, bulk_queue) = mpsc::channel(self.options.queue_handoffs);
        let bulk_bytes = Arc::new(AtomicUsize::new(0));
        let up = LiveUp {
            hello: Some(wire::hello_frame(&hello(&self.me, Some(&self.expected)))),
            queue: live_queue,
            taken: VecDeque::new(),
            frame_bytes: self.options.frame_bytes,
            metrics: metrics::Stream::new("live", "out"),
        };
        let stopped = over.clone();
        let frames = stream::unfold((up, stopped), |(mut up, over)| async move {
            let frame = over.run_until_cancelled(up.next()).await.flatten()?;
            Some((frame, (up, over)))
        });
        let cut = |status: Status| cut(&status, &ended);
        let path = PathAndQuery::from_static(LIVE);
        let opening = async {
            let mut live = grpc.streaming(Request::new(frames), path, Frames).await?.into_inner();
            let first = live.message().await?;
            Ok((live, first))
        };
        let (live, first) = timeout(within, opening).await.map_err(|_| Why::Timeout)?.map_err(cut)?;
        let first = first.ok_or_else(|| Why::Protocol("the peer said nothing".to_owned()))?;
        let first = wire::read_hello(&first).map_err(|error| Why::Protocol(error.to_string()))?;
        let peer = read_dialled(&self.me, &first, identity.as_ref(), &self.expected)?;

        let state = BulkUp {
            queue: bulk_queue,
            frames: None,
            waiting: Arc::clone(&bulk_bytes),
            metrics: metrics::Stream::new("bulk", "out"),
        };
        let stopped = over.clone();
        let frames = stream::unfold((state, stopped), |(mut state, over)| async move {
            let frame = over.run_until_cancelled(state.next()).await.flatten()?;
            Some((frame, (state, over)))
        });
        let path = PathAndQuery::from_static(BULK);
        let opening = grpc.streaming(Request::new(frames), path, Frames);
        let bulk = timeout(within, opening).await.map_err(|_| Why::Timeout)?.map_err(cut)?.into_inner();
        let link = Link {
            peer: Arc::new(peer),
            live: live_sender,
            bulk: bulk_sender,
            bulk_bytes,
            bulk_bytes_max: self.options.handoff_bytes,
            over,
        };
        Ok(Connected { link, live, bulk, ended, _driver: driver })
    }

    /// TCP and, where it is wanted, TLS to the right node.
    async fn reach(&self) -> Result<(Watched, Ended, Option<crate::tls::Identity>), Why> {
        let tcp = dial(&self.address).await?;
        let io = |error: std::io::Error| Why::of_io(&error);
        prepare(&tcp).map_err(io)?;
        match &self.security {
            Security::Tls(tls) => {
                let tls = TlsConnector::from(tls.client()).connect(name(), tcp).await.map_err(io)?;
                let identity = identity(tls.get_ref().1.peer_certificates())?;
                // Before anything is said: its node, and that it may own slots.
                identity.allows(
                    &self.expected.node,
                    &self.me.cluster,
                    &[banyan_router::node_key::Role::Shard],
                )?;
                let (socket, ended) = Watched::new(tls);
                Ok((socket, ended, Some(identity)))
            }
            Security::Plain | Security::PlainEverywhere => {
                let address = tcp.peer_addr().map_err(io)?;
                if !self.security.allows(address.ip()) {
                    return Err(Why::Certificate(crate::Error::PlainText { address }.to_string()));
                }
                let (socket, ended) = Watched::new(tcp);
                Ok((socket, ended, None))
            }
        }
    }

    async fn http2(&self, socket: Watched) -> Result<(SendRequest<Body>, AbortOnDropHandle<()>), Why> {
        let options = &self.options;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(options.keep_alive_every)
            .keep_alive_timeout(options.keep_alive_within)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(HTTP2_FRAME)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| Why::Protocol(error.to_string()))?;
        let driver = tokio::spawn(async move {
            // The streams tell what it was.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a node has ended");
            }
        });
        Ok((sender, AbortOnDropHandle::new(driver)))
    }

    /// Hands on what comes, until the link ends.
    async fn serve(&self, connected: Connected) -> Why {
        let Connected { link, mut live, mut bulk, ended, _driver } = connected;
        let (handed_on, seen) = watch::channel(0_u64);
        let live = async {
            let counted = metrics::Stream::new("live", "in");
            loop {
                let frame = match live.message().await {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return Why::Goodbye("the peer has ended the stream".to_owned()),
                    Err(status) => return cut(&status, &ended),
                };
                let read = match wire::read_down(&frame) {
                    Ok(read) => read,
                    Err(error) => return Why::Protocol(error.to_string()),
                };
                counted.count(frame.len(), read.from_shard.len());
                drop(frame);
                if read.skipped > 0 {
                    metrics::skipped(read.skipped as u64);
                }
                let mut by_end: BTreeMap<LinkId, Vec<FromShard>> = BTreeMap::new();
                for (ends, message) in read.from_shard {
                    if let Some(end) = ends.iter().find(|end| end.0 >= u32::from(self.me.links)) {
                        return Why::Protocol(format!("it spoke to link {}, which is not there", end.0));
                    }
                    let (last, others) = match ends.split_last() {
                        Some((last, others)) => (*last, others),
                        None => continue,
                    };
                    for end in others {
                        by_end.entry(*end).or_default().push(message.clone());
                    }
                    by_end.entry(last).or_default().push(message);
                }
                join_all(by_end.into_iter().map(|(end, messages)| self.events.messages(end, messages))).await;
                handed_on.send_modify(|frames| *frames += 1);
            }
        };
        let bulk = async {
            let mut seen = seen;
            let counted = metrics::Stream::new("bulk", "in");
            loop {
                let frame = match bulk.message().await {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return Why::Goodbye("the peer has ended the stream".to_owned()),
                    Err(status) => return cut(&status, &ended),
                };
                let pages = match wire::read_bulk_down(&frame) {
                    Ok(pages) => pages,
                    Err(error) => return Why::Protocol(error.to_string()),
                };
                counted.count(frame.len(), pages.len());
                drop(frame);
                for page in pages {
                    if page.end.0 >= u32::from(self.me.links) {
                        return Why::Protocol(format!("it spoke to link {}, which is not there", page.end.0));
                    }
                    // A page is never early.
                    if seen.wait_for(|frames| *frames >= page.after_live).await.is_err() {
                        return Why::Closed;
                    }
                    self.events.messages(page.end, vec![page.page.into()]).await;
                }
            }
        };
        let why = tokio::select! {
            why = live => why,
            why = bulk => why,
        };
        drop(link);
        why
    }
}

/// Why a stream has ended.
fn cut(status: &Status, ended: &Ended) -> Why {
    if let Some(why) = Why::of_status(status) {
        return why;
    }
    if let Some(why) = ended.get() {
        return why.clone();
    }
    // The socket has not ended: HTTP/2 gave it up. As if cut, when no ping was answered; else for what it was sent.
    let mut source = status.source();
    while let Some(error) = source {
        let silent = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout)
            || error.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_io);
        if silent {
            return Why::Timeout;
        }
        source = error.source();
    }
    Why::Protocol(status.to_string())
}

/// What goes out by the live stream.
struct LiveUp {
    hello: Option<Vec<u8>>,
    queue: mpsc::Receiver<Said>,
    /// Taken from the queue and not yet encoded. Bound: what [`PASS_BATCHES`] batches hold.
    taken: VecDeque<One>,
    frame_bytes: usize,
    metrics: metrics::Stream,
}

enum One {
    ToShard(LinkId, Instant, ToShard),
    Node(NodeMessage),
}

impl LiveUp {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(hello) = self.hello.take() {
            return Some(hello);
        }
        loop {
            if self.taken.is_empty() {
                let mut taken = Vec::with_capacity(PASS_BATCHES);
                if self.queue.recv_many(&mut taken, PASS_BATCHES).await == 0 {
                    return None;
                }
                for said in taken {
                    match said {
                        Said::Node(message) => self.taken.push_back(One::Node(message)),
                        Said::Batch { batch: ToShardBatch { link, messages }, until } => {
                            let each = messages.into_iter().map(|message| One::ToShard(link, until, message));
                            self.taken.extend(each);
                        }
                    }
                }
            }
            let now = Instant::now();
            let (mut frame, mut messages) = (Vec::new(), 0);
            while frame.len() < self.frame_bytes
                && messages < LIST_MAX
                && let Some(one) = self.taken.pop_front()
            {
                messages += match one {
                    One::Node(message) => {
                        put_node(message, &mut frame);
                        1
                    }
                    One::ToShard(end, until, message) => {
                        usize::from(put(end, until, now, message, &mut frame))
                    }
                };
            }
            if !frame.is_empty() {
                self.metrics.count(frame.len(), messages);
                return Some(frame);
            }
        }
    }
}

/// Appends it if it is still worth it.
fn put(end: LinkId, until: Instant, now: Instant, message: ToShard, frame: &mut Vec<u8>) -> bool {
    let worth = until.saturating_duration_since(now);
    // Longer than a question ever waits.
    let worth_ms = u32::try_from(worth.as_millis()).unwrap_or(u32::MAX);
    let question = matches!(message, ToShard::Room { .. } | ToShard::Pull { .. });
    if question && worth_ms == 0 {
        metrics::expired(1);
        return false;
    }
    let fits = put_to_shard(end, worth_ms, message, frame);
    if !fits {
        // No client can send what would be so large: the one who asked will have said 108.
        metrics::full("message", 1);
        tracing::error!("a message is too large to travel to its shard");
    }
    fits
}

/// What goes out by the bulk stream.
struct BulkUp {
    queue: mpsc::Receiver<Handed>,
    frames: Option<Box<dyn Iterator<Item = Vec<u8>> + Send>>,
    waiting: Arc<AtomicUsize>,
    metrics: metrics::Stream,
}

impl BulkUp {
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = self.frames.as_mut().and_then(Iterator::next) {
                self.metrics.count(frame.len(), 1);
                return Some(frame);
            }
            let handed = self.queue.recv().await?;
            self.waiting.fetch_sub(handed.bytes(), Ordering::Relaxed);
            self.frames = Some(Box::new(put_handed(handed)));
        }
    }
}
