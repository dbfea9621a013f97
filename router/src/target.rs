//! Which node should own which slot.
//!
//! Always holds: placement is a pure function of nodes, weights, pins and the present target; what lives stays, a joiner
//! takes from the most loaded until it has its share, a leaver's slots go one by one to the least loaded. So at equal weights
//! nobody has two slots more than another, nothing moves between nodes that stay, and solving again changes nothing.
//! Does not: say who owns a slot now (`slot_key.rs`). Ownership follows by handoff and takeover.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use banyan_proto::id::SlotId;

use crate::ring::Ring;
use crate::slot::SlotCount;
use crate::slot_key::NodeId;

/// Nobody should own the slot: there is no node.
const NOBODY: u16 = u16::MAX;

/// A node that may own slots, and its share: twice the weight, twice the slots. Weight 0: it has none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    pub node: NodeId,
    pub weight: u32,
}

/// The key `target`, changed by compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Counted up with every change.
    pub(crate) version: u64,
    /// By name.
    pub(crate) members: Vec<Member>,
    /// Slots that a person has bound to a node. Without effect while the node is away.
    pub(crate) pins: BTreeMap<SlotId, NodeId>,
    /// Nodes that a person has drained: they get no slots, whatever their weight, until a person says otherwise. Here and not
    /// at the nodes' own keys, so that every node places alike, and a node that comes back under its name stays drained.
    pub(crate) drained: BTreeSet<NodeId>,
    /// The owner of each slot, as its place among the members.
    pub(crate) owners: Vec<u16>,
}

impl Target {
    /// Of a cluster that has no node yet.
    pub fn empty(slots: SlotCount) -> Self {
        Self {
            version: 0,
            members: Vec::new(),
            pins: BTreeMap::new(),
            drained: BTreeSet::new(),
            owners: vec![NOBODY; slots.get() as usize],
        }
    }

    /// As it was written down. `None`: not a target (members in order of their names, owners among them, a power of two
    /// of slots).
    pub(crate) fn from_parts(
        version: u64,
        members: Vec<Member>,
        pins: BTreeMap<SlotId, NodeId>,
        drained: BTreeSet<NodeId>,
        owners: &[Option<u16>],
    ) -> Option<Self> {
        SlotCount::new(u32::try_from(owners.len()).ok()?).ok()?;
        let in_order = members.is_sorted_by(|a, b| a.node < b.node);
        let places = owners.iter().flatten().all(|&owner| usize::from(owner) < members.len());
        let owners = owners.iter().map(|owner| owner.unwrap_or(NOBODY)).collect();
        (in_order && places).then_some(Self { version, members, pins, drained, owners })
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn pins(&self) -> &BTreeMap<SlotId, NodeId> {
        &self.pins
    }

    pub fn drained(&self) -> &BTreeSet<NodeId> {
        &self.drained
    }

    pub fn slots(&self) -> usize {
        self.owners.len()
    }

    /// Who should own the slot.
    pub fn owner(&self, slot: SlotId) -> Option<&NodeId> {
        let owner = *self.owners.get(usize::from(slot.0))?;
        self.members.get(usize::from(owner)).map(|member| &member.node)
    }

    /// Slots of each member, in the order of the members.
    pub fn loads(&self) -> Vec<u32> {
        let mut loads = vec![0; self.members.len()];
        for &owner in &self.owners {
            if let Some(load) = loads.get_mut(usize::from(owner)) {
                *load += 1;
            }
        }
        loads
    }

    /// Binds a slot to a node, or (`None`) no longer. Takes effect when solved; counts as a change even where the slot is
    /// there already: two targets of one version would be taken for the same.
    pub fn pin(&mut self, slot: SlotId, node: Option<NodeId>) {
        if self.pins.get(&slot) == node.as_ref() {
            return;
        }
        self.version += 1;
        match node {
            Some(node) => self.pins.insert(slot, node),
            None => self.pins.remove(&slot),
        };
    }

    /// A node gets no slots from now on, or (`false`) may have some again. Takes effect when solved. As with pins, a change is
    /// a new version.
    pub fn drain(&mut self, node: &NodeId, drained: bool) {
        let changed = match drained {
            true => self.drained.insert(node.clone()),
            false => self.drained.remove(node),
        };
        self.version += u64::from(changed);
    }

    /// The order in which the members of this target are preferred for a slot: who claims it if its owner does not.
    pub fn ring(&self) -> Ring {
        Ring::new(self.members.iter().map(|member| &member.node))
    }
}

/// Places all slots over these members, moving as little as can be. The version is one higher if anything differs.
///
/// Shares are those of Webster's method (Sainte-Laguë): each slot goes where `(2 × slots + 1) / weight` is least. Its optimum
/// is reached by single moves that each improve it, and the share of two nodes relative to each other does not depend on
/// third ones: that is why a join moves slots to the joiner alone.
pub fn solve(target: &Target, members: impl IntoIterator<Item = Member>) -> Target {
    let mut members: Vec<Member> = members.into_iter().collect();
    members.sort_unstable();
    members.dedup_by(|a, b| a.node == b.node);
    let mut plan = Plan::new(target, &members);
    plan.place_orphans();
    plan.level();
    let mut solved = Target {
        version: target.version,
        pins: target.pins.clone(),
        drained: target.drained.clone(),
        owners: plan.owners,
        members,
    };
    if solved != *target {
        solved.version += 1;
    }
    solved
}

struct Plan<'a> {
    members: &'a [Member],
    /// Of each member; 0: it gets nothing.
    weights: Vec<u32>,
    owners: Vec<u16>,
    pinned: Vec<bool>,
    loads: Vec<u32>,
    /// Of slot and member: how much the ring prefers it there; 0: most.
    ranks: Vec<u16>,
}

impl<'a> Plan<'a> {
    /// What lives stays, and what is pinned is there.
    fn new(target: &Target, members: &'a [Member]) -> Self {
        let weight = |member: &Member| if target.drained.contains(&member.node) { 0 } else { member.weight };
        let weights: Vec<u32> = members.iter().map(weight).collect();
        let place_of = |node: &NodeId| -> Option<u16> {
            let place = members.binary_search_by(|member| member.node.cmp(node)).ok()?;
            (weights[place] > 0).then_some(place as u16)
        };
        let kept: Vec<Option<u16>> = target.members.iter().map(|member| place_of(&member.node)).collect();
        let mut pinned = vec![false; target.owners.len()];
        let mut owners: Vec<u16> = (target.owners.iter())
            .map(|&owner| kept.get(usize::from(owner)).copied().flatten().unwrap_or(NOBODY))
            .collect();
        for (slot, node) in &target.pins {
            if let (Some(place), Some(owner)) = (place_of(node), owners.get_mut(usize::from(slot.0))) {
                *owner = place;
                pinned[usize::from(slot.0)] = true;
            }
        }
        let mut loads = vec![0; members.len()];
        for &owner in owners.iter().filter(|&&owner| owner != NOBODY) {
            loads[usize::from(owner)] += 1;
        }
        let ring = Ring::new(members.iter().map(|member| &member.node));
        let mut ranks = vec![0; owners.len() * members.len()];
        for (slot, ranks) in (0_u16..=u16::MAX).zip(ranks.chunks_exact_mut(members.len().max(1))) {
            for (node, rank) in ring.preference(SlotId(slot)).into_iter().zip(0_u16..) {
                ranks[usize::from(node)] = rank;
            }
        }
        Self { members, weights, owners, pinned, loads, ranks }
    }

    fn rank(&self, slot: usize, node: u16) -> u16 {
        self.ranks[slot * self.members.len() + usize::from(node)]
    }

    /// What one more slot would cost a node, or what its last one does.
    fn cost(&self, node: u16, more: bool) -> Cost {
        let load = u64::from(self.loads[usize::from(node)]) * 2;
        let load = if more { load + 1 } else { load.saturating_sub(1) };
        Cost { load, weight: u64::from(self.weights[usize::from(node)]) }
    }

    fn nodes(&self) -> impl Iterator<Item = u16> {
        (0_u16..).zip(&self.weights).filter(|(_, weight)| **weight > 0).map(|(node, _)| node)
    }

    fn place_orphans(&mut self) {
        for slot in 0..self.owners.len() {
            if self.owners[slot] == NOBODY {
                let least = self.nodes().min_by_key(|&node| (self.cost(node, true), self.rank(slot, node)));
                if let Some(node) = least {
                    self.owners[slot] = node;
                    self.loads[usize::from(node)] += 1;
                }
            }
        }
    }

    /// Moves single slots from where they cost most to where they cost least, while that is better.
    fn level(&mut self) {
        let mut offers = Offers::new();
        while let Some((slot, to)) = self.best_move(&mut offers) {
            let from = std::mem::replace(&mut self.owners[slot], to);
            self.loads[usize::from(from)] -= 1;
            self.loads[usize::from(to)] += 1;
            // It has a slot more to give: its lists are made again if it ever does.
            offers.retain(|&(giver, _), _| giver != to);
        }
    }

    /// Among the slots of the most loaded nodes, the one that the ring most wants at one of the least loaded.
    fn best_move(&self, offers: &mut Offers) -> Option<(usize, u16)> {
        let least = self.nodes().map(|node| self.cost(node, true)).min()?;
        let takers: Vec<u16> = self.nodes().filter(|&node| self.cost(node, true) == least).collect();
        let mut givers: Vec<(Cost, u16)> = self.nodes().map(|node| (self.cost(node, false), node)).collect();
        givers.retain(|(cost, _)| *cost > least);
        givers.sort_unstable_by_key(|&(cost, node)| (Reverse(cost), node));
        // The next less loaded only if those before have nothing but pinned slots.
        for givers in givers.chunk_by(|a, b| a.0 == b.0) {
            let pairs = givers.iter().flat_map(|&(_, from)| takers.iter().map(move |&to| (from, to)));
            let offered = pairs.filter_map(|(from, to)| self.offer(from, to, offers).map(|slot| (slot, to)));
            let best = offered.min_by_key(|&(slot, to)| (self.rank(slot, to), slot, to));
            if best.is_some() {
                return best;
            }
        }
        None
    }

    /// The slot of `from` that the ring most wants at `to`.
    fn offer(&self, from: u16, to: u16, offers: &mut Offers) -> Option<usize> {
        let wanted = offers.entry((from, to)).or_insert_with(|| {
            let mut slots: Vec<usize> = (0..self.owners.len())
                .filter(|&slot| self.owners[slot] == from && !self.pinned[slot])
                .collect();
            slots.sort_unstable_by_key(|&slot| Reverse((self.rank(slot, to), slot)));
            slots
        });
        while wanted.last().is_some_and(|&slot| self.owners[slot] != from) {
            wanted.pop();
        }
        wanted.last().copied()
    }
}

/// Of giver and taker: the giver's slots, the one that the taker should have first last.
type Offers = BTreeMap<(u16, u16), Vec<usize>>;

/// A fraction, compared exactly.
#[derive(Debug, Clone, Copy)]
struct Cost {
    load: u64,
    weight: u64,
}

impl Ord for Cost {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.load * other.weight).cmp(&(other.load * self.weight))
    }
}

impl PartialOrd for Cost {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cost {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Cost {}

#[cfg(test)]
mod tests;
