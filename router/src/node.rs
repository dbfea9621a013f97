//! One run of one node in a cluster: from its registration to its end.
//!
//! Owns: what the run knows of nodes, target and slots, the [`Ownership`] of every slot, and the requests that slots share
//! (whether a run is gone, its fence).
//! Always holds (DESIGN.md, section 4): the incarnation is registered in the store before the node shows itself; a node key
//! is put once per run and never again after it may have gone; the lease is kept alive only while all workers tick; at most
//! `slots_in_flight` slots change at once (`wanted_in_flight`, if somebody waits for them), `handoffs_in_flight` of them
//! handed over (none while `handoffs_below` change), and a peer is given no more than it has said it takes; while etcd is
//! away or frozen no change is begun, and owners serve on.
//! Does not: touch etcd, the store, peers or workers: it returns [`Action`]s, and each request among them is answered once
//! (with `Failed` or `Unknown` after a time-out of whoever carries it out). All keys come by one watch over their common
//! prefix, in order of revision.

mod account;
mod placement;
mod slots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use banyan_proto::id::{Incarnation, SlotId};
use banyan_proto::plant::{self, Bug};

use crate::node_key::{NodeEntry, State};
use crate::slot::SlotCount;
use crate::slot_key::{NodeId, Peer, SlotKey, generation};
use crate::slot_owner::{self, CasOutcome, Failed, Why};
use crate::target::Target;

pub use account::{Account, Waits};
use placement::Placement;
use slots::Slots;

/// What can happen to a node run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// Begin.
    Start,
    /// Answers [`Action::RegisterIncarnation`].
    IncarnationRegistered(Result<(), Failed>),
    /// Answers [`Action::Join`]. Anything but success ends the run: the key may be there, and may go.
    Joined(Result<(), Failed>),
    /// Answers [`Action::KeepAlive`].
    KeptAlive(KeptAlive),
    /// Answers [`Action::PutNode`]: whether the key still named this run.
    NodePut(Result<bool, Failed>),
    /// Answers [`Action::Revoke`], whatever came of it.
    Revoked,
    /// The watch has begun (again), and this is all that there is.
    Listed(Box<Listing>),
    Watched(Watched),
    /// The watch is broken: nothing is known to be new until [`Input::Listed`].
    EtcdGone,
    /// Answers [`Action::CasTarget`].
    TargetCas(TargetOutcome),
    /// Answers [`Action::ReadNode`].
    NodeRead {
        incarnation: Incarnation,
        gone: Result<bool, Failed>,
    },
    /// Answers [`Action::WriteFence`].
    FenceWritten {
        incarnation: Incarnation,
        result: Result<(), Failed>,
    },
    /// Answers [`Action::WriteFrozen`].
    FrozenWritten(CasOutcome),
    /// Answers [`Action::Slot`], or says what the slot's worker or its old owner did.
    Slot {
        slot: SlotId,
        input: slot_owner::Input,
    },
    /// A worker has ticked.
    Alive {
        worker: u16,
    },
    /// A worker has seen this run's own fence row.
    Fenced,
    /// A worker has not been able to read the fence for too long.
    Stuck,
    /// `witness` found its connections to that run reset and new ones refused (a time-out is not that).
    Refused {
        incarnation: Incarnation,
        witness: NodeId,
    },
    /// Somebody waits for these slots, and nobody serves them as far as he knows: they are taken first, if they are.
    Wanted {
        slots: Vec<SlotId>,
    },
    /// Another node asks whether it may hand slots to this one.
    ReadyAsked {
        by: Peer,
    },
    /// Another node answers [`Action::AskReady`].
    Ready {
        incarnation: Incarnation,
    },
    /// Leave the cluster: slots first.
    Drain,
    Tick,
}

/// Everything under the prefix, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listing {
    pub slots: Vec<(SlotId, SlotKey)>,
    pub nodes: Vec<(NodeId, NodeEntry)>,
    pub target: Option<Arc<Target>>,
    pub frozen: bool,
}

/// One key has changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Watched {
    Slot { slot: SlotId, key: Option<SlotKey> },
    Node { node: NodeId, entry: Option<NodeEntry> },
    Target(Option<Arc<Target>>),
    Frozen(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeptAlive {
    Done,
    /// Not known: etcd did not answer.
    Failed,
    /// There is no such lease any more.
    LeaseGone,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetOutcome {
    Won,
    Lost(Option<Arc<Target>>),
    Unknown,
}

/// What must be done next, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// In the store, at quorum.
    RegisterIncarnation,
    /// Grants a lease and puts `nodes/{id}` on it.
    Join {
        entry: NodeEntry,
    },
    KeepAlive,
    /// Puts `nodes/{id}` on the same lease, if it still names this run.
    PutNode {
        entry: NodeEntry,
    },
    /// Ends the lease, and with it the node key.
    Revoke,
    /// If `target` is exactly `expect`, it becomes `new`.
    CasTarget {
        expect: Option<Arc<Target>>,
        new: Arc<Target>,
    },
    /// Looks whether a node key names this run, linearizable.
    ReadNode {
        incarnation: Incarnation,
    },
    /// Writes `fences(incarnation)` at quorum.
    WriteFence {
        incarnation: Incarnation,
    },
    /// Deletes `nodes/{id}` if it still names this run. Not answered: the watch shows it.
    DeleteNode {
        peer: Peer,
    },
    /// Asks a peer, over the link between nodes, whether it is there to be handed slots. A node that sleeps has a node key
    /// still, and a slot given to it is silent until its lease ends. No answer is an answer.
    AskReady {
        peer: Peer,
    },
    SayReady {
        to: Peer,
    },
    /// If the slot's key is exactly `expect`, puts the key `frozen`, with the reason; and tells people. A run that learns
    /// late, or is heard late, must not freeze what `ring recover` has put right meanwhile.
    WriteFrozen {
        slot: SlotId,
        why: Why,
        expect: Option<SlotKey>,
    },
    /// Of one slot: never [`slot_owner::Action::ReadNode`], `WriteFence`, `Freeze` or `Dead`, which are the node's.
    Slot {
        slot: SlotId,
        action: slot_owner::Action,
    },
    /// The run is over: all that it held is dropped. The process goes on as another one ([`Node::rejoin`]).
    Dead {
        why: End,
    },
    /// Drained and gone from the cluster.
    Left,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// It could not register or show itself.
    NotJoined,
    Fenced,
    LeaseLost,
    Stuck,
}

impl End {
    pub const ALL: [Self; 4] = [Self::NotJoined, Self::Fenced, Self::LeaseLost, Self::Stuck];
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Options {
    pub me: Peer,
    /// What it shows; the incarnation and the state are set by the run.
    pub entry: NodeEntry,
    pub slots: SlotCount,
    /// Shard workers that must tick.
    pub workers: u16,
    pub limits: Limits,
}

/// Times in milliseconds of this node's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    pub slot: slot_owner::Limits,
    /// Of the lease. Kept alive three times as often.
    pub ttl_ms: u64,
    /// A worker that has not ticked for so long is stuck, and the lease is left to run out.
    pub watchdog_ms: u64,
    /// A node must have been there so long before slots are moved to it: one that flaps moves nothing.
    pub settle_ms: u64,
    /// After so long without an owner a slot may be claimed by the next node in the order of the ring, after twice that by
    /// the one after it, and so on.
    pub claim_after_ms: u64,
    /// What did not work is tried again after this time.
    pub retry_ms: u64,
    /// A peer that said so is ready for so long.
    pub ready_ms: u64,
    /// Two witnesses within this time are believed.
    pub witness_ms: u64,
    /// Slots that change at once here, those that come included. A slot that nobody serves and nobody waits for is begun
    /// while fewer change: while a dead node's rooms are opened, the store has other things to do than to register the rest.
    pub slots_in_flight: usize,
    /// The same for slots that somebody waits for ([`Input::Wanted`]): as many as the store can register together.
    pub wanted_in_flight: usize,
    /// While so many change, none is handed over, neither to nor from here: it would wait behind them, served by nobody.
    pub handoffs_below: usize,
    /// Slots that are being handed over at once, and those that one [`Input::Ready`] is for. While a slot is handed over
    /// its rooms take no send, and on a store with much to do each takes as long as all that go at once.
    pub handoffs_in_flight: usize,
    /// A peer that was told [`Action::SayReady`] sends slots within this time, or most likely none.
    pub promise_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            slot: slot_owner::Limits::default(),
            ttl_ms: 3_000,
            watchdog_ms: 1_000,
            settle_ms: 2_000,
            claim_after_ms: 3_000,
            retry_ms: 200,
            ready_ms: 500,
            witness_ms: 1_000,
            slots_in_flight: 64,
            wanted_in_flight: 512,
            handoffs_below: 4,
            handoffs_in_flight: 4,
            promise_ms: 25,
        }
    }
}

/// What a caller may want to know of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    Starting,
    Up,
    /// Serving, but no ownership changes are begun: etcd is away.
    Degraded,
    /// Serving, but no ownership changes until `ring recover`.
    Frozen,
    Draining,
    Left,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    New,
    Registering,
    Joining,
    Up,
    /// The lease is being revoked.
    Leaving,
    Left,
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Seen {
    entry: NodeEntry,
    since_ms: u64,
}

/// One run of one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    options: Options,
    phase: Phase,
    state: State,
    /// The watch is up to date.
    etcd: bool,
    frozen: bool,
    /// The key `frozen` could not be written yet.
    freezing: Option<Freezing>,
    nodes: BTreeMap<NodeId, Seen>,
    placement: Placement,
    slots: Slots,
    /// The watch has shown this run's own key: if it is gone after that, it was taken away.
    is_shown: bool,
    /// When each worker ticked last.
    ticked: Vec<u64>,
    keep_alive: Request,
    put_node: Request,
    /// When peers were asked whether they are ready, and when they said so.
    ready: BTreeMap<Incarnation, Ready>,
    /// Who has asked whether we are ready, and waits until we are: one entry for each run that has a link to us at most.
    askers: BTreeMap<Incarnation, Peer>,
    /// When we said so of late, oldest first.
    promised: VecDeque<u64>,
    /// Who was refused by whom, and when.
    refused: BTreeMap<Incarnation, BTreeMap<NodeId, u64>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Ready {
    /// Since it said so last.
    asked_ms: Option<u64>,
    said_ms: Option<u64>,
    /// Slots that it takes still.
    left: usize,
}

impl Ready {
    /// How many slots may go to it now.
    fn takes(&self, now_ms: u64, ready_ms: u64) -> usize {
        if self.said_ms.is_some_and(|at| now_ms < at + ready_ms) { self.left } else { 0 }
    }
}

/// A request that is repeated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Request {
    under_way: bool,
    /// When it is made (again).
    at: Option<u64>,
}

impl Request {
    fn is_due(&self, now_ms: u64) -> bool {
        !self.under_way && self.at.is_some_and(|at| at <= now_ms)
    }

    fn begin(&mut self) {
        *self = Self { under_way: true, at: None };
    }

    fn answered(&mut self, again_at: Option<u64>) {
        *self = Self { under_way: false, at: again_at };
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Freezing {
    slot: SlotId,
    why: Why,
    /// What the slot's key is, as far as is known.
    expect: Option<SlotKey>,
    request: Request,
}

impl Freezing {
    /// Whether the slot's key is of a later generation than what is in doubt: `ring recover` has set it since.
    fn is_over(&self, key: Option<&SlotKey>) -> bool {
        let doubted = match self.why {
            Why::OtherOwner(row) => row.tenure.epoch,
            Why::SetBack { served } => served,
        };
        key.is_some_and(|key| generation(key.epoch) > generation(doubted))
    }
}

impl Node {
    pub fn new(options: Options, now_ms: u64) -> Self {
        let slots = Slots::new(&options);
        Self {
            phase: Phase::New,
            state: State::Up,
            etcd: false,
            frozen: false,
            freezing: None,
            nodes: BTreeMap::new(),
            placement: Placement::default(),
            slots,
            is_shown: false,
            ticked: vec![now_ms; usize::from(options.workers)],
            keep_alive: Request::default(),
            put_node: Request::default(),
            ready: BTreeMap::new(),
            askers: BTreeMap::new(),
            promised: VecDeque::new(),
            refused: BTreeMap::new(),
            options,
        }
    }

    /// The next run of the same node, under an incarnation that was never used.
    #[must_use]
    pub fn rejoin(&self, incarnation: Incarnation, now_ms: u64) -> Self {
        let mut options = self.options.clone();
        if !plant::is(Bug::IncarnationReused) {
            options.me.incarnation = incarnation;
        }
        Self::new(options, now_ms)
    }

    pub fn me(&self) -> &Peer {
        &self.options.me
    }

    pub fn standing(&self) -> Standing {
        match self.phase {
            Phase::New | Phase::Registering | Phase::Joining => Standing::Starting,
            Phase::Up | Phase::Leaving if self.state == State::Draining => Standing::Draining,
            Phase::Up | Phase::Leaving if self.frozen => Standing::Frozen,
            Phase::Up | Phase::Leaving if !self.etcd => Standing::Degraded,
            Phase::Up | Phase::Leaving => Standing::Up,
            Phase::Left => Standing::Left,
            Phase::Dead => Standing::Dead,
        }
    }

    /// What the run does with a slot.
    pub fn slot(&self, slot: SlotId) -> Option<&slot_owner::Ownership> {
        self.slots.machine(slot)
    }

    /// The target that it follows.
    pub fn target(&self) -> Option<&Arc<Target>> {
        self.placement.target.as_ref()
    }

    /// Applies one input and pushes what must be done onto `out`.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Dead | Phase::Left) {
            return;
        }
        match input {
            Input::Start => {
                if self.phase == Phase::New {
                    self.phase = Phase::Registering;
                    out.push(Action::RegisterIncarnation);
                }
            }
            Input::IncarnationRegistered(result) => self.registered(result, out),
            Input::Joined(result) => self.joined(now_ms, result, out),
            Input::KeptAlive(kept) => self.kept_alive(now_ms, kept, out),
            Input::NodePut(result) => self.node_put(now_ms, result, out),
            Input::Revoked => {
                if self.phase == Phase::Leaving {
                    self.phase = Phase::Left;
                    out.push(Action::Left);
                }
            }
            Input::Listed(listing) => self.listed(now_ms, *listing, out),
            Input::Watched(watched) => self.watched(now_ms, watched, out),
            Input::EtcdGone => self.etcd = false,
            Input::TargetCas(outcome) => self.target_swapped(now_ms, outcome),
            Input::NodeRead { incarnation, gone } => self.node_read(now_ms, incarnation, gone, out),
            Input::FenceWritten { incarnation, result } => {
                self.fence_written(now_ms, incarnation, result, out);
            }
            Input::FrozenWritten(outcome) => self.frozen_written(now_ms, outcome, out),
            Input::Slot { slot, input } => self.feed(now_ms, slot, input, out),
            Input::Alive { worker } => {
                if let Some(ticked) = self.ticked.get_mut(usize::from(worker)) {
                    *ticked = now_ms;
                }
                // Every few milliseconds: nothing else can have come of it.
                return;
            }
            Input::Fenced => self.end(now_ms, End::Fenced, out),
            Input::Stuck => self.end(now_ms, End::Stuck, out),
            Input::Refused { incarnation, witness } => self.refused(now_ms, incarnation, witness, out),
            Input::Wanted { slots } => {
                // One by one: what was wanted already changes nothing.
                if slots.into_iter().filter(|slot| self.slots.want(*slot)).count() == 0 {
                    return;
                }
            }
            Input::ReadyAsked { by } => {
                if self.may_take(now_ms) {
                    self.askers.insert(by.incarnation, by);
                }
            }
            Input::Ready { incarnation } => {
                if self.is_alive(incarnation) {
                    let left = self.options.limits.handoffs_in_flight;
                    self.ready.insert(incarnation, Ready { asked_ms: None, said_ms: Some(now_ms), left });
                }
            }
            Input::Drain => {
                if self.state == State::Up {
                    self.state = State::Draining;
                    self.put_node.at = Some(now_ms);
                    self.placement.is_open = true;
                }
            }
            Input::Tick => self.tick_slots(now_ms, out),
        }
        self.go_on(now_ms, out);
    }

    /// When [`Input::Tick`] must come if nothing else does.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.phase != Phase::Up {
            return None;
        }
        let freezing = self.freezing.as_ref().and_then(|freezing| freezing.request.at);
        let of_placement = self.may_change().then(|| self.placement.next_deadline()).flatten();
        let promise = self.promised.front().filter(|_| !self.askers.is_empty());
        let promise = promise.map(|at| at + self.options.limits.promise_ms);
        let slots = self.slots.next_deadline();
        let all = [self.keep_alive.at, self.put_node.at, freezing, of_placement, slots, promise];
        all.into_iter().flatten().min()
    }

    /// What follows from whatever happened.
    fn go_on(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.phase != Phase::Up {
            return;
        }
        if self.keep_alive.is_due(now_ms) {
            self.watch_over_lease(now_ms, out);
        }
        if self.put_node.is_due(now_ms) {
            self.put_node.begin();
            out.push(Action::PutNode { entry: self.entry() });
        }
        if let Some(freezing) = &mut self.freezing
            && freezing.request.is_due(now_ms)
        {
            freezing.request.begin();
            let expect = freezing.expect.clone();
            out.push(Action::WriteFrozen { slot: freezing.slot, why: freezing.why, expect });
        }
        if self.may_change() {
            self.place(now_ms, out);
            self.pump(now_ms, out);
        }
        self.answer_askers(now_ms, out);
        self.leave_if_empty(out);
    }

    /// Whether changes of ownership may be begun.
    fn may_change(&self) -> bool {
        self.phase == Phase::Up && self.etcd && !self.frozen
    }

    // ---------------------------------------------------------------- the run

    fn entry(&self) -> NodeEntry {
        let incarnation = self.options.me.incarnation;
        NodeEntry { incarnation, state: self.state, ..self.options.entry.clone() }
    }

    fn registered(&mut self, result: Result<(), Failed>, out: &mut Vec<Action>) {
        if self.phase != Phase::Registering {
            return;
        }
        match result {
            Ok(()) => {
                self.phase = Phase::Joining;
                out.push(Action::Join { entry: self.entry() });
            }
            Err(Failed) => self.over(End::NotJoined, out),
        }
    }

    fn joined(&mut self, now_ms: u64, result: Result<(), Failed>, out: &mut Vec<Action>) {
        if self.phase != Phase::Joining {
            return;
        }
        match result {
            Ok(()) => {
                self.phase = Phase::Up;
                self.keep_alive.at = Some(now_ms + self.options.limits.ttl_ms / 3);
                self.slots.look_at_all();
            }
            Err(Failed) => self.end(now_ms, End::NotJoined, out),
        }
    }

    /// Keeps the lease alive if the workers are.
    fn watch_over_lease(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.workers_tick(now_ms) {
            self.keep_alive.begin();
            out.push(Action::KeepAlive);
        } else {
            self.keep_alive.at = Some(now_ms + self.options.limits.watchdog_ms / 4);
        }
    }

    fn workers_tick(&self, now_ms: u64) -> bool {
        let watchdog_ms = self.options.limits.watchdog_ms;
        self.ticked.iter().all(|ticked| now_ms.saturating_sub(*ticked) <= watchdog_ms)
    }

    /// Whether a peer has said of late that it takes slots, and takes one more. If not, it is asked (again).
    fn is_ready(&mut self, now_ms: u64, peer: &Peer, out: &mut Vec<Action>) -> bool {
        let ready_ms = self.options.limits.ready_ms;
        let ready = self.ready.entry(peer.incarnation).or_default();
        if ready.takes(now_ms, ready_ms) > 0 {
            return true;
        }
        if ready.asked_ms.is_none_or(|at| now_ms >= at + ready_ms) {
            ready.asked_ms = Some(now_ms);
            out.push(Action::AskReady { peer: peer.clone() });
        }
        false
    }

    /// Whether slots may be handed to this run.
    fn may_take(&self, now_ms: u64) -> bool {
        self.may_change() && self.state == State::Up && self.workers_tick(now_ms)
    }

    /// Says to those who have asked that we are ready, as far as there is room for what they send then. A slot that was
    /// handed over and is not served yet takes no send: they must not come faster than the store lets us register them.
    fn answer_askers(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.askers.is_empty() {
            return;
        }
        if !self.may_take(now_ms) {
            // They ask again.
            self.askers.clear();
            return;
        }
        let limits = &self.options.limits;
        while self.promised.front().is_some_and(|at| at + limits.promise_ms <= now_ms) {
            self.promised.pop_front();
        }
        let most = limits.handoffs_below;
        while self.slots.changing() + (self.promised.len() + 1) * limits.handoffs_in_flight <= most
            && let Some((_, to)) = self.askers.pop_first()
        {
            self.promised.push_back(now_ms);
            out.push(Action::SayReady { to });
        }
    }

    fn kept_alive(&mut self, now_ms: u64, kept: KeptAlive, out: &mut Vec<Action>) {
        let limits = &self.options.limits;
        match kept {
            KeptAlive::Done => self.keep_alive.answered(Some(now_ms + limits.ttl_ms / 3)),
            KeptAlive::Failed => self.keep_alive.answered(Some(now_ms + limits.retry_ms)),
            // Somebody may have seen the key gone: it must never be there again with this incarnation.
            KeptAlive::LeaseGone if self.phase == Phase::Leaving => {}
            KeptAlive::LeaseGone => self.end(now_ms, End::LeaseLost, out),
        }
    }

    fn node_put(&mut self, now_ms: u64, result: Result<bool, Failed>, out: &mut Vec<Action>) {
        match result {
            Ok(true) => self.put_node.answered(None),
            Ok(false) => self.end(now_ms, End::LeaseLost, out),
            Err(Failed) => self.put_node.answered(Some(now_ms + self.options.limits.retry_ms)),
        }
    }

    /// The end of a run whose key may be there: without it others need not wait for the lease.
    fn end(&mut self, now_ms: u64, why: End, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Joining | Phase::Up | Phase::Leaving) {
            out.push(Action::Revoke);
        }
        self.slots.fence_all(now_ms);
        self.over(why, out);
    }

    fn over(&mut self, why: End, out: &mut Vec<Action>) {
        self.phase = Phase::Dead;
        out.push(Action::Dead { why });
    }

    /// A drained node that owns nothing, or has nobody to give to, goes.
    fn leave_if_empty(&mut self, out: &mut Vec<Action>) {
        if self.state == State::Draining
            && !self.put_node.under_way
            && self.put_node.at.is_none()
            && (self.slots.is_empty() || !self.has_heirs())
        {
            self.phase = Phase::Leaving;
            out.push(Action::Revoke);
        }
    }

    fn has_heirs(&self) -> bool {
        let me = &self.options.me.node;
        self.nodes.iter().any(|(node, seen)| node != me && seen.entry.takes_slots())
    }

    // ---------------------------------------------------------------- what is there

    fn listed(&mut self, now_ms: u64, listing: Listing, out: &mut Vec<Action>) {
        self.etcd = true;
        let there: BTreeSet<&NodeId> = listing.nodes.iter().map(|(node, _)| node).collect();
        let gone: Vec<NodeId> = self.nodes.keys().filter(|node| !there.contains(node)).cloned().collect();
        for node in gone {
            self.node_changed(now_ms, node, None);
        }
        for (node, entry) in listing.nodes {
            self.node_changed(now_ms, node, Some(entry));
        }
        self.look_for_own_key(now_ms, out);
        if self.phase == Phase::Dead {
            return;
        }
        self.placement.adopt(listing.target, true);
        self.set_frozen(now_ms, listing.frozen, out);
        for (slot, key) in listing.slots {
            self.slots.has_moved(slot);
            self.feed(now_ms, slot, slot_owner::Input::Key(Some(key)), out);
        }
        self.slots.look_at_all();
    }

    fn watched(&mut self, now_ms: u64, watched: Watched, out: &mut Vec<Action>) {
        match watched {
            Watched::Slot { slot, key } => {
                self.slots.has_moved(slot);
                self.feed(now_ms, slot, slot_owner::Input::Key(key), out);
            }
            Watched::Node { node, entry } => {
                self.node_changed(now_ms, node, entry);
                self.look_for_own_key(now_ms, out);
                self.slots.look_at_all();
            }
            Watched::Target(target) => {
                self.placement.adopt(target, false);
                self.slots.look_at_all();
            }
            Watched::Frozen(frozen) => {
                self.set_frozen(now_ms, frozen, out);
                self.slots.look_at_all();
            }
        }
    }

    fn node_changed(&mut self, now_ms: u64, node: NodeId, entry: Option<NodeEntry>) {
        self.placement.is_open = true;
        let Some(entry) = entry else {
            if let Some(seen) = self.nodes.remove(&node) {
                self.forget(seen.entry.incarnation);
            }
            return;
        };
        self.slots.is_back(entry.incarnation);
        match self.nodes.get_mut(&node) {
            // A new run of a node that was there a moment ago keeps its place.
            Some(seen) => {
                let before = std::mem::replace(&mut seen.entry, entry).incarnation;
                if before != seen.entry.incarnation {
                    self.forget(before);
                }
            }
            None => {
                self.nodes.insert(node, Seen { entry, since_ms: now_ms });
            }
        }
    }

    /// A run that takes nothing any more, and asks for nothing.
    fn forget(&mut self, incarnation: Incarnation) {
        self.ready.remove(&incarnation);
        self.askers.remove(&incarnation);
        self.slots.forget(incarnation);
    }

    /// A run whose key was deleted (by witnesses who erred, by hand) or is another run's has its lease still, and would go on
    /// unseen: nobody gives it a slot, and those that it has are taken from it.
    fn look_for_own_key(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.is_alive(self.options.me.incarnation) {
            self.is_shown = true;
        } else if self.is_shown && self.phase == Phase::Up {
            self.end(now_ms, End::LeaseLost, out);
        }
    }

    fn set_frozen(&mut self, now_ms: u64, frozen: bool, out: &mut Vec<Action>) {
        let was = self.frozen;
        if frozen {
            // Whoever wrote it: it is there, and when it is lifted that is news for us too.
            self.freezing = None;
        }
        self.frozen = frozen || self.freezing.is_some();
        if was && !self.frozen {
            // `ring recover` is through and has fenced every run that was registered: a run that nobody asks anything would
            // not find that out, and slots that it saw set back would be its own for ever.
            self.end(now_ms, End::Fenced, out);
        } else if self.frozen {
            // A drained slot could not be handed over, nor speak again: what is not yet drained stays.
            for slot in self.slots.draining() {
                self.feed(now_ms, slot, slot_owner::Input::Take, out);
            }
        }
    }

    fn frozen_written(&mut self, now_ms: u64, outcome: CasOutcome, out: &mut Vec<Action>) {
        let again_at = now_ms + self.options.limits.retry_ms;
        let Some(freezing) = &mut self.freezing else { return };
        match outcome {
            CasOutcome::Won => self.freezing = None,
            CasOutcome::Unknown => freezing.request.answered(Some(again_at)),
            // As in `set_frozen`, but its watch has shown it nothing of that.
            CasOutcome::Lost(current) if freezing.is_over(current.as_ref()) => {
                self.end(now_ms, End::Fenced, out);
            }
            CasOutcome::Lost(current) => {
                freezing.expect = current;
                freezing.request.answered(Some(again_at));
            }
        }
    }

    fn is_alive(&self, incarnation: Incarnation) -> bool {
        self.nodes.values().any(|seen| seen.entry.incarnation == incarnation)
    }

    /// Two living nodes that were refused know that nobody listens there any more. A mistake is safe: the run is fenced.
    fn refused(&mut self, now_ms: u64, incarnation: Incarnation, witness: NodeId, out: &mut Vec<Action>) {
        let accused = self.nodes.iter().find(|(_, seen)| seen.entry.incarnation == incarnation);
        let Some((accused, _)) = accused else { return };
        if *accused == witness
            || incarnation == self.options.me.incarnation
            || !self.nodes.contains_key(&witness)
        {
            return;
        }
        let peer = Peer { node: accused.clone(), incarnation };
        let since_ms = now_ms.saturating_sub(self.options.limits.witness_ms);
        let nodes = &self.nodes;
        self.refused.retain(|incarnation, witnesses| {
            witnesses.retain(|_, at| *at >= since_ms);
            !witnesses.is_empty() && nodes.values().any(|seen| seen.entry.incarnation == *incarnation)
        });
        let witnesses = self.refused.entry(incarnation).or_default();
        let is_new = witnesses.insert(witness, now_ms).is_none();
        if is_new && witnesses.len() == 2 && self.etcd {
            out.push(Action::DeleteNode { peer });
        }
    }
}

#[cfg(test)]
mod tests;
