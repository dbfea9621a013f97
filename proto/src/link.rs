//! What a gateway worker and the owner of a room say to each other. In one process these values travel through
//! channels; between nodes they will be encoded, so they hold no pointers back and no callbacks.
//!
//! Always holds, per link and direction: messages arrive in the order in which they were sent. From shard to gateway
//! answers are never dropped; events and heads may be (the link was full), and then a [`FromShard::Head`] follows.

use std::sync::Arc;

use crate::event::LoggedEvent;
use crate::id::{Epoch, Incarnation, LogId, Origin, RoomId, Seq, SlotId, UnixMs, UserId};
use crate::v1;

/// One end of a link as shards know it: a gateway worker, or the HTTP part of a gateway. Within a run of a shard a number is
/// never used for a second end, nor for the next life of the same one: answers to the one before may still be on their
/// way, and a gateway that has started anew counts its tickets from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// Names a question on its link; the answer carries it back. Chosen by who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Who acts, as the gateway has authenticated them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Person {
    pub user: UserId,
    /// The display name, copied into what they say.
    pub name: Arc<str>,
}

/// Several messages of one link, handed over at once: one wake for all of them.
#[derive(Debug)]
pub struct ToShardBatch {
    pub link: LinkId,
    pub messages: Vec<ToShard>,
}

/// Gateway to owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ToShard {
    /// A command to a room; answered once by [`FromShard::Answer`].
    Room {
        room: RoomId,
        call: Box<RoomCall>,
    },
    /// Events above `after` up to `through` (or head); answered by one [`FromShard::Page`]. Asked by gateways for
    /// cursors below their ring and to repair a gap: only rooms and seqs that an owner has admitted somebody to.
    Pull {
        room: RoomId,
        ticket: Ticket,
        after: Seq,
        through: Option<Seq>,
        max_events: u32,
        max_bytes: u32,
    },
    /// Cursors of this link stand in the room, admitted by an earlier owner: stated to each new one. The owner answers with a
    /// [`FromShard::Head`], and events follow.
    Interest {
        room: RoomId,
        after: Seq,
    },
    /// No cursor of this link stands in the room any more.
    Uninterest {
        room: RoomId,
    },
    /// A connection of this user lives on this link (the first one does), to the owner of the user's channel.
    UserOnline {
        user: UserId,
    },
    UserOffline {
        user: UserId,
    },
    /// One page of the rooms that the user is a member of, in order of their ids; answered by
    /// [`Answer::UserRooms`].
    UserRooms {
        ticket: Ticket,
        user: UserId,
        after: Option<RoomId>,
        limit: u32,
    },
    /// From the owner of a room to the owner of a user's channel: goes to every connection of the user.
    Notify {
        user: UserId,
        push: Arc<v1::server_frame::Body>,
    },
    /// Logins of this user have ended, or all their tokens, and the store says so: from the gateway that wrote it to the
    /// owner of the user's channel, for every gateway that has connections of theirs. It proves nothing, so anybody may say
    /// it; it may be lost, so gateways look at the store now and then anyway.
    LoginsEnded {
        user: UserId,
    },
}

/// A command to a room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoomCall {
    pub ticket: Ticket,
    pub caller: Person,
    pub origin: Origin,
    pub command: RoomCommand,
}

/// The commands of docs/protocol.md that a room answers. Field rules (lengths, characters, counts) are checked by the
/// gateway; what depends on the room's state is checked by its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RoomCommand {
    /// Members other than the caller, already known to exist.
    Create {
        kind: v1::RoomKind,
        name: String,
        public: bool,
        members: Vec<Person>,
    },
    Update {
        name: Option<String>,
        public: Option<bool>,
    },
    Join,
    Leave,
    Add {
        users: Vec<Person>,
    },
    Remove {
        user: UserId,
    },
    SetRole {
        user: UserId,
        role: v1::Role,
    },
    Send(v1::Send),
    Mark {
        delivered: Option<Seq>,
        seen: Option<Seq>,
    },
    History {
        before: Option<Seq>,
        after: Option<Seq>,
        limit: u32,
    },
    Members {
        after: Option<UserId>,
        limit: u32,
    },
    /// The room as it stands in the caller's `rooms`.
    Summary,
    /// Admits a cursor, and states the link's interest in the same step: every event above the head of the answer
    /// follows on this link.
    Subscribe,
}

impl RoomCommand {
    /// Whether it may be asked again though an owner may have done it already: doing it twice is doing it once. The
    /// owner knows a send by its id.
    pub fn may_repeat(&self) -> bool {
        match self {
            Self::Send(_)
            | Self::Mark { .. }
            | Self::History { .. }
            | Self::Members { .. }
            | Self::Summary
            | Self::Subscribe => true,
            Self::Create { .. }
            | Self::Update { .. }
            | Self::Join
            | Self::Leave
            | Self::Add { .. }
            | Self::Remove { .. }
            | Self::SetRole { .. } => false,
        }
    }
}

/// Owner to gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FromShard {
    Answer {
        ticket: Ticket,
        /// Under which ownership of the slot it was decided; zero where no room was asked.
        epoch: Epoch,
        answer: Answer,
    },
    /// The process does not own this slot (any longer), or not yet.
    Moved {
        slot: SlotId,
        /// The question that was not taken: it is asked again of the owner, under the same ticket. `None`: to whom it may
        /// concern.
        ticket: Option<Ticket>,
        /// The newest ownership that it knows.
        epoch: Epoch,
        owner: Option<Incarnation>,
    },
    /// New events of a room, seqs dense within the batch and, unless something was dropped, after the last batch.
    Events { room: RoomId, epoch: Epoch, events: Arc<[Arc<LoggedEvent>]> },
    /// Head beacon: the room has come this far, whether the link took the events or not.
    Head { room: RoomId, epoch: Epoch, head: Seq, n: u64, last_membership: Seq },
    /// Marks of members that moved; at most once a second a room.
    Marks { room: RoomId, epoch: Epoch, marks: Arc<[v1::UserMarks]> },
    /// A member is out of the room since this seq, whether an event says so or (in rooms that only count who comes and
    /// goes) none does: nothing above it is theirs.
    Left { room: RoomId, epoch: Epoch, user: UserId, at: Seq },
    /// The answer to a pull, ascending. `more`: the limits ended it before `through` or head.
    Page { ticket: Ticket, room: RoomId, epoch: Epoch, page: Result<Page, v1::Error> },
    /// For every connection of this user on the link.
    User { user: UserId, push: Arc<v1::server_frame::Body> },
    /// Logins of this user may have ended: the store says which.
    LoginsEnded { user: UserId },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Page {
    pub events: Vec<Arc<LoggedEvent>>,
    pub head: Seq,
    pub n: u64,
    /// Seqs up to here are gone for good (retention).
    pub floor: Seq,
    pub more: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The reply as the client will see it: everything but the three below.
    Body(Box<v1::server_frame::Body>),
    /// A message is in the log. In one piece, as there is one for every send, and mostly its event has said it already;
    /// who makes a reply of it knows the room.
    Sent {
        seq: Seq,
        at: UnixMs,
        /// It was there before.
        duplicate: bool,
    },
    Admitted(Box<Admission>),
    Summary(Box<v1::Room>),
    UserRooms {
        rooms: Vec<RoomId>,
        more: bool,
    },
    Error(Box<v1::Error>),
}

/// One goes with every command, and most of them pass through a queue by value.
const _: () = assert!(size_of::<Answer>() <= 32);

/// What an owner grants to one cursor: the room at this moment as its caller may see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Admission {
    pub epoch: Epoch,
    pub log: LogId,
    pub kind: v1::RoomKind,
    /// The last seq that exists now; for who has left, the last that they may see.
    pub head: Seq,
    pub n: u64,
    pub role: v1::Role,
    pub delivered: Seq,
    pub seen: Seq,
    pub seen_n: u64,
    /// Seqs up to here are gone for good (retention).
    pub floor: Seq,
    /// Intervals (first, last) in which the caller was out of the room: announced as gaps, never pushed.
    pub out: Vec<(Seq, Seq)>,
    /// Set for who has left or was removed: nothing above is theirs.
    pub end: Option<Seq>,
    /// How many members the room has: marks are told to all below a hundred.
    pub members: u64,
}
