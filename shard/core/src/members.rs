//! Everyone who is or was in a room, by user id.

use std::collections::BTreeMap;
use std::ops::Bound;

use banyan_proto::id::{Seq, UserId};
use banyan_proto::v1::Role;
use banyan_storage::room_log::{Marks, MemberRow};

use crate::permission::Standing;

/// A person in a room, now or once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub row: MemberRow,
    pub marks: Marks,
    /// Its marks have risen since they were last written.
    pub unwritten: bool,
    /// Its marks have risen since they were last told.
    pub untold: bool,
}

impl Member {
    pub fn new(row: MemberRow, marks: Marks) -> Self {
        Self { row, marks, unwritten: false, untold: false }
    }
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(BTreeMap<UserId, Member>);

impl Members {
    pub fn get(&self, user: &str) -> Option<&Member> {
        self.0.get(user)
    }

    pub fn get_mut(&mut self, user: &str) -> Option<&mut Member> {
        self.0.get_mut(user)
    }

    /// Puts a row in place; marks stay.
    pub fn put(&mut self, row: MemberRow) {
        if let Some(member) = self.0.get_mut(row.user.as_str()) {
            member.row = row;
        } else {
            self.0.insert(row.user.clone(), Member::new(row, Marks::default()));
        }
    }

    pub fn insert(&mut self, member: Member) {
        self.0.insert(member.row.user.clone(), member);
    }

    /// Rows, present and past.
    pub fn rows(&self) -> usize {
        self.0.len()
    }

    /// Who is a member now, above `after`.
    pub fn present(&self, after: Option<&UserId>) -> impl Iterator<Item = &Member> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.0
            .range::<UserId, _>((from, Bound::Unbounded))
            .map(|(_, member)| member)
            .filter(|member| member.row.role != 0)
    }
}

/// What of the log one caller may see: up to `end`, but for the intervals out of the room.
#[derive(Debug, Clone, PartialEq, Eq)]
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
