//! What one worker has for one link: collected over a turn, handed over at its end in one piece.
//!
//! Always holds: answers are never dropped (their number is bounded by the questions that the link has under way).
//! A link that is full loses events, marks and pushes to users; the rooms of lost events are dirty until the link takes
//! something again and is told where each of them stands. It loses absences when there are too many of them: those of each
//! room are told again, from the first that was lost, when the link takes something again; until then it gets no page of
//! that room, which could show somebody what came after.

use std::collections::{BTreeMap, BTreeSet};

use banyan_proto::codes::Code;
use banyan_proto::id::{RoomId, Seq};
use banyan_proto::link::FromShard;

/// Messages for which an idle link keeps space, about 25 KB.
const KEPT: usize = 256;
/// Absences kept for a link that is full. A second of many people leaving; with their names and those of the rooms well
/// below a megabyte.
const LEFTS_MAX: usize = 4_096;

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Outbox {
    next: Vec<FromShard>,
    /// The link has not taken the last batch.
    full: bool,
    /// Bound: the rooms that the link was told of.
    dirty: BTreeSet<RoomId>,
    /// Absences in `next` while the link is full. Bound: [`LEFTS_MAX`].
    lefts: usize,
    /// Rooms of which absences were dropped, from the first of them on. Bound: the rooms that the link was told of.
    unheard: BTreeMap<RoomId, Seq>,
}

/// What a link has to be told when it takes something again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missed {
    /// Where each of these rooms stands.
    pub(super) dirty: BTreeSet<RoomId>,
    /// Every absence from there on, and where the room stands.
    pub(super) unheard: BTreeMap<RoomId, Seq>,
}

impl Outbox {
    /// Gives how many messages are lost by it.
    pub(super) fn push(&mut self, message: FromShard) -> u64 {
        if self.full {
            return self.keep(message);
        }
        self.next.push(message);
        0
    }

    /// Before everything that waits.
    pub(super) fn push_first(&mut self, message: FromShard) {
        self.next.insert(0, message);
    }

    /// What is to be handed over now.
    pub(super) fn batch(&mut self) -> Option<Vec<FromShard>> {
        if self.full || self.next.is_empty() {
            return None;
        }
        // The next batch will be about as large: it is not grown step by step.
        let next = Vec::with_capacity(self.next.len().min(KEPT));
        Some(std::mem::replace(&mut self.next, next))
    }

    /// The link has not taken its batch: keeps what may not be lost and counts the rest.
    pub(super) fn given_back(&mut self, batch: Vec<FromShard>) -> u64 {
        self.full = true;
        self.lefts = 0;
        let newer = std::mem::take(&mut self.next);
        batch.into_iter().chain(newer).map(|message| self.keep(message)).sum()
    }

    /// The link takes something again. Gives what it has missed.
    pub(super) fn took(&mut self) -> Missed {
        self.full = false;
        Missed { dirty: std::mem::take(&mut self.dirty), unheard: std::mem::take(&mut self.unheard) }
    }

    /// Something waits for the link that must reach it.
    pub(super) fn holds_answers(&self) -> bool {
        !self.next.is_empty()
    }

    fn keep(&mut self, message: FromShard) -> u64 {
        match message {
            FromShard::Answer { .. } | FromShard::Moved { .. } => {
                self.next.push(message);
                0
            }
            FromShard::Page { ref room, .. } => {
                let unheard = self.unheard.contains_key(room);
                self.next.push(if unheard { without_page(message) } else { message });
                0
            }
            FromShard::Left { ref room, .. } => {
                // It is told again with those that are.
                if self.unheard.contains_key(room) {
                    return 1;
                }
                self.next.push(message);
                self.lefts += 1;
                if self.lefts > LEFTS_MAX { self.drop_lefts() } else { 0 }
            }
            FromShard::Events { room, .. } => {
                self.dirty.insert(room);
                1
            }
            // It is said again, as it stands then.
            FromShard::Head { room, .. } => {
                self.dirty.insert(room);
                0
            }
            FromShard::Marks { .. } | FromShard::User { .. } | FromShard::LoginsEnded { .. } => 1,
        }
    }

    fn drop_lefts(&mut self) -> u64 {
        let before = self.next.len();
        let mut kept = Vec::with_capacity(before - self.lefts);
        for message in std::mem::take(&mut self.next) {
            match message {
                // In no order: those that an interest is answered with begin anew.
                FromShard::Left { room, at, .. } => {
                    let from = self.unheard.entry(room).or_insert(at);
                    *from = at.min(*from);
                }
                FromShard::Page { ref room, .. } if self.unheard.contains_key(room) => {
                    kept.push(without_page(message));
                }
                message => kept.push(message),
            }
        }
        self.next = kept;
        self.lefts = 0;
        (before - self.next.len()) as u64
    }
}

/// Whoever asked for the page asks again.
fn without_page(message: FromShard) -> FromShard {
    match message {
        FromShard::Page { ticket, room, epoch, page: Ok(_) } => {
            let page = Err(Code::Unavailable.error("the link was too slow for who has left the room"));
            FromShard::Page { ticket, room, epoch, page }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::{Epoch, UserId};
    use banyan_proto::link::{Answer, Page, Ticket};

    use super::*;

    fn answer(ticket: u64) -> FromShard {
        let answer = Answer::UserRooms { rooms: Vec::new(), more: false };
        FromShard::Answer { ticket: Ticket(ticket), epoch: Epoch(1), answer }
    }

    fn events(room: &str) -> FromShard {
        let room = RoomId::parse(room).unwrap();
        FromShard::Events { room, epoch: Epoch(1), events: Vec::new().into() }
    }

    #[test]
    fn a_full_link_keeps_answers_in_order_and_loses_events_visibly() {
        let mut outbox = Outbox::default();
        for message in [answer(1), events("a"), answer(2)] {
            assert_eq!(outbox.push(message), 0);
        }
        let batch = outbox.batch().unwrap();
        outbox.push(events("b"));
        outbox.push(answer(3));
        assert_eq!(outbox.given_back(batch), 2);
        assert_eq!(outbox.push(events("a")), 1);
        outbox.push(answer(4));
        assert_eq!((outbox.batch(), outbox.holds_answers()), (None, true));

        let dirty: Vec<String> = outbox.took().dirty.into_iter().map(|room| room.to_string()).collect();
        assert_eq!(dirty, ["a", "b"]);
        assert_eq!(outbox.batch(), Some(vec![answer(1), answer(2), answer(3), answer(4)]));
        assert_eq!((outbox.batch(), outbox.holds_answers()), (None, false));
    }

    #[test]
    fn a_beacon_that_was_not_taken_is_owed_again() {
        let room = RoomId::parse("a").unwrap();
        let head = FromShard::Head {
            room: room.clone(),
            epoch: Epoch(1),
            head: Seq(3),
            n: 1,
            last_membership: Seq(1),
        };
        let mut outbox = Outbox::default();
        outbox.push(head);
        let batch = outbox.batch().unwrap();
        assert_eq!(outbox.given_back(batch), 0);
        assert_eq!(outbox.took().dirty.into_iter().collect::<Vec<_>>(), [room]);
    }

    fn left(room: &str, at: u64) -> FromShard {
        let (room, user) = (RoomId::parse(room).unwrap(), UserId::parse("u").unwrap());
        FromShard::Left { room, epoch: Epoch(1), user, at: Seq(at) }
    }

    fn page(room: &str, ticket: u64) -> FromShard {
        let page = Ok(Page { events: Vec::new(), head: Seq(9), n: 9, floor: Seq(0), more: false });
        FromShard::Page { ticket: Ticket(ticket), room: RoomId::parse(room).unwrap(), epoch: Epoch(1), page }
    }

    fn pages(batch: &[FromShard]) -> Vec<(u64, bool)> {
        let pages = batch.iter().filter_map(|message| match message {
            FromShard::Page { ticket, page, .. } => Some((ticket.0, page.is_ok())),
            _ => None,
        });
        pages.collect()
    }

    #[test]
    fn absences_beyond_a_bound_are_told_again_from_the_first_that_was_lost() {
        let mut outbox = Outbox::default();
        for message in [page("a", 1), left("a", 7), page("a", 2)] {
            outbox.push(message);
        }
        let batch = outbox.batch().unwrap();
        assert_eq!(outbox.given_back(batch), 0);
        let most = LEFTS_MAX as u64;
        for at in 1..most {
            assert_eq!(outbox.push(left("b", 100 + at)), 0);
        }
        assert_eq!(outbox.next.len() as u64, most + 2);
        // One too many: all of them go.
        assert_eq!(outbox.push(left("a", 5)), most + 1);
        assert_eq!(outbox.push(left("a", 9)), 1);
        for message in [page("a", 3), page("c", 4), left("c", 3), answer(5)] {
            assert_eq!(outbox.push(message), 0);
        }
        let missed = outbox.took();
        let unheard: Vec<(&str, u64)> =
            missed.unheard.iter().map(|(room, from)| (room.as_str(), from.0)).collect();
        assert_eq!((unheard, missed.dirty.len()), (vec![("a", 5), ("b", 101)], 0));
        let batch = outbox.batch().unwrap();
        // What was asked for before anybody was lost may be read; what came after may not.
        assert_eq!(pages(&batch), [(1, true), (2, false), (3, false), (4, true)]);
        assert_eq!(batch[4..], [left("c", 3), answer(5)]);
        assert_eq!(outbox.took(), Missed::default());
    }
}
