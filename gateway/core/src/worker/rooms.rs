//! What owners say: events applied contiguously, gaps repaired by one pull, heads, marks, and users' own pushes.

use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::event::LoggedEvent;
use banyan_proto::frame::Format;
use banyan_proto::id::{Epoch, RoomId, Seq, UserId};
use banyan_proto::link::FromShard;
use banyan_proto::v1;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;

use super::commands::mark_room;
use super::{Now, Worker, opcode_of, put_server_frame};
use crate::connection::{Place, What};
use crate::ring::Ring;
use crate::room::{CursorState, SIDES, SMALL_ROOM, side_of};

/// Least time between two heads for the passive readers of one room.
const HEADS_MS: u64 = 1_000;

impl Worker {
    /// One message of a shard worker.
    pub fn shard_said(&mut self, now: Now, message: FromShard) {
        match message {
            FromShard::Answer { ticket, answer } => self.answer(now, ticket, answer),
            FromShard::Events { room, epoch, events } => self.events(now, &room, epoch, &events),
            FromShard::Head { room, epoch, head, n, .. } => {
                let Some(room_index) = self.room_ids.get(room.as_str()).copied() else { return };
                let Some(room) = self.rooms.get_mut(room_index) else { return };
                if !room.admitted || epoch < room.epoch {
                    return;
                }
                room.epoch = epoch;
                room.known_head = room.known_head.max(head);
                if head == room.applied {
                    room.n = n;
                }
                if head > room.applied {
                    self.repair(now, room_index);
                }
            }
            FromShard::Marks { room, marks } => {
                let Some(room_index) = self.room_ids.get(room.as_str()) else { return };
                let Some(entry) = self.rooms.get(*room_index) else { return };
                let readers: Vec<u32> = entry
                    .sides
                    .iter()
                    .flat_map(|side| &side.cursors)
                    .map(|cursor| cursor.connection)
                    .collect();
                let push =
                    Body::Marks(v1::MarksPush { room: room.as_str().to_owned(), marks: marks.to_vec() });
                for reader in readers {
                    self.push_optional(reader, &push);
                }
            }
            FromShard::Left { room, user, at } => {
                if let (Some(room), Some(user)) =
                    (self.room_ids.get(room.as_str()).copied(), self.user_ids.get(user.as_str()).copied())
                {
                    self.end_cursors(user, room, at);
                }
            }
            FromShard::Page { ticket, page, .. } => self.page(now, ticket, page),
            FromShard::User { user, push } => self.user_push(&user, &push),
        }
    }

    fn user_push(&mut self, user: &UserId, push: &Body) {
        let Some(user) = self.user_ids.get(user.as_str()) else { return };
        let Some(user) = self.users.get(*user) else { return };
        for connection in user.connections.clone() {
            self.push_optional(connection, push);
        }
    }

    fn events(&mut self, now: Now, room: &RoomId, epoch: Epoch, events: &[Arc<LoggedEvent>]) {
        let Some(room_index) = self.room_ids.get(room.as_str()).copied() else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let Some(last) = events.last() else { return };
        if !room.admitted || epoch < room.epoch {
            return;
        }
        room.epoch = epoch;
        room.known_head = room.known_head.max(last.seq());
        self.apply(now, room_index, events);
        if self.rooms.get(room_index).is_some_and(|room| room.known_head > room.applied) {
            self.repair(now, room_index);
        }
    }

    /// Applies what continues the log, in order. What is known already is skipped, what lies beyond a gap is left.
    pub(super) fn apply(&mut self, now: Now, room_index: u32, events: &[Arc<LoggedEvent>]) {
        let mut applied = false;
        for event in events {
            let Some(room) = self.rooms.get_mut(room_index) else { return };
            if event.seq() != room.applied.next() {
                continue;
            }
            applied = true;
            room.applied = event.seq();
            room.n = event.event.n;
            room.changed_at = now.ms;
            for (side, format) in room.sides.iter_mut().zip(SIDES) {
                if side.cursors.is_empty() {
                    if let Some(ring) = side.ring.take() {
                        self.rings_bytes -= ring.capacity();
                    }
                    continue;
                }
                if side.ring.is_none() {
                    side.ring = Some(Box::new(Ring::new(event.seq())));
                    self.ringed.push(room_index);
                }
                let Some(ring) = &mut side.ring else { continue };
                let before = ring.capacity();
                match format {
                    Format::Json => ring.push(opcode_of(format), event.json_push(), self.options.ring_bytes),
                    Format::Proto => {
                        self.payload.clear();
                        banyan_proto::frame::encode_event(
                            format,
                            &event.event,
                            &event.encoded,
                            &mut self.payload,
                        );
                        ring.push(opcode_of(format), &self.payload, self.options.ring_bytes);
                    }
                }
                side.streamed += event.encoded.len() as u64;
                self.rings_bytes += ring.capacity();
                self.rings_bytes -= before;
            }
            self.counters.events_applied += 1;
            self.settle_by_event(room_index, event);
            self.end_by_event(room_index, event);
        }
        if applied {
            self.spread(now, room_index);
        }
    }

    /// If one of our connections waits for this very send, its reply takes the event's place.
    fn settle_by_event(&mut self, room_index: u32, event: &LoggedEvent) {
        let Some(client_msg_id) = &event.event.client_msg_id else { return };
        let Some(key) = self.key_of_origin(event.origin) else { return };
        let Some(connection) = self.connections.get_key(key) else { return };
        let Some(user) = self.users.get(connection.user) else { return };
        if user.person.user.as_str() != event.event.sender {
            return;
        }
        let Some(room) = self.rooms.get(room_index) else { return };
        // Without a live cursor the owner's answer is the reply.
        if !matches!(connection.place_in(room_index), Some(Place::Live(_))) {
            return;
        }
        let room = room.id.clone();
        self.settle_send(key.index, &room, client_msg_id, event);
    }

    /// Takes the pending send that this event is, if there is one, and puts its reply in the event's place.
    fn settle_send(&mut self, index: u32, room: &RoomId, client_msg_id: &str, event: &LoggedEvent) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(flight) = &mut connection.flight else { return };
        let place = flight.pending.iter().position(|pending| {
            matches!(&pending.what, What::Send { room: of, client_msg_id: id } if **id == *client_msg_id && of == room)
        });
        let Some(place) = place else { return };
        let id = flight.pending.swap_remove(place).id;
        self.flight_moved(index);
        let frame = sent_frame(id, event);
        if !self.reply_in_place(index, room, event.seq(), &frame) {
            self.queue(index, &frame);
        }
    }

    /// The same for an event that comes in a page from the log: gives the reply instead of the event.
    pub(super) fn claim_from_page(
        &mut self,
        index: u32,
        room: &RoomId,
        event: &LoggedEvent,
    ) -> Option<v1::ServerFrame> {
        let connection = self.connections.get_mut(index)?;
        let flight = connection.flight.as_mut()?;
        let client_msg_id = event.event.client_msg_id.as_deref()?;
        if self.users.get(connection.user)?.person.user.as_str() != event.event.sender {
            return None;
        }
        let place = flight.pending.iter().position(|pending| {
            matches!(&pending.what, What::Send { room: of, client_msg_id: id } if **id == *client_msg_id && of == room)
        })?;
        let id = flight.pending.swap_remove(place).id;
        self.flight_moved(index);
        Some(sent_frame(id, event))
    }

    /// A removal or leave ends all cursors of that user in the room at this seq.
    fn end_by_event(&mut self, room_index: u32, event: &LoggedEvent) {
        let user = match &event.event.kind {
            Some(Kind::Removed(removed)) => &removed.user,
            Some(Kind::Left(left)) => &left.user,
            _ => return,
        };
        let Some(user) = self.user_ids.get(user.as_str()).copied() else { return };
        self.end_cursors(user, room_index, event.seq());
    }

    fn end_cursors(&mut self, user: u32, room_index: u32, end: Seq) {
        let Some(user) = self.users.get(user) else { return };
        for index in user.connections.clone() {
            let Some(connection) = self.connections.get_mut(index) else { continue };
            let Some(room) = self.rooms.get_mut(room_index) else { return };
            match connection.place_in(room_index) {
                Some(Place::Live(place)) => {
                    let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
                    let extra = cursor.extra_mut();
                    extra.end = Some(extra.end.map_or(end, |old| old.min(end)));
                    mark_room(connection, room_index);
                    self.dirty.mark(index);
                }
                Some(Place::Passive(_)) => {
                    let room = room.id.as_str().to_owned();
                    self.remove_cursor(index, room_index);
                    self.push(index, Body::Unsubscribed(not_a_member(room)));
                }
                None => {}
            }
        }
    }

    /// Marks who has something to be sent; sends nothing.
    fn spread(&mut self, now: Now, room_index: u32) {
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        if room.live() <= SMALL_ROOM {
            for side in &room.sides {
                for cursor in &side.cursors {
                    if cursor.state != CursorState::Live {
                        continue;
                    }
                    if let Some(connection) = self.connections.get_mut(cursor.connection)
                        && !connection.blocked
                    {
                        mark_room(connection, room_index);
                        self.dirty.mark(cursor.connection);
                    }
                }
            }
        } else if !room.queued {
            room.queued = true;
            room.pass.side = 0;
            room.pass.at = 0;
            room.pass.head = room.applied;
            self.big.push_back(room_index);
        }
        if !room.passive.is_empty() && !room.heads_queued {
            room.heads_queued = true;
            room.heads_at = room.heads_at.max(now.ms);
            self.heads.push(room_index);
        }
    }

    /// Tells passive readers how far their rooms have come.
    pub(super) fn push_heads(&mut self, now: Now) {
        let mut later = Vec::new();
        for room_index in std::mem::take(&mut self.heads) {
            let Some(room) = self.rooms.get_mut(room_index) else { continue };
            if room.heads_at > now.ms {
                later.push(room_index);
                continue;
            }
            room.heads_queued = false;
            room.heads_at = now.ms + HEADS_MS;
            let body =
                Body::Head(v1::Head { room: room.id.as_str().to_owned(), head: room.applied.0, n: room.n });
            let frame = v1::ServerFrame { id: None, body: Some(body) };
            let mut encoded = [Vec::new(), Vec::new()];
            for index in &room.passive {
                let Some(connection) = self.connections.get_mut(*index) else { continue };
                if connection.blocked {
                    connection.heads_owed = true;
                    continue;
                }
                let bytes = &mut encoded[side_of(connection.format)];
                if bytes.is_empty() {
                    put_server_frame(&mut self.payload, connection.format, &frame, bytes);
                }
                super::out_of(connection).extend_from_slice(bytes);
                self.dirty.mark(*index);
            }
        }
        self.heads.append(&mut later);
    }

    /// Heads that were left out while the socket was full.
    pub(super) fn push_owed_heads(&mut self, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if !std::mem::take(&mut connection.heads_owed) {
            return;
        }
        let passive =
            connection.rooms.iter().filter(|reference| matches!(reference.place, Place::Passive(_)));
        let rooms: Vec<u32> = passive.map(|reference| reference.room).collect();
        for room_index in rooms {
            let Some(room) = self.rooms.get(room_index) else { continue };
            let head = v1::Head { room: room.id.as_str().to_owned(), head: room.applied.0, n: room.n };
            self.push(index, Body::Head(head));
        }
    }

    /// Gives up rooms that nobody has read for a while.
    pub(super) fn drop_unused(&mut self, now: Now, after_ms: u64) {
        let mut kept = Vec::new();
        for (room_index, since) in std::mem::take(&mut self.unused) {
            let Some(room) = self.rooms.get(room_index) else { continue };
            if !room.is_unused() {
                continue;
            }
            if since + after_ms > now.ms || room.queued || room.heads_queued || room.repair.is_some() {
                kept.push((room_index, since));
                continue;
            }
            let Some(room) = self.rooms.remove(room_index) else { continue };
            for ring in room.sides.iter().filter_map(|side| side.ring.as_ref()) {
                self.rings_bytes -= ring.capacity();
            }
            self.ringed.retain(|of| *of != room_index);
            self.room_ids.remove(room.id.as_str());
            self.tell_owner(&room.id, banyan_proto::link::ToShard::Uninterest { room: room.id.clone() });
        }
        kept.sort_unstable();
        kept.dedup_by_key(|(room, _)| *room);
        self.unused = kept;
    }

    /// Frees rings that everybody has read, and keeps all of them together within their bound.
    pub(super) fn tend_rings(&mut self, now: Now, quiet_ms: u64) {
        let mut ringed = std::mem::take(&mut self.ringed);
        ringed.sort_unstable();
        ringed.dedup();
        ringed.retain(|room_index| {
            let Some(room) = self.rooms.get_mut(*room_index) else { return false };
            if room.changed_at + quiet_ms <= now.ms {
                for side in &mut room.sides {
                    let at_head = side
                        .cursors
                        .iter()
                        .all(|cursor| cursor.next > room.applied || cursor.state == CursorState::Reading);
                    if at_head && let Some(ring) = side.ring.take() {
                        self.rings_bytes -= ring.capacity();
                    }
                }
            }
            room.sides.iter().any(|side| side.ring.is_some())
        });
        self.ringed = ringed;
        self.bound_rings();
    }

    /// Oldest events out, of the largest rings first, until all fit.
    pub(super) fn bound_rings(&mut self) {
        if self.rings_bytes <= self.options.rings_bytes {
            return;
        }
        let mut sizes: Vec<(usize, u32, usize)> = Vec::new();
        for room_index in &self.ringed {
            let Some(room) = self.rooms.get(*room_index) else { continue };
            for (place, side) in room.sides.iter().enumerate() {
                if let Some(ring) = &side.ring {
                    sizes.push((ring.capacity(), *room_index, place));
                }
            }
        }
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        for (capacity, room_index, place) in sizes {
            if self.rings_bytes <= self.options.rings_bytes {
                break;
            }
            // Whoever had not read it all goes on from the log.
            if let Some(room) = self.rooms.get_mut(room_index)
                && room.sides[place].ring.take().is_some()
            {
                self.rings_bytes -= capacity;
            }
        }
    }
}

fn sent_frame(id: u64, event: &LoggedEvent) -> v1::ServerFrame {
    let reply = v1::SendReply {
        room: event.event.room.clone(),
        seq: event.event.seq,
        at: event.event.at,
        duplicate: false,
    };
    v1::ServerFrame { id: Some(id), body: Some(Body::Send(reply)) }
}

/// What who has left or was removed is told when nothing more will come.
pub(super) fn not_a_member(room: String) -> v1::Unsubscribed {
    v1::Unsubscribed {
        room,
        code: Code::NotAMember.number(),
        reason: "you are no longer a member of this room".to_owned(),
    }
}
