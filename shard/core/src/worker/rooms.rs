//! The rooms that a worker holds open: a slab, found by id and by slot, with the times at which they want to be woken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use banyan_proto::id::{Part, RoomId, SlotId};
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::room::Room;

/// Names a room of the slab. The generation tells a late answer for a closed room from one for its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    index: u32,
    generation: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) room: Room,
    pub(super) place: Place,
    pub(super) slot: SlotId,
    /// Had an input in this turn.
    pub(super) touched: bool,
    pub(super) used_ms: u64,
    /// When it last gave marks to the store.
    pub(super) marks_ms: Option<u64>,
    /// Its slot has said its last: what the room says of itself (marks) is dropped.
    pub(super) silent: bool,
    /// The number of its opening, and the newest segment that it has begun.
    pub(super) opening: u32,
    pub(super) begun: Option<Part>,
    /// Where its slot's list names it.
    at: u32,
    /// The earliest wake-up in the heap.
    wake_ms: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Rooms {
    by_id: HashMap<RoomId, u32, FixedState>,
    /// Rooms of each slot, in no particular order, but always the same one.
    by_slot: Vec<Vec<Place>>,
    slab: Vec<Option<Entry>>,
    free: Vec<u32>,
    generation: u32,
    wakes: BinaryHeap<Reverse<(u64, Place)>>,
    /// Where the last search for a room to close ended.
    hand: usize,
}

/// Rooms that one search for a room to close looks at.
const SEARCH: usize = 256;

impl Rooms {
    /// `slots`: how many fall to this worker.
    pub(super) fn new(hash_seed: u64, slots: usize) -> Self {
        Self {
            by_id: HashMap::with_hasher(FixedState::with_seed(hash_seed)),
            by_slot: vec![Vec::new(); slots],
            slab: Vec::new(),
            free: Vec::new(),
            generation: 0,
            wakes: BinaryHeap::new(),
            hand: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn find(&mut self, room: &RoomId) -> Option<&mut Entry> {
        let index = *self.by_id.get(room)?;
        self.slab.get_mut(index as usize)?.as_mut()
    }

    /// `slot_at`: which of the worker's slots it lies in.
    pub(super) fn open(
        &mut self,
        room: Room,
        opening: u32,
        slot: SlotId,
        slot_at: usize,
        now_ms: u64,
    ) -> Place {
        self.generation = self.generation.wrapping_add(1);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slab.push(None);
            // Bounded by `open_rooms`.
            (self.slab.len() - 1) as u32
        });
        let place = Place { index, generation: self.generation };
        self.by_id.insert(room.id().clone(), index);
        let at = self.by_slot[slot_at].len() as u32;
        self.by_slot[slot_at].push(place);
        let entry = Entry {
            room,
            place,
            slot,
            touched: false,
            used_ms: now_ms,
            marks_ms: None,
            silent: false,
            opening,
            begun: None,
            at,
            wake_ms: None,
        };
        self.slab[index as usize] = Some(entry);
        place
    }

    pub(super) fn entry(&mut self, place: Place) -> Option<&mut Entry> {
        self.slab.get_mut(place.index as usize)?.as_mut().filter(|entry| entry.place == place)
    }

    pub(super) fn places(&self) -> Vec<Place> {
        self.slab.iter().flatten().map(|entry| entry.place).collect()
    }

    /// The open rooms of a slot.
    pub(super) fn in_slot(&self, slot_at: usize) -> &[Place] {
        &self.by_slot[slot_at]
    }

    /// Nothing is under way in any room of a slot.
    pub(super) fn slot_is_settled(&self, slot_at: usize) -> bool {
        self.by_slot[slot_at]
            .iter()
            .all(|place| self.slab[place.index as usize].as_ref().is_none_or(|entry| entry.room.is_settled()))
    }

    pub(super) fn all_settled(&self) -> bool {
        self.slab.iter().flatten().all(|entry| entry.room.is_settled())
    }

    /// Forgets a room as it stands.
    pub(super) fn close(&mut self, place: Place, slot_at: usize) -> Option<Room> {
        self.entry(place)?;
        let entry = self.slab[place.index as usize].take()?;
        self.by_id.remove(entry.room.id());
        self.free.push(place.index);
        let list = &mut self.by_slot[slot_at];
        list.swap_remove(entry.at as usize);
        if let Some(moved) = list.get(entry.at as usize).copied()
            && let Some(moved) = self.entry(moved)
        {
            moved.at = entry.at;
        }
        Some(entry.room)
    }

    pub(super) fn clear(&mut self) {
        self.by_id.clear();
        self.by_slot.iter_mut().for_each(Vec::clear);
        (self.slab, self.free, self.wakes) = (Vec::new(), Vec::new(), BinaryHeap::new());
    }

    /// Notes when the room wants to be woken next.
    pub(super) fn schedule(&mut self, place: Place) {
        let Some(entry) = self.entry(place) else { return };
        let Some(at) = entry.room.next_deadline() else { return };
        if entry.wake_ms.is_none_or(|wake| at < wake) {
            entry.wake_ms = Some(at);
            self.wakes.push(Reverse((at, place)));
        }
        if self.wakes.len() > 1_024 + 4 * self.by_id.len() {
            self.forget_closed();
        }
    }

    /// Rooms that were opened and closed again leave their wake-ups behind.
    fn forget_closed(&mut self) {
        let mut wakes = std::mem::take(&mut self.wakes);
        wakes.retain(|Reverse((at, place))| {
            let entry = self.slab.get(place.index as usize).and_then(Option::as_ref);
            entry.is_some_and(|entry| entry.place == *place && entry.wake_ms == Some(*at))
        });
        self.wakes = wakes;
    }

    pub(super) fn next_wake(&self) -> Option<u64> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }

    /// A room whose time has come. Wake-ups that became pointless are passed over.
    pub(super) fn pop_due(&mut self, now_ms: u64) -> Option<Place> {
        while let Some(Reverse((at, place))) = self.wakes.peek().copied() {
            if at > now_ms {
                return None;
            }
            self.wakes.pop();
            let Some(entry) = self.entry(place) else { continue };
            if entry.wake_ms == Some(at) {
                entry.wake_ms = None;
            }
            if entry.room.next_deadline().is_some_and(|deadline| deadline <= now_ms) {
                return Some(place);
            }
            self.schedule(place);
        }
        None
    }

    /// A quiet room, of those that the search meets the longest unused.
    pub(super) fn closable(&mut self) -> Option<Place> {
        let mut oldest: Option<(u64, Place)> = None;
        for _ in 0..SEARCH.min(self.slab.len()) {
            self.hand = (self.hand + 1) % self.slab.len();
            let Some(entry) = &self.slab[self.hand] else { continue };
            if entry.room.is_quiet() && oldest.is_none_or(|(used, _)| entry.used_ms < used) {
                oldest = Some((entry.used_ms, entry.place));
            }
        }
        oldest.map(|(_, place)| place)
    }

    /// Quiet rooms that were last used before `ms`.
    pub(super) fn idle_since(&self, ms: u64) -> Vec<Place> {
        let idle = self.slab.iter().flatten().filter(|entry| entry.used_ms <= ms && entry.room.is_quiet());
        idle.map(|entry| entry.place).collect()
    }
}
