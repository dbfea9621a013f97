//! `subscribe`: one reply for many rooms, each admitted by its owner; who is late is finished by a push.

use banyan_proto::codes::Code;
use banyan_proto::id::{Epoch, RoomId, Seq};
use banyan_proto::link::{Admission, Answer, RoomCall, RoomCommand, ToShard};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;

use super::{Now, Worker, out_of, ticket};
use crate::command::SubscribeTo;
use crate::connection::{Place, Subscribing, What};
use crate::room::{Cursor, CursorState, Passive, PullState, Room, side_of};
use crate::start::Beginning;

/// A room whose owner has not answered by then is `pending` in the reply.
pub(super) const REPLY_AFTER_MS: u64 = 500;
/// A room whose owner has not answered by then is given up with an error.
pub(super) const GIVE_UP_MS: u64 = 15_000;

impl Worker {
    pub(super) fn subscribe(&mut self, now: Now, index: u32, id: u64, asked: Vec<SubscribeTo>) {
        let Some(person) = self.person(index) else { return };
        let Some(key) = self.connections.key_of(index) else { return };
        if asked.is_empty() {
            self.reply(index, id, Body::Subscribe(v1::SubscribeReply::default()));
            return;
        }
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.flight.as_ref().is_some_and(|flight| flight.unfinished() >= self.options.in_flight) {
            let message = "rooms of too many earlier subscribes are still pending";
            self.reply_code(index, id, Code::LimitExceeded, message);
            return;
        }
        let held = connection.rooms.len() + connection.awaited as usize;
        let free = self.options.subscriptions.saturating_sub(held);
        let count = asked.len();
        let rooms: Vec<_> = asked.iter().map(|item| item.room.clone()).collect();
        let mut fresh = 0;
        let counted: Vec<bool> = rooms
            .iter()
            .map(|room| {
                let known = self.room_ids.get(room.as_str());
                let new = known.is_none_or(|known| connection.place_in(*known).is_none());
                fresh += usize::from(new);
                new && fresh <= free
            })
            .collect();
        let refused = fresh.saturating_sub(free);
        connection.awaited += (fresh - refused) as u32;
        let subscribing = Box::new(Subscribing {
            asked,
            answered: vec![None; count],
            fresh: counted,
            cancelled: Vec::new(),
            left: count,
            replied: false,
        });
        let Some(first) = self.owe(now, index, id, 0, What::Subscribe(subscribing), count as u32) else {
            return;
        };
        let first = first.0 as u32;
        let origin = self.origin_of(key);
        let mut fresh = 0;
        for (item, room) in rooms.into_iter().enumerate() {
            let at = ticket(key, first.wrapping_add(item as u32));
            let known = self.room_ids.get(room.as_str()).copied();
            let has = known.is_some_and(|known| {
                self.connections.get(index).is_some_and(|connection| connection.place_in(known).is_some())
            });
            fresh += usize::from(!has);
            if !has && fresh > free {
                // It is answered as if its owner had been asked.
                if let Some(entry) = known.and_then(|known| self.rooms.get_mut(known)) {
                    entry.awaited += 1;
                }
                let message =
                    format!("more than {} subscriptions of one connection", self.options.subscriptions);
                self.answer(now, at, Epoch(0), Answer::Error(Box::new(Code::LimitExceeded.error(message))));
                continue;
            }
            let known = match known {
                Some(known) => known,
                None => {
                    let slot = self.routes.of_room(&room);
                    let entry = Room::new(room.clone(), slot, self.routes.epoch(slot), now.ms);
                    let Some(key) = self.rooms.insert(entry) else {
                        self.answer(
                            now,
                            at,
                            Epoch(0),
                            Answer::Error(Box::new(Code::Overloaded.error("too many rooms here"))),
                        );
                        continue;
                    };
                    let place = self.routes.add_room(slot, key.index);
                    if let Some(entry) = self.rooms.get_mut(key.index) {
                        entry.slot_place = place;
                    }
                    self.room_ids.insert(room.clone(), key.index);
                    key.index
                }
            };
            let Some(entry) = self.rooms.get_mut(known) else { continue };
            entry.awaited += 1;
            let slot = entry.slot;
            let call =
                RoomCall { ticket: at, caller: person.clone(), origin, command: RoomCommand::Subscribe };
            self.hand(now, slot, at, ToShard::Room { room, call: Box::new(call) });
        }
        self.arm_at(now, index, now.ms + REPLY_AFTER_MS);
    }

    /// The owner of item `item` of the pending command at `place` has answered.
    pub(super) fn subscribe_answered(
        &mut self,
        now: Now,
        index: u32,
        place: usize,
        item: usize,
        answer: Answer,
    ) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(flight) = &mut connection.flight else { return };
        let What::Subscribe(subscribing) = &mut flight.pending[place].what else { return };
        if subscribing.answered[item].is_some() {
            return;
        }
        let asked = subscribing.asked[item].clone();
        let replied = subscribing.replied;
        let cancelled = subscribing.cancelled.get(item).copied().unwrap_or(false);
        connection.awaited -= u32::from(subscribing.fresh[item]);
        // Refused here before it was asked: the room may not be known.
        let known = self.room_ids.get(asked.room.as_str()).copied();
        if let Some(room) = known.and_then(|known| self.rooms.get_mut(known)) {
            room.awaited = room.awaited.saturating_sub(1);
        }
        let result = match answer {
            Answer::Admitted(admission) => self.admit(now, index, &asked, &admission, cancelled),
            Answer::Error(error) => failed(&asked, *error),
            _ => failed(&asked, Code::Internal.error("the owner gave another answer than was asked for")),
        };
        if let Some(known) = known {
            self.check_unused(now, known);
        }
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(flight) = &mut connection.flight else { return };
        let pending = &mut flight.pending[place];
        let id = pending.id;
        let What::Subscribe(subscribing) = &mut pending.what else { return };
        subscribing.left -= 1;
        let done = subscribing.left == 0;
        if replied {
            subscribing.answered[item] = Some(v1::SubscribedRoom::default());
            if done {
                flight.pending.swap_remove(place);
                self.flight_moved(index);
            }
            // Who has unsubscribed meanwhile does not wait for it any more.
            if !cancelled {
                self.push(index, Body::Subscribed(result));
                self.release_cursor(now, index, asked.room.as_str());
            }
            return;
        }
        subscribing.answered[item] = Some(result);
        if done {
            let What::Subscribe(subscribing) = flight.pending.swap_remove(place).what else { return };
            self.flight_moved(index);
            let Subscribing { asked, answered, .. } = *subscribing;
            self.reply_subscribed(now, index, id, &asked, answered);
        }
    }

    /// 0.5 s have passed: whoever is missing is pending.
    pub(super) fn subscribe_overdue(&mut self, now: Now, index: u32) {
        loop {
            let Some(connection) = self.connections.get_mut(index) else { return };
            let Some(flight) = &mut connection.flight else { return };
            let overdue = flight.pending.iter_mut().find_map(|pending| {
                let What::Subscribe(subscribing) = &mut pending.what else { return None };
                let due = !subscribing.replied && pending.since + REPLY_AFTER_MS <= now.ms;
                due.then_some((pending.id, subscribing))
            });
            let Some((id, subscribing)) = overdue else { return };
            subscribing.replied = true;
            // What is answered goes out now; what is not keeps its place.
            let (asked, answered) = (subscribing.asked.clone(), subscribing.answered.clone());
            self.reply_subscribed(now, index, id, &asked, answered);
        }
    }

    /// Rooms that have not answered for long are given up.
    pub(super) fn subscribe_given_up(&mut self, now: Now, index: u32) {
        let Some(key) = self.connections.key_of(index) else { return };
        let Some(connection) = self.connections.get(index) else { return };
        let Some(flight) = &connection.flight else { return };
        let mut late = Vec::new();
        for pending in &flight.pending {
            if let What::Subscribe(subscribing) = &pending.what
                && pending.since + GIVE_UP_MS <= now.ms
            {
                let missing = (0u32..).zip(&subscribing.answered).filter(|(_, answered)| answered.is_none());
                late.extend(missing.map(|(item, _)| ticket(key, pending.ticket.wrapping_add(item))));
            }
        }
        for at in late {
            self.answer(
                now,
                at,
                Epoch(0),
                Answer::Error(Box::new(Code::Unavailable.error("the room's owner does not answer"))),
            );
        }
    }

    fn reply_subscribed(
        &mut self,
        now: Now,
        index: u32,
        id: u64,
        asked: &[SubscribeTo],
        answered: Vec<Option<v1::SubscribedRoom>>,
    ) {
        let rooms = answered
            .into_iter()
            .zip(asked)
            .map(|(answered, asked)| {
                answered.unwrap_or_else(|| v1::SubscribedRoom {
                    room: asked.room.as_str().to_owned(),
                    pending: Some(true),
                    ..v1::SubscribedRoom::default()
                })
            })
            .collect();
        self.reply(index, id, Body::Subscribe(v1::SubscribeReply { rooms }));
        for asked in asked {
            self.release_cursor(now, index, asked.room.as_str());
        }
    }

    /// Sets the cursor, held until the reply is queued.
    fn admit(
        &mut self,
        now: Now,
        index: u32,
        asked: &SubscribeTo,
        admission: &Admission,
        cancelled: bool,
    ) -> v1::SubscribedRoom {
        let Some(room_index) = self.room_ids.get(asked.room.as_str()).copied() else {
            return failed(asked, Code::Internal.error("the room was dropped while its owner answered"));
        };
        let Some(room) = self.rooms.get_mut(room_index) else { return v1::SubscribedRoom::default() };
        if admission.epoch < room.epoch && !plant::is(Bug::GatewayIgnoresEpoch) {
            return failed(asked, Code::Unavailable.error("the room's owner has changed; subscribe again"));
        }
        room.stated = false;
        // Who has left may be told of an older head than the room's: it begins no reading of the room here.
        if admission.end.is_none() && !room.admitted {
            room.admitted = true;
            room.heard_to = None;
            room.applied = admission.head;
            room.n = admission.n;
        }
        // What is read here may have stopped below (a room that nobody read while its owner changed).
        room.known_head = room.known_head.max(admission.head);
        let beginning = Beginning::new(asked.start, admission);
        let passive = asked.mode == v1::Mode::Passive;
        if !cancelled {
            let next = if passive { admission.head.next() } else { beginning.from };
            self.place_cursor(index, room_index, passive, next, admission);
        }
        self.repair(now, room_index);
        v1::SubscribedRoom {
            room: asked.room.as_str().to_owned(),
            log: admission.log.to_string(),
            head: admission.head.0,
            n: admission.n,
            from: if passive { admission.head.0 + 1 } else { beginning.from.0 },
            role: admission.role.into(),
            delivered: admission.delivered.0,
            seen: admission.seen.0,
            seen_n: admission.seen_n,
            gap: beginning.gap.filter(|_| !passive),
            reset: beginning.reset.then_some(true),
            pending: None,
            error: None,
        }
    }

    /// Puts a cursor in the place of an earlier one.
    fn place_cursor(&mut self, index: u32, room_index: u32, passive: bool, next: Seq, admission: &Admission) {
        // Replies that wait for their places wait on, if the new cursor comes by there.
        let mut replies = self.take_replies(index, room_index);
        self.remove_cursor(index, room_index);
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        // A passive reader that has left is a live one that stands at its end already.
        if passive && admission.end.is_none() {
            let (admitted, told) = (admission.head, admission.head);
            room.passive.push(Passive { admitted, told, connection: index, held: true, ended: false });
            connection.put_place(room_index, Place::Passive(room.passive.len() as u32 - 1));
        } else {
            let mut cursor = Cursor {
                next,
                admitted: admission.head,
                connection: index,
                state: CursorState::Held,
                extra: None,
            };
            let mut out = admission.out.iter().copied().filter(|(_, last)| *last >= next).peekable();
            if admission.end.is_some() || out.peek().is_some() {
                let extra = cursor.extra_mut();
                extra.end = admission.end;
                extra.out = out.collect();
            }
            if replies.iter().any(|(seq, _)| *seq >= next) {
                cursor.extra_mut().replies = replies.extract_if(.., |(seq, _)| *seq >= next).collect();
            }
            let cursors = &mut room.sides[side_of(connection.format)].cursors;
            cursors.push(cursor);
            connection.put_place(room_index, Place::Live(cursors.len() as u32 - 1));
        }
        self.put_replies(index, replies);
    }

    /// Says replies that have no place any more.
    pub(super) fn put_replies(&mut self, index: u32, replies: Vec<(Seq, Box<[u8]>)>) {
        if replies.is_empty() {
            return;
        }
        let Some(connection) = self.connections.get_mut(index).filter(|of| !of.is_closing()) else { return };
        for (_, reply) in replies {
            out_of(&mut self.outs, connection).extend_from_slice(&reply);
        }
        self.dirty.mark(index);
    }

    pub(super) fn take_replies(&mut self, index: u32, room_index: u32) -> Vec<(Seq, Box<[u8]>)> {
        let Some(connection) = self.connections.get(index) else { return Vec::new() };
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return Vec::new() };
        let Some(room) = self.rooms.get_mut(room_index) else { return Vec::new() };
        let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
        cursor.extra.as_mut().map(|extra| std::mem::take(&mut extra.replies)).unwrap_or_default()
    }

    /// The reply is queued: from now on the cursor may speak.
    fn release_cursor(&mut self, now: Now, index: u32, room: &str) {
        let Some(room_index) = self.room_ids.get(room).copied() else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(place) = connection.place_in(room_index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        match place {
            Place::Passive(place) => {
                let passive = &mut room.passive[place as usize];
                passive.held = false;
                if passive.ended {
                    self.end_passive(index, room_index);
                } else if passive.told < room.applied {
                    self.queue_head(now, room_index);
                }
            }
            Place::Live(place) => {
                let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
                if cursor.state != CursorState::Held {
                    return;
                }
                cursor.state = CursorState::Live;
                let ended = cursor.end().is_some_and(|end| end < cursor.next);
                if cursor.next <= room.applied || ended {
                    connection.mark_room(room_index);
                    self.dirty.mark(index);
                } else if cursor.end().is_some() && !room.admitted {
                    // Nobody here may read the live room: what was theirs lies in the log.
                    self.begin_reading(now, index, room_index);
                }
            }
        }
    }

    /// Takes a connection's cursor out of a room, if it has one.
    pub(super) fn remove_cursor(&mut self, index: u32, room_index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(place) = connection.take_place(room_index) else { return };
        connection.dirty_rooms.retain(|room| *room != room_index);
        let format = connection.format;
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let mut replies = Vec::new();
        let moved = match place {
            Place::Live(place) => {
                let cursors = &mut room.sides[side_of(format)].cursors;
                let gone = cursors.swap_remove(place as usize);
                connection.reading -= u32::from(gone.state == CursorState::Reading);
                if let Some(extra) = gone.extra {
                    connection.pulling -= u32::from(extra.pull != PullState::None);
                    replies = extra.replies;
                }
                // Whoever took its place may have been passed over by a pass under way.
                room.pass.head = Seq(0);
                cursors.get(place as usize).map(|cursor| cursor.connection)
            }
            Place::Passive(place) => {
                room.passive.swap_remove(place as usize);
                room.passive.get(place as usize).map(|passive| passive.connection)
            }
        };
        if let Some(moved) = moved
            && let Some(other) = self.connections.get_mut(moved)
        {
            other.put_place(room_index, place);
        }
        // Replies that stood in the places of events not reached yet are said now.
        self.put_replies(index, replies);
        self.note_unused(self.housekeeping_at, room_index);
    }

    /// A room without readers is given up a little later; one that nobody was ever admitted to, at once.
    fn check_unused(&mut self, now: Now, room_index: u32) {
        self.note_unused(now.ms, room_index);
        let unused = |room: &Room| room.is_unused() && !room.admitted;
        if self.rooms.get(room_index).is_some_and(unused) {
            self.drop_room(room_index);
        }
    }

    /// What is awaited of a room goes to nobody: the client has unsubscribed meanwhile.
    pub(super) fn cancel_subscribes(&mut self, index: u32, room: &RoomId) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(flight) = &mut connection.flight else { return };
        for pending in &mut flight.pending {
            let What::Subscribe(subscribing) = &mut pending.what else { continue };
            for item in 0..subscribing.asked.len() {
                if subscribing.asked[item].room == *room && subscribing.answered[item].is_none() {
                    subscribing.cancelled.resize(subscribing.asked.len(), false);
                    subscribing.cancelled[item] = true;
                }
            }
        }
    }

    /// The connection is going: owners may still answer, nobody listens.
    pub(super) fn abandon_flight(&mut self, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.awaited = 0;
        let Some(mut flight) = connection.flight.take() else { return };
        for pending in flight.pending.drain(..) {
            let What::Subscribe(subscribing) = pending.what else { continue };
            for (asked, answered) in subscribing.asked.iter().zip(&subscribing.answered) {
                if answered.is_none()
                    && let Some(room_index) = self.room_ids.get(asked.room.as_str()).copied()
                    && let Some(room) = self.rooms.get_mut(room_index)
                {
                    room.awaited = room.awaited.saturating_sub(1);
                    self.note_unused(self.housekeeping_at, room_index);
                }
            }
        }
        self.flights.put(flight);
    }
}

fn failed(asked: &SubscribeTo, error: v1::Error) -> v1::SubscribedRoom {
    v1::SubscribedRoom {
        room: asked.room.as_str().to_owned(),
        error: Some(error),
        ..v1::SubscribedRoom::default()
    }
}
