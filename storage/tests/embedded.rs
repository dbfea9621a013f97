//! The embedded store as the operating system sees it: other processes, full disks, kill -9.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests, their helpers included"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use banyan_proto::id::{LogId, Seq, UnixMs};
use banyan_storage::accounts::{Accounts, Creation, LoginRow, UserRow};
use banyan_storage::contract::{append_all, batch, member, room, row, user, wait};
use banyan_storage::embedded::{Embedded, OpenError, Options};
use banyan_storage::room_log::{Append, Derived, NotDone, Outcome, Range, ReadLimit, RoomLog, Row};
use banyan_storage::{Error, embedded};
use tokio::sync::mpsc;

const ALL: ReadLimit = ReadLimit { events: usize::MAX, bytes: usize::MAX };
const DIRECTORY: &str = "BANYAN_TEST_STORE";

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
    std::fs::write(newer.join("FORMAT"), "banyan embedded store, format 2\n").unwrap();
    let error = Embedded::open(Options::new(&newer)).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 2, supported: 1, .. }));
    assert!(
        error.to_string().contains("was written by a newer release; this one reads formats up to 1"),
        "{error}"
    );

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
fn the_epoch_rises_with_every_start() {
    let directory = tempfile::tempdir().unwrap();
    let epochs: Vec<_> =
        (0..3).map(|_| Embedded::open(Options::new(directory.path())).unwrap().epoch().0).collect();
    assert_eq!(epochs, [1, 2, 3]);
}

#[test]
fn after_close_everything_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(Options::new(directory.path())).unwrap();
    store.close();
    store.close();
    assert_eq!(append_all(&store, vec![batch(&room("r"), 1, 1)]), [Outcome::NotDone(NotDone::Closed)]);
    assert_eq!(wait(store.load_room(room("r"))), Err(Error::Closed));
    assert_eq!(wait(store.end_login("x")), Err(Error::Closed));
    store.put_marks(vec![(room("r"), user("u"), Default::default())]);
}

#[test]
#[ignore = "a process that other tests start"]
fn helper_appends_until_killed() {
    let store = Embedded::open(Options::new(helper_directory())).unwrap();
    let rooms: Vec<_> = (0..20).map(|i| room(&format!("kill.{i}"))).collect();
    let (done, mut completions) = mpsc::channel(64);
    let mut heads = Vec::new();
    let mut group = Vec::new();
    let next = |i: usize, head: u64| {
        let to = head + 1 + (head + i as u64) % 4;
        (to, Append { ticket: i as u64, ..batch(&rooms[i], head + 1, to) })
    };
    for (i, room) in rooms.iter().enumerate() {
        let head = wait(store.load_room(room.clone())).unwrap().map_or(0, |loaded| loaded.head.0);
        let (to, append) = next(i, head);
        heads.push(to);
        group.push(append);
    }
    let mut out = std::io::stdout().lock();
    loop {
        store.append(std::mem::take(&mut group), &done);
        for completion in completions.blocking_recv().unwrap() {
            assert_eq!(completion.outcome, Outcome::Done);
            let i = usize::try_from(completion.ticket).unwrap();
            // The line break comes first: what is whole up to here was acked.
            write!(out, "\nacked {i} {} .", heads[i]).unwrap();
            let (to, append) = next(i, heads[i]);
            heads[i] = to;
            group.push(append);
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
        let mut child = helper("helper_appends_until_killed", &path);
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
            let rows = wait(store.read(name.clone(), Range::after(Seq(0)), ALL)).unwrap().rows;
            assert!(rows.len() as u64 >= *seq, "room {i}: {seq} was acked, {} are there", rows.len());
            for (want, got) in (1..).zip(&rows) {
                assert_eq!(*got, row(&name, want, got.batch_first.0));
            }
            let last = rows.last().unwrap();
            assert!(last.seq >= last.batch_first, "a batch is whole");
        }
        for (i, head) in acked.iter_mut() {
            // More may be there than was acked; the next round goes on behind it.
            *head = wait(store.load_room(room(&format!("kill.{i}")))).unwrap().unwrap().head.0;
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
    let one = |append| append_all(&store, vec![append])[0];
    assert_eq!(one(batch(&ours, 1, 3)), Outcome::Done);
    let login =
        LoginRow { login: "in".to_owned(), user: user("u"), created_at: UnixMs(0), expires_at: UnixMs(1) };
    wait(store.put_login(login)).unwrap();
    assert!(!store.status().full);

    for _ in 0..3 {
        let head = wait(store.load_room(ours.clone())).unwrap().unwrap().head.0;
        disk.fill(45 << 20);
        let status = store.status();
        assert!(status.full && status.free_bytes < 64 << 20 && status.degraded.is_none(), "{status:?}");
        std::thread::sleep(Duration::from_millis(60)); // the age up to which the store believes what it has seen
        assert_eq!(one(batch(&ours, head + 1, head + 1)), Outcome::NotDone(NotDone::Full));
        assert_eq!(wait(store.create_user(account("new"))), Err(Error::Full));
        // Reads, leaving and logging out go on.
        assert_eq!(
            wait(store.read(ours.clone(), Range::after(Seq(0)), ALL)).unwrap().rows.len() as u64,
            head
        );
        let leave = Derived { room: None, members: vec![member("u", 0, 1)] };
        let leave = Append { ticket: 9, room: ours.clone(), rows: vec![], derived: Some(Box::new(leave)) };
        assert_eq!(one(leave), Outcome::Done);
        wait(store.end_login("in")).unwrap();
        assert_eq!(wait(store.login("in")), Ok(None));

        disk.clear();
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(one(batch(&ours, head + 1, head + 2)), Outcome::Done);
        assert!(!store.status().full);
    }
    assert_eq!(wait(store.create_user(account("new"))), Ok(Creation::Created));
    let head = wait(store.load_room(ours)).unwrap().unwrap().head;
    assert_eq!(head, Seq(9));
}

/// `megabytes` of one room that do not compress.
fn noise(name: &str, from: u64, events: u64, bytes: usize) -> Append {
    let name = room(name);
    let mut append = batch(&name, from, from + events - 1);
    for row in &mut append.rows {
        row.event = noise_event(row, bytes);
    }
    append
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
    let one = |append: Append| append_all(&store, vec![append])[0];
    assert_eq!(one(noise("a", 1, 10, 1_000)), Outcome::Done);
    assert_eq!(one(noise("b", 1, 10, 1_000)), Outcome::Done);
    for round in 0..3 {
        let from = 11 + 100 * round;
        disk.fill(1_300_000);
        std::thread::sleep(Duration::from_millis(60));
        let large = noise("a", from, 100, 30_000);
        assert_eq!(one(large.clone()), Outcome::Unknown, "3 MB into 1.3 MB");
        let status = store.status();
        assert!(status.full && status.degraded.is_some(), "{status:?}");
        // As long as it is not known, no answer says otherwise.
        assert_eq!(one(large.clone()), Outcome::Unknown);
        assert_eq!(one(noise("b", 11 + round, 1, 100)), Outcome::NotDone(NotDone::Full));
        assert_eq!(wait(store.create_user(account("a"))), Err(Error::Full));
        // Reads go on, and see nothing of it.
        let loaded = wait(store.load_room(room("a"))).unwrap().unwrap();
        assert_eq!(loaded.head, Seq(from - 1));

        disk.clear();
        until("it works again", || store.status().degraded.is_none());
        assert_eq!(one(noise("b", 11 + round, 1, 100)), Outcome::Done);
        assert_eq!(one(large), Outcome::Done);
        assert_eq!(wait(store.load_room(room("a"))).unwrap().unwrap().head, Seq(from + 99));
    }
    store.close();
    let store = Embedded::open(options).unwrap();
    for (name, head) in [("a", 310), ("b", 13)] {
        let rows = wait(store.read(room(name), Range::after(Seq(0)), ALL)).unwrap().rows;
        assert!(rows.len() == head || name == "a", "{name}: {}", rows.len());
        for (want, got) in (1..).zip(&rows) {
            assert_eq!(got.seq, Seq(want));
            assert_eq!(got.event, noise_event(got, got.event.len()));
        }
        assert_eq!(wait(store.load_room(room(name))).unwrap().unwrap().head, Seq(head as u64));
    }
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
        match append_all(&store, vec![next.clone()])[0] {
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
                assert!(!unsettled, "an append that may be there was called not done");
                assert!(matches!(why, NotDone::Full | NotDone::Unavailable), "{why}");
                refused += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(head < 20_000, "20 MB do not hold 100 MB");
    }
    assert!(head > 1_000, "it wrote {head} events before it stopped");
    disk.clear();
    until("it works again", || append_all(&store, vec![next.clone()])[0] == Outcome::Done);
    head += 20;
    store.close();
    let store = Embedded::open(options).unwrap();
    let mut seen = 0;
    while seen < head {
        let page = wait(store.read(room("r"), Range::after(Seq(seen)), ALL)).unwrap();
        assert!(!page.rows.is_empty(), "{seen} of {head} are there");
        for got in page.rows {
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
    let logs: Arc<dyn RoomLog> = store.clone();
    let accounts: Arc<dyn Accounts> = store.clone();
    assert_eq!(append_all(&*logs, vec![batch(&room("r"), 1, 1)]), [Outcome::Done]);
    assert_eq!(wait(accounts.create_user(account("shared"))), Ok(Creation::Created));
    assert_eq!(wait(logs.load_room(room("r"))).unwrap().unwrap().row.log, LogId(0xfeed_0000_0000_0001));
    let embedded::Status { full, degraded, .. } = store.status();
    assert_eq!((full, degraded), (false, None));
}
