//! One room as a gateway worker sees it: how far it has applied the log, and who reads it here.
//!
//! Always holds: events are applied contiguously, whatever the link drops or repeats; nothing of an epoch below the
//! highest seen is applied.

use banyan_proto::frame::Format;
use banyan_proto::id::{Epoch, RoomId, Seq};
use banyan_proto::link::Ticket;

use crate::ring::Ring;

/// Live cursors up to which a room is swept by connection, not by room.
pub(crate) const SMALL_ROOM: usize = 64;

#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) id: RoomId,
    /// The highest seen of its slot.
    pub(crate) epoch: Epoch,
    pub(crate) slot: u16,
    /// Where it stands in the slot's list of rooms.
    pub(crate) slot_place: u32,
    /// What the owner says to an interest begins here: how far the room had come when the owner, or the way to it, went.
    pub(crate) heard_to: Option<Seq>,
    /// Interest was stated to a new owner, which has not said a word of it yet.
    pub(crate) stated: bool,
    /// An owner has admitted somebody: `applied` means something.
    pub(crate) admitted: bool,
    pub(crate) applied: Seq,
    /// Messages up to `applied`.
    pub(crate) n: u64,
    /// The highest head that an owner has said.
    pub(crate) known_head: Seq,
    pub(crate) sides: [Side; 2],
    /// Who wants heads only.
    pub(crate) passive: Vec<Passive>,
    /// Subscribes that wait for the owner.
    pub(crate) awaited: u32,
    /// A pull that fills a gap is under way.
    pub(crate) repair: Option<Ticket>,
    /// That pull has failed and is asked for again a little later.
    pub(crate) repair_waits: bool,
    /// Since when nobody reads it or waits for it (means something while that is so).
    pub(crate) unused_at: u64,
    /// It stands in the worker's list of unused rooms.
    pub(crate) unused_queued: bool,
    /// It stands in the worker's queue of big rooms.
    pub(crate) queued: bool,
    pub(crate) heads_queued: bool,
    pub(crate) heads_at: u64,
    pub(crate) changed_at: u64,
    /// Format and place at which the present pass over a big room stands, and the head when it began.
    pub(crate) pass: Pass,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Pass {
    pub(crate) side: usize,
    pub(crate) at: usize,
    pub(crate) head: Seq,
}

/// Readers of one format.
#[derive(Debug, Default)]
pub(crate) struct Side {
    pub(crate) ring: Option<Box<Ring>>,
    pub(crate) cursors: Vec<Cursor>,
    /// Bytes of all events so far, whether a ring held them or not: how far behind a slow cursor is.
    pub(crate) streamed: u64,
}

/// One live reader. The next seq that it gets, not a byte offset: it stays right when the ring goes or moves.
#[derive(Debug)]
pub(crate) struct Cursor {
    pub(crate) next: Seq,
    /// The head at which an owner admitted it: what the log says of its user up to there is history.
    pub(crate) admitted: Seq,
    pub(crate) connection: u32,
    pub(crate) state: CursorState,
    pub(crate) extra: Option<Box<Extra>>,
}

/// One reader of heads.
#[derive(Debug)]
pub(crate) struct Passive {
    pub(crate) admitted: Seq,
    /// The last head that it was told.
    pub(crate) told: Seq,
    pub(crate) connection: u32,
    /// Its `subscribe` has not been answered yet.
    pub(crate) held: bool,
    /// Its user left while it was held.
    pub(crate) ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CursorState {
    /// Its `subscribe` has not been answered yet.
    Held,
    /// Reads from the ring.
    Live,
    /// Fell off the ring, or began below it: reads pages from the log.
    Reading,
}

/// What few cursors have.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Replies to this connection's own sends, which stand in the place of their events; by seq.
    pub(crate) replies: Vec<(Seq, Box<[u8]>)>,
    /// Intervals in which the user was out of the room.
    pub(crate) out: Vec<(Seq, Seq)>,
    /// The user has left at this seq: it is the last one.
    pub(crate) end: Option<Seq>,
    pub(crate) pull: PullState,
    /// Where it reads, on the scale of the side's `streamed`: that number when it began to read from the log, and
    /// what it has read since.
    pub(crate) read_to: u64,
}

/// How a cursor that reads from the log stands to its next page.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullState {
    #[default]
    None,
    /// It waits for one of the few pulls, or for another try.
    Queued,
    /// This pull will bring it. The page of any other one is not meant for this cursor.
    Asked(Ticket),
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.replies.is_empty() && self.out.is_empty() && self.end.is_none() && self.pull == PullState::None
    }

    /// Moves the replies whose places lie below `next` to the end of `out`.
    pub(crate) fn put_replies_below(&mut self, next: Seq, out: &mut Vec<u8>) {
        self.replies.retain(|(seq, reply)| {
            let due = *seq < next;
            if due {
                out.extend_from_slice(reply);
            }
            !due
        });
    }

    /// The last seq of the absence in which `seq` lies.
    pub(crate) fn absent_until(&self, seq: Seq) -> Option<Seq> {
        self.out.iter().find(|(first, last)| (*first..=*last).contains(&seq)).map(|(_, last)| *last)
    }
}

impl Cursor {
    pub(crate) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(crate) fn end(&self) -> Option<Seq> {
        self.extra.as_ref()?.end
    }

    /// Frees what is no longer needed.
    pub(crate) fn tidy(&mut self) {
        if self.state == CursorState::Live && self.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            self.extra = None;
        }
    }
}

pub(crate) const fn side_of(format: Format) -> usize {
    match format {
        Format::Json => 0,
        Format::Proto => 1,
    }
}

pub(crate) const SIDES: [Format; 2] = [Format::Json, Format::Proto];

impl Room {
    pub(crate) fn new(id: RoomId, slot: u16, epoch: Epoch, now: u64) -> Self {
        Self {
            id,
            epoch,
            slot,
            slot_place: 0,
            heard_to: None,
            stated: false,
            admitted: false,
            applied: Seq(0),
            n: 0,
            known_head: Seq(0),
            sides: [Side::default(), Side::default()],
            passive: Vec::new(),
            awaited: 0,
            repair: None,
            repair_waits: false,
            unused_at: now,
            unused_queued: false,
            queued: false,
            heads_queued: false,
            heads_at: 0,
            changed_at: now,
            pass: Pass::default(),
        }
    }

    pub(crate) fn live(&self) -> usize {
        self.sides[0].cursors.len() + self.sides[1].cursors.len()
    }

    pub(crate) fn has_cursors(&self) -> bool {
        !self.passive.is_empty() || self.live() > 0
    }

    /// Nobody reads it or waits for it.
    pub(crate) fn is_unused(&self) -> bool {
        self.awaited == 0 && !self.has_cursors()
    }
}
