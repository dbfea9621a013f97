//! What etcd holds of one slot's ownership, and the row that its owner leaves in the store.
//!
//! Always holds: a [`SlotKey`] is only ever replaced by compare-and-swap on exactly the value that was read, its epoch
//! raised; so epochs of a slot never fall and each belongs to one incarnation, unless etcd itself is set back: then the
//! rows ([`OwnerRow`]) tell, because the store was not.

use std::fmt;
use std::sync::Arc;

use banyan_proto::id::{Epoch, Incarnation, Tenure};

/// Longest id of a node, in bytes.
pub const NODE_ID_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a node id has 1 to {NODE_ID_MAX} bytes of A-Z a-z 0-9 . _ -, not {0:?}")]
    NodeId(String),
}

/// The name of a node over all its runs: 1–64 bytes of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

impl NodeId {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > NODE_ID_MAX || !text.bytes().all(allowed) {
            return Err(Error::NodeId(text.chars().take(NODE_ID_MAX).collect()));
        }
        Ok(Self(Arc::from(text)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run of one node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    pub node: NodeId,
    pub incarnation: Incarnation,
}

/// `slots/{n}`: who owns a slot, since which change of owner, and whom it replaced. Not on a lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlotKey {
    pub owner: NodeId,
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    /// The ownership that this one replaced; `None`: the slot's first, or set by `ring recover`.
    pub prev: Option<Tenure>,
}

impl SlotKey {
    pub fn tenure(&self) -> Tenure {
        Tenure { epoch: self.epoch, incarnation: self.incarnation }
    }

    pub fn names(&self, peer: &Peer) -> bool {
        self.incarnation == peer.incarnation
    }
}

/// `slot_owners ((slot), epoch, incarnation) {closed}`: written by every owner before it says anything (rule 2b).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerRow {
    pub tenure: Tenure,
    /// Drained, or replaced by an owner that has registered.
    pub closed: bool,
}

/// Bits of an epoch that count changes of owner; those above count how often etcd was recovered.
const COUNTER_BITS: u32 = 32;

/// How often etcd had been recovered when this epoch was made.
pub const fn generation(epoch: Epoch) -> u32 {
    (epoch.0 >> COUNTER_BITS) as u32
}

/// The first epoch of a generation. Above every epoch of the generations before.
pub const fn first_of_generation(generation: u32) -> Epoch {
    Epoch(((generation as u64) << COUNTER_BITS) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_is_a_short_plain_word() {
        for good in ["a", "node-1", "eu.west_1-b", &"n".repeat(NODE_ID_MAX)] {
            assert_eq!(NodeId::parse(good).map(|id| id.as_str().to_owned()), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "a/b", "ä", "~a", &"n".repeat(NODE_ID_MAX + 1)] {
            assert!(NodeId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_new_generation_is_above_all_of_the_old_one() {
        let old = Epoch((7 << 32) | u64::from(u32::MAX));
        assert_eq!(generation(old), 7);
        assert!(first_of_generation(8) > old);
        assert_eq!(generation(first_of_generation(8)), 8);
        assert_eq!(first_of_generation(0), Epoch(1));
    }
}
