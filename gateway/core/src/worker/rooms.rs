//! What owners say: events applied contiguously, gaps repaired by one pull, heads, marks, and users' own pushes.

use std::sync::Arc;

use banyan_proto::codes::Code;
use banyan_proto::event::LoggedEvent;
use banyan_proto::frame::Format;
use banyan_proto::id::{Epoch, RoomId, Seq, UserId};
use banyan_proto::link::{FromShard, ToShard};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_proto::v1::event::Kind;
use banyan_proto::v1::server_frame::Body;

use smallvec::SmallVec;

use super::{Now, QUEUED_SOFT, Worker, opcode_of, out_of, put_server_frame, ticket};
use crate::connection::{Pending, Place};
use crate::ring::Ring;
use crate::room::{CursorState, SIDES, SMALL_ROOM, side_of};
use crate::slab::Key;

/// Least time between two heads for the passive readers of one room.
const HEADS_MS: u64 = 1_000;

impl Worker {
    /// One message of a shard worker.
    pub fn shard_said(&mut self, now: Now, message: FromShard) {
        match message {
            FromShard::Answer { ticket, epoch, answer } => self.answer(now, ticket, epoch, answer),
            FromShard::Events { room, epoch, events } => self.events(now, &room, epoch, &events),
            FromShard::Head { room, epoch, head, n, last_membership } => {
                let Some(room_index) = self.room_ids.get(room.as_str()).copied() else { return };
                if self.accepts(now, room_index, epoch) {
                    self.head(now, room_index, head, n, last_membership);
                }
            }
            FromShard::Marks { room, epoch, marks } => {
                let Some(room_index) = self.room_ids.get(room.as_str()).copied() else { return };
                if !self.accepts(now, room_index, epoch) {
                    return;
                }
                let Some(entry) = self.rooms.get(room_index) else { return };
                let cursors = entry.sides.iter().flat_map(|side| &side.cursors);
                let readers = cursors.filter(|cursor| cursor.state != CursorState::Held);
                let readers: SmallVec<[u32; 16]> = readers.map(|cursor| cursor.connection).collect();
                let push =
                    Body::Marks(v1::MarksPush { room: room.as_str().to_owned(), marks: marks.to_vec() });
                self.push_optional(&readers, push);
            }
            FromShard::Left { room, epoch, user, at } => {
                if let (Some(room), Some(user)) =
                    (self.room_ids.get(room.as_str()).copied(), self.user_ids.get(user.as_str()).copied())
                    && self.accepts(now, room, epoch)
                {
                    let Some(entry) = self.rooms.get(room) else { return };
                    let heads_alone = entry.live() == 0 && !entry.passive.is_empty();
                    self.counters.absences_ahead += u64::from(heads_alone && at > entry.applied);
                    if heads_alone && plant::is(Bug::PassiveMissesRemoval) {
                        return;
                    }
                    // It may be said again to a gateway that has lost its owner: who has come back since was admitted
                    // above it (two changes of one member at one head are never both without an event).
                    self.end_cursors(user, room, at.next(), at);
                }
            }
            FromShard::Page { ticket, epoch, page, .. } => self.page(now, ticket, epoch, page),
            FromShard::Moved { slot, ticket, epoch, owner } => self.moved(now, slot, ticket, epoch, owner),
            FromShard::User { user, push } => self.user_push(&user, &push),
            FromShard::LoginsEnded { user } => self.look_at_logins_of(&user),
        }
    }

    /// How far the owner says that a room has come.
    fn head(&mut self, now: Now, room_index: u32, head: Seq, n: u64, last_membership: Seq) {
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        // While interests wait to be stated again, none of them is what this answers.
        if !self.routes.restates(room.slot) {
            room.stated = false;
            room.heard_to = None;
        }
        // Also where the answer that admits somebody comes later: it may be older.
        room.known_head = room.known_head.max(head);
        if !room.admitted {
            return;
        }
        if head == room.applied {
            room.n = n;
        }
        // Who reads nothing but heads needs the events only for what they say of members.
        let membership = last_membership > room.applied && !plant::is(Bug::PassiveMissesRemoval);
        if head > room.applied && room.live() == 0 && !membership {
            room.applied = head;
            room.n = n;
            room.changed_at = now.ms;
            for side in &mut room.sides {
                if let Some(ring) = side.ring.take() {
                    self.rings_bytes -= ring.capacity();
                }
            }
            self.spread(now, room_index);
        }
        self.repair(now, room_index);
    }

    fn user_push(&mut self, user: &UserId, push: &Body) {
        let Some(user) = self.user_ids.get(user.as_str()) else { return };
        let Some(user) = self.users.get(*user) else { return };
        let connections = user.connections.clone();
        self.push_optional(&connections, push.clone());
    }

    /// A push that may be left out for clients that read slowly.
    fn push_optional(&mut self, connections: &[u32], body: Body) {
        let frame = v1::ServerFrame { id: None, body: Some(body) };
        let mut encoded = [Vec::new(), Vec::new()];
        for index in connections {
            let Some(connection) = self.connections.get_mut(*index) else { continue };
            if connection.is_closing() {
                continue;
            }
            if connection.blocked && connection.queued() > QUEUED_SOFT {
                self.counters.pushes_skipped += 1;
                continue;
            }
            let bytes = &mut encoded[side_of(connection.format)];
            if bytes.is_empty() {
                put_server_frame(&mut self.payload, connection.format, &frame, bytes);
            }
            out_of(&mut self.outs, connection).extend_from_slice(bytes);
            self.dirty.mark(*index);
        }
    }

    fn events(&mut self, now: Now, room: &RoomId, epoch: Epoch, events: &[Arc<LoggedEvent>]) {
        let Some(room_index) = self.room_ids.get(room.as_str()).copied() else {
            // That nobody reads it any more was said when there was no way to its owner.
            let slot = self.routes.of_room(room);
            if epoch >= self.routes.epoch(slot) {
                self.tell(slot, ToShard::Uninterest { room: room.clone() });
            }
            return;
        };
        let Some(last) = events.last() else { return };
        if !self.accepts(now, room_index, epoch) {
            return;
        }
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        room.stated = false;
        room.known_head = room.known_head.max(last.seq());
        if !room.admitted {
            return;
        }
        if plant::is(Bug::RemovalAppliedAtReceipt) {
            let applied = room.applied;
            for event in events {
                if let Some(user) = user_gone(event).and_then(|user| self.user_ids.get(user).copied()) {
                    self.end_cursors(user, room_index, event.seq(), applied.min(event.seq()));
                }
            }
        }
        self.apply(now, room_index, events);
        self.repair(now, room_index);
    }

    /// Applies what continues the log, in order. What is known already is skipped, what lies beyond a gap is left.
    pub(super) fn apply(&mut self, now: Now, room_index: u32, events: &[Arc<LoggedEvent>]) {
        let mut applied = false;
        for event in events {
            let Some(room) = self.rooms.get_mut(room_index) else { return };
            if event.seq() != room.applied.next() {
                if !plant::is(Bug::GatewayDeliversOnGap) || event.seq() <= room.applied {
                    continue;
                }
                for side in &mut room.sides {
                    if let Some(ring) = side.ring.take() {
                        self.rings_bytes -= ring.capacity();
                    }
                    for cursor in &mut side.cursors {
                        cursor.next = cursor.next.max(event.seq());
                    }
                }
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
            self.bound_rings();
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
        self.settle_send(key, &room, client_msg_id, event);
    }

    /// Takes the pending send that this event is, if there is one, and puts its reply in the event's place.
    fn settle_send(&mut self, key: Key, room: &RoomId, client_msg_id: &str, event: &LoggedEvent) {
        let index = key.index;
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(flight) = &mut connection.flight else { return };
        let place =
            flight.pending.iter().position(|pending| pending.is_made_by(room, client_msg_id, event.seq()));
        let Some(place) = place else { return };
        let Pending { id, ticket: count, slot, .. } = flight.pending.swap_remove(place);
        self.flight_moved(index);
        self.routes.settled(slot, ticket(key, count));
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
        let client_msg_id = event.event.client_msg_id.as_deref()?;
        let key = self.key_of_origin(event.origin).filter(|key| key.index == index)?;
        let connection = self.connections.get_key_mut(key)?;
        let flight = connection.flight.as_mut()?;
        if self.users.get(connection.user)?.person.user.as_str() != event.event.sender {
            return None;
        }
        let place =
            flight.pending.iter().position(|pending| pending.is_made_by(room, client_msg_id, event.seq()))?;
        let id = flight.pending.swap_remove(place).id;
        self.flight_moved(index);
        Some(sent_frame(id, event))
    }

    /// A removal or leave ends all cursors of that user in the room at this seq.
    fn end_by_event(&mut self, room_index: u32, event: &LoggedEvent) {
        let Some(user) = user_gone(event) else { return };
        let Some(user) = self.user_ids.get(user).copied() else { return };
        self.end_cursors(user, room_index, event.seq(), event.seq());
    }

    /// Ends the cursors of a user that were admitted below a seq; `end` is the last that they get.
    fn end_cursors(&mut self, user: u32, room_index: u32, admitted_below: Seq, end: Seq) {
        let Some(user) = self.users.get(user) else { return };
        for index in user.connections.clone() {
            let Some(connection) = self.connections.get_mut(index) else { continue };
            let Some(room) = self.rooms.get_mut(room_index) else { return };
            match connection.place_in(room_index) {
                Some(Place::Live(place)) => {
                    let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
                    if cursor.admitted < admitted_below {
                        let extra = cursor.extra_mut();
                        extra.end = Some(extra.end.map_or(end, |old| old.min(end)));
                        connection.mark_room(room_index);
                        self.dirty.mark(index);
                    }
                }
                Some(Place::Passive(place)) => {
                    let passive = &mut room.passive[place as usize];
                    if passive.admitted >= admitted_below {
                        continue;
                    }
                    if passive.held {
                        passive.ended = true;
                    } else {
                        self.end_passive(index, room_index);
                    }
                }
                None => {}
            }
        }
    }

    /// No more heads: the user of this connection is no longer a member.
    pub(super) fn end_passive(&mut self, index: u32, room_index: u32) {
        let Some(room) = self.rooms.get(room_index) else { return };
        let room = room.id.as_str().to_owned();
        self.remove_cursor(index, room_index);
        self.push(index, Body::Unsubscribed(not_a_member(room)));
    }

    /// Marks who has something to be sent; sends nothing.
    pub(super) fn spread(&mut self, now: Now, room_index: u32) {
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
                        connection.mark_room(room_index);
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
        self.queue_head(now, room_index);
    }

    /// Some passive reader has not been told the head: that is due, at most once a second a room.
    pub(super) fn queue_head(&mut self, now: Now, room_index: u32) {
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        if !room.passive.is_empty() && !room.heads_queued {
            room.heads_queued = true;
            room.heads_at = room.heads_at.max(now.ms);
            self.heads_at = self.heads_at.min(room.heads_at);
            self.heads.push(room_index);
        }
    }

    /// Tells passive readers how far their rooms have come.
    pub(super) fn push_heads(&mut self, now: Now) {
        let mut rooms = std::mem::take(&mut self.heads);
        self.heads_at = u64::MAX;
        rooms.retain(|room_index| {
            let Some(room) = self.rooms.get_mut(*room_index) else { return false };
            if room.heads_at > now.ms {
                self.heads_at = self.heads_at.min(room.heads_at);
                return true;
            }
            room.heads_queued = false;
            room.heads_at = now.ms + HEADS_MS;
            let body =
                Body::Head(v1::Head { room: room.id.as_str().to_owned(), head: room.applied.0, n: room.n });
            let frame = v1::ServerFrame { id: None, body: Some(body) };
            let mut encoded = [Vec::new(), Vec::new()];
            let behind =
                room.passive.iter_mut().filter(|passive| !passive.held && passive.told < room.applied);
            for passive in behind {
                let Some(connection) = self.connections.get_mut(passive.connection) else { continue };
                if connection.blocked {
                    connection.heads_owed = true;
                    continue;
                }
                passive.told = room.applied;
                let bytes = &mut encoded[side_of(connection.format)];
                if bytes.is_empty() {
                    put_server_frame(&mut self.payload, connection.format, &frame, bytes);
                }
                out_of(&mut self.outs, connection).extend_from_slice(bytes);
                self.dirty.mark(passive.connection);
            }
            false
        });
        self.heads = rooms;
    }

    /// Heads that were left out while the socket was full.
    pub(super) fn queue_owed_heads(&mut self, now: Now, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if !std::mem::take(&mut connection.heads_owed) {
            return;
        }
        let rooms = connection.rooms.iter().filter(|reference| {
            let Place::Passive(place) = reference.place else { return false };
            let Some(room) = self.rooms.get(reference.room) else { return false };
            room.passive[place as usize].told < room.applied
        });
        let rooms: SmallVec<[u32; 8]> = rooms.map(|reference| reference.room).collect();
        for room_index in rooms {
            self.queue_head(now, room_index);
        }
    }

    /// Nobody reads this room any more: it is given up a little later.
    pub(super) fn note_unused(&mut self, since: u64, room_index: u32) {
        let Some(room) = self.rooms.get_mut(room_index).filter(|room| room.is_unused()) else { return };
        room.unused_at = since;
        if !room.unused_queued {
            room.unused_queued = true;
            self.unused.push(room_index);
        }
    }

    /// Gives up rooms that nobody has read for a while.
    pub(super) fn drop_unused(&mut self, now: Now, after_ms: u64) {
        let mut unused = std::mem::take(&mut self.unused);
        unused.retain(|room_index| {
            let Some(room) = self.rooms.get_mut(*room_index) else { return false };
            if !room.is_unused() {
                room.unused_queued = false;
                return false;
            }
            if room.unused_at + after_ms > now.ms || room.queued || room.heads_queued || room.repair.is_some()
            {
                return true;
            }
            self.drop_room(*room_index);
            false
        });
        self.unused = unused;
    }

    pub(super) fn drop_room(&mut self, room_index: u32) {
        let Some(room) = self.rooms.remove(room_index) else { return };
        for ring in room.sides.iter().filter_map(|side| side.ring.as_ref()) {
            self.rings_bytes -= ring.capacity();
        }
        // It may stand in `ringed` still: whoever looks there finds no ring.
        self.room_ids.remove(room.id.as_str());
        if let Some(moved) = self.routes.remove_room(room.slot, room.slot_place)
            && let Some(moved) = self.rooms.get_mut(moved)
        {
            moved.slot_place = room.slot_place;
        }
        self.tell(room.slot, ToShard::Uninterest { room: room.id });
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

    /// The largest rings go first, whole, until all fit: who stands at head does not notice.
    pub(super) fn bound_rings(&mut self) {
        if self.rings_bytes <= self.options.rings_bytes {
            return;
        }
        // A little more than must be, so that it is not done again for the next event.
        let target = self.options.rings_bytes - self.options.rings_bytes / 8;
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
            if self.rings_bytes <= target {
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

/// Who this event takes out of the room.
pub(super) fn user_gone(event: &LoggedEvent) -> Option<&str> {
    match &event.event.kind {
        Some(Kind::Removed(removed)) => Some(&removed.user),
        Some(Kind::Left(left)) => Some(&left.user),
        _ => None,
    }
}

/// What who has left or was removed is told when nothing more will come.
pub(super) fn not_a_member(room: String) -> v1::Unsubscribed {
    v1::Unsubscribed {
        room,
        code: Code::NotAMember.number(),
        reason: "you are no longer a member of this room".to_owned(),
    }
}
