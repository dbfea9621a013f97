//! How much room the file system has left, cheaply.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an answer of the file system is believed. What we write meanwhile is subtracted; others' writes are seen at the next look.
const MAX_AGE: Duration = Duration::from_millis(50);

/// Bytes that an unprivileged process may still write there.
pub(super) fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[derive(Debug)]
pub(super) struct Space {
    path: PathBuf,
    seen: Option<(Instant, u64)>,
    written: u64,
}

impl Space {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: None, written: 0 }
    }

    /// Free bytes, at most [`MAX_AGE`] old. A file system that does not answer has none.
    pub(super) fn free(&mut self, now: Instant) -> u64 {
        let fresh = self.seen.filter(|(at, _)| now.saturating_duration_since(*at) <= MAX_AGE);
        let (_, free) = fresh.unwrap_or_else(|| {
            self.written = 0;
            let free = free_bytes(&self.path).unwrap_or_else(|error| {
                tracing::warn!(path = %self.path.display(), %error, "the file system does not say how much is free");
                0
            });
            *self.seen.insert((now, free))
        });
        free.saturating_sub(self.written)
    }

    /// The next question goes to the file system: what we believed may be why something failed.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    pub(super) fn wrote(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
    }
}
