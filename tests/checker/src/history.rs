//! What a run saw: the input of the check.
//!
//! Owns: the records of the clients, in the order in which they happened.
//! Always holds: a command's record stands before its completion; a client writes the record of a command before it
//! sends it and the record of a frame after it has read it, so "before" here means before in real time.
//! Does not: judge.

use serde::{Deserialize, Serialize};

use crate::facts::{Counted, Fault, Fence, Liveness, SlotChange};
use crate::id::{Call, Connection, Content, Log, Message, Room, Seq, Session, Time, UnixMs, User};
use crate::names::Names;
use crate::store::Store;

/// Everything that a run saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Who each session is; indexed by [`Session`].
    pub sessions: Vec<User>,
    /// In order. Times must not fall; at equal times the order of the list counts (a simulator has a true order; files of
    /// processes are merged so that ties hide an order and never invent one).
    pub records: Vec<Record>,
    /// What the store holds at the end, after all is quiet.
    pub store: Option<Store>,
    /// Every change of ownership, in order of time.
    pub slots: Vec<SlotChange>,
    pub fences: Vec<Fence>,
    /// What was done to the system, in order of time.
    pub faults: Vec<Fault>,
    /// What must have come back to life, if that is demanded.
    pub liveness: Option<Liveness>,
    pub counted: Counted,
    pub names: Names,
}

/// Something that a client did or was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub at: Time,
    pub on: Connection,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The connection is authenticated. A session's second one is a resume.
    Begin {
        session: Session,
    },
    /// The connection is gone, as far as the client knows; what is open has an unknown outcome.
    End,

    // ------------------------------------------------------------ commands
    Send {
        call: Call,
        room: Room,
        message: Message,
        since: Option<Seq>,
        content: Content,
    },
    /// One room of a `subscribe`; rooms of one frame share the call.
    Subscribe {
        call: Call,
        room: Room,
        start: Start,
        mode: Mode,
    },
    Unsubscribe {
        call: Call,
        room: Room,
    },
    History {
        call: Call,
        room: Room,
        range: Range,
        limit: u32,
    },
    Mark {
        call: Call,
        room: Room,
        delivered: Option<Seq>,
        seen: Option<Seq>,
    },
    /// Any other command about a room: create, join, leave, add, remove, set role, update, rooms, members.
    Ask {
        call: Call,
        room: Room,
        about: Ask,
    },

    // ------------------------------------------------------------ completions
    /// The ok reply to a send.
    Sent {
        call: Call,
        seq: Seq,
        at: UnixMs,
        duplicate: bool,
    },
    /// One room of a `subscribe` reply, or the push `subscribed`. Rooms that are `pending` have no record yet.
    Subscribed {
        call: Call,
        room: Room,
        reply: Box<Subscribed>,
    },
    /// The ok reply to `unsubscribe`: nothing of the room follows.
    UnsubscribeDone {
        call: Call,
        room: Room,
    },
    /// One event of a history page; the page's own record ends it.
    PageEvent {
        call: Call,
        event: Event,
    },
    PageGap {
        call: Call,
        from: Seq,
        to: Seq,
        expired: bool,
    },
    Page {
        call: Call,
        head: Seq,
        log: Log,
        more: bool,
    },
    Marked {
        call: Call,
        marks: Marks,
    },
    /// The ok reply to [`What::Ask`]; with the head that it names, if it names one.
    Answered {
        call: Call,
        head: Option<Seq>,
    },
    /// An error; `room` for one room of a `subscribe`.
    Refused {
        call: Call,
        room: Option<Room>,
        code: u16,
    },

    // ------------------------------------------------------------ pushes
    Event {
        room: Room,
        event: Event,
    },
    Gap {
        room: Room,
        from: Seq,
        to: Seq,
        expired: bool,
    },
    /// The push `unsubscribed`.
    Unsubscribed {
        room: Room,
        code: u16,
    },
    /// To passive readers.
    Head {
        room: Room,
        head: Seq,
        n: u64,
    },
    /// One user of a `marks` push.
    Marks {
        room: Room,
        user: User,
        delivered: Seq,
        seen: Seq,
    },
}

impl What {
    /// Something that the client does, as against what it is told.
    pub const fn is_command(&self) -> bool {
        matches!(
            self,
            Self::Begin { .. }
                | Self::End
                | Self::Send { .. }
                | Self::Subscribe { .. }
                | Self::Unsubscribe { .. }
                | Self::History { .. }
                | Self::Mark { .. }
                | Self::Ask { .. }
        )
    }
}

/// Where a subscription is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    After { seq: Seq, log: Option<Log> },
    Last(u32),
    Unread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Live,
    Passive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    After(Seq),
    Before(Seq),
    Newest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    Create,
    Join,
    Leave,
    Add(User),
    Remove(User),
    SetRole(User),
    Update,
    /// A read that names a head: the room in `rooms`.
    Summary,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    pub log: Log,
    pub head: Seq,
    pub n: u64,
    pub from: Seq,
    /// 0: not (any longer) a member.
    pub role: u8,
    pub marks: Marks,
    pub gap: Option<Gap>,
    pub reset: bool,
}

/// Both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub from: Seq,
    pub to: Seq,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    pub delivered: Seq,
    pub seen: Seq,
    pub seen_n: u64,
}

/// One event, as pushed, paged or stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub seq: Seq,
    /// Messages up to here.
    pub n: u64,
    pub at: UnixMs,
    pub sender: User,
    pub message: Option<Message>,
    pub content: Content,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Message,
    /// By its sender, who is a member from here on.
    Created,
    Joined(User),
    Left(User),
    Removed(User),
    RoleChanged(User),
    RoomChanged,
    Other,
}

impl Kind {
    /// Whose membership or role it changes.
    pub const fn concerns(self, sender: User) -> Option<User> {
        match self {
            Self::Created => Some(sender),
            Self::Joined(user) | Self::Left(user) | Self::Removed(user) | Self::RoleChanged(user) => {
                Some(user)
            }
            Self::Message | Self::RoomChanged | Self::Other => None,
        }
    }
}

/// What a code says of the send that it answers (docs/protocol.md, "Delivery").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing.
    Unknown,
    /// This try was refused; nothing of earlier ones.
    ThisTry,
    /// No try is in the log.
    Definite,
}

impl Refusal {
    pub const fn of(code: u16) -> Self {
        match code {
            100 | 108 | 113 => Self::Unknown,
            101 | 106 | 109 | 111 | 112 => Self::ThisTry,
            _ => Self::Definite,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_the_table_of_codes_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/codes.json");
        let table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let errors = table["errors"].as_array().unwrap();
        assert!(errors.len() > 10);
        for error in errors {
            let want = match error["verdict"].as_str().unwrap() {
                "unknown" => Refusal::Unknown,
                "refused" => Refusal::ThisTry,
                "definite" => Refusal::Definite,
                other => panic!("{other}"),
            };
            assert_eq!(Refusal::of(error["code"].as_u64().unwrap() as u16), want, "{error}");
        }
    }

    #[test]
    fn a_record_stays_small() {
        assert!(size_of::<Record>() <= 88, "{}", size_of::<Record>());
    }
}
