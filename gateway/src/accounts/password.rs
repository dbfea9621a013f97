//! Passwords: argon2id, never on a thread that serves messages, a bounded number at once.
//!
//! Always holds: at most `concurrency` hashes run and at most `queue` wait; the next is refused before any work. A
//! password is checked with the same work whether its user exists or not. The memory of `concurrency` hashes is kept
//! and used again: given back to the allocator, it would stay with whichever thread had it, once for each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use metrics::{Gauge, Histogram};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use unicode_normalization::UnicodeNormalization as _;

/// Longest password in bytes: a sentence, not a book to hash.
pub const PASSWORD_MAX: usize = 1_024;
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

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
    /// Memory of hashes that do not run, at most one for each that may.
    memory: Mutex<Vec<Vec<Block>>>,
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
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut blocks = Vec::new();
        let dummy = hash(&argon2, b"nobody's", &mut blocks)?;
        let concurrency = cost.concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Ok(Self(Arc::new(Inner {
            argon2,
            dummy,
            memory: Mutex::new(vec![blocks]),
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
        self.run(move |inner, blocks| hash(&inner.argon2, password.as_bytes(), blocks)).await?
    }

    /// True if it is the password of this hash. Without one, the same work and false.
    pub async fn verify(&self, password: &str, phc: Option<String>) -> Result<bool, Error> {
        let password = prepare(password);
        self.run(move |inner, blocks| {
            let known = phc.is_some();
            let phc = phc.unwrap_or_else(|| inner.dummy.clone());
            Ok(is_of(&phc, password.as_bytes(), blocks)? && known)
        })
        .await?
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &mut Vec<Block>) -> T + Send + 'static,
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
            let memory = || place.0.0.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let mut blocks = memory().pop().unwrap_or_default();
            let done = work(&place.0.0, &mut blocks);
            memory().push(blocks);
            place.0.0.seconds.record(begun.elapsed().as_secs_f64());
            drop((turn, place));
            done
        });
        running.await.map_err(|error| Error::Failed(error.to_string()))
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(error.to_string())
}

fn hash(argon2: &Argon2<'_>, password: &[u8], blocks: &mut Vec<Block>) -> Result<String, Error> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(failed)?;
    let mut out = [0; HASH_BYTES];
    digest(argon2, password, &salt, &mut out, blocks)?;
    let phc = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params()).map_err(failed)?,
        salt: Some(Salt::new(&salt).map_err(failed)?),
        hash: Some(Output::new(&out).map_err(failed)?),
    };
    Ok(phc.to_string())
}

/// Whether a PHC string is of this password, by the cost that it names.
fn is_of(phc: &str, password: &[u8], blocks: &mut Vec<Block>) -> Result<bool, Error> {
    let phc = PasswordHash::new(phc).map_err(failed)?;
    let (Some(salt), Some(hash)) = (&phc.salt, &phc.hash) else {
        return Err(failed("a stored hash has no salt or no hash"));
    };
    let algorithm = Algorithm::try_from(phc.algorithm.as_str()).map_err(failed)?;
    let version = phc.version.map(Version::try_from).transpose().map_err(failed)?.unwrap_or_default();
    let argon2 = Argon2::new(algorithm, version, Params::try_from(&phc).map_err(failed)?);
    let mut out = [0; Output::MAX_LENGTH];
    let out = &mut out[..hash.len()];
    digest(&argon2, password, salt.as_ref(), out, blocks)?;
    // `Output` compares in constant time.
    Ok(Output::new(out).map_err(failed)? == *hash)
}

fn digest(
    argon2: &Argon2<'_>,
    password: &[u8],
    salt: &[u8],
    out: &mut [u8],
    blocks: &mut Vec<Block>,
) -> Result<(), Error> {
    // What an earlier hash left in them is overwritten before it is read.
    blocks.resize(argon2.params().block_count(), Block::new());
    argon2.hash_password_into_with_memory(password, salt, out, blocks.as_mut_slice()).map_err(failed)
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

    /// Ours and the library's own way to make and check them, which keeps no memory.
    #[test]
    fn hashes_are_those_of_the_library() {
        use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
        let params = Params::new(64, 2, 1, None).unwrap();
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut blocks = vec![Block::new(); 200];
        let ours = hash(&argon2, b"one", &mut blocks).unwrap();
        let parsed = PasswordHash::new(&ours).unwrap();
        assert!(argon2.verify_password(b"one", &parsed).is_ok());
        assert!(argon2.verify_password(b"other", &parsed).is_err());
        let theirs = argon2.hash_password_with_salt(b"one", &[7; SALT_BYTES]).unwrap().to_string();
        assert_eq!(is_of(&theirs, b"one", &mut blocks), Ok(true));
        assert_eq!(is_of(&theirs, b"other", &mut blocks), Ok(false));
        assert!(is_of("$argon2id$v=19$m=64,t=2,p=1", b"one", &mut blocks).is_err());
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
