//! The power-cut shim on programs that we know: what they acked stays, and a missing fsync is seen.
//!
//! Owns: the proof that the crash tests of the server can fail.
//! Does not: test the server (`tests/crash.rs` does).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and its output is kept on failure"
)]

use banyan_tests::power_cut::{Cut, Shim};
use banyan_tests::random::Random;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the victim in `mode` under the shim, kills it after `acks` acks, cuts, and gives the acks that were read.
fn run(
    mode: &str,
    root: &Path,
    shim: &Shim,
    ignore_fsync: bool,
    acks: usize,
    random: &mut Random,
) -> (u64, Cut) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sync_victim"));
    command.arg(mode).arg(root).stdout(Stdio::piped());
    shim.watch(&mut command, root, ignore_fsync);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = String::new();
    for _ in 0..acks {
        last = lines.next().expect("the victim ended by itself").unwrap();
    }
    child.kill().unwrap();
    // What it could still say before it died counts as well.
    for line in lines.map_while(Result::ok) {
        if line.starts_with("acked ") {
            last = line;
        }
    }
    child.wait().unwrap();
    let last: u64 = last.strip_prefix("acked ").unwrap().parse().unwrap();
    (last, shim.cut(root, random).unwrap())
}

struct Case {
    _dir: tempfile::TempDir,
    root: std::path::PathBuf,
    shim: Shim,
}

fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data");
    std::fs::create_dir(&root).unwrap();
    let shim = Shim::build(dir.path()).unwrap();
    Case { root, shim, _dir: dir }
}

/// How many records of the file stand in order from the beginning.
fn records(path: &Path) -> u64 {
    let Ok(bytes) = std::fs::read(path) else { return 0 };
    let good = |(i, record): &(usize, &[u8])| *record == format!("{i:015}\n").as_bytes();
    bytes.chunks_exact(16).enumerate().take_while(good).count() as u64
}

/// Whether some seed of a few loses an acked record.
fn loses(mode: &str, ignore_fsync: bool, kept: impl Fn(&Path) -> u64) -> bool {
    let mut lost = false;
    for seed in 0..8 {
        let case = case();
        let (last, cut) = run(mode, &case.root, &case.shim, ignore_fsync, 20, &mut Random::new(seed));
        assert_eq!(cut.syncs == 0, ignore_fsync, "{cut:?}");
        lost |= kept(&case.root) <= last;
    }
    lost
}

#[test]
fn synced_appends_survive() {
    assert!(!loses("append", false, |root| records(&root.join("log"))));
}

#[test]
fn a_missing_fsync_loses_appends() {
    assert!(loses("append", true, |root| records(&root.join("log"))));
}

#[test]
fn synced_writes_into_a_grown_file_survive() {
    assert!(!loses("grown", false, |root| records(&root.join("log"))));
}

#[test]
fn a_missing_fsync_loses_writes_into_a_grown_file() {
    assert!(loses("grown", true, |root| records(&root.join("log"))));
}

fn current(root: &Path) -> u64 {
    std::fs::read_to_string(root.join("current"))
        .map_or(0, |text| text.trim().parse::<u64>().map_or(0, |n| n + 1))
}

#[test]
fn a_rename_survives_with_its_directory_synced() {
    assert!(!loses("replace", false, current));
}

#[test]
fn a_rename_is_lost_without_its_directory_synced() {
    assert!(loses("replace-unsynced", false, current));
}

/// The keys of the store, which must be 0..n without a hole.
fn keys(root: &Path) -> u64 {
    let Ok(db) = fjall::Database::builder(root.join("db")).open() else { return 0 };
    let keys = db.keyspace("keys", fjall::KeyspaceCreateOptions::default).unwrap();
    let mut n = 0_u64;
    for entry in keys.iter() {
        let (key, value) = entry.into_inner().unwrap();
        assert_eq!(&*key, n.to_be_bytes());
        assert_eq!(value.len() as u64, 100 + n % 4000);
        n += 1;
    }
    n
}

#[test]
fn the_store_keeps_what_it_synced_over_many_cuts() {
    let case = case();
    let mut random = Random::new(5);
    let mut total = Cut::default();
    for _ in 0..6 {
        let acks = 40 + usize::try_from(random.below(400)).unwrap();
        let (last, cut) = run("fjall", &case.root, &case.shim, false, acks, &mut random);
        let kept = keys(&case.root);
        assert!(kept > last, "acked {last}, kept {kept}, {cut:?}");
        total.unsynced += cut.unsynced;
        total.syncs += cut.syncs;
    }
    assert!(total.syncs > 100, "{total:?}");
}

#[test]
fn the_store_with_a_missing_fsync_loses_acked_keys() {
    assert!(loses("fjall", true, keys));
}
