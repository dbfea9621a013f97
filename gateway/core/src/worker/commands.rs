//! Commands of clients: from the frame to its reply.

use banyan_proto::codes::{Close, Code, Verdict};
use banyan_proto::frame::Bad;
use banyan_proto::id::{Epoch, RoomId, Seq};
use banyan_proto::link::{Answer, RoomCall, RoomCommand, Ticket, ToShard};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use banyan_proto::v1::server_frame::Body;

use super::{
    Effect, HEAVY_MAX, Identity, Login, Now, QUEUED_HARD, QUEUED_SOFT, User, Worker, flight_of, out_of,
    put_server_frame, split_ticket, ticket,
};
use smallvec::SmallVec;

use crate::command::{self, Checked};
use crate::connection::{Flight, NOBODY, Pending, Phase, Place, Waiting, What};
use crate::packed_send::PackedSend;
use crate::room::{CursorState, side_of};
use crate::slab::Key;

/// Refused commands in a row after which the connection is not read for a while.
const REFUSED_MAX: u32 = 64;

impl Worker {
    /// One frame of a client, parsed or not.
    pub(super) fn frame(&mut self, now: Now, index: u32, parsed: Result<(u64, Command), Bad>) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.is_closing() {
            return;
        }
        self.counters.commands += 1;
        let (id, parsed) = match parsed {
            Ok((id, command)) => (id, Ok(command)),
            Err(Bad::Command { id, code, message }) => (id, Err(code.error(message))),
            Err(Bad::Frame(message)) => {
                self.close(now, index, Close::BadFrame, &message);
                return;
            }
        };
        if connection.flight.as_ref().is_some_and(|flight| flight.has(id)) {
            self.reply_code(index, id, Code::BadRequest, format!("id {id} is still in flight"));
            return;
        }
        if connection.flight.as_ref().map_or(0, |flight| flight.len()) >= self.options.in_flight {
            let flight = flight_of(&mut self.flights, connection);
            flight.refused += 1;
            let pause = flight.refused.is_multiple_of(REFUSED_MAX);
            self.counters.in_flight_refused += 1;
            let message = format!("{} commands are in flight; wait for a reply", self.options.in_flight);
            self.reply_code(index, id, Code::LimitExceeded, message);
            if pause {
                self.pause(now, index);
            }
            return;
        }
        if let Some(flight) = &mut connection.flight {
            flight.refused = 0;
        }
        let phase = connection.phase;
        let checked = match parsed {
            // Before `auth` nothing else is told apart.
            Err(_) if phase == Phase::New => Err(Code::Unauthenticated.error("send `auth` first")),
            Err(error) => Err(error),
            Ok(Command::Auth(_)) if phase != Phase::New => {
                Err(Code::BadRequest.error("this connection is authenticated already; open another one"))
            }
            Ok(command) if phase == Phase::New && !matches!(command, Command::Auth(_)) => {
                Err(Code::Unauthenticated.error("send `auth` first"))
            }
            Ok(command) if phase == Phase::Checking => {
                flight_of(&mut self.flights, connection).waiting.push_back((id, Waiting::Unchecked(command)));
                return;
            }
            Ok(command) => Ok(command),
        };
        match checked {
            Err(error) => self.reply_error(index, id, error),
            Ok(command) => self.check(now, index, id, command),
        }
    }

    fn check(&mut self, now: Now, index: u32, id: u64, command: Command) {
        let caller = self.person(index);
        let caller = caller.as_ref().map_or(&self.nobody, |person| &person.user);
        match command::check(command, &self.options.command, caller) {
            Err(error) => {
                let no_token = self.connections.get(index).is_some_and(|of| of.phase == Phase::New);
                self.reply_error(index, id, error);
                if no_token {
                    self.counters.auth_failures += 1;
                    self.close(now, index, Close::BadToken, "the token does not hold");
                }
            }
            Ok(checked) => self.dispatch(now, index, id, checked),
        }
    }

    /// Carries out what can be done here and sends the rest on its way.
    fn dispatch(&mut self, now: Now, index: u32, id: u64, checked: Checked) {
        let Some(key) = self.connections.key_of(index) else { return };
        match checked {
            Checked::Auth { token, client } => {
                self.set_phase(now, index, Phase::Checking);
                self.owe(now, index, id, 0, What::Auth, 1);
                self.effects.push(Effect::Authenticate { connection: key, token, client });
            }
            Checked::Refresh { token } => {
                // The answer to a token carries no id.
                let checking = |flight: &Flight| {
                    flight.pending.iter().any(|pending| matches!(pending.what, What::Refresh))
                };
                let connection = self.connections.get(index);
                if connection.and_then(|of| of.flight.as_deref()).is_some_and(checking) {
                    self.reply_code(index, id, Code::LimitExceeded, "another `refresh` is in flight");
                    return;
                }
                self.owe(now, index, id, 0, What::Refresh, 1);
                self.effects.push(Effect::Authenticate { connection: key, token, client: None });
            }
            Checked::Subscribe(rooms) => self.subscribe(now, index, id, rooms),
            Checked::Unsubscribe(rooms) => {
                for room in rooms {
                    self.cancel_subscribes(index, &room);
                    if let Some(room) = self.room_ids.get(room.as_str()).copied() {
                        self.remove_cursor(index, room);
                    }
                }
                self.reply(index, id, Body::Unsubscribe(v1::Empty {}));
            }
            Checked::Ping => {
                self.reply(index, id, Body::Ping(v1::PingReply { server_time: now.unix.0 }));
            }
            Checked::Room { room, command } => self.room_command(now, index, id, room, command),
            command @ (Checked::Create(_)
            | Checked::Add { .. }
            | Checked::Rooms { .. }
            | Checked::FindUser { .. }) => {
                let Some(person) = self.person(index) else { return };
                self.owe(now, index, id, 0, What::Backend, 1);
                self.effects.push(Effect::Backend { connection: key, id, person, command });
            }
        }
    }

    fn room_command(&mut self, now: Now, index: u32, id: u64, room: RoomId, command: RoomCommand) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Some(user) = self.users.get(connection.user) else { return };
        let caller = user.person.clone();
        let what = match &command {
            RoomCommand::Send(send) => {
                if let Err(retry_after_ms) = self.options.sends.take(caller.user.as_str(), now.ms) {
                    self.counters.rate_limited += 1;
                    let message = "sends come too fast; see limits.sends_per_s".to_owned();
                    let error = Code::TooManyRequests.error_retry_after(message, retry_after_ms);
                    self.reply_error(index, id, error);
                    return;
                }
                let known = self.room_ids.get(room.as_str()).and_then(|known| self.rooms.get(*known));
                What::Send {
                    room: room.clone(),
                    send: PackedSend::new(send),
                    above: known.map_or(Seq(0), |room| room.known_head),
                }
            }
            RoomCommand::History { .. } | RoomCommand::Members { .. } => {
                let busy = flight_of(&mut self.flights, connection)
                    .pending
                    .iter()
                    .filter(|pending| matches!(pending.what, What::Room { heavy: true, .. }))
                    .count();
                if busy >= HEAVY_MAX || connection.queued() > QUEUED_SOFT {
                    flight_of(&mut self.flights, connection)
                        .waiting
                        .push_back((id, Waiting::Checked(Checked::Room { room, command })));
                    return;
                }
                What::Room { heavy: true, room: room.clone(), command: Box::new(command.clone()) }
            }
            _ => What::Room { heavy: false, room: room.clone(), command: Box::new(command.clone()) },
        };
        let slot = self.routes.of_room(&room);
        let Some(ticket) = self.owe(now, index, id, slot, what, 1) else { return };
        let Some(key) = self.connections.key_of(index) else { return };
        let call = Box::new(RoomCall { ticket, caller, origin: self.origin_of(key), command });
        self.hand(now, slot, ticket, ToShard::Room { room, call });
    }

    /// Notes a reply that is owed; takes `tickets` tickets and gives the first.
    pub(super) fn owe(
        &mut self,
        now: Now,
        index: u32,
        id: u64,
        slot: u16,
        what: What,
        tickets: u32,
    ) -> Option<Ticket> {
        let key = self.connections.key_of(index)?;
        let connection = self.connections.get_mut(index)?;
        let first = connection.tickets;
        connection.tickets = first.wrapping_add(tickets);
        flight_of(&mut self.flights, connection).pending.push(Pending {
            id,
            ticket: first,
            since: now.ms,
            slot,
            handed: true,
            twice: false,
            what,
        });
        Some(ticket(key, first))
    }

    /// Takes back what was owed.
    fn settle(&mut self, key: Key, wanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let connection = self.connections.get_key_mut(key)?;
        let flight = connection.flight.as_mut()?;
        let place = flight.pending.iter().position(wanted)?;
        let pending = flight.pending.swap_remove(place);
        self.flight_moved(key.index);
        Some(pending)
    }

    /// Something left the flight: an empty one goes.
    pub(super) fn flight_moved(&mut self, index: u32) {
        if let Some(connection) = self.connections.get_mut(index)
            && let Some(flight) = connection.flight.take_if(|flight| flight.is_empty())
        {
            self.flights.put(flight);
        }
    }

    /// Lets commands go that waited for `auth` or for large replies to be sent.
    pub(super) fn release_waiting(&mut self, now: Now, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        let Some(flight) = &mut connection.flight else { return };
        for (id, waiting) in std::mem::take(&mut flight.waiting) {
            match waiting {
                Waiting::Unchecked(command) => self.check(now, index, id, command),
                Waiting::Checked(checked) => self.dispatch(now, index, id, checked),
            }
        }
        self.flight_moved(index);
    }

    /// Who a token belongs to, or why it does not hold.
    pub fn authenticated(&mut self, now: Now, connection: Key, result: Result<Identity, v1::Error>) {
        let index = connection.index;
        let wanted = |pending: &Pending| matches!(pending.what, What::Auth | What::Refresh);
        let Some(Pending { id, what, .. }) = self.settle(connection, wanted) else { return };
        let first = matches!(what, What::Auth);
        match result {
            Err(error) => {
                self.counters.auth_failures += 1;
                let expired = error.code == Code::TokenExpired.number();
                let retry = Code::try_from(error.code).is_ok_and(Code::may_retry);
                self.reply_error(index, id, error);
                if first && expired {
                    self.close(now, index, Close::TokenExpired, "the token has expired");
                } else if first && retry {
                    self.close(now, index, Close::ServerError, "tokens cannot be checked now");
                } else if first {
                    self.close(now, index, Close::BadToken, "the token does not hold");
                }
            }
            Ok(identity) if first => self.open(now, connection, id, &identity),
            Ok(identity) => {
                let same = self.person(index).is_some_and(|person| person.user == identity.person.user);
                if !same {
                    self.reply_code(index, id, Code::PermissionDenied, "this token belongs to another user");
                    return;
                }
                self.set_expiry(now, index, &identity);
                self.reply(index, id, Body::Refresh(v1::RefreshReply { expires_at: identity.expires_at.0 }));
            }
        }
    }

    fn open(&mut self, now: Now, key: Key, id: u64, identity: &Identity) {
        let index = key.index;
        let user = match self.user_ids.get(identity.person.user.as_str()) {
            Some(user) => *user,
            None => {
                let name = identity.person.user.clone();
                let slot = self.routes.of_user(&name);
                let person = identity.person.clone();
                let entry = User { person, slot, slot_place: 0, connections: SmallVec::new() };
                let Some(user) = self.users.insert(entry) else { return };
                let place = self.routes.add_user(slot, user.index);
                if let Some(entry) = self.users.get_mut(user.index) {
                    entry.slot_place = place;
                }
                self.tell(slot, ToShard::UserOnline { user: name.clone() });
                self.user_ids.insert(name, user.index);
                user.index
            }
        };
        let Some(entry) = self.users.get_mut(user) else { return };
        if entry.connections.len() >= self.options.connections_per_user {
            let message = format!("more than {} connections of one user", self.options.connections_per_user);
            self.reply_code(index, id, Code::LimitExceeded, message);
            self.close(now, index, Close::TooManyConnections, "too many connections of this user");
            return;
        }
        entry.connections.push(index);
        entry.person = identity.person.clone();
        let Some(connection) = self.connections.get_mut(index) else { return };
        debug_assert_eq!(connection.user, NOBODY, "a connection opens once");
        connection.user = user;
        self.set_phase(now, index, Phase::Open);
        self.set_expiry(now, index, identity);
        let limits = &self.options.command;
        let reply = v1::AuthReply {
            user: identity.person.user.as_str().to_owned(),
            name: identity.person.name.as_ref().to_owned(),
            connection: format!("{:016x}", self.origin_of(key).0),
            node: self.options.node.as_ref().to_owned(),
            expires_at: identity.expires_at.0,
            server_time: now.unix.0,
            ping_interval_ms: u32::try_from(self.options.ping_interval_ms).unwrap_or(u32::MAX),
            limits: Some(v1::Limits {
                frame_bytes: self.options.frame_bytes,
                text_bytes: limits.text_bytes as u32,
                data_bytes: limits.data_bytes as u32,
                in_flight: self.options.in_flight as u32,
                rooms_per_subscribe: limits.rooms_per_subscribe as u32,
                subscriptions: self.options.subscriptions as u32,
                sends_per_s: self.options.sends_per_s,
            }),
        };
        self.reply(index, id, Body::Auth(reply));
        if let Some(reason) = &self.draining {
            let reason = reason.as_ref().to_owned();
            self.push(index, Body::Reconnect(v1::Reconnect { after_ms: 0, reason }));
        }
        self.release_waiting(now, index);
    }

    fn set_phase(&mut self, now: Now, index: u32, phase: Phase) {
        if let Some(connection) = self.connections.get_mut(index) {
            connection.phase = phase;
            connection.phase_since = now.ms;
            self.arm(now, index);
        }
    }

    fn set_expiry(&mut self, now: Now, index: u32, identity: &Identity) {
        if let Some(connection) = self.connections.get_mut(index) {
            connection.expires_at = identity.expires_at;
            connection.expiry_told = false;
        }
        let Identity { login, issued_at, as_of, .. } = identity;
        self.logins.insert(index, Login { login: login.clone(), issued_at: *issued_at, as_of: *as_of });
        self.arm(now, index);
    }

    /// What the asynchronous part made of a command.
    pub fn backend_replied(&mut self, now: Now, connection: Key, id: u64, result: Result<Body, v1::Error>) {
        let wanted = |pending: &Pending| pending.id == id && matches!(pending.what, What::Backend);
        if self.settle(connection, wanted).is_none() {
            return;
        }
        match result {
            Ok(body) => self.reply(connection.index, id, body),
            Err(error) => self.reply_error(connection.index, id, error),
        }
        self.release_waiting(now, connection.index);
    }

    /// The owner's answer to a command, and under which epoch it was given (zero: no room was involved).
    pub(super) fn answer(&mut self, now: Now, at: Ticket, epoch: Epoch, answer: Answer) {
        let (key, count) = split_ticket(at);
        let Some((place, pending)) = self.find_pending(key, count) else { return };
        let slot = match &pending.what {
            What::Subscribe(subscribing) => {
                self.routes.of_room(&subscribing.asked[count.wrapping_sub(pending.ticket) as usize].room)
            }
            _ => pending.slot,
        };
        let known = self.routes.epoch(slot);
        if epoch != Epoch(0) && epoch < known {
            self.counters.stale += 1;
            let refusal = matches!(answer, Answer::Error(_)) && plant::is(Bug::GatewayTakesOldRefusal);
            if !refusal && !plant::is(Bug::GatewayIgnoresEpoch) {
                return;
            }
        }
        let mut place = Some(place);
        if epoch > known {
            self.newer(now, slot, epoch, None);
            // That may have answered others.
            place = self.find_pending(key, count).map(|(place, _)| place);
        }
        self.routes.settled(slot, at);
        if let Some(place) = place {
            self.settle_answer(now, key, count, place, epoch, answer);
        }
        if epoch > known {
            self.owner_gone(now, slot);
        }
        if epoch >= known && epoch != Epoch(0) {
            self.confirmed(now, slot);
        }
    }

    pub(super) fn find_pending(&self, key: Key, count: u32) -> Option<(usize, &Pending)> {
        let flight = self.connections.get_key(key)?.flight.as_ref()?;
        flight.pending.iter().enumerate().find(|(_, pending)| pending.has(count))
    }

    /// `place`: where the command stands among those pending.
    fn settle_answer(&mut self, now: Now, key: Key, count: u32, place: usize, epoch: Epoch, answer: Answer) {
        let Some(connection) = self.connections.get_key_mut(key) else { return };
        let Some(flight) = &mut connection.flight else { return };
        if let What::Subscribe(_) = &flight.pending[place].what {
            let item = count.wrapping_sub(flight.pending[place].ticket) as usize;
            self.subscribe_answered(now, key.index, place, item, answer);
            return;
        }
        let pending = flight.pending.swap_remove(place);
        let index = key.index;
        self.flight_moved(index);
        match (pending.what, answer) {
            (What::Send { room, .. }, Answer::Sent { seq, at, duplicate }) => {
                self.counters.acks.count(now.ms.saturating_sub(pending.since));
                let room_name = room.as_str().to_owned();
                let reply = v1::SendReply { room: room_name, seq: seq.0, at: at.0, duplicate };
                self.sent(index, pending.id, &room, reply);
            }
            (What::Room { heavy, .. }, Answer::Body(body)) => {
                self.reply(index, pending.id, *body);
                if heavy {
                    self.release_waiting(now, index);
                }
            }
            // Only an owner can know that a send was not and will not be done, and only of the try that it refuses.
            (What::Send { .. }, Answer::Error(error))
                if (epoch == Epoch(0) || (pending.twice && !plant::is(Bug::GatewayTakesOldRefusal)))
                    && is_definite(&error) =>
            {
                self.reply_code(
                    index,
                    pending.id,
                    Code::Unavailable,
                    "the room's owner cannot be reached now",
                );
            }
            (what, Answer::Error(error)) => {
                self.reply_error(index, pending.id, *error);
                if matches!(what, What::Room { heavy: true, .. }) {
                    self.release_waiting(now, index);
                }
            }
            (_, _) => self.reply_code(
                index,
                pending.id,
                Code::Internal,
                "the owner gave another answer than was asked for",
            ),
        }
        if self.connections.get(index).is_some_and(|connection| connection.queued() > QUEUED_HARD) {
            self.close(now, index, Close::TooSlow, "replies are not read");
        }
    }

    /// The reply to a send: in its event's place if a live cursor has not passed it, else at once.
    fn sent(&mut self, index: u32, id: u64, room: &RoomId, reply: v1::SendReply) {
        let seq = Seq(reply.seq);
        let frame = v1::ServerFrame { id: Some(id), body: Some(Body::Send(reply)) };
        // The owner's order alone does not show that bug: replies wait here.
        if plant::is(Bug::ReplyBeforeLowerEvent) || !self.reply_in_place(index, room, seq, &frame) {
            self.queue(index, &frame);
        }
    }

    /// Puts a reply in the place of an event; false where no cursor will come by.
    pub(super) fn reply_in_place(
        &mut self,
        index: u32,
        room: &RoomId,
        seq: Seq,
        frame: &v1::ServerFrame,
    ) -> bool {
        let Some(room_index) = self.room_ids.get(room.as_str()).copied() else { return false };
        let Some(connection) = self.connections.get_mut(index) else { return false };
        let Some(Place::Live(place)) = connection.place_in(room_index) else { return false };
        let Some(room) = self.rooms.get_mut(room_index) else { return false };
        let cursor = &mut room.sides[side_of(connection.format)].cursors[place as usize];
        // One that ends below comes out of it with its end.
        if cursor.next > seq {
            return false;
        }
        // All below it is said or queued already: its place is here. Not where the event itself has not come, so that
        // no cursor runs ahead of what is applied; and not where anything else is noted of the places that follow.
        if cursor.state == CursorState::Live
            && cursor.extra.is_none()
            && cursor.next == seq
            && room.applied >= seq
        {
            put_server_frame(&mut self.payload, connection.format, frame, out_of(&mut self.outs, connection));
            cursor.next = seq.next();
            self.dirty.mark(index);
            return true;
        }
        let mut bytes = Vec::new();
        put_server_frame(&mut self.payload, connection.format, frame, &mut bytes);
        cursor.extra_mut().replies.push((seq, bytes.into_boxed_slice()));
        if room.applied >= seq {
            connection.mark_room(room_index);
            self.dirty.mark(index);
        }
        true
    }
}

fn is_definite(error: &v1::Error) -> bool {
    // That the id is taken stays true whatever happens to other tries.
    Code::try_from(error.code)
        .is_ok_and(|code| code.verdict() == Verdict::Definite && code != Code::ClientMsgIdReused)
}
