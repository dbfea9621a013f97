//! Passwords: argon2id, never on a thread that serves messages, a bounded number at once.
//!
//! Always holds: at most `concurrency` hashes run and at most `queue` wait; the next is refused before any work. A
//! password is checked with the same work whether its user exists or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Argon2, Params, Version};
use metrics::{Gauge, Histogram};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use unicode_normalization::UnicodeNormalization as _;

/// Longest password in bytes: a sentence, not a book to hash.
pub const PASSWORD_MAX: usize = 1_024;
const SALT_BYTES: usize = 16;

/// What a hash costs and how many may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory of one hash. 19 MiB with two passes is what OWASP recommends.
    pub memory_kib: u32,
    pub passes: u32,
    /// Hashes that run at once.
    pub concurrency: usize,
    /// Hashes that may wait for their turn.
    pub queue: usize,
}

impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1_024, passes: 2, concurrency: 1, queue: 256 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("too many passwords wait to be checked")]
    Overloaded,
    #[error("the cost of a hash is out of range: {0}")]
    Cost(String),
    #[error("a hash failed: {0}")]
    Failed(String),
}

/// The one who hashes.
#[derive(Debug, Clone)]
pub struct Hasher(Arc<Inner>);

struct Inner {
    argon2: Argon2<'static>,
    /// Of nobody's password: what is checked for users that do not exist.
    dummy: String,
    turns: Arc<Semaphore>,
    /// Waiting and running.
    queued: AtomicUsize,
    most: usize,
    depth: Gauge,
    seconds: Histogram,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("queued", &self.queued)
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

/// A place in the queue; left when dropped.
struct Place(Hasher);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.queued.fetch_sub(1, Ordering::AcqRel);
        self.0.0.depth.decrement(1);
    }
}

impl Hasher {
    /// Hashes once, to have something to check for users that do not exist.
    pub fn new(cost: Cost) -> Result<Self, Error> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None)
            .map_err(|error| Error::Cost(error.to_string()))?;
        let argon2 = Argon2::new(argon2::Algorithm::Argon2id, Version::V0x13, params);
        let dummy = hash(&argon2, b"nobody's")?;
        let concurrency = cost.concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Ok(Self(Arc::new(Inner {
            argon2,
            dummy,
            turns: Arc::new(Semaphore::new(concurrency)),
            queued: AtomicUsize::new(0),
            most: concurrency.saturating_add(cost.queue),
            depth: metrics::gauge!("banyan_gateway_hashing_queue_depth"),
            seconds: metrics::histogram!("banyan_gateway_hashing_seconds"),
        })))
    }

    /// A PHC string for a new password.
    pub async fn hash(&self, password: &str) -> Result<String, Error> {
        let password = prepare(password);
        self.run(move |inner| hash(&inner.argon2, password.as_bytes())).await?
    }

    /// True if it is the password of this hash. Without one, the same work and false.
    pub async fn verify(&self, password: &str, phc: Option<String>) -> Result<bool, Error> {
        let password = prepare(password);
        self.run(move |inner| {
            let known = phc.is_some();
            let phc = phc.unwrap_or_else(|| inner.dummy.clone());
            let parsed = PasswordHash::new(&phc).map_err(|error| Error::Failed(error.to_string()))?;
            Ok(inner.argon2.verify_password(password.as_bytes(), &parsed).is_ok() && known)
        })
        .await?
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> Result<T, Error> {
        if self.0.queued.fetch_add(1, Ordering::AcqRel) >= self.0.most {
            self.0.queued.fetch_sub(1, Ordering::AcqRel);
            return Err(Error::Overloaded);
        }
        self.0.depth.increment(1);
        let place = Place(self.clone());
        let turn = Arc::clone(&self.0.turns).acquire_owned().await;
        let turn = turn.map_err(|_| Error::Overloaded)?;
        // Whoever asked may go away meanwhile: turn and place are kept until the work is done.
        let running = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let done = work(&place.0.0);
            place.0.0.seconds.record(begun.elapsed().as_secs_f64());
            drop((turn, place));
            done
        });
        running.await.map_err(|error| Error::Failed(error.to_string()))
    }
}

fn hash(argon2: &Argon2<'_>, password: &[u8]) -> Result<String, Error> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(|error| Error::Failed(error.to_string()))?;
    let hash = argon2.hash_password_with_salt(password, &salt);
    hash.map(|phc| phc.to_string()).map_err(|error| Error::Failed(error.to_string()))
}

/// The same text, however a keyboard composes it (RFC 8265, OpaqueString).
fn prepare(password: &str) -> String {
    password.nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cheap(concurrency: usize, queue: usize) -> Hasher {
        Hasher::new(Cost { memory_kib: 64, passes: 1, concurrency, queue }).unwrap()
    }

    #[tokio::test]
    async fn the_right_password_and_no_other() {
        let hasher = cheap(1, 4);
        let phc = hasher.hash("pässword 1").await.unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{phc}");
        assert_ne!(hasher.hash("pässword 1").await.unwrap(), phc, "salted");
        for (password, right) in
            [("pässword 1", true), ("pa\u{308}ssword 1", true), ("password 1", false), ("", false)]
        {
            assert_eq!(hasher.verify(password, Some(phc.clone())).await, Ok(right), "{password}");
        }
        assert_eq!(hasher.verify("nobody's", None).await, Ok(false));
    }

    #[tokio::test]
    async fn a_hash_of_other_cost_is_checked_by_its_own() {
        let old = Hasher::new(Cost { memory_kib: 128, passes: 2, concurrency: 1, queue: 0 }).unwrap();
        let phc = old.hash("secret 12").await.unwrap();
        assert_eq!(cheap(1, 1).verify("secret 12", Some(phc)).await, Ok(true));
    }

    #[tokio::test]
    async fn beyond_the_queue_it_is_overloaded_at_once() {
        let hasher = cheap(1, 1);
        let stuck = Arc::clone(&hasher.0.turns).acquire_owned().await.unwrap();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let hasher = hasher.clone();
                tokio::spawn(async move { hasher.hash("secret 12").await })
            })
            .collect();
        while hasher.0.queued.load(Ordering::Acquire) < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(hasher.hash("secret 12").await, Err(Error::Overloaded));
        // Who gives up leaves the queue.
        waiting[1].abort();
        while hasher.0.queued.load(Ordering::Acquire) > 1 {
            tokio::task::yield_now().await;
        }
        drop(stuck);
        assert!(hasher.hash("secret 12").await.is_ok());
        for task in waiting {
            drop(task.await);
        }
        assert_eq!(hasher.0.queued.load(Ordering::Acquire), 0);
    }
}
