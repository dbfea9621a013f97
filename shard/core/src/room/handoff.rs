//! Planned moves of a room: the old owner drains it and passes on what it has in memory, the new one goes on from there.
//!
//! Always holds: what is passed on is final, for a drained room says and appends nothing more; nothing that was admitted
//! is lost: it is in the batch that completes, or is given back unjudged.

use banyan_proto::id::RoomId;
use banyan_proto::plant::{self, Bug};
use banyan_storage::log_store::Said;

use super::open::Grade;
use super::{Action, Now, Room, State};
use crate::log::Handed;

/// How a room is to be opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// By what the store has: in full, or for reading as its last owner left it.
    #[default]
    Cold,
    /// The same, and an earlier life of the room in this tenure may have ended in the middle of its opening: what that wrote
    /// is not known to be complete.
    CutShort,
    /// The slot came by a planned handoff, and the room was open in full there. Its state did not come along.
    HandedOver,
    /// The same, with its state, which was made for the epoch that the slot has now.
    Passed(Box<HandedRoom>),
}

/// What an owner passes on of a room that it had open in full.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HandedRoom {
    pub room: RoomId,
    pub(super) log: Handed,
    /// Of the hashes in the window of ids.
    pub(super) seed: u64,
    pub(super) state: Option<Box<State>>,
}

impl Room {
    pub(super) fn drain(&mut self, out: &mut Vec<Action>) {
        self.leaving = true;
        self.reopen_at_ms = None;
        while let Some(op) = self.pop_front() {
            out.push(Action::Return { link: op.link, ticket: op.call.ticket });
        }
        let looks = self.scan.take().and_then(|(_, mut scan)| scan.give_up());
        for op in looks.into_iter().chain(std::mem::take(&mut self.parked)) {
            self.queue_bytes -= op.bytes;
            out.push(Action::Return { link: op.link, ticket: op.call.ticket });
        }
        for (_, pull) in std::mem::take(&mut self.pulls) {
            out.push(Action::Return { link: pull.link, ticket: pull.ticket });
        }
        for (_, read) in std::mem::take(&mut self.reads) {
            let (link, ticket) = read.question();
            out.push(Action::Return { link, ticket });
        }
        self.write_marks(out);
    }

    /// The slot stays, under the same tenure: links that came meanwhile, or were not told of something, learn the head.
    pub(super) fn resume(&mut self, now: Now, out: &mut Vec<Action>) {
        self.leaving = false;
        self.tell_heads(now, out);
    }

    /// Where the log ends, to be written behind a barrier when the room is closed or drained: the next owner can then
    /// read it without opening it in full. `None`: nothing to write.
    pub fn said(&self) -> Option<Said> {
        self.is_open_and_done().then(|| self.log.said())?
    }

    /// For the next owner, when the room is drained. `None`: it was not open in full, and is opened in full there.
    pub fn hand_over(&self) -> Option<HandedRoom> {
        let drained = self.leaving || plant::is(Bug::EarlyStateUsed);
        let completed = self.is_open_and_done()
            || self.grade == Some(Grade::Full) && plant::is(Bug::HandoffWithAppendInFlight);
        if !drained || !completed {
            return None;
        }
        let log = self.log.hand_over()?;
        let mut state = self.state.clone();
        if let Some(state) = &mut state {
            state.members.become_hearsay();
        }
        Some(HandedRoom { room: self.id.clone(), log, seed: self.seed, state })
    }

    fn is_open_and_done(&self) -> bool {
        self.grade == Some(Grade::Full) && self.in_flight.is_none()
    }

    /// Goes on from what the last owner passed on. Marks that it did not get to write are written here.
    pub(super) fn adopt(&mut self, now: Now, handed: HandedRoom) {
        self.state = handed.state;
        if let Some(state) = self.state.as_deref() {
            self.marks.adopt(now, &state.members, &self.config);
        }
    }
}
