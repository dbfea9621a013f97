//! One connection as its worker sees it. What it costs while nothing happens is the size of this struct, twelve bytes a
//! room, and nothing else: everything that only a busy connection needs sits in a box that goes when it is idle.

use std::collections::VecDeque;

use banyan_proto::frame::Format;
use banyan_proto::id::{RoomId, Seq, UnixMs};
use banyan_proto::link::RoomCommand;
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use smallvec::SmallVec;

use crate::command::{Checked, SubscribeTo};
use crate::packed_send::PackedSend;
use crate::spare::Reuse;
use crate::ws::Decoder;

/// No user yet.
pub(crate) const NOBODY: u32 = u32::MAX;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for `auth`.
    New,
    /// The token is being checked; commands wait.
    Checking,
    Open,
    /// A close frame is queued or sent; nothing more is said or read as a command.
    Closing {
        /// The client has sent its close frame, or cannot be expected to.
        answered: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) phase: Phase,
    pub(crate) format: Format,
    /// The socket took fewer bytes than offered: sweeps skip it until it is writable.
    pub(crate) blocked: bool,
    /// More is queued for it than it reads: it is not read until that is out.
    pub(crate) full: bool,
    /// Head pushes were left out while it was blocked.
    pub(crate) heads_owed: bool,
    /// `token_expiring` was said for the present token.
    pub(crate) expiry_told: bool,
    /// Cursors that read from the log.
    pub(crate) reading: u32,
    /// Of these, the ones that have a page on its way (or want to be asked again).
    pub(crate) pulling: u32,
    /// Rooms of `subscribe`s under way in which it has no cursor yet.
    pub(crate) awaited: u32,
    /// Counts the tickets of its commands, never anew: an answer may come when its command is settled long since.
    pub(crate) tickets: u32,
    /// Which user, in the worker's slab.
    pub(crate) user: u32,
    pub(crate) decoder: Decoder,
    /// Rooms in which it has a cursor, in order of their numbers.
    pub(crate) rooms: Vec<RoomRef>,
    /// Small rooms that have something for it.
    pub(crate) dirty_rooms: SmallVec<[u32; 4]>,
    pub(crate) out: Option<Box<Out>>,
    pub(crate) flight: Option<Box<Flight>>,
    /// When anything was last received (worker's ms).
    pub(crate) heard_at: u64,
    /// When a ping was sent that has not been answered; 0: none is out.
    pub(crate) pinged_at: u64,
    /// Since when the socket owes progress: when it last took bytes; 0: it has taken everything.
    pub(crate) progress_at: u64,
    /// Not read before this; 0: read.
    pub(crate) paused_until: u64,
    /// When its entry in the timing wheel fires.
    pub(crate) timer_at: u64,
    /// Of the token; 0: none yet.
    pub(crate) expires_at: UnixMs,
    /// Opened, or closing since: what the phase's deadline counts from.
    pub(crate) phase_since: u64,
}

/// A cursor of this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoomRef {
    pub(crate) room: u32,
    pub(crate) place: Place,
}

/// Where the cursor sits in its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Live(u32),
    Passive(u32),
}

/// Bytes of whole frames that wait for the socket, in order; they go before anything that a cursor has.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) bytes: Vec<u8>,
    pub(crate) sent: usize,
}

impl Out {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }
}

/// Commands for which an empty flight may keep memory to let them wait in.
const WAITING_KEPT: usize = 8;
/// Memory of an empty queue above this is freed: a reply or a few events fit.
pub(crate) const OUT_KEPT: usize = 4 << 10;

impl Reuse for Out {
    fn clear(&mut self) -> bool {
        self.bytes.clear();
        self.sent = 0;
        self.bytes.capacity() <= OUT_KEPT
    }
}

/// Commands between their arrival and their reply.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// Mostly one.
    pub(crate) pending: SmallVec<[Pending; 1]>,
    /// Commands that wait for `auth` to finish or for large replies to be sent.
    pub(crate) waiting: VecDeque<(u64, Waiting)>,
    /// Commands refused with 106 in a row, since it was last empty.
    pub(crate) refused: u32,
}

impl Flight {
    /// Commands that have not been replied to.
    pub(crate) fn len(&self) -> usize {
        self.pending.iter().filter(|pending| !pending.is_replied()).count() + self.waiting.len()
    }

    /// Those that have, but whose rooms are still awaited.
    pub(crate) fn unfinished(&self) -> usize {
        self.pending.iter().filter(|pending| pending.is_replied()).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        self.pending.iter().any(|pending| pending.id == id && !pending.is_replied())
            || self.waiting.iter().any(|(waiting, _)| *waiting == id)
    }
}

impl Reuse for Flight {
    fn clear(&mut self) -> bool {
        self.pending.clear();
        self.waiting.clear();
        self.refused = 0;
        // Who had many commands under way was not the one that it is kept for.
        !self.pending.spilled() && self.waiting.capacity() <= WAITING_KEPT
    }
}

/// A command that has not begun.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// Until it is known who sends it.
    Unchecked(Command),
    /// Until earlier large replies are out.
    Checked(Checked),
}

/// One command that a reply is owed to.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) id: u64,
    /// Its ticket's count (the first of several).
    pub(crate) ticket: u32,
    pub(crate) since: u64,
    /// Of the room that a command is for.
    pub(crate) slot: u16,
    /// An owner may have it.
    pub(crate) handed: bool,
    /// Owners may have it more than once.
    pub(crate) twice: bool,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Auth,
    Refresh,
    Send {
        room: RoomId,
        /// As it came: another owner may have to be asked.
        send: PackedSend,
        /// The head that was known here when it was sent: no event up to this is what it made.
        above: Seq,
    },
    /// `heavy`: its reply may be large, only a few of these are asked for at once.
    Room {
        heavy: bool,
        room: RoomId,
        command: Box<RoomCommand>,
    },
    /// Done beside the workers, by the asynchronous part of the gateway.
    Backend,
    Subscribe(Box<Subscribing>),
}

impl Pending {
    /// Whether this event is what the send has made.
    pub(crate) fn is_made_by(&self, room: &RoomId, client_msg_id: &str, seq: Seq) -> bool {
        matches!(&self.what, What::Send { room: of, send, above }
            if send.has_id(client_msg_id) && of == room && seq > *above)
    }

    /// Whether this is the count of (one of) its tickets.
    pub(crate) fn has(&self, count: u32) -> bool {
        let span = match &self.what {
            What::Subscribe(subscribing) => subscribing.asked.len() as u32,
            _ => 1,
        };
        count.wrapping_sub(self.ticket) < span
    }

    fn is_replied(&self) -> bool {
        matches!(&self.what, What::Subscribe(subscribing) if subscribing.replied)
    }
}

/// A `subscribe` and what has come of its rooms so far.
#[derive(Debug)]
pub(crate) struct Subscribing {
    pub(crate) asked: Vec<SubscribeTo>,
    /// In the order of `asked`; room i has the ticket first + i.
    pub(crate) answered: Vec<Option<v1::SubscribedRoom>>,
    /// Which ones had no cursor yet when it was asked: they count for the limit of subscriptions.
    pub(crate) fresh: Vec<bool>,
    /// Which ones an `unsubscribe` has taken back meanwhile: they get no cursor. Empty: none.
    pub(crate) cancelled: Vec<bool>,
    pub(crate) left: usize,
    /// The reply is out; rooms that were `pending` in it are finished by pushes.
    pub(crate) replied: bool,
}

impl Connection {
    pub(crate) fn new(format: Format, now: u64) -> Self {
        Self {
            phase: Phase::New,
            format,
            blocked: false,
            full: false,
            heads_owed: false,
            expiry_told: false,
            reading: 0,
            pulling: 0,
            awaited: 0,
            tickets: 0,
            user: NOBODY,
            decoder: Decoder::default(),
            rooms: Vec::new(),
            dirty_rooms: SmallVec::new(),
            out: None,
            flight: None,
            heard_at: now,
            pinged_at: 0,
            progress_at: 0,
            paused_until: 0,
            timer_at: u64::MAX,
            expires_at: UnixMs(0),
            phase_since: now,
        }
    }

    /// Bytes that wait in front of the cursors.
    pub(crate) fn queued(&self) -> usize {
        self.out.as_ref().map_or(0, |out| out.len())
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    pub(crate) fn place_in(&self, room: u32) -> Option<Place> {
        let at = self.rooms.binary_search_by_key(&room, |reference| reference.room).ok()?;
        Some(self.rooms[at].place)
    }

    /// Notes where its cursor in a room sits, or that it has moved.
    pub(crate) fn put_place(&mut self, room: u32, place: Place) {
        match self.rooms.binary_search_by_key(&room, |reference| reference.room) {
            Ok(at) => self.rooms[at].place = place,
            Err(at) => self.rooms.insert(at, RoomRef { room, place }),
        }
    }

    pub(crate) fn take_place(&mut self, room: u32) -> Option<Place> {
        let at = self.rooms.binary_search_by_key(&room, |reference| reference.room).ok()?;
        Some(self.rooms.remove(at).place)
    }

    /// This room may have something for the connection.
    pub(crate) fn mark_room(&mut self, room: u32) {
        if !self.dirty_rooms.contains(&room) {
            self.dirty_rooms.push(room);
        }
    }

    /// The socket takes nothing more for now.
    pub(crate) fn block(&mut self, now: u64) {
        self.blocked = true;
        if self.progress_at == 0 {
            self.progress_at = now;
        }
    }
}
