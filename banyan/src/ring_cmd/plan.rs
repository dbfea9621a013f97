//! What a change of the target moves: `banyan ring plan`, and what the commands that change it say.
//!
//! Always holds: a plan is what nodes would decide, by the same function (`banyan_router::target::solve`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use banyan_proto::id::SlotId;
use banyan_router::slot_key::NodeId;
use banyan_router::target::{Member, Target, solve};
use serde::Serialize;

use super::state::State;
use super::{count_of, no_such_node};
use crate::cli::Joiner;
use crate::failure::{Exit, Failure};
use crate::table::{Column, table};

/// What moves from one target to another.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// Of the cluster.
    slots: usize,
    moved: usize,
    /// Slots of the node with most minus slots of the node with least, where all weights are equal.
    spread_before: Option<u32>,
    spread_after: Option<u32>,
    nodes: Vec<Share>,
    by_pair: Vec<Pair>,
    moves: Vec<Move>,
}

#[derive(Debug, Serialize)]
struct Share {
    node: String,
    /// None: it leaves.
    weight: Option<u32>,
    before: u32,
    after: u32,
}

#[derive(Debug, Serialize)]
struct Pair {
    from: Option<String>,
    to: Option<String>,
    slots: usize,
}

#[derive(Debug, Serialize)]
struct Move {
    slot: u16,
    from: Option<String>,
    to: Option<String>,
}

/// Among nodes that may have slots. `None`: their weights differ, or there is none.
pub(super) fn spread(target: &Target) -> Option<u32> {
    let may = |member: &Member| member.weight > 0 && !target.drained().contains(&member.node);
    let shares = target.members().iter().zip(target.loads()).filter(|(member, _)| may(member));
    let (weights, loads): (Vec<u32>, Vec<u32>) = shares.map(|(member, load)| (member.weight, load)).unzip();
    let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
    loads.iter().max().zip(loads.iter().min()).map(|(max, min)| max - min).filter(|_| equal)
}

impl Plan {
    pub(crate) fn new(before: &Target, after: &Target) -> Self {
        let name = |node: Option<&NodeId>| node.map(NodeId::to_string);
        let moves: Vec<Move> = (0..after.slots())
            .map(|slot| SlotId(slot as u16))
            .filter(|&slot| before.owner(slot) != after.owner(slot))
            .map(|slot| Move { slot: slot.0, from: name(before.owner(slot)), to: name(after.owner(slot)) })
            .collect();
        let mut pairs: BTreeMap<(&Option<String>, &Option<String>), usize> = BTreeMap::new();
        for Move { from, to, .. } in &moves {
            *pairs.entry((from, to)).or_default() += 1;
        }
        let by_pair =
            pairs.into_iter().map(|((from, to), slots)| Pair { from: from.clone(), to: to.clone(), slots });
        let by_pair = by_pair.collect();
        let mut shares: BTreeMap<&NodeId, Share> = BTreeMap::new();
        for (target, is_after) in [(before, false), (after, true)] {
            for (member, load) in target.members().iter().zip(target.loads()) {
                let share = shares.entry(&member.node).or_insert_with(|| Share {
                    node: member.node.to_string(),
                    weight: None,
                    before: 0,
                    after: 0,
                });
                if is_after {
                    (share.after, share.weight) = (load, Some(member.weight));
                } else {
                    share.before = load;
                }
            }
        }
        Self {
            slots: after.slots(),
            moved: moves.len(),
            spread_before: spread(before),
            spread_after: spread(after),
            nodes: shares.into_values().collect(),
            by_pair,
            moves,
        }
    }

    /// With each single slot, or with numbers alone.
    pub(crate) fn text(&self, slots: bool) -> String {
        let none = || "-".to_owned();
        let columns = [
            Column::Left("NODE"),
            Column::Right("WEIGHT"),
            Column::Right("BEFORE"),
            Column::Right("AFTER"),
            Column::Right("CHANGE"),
        ];
        let rows: Vec<_> = (self.nodes.iter())
            .map(|share| {
                [
                    share.node.clone(),
                    share.weight.map_or_else(none, |weight| weight.to_string()),
                    share.before.to_string(),
                    share.after.to_string(),
                    match i64::from(share.after) - i64::from(share.before) {
                        0 => "0".to_owned(),
                        change => format!("{change:+}"),
                    },
                ]
            })
            .collect();
        let mut text = table(columns, &rows);
        text.push('\n');
        if self.moved > 0 {
            let columns = [Column::Left("FROM"), Column::Left("TO"), Column::Right("SLOTS")];
            let name = |node: &Option<String>| node.clone().unwrap_or_else(none);
            let rows: Vec<_> = (self.by_pair.iter())
                .map(|pair| [name(&pair.from), name(&pair.to), pair.slots.to_string()])
                .collect();
            text.push_str(&table(columns, &rows));
            text.push('\n');
            if slots {
                let columns = [Column::Right("SLOT"), Column::Left("FROM"), Column::Left("TO")];
                let rows: Vec<_> = (self.moves.iter())
                    .map(|one| [one.slot.to_string(), name(&one.from), name(&one.to)])
                    .collect();
                text.push_str(&table(columns, &rows));
                text.push('\n');
            }
        }
        let spread =
            |spread: Option<u32>| spread.map_or_else(|| "by weight".to_owned(), |spread| spread.to_string());
        writeln!(
            text,
            "{} of {} move, max - min {} before, {} after",
            self.moved,
            count_of(self.slots, "slot"),
            spread(self.spread_before),
            spread(self.spread_after)
        )
        .ok();
        text
    }

    pub(crate) fn moved(&self) -> usize {
        self.moved
    }

    /// Slots that have another owner afterwards, and whether that is somebody.
    pub(crate) fn slots_moved(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.moves.iter().filter(|one| one.to.is_some()).map(|one| SlotId(one.slot))
    }
}

/// What would move if these came and those went.
pub(crate) fn solve_with(state: &State, join: &[Joiner], leave: &[NodeId]) -> Result<Plan, Failure> {
    let none = Target::empty(state.meta.founding.slots);
    let before = state.target.as_deref().unwrap_or(&none);
    let mut members: BTreeMap<NodeId, u32> =
        before.members().iter().map(|member| (member.node.clone(), member.weight)).collect();
    for node in leave {
        if members.remove(node).is_none() {
            return Err(no_such_node(node, members.keys()));
        }
    }
    for Joiner { node, weight } in join {
        // A member that is given a weight: what another weight would do.
        if members.contains_key(node) && weight.is_none() {
            let words = format!("node {node} has slots already");
            let hint = format!("--join {node}:WEIGHT says what another weight would move");
            return Err(Failure::new(Exit::Usage, words).with_hint(hint));
        }
        members.insert(node.clone(), weight.unwrap_or(crate::cli::DEFAULT_WEIGHT));
    }
    let members = members.into_iter().map(|(node, weight)| Member { node, weight });
    Ok(Plan::new(before, &solve(before, members)))
}
