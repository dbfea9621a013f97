//! Where the shard's worker takes the time and random numbers from: the cores get both as arguments.

use std::time::{SystemTime, UNIX_EPOCH};

use banyan_proto::id::UnixMs;
use uuid::Uuid;

/// Time for people; waits use tokio's clock.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads the wall clock")]
pub(crate) fn unix_ms() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// 64 bits from the system; never 0.
pub(crate) fn random() -> u64 {
    // A version-4 UUID is random but for 6 bits, 4 in one half and 2 in the other; folded, none is fixed.
    let (high, low) = Uuid::new_v4().as_u64_pair();
    (high ^ low.rotate_left(32)).max(1)
}
