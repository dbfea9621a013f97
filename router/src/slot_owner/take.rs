//! Taking a slot: the first claim, and the takeover after a death (rule 2: fence, then claim).

use banyan_proto::id::Incarnation;
use banyan_proto::plant::{self, Bug};

use super::hand_off::{SettleStep, Settling};
use super::register::How;
use super::{Action, CasOutcome, Failed, Ownership, Phase, Why};
use crate::slot_key::SlotKey;

impl Ownership {
    pub(super) fn take(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        match &self.phase {
            Phase::Idle => match self.known.clone() {
                Some(key) => self.take_from(now_ms, Some(key), false, out),
                None => {
                    self.phase = Phase::Reading { take: true };
                    self.read_key(out);
                }
            },
            Phase::Draining { .. } => self.stay(out),
            _ => {}
        }
    }

    /// The slot's key is this; `linear`: a linearizable read or a lost transaction says so, not a watch.
    pub(super) fn take_from(
        &mut self,
        now_ms: u64,
        key: Option<SlotKey>,
        linear: bool,
        out: &mut Vec<Action>,
    ) {
        let set_back = self.is_set_back(key.as_ref());
        match key {
            _ if set_back && linear => self.freeze(Why::SetBack { served: self.served }, out),
            // A watch that is late, most likely.
            _ if set_back => {
                self.phase = Phase::Reading { take: true };
                self.read_key(out);
            }
            None => self.claim(None, out),
            Some(key) if key.names(&self.me) && key.epoch > self.served => {
                self.begin(now_ms, key, How::Seen, out);
            }
            // We have served it and do so no more: a restored etcd names us again. Only what we win is ours.
            Some(key) if key.names(&self.me) && linear => {
                let step = SettleStep::Reading;
                self.phase = Phase::Settling(Settling { key: key.clone(), memory: false, step });
                self.settle_with(now_ms, Ok(Some(key)), out);
            }
            Some(key) if key.names(&self.me) => {
                self.phase = Phase::Reading { take: true };
                self.read_key(out);
            }
            Some(key) => {
                out.push(Action::ReadNode { incarnation: key.incarnation });
                self.phase = Phase::AskingNode { key };
            }
        }
    }

    /// A watch has shown a newer key while a request about an older one was under way.
    fn moved_on(&self, from: &SlotKey) -> Option<SlotKey> {
        self.known.clone().filter(|known| known.epoch > from.epoch)
    }

    pub(super) fn node(
        &mut self,
        now_ms: u64,
        incarnation: Incarnation,
        gone: Result<bool, Failed>,
        out: &mut Vec<Action>,
    ) {
        let Phase::AskingNode { key } = &self.phase else { return };
        if key.incarnation != incarnation {
            return;
        }
        if let Some(newer) = self.moved_on(key) {
            return self.take_from(now_ms, Some(newer), false, out);
        }
        if gone != Ok(true) {
            return self.rest(now_ms, out);
        }
        let key = key.clone();
        if plant::is(Bug::NoFence)
            || plant::is(Bug::FenceAfterRead)
            || plant::is(Bug::FenceOnlyDirectPredecessor)
        {
            self.claim(Some(key), out);
        } else if super::draft::registers_before_claim() {
            self.draft(key, out);
        } else {
            self.fence(key, out);
        }
    }

    pub(super) fn fence(&mut self, key: SlotKey, out: &mut Vec<Action>) {
        out.push(Action::WriteFence { incarnation: key.incarnation });
        self.phase = Phase::Fencing { key };
    }

    pub(super) fn fence_written(
        &mut self,
        now_ms: u64,
        incarnation: Incarnation,
        result: Result<(), Failed>,
        out: &mut Vec<Action>,
    ) {
        match &self.phase {
            Phase::Fencing { key } if key.incarnation == incarnation => {
                if result.is_err() {
                    return self.rest(now_ms, out);
                }
                match self.moved_on(key) {
                    Some(newer) => self.take_from(now_ms, Some(newer), false, out),
                    None => {
                        let key = key.clone();
                        self.claim(Some(key), out);
                    }
                }
            }
            Phase::Registering(_) => self.rival_fenced(now_ms, incarnation, result, out),
            _ => {}
        }
    }

    fn claim(&mut self, expect: Option<SlotKey>, out: &mut Vec<Action>) {
        let new = self.successor(expect.as_ref(), &self.me);
        self.asked = self.asked.max(new.epoch);
        self.swap(expect.clone(), new, out);
        self.phase = Phase::Claiming { expect };
    }

    pub(super) fn claimed(&mut self, now_ms: u64, outcome: CasOutcome, out: &mut Vec<Action>) {
        let Phase::Claiming { expect } = &self.phase else { return };
        match outcome {
            CasOutcome::Won => {
                let key = self.successor(expect.as_ref(), &self.me);
                self.begin(now_ms, key, How::Claimed, out);
            }
            // Frozen: nothing has moved, and nothing may.
            CasOutcome::Lost(current) if current == *expect => self.rest(now_ms, out),
            CasOutcome::Lost(current) => {
                let (current, linear) = self.learn(current);
                self.take_from(now_ms, current, linear, out);
            }
            // It may still apply: if the key comes to name us, we open in full.
            CasOutcome::Unknown => self.rest(now_ms, out),
        }
    }
}
