//! The ownership of one slot as one node run lives it: taken, registered, served, handed on.
//!
//! Owns: what this run knows of the slot's key, the highest epoch that it has begun to serve, and the one request that is
//! under way.
//! Always holds (DESIGN.md, sections 4 and 5, rules 1, 2, 2b, 6, 8): nobody is fenced whose node key a linearizable read
//! shows; a claim follows a fence that was awaited; nothing is served at an epoch before its registration has found nobody
//! else; an epoch is begun once; after a transaction of unknown outcome a drained slot speaks again only after a
//! compare-and-swap of its own; passed state is used only under the epoch that it was made for.
//! Does not: decide who should own the slot (`node.rs`, `target.rs`), talk to etcd, to the store or to the slot's worker.
//! It returns [`Action`]s. Each request among them is answered exactly once: who carries it out gives up after a time of
//! its own and answers [`Failed`] or [`CasOutcome::Unknown`]; an answer that comes after that is dropped there.

mod draft;
mod hand_off;
mod register;
mod take;

use banyan_proto::id::{Epoch, Incarnation, Tenure};
use banyan_proto::plant::{self, Bug};

use crate::slot_key::{OwnerRow, Peer, SlotKey};

use draft::Draft;
use hand_off::{Closing, Settling};
use register::{How, Registering};

/// What can happen to the ownership of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The slot's key as a watch shows it: may be late, is never invented. `None`: there is no such key.
    Key(Option<SlotKey>),
    /// This run should own the slot: try once, now. While a drain is under way: stay.
    Take,
    /// Another node should own it.
    HandOff {
        to: Peer,
    },
    /// The old owner has passed on its rooms, made for this epoch. Only `complete` state (sent after the drain) is used.
    StatePassed {
        epoch: Epoch,
        complete: bool,
    },
    /// Answers [`Action::Drain`] with its number: every append of the slot is complete, nothing more is admitted or said.
    Drained {
        drain: u32,
    },
    /// Answers [`Action::ReadKey`].
    KeyRead(Result<Option<SlotKey>, Failed>),
    /// Answers [`Action::ReadNode`]: whether no node key names that run.
    Node {
        incarnation: Incarnation,
        gone: Result<bool, Failed>,
    },
    /// Answers [`Action::WriteFence`]: at quorum.
    FenceWritten {
        incarnation: Incarnation,
        result: Result<(), Failed>,
    },
    /// Answers [`Action::Cas`].
    Cas(CasOutcome),
    /// Answers [`Action::PutOwner`].
    OwnerPut {
        row: OwnerRow,
        result: Result<(), Failed>,
    },
    /// Answers [`Action::ReadOwners`].
    Owners(Result<Vec<OwnerRow>, Failed>),
    /// Answers [`Action::ReadOwnFence`].
    OwnFence(Result<bool, Failed>),
    /// Somebody in this process has seen the run's own fence row.
    Fenced,
    Tick,
}

/// What must be done next, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Reads the slot's key, linearizable.
    ReadKey,
    /// Looks whether a node key names this run, linearizable.
    ReadNode { incarnation: Incarnation },
    /// Writes `fences(incarnation)` at quorum.
    WriteFence { incarnation: Incarnation },
    /// One etcd transaction: if the slot's key is exactly `expect` (and ownership changes are not frozen), it becomes `new`.
    Cas { expect: Option<SlotKey>, new: SlotKey },
    /// Writes the row and, in the same batch, marks the row of `closes` closed, at quorum.
    PutOwner { row: OwnerRow, closes: Option<Tenure> },
    /// Reads all rows of the slot's owners at quorum.
    ReadOwners,
    /// Reads this run's own fence row at quorum.
    ReadOwnFence,
    /// The slot is served from now on, under this name and no other. What the worker still holds of it from before is
    /// dropped.
    Serve { tenure: Tenure, opening: Opening },
    /// Admit nothing more, complete the append in flight, say nothing after that; then [`Input::Drained`].
    Drain { drain: u32 },
    /// Sends the drained rooms (under the plants that send early: the rooms as they are) to the new owner.
    SendState { to: Peer, epoch: Epoch, complete: bool },
    /// The drained slot is served again, from memory: at the tenure that it had (nothing was handed over), or at a new one
    /// (its rooms begin new segments).
    Resume { tenure: Tenure },
    /// The slot is not served here any more; what the worker holds of it is dropped. `to`: the newest ownership known.
    Release { to: Option<Tenure> },
    /// No ownership may change any more until `ring recover`: write the key `frozen` and tell people.
    Freeze { why: Why },
    /// The run is fenced: it says nothing more in any room.
    Dead,
}

/// How the rooms of a slot are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opening {
    /// Rule 3 a–d, each room when it is asked for.
    Full,
    /// Rooms that the old owner passed on under this epoch are continued from what it passed; all others in full.
    HandedOver { state: Epoch },
}

/// The outcome of an etcd transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CasOutcome {
    Won,
    /// Not applied and never will be; the key was this. Equal to what was expected: ownership changes are frozen.
    Lost(Option<SlotKey>),
    /// It may have been applied, or be applied at any time from now on.
    Unknown,
}

/// A read or a fence write did not succeed. The same may be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failed;

/// Why ownership changes must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The store knows another owner at this run's epoch or above.
    OtherOwner(OwnerRow),
    /// The slot's key was set back: this run has served a higher epoch than a linearizable read shows.
    SetBack { served: Epoch },
}

/// Times, in milliseconds of this node's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// What failed is asked again after this time.
    pub retry_ms: u64,
    /// How long a new owner waits for the state that the old one passes on. The stall of a handoff should stay below.
    pub state_wait_ms: u64,
    /// A drain that takes longer is given up: an append does not complete, and that is no time for a handoff.
    pub drain_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { retry_ms: 100, state_wait_ms: 50, drain_ms: 2_000 }
    }
}

/// One slot on one node run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ownership {
    me: Peer,
    limits: Limits,
    phase: Phase,
    /// The newest key that was seen.
    known: Option<SlotKey>,
    /// A watch has shown a newer key while the request to etcd was under way: its answer may be the older news.
    overtaken: bool,
    /// The highest epoch that this run has begun to serve; never begun again.
    served: Epoch,
    /// The highest epoch that this run has asked etcd for in its own name.
    asked: Epoch,
    /// State that an old owner has passed on, and whether it is complete.
    passed: Option<Passed>,
    /// The row of an ownership that is over, while it is being closed.
    closing: Option<Closing>,
    /// The request of the phase failed and is made again then.
    again_at: Option<u64>,
    drains: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Passed {
    epoch: Epoch,
    complete: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    /// Not ours as far as we know, and nothing under way.
    Idle,
    /// [`Action::ReadKey`] is under way.
    Reading {
        take: bool,
    },
    /// Whether the owner's run is gone.
    AskingNode {
        key: SlotKey,
    },
    /// The owner's fence is being written.
    Fencing {
        key: SlotKey,
    },
    /// The claim against exactly this value.
    Claiming {
        expect: Option<SlotKey>,
    },
    /// The key names us: rule 2b.
    Registering(Registering),
    /// Registered; the state may still come.
    AwaitingState {
        key: SlotKey,
        until_ms: u64,
    },
    Serving {
        key: SlotKey,
    },
    Draining {
        key: SlotKey,
        to: Peer,
        until_ms: u64,
    },
    /// Drained, state sent, the transaction under way.
    HandingOver {
        key: SlotKey,
        to: Peer,
    },
    /// Silent: the key may name us still, and only a compare-and-swap of our own can say so.
    Settling(Settling),
    /// Registration as earlier drafts had it: wrong, and only with a plant.
    Drafting(Draft),
    /// Ownership changes are over until etcd is recovered.
    Frozen,
    Dead,
}

/// What a caller may want to know of an [`Ownership`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Nothing under way, not ours.
    Idle,
    /// A change is under way.
    Changing,
    Serving(Tenure),
    Frozen,
    Dead,
}

impl Ownership {
    pub fn new(me: Peer, limits: Limits) -> Self {
        Self {
            me,
            limits,
            phase: Phase::Idle,
            known: None,
            overtaken: false,
            served: Epoch(0),
            asked: Epoch(0),
            passed: None,
            closing: None,
            again_at: None,
            drains: 0,
        }
    }

    pub fn standing(&self) -> Standing {
        match &self.phase {
            Phase::Idle => Standing::Idle,
            Phase::Serving { key } => Standing::Serving(key.tenure()),
            Phase::Frozen => Standing::Frozen,
            Phase::Dead => Standing::Dead,
            Phase::Reading { .. }
            | Phase::AskingNode { .. }
            | Phase::Fencing { .. }
            | Phase::Claiming { .. }
            | Phase::Registering(_)
            | Phase::AwaitingState { .. }
            | Phase::Draining { .. }
            | Phase::HandingOver { .. }
            | Phase::Settling(_)
            | Phase::Drafting(_) => Standing::Changing,
        }
    }

    /// A handoff is planned that can still be called off.
    pub fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. })
    }

    /// It is on its way to another owner: nothing is said for it here until that is settled.
    pub fn is_handing_over(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::HandingOver { .. } | Phase::Settling(_))
    }

    pub fn is_draining_for(&self, peer: &Peer) -> bool {
        matches!(&self.phase, Phase::Draining { to, .. } if to == peer)
    }

    /// What is under way, for people.
    pub fn doing(&self) -> &'static str {
        match &self.phase {
            Phase::Idle => "nothing",
            Phase::Reading { .. } => "reading its key",
            Phase::AskingNode { .. } => "asking whether its owner is gone",
            Phase::Fencing { .. } => "fencing its owner",
            Phase::Claiming { .. } => "claiming it",
            Phase::Registering(_) => "registering as its owner",
            Phase::AwaitingState { .. } => "waiting for the old owner's state",
            Phase::Serving { .. } => "serving it",
            Phase::Draining { .. } => "draining it",
            Phase::HandingOver { .. } => "handing it over",
            Phase::Settling(_) => "finding out whose it is",
            Phase::Drafting(_) => "registering as an earlier draft had it",
            Phase::Frozen => "holding still: ownership is in doubt",
            Phase::Dead => "over",
        }
    }

    /// The newest key that it has seen.
    pub fn known(&self) -> Option<&SlotKey> {
        self.known.as_ref()
    }

    /// Applies one input and pushes what must be done onto `out`.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Action>) {
        if self.phase == Phase::Dead {
            return;
        }
        match input {
            Input::Key(key) => self.watched(now_ms, key, out),
            Input::Take => self.take(now_ms, out),
            Input::HandOff { to } => self.hand_off(now_ms, to, out),
            Input::StatePassed { epoch, complete } => self.state_passed(epoch, complete, out),
            Input::Drained { drain } => self.drained(drain, out),
            Input::KeyRead(result) => self.key_read(now_ms, result, out),
            Input::Node { incarnation, gone } => self.node(now_ms, incarnation, gone, out),
            Input::FenceWritten { incarnation, result } => {
                self.fence_written(now_ms, incarnation, result, out)
            }
            Input::Cas(outcome) => self.cas(now_ms, outcome, out),
            Input::OwnerPut { row, result } => self.owner_put(now_ms, row, result, out),
            Input::Owners(result) => self.owners(now_ms, result, out),
            Input::OwnFence(result) => self.own_fence(now_ms, result, out),
            Input::Fenced => self.die(),
            Input::Tick => self.tick(now_ms, out),
        }
    }

    /// When [`Input::Tick`] must come if nothing else does.
    pub fn next_deadline(&self) -> Option<u64> {
        let of_phase = match &self.phase {
            Phase::AwaitingState { until_ms, .. } | Phase::Draining { until_ms, .. } => Some(*until_ms),
            Phase::Idle
            | Phase::Reading { .. }
            | Phase::AskingNode { .. }
            | Phase::Fencing { .. }
            | Phase::Claiming { .. }
            | Phase::Registering(_)
            | Phase::Serving { .. }
            | Phase::HandingOver { .. }
            | Phase::Settling(_)
            | Phase::Drafting(_)
            | Phase::Frozen
            | Phase::Dead => None,
        };
        let closing = self.closing.and_then(|closing| closing.again_at);
        [of_phase, closing, self.again_at].into_iter().flatten().min()
    }

    // ---------------------------------------------------------------- what is known

    /// The key as a watch shows it. It may be older than what we know, but what it names was so once: an epoch that names
    /// us can only end by our own doing or behind a fence.
    fn watched(&mut self, now_ms: u64, key: Option<SlotKey>, out: &mut Vec<Action>) {
        let Some(key) = key else { return };
        let newer = self.known.as_ref().is_none_or(|known| known.epoch < key.epoch);
        if newer {
            self.known = Some(key.clone());
            self.overtaken = self.is_asking();
        }
        match &self.phase {
            Phase::Idle if key.names(&self.me) => self.named(now_ms, key, out),
            Phase::Serving { key: mine } | Phase::Draining { key: mine, .. } if key.epoch > mine.epoch => {
                // Taken over, so fenced, or moved by a person: there is nothing to hand over any more.
                out.push(Action::Release { to: Some(key.tenure()) });
                self.rest(now_ms, out);
            }
            // Whatever is under way ends first, and then looks at what is known.
            _ => {}
        }
    }

    /// The key names us and nothing is under way.
    fn named(&mut self, now_ms: u64, key: SlotKey, out: &mut Vec<Action>) {
        let replaced = self.known.as_ref().is_some_and(|known| known.epoch > key.epoch);
        if key.epoch > self.served {
            if !replaced {
                self.begin(now_ms, key, How::Seen, out);
            }
        } else {
            // An epoch that we have had: the watch is late, or etcd was set back.
            self.phase = Phase::Reading { take: false };
            self.read_key(out);
        }
    }

    /// A request whose answer shows the key, or decides it, is under way.
    fn is_asking(&self) -> bool {
        match &self.phase {
            Phase::Reading { .. }
            | Phase::Claiming { .. }
            | Phase::HandingOver { .. }
            | Phase::Settling(_) => true,
            Phase::Idle
            | Phase::AskingNode { .. }
            | Phase::Fencing { .. }
            | Phase::Registering(_)
            | Phase::AwaitingState { .. }
            | Phase::Serving { .. }
            | Phase::Draining { .. }
            | Phase::Drafting(_)
            | Phase::Frozen
            | Phase::Dead => false,
        }
    }

    fn read_key(&mut self, out: &mut Vec<Action>) {
        self.overtaken = false;
        out.push(Action::ReadKey);
    }

    fn swap(&mut self, expect: Option<SlotKey>, new: SlotKey, out: &mut Vec<Action>) {
        self.overtaken = false;
        out.push(Action::Cas { expect, new });
    }

    /// Etcd's answer is that the key is this. It was so when etcd answered: what a watch has shown since is newer, and must
    /// not be forgotten over it, because nobody will show it again. Returns what the key is then, and whether a
    /// linearizable answer says so.
    fn learn(&mut self, answer: Option<SlotKey>) -> (Option<SlotKey>, bool) {
        let epoch = |key: &Option<SlotKey>| key.as_ref().map_or(Epoch(0), |key| key.epoch);
        let overtaken = std::mem::take(&mut self.overtaken);
        if overtaken && epoch(&self.known) > epoch(&answer) {
            return (self.known.clone(), false);
        }
        self.known.clone_from(&answer);
        (answer, true)
    }

    fn key_read(&mut self, now_ms: u64, result: Result<Option<SlotKey>, Failed>, out: &mut Vec<Action>) {
        match &self.phase {
            &Phase::Reading { take } => {
                let Ok(key) = result else {
                    self.phase = Phase::Idle;
                    return;
                };
                let (key, linear) = self.learn(key);
                self.phase = Phase::Idle;
                let mine = key.as_ref().is_some_and(|key| key.names(&self.me));
                if take || mine || self.is_set_back(key.as_ref()) {
                    self.take_from(now_ms, key, linear, out);
                }
            }
            Phase::Settling(_) => self.settle_with(now_ms, result, out),
            _ => {}
        }
    }

    /// A linearizable read shows less than what this run has served.
    fn is_set_back(&self, key: Option<&SlotKey>) -> bool {
        key.map_or(Epoch(0), |key| key.epoch) < self.served
    }

    fn cas(&mut self, now_ms: u64, outcome: CasOutcome, out: &mut Vec<Action>) {
        match &self.phase {
            Phase::Claiming { .. } => self.claimed(now_ms, outcome, out),
            Phase::HandingOver { .. } => self.handed_over(now_ms, outcome, out),
            Phase::Settling(_) => self.settled(now_ms, outcome, out),
            _ => {}
        }
    }

    /// Nothing is under way any more. If meanwhile the key came to name us, that is next.
    fn rest(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        self.phase = Phase::Idle;
        self.again_at = None;
        self.overtaken = false;
        if let Some(key) = &self.known
            && key.names(&self.me)
            && key.epoch > self.served
        {
            let key = key.clone();
            self.begin(now_ms, key, How::Seen, out);
        }
    }

    fn freeze(&mut self, why: Why, out: &mut Vec<Action>) {
        self.phase = Phase::Frozen;
        self.again_at = None;
        out.push(Action::Freeze { why });
    }

    fn die(&mut self) {
        self.phase = Phase::Dead;
        self.again_at = None;
        self.closing = None;
        self.passed = None;
    }

    /// What the key becomes when `owner` follows whoever it names now.
    fn successor(&self, of: Option<&SlotKey>, owner: &Peer) -> SlotKey {
        let before = of.map_or(0, |key| key.epoch.0);
        let epoch = Epoch(if plant::is(Bug::EpochReused) && of.is_some() { before } else { before + 1 });
        SlotKey {
            owner: owner.node.clone(),
            incarnation: owner.incarnation,
            epoch,
            prev: of.map(SlotKey::tenure),
        }
    }

    fn serve(&mut self, key: SlotKey, opening: Opening, out: &mut Vec<Action>) {
        // State for this epoch or an earlier one has had its use.
        self.passed = self.passed.filter(|passed| passed.epoch > key.epoch);
        out.push(Action::Serve { tenure: key.tenure(), opening });
        if plant::is(Bug::FenceAfterRead)
            && let Some(prev) = key.prev.filter(|prev| prev.incarnation != self.me.incarnation)
        {
            out.push(Action::WriteFence { incarnation: prev.incarnation });
        }
        self.phase = Phase::Serving { key };
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        self.close_again(now_ms, out);
        if self.again_at.is_some_and(|at| at <= now_ms) {
            self.again_at = None;
            match &self.phase {
                Phase::Registering(_) => self.register_again(now_ms, out),
                Phase::Settling(_) => self.settle_again(out),
                _ => {}
            }
        }
        match &self.phase {
            Phase::AwaitingState { key, until_ms } if *until_ms <= now_ms => {
                let key = key.clone();
                self.serve(key, Opening::Full, out);
            }
            Phase::Draining { until_ms, .. } if *until_ms <= now_ms => self.stay(out),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
