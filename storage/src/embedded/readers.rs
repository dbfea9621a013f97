//! A few threads that answer questions, so that no worker of the server waits for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::engine::Engine;
use crate::{BoxFuture, Error};

/// Questions that may wait. A full queue is [`Error::Overloaded`]: the disk is far behind, and waiting longer helps nobody.
const QUEUE: usize = 1_024;

/// The engine, or none while it is opened again.
pub(super) type Shared = Arc<RwLock<Option<Engine>>>;

type Job = Box<dyn FnOnce(Option<&Engine>) + Send>;

#[derive(Debug)]
pub(super) struct Readers {
    queue: Mutex<Option<SyncSender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    pub(super) fn start(threads: usize, engine: &Shared) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        let threads = (0..threads.max(1))
            .map(|_| {
                let (jobs, engine) = (Arc::clone(&jobs), Arc::clone(engine));
                std::thread::Builder::new().name("store-read".to_owned()).spawn(move || run(&jobs, &engine))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { queue: Mutex::new(Some(queue)), threads: Mutex::new(threads) })
    }

    /// Queues a question; the future only waits for the answer.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        refused: &metrics::Counter,
        question: impl FnOnce(&Engine) -> Result<T, Error> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Error>> {
        let (answer, waiting) = oneshot::channel();
        let job: Job = Box::new(move |engine| {
            let result = engine.map_or_else(
                || Err(Error::Unavailable("its files are being opened again".to_owned())),
                question,
            );
            // Nobody waits any more: the caller has gone.
            drop(answer.send(result));
        });
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = queue.as_ref().map(|queue| queue.try_send(job));
        drop(queue);
        let failed = match sent {
            Some(Ok(())) => None,
            Some(Err(TrySendError::Full(_))) => {
                refused.increment(1);
                Some(Error::Overloaded)
            }
            Some(Err(TrySendError::Disconnected(_))) | None => Some(Error::Closed),
        };
        Box::pin(async move {
            match failed {
                Some(error) => Err(error),
                // Dropped without an answer: the question panicked, which was logged.
                None => {
                    waiting.await.unwrap_or_else(|_| Err(Error::Corrupt("the engine gave up".to_owned())))
                }
            }
        })
    }

    /// Answers what waits, then ends the threads.
    pub(super) fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a reader of the store panicked");
            }
        }
    }
}

fn run(jobs: &Mutex<Receiver<Job>>, engine: &RwLock<Option<Engine>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let engine = engine.read().unwrap_or_else(PoisonError::into_inner);
        // The engine asserts what it believes about its files; a damaged one must not take the server's readers with it.
        if catch_unwind(AssertUnwindSafe(|| job(engine.as_ref()))).is_err() {
            tracing::error!("the store's engine panicked at a read");
        }
    }
}
