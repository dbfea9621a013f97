//! State of a room that changes hands, as bytes: what `shard/core` makes of it is its own.

use bytes::Bytes;
use prost::Message as _;

use super::{Error, Fields};
use crate::node::v1 as wire;

/// An encoded room. Cloning one costs a reference count.
pub type RoomBytes = Bytes;

/// Elements of one list: members of the largest room that is passed on. Others are opened in full.
const ELEMENTS_MAX: usize = 1 << 20;

pub fn encode_room(room: &wire::HandedRoom) -> RoomBytes {
    room.encode_to_vec().into()
}

pub fn decode_room(bytes: &[u8]) -> Result<wire::HandedRoom, Error> {
    let mut elements = 0_usize;
    for field in Fields(bytes) {
        elements += 1;
        if let (8, Some(state)) = field? {
            for field in Fields(state) {
                field?;
                elements += 1;
            }
        }
        if elements > ELEMENTS_MAX {
            return Err(Error::TooLarge { what: "a list of a room that is passed on", max: ELEMENTS_MAX });
        }
    }
    Ok(wire::HandedRoom::decode(bytes)?)
}
