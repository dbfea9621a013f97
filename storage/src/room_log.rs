//! The log of every room and the tables derived from it.
//!
//! One writer a room: its owner, which keeps at most one append of a room in flight and settles an unknown one (by appending
//! the same rows again) before it goes on. The store trusts it to number rows densely and never to give a seq a second content.

use std::fmt::Debug;
use std::sync::Arc;

use banyan_proto::id::{LogId, Origin, RoomId, Seq, UnixMs, UserId};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{BoxFuture, Error};

/// Rows that an append may hold at most. The owner gathers up to 128; the rest is margin.
pub const APPEND_ROWS_MAX: usize = 1_024;
/// Bytes of events that an append may hold at most. The owner gathers up to 256 KiB.
pub const APPEND_BYTES_MAX: usize = 4 << 20;
/// Newest rows that [`RoomLog::load_room`] brings along: what an opening room shows first.
pub const TAIL: ReadLimit = ReadLimit { events: 64, bytes: 256 << 10 };
/// Above this a [`ReadLimit`] is cut: the longest log between `since` and head that a send may ask for.
pub const READ_MAX: ReadLimit = ReadLimit { events: 10_000, bytes: 8 << 20 };
/// Members that [`RoomLog::load_room`] brings along at most (about 20 MB); [`LoadedRoom::members_complete`] says whether that was all.
pub const MEMBERS_LOADED_MAX: usize = 100_000;
/// Rows of [`RoomLog::members`] and [`RoomLog::user_rooms`] in one answer at most.
pub const PAGE_MAX: usize = 1_000;
/// Past intervals out of a room that a member row keeps; the oldest two merge above it.
pub const OUT_MAX: usize = 32;

/// One event of a room as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Row {
    pub seq: Seq,
    /// First seq of the append that brought this row: what an opener writes again.
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
    /// Members now.
    pub counted_members: u64,
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

/// What an append changes beside the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Derived {
    pub room: Option<RoomRow>,
    /// Whole rows. The store keeps the list of each user's rooms by them: in it while `role` is not 0.
    pub members: Vec<MemberRow>,
}

/// A batch of one room: all of it is stored, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The caller's own number; comes back in the [`Completion`].
    pub ticket: u64,
    pub room: RoomId,
    /// Ascending and dense. Empty when only memberships change without an event.
    pub rows: Vec<Row>,
    pub derived: Option<Box<Derived>>,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stored whole; a power cut cannot take it back.
    Done,
    /// Definite: nothing of it is there, and nothing will be.
    NotDone(NotDone),
    /// It may be there whole, now or later, or not at all. The same append again settles it.
    Unknown,
}

/// Why nothing of an append was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    #[error("the disk is full")]
    Full,
    #[error("the store has more to do than it can take")]
    Overloaded,
    /// The store reopens its files.
    #[error("the store is not available")]
    Unavailable,
    #[error("the append is larger than the store takes")]
    TooLarge,
    #[error("the store is closed")]
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub ticket: u64,
    pub outcome: Outcome,
}

/// Which part of a log, and from which side a page of it fills. Rows come back ascending either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Seqs above `after`, up to and with `through`; the lowest first.
    After { after: Seq, through: Seq },
    /// Seqs below `before` and above `above`; the highest first.
    Before { before: Seq, above: Seq },
}

impl Range {
    /// Everything above `seq`, lowest first.
    pub const fn after(seq: Seq) -> Self {
        Self::After { after: seq, through: Seq(u64::MAX) }
    }

    /// Everything below `seq`, highest first.
    pub const fn before(seq: Seq) -> Self {
        Self::Before { before: seq, above: Seq(0) }
    }
}

/// Where a page ends. The first row of a page is given whatever its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimit {
    pub events: usize,
    /// Of the events alone.
    pub bytes: usize,
}

/// Part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Ascending.
    pub rows: Vec<Row>,
    /// The range holds further rows, in the direction asked.
    pub more: bool,
}

/// Members by user id, and whether there are more.
pub type MemberPage = (Vec<(MemberRow, Marks)>, bool);

/// Rooms by id, and whether there are more.
pub type RoomPage = (Vec<RoomId>, bool);

/// What the owner of a room needs to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedRoom {
    pub row: RoomRow,
    pub head: Seq,
    /// Messages of the room.
    pub n: u64,
    /// Everyone who is or was a member, by user id.
    pub members: Vec<(MemberRow, Marks)>,
    /// False: there are more than [`MEMBERS_LOADED_MAX`]; ask [`RoomLog::member`].
    pub members_complete: bool,
    /// The newest rows, ascending, within [`TAIL`]. The last one is the room's head.
    pub tail: Vec<Row>,
}

/// The log of every room. Shared by all workers; no call waits for a disk on the caller's thread.
pub trait RoomLog: Send + Sync + Debug + 'static {
    /// Stores each append of the group, whole or not at all, and answers each ticket once through `done`.
    ///
    /// Never blocks. Completions come in one message per commit and sink (a wake each). A full `done` is tried again
    /// by the store and loses nothing; what waits there is bounded by what the caller has in flight. A dropped receiver drops them.
    /// A full queue of the store: [`NotDone::Overloaded`], at once. After `close`: [`NotDone::Closed`].
    fn append(&self, group: Vec<Append>, done: &mpsc::Sender<Vec<Completion>>);

    /// Raises marks; what is lower than stored changes nothing. Not durable by itself: it rides along with the next commit
    /// or is written within a second. When too many wait, further ones are dropped and counted: callers state marks again.
    fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>);

    /// `None`: nothing was ever stored for this room. Writes nothing.
    fn load_room(&self, room: RoomId) -> BoxFuture<'static, Result<Option<LoadedRoom>, Error>>;

    /// A page of a room's log; empty for an unknown room. `limit` is cut to [`READ_MAX`].
    fn read(&self, room: RoomId, range: Range, limit: ReadLimit) -> BoxFuture<'static, Result<Page, Error>>;

    /// One member, present or past.
    fn member(
        &self,
        room: RoomId,
        user: UserId,
    ) -> BoxFuture<'static, Result<Option<(MemberRow, Marks)>, Error>>;

    /// Members, present and past, by user id, and whether there are more. `limit` is cut to [`PAGE_MAX`].
    fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<MemberPage, Error>>;

    /// Rooms of which the user is a member now, by id, and whether there are more. `limit` is cut to [`PAGE_MAX`].
    fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<RoomPage, Error>>;
}

/// The owner numbers rows; a hole here is a bug of ours, not a fault of the disk.
pub(crate) fn assert_dense(append: &Append) {
    for pair in append.rows.windows(2) {
        assert_eq!(pair[0].seq.0 + 1, pair[1].seq.0, "rows of an append of {} are not dense", append.room);
    }
    if let Some(first) = append.rows.first() {
        assert!(first.seq.0 > 0, "{}: there is no event 0", append.room);
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
