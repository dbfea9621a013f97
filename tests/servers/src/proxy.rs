//! A TCP proxy that breaks connections on demand.
//!
//! Owns: a listener, the connections through it, what is wrong with them. It runs on a thread of its own, so it works
//! whichever runtime uses it and however busy that one is.
//! Always holds: bytes are delivered in order or not at all; at most [`QUEUED_BYTES`] of a direction wait in the
//! proxy, then it stops reading; all ends when the value is dropped.
//! Does not: understand what it forwards, or lose packets: TCP would send them again, so a loss is a delay here.

use anyhow::Context;
use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Of one direction of one connection. The sender feels a full queue as it would a slow receiver.
pub const QUEUED_BYTES: usize = 1 << 20;

/// What is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Connections that the kernel keeps until we take them.
const BACKLOG: u32 = 1024;

/// Between tries to accept when the process has no file descriptors left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What is wrong. Connections that exist change at once; connections to come are born with the proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: bytes go through.
    Pass,
    /// Nothing arrives, either way, and nobody is told. New connections are accepted (the kernel does that) and lead
    /// nowhere. What was sent arrives when the fault ends, as it would after a short cut.
    Cut,
    /// What clients send does not arrive.
    CutToServer,
    /// What the server sends does not arrive.
    CutToClient,
    /// Every byte arrives that much later, in both directions.
    Delay(Duration),
    /// What clients send arrives that much later.
    DelayToServer(Duration),
    /// What the server sends arrives that much later.
    DelayToClient(Duration),
    /// New connections are refused, as where nothing listens. Those that exist live on: [`FaultProxy::reset_all`].
    Refuse,
    /// Connections are reset, those that exist and, once accepted, new ones.
    Reset,
    /// The server's side is closed and clients are not told: what they send vanishes. Cannot be undone for a
    /// connection that had it.
    HalfOpenToClient,
    /// The client's side is closed and the server is not told.
    HalfOpenToServer,
}

/// A connection through the proxy, in the order of their acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What a direction does with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Flow,
    Hold,
    Late(Duration),
}

impl Fault {
    fn to_server(self) -> Way {
        match self {
            Self::Cut | Self::CutToServer => Way::Hold,
            Self::Delay(by) | Self::DelayToServer(by) => Way::Late(by),
            _ => Way::Flow,
        }
    }

    fn to_client(self) -> Way {
        match self {
            Self::Cut | Self::CutToClient => Way::Hold,
            Self::Delay(by) | Self::DelayToClient(by) => Way::Late(by),
            _ => Way::Flow,
        }
    }
}

/// The proxy. It ends with this value, and all its connections with it.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// What the listener obeys, with a number that it repeats when it has.
    orders: watch::Sender<(u64, Fault)>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    obeyed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<ConnectionId, watch::Sender<Fault>>,
    accepted: u64,
    obeyed: u64,
    /// Why the listener cannot listen again; it keeps trying.
    trouble: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultProxy {
    /// On a free port of 127.0.0.1, before `upstream`.
    pub async fn start(upstream: SocketAddr) -> anyhow::Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), upstream).await
    }

    /// At an address of the caller's choice.
    pub async fn start_at(listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (orders, obey) = watch::channel((0, Fault::Pass));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = tokio::sync::oneshot::channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                match bind(listen).and_then(|listener| Ok((listener.local_addr()?, listener))) {
                    Ok((address, listener)) => {
                        tell.send(Ok(address)).ok();
                        accept_all(listener, address, upstream, theirs, obey).await;
                    }
                    Err(e) => drop(tell.send(Err(e))),
                }
            });
        });
        let address = told.await.context("the proxy's thread ended")?;
        let address = address.with_context(|| format!("cannot listen at {listen}"))?;
        Ok(Self { address, shared, orders, thread: Some(thread) })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes `fault` true of all connections, those that exist and those to come. True when it returns.
    pub fn set(&self, fault: Fault) {
        let mut number = 0;
        self.orders.send_modify(|order| {
            *order = (order.0 + 1, fault);
            number = order.0;
        });
        let mut state = self.shared.lock();
        while state.obeyed < number && self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            let waited = self.shared.obeyed.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes `fault` true of one connection only. False when it has ended. [`Fault::Refuse`] means nothing here.
    pub fn set_on(&self, connection: ConnectionId, fault: Fault) -> bool {
        let state = self.shared.lock();
        state.connections.get(&connection).is_some_and(|orders| orders.send(fault).is_ok())
    }

    /// Resets all connections that exist; new ones are as before.
    pub fn reset_all(&self) {
        for orders in self.shared.lock().connections.values() {
            // It may be ending by itself.
            orders.send(Fault::Reset).ok();
        }
    }

    /// The connections that exist, oldest first.
    pub fn connections(&self) -> Vec<ConnectionId> {
        self.shared.lock().connections.keys().copied().collect()
    }

    /// How many connections were ever accepted.
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// Why it does not listen although it should, if that is so.
    pub fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // The listener's loop ends when nobody can give it orders; its runtime takes the connections with it.
        self.orders = watch::channel((0, Fault::Pass)).0;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the listener before may linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept_all(
    listener: TcpListener,
    address: SocketAddr,
    upstream: SocketAddr,
    shared: Arc<Shared>,
    mut orders: watch::Receiver<(u64, Fault)>,
) {
    let mut listener = Some(listener);
    let mut fault = Fault::Pass;
    loop {
        let again = tokio::select! {
            biased; // orders first: no connection is accepted under one that was replaced
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                false
            }
            accepted = accept(listener.as_ref()) => {
                match accepted {
                    Ok(stream) => begin(stream, upstream, fault, &shared),
                    Err(_) => tokio::time::sleep(ACCEPT_AGAIN).await,
                }
                continue;
            }
            () = tokio::time::sleep(ACCEPT_AGAIN), if listener.is_none() && fault != Fault::Refuse => true,
        };
        let (number, new) = *orders.borrow_and_update();
        fault = new;
        let mut trouble = None;
        if fault == Fault::Refuse {
            listener = None;
        } else if listener.is_none() {
            match bind(address) {
                Ok(bound) => listener = Some(bound),
                Err(e) => trouble = Some(format!("cannot listen at {address} again: {e}")),
            }
        }
        let mut state = shared.lock();
        state.trouble = trouble;
        if !again {
            for connection in state.connections.values() {
                // It may be ending by itself.
                connection.send(fault).ok();
            }
        }
        state.obeyed = number;
        shared.obeyed.notify_all();
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => pending().await,
    }
}

/// A task of its own for an accepted connection.
fn begin(client: TcpStream, upstream: SocketAddr, fault: Fault, shared: &Arc<Shared>) {
    let (orders, obey) = watch::channel(fault);
    let id = {
        let mut state = shared.lock();
        state.accepted += 1;
        let id = ConnectionId(state.accepted);
        state.connections.insert(id, orders);
        id
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        connection(client, upstream, obey).await;
        shared.lock().connections.remove(&id);
    });
}

/// Why forwarding ended before both directions did.
enum Ended {
    /// A side was reset, or is to be.
    Reset,
    /// One side is closed, the other is not told.
    HalfOpen(Fault),
}

async fn connection(mut client: TcpStream, upstream: SocketAddr, mut orders: watch::Receiver<Fault>) {
    // Nothing is asked of the server while the way to it is cut.
    let fault =
        *orders.wait_for(|fault| fault.to_server() != Way::Hold).await.as_deref().unwrap_or(&Fault::Reset);
    if fault == Fault::Reset {
        reset(client);
        return;
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        // Refused behind us: the client has its connection already, so a reset is the nearest thing.
        reset(client);
        return;
    };
    // Best effort: without it small answers would be late, not wrong.
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = pump(from_client, to_server, orders.clone(), Fault::to_server);
        let back = pump(from_server, to_client, orders.clone(), Fault::to_client);
        let broken = async {
            let told = orders.wait_for(|fault| {
                matches!(fault, Fault::Reset | Fault::HalfOpenToClient | Fault::HalfOpenToServer)
            });
            match told.await.as_deref() {
                Ok(Fault::Reset) | Err(_) => Ended::Reset,
                Ok(half_open) => Ended::HalfOpen(*half_open),
            }
        };
        tokio::select! {
            biased; // orders first
            ended = broken => Some(ended),
            both = async { tokio::try_join!(there, back) } => both.err().map(|_| Ended::Reset),
        }
    };
    match ended {
        None => {}
        Some(Ended::Reset) => {
            reset(client);
            reset(server);
        }
        Some(Ended::HalfOpen(Fault::HalfOpenToServer)) => {
            drop(client);
            swallow(server, orders).await;
        }
        Some(Ended::HalfOpen(_)) => {
            drop(server);
            swallow(client, orders).await;
        }
    }
}

/// Reads and forgets, until the other side ends or a reset is ordered.
async fn swallow(mut stream: TcpStream, mut orders: watch::Receiver<Fault>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let ordered = loop {
        tokio::select! {
            biased;
            told = orders.wait_for(|fault| *fault == Fault::Reset) => break told.is_ok(),
            read = stream.read(&mut chunk) => {
                if !matches!(read, Ok(1..)) {
                    break false;
                }
            }
        }
    };
    if ordered {
        reset(stream);
    }
}

/// Closes with a reset instead of an orderly end.
fn reset(stream: TcpStream) {
    // Closed it is in any case.
    stream.set_zero_linger().ok();
    drop(stream);
}

/// One direction, until its sender ends and all was delivered. An error is that of a broken connection.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut orders: watch::Receiver<Fault>,
    way: fn(Fault) -> Way,
) -> io::Result<()> {
    // Chunks with the time from which they may go on; an empty one is the end.
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let (mut queued, mut written, mut ended) = (0, 0, false);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let now = way(*orders.borrow_and_update());
        let held = now == Way::Hold;
        let head = queue.front().filter(|_| !held).map(|(at, bytes)| (*at, &bytes[written..]));
        tokio::select! {
            biased; // orders first: nothing is delivered after a cut
            changed = orders.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            delivered = deliver(&mut to, head) => match delivered? {
                None => return Ok(()),
                Some(length) => {
                    queued -= length;
                    written += length;
                    if queue.front().is_some_and(|(_, bytes)| bytes.len() == written) {
                        queue.pop_front();
                        written = 0;
                    }
                }
            },
            read = from.read(&mut chunk), if !held && !ended && queued < QUEUED_BYTES => {
                let length = read?;
                let by = if let Way::Late(by) = now { by } else { Duration::ZERO };
                ended = length == 0;
                queued += length;
                queue.push_back((Instant::now() + by, chunk[..length].to_vec()));
            }
        }
    }
}

/// Writes some of the oldest chunk once its time has come; how much, or none after passing on the sender's end.
async fn deliver(to: &mut WriteHalf<'_>, head: Option<(Instant, &[u8])>) -> io::Result<Option<usize>> {
    let Some((at, bytes)) = head else { return pending().await };
    sleep_until(at).await;
    if bytes.is_empty() {
        to.shutdown().await?;
        return Ok(None);
    }
    to.write(bytes).await.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    /// Long enough that what should arrive does, on a busy machine.
    const SOON: Duration = Duration::from_secs(10);
    /// What should not arrive would have by then.
    const A_WHILE: Duration = Duration::from_millis(150);

    /// A server that sends back what it gets, and ends when its client ends.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        address
    }

    async fn before_echo() -> (FaultProxy, TcpStream) {
        let proxy = FaultProxy::start(echo().await).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        say(&mut client, b"hello").await;
        hear(&mut client, b"hello").await;
        (proxy, client)
    }

    async fn say(client: &mut TcpStream, words: &[u8]) {
        client.write_all(words).await.unwrap();
    }

    async fn hear(client: &mut TcpStream, words: &[u8]) {
        let mut heard = vec![0; words.len()];
        timeout(SOON, client.read_exact(&mut heard)).await.expect("nothing came").unwrap();
        assert_eq!(heard, words);
    }

    async fn hear_nothing(client: &mut TcpStream) {
        let heard = timeout(A_WHILE, client.read(&mut [0; 64])).await;
        assert!(heard.is_err(), "heard {heard:?}");
    }

    #[tokio::test]
    async fn megabytes_pass_whole_and_the_end_is_passed_on() {
        let (_proxy, mut client) = before_echo().await;
        let sent: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let (mut from, mut to) = client.split();
        let mut heard = Vec::new();
        let sending = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        timeout(SOON, async { tokio::join!(sending, from.read_to_end(&mut heard)) })
            .await
            .unwrap()
            .1
            .unwrap();
        assert!(heard == sent);
    }

    #[tokio::test]
    async fn a_cut_holds_what_was_sent_and_healing_delivers_it() {
        for fault in [Fault::Cut, Fault::CutToServer, Fault::CutToClient] {
            let (proxy, mut client) = before_echo().await;
            proxy.set(fault);
            say(&mut client, b"held").await;
            hear_nothing(&mut client).await;
            proxy.set(Fault::Pass);
            hear(&mut client, b"held").await;
        }
    }

    #[tokio::test]
    async fn one_way_cuts_cut_one_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        proxy.set(Fault::CutToServer);
        say(&mut client, b"there").await;
        say(&mut server, b"back").await;
        hear(&mut client, b"back").await;
        hear_nothing(&mut server).await;
        proxy.set(Fault::CutToClient);
        hear(&mut server, b"there").await;
        say(&mut server, b"more").await;
        hear_nothing(&mut client).await;
    }

    #[tokio::test]
    async fn new_connections_lead_nowhere_while_the_way_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap()).await.unwrap();
        proxy.set(Fault::Cut);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(timeout(A_WHILE, listener.accept()).await.is_err());
        proxy.set(Fault::Pass);
        let (mut server, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        say(&mut client, b"late").await;
        hear(&mut server, b"late").await;
    }

    #[tokio::test]
    async fn a_delay_is_one_for_each_direction() {
        let (proxy, mut client) = before_echo().await;
        let by = Duration::from_millis(200);
        for (fault, least) in [(Fault::Delay(by), 2 * by), (Fault::DelayToClient(by), by)] {
            proxy.set(fault);
            let began = Instant::now();
            say(&mut client, b"slow").await;
            hear(&mut client, b"slow").await;
            assert!(began.elapsed() >= least, "{fault:?}: {:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn refusing_leaves_old_connections_and_ends() {
        let (proxy, mut client) = before_echo().await;
        proxy.set(Fault::Refuse);
        let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        say(&mut client, b"still here").await;
        hear(&mut client, b"still here").await;
        proxy.set(Fault::Pass);
        assert_eq!(proxy.trouble(), None);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        say(&mut client, b"again").await;
        hear(&mut client, b"again").await;
    }

    #[tokio::test]
    async fn a_reset_is_seen_by_both_sides() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        proxy.reset_all();
        for side in [&mut client, &mut server] {
            let error = timeout(SOON, side.read(&mut [0; 8])).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let gone = async {
            while !proxy.connections().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_reset_of_one_side_reaches_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(listener.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        reset(server);
        let error = timeout(SOON, client.read(&mut [0; 8])).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn half_open_ends_one_side_and_leaves_the_other_in_silence() {
        for fault in [Fault::HalfOpenToClient, Fault::HalfOpenToServer] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = FaultProxy::start(listener.local_addr().unwrap()).await.unwrap();
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            proxy.set(fault);
            let (told, untold) = match fault {
                Fault::HalfOpenToClient => (&mut server, &mut client),
                _ => (&mut client, &mut server),
            };
            assert_eq!(timeout(SOON, told.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
            say(untold, b"anybody there?").await;
            hear_nothing(untold).await;
            proxy.set(Fault::Reset);
            assert!(timeout(SOON, untold.read(&mut [0; 8])).await.unwrap().is_err());
        }
    }

    #[tokio::test]
    async fn one_connection_can_be_broken_alone() {
        let (proxy, mut first) = before_echo().await;
        let mut second = TcpStream::connect(proxy.address()).await.unwrap();
        say(&mut second, b"second").await;
        hear(&mut second, b"second").await;
        let [one, two] = proxy.connections()[..] else { panic!("{:?}", proxy.connections()) };
        assert!(proxy.set_on(one, Fault::Cut));
        say(&mut first, b"held").await;
        say(&mut second, b"passes").await;
        hear(&mut second, b"passes").await;
        hear_nothing(&mut first).await;
        assert!(proxy.set_on(two, Fault::Reset));
        assert!(timeout(SOON, second.read(&mut [0; 8])).await.unwrap().is_err());
        assert!(!proxy.set_on(ConnectionId(99), Fault::Cut));
        assert_eq!(proxy.accepted(), 2);
    }

    #[tokio::test]
    async fn a_held_sender_is_stopped_by_the_bound() {
        let (proxy, mut client) = before_echo().await;
        proxy.set(Fault::DelayToServer(Duration::from_secs(3600)));
        let chunk = vec![0; 64 * 1024];
        let mut sent = 0;
        while let Ok(written) = timeout(A_WHILE, client.write(&chunk)).await {
            sent += written.unwrap();
            // The kernel's buffers of both sockets may grow to some megabytes each.
            assert!(sent < 64 << 20, "nothing stops the sender");
        }
        assert!(sent >= QUEUED_BYTES);
    }
}
