//! One event for one client message, however often it is sent (docs/protocol.md, "Delivery"; DESIGN.md, section 5,
//! rule 11).
//!
//! Owns: the window, the ids of the sends in the newest part of the log, and the look into the log below it.
//! A send with `since` can only have a twin above it. Without, the window must be whole: back to the log's start, over
//! 4,096 events, or over ten minutes, whichever is less; after an open it is filled from the log by the first such send.
//!
//! Ten minutes by whose clock? Each owner wrote `at` by its own, and any of them may have been wrong by hours. So the age
//! of the window is the sum of the pauses between its sends, of each no more than [`PAUSE_MAX_MS`]: a clock that is ahead,
//! or jumps, looks like one long pause and shortens the window by that much at most. A room that is really quiet has its
//! window reach further back than it must, over a few dozen events more.
//!
//! Two bodies are the same when text, content type, `reply_to` and data are: mentions are left out, because the log
//! holds only those who were members then, and the answer must not depend on whether it comes from memory or from the
//! log.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use banyan_proto::codes::Code;
use banyan_proto::id::{Seq, UnixMs};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_storage::{Range, ReadLimit, Row};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::{Action, Op, Room, Say, decode, refuse};
use crate::config::Config;

/// What `content_type` is when it is not given.
pub(super) const PLAIN: &str = "text/plain";
/// Rows of one read that fills the window: mostly the first one reaches back ten minutes.
const FILL: ReadLimit = ReadLimit { events: 512, bytes: 1 << 20 };
/// Rows of one read that looks for a twin.
const LOOK: ReadLimit = ReadLimit { events: 2_500, bytes: 2 << 20 };
/// The most that a pause between two sends counts for the age of the window.
const PAUSE_MAX_MS: u64 = 10_000;
/// What is kept for ten minutes is read back a little further: for clocks that run fast, and that jump a few times.
const CLOCK_MARGIN_MS: u64 = 60_000;

/// A send that is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) seq: Seq,
    pub(super) at: UnixMs,
    pub(super) body: u64,
}

impl Entry {
    /// What a retry with this body is told.
    pub(super) fn twin(&self, body: u64) -> Say {
        if self.body == body {
            Say::Sent { seq: self.seq, at: self.at, duplicate: true }
        } else {
            let text = "this client_msg_id was used for another message: take a new one";
            Say::Error(Box::new(Code::ClientMsgIdReused.error(text)))
        }
    }
}

/// Ids of the sends in `(start, head]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    start: Seq,
    /// Sends without `since` need not look further.
    whole: bool,
    by_key: HashMap<u128, Entry, FixedState>,
    /// Ascending by seq.
    order: VecDeque<(Seq, u128)>,
}

/// Through `order`: maps have none.
impl Hash for Window {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.start, self.whole).hash(state);
        for (seq, key) in &self.order {
            (seq, key, self.by_key.get(key)).hash(state);
        }
    }
}

impl Window {
    /// Of a log that begins now.
    pub(super) fn whole() -> Self {
        Self { whole: true, ..Self::above(Seq(0)) }
    }

    /// Knows nothing of `start` and below.
    pub(super) fn above(start: Seq) -> Self {
        Self { start, whole: false, by_key: HashMap::default(), order: VecDeque::new() }
    }

    pub(super) fn start(&self) -> Seq {
        self.start
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    pub(super) fn set_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    fn get(&self, key: u128) -> Option<&Entry> {
        self.by_key.get(&key)
    }

    /// Ascending by seq; of an id that was used twice the newest.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u128, Entry)> {
        self.order.iter().filter_map(|(seq, key)| {
            let entry = self.by_key.get(key).filter(|entry| entry.seq == *seq)?;
            Some((*key, *entry))
        })
    }

    pub(super) fn push(&mut self, key: u128, entry: Entry) {
        self.order.push_back((entry.seq, key));
        self.by_key.insert(key, entry);
    }

    /// Forgets what lies more than `events` below `head`.
    pub(super) fn cut(&mut self, head: Seq, events: u64) {
        let start = Seq(head.0.saturating_sub(events));
        if start <= self.start {
            return;
        }
        self.start = start;
        self.whole = true;
        while let Some((seq, key)) = self.order.front().copied().filter(|(seq, _)| *seq <= start) {
            self.order.pop_front();
            if self.by_key.get(&key).is_some_and(|entry| entry.seq == seq) {
                self.by_key.remove(&key);
            }
        }
    }

    /// Adds an older send; a newer one of the same id stays.
    fn push_older(&mut self, key: u128, entry: Entry) {
        self.order.push_front((entry.seq, key));
        self.by_key.entry(key).or_insert(entry);
    }

    /// Everything above `start` is known now.
    pub(super) fn reached(&mut self, start: Seq, floor: Seq, head: Seq, config: &Config) {
        self.start = start;
        self.whole = start <= floor
            || head.0 - start.0 >= config.window_events
            || self.age_ms() > config.window_ms + CLOCK_MARGIN_MS;
    }

    fn age_ms(&self) -> u64 {
        let times: Vec<u64> = self.entries().map(|(_, entry)| entry.at.0).collect();
        times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]).min(PAUSE_MAX_MS)).sum()
    }
}

/// A look into the log under way. One at a time; other sends that need one wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scan {
    /// Fills the window.
    Window,
    /// For one send: `(from, through]` is still to be read.
    Twin { op: Option<Op>, key: u128, body: u64, from: Seq, through: Seq },
}

impl Scan {
    pub(super) fn arrived_ms(&self) -> Option<u64> {
        match self {
            Self::Window => None,
            Self::Twin { op, .. } => op.as_ref().map(|op| op.arrived_ms),
        }
    }

    /// The send has waited too long; the read may end as it likes.
    pub(super) fn give_up(&mut self) -> Option<Op> {
        match self {
            Self::Window => None,
            Self::Twin { op, .. } => op.take(),
        }
    }
}

/// Names a client message: 128 bits under a secret seed, of sender and id.
pub(super) fn key_of(seed: u64, sender: &str, client_msg_id: &str) -> u128 {
    // Both are bounded (128 and 64 bytes); anything longer is cut, after the length went in.
    let mut bytes = [0_u8; 200];
    let sender = &sender.as_bytes()[..sender.len().min(128)];
    let id = &client_msg_id.as_bytes()[..client_msg_id.len().min(64)];
    let sender = if plant::is(Bug::DedupeWithoutSender) { &[] } else { sender };
    bytes[0] = sender.len() as u8;
    bytes[1] = id.len() as u8;
    let middle = 2 + sender.len();
    let end = middle + id.len();
    bytes[2..middle].copy_from_slice(sender);
    bytes[middle..end].copy_from_slice(id);
    xxh3_128_with_seed(&bytes[..end], seed)
}

pub(super) fn body_of(
    seed: u64,
    text: &str,
    content_type: &str,
    reply_to: Option<u64>,
    data: Option<&[u8]>,
) -> u64 {
    let mut hash = xxh3_64_with_seed(text.as_bytes(), seed);
    hash = xxh3_64_with_seed(content_type.as_bytes(), hash);
    hash = xxh3_64_with_seed(&reply_to.map_or(0, |seq| seq + 1).to_le_bytes(), hash);
    match data {
        // No data and empty data differ.
        Some(data) => xxh3_64_with_seed(data, hash).wrapping_add(1),
        None => hash,
    }
}

/// As [`entry_of`] will see it in the log.
pub(super) fn body_of_send(seed: u64, send: &v1::Send) -> u64 {
    let text = send.text.as_deref().unwrap_or_default();
    let content_type = send.content_type.as_deref().unwrap_or(PLAIN);
    body_of(seed, text, content_type, send.reply_to, send.data.as_deref())
}

/// What the window keeps of an event, if it is a client's message.
pub(super) fn entry_of(seed: u64, event: &v1::Event) -> Option<(u128, Entry)> {
    let Some(v1::event::Kind::Message(message)) = &event.kind else { return None };
    let key = key_of(seed, &event.sender, event.client_msg_id.as_deref()?);
    let body = body_of(seed, &message.text, &message.content_type, message.reply_to, message.data.as_deref());
    Some((key, Entry { seq: Seq(event.seq), at: UnixMs(event.at), body }))
}

impl Room {
    /// The answer to a send whose id the window knows.
    pub(super) fn known(&self, key: u128, send: &v1::Send) -> Option<Say> {
        let entry = self.state.as_deref()?.window.get(key)?;
        Some(entry.twin(body_of_send(self.seed, send)))
    }

    /// Whether the log may hold a twin that the window does not know: then the send waits, or is refused, and `None`
    /// comes back.
    pub(super) fn look_below(&mut self, op: Op, key: u128, body: u64, out: &mut Vec<Action>) -> Option<Op> {
        let Some(state) = self.state.as_deref() else { return Some(op) };
        let super::RoomCommand::Send(send) = &op.call.command else { return Some(op) };
        // Who never was in the room has nothing in its log.
        if state.members.get(op.call.caller.user.as_str()).is_none() {
            return Some(op);
        }
        let Some(since) = send.since else {
            if state.window.whole {
                return Some(op);
            }
            self.park(op);
            self.fill_window(out);
            return None;
        };
        // Above head, so of another log.
        let since = if since > state.head.0 { Seq(0) } else { Seq(since) };
        let from = since.max(op.clear);
        if from >= state.window.start
            || plant::is(Bug::DedupeWithoutSince)
            || plant::is(Bug::DedupeNotRebuilt)
        {
            return Some(op);
        }
        if since < state.row.floor || state.head.0 - since.0 > self.config.since_events {
            let text = "too much was said since the first try: look for the message in the history";
            refuse(op.link, op.call.ticket, Code::RetryTooOld.error(text), out);
            return None;
        }
        let through = state.window.start;
        self.park(op);
        if self.scan.is_none()
            && let Some(op) = self.parked.pop()
        {
            self.look(Scan::Twin { op: Some(op), key, body, from, through }, out);
        }
        None
    }

    fn fill_window(&mut self, out: &mut Vec<Action>) {
        if self.scan.is_none() {
            self.look(Scan::Window, out);
        }
    }

    fn look(&mut self, scan: Scan, out: &mut Vec<Action>) {
        let Some(state) = self.state.as_deref() else { return };
        let (range, limit) = match &scan {
            Scan::Window => {
                let above = Seq(state.head.0.saturating_sub(self.config.window_events)).max(state.row.floor);
                (Range::Before { before: state.window.start.next(), above }, FILL)
            }
            Scan::Twin { from, through, .. } => (Range::After { after: *from, through: *through }, LOOK),
        };
        let ticket = self.ticket();
        self.scan = Some((ticket, scan));
        out.push(self.read_rows(ticket, range, limit));
    }

    /// The look has brought rows.
    pub(super) fn scanned(&mut self, rows: Option<(Vec<Row>, bool)>, out: &mut Vec<Action>) {
        let Some((_, scan)) = self.scan.take() else { return };
        let next = match (scan, rows) {
            (Scan::Window, Some((rows, more))) => self.window_read(&rows, more),
            (Scan::Twin { op: Some(op), key, body, from, through }, Some((rows, _))) => {
                self.twin_read(op, key, body, from, through, &rows, out)
            }
            // Nobody waits for it any more.
            (Scan::Twin { op: None, .. }, _) => Ok(None),
            (scan, None) => {
                let error = Code::Unavailable.error("the log cannot be read now");
                if let Scan::Twin { op: Some(op), .. } = scan {
                    self.queue_bytes -= op.bytes;
                    refuse(op.link, op.call.ticket, error.clone(), out);
                }
                for op in std::mem::take(&mut self.parked) {
                    self.queue_bytes -= op.bytes;
                    refuse(op.link, op.call.ticket, error.clone(), out);
                }
                return;
            }
        };
        match next {
            Ok(Some(scan)) => self.look(scan, out),
            Ok(None) => self.unpark(),
            Err(after) => {
                out.push(Action::Damaged { after });
                for op in std::mem::take(&mut self.parked) {
                    self.queue_bytes -= op.bytes;
                    refuse(op.link, op.call.ticket, Code::Internal.error("the room's log is damaged"), out);
                }
            }
        }
    }

    fn window_read(&mut self, rows: &[Row], more: bool) -> Result<Option<Scan>, Seq> {
        let seed = self.seed;
        let Some(state) = self.state.as_deref_mut() else { return Ok(None) };
        let Some(last) = rows.last() else {
            state.window.whole = true;
            return Ok(None);
        };
        // A commit may have moved the window up meanwhile: then it is whole already.
        if state.window.whole {
            return Ok(None);
        }
        if last.seq != state.window.start {
            return Err(last.seq);
        }
        let mut start = state.window.start;
        for row in rows.iter().rev() {
            let event = decode(row, Seq(start.0.saturating_sub(1)))?;
            start = Seq(row.seq.0 - 1);
            if let Some((key, entry)) = entry_of(seed, &event.event) {
                state.window.push_older(key, entry);
            }
        }
        state.window.reached(start, state.row.floor, state.head, &self.config);
        state.window.whole |= !more;
        Ok(if state.window.whole { None } else { Some(Scan::Window) })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of the scan that it goes on with")]
    fn twin_read(
        &mut self,
        mut op: Op,
        key: u128,
        body: u64,
        from: Seq,
        through: Seq,
        rows: &[Row],
        out: &mut Vec<Action>,
    ) -> Result<Option<Scan>, Seq> {
        let seed = self.seed;
        let mut reached = from;
        for row in rows {
            let event = match decode(row, reached) {
                Ok(event) => event,
                Err(after) => {
                    self.park_again(op);
                    return Err(after);
                }
            };
            reached = row.seq;
            if let Some((_, entry)) = entry_of(seed, &event.event).filter(|(other, _)| *other == key) {
                self.queue_bytes -= op.bytes;
                let user = op.call.caller.user.clone();
                self.say(op.link, op.call.ticket, &user, entry.twin(body), out);
                return Ok(None);
            }
        }
        if reached < through {
            if rows.is_empty() {
                self.park_again(op);
                return Err(reached);
            }
            return Ok(Some(Scan::Twin { op: Some(op), key, body, from: reached, through }));
        }
        op.clear = through;
        self.park_again(op);
        Ok(None)
    }

    /// It was first; it stays first. (Its bytes are still counted.)
    fn park_again(&mut self, op: Op) {
        self.parked.insert(0, op);
    }
}
