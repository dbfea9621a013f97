//! Clients that send and listen through any number of server lives, and write down what they saw.
//!
//! Owns: senders (each send is tried with the same id and `since` until it is answered) and subscribers (each
//! resumes with `after` and `log`).
//! Always holds: a sender has at most [`WINDOW`] sends open; what a client was told is in its history.
//! Does not: judge (`checker`) or kill by its own will: it pulls the trigger that the driver set.

use super::checker::{Event, Sent, Told};
use super::client::{self, ConnectError, Connection, User};
use crate::random::Random;
use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
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
    /// Where the server of this life listens.
    pub address: SocketAddr,
    pub phase: Phase,
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

    fn ack(&self) {
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

/// What one sender did.
#[derive(Debug, Default)]
pub struct SenderReport {
    pub sent: Vec<Sent>,
    /// Sends that were tried more than once.
    pub retried: u64,
    /// Retries that the server knew.
    pub duplicates: u64,
    /// What must not be answered.
    pub refused: Vec<String>,
}

/// A send without a definite answer.
#[derive(Debug, Clone)]
struct Open {
    /// Index into `SenderReport::sent`.
    index: usize,
    since: u64,
    tries: u32,
    not_before: Instant,
}

/// One sending client.
#[derive(Debug)]
pub struct Sender {
    pub number: usize,
    pub user: User,
    pub rooms: Vec<String>,
    pub random: Random,
    /// The highest seq or head that this client was told, for `since`.
    pub known: HashMap<String, u64>,
}

impl Sender {
    /// Sends until told to settle, then settles and asks again for some that were acked long ago.
    pub async fn run(mut self, mut orders: watch::Receiver<Orders>, trigger: &Trigger) -> SenderReport {
        let mut report = SenderReport::default();
        let mut waiting = VecDeque::new();
        let mut again: Option<Vec<(usize, u64)>> = None;
        // First tries, to ask again with the very same `since` at the end.
        let mut since_of = Vec::new();
        loop {
            let now = orders.borrow_and_update().clone();
            if now.phase == Phase::Stop {
                return report;
            }
            let mut connection = match Connection::open(now.address, &self.user.token).await {
                Ok(connection) => connection,
                Err(ConnectError::Refused(why)) => {
                    report.refused.push(format!("sender {}: its token is refused: {why}", self.number));
                    return report;
                }
                Err(ConnectError::Away(_)) => {
                    sleep(RETRY).await;
                    continue;
                }
            };
            let lived = self
                .life(
                    &mut connection,
                    &mut orders,
                    trigger,
                    &mut report,
                    &mut waiting,
                    &mut since_of,
                    &mut again,
                )
                .await;
            match lived {
                Ok(()) => return report,
                Err(Lost::Connection) => sleep(RETRY).await,
                Err(Lost::Promise(what)) => {
                    report.refused.push(what);
                    return report;
                }
            }
        }
    }

    /// One connection. What is unanswered at its end is in `waiting` again.
    #[expect(clippy::too_many_arguments, reason = "the state of a client between its connections")]
    async fn life(
        &mut self,
        connection: &mut Connection,
        orders: &mut watch::Receiver<Orders>,
        trigger: &Trigger,
        report: &mut SenderReport,
        waiting: &mut VecDeque<Open>,
        since_of: &mut Vec<u64>,
        again: &mut Option<Vec<(usize, u64)>>,
    ) -> Result<(), Lost> {
        let mut flying: HashMap<u64, Open> = HashMap::new();
        // Half of the allowed rate: the test is about crashes, not about limits.
        let pace = Duration::from_secs_f64(1.0 / (connection.sends_per_s * 0.5).min(2_000.0));
        let mut next_send = Instant::now();
        let ended = loop {
            let phase = orders.borrow().phase.clone();
            if phase == Phase::Stop {
                return Ok(());
            }
            if phase == Phase::Load && waiting.is_empty() && flying.len() < WINDOW {
                waiting.push_back(self.make(report, since_of));
            }
            if phase != Phase::Load && waiting.is_empty() && flying.is_empty() {
                let left = again.get_or_insert_with(|| self.sample(report, since_of));
                let Some((index, since)) = left.pop() else { return Ok(()) };
                waiting.push_back(Open { index, since, tries: 1, not_before: Instant::now() });
            }
            let due = waiting.front().map(|open| open.not_before.max(next_send));
            tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && flying.len() < WINDOW => {
                    let Some(mut open) = waiting.pop_front() else { continue };
                    next_send = Instant::now() + pace;
                    open.tries += 1;
                    report.retried += u64::from(open.tries == 2);
                    let sent = &report.sent[open.index];
                    let body = json!({
                        "room": sent.room, "client_msg_id": sent.client_msg_id, "since": open.since, "text": sent.text,
                    });
                    let asked = connection.ask("send", &body).await;
                    match asked {
                        Ok(id) => { flying.insert(id, open); }
                        Err(_) => { waiting.push_front(open); break Lost::Connection; }
                    }
                }
                frame = connection.next() => {
                    let Ok(frame) = frame else { break Lost::Connection };
                    let Some(open) = frame["id"].as_u64().and_then(|id| flying.remove(&id)) else { continue };
                    match self.answered(&frame, &open, trigger, report) {
                        Ok(None) => {}
                        Ok(Some(wait)) => waiting.push_back(Open { not_before: Instant::now() + wait, ..open }),
                        Err(what) => break Lost::Promise(what),
                    }
                }
                _ = orders.changed() => {}
            }
        };
        let mut unanswered: Vec<(u64, Open)> = flying.into_iter().collect();
        unanswered.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        for (_, open) in unanswered {
            waiting.push_front(open);
        }
        Err(ended)
    }

    fn make(&mut self, report: &mut SenderReport, since_of: &mut Vec<u64>) -> Open {
        let index = report.sent.len();
        let room =
            self.rooms[usize::try_from(self.random.below(self.rooms.len() as u64)).unwrap_or(0)].clone();
        let since = self.known.get(&room).copied().unwrap_or(0);
        let client_msg_id = format!("c{}-{index}", self.number);
        let filler = "x".repeat(usize::try_from(self.random.below(400)).unwrap_or(0));
        let text = format!("{client_msg_id} {:016x} {filler}", self.random.next_u64());
        report.sent.push(Sent { room, client_msg_id, sender: self.user.id.clone(), text, acks: Vec::new() });
        since_of.push(since);
        Open { index, since, tries: 0, not_before: Instant::now() }
    }

    /// Up to 20 sends that were acked at any time, to be asked again with the `since` of their first try.
    fn sample(&mut self, report: &SenderReport, since_of: &[u64]) -> Vec<(usize, u64)> {
        let n = report.sent.len() as u64;
        let mut chosen: Vec<usize> =
            (0..20.min(n)).filter_map(|_| usize::try_from(self.random.below(n)).ok()).collect();
        chosen.retain(|index| !report.sent[*index].acks.is_empty());
        chosen.sort_unstable();
        chosen.dedup();
        chosen.into_iter().map(|index| (index, since_of[index])).collect()
    }

    /// Takes a reply in. `Some(wait)`: nothing is known, try again after the wait. `Err`: it must not be answered so.
    fn answered(
        &mut self,
        frame: &Value,
        open: &Open,
        trigger: &Trigger,
        report: &mut SenderReport,
    ) -> Result<Option<Duration>, String> {
        let sent = &mut report.sent[open.index];
        if let Some(error) = frame.get("error") {
            let wait = Duration::from_millis(error["retry_after_ms"].as_u64().unwrap_or(50).min(5_000));
            return match error["code"].as_u64() {
                Some(100 | 108 | 111 | 112) => Ok(Some(wait)),
                // Too long ago to be known is an honest answer for what was acked already.
                Some(113) if !sent.acks.is_empty() => Ok(None),
                _ => Err(format!(
                    "{}: {} (try {}) was refused: {error}",
                    sent.room, sent.client_msg_id, open.tries
                )),
            };
        }
        let reply = &frame["send"];
        let Some(seq) = reply["seq"].as_u64() else {
            return Err(format!("{}: {} was answered without a seq: {frame}", sent.room, sent.client_msg_id));
        };
        let duplicate = reply["duplicate"].as_bool().unwrap_or(false);
        report.duplicates += u64::from(duplicate);
        // Tries are counted before the send, so a first try has 1.
        if duplicate && open.tries < 2 {
            return Err(format!(
                "{}: {} is called a duplicate at its first try",
                sent.room, sent.client_msg_id
            ));
        }
        if !duplicate && !sent.acks.is_empty() {
            return Err(format!(
                "{}: {} was acked as {} before, and now as new at {seq}",
                sent.room, sent.client_msg_id, sent.acks[0]
            ));
        }
        sent.acks.push(seq);
        let known = self.known.entry(sent.room.clone()).or_default();
        *known = seq.max(*known);
        trigger.ack();
        Ok(None)
    }
}

/// Why a sender's connection ended.
enum Lost {
    Connection,
    Promise(String),
}

/// What one subscriber saw.
#[derive(Debug, Default)]
pub struct SubscriberReport {
    pub told: Vec<Told>,
    pub resumes: u64,
    pub refused: Vec<String>,
}

/// One listening client, live in all rooms.
#[derive(Debug)]
pub struct Subscriber {
    pub number: usize,
    pub user: User,
    pub rooms: Vec<String>,
}

/// What a subscriber keeps of a room between connections.
#[derive(Debug, Default)]
struct Place {
    last: u64,
    log: Option<String>,
}

impl Subscriber {
    /// Listens through all lives, until it has reached the heads that the driver names.
    pub async fn run(self, mut orders: watch::Receiver<Orders>) -> SubscriberReport {
        let mut report = SubscriberReport::default();
        let mut places: BTreeMap<String, Place> = BTreeMap::new();
        for room in &self.rooms {
            places.insert(room.clone(), Place::default());
            report.told.push(Told::Start { room: room.clone(), seq: 0 });
        }
        loop {
            let now = orders.borrow_and_update().clone();
            if done(&now.phase, &places) {
                return report;
            }
            match Connection::open(now.address, &self.user.token).await {
                Ok(mut connection) => {
                    report.resumes += 1;
                    match self.life(&mut connection, &mut orders, &mut places, &mut report).await {
                        Ok(()) => return report,
                        Err(error) if error.is::<Broken>() => {
                            report.refused.push(error.to_string());
                            return report;
                        }
                        Err(_) => {}
                    }
                }
                Err(ConnectError::Refused(why)) => {
                    report.refused.push(format!("subscriber {}: its token is refused: {why}", self.number));
                    return report;
                }
                Err(ConnectError::Away(_)) => {}
            }
            sleep(RETRY).await;
        }
    }

    /// One connection: resume, then take pushes. Ok when all is reached.
    async fn life(
        &self,
        connection: &mut Connection,
        orders: &mut watch::Receiver<Orders>,
        places: &mut BTreeMap<String, Place>,
        report: &mut SubscriberReport,
    ) -> anyhow::Result<()> {
        let rooms: Vec<Value> = places
            .iter()
            .map(|(room, place)| match &place.log {
                Some(log) => json!({ "room": room, "after": place.last, "log": log }),
                None => json!({ "room": room, "after": place.last }),
            })
            .collect();
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
                    self.subscribed(room, places, report)?;
                }
            } else if let Some(room) = frame.get("subscribed") {
                self.subscribed(room, places, report)?;
            } else if let Some(pushed) = frame.get("event") {
                let event: Event = client::event(pushed)?;
                if let Some(place) = places.get_mut(&event.room) {
                    place.last = event.seq.max(place.last);
                }
                report.told.push(Told::Event(event));
            } else if let Some(gap) = frame.get("gap") {
                let room = gap["room"].as_str().with_context(|| self.broken(&frame))?;
                self.gap(room, gap, places, report)?;
            } else if frame.get("unsubscribed").is_some() || frame.get("room_gone").is_some() {
                bail!(self.broken(&frame));
            }
        }
    }

    fn broken(&self, frame: &Value) -> Broken {
        Broken(format!("subscriber {} was told {frame}", self.number))
    }

    fn gap(
        &self,
        room: &str,
        gap: &Value,
        places: &mut BTreeMap<String, Place>,
        report: &mut SubscriberReport,
    ) -> anyhow::Result<()> {
        let (Some(from), Some(to)) = (gap["from"].as_u64(), gap["to"].as_u64()) else {
            bail!(self.broken(gap))
        };
        if let Some(place) = places.get_mut(room) {
            place.last = to.max(place.last);
        }
        report.told.push(Told::Gap { room: room.to_owned(), from, to });
        Ok(())
    }

    fn subscribed(
        &self,
        reply: &Value,
        places: &mut BTreeMap<String, Place>,
        report: &mut SubscriberReport,
    ) -> anyhow::Result<()> {
        if reply["pending"].as_bool() == Some(true) {
            return Ok(()); // finished by a push
        }
        if let Some(code) = reply["error"]["code"].as_u64() {
            // Not there yet is no broken promise: come again.
            anyhow::ensure!(!matches!(code, 100 | 108 | 111 | 112), "later");
            bail!(self.broken(reply));
        }
        let room = reply["room"].as_str().with_context(|| self.broken(reply))?;
        let log = reply["log"].as_str().with_context(|| self.broken(reply))?;
        let place = places.get_mut(room).with_context(|| self.broken(reply))?;
        let other_log = place.log.as_deref().is_some_and(|known| known != log);
        if other_log || reply["reset"].as_bool() == Some(true) {
            report.told.push(Told::Reset { room: room.to_owned() });
            bail!(Broken(format!(
                "subscriber {}: {room} is another log after a restart: {reply}",
                self.number
            )));
        }
        place.log = Some(log.to_owned());
        if let Some(gap) = reply.get("gap") {
            self.gap(room, gap, places, report)?;
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
