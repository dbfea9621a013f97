//! What a process that panics still does for others before it ends: a node of a cluster revokes its run's lease, so that its
//! slots are taken over at once, and not when the lease has run out.
//!
//! Always holds: it takes at most [`LIMIT`], whatever hangs; it is done once, on a thread of its own; a panic in it, or in
//! other threads meanwhile, changes nothing. Of what the process says meanwhile the fence takes care, as ever.
//! Does not: hold any thread that did not panic.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use banyan_router_etcd::coordination::Coordination as _;
use banyan_router_etcd::runner::RunnerHandle;
use banyan_router_etcd::{Etcd, servers};

/// A round trip or two to etcd, on a machine that has much to do. Much less than a lease's time to live (3 s).
const LIMIT: Duration = Duration::from_millis(500);
const THREAD: &str = "last-words";

type Words = Arc<dyn Fn() + Send + Sync>;

enum Stage {
    Nothing,
    ToSay(Words),
    Saying,
}

static STAGE: Mutex<Stage> = Mutex::new(Stage::Nothing);

/// From now on a panic says this first.
pub(crate) fn set(words: impl Fn() + Send + Sync + 'static) {
    *STAGE.lock().unwrap_or_else(PoisonError::into_inner) = Stage::ToSay(Arc::new(words));
}

/// For the panic hook: comes back when it has been said, or has taken too long.
pub(crate) fn say() {
    // Nobody holds it for long, and whoever panics holding it must not wait for itself. It is held by a thread that has
    // panicked, too, and is about to speak: it has its time.
    let mut stage = match STAGE.try_lock() {
        Ok(stage) => stage,
        Err(TryLockError::Poisoned(stage)) => stage.into_inner(),
        Err(TryLockError::WouldBlock) => return thread::sleep(LIMIT),
    };
    match std::mem::replace(&mut *stage, Stage::Saying) {
        Stage::Nothing => {}
        Stage::ToSay(words) => {
            drop(stage);
            let (said, done) = sync_channel::<()>(1);
            let started = thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
                words();
                drop(said);
            });
            if started.is_ok() {
                // Its end is the answer.
                let _ended = done.recv_timeout(LIMIT);
            }
        }
        // Another thread has panicked before this one: it ends the process. If this is the one that speaks, nothing is left.
        Stage::Saying => {
            drop(stage);
            if thread::current().name() != Some(THREAD) {
                thread::sleep(LIMIT);
            }
        }
    }
}

/// The words of a node: the lease of the run that there is then is revoked, over a connection of its own.
pub(crate) fn revoke(options: servers::Options, run: Arc<Mutex<Option<RunnerHandle>>>) {
    set(move || {
        let lease = match run.try_lock() {
            Ok(run) => run.as_ref().and_then(RunnerHandle::lease),
            Err(_) => None,
        };
        let (Some(lease), Ok(runtime)) =
            (lease, tokio::runtime::Builder::new_current_thread().enable_all().build())
        else {
            return;
        };
        let revoked = runtime.block_on(async {
            let etcd = Etcd::connect(options.clone()).await.ok()?;
            etcd.revoke(lease).await.ok()
        });
        match revoked {
            Some(()) => tracing::info!("the lease of this run is revoked: others take over"),
            None => tracing::warn!("the lease of this run could not be revoked: it runs out"),
        }
    });
}
