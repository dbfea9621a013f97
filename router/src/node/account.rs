//! What a run knows of one slot and what it waits for, in words: for whoever asks why a slot is not served.
//!
//! Always holds: it is read off the run's state, by the very function that decides (`slots.rs`), and changes nothing.
//! Does not: decide.

use std::fmt;

use banyan_proto::id::SlotId;

use super::slots::Wish;
use super::{Node, Standing};
use crate::slot_key::{NodeId, SlotKey};

/// One slot as one run sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub slot: SlotId,
    /// Of the run.
    pub standing: Standing,
    /// The slot's key, as the run knows it.
    pub known: Option<SlotKey>,
    /// The version of the target that the run follows, and who should own the slot by it.
    pub target: u64,
    pub wanted: Option<NodeId>,
    pub doing: &'static str,
    pub waits: Waits,
}

/// What must happen before the run does something about the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waits {
    /// All is as it should be.
    Nothing,
    /// The run must come up, or a new one must follow it.
    Run,
    /// Etcd must be there again.
    Etcd,
    /// `ring recover`.
    Recovery,
    /// The target must name an owner.
    Placement,
    /// The slot's owner is alive: it must go, or hand the slot over.
    Owner,
    /// The run drains, or owns no slots at all: others must take it.
    Others,
    /// The target must name this node: until then it has no place in the order of those who claim.
    Place,
    /// What it has asked etcd, the store or its worker must be answered.
    Answer,
    /// This time of its own clock, in milliseconds: others come first.
    Until(u64),
    /// The node to which the slot goes must say that it is ready.
    Ready(NodeId),
    /// Other slots, which change first.
    Turn,
}

impl Node {
    /// Why a slot is (not) served here. `None`: there is no such slot.
    pub fn account(&self, now_ms: u64, slot: SlotId) -> Option<Account> {
        let machine = self.slot(slot)?;
        let standing = self.standing();
        let waits = match standing {
            Standing::Starting | Standing::Left | Standing::Dead => Waits::Run,
            Standing::Degraded => Waits::Etcd,
            Standing::Frozen => Waits::Recovery,
            Standing::Draining if !self.etcd => Waits::Etcd,
            Standing::Draining if self.frozen => Waits::Recovery,
            Standing::Up | Standing::Draining => match self.wish(now_ms, slot, &mut None) {
                Wish::Nothing(waits) => waits,
                Wish::Later(at) => Waits::Until(at),
                Wish::HandOff(to) if self.free_to_give() > 0 => Waits::Ready(to.node),
                Wish::HandOff(_) | Wish::Change(_) | Wish::Adjust(_) => Waits::Turn,
            },
        };
        let target = self.target();
        Some(Account {
            slot,
            standing,
            known: machine.known().cloned(),
            target: target.map_or(0, |target| target.version()),
            wanted: target.and_then(|target| target.owner(slot)).cloned(),
            doing: machine.doing(),
            waits,
        })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}: ", self.slot)?;
        match &self.known {
            Some(key) => write!(f, "{} owns it at epoch {} (run {})", key.owner, key.epoch, key.incarnation)?,
            None => f.write_str("no owner known")?,
        }
        match &self.wanted {
            Some(wanted) => write!(f, ", {wanted} should by target {}", self.target)?,
            None => write!(f, ", nobody should by target {}", self.target)?,
        }
        write!(f, "; {:?}, {}; ", self.standing, self.doing)?;
        match &self.waits {
            Waits::Nothing => f.write_str("waits for nothing"),
            Waits::Run => f.write_str("waits for the run to come up"),
            Waits::Etcd => f.write_str("waits for etcd"),
            Waits::Recovery => f.write_str("waits for `ring recover`"),
            Waits::Placement => f.write_str("waits for a target that gives it to somebody"),
            Waits::Owner => f.write_str("its owner is alive"),
            Waits::Others => f.write_str("waits for others to take it"),
            Waits::Place => f.write_str("waits for a target that names this node"),
            Waits::Answer => f.write_str("waits for an answer"),
            Waits::Until(at) => write!(f, "waits until {at} ms"),
            Waits::Ready(node) => write!(f, "waits for {node} to be ready"),
            Waits::Turn => f.write_str("it is next"),
        }
    }
}
