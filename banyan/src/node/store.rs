//! The store of a node: embedded in its data directory, or the cluster's.

use std::sync::Arc;
use std::time::Duration;

use banyan_storage::embedded::{self, Embedded, OpenError};
use banyan_storage::{Accounts, LogStore};
use banyan_storage_scylla::{Finding, Level, Scylla};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::config::Config;
use crate::failure::{Exit, Failure};

/// How long the last second's marks may take at the end: a store that does not answer must not hold up a stop.
const MARKS_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) enum Store {
    Embedded(Arc<Embedded>),
    Cluster(Arc<Scylla>),
}

impl Store {
    pub(super) async fn open(config: &Config) -> Result<Self, Failure> {
        if config.scylla.nodes.is_empty() {
            return open_embedded(config).map(|store| Self::Embedded(Arc::new(store)));
        }
        let server = crate::schema_cmd::connect(config, None).await?;
        // Settings first: with some of them there is no quorum to wait for. Of the schema the opening tells.
        for Finding { level, text } in server.check_settings().await {
            match level {
                Level::Error => {
                    let failure = Failure::new(Exit::Usage, format!("the store: {text}"));
                    return Err(failure.with_hint("`banyan schema check` looks at it again"));
                }
                Level::Warning => tracing::warn!("the store: {text}"),
                Level::Note => tracing::info!("the store: {text}"),
            }
        }
        let opened = server.open(|waiting| tracing::warn!("{waiting}")).await;
        opened.map(|store| Self::Cluster(Arc::new(store))).map_err(|error| crate::schema_cmd::refused(&error))
    }

    pub(super) fn log(&self) -> Arc<dyn LogStore> {
        match self {
            Self::Embedded(store) => Arc::<Embedded>::clone(store),
            Self::Cluster(store) => Arc::<Scylla>::clone(store),
        }
    }

    pub(super) fn accounts(&self) -> Arc<dyn Accounts> {
        match self {
            Self::Embedded(store) => Arc::<Embedded>::clone(store),
            Self::Cluster(store) => Arc::<Scylla>::clone(store),
        }
    }

    /// What a person should look at, if anything.
    pub(super) fn degraded(&self) -> Option<String> {
        match self {
            Self::Embedded(store) => {
                let status = store.status();
                let full = || {
                    let free = status.free_bytes >> 20;
                    status.full.then(|| format!("the disk is full: {free} MiB free; sends are refused"))
                };
                status.degraded.clone().or_else(full)
            }
            // Of a store that does not answer the owners' fences tell.
            Self::Cluster(_) => None,
        }
    }

    /// Everything that was accepted is written; of a cluster's store the marks that wait, for as long as
    /// [`MARKS_DEADLINE`]. Blocks.
    pub(super) fn close(self, runtime: &Handle) {
        match self {
            Self::Embedded(store) => store.close(),
            Self::Cluster(store) => {
                let written = runtime.block_on(async { timeout(MARKS_DEADLINE, store.close()).await });
                if written.is_err() {
                    tracing::warn!("the store takes no marks: those of the last second are lost");
                }
            }
        }
    }
}

fn open_embedded(config: &Config) -> Result<Embedded, Failure> {
    let mut options = embedded::Options::new(config.server.data_dir.join("store"));
    options.min_free_bytes = config.storage.min_free;
    options.cache_bytes = config.storage.cache;
    Embedded::open(options).map_err(|error| {
        let (exit, hint) = match &error {
            OpenError::Locked { .. } => (Exit::Unavailable, "only one server may use a data directory: stop the other one, or choose another with --data-dir DIR"),
            OpenError::NewerFormat { .. } => (Exit::Io, "run the release that wrote it or a newer one, or choose another directory with --data-dir DIR"),
            OpenError::OlderFormat { .. } => (Exit::Io, "choose another directory with --data-dir DIR, or move this one away"),
            OpenError::NotOurs { .. } => (Exit::Io, "choose an empty or missing directory with --data-dir DIR"),
            OpenError::Directory { .. } => (Exit::Io, "make it readable and writable for this user, or choose another with --data-dir DIR"),
            OpenError::Damaged(_) => (Exit::Io, "restore the directory from a copy; it was not changed"),
            OpenError::Thread(_) => (Exit::Unavailable, "the system has no thread left: look at ulimit -u"),
        };
        Failure::new(exit, format!("data directory: {error}")).with_hint(hint)
    })
}
