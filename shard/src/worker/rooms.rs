//! The rooms that a worker holds open: a slab, found by id, with the times at which they want to be woken.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use banyan_proto::id::RoomId;
use banyan_shard_core::Room;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use tokio::time::Instant;

/// Names a room of the slab. The generation tells a late answer for a closed room from one for its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) index: u32,
    generation: u32,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) room: Room,
    pub(super) place: Place,
    /// Had an input in this turn.
    pub(super) touched: bool,
    pub(super) used_ms: u64,
    /// When the append in flight was handed over.
    pub(super) append_at: Instant,
    /// The earliest wake-up in the heap.
    wake_ms: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Rooms {
    by_id: HashMap<RoomId, u32, RandomState>,
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
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn find(&self, room: &RoomId) -> Option<Place> {
        let index = *self.by_id.get(room)?;
        self.slab.get(index as usize)?.as_ref().map(|entry| entry.place)
    }

    pub(super) fn get(&self, room: &RoomId) -> Option<&Room> {
        let index = *self.by_id.get(room)?;
        self.slab.get(index as usize)?.as_ref().map(|entry| &entry.room)
    }

    pub(super) fn open(&mut self, room: Room, now_ms: u64, now: Instant) -> Place {
        self.generation = self.generation.wrapping_add(1);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slab.push(None);
            // Bounded by `open_rooms`.
            (self.slab.len() - 1) as u32
        });
        let place = Place { index, generation: self.generation };
        self.by_id.insert(room.id().clone(), index);
        self.slab[index as usize] =
            Some(Entry { room, place, touched: false, used_ms: now_ms, append_at: now, wake_ms: None });
        place
    }

    pub(super) fn entry(&mut self, place: Place) -> Option<&mut Entry> {
        self.slab.get_mut(place.index as usize)?.as_mut().filter(|entry| entry.place == place)
    }

    /// For completions: a room with an append in flight is never closed, so its index is enough.
    pub(super) fn place_at(&self, index: u32) -> Option<Place> {
        self.slab.get(index as usize)?.as_ref().map(|entry| entry.place)
    }

    pub(super) fn places(&self) -> Vec<Place> {
        self.slab.iter().flatten().map(|entry| entry.place).collect()
    }

    pub(super) fn all_settled(&self) -> bool {
        self.slab.iter().flatten().all(|entry| entry.room.is_settled())
    }

    pub(super) fn close(&mut self, place: Place) {
        let Some(entry) = self.entry(place) else { return };
        let id = entry.room.id().clone();
        self.by_id.remove(&id);
        self.slab[place.index as usize] = None;
        self.free.push(place.index);
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
