//! All slots of one node run: which are looked at next, how many change at once, and the requests that they share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use banyan_proto::id::{Incarnation, SlotId};

use super::account::Waits;
use super::{Action, End, Freezing, Node, Options, Request};
use crate::node_key::State;
use crate::ring::Ring;
use crate::slot_key::Peer;
use crate::slot_owner::{self, Failed, Ownership, Standing};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slot {
    machine: Ownership,
    /// Since when it has been seen without a living owner.
    orphan_since: Option<u64>,
    /// Not tried again before.
    try_at: u64,
    /// To be looked at then.
    look_at: Option<u64>,
    /// The deadline under which it is listed.
    listed: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Slots {
    all: Vec<Slot>,
    /// Something about them has changed.
    look: Look,
    deadlines: BTreeSet<(u64, SlotId)>,
    changing: usize,
    /// Of these, handed over.
    giving: usize,
    serving: usize,
    /// Slots that wait for their turn to be handed to a run.
    waiting: BTreeMap<Incarnation, BTreeSet<SlotId>>,
    /// Runs of which a linearizable read has shown no node key: there will be none again.
    gone: BTreeSet<Incarnation>,
    /// Runs whose fence this run has written and waited for.
    fenced: BTreeSet<Incarnation>,
    asking: BTreeMap<Incarnation, BTreeSet<SlotId>>,
    fencing: BTreeMap<Incarnation, BTreeSet<SlotId>>,
}

/// Slots to be looked at. Those that somebody waits for come first: what is begun first reaches etcd and the store first,
/// and a node that dies may leave thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Look {
    first: BTreeSet<SlotId>,
    then: BTreeSet<SlotId>,
    /// Whether to be looked at or not.
    wanted: BTreeSet<SlotId>,
}

impl Look {
    fn insert(&mut self, id: SlotId) {
        if self.wanted.contains(&id) {
            self.first.insert(id);
        } else {
            self.then.insert(id);
        }
    }

    fn remove(&mut self, id: SlotId) {
        self.first.remove(&id);
        self.then.remove(&id);
    }

    /// Nobody had waited for it before.
    fn want(&mut self, id: SlotId) -> bool {
        if self.then.remove(&id) {
            self.first.insert(id);
        }
        self.wanted.insert(id)
    }

    fn pop(&mut self) -> Option<SlotId> {
        self.first.pop_first().or_else(|| self.then.pop_first())
    }

    /// Those that somebody waits for, then the others.
    fn in_order(&self, slots: BTreeSet<SlotId>) -> impl Iterator<Item = SlotId> + use<> {
        let (first, then): (Vec<_>, Vec<_>) = slots.into_iter().partition(|id| self.wanted.contains(id));
        first.into_iter().chain(then)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Slots {
    pub(super) fn new(options: &Options) -> Self {
        let slot = Slot {
            machine: Ownership::new(options.me.clone(), options.limits.slot),
            orphan_since: None,
            try_at: 0,
            look_at: None,
            listed: None,
        };
        Self {
            all: vec![slot; options.slots.get() as usize],
            look: Look::default(),
            deadlines: BTreeSet::new(),
            changing: 0,
            giving: 0,
            serving: 0,
            waiting: BTreeMap::new(),
            gone: BTreeSet::new(),
            fenced: BTreeSet::new(),
            asking: BTreeMap::new(),
            fencing: BTreeMap::new(),
        }
    }

    pub(super) fn machine(&self, slot: SlotId) -> Option<&Ownership> {
        self.all.get(usize::from(slot.0)).map(|slot| &slot.machine)
    }

    fn ids(&self) -> impl Iterator<Item = SlotId> + use<> {
        (0..self.all.len()).map(|slot| SlotId(slot as u16))
    }

    pub(super) fn look_at_all(&mut self) {
        for id in self.ids() {
            self.look.insert(id);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// Somebody waits for it. False: that is known, or there is no such slot.
    pub(super) fn want(&mut self, id: SlotId) -> bool {
        usize::from(id.0) < self.all.len() && self.look.want(id)
    }

    /// It may have another owner: whoever waited finds him, or says so again.
    pub(super) fn has_moved(&mut self, id: SlotId) {
        self.look.wanted.remove(&id);
    }

    pub(super) fn changing(&self) -> usize {
        self.changing
    }

    /// A run that takes nothing any more.
    pub(super) fn forget(&mut self, heir: Incarnation) {
        self.waiting.remove(&heir);
    }

    /// Nothing is served and nothing is changing.
    pub(super) fn is_empty(&self) -> bool {
        self.changing == 0 && self.serving == 0
    }

    /// A restored etcd may show a node key again.
    pub(super) fn is_back(&mut self, incarnation: Incarnation) {
        self.gone.remove(&incarnation);
    }

    pub(super) fn draining(&self) -> Vec<SlotId> {
        let draining = self.ids().zip(&self.all).filter(|(_, slot)| slot.machine.is_draining());
        draining.map(|(id, _)| id).collect()
    }

    pub(super) fn fence_all(&mut self, now_ms: u64) {
        let mut nothing = Vec::new();
        for slot in &mut self.all {
            slot.machine.handle(now_ms, slot_owner::Input::Fenced, &mut nothing);
        }
        self.look.clear();
        self.waiting.clear();
        self.deadlines.clear();
        self.asking.clear();
        self.fencing.clear();
    }

    /// One machine takes one input; counts and deadlines follow.
    fn handle(
        &mut self,
        now_ms: u64,
        id: SlotId,
        input: slot_owner::Input,
        actions: &mut Vec<slot_owner::Action>,
    ) {
        let Some(slot) = self.all.get_mut(usize::from(id.0)) else { return };
        let (before, gave) = (slot.machine.standing(), slot.machine.is_handing_over());
        slot.machine.handle(now_ms, input, actions);
        let (after, gives) = (slot.machine.standing(), slot.machine.is_handing_over());
        self.giving = (self.giving + usize::from(gives)).saturating_sub(usize::from(gave));
        for (standing, by) in [(before, -1_isize), (after, 1)] {
            match standing {
                Standing::Changing => self.changing = self.changing.saturating_add_signed(by),
                Standing::Serving(_) => self.serving = self.serving.saturating_add_signed(by),
                Standing::Idle | Standing::Frozen | Standing::Dead => {}
            }
        }
        self.look.insert(id);
        self.list(id);
    }

    fn list(&mut self, id: SlotId) {
        let Some(slot) = self.all.get_mut(usize::from(id.0)) else { return };
        let deadline = [slot.machine.next_deadline(), slot.look_at].into_iter().flatten().min();
        if slot.listed != deadline {
            if let Some(at) = slot.listed {
                self.deadlines.remove(&(at, id));
            }
            if let Some(at) = deadline {
                self.deadlines.insert((at, id));
            }
            slot.listed = deadline;
        }
    }

    fn look_later(&mut self, id: SlotId, at: u64) {
        if let Some(slot) = self.all.get_mut(usize::from(id.0)) {
            slot.look_at = Some(at);
        }
        self.list(id);
    }
}

impl Node {
    /// Gives a slot's machine an input, and does of its actions what is the node's.
    pub(super) fn feed(
        &mut self,
        now_ms: u64,
        slot: SlotId,
        input: slot_owner::Input,
        out: &mut Vec<Action>,
    ) {
        let mut inputs = VecDeque::from([(slot, input)]);
        let mut actions = Vec::new();
        while let Some((slot, input)) = inputs.pop_front() {
            self.slots.handle(now_ms, slot, input, &mut actions);
            for action in actions.drain(..) {
                match action {
                    slot_owner::Action::ReadNode { incarnation } => {
                        if self.slots.gone.contains(&incarnation) {
                            inputs.push_back((slot, slot_owner::Input::Node { incarnation, gone: Ok(true) }));
                            continue;
                        }
                        let waiting = self.slots.asking.entry(incarnation).or_default();
                        if waiting.is_empty() {
                            out.push(Action::ReadNode { incarnation });
                        }
                        waiting.insert(slot);
                    }
                    slot_owner::Action::WriteFence { incarnation } => {
                        if self.slots.fenced.contains(&incarnation) {
                            let result = Ok(());
                            inputs.push_back((slot, slot_owner::Input::FenceWritten { incarnation, result }));
                            continue;
                        }
                        let waiting = self.slots.fencing.entry(incarnation).or_default();
                        if waiting.is_empty() {
                            out.push(Action::WriteFence { incarnation });
                        }
                        waiting.insert(slot);
                    }
                    slot_owner::Action::Freeze { why } => {
                        self.frozen = true;
                        let request = Request { under_way: false, at: Some(now_ms) };
                        let expect = self.slots.machine(slot).and_then(Ownership::known).cloned();
                        self.freezing.get_or_insert(Freezing { slot, why, expect, request });
                    }
                    slot_owner::Action::Dead => return self.end(now_ms, End::Fenced, out),
                    action => out.push(Action::Slot { slot, action }),
                }
            }
        }
    }

    pub(super) fn node_read(
        &mut self,
        now_ms: u64,
        incarnation: Incarnation,
        gone: Result<bool, Failed>,
        out: &mut Vec<Action>,
    ) {
        if gone == Ok(true) {
            self.slots.gone.insert(incarnation);
        }
        let waiting = self.slots.asking.remove(&incarnation).unwrap_or_default();
        for slot in self.slots.look.in_order(waiting) {
            self.feed(now_ms, slot, slot_owner::Input::Node { incarnation, gone }, out);
        }
    }

    pub(super) fn fence_written(
        &mut self,
        now_ms: u64,
        incarnation: Incarnation,
        result: Result<(), Failed>,
        out: &mut Vec<Action>,
    ) {
        if result.is_ok() {
            self.slots.fenced.insert(incarnation);
        }
        let waiting = self.slots.fencing.remove(&incarnation).unwrap_or_default();
        for slot in self.slots.look.in_order(waiting) {
            self.feed(now_ms, slot, slot_owner::Input::FenceWritten { incarnation, result }, out);
        }
    }

    pub(super) fn tick_slots(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        while let Some(&(at, id)) = self.slots.deadlines.first() {
            if at > now_ms {
                return;
            }
            let slot = &mut self.slots.all[usize::from(id.0)];
            slot.look_at = slot.look_at.filter(|at| *at > now_ms);
            // Also lists it under its next deadline, and under those to be looked at.
            self.feed(now_ms, id, slot_owner::Input::Tick, out);
            debug_assert!(self.slots.deadlines.first() != Some(&(at, id)), "a tick at the deadline moves it");
        }
    }

    /// Looks at slots about which something has changed, and begins what is to be done, as far as may be at once.
    pub(super) fn pump(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        self.give_turns(now_ms);
        let (mut ring, limits) = (None, self.options.limits);
        while self.may_change()
            && let Some(id) = self.slots.look.pop()
        {
            self.mark_orphan(now_ms, id);
            match self.wish(now_ms, id, &mut ring) {
                Wish::Nothing(_) => {}
                Wish::Later(at) => self.slots.look_later(id, at),
                Wish::HandOff(to) if self.free_to_give() == 0 => {
                    self.slots.waiting.entry(to.incarnation).or_default().insert(id);
                }
                Wish::HandOff(to) if !self.is_ready(now_ms, &to, out) => {
                    self.slots.waiting.entry(to.incarnation).or_default().insert(id);
                    // Without an answer it is asked again.
                    self.slots.look_later(id, now_ms + limits.ready_ms);
                }
                Wish::Change(_) if self.slots.changing >= self.most_at_once(id) => {
                    self.slots.look.insert(id);
                    return;
                }
                Wish::HandOff(to) => {
                    if let Some(ready) = self.ready.get_mut(&to.incarnation) {
                        ready.left = ready.left.saturating_sub(1);
                    }
                    self.feed(now_ms, id, slot_owner::Input::HandOff { to }, out);
                }
                Wish::Change(input) => {
                    let try_at = now_ms + limits.retry_ms;
                    self.slots.all[usize::from(id.0)].try_at = try_at;
                    self.feed(now_ms, id, input, out);
                    // What it leads to is an input of its own; what ended at once is tried again later.
                    self.slots.look.remove(id);
                    if self.slots.all[usize::from(id.0)].machine.standing() == Standing::Idle {
                        self.slots.look_later(id, try_at);
                    }
                }
                Wish::Adjust(input) => {
                    self.feed(now_ms, id, input, out);
                    self.slots.look.remove(id);
                }
            }
        }
    }

    /// Those that somebody waits for do not wait for the others, and the others leave the store time to open rooms.
    fn most_at_once(&self, id: SlotId) -> usize {
        let limits = &self.options.limits;
        if self.slots.look.wanted.contains(&id) { limits.wanted_in_flight } else { limits.slots_in_flight }
    }

    /// How many more slots may be handed over at once.
    pub(super) fn free_to_give(&self) -> usize {
        let limits = &self.options.limits;
        let below = limits.handoffs_below.saturating_sub(self.slots.changing);
        limits.handoffs_in_flight.saturating_sub(self.slots.giving).min(below)
    }

    /// Of the slots that wait to be handed over, has as many looked at as may begin.
    fn give_turns(&mut self, now_ms: u64) {
        let (free, ready_ms) = (self.free_to_give(), self.options.limits.ready_ms);
        if free == 0 {
            return;
        }
        self.slots.waiting.retain(|heir, waiting| {
            let takes = self.ready.get(heir).map_or(0, |ready| ready.takes(now_ms, ready_ms));
            // One to ask with, if it takes none.
            for _ in 0..takes.clamp(1, free) {
                if let Some(id) = waiting.pop_first() {
                    self.slots.look.insert(id);
                }
            }
            !waiting.is_empty()
        });
    }

    /// Since when it has no living owner counts from when that is first seen.
    fn mark_orphan(&mut self, now_ms: u64, id: SlotId) {
        let index = usize::from(id.0);
        let is_placed = self.placement.target.as_ref().is_some_and(|target| target.owner(id).is_some());
        if !is_placed || self.slots.all[index].machine.standing() != Standing::Idle {
            return;
        }
        let since = self.slots.all[index].orphan_since;
        let is_orphan = self.keeps_from_taking(id).is_none();
        self.slots.all[index].orphan_since = is_orphan.then(|| since.unwrap_or(now_ms));
    }

    /// What should happen to a slot now.
    pub(super) fn wish(&self, now_ms: u64, id: SlotId, ring: &mut Option<Ring>) -> Wish {
        let Some(wanted) = self.placement.target.as_ref().and_then(|target| target.owner(id)) else {
            return Wish::Nothing(Waits::Placement);
        };
        let machine = &self.slots.all[usize::from(id.0)].machine;
        let mine = *wanted == self.options.me.node;
        // Nobody there to take it: it is served here until there is.
        let heir = self.nodes.get(wanted).filter(|seen| !mine && seen.entry.takes_slots());
        let heir = heir.map(|seen| seen.entry.peer(wanted));
        match (machine.standing(), heir) {
            (Standing::Serving(_), Some(to)) => Wish::HandOff(to),
            (Standing::Changing, None) if machine.is_draining() => Wish::Adjust(slot_owner::Input::Take),
            (Standing::Changing, Some(to)) if machine.is_draining() && !machine.is_draining_for(&to) => {
                Wish::Adjust(slot_owner::Input::HandOff { to })
            }
            (Standing::Idle, _) => self.wish_idle(now_ms, id, mine, ring),
            (Standing::Serving(_), None) => Wish::Nothing(Waits::Nothing),
            (Standing::Changing, _) => Wish::Nothing(Waits::Answer),
            (Standing::Frozen, _) => Wish::Nothing(Waits::Recovery),
            (Standing::Dead, _) => Wish::Nothing(Waits::Run),
        }
    }

    /// Why a slot is not this run's to take, whoever should own it.
    fn keeps_from_taking(&self, id: SlotId) -> Option<Waits> {
        let owner = self.slots.machine(id).and_then(Ownership::known).map(|key| key.incarnation);
        // A key that names us though we do not serve the slot is to be settled by us.
        let orphan = owner.is_none_or(|owner| owner == self.options.me.incarnation || !self.is_alive(owner));
        if !orphan {
            Some(Waits::Owner)
        } else if self.state == State::Draining || !self.options.entry.owns_slots() {
            Some(Waits::Others)
        } else {
            None
        }
    }

    /// A slot that is not ours: if nobody who lives owns it, whoever should own it takes it, and after a while whoever is
    /// next.
    fn wish_idle(&self, now_ms: u64, id: SlotId, mine: bool, ring: &mut Option<Ring>) -> Wish {
        if let Some(waits) = self.keeps_from_taking(id) {
            return Wish::Nothing(waits);
        }
        let slot = &self.slots.all[usize::from(id.0)];
        let since = slot.orphan_since.unwrap_or(now_ms);
        let claim_after_ms = self.options.limits.claim_after_ms;
        let mut at = since.max(slot.try_at);
        let names_me = slot.machine.known().is_some_and(|key| key.names(&self.options.me));
        if !mine && !names_me {
            // At least one comes before us; how many matters only then.
            at = at.max(since + claim_after_ms);
            if at <= now_ms {
                let Some(rank) = self.rank(id, ring) else { return Wish::Nothing(Waits::Place) };
                at = at.max(since + rank * claim_after_ms);
            }
        }
        if at <= now_ms { Wish::Change(slot_owner::Input::Take) } else { Wish::Later(at) }
    }

    /// How many living nodes come before this one, after whoever should own the slot.
    fn rank(&self, id: SlotId, ring: &mut Option<Ring>) -> Option<u64> {
        let target = self.placement.target.as_ref()?;
        let wanted = target.owner(id);
        let mut rank = 1;
        for place in ring.get_or_insert_with(|| target.ring()).preference(id) {
            let node = &target.members()[usize::from(place)].node;
            if *node == self.options.me.node {
                return Some(rank);
            }
            if Some(node) != wanted && self.nodes.contains_key(node) {
                rank += 1;
            }
        }
        None
    }
}

pub(super) enum Wish {
    Nothing(Waits),
    Later(u64),
    /// One more slot in flight.
    Change(slot_owner::Input),
    /// The same, once the peer is ready.
    HandOff(Peer),
    /// To one that is.
    Adjust(slot_owner::Input),
}
