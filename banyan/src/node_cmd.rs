//! `banyan node`: who is there, and emptying a node: slots, and by itself then its clients.
//!
//! Does not: stop a node (SIGTERM does, and drains it by itself), or send clients away: the node does, when it sees that it
//! is drained.

use banyan_router::node_key::Role;
use banyan_router::slot_key::NodeId;
use serde::Serialize;

use crate::cli::{NodeCommand, NodeDrain};
use crate::failure::Failure;
use crate::output;
use crate::ring_cmd::{Opened, State, apply, block, count_of, drained, print, say_if_frozen, wait_until};
use crate::shares::NodeRow;
use crate::table::{Column, table};

/// Of an incarnation, in tables: enough to tell runs of one node apart.
const INCARNATION_SHOWN: usize = 8;

pub(crate) fn run(asked: &NodeCommand) -> Result<(), Failure> {
    block(async {
        match asked {
            NodeCommand::List { reach, json } => {
                let state = Opened::new(reach, None).await?.state().await?;
                print(&list(&state), *json, |list| text(list))
            }
            NodeCommand::Drain(asked) => drain(asked).await,
            NodeCommand::Undrain { node, reach } => undrain(node, &Opened::new(reach, None).await?).await,
        }
    })
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Listed {
    node: String,
    state: &'static str,
    roles: Vec<&'static str>,
    weight: Option<u32>,
    /// That it owns.
    slots: usize,
    wanted: usize,
    address: Option<String>,
    incarnation: Option<String>,
    release: Option<String>,
}

pub(crate) fn list(state: &State) -> Vec<Listed> {
    let row = |row: &NodeRow| {
        let entry = row.entry.as_ref();
        Listed {
            node: row.node.to_string(),
            state: row.state(),
            roles: entry.map(|entry| entry.roles.iter().map(role).collect()).unwrap_or_default(),
            weight: row.weight,
            slots: row.owned,
            wanted: row.wanted,
            address: entry.map(|entry| entry.peer_address.clone()),
            incarnation: entry.map(|entry| entry.incarnation.to_string()),
            release: entry.map(|entry| entry.release.clone()),
        }
    };
    state.nodes.iter().map(row).collect()
}

fn role(role: &Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::Shard => "shard",
        Role::Worker => "worker",
    }
}

pub(crate) fn text(list: &[Listed]) -> String {
    if list.is_empty() {
        return "no node is there\n".to_owned();
    }
    let columns = [
        Column::Left("NODE"),
        Column::Left("STATE"),
        Column::Left("ROLES"),
        Column::Right("WEIGHT"),
        Column::Right("SLOTS"),
        Column::Left("ADDRESS"),
        Column::Left("INCARNATION"),
        Column::Left("RELEASE"),
    ];
    let some = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let rows: Vec<_> = (list.iter())
        .map(|row| {
            let incarnation = row.incarnation.as_ref();
            [
                row.node.clone(),
                row.state.to_owned(),
                if row.roles.is_empty() { "-".to_owned() } else { row.roles.join(",") },
                row.weight.map_or_else(|| "-".to_owned(), |weight| weight.to_string()),
                row.slots.to_string(),
                some(&row.address),
                some(&incarnation.map(|incarnation| incarnation.chars().take(INCARNATION_SHOWN).collect())),
                some(&row.release),
            ]
        })
        .collect();
    table(columns, &rows)
}

async fn drain(asked: &NodeDrain) -> Result<(), Failure> {
    let ring = Opened::new(&asked.reach, None).await?;
    let cluster = &ring.config.cluster.name;
    let node = &asked.node;
    let done = apply(&*ring.etcd, cluster, |state| drained(state, node, true)).await?;
    let owned = done.state.node(node).map_or(0, |row| row.owned);
    output::print(&match (done.changed, owned) {
        (false, 0) => format!("node {node} is drained already\n"),
        (false, owned) => {
            format!("node {node} is being drained already: it has {}\n", count_of(owned, "slot"))
        }
        (true, 0) => format!("node {node} is drained: it had no slots, and gets none\n"),
        (true, owned) => format!("node {node} gives away {}, and gets none\n", count_of(owned, "slot")),
    })?;
    if asked.no_wait {
        say_if_frozen(&done.state);
    } else {
        let left = |state: &State| state.node(node).map_or(0, |row| row.owned);
        wait_until(&*ring.etcd, cluster, asked.wait, left).await?;
        output::print(&format!("it may be stopped; `banyan node undrain {node}` gives it slots again\n"))?;
    }
    Ok(())
}

async fn undrain(node: &NodeId, ring: &Opened) -> Result<(), Failure> {
    let cluster = &ring.config.cluster.name;
    let done = apply(&*ring.etcd, cluster, |state| drained(state, node, false)).await?;
    output::print(&match (done.changed, done.plan.moved()) {
        (false, _) => format!("node {node} is not drained\n"),
        (true, 0) => format!("node {node} gets slots again, as soon as it is there to take some\n"),
        (true, moved) => format!("node {node} gets slots again: {} on the way\n", count_of(moved, "slot")),
    })?;
    say_if_frozen(&done.state);
    Ok(())
}
