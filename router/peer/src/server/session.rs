//! One link at the side that was dialled: its two streams, in and out.
//!
//! Queues and what happens when they are full: each end's way out (`out_batches`; full: the shard gets its batch back);
//! pages (`page_bytes`: further ones are answered 112; `pages`: the ways out are not drained until there is space); what
//! comes in waits in the connection itself while [`Inbound::to_shard`] gives something back.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use banyan_proto::codes::Code;
use banyan_proto::id::Epoch;
use banyan_proto::link::{Answer, FromShard, LinkId, ToShard};
use banyan_proto::wire::{self, Assembly, Bulk, LIST_MAX, NodeMessage, Outgoing, page_bytes, put_from_shard};
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Response, Status, Streaming};

use super::{Asked, Connection, Inbound};
use crate::hello::{Hello, hello, read_dialler};
use crate::merge::merge;
use crate::metrics;
use crate::why::Why;

type Frames = Pin<Box<dyn Stream<Item = Result<Vec<u8>, Status>> + Send>>;

/// No question is worth more: what a peer says is bounded too.
const WORTH_MAX: Duration = Duration::from_secs(60);
/// What could not be taken is offered again: a worker's turn takes well below a millisecond.
const AGAIN_FIRST: Duration = Duration::from_millis(1);
const AGAIN_MAX: Duration = Duration::from_millis(16);
/// Batches of one end that are put into one order with those of the others.
const PASS_BATCHES: usize = 64;
/// When a page that was not taken is asked for again.
const PAGE_AGAIN_MS: u64 = 200;

pub(super) struct Session {
    peer: Hello,
    inbound: Arc<dyn Inbound>,
    outs: Vec<mpsc::Sender<Vec<FromShard>>>,
    page_bytes: Arc<AtomicUsize>,
    /// Taken by the bulk stream.
    pages: Mutex<Option<mpsc::Receiver<Bulk>>>,
}

impl Session {
    /// The connection has ended.
    pub(super) fn ended(&self, connection: &Arc<Connection>) {
        self.inbound.closed();
        connection.shared.unregister(self.peer.peer.incarnation, connection);
        let why = connection.farewell.get().or_else(|| connection.ended.get()).unwrap_or(&Why::Timeout);
        metrics::links("accepted").decrement(1.0);
        metrics::ended("down", why.word());
        tracing::info!(node = %self.peer.peer.node, incarnation = %self.peer.peer.incarnation, %why, "the link of a node has ended");
    }
}

// ---------------------------------------------------------------- the live stream

pub(super) async fn live(
    connection: Arc<Connection>,
    request: Request<Streaming<Bytes>>,
) -> Result<Response<Frames>, Status> {
    if connection.live_taken.swap(true, Ordering::Relaxed) {
        return Err(connection.send_away(&Why::Protocol("a second live stream on one connection".to_owned())));
    }
    let opened = open(&connection, request.into_inner()).await;
    let (up, out) = opened.map_err(|why| connection.send_away(&why))?;
    connection.tasks.spawn(read_live(Arc::clone(&connection), up));
    let frames = stream::unfold(Some(out), |out| async move {
        let mut out = out?;
        match out.next().await {
            Ok(frame) => Some((Ok(frame), Some(out))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Response::new(Box::pin(frames)))
}

async fn open(
    connection: &Arc<Connection>,
    mut up: Streaming<Bytes>,
) -> Result<(Streaming<Bytes>, LiveOut), Why> {
    let shared = &connection.shared;
    let options = &shared.options;
    let first = match timeout(options.connect, up.message()).await {
        Ok(Ok(Some(first))) => first,
        Ok(Ok(None)) => return Err(Why::Protocol("it said nothing".to_owned())),
        Ok(Err(status)) => return Err(Why::Protocol(status.message().to_owned())),
        Err(_) => return Err(Why::Timeout),
    };
    let first = wire::read_hello(&first).map_err(|error| Why::Protocol(error.to_string()))?;
    let identity = connection.identity.as_ref().map(Result::as_ref).transpose().map_err(Clone::clone)?;
    let peer = read_dialler(&connection.me, &first, identity, options.links)?;
    shared.register(peer.peer.incarnation, connection).await?;

    let (outs, ends): (Vec<_>, Vec<_>) = (0..peer.links).map(|_| mpsc::channel(options.out_batches)).unzip();
    let inbound = match shared.accept.opened(&peer, outs.clone()) {
        Ok(inbound) => inbound,
        Err(words) => {
            shared.unregister(peer.peer.incarnation, connection);
            return Err(Why::Goodbye(words));
        }
    };
    metrics::links("accepted").increment(1.0);
    tracing::info!(node = %peer.peer.node, incarnation = %peer.peer.incarnation, release = %peer.release, "a node has opened its link");
    let (to_bulk, pages) = mpsc::channel(options.pages);
    let page_bytes = Arc::new(AtomicUsize::new(0));
    let out = LiveOut {
        hello: Some(wire::hello_frame(&hello(&connection.me, None))),
        queues: ends.iter().map(|_| VecDeque::new()).collect(),
        ends: ends.into_iter().map(Some).collect(),
        frames: VecDeque::new(),
        pages: VecDeque::new(),
        made: 0,
        to_bulk,
        page_bytes: Arc::clone(&page_bytes),
        metrics: metrics::Stream::new("live", "out"),
        connection: Arc::clone(connection),
    };
    let session = Session { peer, inbound, outs, page_bytes, pages: Mutex::new(Some(pages)) };
    // One live stream, so it is the first.
    connection.session.get_or_init(|| session);
    Ok((up, out))
}

/// What goes out by the live stream, and what of it belongs to the other.
struct LiveOut {
    hello: Option<Vec<u8>>,
    /// `None`: the shard has dropped it.
    ends: Vec<Option<mpsc::Receiver<Vec<FromShard>>>>,
    /// What has been taken from them. Empty between calls.
    queues: Vec<VecDeque<FromShard>>,
    /// Made and not yet sent, with how many messages each holds. Bound: what one pass takes.
    frames: VecDeque<(Vec<u8>, usize)>,
    /// Not yet handed to the bulk stream. Bound: as `frames`.
    pages: VecDeque<Bulk>,
    /// Frames made so far, but for the hello.
    made: u64,
    to_bulk: mpsc::Sender<Bulk>,
    page_bytes: Arc<AtomicUsize>,
    metrics: metrics::Stream,
    connection: Arc<Connection>,
}

impl LiveOut {
    /// The next frame, or the last words.
    async fn next(&mut self) -> Result<Vec<u8>, Status> {
        if let Some(hello) = self.hello.take() {
            return Ok(hello);
        }
        let stop = self.connection.stop.clone();
        loop {
            if stop.is_cancelled() {
                return Err(self.connection.last_words());
            }
            if let Some((frame, messages)) = self.frames.pop_front() {
                self.metrics.count(frame.len(), messages);
                return Ok(frame);
            }
            // Pages come after the frames that they must not overtake: who waits for these here waits for nothing else.
            let more = async {
                while !self.pages.is_empty() {
                    // The bulk stream is gone only when the connection is.
                    let Ok(space) = self.to_bulk.reserve().await else { return std::future::pending().await };
                    if let Some(page) = self.pages.pop_front() {
                        space.send(page);
                    }
                }
                Self::gather(&mut self.ends, &mut self.queues).await;
            };
            if stop.run_until_cancelled(more).await.is_some() {
                self.encode();
            }
        }
    }

    /// Waits for something and takes what is there.
    async fn gather(ends: &mut [Option<mpsc::Receiver<Vec<FromShard>>>], queues: &mut [VecDeque<FromShard>]) {
        std::future::poll_fn(|cx| {
            for (end, queue) in ends.iter_mut().zip(queues.iter_mut()) {
                for _ in 0..PASS_BATCHES {
                    let Some(receiver) = end else { break };
                    match receiver.poll_recv(cx) {
                        Poll::Ready(Some(batch)) => queue.extend(batch),
                        Poll::Ready(None) => *end = None,
                        Poll::Pending => break,
                    }
                }
            }
            if queues.iter().all(VecDeque::is_empty) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn encode(&mut self) {
        let options = &self.connection.shared.options;
        let (mut frame, mut messages) = (Vec::new(), 0);
        merge(&mut self.queues, |ends, message| match message.into() {
            Outgoing::Live(message) => {
                put_from_shard(ends, message, &mut frame);
                messages += 1;
                if frame.len() >= options.frame_bytes || messages >= LIST_MAX / 2 {
                    self.made += 1;
                    self.frames.push_back((std::mem::take(&mut frame), messages));
                    messages = 0;
                }
            }
            Outgoing::Bulk(mut page) => {
                let bytes = page_bytes(&page);
                let waiting = self.page_bytes.load(Ordering::Relaxed);
                if waiting > 0 && waiting + bytes > options.page_bytes {
                    metrics::full("page", 1);
                    let words = "too many pages wait for this gateway";
                    page.page = Err(Code::Overloaded.error_retry_after(words, PAGE_AGAIN_MS));
                }
                self.page_bytes.fetch_add(page_bytes(&page), Ordering::Relaxed);
                let after_live = self.made + u64::from(!frame.is_empty());
                let end = ends.first().copied().unwrap_or(LinkId(0));
                self.pages.push_back(Bulk { end, after_live, page });
            }
        });
        if !frame.is_empty() {
            self.made += 1;
            self.frames.push_back((frame, messages));
        }
    }
}

async fn read_live(connection: Arc<Connection>, mut up: Streaming<Bytes>) {
    let Some(session) = connection.session.get() else { return };
    let counted = metrics::Stream::new("live", "in");
    let reading = async {
        loop {
            let frame = match up.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Why::Closed,
                Err(status) => return cut(&connection, &status),
            };
            let received = Instant::now();
            let read = match wire::read_up(&frame) {
                Ok(read) => read,
                Err(error) => return Why::Protocol(error.to_string()),
            };
            counted.count(frame.len(), read.to_shard.len() + read.node.len());
            drop(frame);
            if let Err(why) = session.take(received, read).await {
                return why;
            }
        }
    };
    if let Some(why) = connection.stop.run_until_cancelled(reading).await {
        if matches!(why, Why::Protocol(_)) {
            tracing::error!(node = %session.peer.peer.node, %why, "a node said what it may not or cannot");
        }
        connection.end(why);
    }
}

fn cut(connection: &Connection, status: &Status) -> Why {
    let oversized = status.code() == tonic::Code::OutOfRange;
    if oversized {
        return Why::Protocol(status.message().to_owned());
    }
    connection.ended.get().cloned().unwrap_or(Why::Timeout)
}

impl Session {
    async fn take(&self, received: Instant, read: wire::Up) -> Result<(), Why> {
        let wire::Up { to_shard, node, unknown_commands, skipped } = read;
        if skipped > 0 {
            metrics::skipped(skipped as u64);
        }
        let mut by_end: BTreeMap<LinkId, Vec<Asked>> = BTreeMap::new();
        for (end, worth_ms, message) in to_shard {
            let notify = matches!(message, ToShard::Notify { .. });
            if notify && !self.peer.is_shard() {
                return Err(self.not_allowed("tell users' channels"));
            }
            if !notify && end.0 >= u32::from(self.peer.links) {
                return Err(Why::Protocol(format!("it has no link {}", end.0)));
            }
            let question = matches!(message, ToShard::Room { .. } | ToShard::Pull { .. });
            let worth = Duration::from_millis(worth_ms.into()).min(WORTH_MAX);
            let until = if question { Some(received + worth) } else { None };
            by_end.entry(end).or_default().push(Asked { until, message });
        }
        for (end, ticket) in unknown_commands {
            let error =
                Code::UnknownCommand.error("the room's owner is of an older release, without this command");
            let answer = Answer::Error(Box::new(error));
            let answer = FromShard::Answer { ticket, epoch: Epoch(0), answer };
            // Full: it will have said 108 by itself.
            if self.outs.get(end.0 as usize).is_none_or(|out| out.try_send(vec![answer]).is_err()) {
                metrics::full("message", 1);
            }
        }
        // Gateways are those who know what is wanted.
        let of_shards = |message: &NodeMessage| !matches!(message, NodeMessage::Wanted { .. });
        if !self.peer.is_shard() && node.iter().any(of_shards) {
            return Err(self.not_allowed("speak as a shard"));
        }
        node.into_iter().for_each(|message| self.inbound.told(message));
        for (end, messages) in by_end {
            self.hand_on(end, messages).await;
        }
        Ok(())
    }

    fn not_allowed(&self, what: &str) -> Why {
        let roles = crate::hello::words_of(&self.peer.roles);
        Why::Protocol(format!("node {} ({roles}) may not {what}", self.peer.peer.node))
    }

    async fn hand_on(&self, end: LinkId, mut messages: Vec<Asked>) {
        let mut again = AGAIN_FIRST;
        loop {
            let now = Instant::now();
            let before = messages.len();
            messages.retain(|asked| asked.until.is_none_or(|until| until > now));
            let worth = messages.len();
            if worth < before {
                metrics::expired((before - worth) as u64);
            }
            if messages.is_empty() {
                return;
            }
            messages = self.inbound.to_shard(end, messages);
            if messages.is_empty() {
                return;
            }
            if messages.len() < worth {
                again = AGAIN_FIRST;
            }
            sleep(again).await;
            again = (again * 2).min(AGAIN_MAX);
        }
    }
}

// ---------------------------------------------------------------- the bulk stream

pub(super) async fn bulk(
    connection: Arc<Connection>,
    request: Request<Streaming<Bytes>>,
) -> Result<Response<Frames>, Status> {
    let session = connection.session.get();
    let pages =
        session.and_then(|session| session.pages.lock().unwrap_or_else(PoisonError::into_inner).take());
    let (Some(session), Some(pages)) = (session, pages) else {
        return Err(connection.send_away(&Why::Protocol("one bulk stream, after the live one".to_owned())));
    };
    connection.tasks.spawn(read_bulk(Arc::clone(&connection), request.into_inner()));
    let counted = metrics::Stream::new("bulk", "out");
    let state = Some((pages, Arc::clone(&session.page_bytes), counted, Arc::clone(&connection)));
    let frames = stream::unfold(state, |state| async move {
        let (mut pages, waiting, counted, connection) = state?;
        let page = connection.stop.run_until_cancelled(pages.recv()).await.flatten();
        let Some(page) = page else { return Some((Err(connection.last_words()), None)) };
        waiting.fetch_sub(page_bytes(&page.page), Ordering::Relaxed);
        let frame = page.frame();
        counted.count(frame.len(), 1);
        Some((Ok(frame), Some((pages, waiting, counted, connection))))
    });
    Ok(Response::new(Box::pin(frames)))
}

async fn read_bulk(connection: Arc<Connection>, mut up: Streaming<Bytes>) {
    let Some(session) = connection.session.get() else { return };
    let counted = metrics::Stream::new("bulk", "in");
    let mut assembly = Assembly::new(connection.shared.options.handoff_bytes);
    let mut dropped = 0;
    let reading = async {
        loop {
            let frame = match up.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Why::Closed,
                Err(status) => return cut(&connection, &status),
            };
            if !session.peer.is_shard() {
                return session.not_allowed("hand slots over");
            }
            let handed = match wire::read_bulk_up(&frame, &mut assembly) {
                Ok(handed) => handed,
                Err(error) => return Why::Protocol(error.to_string()),
            };
            counted.count(frame.len(), handed.len());
            if assembly.dropped() > dropped {
                metrics::full("room", assembly.dropped() - dropped);
                dropped = assembly.dropped();
            }
            handed.into_iter().for_each(|handed| session.inbound.handed(handed));
        }
    };
    if let Some(why) = connection.stop.run_until_cancelled(reading).await {
        if matches!(why, Why::Protocol(_)) {
            tracing::error!(node = %session.peer.peer.node, %why, "a node said what it may not or cannot");
        }
        connection.end(why);
    }
}
