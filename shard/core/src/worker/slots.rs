//! The slots that fall to one worker: which it serves, in whose name, and what it knows of the owners of the others.
//!
//! Always holds: a slot is served under rising epochs; the number of an opening is given once in an epoch.
//! Does not: decide who owns what (`banyan-router`).

use std::collections::BTreeMap;

use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, Tenure};
use banyan_proto::plant::{self, Bug};
use banyan_router::{SlotCount, worker_of};

use crate::room::{HandedRoom, Start};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Somebody else's, or nobody's yet.
    Elsewhere,
    Serving,
    /// Nothing new is admitted; what is in flight goes on.
    Draining,
    /// All of that is done; what was said about it waits for the last barrier.
    Silent,
    /// Nothing is in flight and nothing is said: the owner of the next epoch may be another.
    Drained,
}

/// Who owns a slot, as far as is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) epoch: Epoch,
    pub(super) owner: Option<Incarnation>,
}

#[derive(Debug, Clone)]
pub(super) struct Slots {
    incarnation: Incarnation,
    workers: usize,
    index: usize,
    /// By slot number over workers.
    slots: Vec<Slot>,
}

#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    /// The newest ownership of our own.
    pub(super) tenure: Option<Tenure>,
    /// Which drain is under way, or was the last.
    pub(super) drain: u32,
    /// Rooms that were opened in this tenure.
    openings: u32,
    /// It came by a planned handoff.
    handed_over: bool,
    /// A room was forgotten in this tenure while it wrote.
    cut_short: bool,
    /// What was learned of others. Says nothing while an ownership of our own is newer.
    known: Known,
    /// What the owner before has passed on. Bound: the rooms that it had open.
    handed: Option<Box<Handed>>,
}

/// State of rooms, final, and made for one epoch.
#[derive(Debug, Clone)]
struct Handed {
    epoch: Epoch,
    at_ms: u64,
    rooms: BTreeMap<RoomId, HandedRoom>,
}

impl Slots {
    pub(super) fn new(incarnation: Incarnation, count: SlotCount, workers: usize, index: usize) -> Self {
        let workers = workers.max(1);
        let slots = (0..count.get() as usize).filter(|slot| slot % workers == index).map(|_| Slot::new());
        Self { incarnation, workers, index, slots: slots.collect() }
    }

    pub(super) fn get(&self, slot: SlotId) -> Option<&Slot> {
        (worker_of(slot, self.workers) == self.index).then(|| self.slots.get(self.at(slot)))?
    }

    /// `None`: it falls to another worker.
    pub(super) fn get_mut(&mut self, slot: SlotId) -> Option<&mut Slot> {
        let at = self.at(slot);
        (worker_of(slot, self.workers) == self.index).then(|| self.slots.get_mut(at))?
    }

    /// Where the slot stands among those of this worker.
    pub(super) fn at(&self, slot: SlotId) -> usize {
        usize::from(slot.0) / self.workers
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_serving(&self, slot: SlotId) -> bool {
        self.get(slot).is_some_and(|slot| slot.phase == Phase::Serving)
    }

    pub(super) fn serving(&self) -> usize {
        self.slots.iter().filter(|slot| slot.phase == Phase::Serving).count()
    }

    /// Where to go instead. Nobody is sent back to ourselves: who is told of no owner waits for one.
    pub(super) fn known(&self, slot: SlotId) -> Known {
        let Some(slot) = self.get(slot) else { return Known::default() };
        match slot.tenure {
            Some(tenure) if tenure.epoch >= slot.known.epoch => Known { epoch: tenure.epoch, owner: None },
            Some(_) | None => {
                let owner = slot.known.owner.filter(|owner| *owner != self.incarnation);
                Known { epoch: slot.known.epoch, owner }
            }
        }
    }

    /// What was passed on before `ms` and not asked for since is only memory.
    pub(super) fn forget_handed_before(&mut self, ms: u64) {
        for slot in &mut self.slots {
            if slot.handed.as_ref().is_some_and(|handed| handed.at_ms <= ms) {
                slot.handed = None;
            }
        }
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            phase: Phase::Elsewhere,
            tenure: None,
            drain: 0,
            openings: 0,
            handed_over: false,
            cut_short: false,
            known: Known::default(),
            handed: None,
        }
    }

    pub(super) fn learn(&mut self, epoch: Epoch, owner: Option<Incarnation>) {
        if (epoch, owner.is_some()) > (self.known.epoch, self.known.owner.is_some()) {
            self.known = Known { epoch, owner };
        }
    }

    /// Keeps the newest.
    pub(super) fn hand(&mut self, now_ms: u64, epoch: Epoch, rooms: Vec<HandedRoom>) {
        if self.handed.as_ref().is_none_or(|handed| handed.epoch <= epoch) {
            let rooms = rooms.into_iter().map(|room| (room.room.clone(), room)).collect();
            self.handed = Some(Box::new(Handed { epoch, at_ms: now_ms, rooms }));
        }
    }

    /// Begins an ownership. `state`: what was passed on under this epoch is used, and nothing else.
    pub(super) fn serve(&mut self, tenure: Tenure, state: Option<Epoch>) {
        self.phase = Phase::Serving;
        if self.tenure.replace(tenure) != Some(tenure) || plant::is(Bug::EpochReused) {
            self.openings = 0;
            self.cut_short = false;
        }
        self.handed_over = state.is_some();
        self.handed = self.handed.take().filter(|handed| Some(handed.epoch) == state);
    }

    /// Whose it is now is learned, if anybody knows.
    pub(super) fn release(&mut self, to: Option<Tenure>) {
        self.phase = Phase::Elsewhere;
        if let Some(to) = to {
            self.learn(to.epoch, Some(to.incarnation));
        }
    }

    /// A room that writes is forgotten: from now on no room of this tenure trusts what it finds of its own.
    pub(super) fn cuts_short(&mut self) {
        self.cut_short = true;
    }

    /// How a room is to be opened. What was passed on of it is given once.
    pub(super) fn start_of(&mut self, room: &RoomId) -> Start {
        let handed = self.handed.as_deref_mut().and_then(|handed| handed.rooms.remove(room));
        if self.handed.as_ref().is_some_and(|handed| handed.rooms.is_empty()) {
            self.handed = None;
        }
        match handed {
            Some(handed) => Start::Passed(Box::new(handed)),
            // The old owner may have had it open or not: only it could know that nothing is half written.
            None if self.handed_over && plant::is(Bug::HandoffUnopenedRoomSkips) => Start::HandedOver,
            None if self.cut_short => Start::CutShort,
            None => Start::Cold,
        }
    }

    /// A number for an opening; `None`: there is none left in this epoch.
    pub(super) fn next_opening(&mut self) -> Option<u32> {
        self.openings = self.openings.checked_add(1)?;
        Some(self.openings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Incarnation = Incarnation(7);

    fn tenure(epoch: u64) -> Tenure {
        Tenure { epoch: Epoch(epoch), incarnation: ME }
    }

    #[test]
    fn each_worker_has_its_own_slots() {
        let count = SlotCount::new(8).unwrap();
        for index in 0..3 {
            let slots = Slots::new(ME, count, 3, index);
            let mine: Vec<u16> = (0..9).filter(|slot| slots.get(SlotId(*slot)).is_some()).collect();
            let want: Vec<u16> = (0..8).filter(|slot| usize::from(*slot) % 3 == index).collect();
            assert_eq!((mine, slots.len()), (want.clone(), want.len()));
        }
    }

    #[test]
    fn nobody_is_sent_to_an_owner_that_is_not_there() {
        let mut slots = Slots::new(ME, SlotCount::new(1).unwrap(), 1, 0);
        let (slot, other) = (SlotId(0), Some(Incarnation(9)));
        let known = |slots: &Slots| (slots.known(slot).epoch.0, slots.known(slot).owner);
        assert_eq!(known(&slots), (0, None));
        slots.get_mut(slot).unwrap().learn(Epoch(3), other);
        assert_eq!(known(&slots), (3, other));
        // The key names us: we will serve, so who asks is to wait.
        slots.get_mut(slot).unwrap().learn(Epoch(4), Some(ME));
        assert_eq!(known(&slots), (4, None));
        slots.get_mut(slot).unwrap().serve(tenure(4), None);
        slots.get_mut(slot).unwrap().phase = Phase::Drained;
        slots.get_mut(slot).unwrap().learn(Epoch(3), other);
        assert_eq!(known(&slots), (4, None));
        slots.get_mut(slot).unwrap().release(Some(Tenure { epoch: Epoch(5), incarnation: Incarnation(9) }));
        assert_eq!(known(&slots), (5, other));
        slots.get_mut(slot).unwrap().learn(Epoch(5), None);
        assert_eq!(known(&slots), (5, other));
    }

    #[test]
    fn openings_are_counted_anew_in_each_epoch_and_never_twice() {
        let mut slot = Slot::new();
        slot.serve(tenure(1), None);
        assert_eq!((slot.next_opening(), slot.next_opening()), (Some(1), Some(2)));
        slot.serve(tenure(1), None);
        assert_eq!(slot.next_opening(), Some(3));
        slot.openings = u32::MAX;
        assert_eq!((slot.next_opening(), slot.next_opening()), (None, None));
        slot.serve(tenure(2), None);
        assert_eq!(slot.next_opening(), Some(1));
    }
}
