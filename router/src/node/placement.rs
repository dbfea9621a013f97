//! Which node should own which slot: the target as this run knows it, and changed when the set of shard nodes changes.

use std::sync::Arc;

use super::{Action, Node, Request, Seen, TargetOutcome};
use crate::node_key::State;
use crate::slot_key::NodeId;
use crate::target::{Member, Target, solve};

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Placement {
    pub(super) target: Option<Arc<Target>>,
    /// Nodes or target have changed since it was solved last.
    pub(super) is_open: bool,
    /// When a node that has just come will have been there long enough.
    settles_at: Option<u64>,
    /// What was asked for, while it is not answered.
    asked: Option<Asked>,
    swap: Request,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Asked {
    expect: Option<Arc<Target>>,
    new: Arc<Target>,
}

impl Placement {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        [self.settles_at, self.swap.at].into_iter().flatten().min()
    }

    /// A watch is late by what this run has changed itself; a listing is not.
    pub(super) fn adopt(&mut self, target: Option<Arc<Target>>, listed: bool) {
        let version = |target: &Option<Arc<Target>>| target.as_ref().map_or(0, |target| target.version());
        if listed || version(&target) > version(&self.target) {
            self.target = target;
            self.is_open = true;
        }
    }

    /// A swap was lost to this. Versions say nothing here: etcd holds it, and does not hold what was expected. Unless a watch
    /// has shown another one since, which is then the newer.
    fn adopt_winner(&mut self, expected: &Option<Arc<Target>>, current: Option<Arc<Target>>) {
        if self.target == *expected {
            self.adopt(current, true);
        } else {
            self.adopt(current, false);
        }
    }
}

impl Node {
    /// Solves the placement again if something has changed, and asks for the change.
    pub(super) fn place(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let placement = &mut self.placement;
        if placement.settles_at.is_some_and(|at| at <= now_ms) {
            placement.settles_at = None;
            placement.is_open = true;
        }
        if placement.swap.at.is_some_and(|at| at <= now_ms) {
            placement.swap.at = None;
            placement.is_open = true;
        }
        if !placement.is_open || placement.swap.under_way || placement.swap.at.is_some() {
            return;
        }
        placement.is_open = false;
        let members = self.members(now_ms);
        // Nobody there: let the target be as it is, they will come back.
        if members.is_empty() {
            return;
        }
        let expect = self.placement.target.clone();
        let solved = match &expect {
            Some(target) => solve(target, members),
            None => solve(&Target::empty(self.options.slots), members),
        };
        if expect.as_deref() == Some(&solved) {
            return;
        }
        let new = Arc::new(solved);
        self.placement.asked = Some(Asked { expect: expect.clone(), new: Arc::clone(&new) });
        self.placement.swap.begin();
        out.push(Action::CasTarget { expect, new });
    }

    /// Nodes that should own slots. One that has just come must have been there for a while, unless no other is there.
    fn members(&mut self, now_ms: u64) -> Vec<Member> {
        let target = self.placement.target.as_deref();
        let placed = |node: &NodeId| {
            target.is_some_and(|target| target.members().iter().any(|member| member.node == *node))
        };
        let mut candidates: Vec<(&NodeId, &Seen)> =
            (self.nodes.iter()).filter(|(_, seen)| seen.entry.takes_slots()).collect();
        if self.state == State::Draining {
            candidates.retain(|(node, _)| **node != self.options.me.node);
        }
        let founding = !candidates.iter().any(|(node, _)| placed(node));
        let settle_ms = self.options.limits.settle_ms;
        let mut members = Vec::new();
        let mut settles_at: Option<u64> = None;
        for (node, seen) in candidates {
            let at = seen.since_ms + settle_ms;
            if founding || placed(node) || at <= now_ms {
                members.push(Member { node: node.clone(), weight: seen.entry.weight });
            } else {
                settles_at = Some(settles_at.map_or(at, |other| other.min(at)));
            }
        }
        self.placement.settles_at = settles_at;
        members
    }

    pub(super) fn target_swapped(&mut self, now_ms: u64, outcome: TargetOutcome) {
        let Some(Asked { expect, new }) = self.placement.asked.take() else { return };
        self.placement.swap.answered(None);
        match outcome {
            TargetOutcome::Won => self.placement.adopt(Some(new), false),
            // The first wins, the others adopt.
            TargetOutcome::Lost(current) => self.placement.adopt_winner(&expect, current),
            // The watch shows it if it was applied.
            TargetOutcome::Unknown => {
                self.placement.swap.at = Some(now_ms + self.options.limits.retry_ms);
            }
        }
        self.slots.look_at_all();
    }
}
