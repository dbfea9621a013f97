//! The shell of one gateway worker: its sockets, its listener and its clock around the pure core.
//!
//! Owns: one thread's share of the connections, from `accept` on. Runs on a current-thread runtime together with a
//! shard worker. Sockets live in an epoll set of our own (mio), which tokio sees as one thing that may be readable: so a
//! connection costs no task, and one call fetches the readiness of a thousand.
//! Always holds: a turn takes everything that is there (sockets, inbox, timers), only then sends; while something is
//! left it looks at the sockets again without sleeping.
//! Does not: decide anything about rooms or clients: that is [`banyan_gateway_core::Worker`].

mod greeting;
mod metrics;
mod socket;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use banyan_gateway_core::bucket::{Bucket, Rate};
use banyan_gateway_core::head::Refusal;
use banyan_gateway_core::slab::{Key, Slab};
use banyan_gateway_core::worker::{Effect, Now};
use banyan_gateway_core::{Worker as Core, worker};
use banyan_proto::codes::Close;
use banyan_proto::id::{Epoch, Incarnation, SlotId, UnixMs};
use banyan_proto::link::{FromShard, LinkId, ToShardBatch};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;
use mio::event::Source;
use mio::{Events, Interest, Poll, Registry, Token};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::accounts::{self, Revocation, Standing};
use crate::admission::Admission;
use crate::aside::Aside;
use crate::clock::unix_ms;

pub use greeting::Door;
use greeting::{Greeting, Next};
use metrics::Published;
use socket::{Socket, Sockets};

/// Room for one read; a connection that has more waits for its next turn.
const READ_BYTES: usize = 64 << 10;
/// Readiness that one call fetches.
const EVENTS: usize = 1_024;
/// Times that one turn fetches: above, what it has is sent first, however much more comes in.
const POLL_ROUNDS: usize = 8;
/// Sockets accepted in one turn.
const ACCEPTS: usize = 64;
/// Batches taken from the inbox in one turn.
const INBOX_TURN: usize = 256;
/// How long a client has to read the last that we said before its socket is closed.
const LINGER_MS: u64 = 1_000;
/// Sockets that wait for that. They count as closed: few, so that they fit into the files kept for other things.
const LINGERING: usize = 32;
const METRICS_MS: u64 = 1_000;
/// How soon a message that a shard's queue had no room for is offered again, and a drain looks how far it is.
const AGAIN: Duration = Duration::from_millis(2);

/// Tokens: connections by their index, then greetings, then the listener.
const GREETINGS: usize = 1 << 24;
const LISTENER: Token = Token(1 << 28);

/// What clients are told of an operator's drain.
const DRAINED: &str = "this server is being emptied";

pub(crate) const TOO_MUCH_HTTP: Refusal = Refusal::overloaded("too many HTTP requests", 1_000);

/// What a worker is told from outside the shards. Bounded by the commands and sockets that are under way.
#[derive(Debug)]
pub enum Control {
    /// A token has been checked.
    Authenticated { connection: Key, result: Result<accounts::Identity, v1::Error> },
    /// A command has been carried out beside the worker.
    Replied { connection: Key, id: u64, result: Result<Body, v1::Error> },
    /// A socket that another worker accepted.
    Adopt { stream: TcpStream, peer: SocketAddr },
    /// Logins have ended, and their connections with them.
    Revoked(Revocation),
    /// The token that this connection had shown when its login was looked up does not hold any more.
    LoginEnded { connection: Key, login: Option<Arc<str>>, issued_at: UnixMs },
    /// An operator has drained the node: clients are sent to others, as when the process stops, and none is taken; but the
    /// worker goes on. Said again it begins again.
    Drain,
    /// It is not drained any more.
    Undrain,
    /// Revocations were missed: nobody's token is known to hold any more.
    RevocationsMissed,
    /// There is a way over a link that had none.
    Way { link: u16, way: Arc<dyn Way> },
    /// Nothing comes or goes over a link any more. What came of it before stands in the inbox already.
    LinkLost { link: u16 },
    /// Who owns slots now.
    Routes(Arc<[Route]>),
}

/// A connection that is not for a worker.
#[derive(Debug)]
pub struct Handover {
    pub stream: TcpStream,
    pub tls: Option<Box<rustls::ServerConnection>>,
    /// What was read of it, not yet answered.
    pub prefix: Vec<u8>,
    pub client: IpAddr,
    pub guard: Guard,
}

/// Gives an admitted connection back when it is dropped.
#[derive(Debug)]
pub struct Guard {
    admission: Arc<Admission>,
    /// None when it is not counted.
    address: Option<IpAddr>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.admission.leave_address(address);
        }
        self.admission.closed();
    }
}

#[derive(Debug, Clone)]
pub struct Options {
    pub core: worker::Options,
    pub door: Door,
    pub handshake_deadline_ms: u64,
    /// New sockets of this worker.
    pub accepts: Rate,
    /// Bytes that the kernel may hold unsent for one socket; beyond the small window that it has not offered yet.
    pub unsent_bytes: u32,
    /// How long clients have to leave by themselves when the server drains.
    pub drain_window: Duration,
    /// When a drain ends whatever is left.
    pub drain_deadline: Duration,
    /// What the worker's milliseconds count from: one moment for all who share rate limits.
    pub begun: Instant,
}

/// What a worker is connected to.
#[derive(Debug)]
pub struct Deps {
    pub link: LinkId,
    pub routes: Routes,
    pub inbox: mpsc::Receiver<Vec<FromShard>>,
    pub control: mpsc::Receiver<Control>,
    /// Controls of all workers, this one's among them, by number.
    pub workers: Vec<mpsc::Sender<Control>>,
    pub admission: Arc<Admission>,
    pub aside: Aside,
    pub http: mpsc::Sender<Handover>,
}

/// The way to the owners of slots.
#[derive(Debug, Clone)]
pub struct Routes {
    /// How many slots there are, a power of two.
    pub slots: u32,
    /// The slot of a room, of 65,536; of a user's channel by the name `~` + user.
    pub slot_of: fn(&str) -> u16,
    /// How many links there can be.
    pub links: usize,
    /// Links, by number, that lead somewhere from the start.
    pub ways: Vec<Arc<dyn Way>>,
    /// What is known from the start; more comes as [`Control::Routes`].
    pub known: Arc<[Route]>,
    /// Who wants to know what the workers notice. Full: owners are asked again, and who is wanted waits a little longer.
    pub noticed: Option<mpsc::Sender<Noticed>>,
}

/// Takes what goes to the owners behind one link.
pub trait Way: Send + Sync + fmt::Debug + 'static {
    /// Gives the batch back where there is no room for it, or nobody to take it.
    fn offer(&self, batch: ToShardBatch) -> Result<(), ToShardBatch>;
}

/// The owner of a slot, and the link to it. `None`: there is no owner, or no way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub slot: SlotId,
    pub epoch: Epoch,
    pub link: Option<u16>,
}

/// What a worker notices of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    /// A shard has named an owner that this worker has no link to.
    Owner { slot: SlotId, epoch: Epoch, owner: Incarnation },
    /// Commands wait for the slot, and the way to its owner is lost.
    Wanted { slot: SlotId },
}

#[derive(Debug)]
pub struct Worker {
    core: Core,
    options: Options,
    number: usize,
    /// By link. Ends with the last link that has led anywhere.
    ways: Vec<Option<Arc<dyn Way>>>,
    deps: Deps,
    poll: AsyncFd<Poll>,
    registry: Registry,
    events: Events,
    listener: Option<mio::net::TcpListener>,
    accepting: Bucket,
    /// The listener may have more; it is not asked before this.
    accept_again_at: Option<u64>,
    greetings: Slab<Greeting>,
    greeting_deadlines: VecDeque<(u64, Key)>,
    sockets: Sockets,
    /// Connections that have more to read than one bufferful, or may read again.
    again: Vec<u32>,
    /// The last turn left readiness that it had no time for.
    unpolled: bool,
    /// Sockets that we have ended and the client has not, oldest first, with when they are closed.
    lingering: VecDeque<(u64, mio::net::TcpStream)>,
    buffer: Box<[u8]>,
    begun: Instant,
    published: Published,
    metrics_at: u64,
    shard_full: bool,
    /// Since when clients leave because of an operator's drain; `None`: they do not, or those who had not left have been sent.
    leaving_since: Option<u64>,
}

impl Worker {
    /// Must be called on the runtime that will run it.
    pub fn new(options: Options, listener: TcpListener, deps: Deps) -> io::Result<Self> {
        let number = usize::from(options.core.worker);
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        listener.register(&registry, LISTENER, Interest::READABLE)?;
        let now = Now { ms: 1, unix: unix_ms() };
        let routes = &deps.routes;
        let mut core = Core::new(options.core.clone(), routes.links, routes.slots, routes.slot_of, now);
        for route in &*routes.known {
            core.route_changed(now, route.slot, route.epoch, route.link);
        }
        let ways = routes.ways.iter().cloned().map(Some).collect();
        Ok(Self {
            core,
            number,
            ways,
            deps,
            poll: watched(poll)?,
            registry,
            events: Events::with_capacity(EVENTS),
            listener: Some(listener),
            accepting: Bucket::default(),
            accept_again_at: Some(0),
            greetings: Slab::default(),
            greeting_deadlines: VecDeque::new(),
            sockets: Sockets::default(),
            again: Vec::new(),
            unpolled: false,
            lingering: VecDeque::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            begun: options.begun,
            published: Published::new(number),
            metrics_at: 0,
            shard_full: false,
            leaving_since: None,
            options,
        })
    }

    fn now(&self) -> Now {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX) + 1;
        Now { ms, unix: unix_ms() }
    }

    /// Serves until `drain`, then until everybody has left or the deadline has passed.
    pub async fn run(mut self, drain: CancellationToken) -> io::Result<()> {
        let mut state = Draining::No;
        loop {
            let now = self.now();
            self.turn(now)?;
            if drain.is_cancelled() {
                state = self.drain(now, state);
                if matches!(state, Draining::Done) {
                    self.publish(now);
                    return Ok(());
                }
            }
            if self.core.has_work() || !self.again.is_empty() || self.unpolled || self.core.has_effects() {
                // Other tasks of this thread (the shard worker) and the driver get their turn.
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = self.deadline(now, &state);
            let woken = tokio::select! {
                biased;
                () = drain.cancelled(), if matches!(state, Draining::No) => Woken::Other,
                ready = self.poll.readable_mut() => {
                    // Cleared before the sockets are asked: what comes later wakes again.
                    ready?.clear_ready();
                    Woken::Other
                }
                batch = self.deps.inbox.recv() => Woken::Inbox(batch),
                control = self.deps.control.recv() => Woken::Control(control),
                () = tokio::time::sleep_until(deadline) => Woken::Other,
            };
            let now = self.now();
            match woken {
                Woken::Other => {}
                Woken::Inbox(Some(batch)) => {
                    for message in batch {
                        self.core.shard_said(now, message);
                    }
                }
                Woken::Control(Some(control)) => self.controlled(now, control),
                Woken::Inbox(None) | Woken::Control(None) => {
                    return Err(io::Error::other("the other side of a queue is gone"));
                }
            }
        }
    }

    /// Takes everything that is there, then sends for one round.
    fn turn(&mut self, now: Now) -> io::Result<()> {
        self.poll_sockets(now)?;
        for _ in 0..INBOX_TURN {
            let Ok(batch) = self.deps.inbox.try_recv() else { break };
            for message in batch {
                self.core.shard_said(now, message);
            }
        }
        while let Ok(control) = self.deps.control.try_recv() {
            self.controlled(now, control);
        }
        if self.core.next_deadline() <= now.ms {
            self.core.tick(now);
        }
        self.send_away(now);
        self.give_up_greetings(now);
        self.close_lingering(now);
        self.perform(now);
        self.hand_over();
        self.core.sweep(now, &mut self.sockets);
        self.perform(now);
        // Sockets that took all they were given want their next pages.
        self.hand_over();
        if now.ms >= self.metrics_at {
            self.metrics_at = now.ms + METRICS_MS;
            self.publish(now);
        }
        Ok(())
    }

    fn publish(&mut self, now: Now) {
        let _ = now;
        self.published.publish(&self.core, self.greetings.len());
        self.deps.admission.set_worker(self.number, self.core.sizes().0);
    }

    fn deadline(&self, now: Now, state: &Draining) -> Instant {
        let mut at = self.core.next_deadline().min(self.metrics_at);
        if let Some((deadline, _)) = self.greeting_deadlines.front() {
            at = at.min(*deadline);
        }
        if let Some(again) = self.accept_again_at {
            at = at.min(again);
        }
        if let Some((close_at, _)) = self.lingering.front() {
            at = at.min(*close_at);
        }
        if let Some(since) = self.leaving_since {
            let end = since + self.window_ms();
            at = at.min(if now.ms < end { end } else { now.ms + AGAIN.as_millis() as u64 });
        }
        let mut wait = Duration::from_millis(at.saturating_sub(now.ms));
        if self.shard_full || !matches!(state, Draining::No) {
            wait = wait.min(AGAIN);
        }
        Instant::now() + wait
    }

    // ------------------------------------------------------------ sockets

    fn poll_sockets(&mut self, now: Now) -> io::Result<()> {
        for index in std::mem::take(&mut self.again) {
            self.read(now, index);
        }
        self.unpolled = true;
        for _ in 0..POLL_ROUNDS {
            let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
            match self.poll.get_mut().poll(&mut events, Some(Duration::ZERO)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.events = events;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let mut count = 0;
            for event in &events {
                count += 1;
                match event.token() {
                    LISTENER => self.accept_again_at = Some(0),
                    Token(token) if token >= GREETINGS => self.greet(now, (token - GREETINGS) as u32),
                    Token(token) => {
                        let index = token as u32;
                        if event.is_writable() {
                            self.writable(now, index);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            if event.is_read_closed()
                                && let Some(socket) = self.sockets.get_mut(index)
                            {
                                // It shows in a read of its own, perhaps of a connection that is not read now.
                                socket.ending = true;
                            }
                            self.read(now, index);
                        }
                    }
                }
            }
            self.events = events;
            if count < EVENTS {
                self.unpolled = false;
                break;
            }
        }
        if self.accept_again_at.is_some_and(|at| at <= now.ms) {
            self.accept(now);
        }
        Ok(())
    }

    fn read(&mut self, now: Now, index: u32) {
        if !self.core.wants_read(index) {
            return;
        }
        let Some(socket) = self.sockets.get_mut(index) else { return };
        match socket.read(&mut self.buffer) {
            Ok(0) => self.core.lost(index),
            Ok(read) => {
                // A short read has emptied the socket; TLS may hold more than it gave, and an end that was told of is
                // told of no more.
                if read == self.buffer.len() || socket.tls.is_some() || socket.ending {
                    self.again.push(index);
                }
                self.core.received(now, index, &mut self.buffer[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.again.push(index),
            Err(_) => self.core.lost(index),
        }
    }

    fn writable(&mut self, now: Now, index: u32) {
        let Some(socket) = self.sockets.get_mut(index) else { return };
        match socket.writable() {
            Ok(true) => self.core.writable(now, index),
            Ok(false) => {}
            Err(_) => self.core.lost(index),
        }
    }

    // ------------------------------------------------------------ new sockets

    fn accept(&mut self, now: Now) {
        self.accept_again_at = None;
        for _ in 0..ACCEPTS {
            let Some(listener) = &self.listener else { return };
            if let Err(wait_ms) = self.accepting.take(now.ms, self.options.accepts) {
                self.accept_again_at = Some(now.ms + wait_ms.max(1));
                return;
            }
            match listener.accept() {
                Ok((stream, peer)) => {
                    if let Some(other) = self.deps.admission.better_worker(self.number)
                        && let Ok(permit) = self.deps.workers[other].try_reserve()
                    {
                        permit.send(Control::Adopt { stream: stream.into(), peer });
                        continue;
                    }
                    self.welcome(now, stream, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.accepting.give_back(self.options.accepts);
                    return;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    self.accepting.give_back(self.options.accepts);
                    // Out of descriptors or memory: what is there goes on, new sockets wait a moment.
                    tracing::warn!(%error, "cannot accept a connection");
                    self.accept_again_at = Some(now.ms + 100);
                    return;
                }
            }
        }
        // More may wait: the edge has been used up.
        self.accept_again_at = Some(now.ms);
    }

    fn welcome(&mut self, now: Now, stream: mio::net::TcpStream, peer: SocketAddr) {
        let address = peer.ip();
        let socket = Socket { stream, tls: None, address, unauthenticated: true, user: None, ending: false };
        if let Err(refusal) = self.deps.admission.open() {
            self.refuse(now, socket, &refusal);
            return;
        }
        if let Err(error) = self.prepare(&socket.stream) {
            tracing::debug!(%error, "a new socket broke");
            self.release_greeting();
            return;
        }
        let deadline = now.ms + self.options.handshake_deadline_ms;
        let mut greeting = Greeting::new(socket, peer, deadline, &self.options.door);
        if let Some(tls) = self.options.door.tls.as_ref().filter(|_| !self.options.door.proxy_protocol)
            && !matches!(greeting.secure(tls), Next::Wait)
        {
            self.release_greeting();
            return;
        }
        let Some(key) = self.greetings.insert(greeting) else {
            self.release_greeting();
            return;
        };
        self.greeting_deadlines.push_back((deadline, key));
        let registered = self.greetings.get_mut(key.index).map(|greeting| {
            greeting.socket.stream.register(
                &self.registry,
                Token(GREETINGS + key.index as usize),
                Interest::READABLE | Interest::WRITABLE,
            )
        });
        if !matches!(registered, Some(Ok(()))) {
            self.greetings.remove(key.index);
            self.release_greeting();
        }
    }

    /// Options of a client's socket: no waiting to fill packets (we coalesce ourselves), and a kernel that does not
    /// hoard megabytes for who never reads.
    fn prepare(&self, stream: &mio::net::TcpStream) -> io::Result<()> {
        let socket = socket2::SockRef::from(stream);
        socket.set_tcp_nodelay(true)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_notsent_lowat(self.options.unsent_bytes)?;
        Ok(())
    }

    fn release_greeting(&self) {
        self.deps.admission.no_longer_unauthenticated();
        self.deps.admission.closed();
    }

    fn greet(&mut self, now: Now, index: u32) {
        let Some(greeting) = self.greetings.get_mut(index) else { return };
        let next = greeting.readable(&self.options.door, &mut self.buffer);
        if matches!(next, Next::Wait) {
            return;
        }
        let Some(greeting) = self.greetings.remove(index) else { return };
        let mut socket = greeting.socket;
        match next {
            Next::Wait => {}
            Next::Gone => self.release_greeting(),
            Next::Refuse(refusal) => {
                self.refuse(now, socket, &refusal);
                self.release_greeting();
            }
            Next::Upgrade { format, response, client, mut rest } => {
                if let Err(refusal) = self.deps.admission.enter_address(client) {
                    self.refuse(now, socket, &refusal);
                    self.release_greeting();
                    return;
                }
                socket.address = client;
                // Connections that ended in this turn give their sockets back first: this one may get the place of one.
                self.perform(now);
                let upgraded = self.core.accept(now, format, &response).filter(|index| {
                    let token = Token(*index as usize);
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    socket.stream.reregister(&self.registry, token, interest).is_ok()
                });
                let Some(index) = upgraded else {
                    // Every place is taken, or the server is stopping.
                    let words = match self.core.is_draining() {
                        true => DRAINED,
                        false => "no place for this connection",
                    };
                    self.refuse(now, socket, &Refusal::overloaded(words, 1_000));
                    self.deps.admission.leave_address(client);
                    self.release_greeting();
                    return;
                };
                self.sockets.put(index, socket);
                self.core.received(now, index, &mut rest);
                // What came after the last read raised no edge for the new token.
                self.again.push(index);
            }
            Next::Http { client, prefix } => {
                // A trusted proxy's connections carry the requests of many clients.
                let trusted = self.options.door.trusted_proxies.iter().any(|net| net.contains(client));
                let counted = (!trusted).then_some(client);
                if let Some(client) = counted
                    && let Err(refusal) = self.deps.admission.enter_address(client)
                {
                    self.refuse(now, socket, &refusal);
                    self.release_greeting();
                    return;
                }
                self.deps.admission.no_longer_unauthenticated();
                let guard = Guard { admission: Arc::clone(&self.deps.admission), address: counted };
                drop(socket.stream.deregister(&self.registry));
                match self.deps.http.clone().try_reserve_owned() {
                    Ok(permit) => drop(permit.send(Handover {
                        stream: socket.stream.into(),
                        tls: socket.tls,
                        prefix,
                        client,
                        guard,
                    })),
                    Err(_) => self.refuse(now, socket, &TOO_MUCH_HTTP),
                }
            }
        }
    }

    /// Answers with a refusal, as far as the socket takes it at once.
    fn refuse(&mut self, now: Now, mut socket: Socket, refusal: &Refusal) {
        self.published.refused(refusal.status);
        // Words before a TLS handshake would be noise to a client that speaks TLS.
        if socket.tls.is_some() || self.options.door.tls.is_none() {
            drop(socket.write(&refusal.response()));
        }
        self.let_go(now, socket);
    }

    /// Ends a socket. Closing it at once would make the kernel answer what the client still sends with a reset, which
    /// may overtake the last that we said: so it stays for a moment, unread. When too many do, the oldest goes.
    fn let_go(&mut self, now: Now, mut socket: Socket) {
        drop(socket.stream.deregister(&self.registry));
        if socket.end(&mut self.buffer) {
            return;
        }
        if self.lingering.len() >= LINGERING {
            self.lingering.pop_front();
        }
        self.lingering.push_back((now.ms + LINGER_MS, socket.stream));
    }

    fn close_lingering(&mut self, now: Now) {
        while self.lingering.front().is_some_and(|(at, _)| *at <= now.ms) {
            self.lingering.pop_front();
        }
    }

    fn give_up_greetings(&mut self, now: Now) {
        while let Some((deadline, key)) = self.greeting_deadlines.front().copied() {
            // Those that are done leave a hole, which costs nothing when its time comes; a front hole goes at once.
            // The deadline is a part of the name: behind a slow front one place may be used more often than its key tells.
            let alive = self.greetings.get_key(key).is_some_and(|greeting| greeting.deadline == deadline);
            if alive && deadline > now.ms {
                return;
            }
            self.greeting_deadlines.pop_front();
            if alive && let Some(greeting) = self.greetings.remove(key.index) {
                self.refuse(now, greeting.socket, &Refusal::HEAD_TIMEOUT);
                self.release_greeting();
            }
        }
    }

    // ------------------------------------------------------------ others

    fn controlled(&mut self, now: Now, control: Control) {
        match control {
            Control::Authenticated { connection, result } => {
                self.authenticated(now, connection, result);
            }
            Control::Replied { connection, id, result } => {
                self.core.backend_replied(now, connection, id, result)
            }
            Control::Adopt { stream, peer } => self.welcome(now, mio::net::TcpStream::from_std(stream), peer),
            Control::Revoked(revocation) => {
                let login = revocation.login.as_deref();
                self.core.disconnect(now, &revocation.user, login, revocation.number);
            }
            Control::LoginEnded { connection, login, issued_at } => {
                self.core.login_ended(now, connection, login.as_deref(), issued_at);
            }
            Control::Drain => {
                self.core.drain(now, self.window_ms(), DRAINED);
                self.leaving_since = Some(now.ms);
            }
            Control::Undrain => {
                self.core.undrain();
                self.leaving_since = None;
            }
            // A thousand revocations came while this thread did not run once. Everybody comes back with their token.
            Control::RevocationsMissed => self.core.close_all(now, Close::ServerError, "please reconnect"),
            Control::Way { link, way } => self.way(link, Some(way)),
            Control::LinkLost { link } => self.link_lost(now, link),
            Control::Routes(routes) => {
                for route in &*routes {
                    self.core.route_changed(now, route.slot, route.epoch, route.link);
                }
            }
        }
    }

    fn authenticated(&mut self, now: Now, connection: Key, result: Result<accounts::Identity, v1::Error>) {
        let identity = match result {
            Ok(identity) => identity,
            Err(error) => return self.core.authenticated(now, connection, Err(error)),
        };
        if self.core.is_new(connection)
            && let Some(socket) = self.sockets.get_mut(connection.index)
        {
            if !self.deps.admission.enter_user(&identity.person.user) {
                let message = "this user has too many connections; close one";
                self.core.end(now, connection, Close::TooManyConnections, message);
                return;
            }
            socket.user = Some(identity.person.user.clone());
            if std::mem::take(&mut socket.unauthenticated) {
                self.deps.admission.no_longer_unauthenticated();
            }
        }
        let core_identity = worker::Identity {
            person: identity.person.clone(),
            expires_at: identity.expires_at,
            login: identity.login.clone(),
            issued_at: identity.issued_at,
            as_of: identity.as_of,
        };
        self.core.authenticated(now, connection, Ok(core_identity));
        // Registered first, asked second: a revocation is seen here or comes to the registered connection.
        match self.deps.aside.standing(&identity) {
            Standing::Good => {}
            Standing::Revoked => self.core.end(now, connection, Close::Ended, "signed out or disabled"),
            Standing::Unknown => self.core.end(now, connection, Close::ServerError, "please reconnect"),
        }
    }

    fn perform(&mut self, now: Now) {
        while self.core.has_effects() {
            for effect in self.core.take_effects() {
                match effect {
                    Effect::Authenticate { connection, token, client } => {
                        self.deps.aside.authenticate(self.number, connection, token, client);
                    }
                    Effect::Backend { connection, id, person, command } => {
                        self.deps.aside.carry_out(self.number, connection, id, person, command);
                    }
                    Effect::CheckLogin { connection, user, login, issued_at } => {
                        self.deps.aside.check_login(self.number, connection, user, login, issued_at);
                    }
                    Effect::Resume { connection } => self.read(now, connection),
                    Effect::Drop { connection } => self.drop_socket(now, connection),
                    Effect::Moved { slot, epoch, owner } => {
                        if let Some(owner) = owner {
                            self.notice(Noticed::Owner { slot, epoch, owner });
                        }
                    }
                    Effect::Wanted { slot } => self.notice(Noticed::Wanted { slot }),
                }
            }
        }
    }

    fn notice(&self, noticed: Noticed) {
        if let Some(to) = &self.deps.routes.noticed {
            // What does not fit can be done without.
            to.try_send(noticed).ok();
        }
    }

    fn drop_socket(&mut self, now: Now, index: u32) {
        let Some(socket) = self.sockets.take(index) else { return };
        if socket.unauthenticated {
            self.deps.admission.no_longer_unauthenticated();
        }
        if let Some(user) = &socket.user {
            self.deps.admission.leave_user(user);
        }
        self.deps.admission.leave_address(socket.address);
        self.deps.admission.closed();
        self.let_go(now, socket);
    }

    /// Gives each link what waits for it. What it has no room for stays here, in order; what stays is bounded by the
    /// commands in flight.
    fn hand_over(&mut self) {
        self.shard_full = false;
        for (way, messages) in self.ways.iter().zip(self.core.shard_queues()) {
            let Some(way) = way else { continue };
            if messages.is_empty() {
                continue;
            }
            let batch = ToShardBatch { link: self.deps.link, messages: std::mem::take(messages) };
            if let Err(batch) = way.offer(batch) {
                *messages = batch.messages;
                self.shard_full = true;
            }
        }
    }

    fn way(&mut self, link: u16, way: Option<Arc<dyn Way>>) {
        let at = usize::from(link);
        if at >= self.deps.routes.links {
            return;
        }
        if self.ways.len() <= at {
            self.ways.resize(at + 1, None);
        }
        self.ways[at] = way;
    }

    fn link_lost(&mut self, now: Now, link: u16) {
        // What its owners have said stands in the inbox, and is true.
        while let Ok(batch) = self.deps.inbox.try_recv() {
            for message in batch {
                self.core.shard_said(now, message);
            }
        }
        self.way(link, None);
        self.core.link_lost(now, link);
    }

    fn window_ms(&self) -> u64 {
        self.options.drain_window.as_millis() as u64
    }

    /// Ends an operator's drain: whoever has not left by the end of the window is sent, once nothing is owed.
    fn send_away(&mut self, now: Now) {
        let Some(since) = self.leaving_since else { return };
        let late = since + self.options.drain_deadline.as_millis() as u64;
        if now.ms >= late || (now.ms >= since + self.window_ms() && self.core.is_settled()) {
            self.leaving_since = None;
            self.core.close_all(now, Close::Draining, DRAINED);
        }
    }

    fn drain(&mut self, now: Now, state: Draining) -> Draining {
        let window = self.window_ms();
        match state {
            Draining::No => {
                self.leaving_since = None;
                if let Some(mut listener) = self.listener.take() {
                    drop(listener.deregister(&self.registry));
                }
                self.accept_again_at = None;
                self.core.drain(now, window, "this server is stopping");
                Draining::Leaving { since: now.ms }
            }
            Draining::Leaving { since } => {
                let (connections, ..) = self.core.sizes();
                let deadline = since + self.options.drain_deadline.as_millis() as u64;
                if connections == 0 {
                    return Draining::Done;
                }
                if now.ms >= deadline {
                    self.core.close_all(now, Close::Stopped, "the drain deadline has passed");
                    return Draining::Closing;
                }
                if now.ms >= since + window && self.core.is_settled() {
                    self.core.close_all(now, Close::Draining, "this server is stopping");
                    return Draining::Closing;
                }
                state
            }
            Draining::Closing => {
                let (connections, ..) = self.core.sizes();
                // Connections that do not answer their close frame are dropped by the core after two seconds.
                if connections == 0 { Draining::Done } else { state }
            }
            Draining::Done => Draining::Done,
        }
    }
}

/// Our epoll set as one thing that tokio can wait for.
#[expect(
    unsafe_code,
    reason = "tokio has no safe way to watch a descriptor that is not AsFd, and mio's Poll is not"
)]
fn watched(poll: Poll) -> io::Result<AsyncFd<Poll>> {
    // SAFETY: the descriptor is `poll`'s own, opened by it and closed only when it is dropped; the AsyncFd owns `poll`
    // and takes the descriptor out of tokio's set before it drops it. `Poll::as_raw_fd` always gives the same one.
    let watched = unsafe { AsyncFd::register_with_interest(poll, tokio::io::Interest::READABLE) };
    watched.map_err(io::Error::from)
}

#[derive(Debug, Clone, Copy)]
enum Draining {
    No,
    /// Clients were told to leave.
    Leaving {
        since: u64,
    },
    /// Close frames are out.
    Closing,
    Done,
}

#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack of one turn")]
enum Woken {
    Other,
    Inbox(Option<Vec<FromShard>>),
    Control(Option<Control>),
}
