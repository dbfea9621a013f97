//! The replicated store: three replicas, each with its own view of every write, and a coordinator that counts to two.
//!
//! Owns: what each replica holds, and every write and read under way.
//! Always holds (as DESIGN.md assumes): a write is done when two replicas have it; a read joins what two or three replicas
//! held at two or three moments; no replica loses its disk. A write of unknown outcome may arrive anywhere, at any time
//! later, or never. One key is never written with two contents: [`Store::clash`] tells of the first that was.
//! Does not: repair on reads, nor know what a chain is.

use std::collections::{BTreeMap, BTreeSet};

use banyan_proto::id::{Bucket, Epoch, Incarnation, RoomId, SegmentId, Seq, SlotId, UserId};
use banyan_storage::log_store::{Said, SegmentRecord, SlotOwner, Span, Write};
use banyan_storage::page::{Range, ReadLimit};
use banyan_storage::row::{Marks, MemberRow, RoomRow, Row};
use banyan_storage::{NotDone, Outcome};

use crate::random::Random;
use crate::schedule::{MS, SECOND, Time};

pub const REPLICAS: usize = 3;

/// What is written.
#[derive(Debug, Clone)]
pub enum Change {
    Room(RoomId, Write),
    Marks(Vec<(RoomId, UserId, Marks)>),
    Fence(Incarnation),
    Incarnation(Incarnation, String),
    SlotOwner { slot: SlotId, owner: SlotOwner, closes: Option<(Epoch, Incarnation)> },
}

/// What is read.
#[derive(Debug, Clone)]
pub enum Question {
    Segments(RoomId),
    Said(RoomId),
    Rows {
        room: RoomId,
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    },
    /// The room's own row and everybody who is or was in it.
    Room(RoomId),
    UserRooms {
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    },
    Fenced(Incarnation),
    Incarnations,
    SlotOwners(SlotId),
}

#[derive(Debug, Clone)]
pub enum Reading {
    Segments(Vec<SegmentRecord>),
    Said(Option<Said>),
    Rows(Vec<Row>, bool),
    Room(Option<RoomRow>, Vec<(MemberRow, Marks)>),
    UserRooms(Vec<RoomId>, bool),
    Fenced(bool),
    Incarnations(Vec<(Incarnation, String)>),
    SlotOwners(Vec<SlotOwner>),
}

#[derive(Debug, Clone)]
pub enum Answer {
    Wrote(Outcome),
    Read(Reading),
    /// A read that two replicas did not answer in time.
    ReadFailed,
}

/// One member, or one user's entry of a room, with the timestamp of its last change.
#[derive(Debug, Clone, Default)]
struct MemberEntry {
    row: Option<MemberRow>,
    marks: Marks,
}

/// All of a room on one replica.
#[derive(Debug, Clone, Default)]
struct Partition {
    segments: BTreeMap<SegmentId, SegmentRecord>,
    rows: BTreeMap<(Bucket, SegmentId, Seq), Row>,
    said: Option<(Time, Said)>,
    row: Option<RoomRow>,
    members: BTreeMap<UserId, MemberEntry>,
}

#[derive(Debug, Clone, Default)]
struct Replica {
    rooms: BTreeMap<RoomId, Partition>,
    user_rooms: BTreeMap<UserId, BTreeMap<RoomId, (Seq, bool)>>,
    fences: BTreeSet<Incarnation>,
    incarnations: BTreeMap<Incarnation, String>,
    slot_owners: BTreeMap<(SlotId, Epoch, Incarnation), bool>,
    /// It takes nothing and answers nothing for now; what comes waits (frozen) or is lost (down).
    frozen: bool,
    down: bool,
    waits: Vec<Step>,
    /// Factor on its delays.
    slow: u64,
}

/// What the world must bring back to [`Store::step`] later.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    operation: u32,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// Reaches a replica; of a write in pieces, the piece.
    Arrives {
        replica: u8,
        piece: u8,
    },
    /// The coordinator has answers enough.
    Finished,
    TimedOut,
}

#[derive(Debug)]
enum Work {
    Write { change: Change, at: Time, pieces: u8, missing: [u8; REPLICAS] },
    Read { question: Question, reading: Option<Reading> },
}

#[derive(Debug)]
struct Operation<C> {
    /// Taken when answered.
    caller: Option<C>,
    work: Work,
    /// Replicas that have answered.
    acks: u8,
    /// Its answer is lost on the way back, so it ends by its timeout.
    mute: bool,
    outcome: Outcome,
    /// Steps that will still come.
    steps: u8,
}

/// How the store misbehaves; all in per mille of messages to a replica unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Usual time to a replica and back, in microseconds.
    pub latency: Time,
    /// Takes up to a hundred times as long.
    pub slow: u32,
    /// Lost; half of them arrive seconds later after all.
    pub lost: u32,
    /// Of operations: done, but nobody hears of it.
    pub mute: u32,
    /// Of writes: refused, and nothing was sent anywhere.
    pub refused: u32,
    pub timeout: Time,
    /// What was read of fences is told so much later, and up to half more: their partitions are the store's hottest.
    pub fence_lag: Time,
}

#[derive(Debug)]
pub struct Store<C> {
    replicas: [Replica; REPLICAS],
    operations: Vec<Option<Operation<C>>>,
    free: Vec<u32>,
    random: Random,
    pub weather: Weather,
    clash: Option<String>,
    /// Steps made by the last call, with their time.
    pub steps: Vec<(Time, Step)>,
    pub counts: Counts,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub writes: u64,
    pub reads: u64,
    pub unknown: u64,
    /// Writes that reached a replica after their caller had been told `Unknown`.
    pub late: u64,
    pub torn: u64,
}

impl<C: Copy> Store<C> {
    pub fn new(random: Random, weather: Weather) -> Self {
        let replica = || Replica { slow: 1, ..Replica::default() };
        Self {
            replicas: [replica(), replica(), replica()],
            operations: Vec::new(),
            free: Vec::new(),
            random,
            weather,
            clash: None,
            steps: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The first key that was written with two contents.
    pub fn clash(&self) -> Option<&str> {
        self.clash.as_deref()
    }

    pub fn set_slow(&mut self, replica: usize, factor: u64) {
        self.replicas[replica].slow = factor;
    }

    pub fn set_down(&mut self, replica: usize, down: bool) {
        self.replicas[replica].down = down;
    }

    pub fn freeze(&mut self, replica: usize) {
        self.replicas[replica].frozen = true;
    }

    /// What waited for it arrives now.
    pub fn thaw(&mut self, now: Time, replica: usize) {
        self.replicas[replica].frozen = false;
        for step in std::mem::take(&mut self.replicas[replica].waits) {
            self.steps.push((now, step));
        }
    }

    fn insert(&mut self, operation: Operation<C>) -> u32 {
        match self.free.pop() {
            Some(index) => {
                self.operations[index as usize] = Some(operation);
                index
            }
            None => {
                self.operations.push(Some(operation));
                (self.operations.len() - 1) as u32
            }
        }
    }

    fn delay(&mut self, replica: usize) -> Time {
        let base = self.weather.latency / 2 + self.random.below(self.weather.latency + 1);
        let base =
            if self.random.chance(self.weather.slow) { base * self.random.between(3, 100) } else { base };
        base * self.replicas[replica].slow
    }

    fn arrive(&mut self, now: Time, operation: u32, replica: usize, pieces: u8) -> u8 {
        let mut steps = 0;
        for piece in 0..pieces {
            let delay = if self.random.chance(self.weather.lost) {
                if self.random.one_in(2) {
                    continue;
                }
                self.random.between(SECOND / 2, 12 * SECOND)
            } else {
                self.delay(replica)
            };
            steps += 1;
            let what = What::Arrives { replica: replica as u8, piece };
            self.steps.push((now + delay, Step { operation, what }));
        }
        steps
    }

    pub fn write(&mut self, now: Time, caller: C, change: Change) {
        self.counts.writes += 1;
        let refused = matches!(change, Change::Room(..)) && self.random.chance(self.weather.refused);
        // Rows of one partition come whole; what is spread over several may come in pieces.
        let pieces = match &change {
            Change::Room(_, Write::Derived(derived))
                if derived.members.len() > usize::from(derived.room.is_none()) =>
            {
                2
            }
            _ => 1,
        };
        let mute = self.random.chance(self.weather.mute);
        let work = Work::Write { change, at: now, pieces, missing: [pieces; REPLICAS] };
        let outcome = if refused { Outcome::NotDone(NotDone::Overloaded) } else { Outcome::Done };
        let operation = Operation { caller: Some(caller), work, acks: 0, mute, outcome, steps: 0 };
        let index = self.insert(operation);
        let mut steps = 1;
        if refused {
            self.steps.push((now + self.weather.latency, Step { operation: index, what: What::Finished }));
        } else {
            for replica in 0..REPLICAS {
                steps += self.arrive(now, index, replica, pieces);
            }
            self.steps.push((now + self.weather.timeout, Step { operation: index, what: What::TimedOut }));
        }
        if let Some(operation) = &mut self.operations[index as usize] {
            operation.steps = steps;
        }
    }

    pub fn read(&mut self, now: Time, caller: C, question: Question) {
        self.counts.reads += 1;
        let mute = self.random.chance(self.weather.mute);
        let work = Work::Read { question, reading: None };
        let operation =
            Operation { caller: Some(caller), work, acks: 0, mute, outcome: Outcome::Done, steps: 0 };
        let index = self.insert(operation);
        let left_out = if self.random.one_in(2) { self.random.index(REPLICAS) } else { REPLICAS };
        let mut steps = 1;
        for replica in 0..REPLICAS {
            // The one that is left out is asked later: by then two will have answered, or one of them is away.
            let late = if replica == left_out { 10 * self.weather.latency } else { 0 };
            steps += self.arrive(now + late, index, replica, 1);
        }
        self.steps.push((now + self.weather.timeout, Step { operation: index, what: What::TimedOut }));
        if let Some(operation) = &mut self.operations[index as usize] {
            operation.steps = steps;
        }
    }

    /// One step of an operation; an answer for its caller, if that made it one.
    pub fn step(&mut self, now: Time, step: Step) -> Option<(C, Answer)> {
        let Step { operation: index, what } = step;
        if let What::Arrives { replica, .. } = what {
            let replica = &mut self.replicas[usize::from(replica)];
            if replica.frozen {
                replica.waits.push(step);
                return None;
            }
        }
        let operation = self.operations[index as usize].as_mut()?;
        operation.steps -= 1;
        let mut answer = None;
        match what {
            What::Arrives { replica, piece } => {
                let number = usize::from(replica);
                let replica = &mut self.replicas[number];
                if !replica.down {
                    let before = operation.acks;
                    match &mut operation.work {
                        Work::Write { change, at, pieces, missing } => {
                            self.counts.late += u64::from(operation.caller.is_none() && operation.acks < 2);
                            apply(replica, change, *at, (*pieces > 1).then_some(piece), &mut self.clash);
                            missing[number] -= 1;
                            if missing[number] == 0 {
                                operation.acks += 1;
                            } else {
                                self.counts.torn += 1;
                            }
                        }
                        Work::Read { question, reading }
                            if operation.caller.is_some() && operation.acks < 2 =>
                        {
                            let here = look(replica, question);
                            *reading = Some(match reading.take() {
                                None => here,
                                Some(there) => join(question, there, here),
                            });
                            operation.acks += 1;
                        }
                        Work::Read { .. } => {}
                    }
                    if before < 2 && operation.acks == 2 && operation.caller.is_some() && !operation.mute {
                        operation.steps += 1;
                        let mut back =
                            self.weather.latency / 4 + self.random.below(self.weather.latency / 2 + 1);
                        let lag = self.weather.fence_lag;
                        if lag > 0
                            && matches!(operation.work, Work::Read { question: Question::Fenced(_), .. })
                        {
                            back += lag + self.random.below(lag / 2);
                        }
                        self.steps.push((now + back, Step { operation: index, what: What::Finished }));
                    }
                }
            }
            What::Finished => {
                if let Some(caller) = operation.caller.take() {
                    let told = match &mut operation.work {
                        Work::Write { .. } => Answer::Wrote(operation.outcome),
                        Work::Read { reading, .. } => match reading.take() {
                            Some(reading) => Answer::Read(reading),
                            None => Answer::ReadFailed,
                        },
                    };
                    answer = Some((caller, told));
                }
            }
            What::TimedOut => {
                if let Some(caller) = operation.caller.take() {
                    let told = match operation.work {
                        Work::Write { .. } => {
                            self.counts.unknown += 1;
                            Answer::Wrote(Outcome::Unknown)
                        }
                        Work::Read { .. } => Answer::ReadFailed,
                    };
                    answer = Some((caller, told));
                }
            }
        }
        if operation.steps == 0 {
            self.operations[index as usize] = None;
            self.free.push(index);
        }
        answer
    }

    /// What two replicas say now, without delay: for who looks at the store from outside the world.
    pub fn look(&self, replicas: [usize; 2], question: &Question) -> Reading {
        let [one, other] = replicas.map(|replica| look(&self.replicas[replica], question));
        join(question, one, other)
    }

    /// Every room of which any replica knows anything.
    pub fn rooms(&self) -> BTreeSet<RoomId> {
        self.replicas.iter().flat_map(|replica| replica.rooms.keys().cloned()).collect()
    }
}

fn clashed(clash: &mut Option<String>, text: impl FnOnce() -> String) {
    if clash.is_none() {
        *clash = Some(text());
    }
}

/// `piece`: of what lies in several partitions, the even or the odd rows.
fn apply(replica: &mut Replica, change: &Change, at: Time, piece: Option<u8>, clash: &mut Option<String>) {
    match change {
        Change::Room(room, write) => {
            if !replica.rooms.contains_key(room) {
                replica.rooms.insert(room.clone(), Partition::default());
            }
            let Some(partition) = replica.rooms.get_mut(room) else { return };
            match write {
                Write::Record(record) => match partition.segments.get(&record.id) {
                    None => {
                        partition.segments.insert(record.id, (**record).clone());
                    }
                    Some(there) if *there != **record => {
                        clashed(clash, || {
                            format!("{room}: two records under one key: {there:?} and {record:?}")
                        });
                        partition.segments.insert(record.id, (**record).clone());
                    }
                    Some(_) => {}
                },
                Write::Rows { segment, bucket, rows } => {
                    for row in rows.iter() {
                        let before = partition.rows.insert((*bucket, *segment, row.seq), row.clone());
                        if let Some(there) = before.filter(|there| there != row) {
                            clashed(clash, || {
                                format!(
                                    "{room}: two rows under one key, {segment:?} seq {}: {there:?} and {row:?}",
                                    row.seq
                                )
                            });
                        }
                    }
                }
                Write::Derived(derived) => {
                    let mine = |place: usize| piece.is_none_or(|piece| place % 2 == usize::from(piece));
                    if let Some(row) = derived.room.as_ref().filter(|_| mine(0))
                        && partition.row.as_ref().is_none_or(|there| there.changed <= row.changed)
                    {
                        partition.row = Some(row.clone());
                    }
                    let first = usize::from(derived.room.is_some());
                    for (place, member) in derived.members.iter().enumerate() {
                        if !mine(first + place) {
                            continue;
                        }
                        if !partition.members.contains_key(&member.user) {
                            partition.members.insert(member.user.clone(), MemberEntry::default());
                        }
                        let Some(entry) = partition.members.get_mut(&member.user) else { continue };
                        if entry.row.as_ref().is_none_or(|there| there.changed <= member.changed) {
                            entry.row = Some(member.clone());
                        }
                        let rooms = replica.user_rooms.entry(member.user.clone()).or_default();
                        let stands = rooms.entry(room.clone()).or_insert((member.changed, member.role != 0));
                        if stands.0 <= member.changed {
                            *stands = (member.changed, member.role != 0);
                        }
                    }
                }
                Write::Said(said) => {
                    // The coordinator's clock is the timestamp: good enough, since any order will do.
                    if partition.said.is_none_or(|(there, _)| there <= at) {
                        partition.said = Some((at, *said));
                    }
                }
            }
        }
        Change::Marks(group) => {
            for (room, user, marks) in group {
                let partition = replica.rooms.entry(room.clone()).or_default();
                let entry = partition.members.entry(user.clone()).or_default();
                entry.marks = entry.marks.max(*marks);
            }
        }
        Change::Fence(incarnation) => {
            replica.fences.insert(*incarnation);
        }
        Change::Incarnation(incarnation, node) => {
            replica.incarnations.insert(*incarnation, node.clone());
        }
        Change::SlotOwner { slot, owner, closes } => {
            *replica.slot_owners.entry((*slot, owner.epoch, owner.incarnation)).or_default() |= owner.closed;
            if let Some((epoch, incarnation)) = closes {
                replica.slot_owners.insert((*slot, *epoch, *incarnation), true);
            }
        }
    }
}

fn bounds(range: Range) -> (u64, u64) {
    match range {
        Range::After { after, through } => (after.0.saturating_add(1), through.0),
        Range::Before { before, above } => (above.0.saturating_add(1), before.0.saturating_sub(1)),
    }
}

fn look(replica: &Replica, question: &Question) -> Reading {
    let partition = |room: &RoomId| replica.rooms.get(room);
    match question {
        Question::Segments(room) => Reading::Segments(
            partition(room)
                .map(|partition| partition.segments.values().cloned().collect())
                .unwrap_or_default(),
        ),
        Question::Said(room) => {
            Reading::Said(partition(room).and_then(|partition| partition.said).map(|(_, said)| said))
        }
        Question::Rows { room, spans, range, limit } => {
            let mut rows = Vec::new();
            let Some(partition) = partition(room) else { return Reading::Rows(rows, false) };
            let (low, high) = bounds(*range);
            // One above what is asked for tells whether there are more. The limit of bytes is the joined answer's.
            let enough = limit.events + 1;
            let keys = |span: &Span| {
                let (first, last) = (span.first.0.max(low), span.last.0.min(high));
                (first <= last).then_some(
                    (span.bucket, span.segment, Seq(first))..=(span.bucket, span.segment, Seq(last)),
                )
            };
            match range {
                Range::After { .. } => {
                    for keys in spans.iter().filter_map(keys) {
                        let room_left = enough - rows.len();
                        rows.extend(partition.rows.range(keys).take(room_left).map(|(_, row)| row.clone()));
                    }
                }
                Range::Before { .. } => {
                    for keys in spans.iter().rev().filter_map(keys) {
                        let room_left = enough - rows.len();
                        rows.extend(
                            partition.rows.range(keys).rev().take(room_left).map(|(_, row)| row.clone()),
                        );
                    }
                    rows.reverse();
                }
            }
            Reading::Rows(rows, false)
        }
        Question::Room(room) => {
            let Some(partition) = partition(room) else { return Reading::Room(None, Vec::new()) };
            let members = partition.members.iter().map(|(user, entry)| {
                let row = entry.row.clone().unwrap_or_else(|| unknown_member(user));
                (row, entry.marks)
            });
            Reading::Room(partition.row.clone(), members.collect())
        }
        // Timestamps matter while answers of replicas are joined, so the whole list is given; see `join`.
        Question::UserRooms { user, after, limit } => {
            let rooms = replica.user_rooms.get(user);
            let mut rooms: Vec<RoomId> = rooms
                .into_iter()
                .flatten()
                .filter(|(room, (_, member))| *member && after.as_ref().is_none_or(|after| *room > after))
                .map(|(room, _)| room.clone())
                .collect();
            let more = rooms.len() > *limit;
            rooms.truncate(*limit);
            Reading::UserRooms(rooms, more)
        }
        Question::Fenced(incarnation) => Reading::Fenced(replica.fences.contains(incarnation)),
        Question::Incarnations => Reading::Incarnations(
            replica.incarnations.iter().map(|(incarnation, node)| (*incarnation, node.clone())).collect(),
        ),
        Question::SlotOwners(slot) => {
            let none = Incarnation(0);
            let all = (*slot, Epoch(0), none)..=(*slot, Epoch(u64::MAX), Incarnation(u128::MAX));
            Reading::SlotOwners(
                replica
                    .slot_owners
                    .range(all)
                    .map(|((_, epoch, incarnation), closed)| SlotOwner {
                        epoch: *epoch,
                        incarnation: *incarnation,
                        closed: *closed,
                    })
                    .collect(),
            )
        }
    }
}

/// Marks came before the row did: [`Question::Room`] leaves such members out once joined.
fn unknown_member(user: &UserId) -> MemberRow {
    MemberRow {
        user: user.clone(),
        name: String::new(),
        role: 0,
        joined_seq: Seq(0),
        left_seq: None,
        out: Vec::new(),
        changed: Seq(0),
    }
}

/// Two replicas' answers as one: the union of names, of two values the one with the higher timestamp.
fn join(question: &Question, one: Reading, other: Reading) -> Reading {
    match (one, other) {
        (Reading::Segments(one), Reading::Segments(other)) => {
            Reading::Segments(union(one, other, |record| record.id, |one, _| one))
        }
        (Reading::Said(one), Reading::Said(other)) => Reading::Said(match (one, other) {
            (Some(one), Some(other)) => {
                Some(if (one.segment, one.head) >= (other.segment, other.head) { one } else { other })
            }
            (one, other) => one.or(other),
        }),
        (Reading::Rows(one, _), Reading::Rows(other, _)) => {
            let mut rows = union(one, other, |row: &Row| row.seq, |one, _| one);
            let Question::Rows { range, limit, .. } = question else { return Reading::Rows(rows, false) };
            let from_below = matches!(range, Range::After { .. });
            let (mut count, mut bytes) = (0, 0);
            let sizes: Vec<usize> = rows.iter().map(|row| row.event.len()).collect();
            let in_order: Box<dyn Iterator<Item = &usize>> =
                if from_below { Box::new(sizes.iter()) } else { Box::new(sizes.iter().rev()) };
            for size in in_order {
                bytes += size;
                if count > 0 && (count >= limit.events || bytes > limit.bytes) {
                    break;
                }
                count += 1;
            }
            let more = count < rows.len();
            if from_below {
                rows.truncate(count);
            } else {
                rows.drain(..rows.len() - count);
            }
            Reading::Rows(rows, more)
        }
        (Reading::Room(one, members), Reading::Room(other, others)) => {
            let row = match (one, other) {
                (Some(one), Some(other)) => Some(if one.changed >= other.changed { one } else { other }),
                (one, other) => one.or(other),
            };
            let members = union(
                members,
                others,
                |(row, _)| row.user.clone(),
                |(one, marks), (other, other_marks)| {
                    let row = if one.changed >= other.changed { one } else { other };
                    (row, marks.max(other_marks))
                },
            );
            let known = |(row, _): &(MemberRow, Marks)| {
                row.joined_seq > Seq(0) || row.role != 0 || row.left_seq.is_some()
            };
            Reading::Room(row, members.into_iter().filter(known).collect())
        }
        (Reading::UserRooms(one, more), Reading::UserRooms(other, others_more)) => {
            let mut rooms = union(one, other, Clone::clone, |one, _| one);
            let limit = match question {
                Question::UserRooms { limit, .. } => *limit,
                _ => usize::MAX,
            };
            let cut = rooms.len() > limit;
            rooms.truncate(limit);
            Reading::UserRooms(rooms, cut || more || others_more)
        }
        (Reading::Fenced(one), Reading::Fenced(other)) => Reading::Fenced(one || other),
        (Reading::Incarnations(one), Reading::Incarnations(other)) => {
            Reading::Incarnations(union(one, other, |(incarnation, _)| *incarnation, |one, _| one))
        }
        (Reading::SlotOwners(one), Reading::SlotOwners(other)) => Reading::SlotOwners(union(
            one,
            other,
            |owner| (owner.epoch, owner.incarnation),
            |one, other| SlotOwner { closed: one.closed || other.closed, ..one },
        )),
        (one, _) => one,
    }
}

/// Merges two lists that are sorted by `key`, each key once.
fn union<T, K: Ord>(one: Vec<T>, other: Vec<T>, key: impl Fn(&T) -> K, both: impl Fn(T, T) -> T) -> Vec<T> {
    let mut merged = Vec::with_capacity(one.len().max(other.len()));
    let (mut one, mut other) = (one.into_iter().peekable(), other.into_iter().peekable());
    loop {
        let order = match (one.peek(), other.peek()) {
            (Some(left), Some(right)) => key(left).cmp(&key(right)),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (None, None) => return merged,
        };
        match order {
            std::cmp::Ordering::Less => merged.extend(one.next()),
            std::cmp::Ordering::Greater => merged.extend(other.next()),
            std::cmp::Ordering::Equal => {
                if let (Some(left), Some(right)) = (one.next(), other.next()) {
                    merged.push(both(left, right));
                }
            }
        }
    }
}

/// A store in which nothing goes wrong.
pub const CALM: Weather =
    Weather { latency: MS, slow: 0, lost: 0, mute: 0, refused: 0, timeout: SECOND, fence_lag: 0 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Schedule;
    use banyan_proto::id::{LogId, Origin, Part};

    type Answers = Vec<(u32, Answer)>;

    fn run(store: &mut Store<u32>, schedule: &mut Schedule<Step>) -> Answers {
        let mut answers = Vec::new();
        loop {
            for (time, step) in std::mem::take(&mut store.steps) {
                schedule.at(time, step);
            }
            let Some(step) = schedule.pop() else { return answers };
            answers.extend(store.step(schedule.now(), step));
        }
    }

    fn room() -> RoomId {
        RoomId::parse("r").unwrap()
    }

    const SEGMENT: SegmentId = SegmentId { epoch: Epoch(1), part: Part(1) };

    fn rows(seqs: &[u64]) -> Change {
        let rows = seqs.iter().map(|seq| Row {
            seq: Seq(*seq),
            batch_first: Seq(seqs[0]),
            n: *seq,
            origin: Origin(0),
            event: vec![0; 10].into(),
            derived: None,
        });
        Change::Room(room(), Write::Rows { segment: SEGMENT, bucket: Bucket(1), rows: rows.collect() })
    }

    fn page(range: Range, events: usize) -> Question {
        let span = Span { segment: SEGMENT, bucket: Bucket(1), first: Seq(1), last: Seq(u64::MAX) };
        let limit = ReadLimit { events, bytes: 1_000 };
        Question::Rows { room: room(), spans: vec![span], range, limit }
    }

    fn seqs(answers: &Answers, caller: u32) -> (Vec<u64>, bool) {
        let (_, answer) = answers.iter().find(|(of, _)| *of == caller).expect("an answer");
        match answer {
            Answer::Read(Reading::Rows(rows, more)) => (rows.iter().map(|row| row.seq.0).collect(), *more),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_done_is_read_by_any_two() {
        let (mut store, mut schedule) = (Store::new(Random::new(1, 1), CALM), Schedule::default());
        store.weather.lost = 200;
        let mut done = 0;
        for batch in 0..50 {
            store.write(schedule.now(), 1, rows(&[batch * 2 + 1, batch * 2 + 2]));
            let answers = run(&mut store, &mut schedule);
            if matches!(answers[..], [(1, Answer::Wrote(Outcome::Done))]) {
                done += 1;
                for replicas in [[0, 1], [1, 2], [0, 2]] {
                    let Reading::Rows(rows, _) = store.look(replicas, &page(Range::before(Seq(u64::MAX)), 2))
                    else {
                        panic!("rows")
                    };
                    assert_eq!(rows.last().map(|row| row.seq.0), Some(batch * 2 + 2));
                }
            }
        }
        assert!(done > 30 && store.counts.unknown > 0 && done + store.counts.unknown == 50);
    }

    #[test]
    fn what_was_read_of_fences_is_told_late() {
        let (mut store, mut schedule) = (Store::new(Random::new(5, 1), CALM), Schedule::default());
        store.weather.fence_lag = 100 * MS;
        store.read(0, 1, Question::Fenced(Incarnation(7)));
        let mut fenced_at = None;
        loop {
            for (time, step) in std::mem::take(&mut store.steps) {
                schedule.at(time, step);
            }
            let step = schedule.pop().expect("an answer");
            match store.step(schedule.now(), step) {
                Some((1, answer)) => {
                    assert!(matches!(answer, Answer::Read(Reading::Fenced(false))), "{answer:?}");
                    break;
                }
                Some((_, answer)) => {
                    assert!(matches!(answer, Answer::Wrote(Outcome::Done)));
                    fenced_at = Some(schedule.now());
                }
                None => {}
            }
            // All replicas have been read by then.
            if store.counts.writes == 0 && schedule.now() >= MS {
                store.write(20 * MS, 2, Change::Fence(Incarnation(7)));
            }
        }
        assert!(fenced_at.is_some_and(|at| at + 50 * MS < schedule.now()));
    }

    #[test]
    fn pages_end_where_they_should() {
        let (mut store, mut schedule) = (Store::new(Random::new(2, 1), CALM), Schedule::default());
        store.write(0, 0, rows(&[1, 2, 3, 4, 5]));
        run(&mut store, &mut schedule);
        store.read(schedule.now(), 1, page(Range::after(Seq(1)), 2));
        store.read(schedule.now(), 2, page(Range::before(Seq(5)), 2));
        store.read(schedule.now(), 3, page(Range::after(Seq(3)), 2));
        let answers = run(&mut store, &mut schedule);
        assert_eq!(seqs(&answers, 1), (vec![2, 3], true));
        assert_eq!(seqs(&answers, 2), (vec![3, 4], true));
        assert_eq!(seqs(&answers, 3), (vec![4, 5], false));
    }

    #[test]
    fn two_contents_under_one_key_are_noticed() {
        let (mut store, mut schedule) = (Store::new(Random::new(3, 1), CALM), Schedule::default());
        store.write(0, 0, rows(&[1, 2]));
        store.write(0, 0, rows(&[1, 2]));
        run(&mut store, &mut schedule);
        assert_eq!(store.clash(), None);
        store.write(schedule.now(), 0, rows(&[2]));
        run(&mut store, &mut schedule);
        assert!(store.clash().is_some());
        let record = |first| SegmentRecord {
            id: SEGMENT,
            bucket: Bucket(1),
            first_seq: Seq(first),
            n_before: 0,
            prev: None,
            incarnation: Incarnation(1),
            log: LogId(1),
        };
        store.clash = None;
        store.write(schedule.now(), 0, Change::Room(room(), Write::Record(record(1).into())));
        store.write(schedule.now(), 0, Change::Room(room(), Write::Record(record(2).into())));
        run(&mut store, &mut schedule);
        assert!(store.clash().is_some());
    }

    #[test]
    fn two_frozen_replicas_make_it_unknown_and_it_lands_later() {
        let (mut store, mut schedule) = (Store::new(Random::new(4, 1), CALM), Schedule::default());
        store.freeze(0);
        store.freeze(1);
        store.write(0, 1, Change::Fence(Incarnation(7)));
        store.read(0, 2, Question::Fenced(Incarnation(7)));
        let answers = run(&mut store, &mut schedule);
        assert!(
            answers.iter().any(|(of, answer)| *of == 1 && matches!(answer, Answer::Wrote(Outcome::Unknown)))
        );
        assert!(answers.iter().any(|(of, answer)| *of == 2 && matches!(answer, Answer::ReadFailed)));
        store.thaw(schedule.now(), 0);
        store.thaw(schedule.now(), 1);
        run(&mut store, &mut schedule);
        assert!(matches!(store.look([0, 1], &Question::Fenced(Incarnation(7))), Reading::Fenced(true)));
        assert!(store.counts.late > 0);
    }
}
