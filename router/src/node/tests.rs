//! Several runs against an etcd and a store in memory: what they come to when nothing goes wrong, and what never happens
//! whatever does.

use std::collections::VecDeque;

use banyan_proto::id::{Epoch, Tenure};

use super::*;
use crate::node_key::Role;
use crate::recover::{self, Recover};
use crate::slot_key::OwnerRow;
use crate::slot_owner::{Action as SlotAction, CasOutcome, Input as SlotInput};

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

#[derive(Clone, Default)]
struct Etcd {
    slots: BTreeMap<SlotId, SlotKey>,
    nodes: BTreeMap<NodeId, NodeEntry>,
    target: Option<Arc<Target>>,
    frozen: bool,
}

struct Run {
    node: Node,
    /// The process is there. One that is paused is there, and does nothing.
    lives: bool,
    paused_until: u64,
    lease_until: u64,
    /// The next event that its watch brings; `None`: it has to list.
    watch: Option<usize>,
    inbox: VecDeque<Input>,
    /// Slots for which it speaks, and under which name.
    speaks: BTreeMap<SlotId, Tenure>,
    /// Slots of which it was told that they are drained, and has not served since.
    drained: BTreeSet<SlotId>,
}

struct World {
    now: u64,
    dice: Dice,
    slots: SlotCount,
    etcd: Etcd,
    events: Vec<Watched>,
    snapshots: Vec<Etcd>,
    /// Transactions that were given up, and may apply.
    late: Vec<(SlotId, Option<SlotKey>, SlotKey)>,
    fences: BTreeSet<Incarnation>,
    incarnations: Vec<Peer>,
    rows: BTreeMap<SlotId, BTreeMap<Tenure, bool>>,
    runs: Vec<Run>,
    requests: VecDeque<(usize, Action)>,
    /// State that was sent after a drain: for which slot and epoch, to whom.
    final_state: BTreeSet<(SlotId, Epoch, Incarnation)>,
    /// Who has spoken under an epoch.
    spoke: BTreeMap<(SlotId, Epoch), Incarnation>,
    next_incarnation: u128,
    faults: bool,
    /// Gateways say which slots they wait for.
    limits: Limits,
    wishes: bool,
    seen: Coverage,
}

/// What has happened: a storm in which nothing did proves nothing.
#[derive(Debug, Default)]
struct Coverage {
    takeovers: usize,
    handed_over: usize,
    with_state: usize,
    unknown: usize,
    applied_late: usize,
    resumed: usize,
    freezes: usize,
    restores: usize,
    recoveries: usize,
    ended: usize,
    witnessed: usize,
}

impl Coverage {
    fn times(&self) -> [(&'static str, usize); 11] {
        [
            ("takeovers", self.takeovers),
            ("handed over", self.handed_over),
            ("with state", self.with_state),
            ("unknown", self.unknown),
            ("applied late", self.applied_late),
            ("resumed", self.resumed),
            ("freezes", self.freezes),
            ("restores", self.restores),
            ("recoveries", self.recoveries),
            ("ended", self.ended),
            ("witnessed", self.witnessed),
        ]
    }
}

impl World {
    fn new(seed: u64, slots: u32, faults: bool) -> Self {
        Self {
            now: 10_000,
            dice: Dice(seed),
            slots: SlotCount::new(slots).unwrap(),
            etcd: Etcd::default(),
            events: Vec::new(),
            snapshots: Vec::new(),
            late: Vec::new(),
            fences: BTreeSet::new(),
            incarnations: Vec::new(),
            rows: BTreeMap::new(),
            runs: Vec::new(),
            requests: VecDeque::new(),
            final_state: BTreeSet::new(),
            spoke: BTreeMap::new(),
            next_incarnation: 1,
            faults,
            wishes: false,
            // Storms have eight slots: all of them at once is where most can go wrong.
            limits: match faults {
                true => Limits { handoffs_below: 64, handoffs_in_flight: 8, ..Limits::default() },
                false => Limits::default(),
            },
            seen: Coverage::default(),
        }
    }

    fn incarnation(&mut self) -> Incarnation {
        self.next_incarnation += 1;
        Incarnation(self.next_incarnation)
    }

    /// Starts a node, and gives its place among the runs.
    fn start(&mut self, name: &str) -> usize {
        let incarnation = self.incarnation();
        let node = NodeId::parse(name).unwrap();
        let entry = NodeEntry {
            incarnation,
            peer_address: format!("{name}:7000"),
            roles: vec![Role::Gateway, Role::Shard],
            weight: 1,
            state: State::Up,
            release: "0.1.0".to_owned(),
        };
        let options = Options {
            me: Peer { node, incarnation },
            entry,
            slots: self.slots,
            workers: 1,
            limits: self.limits,
        };
        self.launch(Node::new(options, self.now))
    }

    fn launch(&mut self, node: Node) -> usize {
        self.runs.push(Run {
            node,
            lives: true,
            paused_until: 0,
            lease_until: 0,
            watch: None,
            inbox: VecDeque::from([Input::Start]),
            speaks: BTreeMap::new(),
            drained: BTreeSet::new(),
        });
        self.runs.len() - 1
    }

    fn event(&mut self, event: Watched) {
        match event.clone() {
            Watched::Slot { slot, key: Some(key) } => drop(self.etcd.slots.insert(slot, key)),
            Watched::Slot { slot, key: None } => drop(self.etcd.slots.remove(&slot)),
            Watched::Node { node, entry: Some(entry) } => drop(self.etcd.nodes.insert(node, entry)),
            Watched::Node { node, entry: None } => drop(self.etcd.nodes.remove(&node)),
            Watched::Target(target) => self.etcd.target = target,
            Watched::Frozen(frozen) => self.etcd.frozen = frozen,
        }
        self.events.push(event);
    }

    fn delete_node(&mut self, peer: &Peer) {
        let key = self.etcd.nodes.get(&peer.node);
        if key.is_some_and(|entry| entry.incarnation == peer.incarnation) {
            self.event(Watched::Node { node: peer.node.clone(), entry: None });
        }
    }

    fn has_node_key(&self, incarnation: Incarnation) -> bool {
        self.etcd.nodes.values().any(|entry| entry.incarnation == incarnation)
    }

    fn kill(&mut self, run: usize) {
        let run = &mut self.runs[run];
        run.lives = false;
        run.speaks.clear();
    }

    // ------------------------------------------------------------ what runs ask for

    fn input(&mut self, run: usize, input: Input) {
        if !self.runs[run].lives {
            return;
        }
        let mut out = Vec::new();
        if let Input::Slot { slot, input: SlotInput::Drained { .. } } = input {
            self.runs[run].drained.insert(slot);
        }
        self.runs[run].node.handle(self.now, input, &mut out);
        let deadline = self.runs[run].node.next_deadline();
        assert!(deadline.is_none_or(|at| at > 0));
        for action in out {
            self.act(run, action);
        }
    }

    /// What is said to the worker happens at once; requests are answered some time.
    fn act(&mut self, run: usize, action: Action) {
        match action {
            Action::Slot { slot, action: SlotAction::Serve { tenure, opening } } => {
                if let slot_owner::Opening::HandedOver { state } = opening {
                    self.seen.with_state += 1;
                    assert_eq!(state, tenure.epoch, "state of another attempt");
                    let is_final = self.final_state.contains(&(slot, state, tenure.incarnation));
                    assert!(is_final, "state that the old owner has gone on from");
                }
                self.speak(run, slot, tenure);
            }
            Action::Slot { slot, action: SlotAction::Resume { tenure } } => {
                self.seen.resumed += 1;
                self.speak(run, slot, tenure);
            }
            Action::Slot { slot, action: SlotAction::Drain { drain } } => {
                self.runs[run].speaks.remove(&slot);
                // Some drains do not end for a long time.
                if !self.faults || !self.dice.one_in(8) {
                    let input = Input::Slot { slot, input: SlotInput::Drained { drain } };
                    self.runs[run].inbox.push_back(input);
                }
            }
            Action::Slot { slot, action: SlotAction::Release { .. } } => {
                self.runs[run].speaks.remove(&slot);
            }
            Action::Slot { slot, action: SlotAction::SendState { to, epoch, complete } } => {
                if complete {
                    self.final_state.insert((slot, epoch, to.incarnation));
                }
                let input = SlotInput::StatePassed { epoch, complete };
                self.tell(to.incarnation, Input::Slot { slot, input });
            }
            Action::Dead { .. } => {
                self.seen.ended += 1;
                let incarnation = self.incarnation();
                let next = self.runs[run].node.rejoin(incarnation, self.now);
                self.kill(run);
                self.launch(next);
            }
            Action::Left => self.kill(run),
            Action::AskReady { peer } => {
                let by = self.runs[run].node.me().clone();
                self.tell(peer.incarnation, Input::ReadyAsked { by });
            }
            Action::SayReady { to } => {
                let incarnation = self.runs[run].node.me().incarnation;
                self.tell(to.incarnation, Input::Ready { incarnation });
            }
            Action::DeleteNode { peer } => {
                self.seen.witnessed += 1;
                self.delete_node(&peer);
            }
            action => self.requests.push_back((run, action)),
        }
    }

    /// From node to node; some of it is lost.
    fn tell(&mut self, to: Incarnation, input: Input) {
        let to = self.runs.iter().position(|run| run.node.me().incarnation == to);
        if let Some(to) = to
            && (!self.faults || !self.dice.one_in(4))
        {
            self.runs[to].inbox.push_back(input);
        }
    }

    /// The heart of it: whoever begins to speak for a slot, unfenced, is alone, or the others are fenced.
    fn speak(&mut self, run: usize, slot: SlotId, tenure: Tenure) {
        let me = self.runs[run].node.me().incarnation;
        assert_eq!(tenure.incarnation, me);
        self.runs[run].drained.remove(&slot);
        if self.fences.contains(&me) {
            // It does not know yet. Its barrier will not let a word pass.
            return;
        }
        let first = *self.spoke.entry((slot, tenure.epoch)).or_insert(me);
        assert_eq!(first, me, "two runs speak for slot {slot} under epoch {}", tenure.epoch);
        for other in &self.runs {
            let incarnation = other.node.me().incarnation;
            if incarnation != me && !self.fences.contains(&incarnation) {
                assert!(
                    !other.speaks.contains_key(&slot),
                    "{me:?} begins to speak for slot {slot} under {tenure:?} while {incarnation:?} does, unfenced"
                );
            }
        }
        self.runs[run].speaks.insert(slot, tenure);
    }

    /// Carries out a request, or not, and answers it.
    fn answer(&mut self, run: usize, action: Action) {
        // A request of a process that was killed may still arrive; one that fails may have.
        let is_swap = matches!(&action, Action::Slot { action: SlotAction::Cas { .. }, .. });
        let lost = self.faults && self.dice.one_in(if is_swap { 4 } else { 12 });
        let carried_out = !lost || self.dice.one_in(2);
        let result = if lost { Err(Failed) } else { Ok(()) };
        let me = self.runs[run].node.me().clone();
        let input = match action {
            Action::RegisterIncarnation => {
                self.incarnations.push(me);
                Input::IncarnationRegistered(result)
            }
            Action::Join { entry } => {
                if carried_out {
                    self.runs[run].lease_until = self.now + 3_000;
                    self.event(Watched::Node { node: me.node, entry: Some(entry) });
                }
                Input::Joined(result)
            }
            Action::KeepAlive => {
                if !self.has_node_key(me.incarnation) && !lost {
                    Input::KeptAlive(KeptAlive::LeaseGone)
                } else if lost {
                    Input::KeptAlive(KeptAlive::Failed)
                } else {
                    self.runs[run].lease_until = self.now + 3_000;
                    Input::KeptAlive(KeptAlive::Done)
                }
            }
            Action::PutNode { entry } => {
                let there = self.has_node_key(me.incarnation);
                if there && carried_out {
                    self.event(Watched::Node { node: me.node, entry: Some(entry) });
                }
                Input::NodePut(result.map(|()| there))
            }
            Action::Revoke => {
                self.delete_node(&me);
                Input::Revoked
            }
            Action::CasTarget { expect, new } => {
                let won = self.etcd.target == expect;
                if won && carried_out {
                    self.event(Watched::Target(Some(new)));
                }
                Input::TargetCas(match (lost, won) {
                    (true, _) => TargetOutcome::Unknown,
                    (false, true) => TargetOutcome::Won,
                    (false, false) => TargetOutcome::Lost(self.etcd.target.clone()),
                })
            }
            Action::ReadNode { incarnation } => {
                let gone = !self.has_node_key(incarnation);
                Input::NodeRead { incarnation, gone: result.map(|()| gone) }
            }
            Action::WriteFence { incarnation } => {
                if !lost {
                    self.fences.insert(incarnation);
                }
                Input::FenceWritten { incarnation, result }
            }
            Action::WriteFrozen { slot, expect, .. } => {
                let there = self.etcd.slots.get(&slot).cloned();
                let holds = there == expect;
                if carried_out && holds {
                    self.seen.freezes += 1;
                    self.event(Watched::Frozen(true));
                }
                Input::FrozenWritten(match (lost, holds) {
                    (true, _) => CasOutcome::Unknown,
                    (false, true) => CasOutcome::Won,
                    (false, false) => CasOutcome::Lost(there),
                })
            }
            Action::Slot { slot, action } => {
                let input = self.answer_slot(run, slot, action, result);
                Input::Slot { slot, input }
            }
            Action::DeleteNode { .. }
            | Action::Dead { .. }
            | Action::Left
            | Action::AskReady { .. }
            | Action::SayReady { .. } => unreachable!("done at once"),
        };
        self.runs[run].inbox.push_back(input);
    }

    fn answer_slot(
        &mut self,
        run: usize,
        slot: SlotId,
        action: SlotAction,
        result: Result<(), Failed>,
    ) -> SlotInput {
        match action {
            SlotAction::ReadKey => SlotInput::KeyRead(result.map(|()| self.etcd.slots.get(&slot).cloned())),
            SlotAction::Cas { expect, new } => {
                let me = self.runs[run].node.me().incarnation;
                assert!(
                    new.incarnation == me || self.runs[run].drained.contains(&slot),
                    "slot {slot} is handed over with an append in flight"
                );
                if result.is_err() {
                    self.seen.unknown += 1;
                    self.late.push((slot, expect, new));
                    return SlotInput::Cas(CasOutcome::Unknown);
                }
                let current = self.etcd.slots.get(&slot).cloned();
                if self.swap(slot, &expect, new.clone()) {
                    match expect {
                        Some(expect) if expect.incarnation == new.incarnation => {}
                        Some(_) if new.incarnation == self.runs[run].node.me().incarnation => {
                            self.seen.takeovers += 1;
                        }
                        Some(_) => self.seen.handed_over += 1,
                        None => {}
                    }
                    SlotInput::Cas(CasOutcome::Won)
                } else {
                    SlotInput::Cas(CasOutcome::Lost(current))
                }
            }
            SlotAction::PutOwner { row, closes } => {
                // A write that failed may have arrived.
                if result.is_ok() || self.dice.one_in(2) {
                    let rows = self.rows.entry(slot).or_default();
                    let closed = rows.entry(row.tenure).or_default();
                    *closed |= row.closed;
                    if let Some(closes) = closes {
                        rows.insert(closes, true);
                    }
                }
                SlotInput::OwnerPut { row, result }
            }
            SlotAction::ReadOwners => SlotInput::Owners(result.map(|()| self.rows_of(slot))),
            SlotAction::ReadOwnFence => {
                let me = self.runs[run].node.me().incarnation;
                SlotInput::OwnFence(result.map(|()| self.fences.contains(&me)))
            }
            other => unreachable!("{other:?} is no request"),
        }
    }

    fn rows_of(&self, slot: SlotId) -> Vec<OwnerRow> {
        let rows = self.rows.get(&slot).into_iter().flatten();
        rows.map(|(tenure, closed)| OwnerRow { tenure: *tenure, closed: *closed }).collect()
    }

    fn swap(&mut self, slot: SlotId, expect: &Option<SlotKey>, new: SlotKey) -> bool {
        let applies = self.etcd.slots.get(&slot) == expect.as_ref() && !self.etcd.frozen;
        if applies {
            self.event(Watched::Slot { slot, key: Some(new) });
        }
        applies
    }

    // ------------------------------------------------------------ one step

    fn is_running(&self, run: usize) -> bool {
        self.runs[run].lives && self.runs[run].paused_until <= self.now
    }

    fn running(&self) -> Vec<usize> {
        (0..self.runs.len()).filter(|&run| self.is_running(run)).collect()
    }

    /// Gives a run its next input, if there is one.
    fn deliver(&mut self, run: usize) -> bool {
        let listing = |etcd: &Etcd| Listing {
            slots: etcd.slots.clone().into_iter().collect(),
            nodes: etcd.nodes.clone().into_iter().collect(),
            target: etcd.target.clone(),
            frozen: etcd.frozen,
        };
        if let Some(input) = self.runs[run].inbox.pop_front() {
            self.input(run, input);
            return true;
        }
        match self.runs[run].watch {
            None => {
                self.runs[run].watch = Some(self.events.len());
                let listing = Box::new(listing(&self.etcd));
                self.input(run, Input::Listed(listing));
                true
            }
            Some(at) if at < self.events.len() => {
                self.runs[run].watch = Some(at + 1);
                let event = self.events[at].clone();
                self.input(run, Input::Watched(event));
                true
            }
            Some(_) => false,
        }
    }

    fn pass_time(&mut self, by: u64) {
        self.now += by;
        for run in 0..self.runs.len() {
            // etcd cannot know whether the process lives.
            if self.runs[run].lease_until <= self.now {
                let me = self.runs[run].node.me().clone();
                self.delete_node(&me);
            }
            if self.is_running(run) {
                self.input(run, Input::Alive { worker: 0 });
                if self.runs[run].node.next_deadline().is_some_and(|at| at <= self.now) {
                    self.input(run, Input::Tick);
                    let deadline = self.runs[run].node.next_deadline();
                    assert!(deadline.is_none_or(|at| at > self.now), "a tick at the deadline moves it");
                }
            }
        }
    }

    /// Everything that can happen at once, then 10 ms, until `ms` are over: nothing goes wrong.
    fn calm(&mut self, ms: u64) {
        self.faults = false;
        let end = self.now + ms;
        while self.now < end {
            while let Some((run, action)) = self.requests.pop_front() {
                self.answer(run, action);
            }
            let mut busy = false;
            for run in self.running() {
                busy |= self.deliver(run);
            }
            if !busy && self.requests.is_empty() {
                self.barriers();
                self.pass_time(10);
            }
        }
    }

    /// Six seconds in which only this run hears anything: the slots that it claims, in order. `each` is called with their number
    /// before a claim is answered.
    fn claims(&mut self, by: usize, each: impl Fn(&mut Self, usize)) -> Vec<SlotId> {
        let mut claimed = Vec::new();
        let end = self.now + 6_000;
        while self.now < end {
            while let Some((run, action)) = self.requests.pop_front() {
                if let Action::Slot { slot, action: SlotAction::Cas { .. } } = action {
                    claimed.push(slot);
                    each(self, claimed.len());
                }
                self.answer(run, action);
            }
            if !self.deliver(by) {
                self.barriers();
                self.pass_time(10);
            }
        }
        claimed
    }

    /// As [`Self::calm`], but the store does not answer a run that registers: its questions.
    fn calm_but_for_puts_of(&mut self, silent: usize, ms: u64) -> Vec<(usize, Action)> {
        self.faults = false;
        let mut held = Vec::new();
        let end = self.now + ms;
        while self.now < end {
            while let Some((run, action)) = self.requests.pop_front() {
                match action {
                    Action::Slot { action: SlotAction::PutOwner { .. }, .. } if run == silent => {
                        held.push((run, action));
                    }
                    action => self.answer(run, action),
                }
            }
            let mut busy = false;
            for run in self.running() {
                busy |= self.deliver(run);
            }
            if !busy {
                self.pass_time(10);
            }
        }
        held
    }

    /// Whoever was fenced learns it at its next barrier.
    fn barriers(&mut self) {
        for run in self.running() {
            if self.fences.contains(&self.runs[run].node.me().incarnation) {
                self.input(run, Input::Fenced);
            }
        }
    }

    /// One thing that can happen, at random.
    fn storm(&mut self) {
        let running = self.running();
        match self.dice.roll(20) {
            0..8 if !self.requests.is_empty() => {
                let at = self.dice.roll(self.requests.len());
                let (run, action) = self.requests.remove(at).unwrap();
                self.answer(run, action);
            }
            8..16 if !running.is_empty() => {
                let run = running[self.dice.roll(running.len())];
                self.deliver(run);
            }
            16 if !self.late.is_empty() => {
                let at = self.dice.roll(self.late.len());
                let (slot, expect, new) = self.late.swap_remove(at);
                if self.swap(slot, &expect, new) {
                    self.seen.applied_late += 1;
                }
            }
            17 => {
                let by = 1 + self.dice.roll(60) as u64;
                self.pass_time(by);
            }
            18 if self.dice.one_in(12) => self.fault(&running),
            19 if self.wishes && !running.is_empty() => {
                let run = running[self.dice.roll(running.len())];
                let slots = self.slots.get() as usize;
                let slots =
                    (0..1 + self.dice.roll(3)).map(|_| SlotId(self.dice.roll(slots) as u16)).collect();
                self.input(run, Input::Wanted { slots });
            }
            _ => {}
        }
    }

    fn fault(&mut self, running: &[usize]) {
        let Some(&run) = running.get(self.dice.roll(running.len().max(1))) else { return };
        match self.dice.roll(8) {
            // Killed, and started again.
            0 | 1 => {
                let incarnation = self.incarnation();
                let next = self.runs[run].node.rejoin(incarnation, self.now);
                self.kill(run);
                self.launch(next);
            }
            // Asleep: it speaks on for whoever asks, and does nothing else.
            2 | 3 => self.runs[run].paused_until = self.now + 1_000 * (1 + self.dice.roll(6) as u64),
            4 => {
                self.runs[run].watch = None;
                self.input(run, Input::EtcdGone);
            }
            // Two witnesses accuse somebody, perhaps wrongly.
            5 => {
                let accused = self.runs[run].node.me().incarnation;
                let names: Vec<NodeId> = self.etcd.nodes.keys().cloned().collect();
                let judge = running[self.dice.roll(running.len())];
                for witness in names {
                    self.input(judge, Input::Refused { incarnation: accused, witness });
                }
            }
            6 => {
                let slot = SlotId(self.dice.roll(self.slots.get() as usize) as u16);
                let node = self.runs[run].node.me().node.clone();
                if let Some(target) = &self.etcd.target {
                    let mut pinned = Target::clone(target);
                    pinned.pin(slot, Some(node));
                    let members = pinned.members().to_vec();
                    self.event(Watched::Target(Some(Arc::new(crate::target::solve(&pinned, members)))));
                }
            }
            _ => self.snapshots.push(self.etcd.clone()),
        }
    }

    fn restore(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        self.seen.restores += 1;
        let at = self.dice.roll(self.snapshots.len());
        let frozen = self.etcd.frozen;
        self.etcd = self.snapshots[at].clone();
        self.etcd.frozen |= frozen;
        for run in 0..self.runs.len() {
            self.runs[run].watch = None;
            self.runs[run].lease_until = self.now + 3_000;
            self.input(run, Input::EtcdGone);
        }
    }

    /// `ring recover`, at one go.
    fn recover(&mut self) {
        self.seen.recoveries += 1;
        let mut recover = Recover::new(self.slots, None);
        let mut inputs = VecDeque::from([recover::Input::Start]);
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            recover.handle(0, input, &mut out);
            for action in out {
                inputs.extend(match action {
                    recover::Action::WriteFrozen => {
                        self.event(Watched::Frozen(true));
                        Some(recover::Input::Frozen(Ok(())))
                    }
                    recover::Action::ReadIncarnations => {
                        Some(recover::Input::Incarnations(Ok(self.incarnations.clone())))
                    }
                    recover::Action::WriteFence { incarnation } => {
                        self.fences.insert(incarnation);
                        Some(recover::Input::FenceWritten { incarnation, result: Ok(()) })
                    }
                    recover::Action::ReadSlot { slot } => {
                        let found = (self.etcd.slots.get(&slot).cloned(), self.rows_of(slot));
                        Some(recover::Input::SlotRead { slot, result: Ok(found) })
                    }
                    recover::Action::SetSlot { slot, new, .. } => {
                        self.event(Watched::Slot { slot, key: Some(new) });
                        Some(recover::Input::SlotSet { slot, outcome: CasOutcome::Won })
                    }
                    recover::Action::Lift => {
                        self.event(Watched::Frozen(false));
                        Some(recover::Input::Lifted(Ok(())))
                    }
                    recover::Action::Done => None,
                });
            }
        }
    }

    // ------------------------------------------------------------ what it should have come to

    /// Every slot is served, once, by whom the target names.
    #[track_caller]
    fn assert_settled(&self) {
        let target = self.etcd.target.as_ref().expect("there is a target");
        for slot in (0..self.slots.get()).map(|slot| SlotId(slot as u16)) {
            let serving: Vec<&NodeId> = (self.runs.iter())
                .filter(|run| run.lives && run.speaks.contains_key(&slot))
                .map(|run| &run.node.me().node)
                .collect();
            let machines = || {
                let living = self.runs.iter().filter(|run| run.lives);
                living.map(|run| (run.node.standing(), run.node.slot(slot))).collect::<Vec<_>>()
            };
            let key = self.etcd.slots.get(&slot);
            assert_eq!(
                serving,
                Vec::from_iter(target.owner(slot)),
                "slot {slot}: {key:?}, {:#?}",
                machines()
            );
        }
    }

    fn served_by(&self, run: usize) -> usize {
        self.runs[run].speaks.len()
    }
}

#[test]
fn a_cluster_grows_and_shrinks_without_a_takeover() {
    let mut world = World::new(1, 128, false);
    let a = world.start("a");
    world.calm(500);
    world.assert_settled();
    assert_eq!(world.served_by(a), 128);

    let b = world.start("b");
    world.calm(1_000);
    assert_eq!(world.served_by(b), 0, "one that has just come must stay for a while first");
    world.calm(2_000);
    world.assert_settled();
    assert_eq!((world.served_by(a), world.served_by(b)), (64, 64));
    assert_eq!((world.seen.handed_over, world.seen.with_state), (64, 64));

    let c = world.start("c");
    world.calm(3_000);
    world.assert_settled();
    assert_eq!(world.seen.handed_over, 64 + world.served_by(c));
    assert!((42..=43).contains(&world.served_by(c)));

    world.input(a, Input::Drain);
    world.calm(1_000);
    assert_eq!(world.runs[a].node.standing(), Standing::Left);
    world.assert_settled();
    assert_eq!((world.served_by(b), world.served_by(c)), (64, 64));
    assert_eq!((world.seen.takeovers, world.fences.len()), (0, 0));
    // Those that were left are closed: a later owner has nobody to fence.
    let open: usize = world.rows.values().map(|rows| rows.values().filter(|closed| !**closed).count()).sum();
    assert_eq!(open, 128);
}

#[test]
fn the_dead_are_fenced_once_and_their_slots_taken() {
    let mut world = World::new(2, 128, false);
    let [a, b, c] = ["a", "b", "c"].map(|name| world.start(name));
    world.calm(4_000);
    world.assert_settled();
    let dead = world.runs[b].node.me().incarnation;
    let moved = world.served_by(b);
    world.kill(b);
    world.calm(4_000);
    world.assert_settled();
    assert_eq!(world.seen.takeovers, moved);
    assert_eq!(world.fences, BTreeSet::from([dead]));
    assert_eq!(world.served_by(a) + world.served_by(c), 128);
}

#[test]
fn a_node_that_is_started_again_at_once_takes_its_own_slots_back() {
    let mut world = World::new(3, 64, false);
    let [a, b] = ["a", "b"].map(|name| world.start(name));
    world.calm(4_000);
    let before = world.etcd.target.clone();
    world.kill(b);
    let again = world.start("b");
    world.calm(500);
    world.assert_settled();
    assert_eq!((world.served_by(a), world.served_by(again)), (32, 32));
    assert_eq!(world.etcd.target, before);
}

#[test]
fn a_slot_that_its_owner_to_be_does_not_claim_is_claimed_by_the_next() {
    let mut world = World::new(4, 16, false);
    let [a, _] = ["a", "b"].map(|name| world.start(name));
    world.calm(4_000);
    world.assert_settled();
    // C has its node key and will be named in the target, but does nothing any more. Nobody hands it anything.
    let c = world.start("c");
    world.calm(1_500);
    world.runs[c].paused_until = u64::MAX;
    world.runs[c].lease_until = u64::MAX;
    world.calm(2_000);
    assert_eq!(world.etcd.target.as_ref().map(|target| target.members().len()), Some(3));
    assert!(world.etcd.slots.values().all(|key| key.owner.as_str() != "c"));
    world.kill(a);
    world.calm(8_000);
    assert_eq!(world.etcd.target.as_ref().map(|target| target.members().len()), Some(2));
    let orphans = (0..16)
        .map(SlotId)
        .filter(|slot| !world.runs.iter().any(|run| run.lives && run.speaks.contains_key(slot)));
    assert_eq!(orphans.collect::<Vec<_>>(), []);
}

#[test]
fn while_etcd_is_away_owners_serve_and_nothing_changes() {
    let mut world = World::new(5, 16, false);
    let [a, b] = ["a", "b"].map(|name| world.start(name));
    world.calm(4_000);
    let served = [world.served_by(a), world.served_by(b)];
    for run in [a, b] {
        world.input(run, Input::EtcdGone);
        assert_eq!(world.runs[run].node.standing(), Standing::Degraded);
    }
    // A death that nobody can act on.
    let mut out = Vec::new();
    let node = world.runs[b].node.me().node.clone();
    world.runs[a].node.handle(world.now, Input::Watched(Watched::Node { node, entry: None }), &mut out);
    assert_eq!(out, []);
    assert_eq!([world.served_by(a), world.served_by(b)], served);
}

#[test]
fn a_lost_lease_ends_the_run() {
    let mut world = World::new(6, 16, false);
    let a = world.start("a");
    world.calm(500);
    let me = world.runs[a].node.me().clone();
    world.delete_node(&me);
    world.calm(1_500);
    assert_eq!(world.runs[a].node.standing(), Standing::Dead);
    assert!(!world.has_node_key(me.incarnation));
    world.calm(1_000);
    world.assert_settled();
}

/// Its lease is there still, so that nothing else would tell it.
#[test]
fn a_run_whose_node_key_is_taken_away_ends() {
    let mut world = World::new(14, 16, false);
    let a = world.start("a");
    world.calm(500);
    let node = world.runs[a].node.me().node.clone();
    let mut another = world.runs[a].node.entry();
    another.incarnation = Incarnation(99);
    for entry in [None, Some(another)] {
        let mut out = Vec::new();
        let gone = Input::Watched(Watched::Node { node: node.clone(), entry: entry.clone() });
        let mut run = world.runs[a].node.clone();
        run.handle(world.now, gone.clone(), &mut out);
        assert_eq!(out, [Action::Revoke, Action::Dead { why: End::LeaseLost }]);
        // A watch that has not come to it yet shows what was before it.
        out.clear();
        let mut run = world.runs[a].node.clone();
        run.is_shown = false;
        run.handle(world.now, gone, &mut out);
        assert_eq!(run.standing(), Standing::Up);
    }
}

#[test]
fn workers_that_do_not_tick_lose_the_lease() {
    let mut world = World::new(7, 16, false);
    let a = world.start("a");
    world.calm(500);
    let (mut now, mut out) = (world.now, Vec::new());
    while now < world.now + 3_000 {
        now += 10;
        world.runs[a].node.handle(now, Input::Tick, &mut out);
        if now > world.now + 1_400 {
            assert!(!out.contains(&Action::KeepAlive), "at {}", now - world.now);
        }
        if out.contains(&Action::KeepAlive) {
            world.runs[a].node.handle(now, Input::KeptAlive(KeptAlive::Done), &mut out);
        }
        out.clear();
    }
}

#[test]
fn two_witnesses_are_believed_and_one_is_not() {
    let mut world = World::new(8, 16, false);
    let [a, b, _] = ["a", "b", "c"].map(|name| world.start(name));
    world.calm(4_000);
    let accused = world.runs[b].node.me().clone();
    let name = |name: &str| NodeId::parse(name).unwrap();
    for witness in ["a", "a", "b", "nobody"] {
        let input = Input::Refused { incarnation: accused.incarnation, witness: name(witness) };
        world.input(a, input);
        assert_eq!(world.seen.witnessed, 0, "{witness}");
    }
    world.input(a, Input::Refused { incarnation: accused.incarnation, witness: name("c") });
    assert_eq!(world.seen.witnessed, 1);
    assert!(!world.has_node_key(accused.incarnation));
}

/// Frozen, restored, recovered: then it goes on.
#[test]
fn a_restored_etcd_is_noticed_and_recovered() {
    let mut world = World::new(9, 16, false);
    world.start("a");
    world.calm(3_000);
    world.snapshots.push(world.etcd.clone());
    world.start("b");
    world.calm(4_000);
    world.assert_settled();
    // The snapshot names A for all slots, eight of which B serves.
    world.restore();
    world.calm(6_000);
    assert!(world.etcd.frozen, "{:?}", world.seen);
    assert!(world.runs.iter().filter(|run| run.lives).all(|run| run.node.standing() == Standing::Frozen));
    world.recover();
    world.calm(8_000);
    world.assert_settled();
    assert!(world.etcd.slots.values().all(|key| generation(key.epoch) == 1));
}

/// `ring recover` has fenced it, and nobody may ever ask it anything that would show it its fence.
#[test]
fn a_frozen_run_ends_when_ownership_is_free_again() {
    let mut world = World::new(10, 16, false);
    let a = world.start("a");
    world.calm(500);
    let mut out = Vec::new();
    let node = &mut world.runs[a].node;
    node.handle(world.now, Input::Watched(Watched::Frozen(true)), &mut out);
    assert_eq!((node.standing(), out.as_slice()), (Standing::Frozen, &[][..]));
    node.handle(world.now, Input::Watched(Watched::Frozen(false)), &mut out);
    assert_eq!(out, [Action::Revoke, Action::Dead { why: End::Fenced }]);
}

/// Whatever wrote it did not count its version up: a swap that is lost to it says what etcd holds.
#[test]
fn a_target_that_was_changed_behind_its_version_is_adopted_by_who_loses_to_it() {
    let mut world = World::new(11, 16, false);
    let [_, b] = ["a", "b"].map(|name| world.start(name));
    world.calm(4_000);
    let mut changed = Target::clone(world.etcd.target.as_ref().unwrap());
    let version = changed.version();
    changed.pin(SlotId(3), Some(NodeId::parse("a").unwrap()));
    changed.version = version;
    world.event(Watched::Target(Some(Arc::new(changed))));
    world.calm(500);
    world.kill(b);
    world.calm(8_000);
    world.assert_settled();
    assert_eq!(world.etcd.target.as_ref().map(|target| target.members().len()), Some(1));
}

/// A run that has served slot 0 and finds its key deleted: it freezes ownership, and has asked for that.
fn freezing() -> (World, usize) {
    let mut world = World::new(12, 16, false);
    let a = world.start("a");
    world.calm(500);
    let (slot, incarnation) = (SlotId(0), Incarnation(99));
    let mut out = Vec::new();
    let inputs = [
        Input::Watched(Watched::Slot { slot, key: key_of(Epoch(2)) }),
        Input::NodeRead { incarnation, gone: Ok(true) },
        Input::FenceWritten { incarnation, result: Ok(()) },
        Input::Slot { slot, input: SlotInput::Cas(CasOutcome::Lost(None)) },
    ];
    for input in inputs {
        out.clear();
        world.runs[a].node.handle(world.now, input, &mut out);
    }
    let why = Why::SetBack { served: Epoch(1) };
    assert_eq!(out.last(), Some(&Action::WriteFrozen { slot: SlotId(0), why, expect: None }));
    (world, a)
}

fn key_of(epoch: Epoch) -> Option<SlotKey> {
    let owner = NodeId::parse("b").unwrap();
    Some(SlotKey { owner, incarnation: Incarnation(99), epoch, prev: None })
}

#[test]
fn what_was_recovered_meanwhile_is_not_frozen_again() {
    let over = [Action::Revoke, Action::Dead { why: End::Fenced }];
    let (mut world, a) = freezing();
    let mut out = Vec::new();
    let recovered = key_of(crate::slot_key::first_of_generation(1));
    world.runs[a].node.handle(world.now, Input::FrozenWritten(CasOutcome::Lost(recovered)), &mut out);
    assert_eq!(out, over);
    // It was not heard at all, and sees another's freeze come and go.
    let (mut world, a) = freezing();
    out.clear();
    for frozen in [true, false] {
        world.runs[a].node.handle(world.now, Input::Watched(Watched::Frozen(frozen)), &mut out);
    }
    assert_eq!(out, over);
}

#[test]
fn a_freeze_is_asked_for_until_it_is_written() {
    let (mut world, a) = freezing();
    let mut expect = None;
    for outcome in [CasOutcome::Unknown, CasOutcome::Lost(key_of(Epoch(2))), CasOutcome::Unknown] {
        if let CasOutcome::Lost(current) = &outcome {
            expect.clone_from(current);
        }
        let mut out = Vec::new();
        let node = &mut world.runs[a].node;
        node.handle(world.now, Input::FrozenWritten(outcome), &mut out);
        assert_eq!(out, []);
        world.now += node.options.limits.retry_ms;
        node.handle(world.now, Input::Tick, &mut out);
        let why = Why::SetBack { served: Epoch(1) };
        let again = Action::WriteFrozen { slot: SlotId(0), why, expect: expect.clone() };
        assert!(out.contains(&again), "{out:?}");
    }
    let node = &mut world.runs[a].node;
    node.handle(world.now, Input::FrozenWritten(CasOutcome::Won), &mut Vec::new());
    assert_eq!((node.standing(), node.freezing.is_none()), (Standing::Frozen, true));
    let account = node.account(world.now, SlotId(0)).unwrap();
    assert_eq!(account.waits, Waits::Recovery);
}

#[test]
fn an_account_says_what_a_slot_waits_for() {
    let mut world = World::new(13, 16, false);
    let [a, b] = ["a", "b"].map(|name| world.start(name));
    let waits = |world: &World, run: usize, slot: u16| {
        world.runs[run].node.account(world.now, SlotId(slot)).unwrap().waits
    };
    assert_eq!(waits(&world, a, 0), Waits::Run);
    world.calm(4_000);
    let of_b = (0..16).find(|slot| world.runs[b].speaks.contains_key(&SlotId(*slot))).unwrap();
    assert_eq!((waits(&world, a, of_b), waits(&world, b, of_b)), (Waits::Owner, Waits::Nothing));
    world.input(a, Input::EtcdGone);
    assert_eq!(waits(&world, a, of_b), Waits::Etcd);
    assert_eq!(world.runs[a].node.account(world.now, SlotId(16)), None);
    let words = world.runs[b].node.account(world.now, SlotId(of_b)).unwrap().to_string();
    assert!(words.contains("b owns it at epoch") && words.ends_with("waits for nothing"), "{words}");
}

/// Random orders of everything, with faults: nobody ever begins to speak beside one that is not fenced, no epoch has two
/// speakers; and when the faults end, every slot is served again.
fn weather(seed: u64) -> Coverage {
    let mut world = World::new(seed, 8, true);
    world.wishes = seed.is_multiple_of(2);
    for name in ["a", "b", "c"] {
        world.start(name);
    }
    world.calm(1_000);
    for round in 0..4 {
        world.faults = true;
        for _ in 0..1_500 {
            world.storm();
        }
        if round == 2 && seed.is_multiple_of(3) {
            world.restore();
        }
    }
    world.late.clear();
    for run in &mut world.runs {
        run.paused_until = 0;
    }
    world.calm(25_000);
    if world.etcd.frozen {
        assert!(world.seen.restores > 0, "seed {seed}: a false alarm");
        world.recover();
        world.calm(15_000);
    }
    if world.seen.restores == 0 || world.seen.recoveries > 0 {
        world.assert_settled();
    }
    world.seen
}

#[test]
fn whatever_happens_one_speaks() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..40 {
        for (what, times) in weather(seed).times() {
            *seen.entry(what).or_default() += times;
        }
    }
    assert!(seen.values().all(|times| *times > 4), "something hardly ever happened: {seen:?}");
}

/// The storms find what is left out of the protocol, each from the seed on that found it when it was first tried.
#[test]
fn storms_catch_what_is_left_out() {
    for (bug, seed) in [
        (Bug::NoFence, 0),
        (Bug::FenceAfterRead, 1),
        (Bug::FenceOnlyDirectPredecessor, 3),
        (Bug::IncarnationReused, 1),
        (Bug::EpochReused, 0),
        (Bug::ReadSettlesTransaction, 31),
        (Bug::EarlyStateUsed, 61),
        (Bug::TimedOutClaimSkipsOpen, 61),
        (Bug::StateNotBoundToEpoch, 60),
        (Bug::HandoffWithAppendInFlight, 0),
        (Bug::HandoffOldOwnerGoesOn, 0),
        (Bug::NoRegistration, 3),
        (Bug::RegistrationAsMaximum, 1),
        (Bug::RegistrationAsMaximumAtHandoffToo, 1),
        (Bug::RegistrationBeforeClaim, 1),
        (Bug::RegistrationIgnoresLowerRows, 40),
        (Bug::RecoverSparesRunningNode, 3),
    ] {
        let caught = (seed..seed + 300)
            .find(|seed| std::panic::catch_unwind(|| plant::with(Some(bug), || weather(*seed))).is_err());
        assert!(caught.is_some(), "{bug:?} is not caught");
    }
}

#[test]
fn at_most_so_many_slots_change_at_once() {
    let mut world = World::new(10, 1_024, false);
    let a = world.start("a");
    // First all are claimed, then half are handed over.
    let (mut given, mut taken) = ([0; 2], [0; 2]);
    for (round, name) in ["b", "c"].into_iter().enumerate() {
        for _ in 0..300 {
            world.pass_time(10);
            for run in world.running() {
                while world.deliver(run) {}
            }
            // In the middle of things: what a run has begun and not ended.
            while let Some((run, action)) = world.requests.pop_front() {
                world.answer(run, action);
                for run in world.running() {
                    world.deliver(run);
                    let node = &world.runs[run].node;
                    let slots = (0..1_024).filter_map(|slot| node.slot(SlotId(slot)));
                    let (gives, others): (Vec<_>, Vec<_>) = slots
                        .filter(|slot| slot.standing() == slot_owner::Standing::Changing)
                        .partition(|slot| slot.is_handing_over());
                    given[round] = given[round].max(gives.len());
                    taken[round] = taken[round].max(others.len());
                }
            }
        }
        world.start(name);
    }
    world.calm(10_000);
    world.assert_settled();
    assert!(world.seen.handed_over >= 512 + world.served_by(a) / 2);
    let limits = Limits::default();
    assert_eq!(given[0], 0);
    assert!((limits.slots_in_flight - 1..=limits.slots_in_flight).contains(&taken[0]), "{taken:?}");
    assert!((limits.handoffs_in_flight / 2..=limits.handoffs_in_flight).contains(&given[1]), "{given:?}");
    assert!((limits.handoffs_in_flight..=limits.handoffs_below).contains(&taken[1]), "{taken:?}");
}

/// Slots that were handed over and cannot be registered take no send: those that have them keep the others.
#[test]
fn who_cannot_register_is_given_no_more_slots() {
    let mut world = World::new(12, 512, false);
    let a = world.start("a");
    world.calm(8_000);
    assert_eq!(world.served_by(a), 512);
    let b = world.start("b");
    let held = world.calm_but_for_puts_of(b, 6_000);
    let limits = Limits::default();
    let given = 512 - world.served_by(a);
    assert!(
        (limits.handoffs_in_flight..=limits.handoffs_below).contains(&given),
        "{given} slots are nobody's"
    );
    world.requests.extend(held);
    world.calm(8_000);
    world.assert_settled();
    assert!((256 - 64..=256 + 64).contains(&world.served_by(b)), "and they go on: {}", world.served_by(b));
}

/// What is handed over would wait behind them, served by nobody.
#[test]
fn while_many_slots_are_taken_none_is_handed_over() {
    let mut world = World::new(13, 512, false);
    let [a, b] = ["a", "b"].map(|name| world.start(name));
    world.calm(8_000);
    assert_eq!((world.served_by(a), world.served_by(b)), (256, 256));
    world.kill(b);
    // Somebody waits for each of them.
    world.input(a, Input::Wanted { slots: (0..512).map(SlotId).collect() });
    let mut held = world.calm_but_for_puts_of(a, 4_000);
    assert!(held.len() >= 256, "they are being taken: {}", held.len());
    let c = world.start("c");
    held.extend(world.calm_but_for_puts_of(a, 6_000));
    assert_eq!((world.served_by(a), world.served_by(c)), (256, 0));
    world.requests.extend(held);
    world.calm(8_000);
    world.assert_settled();
    assert_eq!((world.served_by(a), world.served_by(c)), (256, 256));
}

#[test]
fn slots_that_somebody_waits_for_are_taken_first() {
    let mut world = World::new(14, 2_048, false);
    let [a, b] = ["a", "b"].map(|name| world.start(name));
    world.calm(20_000);
    world.assert_settled();
    let slots = (0..2_048).map(SlotId);
    let is_serving =
        |slot: &slot_owner::Ownership| matches!(slot.standing(), slot_owner::Standing::Serving(_));
    let of_b = |slot: &SlotId| world.runs[b].node.slot(*slot).is_some_and(is_serving);
    let of_b: Vec<SlotId> = slots.filter(of_b).collect();
    let limits = Limits::default();
    assert!(
        of_b.len() > limits.wanted_in_flight + limits.slots_in_flight,
        "more than go at once: {}",
        of_b.len()
    );
    // Some of all, high and low, but not the first.
    let wanted: Vec<SlotId> = of_b.iter().copied().skip(1).step_by(of_b.len() / 8).collect();
    let late = of_b[of_b.len() - 1];
    assert!(!wanted.contains(&late));
    world.kill(b);
    // Also what is no slot, and what this node serves.
    let mine = (0..2_048).map(SlotId).find(|slot| !of_b.contains(slot)).unwrap();
    world.input(a, Input::Wanted { slots: [&[SlotId(u16::MAX), mine], &*wanted].concat() });
    let claimed = world.claims(a, |world, count| {
        // While the first are on their way: it is begun, though as many as may be are.
        if count == 3 {
            let begun = world.requests.len();
            for _ in 0..2 {
                world.input(a, Input::Wanted { slots: vec![late] });
                assert_eq!(world.requests.len(), begun + 1);
            }
        }
    });
    world.assert_settled();
    assert_eq!(claimed.len(), of_b.len());
    let (first, then) = claimed.split_at(wanted.len());
    assert_eq!((first, then[0], claimed[limits.slots_in_flight]), (&*wanted, of_b[0], late));
    // They have moved: nobody waits any more.
    let c = world.start("c");
    world.calm(40_000);
    let mut of_c =
        (0..2_048).map(SlotId).filter(|slot| world.runs[c].node.slot(*slot).is_some_and(is_serving));
    let lowest = of_c.next();
    assert!(of_c.any(|slot| wanted.contains(&slot)), "but for the first none of them has moved");
    world.kill(c);
    assert_eq!(world.claims(a, |_, _| {}).first(), lowest.as_ref());
    world.assert_settled();
}

#[test]
fn tick_at_the_deadline_moves_the_deadline() {
    let mut world = World::new(11, 16, false);
    let a = world.start("a");
    world.calm(500);
    for _ in 0..10 {
        let deadline = world.runs[a].node.next_deadline().unwrap();
        world.input(a, Input::Alive { worker: 0 });
        world.now = deadline;
        world.input(a, Input::Tick);
        assert!(world.runs[a].node.next_deadline().is_none_or(|next| next > deadline));
        while let Some((run, action)) = world.requests.pop_front() {
            world.answer(run, action);
        }
        while world.deliver(a) {}
    }
}
