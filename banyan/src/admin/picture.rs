//! What the page is told of the ring, whole or what is new since it was told last.
//!
//! Always holds: a node keeps its number, and so its colour, while this process lives; a page that was told version V and then
//! what changed since V has what a page has that is told everything.

use std::collections::BTreeMap;

use banyan_router::node_key::{NodeEntry, Role};
use banyan_router::slot_key::NodeId;
use banyan_router_etcd::View;
use serde::Serialize;

use super::load::Load;
use crate::ring_cmd::{Found, find_one};
use crate::shares::{NodeRow, Shares};

/// Names that are remembered. Above that those that are gone are forgotten, and every page is told everything again.
const NAMES_MAX: usize = 1_024;

/// What there is beside nodes and slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Head {
    /// None: the node is alone.
    pub(super) cluster: Option<String>,
    /// Who tells.
    pub(super) node: String,
    /// How it stands.
    pub(super) standing: &'static str,
    /// It hears what changes.
    pub(super) fresh: bool,
    pub(super) frozen: bool,
    pub(super) target_version: Option<u64>,
}

/// A slot; nodes by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    owner: Option<u32>,
    wanted: Option<u32>,
    pinned: bool,
}

#[derive(Debug)]
pub(super) struct Picture {
    /// Of this process.
    run: String,
    /// Counted up when numbers are given anew.
    generation: u32,
    version: u64,
    numbers: BTreeMap<NodeId, u32>,
    next_number: u32,
    cells: Vec<Cell>,
    /// The version that made each cell what it is.
    changed: Vec<u64>,
    now: Option<(Head, Shares)>,
    view: Option<View>,
}

/// Whether it has a colour: not one that is a gateway only.
fn has_share(row: &NodeRow) -> bool {
    row.entry.is_none() || row.weight.is_some() || row.owned > 0
}

/// What the page is told.
#[derive(Debug, Serialize)]
pub(super) struct Told<'a> {
    version: String,
    #[serde(flatten)]
    head: &'a Head,
    slot_count: usize,
    moving: usize,
    without_owner: usize,
    pinned: usize,
    nodes: Vec<NodeTold<'a>>,
    slots: Slots,
}

#[derive(Debug, Serialize)]
struct NodeTold<'a> {
    number: Option<u32>,
    node: &'a str,
    state: &'static str,
    roles: Vec<&'static str>,
    address: Option<&'a str>,
    release: Option<&'a str>,
    weight: Option<u32>,
    wanted: usize,
    owned: usize,
    coming: usize,
    going: usize,
    load: Option<Load>,
}

/// Numbers of nodes; -1: nobody.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Slots {
    All {
        owner: Vec<i64>,
        wanted: Vec<i64>,
        pinned: Vec<usize>,
    },
    /// Slot, owner, wanted owner, 1 if it is pinned.
    Changed(Vec<(usize, i64, i64, u8)>),
}

impl Picture {
    pub(super) fn new(run: &str) -> Self {
        Self {
            run: run.to_owned(),
            generation: 0,
            version: 0,
            numbers: BTreeMap::new(),
            next_number: 0,
            cells: Vec::new(),
            changed: Vec::new(),
            now: None,
            view: None,
        }
    }

    /// Nothing was ever seen.
    pub(super) fn is_new(&self) -> bool {
        self.now.is_none()
    }

    /// Of which it was made.
    pub(super) fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    pub(super) fn become_that(&mut self, head: Head, shares: Shares, view: Option<View>) {
        self.version += 1;
        self.number(&shares.nodes);
        let number_of = |place: Option<usize>| self.numbers.get(&shares.nodes.get(place?)?.node).copied();
        let cells: Vec<Cell> = (shares.slots.iter())
            .map(|slot| Cell {
                owner: number_of(slot.owner),
                wanted: number_of(slot.wanted),
                pinned: slot.pinned,
            })
            .collect();
        if cells.len() == self.cells.len() {
            let pairs = self.cells.iter().zip(&cells);
            for (changed, (before, now)) in self.changed.iter_mut().zip(pairs) {
                if before != now {
                    *changed = self.version;
                }
            }
        } else {
            self.changed = vec![self.version; cells.len()];
        }
        self.cells = cells;
        self.now = Some((head, shares));
        self.view = view;
    }

    fn number(&mut self, nodes: &[NodeRow]) {
        if self.numbers.len() + nodes.len() > NAMES_MAX.max(nodes.len() * 2) {
            self.generation += 1;
            self.numbers.clear();
            self.next_number = 0;
            self.cells.clear();
        }
        for row in nodes.iter().filter(|row| has_share(row)) {
            let next = &mut self.next_number;
            self.numbers.entry(row.node.clone()).or_insert_with(|| {
                *next += 1;
                *next - 1
            });
        }
    }

    /// The version that a page has, if it can be told what is new.
    fn known(&self, since: &str) -> Option<u64> {
        let rest = since.strip_prefix(&format!("{}-{}-", self.run, self.generation))?;
        rest.parse().ok().filter(|version| *version <= self.version)
    }

    /// Everything, or what is new since a version. `None`: nothing was ever seen. The load is that of the node itself.
    pub(super) fn told(&self, since: Option<&str>, load: Load) -> Option<Told<'_>> {
        let (head, shares) = self.now.as_ref()?;
        let number = |number: Option<u32>| number.map_or(-1, i64::from);
        let slots = match since.and_then(|since| self.known(since)) {
            Some(known) => {
                let new = self.cells.iter().zip(&self.changed).enumerate();
                let new = new.filter(|(_, (_, changed))| **changed > known).map(|(slot, (cell, _))| {
                    (slot, number(cell.owner), number(cell.wanted), u8::from(cell.pinned))
                });
                Slots::Changed(new.collect())
            }
            None => Slots::All {
                owner: self.cells.iter().map(|cell| number(cell.owner)).collect(),
                wanted: self.cells.iter().map(|cell| number(cell.wanted)).collect(),
                pinned: (self.cells.iter().enumerate())
                    .filter(|(_, cell)| cell.pinned)
                    .map(|(slot, _)| slot)
                    .collect(),
            },
        };
        let nodes = shares.nodes.iter().map(|row| {
            let own = row.node.as_str() == head.node;
            NodeTold::new(row, self.numbers.get(&row.node).copied(), own.then_some(load))
        });
        Some(Told {
            version: format!("{}-{}-{}", self.run, self.generation, self.version),
            head,
            slot_count: self.cells.len(),
            moving: shares.slots.iter().filter(|slot| slot.is_moving()).count(),
            without_owner: shares.slots.iter().filter(|slot| slot.owner.is_none()).count(),
            pinned: shares.slots.iter().filter(|slot| slot.pinned).count(),
            nodes: nodes.collect(),
            slots,
        })
    }

    /// Where a room is, or a user's channel; what is wrong with its name.
    pub(super) fn find(&self, room: &str) -> Result<Found, String> {
        let (_, shares) = self.now.as_ref().ok_or_else(|| "nothing is known yet".to_owned())?;
        find_one(&shares.nodes, &shares.slots, room)
    }
}

impl<'a> NodeTold<'a> {
    fn new(row: &'a NodeRow, number: Option<u32>, load: Option<Load>) -> Self {
        let entry = row.entry.as_ref();
        Self {
            number,
            node: row.node.as_str(),
            state: row.state(),
            roles: entry.map(roles).unwrap_or_default(),
            address: entry.map(|entry| entry.peer_address.as_str()),
            release: entry.map(|entry| entry.release.as_str()),
            weight: row.weight,
            wanted: row.wanted,
            owned: row.owned,
            coming: row.coming,
            going: row.going,
            load,
        }
    }
}

fn roles(entry: &NodeEntry) -> Vec<&'static str> {
    let word = |role: &Role| match role {
        Role::Gateway => "gateway",
        Role::Shard => "shard",
        Role::Worker => "worker",
    };
    entry.roles.iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use banyan_proto::id::{Epoch, Incarnation, SlotId};
    use banyan_router::SlotCount;
    use banyan_router::node_key::State;
    use banyan_router::slot_key::SlotKey;
    use serde_json::{Value, json};

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn entry(incarnation: u128) -> NodeEntry {
        NodeEntry {
            incarnation: Incarnation(incarnation),
            peer_address: "10.0.0.1:7000".to_owned(),
            roles: vec![Role::Shard],
            weight: 100,
            state: State::Up,
            release: "0.1.0".to_owned(),
        }
    }

    fn head() -> Head {
        Head {
            cluster: Some("x".to_owned()),
            node: "b".to_owned(),
            standing: "up",
            fresh: true,
            frozen: false,
            target_version: None,
        }
    }

    /// A ring of `owners.len()` slots; each owner is a node that lives, but `-`.
    fn shares(owners: &str) -> Shares {
        let owners: Vec<String> = owners.chars().map(|owner| owner.to_string()).collect();
        let lives = owners.iter().filter(|owner| *owner != "-");
        let entries = lives.map(|owner| (id(owner), entry(1))).collect();
        Shares::new(SlotCount::new(owners.len() as u32).unwrap(), &entries, None, |SlotId(slot)| {
            let owner = &owners[usize::from(slot)];
            let key =
                || SlotKey { owner: id(owner), incarnation: Incarnation(1), epoch: Epoch(1), prev: None };
            (owner != "-").then(|| Arc::new(key()))
        })
    }

    fn told(picture: &Picture, since: Option<&str>) -> Value {
        serde_json::to_value(picture.told(since, Load::default()).unwrap()).unwrap()
    }

    #[test]
    fn what_is_new_is_told_to_who_knows_the_rest() {
        let mut picture = Picture::new("r");
        assert!(picture.told(None, Load::default()).is_none());
        picture.become_that(head(), shares("bbbc"), None);
        let first = told(&picture, None);
        assert_eq!(
            first["slots"],
            json!({"all": {"owner": [0, 0, 0, 1], "wanted": [-1, -1, -1, -1], "pinned": []}})
        );
        assert_eq!((&first["version"], &first["cluster"]), (&json!("r-0-1"), &json!("x")));
        let b = json!({
            "number": 0, "node": "b", "state": "up", "roles": ["shard"], "address": "10.0.0.1:7000",
            "release": "0.1.0", "weight": 100, "wanted": 0, "owned": 3, "coming": 0, "going": 0,
            "load": {"connections": 0, "rooms": 0, "sends_per_s": null, "cpu": null, "memory_bytes": 0},
        });
        assert_eq!(first["nodes"][0], b);
        assert_eq!(first["nodes"][1]["load"], Value::Null, "it knows its own only");
        assert_eq!(told(&picture, Some("r-0-1"))["slots"], json!({"changed": []}));

        // A node whose name comes first joins: nobody's number changes.
        picture.become_that(head(), shares("abb-"), None);
        assert_eq!(
            told(&picture, Some("r-0-1"))["slots"],
            json!({"changed": [[0, 2, -1, 0], [3, -1, -1, 0]]})
        );
        picture.become_that(head(), shares("abba"), None);
        assert_eq!(told(&picture, Some("r-0-2"))["slots"], json!({"changed": [[3, 2, -1, 0]]}));
        assert_eq!(
            told(&picture, Some("r-0-1"))["slots"],
            json!({"changed": [[0, 2, -1, 0], [3, 2, -1, 0]]})
        );
        for unknown in ["", "r-0-4", "r-1-1", "q-0-1", "r-0-x", "r-0-"] {
            assert_eq!(
                told(&picture, Some(unknown))["slots"]["all"]["owner"],
                json!([2, 0, 0, 2]),
                "{unknown}"
            );
        }
    }

    #[test]
    fn names_are_bounded() {
        let mut picture = Picture::new("r");
        let ring = |name: String| {
            let entries = BTreeMap::from([(id(&name), entry(1))]);
            Shares::new(SlotCount::new(1).unwrap(), &entries, None, |_| None)
        };
        for number in 0..2_000 {
            picture.become_that(head(), ring(format!("n{number}")), None);
            assert!(picture.numbers.len() <= NAMES_MAX);
        }
        let told = told(&picture, Some("r-0-1000"));
        assert!(told["slots"]["all"].is_object(), "numbers mean others now: {told}");
    }
}
