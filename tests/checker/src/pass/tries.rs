//! Sends: what each client wanted stored, over all its tries, and what it was told of them.

use super::{At, Open, Pass};
use crate::found::{Found, NONE};
use crate::history::{Refusal, What};
use crate::id::{Content, Message, Room, Seq, User};
use crate::report::Promise;

/// One client message: (room, sender, `client_msg_id`).
#[derive(Debug)]
pub(crate) struct Intent {
    pub(crate) room: Room,
    pub(crate) sender: User,
    pub(crate) message: Message,
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// One try to send it.
#[derive(Debug)]
pub(crate) struct Try {
    pub(crate) record: u32,
    pub(crate) since: Option<Seq>,
    pub(crate) content: Content,
    /// The highest seq that anybody had been told before, and by which record.
    pub(crate) floor: Seq,
    pub(crate) floor_by: u32,
    pub(crate) fate: Fate,
    /// The record of the reply.
    pub(crate) reply: u32,
    pub(crate) duplicate: bool,
    /// The record that pushed its event to its own connection while it was open.
    pushed: u32,
    /// The next try of the same message.
    pub(crate) next: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// No reply, or one that says nothing.
    Unknown,
    Acked(Seq),
    /// Refused; of other tries nothing is said.
    Refused(u16),
    /// Refused, and so were all others.
    Definite(u16),
}

impl Pass<'_> {
    pub(super) fn invoked(
        &mut self,
        at: At,
        room: Room,
        message: Message,
        since: Option<Seq>,
        content: Content,
    ) -> u32 {
        let At { index, on } = at;
        let sender = self.user(on);
        let state = self.room_mut(room);
        let (floor, floor_by) = (state.told, state.told_by);
        let at = self.tries.len() as u32;
        self.tries.push(Try {
            record: index,
            since,
            content,
            floor,
            floor_by,
            fate: Fate::Unknown,
            reply: NONE,
            duplicate: false,
            pushed: NONE,
            next: NONE,
        });
        match self.intent_of.entry((room, sender, message)) {
            hashbrown::hash_map::Entry::Occupied(known) => {
                let intent = &mut self.intents[*known.get() as usize];
                self.tries[intent.last as usize].next = at;
                intent.last = at;
            }
            hashbrown::hash_map::Entry::Vacant(new) => {
                new.insert(self.intents.len() as u32);
                self.intents.push(Intent { room, sender, message, first: at, last: at });
            }
        }
        at
    }

    pub(crate) fn intent(&self, room: Room, sender: User, message: Message) -> Option<u32> {
        self.intent_of.get(&(room, sender, message)).copied()
    }

    pub(crate) fn tries_of(&self, intent: &Intent) -> impl Iterator<Item = &Try> {
        let mut next = intent.first;
        std::iter::from_fn(move || {
            let this = self.tries.get(next as usize)?;
            next = this.next;
            Some(this)
        })
    }

    /// An ok reply: on a live subscription it stands for its event.
    pub(super) fn acked(&mut self, found: &mut Found<'_>, at: At, open: Open, seq: Seq, duplicate: bool) {
        let world = self.world;
        let index = at.index;
        let Some(of) = self.tries.get_mut(open.of_try as usize) else { return };
        of.fate = Fate::Acked(seq);
        of.reply = index;
        of.duplicate = duplicate;
        let (pushed, sent) = (of.pushed, of.record);
        self.reply_in_place(found, at, open.room, seq, (sent, pushed, duplicate));
        let healed = world.history.liveness.as_ref().map(|liveness| liveness.healed);
        let at = world.history.records[index as usize].at;
        let room = self.room_mut(open.room);
        room.firsts.note(seq, index);
        if healed.is_some_and(|healed| at >= healed) {
            room.acked_since_heal.get_or_insert(index);
        }
        self.told(open.room, seq, index);
    }

    pub(super) fn refused(&mut self, found: &mut Found<'_>, index: u32, open: Open, code: u16) {
        let Some(of) = self.tries.get_mut(open.of_try as usize) else { return };
        of.reply = index;
        of.fate = match Refusal::of(code) {
            Refusal::Unknown => Fate::Unknown,
            Refusal::ThisTry => Fate::Refused(code),
            Refusal::Definite => Fate::Definite(code),
        };
        found.coverage.refused += u64::from(of.fate != Fate::Unknown);
    }

    /// An event of this connection's own user is pushed: a send of it that is open has lost its place.
    pub(super) fn own_event_pushed(&mut self, at: At, room: Room, message: Message) {
        let world = self.world;
        let At { index, on } = at;
        let Some(state) = self.connections.get(on.0 as usize) else { return };
        for open in state.open.iter().filter(|open| open.of_try != NONE && open.room == room) {
            let What::Send { message: of, .. } = world.history.records[open.record as usize].what else {
                continue;
            };
            if of == message {
                self.tries[open.of_try as usize].pushed = index;
            }
        }
    }

    /// A promise that replies can break by themselves: 120 and the like are judged at the end.
    pub(super) fn reply_in_place(
        &mut self,
        found: &mut Found<'_>,
        at: At,
        room: Room,
        seq: Seq,
        (sent, pushed, duplicate): (u32, u32, bool),
    ) {
        let world = self.world;
        let At { index, on } = at;
        let Some(at) = self.live_cursor(on, room) else { return };
        // Who leaves, or sets its cursor anew, gets the replies that wait at once.
        let moving = self.connections.get(on.0 as usize).is_some_and(|state| {
            state.open.iter().any(|open| {
                open.room == room
                    && matches!(
                        world.history.records[open.record as usize].what,
                        What::Subscribe { .. } | What::Unsubscribe { .. }
                    )
            })
        });
        let cursor = &mut self.cursors[at as usize];
        let next = cursor.next;
        found.checked(Promise::I5);
        if seq > next && !moving {
            let (last, from) = (cursor.last, cursor.subscribed);
            found.broken(Promise::I5, index, |slice| {
                slice.say(format!(
                    "{}: the reply stands at seq {seq}, and {next} has not been pushed before it",
                    slice.room(room)
                ));
                slice.record(from);
                slice.record(last);
                slice.record(sent);
            });
        }
        if seq < next && pushed != NONE && !duplicate {
            found.checked(Promise::I14);
            found.broken(Promise::I14, index, |slice| {
                slice.say(format!(
                    "{}: seq {seq} was pushed, and then came again as the reply that should have stood in its place",
                    slice.room(room)
                ));
                slice.record(sent);
                slice.record(pushed);
            });
        }
        if seq == next || (seq > next && !moving) {
            found.coverage.in_place += u64::from(seq == next);
            cursor.moved(seq.next(), index);
            let position = cursor.position;
            self.reached(position, seq, index);
        }
    }
}
