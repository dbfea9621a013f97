//! Planted bugs: what the model checker, the simulator and their checker must catch.
//!
//! Always holds: without the feature `plant` (which only the crates under `tests/` ask for) [`is`] is `false` at compile
//! time. With it, at most one bug is planted per thread, by [`with`], and none unless somebody asks.

/// A word of the protocol left out, or a mistake that a person could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    // The log (shard/core/src/log.rs).
    NoTailRewrite,
    OnlyLastRowRewritten,
    RecordNotRewritten,
    RecordBeforeRewrite,
    RecordLazily,
    RecordNotAwaited,
    HigherFirstSeqCuts,
    RollNotAwaited,
    OpenRetriedUnderSameKey,
    RetryUnderNewSeq,
    SaidWithoutBarrier,
    ReadOpenIgnoresNewerRows,
    ReadOpenIgnoresNewerRecords,
    SaidReadBeforeFence,
    // The barrier (shard/core/src/gate.rs).
    NoBarrier,
    NoBarrierOnAcks,
    NoBarrierOnReplies,
    BarrierBegunEarly,
    // Rooms (shard/core/src/room.rs).
    AckBeforeAppend,
    DedupeNotRebuilt,
    DedupeWithoutSender,
    DedupeWithoutSince,
    PermissionBeforeKnownId,
    DefiniteErrorAfterUnknown,
    RefusalFromReadOpen,
    DerivedBeforeBarrier,
    DerivedNotAwaited,
    DerivedNotReapplied,
    DerivedReappliedWithRewrite,
    /// After the rewrite, without a barrier.
    DerivedReappliedAfterRewrite,
    DerivedReappliedBeforeRecord,
    DerivedReappliedWithoutBarrier,
    DerivedOfNewestSegmentOnly,
    DerivedByWallClock,
    MarkFalls,
    HeadNeverAdvertised,
    ReplyBeforeLowerEvent,
    // Slots and nodes (router).
    NoFence,
    FenceAfterRead,
    FenceOnlyDirectPredecessor,
    IncarnationReused,
    EpochReused,
    ReadSettlesTransaction,
    EarlyStateUsed,
    TimedOutClaimSkipsOpen,
    StateNotBoundToEpoch,
    HandoffWithAppendInFlight,
    HandoffOldOwnerGoesOn,
    HandoffUnopenedRoomSkips,
    NoRegistration,
    RegistrationAsMaximum,
    RegistrationAsMaximumAtHandoffToo,
    RegistrationBeforeClaim,
    RegistrationIgnoresLowerRows,
    RecoverSparesRunningNode,
    // Gateways (gateway/core).
    GatewayDeliversOnGap,
    GatewayIgnoresEpoch,
    GatewayTakesOldRefusal,
    SinceRefreshed,
    RemovalAppliedAtReceipt,
    /// What a gateway of which all read heads alone is told of members beside the events: by absences, and by heads.
    PassiveMissesRemoval,
    ResumeOffByOne,
    InterestLostAfterOwnerChange,
}

#[cfg(feature = "plant")]
mod planted {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this bug is planted on this thread.
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Runs `run` with a bug planted on this thread (`None`: without).
    pub fn with<T>(bug: Option<Bug>, run: impl FnOnce() -> T) -> T {
        struct Restore(Option<Bug>);
        impl Drop for Restore {
            fn drop(&mut self) {
                PLANTED.set(self.0);
            }
        }
        let _restore = Restore(PLANTED.replace(bug));
        run()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_bug_is_planted_for_a_while() {
            assert!(!is(Bug::NoFence));
            with(Some(Bug::NoFence), || {
                assert!(is(Bug::NoFence) && !is(Bug::NoBarrier));
                with(None, || assert!(!is(Bug::NoFence)));
                assert!(is(Bug::NoFence));
            });
            assert!(!is(Bug::NoFence));
        }
    }
}

#[cfg(feature = "plant")]
pub use planted::{is, with};

/// Nothing is planted.
#[cfg(not(feature = "plant"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
