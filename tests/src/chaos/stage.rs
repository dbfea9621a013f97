//! The cluster under load, as a nemesis sees it: who is there, whose rooms are whose, how to add and remove nodes.
//!
//! Owns: the running cluster and the clients' orders. Always holds: clients know every gateway that runs or will come back.
//! Does not: break anything by itself ([`super::nemesis`]).

use anyhow::{Context, ensure};
use banyan_router::{SlotCount, slot_of};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

use super::gauges::{Gauges, Subject};
use super::meter::Meter;
use super::nemesis::Lengths;
use super::ownership::Ownership;
use crate::cluster::{Cluster, NodePlan};
use crate::crash::client::{self, ConnectError, Connection};
use crate::crash::load::{Orders, Phase};
use crate::crash::recorder::Recorder;
use crate::random::Random;

/// What a gateway says of a token that another one made when it is not yet so late here.
const OF_THE_FUTURE: &str = "from the future";

#[derive(Debug)]
pub struct Stage {
    pub cluster: Cluster,
    pub ownership: Ownership,
    pub recorder: Recorder,
    pub meter: Arc<Meter>,
    pub gauges: Arc<Gauges>,
    pub lengths: Lengths,
    /// Nodes that joined and have not left.
    pub joined: Vec<String>,
    /// How many ever joined: each gets a name of its own.
    pub(super) joiners: usize,
    pub(super) joiner_roles: &'static str,
    pub(super) slots: SlotCount,
    pub(super) rooms: Vec<String>,
    /// Who has signed up.
    pub(super) user: client::User,
    pub(super) orders: watch::Sender<Orders>,
    pub(super) random: Random,
}

impl Stage {
    pub fn random_below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap_or_default()
    }

    /// Names of the nodes that own rooms.
    pub fn shards(&self) -> impl Iterator<Item = &String> {
        let nodes = self.cluster.nodes.iter();
        nodes.filter(|(_, node)| node.plan.roles.contains("shard")).map(|(name, _)| name)
    }

    pub fn rooms(&self) -> Vec<String> {
        self.rooms.clone()
    }

    /// The owner of each room that has one.
    pub fn room_owners(&self) -> BTreeMap<String, String> {
        let owner = |room: &String| self.ownership.owner(slot_of(room, self.slots));
        self.rooms.iter().filter_map(|room| Some((room.clone(), owner(room)?))).collect()
    }

    pub fn rooms_of(&self, node: &str) -> Vec<String> {
        self.room_owners().into_iter().filter(|(_, owner)| owner == node).map(|(room, _)| room).collect()
    }

    /// A node that owns rooms of ours, by lot.
    pub fn an_owner(&mut self) -> anyhow::Result<String> {
        let mut owners: Vec<String> = self.room_owners().into_values().collect();
        owners.sort();
        owners.dedup();
        owners.retain(|owner| self.cluster.nodes.contains_key(owner));
        ensure!(!owners.is_empty(), "no room has an owner");
        let chosen = self.random_below(owners.len());
        Ok(owners.swap_remove(chosen))
    }

    /// One more node; its name.
    pub async fn add_node(&mut self) -> anyhow::Result<String> {
        self.joiners += 1;
        let name = format!("j{}", self.joiners);
        self.cluster.add(NodePlan::new(name.clone(), self.joiner_roles)).await?;
        self.joined.push(name.clone());
        self.tell_clients();
        self.look();
        Ok(name)
    }

    /// Ends a node for good.
    pub async fn remove_node(&mut self, name: &str) -> anyhow::Result<()> {
        let mut node = self.cluster.nodes.remove(name).with_context(|| format!("there is no node {name}"))?;
        self.tell_clients();
        node.process.stop().await?;
        self.look();
        Ok(())
    }

    /// Why a gateway does not take a token that is good elsewhere, if it does not. `None` also where clients do not come to it.
    pub async fn refuses_tokens(&self, node: &str) -> anyhow::Result<Option<String>> {
        let node = self.cluster.nodes.get(node).with_context(|| format!("there is no node {node}"))?;
        let Some(address) = node.clients() else { return Ok(None) };
        match Connection::open(address, &self.user.token).await {
            Ok(_) => Ok(None),
            Err(ConnectError::Refused(why)) => Ok(Some(why)),
            // It may be good there later (108), so clients take it as they take a gateway that is away.
            Err(ConnectError::Away(why)) if why.to_string().contains(OF_THE_FUTURE) => {
                Ok(Some(format!("a token {OF_THE_FUTURE}")))
            }
            Err(ConnectError::Away(why)) => Err(why.context("a gateway whose clock has jumped is away")),
        }
    }

    fn tell_clients(&self) {
        let gateways: Arc<[_]> = self.cluster.doors().into();
        self.orders.send_modify(|orders| orders.gateways = gateways);
    }

    pub(super) fn order(&self, phase: Phase) {
        self.orders.send_modify(|orders| orders.phase = phase);
    }

    /// After every change of processes: what the gauges look at.
    pub fn look(&mut self) {
        let mut subjects = Vec::new();
        for (name, node) in &self.cluster.nodes {
            let ops = Some(node.ops());
            subjects.push(Subject { name: name.clone(), process: node.process.id(), ops });
        }
        for member in 0..self.cluster.etcd.members() {
            let process = self.cluster.etcd.member(member).id();
            subjects.push(Subject { name: format!("etcd-{member}"), process, ops: None });
        }
        for server in 0..self.cluster.cql.nodes() {
            let process = self.cluster.cql.node(server).id();
            subjects.push(Subject { name: format!("cql-{server}"), process, ops: None });
        }
        subjects.push(Subject { name: "clients".to_owned(), process: Some(std::process::id()), ops: None });
        self.gauges.look_at(subjects);
    }

    /// `banyan ring recover`.
    pub async fn recover(&self) -> anyhow::Result<()> {
        let mut command = self.cluster.banyan(&["ring", "recover", "--yes"]);
        command.args(self.cluster.ring_arguments());
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "banyan ring recover ended with {}: {}", output.status, said.trim());
        Ok(())
    }
}
