//! Who has which slots at one time, in the terms of operators: nodes with their shares, slots with their owners.
//!
//! Does not: know where that was read; the commands read it from etcd, the admin page from the node's own watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use banyan_proto::id::SlotId;
use banyan_router::SlotCount;
use banyan_router::node_key::{self, NodeEntry};
use banyan_router::slot_key::{NodeId, SlotKey};
use banyan_router::target::Target;

/// All nodes and all slots.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    /// By name: whoever is there, has slots, should have some, or is drained.
    pub(crate) nodes: Vec<NodeRow>,
    /// Of every slot.
    pub(crate) slots: Vec<SlotRow>,
}

#[derive(Debug, Clone)]
pub(crate) struct NodeRow {
    pub(crate) node: NodeId,
    /// None: no run of it lives.
    pub(crate) entry: Option<NodeEntry>,
    /// Drained by an operator.
    pub(crate) drained: bool,
    /// None: it is nobody who could have slots.
    pub(crate) weight: Option<u32>,
    pub(crate) wanted: usize,
    pub(crate) owned: usize,
    /// On their way to it.
    pub(crate) coming: usize,
    /// On their way to others.
    pub(crate) going: usize,
}

impl NodeRow {
    pub(crate) fn state(&self) -> &'static str {
        match &self.entry {
            None if self.drained => "away, drained",
            None => "away",
            Some(entry) if entry.state == node_key::State::Draining => "stopping",
            Some(_) if self.drained && self.owned > 0 => "draining",
            Some(_) if self.drained => "drained",
            Some(_) => "up",
        }
    }

    /// Slots can be handed to it.
    pub(crate) fn takes_slots(&self) -> bool {
        self.entry.as_ref().is_some_and(NodeEntry::takes_slots)
    }
}

/// A slot; nodes by their places among [`Shares::nodes`].
#[derive(Debug, Clone)]
pub(crate) struct SlotRow {
    pub(crate) key: Option<Arc<SlotKey>>,
    /// Of the key, if that very run lives.
    pub(crate) owner: Option<usize>,
    pub(crate) wanted: Option<usize>,
    pub(crate) pinned: bool,
}

impl SlotRow {
    /// It has an owner who is not whom the target wants.
    pub(crate) fn is_moving(&self) -> bool {
        self.owner.is_some() && self.wanted.is_some() && self.owner != self.wanted
    }
}

impl Shares {
    pub(crate) fn new(
        count: SlotCount,
        entries: &BTreeMap<NodeId, NodeEntry>,
        target: Option<&Target>,
        mut key_of: impl FnMut(SlotId) -> Option<Arc<SlotKey>>,
    ) -> Self {
        let keys: Vec<_> = (0..count.get()).map(|slot| key_of(SlotId(slot as u16))).collect();
        let members = target.iter().flat_map(|target| target.members());
        let drained = target.iter().flat_map(|target| target.drained());
        let names: BTreeSet<&NodeId> = (entries.keys())
            .chain(members.map(|member| &member.node))
            .chain(drained)
            .chain(keys.iter().flatten().map(|key| &key.owner))
            .collect();
        let mut nodes: Vec<NodeRow> = (names.into_iter())
            .map(|node| {
                let entry = entries.get(node).cloned();
                let in_target = target.and_then(|target| {
                    target.members().iter().find(|member| member.node == *node).map(|member| member.weight)
                });
                let own = entry.as_ref().filter(|entry| entry.owns_slots()).map(|entry| entry.weight);
                NodeRow {
                    node: node.clone(),
                    drained: target.is_some_and(|target| target.drained().contains(node)),
                    weight: own.or(in_target),
                    entry,
                    wanted: 0,
                    owned: 0,
                    coming: 0,
                    going: 0,
                }
            })
            .collect();
        let places: BTreeMap<NodeId, usize> =
            nodes.iter().enumerate().map(|(place, row)| (row.node.clone(), place)).collect();
        let slots: Vec<SlotRow> = (0..=u16::MAX)
            .map(SlotId)
            .zip(keys)
            .map(|(slot, key)| {
                let lives = |key: &&Arc<SlotKey>| {
                    entries.get(&key.owner).is_some_and(|entry| entry.incarnation == key.incarnation)
                };
                let owner = key.as_ref().filter(lives).and_then(|key| places.get(&key.owner).copied());
                let wanted = target.and_then(|target| target.owner(slot));
                let wanted = wanted.and_then(|node| places.get(node).copied());
                let pinned = target.is_some_and(|target| target.pins().contains_key(&slot));
                SlotRow { key, owner, wanted, pinned }
            })
            .collect();
        for slot in &slots {
            if let Some(wanted) = slot.wanted {
                nodes[wanted].wanted += 1;
            }
            if let Some(owner) = slot.owner {
                nodes[owner].owned += 1;
            }
            if let (true, Some(owner), Some(wanted)) = (slot.is_moving(), slot.owner, slot.wanted) {
                nodes[owner].going += 1;
                nodes[wanted].coming += 1;
            }
        }
        Self { nodes, slots }
    }
}
