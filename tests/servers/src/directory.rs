//! Where a server keeps its data while a test runs.
//!
//! Owns: a directory, gone with this value; also those of processes that were killed or kept a server to their end,
//! which the next one to start a server removes.
//! Always holds: a directory whose owner lives is never touched: its lock is held as long as that process has it.
//! Does not: keep anything. Logs that a person wants are in the error.

use anyhow::Context;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own for one server or cluster.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Directory {
    pub(crate) fn make(name: &str) -> anyhow::Result<Self> {
        let user = rustix::process::getuid().as_raw();
        Self::make_in(&std::env::temp_dir().join(format!("banyan-test-servers-{user}")), name)
    }

    fn make_in(parent: &Path, name: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        // One at a time makes and removes, so no lock is seen before it is held.
        let turn = open(&parent.join("turn"))?;
        turn.lock().context("waiting for others that start servers")?;
        sweep(parent)?;
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{name}-{}-{number}", std::process::id()));
            let lock_path = path.with_extension("lock");
            // A process of another container may have our number.
            if lock_path.exists() {
                continue;
            }
            let lock = open(&lock_path)?;
            lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            return Ok(Self { path, lock_path, _lock: lock });
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed now the next sweep tries again.
        if fs::remove_dir_all(&self.path).is_ok() {
            fs::remove_file(&self.lock_path).ok();
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = File::options().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Removes directories whose owner is gone.
fn sweep(parent: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(parent)? {
        let lock_path = entry?.path();
        if lock_path.extension() != Some(OsStr::new("lock")) {
            continue;
        }
        // It may have been removed by its owner just now.
        let Ok(lock) = File::options().append(true).open(&lock_path) else { continue };
        if lock.try_lock().is_err() {
            continue;
        }
        let path = lock_path.with_extension("");
        if !path.exists() || fs::remove_dir_all(&path).is_ok() {
            fs::remove_file(&lock_path).ok();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_swept_and_the_living_are_not() {
        let parent = tempfile::tempdir().unwrap();
        let living = Directory::make_in(parent.path(), "living").unwrap();
        let dead = parent.path().join("dead-1-0");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("data"), "old").unwrap();
        fs::write(dead.with_extension("lock"), "").unwrap();
        let next = Directory::make_in(parent.path(), "next").unwrap();
        assert!(!dead.exists() && !dead.with_extension("lock").exists());
        assert!(living.path().is_dir() && next.path().is_dir());
        let (path, lock) = (living.path().to_owned(), living.lock_path.clone());
        drop(living);
        assert!(!path.exists() && !lock.exists());
    }
}
