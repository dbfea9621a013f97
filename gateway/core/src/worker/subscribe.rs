//! `subscribe`: one reply for many rooms, each admitted by its owner; who is late is finished by a push.

use banyan_proto::codes::Code;
use banyan_proto::id::Seq;
use banyan_proto::link::{Admission, Answer, RoomCall, RoomCommand, ToShard};
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;

use super::commands::mark_room;
use super::{Now, Worker, ticket};
use crate::command::SubscribeTo;
use crate::connection::{Place, RoomRef, Subscribing, What};
use crate::room::{Cursor, CursorState, Room, side_of};
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
        let held = self.connections.get(index).map_or(0, |connection| connection.rooms.len());
        let free = self.options.subscriptions.saturating_sub(held);
        let count = asked.len();
        let rooms: Vec<_> = asked.iter().map(|item| item.room.clone()).collect();
        let subscribing =
            Box::new(Subscribing { asked, answered: vec![None; count], left: count, replied: false });
        let Some(first) = self.owe(now, index, id, What::Subscribe(subscribing), count as u32) else {
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
                let message =
                    format!("more than {} subscriptions of one connection", self.options.subscriptions);
                self.answer(now, at, Answer::Error(Box::new(Code::LimitExceeded.error(message))));
                continue;
            }
            let known = match known {
                Some(known) => known,
                None => {
                    let Some(key) = self.rooms.insert(Room::new(room.clone(), now.ms)) else {
                        self.answer(
                            now,
                            at,
                            Answer::Error(Box::new(Code::Overloaded.error("too many rooms here"))),
                        );
                        continue;
                    };
                    self.room_ids.insert(room.clone(), key.index);
                    key.index
                }
            };
            if let Some(entry) = self.rooms.get_mut(known) {
                entry.awaited += 1;
            }
            let call =
                RoomCall { ticket: at, caller: person.clone(), origin, command: RoomCommand::Subscribe };
            let message = ToShard::Room { room: room.clone(), call: Box::new(call) };
            self.tell_owner(&room, message);
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
        // Refused here before it was asked: the room may not be known.
        let known = self.room_ids.get(asked.room.as_str()).copied();
        if let Some(room) = known.and_then(|known| self.rooms.get_mut(known)) {
            room.awaited = room.awaited.saturating_sub(1);
        }
        let result = match answer {
            Answer::Admitted(admission) => self.admit(now, index, &asked, *admission),
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
            self.push(index, Body::Subscribed(result));
            self.release_cursor(now, index, asked.room.as_str());
            return;
        }
        subscribing.answered[item] = Some(result);
        if done {
            let What::Subscribe(subscribing) = flight.pending.swap_remove(place).what else { return };
            self.flight_moved(index);
            self.reply_subscribed(now, index, id, *subscribing);
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
            let snapshot = Subscribing {
                asked: subscribing.asked.clone(),
                answered: subscribing.answered.clone(),
                left: subscribing.left,
                replied: true,
            };
            self.reply_subscribed(now, index, id, snapshot);
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
                Answer::Error(Box::new(Code::Unavailable.error("the room's owner does not answer"))),
            );
        }
    }

    fn reply_subscribed(&mut self, now: Now, index: u32, id: u64, subscribing: Subscribing) {
        let rooms = subscribing
            .answered
            .into_iter()
            .zip(&subscribing.asked)
            .map(|(answered, asked)| {
                answered.unwrap_or_else(|| v1::SubscribedRoom {
                    room: asked.room.as_str().to_owned(),
                    pending: Some(true),
                    ..v1::SubscribedRoom::default()
                })
            })
            .collect();
        self.reply(index, id, Body::Subscribe(v1::SubscribeReply { rooms }));
        for asked in &subscribing.asked {
            self.release_cursor(now, index, asked.room.as_str());
        }
    }

    /// Sets the cursor, held until the reply is queued.
    fn admit(
        &mut self,
        now: Now,
        index: u32,
        asked: &SubscribeTo,
        admission: Admission,
    ) -> v1::SubscribedRoom {
        let Some(room_index) = self.room_ids.get(asked.room.as_str()).copied() else {
            return failed(asked, Code::Internal.error("the room was dropped while its owner answered"));
        };
        self.remove_cursor(index, room_index);
        let beginning = Beginning::new(asked.start, &admission);
        let Some(connection) = self.connections.get_mut(index) else { return v1::SubscribedRoom::default() };
        let Some(room) = self.rooms.get_mut(room_index) else { return v1::SubscribedRoom::default() };
        if admission.epoch > room.epoch {
            room.epoch = admission.epoch;
        }
        if !room.admitted {
            room.admitted = true;
            room.applied = admission.head;
            room.n = admission.n;
        }
        room.known_head = room.known_head.max(admission.head);
        let place = if asked.mode == v1::Mode::Passive {
            room.passive.push(index);
            Place::Passive(room.passive.len() as u32 - 1)
        } else {
            let side = &mut room.sides[side_of(connection.format)];
            let mut cursor =
                Cursor { next: beginning.from, connection: index, state: CursorState::Held, extra: None };
            if admission.end.is_some() || !admission.out.is_empty() {
                let extra = cursor.extra_mut();
                extra.end = admission.end;
                extra.out = admission.out.into_iter().filter(|(_, last)| *last >= beginning.from).collect();
            }
            side.cursors.push(cursor);
            Place::Live(side.cursors.len() as u32 - 1)
        };
        connection.rooms.push(RoomRef { room: room_index, place });
        if room.known_head > room.applied {
            self.repair(now, room_index);
        }
        v1::SubscribedRoom {
            room: asked.room.as_str().to_owned(),
            log: admission.log.to_string(),
            head: admission.head.0,
            n: admission.n,
            from: if asked.mode == v1::Mode::Passive { admission.head.0 + 1 } else { beginning.from.0 },
            role: admission.role.into(),
            delivered: admission.delivered.0,
            seen: admission.seen.0,
            seen_n: admission.seen_n,
            gap: beginning.gap.filter(|_| asked.mode != v1::Mode::Passive),
            reset: beginning.reset.then_some(true),
            pending: None,
            error: None,
        }
    }

    /// The reply is queued: from now on the cursor may speak.
    fn release_cursor(&mut self, now: Now, index: u32, room: &str) {
        let Some(room_index) = self.room_ids.get(room).copied() else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return };
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
        if cursor.state != CursorState::Held {
            return;
        }
        cursor.state = CursorState::Live;
        let ended = cursor.end().is_some_and(|end| end < cursor.next);
        if cursor.next <= room.applied || ended {
            mark_room(connection, room_index);
            self.dirty.mark(index);
        }
        let _ = now;
    }

    /// Takes a connection's cursor out of a room, if it has one.
    pub(super) fn remove_cursor(&mut self, index: u32, room_index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(at) = connection.rooms.iter().position(|reference| reference.room == room_index) else {
            return;
        };
        let reference = connection.rooms.swap_remove(at);
        connection.dirty_rooms.retain(|room| *room != room_index);
        let format = connection.format;
        let Some(room) = self.rooms.get_mut(room_index) else { return };
        let moved = match reference.place {
            Place::Live(place) => {
                let cursors = &mut room.sides[side_of(format)].cursors;
                let gone = cursors.swap_remove(place as usize);
                if gone.state == CursorState::Reading {
                    connection.reading -= 1;
                }
                // Replies that stood in the places of events not reached yet are said now.
                if let Some(extra) = gone.extra
                    && !connection.is_closing()
                {
                    for (_, reply) in extra.replies {
                        super::out_of(connection).extend_from_slice(&reply);
                        self.dirty.mark(index);
                    }
                }
                // Whoever took its place may have been passed over by a pass under way.
                room.pass.head = Seq(0);
                cursors.get(place as usize).map(|cursor| cursor.connection)
            }
            Place::Passive(place) => {
                room.passive.swap_remove(place as usize);
                room.passive.get(place as usize).copied()
            }
        };
        if let Some(moved) = moved
            && let Some(other) = self.connections.get_mut(moved)
            && let Some(entry) = other.rooms.iter_mut().find(|entry| entry.room == room_index)
        {
            entry.place = reference.place;
        }
        let since = self.housekeeping_at;
        if self.rooms.get(room_index).is_some_and(|room| room.is_unused()) {
            self.unused.push((room_index, since));
        }
    }

    /// A room without readers is given up a little later.
    fn check_unused(&mut self, now: Now, room_index: u32) {
        if self.rooms.get(room_index).is_some_and(|room| room.is_unused()) {
            self.unused.push((room_index, now.ms));
        }
    }

    /// The connection is going: owners may still answer, nobody listens.
    pub(super) fn abandon_flight(&mut self, index: u32) {
        let Some(flight) = self.connections.get_mut(index).and_then(|connection| connection.flight.take())
        else {
            return;
        };
        for pending in flight.pending {
            let What::Subscribe(subscribing) = pending.what else { continue };
            for (asked, answered) in subscribing.asked.iter().zip(&subscribing.answered) {
                if answered.is_none()
                    && let Some(room_index) = self.room_ids.get(asked.room.as_str()).copied()
                    && let Some(room) = self.rooms.get_mut(room_index)
                {
                    room.awaited = room.awaited.saturating_sub(1);
                    if room.is_unused() {
                        self.unused.push((room_index, self.housekeeping_at));
                    }
                }
            }
        }
    }
}

fn failed(asked: &SubscribeTo, error: v1::Error) -> v1::SubscribedRoom {
    v1::SubscribedRoom {
        room: asked.room.as_str().to_owned(),
        error: Some(error),
        ..v1::SubscribedRoom::default()
    }
}
