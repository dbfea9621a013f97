//! What happens in a room, as pure state machines: no sockets, no clock, no store. Time and the store's answers come
//! in as inputs; what must be done goes out as actions (DESIGN.md, sections 5 and 6).

pub mod room;
pub mod worker;

pub mod log;

pub mod gate;

pub mod members;
pub mod permission;
pub mod tail;

pub mod config;

pub use config::Config;
pub use room::{Action, Input, Now, Room};
