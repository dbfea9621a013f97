//! Clients that send and listen through any number of server lives, on any of several gateways, and write down what they
//! saw.
//!
//! Owns: senders (each send is tried with the same id and `since` until it is answered) and subscribers (each
//! resumes with `after` and `log`).
//! Always holds: a sender has at most [`WINDOW`] sends open; what a client did and was told is recorded.
//! Does not: judge (`banyan-checker`), measure or kill by its own will: it tells an [`Observer`], as the driver's trigger.

use super::SETTLE_LIMIT;
use super::client::{ConnectError, Connection, PATIENCE, User};
use super::recorder::{self, Recorder};
use crate::random::Random;
use anyhow::{Context, bail};
use banyan_checker::{self as checker, Call, Mode, Seq, Session, Start, UnixMs, What};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// Sends that one sender keeps open; the protocol allows 64.
const WINDOW: usize = 8;

/// The wait before a connection is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// What the clients should do now. The driver changes it.
#[derive(Debug, Clone)]
pub struct Orders {
    /// Where servers listen. Never empty. A client that loses one goes to the next.
    pub gateways: Arc<[SocketAddr]>,
    pub phase: Phase,
}

impl Orders {
    /// Where the client goes that was born as the `number`th and has lost so many connections.
    fn gateway(&self, number: usize, lost: usize) -> SocketAddr {
        self.gateways[number.wrapping_add(lost) % self.gateways.len()]
    }
}

/// How a client behaves.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Between two sends of one client; `None`: half of the rate that the server allows.
    pub pace: Option<Duration>,
    /// A server that owes an answer, or is silent, for so long is left.
    pub patience: Duration,
    /// One that refuses the token is left, too, as if it were away: its clock may be wrong. Else that is an error.
    pub elsewhere_if_refused: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self { pace: None, patience: PATIENCE, elsewhere_if_refused: false }
    }
}

/// Told of what senders see, as they see it.
pub trait Observer: Send + Sync {
    /// A send was acked. `again`: it had been acked before.
    fn acked(&self, room: &str, first_try: Instant, again: bool);
    /// A try was answered with an error.
    fn refused(&self, _code: u16) {}
    /// A server did not take the token, and the client went elsewhere.
    fn turned_away(&self) {}
    /// A connection ended that the client had not given up: the server closed it or is gone, or was silent for too long.
    fn lost(&self) {}
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Send on.
    Load,
    /// Settle what is open, then end.
    Settle,
    /// Subscribers: end when these heads are reached.
    CatchUp(BTreeMap<String, u64>),
    /// A promise is broken: end at once.
    Stop,
}

/// Counts acks and kills the server as soon as a given one was read.
#[derive(Debug)]
pub struct Trigger {
    acks: AtomicU64,
    kill_at: AtomicU64,
    server: AtomicI32,
}

impl Default for Trigger {
    fn default() -> Self {
        Self { acks: AtomicU64::new(0), kill_at: AtomicU64::new(u64::MAX), server: AtomicI32::new(0) }
    }
}

impl Trigger {
    /// Acks read so far, retries included.
    pub fn acks(&self) -> u64 {
        self.acks.load(Ordering::SeqCst)
    }

    /// The server dies at the `n`th ack from now.
    pub fn arm(&self, server: u32, n: u64) {
        self.server.store(i32::try_from(server).unwrap_or(0), Ordering::SeqCst);
        self.kill_at.store(self.acks() + n, Ordering::SeqCst);
    }
}

impl Observer for Trigger {
    fn acked(&self, _room: &str, _first_try: Instant, _again: bool) {
        let n = self.acks.fetch_add(1, Ordering::SeqCst) + 1;
        // Several acks may have been counted between arming and here, so "at or above", once.
        let armed = self.kill_at.load(Ordering::SeqCst);
        let mine = n >= armed
            && self.kill_at.compare_exchange(armed, u64::MAX, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if mine && let Some(pid) = Pid::from_raw(self.server.load(Ordering::SeqCst)) {
            // It may be dead already when two causes meet; the driver waits for its end in any case.
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

/// One message that a client wants stored.
#[derive(Debug, Clone)]
struct Wanted {
    room: String,
    client_msg_id: String,
    text: String,
    /// The highest seq or head of the room that the client knew before its first try.
    since: u64,
    first_try: Option<Instant>,
    acked: bool,
}

/// A send without a definite answer.
#[derive(Debug, Clone)]
struct Open {
    /// Index into `Sender::wanted`.
    index: usize,
    tries: u32,
    not_before: Instant,
    /// When this try was made.
    asked: Instant,
}

/// One sending client.
#[derive(Debug)]
pub struct Sender {
    pub number: usize,
    pub user: User,
    pub session: Session,
    pub recorder: Recorder,
    pub rooms: Vec<String>,
    pub random: Random,
    pub manner: Manner,
    /// The highest seq or head that this client was told, for `since`.
    pub known: HashMap<String, u64>,
    wanted: Vec<Wanted>,
    /// Sends without a definite answer that are not under way.
    waiting: VecDeque<Open>,
    /// What was acked long ago and is asked again at the end.
    again: Option<Vec<usize>>,
}

impl Sender {
    pub fn new(
        number: usize,
        user: User,
        recorder: Recorder,
        rooms: Vec<String>,
        random: Random,
        known: HashMap<String, u64>,
    ) -> Self {
        let session = recorder.session(&user.id);
        let (wanted, waiting) = (Vec::new(), VecDeque::new());
        let manner = Manner::default();
        Self { number, user, session, recorder, rooms, random, manner, known, wanted, waiting, again: None }
    }

    /// Sends until told to settle, then settles and asks again for some that were acked long ago. `Err`: it was told
    /// what must not be said here.
    pub async fn run(
        mut self,
        mut orders: watch::Receiver<Orders>,
        observer: &dyn Observer,
    ) -> Result<(), String> {
        let mut lost = 0;
        loop {
            let now = orders.borrow_and_update().clone();
            if now.phase == Phase::Stop {
                return Ok(());
            }
            let gateway = now.gateway(self.number, lost);
            let opened = Connection::open_within(self.manner.patience, gateway, &self.user.token).await;
            let mut connection = match opened {
                Ok(connection) => connection,
                Err(ConnectError::Refused(_)) if self.manner.elsewhere_if_refused => {
                    observer.turned_away();
                    lost += 1;
                    sleep(RETRY).await;
                    continue;
                }
                Err(ConnectError::Refused(why)) => {
                    return Err(format!("sender {}: its token is refused: {why}", self.number));
                }
                Err(ConnectError::Away(_)) => {
                    lost += 1;
                    sleep(RETRY).await;
                    continue;
                }
            };
            let on = self.recorder.begin(self.session);
            let lived = self.life(&mut connection, on, &mut orders, observer).await;
            self.recorder.record(on, |_| What::End);
            match lived {
                Ok(()) => return Ok(()),
                Err(Lost::Connection) => {
                    observer.lost();
                    lost += 1;
                    sleep(RETRY).await;
                }
                Err(Lost::Left) => {
                    lost += 1;
                    sleep(RETRY).await;
                }
                Err(Lost::Promise(what)) => return Err(what),
            }
        }
    }

    /// One connection. What is unanswered at its end is waiting again.
    async fn life(
        &mut self,
        connection: &mut Connection,
        on: checker::Connection,
        orders: &mut watch::Receiver<Orders>,
        observer: &dyn Observer,
    ) -> Result<(), Lost> {
        let mut flying: HashMap<u64, Open> = HashMap::new();
        // Half of the allowed rate: the test is about crashes, not about limits.
        let allowed = || Duration::from_secs_f64(1.0 / (connection.sends_per_s * 0.5).min(2_000.0));
        let pace = self.manner.pace.unwrap_or_else(allowed);
        // Clients with a pace of their own do not all begin at once.
        let first_us =
            if self.manner.pace.is_some() { self.random.below(pace.as_micros() as u64) } else { 0 };
        let mut next_send = Instant::now() + Duration::from_micros(first_us);
        let ended = loop {
            let phase = orders.borrow().phase.clone();
            if phase == Phase::Stop {
                return Ok(());
            }
            if phase == Phase::Load && self.waiting.is_empty() && flying.len() < WINDOW {
                let open = self.make();
                self.waiting.push_back(open);
            }
            if phase != Phase::Load && self.waiting.is_empty() && flying.is_empty() {
                let Some(index) = self.next_sample() else { return Ok(()) };
                let now = Instant::now();
                self.waiting.push_back(Open { index, tries: 1, not_before: now, asked: now });
            }
            let due = self.waiting.front().map(|open| open.not_before.max(next_send));
            let owed = flying.values().map(|open| open.asked + self.manner.patience).min();
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && flying.len() < WINDOW => {
                    let Some(mut open) = self.waiting.pop_front() else { continue };
                    next_send = Instant::now() + pace;
                    open.tries += 1;
                    open.asked = Instant::now();
                    self.wanted[open.index].first_try.get_or_insert(open.asked);
                    let sent = self.ask(connection, on, &open).await;
                    match sent {
                        Ok(id) => { flying.insert(id, open); }
                        Err(_) => { self.waiting.push_front(open); break Lost::Connection; }
                    }
                }
                frame = connection.next() => {
                    let Ok(frame) = frame else { break Lost::Connection };
                    if frame.get("reconnect").is_some() {
                        break Lost::Left;
                    }
                    let Some(id) = frame["id"].as_u64() else { continue };
                    let Some(open) = flying.remove(&id) else { continue };
                    match self.answered(on, id, &frame, &open, observer) {
                        Ok(None) => {}
                        Ok(Some(wait)) => {
                            self.waiting.push_back(Open { not_before: Instant::now() + wait, ..open });
                        }
                        Err(what) => break Lost::Promise(what),
                    }
                }
                () = sleep_until(owed.unwrap_or_else(Instant::now)), if owed.is_some() => {
                    break Lost::Connection;
                }
                _ = orders.changed() => {}
            }
        };
        let mut unanswered: Vec<(u64, Open)> = flying.into_iter().collect();
        unanswered.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for (_, open) in unanswered {
            self.waiting.push_front(open);
        }
        Err(ended)
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        on: checker::Connection,
        open: &Open,
    ) -> anyhow::Result<u64> {
        let Wanted { room, client_msg_id, text, since, .. } = &self.wanted[open.index];
        self.recorder.record(on, |names| What::Send {
            call: Call(connection.next_id()),
            room: names.room(room),
            message: names.message(client_msg_id),
            since: Some(Seq(*since)),
            content: recorder::content_of_text(text),
        });
        let body = json!({ "room": room, "client_msg_id": client_msg_id, "since": since, "text": text });
        connection.ask("send", &body).await
    }

    fn make(&mut self) -> Open {
        let index = self.wanted.len();
        let room =
            self.rooms[usize::try_from(self.random.below(self.rooms.len() as u64)).unwrap_or(0)].clone();
        let since = self.known.get(&room).copied().unwrap_or(0);
        let client_msg_id = format!("c{}-{index}", self.number);
        let filler = "x".repeat(usize::try_from(self.random.below(400)).unwrap_or(0));
        let text = format!("{client_msg_id} {:016x} {filler}", self.random.next_u64());
        let first_try = None;
        self.wanted.push(Wanted { room, client_msg_id, text, since, first_try, acked: false });
        let now = Instant::now();
        Open { index, tries: 0, not_before: now, asked: now }
    }

    /// One of up to 20 sends that were acked at any time, to be asked again with the `since` of their first try. Of clients
    /// that send seldom, as many as half the time takes that they may settle.
    fn next_sample(&mut self) -> Option<usize> {
        if self.again.is_none() {
            let n = self.wanted.len() as u64;
            let pace = self.manner.pace.unwrap_or(Duration::from_millis(1));
            let most = (SETTLE_LIMIT / 2).as_micros() / pace.as_micros().max(1);
            let mut chosen: Vec<usize> = (0..n.min(most.clamp(1, 20) as u64))
                .filter_map(|_| usize::try_from(self.random.below(n)).ok())
                .collect();
            chosen.retain(|index| self.wanted[*index].acked);
            chosen.sort_unstable();
            chosen.dedup();
            self.again = Some(chosen);
        }
        self.again.as_mut().and_then(Vec::pop)
    }

    /// Takes a reply in. `Some(wait)`: nothing is known, try again after the wait. `Err`: it must not be answered so.
    fn answered(
        &mut self,
        on: checker::Connection,
        id: u64,
        frame: &Value,
        open: &Open,
        observer: &dyn Observer,
    ) -> Result<Option<Duration>, String> {
        let call = Call(id);
        let wanted = &mut self.wanted[open.index];
        let (room, message) = (&wanted.room, &wanted.client_msg_id);
        if let Some(error) = frame.get("error") {
            let code = recorder::code(error).ok_or_else(|| format!("an error without a code: {frame}"))?;
            self.recorder.record(on, |_| What::Refused { call, room: None, code });
            observer.refused(code);
            let wait = Duration::from_millis(error["retry_after_ms"].as_u64().unwrap_or(50).min(5_000));
            return match code {
                100 | 108 | 111 | 112 => Ok(Some(wait)),
                // Too long ago to be known is an honest answer for what was acked already.
                113 if wanted.acked => Ok(None),
                _ => Err(format!("{room}: {message} (try {}) was refused: {error}", open.tries)),
            };
        }
        let reply = &frame["send"];
        let (Some(seq), Some(at)) = (reply["seq"].as_u64(), reply["at"].as_u64()) else {
            return Err(format!("{room}: {message} was answered without seq and time: {frame}"));
        };
        let duplicate = reply["duplicate"].as_bool().unwrap_or(false);
        self.recorder.record(on, |_| What::Sent { call, seq: Seq(seq), at: UnixMs(at), duplicate });
        observer.acked(&wanted.room, wanted.first_try.unwrap_or(open.asked), wanted.acked);
        wanted.acked = true;
        let known = self.known.entry(wanted.room.clone()).or_default();
        *known = seq.max(*known);
        Ok(None)
    }
}

/// Why a sender's connection ended.
enum Lost {
    Connection,
    /// The server asked us to come back elsewhere.
    Left,
    Promise(String),
}

/// One listening client, live in all rooms.
#[derive(Debug)]
pub struct Subscriber {
    pub number: usize,
    pub user: User,
    pub session: Session,
    pub recorder: Recorder,
    pub rooms: Vec<String>,
    pub manner: Manner,
}

/// What a subscriber keeps of a room between connections.
#[derive(Debug, Default)]
struct Place {
    last: u64,
    log: Option<String>,
}

impl Subscriber {
    /// Listens through all lives, until it has reached the heads that the driver names. `Err`: it was told what must
    /// not be said here.
    pub async fn run(self, mut orders: watch::Receiver<Orders>) -> Result<(), String> {
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for room in &self.rooms {
            places.insert(room.clone(), Place::default());
        }
        let mut lost = 0;
        loop {
            let now = orders.borrow_and_update().clone();
            if done(&now.phase, &places) {
                return Ok(());
            }
            let gateway = now.gateway(self.number, lost);
            match Connection::open_within(self.manner.patience, gateway, &self.user.token).await {
                Ok(mut connection) => {
                    let on = self.recorder.begin(self.session);
                    let lived = self.life(&mut connection, on, &mut orders, &mut places).await;
                    self.recorder.record(on, |_| What::End);
                    match lived {
                        Ok(()) => return Ok(()),
                        Err(error) if error.is::<Broken>() => return Err(error.to_string()),
                        Err(_) => {}
                    }
                }
                Err(ConnectError::Refused(_)) if self.manner.elsewhere_if_refused => {}
                Err(ConnectError::Refused(why)) => {
                    return Err(format!("subscriber {}: its token is refused: {why}", self.number));
                }
                Err(ConnectError::Away(_)) => {}
            }
            lost += 1;
            sleep(RETRY).await;
        }
    }

    /// One connection: resume, then take pushes. Ok when all is reached.
    async fn life(
        &self,
        connection: &mut Connection,
        on: checker::Connection,
        orders: &mut watch::Receiver<Orders>,
        places: &mut BTreeMap<String, Place>,
    ) -> anyhow::Result<()> {
        let rooms: Vec<Value> = places
            .iter()
            .map(|(room, place)| match &place.log {
                Some(log) => json!({ "room": room, "after": place.last, "log": log }),
                None => json!({ "room": room, "after": place.last }),
            })
            .collect();
        let call = Call(connection.next_id());
        for (room, place) in &*places {
            let log = place.log.as_ref().map(|log| recorder::log(&json!({ "log": log }))).transpose()?;
            let start = Start::After { seq: Seq(place.last), log };
            self.recorder.record(on, |names| What::Subscribe {
                call,
                room: names.room(room),
                start,
                mode: Mode::Live,
            });
        }
        let id = connection.ask("subscribe", &json!({ "rooms": rooms })).await?;
        loop {
            if done(&orders.borrow().phase, places) {
                return Ok(());
            }
            let frame = tokio::select! {
                frame = connection.next() => frame?,
                _ = orders.changed() => continue,
            };
            if frame["id"].as_u64() == Some(id) {
                let rooms = frame["subscribe"]["rooms"].as_array().with_context(|| self.broken(&frame))?;
                for room in rooms {
                    self.subscribed(on, call, room, places)?;
                }
            } else if let Some(room) = frame.get("subscribed") {
                self.subscribed(on, call, room, places)?;
            } else if let Some(pushed) = frame.get("event") {
                self.event(on, pushed, places).with_context(|| self.broken(&frame))?;
            } else if let Some(gap) = frame.get("gap") {
                self.gap(on, gap, places)?;
            } else if frame.get("reconnect").is_some() {
                bail!("asked to come back elsewhere");
            } else if frame.get("unsubscribed").is_some() || frame.get("room_gone").is_some() {
                bail!(self.broken(&frame));
            }
        }
    }

    fn broken(&self, frame: &Value) -> Broken {
        Broken(format!("subscriber {} was told {frame}", self.number))
    }

    fn event(
        &self,
        on: checker::Connection,
        pushed: &Value,
        places: &mut BTreeMap<String, Place>,
    ) -> anyhow::Result<()> {
        self.recorder.try_record(on, |names| {
            let (room, event) = recorder::event(names, pushed)?;
            Ok(What::Event { room, event })
        })?;
        let place = pushed["room"].as_str().and_then(|room| places.get_mut(room));
        if let Some((place, seq)) = place.zip(pushed["seq"].as_u64()) {
            place.last = seq.max(place.last);
        }
        Ok(())
    }

    fn gap(
        &self,
        on: checker::Connection,
        gap: &Value,
        places: &mut BTreeMap<String, Place>,
    ) -> anyhow::Result<()> {
        let room = gap["room"].as_str().with_context(|| self.broken(gap))?;
        let (from, to) = (recorder::seq(gap, "from")?, recorder::seq(gap, "to")?);
        let expired = gap["expired"].as_bool() == Some(true);
        self.recorder.record(on, |names| What::Gap { room: names.room(room), from, to, expired });
        if let Some(place) = places.get_mut(room) {
            place.last = to.0.max(place.last);
        }
        Ok(())
    }

    fn subscribed(
        &self,
        on: checker::Connection,
        call: Call,
        reply: &Value,
        places: &mut BTreeMap<String, Place>,
    ) -> anyhow::Result<()> {
        if reply["pending"].as_bool() == Some(true) {
            return Ok(()); // finished by a push
        }
        let room = reply["room"].as_str().with_context(|| self.broken(reply))?;
        if let Some(error) = reply.get("error") {
            let code = recorder::code(error).with_context(|| self.broken(reply))?;
            self.recorder.record(on, |names| What::Refused { call, room: Some(names.room(room)), code });
            // Not there yet is no broken promise: come again.
            anyhow::ensure!(!matches!(code, 100 | 108 | 111 | 112), "later");
            bail!(self.broken(reply));
        }
        let told = recorder::subscribed(reply).with_context(|| self.broken(reply))?;
        let what = Box::new(told);
        self.recorder.record(on, |names| What::Subscribed { call, room: names.room(room), reply: what });
        let place = places.get_mut(room).with_context(|| self.broken(reply))?;
        let log = reply["log"].as_str().map(str::to_owned);
        if place.log.is_some() && place.log != log || told.reset {
            bail!(Broken(format!(
                "subscriber {}: {room} is another log after a restart: {reply}",
                self.number
            )));
        }
        place.log = log;
        if let Some(gap) = told.gap {
            place.last = gap.to.0.max(place.last);
        }
        Ok(())
    }
}

fn done(phase: &Phase, places: &BTreeMap<String, Place>) -> bool {
    match phase {
        Phase::Load | Phase::Settle => false,
        Phase::CatchUp(heads) => {
            heads.iter().all(|(room, head)| places.get(room).is_none_or(|p| p.last >= *head))
        }
        Phase::Stop => true,
    }
}

/// An answer that must not be given, as an error that ends a subscriber.
#[derive(Debug)]
struct Broken(String);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}
