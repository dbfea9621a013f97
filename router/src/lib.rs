//! Where a room lives: rooms and user channels are hashed to slots, slots belong to nodes.
//!
//! Pure: no socket, no clock, no task. Time and the answers of etcd, store and peers are inputs; what must be done comes out.

pub mod slot;
pub mod slot_key;
pub mod slot_owner;

pub mod ring;
pub mod target;

pub mod meta;
pub mod node;
pub mod node_key;

pub mod encoding;
pub mod local;
pub mod recover;

pub use slot::{SlotCount, slot_of, user_slot, worker_of};
