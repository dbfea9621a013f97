//! The replicated store as a quorum sees it, in three models of the same thing.
//!
//! - `Abs`: regular quorum semantics. A read returns all that was complete when it began and any part of what was issued
//!   before it ended; so late, lost and torn deliveries and reads of two moments are all in it, and more.
//! - `Rep`: three replicas, each delivery of a mutation to a replica a step of its own or never; complete on two of them; a
//!   read asks one replica and later another, and merges.
//! - `Jit`: the same replicas; a delivery happens just before somebody can see it (the replica answers a read, or it counts
//!   towards a completion). An exact reduction of `Rep`.
//!
//! Knows what a key is and that a key has one content. Knows no rule of the protocol.

use std::hash::Hash;

use banyan_proto::id::{SegmentId, Seq, Tenure};
use banyan_storage::log_store::{Said, SegmentRecord, Span};
use banyan_storage::{Derived, Page, Range, ReadLimit, Row};

use crate::bits::Bits;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Model {
    Abs,
    Rep,
    Jit,
}

/// One write that a replica has whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Mutation {
    Record(SegmentRecord),
    /// A batch, or a part of one that is written again.
    Rows {
        segment: SegmentId,
        rows: Vec<Row>,
    },
    Derived(Derived),
    Said(Said),
    /// Of the run with this number.
    Fence(u8),
    Owner(Tenure),
    Closed(Tenure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    Segments,
    Messages,
    Derived,
    Said,
    Fences,
    Owners,
}

pub const TABLES: usize = 6;

impl Mutation {
    pub const fn table(&self) -> Table {
        match self {
            Self::Record(_) => Table::Segments,
            Self::Rows { .. } => Table::Messages,
            Self::Derived(_) => Table::Derived,
            Self::Said(_) => Table::Said,
            Self::Fence(_) => Table::Fences,
            Self::Owner(_) | Self::Closed(_) => Table::Owners,
        }
    }

    /// Whether both write one key of the log with different contents.
    pub fn clashes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Record(a), Self::Record(b)) => a.id == b.id && a != b,
            (Self::Rows { segment: a, rows }, Self::Rows { segment: b, rows: others }) => {
                a == b
                    && rows.iter().any(|row| others.iter().any(|other| row.seq == other.seq && row != other))
            }
            _ => false,
        }
    }
}

/// What a read that is under way is for: one of each kind and node at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReadFor {
    Log,
    Members,
    Owners,
    OwnFence,
    Gate(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Begun {
    pub node: u8,
    pub what: ReadFor,
    /// `Abs`: complete when it began. Replicas: what the first one answered.
    pub seen: Bits,
    /// Replicas: who has answered.
    pub first: Option<u8>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Store {
    pub issued: Bits,
    /// `Abs`: what is complete, in the first. Else what each replica has.
    pub has: [Bits; 3],
    /// Sorted.
    pub begun: Vec<Begun>,
}

impl Store {
    /// Everybody has it at once.
    pub fn put(&mut self, what: &Bits) {
        self.issued = self.issued.or(what);
        for replica in &mut self.has {
            *replica = replica.or(what);
        }
    }

    /// Known to be at a quorum, whoever asks.
    pub fn complete(&self, model: Model) -> Bits {
        let [a, b, c] = &self.has;
        match model {
            Model::Abs => *a,
            Model::Rep | Model::Jit => a.and(b).or(&a.and(c)).or(&b.and(c)),
        }
    }

    pub fn begin(&mut self, model: Model, node: u8, what: ReadFor, table: &Bits) {
        let seen = if model == Model::Abs { self.has[0].and(table) } else { Bits::EMPTY };
        debug_assert!(self.begun_at(node, what).is_none(), "{what:?} of {node} is under way");
        self.begun.push(Begun { node, what, seen, first: None });
        self.begun.sort_unstable();
    }

    pub fn begun_at(&self, node: u8, what: ReadFor) -> Option<usize> {
        self.begun.iter().position(|read| read.node == node && read.what == what)
    }

    pub fn forget(&mut self, node: u8, what: ReadFor) {
        self.begun.retain(|read| read.node != node || read.what != what);
    }

    pub fn forget_node(&mut self, node: u8) {
        self.begun.retain(|read| read.node != node);
    }

    /// Stores in which whoever wrote `what` may learn that it is complete.
    pub fn completions(&self, model: Model, what: &Bits) -> Vec<Self> {
        match model {
            Model::Abs => {
                let mut store = self.clone();
                store.has[0] = store.has[0].or(what);
                vec![store]
            }
            Model::Rep => {
                if self.complete(model).includes(what) {
                    vec![self.clone()]
                } else {
                    Vec::new()
                }
            }
            Model::Jit => {
                let mut outs = vec![self.clone()];
                for at in what.iter() {
                    let mut next: Vec<Self> = Vec::new();
                    for store in outs {
                        let have: Vec<usize> = (0..3).filter(|r| store.has[*r].contains(at)).collect();
                        if have.len() >= 2 {
                            next.push(store);
                            continue;
                        }
                        for pair in [[0, 1], [0, 2], [1, 2]] {
                            if have.iter().all(|r| pair.contains(r)) {
                                let mut store = store.clone();
                                pair.iter().for_each(|r| store.has[*r].insert(at));
                                next.push(store);
                            }
                        }
                    }
                    outs = next;
                }
                outs
            }
        }
    }

    /// What may come of a read that is under way: another store (a first replica has answered), or what it sees in the end.
    pub fn answers(&self, model: Model, at: usize, table: &Bits) -> Vec<(Self, Option<Bits>)> {
        let mut rest = self.clone();
        let read = rest.begun.remove(at);
        if model == Model::Abs {
            let open = self.issued.and(table).less(&read.seen);
            return open.subsets().map(|part| (rest.clone(), Some(read.seen.or(&part)))).collect();
        }
        let mut outs = Vec::new();
        for replica in 0..3_u8 {
            if read.first == Some(replica) {
                continue;
            }
            let missing = self.issued.and(table).less(&self.has[usize::from(replica)]);
            let late = if model == Model::Jit { missing } else { Bits::EMPTY };
            for part in late.subsets() {
                let mut store = rest.clone();
                let has = &mut store.has[usize::from(replica)];
                *has = has.or(&part);
                let answer = has.and(table);
                match read.first {
                    Some(_) => outs.push((store, Some(read.seen.or(&answer)))),
                    None => {
                        store.begun.push(Begun { first: Some(replica), seen: answer, ..read.clone() });
                        store.begun.sort_unstable();
                        outs.push((store, None));
                    }
                }
            }
        }
        outs
    }

    /// `Rep`: each delivery that has not happened.
    pub fn deliveries(&self) -> Vec<(u16, u8, Self)> {
        let mut outs = Vec::new();
        for replica in 0..3_u8 {
            for at in self.issued.less(&self.has[usize::from(replica)]).iter() {
                let mut store = self.clone();
                store.has[usize::from(replica)].insert(at);
                outs.push((at, replica, store));
            }
        }
        outs
    }

    /// Everything that a read which begins and ends now may see of these tables.
    pub fn views(&self, model: Model, table: &Bits) -> Vec<Bits> {
        let issued = self.issued.and(table);
        let mut views: Vec<Bits> = match model {
            Model::Abs => {
                let complete = self.has[0].and(table);
                issued.less(&complete).subsets().map(|part| complete.or(&part)).collect()
            }
            Model::Rep | Model::Jit => {
                let [a, b, c] = &self.has;
                let quorums = [a.or(b), a.or(c), b.or(c)];
                quorums
                    .iter()
                    .flat_map(|quorum| {
                        let seen = quorum.and(table);
                        let late = if model == Model::Jit { issued.less(&seen) } else { Bits::EMPTY };
                        late.subsets().map(move |part| seen.or(&part))
                    })
                    .collect()
            }
        };
        views.sort_unstable();
        views.dedup();
        views
    }

    /// Replicas are alike: the same store with their names in a fixed order.
    #[must_use]
    pub fn canonical(mut self, model: Model) -> Self {
        if model == Model::Abs {
            return self;
        }
        let key = |r: usize| {
            let firsts: Vec<bool> = self.begun.iter().map(|read| read.first == Some(r as u8)).collect();
            (self.has[r], firsts)
        };
        let mut order = [0, 1, 2];
        order.sort_by_key(|r| key(*r));
        if order != [0, 1, 2] {
            let has = order.map(|r| self.has[r]);
            for read in &mut self.begun {
                read.first = read.first.map(|first| {
                    order.iter().position(|r| *r == usize::from(first)).unwrap_or_default() as u8
                });
            }
            self.has = has;
            self.begun.sort_unstable();
        }
        self
    }
}

/// A page of rows as the store's trait describes it.
pub fn page<'a>(
    rows: impl Iterator<Item = (SegmentId, &'a Row)>,
    spans: &[Span],
    range: Range,
    limit: ReadLimit,
) -> Page {
    let within = |segment: SegmentId, row: &Row| {
        let spanned =
            spans.iter().any(|span| span.segment == segment && span.first <= row.seq && row.seq <= span.last);
        let ranged = match range {
            Range::After { after, through } => row.seq > after && row.seq <= through,
            Range::Before { before, above } => row.seq < before && row.seq > above,
        };
        spanned && ranged
    };
    let mut found: Vec<&Row> =
        rows.filter(|(segment, row)| within(*segment, row)).map(|(_, row)| row).collect();
    found.sort_by_key(|row| row.seq);
    found.dedup_by_key(|row| row.seq);
    let more = found.len() > limit.events;
    if more {
        match range {
            Range::After { .. } => found.truncate(limit.events),
            Range::Before { .. } => drop(found.drain(..found.len() - limit.events)),
        }
    }
    Page { rows: found.into_iter().cloned().collect(), more }
}

/// The newest of what is visible, by the seq that wrote it.
pub fn newest_member(derived: impl Iterator<Item = Derived>) -> Option<(Seq, u8)> {
    derived.flat_map(|derived| derived.members).map(|member| (member.changed, member.role)).max()
}
