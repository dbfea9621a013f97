//! An event as it travels inside a process: decoded, its stored bytes beside it, its JSON made at most once.

use std::hash::{Hash, Hasher};
use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message as _;

use crate::frame::{Format, encode_event};
use crate::id::{Origin, Seq};
use crate::v1;

/// One entry of a room's log. Shared by reference between the owner, its tail and every gateway worker.
#[derive(Debug)]
pub struct LoggedEvent {
    /// The event as clients see it.
    pub event: v1::Event,
    /// Its protobuf, as stored and as pushed to protobuf clients.
    pub encoded: Bytes,
    /// The connection that sent it.
    pub origin: Origin,
    /// The JSON push frame's payload, made by the first who needs it.
    json: OnceLock<Box<[u8]>>,
}

impl LoggedEvent {
    pub fn new(event: v1::Event, origin: Origin) -> Self {
        let encoded = event.encode_to_vec().into();
        Self { event, encoded, origin, json: OnceLock::new() }
    }

    /// Reads a stored event.
    pub fn decode(encoded: Bytes, origin: Origin) -> Result<Self, prost::DecodeError> {
        let event = v1::Event::decode(&*encoded)?;
        Ok(Self { event, encoded, origin, json: OnceLock::new() })
    }

    pub fn seq(&self) -> Seq {
        Seq(self.event.seq)
    }

    /// The payload of its JSON push frame: `{"event":{…}}`.
    pub fn json_push(&self) -> &[u8] {
        self.json.get_or_init(|| {
            let mut payload = Vec::with_capacity(self.encoded.len() * 2 + 64);
            encode_event(Format::Json, &self.event, &self.encoded, &mut payload);
            payload.into_boxed_slice()
        })
    }

    /// True for events that change who may read the room.
    pub fn changes_membership(&self) -> bool {
        use v1::event::Kind;
        matches!(
            self.event.kind,
            Some(Kind::Joined(_) | Kind::Left(_) | Kind::Removed(_) | Kind::RoleChanged(_))
        )
    }
}

impl PartialEq for LoggedEvent {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin && self.encoded == other.encoded
    }
}

impl Eq for LoggedEvent {}

/// As equality: by what is stored. Whether the JSON was made yet makes no difference.
impl Hash for LoggedEvent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.origin.hash(state);
        self.encoded.hash(state);
    }
}
