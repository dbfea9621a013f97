//! A send, when it is its turn: known id, then permission, then limits, so that a definite error is definite.

use banyan_proto::codes::Code;
use banyan_proto::id::Seq;
use banyan_proto::link::{Person, RoomCall, RoomCommand};
use banyan_proto::plant::{self, Bug};
use banyan_proto::v1;

use super::dedupe::{self, Entry};
use super::draft::Draft;
use super::membership::Desk;
use super::{Action, Now, Op, Room, Say, refusal};
use crate::permission::Act;

impl Room {
    pub(super) fn judge_send(&mut self, now: Now, op: Op, draft: &mut Draft, out: &mut Vec<Action>) {
        let RoomCommand::Send(send) = &op.call.command else { return };
        if plant::is(Bug::PermissionBeforeKnownId)
            && let Err(error) = self.desk(now).may_send(&mut draft.clone(), &op.call)
        {
            return self.settle(draft, &op, Say::Error(Box::new(error)), out);
        }
        let seed = self.seed;
        let key = dedupe::key_of(seed, op.call.caller.user.as_str(), &send.client_msg_id);
        if let Some(known) = self.known(key, send) {
            return self.say(op.link, op.call.ticket, &op.call.caller.user, known, out);
        }
        let body = dedupe::body_of_send(seed, send);
        if let Some((_, twin)) = draft.keys.iter().find(|(other, _)| *other == key) {
            // The first try is in this very batch: both are told when it is durable.
            let said = twin.twin(body);
            return self.settle(draft, &op, said, out);
        }
        let Some(op) = self.look_below(op, key, body, out) else { return };
        let desk = self.desk(now);
        let judged = desk.may_send(draft, &op.call);
        if let Err(error) = judged {
            return self.refuse_send(draft, &op, key, &error, out);
        }
        let (link, arrived_ms) = (op.link, op.arrived_ms);
        let RoomCall { ticket, caller, origin, command } = *op.call;
        let RoomCommand::Send(send) = command else { return };
        let v1::Send { client_msg_id, text, content_type, reply_to, mut mentions, data, .. } = send;
        mentions.retain(|user| desk.is_member(draft, user));
        let message = v1::Message {
            text: text.unwrap_or_default(),
            content_type: content_type.unwrap_or_else(|| dedupe::PLAIN.to_owned()),
            reply_to,
            mentions,
            data,
        };
        let seq = draft.push(
            &self.id,
            now,
            &caller,
            origin,
            Some(client_msg_id),
            v1::event::Kind::Message(message),
        );
        draft.keys.push((key, Entry { seq, at: draft.at, body }));
        let said = Say::Sent { seq, at: draft.at, duplicate: false };
        draft.reply(link, ticket, caller.user, arrived_ms, said);
    }
}

impl Room {
    /// A refusal is definite: no try of this send will be in the log. So it refuses the tries that wait, too; one of
    /// them might be allowed by what comes before it.
    fn refuse_send(
        &mut self,
        draft: &mut Draft,
        op: &Op,
        key: u128,
        error: &v1::Error,
        out: &mut Vec<Action>,
    ) {
        if !draft.is_empty() {
            draft.refused.push((key, error.clone()));
        }
        self.settle(draft, op, Say::Error(Box::new(error.clone())), out);
        let RoomCommand::Send(send) = &op.call.command else { return };
        let is_try = |other: &Op| {
            matches!(&other.call.command, RoomCommand::Send(waits) if waits.client_msg_id == send.client_msg_id)
                && other.call.caller.user == op.call.caller.user
        };
        for place in (0..self.queue.len()).rev() {
            if is_try(&self.queue[place])
                && let Some(other) = self.queue.remove(place)
            {
                self.queue_bytes -= other.bytes;
                self.settle(draft, &other, Say::Error(Box::new(error.clone())), out);
            }
        }
        let (tries, parked) = std::mem::take(&mut self.parked).into_iter().partition(is_try);
        self.parked = parked;
        let tries: Vec<Op> = tries;
        for other in tries {
            self.queue_bytes -= other.bytes;
            self.settle(draft, &other, Say::Error(Box::new(error.clone())), out);
        }
    }
}

impl Room {
    /// A try of a send that the batch in flight refuses is refused with it.
    pub(super) fn joins_refusal(&mut self, op: &Op, key: u128) -> bool {
        let Some(batch) = self.in_flight.as_deref_mut() else { return false };
        let Some((_, error)) = batch.refused.iter().find(|(other, _)| *other == key) else {
            return false;
        };
        let said = Say::Error(Box::new(error.clone()));
        batch.reply(op.link, op.call.ticket, op.call.caller.user.clone(), op.arrived_ms, said);
        true
    }
}

impl Desk<'_> {
    /// Permission, then limits. A room that is lazily made is entered by it.
    fn may_send(&self, draft: &mut Draft, call: &RoomCall) -> Result<(), v1::Error> {
        let RoomCommand::Send(send) = &call.command else { return Ok(()) };
        if self.enters_lazily(draft, &call.caller.user) {
            self.check_reply_to(draft, send)?;
            return self.enter(draft, &call.caller, call);
        }
        self.judge(draft, &call.caller.user, Act::Send).map_err(refusal)?;
        self.check_reply_to(draft, send)
    }

    #[expect(clippy::unused_self, reason = "beside its like")]
    fn check_reply_to(&self, draft: &Draft, send: &v1::Send) -> Result<(), v1::Error> {
        match send.reply_to {
            Some(0) => Err(Code::BadRequest.error("`reply_to` must be a seq of the room")),
            Some(seq) if Seq(seq) > draft.head => {
                Err(Code::BadRequest.error("`reply_to` lies above the room's head"))
            }
            _ => Ok(()),
        }
    }

    /// Enters a lazily made room; makes it first if need be.
    pub(super) fn enter(&self, draft: &mut Draft, who: &Person, call: &RoomCall) -> Result<(), v1::Error> {
        if self.row(draft).is_none() {
            self.make_lazily(draft, who, call.origin);
            return Ok(());
        }
        self.add(draft, who, call.origin, who, None)
    }
}
