//! What a run knows, for those who only look: gateways' slot tables, readiness, the admin page.
//!
//! Always holds: cheap to copy; parts that have not changed are shared between one view and the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use banyan_proto::id::SlotId;
use banyan_router::node::Standing;
use banyan_router::node_key::NodeEntry;
use banyan_router::slot::SlotCount;
use banyan_router::slot_key::{NodeId, Peer, SlotKey};
use banyan_router::target::Target;

use crate::coordination::LeaseId;

/// Slots that are copied together when one of them changes.
const CHUNK: usize = 64;

#[derive(Debug, Clone)]
pub struct View {
    pub me: Peer,
    pub standing: Standing,
    /// The watch is up to date. If not, all of this is what was known last.
    pub fresh: bool,
    pub frozen: bool,
    pub nodes: Arc<BTreeMap<NodeId, NodeEntry>>,
    pub target: Option<Arc<Target>>,
    /// The newest key of each slot that was seen.
    pub slots: SlotTable,
    /// Slots that this run serves.
    pub serving: usize,
    /// On which this run is shown. For whoever must end it when the process dies.
    pub lease: Option<LeaseId>,
}

impl View {
    /// Where the owner of a slot is reached, and who it is: if it lives.
    pub fn owner(&self, slot: SlotId) -> Option<(&SlotKey, &NodeEntry)> {
        let key = self.slots.get(slot)?;
        let entry = self.nodes.get(&key.owner)?;
        (entry.incarnation == key.incarnation).then_some((key, entry))
    }
}

type Chunk = Vec<Option<Arc<SlotKey>>>;

/// The key of every slot.
#[derive(Debug, Clone)]
pub struct SlotTable {
    slots: SlotCount,
    chunks: Vec<Arc<Chunk>>,
}

impl SlotTable {
    pub(crate) fn new(slots: SlotCount) -> Self {
        let count = slots.get() as usize;
        let chunk = Arc::new(vec![None; CHUNK.min(count)]);
        Self { slots, chunks: vec![chunk; count.div_ceil(CHUNK)] }
    }

    pub fn count(&self) -> SlotCount {
        self.slots
    }

    pub fn get(&self, slot: SlotId) -> Option<&Arc<SlotKey>> {
        let slot = usize::from(slot.0);
        self.chunks.get(slot / CHUNK)?.get(slot % CHUNK)?.as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = (SlotId, Option<&Arc<SlotKey>>)> {
        (0..=u16::MAX).map(SlotId).zip(self.chunks.iter().flat_map(|chunk| chunk.iter().map(Option::as_ref)))
    }

    /// Slots whose keys are not those of an older view, ascending.
    pub fn changed_since<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = SlotId> + 'a {
        let is_other = |slot: &SlotId| match (self.get(*slot), older.get(*slot)) {
            (None, None) => false,
            (Some(key), Some(before)) => !Arc::ptr_eq(key, before) && key != before,
            (Some(_), None) | (None, Some(_)) => true,
        };
        let chunks = self.chunks.iter().enumerate();
        let other =
            chunks.filter(|(at, chunk)| older.chunks.get(*at).is_none_or(|old| !Arc::ptr_eq(chunk, old)));
        other
            .flat_map(|(at, chunk)| (at * CHUNK..at * CHUNK + chunk.len()).map(|slot| SlotId(slot as u16)))
            .filter(is_other)
    }

    /// Whether that was news.
    pub(crate) fn set(&mut self, slot: SlotId, key: Option<&SlotKey>) -> bool {
        let at = usize::from(slot.0);
        if at >= self.slots.get() as usize || self.get(slot).map(|key| &**key) == key {
            return false;
        }
        Arc::make_mut(&mut self.chunks[at / CHUNK])[at % CHUNK] = key.cloned().map(Arc::new);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banyan_proto::id::{Epoch, Incarnation};

    fn key(epoch: u64) -> SlotKey {
        let owner = NodeId::parse("a").unwrap();
        SlotKey { owner, incarnation: Incarnation(1), epoch: Epoch(epoch), prev: None }
    }

    #[test]
    fn only_what_has_changed_is_named() {
        for count in [1, 2, 64, 4_096, 1 << 16] {
            let empty = SlotTable::new(SlotCount::new(count).unwrap());
            assert_eq!(empty.iter().count(), count as usize);
            let last = SlotId((count - 1) as u16);
            let mut table = empty.clone();
            assert!(table.set(last, Some(&key(1))));
            assert!(!table.set(last, Some(&key(1))), "no news");
            assert_eq!(table.get(last).map(|key| key.epoch), Some(Epoch(1)));
            assert!(empty.get(last).is_none(), "the older view is as it was");
            assert_eq!(table.changed_since(&empty).collect::<Vec<_>>(), [last]);
            assert_eq!(table.changed_since(&table.clone()).count(), 0);
            assert!(table.set(last, None));
            assert_eq!(table.changed_since(&empty).count(), 0, "there and back");
        }
        let mut small = SlotTable::new(SlotCount::new(2).unwrap());
        assert!(!small.set(SlotId(2), Some(&key(1))), "a slot of another cluster");
    }
}
