//! The consistent-hash ring: for every slot, in which order nodes are preferred.
//!
//! Always holds: the order depends on the names of the nodes and the number of the slot alone, on every node and in every
//! release (golden tests): only bytes that we lay out ourselves are hashed, by a hasher that we fixed. A node that comes or
//! goes leaves the order of the others as it is.
//! Does not: balance. How many slots a node has is decided in `target.rs`; the ring says which ones, and who is next.

use std::hash::{BuildHasher, Hash, Hasher};

use banyan_proto::id::SlotId;
use hashring::HashRing;
use xxhash_rust::xxh3::Xxh3;

use crate::slot_key::NodeId;

/// Points of one node on the ring: enough that who follows whom looks random.
const POINTS: u16 = 128;

/// xxh3 with 64 bits and seed 0: the same in every process and build.
#[derive(Clone, Copy)]
struct Fixed;

impl BuildHasher for Fixed {
    type Hasher = Xxh3;

    fn build_hasher(&self) -> Xxh3 {
        Xxh3::new()
    }
}

/// A place of a node on the ring.
#[derive(Debug, Clone)]
struct Point {
    name: NodeId,
    node: u16,
    number: u16,
}

impl Hash for Point {
    /// `name # number`, the number little-endian: `derive` would hash what the standard library may change.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.name.as_str().as_bytes());
        state.write(b"#");
        state.write(&self.number.to_le_bytes());
    }
}

struct Place(SlotId);

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(b"slot");
        state.write(&self.0.0.to_le_bytes());
    }
}

/// The ring of a set of nodes.
pub struct Ring {
    ring: HashRing<Point, Fixed>,
    /// Which node comes at each place, in the order of the ring.
    order: Vec<u16>,
    /// Where in `order` a point stands: by node and number.
    places: Vec<u32>,
    nodes: usize,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl Ring {
    /// `nodes` in the order of their names: two points on one place would else follow the order of joining.
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> Self {
        let names: Vec<&NodeId> = nodes.into_iter().collect();
        debug_assert!(names.is_sorted(), "the order of equal points depends on it");
        let mut ring = HashRing::with_hasher(Fixed);
        let points = names.iter().zip(0_u16..).flat_map(|(&name, node)| {
            (0..POINTS).map(move |number| Point { name: name.clone(), node, number })
        });
        ring.batch_add(points.collect());
        let mut places = vec![0; names.len() * usize::from(POINTS)];
        let mut order = Vec::with_capacity(places.len());
        // The whole ring once, from wherever: it is a circle. (The crate has no other way to walk it with a hasher of ours.)
        let round = ring.get_with_replicas(&Place(SlotId(0)), usize::MAX).unwrap_or_default();
        for (point, place) in round.into_iter().zip(0_u32..) {
            places[index(&point)] = place;
            order.push(point.node);
        }
        Self { ring, order, places, nodes: names.len() }
    }

    /// Every node, by its place in the list that the ring was made from; the most preferred first.
    pub fn preference(&self, slot: SlotId) -> Vec<u16> {
        let Some(first) = self.ring.get(&Place(slot)) else { return Vec::new() };
        let start = self.places[index(first)] as usize;
        let mut seen = vec![false; self.nodes];
        let mut preferred = Vec::with_capacity(self.nodes);
        for &node in self.order[start..].iter().chain(&self.order[..start]) {
            if !std::mem::replace(&mut seen[usize::from(node)], true) {
                preferred.push(node);
                if preferred.len() == self.nodes {
                    break;
                }
            }
        }
        preferred
    }
}

fn index(point: &Point) -> usize {
    usize::from(point.node) * usize::from(POINTS) + usize::from(point.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| NodeId::parse(name).unwrap()).collect()
    }

    #[test]
    fn the_order_of_preference_never_changes() {
        let nodes = names(&["eu-1", "eu-2", "eu-3", "us-1", "us-2"]);
        let ring = Ring::new(&nodes);
        for (slot, want) in GOLDEN {
            assert_eq!(ring.preference(SlotId(slot)), want, "slot {slot}");
        }
    }

    #[test]
    fn who_leaves_leaves_the_order_of_the_others_alone() {
        let five = names(&["a", "b", "c", "d", "e"]);
        let four = names(&["a", "b", "d", "e"]);
        let (all, rest) = (Ring::new(&five), Ring::new(&four));
        for slot in (0..4_096).map(SlotId) {
            let names = |nodes: &[NodeId], order: Vec<u16>| -> Vec<String> {
                order.into_iter().map(|node| nodes[usize::from(node)].to_string()).collect()
            };
            let without: Vec<String> =
                names(&five, all.preference(slot)).into_iter().filter(|name| name != "c").collect();
            assert_eq!(without, names(&four, rest.preference(slot)));
        }
    }

    #[test]
    fn every_node_is_first_for_its_part() {
        let nodes = names(&["a", "b", "c", "d"]);
        let ring = Ring::new(&nodes);
        let mut first = [0; 4];
        for slot in (0..4_096).map(SlotId) {
            first[usize::from(ring.preference(slot)[0])] += 1;
        }
        assert!(first.iter().all(|slots| (750..1_300).contains(slots)), "{first:?}");
        assert!(Ring::new(&[]).preference(SlotId(0)).is_empty());
    }

    const GOLDEN: [(u16, [u16; 5]); 12] = [
        (0, [3, 0, 1, 4, 2]),
        (1, [3, 4, 0, 1, 2]),
        (2, [1, 3, 2, 4, 0]),
        (3, [3, 2, 1, 0, 4]),
        (4, [4, 0, 2, 3, 1]),
        (255, [0, 2, 4, 1, 3]),
        (256, [3, 2, 4, 1, 0]),
        (787, [3, 4, 2, 1, 0]),
        (2047, [4, 0, 1, 3, 2]),
        (2048, [4, 1, 2, 3, 0]),
        (3615, [3, 0, 4, 2, 1]),
        (4095, [2, 1, 3, 0, 4]),
    ];
}
