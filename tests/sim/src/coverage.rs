//! Situations that a sweep must have reached: where none of its seeds did, it proved nothing of them.

macro_rules! situations {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// A situation with a name. [`sometimes!`] counts that it was reached.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Situation {
            $($(#[$doc])* $name,)+
        }

        impl Situation {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

situations! {
    // Owners.
    HandedOver = "handoff with state",
    HandoffUsed = "a room opened from passed state",
    Left = "a node drained and left",
    TakenOver = "takeover after a death",
    TakenOverAlive = "takeover from an owner that still runs",
    Fenced = "an owner saw its own fence",
    FencedInFlight = "fenced with something to say",
    FenceReadLate = "a fence read found nothing, and told it when the fence was there",
    Rejoined = "rejoined under a new incarnation",
    FrozenThroughTakeover = "thawed after its slots were taken",
    HandoffTargetDied = "handoff whose target died",
    HandoffSourceDied = "handoff whose source died",
    DrainedAndBack = "drained, then owner again by its own transaction",
    LeaseExtended = "a lease was extended by a leader change",
    Orphaned = "a slot without an owner for a second",
    Frozen = "a restored etcd was noticed",
    Recovered = "ring recover",
    // Store and etcd.
    WriteUnknown = "a write of unknown outcome",
    WriteLate = "a write arrived after its writer had given up on it",
    WriteTorn = "derived rows arrived in pieces",
    WriteRefused = "a write refused for good",
    ReadFailed = "a read failed",
    ZombieWrite = "a write of a fenced incarnation reached a replica",
    TransactionUnknown = "an etcd transaction of unknown outcome",
    TransactionLate = "an etcd transaction applied after its sender gave up",
    TransactionLost = "an etcd transaction lost its race",
    WatchLagged = "a watch lagged by a second",
    // Rooms.
    ReadOpened = "a room was read without being opened in full",
    Rolled = "a segment rolled",
    MarksLifted = "a room that opened again knew of higher marks than the store",
    ChainLong = "a chain of five segments with rows",
    VoidRows = "rows off the chain",
    // Clients and gateways.
    DuplicateAfterMove = "a retry was recognised by another owner",
    RetryAcked = "a retry after an unknown outcome was acked",
    Held = "a send was held while its slot had no owner",
    Unavailable = "a send was answered 108",
    Pending = "a subscription was pending",
    GapRepaired = "a gateway repaired a gap by a pull",
    FellToLog = "a cursor fell off its ring and read the log",
    GapTold = "a gap was announced",
    RemovedLive = "a live reader was removed",
    RemovedPassive = "a passive reader was removed",
    RemovedUnheard = "passive readers were told of a removal whose event had not come",
    StaleWords = "words of an earlier epoch came late",
    StaleMarks = "marks of an earlier epoch came late",
    RemovedWhileAway = "a reader came back after its removal",
    JoinedAgain = "a removed member came back",
    SlowReader = "a slow reader filled its socket",
    Resumed = "a session resumed on another gateway",
    HalfOpen = "a half-open connection was found out",
    LinkReset = "a link was reset with messages on it",
    AnswerToGone = "something was said to an earlier life of a link",
    PageOvertaken = "a page was overtaken by what was sent after it",
    LinkHalfOpen = "a link cut in one direction was given up",
    MarkKept = "a mark was stated again",
    MarksAgain = "marks that the store did not take were written again",
}

/// How often each situation was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage(Vec<u64>);

impl Default for Coverage {
    fn default() -> Self {
        Self(vec![0; Situation::ALL.len()])
    }
}

impl Coverage {
    pub fn reach(&mut self, situation: Situation) {
        self.0[situation as usize] += 1;
    }

    pub fn count(&self, situation: Situation) -> u64 {
        self.0[situation as usize]
    }

    pub fn add(&mut self, other: &Self) {
        for (here, there) in self.0.iter_mut().zip(&other.0) {
            *here += there;
        }
    }

    pub fn from_counts(counts: &[u64]) -> Self {
        let mut coverage = Self::default();
        for (here, there) in coverage.0.iter_mut().zip(counts) {
            *here = *there;
        }
        coverage
    }

    pub fn counts(&self) -> &[u64] {
        &self.0
    }

    /// Never reached.
    pub fn missing(&self) -> impl Iterator<Item = Situation> {
        Situation::ALL.iter().copied().filter(|situation| self.count(*situation) == 0)
    }
}

/// Counts that a situation was reached, if it was.
#[macro_export]
macro_rules! sometimes {
    ($coverage:expr, $name:ident) => {
        $coverage.reach($crate::coverage::Situation::$name)
    };
    ($coverage:expr, $name:ident, $when:expr) => {
        if $when {
            $coverage.reach($crate::coverage::Situation::$name)
        }
    };
}
