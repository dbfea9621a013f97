//! What a node shows of itself while it lives: `nodes/{id}`, on its lease.

use banyan_proto::id::Incarnation;

use crate::slot_key::{NodeId, Peer};

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Gateway,
    Shard,
    Worker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Up,
    /// It gives its slots away and takes none.
    Draining,
}

/// The value of `nodes/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeEntry {
    pub incarnation: Incarnation,
    /// Where other nodes reach it, `host:port`.
    pub peer_address: String,
    /// Ascending.
    pub roles: Vec<Role>,
    /// Its share of the slots, relative to others.
    pub weight: u32,
    pub state: State,
    /// The release that it runs, for people.
    pub release: String,
}

impl NodeEntry {
    pub fn owns_slots(&self) -> bool {
        self.roles.contains(&Role::Shard)
    }

    /// Slots may be given to it.
    pub fn takes_slots(&self) -> bool {
        self.owns_slots() && self.state == State::Up && self.weight > 0
    }

    pub fn peer(&self, node: &NodeId) -> Peer {
        Peer { node: node.clone(), incarnation: self.incarnation }
    }
}
