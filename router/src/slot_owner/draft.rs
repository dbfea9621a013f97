//! Registration as earlier drafts of the protocol had it, each shown to be unsafe or to raise false alarms: for checks that
//! plant them ([`Bug`]), and reached by nothing else.
//!
//! - One maximum per slot, written before a claim ([`Bug::RegistrationAsMaximum`]), and by whoever was handed a slot too
//!   ([`Bug::RegistrationAsMaximumAtHandoffToo`]). The rows stand for the maximum: only their epochs are looked at.
//! - The rows of rule 2b, but written before the claim ([`Bug::RegistrationBeforeClaim`]).

use banyan_proto::id::Epoch;
use banyan_proto::plant::{self, Bug};

use super::register::How;
use super::{Action, Failed, Ownership, Phase, Why};
use crate::slot_key::{OwnerRow, SlotKey};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Draft {
    /// The key that is to be claimed.
    key: SlotKey,
}

/// What comes first when this run has become owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// Rule 2b.
    Register,
    ReadMaximum,
    FencePredecessor,
    Nothing,
}

pub(super) fn first_step(how: How) -> First {
    if plant::is(Bug::NoRegistration) || plant::is(Bug::RecoverSparesRunningNode) {
        First::Nothing
    } else if plant::is(Bug::FenceOnlyDirectPredecessor) {
        First::FencePredecessor
    } else if registers_before_claim() && how == How::Claimed || plant::is(Bug::RegistrationAsMaximum) {
        First::Nothing
    } else if plant::is(Bug::RegistrationAsMaximumAtHandoffToo) {
        First::ReadMaximum
    } else {
        First::Register
    }
}

pub(super) fn registers_before_claim() -> bool {
    is_maximum() || plant::is(Bug::RegistrationBeforeClaim)
}

fn is_maximum() -> bool {
    plant::is(Bug::RegistrationAsMaximum) || plant::is(Bug::RegistrationAsMaximumAtHandoffToo)
}

/// The maximum is this epoch or above.
pub(super) fn too_high(rows: &[OwnerRow], epoch: Epoch) -> Option<OwnerRow> {
    rows.iter().filter(|row| row.tenure.epoch >= epoch).max().copied()
}

impl Ownership {
    /// The owner is gone; something is written before the claim.
    pub(super) fn draft(&mut self, key: SlotKey, out: &mut Vec<Action>) {
        let row = self.draft_row(&key);
        out.push(if is_maximum() { Action::ReadOwners } else { Action::PutOwner { row, closes: None } });
        self.phase = Phase::Drafting(Draft { key });
    }

    fn draft_row(&self, key: &SlotKey) -> OwnerRow {
        OwnerRow { tenure: self.successor(Some(key), &self.me).tenure(), closed: false }
    }

    pub(super) fn draft_put(&mut self, now_ms: u64, result: Result<(), Failed>, out: &mut Vec<Action>) {
        let Phase::Drafting(Draft { key }) = &self.phase else { return };
        let key = key.clone();
        match result {
            Err(Failed) => self.rest(now_ms, out),
            Ok(()) if is_maximum() => self.fence(key, out),
            Ok(()) => out.push(Action::ReadOwners),
        }
    }

    pub(super) fn draft_read(
        &mut self,
        now_ms: u64,
        result: Result<Vec<OwnerRow>, Failed>,
        out: &mut Vec<Action>,
    ) {
        let Phase::Drafting(Draft { key }) = &self.phase else { return };
        let key = key.clone();
        let Ok(rows) = result else { return self.rest(now_ms, out) };
        let row = self.draft_row(&key);
        let epoch = row.tenure.epoch;
        let higher = if is_maximum() { too_high(&rows, epoch) } else { self.row_at_or_above(&rows, epoch) };
        match higher {
            Some(higher) => self.freeze(Why::OtherOwner(higher), out),
            None if is_maximum() => out.push(Action::PutOwner { row, closes: None }),
            None => self.fence(key, out),
        }
    }
}
