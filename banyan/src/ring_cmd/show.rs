//! `banyan ring show`: nodes with their shares, and a map of all slots.

use std::fmt::Write as _;

use banyan_router::slot_key::NodeId;
use serde::Serialize;

use super::count_of;
use super::plan::spread;
use super::state::State;
use crate::shares::{NodeRow, SlotRow};
use crate::table::{Column, table};

/// Slots on one line of the map.
const LINE: usize = 128;
/// Marks of the map: above that, neighbours share one.
const MARKS_MAX: usize = 4_096;
/// Nodes have one each; who comes after them is `?`.
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Of the 256 colours of terminals: told apart on black and on white, with black letters on them.
const COLOURS: [u8; 12] = [114, 75, 215, 176, 80, 222, 167, 111, 150, 180, 141, 109];

/// `ring show --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Shown<'a> {
    cluster: &'a str,
    id: String,
    revision: i64,
    frozen: Option<&'a str>,
    target_version: Option<u64>,
    nodes: Vec<NodeShown<'a>>,
    moving: usize,
    without_owner: usize,
    pinned: usize,
    /// Slots of the node with most minus slots of the node with least, where all weights are equal.
    spread: Option<u32>,
    slots: Vec<SlotShown<'a>>,
}

#[derive(Debug, Serialize)]
struct NodeShown<'a> {
    node: &'a str,
    state: &'static str,
    weight: Option<u32>,
    wanted: usize,
    owned: usize,
    coming: usize,
    going: usize,
}

#[derive(Debug, Serialize)]
struct SlotShown<'a> {
    slot: usize,
    owner: Option<&'a str>,
    wanted: Option<&'a str>,
    epoch: Option<u64>,
    pinned: bool,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        let name = |place| state.name_of(place).map(NodeId::as_str);
        let nodes = state.nodes.iter().filter(|row| has_share(row)).map(|row| NodeShown {
            node: row.node.as_str(),
            state: row.state(),
            weight: row.weight,
            wanted: row.wanted,
            owned: row.owned,
            coming: row.coming,
            going: row.going,
        });
        let slots = state.slots.iter().enumerate().map(|(slot, row)| SlotShown {
            slot,
            owner: name(row.owner),
            wanted: name(row.wanted),
            epoch: row.key.as_ref().map(|key| key.epoch.0),
            pinned: row.pinned,
        });
        Self {
            cluster: &state.name,
            id: state.meta.cluster.to_string(),
            revision: state.revision,
            frozen: state.frozen.as_deref(),
            target_version: state.target.as_ref().map(|target| target.version()),
            nodes: nodes.collect(),
            moving: state.slots.iter().filter(|slot| slot.is_moving()).count(),
            without_owner: state.slots.iter().filter(|slot| slot.owner.is_none()).count(),
            pinned: state.slots.iter().filter(|slot| slot.pinned).count(),
            spread: state.target.as_deref().and_then(spread),
            slots: slots.collect(),
        }
    }
}

/// Not one that is a gateway only. One that is away is named for slots that it had, or because it is drained.
fn has_share(row: &NodeRow) -> bool {
    row.entry.is_none() || row.weight.is_some() || row.owned > 0
}

/// With a map, in colours or without.
pub(crate) fn text(state: &State, map: Option<bool>) -> String {
    let shown = Shown::new(state);
    let mut text = format!("cluster {}: {}", state.name, count_of(state.slots.len(), "slot"));
    if let Some(version) = shown.target_version {
        write!(text, ", target version {version}").ok();
    }
    writeln!(text, ", etcd revision {}", state.revision).ok();
    if let Some(why) = &state.frozen {
        writeln!(text, "FROZEN, no slot changes its owner: {why}").ok();
    }
    text.push('\n');
    let columns = [
        Column::Left("NODE"),
        Column::Left("STATE"),
        Column::Right("WEIGHT"),
        Column::Right("WANTED"),
        Column::Right("OWNED"),
        Column::Right("COMING"),
        Column::Right("GOING"),
    ];
    let rows: Vec<_> = (shown.nodes.iter())
        .map(|row| {
            [
                row.node.to_owned(),
                row.state.to_owned(),
                row.weight.map_or_else(|| "-".to_owned(), |weight| weight.to_string()),
                row.wanted.to_string(),
                row.owned.to_string(),
                row.coming.to_string(),
                row.going.to_string(),
            ]
        })
        .collect();
    text.push_str(&table(columns, &rows));
    text.push('\n');
    let spread = match shown.spread {
        Some(spread) => format!("max - min {spread}"),
        None => "shares by weight".to_owned(),
    };
    let Shown { moving, without_owner, pinned, .. } = shown;
    writeln!(text, "moving {moving}, without owner {without_owner}, pinned {pinned}, {spread}").ok();
    if let Some(colours) = map {
        text.push('\n');
        text.push_str(&draw(state, colours));
    }
    text
}

/// What stands for a slot in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Owned(usize),
    Moving(usize),
    Nobody,
}

impl Mark {
    fn of(slot: &SlotRow) -> Self {
        match slot.owner {
            Some(_) if slot.is_moving() => Self::Moving(slot.wanted.unwrap_or(0)),
            Some(owner) => Self::Owned(owner),
            None => Self::Nobody,
        }
    }

    /// Neighbours that share a mark: what a person should see first, then what is there most.
    fn of_all(slots: &[SlotRow]) -> Self {
        let marks: Vec<Self> = slots.iter().map(Self::of).collect();
        let urgent = |mark: &&Self| !matches!(mark, Self::Owned(_));
        if let Some(mark) = marks.iter().rev().max_by_key(|mark| (urgent(mark), **mark == Self::Nobody))
            && urgent(&mark)
        {
            return *mark;
        }
        let count = |mark: &Self| marks.iter().filter(|other| *other == mark).count();
        marks.iter().rev().max_by_key(|mark| count(mark)).copied().unwrap_or(Self::Nobody)
    }

    fn put(self, colours: bool, text: &mut String) {
        let letter = |node: usize| char::from(LETTERS.get(node).copied().unwrap_or(b'?'));
        let (mark, colour) = match self {
            Self::Owned(node) => (letter(node), Some(COLOURS[node % COLOURS.len()])),
            Self::Moving(to) => ('>', Some(COLOURS[to % COLOURS.len()])),
            Self::Nobody => ('.', None),
        };
        match colour.filter(|_| colours) {
            Some(colour) => write!(text, "\x1b[38;5;16;48;5;{colour}m{mark}\x1b[0m").ok(),
            None => write!(text, "{mark}").ok(),
        };
    }
}

/// A letter for each slot, or for a few neighbours where there are very many.
fn draw(state: &State, colours: bool) -> String {
    let mut text = String::new();
    for (place, row) in state.nodes.iter().enumerate().filter(|(_, row)| has_share(row)) {
        Mark::Owned(place).put(colours, &mut text);
        write!(text, " {}   ", row.node).ok();
    }
    text.push_str("> moving   . without owner\n");
    let together = state.slots.len().div_ceil(MARKS_MAX).max(1);
    if together > 1 {
        writeln!(text, "one mark for {together} slots: who has most of them").ok();
    }
    let marks: Vec<Mark> = state.slots.chunks(together).map(Mark::of_all).collect();
    let width = state.slots.len().saturating_sub(1).to_string().len();
    for (line, marks) in marks.chunks(LINE).enumerate() {
        write!(text, "{:width$} ", line * LINE * together).ok();
        marks.iter().for_each(|mark| mark.put(colours, &mut text));
        text.push('\n');
    }
    text
}
