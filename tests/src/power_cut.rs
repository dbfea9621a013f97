//! Plays a power cut: after kill -9, takes back from the files whatever was never synced, but for a random part.
//!
//! Owns: building and loading the shim (`tests/shim/sync_shim.c`), reading its undo log, changing the files.
//! Always holds: what a sync covered stays as it was; what stays of the rest is a beginning of it, in the order
//! in which it was written, with the first change that is lost possibly torn.
//! Does not: lose changes of one file out of order, and does not keep a made name without its directory's sync
//! unless the file itself was synced (ext4, XFS and Btrfs write the name with the file). Directories stay.
//!
//! A file's length alone would not do: the store grows its journal to 64 MiB ahead of its content and syncs
//! that, so a lost write changes no length. Hence the undo log knows the bytes.

use crate::random::Random;
use crate::shim;
use anyhow::{Context, bail, ensure};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The shim, compiled, with the directory for its log.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
    state: PathBuf,
}

/// What a cut took away.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Changes in the log that no sync covered.
    pub unsynced: u64,
    /// Files whose content or length went back.
    pub files: u64,
    /// Bytes of writes that were taken back.
    pub bytes: u64,
    /// Made, renamed and removed names that were taken back.
    pub names: u64,
    /// Syncs seen; none at all in a run means that the shim saw nothing or was told to ignore them.
    pub syncs: u64,
}

impl Shim {
    /// Compiles the shim with `cc` into `dir`, and takes `dir/shim-state` for its log. `dir` must be on the file
    /// system of the data (removed files are kept by hard links) and must not be below the watched root.
    pub fn build(dir: &Path) -> anyhow::Result<Self> {
        let library = shim::build("sync_shim", dir)?;
        let state = dir.join("shim-state");
        fs::create_dir_all(&state)?;
        Ok(Self { library, state })
    }

    /// Puts `command` under the shim, which watches `root` (it must exist). With `ignore_fsync` every sync of the
    /// program does nothing and says that it worked: the planted bug.
    pub fn watch(&self, command: &mut Command, root: &Path, ignore_fsync: bool) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("SYNC_SHIM_ROOT", root)
            .env("SYNC_SHIM_STATE", &self.state)
            .env("SYNC_SHIM_IGNORE_FSYNC", if ignore_fsync { "1" } else { "0" });
    }

    /// Takes back what was not synced below `root`, after the watched process is dead. The log begins anew: what
    /// is there afterwards counts as on disk.
    pub fn cut(&self, root: &Path, random: &mut Random) -> anyhow::Result<Cut> {
        let log = self.state.join("log");
        let records = match fs::read(&log) {
            Ok(bytes) => read_log(&bytes)?,
            Err(e) => bail!("{}: {e}: the process did not run under the shim", log.display()),
        };
        let cut = take_back(root, &self.state, &records, random)?;
        self.forget()?;
        Ok(cut)
    }

    /// Begins the log anew: what is there now counts as on disk. The watched process must be dead.
    pub fn forget(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.state)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

/// Bytes of a record's head; `struct record` in the shim.
const HEAD: usize = 48;
const MAGIC: u32 = 0x314d_4853;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    /// Place in the log; a sync covers the changes of its file below its `covers`.
    pos: u64,
    ino: u64,
    change: Change,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// `old` is what stood at `at`; zeros follow it as far as the file went.
    Write {
        at: u64,
        len: u64,
        old_size: u64,
        old: Vec<u8>,
    },
    Truncate {
        len: u64,
        old_size: u64,
        old: Vec<u8>,
    },
    Sync {
        covers: u64,
    },
    Create {
        path: PathBuf,
    },
    /// `grave` is the link to what the new name stood for before, 0 for nothing.
    Rename {
        from: PathBuf,
        to: PathBuf,
        grave: u64,
    },
    Unlink {
        path: PathBuf,
        grave: u64,
    },
    MakeDir,
}

fn read_log(bytes: &[u8]) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut pos = 0;
    while let Some(head) = bytes.get(pos..pos + HEAD) {
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let long = |i: usize| u64::from(word(i)) | u64::from(word(i + 4)) << 32;
        ensure!(word(0) == MAGIC, "the shim's log is damaged at byte {pos}");
        let (kind, ino, at, len, old_size) = (word(4), long(8), long(16), long(24), long(32));
        let end = pos as u64 + HEAD as u64 + long(40);
        // The kill may have cut the last record short: then its change was not made either.
        let Some(payload) = usize::try_from(end).ok().and_then(|end| bytes.get(pos + HEAD..end)) else {
            break;
        };
        let path = || PathBuf::from(OsString::from_vec(payload.to_vec()));
        let change = match kind {
            1 => Change::Create { path: path() },
            2 => Change::Write { at, len, old_size, old: payload.to_vec() },
            3 => Change::Truncate { len, old_size, old: payload.to_vec() },
            4 => Change::Sync { covers: at },
            5 => {
                let mut names =
                    payload.splitn(2, |b| *b == 0).map(|n| PathBuf::from(OsString::from_vec(n.to_vec())));
                let (Some(from), Some(to)) = (names.next(), names.next()) else {
                    bail!("the shim's log has a rename without two names at byte {pos}")
                };
                Change::Rename { from, to, grave: at }
            }
            6 => Change::Unlink { path: path(), grave: at },
            7 => Change::MakeDir,
            8 => bail!(
                "the program did what the shim cannot follow ({}): the run proves nothing",
                String::from_utf8_lossy(payload)
            ),
            other => bail!("the shim's log has a record of unknown kind {other} at byte {pos}"),
        };
        records.push(Record { pos: pos as u64, ino, change });
        pos += HEAD + payload.len();
    }
    Ok(records)
}

fn take_back(root: &Path, state: &Path, records: &[Record], random: &mut Random) -> anyhow::Result<Cut> {
    let mut cut = Cut::default();
    let mut covered: HashMap<u64, u64> = HashMap::new();
    for record in records {
        if let Change::Sync { covers } = record.change {
            let best = covered.entry(record.ino).or_default();
            *best = covers.max(*best);
            cut.syncs += 1;
        }
    }
    let is_covered = |record: &Record| covered.get(&record.ino).is_some_and(|covers| record.pos < *covers);

    // Content first, by inode: it does not depend on names, and graves still hold what was removed.
    let mut files = HashMap::new();
    find_files(root, &mut files)?;
    find_files(state, &mut files)?;
    let mut changes: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
    for record in records {
        let content = matches!(record.change, Change::Write { .. } | Change::Truncate { .. });
        if content && !is_covered(record) {
            changes.entry(record.ino).or_default().push(record);
        }
    }
    for (ino, lost) in changes {
        cut.unsynced += lost.len() as u64;
        // Not there under any name: removed before the shim could keep it, so there is nothing to cut.
        let Some(path) = files.get(&ino) else { continue };
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let keep = usize::try_from(random.below(lost.len() as u64 + 1)).unwrap_or(0);
        for (i, record) in lost.iter().enumerate().skip(keep).rev() {
            let torn = i == keep && random.below(2) == 0;
            cut.bytes += undo_content(&file, &record.change, torn, random)?;
        }
        cut.files += u64::from(keep < lost.len());
    }

    // Names: of each directory a beginning of its unsynced changes stays.
    let mut names: BTreeMap<&Path, Vec<&Record>> = BTreeMap::new();
    for record in records {
        let path = match &record.change {
            Change::Create { path } | Change::Unlink { path, .. } | Change::Rename { to: path, .. } => path,
            Change::Write { .. } | Change::Truncate { .. } | Change::Sync { .. } | Change::MakeDir => {
                continue;
            }
        };
        let Some(parent) = path.parent() else { continue };
        let directory = fs::metadata(parent).map(|m| m.ino()).unwrap_or(0);
        if covered.get(&directory).is_none_or(|covers| record.pos >= *covers) {
            names.entry(parent).or_default().push(record);
        }
    }
    let mut lost: Vec<&Record> = Vec::new();
    for changes in names.values() {
        cut.unsynced += changes.len() as u64;
        let made = |r: &&Record| matches!(r.change, Change::Create { .. }) && is_covered(r);
        let stays = changes.iter().rposition(made).map_or(0, |i| i + 1);
        let more = random.below((changes.len() - stays) as u64 + 1);
        lost.extend(&changes[stays + usize::try_from(more).unwrap_or(0)..]);
    }
    lost.sort_by_key(|record| std::cmp::Reverse(record.pos));
    for record in lost {
        undo_name(state, &record.change)?;
        cut.names += 1;
    }
    Ok(cut)
}

/// Takes one change of content back; returns the bytes of it that went. `torn`: a random beginning of it stays.
fn undo_content(file: &File, change: &Change, torn: bool, random: &mut Random) -> anyhow::Result<u64> {
    let now = file.metadata()?.len();
    match change {
        Change::Write { at, len, old_size, old } => {
            let stays = if torn { random.below(*len) } else { 0 };
            let from = at + stays;
            restore(file, *at, from, (at + len).min(*old_size), old)?;
            let size = if stays > 0 { from.max(*old_size) } else { *old_size };
            file.set_len(size.min(now))?;
            Ok(len - stays)
        }
        Change::Truncate { len, old_size, old } => {
            file.set_len(*old_size)?;
            restore(file, *len, *len, *old_size, old)?;
            Ok(0)
        }
        Change::Sync { .. }
        | Change::Create { .. }
        | Change::Rename { .. }
        | Change::Unlink { .. }
        | Change::MakeDir => Ok(0),
    }
}

/// Writes what stood at `from..to`; `old` begins at `at`, zeros follow it.
fn restore(file: &File, at: u64, from: u64, to: u64, old: &[u8]) -> anyhow::Result<()> {
    if from >= to {
        return Ok(());
    }
    let mut bytes = vec![0; usize::try_from(to - from)?];
    let skip = usize::try_from(from - at)?;
    if let Some(rest) = old.get(skip..) {
        let n = rest.len().min(bytes.len());
        bytes[..n].copy_from_slice(&rest[..n]);
    }
    file.write_all_at(&bytes, from)?;
    Ok(())
}

fn undo_name(state: &Path, change: &Change) -> anyhow::Result<()> {
    let back_from_grave = |grave: u64, path: &Path| -> anyhow::Result<()> {
        if grave != 0 && !path.exists() {
            fs::hard_link(state.join(format!("grave-{grave}")), path)
                .with_context(|| format!("cannot bring {} back", path.display()))?;
        }
        Ok(())
    };
    match change {
        // A name that has moved on to another directory, and stays there, is no longer here.
        Change::Create { path } => match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            Ok(()) | Err(_) => Ok(()),
        },
        Change::Rename { from, to, grave } => {
            if to.exists() {
                fs::rename(to, from)
                    .with_context(|| format!("cannot take the rename to {} back", to.display()))?;
            }
            back_from_grave(*grave, to)
        }
        Change::Unlink { path, grave } => back_from_grave(*grave, path),
        Change::Write { .. } | Change::Truncate { .. } | Change::Sync { .. } | Change::MakeDir => Ok(()),
    }
}

fn find_files(dir: &Path, found: &mut HashMap<u64, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            find_files(&entry.path(), found)?;
        } else if kind.is_file() {
            found.insert(entry.metadata()?.ino(), entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(pos: u64, ino: u64, at: u64, new: &[u8], old_size: u64, old: &[u8]) -> Record {
        Record { pos, ino, change: Change::Write { at, len: new.len() as u64, old_size, old: old.to_vec() } }
    }

    /// A file that was `synced`, then grew to `now`; every outcome of many seeds.
    fn outcomes(synced: &[u8], now: &[u8], records: impl Fn(u64) -> Vec<Record>) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for seed in 0..200 {
            let dir = tempfile::tempdir().unwrap();
            let (root, state) = (dir.path().join("root"), dir.path().join("state"));
            fs::create_dir_all(&root).unwrap();
            fs::create_dir_all(&state).unwrap();
            let path = root.join("f");
            fs::write(&path, now).unwrap();
            let ino = fs::metadata(&path).unwrap().ino();
            take_back(&root, &state, &records(ino), &mut Random::new(seed)).unwrap();
            let left = fs::read(&path).unwrap();
            assert!(left.starts_with(synced), "{left:?}");
            all.push(left);
        }
        all.sort();
        all.dedup();
        all
    }

    #[test]
    fn unsynced_appends_are_cut_to_any_beginning() {
        let left = outcomes(b"ab", b"abcdef", |ino| {
            vec![
                write(0, ino, 0, b"ab", 0, b""),
                Record { pos: 50, ino, change: Change::Sync { covers: 50 } },
                write(100, ino, 2, b"cd", 2, b""),
                write(150, ino, 4, b"ef", 4, b""),
            ]
        });
        assert_eq!(left, [&b"ab"[..], b"abc", b"abcd", b"abcde", b"abcdef"]);
    }

    #[test]
    fn writes_into_a_grown_file_become_zeros_again() {
        let left = outcomes(b"", b"xy\0\0", |ino| {
            vec![
                Record { pos: 0, ino, change: Change::Truncate { len: 4, old_size: 0, old: vec![] } },
                Record { pos: 50, ino, change: Change::Sync { covers: 50 } },
                write(100, ino, 0, b"xy", 4, b""),
            ]
        });
        assert_eq!(left, [&b"\0\0\0\0"[..], b"x\0\0\0", b"xy\0\0"]);
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        // The write at 60 came while the disk worked for a sync begun at 50.
        let left = outcomes(b"a", b"ab", |ino| {
            vec![
                write(0, ino, 0, b"a", 0, b""),
                write(60, ino, 1, b"b", 1, b""),
                Record { pos: 120, ino, change: Change::Sync { covers: 50 } },
            ]
        });
        assert_eq!(left, [&b"a"[..], b"ab"]);
    }

    #[test]
    fn an_overwrite_comes_back() {
        let left = outcomes(b"", b"NEW!", |ino| vec![write(0, ino, 0, b"NEW!", 4, b"old!")]);
        assert!(left.contains(&b"old!".to_vec()) && left.contains(&b"NEW!".to_vec()), "{left:?}");
        assert!(left.contains(&b"NEd!".to_vec()), "torn: {left:?}");
    }

    #[test]
    fn a_torn_last_record_is_ignored_and_a_damaged_log_is_refused() {
        let mut log = vec![0; HEAD];
        log[..4].copy_from_slice(&MAGIC.to_le_bytes());
        log[4] = 4;
        assert_eq!(read_log(&log).unwrap().len(), 1);
        let mut torn = log.clone();
        torn.extend_from_slice(&log[..HEAD - 1]);
        assert_eq!(read_log(&torn).unwrap().len(), 1);
        torn[HEAD] ^= 1;
        torn.push(0);
        assert!(read_log(&torn).unwrap_err().to_string().contains("damaged at byte 48"));
        log[4] = 8;
        assert!(read_log(&log).unwrap_err().to_string().contains("proves nothing"));
    }
}
