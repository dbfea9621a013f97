//! WebSocket (RFC 6455), the server's side, as pure code: bytes in, items out; and the encoding of what we send.
//!
//! Owns: the frame and message rules of the RFC, and the limits that a connection puts on them.
//! Always holds: a [`Decoder`] between messages owns no heap memory; inside one it holds at most the message limit
//! (and never more than the peer declared), growing as bytes arrive; the split of the stream into reads changes nothing in what comes out.
//! Does not: read sockets, answer pings or closes, count floods against a rate (it only counts control frames), negotiate
//! extensions (reserved bits are an error). The handshake is in [`crate::head`].

pub mod client;
pub mod decode;
pub mod encode;
mod mask;

pub use decode::{Decoder, Item};

/// A control frame's payload never exceeds this (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_MAX: usize = 125;

/// What a frame is (RFC 6455 section 5.2). Reserved opcodes have no value here: they are errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

impl Opcode {
    /// The opcode in the low four bits of a frame's first byte.
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits & 0x0f {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Which kind of message a connection takes; the other one ends it with 1003.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// Subprotocol `banyan.v1.json`.
    Text,
    /// Subprotocol `banyan.v1.proto`.
    Binary,
    Both,
}

/// Bounds of one connection's input. They are an argument of every call, not a part of the decoder: so an idle
/// connection does not pay for them, and a worker can give a connection that has not authenticated smaller ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of one message, over all its fragments. Above: 1009, said when the header that declares it is
    /// read, before anything is allocated for it.
    pub message_bytes: u32,
    /// Frames that one message may come in, empty ones counted. Above: 1009.
    pub fragments: u32,
    pub accept: Accept,
}

impl Limits {
    /// PROTOCOL.md, "Transport": 64 KiB and 16 fragments.
    pub const fn protocol_v1(accept: Accept) -> Self {
        Self { message_bytes: 64 * 1024, fragments: 16, accept }
    }
}
