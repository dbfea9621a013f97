//! Power cuts: whatever is left of the journal, the store opens with a prefix of its commits, each whole.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banyan_proto::id::{Incarnation, Seq};

use super::engine::Engine;
use super::{Embedded, OpenError, Options, journal};
use crate::contract::log::{derived, record, rows, segment, span, write_all};
use crate::contract::{member, room, room_row, row, wait};
use crate::log_store::{LogStore, RoomWrite, Said, SegmentRecord, Write};
use crate::outcome::Outcome;
use crate::page::{Page, Range, ReadLimit};
use crate::row::{Derived, MemberRow, RoomRow, Row};

const ROOMS: [&str; 2] = ["a", "b"];
const COMMITS: u64 = 6;
/// Files are made longer than needed beforehand (64 MiB; here less, for speed).
const JOURNAL_LEN: u64 = 1 << 20;

/// What is in the store, of each room: rows, segments, what was said last, members, the change of the room's row.
type State = Vec<(u64, Vec<SegmentRecord>, Option<Said>, usize, Option<Seq>)>;

/// A segment for every two commits.
fn record_of(commit: u64) -> SegmentRecord {
    let prev = (commit > 1).then(|| segment(commit / 2, 0));
    *record(segment(1 + commit / 2, 0), u32::try_from(commit / 4).unwrap(), 2 * commit + 1, prev)
}

fn said(commit: u64) -> Said {
    Said { segment: record_of(commit).id, head: Seq(2 * commit + 2), n: commit }
}

/// Commit `i` writes two rows to each room, and to the second a segment now and then, a member (with its room's row; also
/// beside the row of the event) and what it says of itself.
fn states() -> Vec<State> {
    let state = |commits: u64| {
        let segments = (0..commits).filter(|i| i % 2 == 0).map(record_of).collect();
        let last = commits.checked_sub(1);
        let members = usize::try_from(commits).unwrap();
        vec![
            (2 * commits, Vec::new(), None, 0, None),
            (2 * commits, segments, last.map(said), members, last.map(|i| Seq(2 * i + 1))),
        ]
    };
    (0..=COMMITS).map(state).collect()
}

fn member_of(commit: u64) -> MemberRow {
    MemberRow { changed: Seq(2 * commit + 1), ..member(&format!("member.{commit}"), 1, 2 * commit + 1) }
}

fn commit(i: u64) -> Vec<RoomWrite> {
    let SegmentRecord { id, bucket, .. } = record_of(i - i % 2);
    let from = 2 * i + 1;
    let [a, b] = ROOMS.map(room);
    let row = RoomRow { changed: Seq(from), ..room_row(&b) };
    let mut batch = rows(&b, id, bucket.0, from, from + 1);
    if let Write::Rows { rows, .. } = &mut batch {
        let carried = Derived { room: Some(row.clone()), members: vec![member_of(i)] };
        Arc::make_mut(rows)[1].derived = Some(Arc::new(carried));
    }
    let mut writes = vec![
        (a.clone(), rows(&a, id, bucket.0, from, from + 1)),
        (b.clone(), batch),
        (b.clone(), derived(Some(row), vec![member_of(i)])),
        (b.clone(), Write::Said(said(i))),
    ];
    if i.is_multiple_of(2) {
        writes.push((b, Write::Record(record_of(i).into())));
    }
    (0..).zip(writes).map(|(ticket, (room, write))| RoomWrite { ticket, room, write }).collect()
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
    // As a run of a node begins.
    wait(store.register_incarnation(Incarnation(1), "n".to_owned())).unwrap();
    for i in 0..COMMITS {
        let group = commit(i);
        let done = vec![Outcome::Done; group.len()];
        assert_eq!(write_all(&store, group), done);
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
        let name = room(name);
        let spans = (0..COMMITS).step_by(2).map(|i| {
            let SegmentRecord { id, bucket, first_seq, .. } = record_of(i);
            span(id, bucket.0, first_seq.0, first_seq.0 + 3)
        });
        let spans: Vec<_> = spans.collect();
        let Page { rows, .. } = engine.rows(&name, &spans, Range::after(Seq(0)), all).unwrap();
        for (want, got) in (1..).zip(&rows) {
            let derived = got.derived.clone();
            assert_eq!(derived.is_some(), name.as_str() == "b" && want % 2 == 0);
            assert!(derived.is_none_or(|derived| derived.members == [member_of(want / 2 - 1)]));
            let plain = Row { derived: None, ..got.clone() };
            assert_eq!(plain, row(&name, want, got.batch_first.0));
        }
        (
            rows.len() as u64,
            engine.segments(&name).unwrap(),
            engine.said(&name).unwrap(),
            engine.members(&name, None, 100).unwrap().0.len(),
            engine.room_row(name).unwrap().map(|row| row.changed),
        )
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
