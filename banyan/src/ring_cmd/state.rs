//! What the ring is at one revision, in the terms of operators: nodes with their shares, slots with their owners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use banyan_proto::id::SlotId;
use banyan_router::meta::Meta;
use banyan_router::node_key;
use banyan_router::node_key::NodeEntry;
use banyan_router::slot_key::{NodeId, SlotKey};
use banyan_router::target::Target;
use banyan_router_etcd::coordination::Everything;

use crate::failure::{Exit, Failure};

/// The ring at one revision.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// The cluster's name.
    pub(crate) name: String,
    pub(crate) meta: Meta,
    pub(crate) revision: i64,
    /// Why ownership is frozen.
    pub(crate) frozen: Option<String>,
    /// None until a node that owns slots has joined.
    pub(crate) target: Option<Arc<Target>>,
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

/// A slot; nodes by their places among [`State::nodes`].
#[derive(Debug, Clone)]
pub(crate) struct SlotRow {
    pub(crate) key: Option<SlotKey>,
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

impl State {
    pub(crate) fn new(name: &str, everything: Everything) -> Result<Self, Failure> {
        let Everything { revision, listing, frozen, meta } = everything;
        let Some(meta) = meta else {
            let words = format!("etcd has no cluster {name:?}: no node was ever started in it");
            return Err(Failure::new(Exit::Unavailable, words)
                .with_hint("is --cluster (cluster.name) what the nodes have?"));
        };
        let entries: BTreeMap<NodeId, NodeEntry> = listing.nodes.into_iter().collect();
        let mut keys: BTreeMap<SlotId, SlotKey> = listing.slots.into_iter().collect();
        let target = listing.target;
        let members = target.iter().flat_map(|target| target.members());
        let drained = target.iter().flat_map(|target| target.drained());
        let names: BTreeSet<&NodeId> = (entries.keys())
            .chain(members.map(|member| &member.node))
            .chain(drained)
            .chain(keys.values().map(|key| &key.owner))
            .collect();
        let mut nodes: Vec<NodeRow> = (names.into_iter())
            .map(|node| {
                let entry = entries.get(node).cloned();
                let in_target = target.as_ref().and_then(|target| {
                    target.members().iter().find(|member| member.node == *node).map(|member| member.weight)
                });
                let own = entry.as_ref().filter(|entry| entry.owns_slots()).map(|entry| entry.weight);
                NodeRow {
                    node: node.clone(),
                    drained: target.as_ref().is_some_and(|target| target.drained().contains(node)),
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
        let slots: Vec<SlotRow> = (0..meta.founding.slots.get())
            .map(|slot| {
                let slot = SlotId(slot as u16);
                let key = keys.remove(&slot);
                let lives = |key: &&SlotKey| {
                    entries.get(&key.owner).is_some_and(|entry| entry.incarnation == key.incarnation)
                };
                let owner = key.as_ref().filter(lives).and_then(|key| places.get(&key.owner).copied());
                let wanted = target.as_ref().and_then(|target| target.owner(slot));
                let wanted = wanted.and_then(|node| places.get(node).copied());
                let pinned = target.as_ref().is_some_and(|target| target.pins().contains_key(&slot));
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
        Ok(Self { name: name.to_owned(), meta, revision, frozen, target, nodes, slots })
    }

    pub(crate) fn node(&self, node: &NodeId) -> Option<&NodeRow> {
        self.nodes.iter().find(|row| row.node == *node)
    }

    pub(crate) fn name_of(&self, place: Option<usize>) -> Option<&NodeId> {
        place.and_then(|place| self.nodes.get(place)).map(|row| &row.node)
    }

    /// The target, of a cluster that has one.
    pub(crate) fn placed(&self) -> Result<&Arc<Target>, Failure> {
        self.target.as_ref().ok_or_else(|| {
            Failure::new(Exit::No, "nothing is placed yet: no node that owns rooms has joined this cluster")
                .with_hint("start one: banyan serve --roles gateway,shard …")
        })
    }
}
