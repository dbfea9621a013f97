//! The log of every room in the form that a cluster needs: fences, segments, rows, derived tables (DESIGN.md, section 5).
//!
//! Every write is a plain quorum write. Nothing here is conditional: that a zombie's late write does no harm is the work
//! of names that are never used twice (incarnation, segment, seq), of the chain of segment records, and of the barrier
//! that every owner passes before it says anything (`banyan-shard-core`).

use std::fmt::{self, Debug};
use std::sync::Arc;

use banyan_proto::id::{Bucket, Epoch, Incarnation, LogId, RoomId, SegmentId, Seq, SlotId, UserId};
use tokio::sync::mpsc;

use crate::outcome::Completion;
use crate::page::{MemberPage, Page, Range, ReadLimit, RoomPage};
use crate::row::{Derived, Marks, MemberRow, RoomRow, Row};
use crate::{BoxFuture, Error};

/// Rows that a batch may hold at most. The owner gathers up to 128; the rest is margin.
pub const BATCH_ROWS_MAX: usize = 1_024;
/// Bytes of events, and of what they change beside the log, that a batch may hold at most. The owner gathers up to 256 KiB.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Records of one room with which it can be opened; a read gives back one more, so that who opens it sees that there are
/// more, and says so.
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
    /// Boxed: there are few of them, and batches are moved about by the thousand.
    Record(Box<SegmentRecord>),
    /// One batch of one segment, all or nothing as far as one replica goes. Again: the same rows under the same names.
    /// Shared with whoever may have to say it again.
    Rows { segment: SegmentId, bucket: Bucket, rows: Arc<[Row]> },
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

impl RoomWrite {
    /// About what it holds, for the bounds of queues and commits.
    pub fn bytes(&self) -> usize {
        match &self.write {
            Write::Rows { rows, .. } => rows.iter().map(row_bytes).sum(),
            Write::Derived(derived) => derived_bytes(derived),
            Write::Record(_) | Write::Said(_) => 0,
        }
    }

    /// Of a batch; else none.
    pub fn rows(&self) -> &[Row] {
        match &self.write {
            Write::Rows { rows, .. } => rows,
            Write::Record(_) | Write::Derived(_) | Write::Said(_) => &[],
        }
    }

    /// More than any owner gathers: [`crate::NotDone::TooLarge`].
    pub fn is_too_large(&self) -> bool {
        self.rows().len() > BATCH_ROWS_MAX || self.bytes() > BATCH_BYTES_MAX
    }

    /// The owner numbers rows and segments; what is wrong here is a bug of ours, not a fault of the disk. Every store asks for it first.
    pub fn assert_sound(&self) {
        let room = &self.room;
        match &self.write {
            Write::Rows { segment, rows, .. } => {
                let first = rows.first().unwrap_or_else(|| panic!("{room}: a batch of {segment:?} is empty"));
                assert!(first.seq.0 > 0, "{room}: there is no event 0");
                for pair in rows.windows(2) {
                    assert_eq!(pair[0].seq.next(), pair[1].seq, "{room}: rows of a batch are not dense");
                }
            }
            Write::Record(record) => {
                assert!(record.prev < Some(record.id), "{room}: {:?} continues a later one", record.id);
            }
            Write::Derived(derived) => {
                let own = derived.room.as_ref().is_none_or(|row| row.room == *room);
                assert!(own, "{room}: the row of another room");
            }
            Write::Said(_) => {}
        }
    }
}

fn row_bytes(row: &Row) -> usize {
    row.event.len() + row.derived.as_deref().map_or(0, derived_bytes)
}

fn derived_bytes(derived: &Derived) -> usize {
    /// Numbers and lengths of a row.
    const FIXED: usize = 48;
    let room = derived.room.as_ref().map_or(0, |row| FIXED + row.name.len());
    let members = derived.members.iter();
    room + members
        .map(|row| FIXED + row.user.as_str().len() + row.name.len() + 16 * row.out.len())
        .sum::<usize>()
}

/// One run of a node that has owned a slot: `slot_owners (slot, epoch, incarnation) {closed}`.
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

impl<T> Answered<T> {
    /// The answer, waited for if need be.
    pub async fn get(self) -> T {
        match self {
            Self::Now(answer) => answer,
            Self::Later(answer) => answer.await,
        }
    }
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
    /// Carries out each write and answers each ticket once through `done`, in messages of several (a wake each).
    ///
    /// Never blocks. A full `done` is tried again by the store and loses nothing; what waits there is bounded by what the
    /// caller has in flight. A dropped receiver drops completions. Writes of one call may reach the store in any order; who
    /// needs an order waits for completions. [`crate::NotDone`] is said only where no earlier try of the very same write was
    /// left unknown.
    fn write(&self, group: Vec<RoomWrite>, done: &mpsc::Sender<Vec<Completion>>);

    /// Every segment record of a room, in order of their ids; the first [`SEGMENTS_MAX`] and one more if there are more.
    /// Empty: nothing was ever written to it.
    fn segments(&self, room: RoomId) -> BoxFuture<'static, Result<Vec<SegmentRecord>, Error>>;

    fn said(&self, room: RoomId) -> BoxFuture<'static, Result<Option<Said>, Error>>;

    /// Rows of the spans (ascending, not overlapping) within `range`, ascending in the answer; `limit` cuts from the
    /// side that the range names, and is itself cut to [`crate::page::READ_MAX`]. Holes are left as holes: who reads
    /// knows what must be there.
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

    /// Members, present and past, by user id, and whether there are more. `limit` is cut to [`crate::page::PAGE_MAX`].
    fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<MemberPage, Error>>;

    /// Rooms of which the user is a member now, by id, and whether there are more. `limit` is cut to
    /// [`crate::page::PAGE_MAX`].
    fn user_rooms(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<RoomPage, Error>>;

    /// Raises marks; what is lower than stored changes nothing. Not durable by itself: written within a second. When too many
    /// wait, further ones are dropped and counted: callers state marks again.
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

    /// Writes the row of an owner and, in the same batch, marks the row of the one it replaced as closed; that row is made if
    /// it is not there yet. What is closed stays closed, whatever arrives later.
    fn put_slot_owner(
        &self,
        slot: SlotId,
        owner: SlotOwner,
        closes: Option<(Epoch, Incarnation)>,
    ) -> BoxFuture<'static, Result<(), Error>>;

    /// By epoch and incarnation. Closed ones below one that this store has put may be left out: they tell who registers
    /// nothing more.
    fn slot_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<SlotOwner>, Error>>;
}
