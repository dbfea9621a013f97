//! Registration (rule 2b): before an owner writes or says anything at an epoch it leaves its row in the store, and looks
//! who else has. That makes a restored etcd harmless: two owners of one epoch see each other here.

use banyan_proto::id::{Epoch, Incarnation};
use banyan_proto::plant::{self, Bug};

use super::draft;
use super::{Action, Failed, Opening, Ownership, Passed, Phase, Why};
use crate::slot_key::{OwnerRow, SlotKey};

/// How this run became owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum How {
    /// By its own claim, and it was told so.
    Claimed,
    /// By a compare-and-swap on its own key. `memory`: the worker holds the drained rooms, and nobody can have changed them.
    Settled { memory: bool },
    /// The key names it: handed over, or a claim of unknown outcome that applied.
    Seen,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Registering {
    pub(super) key: SlotKey,
    pub(super) how: How,
    pub(super) since_ms: u64,
    pub(super) step: Step,
    /// Somebody had to be fenced: whatever we were given or remember may be short of what they wrote.
    pub(super) rivals_fenced: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// (1) the own row, and the predecessor's closed.
    Put,
    /// (2) all rows.
    Read,
    /// There is another row at our epoch or above: are we fenced, or was etcd restored?
    OwnFence(OwnerRow),
    /// Runs with an open row below our epoch, fenced one after the other; the last one's fence is being written.
    Rivals(Vec<Incarnation>),
}

impl Ownership {
    /// We are owner at an epoch that we have not served.
    pub(super) fn begin(&mut self, now_ms: u64, key: SlotKey, how: How, out: &mut Vec<Action>) {
        self.served = self.served.max(key.epoch);
        self.again_at = None;
        self.learn(Some(key.clone()));
        let step = match (draft::first_step(how), key.prev) {
            (draft::First::Register, _) => Step::Put,
            (draft::First::ReadMaximum, _) => Step::Read,
            (draft::First::FencePredecessor, Some(prev)) if how == How::Claimed => {
                Step::Rivals(vec![prev.incarnation])
            }
            (draft::First::FencePredecessor | draft::First::Nothing, _) => {
                let skipped =
                    Registering { key, how, since_ms: now_ms, step: Step::Put, rivals_fenced: false };
                self.phase = Phase::Registering(skipped);
                return self.registered(now_ms, out);
            }
        };
        self.phase =
            Phase::Registering(Registering { key, how, since_ms: now_ms, step, rivals_fenced: false });
        self.request(out);
    }

    /// Makes the request of the present step, the same one each time.
    fn request(&self, out: &mut Vec<Action>) {
        let Phase::Registering(registering) = &self.phase else { return };
        match &registering.step {
            Step::Put => out.push(Action::PutOwner {
                row: OwnerRow { tenure: registering.key.tenure(), closed: false },
                closes: registering.key.prev,
            }),
            Step::Read => out.push(Action::ReadOwners),
            Step::OwnFence(_) => out.push(Action::ReadOwnFence),
            Step::Rivals(rivals) => {
                out.extend(rivals.last().map(|&incarnation| Action::WriteFence { incarnation }));
            }
        }
    }

    fn step(&mut self, step: Step, out: &mut Vec<Action>) {
        if let Phase::Registering(registering) = &mut self.phase {
            registering.step = step;
        }
        self.request(out);
    }

    pub(super) fn register_again(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.is_replaced() {
            self.give_up(now_ms, out);
        } else {
            self.request(out);
        }
    }

    fn later(&mut self, now_ms: u64) {
        self.again_at = Some(now_ms + self.limits.retry_ms);
    }

    /// Somebody else has become owner since: then we were taken over, and there is nothing to serve.
    fn is_replaced(&self) -> bool {
        match (&self.phase, &self.known) {
            (Phase::Registering(Registering { key, .. }), Some(known)) => known.epoch > key.epoch,
            _ => false,
        }
    }

    fn give_up(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if let Phase::Registering(Registering { how: How::Settled { memory: true }, .. }) = &self.phase {
            out.push(Action::Release { to: self.known.as_ref().map(SlotKey::tenure) });
        }
        self.rest(now_ms, out);
    }

    pub(super) fn owner_put(
        &mut self,
        now_ms: u64,
        row: OwnerRow,
        result: Result<(), Failed>,
        out: &mut Vec<Action>,
    ) {
        if row.closed {
            return self.row_closed(now_ms, row, result);
        }
        match &self.phase {
            Phase::Registering(Registering { key, step: Step::Put, how, .. })
                if key.tenure() == row.tenure =>
            {
                let how = *how;
                match result {
                    Err(Failed) => self.later(now_ms),
                    Ok(()) if draft::first_step(how) == draft::First::ReadMaximum => {
                        self.registered(now_ms, out)
                    }
                    Ok(()) => self.step(Step::Read, out),
                }
            }
            Phase::Drafting(_) => self.draft_put(now_ms, result, out),
            _ => {}
        }
    }

    pub(super) fn owners(
        &mut self,
        now_ms: u64,
        result: Result<Vec<OwnerRow>, Failed>,
        out: &mut Vec<Action>,
    ) {
        if matches!(self.phase, Phase::Drafting(_)) {
            return self.draft_read(now_ms, result, out);
        }
        let Phase::Registering(Registering { key, how, step: Step::Read, .. }) = &self.phase else { return };
        let Ok(rows) = result else { return self.later(now_ms) };
        let epoch = key.epoch;
        if draft::first_step(*how) == draft::First::ReadMaximum {
            return match draft::too_high(&rows, epoch) {
                Some(row) => self.stop(row, out),
                None => self.step(Step::Put, out),
            };
        }
        if let Some(row) = self.row_at_or_above(&rows, epoch) {
            return self.step(Step::OwnFence(row), out);
        }
        let rivals = self.open_rivals(&rows);
        if rivals.is_empty() || plant::is(Bug::RegistrationIgnoresLowerRows) {
            self.registered(now_ms, out);
        } else {
            if let Phase::Registering(registering) = &mut self.phase {
                registering.rivals_fenced = true;
            }
            self.step(Step::Rivals(rivals), out);
        }
    }

    /// The highest row of another run at this epoch or above, closed or not.
    pub(super) fn row_at_or_above(&self, rows: &[OwnerRow], epoch: Epoch) -> Option<OwnerRow> {
        let floor = if plant::is(Bug::EpochReused) { Epoch(epoch.0 + 1) } else { epoch };
        let others = rows.iter().filter(|row| row.tenure.incarnation != self.me.incarnation);
        others.filter(|row| row.tenure.epoch >= floor).max().copied()
    }

    /// Other runs with an open row. They may live: a handoff to them was lost by a restore, or they died before they
    /// closed it. That a fence row is there is no proof: it may be on one replica. So it is written again.
    fn open_rivals(&self, rows: &[OwnerRow]) -> Vec<Incarnation> {
        let open = rows.iter().filter(|row| !row.closed && row.tenure.incarnation != self.me.incarnation);
        let mut rivals: Vec<Incarnation> = open.map(|row| row.tenure.incarnation).collect();
        rivals.sort_unstable();
        rivals.dedup();
        rivals
    }

    pub(super) fn own_fence(&mut self, now_ms: u64, result: Result<bool, Failed>, out: &mut Vec<Action>) {
        let Phase::Registering(Registering { step: Step::OwnFence(row), .. }) = &self.phase else { return };
        let row = *row;
        match result {
            Err(Failed) => self.later(now_ms),
            // An ordinary takeover: we were too slow and somebody has fenced us.
            Ok(true) => {
                self.die();
                out.push(Action::Dead);
            }
            Ok(false) => self.stop(row, out),
        }
    }

    fn stop(&mut self, row: OwnerRow, out: &mut Vec<Action>) {
        if let Phase::Registering(Registering { how: How::Settled { memory: true }, .. }) = &self.phase {
            out.push(Action::Release { to: Some(row.tenure) });
        }
        self.freeze(Why::OtherOwner(row), out);
    }

    pub(super) fn rival_fenced(
        &mut self,
        now_ms: u64,
        incarnation: Incarnation,
        result: Result<(), Failed>,
        out: &mut Vec<Action>,
    ) {
        let Phase::Registering(Registering { step: Step::Rivals(rivals), .. }) = &mut self.phase else {
            return;
        };
        if rivals.last() != Some(&incarnation) {
            return;
        }
        if result.is_err() {
            return self.later(now_ms);
        }
        rivals.pop();
        if rivals.is_empty() {
            self.registered(now_ms, out);
        } else {
            self.request(out);
        }
    }

    /// Alone at this epoch: the slot may be served.
    fn registered(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.is_replaced() {
            return self.give_up(now_ms, out);
        }
        let Phase::Registering(Registering { key, how, since_ms, rivals_fenced, .. }) = &self.phase else {
            return;
        };
        let key = key.clone();
        match how {
            How::Settled { memory: true } if !rivals_fenced => {
                out.push(Action::Resume { tenure: key.tenure() });
                self.phase = Phase::Serving { key };
            }
            How::Claimed | How::Settled { .. } => self.serve(key, Opening::Full, out),
            How::Seen if *rivals_fenced => self.serve(key, Opening::Full, out),
            How::Seen => {
                let until_ms = since_ms + self.limits.state_wait_ms;
                if let Some(state) = self.usable_state(&key) {
                    self.serve(key, Opening::HandedOver { state }, out);
                } else if self.may_be_handed_over(&key) && now_ms < until_ms {
                    self.phase = Phase::AwaitingState { key, until_ms };
                } else {
                    self.serve(key, Opening::Full, out);
                }
            }
        }
    }

    /// The key names us because somebody else made it so.
    fn may_be_handed_over(&self, key: &SlotKey) -> bool {
        key.epoch != self.asked && key.prev.is_some_and(|prev| prev.incarnation != self.me.incarnation)
    }

    /// The epoch of the state that may be used under this key: complete, and made for this very epoch.
    fn usable_state(&self, key: &SlotKey) -> Option<Epoch> {
        let Passed { epoch, complete } = self.passed?;
        let complete = complete
            || plant::is(Bug::EarlyStateUsed)
            || plant::is(Bug::TimedOutClaimSkipsOpen) && key.epoch == self.asked;
        let bound = epoch == key.epoch || plant::is(Bug::StateNotBoundToEpoch);
        (complete && bound).then_some(epoch)
    }

    pub(super) fn state_passed(&mut self, epoch: Epoch, complete: bool, out: &mut Vec<Action>) {
        let state = Passed { epoch, complete };
        // What is complete is never replaced by what is not, nor a later attempt's by an earlier one's.
        if self.passed.is_some_and(|held| (held.epoch, held.complete) > (epoch, complete)) {
            return;
        }
        self.passed = Some(state);
        if let Phase::AwaitingState { key, .. } = &self.phase {
            let key = key.clone();
            if let Some(state) = self.usable_state(&key) {
                self.serve(key, Opening::HandedOver { state }, out);
            }
        }
    }
}
