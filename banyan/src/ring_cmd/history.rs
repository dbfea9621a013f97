//! `banyan ring history`: who owned a slot when, as far back as etcd remembers, and what the store knows.

use std::collections::BTreeMap;

use banyan_proto::id::{Incarnation, SlotId, Tenure};
use banyan_router::encoding::Key;
use banyan_router::slot_key::{NodeId, OwnerRow, Peer, generation};
use banyan_router_etcd::coordination::{Coordination, Past, PastValue};
use banyan_router_etcd::surroundings::Records;
use serde::Serialize;

use super::recover::open_store;
use super::{Opened, slots_named, told};
use crate::cli::RingHistory;
use crate::failure::{Exit, Failure};
use crate::table::{Column, table};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct History {
    slot: u16,
    /// Newest first.
    etcd: Vec<InEtcd>,
    /// Newest first. `None`: the store was not asked.
    store: Option<Vec<InStore>>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct InEtcd {
    revision: i64,
    epoch: u64,
    /// How often etcd had been recovered.
    generation: u32,
    owner: String,
    incarnation: String,
    /// Which epoch it replaced.
    replaced: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct InStore {
    epoch: u64,
    generation: u32,
    /// `None`: its run is not registered in this store.
    owner: Option<String>,
    incarnation: String,
    /// Drained, or replaced by one that has registered.
    closed: bool,
}

pub(super) async fn run(asked: &RingHistory) -> Result<(), Failure> {
    let ring = Opened::new(&asked.reach, asked.scylla.as_ref()).await?;
    let state = ring.state().await?;
    let slots = slots_named(&[asked.slot..=asked.slot], state.meta.founding.slots.get())?;
    let records = match ring.config.scylla.nodes.is_empty() {
        true => None,
        false => Some(open_store(&ring.config).await?),
    };
    let history = read(&*ring.etcd, records.as_deref(), slots[0], asked.limit as usize).await?;
    super::print(&history, asked.json, text)
}

pub(super) async fn read(
    etcd: &dyn Coordination,
    records: Option<&dyn Records>,
    slot: SlotId,
    limit: usize,
) -> Result<History, Failure> {
    let past = etcd.history(Key::Slot(slot), limit).await.map_err(|error| told(&error))?;
    let in_etcd = past.into_iter().filter_map(|Past { revision, value }| match value {
        PastValue::Slot(key) => Some(InEtcd {
            revision,
            epoch: key.epoch.0,
            generation: generation(key.epoch),
            owner: key.owner.to_string(),
            incarnation: key.incarnation.to_string(),
            replaced: key.prev.map(|prev| prev.epoch.0),
        }),
        PastValue::Target(_) | PastValue::Text(_) => None,
    });
    let in_etcd = in_etcd.collect();
    let store = match records {
        Some(records) => Some(in_store(records, slot, limit).await?),
        None => None,
    };
    Ok(History { slot: slot.0, etcd: in_etcd, store })
}

async fn in_store(records: &dyn Records, slot: SlotId, limit: usize) -> Result<Vec<InStore>, Failure> {
    let failed = |_| {
        Failure::new(Exit::Unavailable, "the store does not answer")
            .with_hint("`banyan schema check` looks at it")
    };
    let mut rows = records.read_owners(slot).await.map_err(failed)?;
    rows.sort_unstable_by(|a, b| b.cmp(a));
    rows.truncate(limit);
    let runs = match rows.is_empty() {
        true => Vec::new(),
        false => records.read_incarnations().await.map_err(failed)?,
    };
    let names: BTreeMap<Incarnation, NodeId> =
        runs.into_iter().map(|Peer { node, incarnation }| (incarnation, node)).collect();
    let row = |OwnerRow { tenure: Tenure { epoch, incarnation }, closed }| InStore {
        epoch: epoch.0,
        generation: generation(epoch),
        owner: names.get(&incarnation).map(NodeId::to_string),
        incarnation: incarnation.to_string(),
        closed,
    };
    Ok(rows.into_iter().map(row).collect())
}

fn text(history: &History) -> String {
    let none = || "-".to_owned();
    let columns = [
        Column::Right("REVISION"),
        Column::Right("EPOCH"),
        Column::Right("GENERATION"),
        Column::Left("OWNER"),
        Column::Left("INCARNATION"),
        Column::Right("REPLACED"),
    ];
    let rows: Vec<_> = (history.etcd.iter())
        .map(|past| {
            [
                past.revision.to_string(),
                past.epoch.to_string(),
                past.generation.to_string(),
                past.owner.clone(),
                past.incarnation.clone(),
                past.replaced.map_or_else(none, |epoch| epoch.to_string()),
            ]
        })
        .collect();
    let mut text = format!("slot {}, in etcd (older entries may be compacted away)\n\n", history.slot);
    text.push_str(&table(columns, &rows));
    let Some(store) = &history.store else {
        text.push_str("\nthe store was not asked: name it with --scylla HOST:PORT,…\n");
        return text;
    };
    let columns = [
        Column::Right("EPOCH"),
        Column::Right("GENERATION"),
        Column::Left("OWNER"),
        Column::Left("INCARNATION"),
        Column::Left("CLOSED"),
    ];
    let rows: Vec<_> = (store.iter())
        .map(|row| {
            [
                row.epoch.to_string(),
                row.generation.to_string(),
                row.owner.clone().unwrap_or_else(none),
                row.incarnation.clone(),
                if row.closed { "yes" } else { "no" }.to_owned(),
            ]
        })
        .collect();
    text.push_str("\nin the store\n\n");
    text.push_str(&table(columns, &rows));
    text
}

#[cfg(test)]
pub(super) fn shown(history: &History) -> String {
    text(history)
}
