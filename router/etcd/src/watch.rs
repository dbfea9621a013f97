//! One watch over all keys of a cluster that goes on whatever happens to etcd.
//!
//! Owns: the revision up to which everything was passed on, and a witness of it.
//! Always holds: changes are passed on in the order of their revisions, none twice, none left out between two listings. A
//! watch that broke is resumed at its revision only if the witness (the newest value that was seen, and the revision that set
//! it) is still in etcd's history: a restored etcd counts the same revisions anew, with other changes. If it is not, or the
//! revision is compacted, all is listed again. [`Event::Gone`] is said when neither was possible for [`PATIENCE`].
//! Does not: rely on progress notes, which older servers send too early.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use banyan_router::encoding::{self, Key};
use banyan_router::node::Watched;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::coordination::Event;
use crate::keys::Keys;
use crate::kv::{Broken, Changed, KeyValue, Kv, Range, Watch};
use crate::metrics;

/// How long a broken watch may be tried again before it is said to be gone: a lost server costs less.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between tries: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Starts the task; it ends when the receiver is dropped.
pub(crate) fn begin<K: Kv>(keys: Keys<K>, buffer: usize) -> mpsc::Receiver<Event> {
    let (events, receiver) = mpsc::channel(buffer.max(1));
    tokio::spawn(async move {
        let fresh_at = Instant::now();
        let mut watcher =
            Watcher { keys, events: events.clone(), position: None, fresh_at, said_gone: false };
        tokio::select! {
            () = events.closed() => {}
            Err(Dropped) = watcher.run() => {}
        }
    });
    receiver
}

/// Nobody wants to know any more.
struct Dropped;

/// Up to where all was passed on.
struct Position {
    revision: i64,
    witness: Option<KeyValue>,
}

struct Watcher<K> {
    keys: Keys<K>,
    events: mpsc::Sender<Event>,
    position: Option<Position>,
    /// When what was passed on was known to be all.
    fresh_at: Instant,
    /// And no listing since.
    said_gone: bool,
}

impl<K: Kv> Watcher<K> {
    async fn run(&mut self) -> Result<Infallible, Dropped> {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let why = self.try_once().await?;
            tracing::debug!(%why, "the watch of the ring is broken");
            if !self.said_gone && self.fresh_at.elapsed() >= PATIENCE {
                tracing::warn!(%why, "etcd does not answer: no ownership changes are begun until it does");
                self.said_gone = true;
                // Who was told so waits for a listing.
                self.position = None;
                self.send(Event::Gone).await?;
            }
            if began.elapsed() > LAST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    async fn send(&self, event: Event) -> Result<(), Dropped> {
        self.events.send(event).await.map_err(|_| Dropped)
    }

    /// Begins the watch and passes on what it shows, until it breaks: why it did.
    async fn try_once(&mut self) -> Result<String, Dropped> {
        if let Some(position) = &self.position
            && let Err(doubt) = self.is_same_history(position).await
        {
            match doubt {
                Doubt::Unreachable(why) => return Ok(why),
                Doubt::Other => {
                    tracing::info!(
                        "what etcd remembers does not show what was watched last: all is listed again"
                    );
                    self.position = None;
                }
            }
        }
        let from = match &self.position {
            Some(position) => {
                metrics::watch_begun("resumed");
                position.revision + 1
            }
            None => match self.list().await? {
                Ok(revision) => revision + 1,
                Err(why) => return Ok(why),
            },
        };
        let prefix = self.keys.prefix().as_bytes().to_vec();
        let broken = match self.keys.kv().watch(prefix, from).await {
            Err(broken) => broken,
            Ok(mut watch) => loop {
                self.fresh_at = Instant::now();
                match watch.next().await {
                    Ok(changes) => self.pass_on(changes).await?,
                    Err(broken) => {
                        self.fresh_at = Instant::now();
                        break broken;
                    }
                }
            },
        };
        Ok(match broken {
            Broken::Lost(why) => why,
            Broken::Compacted => {
                self.position = None;
                "what has changed since is compacted".to_owned()
            }
        })
    }

    /// Passes on all that there is; its revision.
    async fn list(&mut self) -> Result<Result<i64, String>, Dropped> {
        let raw = match self.keys.list().await {
            Ok(raw) => raw,
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.send(Event::Listed(Box::new(self.keys.decode(&raw.found)))).await?;
        metrics::watch_begun("listed");
        (self.fresh_at, self.said_gone) = (Instant::now(), false);
        let witness = raw.found.into_iter().max_by_key(|found| found.modified);
        self.position = Some(Position { revision: raw.revision, witness });
        Ok(Ok(raw.revision))
    }

    async fn pass_on(&mut self, changes: Vec<Changed>) -> Result<(), Dropped> {
        for Changed { key, value, revision } in changes {
            if let Some(watched) = self.watched(&key, value.as_deref()) {
                self.send(Event::Watched(watched)).await?;
            }
            // Revisions come whole: the next of this one, if any, is in the same answer.
            if let Some(position) = &mut self.position {
                position.revision = position.revision.max(revision);
                // What was deleted bears no witness.
                position.witness = value.map(|value| KeyValue { key, value, modified: revision });
            }
        }
        Ok(())
    }

    /// `None`: nothing of the ring, or not understood.
    fn watched(&self, path: &[u8], value: Option<&[u8]>) -> Option<Watched> {
        let key = self.keys.parse(path)?;
        let keys = &self.keys;
        Some(match (key.clone(), value) {
            (Key::Slot(slot), None) => Watched::Slot { slot, key: None },
            (Key::Slot(slot), Some(value)) => {
                let value = keys.understood(&key, encoding::decode_slot(value))?;
                Watched::Slot { slot, key: Some(value) }
            }
            (Key::Node(node), None) => Watched::Node { node, entry: None },
            (Key::Node(node), Some(value)) => {
                let entry = keys.understood(&key, encoding::decode_node(value))?;
                Watched::Node { node, entry: Some(entry) }
            }
            (Key::Target, None) => Watched::Target(None),
            (Key::Target, Some(value)) => {
                let target = keys.understood(&key, encoding::decode_target(value))?;
                Watched::Target(Some(Arc::new(target)))
            }
            (Key::Frozen, value) => Watched::Frozen(value.is_some()),
            (Key::Meta, _) => return None,
        })
    }

    async fn is_same_history(&self, position: &Position) -> Result<(), Doubt> {
        use crate::kv::Error;
        let witness = position.witness.as_ref().ok_or(Doubt::Other)?;
        let revision = Some(witness.modified);
        let range = Range { key: witness.key.clone(), end: None, revision, limit: 1 };
        let ranged = match self.keys.kv().range(range).await {
            Ok(ranged) => ranged,
            Err(Error::NoRevision) => return Err(Doubt::Other),
            Err(error @ (Error::NotSent(_) | Error::Unknown(_) | Error::Refused(..))) => {
                return Err(Doubt::Unreachable(error.to_string()));
            }
        };
        let is_there = ranged.found.first() == Some(witness) && ranged.revision >= position.revision;
        if is_there { Ok(()) } else { Err(Doubt::Other) }
    }
}

/// Why a watch is not simply resumed.
enum Doubt {
    Unreachable(String),
    /// Another history, or its old part is gone.
    Other,
}
