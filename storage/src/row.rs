//! Rows of a room's log and of the tables beside it.

use std::sync::Arc;

use banyan_proto::id::{LogId, Origin, RoomId, Seq, UnixMs, UserId};
use bytes::Bytes;

use crate::Error;
use crate::embedded::codec;

/// Past intervals out of a room that a member row keeps; the oldest two merge above it.
pub const OUT_MAX: usize = 32;

/// One event of a room as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Row {
    pub seq: Seq,
    /// First seq of the batch that brought this row: what an opener writes again.
    pub batch_first: Seq,
    /// Messages of the room up to this row, itself included.
    pub n: u64,
    /// The connection that sent it.
    pub origin: Origin,
    /// `banyan.v1.Event`; opaque here.
    pub event: Bytes,
    /// What the batch changes beside the log, on the last row of the batch: an opener writes it again.
    pub derived: Option<Arc<Derived>>,
}

/// A room's own row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoomRow {
    pub room: RoomId,
    pub log: LogId,
    /// Group, direct or broadcast, numbered as in the protocol.
    pub kind: u8,
    pub public: bool,
    /// Made by its first use; joins are not events.
    pub lazy: bool,
    pub name: String,
    pub created_at: UnixMs,
    /// Events at or below it are no longer kept.
    pub floor: Seq,
    /// The seq that changed it last: its timestamp, so that a late older write changes nothing.
    pub changed: Seq,
}

/// Who is, or ever was, in a room. Never deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemberRow {
    pub user: UserId,
    /// Display name when it last joined.
    pub name: String,
    /// Numbered as in the protocol; 0: not a member now.
    pub role: u8,
    pub joined_seq: Seq,
    /// Set while not a member: the last seq that it may see.
    pub left_seq: Option<Seq>,
    /// Past intervals out of the room, both ends outside it (`(left, joined again)`), oldest first, at most [`OUT_MAX`].
    pub out: Vec<(Seq, Seq)>,
    /// The seq (or the head, where no event says so) that changed it last: its timestamp. Two changes at one seq would not
    /// be ordered, so the second one is made an event.
    pub changed: Seq,
}

impl MemberRow {
    /// Notes that the user was out between two seqs. Above [`OUT_MAX`] the oldest two intervals become one,
    /// so a member is shown less of a distant past, never more.
    pub fn push_out(&mut self, left: Seq, joined: Seq) {
        self.out.push((left, joined));
        while self.out.len() > OUT_MAX {
            let (_, end) = self.out.remove(1);
            self.out[0].1 = end;
        }
    }
}

/// How far a member has got. Each field only ever rises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    pub delivered: Seq,
    pub seen: Seq,
    /// Messages up to `seen`.
    pub seen_n: u64,
}

impl Marks {
    /// The larger of each field.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            delivered: self.delivered.max(other.delivered),
            seen: self.seen.max(other.seen),
            seen_n: self.seen_n.max(other.seen_n),
        }
    }
}

/// What a batch changes beside the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Derived {
    pub room: Option<RoomRow>,
    /// Whole rows. The store keeps the list of each user's rooms by them: in it while `role` is not 0.
    pub members: Vec<MemberRow>,
}

impl Derived {
    /// As the last row of a batch carries it, in every store alike. Does not hold the room's id.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode_derived(self)
    }

    /// What [`Self::encode`] made for a batch of `room`.
    pub fn decode(room: &RoomId, value: &[u8]) -> Result<Self, Error> {
        codec::decode_derived(room, value).map_err(|malformed| Error::Corrupt(malformed.0.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_absences_merge() {
        let mut row = MemberRow {
            user: UserId::parse("u").unwrap(),
            name: String::new(),
            role: 1,
            joined_seq: Seq(1),
            left_seq: None,
            changed: Seq(0),
            out: Vec::new(),
        };
        for i in 0..40 {
            row.push_out(Seq(10 * i + 1), Seq(10 * i + 5));
        }
        assert_eq!(row.out.len(), OUT_MAX);
        // 9 intervals became one; it hides what lies between them too.
        assert_eq!(row.out[0], (Seq(1), Seq(85)));
        assert_eq!(row.out[1], (Seq(91), Seq(95)));
        assert_eq!(row.out[31], (Seq(391), Seq(395)));
    }

    #[test]
    fn marks_rise_field_by_field() {
        let a = Marks { delivered: Seq(9), seen: Seq(2), seen_n: 1 };
        let b = Marks { delivered: Seq(5), seen: Seq(5), seen_n: 4 };
        assert_eq!(a.max(b), Marks { delivered: Seq(9), seen: Seq(5), seen_n: 4 });
        assert_eq!(a.max(b), b.max(a));
    }
}
