//! Who owns which slot, as etcd tells anybody who watches.
//!
//! Owns: the table of the moment, and when each change of it was first seen.
//! Always holds: seen is not owned. A key counts for the history once its owner has registered in the store
//! ([`history`]): a restored etcd may name an epoch twice, and one of the two never serves.
//! Does not: change anything in etcd.

use banyan_checker::{self as checker, How, Incarnation, SlotChange, Time};
use banyan_proto::id::{self, Epoch, SlotId};
use banyan_router::node::{Listing, Watched};
use banyan_router::slot_key::SlotKey;
use banyan_router::target::Target;
use banyan_router_etcd::coordination::{Coordination as _, Event};
use banyan_router_etcd::{Etcd, servers};
use banyan_storage::log_store::SlotOwner;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinHandle;

use crate::crash::recorder::Recorder;

/// Changes that wait for us; above that they wait in etcd.
const BUFFER: usize = 4_096;

/// One change of a slot, named by what may not come twice.
type Named = (u16, u64, u128);

/// Shared by the watching task and all who look.
#[derive(Debug, Clone, Default)]
pub struct Ownership(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    slots: BTreeMap<u16, SlotKey>,
    /// The run of each node that shows itself.
    nodes: BTreeMap<String, u128>,
    seen: BTreeMap<Named, (Time, How)>,
    /// Who should own which slot.
    target: Option<Arc<Target>>,
    frozen: bool,
    fresh: bool,
}

/// The watch; it ends with this value.
#[derive(Debug)]
pub struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Ownership {
    /// Watches the cluster of that name.
    pub async fn watch(
        endpoints: Vec<String>,
        cluster: &str,
        recorder: Recorder,
    ) -> anyhow::Result<(Self, Watch)> {
        let etcd = Etcd::connect(servers::Options::new(endpoints, cluster)).await?;
        let (ownership, mut events) = (Self::default(), etcd.watch(BUFFER));
        let theirs = ownership.clone();
        let task = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let at = recorder.now();
                theirs.lock().take(at, event);
            }
        });
        Ok((ownership, Watch(task)))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node that owns a slot, as far as is known.
    pub fn owner(&self, slot: SlotId) -> Option<String> {
        self.lock().slots.get(&slot.0).map(|key| key.owner.to_string())
    }

    /// The owner of each slot that has one.
    pub fn owners(&self) -> BTreeMap<u16, String> {
        self.lock().slots.iter().map(|(slot, key)| (*slot, key.owner.to_string())).collect()
    }

    /// How many slots each node owns.
    pub fn counts(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for key in self.lock().slots.values() {
            *counts.entry(key.owner.to_string()).or_default() += 1;
        }
        counts
    }

    /// Whether every slot is owned by a run that shows itself, the one that should own it.
    pub fn is_whole(&self, slots: u32) -> bool {
        let table = self.lock();
        let Some(target) = &table.target else { return false };
        let lives = |(slot, key): (&u16, &SlotKey)| {
            table.nodes.get(key.owner.as_str()) == Some(&key.incarnation.0)
                && target.owner(SlotId(*slot)) == Some(&key.owner)
        };
        table.fresh
            && !table.frozen
            && table.slots.len() == usize::try_from(slots).unwrap_or(usize::MAX)
            && table.slots.iter().all(lives)
    }

    pub fn is_frozen(&self) -> bool {
        self.lock().frozen
    }

    /// Names of the nodes that show themselves.
    pub fn nodes(&self) -> Vec<String> {
        self.lock().nodes.keys().cloned().collect()
    }

    /// Changes seen so far, without first owners.
    pub fn changes(&self) -> usize {
        self.lock().seen.values().filter(|(_, how)| *how != How::Claim).count()
    }

    /// What was seen of each change.
    pub fn seen(&self) -> BTreeMap<(u16, u64, u128), (Time, How)> {
        self.lock().seen.clone()
    }
}

impl Table {
    fn take(&mut self, at: Time, event: Event) {
        match event {
            Event::Listed(listing) => {
                let Listing { slots, nodes, target, frozen } = *listing;
                for (slot, key) in slots {
                    self.slot(at, slot, Some(key));
                }
                self.nodes =
                    nodes.into_iter().map(|(node, entry)| (node.to_string(), entry.incarnation.0)).collect();
                (self.target, self.frozen, self.fresh) = (target, frozen, true);
            }
            Event::Watched(Watched::Slot { slot, key }) => self.slot(at, slot, key),
            Event::Watched(Watched::Node { node, entry }) => {
                match entry {
                    Some(entry) => self.nodes.insert(node.to_string(), entry.incarnation.0),
                    None => self.nodes.remove(node.as_str()),
                };
            }
            Event::Watched(Watched::Frozen(frozen)) => self.frozen = frozen,
            Event::Watched(Watched::Target(target)) => self.target = target,
            Event::Gone => self.fresh = false,
        }
    }

    fn slot(&mut self, at: Time, slot: SlotId, key: Option<SlotKey>) {
        let Some(key) = key else {
            self.slots.remove(&slot.0);
            return;
        };
        let how = match self.slots.get(&slot.0) {
            None => How::Claim,
            // The upper half is the generation, which only `ring recover` raises.
            Some(before) if before.epoch.0 >> 32 != key.epoch.0 >> 32 => How::Recover,
            Some(before) if before.incarnation == key.incarnation => How::Again,
            Some(before) if self.nodes.values().any(|alive| *alive == before.incarnation.0) => How::Handoff,
            Some(_) => How::Takeover,
        };
        self.seen.entry((slot.0, key.epoch.0, key.incarnation.0)).or_insert((at, how));
        self.slots.insert(slot.0, key);
    }
}

/// The slots' history: the owners that the store knows, with the times of the watch.
///
/// Of two runs registered for one epoch of a slot at most one has served (rule 2b): the one that wrote. If both wrote, both
/// are told, and the check finds it; if neither did, neither has owned anything. Below the rows that the store has kept the
/// watch alone is believed.
pub(super) fn history(
    registered: &[(SlotId, Vec<SlotOwner>)],
    seen: &BTreeMap<(u16, u64, u128), (Time, How)>,
    wrote: &BTreeSet<(u16, u64, u128)>,
) -> Vec<SlotChange> {
    let mut all = Vec::new();
    for (slot, rows) in registered {
        let mut of_slot = Vec::new();
        let kept = rows.first().map_or(0, |row| row.epoch.0);
        let deleted = seen.range((slot.0, 0, 0)..(slot.0, kept, 0)).map(|(&(_, epoch, incarnation), _)| {
            SlotOwner { epoch: Epoch(epoch), incarnation: id::Incarnation(incarnation), closed: true }
        });
        let rows: Vec<SlotOwner> = deleted.chain(rows.iter().copied()).collect();
        for row in &rows {
            let named = (slot.0, row.epoch.0, row.incarnation.0);
            let rivals = rows.iter().filter(|other| other.epoch == row.epoch).count();
            if rivals > 1 && !wrote.contains(&named) {
                continue;
            }
            let (at, how) =
                seen.get(&named).copied().map_or((None, How::Takeover), |(at, how)| (Some(at), how));
            of_slot.push((at, *row, how));
        }
        of_slot.sort_by_key(|(_, row, _)| row.epoch);
        // What the watch missed (it had to list again) lies between its neighbours.
        let mut latest = Time(u64::MAX);
        for (at, ..) in of_slot.iter_mut().rev() {
            latest = at.map_or(latest, |at| at.min(latest));
            *at = Some(latest);
        }
        let end = seen.values().map(|(at, _)| *at).max().unwrap_or_default();
        all.extend(of_slot.into_iter().map(|(at, row, how)| SlotChange {
            at: at.unwrap_or(end).min(end),
            served: None,
            slot: checker::Slot(slot.0),
            epoch: checker::Epoch(row.epoch.0),
            owner: Incarnation(row.incarnation.0),
            how,
        }));
    }
    all.sort_by_key(|change| (change.at, change.slot, change.epoch));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(epoch: u64, incarnation: u128) -> SlotOwner {
        SlotOwner { epoch: Epoch(epoch), incarnation: id::Incarnation(incarnation), closed: false }
    }

    #[test]
    fn what_was_missed_lies_before_what_was_seen_next() {
        let rows = [(SlotId(7), vec![owner(1, 10), owner(2, 20), owner(3, 30)])];
        let seen = [((7, 1, 10), (Time(5), How::Claim)), ((7, 3, 30), (Time(9), How::Handoff))];
        let told = history(&rows, &seen.into_iter().collect(), &BTreeSet::new());
        let times: Vec<_> = told.iter().map(|change| (change.epoch.0, change.at.0, change.how)).collect();
        assert_eq!(times, [(1, 5, How::Claim), (2, 9, How::Takeover), (3, 9, How::Handoff)]);
    }

    #[test]
    fn of_rows_that_were_deleted_the_watch_tells() {
        let rows = [(SlotId(7), vec![owner(3, 30)])];
        let seen = [
            ((7, 1, 10), (Time(5), How::Claim)),
            ((7, 2, 20), (Time(6), How::Handoff)),
            ((8, 1, 11), (Time(7), How::Claim)),
        ];
        let told = history(&rows, &seen.into_iter().collect(), &BTreeSet::new());
        let told: Vec<_> = told.iter().map(|change| (change.slot.0, change.owner.0, change.at.0)).collect();
        assert_eq!(told, [(7, 10, 5), (7, 20, 6), (7, 30, 7)]);
    }

    #[test]
    fn of_two_that_registered_for_one_epoch_the_one_that_wrote_owned_it() {
        let rows = [(SlotId(7), vec![owner(1, 10), owner(2, 20), owner(2, 21)])];
        let owners = |wrote: &[Named]| -> Vec<u128> {
            let told = history(&rows, &BTreeMap::new(), &wrote.iter().copied().collect());
            told.iter().map(|change| change.owner.0).collect()
        };
        assert_eq!(owners(&[(7, 2, 21)]), [10, 21]);
        assert_eq!(owners(&[]), [10]);
        assert_eq!(owners(&[(7, 2, 20), (7, 2, 21)]), [10, 20, 21], "the check must see both");
    }
}
