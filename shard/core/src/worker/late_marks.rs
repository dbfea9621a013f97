//! Marks of rooms that were closed a short while after the store was given some.
//!
//! A store writes marks when it likes, and does not say when they are there; before that they wait for a barrier. A room that is
//! closed and opened again sooner reads what was there before, and would tell lower marks than it has told (I11). So whoever closes a
//! room that has given marks away within [`KEPT_MS`] leaves the marks that it answers for here, for as long again, and they lift what
//! is read. A room that stays open costs nothing.
//!
//! Full policy: above [`MARKS_MAX`] the oldest are forgotten and counted; who comes back to such a room within that time may be told
//! marks as the store has them. No duty: a store that cannot write for longer than [`KEPT_MS`] is not waited for.

use std::collections::{BTreeMap, VecDeque};

use banyan_proto::id::{RoomId, UserId};
use banyan_storage::Marks;
use banyan_storage::row::MemberRow;

/// A barrier without an answer ends the process after two seconds. A store writes marks once a second, and the longest queue that it
/// takes in some ten.
pub(super) const KEPT_MS: u64 = 60_000;

/// Of members, over all closed rooms of a worker: 6 MB in large rooms, 25 MB where each room has one.
const MARKS_MAX: usize = 65_536;

type Group = Vec<(UserId, Marks)>;

#[derive(Debug, Clone, Default)]
pub(super) struct LateMarks {
    /// Oldest first; as many groups as there are in `by_room`, and in the same order.
    order: VecDeque<(u64, RoomId)>,
    by_room: BTreeMap<RoomId, VecDeque<Group>>,
    marks: usize,
}

impl LateMarks {
    /// The room is closed. Returns how many were forgotten too early.
    pub(super) fn note(&mut self, now_ms: u64, room: &RoomId, group: Group) -> u64 {
        self.expire(now_ms);
        if group.is_empty() || group.len() > MARKS_MAX {
            return group.len() as u64;
        }
        self.marks += group.len();
        self.order.push_back((now_ms, room.clone()));
        self.by_room.entry(room.clone()).or_default().push_back(group);
        let before = self.marks;
        while self.marks > MARKS_MAX {
            self.forget_oldest();
        }
        (before - self.marks) as u64
    }

    /// What was read of a room is lifted to what it knew when it was closed. True if that was more.
    pub(super) fn lift(&mut self, now_ms: u64, room: &RoomId, read: &mut [(MemberRow, Marks)]) -> bool {
        self.expire(now_ms);
        let Some(groups) = self.by_room.get(room) else { return false };
        let mut lifted = false;
        let mut late: BTreeMap<&UserId, Marks> = BTreeMap::new();
        for (user, marks) in groups.iter().flatten() {
            let there = late.entry(user).or_default();
            *there = there.max(*marks);
        }
        for (row, marks) in read {
            let known = late.get(&row.user).map_or(*marks, |late| marks.max(*late));
            lifted |= known != *marks;
            *marks = known;
        }
        lifted
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn expire(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(at, _)| at + KEPT_MS <= now_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((_, room)) = self.order.pop_front() else { return };
        let Some(groups) = self.by_room.get_mut(&room) else { return };
        self.marks -= groups.pop_front().map_or(0, |group| group.len());
        if groups.is_empty() {
            self.by_room.remove(&room);
        }
    }
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::Seq;

    use super::*;

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    fn marks(to: u64) -> Marks {
        Marks { delivered: Seq(to), seen: Seq(to), seen_n: to }
    }

    fn group(users: &[&str], to: u64) -> Group {
        users.iter().map(|user| (UserId::parse(user).unwrap(), marks(to))).collect()
    }

    /// What is told of a member for whom the store has the mark 5.
    fn told(late: &mut LateMarks, now_ms: u64, name: &str, user: &str) -> u64 {
        let row =
            MemberRow { user: UserId::parse(user).unwrap(), ..banyan_storage::contract::member(user, 1, 1) };
        let mut read = [(row, marks(5))];
        late.lift(now_ms, &room(name), &mut read);
        read[0].1.seen.0
    }

    #[test]
    fn what_is_read_is_lifted_to_what_was_known_and_never_below_itself() {
        let mut late = LateMarks::default();
        assert_eq!(late.note(0, &room("a"), group(&["ann", "bob"], 9)), 0);
        assert_eq!(late.note(1, &room("a"), group(&["ann"], 7)), 0);
        assert_eq!(late.note(2, &room("a"), group(&["cleo"], 3)), 0);
        assert_eq!(told(&mut late, 3, "a", "ann"), 9);
        assert_eq!(told(&mut late, 3, "a", "bob"), 9);
        assert_eq!(told(&mut late, 3, "a", "cleo"), 5);
        assert_eq!(told(&mut late, 3, "a", "dan"), 5);
        assert_eq!(told(&mut late, 3, "b", "ann"), 5);
    }

    #[test]
    fn it_is_forgotten_after_a_while() {
        let mut late = LateMarks::default();
        late.note(0, &room("a"), group(&["ann"], 9));
        late.note(1, &room("a"), group(&["ann"], 8));
        assert_eq!(told(&mut late, KEPT_MS - 1, "a", "ann"), 9);
        assert_eq!(told(&mut late, KEPT_MS, "a", "ann"), 8);
        assert_eq!(told(&mut late, KEPT_MS + 1, "a", "ann"), 5);
        assert!(late.order.is_empty() && late.by_room.is_empty() && late.marks == 0);
    }

    #[test]
    fn beyond_its_bound_the_oldest_go_and_are_counted() {
        let mut late = LateMarks::default();
        let users: Vec<String> = (0..MARKS_MAX / 2).map(|i| format!("u{i}")).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        assert_eq!(late.note(0, &room("a"), group(&users, 9)), 0);
        assert_eq!(late.note(0, &room("b"), group(&users, 9)), 0);
        assert_eq!(late.note(0, &room("c"), group(&["ann"], 9)), MARKS_MAX as u64 / 2);
        assert_eq!(told(&mut late, 1, "a", "u1"), 5);
        assert_eq!(told(&mut late, 1, "b", "u1"), 9);
        assert_eq!(told(&mut late, 1, "c", "ann"), 9);
        // One that is too large by itself takes no other's place.
        let more: Vec<&str> = users.iter().cycle().take(MARKS_MAX + 1).copied().collect();
        assert_eq!(late.note(2, &room("d"), group(&more, 9)), MARKS_MAX as u64 + 1);
        assert_eq!(late.note(2, &room("e"), Vec::new()), 0);
        assert_eq!((told(&mut late, 3, "c", "ann"), late.order.len()), (9, 2));
    }
}
