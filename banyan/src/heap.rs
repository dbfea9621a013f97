//! Gives memory back to the system after a burst.
//!
//! glibc's allocator keeps what was freed between blocks that are still in use; after a burst over 10,000 connections that
//! was 0.9 KiB a connection (measured). When the process has been busy and has come to rest, it is asked to return the
//! free pages. It walks all of the heap for that, holding up whoever allocates: so never under load.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How often the CPU clock is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// CPU time within one look from which the process counts as busy.
const BUSY: Duration = Duration::from_millis(1_000);
/// CPU time within one look up to which it is at rest.
const REST: Duration = Duration::from_millis(300);

/// Decides when; pure but for the clock that it is given.
#[derive(Debug, Default)]
struct Rest {
    last: Duration,
    /// It was busy since the heap was last trimmed.
    owed: bool,
}

impl Rest {
    /// `used`: CPU time of the process so far. True: now is the time.
    fn look(&mut self, used: Duration) -> bool {
        let spent = used.saturating_sub(self.last);
        self.last = used;
        self.owed |= spent >= BUSY;
        spent <= REST && std::mem::take(&mut self.owed)
    }
}

/// Looks at the CPU clock; to be called every [`LOOK_EVERY`].
#[derive(Debug, Default)]
pub(crate) struct Heap(Rest);

impl Heap {
    pub(crate) fn look(&mut self) {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32);
        if self.0.look(used) {
            trim();
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe way to ask glibc for this")]
fn trim() {
    // SAFETY: malloc_trim takes a number, returns a number, and may be called by any thread at any time.
    let released = unsafe { libc::malloc_trim(0) };
    tracing::debug!(released = released == 1, "free memory returned to the system");
}

/// Other allocators return memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_trims_once_after_a_burst_and_never_within_it() {
        let mut rest = Rest::default();
        let seconds = [0.1, 0.2, 3.0, 9.0, 9.5, 9.6, 9.7, 11.0, 11.1];
        let trims: Vec<bool> = seconds.iter().map(|used| rest.look(Duration::from_secs_f64(*used))).collect();
        assert_eq!(trims, [false, false, false, false, false, true, false, false, true]);
    }

    #[test]
    fn glibc_answers() {
        Heap::default().look();
        trim();
    }
}
