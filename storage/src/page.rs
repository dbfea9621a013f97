//! What is asked of a log or a table, and the page of it that comes back.

use banyan_proto::id::{RoomId, Seq};

use crate::row::{Marks, MemberRow, Row};

/// Above this a [`ReadLimit`] is cut: the longest log between `since` and head that a send may ask for.
pub const READ_MAX: ReadLimit = ReadLimit { events: 10_000, bytes: 8 << 20 };
/// What an opening room shows first.
pub const TAIL: ReadLimit = ReadLimit { events: 64, bytes: 256 << 10 };
/// Members or rooms in one answer at most.
pub const PAGE_MAX: usize = 1_000;

/// Which part of a log, and from which side a page of it fills. Rows come back ascending either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
