//! Laws of placement, over random joins, leaves, weights, pins and plans that were applied in part.

use proptest::prelude::*;

use super::*;

const SLOTS: u32 = 256;

fn node(number: usize) -> NodeId {
    NodeId::parse(&format!("node-{number}")).unwrap()
}

fn member(number: usize, weight: u32) -> Member {
    Member { node: node(number), weight }
}

fn equal(numbers: impl IntoIterator<Item = usize>) -> Vec<Member> {
    numbers.into_iter().map(|number| member(number, 1)).collect()
}

fn empty(slots: u32) -> Target {
    Target::empty(SlotCount::new(slots).unwrap())
}

fn owners(target: &Target) -> Vec<Option<NodeId>> {
    (0..target.slots()).map(|slot| target.owner(SlotId(slot as u16)).cloned()).collect()
}

/// Slots that have another owner: from whom, to whom.
fn moves(before: &Target, after: &Target) -> Vec<(usize, Option<NodeId>, Option<NodeId>)> {
    let pairs = owners(before).into_iter().zip(owners(after)).enumerate();
    pairs.filter(|(_, (from, to))| from != to).map(|(slot, (from, to))| (slot, from, to)).collect()
}

fn spread(target: &Target) -> u32 {
    let loads = target.loads();
    loads.iter().max().unwrap() - loads.iter().min().unwrap()
}

fn is_stable(target: &Target) -> bool {
    solve(target, target.members.clone()) == *target
}

#[test]
fn a_default_cluster_grows_from_one_to_ten() {
    let mut target = solve(&empty(4_096), equal([0]));
    assert_eq!((target.loads(), target.version()), (vec![4_096], 1));
    for nodes in 1..10 {
        let next = solve(&target, equal(0..=nodes));
        let moved = moves(&target, &next);
        assert!(moved.len() <= 4_096_usize.div_ceil(nodes + 1), "{nodes}: {}", moved.len());
        assert!(moved.iter().all(|(_, _, to)| *to == Some(node(nodes))));
        assert!(spread(&next) <= 1 && is_stable(&next));
        assert_eq!(next.version(), target.version() + 1);
        target = next;
    }
}

#[test]
fn nobody_left_means_nobody_owns() {
    let one = solve(&empty(SLOTS), equal([0]));
    let none = solve(&one, []);
    assert!(owners(&none).iter().all(Option::is_none));
    let weightless = solve(&one, [member(0, 0), member(1, 1)]);
    assert_eq!(weightless.loads(), [0, SLOTS]);
}

#[test]
fn weights_are_shares() {
    let target = solve(&empty(SLOTS), [member(0, 1), member(1, 2), member(2, 5)]);
    assert_eq!(target.loads(), [32, 64, 160]);
}

#[test]
fn a_pin_holds_while_its_node_is_there() {
    let mut target = solve(&empty(SLOTS), equal(0..4));
    for slot in 0..80 {
        target.pin(SlotId(slot), Some(node(3)));
    }
    let pinned = solve(&target, equal(0..4));
    assert!((0..80).all(|slot| pinned.owner(SlotId(slot)) == Some(&node(3))));
    assert_eq!(pinned.loads()[3], 80);
    assert!(is_stable(&pinned));
    let without = solve(&pinned, equal(0..3));
    assert!(spread(&without) <= 1);
    let back = solve(&without, equal(0..4));
    assert!((0..80).all(|slot| back.owner(SlotId(slot)) == Some(&node(3))));
    let mut free = back;
    for slot in 0..80 {
        free.pin(SlotId(slot), None);
    }
    assert!(spread(&solve(&free, equal(0..4))) <= 1);
}

/// A drain moves what a leave would; what pins bind to the node comes back with it.
#[test]
fn a_drained_node_gets_nothing_until_it_is_undrained() {
    let mut target = solve(&empty(SLOTS), equal(0..4));
    target.pin(SlotId(3), Some(node(2)));
    let before = solve(&target, equal(0..4));
    let mut drained = before.clone();
    drained.drain(&node(2), true);
    assert_eq!(drained.version(), before.version() + 1);
    let without = solve(&drained, equal(0..4));
    assert_eq!(without.loads()[2], 0);
    assert!(without.version() > drained.version() && is_stable(&without));
    assert_eq!(owners(&without), owners(&solve(&before, [0, 1, 3].map(|number| member(number, 1)))));
    let rejoined = solve(&solve(&without, [0, 1, 3].map(|number| member(number, 1))), equal(0..4));
    assert_eq!(rejoined.loads()[2], 0, "its next run is drained too");
    let mut back = rejoined;
    back.drain(&node(2), false);
    let back = solve(&back, equal(0..4));
    assert!(spread(&back) <= 1 && back.owner(SlotId(3)) == Some(&node(2)));
    let version = back.version();
    let mut same = back;
    same.drain(&node(2), false);
    assert_eq!(same.version(), version, "it was not drained");
    for number in 0..4 {
        same.drain(&node(number), true);
    }
    assert!(owners(&solve(&same, equal(0..4))).iter().all(Option::is_none), "nobody is left");
}

/// Nodes tell targets apart by their versions.
#[test]
fn a_pin_is_a_new_version_even_where_it_moves_nothing() {
    let target = solve(&empty(SLOTS), equal(0..4));
    let owner = target.owner(SlotId(7)).cloned();
    let mut pinned = target.clone();
    pinned.pin(SlotId(7), owner.clone());
    let solved = solve(&pinned, equal(0..4));
    assert_eq!(solved.owner(SlotId(7)), owner.as_ref());
    assert!(solved.version() > target.version());
    let version = pinned.version();
    pinned.pin(SlotId(7), owner);
    assert_eq!(pinned.version(), version, "it was pinned there");
    pinned.pin(SlotId(8), None);
    assert_eq!(pinned.version(), version, "it was not pinned");
}

#[derive(Debug, Clone)]
enum Change {
    Join(usize),
    Leave(usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![(0_usize..24).prop_map(Change::Join), (0_usize..24).prop_map(Change::Leave)];
    proptest::collection::vec(change, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    /// Equal weights: 200 lives of a cluster of up to a dozen joins and leaves each.
    #[test]
    fn joins_and_leaves_move_as_little_as_can_be(changes in changes()) {
        let mut there = vec![0];
        let mut target = solve(&empty(SLOTS), equal([0]));
        for change in changes {
            match change {
                Change::Join(number) if !there.contains(&number) => {
                    there.push(number);
                    let next = solve(&target, equal(there.iter().copied()));
                    let moved = moves(&target, &next);
                    prop_assert!(moved.len() <= (SLOTS as usize).div_ceil(there.len()));
                    prop_assert!(moved.iter().all(|(_, _, to)| *to == Some(node(number))));
                    target = next;
                }
                Change::Leave(number) if there.len() > 1 && there.contains(&number) => {
                    there.retain(|&other| other != number);
                    let next = solve(&target, equal(there.iter().copied()));
                    let moved = moves(&target, &next);
                    prop_assert!(moved.iter().all(|(_, from, _)| *from == Some(node(number))));
                    target = next;
                }
                Change::Join(_) | Change::Leave(_) => {}
            }
            prop_assert!(spread(&target) <= 1, "{:?}", target.loads());
            prop_assert!(is_stable(&target));
        }
    }

    /// Any weights: still nothing between nodes that stay, and every share within one slot of the exact quota's rounding.
    #[test]
    fn weighted_nodes_join_and_leave_alone(weights in proptest::collection::vec(1_u32..9, 2..9), leaver in 0_usize..8) {
        let all: Vec<Member> = weights.iter().enumerate().map(|(number, &weight)| member(number, weight)).collect();
        let leaver = leaver % all.len();
        let mut rest = all.clone();
        rest.remove(leaver);
        let before = solve(&empty(SLOTS), rest.clone());
        let joined = solve(&before, all);
        prop_assert!(moves(&before, &joined).iter().all(|(_, _, to)| *to == Some(node(leaver))));
        let left = solve(&joined, rest);
        prop_assert!(moves(&joined, &left).iter().all(|(_, from, _)| *from == Some(node(leaver))));
        for target in [before, joined, left] {
            prop_assert!(is_stable(&target));
            let total: u32 = target.members.iter().map(|member| member.weight).sum();
            for (member, load) in target.members.iter().zip(target.loads()) {
                let quota = f64::from(SLOTS) * f64::from(member.weight) / f64::from(total);
                prop_assert!((f64::from(load) - quota).abs() < 1.5, "{load} of {quota}");
            }
        }
    }

    /// A plan of which only a part was carried out, solved again: what was moved stays, and as much is moved as was left.
    #[test]
    fn a_plan_applied_in_part_is_not_undone(nodes in 1_usize..9, joiner in 0_usize..9, kept in proptest::collection::vec(any::<bool>(), SLOTS as usize), leaves: bool) {
        let joiner = joiner % (nodes + 1);
        let with = equal(0..=nodes);
        let without: Vec<Member> = with.iter().filter(|member| member.node != node(joiner)).cloned().collect();
        let (before, members) = if leaves { (with, without) } else { (without, with) };
        let before = solve(&empty(SLOTS), before);
        let planned = solve(&before, members.clone());
        let mut part = planned.clone();
        let mut undone = 0;
        for (slot, from, _) in moves(&before, &planned) {
            if !kept[slot] {
                undone += 1;
                // A leaver is no member any more: its slot is nobody's.
                let place = planned.members.iter().position(|member| Some(&member.node) == from.as_ref());
                part.owners[slot] = place.map_or(NOBODY, |place| place as u16);
            }
        }
        let again = solve(&part, members);
        let (moved, plan) = (moves(&part, &again), moves(&before, &planned));
        prop_assert_eq!(moved.len(), undone);
        let slots: Vec<usize> = plan.iter().map(|(slot, _, _)| *slot).collect();
        prop_assert!(moved.iter().all(|(slot, _, _)| slots.contains(slot)));
        prop_assert!(spread(&again) <= 1 && is_stable(&again));
    }
}
