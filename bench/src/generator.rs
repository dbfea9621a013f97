//! A load generator: one process, one thread, thousands of connections on one epoll.
//!
//! Owns: its connections and what each of them must get next. Always holds: every event of every live cursor is checked
//! (the next seq, the same content as on every other connection); a gap, a duplicate, a close or an error that was not
//! asked for is a violation, and any violation makes the command under way [`Reply::Failed`]: the run is void.
//! Between commands it goes on answering pings and checking events.

mod calls;
mod connection;
mod load;
mod peers;
mod room;
mod sends;

use std::collections::HashMap;
use std::io::{self, BufRead, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context, bail};
use banyan_proto::v1;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;
use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::calls::Calls;
use self::connection::{Connection, Phase, Subscription};
use self::load::Loading;
use self::peers::Peers;
use self::room::{Room, Watch};
use self::sends::Sending;
use crate::clock::now_ns;
use crate::codec::{self, Masks, Opcode};
use crate::control::{Command, Connect, Finished, Reply};

/// A command that makes no progress for so long has failed.
const STALL_NS: u64 = 20_000_000_000;
/// Handshakes under way at once: enough to keep the server busy, well below its accept queue.
const HANDSHAKES: usize = 64;
/// How long a finished run is watched for what should not come.
const STRAGGLERS_NS: u64 = 50_000_000;
/// Messages of violations that are kept; all are counted.
const VIOLATIONS_TOLD: usize = 5;

const WAKER: Token = Token(0);
pub(super) const LISTENER: Token = Token(1);
/// Coordinated generators have tokens from here on.
pub(super) const PEERS: usize = 2;
/// Connections have tokens from here on.
const CONNECTIONS: usize = 1024;

/// Runs until standard input ends.
pub(crate) fn run() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raising the limit of open files")?;
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    // The controller sends one command and waits for its reply, so one place is enough; more would wait in the pipe.
    let (lines, commands) = sync_channel::<io::Result<String>>(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if lines.send(line).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(lines);
        drop(waker.wake());
    });
    Generator {
        poll,
        connections: Vec::new(),
        rooms: Vec::new(),
        rooms_by_name: HashMap::new(),
        watch: None,
        peers: Peers::default(),
        task: None,
        violations: Vec::new(),
        violation_count: 0,
        masks: Masks::new(now_ns()),
        now_ns: now_ns(),
        progress: 0,
        buffer: vec![0; 64 << 10],
    }
    .serve(&commands)
}

/// A command under way.
enum Task {
    Connect(Connecting),
    Calls(Calls),
    Load(Loading),
    Finish { events: u64, satisfied_ns: Option<u64> },
    Await { heads: Vec<(u32, u64)> },
    Sends(Sending),
    Resume { connection: usize, room: u32, through: u64 },
    ReadToEnd { connection: usize },
}

struct Connecting {
    command: Connect,
    first: usize,
    begun: usize,
    open: usize,
}

struct Generator {
    poll: Poll,
    connections: Vec<Connection>,
    rooms: Vec<Room>,
    rooms_by_name: HashMap<String, u32>,
    watch: Option<Watch>,
    peers: Peers,
    task: Option<Task>,
    violations: Vec<String>,
    violation_count: u64,
    masks: Masks,
    /// Read once per readable socket.
    now_ns: u64,
    /// Rises with everything that is received: a command during which it stands still has stalled.
    progress: u64,
    /// What is read goes through this one, so that idle connections hold no buffers.
    buffer: Vec<u8>,
}

impl Generator {
    fn serve(mut self, commands: &Receiver<io::Result<String>>) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut ended = false;
        let mut progress = (0, self.now_ns);
        while !ended {
            let timeout = match &self.task {
                None => None,
                Some(Task::Load(loading)) => Some(loading.wait(now_ns())),
                Some(Task::Finish { .. } | Task::Calls(_)) => Some(Duration::from_millis(5)),
                Some(_) => Some(Duration::from_millis(100)),
            };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.token() {
                    WAKER => {}
                    LISTENER => self.peers.accept(self.poll.registry())?,
                    Token(token) if token < CONNECTIONS => self.peers.readable(token - PEERS)?,
                    Token(token) => self.socket(token - CONNECTIONS, event),
                }
            }
            self.now_ns = now_ns();
            if let Some(watch) = &self.watch {
                self.peers.report(watch.completed())?;
            }
            if self.task.is_none() {
                match commands.try_recv() {
                    Ok(line) => {
                        let command = serde_json::from_str(&line?).context("a command that is none")?;
                        progress = (self.progress, self.now_ns);
                        match self.begin(command) {
                            Ok(Some(answer)) => reply(&answer)?,
                            Ok(None) => {}
                            Err(error) => self.fail(&format!("{error:#}"))?,
                        }
                    }
                    Err(std::sync::mpsc::TryRecvError::Empty) => {}
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => ended = true,
                }
            }
            if progress.0 != self.progress {
                progress = (self.progress, self.now_ns);
            }
            self.advance(self.now_ns.saturating_sub(progress.1) > STALL_NS)?;
        }
        Ok(())
    }

    /// Starts a command; the reply if it is done already.
    fn begin(&mut self, command: Command) -> anyhow::Result<Option<Reply>> {
        if self.violation_count > 0 {
            bail!("before this command");
        }
        let task = match command {
            Command::Connect(command) => {
                let first = self.connections.len();
                Task::Connect(Connecting { command, first, begun: 0, open: 0 })
            }
            Command::Create { rooms, plan } => Task::Calls(Calls::create(self, rooms, plan)?),
            Command::Join { rooms, plan } => Task::Calls(Calls::join(self, rooms, plan)?),
            Command::Subscribe { rooms, plan, modes, after } => {
                Task::Calls(Calls::subscribe(self, rooms, plan, modes, after.as_deref())?)
            }
            Command::Coordinate { peers } => {
                let address = self.peers.listen(self.poll.registry(), peers)?;
                return Ok(Some(Reply::Coordinating { address }));
            }
            Command::Watch { room, sender, coordinator } => {
                self.watch(room.as_deref().unwrap_or(FLOOR_ROOM), sender)?;
                self.peers.restart(coordinator)?;
                return Ok(Some(Reply::Done));
            }
            Command::Load(load) => Task::Load(Loading::new(self, load)?),
            Command::Finish { events } => Task::Finish { events, satisfied_ns: None },
            Command::Await { heads } => {
                let heads = heads.into_iter().map(|(room, head)| (self.room(&room), head)).collect();
                Task::Await { heads }
            }
            Command::Sends(sends) => Task::Sends(Sending::new(self, &sends)?),
            Command::Pause { connection } => {
                self.connection(connection)?.paused = true;
                return Ok(Some(Reply::Done));
            }
            Command::Resume { connection, room, through } => {
                self.connection(connection)?.paused = false;
                let (connection, room) = (connection as usize, self.room(&room));
                self.read(connection, false);
                Task::Resume { connection, room, through }
            }
            Command::ReadToEnd { connection } => {
                self.connection(connection)?.paused = false;
                let connection = connection as usize;
                self.task = Some(Task::ReadToEnd { connection });
                self.read(connection, true);
                return Ok(None);
            }
            Command::Disconnect => {
                self.connections.clear();
                self.watch = None;
                return Ok(Some(Reply::Done));
            }
        };
        self.task = Some(task);
        Ok(None)
    }

    fn fail(&mut self, why: &str) -> anyhow::Result<()> {
        self.task = None;
        let mut words = why.to_owned();
        if self.violation_count > 0 {
            words.push_str(&format!(": {} violations: {}", self.violation_count, self.violations.join("; ")));
        }
        reply(&Reply::Failed { why: words })
    }

    /// Moves the command under way on, and ends it when it is done, void or stuck.
    fn advance(&mut self, stalled: bool) -> anyhow::Result<()> {
        let Some(mut task) = self.task.take() else { return Ok(()) };
        if self.violation_count > 0 {
            return self.fail("void");
        }
        let outcome = match &mut task {
            Task::Connect(connecting) => self.connect(connecting),
            Task::Calls(calls) => calls.advance(self),
            Task::Load(loading) => loading.advance(self),
            Task::Finish { events, satisfied_ns } => self.finish(*events, satisfied_ns),
            Task::Await { heads } => Ok(self.reached(heads).then_some(Reply::Done)),
            Task::Sends(sending) => sending.advance(self),
            Task::Resume { connection, room, through } => {
                let connection = &mut self.connections[*connection];
                let done = connection.subscription(*room).is_some_and(|cursor| cursor.expected > *through);
                Ok(done.then_some(Reply::Resumed { events: connection.events }))
            }
            Task::ReadToEnd { connection } => Ok(match &self.connections[*connection] {
                Connection { phase: Phase::Closed(how), events, .. } => {
                    Some(Reply::Ended { events: *events, how: how.clone() })
                }
                _ => None,
            }),
        };
        match outcome {
            Ok(Some(answer)) => reply(&answer),
            Ok(None) if stalled => {
                let state = match &task {
                    Task::Connect(connecting) => {
                        format!("{} of {} connections open", connecting.open, connecting.command.users.len())
                    }
                    Task::Calls(calls) => calls.describe(),
                    Task::Load(loading) => loading.describe(self),
                    Task::Finish { events, .. } => {
                        format!("{} of {events} events complete", self.completed())
                    }
                    Task::Sends(sending) => sending.describe(),
                    Task::Await { .. } => "waiting for heads".to_owned(),
                    Task::Resume { .. } => "waiting for a reader to catch up".to_owned(),
                    Task::ReadToEnd { .. } => "waiting for a connection to end".to_owned(),
                };
                self.fail(&format!("nothing came for 20 s; {state}"))
            }
            Ok(None) => {
                self.task = Some(task);
                Ok(())
            }
            Err(error) => self.fail(&format!("{error:#}")),
        }
    }

    // ------------------------------------------------------------ commands

    /// Opens connections, [`HANDSHAKES`] at a time.
    fn connect(&mut self, connecting: &mut Connecting) -> anyhow::Result<Option<Reply>> {
        let Connecting { command, first, begun, open } = connecting;
        *open = self.connections[*first..].iter().filter(|connection| connection.is_open()).count();
        while *begun < command.users.len() && *begun - *open < HANDSHAKES {
            let source = command.sources[*begun % command.sources.len()];
            let mut connection = Connection::start(
                command.server,
                source,
                command.receive_buffer,
                &command.users[*begun],
                command.raw,
            )
            .with_context(|| format!("connecting from {source}"))?;
            let token = Token(CONNECTIONS + self.connections.len());
            self.poll.registry().register(
                &mut connection.stream,
                token,
                Interest::READABLE | Interest::WRITABLE,
            )?;
            if command.raw {
                let room = self.room(FLOOR_ROOM);
                connection.subscriptions.push(Subscription { room, live: true, expected: 1 });
            }
            self.connections.push(connection);
            *begun += 1;
        }
        if *open < command.users.len() {
            return Ok(None);
        }
        let addresses = self.connections[*first..].iter().map(|connection| connection.stream.local_addr());
        let addresses = addresses.collect::<io::Result<_>>()?;
        Ok(Some(Reply::Connected { first: u32::try_from(*first)?, addresses }))
    }

    fn watch(&mut self, name: &str, sender: Option<u32>) -> anyhow::Result<()> {
        let room = self.room(name);
        // Each run of the floor sends the event of its own run.
        self.rooms[room as usize].forget_same();
        let mut next = None;
        let mut receivers = 0;
        for (index, connection) in self.connections.iter().enumerate() {
            let Some(cursor) =
                connection.subscriptions.iter().find(|cursor| cursor.room == room && cursor.live)
            else {
                continue;
            };
            if *next.get_or_insert(cursor.expected) != cursor.expected {
                bail!("{name} is not at rest: one reader expects {}, another {:?}", cursor.expected, next);
            }
            receivers += u64::from(sender.is_none_or(|sender| sender as usize != index));
        }
        let next = next.with_context(|| format!("nobody is subscribed to {name}"))?;
        self.watch = Some(Watch::new(room, next, receivers));
        Ok(())
    }

    /// Events that every receiver of this and the other generators has.
    fn completed(&self) -> u64 {
        let own = match &self.watch {
            Some(watch) if watch.receivers > 0 => watch.completed(),
            _ => u64::MAX,
        };
        self.peers.completed().map_or(own, |theirs| own.min(theirs))
    }

    fn finish(&self, events: u64, satisfied_ns: &mut Option<u64>) -> anyhow::Result<Option<Reply>> {
        let Some(watch) = &self.watch else { bail!("nothing is watched") };
        if watch.begun() > events {
            bail!("{} events came, {events} were sent", watch.begun());
        }
        if watch.receivers > 0 && watch.completed() < events {
            return Ok(None);
        }
        // Everything is there; now wait a little for what should not come.
        if self.now_ns < *satisfied_ns.get_or_insert(self.now_ns) + STRAGGLERS_NS {
            return Ok(None);
        }
        if watch.deliveries != events * watch.receivers {
            bail!("{} deliveries instead of {events} × {}", watch.deliveries, watch.receivers);
        }
        let payload = self.rooms[watch.room as usize].newest_payload();
        Ok(Some(Reply::Finished(Finished {
            receivers: watch.receivers,
            deliveries: watch.deliveries,
            sent_ns: watch.sent_ns.clone(),
            completed_ns: watch.completed_ns.clone(),
            latencies: watch.latencies.pack(),
            payload: payload.map(|payload| String::from_utf8_lossy(payload).into_owned()),
        })))
    }

    fn reached(&self, heads: &[(u32, u64)]) -> bool {
        let heads: HashMap<u32, u64> = heads.iter().copied().collect();
        let mut cursors = self
            .connections
            .iter()
            .flat_map(|connection| &connection.subscriptions)
            .filter(|cursor| cursor.live);
        cursors.all(|cursor| heads.get(&cursor.room).is_none_or(|head| cursor.expected > *head))
    }

    // ------------------------------------------------------------ sockets

    fn socket(&mut self, index: usize, event: &Event) {
        if index >= self.connections.len() {
            return; // closed by `Disconnect` in this turn
        }
        if event.is_writable() {
            self.writable(index);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(index, event.is_read_closed() || event.is_error());
        }
    }

    fn writable(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let outcome = match &connection.phase {
            Phase::Connecting { raw } => match connection.stream.take_error() {
                Ok(None) if *raw => {
                    connection.phase = Phase::Open;
                    self.progress += 1;
                    Ok(())
                }
                Ok(None) => {
                    let key = tungstenite::handshake::client::generate_key();
                    let host = connection.stream.peer_addr().map(|address| address.to_string());
                    host.and_then(|host| {
                        let request = codec::request(&host, &key);
                        connection.phase = Phase::Upgrading { key };
                        connection.send_plain(request.as_bytes())
                    })
                }
                Ok(Some(error)) | Err(error) => Err(error),
            },
            Phase::Closed(_) => Ok(()),
            Phase::Upgrading { .. } | Phase::Authenticating | Phase::Open => connection.flush(),
        };
        if let Err(error) = outcome {
            self.closed(index, &format!("the socket failed: {error}"));
        }
    }

    /// Reads what is there. Edge-triggered: a short read means that the next byte makes a new event, unless the end
    /// came with it.
    fn read(&mut self, index: usize, to_the_end: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let connection = &mut self.connections[index];
            if connection.paused
                || matches!(connection.phase, Phase::Closed(_) | Phase::Connecting { raw: false })
            {
                break;
            }
            match connection.read(&mut buffer) {
                Ok(None) => break,
                Ok(Some(0)) => {
                    self.closed(index, "the server ended the TCP connection");
                    break;
                }
                Ok(Some(length)) => {
                    self.now_ns = now_ns();
                    self.received(index, &buffer[..length]);
                    if length < buffer.len() && !to_the_end {
                        break;
                    }
                }
                Err(error) => {
                    self.closed(index, &format!("reading failed: {error}"));
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn received(&mut self, index: usize, bytes: &[u8]) {
        let mut partial = std::mem::take(&mut self.connections[index].partial);
        let data = if partial.is_empty() {
            bytes
        } else {
            partial.extend_from_slice(bytes);
            &partial
        };
        let mut at = 0;
        if let Phase::Upgrading { key } = &self.connections[index].phase {
            match codec::response(data, key) {
                Ok(Some(length)) => {
                    at = length;
                    self.authenticate(index);
                }
                Ok(None) => {
                    self.connections[index].partial = data.to_vec();
                    return;
                }
                Err(why) => return self.closed(index, &why),
            }
        }
        loop {
            match codec::parse(&data[at..]) {
                Ok(Some(frame)) => {
                    at += frame.length;
                    self.frame(index, &frame);
                    if matches!(self.connections[index].phase, Phase::Closed(_)) {
                        return;
                    }
                }
                Ok(None) => break,
                Err(why) => return self.closed(index, &why),
            }
        }
        let rest = if partial.is_empty() {
            data[at..].to_vec()
        } else {
            partial.drain(..at);
            partial
        };
        // `to_vec` of nothing does not allocate.
        self.connections[index].partial = rest;
    }

    fn authenticate(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.phase = Phase::Authenticating;
        let id = connection.take_id();
        let token = serde_json::Value::from(std::mem::take(&mut connection.token));
        let frame = format!(r#"{{"id":{id},"auth":{{"token":{token},"client":"banyan-bench"}}}}"#);
        if let Err(error) = connection.send_text(frame.as_bytes(), &mut self.masks) {
            self.closed(index, &format!("writing failed: {error}"));
        }
    }

    fn frame(&mut self, index: usize, frame: &codec::Frame<'_>) {
        let connection = &mut self.connections[index];
        match (frame.opcode, frame.fin, connection.fragments.is_some()) {
            (Opcode::Text, true, false) => self.text(index, frame.payload),
            (Opcode::Text, false, false) => connection.fragments = Some(frame.payload.to_vec()),
            (Opcode::Continuation, fin, true) => {
                let mut message = connection.fragments.take().unwrap_or_default();
                message.extend_from_slice(frame.payload);
                if message.len() > 1 << 20 {
                    self.closed(index, "a fragmented message of more than 1 MiB");
                } else if fin {
                    self.text(index, &message);
                } else {
                    connection.fragments = Some(message);
                }
            }
            (Opcode::Ping, ..) => {
                self.progress += 1;
                if let Err(error) = connection.send_frame(Opcode::Pong, frame.payload, &mut self.masks) {
                    self.closed(index, &format!("writing failed: {error}"));
                }
            }
            (Opcode::Pong, ..) => {}
            (Opcode::Close, ..) => {
                let code = match frame.payload {
                    [a, b, reason @ ..] => {
                        format!("{} {}", u16::from_be_bytes([*a, *b]), String::from_utf8_lossy(reason))
                    }
                    _ => "without a code".to_owned(),
                };
                self.closed(index, &format!("closed by the server: {}", code.trim()));
            }
            (Opcode::Text | Opcode::Continuation, ..) => self.closed(index, "fragments out of order"),
        }
    }

    /// A connection that ended. Unless it was read to its end on purpose, that is a violation.
    fn closed(&mut self, index: usize, how: &str) {
        let connection = &mut self.connections[index];
        if matches!(connection.phase, Phase::Closed(_)) {
            return;
        }
        let words = format!("connection {index} ({}): {how}", connection.user);
        connection.phase = Phase::Closed(how.to_owned());
        self.progress += 1;
        let expected = matches!(&self.task, Some(Task::ReadToEnd { connection }) if *connection == index);
        if !expected {
            self.violation(words);
        }
    }

    fn violation(&mut self, words: String) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_TOLD {
            self.violations.push(words);
        }
    }

    // ------------------------------------------------------------ what the server says

    /// One message. Nearly all are events that another connection has brought before: those are compared, not parsed.
    fn text(&mut self, index: usize, payload: &[u8]) {
        self.progress += 1;
        let connection = &mut self.connections[index];
        for cursor in connection.subscriptions.iter_mut().filter(|cursor| cursor.live) {
            if let Some(sent_ns) = self.rooms[cursor.room as usize].recognise(cursor.expected, payload) {
                let (room, seq) = (cursor.room, cursor.expected);
                cursor.expected += 1;
                connection.events += 1;
                return self.delivered(room, seq, sent_ns);
            }
        }
        if let Some(cursor) = connection.subscriptions.first_mut()
            && self.rooms[cursor.room as usize].name == FLOOR_ROOM
        {
            if self.rooms[cursor.room as usize].has_same() {
                return self.violation(format!("connection {index}: a frame that the floor did not send"));
            }
            self.rooms[cursor.room as usize].keep_same(payload);
            let (room, seq) = (cursor.room, cursor.expected);
            cursor.expected += 1;
            return self.delivered(room, seq, 0);
        }
        let frame: v1::ServerFrame = match serde_json::from_slice(payload) {
            Ok(frame) => frame,
            Err(error) => {
                let start: String = String::from_utf8_lossy(payload).chars().take(200).collect();
                return self.violation(format!("connection {index}: a frame that is none: {error}: {start}"));
            }
        };
        match (frame.id, frame.body) {
            (None, Some(Body::Event(event))) => self.event(index, &event, payload),
            (None, Some(Body::Subscribed(room))) => self.subscribed(index, &room),
            (None, Some(Body::Gap(gap))) => {
                self.violation(format!("connection {index}: a gap {}–{} in {}", gap.from, gap.to, gap.room));
            }
            (None, Some(Body::Unsubscribed(end))) => {
                self.violation(format!(
                    "connection {index}: unsubscribed from {}: {} {}",
                    end.room, end.code, end.reason
                ));
            }
            (None, Some(Body::Reconnect(reconnect))) => {
                self.violation(format!("connection {index}: told to reconnect: {}", reconnect.reason));
            }
            (
                None,
                Some(
                    Body::Head(_)
                    | Body::Marks(_)
                    | Body::Room(_)
                    | Body::RoomGone(_)
                    | Body::TokenExpiring(_),
                ),
            ) => {}
            (Some(id), Some(body)) => self.reply(index, id, body),
            (None, body) => {
                self.violation(format!("connection {index}: neither a reply nor a push: {body:?}"))
            }
            (Some(id), None) => self.violation(format!("connection {index}: an empty reply to {id}")),
        }
    }

    /// An event that had to be parsed.
    fn event(&mut self, index: usize, event: &v1::Event, payload: &[u8]) {
        let room = self.rooms_by_name.get(&event.room).copied();
        let connection = &mut self.connections[index];
        let cursor =
            connection.subscriptions.iter_mut().find(|cursor| Some(cursor.room) == room && cursor.live);
        let (Some(cursor), Some(room)) = (cursor, room) else {
            return self.violation(format!(
                "connection {index}: an event of {}, where it has no live cursor",
                event.room
            ));
        };
        if event.seq != cursor.expected {
            let words = format!(
                "connection {index}: event {} of {}, expected {}",
                event.seq, event.room, cursor.expected
            );
            return self.violation(words);
        }
        cursor.expected += 1;
        connection.events += 1;
        let sent_ns = match &event.kind {
            Some(Kind::Message(message)) => read_stamp(&message.text),
            _ => 0,
        };
        if !self.rooms[room as usize].keep(event.seq, payload, sent_ns) {
            self.violation(format!(
                "connection {index}: event {} of {} has another content than before",
                event.seq, event.room
            ));
        }
        self.delivered(room, event.seq, sent_ns);
    }

    fn delivered(&mut self, room: u32, seq: u64, sent_ns: u64) {
        if let Some(watch) = &mut self.watch
            && watch.room == room
        {
            watch.delivered(seq, sent_ns, self.now_ns);
        }
    }

    /// A cursor as the server has set it.
    fn subscribed(&mut self, index: usize, room: &v1::SubscribedRoom) {
        if room.pending == Some(true) {
            return; // `subscribed` follows
        }
        if let Some(error) = &room.error {
            return self.violation(format!(
                "connection {index}: subscribing to {}: {} {}",
                room.room, error.code, error.message
            ));
        }
        let place = self.room(&room.room);
        let Some(cursor) = self.connections[index].subscription(place) else {
            return self.violation(format!("connection {index}: subscribed to {}, unasked", room.room));
        };
        cursor.expected = room.from;
        // Who only looks at heads may be told that events were left out.
        if cursor.live && (room.gap.is_some() || room.reset == Some(true)) {
            return self
                .violation(format!("connection {index}: subscribing to {} left events out", room.room));
        }
        if let Some(Task::Calls(calls)) = &mut self.task {
            calls.subscribed(place, room.head);
        }
    }

    fn reply(&mut self, index: usize, id: u64, body: Body) {
        let connection = &mut self.connections[index];
        connection.in_flight = connection.in_flight.saturating_sub(1);
        if connection.phase == Phase::Authenticating {
            match body {
                Body::Auth(auth) if auth.user == connection.user => connection.phase = Phase::Open,
                Body::Auth(auth) => {
                    let words = format!(
                        "connection {index}: authenticated as {}, not {}",
                        auth.user, connection.user
                    );
                    self.violation(words);
                }
                Body::Error(error) => {
                    self.closed(index, &format!("auth refused: {} {}", error.code, error.message))
                }
                other => self.violation(format!("connection {index}: not a reply to auth: {other:?}")),
            }
            return;
        }
        let Some(mut task) = self.task.take() else {
            return self.violation(format!("connection {index}: a reply to {id}, which nobody waits for"));
        };
        match &mut task {
            Task::Calls(calls) => calls.reply(self, index, id, body),
            Task::Load(loading) => loading.reply(self, index, id, &body),
            Task::Sends(sending) => sending.reply(self, index, &body),
            _ => self.violation(format!("connection {index}: a reply to {id}, which nobody waits for")),
        }
        self.task = Some(task);
    }

    // ------------------------------------------------------------ look-ups

    fn room(&mut self, name: &str) -> u32 {
        if let Some(&room) = self.rooms_by_name.get(name) {
            return room;
        }
        let room = u32::try_from(self.rooms.len()).unwrap_or(u32::MAX);
        self.rooms.push(Room::new(name.to_owned()));
        self.rooms_by_name.insert(name.to_owned(), room);
        room
    }

    fn connection(&mut self, index: u32) -> anyhow::Result<&mut Connection> {
        self.connections.get_mut(index as usize).with_context(|| format!("there is no connection {index}"))
    }

    /// Sends a frame that was made for this connection.
    fn send(&mut self, index: usize, frame: &[u8]) {
        if let Err(error) = self.connections[index].send_text(frame, &mut self.masks) {
            self.closed(index, &format!("writing failed: {error}"));
        }
    }
}

/// The room whose events are the floor's frames. No room of the server can be called so.
const FLOOR_ROOM: &str = "~floor";

/// A text of so many bytes that says when it was sent.
fn stamped_text(sent_ns: u64, bytes: usize) -> String {
    const FILLER: &[u8] = b" the quick brown fox jumps over the lazy dog";
    let mut text = format!("{sent_ns:016x}");
    text.extend(FILLER.iter().cycle().take(bytes.saturating_sub(text.len())).map(|&byte| char::from(byte)));
    text
}

/// When it was sent; 0 when it does not say.
fn read_stamp(text: &str) -> u64 {
    text.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default()
}

/// One `send` frame, written without a detour: this is the hot path of a generator.
fn put_send(out: &mut Vec<u8>, id: u64, room: &str, since: u64, payload: usize, sent_ns: u64) {
    out.clear();
    let text = stamped_text(sent_ns, payload);
    // Room names are the controller's own and need no escapes; the stamp makes the client_msg_id unique.
    out.extend_from_slice(
        format!(r#"{{"id":{id},"send":{{"room":"{room}","client_msg_id":"{id}-{sent_ns:x}","since":{since},"text":"{text}"}}}}"#)
            .as_bytes(),
    );
}

fn reply(reply: &Reply) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use banyan_proto::v1::client_frame::Command as Sent;

    use super::*;

    #[test]
    fn a_send_is_a_frame_of_the_protocol() {
        let mut out = Vec::new();
        put_send(&mut out, 7, "bench-1", 41, 200, 0x1234);
        let frame: v1::ClientFrame = serde_json::from_slice(&out).unwrap();
        let Some(Sent::Send(send)) = frame.command else { panic!("not a send") };
        assert_eq!((frame.id, &*send.room, send.since), (7, "bench-1", Some(41)));
        assert!(send.client_msg_id.len() <= 64);
        let text = send.text.unwrap();
        assert_eq!((text.len(), read_stamp(&text)), (200, 0x1234));
    }

    #[test]
    fn stamps() {
        assert_eq!(read_stamp(&stamped_text(u64::MAX, 16)), u64::MAX);
        assert_eq!(stamped_text(1, 3).len(), 16, "a text is never shorter than its stamp");
        assert_eq!((read_stamp("hello"), read_stamp("")), (0, 0));
    }
}
