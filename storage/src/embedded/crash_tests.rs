//! Power cuts: whatever is left of the journal, the store opens with a prefix of its commits, each whole.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use banyan_proto::id::Seq;

use super::engine::Engine;
use super::{Embedded, OpenError, Options, journal};
use crate::contract::{append_all, batch, member, room, row};
use crate::room_log::{Derived, Outcome, Page, Range, ReadLimit};

const ROOMS: [&str; 2] = ["a", "b"];
const COMMITS: u64 = 6;
/// Files are made longer than needed beforehand (64 MiB; here less, for speed).
const JOURNAL_LEN: u64 = 1 << 20;

/// What is in the store: the heads of both rooms, and which members each has.
type State = Vec<(u64, usize)>;

/// Commit `i` writes two rows to each room and a member to the second. A member is there if and only if its rows are.
fn states() -> Vec<State> {
    (0..=COMMITS)
        .map(|commits| vec![(2 * commits, 0), (2 * commits, usize::try_from(commits).unwrap())])
        .collect()
}

fn options(directory: &Path) -> Options {
    Options { cache_bytes: 1 << 20, reader_threads: 1, ..Options::new(directory) }
}

/// In memory where there is such a thing: hundreds of stores are opened.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A closed store's engine directory, its journal cut to what was written, and where the commits of [`states`] end in it
/// (the first end is that of the commit before them).
fn written(root: &Path) -> (PathBuf, Vec<u64>) {
    let store = Embedded::open(options(root)).unwrap();
    for i in 0..COMMITS {
        let from = 2 * i + 1;
        let mut group: Vec<_> = ROOMS.iter().map(|name| batch(&room(name), from, from + 1)).collect();
        group[1].ticket = 1_000 + from;
        let derived = group[1].derived.get_or_insert_with(|| Box::new(Derived::default()));
        derived.members.push(member(&format!("member.{i}"), 1, from));
        assert_eq!(append_all(&store, group), [Outcome::Done; 2]);
    }
    store.close();
    let store = root.join("store");
    let journal = store.join("0.jnl");
    let ends = journal::commit_ends(&journal);
    let ends = ends[ends.len() - 1 - usize::try_from(COMMITS).unwrap()..].to_vec();
    OpenOptions::new().write(true).open(journal).unwrap().set_len(*ends.last().unwrap()).unwrap();
    (store, ends)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn open(store: &Path) -> Result<State, OpenError> {
    journal::check(store, journal::Tail::Trust)?;
    let engine = Engine::open(store, &options(store))?;
    let all = ReadLimit { events: usize::MAX, bytes: usize::MAX };
    let state = ROOMS.map(|name| {
        let Page { rows, .. } = engine.read(&room(name), Range::after(Seq(0)), all).unwrap();
        for (want, got) in (1..).zip(&rows) {
            assert_eq!(*got, row(&room(name), want, got.batch_first.0));
        }
        (rows.len() as u64, engine.members(&room(name), None, 100).unwrap().0.len())
    });
    Ok(state.to_vec())
}

/// Damages a copy of the store's journal and opens it. Returns how many commits are there.
fn crash(base: &Path, damage: impl FnOnce(&mut std::fs::File)) -> Result<usize, OpenError> {
    let root = scratch();
    let store = root.path().join("store");
    copy(base, &store);
    damage(&mut OpenOptions::new().read(true).write(true).open(store.join("0.jnl")).unwrap());
    let state = open(&store)?;
    Ok(states()
        .iter()
        .position(|whole| *whole == state)
        .unwrap_or_else(|| panic!("half a commit: {state:?}")))
}

#[test]
fn a_journal_cut_at_any_byte_holds_a_prefix_of_the_commits() {
    let root = scratch();
    let (base, ends) = written(root.path());
    let commits = |at: u64| ends.iter().filter(|end| **end <= at).count() - 1;
    let (from, to) = (ends[ends.len() - 3], ends[ends.len() - 1]);
    for at in from..=to {
        // Cut, or (as files are made long beforehand) followed by zeros.
        let got = crash(&base, |file| {
            file.set_len(at).unwrap();
            if at % 2 == 1 {
                file.set_len(JOURNAL_LEN).unwrap();
            }
        });
        assert_eq!(got.unwrap(), commits(at), "cut at {at}");
    }
}

#[test]
fn a_part_lost_within_the_last_commit_costs_only_that() {
    let root = scratch();
    let (base, ends) = written(root.path());
    let (from, to) = (ends[ends.len() - 2], ends[ends.len() - 1]);
    for at in (from..to).step_by(5) {
        let len = usize::try_from((to - at).min(40)).unwrap();
        let got = crash(&base, |file| {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&vec![0; len]).unwrap();
        });
        let commits = got.unwrap();
        // Zeros over zeros are no loss.
        assert!(commits >= states().len() - 2, "lost {len} bytes at {at}: {commits} commits left");
    }
}

#[test]
fn a_changed_byte_is_noticed_or_ends_the_log_before_it() {
    let root = scratch();
    let (base, ends) = written(root.path());
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut refused = 0;
    for _ in 0..150 {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        let at = noise % ends[ends.len() - 1];
        let hit = ends.iter().filter(|end| **end <= at).count();
        let result = crash(&base, |file| {
            use std::os::unix::fs::FileExt;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << (noise >> 32 & 7);
            file.write_all_at(&byte, at).unwrap();
        });
        let last = hit == ends.len() - 1;
        match result {
            // Commit `hit` is the damaged one (0: one before the ones that are counted).
            Ok(commits) if last => {
                assert!(commits + 1 >= hit, "byte {at}: {commits} commits, {hit} is damaged")
            }
            // The number of a commit is not under its checksum; a change that keeps the order changes nothing.
            Ok(commits) => assert_eq!(commits, states().len() - 1, "byte {at}: commits were lost in silence"),
            Err(OpenError::Damaged(text)) => {
                refused += 1;
                assert!(text.contains("0.jnl is damaged at byte"), "{text}");
            }
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
    assert!(refused > 50, "only {refused} of 150 were noticed");
}
