//! An event as it travels inside a process: decoded, its stored bytes beside it, its JSON made at most once.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message as _;

use crate::frame::{Format, encode_event};
use crate::id::{Origin, Seq};
use crate::v1;

/// Scratch of each thread above this is freed again. Texts have 8 KiB at most, `data` as much, and escapes make of either
/// six times as much.
const SCRATCH_MAX: usize = 64 << 10;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

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
            // How long it gets shows when it is written: in memory that is there already, so that only what is kept is
            // taken anew, and in one piece.
            let mut payload = SCRATCH.take();
            payload.clear();
            encode_event(Format::Json, &self.event, &self.encoded, &mut payload);
            let kept = payload.as_slice().into();
            if payload.capacity() <= SCRATCH_MAX {
                SCRATCH.set(payload);
            }
            kept
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

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: String) -> LoggedEvent {
        let kind = v1::event::Kind::Message(v1::Message { text, ..v1::Message::default() });
        let event = v1::Event { room: "r".into(), seq: 7, kind: Some(kind), ..v1::Event::default() };
        LoggedEvent::new(event, Origin(0))
    }

    fn scratch_capacity() -> usize {
        let scratch = SCRATCH.take();
        let capacity = scratch.capacity();
        SCRATCH.set(scratch);
        capacity
    }

    /// Long, short, long: nothing of one is left in another.
    #[test]
    fn the_json_of_each_event_is_its_own() {
        for len in [0, 3_000, 1, 100_000, 2, 200] {
            let event = event("x\n".repeat(len));
            let mut want = Vec::new();
            encode_event(Format::Json, &event.event, &event.encoded, &mut want);
            assert_eq!(event.json_push(), want);
            assert_eq!(event.json_push().as_ptr(), event.json_push().as_ptr(), "made once");
        }
    }

    #[test]
    fn scratch_is_kept_and_bounded() {
        event("x".repeat(1_000)).json_push();
        let small = scratch_capacity();
        assert!((1_000..=SCRATCH_MAX).contains(&small), "{small}");
        event("y".repeat(10)).json_push();
        assert_eq!(scratch_capacity(), small);
        event("z".repeat(SCRATCH_MAX + 1)).json_push();
        assert_eq!(scratch_capacity(), 0);
    }
}
