//! Writes down what the clients of a run do and are told, as the check wants it.
//!
//! Owns: the history while it grows; the one clock of a run.
//! Always holds: records stand in the order in which they were made, whichever task made them; a command is recorded
//! before it is sent, a frame after it was read.
//! Does not: judge (`banyan-checker`).

use anyhow::Context;
use banyan_checker::{
    Connection, Content, Event, Fault, FaultKind, Gap, History, Kind, Log, Marks, Names, Record, Room, Seq,
    Session, Subscribed, Time, UnixMs, User, What,
};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Shared by all tasks of a run. The lock gives the records their order, and is never held over an await.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Mutex<Recording>>);

#[derive(Debug)]
struct Recording {
    history: History,
    begun: Instant,
    connections: u32,
}

impl Default for Recorder {
    fn default() -> Self {
        let recording = Recording { history: History::default(), begun: Instant::now(), connections: 0 };
        Self(Arc::new(Mutex::new(recording)))
    }
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Recording> {
        // A task that panicked while it recorded has made the run fail anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A logical client of this user.
    pub fn session(&self, user: &str) -> Session {
        let mut recording = self.lock();
        let user = recording.history.names.user(user);
        recording.history.sessions.push(user);
        Session(recording.history.sessions.len() as u32 - 1)
    }

    /// The session has a connection.
    pub fn begin(&self, session: Session) -> Connection {
        let on = {
            let mut recording = self.lock();
            recording.connections += 1;
            Connection(recording.connections - 1)
        };
        self.record(on, |_| What::Begin { session });
        on
    }

    pub fn record(&self, on: Connection, what: impl FnOnce(&mut Names) -> What) {
        let mut recording = self.lock();
        let at = recording.now();
        let what = what(&mut recording.history.names);
        recording.history.records.push(Record { at, on, what });
    }

    /// The same for what may not be readable.
    pub fn try_record(
        &self,
        on: Connection,
        what: impl FnOnce(&mut Names) -> anyhow::Result<What>,
    ) -> anyhow::Result<()> {
        let mut recording = self.lock();
        let at = recording.now();
        let what = what(&mut recording.history.names)?;
        recording.history.records.push(Record { at, on, what });
        Ok(())
    }

    pub fn fault(&self, kind: FaultKind) {
        let mut recording = self.lock();
        let at = recording.now();
        recording.history.faults.push(Fault { at, kind });
    }

    pub fn now(&self) -> Time {
        self.lock().now()
    }

    /// The number of a room.
    pub fn room(&self, room: &str) -> Room {
        self.lock().history.names.room(room)
    }

    /// The number of a user.
    pub fn user(&self, user: &str) -> User {
        self.lock().history.names.user(user)
    }

    /// An event that no client was told: one of the store's.
    pub fn event(&self, value: &Value) -> anyhow::Result<Event> {
        event(&mut self.lock().history.names, value).map(|(_, event)| event)
    }

    /// What has been recorded so far; the rest is lost.
    pub fn finish(&self) -> History {
        std::mem::take(&mut self.lock().history)
    }
}

impl Recording {
    fn now(&self) -> Time {
        Time(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// What a client means by a text message of ours: neither type nor answer nor data.
pub fn content_of_text(text: &str) -> Content {
    Content::of(&[b"message", text.as_bytes(), b"text/plain", b"", b""])
}

/// An event of a push or of a page.
pub fn event(names: &mut Names, value: &Value) -> anyhow::Result<(Room, Event)> {
    let text = |name: &str| value[name].as_str();
    let user = |names: &mut Names, kind: &str| names.user(value[kind]["user"].as_str().unwrap_or_default());
    let known =
        ["message", "created", "joined", "left", "removed", "role_changed", "room_changed"].into_iter();
    let kind = known.into_iter().find(|kind| value.get(*kind).is_some()).unwrap_or_default();
    let body = &value[kind];
    let content = if kind == "message" {
        let part = |name: &str| match body.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let parts = [part("text"), part("content_type"), part("reply_to"), part("data")];
        let [text, content_type, reply_to, data] = parts.each_ref().map(|part| part.as_bytes());
        Content::of(&[b"message", text, content_type, reply_to, data])
    } else {
        Content::of(&[kind.as_bytes(), body.to_string().as_bytes()])
    };
    let kind = match kind {
        "message" => Kind::Message,
        "created" => Kind::Created,
        "joined" => Kind::Joined(user(names, kind)),
        "left" => Kind::Left(user(names, kind)),
        "removed" => Kind::Removed(user(names, kind)),
        "role_changed" => Kind::RoleChanged(user(names, kind)),
        "room_changed" => Kind::RoomChanged,
        _ => Kind::Other,
    };
    let event = Event {
        seq: seq(value, "seq")?,
        n: value["n"].as_u64().context("an event without n")?,
        at: UnixMs(value["at"].as_u64().context("an event without at")?),
        sender: names.user(text("sender").context("an event without sender")?),
        message: text("client_msg_id").map(|id| names.message(id)),
        content,
        kind,
    };
    Ok((names.room(text("room").context("an event without room")?), event))
}

/// A room of a `subscribe` reply.
pub fn subscribed(reply: &Value) -> anyhow::Result<Subscribed> {
    let gap = match reply.get("gap") {
        Some(gap) => Some(Gap { from: seq(gap, "from")?, to: seq(gap, "to")? }),
        None => None,
    };
    Ok(Subscribed {
        log: log(reply)?,
        head: seq(reply, "head")?,
        n: reply["n"].as_u64().context("a subscribe reply without n")?,
        from: seq(reply, "from")?,
        role: u8::from(reply["role"].as_str().is_some_and(|role| role != "none")),
        marks: Marks {
            delivered: seq(reply, "delivered")?,
            seen: seq(reply, "seen")?,
            seen_n: reply["seen_n"].as_u64().context("a subscribe reply without seen_n")?,
        },
        gap,
        reset: reply["reset"].as_bool() == Some(true),
    })
}

pub fn seq(value: &Value, name: &str) -> anyhow::Result<Seq> {
    value[name].as_u64().map(Seq).with_context(|| format!("no {name} in {value}"))
}

pub fn log(value: &Value) -> anyhow::Result<Log> {
    let text = value["log"].as_str().with_context(|| format!("no log in {value}"))?;
    let log = u64::from_str_radix(text, 16).with_context(|| format!("the log {text:?} is no number"))?;
    Ok(Log(log))
}

/// The code of an error, if it is one.
pub fn code(error: &Value) -> Option<u16> {
    error["code"].as_u64().and_then(|code| u16::try_from(code).ok())
}
