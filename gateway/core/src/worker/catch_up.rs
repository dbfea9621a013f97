//! Reading from the log: pages for cursors below their ring, and the repair of gaps.
//!
//! Always holds: at most [`PULLS_MAX`] pages for cursors are under way; cursors that want the same page share one;
//! a cursor gets its next page only when its socket has taken the one before.

use banyan_proto::frame;
use banyan_proto::id::{Epoch, RoomId, Seq};
use banyan_proto::link::{Page, Ticket, ToShard};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;
use smallvec::SmallVec;

use super::rooms::user_gone;
use super::{Now, Worker, opcode_of, out_of, put_server_frame};
use crate::connection::Place;
use crate::room::{CursorState, PullState, side_of};
use crate::slab::Key;
use crate::start::BEHIND_MAX;
use crate::ws::encode::put_frame;

const PULLS_MAX: usize = 64;
/// Of these, for one connection: what it does not read, it does not get.
const PULLS_OF_ONE: u32 = 8;
const PAGE_EVENTS: u32 = 200;
const PAGE_BYTES: u32 = 64 << 10;
const REPAIR_EVENTS: u32 = 1_000;
const REPAIR_BYTES: u32 = 512 << 10;
/// A cursor further behind than this gets a gap and goes on [`BEHIND_MAX`] below head.
const TOO_FAR_EVENTS: u64 = 10_000;
const TOO_FAR_BYTES: u64 = 32 << 20;
const RETRY_MS: u64 = 500;

/// One page that an owner was asked for.
#[derive(Debug)]
pub(crate) struct Pull {
    room: u32,
    /// Its name and slot: the question outlives the room's entry here.
    id: RoomId,
    slot: u16,
    after: Seq,
    /// Cursors that wait for it; none: it fills a gap of the room.
    pub(super) readers: SmallVec<[Key; 1]>,
}

impl Worker {
    /// Fills the gap between what is applied and the known head, if there is one; one pull a room.
    pub(super) fn repair(&mut self, now: Now, room_index: u32) {
        let Some(room) = self.rooms.get(room_index) else { return };
        if room.repair.is_some() || room.repair_waits || !room.admitted || room.applied >= room.known_head {
            return;
        }
        let at = self.new_ticket();
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        room.repair = Some(at);
        let pull = Pull {
            room: room_index,
            id: room.id.clone(),
            slot: room.slot,
            after: room.applied,
            readers: SmallVec::new(),
        };
        self.pulls.insert(at, pull);
        self.pull(now, at);
    }

    /// Asks the owner for a page that is noted already.
    fn pull(&mut self, now: Now, at: Ticket) {
        self.counters.pulls += 1;
        if let Some(slot) = self.pulls.get(&at).map(|pull| pull.slot)
            && let Some(message) = self.pull_message(at)
        {
            self.hand(now, slot, at, message);
        }
    }

    pub(super) fn pull_message(&self, at: Ticket) -> Option<ToShard> {
        let pull = self.pulls.get(&at)?;
        let (max_events, max_bytes) =
            if pull.readers.is_empty() { (REPAIR_EVENTS, REPAIR_BYTES) } else { (PAGE_EVENTS, PAGE_BYTES) };
        let room = pull.id.clone();
        Some(ToShard::Pull { room, ticket: at, after: pull.after, through: None, max_events, max_bytes })
    }

    /// Not at once: it has just failed.
    fn repair_later(&mut self, now: Now, room_index: u32) {
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        room.repair_waits = true;
        self.pull_retries.push((now.ms + RETRY_MS, None, room_index));
    }

    fn new_ticket(&mut self) -> Ticket {
        self.next_pull += 1;
        Ticket(self.next_pull)
    }

    /// A cursor has fallen off its ring, or begins below it.
    pub(super) fn begin_reading(&mut self, now: Now, index: u32, room_index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let side = &mut room.sides[side_of(connection.format)];
        let streamed = side.streamed;
        let cursor = &mut side.cursors[place as usize];
        if cursor.state == CursorState::Reading {
            return;
        }
        cursor.state = CursorState::Reading;
        cursor.extra_mut().read_to = streamed;
        connection.reading += 1;
        self.counters.fell_to_log += 1;
        self.want_page(now, index, room_index);
    }

    /// All that the socket was given is taken: pages for the cursors that read from the log.
    pub(super) fn want_pages(&mut self, now: Now, index: u32) {
        let Some(connection) = self.connections.get(index) else { return };
        if connection.reading == 0 {
            return;
        }
        let rooms: SmallVec<[u32; 8]> = connection.rooms.iter().map(|reference| reference.room).collect();
        for room_index in rooms {
            self.want_page(now, index, room_index);
        }
    }

    fn want_page(&mut self, now: Now, index: u32, room_index: u32) {
        let Some(key) = self.connections.key_of(index) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.out.is_some() || connection.blocked || connection.pulling >= PULLS_OF_ONE {
            return;
        }
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
        if cursor.state != CursorState::Reading || cursor.extra_mut().pull != PullState::None {
            return;
        }
        cursor.extra_mut().pull = PullState::Queued;
        connection.pulling += 1;
        self.pull_queue.push_back((key, room_index));
        self.pull_next(now);
    }

    /// Sends pulls while there is room for them.
    fn pull_next(&mut self, now: Now) {
        while self.pulls.len() < PULLS_MAX {
            let Some((key, room_index)) = self.pull_queue.pop_front() else { return };
            let Some(connection) = self.connections.get_key_mut(key) else { continue };
            let Some(Place::Live(place)) = connection.place_in(room_index) else { continue };
            let Some(room) = self.rooms.get_mut(room_index) else { continue };
            let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
            // What stands here may have been meant for a cursor that another one has replaced.
            if cursor.state != CursorState::Reading || cursor.extra_mut().pull != PullState::Queued {
                continue;
            }
            let after = Seq(cursor.next.0 - 1);
            let shared = self
                .pulls
                .iter_mut()
                .find(|(_, pull)| pull.room == room_index && pull.after == after && !pull.readers.is_empty());
            if let Some((at, pull)) = shared {
                cursor.extra_mut().pull = PullState::Asked(*at);
                pull.readers.push(key);
                continue;
            }
            self.next_pull += 1;
            let at = Ticket(self.next_pull);
            cursor.extra_mut().pull = PullState::Asked(at);
            let readers = SmallVec::from_buf([key]);
            let pull = Pull { room: room_index, id: room.id.clone(), slot: room.slot, after, readers };
            self.pulls.insert(at, pull);
            self.pull(now, at);
        }
    }

    /// An owner's page, and the epoch under which it was given (zero: an error that no room was involved in).
    pub(super) fn page(&mut self, now: Now, at: Ticket, epoch: Epoch, page: Result<Page, v1::Error>) {
        let Some(pull) = self.pulls.get(&at) else { return };
        let slot = pull.slot;
        let known = self.routes.epoch(slot);
        if epoch > known {
            self.heard(now, slot, epoch, None);
        } else if epoch == known {
            self.confirmed(now, slot);
        } else if epoch != Epoch(0) && !plant::is(Bug::GatewayIgnoresEpoch) {
            self.counters.stale += 1;
            return;
        }
        self.page_came(now, at, page);
    }

    pub(super) fn page_came(&mut self, now: Now, at: Ticket, page: Result<Page, v1::Error>) {
        let Some(pull) = self.pulls.remove(&at) else { return };
        if pull.readers.is_empty() {
            self.repaired(now, at, pull.room, page);
        } else {
            for key in pull.readers {
                match &page {
                    Ok(page) => self.serve_page(now, key, pull.room, at, page),
                    Err(_) => self.ask_later(now, key, pull.room, at),
                }
            }
        }
        self.pull_next(now);
    }

    /// The page did not bring this cursor on: it asks again, but not at once.
    fn ask_later(&mut self, now: Now, key: Key, room_index: u32, at: Ticket) {
        let Some(connection) = self.connections.get_key(key) else { return };
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let Some(extra) = &mut room.sides[side_of(connection.format)].cursors[place as usize].extra else {
            return;
        };
        if extra.pull == PullState::Asked(at) {
            extra.pull = PullState::Queued;
            self.pull_retries.push((now.ms + RETRY_MS, Some(key), room_index));
        }
    }

    fn repaired(&mut self, now: Now, at: Ticket, room_index: u32, page: Result<Page, v1::Error>) {
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        if room.repair != Some(at) {
            return;
        }
        room.repair = None;
        let Ok(page) = page else {
            self.repair_later(now, room_index);
            return;
        };
        room.known_head = room.known_head.max(page.head);
        let before = room.applied;
        // What retention has taken meanwhile cannot be applied: go on above it.
        if page.floor > room.applied {
            room.applied = page.floor;
            for side in &mut room.sides {
                if let Some(ring) = side.ring.take() {
                    self.rings_bytes -= ring.capacity();
                }
            }
            self.spread(now, room_index);
        }
        self.apply(now, room_index, &page.events);
        let Some(room) = self.rooms.get(room_index) else { return };
        if room.applied > before {
            self.counters.gaps_repaired += 1;
        }
        if room.applied < room.known_head {
            if room.applied > before {
                self.repair(now, room_index);
            } else {
                self.repair_later(now, room_index);
            }
        }
    }

    /// Pulls that failed are tried again.
    pub(super) fn retry_pulls(&mut self, now: Now) {
        if self.pull_retries.is_empty() {
            return;
        }
        let (due, later) =
            std::mem::take(&mut self.pull_retries).into_iter().partition(|(at, _, _)| *at <= now.ms);
        self.pull_retries = later;
        let due: Vec<(u64, Option<Key>, u32)> = due;
        for (_, reader, room_index) in due {
            match reader {
                Some(key) => self.pull_queue.push_back((key, room_index)),
                None => {
                    if let Some(room) = self.rooms.get_mut(room_index) {
                        room.repair_waits = false;
                    }
                    self.repair(now, room_index);
                }
            }
        }
        self.pull_next(now);
    }

    /// Gives a page to one cursor, if it is the one that this cursor has asked for.
    fn serve_page(&mut self, now: Now, key: Key, room_index: u32, at: Ticket, page: &Page) {
        let index = key.index;
        let Some(connection) = self.connections.get_key_mut(key) else { return };
        let format = connection.format;
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return };
        let Some(person) = self.users.get(connection.user).map(|user| user.person.user.clone()) else {
            return;
        };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let room_id = room.id.clone();
        let (applied, streamed) = (room.applied, room.sides[side_of(format)].streamed);
        let cursor = &mut room.sides[side_of(format)].cursors[place as usize];
        let (mut next, admitted) = (cursor.next, cursor.admitted);
        let Some(extra) = &mut cursor.extra else { return };
        if extra.pull != PullState::Asked(at) {
            return;
        }
        let mut extra = std::mem::take(extra);
        let mut bytes = Vec::new();
        let mut last = extra.end.unwrap_or(Seq(u64::MAX));

        if page.floor >= next {
            let to = page.floor.min(last);
            self.put_gap(format, &room_id, next, to, true, &mut bytes);
            next = to.next();
            extra.put_replies_below(next, &mut bytes);
        }
        for event in &page.events {
            let seq = event.seq();
            extra.read_to += event.encoded.len() as u64;
            if seq < next {
                continue;
            }
            // A page without what it was asked for is no reason to leave something out.
            if seq > next || seq > last {
                break;
            }
            if let Some(until) = extra.absent_until(seq) {
                let until = until.min(last);
                self.put_gap(format, &room_id, seq, until, false, &mut bytes);
                next = until.next();
                extra.put_replies_below(next, &mut bytes);
                continue;
            }
            next = seq.next();
            if extra.replies.iter().any(|(of, _)| *of == seq) {
                extra.put_replies_below(next, &mut bytes);
            } else if let Some(frame) = self.claim_from_page(index, &room_id, event) {
                put_server_frame(&mut self.payload, format, &frame, &mut bytes);
            } else {
                match format {
                    frame::Format::Json => put_frame(&mut bytes, opcode_of(format), event.json_push()),
                    frame::Format::Proto => {
                        self.payload.clear();
                        frame::encode_event(format, &event.event, &event.encoded, &mut self.payload);
                        put_frame(&mut bytes, opcode_of(format), &self.payload);
                    }
                }
                self.counters.deliveries += 1;
            }
            // The log may be ahead of what has come over the link.
            if seq > admitted && user_gone(event) == Some(person.as_str()) {
                last = seq;
                extra.end = Some(seq);
            }
        }
        let head = applied.max(page.head).min(last);
        let behind = streamed.saturating_sub(extra.read_to);
        let far = head.0.saturating_sub(next.0) > TOO_FAR_EVENTS || behind > TOO_FAR_BYTES;
        if far && next.0 + BEHIND_MAX < head.0 {
            let to = Seq(head.0 - BEHIND_MAX);
            self.put_gap(format, &room_id, next, to, false, &mut bytes);
            next = to.next();
            extra.read_to = streamed;
            // A reply inside a gap follows it.
            extra.put_replies_below(next, &mut bytes);
        }
        extra.out.retain(|(_, until)| *until >= next);

        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let side = &mut room.sides[side_of(format)];
        let in_ring = side.ring.as_ref().is_some_and(|ring| ring.first() <= next);
        let caught_up = next > last || (room.admitted && (next > room.applied || in_ring));
        let cursor = &mut side.cursors[place as usize];
        let stuck = next == cursor.next && !caught_up;
        cursor.next = next;
        // Less than the owner has said to be there: the cursor asks again, but not at once.
        extra.pull = if stuck { PullState::Asked(at) } else { PullState::None };
        cursor.extra = Some(extra);
        if caught_up {
            cursor.state = CursorState::Live;
        }
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.pulling -= u32::from(!stuck);
        if caught_up {
            connection.reading -= 1;
            connection.mark_room(room_index);
        }
        if !bytes.is_empty() {
            out_of(&mut self.outs, connection).append(&mut bytes);
        }
        self.dirty.mark(index);
        if stuck {
            self.ask_later(now, key, room_index, at);
        }
    }

    /// Appends a `gap` push.
    pub(super) fn put_gap(
        &mut self,
        format: frame::Format,
        room: &RoomId,
        from: Seq,
        to: Seq,
        expired: bool,
        out: &mut Vec<u8>,
    ) {
        self.counters.gaps_announced += 1;
        let gap = v1::GapPush {
            room: room.as_str().to_owned(),
            from: from.0,
            to: to.0,
            expired: expired.then_some(true),
        };
        let frame = v1::ServerFrame { id: None, body: Some(Body::Gap(gap)) };
        put_server_frame(&mut self.payload, format, &frame, out);
    }
}
