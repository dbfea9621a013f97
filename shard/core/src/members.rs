//! Everyone who is or was in a room, by user id.

use std::collections::BTreeMap;
use std::ops::Bound;

use banyan_proto::id::{Seq, UserId};
use banyan_proto::v1::Role;
use banyan_storage::{Marks, MemberRow};

use crate::permission::Standing;

/// A person in a room, now or once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    pub row: MemberRow,
    pub marks: Marks,
    /// Its marks have risen since they were last written.
    pub unwritten: bool,
    /// Its marks have risen since they were last told.
    pub untold: bool,
    /// A write of its row to a quorum ended well while it was here. What was only read may lie on one replica.
    pub row_is_stored: bool,
    /// Its marks are known from the store or an earlier owner alone. One replica may have them and no other, and what that
    /// owner meant to write may have died with it: who tells them writes them.
    pub hearsay: bool,
}

impl Member {
    /// As it was read, or came from elsewhere.
    pub fn new(row: MemberRow, marks: Marks) -> Self {
        let hearsay = marks != Marks::default();
        Self { row, marks, unwritten: false, untold: false, row_is_stored: false, hearsay }
    }

    /// Whether the next owner may find an older row: a join or leave that no event tells of, whose owner was gone before
    /// it was written in full, can be read by one and not by the next.
    pub fn may_be_lost(&self) -> bool {
        // Such a join bears the seq after the head; a leave looks the same with and without an event.
        !self.row_is_stored && (self.row.role == 0 || self.row.joined_seq > self.row.changed)
    }
}

/// A member whose marks change and whose standing does not.
#[derive(Debug)]
pub struct MarksOf<'a> {
    pub row: &'a MemberRow,
    pub marks: &'a mut Marks,
    pub unwritten: &'a mut bool,
    pub untold: &'a mut bool,
    pub hearsay: &'a mut bool,
}

/// The role of a stored row.
pub fn role(row: &MemberRow) -> Role {
    Role::try_from(i32::from(row.role)).unwrap_or(Role::None)
}

pub fn role_number(role: Role) -> u8 {
    // Roles are numbered 0 to 4.
    role as u8
}

pub fn standing(row: Option<&MemberRow>) -> Standing {
    match row {
        None => Standing::Stranger,
        Some(row) => match role(row) {
            Role::None => Standing::Left,
            role => Standing::Member(role),
        },
    }
}

/// Ordered by user id, so that a page of them is a range.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Members {
    by_user: BTreeMap<UserId, Member>,
    /// How many are members now. Counted here and never read from the store: joins of large rooms come at one head, and
    /// what has equal timestamps is not ordered there.
    count: u64,
}

impl Members {
    pub fn get(&self, user: &str) -> Option<&Member> {
        self.by_user.get(user)
    }

    pub fn marks_of(&mut self, user: &str) -> Option<MarksOf<'_>> {
        let member = self.by_user.get_mut(user)?;
        Some(MarksOf {
            row: &member.row,
            marks: &mut member.marks,
            unwritten: &mut member.unwritten,
            untold: &mut member.untold,
            hearsay: &mut member.hearsay,
        })
    }

    /// Puts a row in place that was just stored; marks stay.
    pub fn put(&mut self, row: MemberRow) {
        self.count += u64::from(row.role != 0);
        if let Some(member) = self.by_user.get_mut(row.user.as_str()) {
            self.count -= u64::from(member.row.role != 0);
            member.row = row;
            member.row_is_stored = true;
        } else {
            let member = Member { row_is_stored: true, ..Member::new(row, Marks::default()) };
            self.by_user.insert(member.row.user.clone(), member);
        }
    }

    /// The same members as they were known before they were read once more: marks do not fall, and what was to be done for them
    /// still is.
    pub fn keep_marks(&mut self, before: &Self) {
        for (user, member) in &mut self.by_user {
            let Some(known) = before.by_user.get(user) else { continue };
            let read = member.marks;
            member.marks = read.max(known.marks);
            (member.unwritten, member.untold) = (known.unwritten, known.untold);
            let is_own = !known.hearsay && known.marks != Marks::default();
            // More was read than what was told as one's own: that is told, and so written, from now on.
            member.unwritten |= is_own && member.marks != known.marks;
            member.hearsay = member.marks != Marks::default() && !is_own;
        }
    }

    /// For the next owner: it has written nothing yet, and takes all that it gets for read.
    pub fn hand_over(&mut self) {
        for member in self.by_user.values_mut() {
            member.row_is_stored = false;
            member.hearsay = member.marks != Marks::default();
        }
    }

    /// A row as it was stored, with its marks.
    pub fn insert(&mut self, member: Member) {
        self.count += u64::from(member.row.role != 0);
        if let Some(old) = self.by_user.insert(member.row.user.clone(), member) {
            self.count -= u64::from(old.row.role != 0);
        }
    }

    /// Rows, present and past.
    pub fn rows(&self) -> usize {
        self.by_user.len()
    }

    /// Members now.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Everyone, present and past.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.by_user.values()
    }

    /// Who is a member now, above `after`.
    pub fn present(&self, after: Option<&UserId>) -> impl Iterator<Item = &Member> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_user
            .range::<UserId, _>((from, Bound::Unbounded))
            .map(|(_, member)| member)
            .filter(|member| member.row.role != 0)
    }
}

/// What of the log one caller may see: up to `end`, but for the intervals out of the room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View {
    /// Seqs up to here are gone for good.
    pub floor: Seq,
    /// The last seq visible now.
    pub upper: Seq,
    /// Hidden intervals, both ends included, ascending.
    pub out: Vec<(Seq, Seq)>,
    /// Set for who has left.
    pub end: Option<Seq>,
}

impl View {
    pub fn new(row: &MemberRow, head: Seq, floor: Seq) -> Self {
        let end = if row.role == 0 { Some(row.left_seq.unwrap_or_default()) } else { None };
        let out = row
            .out
            .iter()
            .filter(|(left, joined)| left.next() < *joined)
            .map(|(left, joined)| (left.next(), Seq(joined.0 - 1)))
            .collect();
        Self { floor, upper: end.map_or(head, |end| end.min(head)), out, end }
    }

    pub fn sees(&self, seq: Seq) -> bool {
        seq > self.floor
            && seq <= self.upper
            && !self.out.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(user: &str, role: u8) -> MemberRow {
        MemberRow {
            user: UserId::parse(user).unwrap(),
            name: String::new(),
            role,
            joined_seq: Seq(1),
            left_seq: None,
            out: Vec::new(),
            changed: Seq(1),
        }
    }

    #[test]
    fn who_is_there_is_counted_once() {
        let mut members = Members::default();
        for (user, role, count) in
            [("a", 2, 1), ("b", 0, 1), ("b", 2, 2), ("b", 3, 2), ("a", 0, 1), ("a", 0, 1), ("c", 1, 2)]
        {
            members.put(row(user, role));
            assert_eq!(members.count(), count, "{user} {role}");
            assert_eq!(members.present(None).count() as u64, count);
        }
        members.insert(Member::new(row("c", 0), Marks::default()));
        members.insert(Member::new(row("d", 1), Marks::default()));
        assert_eq!((members.count(), members.rows()), (2, 4));
    }

    #[test]
    fn a_row_that_was_only_read_may_be_lost_unless_an_event_tells_of_it() {
        let with = |role, joined, changed| {
            let row = MemberRow { joined_seq: Seq(joined), changed: Seq(changed), ..row("a", role) };
            Member::new(row, Marks::default())
        };
        for (role, joined, changed, lost) in
            [(1, 6, 5, true), (1, 5, 5, false), (3, 5, 8, false), (0, 2, 9, true)]
        {
            let read = with(role, joined, changed);
            assert_eq!(read.may_be_lost(), lost, "{read:?}");
            let mut members = Members::default();
            members.insert(read.clone());
            members.put(read.row);
            assert!(!members.get("a").unwrap().may_be_lost());
        }
    }
}
