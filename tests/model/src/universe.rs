//! Everything that the states of a run refer to by number, and what only depends on such numbers.

use std::rc::Rc;
use std::sync::Arc;

use banyan_proto::id::{Epoch, Incarnation, LogId, SegmentId, Seq, Tenure};
use banyan_router::recover::Recover;
use banyan_router::slot_key::{OwnerRow, SlotKey};
use banyan_shard_core::log::{self, Limits, Log, Which};
use banyan_storage::Outcome;
use banyan_storage::log_store::{Said, SegmentRecord, Span, Write};
use banyan_storage::{Derived, Page, Range, ReadLimit, Row};
use hashbrown::HashMap;

use crate::bits::Bits;
use crate::intern::Interner;
use crate::node::{Ask, Event, Input, Kind, Node, Passed, Turn, now};
use crate::store::{Mutation, Store, TABLES, Table, newest_member, page};
use crate::world::World;

/// etcd, the mail between nodes, and what the environment has done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Env {
    pub key: Option<SlotKey>,
    /// Which runs have a node key.
    pub node_keys: u8,
    /// Transactions that may still take effect.
    pub requests: Vec<Transaction>,
    /// State on its way to a node.
    pub mail: Vec<(u8, Passed)>,
    /// Values that the key has had: only kept where a restore may come.
    pub history: Vec<SlotKey>,
    pub restored: bool,
    /// Nobody may change ownership.
    pub frozen: bool,
    pub recovery: Option<Box<Recovery>>,
}

/// `ring recover` as somebody runs it, once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recovery {
    pub machine: Recover,
    /// Fences that it has sent and not seen complete.
    pub fences: Vec<u8>,
    /// The slot is being read: its key as it was when the read of the rows began.
    pub reads: Option<Option<SlotKey>>,
    pub done: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Transaction {
    pub expect: Option<SlotKey>,
    pub new: SlotKey,
    pub by: u8,
}

/// What a further owner makes of what it reads.
#[derive(Debug, Clone)]
pub struct Opened {
    pub log: u32,
    /// The derived rows that it writes again.
    pub derived: Option<Derived>,
}

type Stepped = (u32, Rc<[Ask]>);

#[derive(Debug)]
pub struct Universe {
    mutations: Interner<Mutation>,
    tables: [Bits; TABLES],
    fences: Vec<Bits>,
    pub events: Interner<Event>,
    /// Logs as somebody knows them: numbers of events.
    pub logs: Interner<Vec<u16>>,
    pub limits: Arc<Limits>,
    pub stores: Interner<Rc<Store>>,
    pub envs: Interner<Rc<Env>>,
    pub nodes: Interner<Rc<Node>>,
    steps: HashMap<(u32, Input), Stepped, foldhash::fast::FixedState>,
    opened: HashMap<Bits, Result<Opened, Arc<str>>, foldhash::fast::FixedState>,
}

impl Universe {
    pub fn new(world: &World) -> Self {
        let limits = Limits {
            window_ms: 10,
            bucket_bytes: u64::MAX,
            settle_first_ms: 1,
            settle_max_ms: 1,
            tail: ReadLimit { events: 64, bytes: 1 << 20 },
        };
        let mut universe = Self {
            mutations: Interner::default(),
            tables: [Bits::EMPTY; TABLES],
            fences: Vec::new(),
            events: Interner::default(),
            logs: Interner::default(),
            limits: Arc::new(limits),
            stores: Interner::default(),
            envs: Interner::default(),
            nodes: Interner::default(),
            steps: HashMap::default(),
            opened: HashMap::default(),
        };
        universe.logs.intern(Vec::new());
        for run in 0..world.nodes {
            let fence = universe.mutation(Mutation::Fence(run));
            universe.fences.push(Bits::one(fence));
        }
        universe
    }

    pub fn mutation(&mut self, mutation: Mutation) -> u16 {
        let table = mutation.table();
        let at = self.mutations.intern(mutation);
        assert!((at as usize) < Bits::MAX, "the world has more different writes than fit a set");
        self.tables[table as usize].insert(at as u16);
        at as u16
    }

    pub fn get(&self, at: u16) -> &Mutation {
        self.mutations.get(u32::from(at))
    }

    pub fn table(&self, table: Table) -> Bits {
        self.tables[table as usize]
    }

    pub fn fence_of(&self, run: u8) -> Bits {
        self.fences[usize::from(run)]
    }

    fn of<'a>(&'a self, seen: &'a Bits) -> impl Iterator<Item = &'a Mutation> {
        seen.iter().map(|at| self.get(at))
    }

    /// The key of `at` has another content among what was issued.
    pub fn clash(&self, issued: &Bits, at: u16) -> Option<u16> {
        let mutation = self.get(at);
        let same = issued.and(&self.table(mutation.table()));
        same.iter().find(|other| mutation.clashes(self.get(*other)))
    }

    // ---------------------------------------------------------------- what reads see

    pub fn records(&self, seen: &Bits) -> Vec<SegmentRecord> {
        let mut records: Vec<SegmentRecord> = self
            .of(seen)
            .filter_map(|mutation| match mutation {
                Mutation::Record(record) => Some(record.clone()),
                _ => None,
            })
            .collect();
        records.sort_by_key(|record| record.id);
        records
    }

    pub fn said(&self, seen: &Bits) -> Vec<Said> {
        self.of(seen)
            .filter_map(|mutation| match mutation {
                Mutation::Said(said) => Some(*said),
                _ => None,
            })
            .collect()
    }

    fn rows<'a>(&'a self, seen: &'a Bits) -> impl Iterator<Item = (SegmentId, &'a Row)> {
        self.of(seen).flat_map(|mutation| {
            let (segment, rows) = match mutation {
                Mutation::Rows { segment, rows } => (*segment, rows.as_slice()),
                _ => (SegmentId { epoch: Epoch(0), part: banyan_proto::id::Part(0) }, &[][..]),
            };
            rows.iter().map(move |row| (segment, row))
        })
    }

    pub fn page(&self, seen: &Bits, spans: &[Span], range: Range, limit: ReadLimit) -> Page {
        page(self.rows(seen), spans, range, limit)
    }

    /// Writes of rows that a read of these spans may see.
    pub fn rows_in(&self, spans: &[Span]) -> Bits {
        let table = self.table(Table::Messages);
        let within = |at: &u16| match self.get(*at) {
            Mutation::Rows { segment, rows } => rows.iter().any(|row| {
                spans
                    .iter()
                    .any(|span| span.segment == *segment && span.first <= row.seq && row.seq <= span.last)
            }),
            _ => false,
        };
        table.iter().filter(within).collect()
    }

    pub fn owners(&self, seen: &Bits) -> Vec<OwnerRow> {
        let mut rows: Vec<OwnerRow> = Vec::new();
        for mutation in self.of(seen) {
            let (tenure, closed) = match mutation {
                Mutation::Owner(tenure) => (*tenure, false),
                Mutation::Closed(tenure) => (*tenure, true),
                _ => continue,
            };
            match rows.iter_mut().find(|row| row.tenure == tenure) {
                Some(row) => row.closed |= closed,
                None => rows.push(OwnerRow { tenure, closed }),
            }
        }
        rows.sort_unstable();
        rows
    }

    /// The role of the one user whose membership changes.
    pub fn member(&self, seen: &Bits) -> u8 {
        let derived = self.of(seen).filter_map(|mutation| match mutation {
            Mutation::Derived(derived) => Some(derived.clone()),
            _ => None,
        });
        newest_member(derived).map_or(1, |(_, role)| role)
    }

    /// What the log itself says of that user.
    pub fn fold(&self, log: u32) -> u8 {
        let events = self.logs.get(log).iter().map(|at| self.events.get(u32::from(*at)).kind);
        events.fold(1, |role, kind| match kind {
            Kind::Message => role,
            Kind::Removed => 0,
            Kind::Joined => 1,
        })
    }

    pub fn entries(&mut self, rows: &[Row]) -> u32 {
        let numbers = rows
            .iter()
            .map(|row| {
                let bytes: [u8; 4] = row.event[..].try_into().expect("an event's number");
                u32::from_le_bytes(bytes) as u16
            })
            .collect();
        self.logs.intern(numbers)
    }

    // ---------------------------------------------------------------- steps

    /// What becomes of a node; worked out once for each pair.
    pub fn step(&mut self, world: &World, node: u32, input: Input) -> Stepped {
        if let Some(known) = self.steps.get(&(node, input.clone())) {
            return known.clone();
        }
        let mut moved = Node::clone(self.nodes.get(node));
        let mut asks = Vec::new();
        Turn { universe: self, world, node: &mut moved, asks: &mut asks }.step(input.clone());
        let stepped = (self.nodes.intern(Rc::new(moved)), Rc::from(asks));
        self.steps.insert((node, input), stepped.clone());
        stepped
    }

    /// A further owner opens the room in full and sees exactly this.
    pub fn open(&mut self, records: &Bits, rows: &Bits) -> Result<Opened, Arc<str>> {
        let seen = records.or(rows);
        if let Some(known) = self.opened.get(&seen) {
            return known.clone();
        }
        let opened = self.open_anew(&seen).map_err(Arc::from);
        self.opened.insert(seen, opened.clone());
        opened
    }

    fn open_anew(&mut self, seen: &Bits) -> Result<Opened, String> {
        let tenure = Tenure { epoch: Epoch(1 << 50), incarnation: Incarnation(u128::MAX) };
        let mut log = Log::new(tenure, 0, LogId(0), Arc::clone(&self.limits));
        let mut todo = log::Actions::new();
        log.open(now(), log::Opening::Full, &mut todo);
        let mut derived = None;
        for _ in 0..32 {
            let actions = std::mem::take(&mut todo);
            if actions.is_empty() {
                return Err(
                    "something that must be there is not: a record that is linked to, or a row".to_owned()
                );
            }
            for action in actions {
                match action {
                    log::Action::ReadSegments => {
                        log.handle(now(), log::Input::Segments(Ok(self.records(seen))), &mut todo);
                    }
                    log::Action::ReadRows { spans, range, limit } => {
                        let page = self.page(seen, &spans, range, limit);
                        log.handle(now(), log::Input::Rows(Ok(page)), &mut todo);
                    }
                    log::Action::Write { which, write } => {
                        if let (Which::Derived, Write::Derived(again)) = (which, write) {
                            derived = Some(*again);
                        }
                        log.handle(now(), log::Input::Wrote { which, outcome: Outcome::Done }, &mut todo);
                    }
                    log::Action::Barrier => log.handle(now(), log::Input::Passed, &mut todo),
                    log::Action::Opened { rows } => {
                        let first = rows.first().map_or(0, |row| row.seq.0 - 1);
                        let spans = log.spans(Seq(1), Seq(first));
                        let limit = ReadLimit { events: 64, bytes: 1 << 20 };
                        let mut all = self.page(seen, &spans, Range::after(Seq(0)), limit).rows;
                        all.extend(rows);
                        if all.len() as u64 != log.head().0 {
                            let seen = self.entries(&all);
                            return Err(format!("a hole: head {}, rows {}", log.head(), self.log_text(seen)));
                        }
                        return Ok(Opened { log: self.entries(&all), derived });
                    }
                    log::Action::Absent => return Ok(Opened { log: 0, derived: None }),
                    other => return Err(format!("{other:?}")),
                }
            }
        }
        Err("an open that does not end".to_owned())
    }

    /// What the members table says to that owner after it wrote its derived rows.
    pub fn member_with(&self, seen: &Bits, again: Option<&Derived>) -> u8 {
        let derived = self.of(seen).filter_map(|mutation| match mutation {
            Mutation::Derived(derived) => Some(derived.clone()),
            _ => None,
        });
        newest_member(derived.chain(again.cloned())).map_or(1, |(_, role)| role)
    }

    /// The highest seq by which the members table was changed.
    pub fn members_changed(&self, seen: &Bits) -> u64 {
        let derived = self.of(seen).filter_map(|mutation| match mutation {
            Mutation::Derived(derived) => Some(derived.clone()),
            _ => None,
        });
        newest_member(derived).map_or(0, |(changed, _)| changed.0)
    }

    pub fn sizes(&self) -> [(&'static str, usize); 5] {
        [
            ("node states", self.nodes.count()),
            ("store states", self.stores.count()),
            ("etcd states", self.envs.count()),
            ("writes", self.mutations.count()),
            ("steps of cores", self.steps.len()),
        ]
    }
}
