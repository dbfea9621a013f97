//! Where questions go: who owns each slot, what waits while nobody does, and what is said again to a new owner.
//!
//! Owns: the table of slots (epoch and link), the questions that an owner has been handed and those that wait for one.
//! Always holds: nothing of an epoch below the highest seen of its slot is accepted; the commands of one connection to a
//! room are handed over in the order in which they came; what may have been done once is handed to a second owner only
//! if doing it twice is doing it once (sends, which the owner recognises by their id, marks) or changes nothing; a
//! command waits at most until `hold_ms` after it came or, if an owner had it then, after that one was first lost, however
//! often owners change; all that wait take at most `hold_bytes` together: beyond that it is 108.
//! Does not: find out who owns a slot ([`Worker::route_changed`] says so), nor keep answers of earlier owners.

use std::collections::BTreeSet;

use banyan_proto::codes::Code;
use banyan_proto::id::{Epoch, Incarnation, RoomId, SlotId, UserId};
use banyan_proto::link::{Answer, RoomCall, RoomCommand, Ticket, ToShard};
use banyan_proto::plant::{self, Bug};
use smallvec::SmallVec;

use super::{Effect, Now, Worker, split_ticket};
use crate::connection::{Pending, What};

/// When an owner that does not take a question (yet) is asked again: a small part of the stall that a planned change of
/// owner may cost.
const AGAIN_MS: u64 = 10;
/// It is asked less often the longer it refuses: a stall grows by a tenth at most, and by this much. A small part of the
/// time that a command is held (`hold_ms`); who names another owner ends the pause.
const AGAIN_MAX_MS: u64 = 250;
/// A page that no owner can be asked for goes back to its cursor, which asks again: it holds up other cursors' pages.
const HOLD_PULL_MS: u64 = 500;
/// What a held question counts for beside its texts.
const QUESTION_BYTES: usize = 256;
/// Of so few questions under way the one that has its answer is taken out at once; mostly it is the only one.
const FEW: usize = 8;
/// Questions noted as handed over before those that have been answered are looked for.
const TIDY_MIN: usize = 32;

/// One slot as this worker sees it. In this order, what a command needs is one line of the processor's cache: its slot
/// is hardly ever in there.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Slot {
    /// The highest epoch that anybody has named.
    pub(super) epoch: Epoch,
    /// Handed to this owner, in that order. Few are taken out with their answers, many now and then.
    flying: SmallVec<[Question; 1]>,
    tidy_at: u32,
    /// The way to the owner at that epoch.
    link: Option<u16>,
    /// That owner has answered something: it serves the slot, and takes what comes in order.
    confirmed: bool,
    /// There is a way, the owner is confirmed, nothing waits: a question goes straight on.
    open: bool,
    /// Interests were not taken and are stated again.
    restate: bool,
    /// It stands in the list of slots that something waits in.
    waits: bool,
    /// There is an owner and no way to it.
    lost: Lost,
    /// Nothing is offered before this.
    retry_at: u64,
    /// Since when whoever was asked has refused, as far as `retry_at` is not long past.
    refused_since: u64,
    /// When the owner, or the way to it, last changed.
    changed_at: u64,
    /// Rooms and users (by their slabs) that live in it.
    rooms: Vec<u32>,
    users: Vec<u32>,
    /// Wait for an owner, or for it to take them.
    held: Vec<Held>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Lost {
    #[default]
    No,
    Unsaid,
    /// [`Effect::Wanted`].
    Said,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    /// Counts the questions of the worker: as they came.
    order: u64,
    at: Ticket,
    /// When a command has waited long enough: from the first time that it had to wait.
    until: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    question: Question,
    until: u64,
    bytes: usize,
}

/// All slots, and what waits in them.
#[derive(Debug)]
pub(super) struct Routes {
    slots: Vec<Slot>,
    slot_of: fn(&str) -> u16,
    /// Slots in which something waits.
    waiting: Vec<u16>,
    waits_at: u64,
    held_bytes: usize,
    order: u64,
    /// Rooms whose interest was stated to a new owner, which has not said a word of them yet.
    stated: Vec<u32>,
}

impl Slot {
    /// Whoever was asked has not taken something.
    fn refused(&mut self, now_ms: u64) {
        if now_ms > self.retry_at + AGAIN_MAX_MS {
            self.refused_since = now_ms;
        }
        let refused_for = now_ms.saturating_sub(self.refused_since);
        self.retry_at = now_ms + (refused_for / 10).clamp(AGAIN_MS, AGAIN_MAX_MS);
    }

    fn settle(&mut self) {
        self.open = self.link.is_some() && self.confirmed && self.held.is_empty() && !self.restate;
    }
}

impl Routes {
    pub(super) fn new(slots: u32, slot_of: fn(&str) -> u16) -> Self {
        let slots = slots.clamp(1, 1 << 16).next_power_of_two();
        Self {
            slots: (0..slots).map(|_| Slot::default()).collect(),
            slot_of,
            waiting: Vec::new(),
            waits_at: u64::MAX,
            held_bytes: 0,
            order: 0,
            stated: Vec::new(),
        }
    }

    pub(super) fn of_room(&self, room: &RoomId) -> u16 {
        self.of_name(room.as_str())
    }

    pub(super) fn of_user(&self, user: &UserId) -> u16 {
        self.of_name(&format!("~{user}"))
    }

    fn of_name(&self, name: &str) -> u16 {
        (self.slot_of)(name) & (self.slots.len() - 1) as u16
    }

    pub(super) fn epoch(&self, slot: u16) -> Epoch {
        self.slots[usize::from(slot)].epoch
    }

    fn at(&mut self, slot: u16) -> &mut Slot {
        &mut self.slots[usize::from(slot)]
    }

    /// Nobody waits for an answer to this question any more.
    pub(super) fn settled(&mut self, slot: u16, at: Ticket) {
        let flying = &mut self.at(slot).flying;
        if flying.len() <= FEW
            && let Some(place) = flying.iter().position(|question| question.at == at)
        {
            flying.remove(place);
        }
    }

    /// Notes that a room lives in a slot; gives its place there.
    pub(super) fn add_room(&mut self, slot: u16, room: u32) -> u32 {
        let rooms = &mut self.at(slot).rooms;
        rooms.push(room);
        rooms.len() as u32 - 1
    }

    /// Gives the room that has moved into the place, if one has.
    pub(super) fn remove_room(&mut self, slot: u16, place: u32) -> Option<u32> {
        let rooms = &mut self.at(slot).rooms;
        rooms.swap_remove(place as usize);
        rooms.get(place as usize).copied()
    }

    pub(super) fn add_user(&mut self, slot: u16, user: u32) -> u32 {
        let users = &mut self.at(slot).users;
        users.push(user);
        users.len() as u32 - 1
    }

    pub(super) fn remove_user(&mut self, slot: u16, place: u32) -> Option<u32> {
        let users = &mut self.at(slot).users;
        users.swap_remove(place as usize);
        users.get(place as usize).copied()
    }

    /// Interests in rooms of the slot wait to be stated again.
    pub(super) fn restates(&self, slot: u16) -> bool {
        self.slots[usize::from(slot)].restate
    }

    pub(super) const fn next_deadline(&self) -> u64 {
        self.waits_at
    }

    pub(super) const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Nothing is noted of anybody any more.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.held_bytes == 0
            && self.waiting.is_empty()
            && self
                .slots
                .iter()
                .all(|slot| slot.rooms.is_empty() && slot.users.is_empty() && slot.held.is_empty())
    }

    #[cfg(test)]
    pub(super) fn link(&self, slot: u16) -> Option<u16> {
        self.slots[usize::from(slot)].link
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.slots.iter().map(|slot| slot.held.len()).sum()
    }
}

impl Worker {
    // ------------------------------------------------------------ what the shell says

    /// The owner of a slot, and the link that leads to it (`None`: there is no owner, or no way to it). News below the
    /// highest epoch seen are none.
    pub fn route_changed(&mut self, now: Now, slot: SlotId, epoch: Epoch, link: Option<u16>) {
        let link = link.filter(|link| usize::from(*link) < self.to_shards.len());
        let slot = slot.0;
        let Some(entry) = self.routes.slots.get_mut(usize::from(slot)) else { return };
        if epoch < entry.epoch {
            return;
        }
        if epoch == entry.epoch && link == entry.link {
            // An owner that somebody had named, and now the table knows it: there is no way to it.
            if epoch > Epoch(0) && link.is_none() && entry.lost == Lost::No {
                entry.lost = Lost::Unsaid;
                self.want(slot);
            }
            return;
        }
        if let Some(old) = entry.link {
            self.recall(now, old, Some(slot));
        }
        if epoch > self.routes.epoch(slot) {
            self.raise(slot, epoch);
        }
        let entry = self.routes.at(slot);
        entry.link = None;
        entry.lost = if link.is_some() { Lost::No } else { Lost::Unsaid };
        entry.changed_at = now.ms;
        self.owner_gone(now, slot);
        let Some(link) = link else { return };
        let entry = self.routes.at(slot);
        entry.link = Some(link);
        entry.retry_at = 0;
        entry.restate = false;
        self.state_interests(slot);
        self.offer(now, slot);
    }

    /// Nothing reaches the owners behind this link any more, and nothing that they have said meanwhile will come.
    pub fn link_lost(&mut self, now: Now, link: u16) {
        self.recall(now, link, None);
        for slot in 0..self.routes.slots.len() {
            let slot = slot as u16;
            let entry = self.routes.at(slot);
            if entry.link == Some(link) {
                entry.link = None;
                entry.lost = Lost::Unsaid;
                entry.changed_at = now.ms;
                self.owner_gone(now, slot);
            }
        }
    }

    // ------------------------------------------------------------ questions

    /// Hands a question to the owner of its slot; where there is none it waits.
    pub(super) fn hand(&mut self, now: Now, slot: u16, at: Ticket, message: ToShard) {
        self.routes.order += 1;
        let question = Question { order: self.routes.order, at, until: None };
        let entry = self.routes.at(slot);
        if entry.open
            && let Some(link) = entry.link
        {
            entry.flying.push(question);
            let tidy = entry.flying.len() > entry.tidy_at as usize;
            self.to_shards[usize::from(link)].push(message);
            if tidy {
                self.tidy_flying(slot);
            }
            return;
        }
        let ready = entry.held.is_empty() && entry.retry_at <= now.ms && !entry.restate;
        if let Some(link) = entry.link.filter(|_| ready)
            && !self.overtakes(slot, at)
        {
            self.routes.at(slot).flying.push(question);
            self.to_shards[usize::from(link)].push(message);
        } else {
            self.not_handed(at);
            self.hold(now, slot, question);
        }
    }

    /// What needs no answer: to the owner, if there is one. Who comes later is told the whole anyway.
    pub(super) fn tell(&mut self, slot: u16, message: ToShard) {
        if let Some(link) = self.routes.at(slot).link {
            self.to_shards[usize::from(link)].push(message);
        }
    }

    /// An owner that has not answered yet may refuse one command and take the next: while that is so a connection has
    /// one on its way.
    fn overtakes(&self, slot: u16, at: Ticket) -> bool {
        let entry = &self.routes.slots[usize::from(slot)];
        let (key, _) = split_ticket(at);
        !entry.confirmed
            && self.waits_its_turn(at)
            && entry.flying.iter().any(|of| split_ticket(of.at).0 == key && self.is_asked(of.at))
    }

    /// Pages have no order among each other.
    fn waits_its_turn(&self, at: Ticket) -> bool {
        !self.pulls.contains_key(&at)
    }

    fn pending_of(&self, at: Ticket) -> Option<(u32, &Pending)> {
        let (key, count) = split_ticket(at);
        self.find_pending(key, count).map(|(_, pending)| (count, pending))
    }

    fn pending_mut(&mut self, at: Ticket) -> Option<&mut Pending> {
        let (key, count) = split_ticket(at);
        let flight = self.connections.get_key_mut(key)?.flight.as_mut()?;
        flight.pending.iter_mut().find(|pending| pending.has(count))
    }

    /// Each try of a send may be refused or done, whatever becomes of the other: what is said of one of them is not said
    /// of the send.
    fn note_handed(&mut self, at: Ticket) {
        if let Some(pending) = self.pending_mut(at) {
            pending.twice |= pending.handed;
            pending.handed = true;
        }
    }

    /// Nobody has got this try of it.
    fn not_handed(&mut self, at: Ticket) {
        if let Some(pending) = self.pending_mut(at).filter(|pending| !pending.twice) {
            pending.handed = false;
        }
    }

    /// Somebody still waits for its answer.
    fn is_asked(&self, at: Ticket) -> bool {
        if self.pulls.contains_key(&at) {
            return true;
        }
        match self.pending_of(at) {
            Some((count, pending)) => match &pending.what {
                What::Subscribe(subscribing) => {
                    subscribing.answered[count.wrapping_sub(pending.ticket) as usize].is_none()
                }
                _ => true,
            },
            None => false,
        }
    }

    /// The question anew, as it was asked first. `None`: nobody asks it any more, or it cannot be asked again.
    fn question(&self, at: Ticket) -> Option<ToShard> {
        if self.pulls.contains_key(&at) {
            return self.pull_message(at);
        }
        let (key, _) = split_ticket(at);
        let (count, pending) = self.pending_of(at)?;
        let (room, command) = match &pending.what {
            What::Send { room, send, .. } => {
                let mut send = send.unpack()?;
                if plant::is(Bug::SinceRefreshed) {
                    let known = self.room_ids.get(room.as_str()).and_then(|known| self.rooms.get(*known));
                    send.since = known.map(|known| known.known_head.0).or(send.since);
                }
                (room.clone(), RoomCommand::Send(send))
            }
            What::Room { room, command, .. } => (room.clone(), command.as_ref().clone()),
            What::Subscribe(subscribing) => {
                let asked = &subscribing.asked[count.wrapping_sub(pending.ticket) as usize];
                (asked.room.clone(), RoomCommand::Subscribe)
            }
            What::Auth | What::Refresh | What::Backend => return None,
        };
        let caller = self.person(key.index)?;
        let call = RoomCall { ticket: at, caller, origin: self.origin_of(key), command };
        Some(ToShard::Room { room, call: Box::new(call) })
    }

    /// Whether it may be asked again though an owner may have done it.
    fn may_repeat(&self, at: Ticket) -> bool {
        if self.pulls.contains_key(&at) {
            return true;
        }
        self.pending_of(at).is_some_and(|(_, pending)| match &pending.what {
            What::Send { .. } | What::Subscribe(_) => true,
            What::Room { command, .. } => command.may_repeat(),
            What::Auth | What::Refresh | What::Backend => false,
        })
    }

    fn tidy_flying(&mut self, slot: u16) {
        let mut flying = std::mem::take(&mut self.routes.at(slot).flying);
        flying.retain(|question| self.is_asked(question.at));
        let entry = self.routes.at(slot);
        entry.tidy_at = u32::try_from((flying.len() * 2).max(TIDY_MIN)).unwrap_or(u32::MAX);
        entry.flying = flying;
    }

    // ------------------------------------------------------------ holding

    fn hold(&mut self, now: Now, slot: u16, mut question: Question) {
        let changed_at = self.routes.at(slot).changed_at;
        let (until, bytes) = match self.pending_of(question.at) {
            Some((_, pending)) => {
                let text = match &pending.what {
                    What::Send { send, .. } => send.len(),
                    _ => 0,
                };
                let first = pending.since.max(changed_at) + self.options.hold_ms;
                (*question.until.get_or_insert(first), QUESTION_BYTES + text)
            }
            // There are few of them, and each is a number.
            None => (now.ms + HOLD_PULL_MS, 0),
        };
        if until <= now.ms {
            self.counters.hold_expired += 1;
            self.unavailable(now, question.at);
            return;
        }
        if self.routes.held_bytes + bytes > self.options.hold_bytes {
            self.counters.hold_refused += 1;
            self.unavailable(now, question.at);
            return;
        }
        self.counters.held += 1;
        self.routes.held_bytes += bytes;
        let entry = self.routes.at(slot);
        entry.held.push(Held { question, until, bytes });
        entry.open = false;
        let at = if entry.link.is_some() { entry.retry_at.max(now.ms + AGAIN_MS).min(until) } else { until };
        self.wait(slot, at.max(now.ms + 1));
        self.want(slot);
    }

    /// Says that commands wait for a slot that has no owner any more. Pages do not count: their cursors come again.
    fn want(&mut self, slot: u16) {
        let entry = self.routes.at(slot);
        if entry.lost == Lost::Unsaid && entry.held.iter().any(|held| held.bytes > 0) {
            entry.lost = Lost::Said;
            self.effects.push(Effect::Wanted { slot: SlotId(slot) });
        }
    }

    fn wait(&mut self, slot: u16, at: u64) {
        let entry = self.routes.at(slot);
        if !std::mem::replace(&mut entry.waits, true) {
            self.routes.waiting.push(slot);
        }
        self.routes.waits_at = self.routes.waits_at.min(at);
    }

    /// Nobody can be asked: whoever asks may come again.
    fn unavailable(&mut self, now: Now, at: Ticket) {
        let error = Code::Unavailable.error("the room's owner cannot be reached now");
        if self.pulls.contains_key(&at) {
            self.page_came(now, at, Err(error));
        } else {
            self.answer(now, at, Epoch(0), Answer::Error(Box::new(error)));
        }
    }

    /// The owner is another one, or out of reach. What it was handed waits for the next; where it cannot be known
    /// whether it has changed something, that is what the client is told.
    pub(super) fn owner_gone(&mut self, now: Now, slot: u16) {
        let entry = self.routes.at(slot);
        entry.open = false;
        let mut flying = std::mem::take(&mut entry.flying);
        flying.retain(|question| self.is_asked(question.at));
        // Together before anything is answered: an answer may bring the next command.
        let (again, unknown): (Vec<Question>, Vec<Question>) =
            flying.into_iter().partition(|question| self.may_repeat(question.at));
        for question in again {
            self.counters.handed_again += 1;
            self.hold(now, slot, question);
        }
        for question in unknown {
            self.unavailable(now, question.at);
        }
        // Those that are held may have waited for an owner that did not take them: the next one is no better known.
        let entry = self.routes.at(slot);
        if let Some(until) = entry.held.iter().map(|held| held.until).min() {
            self.wait(slot, until.max(now.ms + 1));
        }
        self.want(slot);
    }

    /// Takes back what stands in a link's queue (of one slot, or all): it has not been handed to anybody.
    fn recall(&mut self, now: Now, link: u16, of: Option<u16>) {
        let Some(queue) = self.to_shards.get_mut(usize::from(link)) else { return };
        if queue.is_empty() {
            return;
        }
        let mut back = Vec::new();
        let routes = &self.routes;
        queue.retain(|message| {
            let (slot, at) = match message {
                ToShard::Room { room, call } => (routes.of_room(room), Some(call.ticket)),
                ToShard::Pull { room, ticket, .. } => (routes.of_room(room), Some(*ticket)),
                ToShard::Interest { room, .. } | ToShard::Uninterest { room } => (routes.of_room(room), None),
                ToShard::UserOnline { user } | ToShard::UserOffline { user } => (routes.of_user(user), None),
                ToShard::UserRooms { user, ticket, .. } => (routes.of_user(user), Some(*ticket)),
                ToShard::Notify { user, .. } | ToShard::LoginsEnded { user } => (routes.of_user(user), None),
            };
            let taken = of.is_none_or(|of| of == slot);
            if taken {
                back.extend(at.map(|at| (slot, at)));
            }
            !taken
        });
        for (slot, at) in back {
            if let Some(question) = self.take_flying(slot, at) {
                self.not_handed(at);
                self.hold(now, slot, question);
            }
        }
    }

    fn take_flying(&mut self, slot: u16, at: Ticket) -> Option<Question> {
        let flying = &mut self.routes.at(slot).flying;
        let place = flying.iter().position(|question| question.at == at)?;
        Some(flying.remove(place)).filter(|_| self.is_asked(at))
    }

    /// Hands over what waits, in order, as far as the owner may be asked now.
    fn offer(&mut self, now: Now, slot: u16) {
        let entry = self.routes.at(slot);
        let Some(link) = entry.link.filter(|_| entry.retry_at <= now.ms) else { return };
        if std::mem::take(&mut entry.restate) {
            self.state_interests(slot);
        }
        let entry = self.routes.at(slot);
        let confirmed = entry.confirmed;
        let mut held = std::mem::take(&mut entry.held);
        held.sort_unstable_by_key(|held| held.question);
        // Connections that have a command on its way to an owner that is not known to serve.
        let mut busy = BTreeSet::new();
        let mut lost = Vec::new();
        if !confirmed {
            let flying = self.routes.slots[usize::from(slot)].flying.iter();
            busy.extend(flying.filter(|of| self.is_asked(of.at)).map(|of| of.at.0 >> 32));
        }
        held.retain(|held| {
            let at = held.question.at;
            let waits = !confirmed && busy.contains(&(at.0 >> 32)) && self.waits_its_turn(at);
            if waits && self.is_asked(at) {
                return true;
            }
            self.routes.held_bytes -= held.bytes;
            if !self.is_asked(at) {
                return false;
            }
            match self.question(at) {
                Some(message) => {
                    busy.insert(at.0 >> 32);
                    self.note_handed(at);
                    self.routes.at(slot).flying.push(held.question);
                    self.to_shards[usize::from(link)].push(message);
                }
                None => lost.push(at),
            }
            false
        });
        let entry = self.routes.at(slot);
        entry.held = held;
        entry.settle();
        // Behind the others: an answer may bring the next command.
        for at in lost {
            self.unavailable(now, at);
        }
        if !self.routes.at(slot).held.is_empty() {
            self.wait(slot, now.ms + AGAIN_MS);
        }
    }

    /// Time has passed: what has waited long enough is 108, what may be offered again is.
    pub(super) fn look_at_waiting(&mut self, now: Now) {
        if now.ms < self.routes.waits_at {
            return;
        }
        self.routes.waits_at = u64::MAX;
        for slot in std::mem::take(&mut self.routes.waiting) {
            let entry = self.routes.at(slot);
            entry.waits = false;
            let mut held = std::mem::take(&mut entry.held);
            let late: Vec<Held> = held.extract_if(.., |held| held.until <= now.ms).collect();
            entry.held = held;
            self.routes.held_bytes -= late.iter().map(|held| held.bytes).sum::<usize>();
            self.routes.at(slot).settle();
            for held in late {
                if self.is_asked(held.question.at) {
                    self.counters.hold_expired += 1;
                    self.unavailable(now, held.question.at);
                }
            }
            self.offer(now, slot);
            let entry = self.routes.at(slot);
            let until = entry.held.iter().map(|held| held.until).min();
            let again = entry.link.is_some() && (until.is_some() || entry.restate);
            let again = again.then(|| entry.retry_at.max(now.ms + AGAIN_MS));
            if let Some(at) = until.into_iter().chain(again).min() {
                self.wait(slot, at.max(now.ms + 1));
            }
        }
    }

    // ------------------------------------------------------------ what owners say

    /// Whether something said under this epoch counts, of a room that is known here.
    #[inline]
    pub(super) fn accepts(&mut self, now: Now, room_index: u32, epoch: Epoch) -> bool {
        let Some(room) = self.rooms.get(room_index) else { return false };
        if epoch == room.epoch {
            return true;
        }
        let (slot, newer) = (room.slot, epoch > room.epoch);
        if newer {
            self.heard(now, slot, epoch, None);
        } else {
            self.counters.stale += 1;
        }
        newer || plant::is(Bug::GatewayIgnoresEpoch)
    }

    /// The owner has answered under the slot's epoch.
    pub(super) fn confirmed(&mut self, now: Now, slot: u16) {
        let entry = self.routes.at(slot);
        if !entry.confirmed {
            entry.confirmed = true;
            entry.settle();
            self.offer(now, slot);
        }
    }

    /// Somebody has named an ownership that the table does not know: what is in flight waits for its owner.
    pub(super) fn heard(&mut self, now: Now, slot: u16, epoch: Epoch, owner: Option<Incarnation>) {
        self.newer(now, slot, epoch, owner);
        self.owner_gone(now, slot);
    }

    /// From now on nothing below this epoch counts, and who is asked next is for the table to say.
    pub(super) fn newer(&mut self, now: Now, slot: u16, epoch: Epoch, owner: Option<Incarnation>) {
        if let Some(old) = self.routes.at(slot).link {
            self.recall(now, old, Some(slot));
        }
        self.raise(slot, epoch);
        let entry = self.routes.at(slot);
        entry.link = None;
        entry.lost = Lost::No;
        entry.changed_at = now.ms;
        self.effects.push(Effect::Moved { slot: SlotId(slot), epoch, owner });
    }

    /// Of what comes from now on absences may be missing: interests are stated again from here.
    fn heard_to_here(&mut self, slot: u16) {
        for room_index in &self.routes.slots[usize::from(slot)].rooms {
            if let Some(room) = self.rooms.get_mut(*room_index) {
                room.heard_to.get_or_insert(room.applied);
            }
        }
    }

    fn raise(&mut self, slot: u16, epoch: Epoch) {
        let entry = &mut self.routes.slots[usize::from(slot)];
        entry.epoch = epoch;
        entry.confirmed = false;
        entry.open = false;
        for room_index in &entry.rooms {
            if let Some(room) = self.rooms.get_mut(*room_index) {
                room.epoch = epoch;
                room.heard_to.get_or_insert(room.applied);
            }
        }
    }

    /// Whoever was asked does not own the slot, or not yet.
    pub(super) fn moved(
        &mut self,
        now: Now,
        slot: SlotId,
        at: Option<Ticket>,
        epoch: Epoch,
        owner: Option<Incarnation>,
    ) {
        let slot = slot.0;
        if usize::from(slot) >= self.routes.slots.len() {
            return;
        }
        self.counters.moved += 1;
        let question = at.and_then(|at| self.take_flying(slot, at));
        let entry = self.routes.at(slot);
        entry.refused(now.ms);
        let retry_at = entry.retry_at;
        if at.is_none() {
            entry.restate = true;
            entry.open = false;
            self.wait(slot, retry_at);
            self.heard_to_here(slot);
        }
        if let Some(question) = question {
            self.not_handed(question.at);
            self.hold(now, slot, question);
        }
        let entry = self.routes.at(slot);
        if epoch > entry.epoch {
            self.heard(now, slot, epoch, owner);
        } else if epoch == entry.epoch && entry.link.is_none() && owner.is_some() {
            self.effects.push(Effect::Moved { slot: SlotId(slot), epoch, owner });
        }
    }

    // ------------------------------------------------------------ interests

    /// Says to an owner which rooms have cursors here that an owner has admitted, and which users are here.
    fn state_interests(&mut self, slot: u16) {
        let Some(link) = self.routes.at(slot).link else { return };
        let queue = &mut self.to_shards[usize::from(link)];
        let entry = &self.routes.slots[usize::from(slot)];
        for room_index in &entry.rooms {
            let Some(room) = self.rooms.get_mut(*room_index) else { continue };
            if !room.admitted || !room.has_cursors() || plant::is(Bug::InterestLostAfterOwnerChange) {
                continue;
            }
            let after = *room.heard_to.get_or_insert(room.applied);
            queue.push(ToShard::Interest { room: room.id.clone(), after });
            if !std::mem::replace(&mut room.stated, true) {
                self.routes.stated.push(*room_index);
            }
        }
        for user in &entry.users {
            if let Some(user) = self.users.get(*user) {
                queue.push(ToShard::UserOnline { user: user.person.user.clone() });
            }
        }
    }

    /// States interests again that no owner has answered.
    pub(super) fn restate_interests(&mut self) {
        let mut stated = std::mem::take(&mut self.routes.stated);
        // A room stands in it once for each new owner.
        stated.sort_unstable();
        stated.dedup();
        stated.retain(|room_index| {
            let Some(room) = self.rooms.get_mut(*room_index) else { return false };
            if !room.has_cursors() {
                room.stated = false;
            }
            if room.stated
                && let Some(link) = self.routes.slots[usize::from(room.slot)].link
            {
                let after = room.heard_to.unwrap_or(room.applied);
                self.to_shards[usize::from(link)].push(ToShard::Interest { room: room.id.clone(), after });
            }
            room.stated
        });
        self.routes.stated = stated;
    }
}
