//! What is written down of a run: the history that the checker judges, the hash that two runs of one seed must share, and
//! (only if asked) the timeline that a person reads.

use std::fmt;

use banyan_checker as checker;
use banyan_checker::{Content, History, Message, Record, What};
use banyan_proto::v1;
use banyan_proto::v1::event::Kind;

use crate::schedule::Time;

/// Hash over everything that happened, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0x51_7c_c1_b7_27_22_0a_95)
    }
}

impl Trace {
    pub const fn mix(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last));
        self.mix(bytes.len() as u64);
    }

    pub const fn value(self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

#[derive(Debug, Default)]
pub struct Recorder {
    pub history: History,
    pub trace: Trace,
    /// Lines for people, with their time; `None`: nobody reads them.
    pub timeline: Option<Vec<(Time, String)>>,
    pub now: Time,
}

impl Recorder {
    pub fn new(rooms: &[String], users: &[String]) -> Self {
        let mut recorder = Self::default();
        for room in rooms {
            recorder.history.names.room(room);
        }
        for user in users {
            recorder.history.names.user(user);
        }
        recorder
    }

    /// A line of the timeline. The words are made only if somebody reads them.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(timeline) = &mut self.timeline {
            timeline.push((self.now, line()));
        }
    }

    pub fn record(&mut self, on: u32, what: What) {
        self.history.records.push(Record { at: checker::Time(self.now), on: checker::Connection(on), what });
    }

    pub fn message(&mut self, client_msg_id: &str) -> Message {
        self.history.names.message(client_msg_id)
    }

    /// An event as the checker knows it.
    pub fn event(&mut self, event: &v1::Event) -> checker::Event {
        let names = &mut self.history.names;
        let mut user = |text: &str| names.user(text);
        let sender = user(&event.sender);
        let kind = match &event.kind {
            Some(Kind::Created(_)) => checker::Kind::Created,
            Some(Kind::Message(_)) => checker::Kind::Message,
            Some(Kind::Joined(joined)) => checker::Kind::Joined(user(&joined.user)),
            Some(Kind::Left(left)) => checker::Kind::Left(user(&left.user)),
            Some(Kind::Removed(removed)) => checker::Kind::Removed(user(&removed.user)),
            Some(Kind::RoleChanged(changed)) => checker::Kind::RoleChanged(user(&changed.user)),
            Some(Kind::RoomChanged(_)) => checker::Kind::RoomChanged,
            None => checker::Kind::Other,
        };
        let content = match &event.kind {
            Some(Kind::Message(message)) => content_of(&message.text),
            Some(Kind::Joined(joined)) => {
                Content::of(&[b"joined", joined.user.as_bytes(), &[joined.role as u8]])
            }
            Some(Kind::RoleChanged(changed)) => {
                Content::of(&[b"role", changed.user.as_bytes(), &[changed.role as u8]])
            }
            Some(Kind::RoomChanged(changed)) => {
                Content::of(&[b"room", changed.name.as_deref().unwrap_or_default().as_bytes()])
            }
            Some(Kind::Left(left)) => Content::of(&[b"left", left.user.as_bytes()]),
            Some(Kind::Removed(removed)) => Content::of(&[b"removed", removed.user.as_bytes()]),
            Some(Kind::Created(created)) => Content::of(&[b"created", created.name.as_bytes()]),
            None => Content(0),
        };
        let message = event.client_msg_id.as_deref().map(|text| names.message(text));
        checker::Event {
            seq: checker::Seq(event.seq),
            n: event.n,
            at: checker::UnixMs(event.at),
            sender,
            message,
            content,
            kind,
        }
    }
}

/// The content of a message, as sent and as stored.
pub fn content_of(text: &str) -> Content {
    Content::of(&[b"message", text.as_bytes()])
}

#[derive(Debug)]
/// Events in words short enough for a timeline.
pub struct Words<'a>(pub &'a v1::Event);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        write!(f, "{} seq {}", event.room, event.seq)?;
        match &event.kind {
            Some(Kind::Message(message)) => {
                let id = event.client_msg_id.as_deref().unwrap_or("-");
                write!(f, " {id} by {} ({})", event.sender, message.text)
            }
            Some(Kind::Created(_)) => write!(f, " created by {}", event.sender),
            Some(Kind::Joined(joined)) => write!(f, " {} joined", joined.user),
            Some(Kind::Left(left)) => write!(f, " {} left", left.user),
            Some(Kind::Removed(removed)) => write!(f, " {} removed", removed.user),
            Some(Kind::RoleChanged(changed)) => write!(f, " {} is now {}", changed.user, changed.role),
            Some(Kind::RoomChanged(_)) => write!(f, " room changed"),
            None => write!(f, " of an unknown kind"),
        }
    }
}
