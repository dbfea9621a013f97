//! Where a room lives. For now: rooms and user channels are hashed to slots, slots to the workers of one process.

pub mod slot;

pub use slot::{SlotCount, slot_of, user_slot, worker_of};
