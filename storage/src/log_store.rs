//! The log of every room in the form that a cluster needs: fences, segments, rows, derived tables (DESIGN.md, section 5).
//!
//! Every write is a plain quorum write. Nothing here is conditional: that a zombie's late write does no harm is the work
//! of names that are never used twice (incarnation, segment, seq), of the chain of segment records, and of the barrier
//! that every owner passes before it says anything (`banyan-shard-core`).

use std::fmt::{self, Debug};

use banyan_proto::id::{Bucket, Epoch, Incarnation, LogId, RoomId, SegmentId, Seq, SlotId, UserId};
use tokio::sync::mpsc;

use crate::room_log::{
    Completion, Derived, Marks, MemberPage, MemberRow, Page, Range, ReadLimit, RoomPage, RoomRow, Row,
};
use crate::{BoxFuture, Error};

/// Records of one room that a read gives back at most; a room with more cannot be opened, and says so.
pub const SEGMENTS_MAX: usize = 10_000;

/// One segment of a room's log: `segments ((chat_id), epoch, part)`. Written once, with one content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SegmentRecord {
    pub id: SegmentId,
    /// The partition of its rows.
    pub bucket: Bucket,
    pub first_seq: Seq,
    /// Messages of the room below `first_seq`.
    pub n_before: u64,
    /// The segment that it continues; `None`: the room's first.
    pub prev: Option<SegmentId>,
    pub incarnation: Incarnation,
    /// The life of the room's log.
    pub log: LogId,
}

/// `rooms.said`: where the log ended when its owner last said so and went idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Said {
    pub segment: SegmentId,
    pub head: Seq,
    /// Messages up to `head`.
    pub n: u64,
}

/// Seqs of a room that lie in one segment, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    pub segment: SegmentId,
    pub bucket: Bucket,
    pub first: Seq,
    /// `Seq(u64::MAX)`: to its end.
    pub last: Seq,
}

/// What is written to one room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Write {
    Record(SegmentRecord),
    /// One batch of one segment, all or nothing as far as one replica goes. Again: the same rows under the same names.
    Rows {
        segment: SegmentId,
        bucket: Bucket,
        rows: Vec<Row>,
    },
    /// Each row replaces what is stored if its `changed` is not below that of the stored one.
    Derived(Box<Derived>),
    /// Any order will do.
    Said(Said),
}

/// A write and its caller's own number, which comes back in the [`Completion`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomWrite {
    pub ticket: u64,
    pub room: RoomId,
    pub write: Write,
}

/// One run of a node that has owned a slot: `slot_owners ((slot), epoch, incarnation) {closed}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotOwner {
    pub epoch: Epoch,
    pub incarnation: Incarnation,
    /// Drained, or replaced by an owner that has registered.
    pub closed: bool,
}

/// An answer that may be there at once.
pub enum Answered<T> {
    Now(T),
    Later(BoxFuture<'static, T>),
}

impl<T> Debug for Answered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

/// The log of every room. Shared by all workers; no call waits for a disk or a network on the caller's thread.
///
/// `Ok` and [`crate::Outcome::Done`] mean: at quorum, and no power cut takes it back. An error of a write outside
/// [`Self::write`] means unknown: say the same again.
pub trait LogStore: Send + Sync + Debug + 'static {
    /// Writes each entry and answers each ticket once through `done`, in messages of several (a wake each).
    ///
    /// Never blocks. Entries of one call may reach the store in any order; who needs an order waits for completions.
    fn write(&self, group: Vec<RoomWrite>, done: &mpsc::Sender<Vec<Completion>>);

    /// Every segment record of a room, in order of their ids. Empty: nothing was ever written to it.
    fn segments(&self, room: RoomId) -> BoxFuture<'static, Result<Vec<SegmentRecord>, Error>>;

    fn said(&self, room: RoomId) -> BoxFuture<'static, Result<Option<Said>, Error>>;

    /// Rows of the spans (ascending, not overlapping) within `range`, ascending in the answer; `limit` cuts from the
    /// side that the range names. Holes are left as holes: who reads knows what must be there.
    fn rows(
        &self,
        room: RoomId,
        spans: Vec<Span>,
        range: Range,
        limit: ReadLimit,
    ) -> BoxFuture<'static, Result<Page, Error>>;

    fn room_row(&self, room: RoomId) -> BoxFuture<'static, Result<Option<RoomRow>, Error>>;

    fn member(
        &self,
        room: RoomId,
        user: UserId,
    ) -> BoxFuture<'static, Result<Option<(MemberRow, Marks)>, Error>>;

    /// Members, present and past, by user id, and whether there are more.
    fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<MemberPage, Error>>;

    /// Rooms of which the user is a member now, by id, and whether there are more.
    fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<RoomPage, Error>>;

    /// Raises marks; what is lower than stored changes nothing. Not durable by itself.
    fn put_marks(&self, group: Vec<(RoomId, UserId, Marks)>);

    // ---------------------------------------------------------------- owners

    /// Ends an incarnation for ever: its next barrier finds this row.
    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Error>>;

    /// Whether an incarnation is fenced, by a read that begins now.
    fn is_fenced(&self, incarnation: Incarnation) -> Answered<Result<bool, Error>>;

    /// Before the node shows itself to anybody.
    fn register_incarnation(
        &self,
        incarnation: Incarnation,
        node: String,
    ) -> BoxFuture<'static, Result<(), Error>>;

    fn incarnations(&self) -> BoxFuture<'static, Result<Vec<(Incarnation, String)>, Error>>;

    /// Writes the row of an owner and, in the same batch, marks the row of the one it replaced as closed.
    fn put_slot_owner(
        &self,
        slot: SlotId,
        owner: SlotOwner,
        closes: Option<(Epoch, Incarnation)>,
    ) -> BoxFuture<'static, Result<(), Error>>;

    fn slot_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<SlotOwner>, Error>>;
}
