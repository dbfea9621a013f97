//! What nodes tell each other about themselves and about slots that change hands, as bytes.

use bytes::Bytes;
use prost::Message as _;

use super::{Error, LIST_MAX, WANTED_MAX, bound_list, incarnation, incarnation_bytes, messages, number, put};
use crate::id::{Epoch, Incarnation, SlotId};
use crate::node::v1 as wire;
use crate::node::v1::node_message::Message;
use crate::v1;

const NODE: u32 = 3;
const HANDED: u32 = 1;
/// A part of a handoff: what waits behind it on the same stream waits no longer than this takes.
pub const PART_BYTES: usize = 256 << 10;

/// From node to node, the small things.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NodeMessage {
    /// Are you there to be handed slots?
    AskReady,
    /// Yes.
    Ready,
    /// The sender's connections to that run were reset and new ones refused. A time-out is not that.
    Refused { incarnation: Incarnation },
    /// Somebody at the sender waits for these slots, and there is no way to an owner of them. At most [`WANTED_MAX`].
    Wanted { slots: Vec<SlotId> },
}

/// State of the open rooms of a slot, for its next owner. Rooms are opaque here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Handed {
    pub slot: SlotId,
    /// The epoch that it was made for.
    pub epoch: Epoch,
    /// Nothing is said or appended there any more.
    pub complete: bool,
    pub rooms: Vec<Bytes>,
}

impl Handed {
    pub fn bytes(&self) -> usize {
        self.rooms.iter().map(Bytes::len).sum()
    }
}

/// Appends a message to a frame of [`super::read_up`].
pub fn put_node(message: NodeMessage, frame: &mut Vec<u8>) {
    let message = match message {
        NodeMessage::AskReady => Message::AskReady(v1::Empty {}),
        NodeMessage::Ready => Message::Ready(v1::Empty {}),
        NodeMessage::Refused { incarnation } => Message::Refused(incarnation_bytes(incarnation)),
        NodeMessage::Wanted { slots } => {
            let slots = slots.into_iter().map(|slot| slot.0.into()).collect();
            Message::Wanted(wire::WantedSlots { slots })
        }
    };
    put(NODE, &wire::NodeMessage { required: false, message: Some(message) }, frame);
}

/// `None`: of a newer release.
pub(super) fn read(bytes: &[u8]) -> Result<Option<NodeMessage>, Error> {
    let message = wire::NodeMessage::decode(bytes)?;
    Ok(match message.message {
        Some(Message::AskReady(_)) => Some(NodeMessage::AskReady),
        Some(Message::Ready(_)) => Some(NodeMessage::Ready),
        Some(Message::Refused(bytes)) => Some(NodeMessage::Refused { incarnation: incarnation(&bytes)? }),
        Some(Message::Wanted(wanted)) => {
            if wanted.slots.len() > WANTED_MAX {
                return Err(Error::TooLarge { what: "a list of wanted slots", max: WANTED_MAX });
            }
            let slots = wanted.slots.into_iter().map(|slot| Ok(SlotId(number("a slot", slot)?)));
            Some(NodeMessage::Wanted { slots: slots.collect::<Result<_, Error>>()? })
        }
        None if message.required => return Err(Error::Newer { what: "message of a node" }),
        None => None,
    })
}

/// The frames of a handoff, for [`read_bulk_up`] and [`Assembly`]. Made one by one, so that they are not all in memory.
pub fn put_handed(handed: Handed) -> impl Iterator<Item = Vec<u8>> + Send {
    let Handed { slot, epoch, complete, rooms } = handed;
    let begin = wire::HandedBegin { slot: slot.0.into(), epoch: epoch.0, complete };
    let begin = wire::HandedPart { begin: Some(begin), ..wire::HandedPart::default() };
    let parts = rooms.into_iter().flat_map(|room| {
        let count = room.len().div_ceil(PART_BYTES).max(1);
        (0..count).map(move |part| wire::HandedPart {
            begin: None,
            bytes: room.slice(part * PART_BYTES..room.len().min((part + 1) * PART_BYTES)),
            room_ends: part + 1 == count,
            ends: false,
        })
    });
    let end = wire::HandedPart { ends: true, ..wire::HandedPart::default() };
    // Small parts share a frame.
    let mut parts = std::iter::once(begin).chain(parts).chain(std::iter::once(end)).peekable();
    std::iter::from_fn(move || {
        parts.peek()?;
        let (mut frame, mut messages) = (Vec::new(), 0);
        while let Some(part) = parts.next_if(|part| {
            messages == 0 || messages < LIST_MAX && frame.len() + part.bytes.len() <= PART_BYTES
        }) {
            put(HANDED, &part, &mut frame);
            messages += 1;
        }
        Some(frame)
    })
}

/// Puts the parts of handoffs together again.
#[derive(Debug)]
pub struct Assembly {
    /// Most bytes of one handoff. Rooms above it are dropped: their next owner opens them in full.
    max_bytes: usize,
    now: Option<Handed>,
    /// Pieces of the room that has not ended. `None`: it is dropped.
    room: Option<Vec<u8>>,
    bytes: usize,
    dropped: u64,
}

impl Assembly {
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, now: None, room: Some(Vec::new()), bytes: 0, dropped: 0 }
    }

    /// Rooms that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn part(&mut self, part: &wire::HandedPart) -> Result<Option<Handed>, Error> {
        /// A handoff without rooms, or one of empty ones, is bounded too.
        const ROOM_OVERHEAD: usize = 64;
        if let Some(begin) = &part.begin {
            if self.now.is_some() {
                return Err(Error::Order { what: "the begin of a handoff" });
            }
            self.bytes = 0;
            self.room = Some(Vec::new());
            self.now = Some(Handed {
                slot: SlotId(number("a slot", begin.slot)?),
                epoch: Epoch(begin.epoch),
                complete: begin.complete,
                rooms: Vec::new(),
            });
        }
        let Some(handed) = &mut self.now else { return Err(Error::Order { what: "a part of a handoff" }) };
        if self.bytes + part.bytes.len() + ROOM_OVERHEAD > self.max_bytes {
            self.bytes -= self.room.take().map_or(0, |room| room.len());
        } else if let Some(room) = &mut self.room {
            room.extend_from_slice(&part.bytes);
            self.bytes += part.bytes.len();
        }
        if part.room_ends {
            match self.room.replace(Vec::new()) {
                Some(room) => {
                    self.bytes += ROOM_OVERHEAD;
                    handed.rooms.push(room.into());
                }
                None => self.dropped += 1,
            }
        }
        Ok(if part.ends { self.now.take() } else { None })
    }
}

/// Reads a frame of [`put_handed`]; gives the handoffs that it ends.
pub fn read_bulk_up(frame: &[u8], assembly: &mut Assembly) -> Result<Vec<Handed>, Error> {
    let mut ended = Vec::new();
    for message in messages(frame) {
        let (HANDED, bytes) = message? else { continue };
        bound_list(bytes)?;
        ended.extend(assembly.part(&wire::HandedPart::decode(bytes)?)?);
    }
    Ok(ended)
}
