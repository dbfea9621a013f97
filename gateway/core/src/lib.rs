//! The gateway's pure part: the WebSocket codec, request heads, checks of commands, and the state machine of a worker.
//! No sockets, no clock, no tokio: bytes and the time come in, bytes and wishes go out.

pub mod bucket;
pub mod command;
mod connection;
mod dirty;
pub mod forwarded;
pub mod head;
pub mod latency;
mod packed_send;
pub mod proxy;
mod ring;
mod room;
pub mod slab;
mod spare;
mod start;
pub mod timing_wheel;
pub mod worker;
pub mod ws;

pub use worker::Worker;
