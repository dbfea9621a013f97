//! A program to kill: stores numbered records in one of several ways and says `acked N` when a record is durable.
//!
//! Owns: nothing that lasts. It is what `tests/tests/power_cut.rs` runs under the shim.
//! Does not: check anything; the test reads the files afterwards.
#![allow(clippy::print_stdout, reason = "its output is its interface")]

use anyhow::Context;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// The length of one record in the file modes.
const RECORD: usize = 16;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let mode = args.next().context("mode")?;
    let dir = args.next().context("directory")?;
    let dir = Path::new(&dir);
    match mode.to_str() {
        Some("append") => append(dir),
        Some("grown") => grown(dir),
        Some("replace") => replace(dir, true),
        Some("replace-unsynced") => replace(dir, false),
        Some("fjall") => keys(dir),
        _ => anyhow::bail!("unknown mode {mode:?}"),
    }
}

fn ack(n: u64) {
    println!("acked {n}");
}

fn record(n: u64) -> String {
    format!("{n:015}\n")
}

/// A growing file, synced after each two writes.
fn append(dir: &Path) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
    File::open(dir)?.sync_all()?;
    for n in 0.. {
        let text = record(n);
        let (first, second) = text.split_at(RECORD / 2);
        file.write_all(first.as_bytes())?;
        file.write_all(second.as_bytes())?;
        file.sync_data()?;
        ack(n);
    }
    Ok(())
}

/// A file of a fixed length, written in place.
fn grown(dir: &Path) -> anyhow::Result<()> {
    let mut file = File::create(dir.join("log"))?;
    file.set_len(1 << 20)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    for n in 0..(1 << 20) / RECORD as u64 {
        file.write_all(record(n).as_bytes())?;
        file.sync_data()?;
        ack(n);
    }
    anyhow::bail!("nobody killed me")
}

/// A small file that is replaced by rename, as stores keep their current state.
fn replace(dir: &Path, sync_directory: bool) -> anyhow::Result<()> {
    for n in 0.. {
        let new = dir.join("current.new");
        let mut file = File::create(&new)?;
        file.write_all(record(n).as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, dir.join("current"))?;
        if sync_directory {
            File::open(dir)?.sync_all()?;
        }
        ack(n);
    }
    Ok(())
}

/// The store that the server uses: one durable batch per record, with flushes and compactions going on.
fn keys(dir: &Path) -> anyhow::Result<()> {
    let db = fjall::Database::builder(dir.join("db")).open()?;
    let keys = db.keyspace("keys", fjall::KeyspaceCreateOptions::default)?;
    let start = keys.iter().count() as u64;
    for n in start.. {
        let mut batch = db.batch().durability(Some(fjall::PersistMode::SyncData));
        batch.insert(&keys, n.to_be_bytes(), vec![b'v'; 100 + usize::try_from(n % 4000)?]);
        batch.commit()?;
        if n % 200 == 199 {
            keys.rotate_memtable_and_wait()?;
        }
        ack(n);
    }
    Ok(())
}
