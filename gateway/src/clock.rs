//! The one place of this crate that reads the wall clock. Everything else is told the time.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use banyan_proto::id::UnixMs;

/// What time it is: the system's, or a test's.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UnixMs + Send + Sync>);

impl Clock {
    pub fn system() -> Self {
        Self::new(unix_ms)
    }

    pub fn new(clock: impl Fn() -> UnixMs + Send + Sync + 'static) -> Self {
        Self(Arc::new(clock))
    }

    pub fn now(&self) -> UnixMs {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// Unix time of the system; zero on a machine that thinks it is before 1970.
#[expect(clippy::disallowed_methods, reason = "the clock module")]
pub fn unix_ms() -> UnixMs {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
