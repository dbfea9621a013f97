//! Rooms and user channels hash to slots; slots are dealt to workers.
//!
//! Always holds: the slot of a room depends on its id and the slot count alone, on every node and in every release
//! (golden tests): rooms never move between slots.

use banyan_proto::id::{RESERVED_PREFIX, SlotId, USER_ID_MAX};
use xxhash_rust::xxh3::xxh3_64;

/// Slots of a cluster unless it was founded with another number: enough to share evenly among hundreds of nodes.
pub const DEFAULT_SLOTS: u32 = 4_096;
/// What a [`SlotId`] can name.
pub const SLOTS_MAX: u32 = 1 << 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the slot count must be a power of two from 1 to {SLOTS_MAX}, not {0}")]
    NotAPowerOfTwo(u32),
}

/// How many slots the cluster has: a power of two, chosen once for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotCount(u32);

impl SlotCount {
    pub const DEFAULT: Self = Self(DEFAULT_SLOTS);
    /// The slot among fewer is the low bits of the slot among so many.
    pub const MAX: Self = Self(SLOTS_MAX);

    pub const fn new(count: u32) -> Result<Self, Error> {
        if count.is_power_of_two() && count <= SLOTS_MAX {
            Ok(Self(count))
        } else {
            Err(Error::NotAPowerOfTwo(count))
        }
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    fn slot(self, bytes: &[u8]) -> SlotId {
        let slot = xxh3_64(bytes) & u64::from(self.0 - 1);
        // Below SLOTS_MAX by the mask.
        SlotId(slot as u16)
    }
}

impl Default for SlotCount {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The slot that a room lives in.
pub fn slot_of(room: &str, slots: SlotCount) -> SlotId {
    slots.slot(room.as_bytes())
}

/// The slot that a user's channel lives in: that of `~` + user, which no room can have as its id.
pub fn user_slot(user: &str, slots: SlotCount) -> SlotId {
    let mut name = [0_u8; RESERVED_PREFIX.len() + USER_ID_MAX];
    let length = RESERVED_PREFIX.len() + user.len();
    match name.get_mut(..length) {
        Some(name) => {
            name[..RESERVED_PREFIX.len()].copy_from_slice(RESERVED_PREFIX.as_bytes());
            name[RESERVED_PREFIX.len()..].copy_from_slice(user.as_bytes());
            slots.slot(name)
        }
        // Longer than any user id: the same answer, with an allocation.
        None => slots.slot([RESERVED_PREFIX, user].concat().as_bytes()),
    }
}

/// The worker of this process that serves a slot. Zero workers count as one.
pub fn worker_of(slot: SlotId, workers: usize) -> usize {
    usize::from(slot.0) % workers.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_never_change() {
        for (room, slot) in GOLDEN {
            assert_eq!(slot_of(room, SlotCount::DEFAULT), SlotId(slot), "{room}");
        }
        assert_eq!(user_slot("alice", SlotCount::DEFAULT), slot_of("~alice", SlotCount::DEFAULT));
        assert_eq!(
            user_slot(&"u".repeat(200), SlotCount::DEFAULT),
            slot_of(&format!("~{}", "u".repeat(200)), SlotCount::DEFAULT)
        );
    }

    #[test]
    fn a_count_is_a_power_of_two() {
        for good in [1, 2, 64, 4_096, 65_536] {
            assert_eq!(SlotCount::new(good).map(SlotCount::get), Ok(good));
        }
        for bad in [0, 3, 4_095, 1 << 17] {
            assert_eq!(SlotCount::new(bad), Err(Error::NotAPowerOfTwo(bad)));
        }
    }

    #[test]
    fn every_slot_has_a_worker_and_the_load_is_even() {
        let mut of = [0_u32; 4];
        for room in 0..10_000 {
            of[worker_of(slot_of(&format!("room-{room}"), SlotCount::DEFAULT), 4)] += 1;
        }
        assert!(of.iter().all(|rooms| (2_300..2_700).contains(rooms)), "{of:?}");
        assert_eq!(worker_of(SlotId(7), 0), 0);
    }

    const GOLDEN: [(&str, u16); 5] = [
        ("general", 787),
        ("a", 3615),
        ("~alice", 558),
        ("0192f0c1-2b3a-7c4d-8e5f-001122334455", 3841),
        ("dm.abcdefghijklmnopqrstuvwxyz", 2201),
    ];
}
