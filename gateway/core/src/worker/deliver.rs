//! Sending: sweeps over the connections that have something, then a slice of one big room.
//!
//! What is pending for a connection is decided at the moment of its send, so whatever arrived meanwhile rides along in
//! the same call. Big rooms never delay small ones.

use banyan_proto::id::Seq;
use banyan_proto::v1::server_frame::Body;

use super::rooms::not_a_member;
use super::{Effect, Now, Sent, Wire, Worker, out_of};
use crate::connection::{Phase, Place};
use crate::room::{CursorState, side_of};

/// Sends of one sweep, before the sockets are looked at again.
const SWEEP_SENDS: usize = 256;
/// Sends of one slice of a big room.
const SLICE_SENDS: usize = 64;
/// Most that is gathered for one send from several sources.
const GATHER_BYTES: usize = 32 << 10;
/// Most of one ring that one send is offered.
const SLICE_BYTES: usize = 256 << 10;

impl Worker {
    /// True while something could be sent now.
    pub fn has_work(&self) -> bool {
        !self.dirty.is_empty() || !self.big.is_empty()
    }

    /// One round of sends. Call it again (after a look at the sockets) while [`Self::has_work`].
    pub fn sweep(&mut self, now: Now, wire: &mut impl Wire) {
        let mut sends = 0;
        let mut word = std::mem::take(&mut self.sweep);
        while sends < SWEEP_SENDS && !self.dirty.is_empty() {
            word.clear();
            self.dirty.take_word(&mut word);
            sends += word.len();
            for index in &word {
                self.flush(now, *index, wire);
            }
        }
        self.sweep = word;
        self.slice(now, wire);
    }

    /// The next few readers of one big room.
    fn slice(&mut self, now: Now, wire: &mut impl Wire) {
        let Some(room_index) = self.big.pop_front() else { return };
        let mut budget = SLICE_SENDS;
        loop {
            let Some(room) = self.rooms.get_mut(room_index) else { return };
            let pass = room.pass;
            let cursors = &room.sides[pass.side].cursors;
            if pass.at >= cursors.len() {
                if pass.side + 1 < room.sides.len() {
                    room.pass.side += 1;
                    room.pass.at = 0;
                    continue;
                }
                room.pass.side = 0;
                room.pass.at = 0;
                if room.applied == pass.head || room.live() == 0 {
                    room.queued = false;
                    return;
                }
                room.pass.head = room.applied;
                break;
            }
            if budget == 0 {
                break;
            }
            room.pass.at += 1;
            let cursor = &cursors[pass.at];
            if cursor.state != CursorState::Live || (cursor.next > room.applied && cursor.extra.is_none()) {
                continue;
            }
            let index = cursor.connection;
            let Some(connection) = self.connections.get_mut(index) else { continue };
            if connection.blocked {
                continue;
            }
            budget -= 1;
            let plain =
                cursor.extra.is_none() && connection.out.is_none() && connection.dirty_rooms.is_empty();
            if !(plain && self.send_plain(now, index, room_index, pass.side, pass.at, wire)) {
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.mark_room(room_index);
                }
                self.dirty.unmark(index);
                self.flush(now, index, wire);
            }
        }
        self.big.push_back(room_index);
    }

    /// One slice of one ring in one call: the path that nearly every delivery takes. False: it needs the other one.
    fn send_plain(
        &mut self,
        now: Now,
        index: u32,
        room_index: u32,
        side: usize,
        place: usize,
        wire: &mut impl Wire,
    ) -> bool {
        let Some(room) = self.rooms.get_mut(room_index) else { return true };
        let applied = room.applied;
        let side = &mut room.sides[side];
        let cursor = &mut side.cursors[place];
        let Some(ring) = &side.ring else { return false };
        if cursor.next > applied {
            return true;
        }
        if ring.first() > cursor.next {
            return false;
        }
        let bytes = ring.slice(cursor.next, applied);
        if bytes.len() > SLICE_BYTES {
            return false;
        }
        self.counters.send_calls += 1;
        match wire.send(index, bytes) {
            Sent::Bytes(sent) if sent == bytes.len() => {
                self.counters.deliveries += applied.0 + 1 - cursor.next.0;
                self.counters.bytes_sent += sent as u64;
                cursor.next = applied.next();
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.progress_at = 0;
                }
            }
            Sent::Bytes(sent) => {
                let (next, rest) = ring.after_partial(cursor.next, sent);
                self.counters.bytes_sent += sent as u64;
                let next = if rest.is_empty() { next } else { next.next() };
                self.counters.deliveries += next.0 - cursor.next.0;
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.blocked = true;
                    connection.progress_at = now.ms;
                    if !rest.is_empty() {
                        out_of(&mut self.outs, connection).extend_from_slice(rest);
                    }
                }
                cursor.next = next;
                self.arm(now, index);
            }
            Sent::Full => {
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.block(now.ms);
                }
                self.arm(now, index);
            }
            Sent::Broken => self.lost(index),
        }
        true
    }

    /// Sends what one connection has: queued frames first, then its rooms.
    fn flush(&mut self, now: Now, index: u32, wire: &mut impl Wire) {
        for _ in 0..4 {
            let Some(connection) = self.connections.get_mut(index) else { return };
            if connection.blocked {
                return;
            }
            if connection.out.is_none() && connection.dirty_rooms.len() == 1 {
                let room_index = connection.dirty_rooms[0];
                if let Some(Place::Live(place)) = connection.place_in(room_index)
                    && let Some(room) = self.rooms.get(room_index)
                {
                    let side = side_of(connection.format);
                    let cursor = &room.sides[side].cursors[place as usize];
                    if cursor.state == CursorState::Live
                        && cursor.extra.is_none()
                        && self.send_plain(now, index, room_index, side, place as usize, wire)
                    {
                        if let Some(connection) = self.connections.get_mut(index) {
                            connection.dirty_rooms.clear();
                        }
                        self.flushed(now, index);
                        return;
                    }
                }
            }
            self.gather(now, index);
            let Some(connection) = self.connections.get_mut(index) else { return };
            let Some(mut out) = connection.out.take() else {
                self.flushed(now, index);
                return;
            };
            let bytes = &out.bytes[out.sent..];
            self.counters.send_calls += 1;
            let sent = match wire.send(index, bytes) {
                Sent::Bytes(sent) => sent,
                Sent::Full => 0,
                Sent::Broken => {
                    self.outs.put(out);
                    self.lost(index);
                    return;
                }
            };
            self.counters.bytes_sent += sent as u64;
            let Some(connection) = self.connections.get_mut(index) else { return };
            if sent > 0 {
                connection.progress_at = now.ms;
            }
            out.sent += sent;
            if out.len() > 0 {
                connection.block(now.ms);
                // What the socket has taken is not kept beside what it has not.
                if out.sent > 0 {
                    out.bytes.drain(..out.sent);
                    out.sent = 0;
                }
                connection.out = Some(out);
                self.arm(now, index);
                return;
            }
            self.outs.put(out);
            if connection.dirty_rooms.is_empty() {
                self.flushed(now, index);
                return;
            }
        }
        // More than four sends are due: let others go first.
        self.dirty.mark(index);
    }

    /// Moves what the dirty rooms have for this connection behind its queued frames, up to a bound.
    fn gather(&mut self, now: Now, index: u32) {
        loop {
            let Some(connection) = self.connections.get_mut(index) else { return };
            let Some(room_index) = connection.dirty_rooms.last().copied() else { return };
            if connection.queued() >= GATHER_BYTES || connection.is_closing() {
                if connection.is_closing() {
                    connection.dirty_rooms.clear();
                }
                return;
            }
            if self.gather_room(now, index, room_index)
                && let Some(connection) = self.connections.get_mut(index)
                && connection.dirty_rooms.last() == Some(&room_index)
            {
                connection.dirty_rooms.pop();
            }
        }
    }

    /// True when the room has nothing more for it now.
    fn gather_room(&mut self, now: Now, index: u32, room_index: u32) -> bool {
        loop {
            let Some(connection) = self.connections.get_mut(index) else { return true };
            let Some(Place::Live(place)) = connection.place_in(room_index) else { return true };
            let format = connection.format;
            let Some(room) = self.rooms.get_mut(room_index) else { return true };
            let applied = room.applied;
            let side = &mut room.sides[side_of(format)];
            let cursor = &mut side.cursors[place as usize];
            if cursor.state != CursorState::Live {
                return true;
            }
            let end = cursor.end();
            let last = end.map_or(applied, |end| end.min(applied));
            let next = cursor.next;
            if next > last {
                if end.is_some_and(|end| next > end) {
                    let push = not_a_member(room.id.as_str().to_owned());
                    // Replies above the end: who has come back sends, but has no cursor up there.
                    let replies = self.take_replies(index, room_index);
                    self.remove_cursor(index, room_index);
                    self.push(index, Body::Unsubscribed(push));
                    self.put_replies(index, replies);
                } else {
                    cursor.tidy();
                }
                return true;
            }
            let mut stop = last;
            if let Some(extra) = &mut cursor.extra {
                if let Some(until) = extra.absent_until(next) {
                    let id = room.id.clone();
                    cursor.next = until.next();
                    extra.out.retain(|(_, last)| *last > until);
                    let mut gap = Vec::new();
                    self.put_gap(format, &id, next, until, false, &mut gap);
                    if let Some(connection) = self.connections.get_mut(index) {
                        out_of(&mut self.outs, connection).append(&mut gap);
                    }
                    continue;
                }
                if extra.replies.iter().any(|(seq, _)| *seq == next) {
                    cursor.next = next.next();
                    extra.put_replies_below(cursor.next, out_of(&mut self.outs, connection));
                    continue;
                }
                for (first, _) in &extra.out {
                    if *first > next {
                        stop = stop.min(Seq(first.0 - 1));
                    }
                }
                for (seq, _) in &extra.replies {
                    if *seq > next {
                        stop = stop.min(Seq(seq.0 - 1));
                    }
                }
            }
            let Some(ring) = side.ring.as_ref().filter(|ring| ring.first() <= next) else {
                self.begin_reading(now, index, room_index);
                return true;
            };
            let mut bytes = ring.slice(next, stop);
            while bytes.len() > GATHER_BYTES && stop > next {
                stop = Seq(next.0 + (stop.0 - next.0) / 2);
                bytes = ring.slice(next, stop);
            }
            out_of(&mut self.outs, connection).extend_from_slice(bytes);
            self.counters.deliveries += stop.0 + 1 - next.0;
            cursor.next = stop.next();
            if connection.queued() >= GATHER_BYTES {
                return false;
            }
        }
    }

    /// The socket has taken everything.
    fn flushed(&mut self, now: Now, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.blocked || connection.out.is_some() {
            return;
        }
        connection.progress_at = 0;
        connection.dirty_rooms.shrink_to_fit();
        if std::mem::take(&mut connection.full) && connection.paused_until == 0 {
            self.effects.push(Effect::Resume { connection: index });
        }
        if connection.phase == (Phase::Closing { answered: true }) {
            self.lost(index);
            return;
        }
        let waits = connection.flight.as_ref().is_some_and(|flight| !flight.waiting.is_empty());
        if connection.heads_owed {
            self.queue_owed_heads(now, index);
        }
        if waits {
            self.release_waiting(now, index);
        }
        self.want_pages(now, index);
    }
}
