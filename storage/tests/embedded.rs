//! The embedded store as the operating system sees it: other processes, full disks, kill -9.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests, their helpers included"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use banyan_proto::id::{Bucket, Epoch, Incarnation, RoomId, Seq, SlotId, UnixMs};
use banyan_storage::accounts::{Accounts, Creation, LoginRow, UserRow};
use banyan_storage::contract::log::{derived, record, rows, segment, span, write_all};
use banyan_storage::contract::{member, room, row, user, wait};
use banyan_storage::embedded::{Embedded, OpenError, Options};
use banyan_storage::log_store::{Answered, LogStore, RoomWrite, Said, SlotOwner, Write};
use banyan_storage::{Error, MemberRow, NotDone, Outcome, Range, ReadLimit, Row, embedded};
use tokio::sync::mpsc;

const ALL: ReadLimit = ReadLimit { events: usize::MAX, bytes: usize::MAX };
const DIRECTORY: &str = "BANYAN_TEST_STORE";

/// All rows of these tests, but for those of rooms that say otherwise, are in one segment.
fn batch(room: &RoomId, from: u64, to: u64) -> RoomWrite {
    RoomWrite { ticket: from, room: room.clone(), write: rows(room, segment(1, 0), 0, from, to) }
}

fn read(store: &Embedded, room: &RoomId, range: Range, limit: ReadLimit) -> Vec<Row> {
    let spans = vec![span(segment(1, 0), 0, 1, u64::MAX)];
    wait(store.rows(room.clone(), spans, range, limit)).unwrap().rows
}

fn all(store: &Embedded, room: &RoomId) -> Vec<Row> {
    read(store, room, Range::after(Seq(0)), ALL)
}

fn head(store: &Embedded, room: &RoomId) -> u64 {
    let newest = ReadLimit { events: 1, ..ALL };
    read(store, room, Range::before(Seq(u64::MAX)), newest).first().map_or(0, |row| row.seq.0)
}

/// This test binary again, as another process that runs one helper below over `directory`.
fn helper(name: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env(DIRECTORY, directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn helper_directory() -> PathBuf {
    std::env::var_os(DIRECTORY).expect("started by a test").into()
}

#[test]
#[ignore = "a process that other tests start"]
fn helper_opens() {
    match Embedded::open(Options::new(helper_directory())) {
        Ok(_) => println!("\nopened"),
        Err(error) => println!("\nrefused: {error}"),
    }
}

#[test]
fn a_second_process_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Embedded::open(Options::new(&path)).unwrap();
    let said = |child: Child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let text = said(helper("helper_opens", &path));
    let want = format!(
        "refused: {} is in use by another process (pid {}); stop that one or choose another directory",
        path.display(),
        std::process::id()
    );
    assert!(text.contains(&want), "{text}");
    // So is a second store in one process.
    assert!(matches!(Embedded::open(Options::new(&path)), Err(OpenError::Locked { .. })));
    store.close();
    let text = said(helper("helper_opens", &path));
    assert!(text.contains("opened"), "{text}");
}

#[test]
fn directories_that_cannot_be_used_are_refused_in_words() {
    let root = tempfile::tempdir().unwrap();
    let newer = root.path().join("newer");
    drop(Embedded::open(Options::new(&newer)).unwrap());
    std::fs::write(newer.join("FORMAT"), "banyan embedded store, format 3\n").unwrap();
    let error = Embedded::open(Options::new(&newer)).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 3, supported: 2, .. }));
    assert!(
        error.to_string().contains("was written by a newer release; this one reads formats up to 2"),
        "{error}"
    );
    std::fs::write(newer.join("FORMAT"), "banyan embedded store, format 1\n").unwrap();
    let error = Embedded::open(Options::new(&newer)).unwrap_err();
    assert!(error.to_string().contains("move the directory away and start with an empty one"), "{error}");

    let foreign = root.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("notes.txt"), "mine").unwrap();
    let error = Embedded::open(Options::new(&foreign)).unwrap_err();
    assert!(error.to_string().contains("is not a store of ours (there is \"notes.txt\" in it)"), "{error}");
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1, "nothing was put there");

    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Embedded::open(Options::new(&path)).unwrap_err();
        assert!(matches!(error, OpenError::Directory { .. }), "{error}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }

    // Permissions do not stop root; a read-only file system stops everybody, and /proc is one.
    let error = Embedded::open(Options::new("/proc/banyan")).unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
}

#[test]
fn after_close_everything_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(Options::new(directory.path())).unwrap();
    store.close();
    store.close();
    assert_eq!(write_all(&store, vec![batch(&room("r"), 1, 1)]), [Outcome::NotDone(NotDone::Closed)]);
    assert_eq!(wait(store.segments(room("r"))), Err(Error::Closed));
    assert_eq!(wait(store.end_login("x")), Err(Error::Closed));
    assert_eq!(wait(store.write_fence(Incarnation(1))), Err(Error::Closed));
    assert!(matches!(store.is_fenced(Incarnation(1)), Answered::Now(Err(Error::Closed))));
    store.put_marks(vec![(room("r"), user("u"), Default::default())]);
}

#[test]
#[ignore = "a process that other tests start"]
fn helper_writes_until_killed() {
    let store = Embedded::open(Options::new(helper_directory())).unwrap();
    let rooms: Vec<_> = (0..20).map(|i| room(&format!("kill.{i}"))).collect();
    let (done, mut completions) = mpsc::channel(64);
    let mut heads = Vec::new();
    let mut group = Vec::new();
    let next = |i: usize, head: u64| {
        let to = head + 1 + (head + i as u64) % 4;
        (to, RoomWrite { ticket: i as u64, ..batch(&rooms[i], head + 1, to) })
    };
    for (i, room) in rooms.iter().enumerate() {
        let (to, write) = next(i, head(&store, room));
        heads.push(to);
        group.push(write);
    }
    let mut out = std::io::stdout().lock();
    loop {
        store.write(std::mem::take(&mut group), &done);
        for completion in completions.blocking_recv().unwrap() {
            assert_eq!(completion.outcome, Outcome::Done);
            let i = usize::try_from(completion.ticket).unwrap();
            // The line break comes first: what is whole up to here was acked.
            write!(out, "\nacked {i} {} .", heads[i]).unwrap();
            let (to, write) = next(i, heads[i]);
            heads[i] = to;
            group.push(write);
        }
        out.flush().unwrap();
    }
}

#[test]
fn kill_9_loses_nothing_that_was_acked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut acked = BTreeMap::new();
    let mut lines = 0;
    for round in 0..8_u64 {
        let mut child = helper("helper_writes_until_killed", &path);
        let stop_after = 40 + 97 * round;
        let mut seen = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let Ok(line) = line else { break };
            let words: Vec<_> = line.split_whitespace().collect();
            if let ["acked", i, seq, "."] = words[..] {
                let (i, seq) = (i.parse::<usize>().unwrap(), seq.parse::<u64>().unwrap());
                assert!(acked.insert(i, seq) < Some(seq), "room {i} went back to {seq}");
                seen += 1;
            }
            if seen == stop_after {
                child.kill().unwrap(); // SIGKILL; what it has said before is still read
            }
        }
        child.wait().unwrap();
        assert!(seen >= stop_after, "it stopped by itself after {seen} acks");
        lines += seen;
        let store = Embedded::open(Options::new(&path)).unwrap();
        for (i, seq) in &acked {
            let name = room(&format!("kill.{i}"));
            let rows = all(&store, &name);
            assert!(rows.len() as u64 >= *seq, "room {i}: {seq} was acked, {} are there", rows.len());
            for (want, got) in (1..).zip(&rows) {
                assert_eq!(*got, row(&name, want, got.batch_first.0));
            }
            // A batch is whole: its last row is where the writer ended it.
            let last = rows.last().unwrap();
            let before = last.batch_first.0 - 1;
            assert_eq!(last.seq.0, before + 1 + (before + *i as u64) % 4, "room {i}");
        }
        for (i, head) in acked.iter_mut() {
            // More may be there than was acked; the next round goes on behind it.
            *head = self::head(&store, &room(&format!("kill.{i}")));
        }
    }
    assert!(lines > 2_000, "{lines} acks");
}

/// A small file system of its own; needs root.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// None: it cannot be had here, and the tests may do without.
    fn mount(megabytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(directory));
        }
        let why = "the tests of a full disk mount a small tmpfs, which needs root (and the command mount)";
        assert!(
            std::env::var_os("BANYAN_TEST_ALLOW_MISSING").is_some_and(|value| value == "1"),
            "{why}; run them as root, or set BANYAN_TEST_ALLOW_MISSING=1 to go without"
        );
        eprintln!("skipped: {why}");
        None
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    /// Another process takes all but so many bytes.
    fn fill(&self, leave: u64) {
        let take = free(self.0.path()).saturating_sub(leave);
        let status =
            Command::new("fallocate").arg("-l").arg(take.to_string()).arg(self.filler()).status().unwrap();
        assert!(status.success());
    }

    fn clear(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.path().display());
        }
    }
}

fn free(path: &Path) -> u64 {
    let out = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(path).output().unwrap().stdout;
    let numbers: Vec<u64> =
        std::str::from_utf8(&out).unwrap().split_whitespace().map(|n| n.parse().unwrap()).collect();
    numbers[0] * numbers[1]
}

/// Tries until it is so.
#[track_caller]
fn until(what: &str, check: impl Fn() -> bool) {
    #[allow(clippy::disallowed_methods, reason = "a plain thread")]
    let end = Instant::now() + Duration::from_secs(20);
    while !check() {
        #[allow(clippy::disallowed_methods, reason = "a plain thread")]
        let late = Instant::now() > end;
        assert!(!late, "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn account(name: &str) -> UserRow {
    UserRow {
        user: user(name),
        name: name.to_owned(),
        username: Some(name.to_owned()),
        skeleton: None,
        password_hash: None,
        disabled: false,
        created_at: UnixMs(0),
        tokens_not_before: UnixMs(0),
    }
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let Some(disk) = Tmpfs::mount(200) else { return };
    let store = Embedded::open(Options::new(disk.store())).unwrap();
    let ours = room("full");
    let write = |write| write_all(&store, vec![RoomWrite { ticket: 1, room: ours.clone(), write }])[0];
    let one = |batch: RoomWrite| write(batch.write);
    assert_eq!(write(Write::Record(record(segment(1, 0), 0, 1, None))), Outcome::Done);
    assert_eq!(one(batch(&ours, 1, 3)), Outcome::Done);
    let login =
        LoginRow { login: "in".to_owned(), user: user("u"), created_at: UnixMs(0), expires_at: UnixMs(1) };
    wait(store.put_login(login)).unwrap();
    assert!(!store.status().full);

    for round in 0..3 {
        let at = head(&store, &ours);
        disk.fill(45 << 20);
        let status = store.status();
        assert!(status.full && status.free_bytes < 64 << 20 && status.degraded.is_none(), "{status:?}");
        std::thread::sleep(Duration::from_millis(60)); // the age up to which the store believes what it has seen
        let full = Outcome::NotDone(NotDone::Full);
        assert_eq!(one(batch(&ours, at + 1, at + 1)), full);
        // A room that was not closed is opened, to be read: its newest rows again, and a record.
        assert_eq!(one(batch(&ours, 1, 3)), Outcome::Done);
        let next = Write::Record(record(segment(1 + round, 0), 0, 1, None));
        let next = RoomWrite { ticket: 1, room: room("opened"), write: next };
        assert_eq!(write_all(&store, vec![next])[0], Outcome::Done);
        assert_eq!(wait(store.create_user(account("new"))), Err(Error::Full));
        // Reads, leaving and logging out go on, and owners come and go.
        assert_eq!(all(&store, &ours).len() as u64, at);
        assert_eq!(wait(store.segments(ours.clone())).unwrap().len(), 1);
        let leave = MemberRow { changed: Seq(at), ..member("u", 0, 1) };
        assert_eq!(write(derived(None, vec![leave])), Outcome::Done);
        let said = Said { segment: segment(1, 0), head: Seq(at), n: round };
        assert_eq!(write(Write::Said(said)), Outcome::Done);
        assert_eq!(wait(store.said(ours.clone())), Ok(Some(said)));
        wait(store.end_login("in")).unwrap();
        assert_eq!(wait(store.login("in")), Ok(None));
        let gone = Incarnation(round.into());
        wait(store.write_fence(gone)).unwrap();
        wait(store.register_incarnation(Incarnation(77), "n".to_owned())).unwrap();
        let owner = SlotOwner { epoch: Epoch(round + 1), incarnation: Incarnation(77), closed: false };
        wait(store.put_slot_owner(SlotId(1), owner, Some((Epoch(round), gone)))).unwrap();
        assert!(matches!(store.is_fenced(gone), Answered::Now(Ok(true))));

        // Hardly anything is left: only reads go on.
        disk.clear();
        disk.fill(20 << 20);
        std::thread::sleep(Duration::from_millis(60));
        for small in [derived(None, vec![member("v", 1, 1)]), Write::Said(Said { n: 99, ..said })] {
            assert_eq!(write(small), full);
        }
        assert_eq!(wait(store.end_login("in")), Err(Error::Full));
        assert_eq!(wait(store.said(ours.clone())), Ok(Some(said)));
        assert_eq!(all(&store, &ours).len() as u64, at);

        disk.clear();
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(one(batch(&ours, at + 1, at + 2)), Outcome::Done);
        assert!(!store.status().full);
    }
    assert_eq!(wait(store.create_user(account("new"))), Ok(Creation::Created));
    assert_eq!(head(&store, &ours), 9);
}

/// Below half of the reserve rooms can be read, also by who starts then: it only writes that it owns them.
#[test]
fn a_run_begins_on_a_disk_that_is_all_but_full() {
    let Some(disk) = Tmpfs::mount(200) else { return };
    let ours = room("full");
    let store = Embedded::open(Options::new(disk.store())).unwrap();
    let first = Write::Record(record(segment(1, 0), 0, 1, None));
    let first = RoomWrite { ticket: 1, room: ours.clone(), write: first };
    for write in [first, batch(&ours, 1, 3)] {
        assert_eq!(write_all(&store, vec![write]), [Outcome::Done]);
    }
    store.close();
    let mut before = None;
    for (round, left) in (1..).zip([20 << 20, 2 << 20]) {
        disk.fill(left);
        let store = Embedded::open(Options::new(disk.store())).unwrap();
        let (gone, me) = (Incarnation(round), Incarnation(round + 1));
        wait(store.write_fence(gone)).unwrap();
        wait(store.register_incarnation(me, "n".to_owned())).unwrap();
        let owner = SlotOwner { epoch: Epoch(round as u64), incarnation: me, closed: false };
        wait(store.put_slot_owner(SlotId(0), owner, before.replace((owner.epoch, me)))).unwrap();
        assert!(matches!(store.is_fenced(gone), Answered::Now(Ok(true))));
        assert_eq!(wait(store.slot_owners(SlotId(0))).unwrap().last(), Some(&owner));
        assert_eq!(all(&store, &ours).len(), 3);
        assert_eq!(write_all(&store, vec![batch(&ours, 4, 4)]), [Outcome::NotDone(NotDone::Full)]);
        store.close();
        disk.clear();
    }
    // Not to the last byte.
    let store = Embedded::open(Options::new(disk.store())).unwrap();
    disk.fill(900_000);
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(wait(store.write_fence(Incarnation(99))), Err(Error::Full));
    assert!(matches!(store.is_fenced(Incarnation(99)), Answered::Now(Ok(false))));
    assert_eq!(all(&store, &ours).len(), 3);
}

/// `megabytes` of one room that do not compress.
fn noise(name: &str, from: u64, events: u64, bytes: usize) -> RoomWrite {
    let name = room(name);
    let mut batch = batch(&name, from, from + events - 1);
    if let Write::Rows { rows, .. } = &mut batch.write {
        for row in Arc::make_mut(rows) {
            row.event = noise_event(row, bytes);
        }
    }
    batch
}

fn noise_event(row: &Row, bytes: usize) -> bytes::Bytes {
    let mut state = row.seq.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(word).flat_map(u64::to_le_bytes).take(bytes).collect()
}

#[test]
fn a_write_that_fails_half_way_is_unknown_and_then_settled() {
    let Some(disk) = Tmpfs::mount(100) else { return };
    // A small reserve, so that one commit is larger than what is free.
    let options = Options { min_free_bytes: 1 << 20, ..Options::new(disk.store()) };
    let store = Embedded::open(options.clone()).unwrap();
    let one = |write: RoomWrite| write_all(&store, vec![write])[0];
    let of = |name: &str, write| RoomWrite { ticket: 7, room: room(name), write };
    assert_eq!(one(noise("a", 1, 10, 1_000)), Outcome::Done);
    assert_eq!(one(noise("b", 1, 10, 1_000)), Outcome::Done);
    for round in 0..3 {
        let from = 11 + 100 * round;
        disk.fill(1_300_000);
        std::thread::sleep(Duration::from_millis(60));
        let large = noise("a", from, 100, 30_000);
        // What is put in with it shares its commit.
        let next = of("c", Write::Record(record(segment(round + 1, 0), 0, 1, None)));
        let outcomes = write_all(&store, vec![large.clone(), next.clone()]);
        assert_eq!(outcomes, [Outcome::Unknown; 2], "3 MB into 1.3 MB");
        let status = store.status();
        assert!(status.full && status.degraded.is_some(), "{status:?}");
        // As long as it is not known, no answer says otherwise; of any other write it is known.
        assert_eq!(one(large.clone()), Outcome::Unknown);
        assert_eq!(one(next.clone()), Outcome::Unknown);
        let full = Outcome::NotDone(NotDone::Full);
        assert_eq!(one(noise("b", 11 + round, 1, 100)), full);
        assert_eq!(one(of("a", derived(None, vec![member("u", 1, 1)]))), full);
        assert_eq!(one(noise("a", from + 100, 1, 100)), full);
        assert_eq!(wait(store.create_user(account("a"))), Err(Error::Full));
        assert_eq!(wait(store.write_fence(Incarnation(1))), Err(Error::Full));
        // Reads go on, and see nothing of it.
        assert_eq!(head(&store, &room("a")), from - 1);
        assert_eq!(wait(store.segments(room("c"))).unwrap().len() as u64, round);
        assert!(matches!(store.is_fenced(Incarnation(1)), Answered::Now(Ok(false))));

        disk.clear();
        until("it works again", || store.status().degraded.is_none());
        assert_eq!(one(noise("b", 11 + round, 1, 100)), Outcome::Done);
        assert_eq!(write_all(&store, vec![large, next]), [Outcome::Done; 2]);
        assert_eq!(head(&store, &room("a")), from + 99);
    }
    store.close();
    let store = Embedded::open(options).unwrap();
    for (name, last) in [("a", 310), ("b", 13)] {
        let rows = all(&store, &room(name));
        assert!(rows.len() as u64 == last || name == "a", "{name}: {}", rows.len());
        for (want, got) in (1..).zip(&rows) {
            assert_eq!(got.seq, Seq(want));
            assert_eq!(got.event, noise_event(got, got.event.len()));
        }
        assert_eq!(head(&store, &room(name)), last);
    }
    assert_eq!(wait(store.segments(room("c"))).unwrap().len(), 3);
}

#[test]
fn tables_that_do_not_fit_stop_writes_until_there_is_space() {
    let Some(disk) = Tmpfs::mount(60) else { return };
    // Hardly a reserve: it is the engine's background work that runs into the end of the disk.
    let options = Options { min_free_bytes: 200_000, memtable_bytes: 2 << 20, ..Options::new(disk.store()) };
    let store = Embedded::open(options.clone()).unwrap();
    disk.fill(20 << 20);
    let (mut head, mut refused, mut unsettled) = (0, 0, false);
    let mut next = noise("r", 1, 20, 5_000);
    while refused < 100 {
        match write_all(&store, vec![next.clone()])[0] {
            Outcome::Done => {
                head += 20;
                unsettled = false;
                next = noise("r", head + 1, 20, 5_000);
            }
            Outcome::Unknown => {
                unsettled = true;
                refused += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Outcome::NotDone(why) => {
                assert!(!unsettled, "a write that may be there was called not done");
                assert!(matches!(why, NotDone::Full | NotDone::Unavailable), "{why}");
                refused += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(head < 20_000, "20 MB do not hold 100 MB");
    }
    assert!(head > 1_000, "it wrote {head} events before it stopped");
    disk.clear();
    until("it works again", || write_all(&store, vec![next.clone()])[0] == Outcome::Done);
    head += 20;
    store.close();
    let store = Embedded::open(options).unwrap();
    let mut seen = 0;
    while seen < head {
        let rows = read(&store, &room("r"), Range::after(Seq(seen)), ALL);
        assert!(!rows.is_empty(), "{seen} of {head} are there");
        for got in rows {
            seen += 1;
            assert_eq!((got.seq, &got.event), (Seq(seen), &noise_event(&got, 5_000)));
        }
    }
    assert_eq!(seen, head);
}

#[test]
fn stores_are_shared_by_their_traits() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(Options::new(directory.path())).unwrap());
    let logs: Arc<dyn LogStore> = store.clone();
    let accounts: Arc<dyn Accounts> = store.clone();
    assert_eq!(write_all(&*logs, vec![batch(&room("r"), 1, 1)]), [Outcome::Done]);
    assert_eq!(wait(accounts.create_user(account("shared"))), Ok(Creation::Created));
    assert_eq!(all(&store, &room("r")), [row(&room("r"), 1, 1)]);
    let embedded::Status { full, degraded, .. } = store.status();
    assert_eq!((full, degraded), (false, None));
}

/// In builds that look for it (they read before they write) the store stops rather than give a name a second content.
#[cfg(debug_assertions)]
#[test]
fn a_second_content_stops_the_store() {
    let other = |write: &mut Write| match write {
        Write::Rows { rows, .. } => Arc::make_mut(rows)[1].n += 1,
        Write::Record(record) => record.bucket = Bucket(9),
        Write::Derived(_) | Write::Said(_) => unreachable!(),
    };
    for first in [batch(&room("r"), 1, 2).write, Write::Record(record(segment(1, 0), 0, 1, None))] {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(Options::new(directory.path())).unwrap();
        let of = |write: &Write| RoomWrite { ticket: 1, room: room("r"), write: write.clone() };
        assert_eq!(write_all(&store, vec![of(&first)]), [Outcome::Done]);
        assert_eq!(write_all(&store, vec![of(&first)]), [Outcome::Done]);
        let mut second = first.clone();
        other(&mut second);
        let (done, mut completions) = mpsc::channel(1);
        store.write(vec![of(&second)], &done);
        drop(done);
        assert_eq!(completions.blocking_recv(), None, "nobody says what became of it");
        until("the store says so", || {
            store.status().degraded.is_some_and(|why| why.contains("the writer of the store panicked"))
        });
        assert_eq!(write_all(&store, vec![of(&first)]), [Outcome::NotDone(NotDone::Closed)]);
        drop(store);
        let store = Embedded::open(Options::new(directory.path())).unwrap();
        assert_eq!(write_all(&store, vec![of(&first)]), [Outcome::Done], "the first one stands");
    }
}
