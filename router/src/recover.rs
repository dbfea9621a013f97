//! `banyan ring recover`: makes ownership right again after etcd was restored from an old snapshot.
//!
//! Owns: how far the recovery has come.
//! Always holds (DESIGN.md, section 4): ownership is frozen while it runs; every run that can have owned a slot before the
//! restore is fenced, and that is awaited, before a slot key is touched; a slot's new epoch is the first of a generation above
//! every key and every row of every slot. So whatever the lost part of etcd's history had granted is over, and takeovers go
//! on from names that nobody has used. It may be broken off and run again at any point.
//! Does not: touch etcd or the store. Each request is answered once.

use std::collections::{BTreeMap, BTreeSet};

use banyan_proto::id::{Epoch, Incarnation, SlotId};
use banyan_proto::plant::{self, Bug};

use crate::slot::SlotCount;
use crate::slot_key::{NodeId, OwnerRow, Peer, SlotKey, first_of_generation, generation};
use crate::slot_owner::{CasOutcome, Failed};

/// Requests under way at once.
const AT_ONCE: usize = 64;
/// What failed is asked again after this time.
const RETRY_MS: u64 = 500;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    Start,
    /// Answers [`Action::WriteFrozen`].
    Frozen(Result<(), Failed>),
    /// Answers [`Action::ReadIncarnations`].
    Incarnations(Result<Vec<Peer>, Failed>),
    /// Answers [`Action::WriteFence`].
    FenceWritten {
        incarnation: Incarnation,
        result: Result<(), Failed>,
    },
    /// Answers [`Action::ReadSlot`].
    SlotRead {
        slot: SlotId,
        result: Result<(Option<SlotKey>, Vec<OwnerRow>), Failed>,
    },
    /// Answers [`Action::SetSlot`].
    SlotSet {
        slot: SlotId,
        outcome: CasOutcome,
    },
    /// Answers [`Action::Lift`].
    Lifted(Result<(), Failed>),
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Puts the key `frozen`, if it is not there.
    WriteFrozen,
    /// All runs that the store knows, at quorum.
    ReadIncarnations,
    /// At quorum.
    WriteFence {
        incarnation: Incarnation,
    },
    /// The slot's key, linearizable, and then its owners' rows, at quorum.
    ReadSlot {
        slot: SlotId,
    },
    /// If the slot's key is exactly `expect`, it becomes `new`: though ownership is frozen.
    SetSlot {
        slot: SlotId,
        expect: Option<SlotKey>,
        new: SlotKey,
    },
    /// Deletes the key `frozen`.
    Lift,
    Done,
}

/// How far it has come: `done` of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Progress {
    pub step: Step,
    pub done: usize,
    pub of: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    Freezing,
    ListingRuns,
    Fencing,
    ReadingSlots,
    SettingSlots,
    Lifting,
    Done,
}

/// What a slot was found to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Found {
    key: Option<SlotKey>,
    highest: Option<OwnerRow>,
}

impl Found {
    fn generation(&self) -> u32 {
        let of_key = self.key.as_ref().map_or(Epoch(0), |key| key.epoch);
        let of_rows = self.highest.map_or(Epoch(0), |row| row.tenure.epoch);
        generation(of_key.max(of_rows))
    }
}

/// A recovery under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Recover {
    slots: SlotCount,
    /// The run that carries it out, if a node does. It is fenced like all others.
    through: Option<Incarnation>,
    step: Step,
    runs: BTreeMap<Incarnation, NodeId>,
    /// Of the step: what is still to be asked, and what is under way.
    fences: Work<Incarnation>,
    work: Work<SlotId>,
    found: BTreeMap<SlotId, Found>,
    /// One above all that was found.
    generation: u32,
    again_at: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Work<T> {
    todo: BTreeSet<T>,
    under_way: BTreeSet<T>,
}

impl<T: Ord + Copy> Work<T> {
    fn of(todo: impl IntoIterator<Item = T>) -> Self {
        Self { todo: todo.into_iter().collect(), under_way: BTreeSet::new() }
    }

    fn next(&mut self) -> Option<T> {
        if self.under_way.len() == AT_ONCE {
            return None;
        }
        let item = self.todo.pop_first()?;
        self.under_way.insert(item);
        Some(item)
    }

    fn is_done(&self) -> bool {
        self.todo.is_empty() && self.under_way.is_empty()
    }

    fn left(&self) -> usize {
        self.todo.len() + self.under_way.len()
    }
}

impl Recover {
    pub fn new(slots: SlotCount, through: Option<Incarnation>) -> Self {
        Self {
            slots,
            through,
            step: Step::Freezing,
            runs: BTreeMap::new(),
            fences: Work::of([]),
            work: Work::of([]),
            found: BTreeMap::new(),
            generation: 0,
            again_at: None,
        }
    }

    pub fn progress(&self) -> Progress {
        let (left, of) = match self.step {
            Step::Fencing => (self.fences.left(), self.runs.len()),
            Step::ReadingSlots | Step::SettingSlots => (self.work.left(), self.slots.get() as usize),
            Step::Freezing | Step::ListingRuns | Step::Lifting => (1, 1),
            Step::Done => (0, 1),
        };
        Progress { step: self.step, done: of.saturating_sub(left), of }
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.again_at
    }

    /// Applies one input and pushes what must be done onto `out`.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Action>) {
        match (self.step, input) {
            (_, Input::Start) => self.ask(out),
            (Step::Freezing, Input::Frozen(Ok(()))) => {
                self.step = Step::ListingRuns;
                self.ask(out);
            }
            (Step::ListingRuns, Input::Incarnations(Ok(runs))) => self.fence(runs, out),
            (Step::Fencing, Input::FenceWritten { incarnation, result }) => {
                self.fenced(now_ms, incarnation, result, out);
            }
            (Step::ReadingSlots | Step::SettingSlots, Input::SlotRead { slot, result }) => {
                self.read(now_ms, slot, result, out);
            }
            (Step::SettingSlots, Input::SlotSet { slot, outcome }) => self.set(now_ms, slot, &outcome, out),
            (Step::Lifting, Input::Lifted(Ok(()))) => {
                self.step = Step::Done;
                out.push(Action::Done);
            }
            (Step::Freezing, Input::Frozen(Err(Failed)))
            | (Step::ListingRuns, Input::Incarnations(Err(Failed)))
            | (Step::Lifting, Input::Lifted(Err(Failed))) => self.later(now_ms),
            (_, Input::Tick) if self.again_at.is_some_and(|at| at <= now_ms) => {
                self.again_at = None;
                self.ask(out);
            }
            _ => {}
        }
    }

    fn later(&mut self, now_ms: u64) {
        self.again_at.get_or_insert(now_ms + RETRY_MS);
    }

    /// Makes the requests of the step that may be made now.
    fn ask(&mut self, out: &mut Vec<Action>) {
        match self.step {
            Step::Freezing => out.push(Action::WriteFrozen),
            Step::ListingRuns => out.push(Action::ReadIncarnations),
            Step::Fencing => {
                while let Some(incarnation) = self.fences.next() {
                    out.push(Action::WriteFence { incarnation });
                }
            }
            Step::ReadingSlots => {
                while let Some(slot) = self.work.next() {
                    out.push(Action::ReadSlot { slot });
                }
            }
            Step::SettingSlots => {
                while let Some(slot) = self.work.next() {
                    self.ask_slot(slot, out);
                }
            }
            Step::Lifting => out.push(Action::Lift),
            Step::Done => {}
        }
    }

    // ---------------------------------------------------------------- fences

    fn fence(&mut self, runs: Vec<Peer>, out: &mut Vec<Action>) {
        self.runs = runs.into_iter().map(|run| (run.incarnation, run.node)).collect();
        let spared =
            |run: &Incarnation| plant::is(Bug::RecoverSparesRunningNode) && self.through == Some(*run);
        self.fences = Work::of(self.runs.keys().copied().filter(|run| !spared(run)));
        self.step = Step::Fencing;
        self.ask(out);
        self.fences_done(out);
    }

    fn fenced(
        &mut self,
        now_ms: u64,
        incarnation: Incarnation,
        result: Result<(), Failed>,
        out: &mut Vec<Action>,
    ) {
        if !self.fences.under_way.remove(&incarnation) {
            return;
        }
        if result.is_err() {
            self.fences.todo.insert(incarnation);
            return self.later(now_ms);
        }
        self.ask(out);
        self.fences_done(out);
    }

    fn fences_done(&mut self, out: &mut Vec<Action>) {
        if self.fences.is_done() {
            self.read_all(out);
        }
    }

    // ---------------------------------------------------------------- slots

    fn all_slots(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.slots.get()).map(|slot| SlotId(slot as u16))
    }

    fn read_all(&mut self, out: &mut Vec<Action>) {
        self.step = Step::ReadingSlots;
        self.found.clear();
        self.work = Work::of(self.all_slots());
        self.ask(out);
    }

    fn read(
        &mut self,
        now_ms: u64,
        slot: SlotId,
        result: Result<(Option<SlotKey>, Vec<OwnerRow>), Failed>,
        out: &mut Vec<Action>,
    ) {
        if !self.work.under_way.remove(&slot) {
            return;
        }
        let Ok((key, rows)) = result else {
            self.work.todo.insert(slot);
            return self.later(now_ms);
        };
        let found = Found { key, highest: rows.into_iter().max() };
        if self.step == Step::SettingSlots {
            let is_set =
                found.key.as_ref().is_some_and(|key| key.epoch == first_of_generation(self.generation));
            if !is_set && found.generation() >= self.generation {
                // Another recovery is under way, and further than this one.
                return self.read_all(out);
            }
            if !is_set {
                self.work.todo.insert(slot);
            }
        }
        self.found.insert(slot, found);
        self.go_on(out);
    }

    fn go_on(&mut self, out: &mut Vec<Action>) {
        self.ask(out);
        if self.step == Step::ReadingSlots && self.work.is_done() {
            let highest = self.found.values().map(Found::generation).max();
            self.generation = highest.map_or(0, |generation| generation + 1);
            self.step = Step::SettingSlots;
            let owned = self.found.iter().filter(|(_, found)| self.new_key(found).is_some());
            self.work = Work::of(owned.map(|(slot, _)| *slot));
            self.ask(out);
        }
        if self.step == Step::SettingSlots && self.work.is_done() {
            self.step = Step::Lifting;
            self.ask(out);
        }
    }

    /// Who is owner from now on: whoever the key names, in a new generation. If the key is lost, whoever the store knows last.
    /// A slot that nobody has owned stays so.
    fn new_key(&self, found: &Found) -> Option<SlotKey> {
        let (owner, incarnation) = match (&found.key, found.highest) {
            (Some(key), _) => (key.owner.clone(), key.incarnation),
            (None, Some(row)) => {
                let incarnation = row.tenure.incarnation;
                (self.runs.get(&incarnation)?.clone(), incarnation)
            }
            (None, None) => return None,
        };
        Some(SlotKey { owner, incarnation, epoch: first_of_generation(self.generation), prev: None })
    }

    fn ask_slot(&self, slot: SlotId, out: &mut Vec<Action>) {
        match self.found.get(&slot) {
            None => out.push(Action::ReadSlot { slot }),
            Some(found) => {
                if let Some(new) = self.new_key(found) {
                    out.push(Action::SetSlot { slot, expect: found.key.clone(), new });
                }
            }
        }
    }

    fn set(&mut self, now_ms: u64, slot: SlotId, outcome: &CasOutcome, out: &mut Vec<Action>) {
        if !self.work.under_way.remove(&slot) {
            return;
        }
        if *outcome != CasOutcome::Won {
            // Read it again: it may have been set after all.
            self.found.remove(&slot);
            self.work.todo.insert(slot);
        }
        if *outcome == CasOutcome::Unknown {
            return self.later(now_ms);
        }
        self.go_on(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banyan_proto::id::Tenure;

    fn peer(name: &str, incarnation: u128) -> Peer {
        Peer { node: NodeId::parse(name).unwrap(), incarnation: Incarnation(incarnation) }
    }

    fn key(peer: &Peer, epoch: u64) -> SlotKey {
        SlotKey { owner: peer.node.clone(), incarnation: peer.incarnation, epoch: Epoch(epoch), prev: None }
    }

    fn row(peer: &Peer, epoch: u64) -> OwnerRow {
        OwnerRow { tenure: Tenure { epoch: Epoch(epoch), incarnation: peer.incarnation }, closed: false }
    }

    /// etcd and the store; every `fails`-th request fails or is carried out unheard.
    struct World {
        keys: BTreeMap<SlotId, SlotKey>,
        rows: BTreeMap<SlotId, Vec<OwnerRow>>,
        runs: Vec<Peer>,
        fences: BTreeSet<Incarnation>,
        frozen: bool,
        fails: usize,
        requests: usize,
    }

    impl World {
        fn answer(&mut self, action: Action) -> Option<Input> {
            self.requests += 1;
            let fails = self.fails > 0 && self.requests.is_multiple_of(self.fails);
            let result = if fails { Err(Failed) } else { Ok(()) };
            Some(match action {
                Action::WriteFrozen => {
                    self.frozen = true;
                    Input::Frozen(result)
                }
                Action::ReadIncarnations => Input::Incarnations(result.map(|()| self.runs.clone())),
                Action::WriteFence { incarnation } => {
                    if !fails {
                        self.fences.insert(incarnation);
                    }
                    Input::FenceWritten { incarnation, result }
                }
                Action::ReadSlot { slot } => {
                    let rows = self.rows.get(&slot).cloned().unwrap_or_default();
                    Input::SlotRead { slot, result: result.map(|()| (self.keys.get(&slot).cloned(), rows)) }
                }
                Action::SetSlot { slot, expect, new } => {
                    assert!(self.frozen, "slots are set while nobody else may");
                    assert_eq!(
                        self.fences.len(),
                        self.runs.len(),
                        "every run is fenced before a slot is set"
                    );
                    let current = self.keys.get(&slot).cloned();
                    let won = current == expect;
                    if won {
                        self.keys.insert(slot, new);
                    }
                    let outcome = match (fails, won) {
                        (true, _) => CasOutcome::Unknown,
                        (false, true) => CasOutcome::Won,
                        (false, false) => CasOutcome::Lost(current),
                    };
                    Input::SlotSet { slot, outcome }
                }
                Action::Lift => {
                    self.frozen = fails;
                    Input::Lifted(result)
                }
                Action::Done => return None,
            })
        }

        fn run(&mut self) {
            let mut recover = Recover::new(SlotCount::new(256).unwrap(), None);
            let (mut now, mut steps) = (0, Vec::new());
            let mut inputs = std::collections::VecDeque::from([Input::Start]);
            while recover.progress().step != Step::Done {
                let input = inputs.pop_front().unwrap_or_else(|| {
                    now = recover.next_deadline().expect("it waits for something");
                    Input::Tick
                });
                let mut out = Vec::new();
                recover.handle(now, input, &mut out);
                assert!(recover.next_deadline().is_none_or(|at| at > now));
                steps.push(recover.progress().step);
                inputs.extend(out.into_iter().filter_map(|action| self.answer(action)));
                assert!(inputs.len() <= AT_ONCE);
            }
            assert!(steps.is_sorted());
            assert!(!self.frozen);
        }
    }

    fn restored(fails: usize) -> World {
        let (a, b) = (peer("a", 1), peer("b", 2));
        let mut world = World {
            keys: BTreeMap::new(),
            rows: BTreeMap::new(),
            runs: vec![a.clone(), b.clone()],
            fences: BTreeSet::new(),
            frozen: false,
            fails,
            requests: 0,
        };
        for slot in (0..200).map(SlotId) {
            world.keys.insert(slot, key(&a, 3));
            world.rows.insert(slot, vec![row(&a, 3), row(&b, 4)]);
        }
        // The store has seen a later generation of one slot; the keys of some are lost.
        world.rows.insert(SlotId(7), vec![row(&a, 3), row(&b, (5 << 32) | 9)]);
        for slot in (200..210).map(SlotId) {
            world.rows.insert(slot, vec![row(&a, 1), row(&b, 2)]);
        }
        world
    }

    #[test]
    fn every_slot_gets_an_epoch_above_all_that_was() {
        for fails in [0, 2, 3, 7] {
            let mut world = restored(fails);
            world.run();
            let (a, b) = (peer("a", 1), peer("b", 2));
            for slot in (0..256).map(SlotId) {
                let want = match slot.0 {
                    0..200 => Some(key(&a, (6 << 32) | 1)),
                    200..210 => Some(key(&b, (6 << 32) | 1)),
                    _ => None,
                };
                assert_eq!(world.keys.get(&slot), want.as_ref(), "{slot}");
            }
        }
    }

    #[test]
    fn it_may_be_run_again() {
        let mut world = restored(3);
        world.run();
        world.run();
        assert_eq!(world.keys[&SlotId(0)].epoch, first_of_generation(7));
    }
}
