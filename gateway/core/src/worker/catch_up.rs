//! Reading from the log: pages for cursors below their ring, and the repair of gaps.
//!
//! Always holds: at most [`PULLS_MAX`] pages for cursors are under way; cursors that want the same page share one;
//! a cursor gets its next page only when its socket has taken the one before.

use banyan_proto::frame;
use banyan_proto::id::Seq;
use banyan_proto::link::{Page, Ticket, ToShard};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;
use smallvec::SmallVec;

use super::commands::mark_room;
use super::{Now, Worker, opcode_of, out_of, put_server_frame};
use crate::connection::Place;
use crate::room::{CursorState, side_of};
use crate::slab::Key;
use crate::start::BEHIND_MAX;
use crate::ws::encode::put_frame;

const PULLS_MAX: usize = 64;
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
    after: Seq,
    /// Cursors that wait for it; none: it fills a gap of the room.
    readers: SmallVec<[Key; 1]>,
}

impl Worker {
    /// Fills the gap between what is applied and the known head; one pull a room.
    pub(super) fn repair(&mut self, now: Now, room_index: u32) {
        let _ = now;
        let at = self.new_ticket();
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        if room.repair.is_some() || room.applied >= room.known_head {
            return;
        }
        room.repair = Some(at);
        let after = room.applied;
        let id = room.id.clone();
        self.counters.pulls += 1;
        self.pulls.insert(at, Pull { room: room_index, after, readers: SmallVec::new() });
        let message = ToShard::Pull {
            room: id.clone(),
            ticket: at,
            after,
            through: None,
            max_events: REPAIR_EVENTS,
            max_bytes: REPAIR_BYTES,
        };
        self.tell_owner(&id, message);
    }

    fn new_ticket(&mut self) -> Ticket {
        self.next_pull += 1;
        Ticket(self.next_pull)
    }

    /// A cursor has fallen off its ring, or begins below it.
    pub(super) fn begin_reading(&mut self, index: u32, room_index: u32) {
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
        cursor.extra_mut().fell_at = streamed;
        connection.reading += 1;
        self.counters.fell_to_log += 1;
        self.want_page(index, room_index);
    }

    /// All that the socket was given is taken: pages for the cursors that read from the log.
    pub(super) fn want_pages(&mut self, index: u32) {
        let Some(connection) = self.connections.get(index) else { return };
        if connection.reading == 0 {
            return;
        }
        let rooms: SmallVec<[u32; 8]> = connection.rooms.iter().map(|reference| reference.room).collect();
        for room_index in rooms {
            self.want_page(index, room_index);
        }
    }

    fn want_page(&mut self, index: u32, room_index: u32) {
        let Some(key) = self.connections.key_of(index) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.out.is_some() || connection.blocked {
            return;
        }
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
        if cursor.state != CursorState::Reading || cursor.extra_mut().pulling {
            return;
        }
        cursor.extra_mut().pulling = true;
        self.pull_queue.push_back((key, room_index));
        self.pull_next();
    }

    /// Sends pulls while there is room for them.
    fn pull_next(&mut self) {
        while self.pulls.len() < PULLS_MAX {
            let Some((key, room_index)) = self.pull_queue.pop_front() else { return };
            let Some(connection) = self.connections.get_key_mut(key) else { continue };
            let Some(Place::Live(place)) = connection.place_in(room_index) else { continue };
            let Some(room) = self.rooms.get(room_index) else { continue };
            let cursor = &room.sides[side_of(connection.format)].cursors[place as usize];
            if cursor.state != CursorState::Reading {
                continue;
            }
            let after = Seq(cursor.next.0 - 1);
            let id = room.id.clone();
            let shared = self
                .pulls
                .values_mut()
                .find(|pull| pull.room == room_index && pull.after == after && !pull.readers.is_empty());
            if let Some(pull) = shared {
                pull.readers.push(key);
                continue;
            }
            let at = self.new_ticket();
            self.counters.pulls += 1;
            self.pulls.insert(at, Pull { room: room_index, after, readers: SmallVec::from_buf([key]) });
            let message = ToShard::Pull {
                room: id.clone(),
                ticket: at,
                after,
                through: None,
                max_events: PAGE_EVENTS,
                max_bytes: PAGE_BYTES,
            };
            self.tell_owner(&id, message);
        }
    }

    /// An owner's page.
    pub(super) fn page(&mut self, now: Now, at: Ticket, page: Result<Page, v1::Error>) {
        let Some(pull) = self.pulls.remove(&at) else { return };
        if pull.readers.is_empty() {
            self.repaired(now, at, pull.room, page);
        } else {
            for key in pull.readers {
                match &page {
                    Ok(page) => self.serve_page(now, key, pull.room, page),
                    Err(_) => self.pull_retries.push((now.ms + RETRY_MS, Some(key), pull.room)),
                }
            }
        }
        self.pull_next();
    }

    fn repaired(&mut self, now: Now, at: Ticket, room_index: u32, page: Result<Page, v1::Error>) {
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        if room.repair != Some(at) {
            return;
        }
        room.repair = None;
        let Ok(page) = page else {
            self.pull_retries.push((now.ms + RETRY_MS, None, room_index));
            return;
        };
        room.known_head = room.known_head.max(page.head);
        let before = room.applied;
        // What retention has taken meanwhile cannot be applied: go on above it.
        if page.floor > room.applied {
            room.applied = page.floor;
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
                self.pull_retries.push((now.ms + RETRY_MS, None, room_index));
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
                None => self.repair(now, room_index),
            }
        }
        self.pull_next();
    }

    /// Gives a page to one cursor.
    fn serve_page(&mut self, now: Now, key: Key, room_index: u32, page: &Page) {
        let index = key.index;
        let Some(connection) = self.connections.get_key_mut(key) else { return };
        if connection.is_closing() {
            return;
        }
        let format = connection.format;
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let room_id = room.id.clone();
        let (applied, streamed) = (room.applied, room.sides[side_of(format)].streamed);
        let cursor = &mut room.sides[side_of(format)].cursors[place as usize];
        if cursor.state != CursorState::Reading {
            return;
        }
        let mut next = cursor.next;
        let extra = cursor.extra_mut();
        extra.pulling = false;
        let (end, fell_at) = (extra.end, extra.fell_at);
        let out = std::mem::take(&mut extra.out);
        let mut replies = std::mem::take(&mut extra.replies);
        let mut bytes = Vec::new();
        let last = end.unwrap_or(Seq(u64::MAX));

        if page.floor >= next {
            self.put_gap(format, &room_id, next, page.floor, true, &mut bytes);
            next = page.floor.next();
        }
        for event in &page.events {
            let seq = event.seq();
            if seq < next || seq > last {
                continue;
            }
            if let Some((_, until)) = out.iter().find(|(first, until)| (*first..=*until).contains(&seq)) {
                self.put_gap(format, &room_id, seq, *until, false, &mut bytes);
                next = until.next();
                continue;
            }
            if let Some(at) = replies.iter().position(|(of, _)| *of == seq) {
                bytes.extend_from_slice(&replies.swap_remove(at).1);
            } else if let Some(frame) = self.claim_from_page(index, &room_id, event) {
                put_server_frame(&mut self.payload, format, &frame, &mut bytes);
            } else {
                self.payload.clear();
                match format {
                    frame::Format::Json => put_frame(&mut bytes, opcode_of(format), event.json_push()),
                    frame::Format::Proto => {
                        frame::encode_event(format, &event.event, &event.encoded, &mut self.payload);
                        put_frame(&mut bytes, opcode_of(format), &self.payload);
                    }
                }
                self.counters.deliveries += 1;
            }
            next = seq.next();
        }
        let head = applied.max(page.head);
        let far = head.0.saturating_sub(next.0) > TOO_FAR_EVENTS || streamed - fell_at > TOO_FAR_BYTES;
        if far && next.0 + BEHIND_MAX < head.0 {
            let to = Seq(head.0 - BEHIND_MAX).min(last);
            self.put_gap(format, &room_id, next, to, false, &mut bytes);
            // A reply inside a gap follows it.
            replies.retain(|(seq, reply)| {
                let inside = *seq <= to;
                if inside {
                    bytes.extend_from_slice(reply);
                }
                !inside
            });
            next = to.next();
        }

        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let side = &mut room.sides[side_of(format)];
        let in_ring = side.ring.as_ref().is_some_and(|ring| ring.first() <= next);
        let cursor = &mut side.cursors[place as usize];
        let caught_up = next > room.applied || in_ring || next > last;
        if caught_up {
            cursor.state = CursorState::Live;
        }
        let stuck = next == cursor.next && !caught_up;
        cursor.next = next;
        let extra = cursor.extra_mut();
        extra.out = out;
        extra.out.retain(|(_, until)| *until >= next);
        extra.replies = replies;
        if far {
            extra.fell_at = streamed;
        }
        if stuck {
            // The owner has less than it said: ask again, but not at once.
            extra.pulling = true;
            self.pull_retries.push((now.ms + RETRY_MS, Some(key), room_index));
        }
        let Some(connection) = self.connections.get_mut(index) else { return };
        if caught_up {
            connection.reading -= 1;
            mark_room(connection, room_index);
        }
        if !bytes.is_empty() {
            out_of(connection).append(&mut bytes);
        }
        self.dirty.mark(index);
    }

    /// Appends a `gap` push.
    pub(super) fn put_gap(
        &mut self,
        format: frame::Format,
        room: &banyan_proto::id::RoomId,
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
