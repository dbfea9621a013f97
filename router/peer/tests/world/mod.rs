//! An owner and a gateway that record what they are told, and a proxy that can fall silent.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banyan_proto::id::Incarnation;
use banyan_proto::link::{FromShard, LinkId};
use banyan_proto::node::v1 as node;
use banyan_proto::wire::{self, Handed, NodeMessage};
use banyan_router::node_key::Role;
use banyan_router::slot_key::{NodeId, Peer};
use banyan_router_peer::{
    Accept, Asked, Events, Handle, Hello, Inbound, Link, Me, Options, Outgoing, Security, Server, Why,
};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything takes that works.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn options() -> Options {
    Options::default()
}

fn me(name: &str, incarnation: u128, role: Role) -> Me {
    Me {
        cluster: "test".into(),
        node: NodeId::parse(name).unwrap(),
        incarnation: Incarnation(incarnation),
        roles: vec![role],
        links: 3,
        release: "0.1.0".into(),
        wire: wire::VERSION,
    }
}

pub(crate) fn gateway_me() -> Me {
    me("gw", 5, Role::Gateway)
}

pub(crate) fn shard_me(name: &str, incarnation: u128) -> Me {
    me(name, incarnation, Role::Shard)
}

/// Waits until `ready` gives something.
async fn wait<T>(changed: &Notify, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            let notified = changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(value) = ready() {
                return value;
            }
            notified.await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

// ---------------------------------------------------------------- the side that is dialled

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    Node(NodeMessage),
    Handed(Handed),
}

#[derive(Default)]
pub(crate) struct Shard {
    got: Mutex<VecDeque<(LinkId, Asked)>>,
    told: Mutex<VecDeque<Told>>,
    outs: Mutex<Vec<mpsc::Sender<Vec<FromShard>>>>,
    changed: Notify,
    calls: AtomicUsize,
    /// Some calls take half of what they are offered.
    pub(crate) refuses_some: AtomicBool,
    pub(crate) takes_nothing: AtomicBool,
    pub(crate) takes_nobody: Mutex<Option<String>>,
    pub(crate) opened: AtomicUsize,
    pub(crate) closed: AtomicUsize,
    pub(crate) order: Mutex<Vec<&'static str>>,
}

impl Shard {
    pub(crate) async fn takes(&self, many: usize) -> Vec<(LinkId, Asked)> {
        wait(&self.changed, "messages to a shard", || {
            let mut got = self.got.lock().unwrap();
            (got.len() >= many).then(|| got.drain(..many).collect())
        })
        .await
    }

    pub(crate) async fn nothing_more(&self) -> bool {
        sleep(Duration::from_millis(100)).await;
        self.got.lock().unwrap().is_empty()
    }

    pub(crate) async fn told(&self) -> Told {
        wait(&self.changed, "a node's word", || self.told.lock().unwrap().pop_front()).await
    }

    pub(crate) fn nothing_told(&self) -> bool {
        self.told.lock().unwrap().is_empty()
    }

    pub(crate) fn out(&self, end: usize) -> mpsc::Sender<Vec<FromShard>> {
        self.outs.lock().unwrap()[end].clone()
    }

    pub(crate) async fn closes(&self) {
        wait(&self.changed, "the end of a link", || (self.closed.load(Ordering::Relaxed) > 0).then_some(()))
            .await;
    }
}

struct Taking(Arc<Shard>);

impl Accept for Taking {
    fn opened(&self, _: &Hello, outs: Vec<mpsc::Sender<Vec<FromShard>>>) -> Result<Arc<dyn Inbound>, String> {
        if let Some(words) = self.0.takes_nobody.lock().unwrap().clone() {
            return Err(words);
        }
        *self.0.outs.lock().unwrap() = outs;
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        self.0.order.lock().unwrap().push("opened");
        self.0.changed.notify_waiters();
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

impl Inbound for Taking {
    fn to_shard(&self, end: LinkId, mut messages: Vec<Asked>) -> Vec<Asked> {
        let shard = &self.0;
        if shard.takes_nothing.load(Ordering::Relaxed) {
            return messages;
        }
        let call = shard.calls.fetch_add(1, Ordering::Relaxed);
        let takes = if shard.refuses_some.load(Ordering::Relaxed) && call % 5 == 4 {
            messages.len() / 2
        } else {
            messages.len()
        };
        let rest = messages.split_off(takes);
        shard.got.lock().unwrap().extend(messages.into_iter().map(|asked| (end, asked)));
        shard.changed.notify_waiters();
        rest
    }

    fn told(&self, message: NodeMessage) {
        self.0.told.lock().unwrap().push_back(Told::Node(message));
        self.0.changed.notify_waiters();
    }

    fn handed(&self, handed: Handed) {
        self.0.told.lock().unwrap().push_back(Told::Handed(handed));
        self.0.changed.notify_waiters();
    }

    fn closed(&self) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
        self.0.order.lock().unwrap().push("closed");
        self.0.changed.notify_waiters();
    }
}

pub(crate) struct Nobody;

impl Accept for Nobody {
    fn opened(&self, _: &Hello, _: Vec<mpsc::Sender<Vec<FromShard>>>) -> Result<Arc<dyn Inbound>, String> {
        Err("nobody".to_owned())
    }
}

/// A server on a runtime of its own: dropping it is the end of its process, as far as a peer can see.
pub(crate) struct Owner {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    shard: Arc<Shard>,
    runtime: Option<Runtime>,
    stop: CancellationToken,
    over: Option<tokio::task::JoinHandle<()>>,
}

impl Deref for Owner {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        &self.shard
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not on a runtime's own thread.
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
        }
    }
}

impl Owner {
    pub(crate) async fn new(options: Options) -> Self {
        Self::secured(options, Security::Plain).await
    }

    pub(crate) async fn secured(options: Options, security: Security) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), shard_me("shard", 7), options, security).await
    }

    pub(crate) async fn on(listen: SocketAddr, me: Me, options: Options, security: Security) -> Self {
        let shard = Arc::new(Shard::default());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let accept = Arc::new(Taking(Arc::clone(&shard)));
        let bound = runtime.spawn(Server::bind(listen, security, me, options, accept)).await.unwrap();
        let server = bound.unwrap();
        let (address, handle) = (server.local_addr().unwrap(), server.handle());
        let stop = CancellationToken::new();
        let over = Some(runtime.spawn(server.run(stop.clone())));
        Self { address, handle, shard, runtime: Some(runtime), stop, over }
    }

    /// In good order; the process stays.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        let over = async {
            while !self.over.as_ref().unwrap().is_finished() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, over).await.expect("it ends");
    }
}

// ---------------------------------------------------------------- the side that dials

#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Down(Why),
    Failed(Why),
}

enum Event {
    Up(Link),
    Heard(Heard),
}

#[derive(Default)]
pub(crate) struct Recorder {
    events: Mutex<VecDeque<Event>>,
    messages: Mutex<Vec<VecDeque<FromShard>>>,
    changed: Notify,
    pub(crate) takes_nothing: AtomicBool,
    pub(crate) hold_pages: AtomicBool,
}

impl Recorder {
    fn note(&self, event: Event) {
        self.events.lock().unwrap().push_back(event);
        self.changed.notify_waiters();
    }
}

impl Events for Recorder {
    fn up(&self, link: &Link) {
        self.note(Event::Up(link.clone()));
    }

    fn down(&self, why: &Why) {
        self.note(Event::Heard(Heard::Down(why.clone())));
    }

    fn failed(&self, why: &Why) {
        self.note(Event::Heard(Heard::Failed(why.clone())));
    }

    fn messages(&self, end: LinkId, messages: Vec<FromShard>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let page = messages.iter().any(|message| matches!(message, FromShard::Page { .. }));
            while self.takes_nothing.load(Ordering::Relaxed)
                || page && self.hold_pages.load(Ordering::Relaxed)
            {
                sleep(Duration::from_millis(5)).await;
            }
            self.messages.lock().unwrap()[end.0 as usize].extend(messages);
            self.changed.notify_waiters();
        })
    }
}

pub(crate) struct Gateway {
    events: Arc<Recorder>,
    outgoing: Option<Outgoing>,
}

impl Deref for Gateway {
    type Target = Recorder;

    fn deref(&self) -> &Recorder {
        &self.events
    }
}

impl Gateway {
    pub(crate) fn events(links: u16) -> Arc<Recorder> {
        let messages = Mutex::new((0..links).map(|_| VecDeque::new()).collect());
        Arc::new(Recorder { messages, ..Recorder::default() })
    }

    pub(crate) fn with(outgoing: Outgoing, events: Arc<Recorder>) -> Self {
        Self { events, outgoing: Some(outgoing) }
    }

    pub(crate) fn dials(address: SocketAddr, expected: Peer, me: Me, options: Options) -> Self {
        Self::secured(address, expected, me, options, Security::Plain)
    }

    pub(crate) fn secured(
        address: SocketAddr,
        expected: Peer,
        me: Me,
        options: Options,
        security: Security,
    ) -> Self {
        let events = Self::events(me.links);
        let recorder: Arc<dyn Events> = Arc::<Recorder>::clone(&events);
        let outgoing = Outgoing::open(address.to_string(), expected, security, me, options, recorder);
        Self::with(outgoing, events)
    }

    async fn event(&self) -> Event {
        wait(&self.changed, "what comes of a link", || self.events.events.lock().unwrap().pop_front()).await
    }

    /// Whatever failed before it came up is forgotten.
    pub(crate) async fn comes_up(&mut self) -> Link {
        loop {
            if let Event::Up(link) = self.event().await {
                let current = self.outgoing.as_ref().unwrap().link();
                assert!(current.is_none_or(|current| current.peer() == link.peer()));
                return link;
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Heard {
        match self.event().await {
            Event::Heard(heard) => heard,
            Event::Up(link) => panic!("{link:?} is up"),
        }
    }

    pub(crate) async fn heard_nothing(&mut self) -> bool {
        sleep(Duration::from_millis(50)).await;
        self.events.events.lock().unwrap().is_empty()
    }

    pub(crate) async fn hears(&mut self, end: usize, many: usize) -> Vec<FromShard> {
        wait(&self.changed, "messages of a shard", || {
            let mut messages = self.messages.lock().unwrap();
            (messages[end].len() >= many).then(|| messages[end].drain(..many).collect())
        })
        .await
    }

    pub(crate) async fn close(&mut self) {
        self.outgoing.take().unwrap().close().await;
    }
}

/// An owner, a gateway, and the link between them.
pub(crate) async fn up(options: Options) -> (Owner, Gateway, Link) {
    up_as(gateway_me(), options).await
}

pub(crate) async fn up_as(me: Me, options: Options) -> (Owner, Gateway, Link) {
    let owner = Owner::new(options).await;
    let mut gateway = Gateway::dials(owner.address, shard_me("shard", 7).peer(), me, options);
    let link = gateway.comes_up().await;
    (owner, gateway, link)
}

// ---------------------------------------------------------------- networks and strangers

/// Forwards, until it falls silent: connections stay, nothing gets through.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    silent: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = CancellationToken::new();
        let token = silent.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let silent = token.clone();
                connections.spawn(async move {
                    let mut there = TcpStream::connect(to).await.unwrap();
                    let copying = tokio::io::copy_bidirectional(&mut here, &mut there);
                    if silent.run_until_cancelled(copying).await.is_none() {
                        // Both sockets stay open.
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, silent, task }
    }

    pub(crate) fn freeze(&self) {
        self.silent.cancel();
    }
}

pub(crate) fn hello(me: &Me) -> Vec<u8> {
    let expects = shard_me("shard", 7).peer();
    wire::hello_frame(&node::Hello {
        wire: me.wire,
        release: me.release.clone(),
        cluster: me.cluster.clone(),
        node: me.node.as_str().into(),
        incarnation: wire::incarnation_bytes(me.incarnation),
        roles: vec![node::NodeRole::Gateway.into()],
        links: me.links.into(),
        expects_node: expects.node.as_str().into(),
        expects_incarnation: wire::incarnation_bytes(expects.incarnation),
    })
}

/// Opens a live stream, says these frames and gives the last words of the other side.
pub(crate) async fn raw(address: SocketAddr, frames: Vec<Vec<u8>>) -> String {
    let tcp = TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp));
    let (mut sender, connection) = handshake.await.unwrap();
    let driver = tokio::spawn(connection);
    let frames = frames.into_iter().map(|frame| {
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
        message.extend_from_slice(&frame);
        Ok::<_, std::convert::Infallible>(Frame::data(bytes::Bytes::from(message)))
    });
    let body =
        StreamBody::new(Box::pin(futures_util::stream::iter(frames).chain(futures_util::stream::pending())));
    let request = http::Request::post("http://node/banyan.node.v1.Link/Live")
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap();
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let mut headers = response.headers().clone();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        headers.extend(body.trailers().cloned().unwrap_or_default());
        let words = headers.get("grpc-message").map(|words| words.to_str().unwrap().replace("%20", " "));
        Ok::<_, String>(words.unwrap_or_default())
    };
    let words = timeout(LIMIT, answer).await.expect("an answer");
    driver.abort();
    words.unwrap_or_else(|error| format!("cut: {error}"))
}

/// Says something that is not HTTP/2 and waits until the other side closes.
pub(crate) async fn garbage(address: SocketAddr, bytes: &[u8]) -> &'static str {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(bytes).await.unwrap();
    let mut said = Vec::new();
    match timeout(LIMIT, tcp.read_to_end(&mut said)).await {
        Ok(_) => "closed",
        Err(_) => "kept",
    }
}
