//! The bounded worlds that are explored: how many of what, and what may happen in them.

use banyan_proto::plant::Bug;

use crate::store::Model;

/// What an old owner passes on of a room that it had open in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    State,
    /// Only that it was open: the new owner reads the store, and rewrites nothing.
    Names,
}

/// When an owner may be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKeys {
    /// At any time: nobody's node key is looked at.
    None,
    /// When its node key is gone, which may happen to a living one.
    Lost,
}

#[derive(Debug, Clone)]
pub struct World {
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    pub store: Model,
    /// Runs of nodes. The virtual further owner comes on top.
    pub nodes: u8,
    /// Highest epoch of the slot.
    pub epochs: u64,
    /// Length of the log at most.
    pub head: u64,
    /// Appends of one tenure at most.
    pub appends: u8,
    /// Batches of two events as well as of one.
    pub batches: bool,
    /// Rows of a batch reach replicas one by one.
    pub torn: bool,
    /// Later time windows that an append may fall into.
    pub windows: u8,
    /// Times that an owner drops the room, whatever is under way, and opens it again.
    pub reopens: u32,
    /// Opened for reads only first, or at once in full.
    pub read_open: bool,
    /// An owner may write where the log ends, and close the room or not.
    pub rests: bool,
    /// A room that was closed so goes on in its own segment.
    pub goes_on: bool,
    /// Events that change members.
    pub changes: bool,
    /// Joins and leaves that no event tells of.
    pub counted: bool,
    pub takes: bool,
    /// A run owns the slot once at most.
    pub once: bool,
    pub handoffs: bool,
    pub pass: Pass,
    pub node_keys: NodeKeys,
    /// Transactions may apply late or never, and nobody may hear of it.
    pub unknown: bool,
    /// Transactions that may be under way.
    pub requests: usize,
    /// Registration takes its time; else it is there at once, for everybody.
    pub registers: bool,
    /// A fence read of the gate begins and ends in steps of their own.
    pub gate_reads: bool,
    /// So many of them at once.
    pub overlaps: usize,
    /// Utterances that may wait in a gate when a further question comes.
    pub waiting: usize,
    /// Somebody asks for the log; else only appends are told of.
    pub asks: bool,
    /// Questions also while an append is in flight.
    pub asks_always: bool,
    /// Writes of the log may be answered as unknown.
    pub unknown_writes: bool,
    /// Nodes learn of keys that do not name them.
    pub watches: bool,
    /// A drain may be called off.
    pub calls_off: bool,
    /// etcd may be set back once, to any value that it had.
    pub restores: bool,
    /// `ring recover` is run after that, at any time.
    pub recovers: bool,
    /// Nobody changes ownership between the restore and its end.
    pub stands_still: bool,
    /// The last run is started after it.
    pub fresh: bool,
    /// Handoffs only before a restore, takeovers only after it.
    pub lean: bool,
    /// A process whose fence row is there though it has its node key is a violation.
    pub healthy: bool,
    /// In the quick set.
    pub quick: bool,
    /// More states than the default bounds let it have: given up without a finding, it is as it must be.
    pub too_large: bool,
}

const BASE: World = World {
    name: "",
    about: "",
    store: Model::Abs,
    nodes: 3,
    epochs: 3,
    head: 2,
    appends: 2,
    batches: false,
    torn: false,
    windows: 0,
    reopens: 0,
    read_open: false,
    rests: false,
    goes_on: false,
    changes: false,
    counted: false,
    takes: true,
    once: false,
    handoffs: false,
    pass: Pass::State,
    node_keys: NodeKeys::None,
    unknown: false,
    requests: 1,
    registers: false,
    gate_reads: false,
    overlaps: 1,
    waiting: 1,
    asks: true,
    asks_always: false,
    unknown_writes: false,
    watches: false,
    calls_off: false,
    restores: false,
    recovers: false,
    stands_still: false,
    fresh: false,
    lean: false,
    healthy: false,
    quick: true,
    too_large: false,
};

pub fn worlds() -> Vec<World> {
    vec![
        World { name: "log", about: "takeovers; torn batches of two", batches: true, torn: true, ..BASE },
        World {
            name: "log-3",
            about: "takeovers; 3 events, torn batches",
            head: 3,
            appends: 3,
            batches: true,
            torn: true,
            quick: false,
            ..BASE
        },
        World { name: "log-4", about: "takeovers by a fourth owner", nodes: 4, epochs: 4, head: 1, ..BASE },
        World {
            name: "reads",
            about: "fence reads take their time; questions at any time",
            gate_reads: true,
            asks_always: true,
            waiting: 2,
            nodes: 2,
            epochs: 2,
            ..BASE
        },
        World {
            name: "overlaps",
            about: "fence reads overlap; several utterances wait",
            nodes: 2,
            epochs: 2,
            head: 1,
            gate_reads: true,
            overlaps: 2,
            waiting: 2,
            asks_always: true,
            ..BASE
        },
        World {
            name: "writes",
            about: "writes of the log answered as unknown, then made again",
            unknown_writes: true,
            nodes: 2,
            epochs: 2,
            ..BASE
        },
        World {
            name: "rep",
            about: "three replicas, each delivery a step",
            store: Model::Rep,
            nodes: 2,
            epochs: 2,
            gate_reads: true,
            quick: false,
            ..BASE
        },
        World {
            name: "rep-1",
            about: "three replicas, each delivery a step; 1 event",
            store: Model::Rep,
            nodes: 2,
            epochs: 2,
            head: 1,
            gate_reads: true,
            ..BASE
        },
        World {
            name: "jit",
            about: "three replicas, deliveries when they can be seen",
            store: Model::Jit,
            nodes: 2,
            epochs: 2,
            gate_reads: true,
            ..BASE
        },
        World {
            name: "jit-3",
            about: "the same, 3 owners, 1 event; a fence read at one moment",
            store: Model::Jit,
            head: 1,
            quick: false,
            ..BASE
        },
        World {
            name: "rolls",
            about: "segments roll; handoffs with state",
            head: 2,
            windows: 1,
            handoffs: true,
            once: true,
            ..BASE
        },
        World {
            name: "rolls-4",
            about: "segments roll; handoffs; a fourth owner",
            nodes: 4,
            epochs: 4,
            head: 1,
            windows: 1,
            handoffs: true,
            once: true,
            quick: false,
            ..BASE
        },
        World {
            name: "names",
            about: "handoffs that pass on only which rooms are open",
            handoffs: true,
            pass: Pass::Names,
            once: true,
            ..BASE
        },
        World {
            name: "again",
            about: "handoffs back to an earlier owner",
            nodes: 2,
            epochs: 3,
            handoffs: true,
            ..BASE
        },
        World {
            name: "reopen",
            about: "rooms dropped at any point and opened again in the epoch",
            nodes: 2,
            epochs: 2,
            reopens: 1,
            ..BASE
        },
        World {
            name: "reopen-3",
            about: "the same, 3 owners, 1 event",
            head: 1,
            reopens: 1,
            quick: false,
            ..BASE
        },
        World {
            name: "etcd",
            about: "transactions late, never, unheard; node keys; registration; handoffs",
            nodes: 2,
            epochs: 3,
            head: 9,
            appends: 1,
            handoffs: true,
            unknown: true,
            requests: 3,
            node_keys: NodeKeys::Lost,
            registers: true,
            ..BASE
        },
        World {
            name: "restore",
            about: "etcd set back to an earlier value",
            nodes: 2,
            epochs: 3,
            head: 9,
            appends: 1,
            handoffs: true,
            unknown: true,
            requests: 1,
            asks: false,
            node_keys: NodeKeys::Lost,
            registers: true,
            restores: true,
            quick: false,
            ..BASE
        },
        World {
            name: "restore-lean",
            about: "etcd set back; handoffs before, takeovers after it",
            nodes: 2,
            epochs: 3,
            head: 9,
            appends: 1,
            handoffs: true,
            unknown: true,
            requests: 1,
            node_keys: NodeKeys::Lost,
            registers: true,
            restores: true,
            lean: true,
            ..BASE
        },
        World {
            name: "restore-3",
            about: "etcd set back; three runs; handoffs before, takeovers after it",
            epochs: 3,
            head: 9,
            appends: 1,
            handoffs: true,
            unknown: true,
            node_keys: NodeKeys::Lost,
            registers: true,
            restores: true,
            lean: true,
            asks: false,
            quick: false,
            too_large: true,
            ..BASE
        },
        World {
            name: "recover",
            about: "etcd set back, ring recover run at any time; two runs and a fresh one",
            epochs: 2,
            head: 3,
            appends: 1,
            handoffs: true,
            node_keys: NodeKeys::None,
            registers: true,
            restores: true,
            recovers: true,
            fresh: true,
            lean: true,
            asks: false,
            quick: false,
            ..BASE
        },
        World {
            name: "recover-still",
            about: "the same, nothing moves before it is through",
            epochs: 2,
            head: 3,
            appends: 1,
            handoffs: true,
            node_keys: NodeKeys::None,
            restores: true,
            recovers: true,
            stands_still: true,
            fresh: true,
            lean: true,
            asks: false,
            ..BASE
        },
        World {
            name: "etcd-2",
            about: "the same with drains that are called off, 2 epochs",
            nodes: 2,
            epochs: 2,
            handoffs: true,
            unknown: true,
            requests: 1,
            node_keys: NodeKeys::Lost,
            calls_off: true,
            ..BASE
        },
        World {
            name: "read-open-again",
            about: "closed in good order and opened again in the epoch",
            nodes: 2,
            epochs: 2,
            rests: true,
            read_open: true,
            reopens: 1,
            ..BASE
        },
        World {
            name: "rest",
            about: "closed in good order, opened again in its own segment, or for reads",
            nodes: 2,
            epochs: 2,
            rests: true,
            goes_on: true,
            read_open: true,
            reopens: 1,
            ..BASE
        },
        World {
            name: "rest-3",
            about: "the same with three owners, 1 event",
            head: 1,
            rests: true,
            goes_on: true,
            read_open: true,
            reopens: 1,
            quick: false,
            ..BASE
        },
        World {
            name: "read-open-4",
            about: "closed in good order, opened for reads; a fourth owner",
            nodes: 4,
            epochs: 4,
            head: 1,
            appends: 1,
            rests: true,
            read_open: true,
            quick: false,
            ..BASE
        },
        World {
            name: "read-open",
            about: "closed in good order, opened for reads; takeovers",
            rests: true,
            read_open: true,
            head: 1,
            ..BASE
        },
        World { name: "derived", about: "events that change members", changes: true, ..BASE },
        World { name: "counted", about: "joins that no event tells of", counted: true, ..BASE },
    ]
}

/// Something that is wrong on purpose, and the world in which it must show.
#[derive(Debug, Clone)]
pub struct Planted {
    pub name: &'static str,
    /// `None`: the world itself leaves the rule out.
    pub bug: Option<Bug>,
    pub world: World,
}

impl Planted {
    pub fn name(&self) -> String {
        self.bug.map_or_else(|| self.name.to_owned(), |bug| format!("{bug:?}"))
    }
}

/// Every ablation that `reference/fence-model.md` and `fence-model2.md` mark as caught and that belongs to the log, the
/// gate or the slot machine; in the order of those tables.
pub fn bugs() -> Vec<Planted> {
    let all = worlds();
    let world =
        |name: &str| all.iter().find(|world| world.name == name).cloned().expect("a world of that name");
    let in_world = |bug: Bug, name: &str| Planted { name: "", bug: Some(bug), world: world(name) };
    vec![
        in_world(Bug::NoBarrier, "log"),
        in_world(Bug::NoBarrierOnAcks, "log"),
        in_world(Bug::BarrierBegunEarly, "reads"),
        in_world(Bug::NoBarrierOnReplies, "log"),
        in_world(Bug::NoFence, "log"),
        in_world(Bug::FenceAfterRead, "log"),
        in_world(Bug::FenceOnlyDirectPredecessor, "log"),
        in_world(Bug::RecordLazily, "log"),
        in_world(Bug::RecordNotAwaited, "log"),
        in_world(Bug::NoTailRewrite, "log"),
        in_world(Bug::OnlyLastRowRewritten, "log"),
        in_world(Bug::RecordNotRewritten, "log"),
        in_world(Bug::RecordBeforeRewrite, "log"),
        in_world(Bug::HigherFirstSeqCuts, "log"),
        in_world(Bug::RollNotAwaited, "rolls"),
        in_world(Bug::OpenRetriedUnderSameKey, "reopen-3"),
        in_world(Bug::RetryUnderNewSeq, "writes"),
        in_world(Bug::HandoffWithAppendInFlight, "etcd-2"),
        in_world(Bug::HandoffOldOwnerGoesOn, "names"),
        in_world(Bug::HandoffUnopenedRoomSkips, "names"),
        in_world(Bug::IncarnationReused, "log"),
        in_world(Bug::EpochReused, "etcd"),
        in_world(Bug::ReadSettlesTransaction, "etcd"),
        in_world(Bug::EarlyStateUsed, "etcd-2"),
        in_world(Bug::TimedOutClaimSkipsOpen, "etcd-2"),
        in_world(Bug::StateNotBoundToEpoch, "etcd"),
        Planted {
            name: "nobody looks at node keys",
            bug: None,
            world: World { node_keys: NodeKeys::None, healthy: true, ..world("etcd") },
        },
        in_world(Bug::RegistrationAsMaximum, "etcd"),
        in_world(Bug::RegistrationBeforeClaim, "etcd"),
        in_world(Bug::NoRegistration, "restore"),
        in_world(Bug::RegistrationAsMaximum, "restore"),
        in_world(Bug::RegistrationAsMaximumAtHandoffToo, "restore"),
        in_world(Bug::RegistrationIgnoresLowerRows, "restore-3"),
        in_world(Bug::RecoverSparesRunningNode, "recover-still"),
        in_world(Bug::SaidWithoutBarrier, "read-open-4"),
        in_world(Bug::ReadOpenIgnoresNewerRows, "read-open"),
        in_world(Bug::ReadOpenIgnoresNewerRecords, "read-open-again"),
        in_world(Bug::SaidReadBeforeFence, "read-open"),
        in_world(Bug::DerivedBeforeBarrier, "derived"),
        in_world(Bug::DerivedBeforeBarrier, "counted"),
        in_world(Bug::DerivedNotAwaited, "derived"),
        in_world(Bug::DerivedNotReapplied, "derived"),
        in_world(Bug::DerivedReappliedWithRewrite, "derived"),
        in_world(Bug::DerivedReappliedAfterRewrite, "derived"),
        in_world(Bug::DerivedReappliedBeforeRecord, "derived"),
        in_world(Bug::DerivedReappliedWithoutBarrier, "derived"),
        in_world(Bug::DerivedOfNewestSegmentOnly, "derived"),
    ]
}
