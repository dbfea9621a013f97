//! What the ring is at one revision, in the terms of operators: nodes with their shares, slots with their owners.

use std::collections::BTreeMap;
use std::sync::Arc;

use banyan_proto::id::SlotId;
use banyan_router::meta::Meta;
use banyan_router::node_key::NodeEntry;
use banyan_router::slot_key::{NodeId, SlotKey};
use banyan_router::target::Target;
use banyan_router_etcd::coordination::Everything;

use crate::failure::{Exit, Failure};
use crate::shares::{NodeRow, Shares, SlotRow};

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
        let key_of = |slot| keys.remove(&slot).map(Arc::new);
        let Shares { nodes, slots } = Shares::new(meta.founding.slots, &entries, target.as_deref(), key_of);
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
