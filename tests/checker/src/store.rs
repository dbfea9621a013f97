//! What the store holds when all is quiet: the second input of the check.

use serde::{Deserialize, Serialize};

use crate::history::{Event, Marks};
use crate::id::{Epoch, Incarnation, Log, Origin, Part, Room, Seq, Slot, User};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    pub rooms: Vec<StoredRoom>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRoom {
    pub room: Room,
    pub slot: Slot,
    pub log: Option<Log>,
    /// The head as an owner says it at the end, where one was asked.
    pub head: Option<Seq>,
    /// Seqs up to here are gone by retention.
    pub floor: Seq,
    /// The rows of the chain, in the order in which they were read.
    pub rows: Vec<Row>,
    /// Rows off the chain: written by who had lost the room, and void.
    pub void: Vec<Row>,
    /// `None`: not read. Else everyone who is or was a member.
    pub members: Option<Vec<MemberRow>>,
}

impl StoredRoom {
    pub const fn new(room: Room, slot: Slot) -> Self {
        Self {
            room,
            slot,
            log: None,
            head: None,
            floor: Seq(0),
            rows: Vec::new(),
            void: Vec::new(),
            members: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub event: Event,
    /// `None`: read through the API, which does not tell.
    pub written: Option<Written>,
}

/// By whom a row was written, and with which others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub epoch: Epoch,
    pub part: Part,
    pub incarnation: Incarnation,
    pub batch_first: Seq,
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    pub user: User,
    /// 0: not a member now.
    pub role: u8,
    pub joined: Seq,
    /// The last seq that it may see, while not a member.
    pub left: Option<Seq>,
    /// Past intervals out of the room, both ends outside.
    pub out: Vec<(Seq, Seq)>,
    /// The seq (or head) of the last change.
    pub changed: Seq,
    pub marks: Marks,
}
