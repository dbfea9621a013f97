//! Handing a slot on (rule 8), and what follows a transaction whose outcome is not known.

use banyan_proto::plant::{self, Bug};

use super::register::How;
use super::{Action, CasOutcome, Failed, Ownership, Phase, Why};
use crate::slot_key::{OwnerRow, Peer, SlotKey};

/// We are silent, and the key may name us still.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Settling {
    /// The key under which we served last.
    pub(super) key: SlotKey,
    /// The worker holds the rooms as they were when drained, and nobody can have changed them if the key is ours.
    pub(super) memory: bool,
    pub(super) step: SettleStep,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SettleStep {
    Reading,
    /// Our own compare-and-swap against exactly this value.
    Swapping(SlotKey),
}

/// The row of an ownership that is over is marked closed. If that never succeeds, its run is fenced some day without need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Closing {
    pub(super) row: OwnerRow,
    pub(super) again_at: Option<u64>,
}

impl Ownership {
    pub(super) fn hand_off(&mut self, now_ms: u64, to: Peer, out: &mut Vec<Action>) {
        if to.incarnation == self.me.incarnation {
            return;
        }
        match &mut self.phase {
            Phase::Serving { key } => {
                let key = key.clone();
                if plant::is(Bug::EarlyStateUsed) || plant::is(Bug::TimedOutClaimSkipsOpen) {
                    let epoch = self.successor(Some(&key), &to).epoch;
                    out.push(Action::SendState { to: to.clone(), epoch, complete: false });
                }
                self.drains = self.drains.wrapping_add(1);
                out.push(Action::Drain { drain: self.drains });
                if plant::is(Bug::HandoffWithAppendInFlight) {
                    self.hand_over(key, to, out);
                } else {
                    let until_ms = now_ms + self.limits.drain_ms;
                    self.phase = Phase::Draining { key, to, until_ms };
                }
            }
            Phase::Draining { to: planned, .. } => *planned = to,
            _ => {}
        }
    }

    /// The drain is called off. Nothing was handed over, so nothing has changed.
    pub(super) fn stay(&mut self, out: &mut Vec<Action>) {
        let Phase::Draining { key, .. } = &self.phase else { return };
        let key = key.clone();
        out.push(Action::Resume { tenure: key.tenure() });
        self.phase = Phase::Serving { key };
    }

    pub(super) fn drained(&mut self, drain: u32, out: &mut Vec<Action>) {
        // An earlier drain, called off since: what was true then is not now.
        if drain != self.drains {
            return;
        }
        let Phase::Draining { key, to, .. } = &self.phase else { return };
        let (key, to) = (key.clone(), to.clone());
        let epoch = self.successor(Some(&key), &to).epoch;
        out.push(Action::SendState { to: to.clone(), epoch, complete: true });
        self.hand_over(key, to, out);
    }

    fn hand_over(&mut self, key: SlotKey, to: Peer, out: &mut Vec<Action>) {
        let new = self.successor(Some(&key), &to);
        self.swap(Some(key.clone()), new, out);
        if plant::is(Bug::HandoffOldOwnerGoesOn) {
            out.push(Action::Resume { tenure: key.tenure() });
        }
        self.phase = Phase::HandingOver { key, to };
    }

    pub(super) fn handed_over(&mut self, now_ms: u64, outcome: CasOutcome, out: &mut Vec<Action>) {
        let Phase::HandingOver { key, to } = &self.phase else { return };
        let (key, to) = (key.clone(), to.clone());
        match outcome {
            CasOutcome::Won => {
                let new = self.successor(Some(&key), &to);
                self.leave(now_ms, &key, true, new, out);
            }
            // Its state is on the way, labelled with the next epoch: never speak again at this one.
            CasOutcome::Lost(current) => {
                self.phase = Phase::Settling(Settling { key, memory: true, step: SettleStep::Reading });
                self.judge(now_ms, current, out);
            }
            CasOutcome::Unknown => self.settle(key, out),
        }
    }

    /// Begins to find out whether the slot is still ours. Only a compare-and-swap of our own can say so: whatever a read
    /// shows, the transaction of unknown outcome may apply after it.
    fn settle(&mut self, key: SlotKey, out: &mut Vec<Action>) {
        self.phase = Phase::Settling(Settling { key, memory: true, step: SettleStep::Reading });
        self.settle_again(out);
    }

    pub(super) fn settle_again(&mut self, out: &mut Vec<Action>) {
        if let Phase::Settling(settling) = &mut self.phase {
            settling.step = SettleStep::Reading;
            self.read_key(out);
        }
    }

    pub(super) fn settle_with(
        &mut self,
        now_ms: u64,
        result: Result<Option<SlotKey>, Failed>,
        out: &mut Vec<Action>,
    ) {
        let Phase::Settling(Settling { key: mine, memory, step: SettleStep::Reading }) = &self.phase else {
            return;
        };
        match result {
            Err(Failed) => self.again_at = Some(now_ms + self.limits.retry_ms),
            Ok(Some(key)) if key.names(&self.me) && key.epoch == mine.epoch => {
                let memory = *memory;
                if plant::is(Bug::ReadSettlesTransaction) && memory {
                    out.push(Action::Resume { tenure: key.tenure() });
                    self.phase = Phase::Serving { key };
                    return;
                }
                let new = self.successor(Some(&key), &self.me);
                self.asked = self.asked.max(new.epoch);
                self.swap(Some(key.clone()), new, out);
                let step = SettleStep::Swapping(key.clone());
                self.phase = Phase::Settling(Settling { key, memory, step });
            }
            Ok(current) => self.judge(now_ms, current, out),
        }
    }

    /// Our own compare-and-swap was answered.
    pub(super) fn settled(&mut self, now_ms: u64, outcome: CasOutcome, out: &mut Vec<Action>) {
        let Phase::Settling(Settling { memory, step: SettleStep::Swapping(expect), .. }) = &self.phase else {
            return;
        };
        match outcome {
            CasOutcome::Won => {
                let how = How::Settled { memory: *memory };
                let key = self.successor(Some(expect), &self.me);
                self.begin(now_ms, key, how, out);
            }
            CasOutcome::Lost(current) => self.judge(now_ms, current, out),
            CasOutcome::Unknown => {
                if let Phase::Settling(settling) = &mut self.phase {
                    settling.step = SettleStep::Reading;
                }
                self.again_at = Some(now_ms + self.limits.retry_ms);
            }
        }
    }

    /// The key is this, and we are silent.
    fn judge(&mut self, now_ms: u64, current: Option<SlotKey>, out: &mut Vec<Action>) {
        let Phase::Settling(Settling { key, memory, .. }) = &self.phase else { return };
        let (key, memory) = (key.clone(), *memory);
        let (current, _) = self.learn(current);
        if self.is_set_back(current.as_ref()) {
            if memory {
                out.push(Action::Release { to: None });
            }
            return self.freeze(Why::SetBack { served: self.served }, out);
        }
        match current {
            Some(current) if current.epoch > key.epoch => self.leave(now_ms, &key, memory, current, out),
            // Still ours, and the transaction was refused: ownership changes are frozen. Later, then.
            _ => {
                if let Phase::Settling(settling) = &mut self.phase {
                    settling.step = SettleStep::Reading;
                }
                self.again_at = Some(now_ms + self.limits.retry_ms);
            }
        }
    }

    /// Our ownership under `key` is over; `new` follows it.
    fn leave(&mut self, now_ms: u64, key: &SlotKey, held: bool, new: SlotKey, out: &mut Vec<Action>) {
        let held = held && !plant::is(Bug::HandoffOldOwnerGoesOn);
        if held {
            out.push(Action::Release { to: Some(new.tenure()) });
        }
        // If we follow ourselves, registration closes the row.
        if !new.names(&self.me) {
            let row = OwnerRow { tenure: key.tenure(), closed: true };
            out.push(Action::PutOwner { row, closes: None });
            self.closing = Some(Closing { row, again_at: None });
        }
        self.learn(Some(new));
        self.rest(now_ms, out);
    }

    // ---------------------------------------------------------------- the row of what is over

    pub(super) fn row_closed(&mut self, now_ms: u64, row: OwnerRow, result: Result<(), Failed>) {
        let Some(closing) = self.closing.as_mut().filter(|closing| closing.row == row) else { return };
        match result {
            Ok(()) => self.closing = None,
            Err(Failed) => closing.again_at = Some(now_ms + self.limits.retry_ms),
        }
    }

    pub(super) fn close_again(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if let Some(closing) = self.closing.as_mut()
            && closing.again_at.is_some_and(|at| at <= now_ms)
        {
            closing.again_at = None;
            out.push(Action::PutOwner { row: closing.row, closes: None });
        }
    }
}
