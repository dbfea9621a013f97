//! What is known of a run beside its clients and its store: who owned what, what was broken, what must live again.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Incarnation, Room, Session, Slot, Time};

/// Since now this incarnation owns the slot under this epoch. The first one of a slot is no change of owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotChange {
    pub at: Time,
    /// When it began to serve the slot, where that is told; else it is taken for `at`. Between the two it registers, and may stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Time>,
    pub slot: Slot,
    pub epoch: Epoch,
    pub owner: Incarnation,
    pub how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Nobody owned it, or a process starts again alone.
    Claim,
    Handoff,
    Takeover,
    /// The same owner under a higher epoch.
    Again,
    /// By the operator, after a restored etcd.
    Recover,
}

/// An incarnation was ended for ever: the fence row is at quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub at: Time,
    pub incarnation: Incarnation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub at: Time,
    pub kind: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A server process ended without warning; its memory is gone.
    Kill,
    /// As `Kill`, and what was not synced is gone from its disk.
    PowerCut,
    /// Anything that takes no memory: cuts, delays, freezes, clocks.
    Other,
}

impl FaultKind {
    pub const fn takes_memory(self) -> bool {
        matches!(self, Self::Kill | Self::PowerCut)
    }
}

/// What I15 demands of the end of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// The last fault healed.
    pub healed: Time,
    /// By then all must be done; healed + 2 × TTL + 10 s.
    pub deadline: Time,
    /// Each has taken a send between the two.
    pub rooms: Vec<Room>,
    /// Each has reached the head by then: that of the first send that was acked after the heal (of the log's end, if
    /// `settled`), or the last seq that it may see.
    pub subscribers: Vec<(Session, Room)>,
    /// Nobody sent any more at the end: subscribers must have reached the end of the log.
    pub settled: bool,
}

/// What only the run itself can count. Clients do not see it, and without it a run proves little.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Things that an owner would have said, had it not been fenced.
    pub fenced_utterances: u64,
    /// Writes to store or etcd whose outcome was unknown.
    pub unknown_outcomes: u64,
    /// Holes in what a gateway had, filled by a pull.
    pub gap_repairs: u64,
}
