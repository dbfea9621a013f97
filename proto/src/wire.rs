//! What nodes say to each other, as bytes: frames of `banyan/node/v1/node.proto` from the values of the cores, and back.
//!
//! Always holds: reading is total. Whatever the bytes are, what comes back is messages or an [`Error`] with words for
//! people; a list is counted before anything is allocated for it, so a frame costs memory in proportion to its size.
//! What a node one release newer adds is ignored or skipped as node.proto says. Writing is total too: what cannot travel
//! (too large) is told to the caller, never cut.
//! Does not: know sockets, sessions or time.

mod from_shard;
mod handed;
mod node;
mod to_shard;

pub use from_shard::{Bulk, Down, Outgoing, Page, page_bytes, put_from_shard, read_bulk_down, read_down};
pub use handed::{RoomBytes, decode_room, encode_room};
pub use node::{Assembly, Handed, NodeMessage, PART_BYTES, put_handed, put_node, read_bulk_up};
pub use to_shard::{Up, put_to_shard, read_up};

use bytes::Buf as _;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::id::{Incarnation, Invalid, RoomId, UserId};
use crate::node::v1 as wire;
use crate::v1;

/// Version of node.proto. Nodes whose versions differ by more than one do not talk to each other.
pub const VERSION: u32 = 1;
/// Largest frame. A page of 8 MiB (what storage gives at once), or a batch of 4 MiB, with what goes around its events.
pub const FRAME_MAX: usize = 16 << 20;
/// Messages of one frame, and elements of one list in it. The largest list is a page's, of 10,000 events.
pub const LIST_MAX: usize = 16_384;
/// Slots in one message that says which are wanted.
pub const WANTED_MAX: usize = 1_024;
/// Largest message to a shard. A client's frame is far smaller; lists of people have at most a thousand names.
pub const TO_SHARD_MAX: usize = 1 << 20;

/// What is wrong with what came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("{what} is larger than {max}")]
    TooLarge { what: &'static str, max: usize },
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what}: {why}")]
    Id { what: &'static str, why: Invalid },
    #[error("{what} cannot be {value}")]
    Value { what: &'static str, value: i64 },
    #[error("{what} is out of order")]
    Order { what: &'static str },
    /// The sender is newer and says that skipping will not do.
    #[error("a {what} of a newer release came that must not be skipped")]
    Newer { what: &'static str },
}

/// Fields of a message in order: number and, where it is a string, bytes or a message, its bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Option<&'a [u8]>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Option<&'a [u8]>), Error> {
        let (tag, kind) = decode_key(&mut self.0)?;
        if kind != WireType::LengthDelimited {
            skip_field(kind, tag, &mut self.0, DecodeContext::default())?;
            return Ok((tag, None));
        }
        let length = usize::try_from(decode_varint(&mut self.0)?).unwrap_or(usize::MAX);
        let bytes = self.0.get(..length).ok_or(Error::Missing { what: "the end of a field" })?;
        self.0.advance(length);
        Ok((tag, Some(bytes)))
    }
}

/// The messages of a frame, each with the number of its field. Counted; numbers that are not known are left out by callers.
fn messages(frame: &[u8]) -> impl Iterator<Item = Result<(u32, &[u8]), Error>> {
    let mut count = 0;
    Fields(frame).filter_map(move |field| match field {
        Ok((tag, Some(bytes))) => {
            count += 1;
            let max = LIST_MAX;
            Some(if count > max {
                Err(Error::TooLarge { what: "the number of messages in a frame", max })
            } else {
                Ok((tag, bytes))
            })
        }
        Ok((_, None)) => None,
        Err(error) => Some(Err(error)),
    })
}

/// Refuses a message with too many fields: an element of a list takes two bytes on the wire, and hundreds in memory.
fn bound_list(message: &[u8]) -> Result<(), Error> {
    let mut count = 0;
    for field in Fields(message) {
        field?;
        count += 1;
        if count > LIST_MAX {
            return Err(Error::TooLarge { what: "a list", max: LIST_MAX });
        }
    }
    Ok(())
}

/// The lists of a reply or push of the client protocol.
fn bound_server_frame(frame: &[u8]) -> Result<(), Error> {
    for field in Fields(frame) {
        if let (_, Some(body)) = field? {
            bound_list(body)?;
        }
    }
    Ok(())
}

/// Appends a message as one field.
fn put<M: Message>(tag: u32, message: &M, frame: &mut Vec<u8>) {
    prost::encoding::message::encode(tag, message, frame);
}

/// The first frame of a stream: `hello` alone.
pub fn hello_frame(hello: &wire::Hello) -> Vec<u8> {
    let mut frame = Vec::new();
    put(1, hello, &mut frame);
    frame
}

/// Reads [`hello_frame`].
pub fn read_hello(frame: &[u8]) -> Result<wire::Hello, Error> {
    for message in messages(frame) {
        if let (1, bytes) = message? {
            bound_list(bytes)?;
            return Ok(wire::Hello::decode(bytes)?);
        }
    }
    Err(Error::Missing { what: "hello" })
}

fn room(text: &str) -> Result<RoomId, Error> {
    RoomId::parse(text).map_err(|why| Error::Id { what: "room", why })
}

fn user(text: &str) -> Result<UserId, Error> {
    UserId::parse(text).map_err(|why| Error::Id { what: "user", why })
}

fn number<T: TryFrom<u32>>(what: &'static str, value: u32) -> Result<T, Error> {
    T::try_from(value).map_err(|_| Error::Value { what, value: value.into() })
}

fn kind(value: i32) -> Result<v1::RoomKind, Error> {
    v1::RoomKind::try_from(value)
        .map_err(|_| Error::Value { what: "the kind of a room", value: value.into() })
}

fn role(value: i32) -> Result<v1::Role, Error> {
    v1::Role::try_from(value).map_err(|_| Error::Value { what: "a role", value: value.into() })
}

fn server_frame(body: v1::server_frame::Body) -> v1::ServerFrame {
    v1::ServerFrame { id: None, body: Some(body) }
}

/// As it travels.
pub fn incarnation_bytes(incarnation: Incarnation) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&incarnation.0.to_be_bytes())
}

pub fn incarnation(bytes: &[u8]) -> Result<Incarnation, Error> {
    let length = bytes.len();
    let bytes = <[u8; 16]>::try_from(bytes)
        .map_err(|_| Error::Value { what: "the length of an incarnation", value: length as i64 })?;
    Ok(Incarnation(u128::from_be_bytes(bytes)))
}
