//! Looks at the engine's journals before the engine does.
//!
//! A power cut leaves the last commit torn; nobody was told that it is stored, so it is cut off. The engine would do the same
//! in most cases, but it refuses to start for some torn shapes (a page lost within the last commit), and, worse, it
//! silently drops every commit *behind* a damaged one. Here the first is cut and the second is an error that names the place.
//! What tells them apart: one thread writes, and it syncs each commit before the next, so a torn commit has no whole one behind it.
//!
//! The layout is that of fjall 3 (`src/journal/entry.rs`): `1 count:u32 seqno:u64`, then `count` items
//! `2 type:u8 compression:u8 keyspace:u64 key_len:u16 value_len:u32 stored_len:u32 key stored` or `4 keyspace:u64`,
//! then `3 xxh3(items):u64 "FJL" 3`; all little-endian. Files are made 64 MiB long, so a zero is where writing ended.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: [u8; 4] = *b"FJL\x03";
const START_LEN: usize = 1 + 4 + 8;
const ITEM_HEAD_LEN: usize = 1 + 1 + 8 + 2 + 4 + 4; // after the tag
const END_LEN: usize = 1 + 8 + 4;
/// The end of a journal is searched for whole commits in memory; journals are rotated at 64 MB and never come near this.
const TAIL_MAX: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{}: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error(
        "{} is damaged at byte {offset}: a commit there cannot be read, but later ones can. \
         Restore a copy of the directory; or cut the file there (truncate -s {offset}) and lose what came later", file.display()
    )]
    Damaged { file: PathBuf, offset: u64 },
}

/// What the journals hold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Checked {
    /// Number of the newest whole commit; none when all has been moved to tables.
    pub(super) last_seqno: Option<u64>,
    /// Bytes of a torn commit that were cut off.
    pub(super) cut_bytes: u64,
}

/// What to do with the journal that was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// The process is new.
    Trust,
    /// A sync failed in this process: the kernel may hold pages that it believes written and that are not
    /// (a second fsync would say ok). Every byte is written again, then synced.
    WriteAgain,
}

/// Checks every journal of the engine in `store` and cuts a torn last commit off.
pub(super) fn check(store: &Path, tail: Tail) -> Result<Checked, Error> {
    let mut checked = Checked::default();
    // (file, end of whole commits, length): a journal with something unreadable at its end.
    let mut torn: Option<(PathBuf, u64, u64)> = None;
    let mut newest: Option<(PathBuf, u64)> = None;
    for file in journals(store)? {
        let io = |source| Error::Io { file: file.clone(), source };
        let mut reader = Reader::open(&file).map_err(io)?;
        let before = checked.last_seqno;
        let end = reader.whole_commits(&mut checked.last_seqno).map_err(io)?;
        if checked.last_seqno != before {
            if let Some((file, offset, _)) = torn {
                return Err(Error::Damaged { file, offset });
            }
            newest = Some((file.clone(), end));
        }
        if reader.rest_is_zero(end).map_err(io)? {
            continue;
        }
        if let Some((file, offset, _)) = torn {
            return Err(Error::Damaged { file, offset });
        }
        if reader.whole_commit_from(end).map_err(io)? {
            return Err(Error::Damaged { file, offset: end });
        }
        torn = Some((file.clone(), end, reader.len));
    }
    if let Some((file, end, len)) = torn {
        let io = |source| Error::Io { file: file.clone(), source };
        tracing::warn!(file = %file.display(), offset = end, bytes = len - end, "cutting off a commit that was not finished");
        let handle = OpenOptions::new().write(true).open(&file).map_err(io)?;
        handle.set_len(end).map_err(io)?;
        handle.sync_all().map_err(io)?;
        checked.cut_bytes = len - end;
    }
    if let (Tail::WriteAgain, Some((file, end))) = (tail, newest) {
        write_again(&file, end).map_err(|source| Error::Io { file, source })?;
    }
    Ok(checked)
}

/// Journals, oldest first.
fn journals(store: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io { file: store.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(store).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".jnl"))
            .and_then(|name| name.parse::<u64>().ok());
        if let Some(number) = number {
            files.push((number, path));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// Writes the first `end` bytes of the file over themselves, so that the sync that follows is about all of them.
fn write_again(file: &Path, end: u64) -> io::Result<()> {
    let mut handle = OpenOptions::new().read(true).write(true).open(file)?;
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    while at < end {
        let take = usize::try_from(end - at).unwrap_or(usize::MAX).min(chunk.len());
        handle.seek(SeekFrom::Start(at))?;
        handle.read_exact(&mut chunk[..take])?;
        handle.seek(SeekFrom::Start(at))?;
        handle.write_all(&chunk[..take])?;
        at += take as u64;
    }
    handle.sync_all()
}

/// Why a commit was not read. Anything wrong with the bytes is `Bad`; the end of the file too.
enum Unread {
    Bad,
    Io(io::Error),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Bad } else { Self::Io(error) }
    }
}

struct Reader {
    file: BufReader<File>,
    len: u64,
    scratch: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: BufReader::with_capacity(1 << 18, file), len, scratch: Vec::new() })
    }

    /// Reads whole commits from the beginning; returns where the last one ends.
    fn whole_commits(&mut self, last: &mut Option<u64>) -> io::Result<u64> {
        let mut end = 0;
        self.file.seek(SeekFrom::Start(0))?;
        loop {
            match read_commit(&mut self.file, self.len - end, &mut self.scratch) {
                Ok((seqno, bytes)) if last.is_none_or(|last| last < seqno) => {
                    *last = Some(seqno);
                    end += bytes;
                }
                Ok(_) | Err(Unread::Bad) => return Ok(end),
                Err(Unread::Io(error)) => return Err(error),
            }
        }
    }

    fn rest_is_zero(&mut self, from: u64) -> io::Result<bool> {
        Ok(self.rest(from)?.is_empty())
    }

    /// What is written from there on. Zeros at the end, up to 64 MiB of them, are left out as they are read.
    fn rest(&mut self, from: u64) -> io::Result<Vec<u8>> {
        let zeros = vec![0; 1 << 16];
        let mut chunk = vec![0; 1 << 16];
        let (mut rest, mut pending) = (Vec::new(), 0);
        let mut file = (&mut self.file).take(TAIL_MAX);
        file.get_mut().seek(SeekFrom::Start(from))?;
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(rest),
                n if chunk[..n] == zeros[..n] => pending += n,
                n => {
                    rest.resize(rest.len() + std::mem::take(&mut pending), 0);
                    rest.extend_from_slice(&chunk[..n]);
                }
            }
        }
    }

    /// Is there a whole commit anywhere from there on? Whatever its number: numbers are not under a checksum, and files are
    /// never used again, so an old one cannot lie about.
    fn whole_commit_from(&mut self, from: u64) -> io::Result<bool> {
        let rest = self.rest(from)?;
        for at in 0..rest.len() {
            if rest[at] != START {
                continue;
            }
            let mut behind = &rest[at..];
            let len = behind.len() as u64;
            match read_commit(&mut behind, len, &mut self.scratch) {
                Ok(_) => return Ok(true),
                Err(Unread::Bad) => {}
                Err(Unread::Io(error)) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Reads one commit of at most `left` bytes: its number and its length. Allocates no more than `left`.
fn read_commit(from: &mut impl Read, left: u64, scratch: &mut Vec<u8>) -> Result<(u64, u64), Unread> {
    let mut start = [0; START_LEN];
    from.read_exact(&mut start)?;
    let (count, seqno) = (u32_at(&start, 1), u64_at(&start, 5));
    // Bit 63 is the engine's own.
    if start[0] != START || count == 0 || seqno >> 63 != 0 {
        return Err(Unread::Bad);
    }
    let mut bytes = START_LEN as u64;
    let mut hash = Xxh3::new();
    for _ in 0..count {
        scratch.clear();
        scratch.resize(1, 0);
        from.read_exact(scratch)?;
        let body = match scratch[0] {
            ITEM => {
                scratch.resize(1 + ITEM_HEAD_LEN, 0);
                from.read_exact(&mut scratch[1..])?;
                let (key, stored) = (u16_at(scratch, 11), u32_at(scratch, 17));
                u64::from(key) + u64::from(stored)
            }
            CLEAR => 8,
            _ => return Err(Unread::Bad),
        };
        let head = scratch.len();
        bytes += head as u64 + body;
        if bytes > left {
            return Err(Unread::Bad);
        }
        scratch.resize(head + usize::try_from(body).map_err(|_| Unread::Bad)?, 0);
        from.read_exact(&mut scratch[head..])?;
        hash.update(scratch);
    }
    let mut end = [0; END_LEN];
    from.read_exact(&mut end)?;
    if end[0] != END || end[9..] != MAGIC || u64_at(&end, 1) != hash.digest() {
        return Err(Unread::Bad);
    }
    Ok((seqno, bytes + END_LEN as u64))
}

/// Where each whole commit of a journal ends.
#[cfg(test)]
pub(super) fn commit_ends(file: &Path) -> Vec<u64> {
    let mut reader = Reader::open(file).unwrap();
    let (mut ends, mut end) = (Vec::new(), 0);
    while let Ok((_, bytes)) = read_commit(&mut reader.file, reader.len - end, &mut reader.scratch) {
        end += bytes;
        ends.push(end);
    }
    ends
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(seqno: u64, values: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![START];
        bytes.extend(u32::try_from(values.len()).unwrap().to_le_bytes());
        bytes.extend(seqno.to_le_bytes());
        let mut hash = Xxh3::new();
        for value in values {
            let mut item = vec![ITEM, 0, 0];
            item.extend(1_u64.to_le_bytes());
            item.extend(3_u16.to_le_bytes());
            let len = u32::try_from(value.len()).unwrap().to_le_bytes();
            item.extend(len);
            item.extend(len);
            item.extend(b"key");
            item.extend(*value);
            hash.update(&item);
            bytes.extend(item);
        }
        bytes.push(END);
        bytes.extend(hash.digest().to_le_bytes());
        bytes.extend(MAGIC);
        bytes
    }

    fn store(files: &[&[u8]]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (i, bytes) in files.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{i}.jnl")), bytes).unwrap();
        }
        dir
    }

    #[track_caller]
    fn check_files(files: &[&[u8]], want: Result<(u64, u64), u64>) {
        for tail in [Tail::Trust, Tail::WriteAgain] {
            let dir = store(files);
            match (check(dir.path(), tail), want) {
                (Ok(got), Ok((last, cut))) => assert_eq!((got.last_seqno, got.cut_bytes), (Some(last), cut)),
                (Err(Error::Damaged { offset, .. }), Err(want)) => assert_eq!(offset, want),
                (got, want) => panic!("{got:?} is not {want:?}"),
            }
        }
    }

    #[test]
    fn whole_files_stay_as_they_are() {
        let one = [commit(1, &[b"a", b""]), commit(5, &[&[7; 5000]])].concat();
        check_files(&[&one], Ok((5, 0)));
        check_files(&[&[one.clone(), vec![0; 1000]].concat()], Ok((5, 0)));
        check_files(&[&one, &commit(6, &[b"x"])], Ok((6, 0)));
        check_files(&[&one, &[0; 100]], Ok((5, 0)));
    }

    #[test]
    fn a_torn_commit_is_cut_at_any_byte() {
        let whole = commit(1, &[b"a", b"bb"]);
        let torn = commit(2, &[b"ccc", &[9; 20]]);
        for keep in 1..torn.len() {
            check_files(&[&[&whole[..], &torn[..keep]].concat()], Ok((1, keep as u64)));
            // The same in a file that was made long beforehand.
            let mut long = [&whole[..], &torn[..keep]].concat();
            long.resize(2000, 0);
            let cut = (2000 - whole.len()) as u64;
            check_files(&[&long], Ok((1, cut)));
        }
    }

    #[test]
    fn a_page_lost_within_the_last_commit_is_a_torn_commit() {
        let whole = commit(1, &[b"a"]);
        let mut torn = commit(2, &[&[9; 300]]);
        let len = torn.len();
        torn[50..100].fill(0);
        check_files(&[&[&whole[..], &torn].concat()], Ok((1, len as u64)));
        torn[..100].fill(0);
        check_files(&[&[&whole[..], &torn].concat()], Ok((1, len as u64)));
        check_files(&[&[&whole[..], &torn].concat(), &[0; 64]], Ok((1, len as u64)));
    }

    #[test]
    fn a_damaged_commit_with_a_whole_one_behind_is_an_error() {
        let first = commit(1, &[b"a"]);
        let third = commit(3, &[b"c"]);
        for hurt in 0..commit(2, &[b"b"]).len() {
            let mut second = commit(2, &[b"b"]);
            second[hurt] ^= 0x80;
            let seconds_end = first.len() + second.len();
            let dir = store(&[&[&first[..], &second, &third].concat()]);
            match check(dir.path(), Tail::Trust) {
                // A number that is wrong and higher shows at the commit after it.
                Err(Error::Damaged { offset, .. }) if (5..12).contains(&hurt) => {
                    assert_eq!(offset, seconds_end as u64)
                }
                Err(Error::Damaged { offset, .. }) => assert_eq!(offset, first.len() as u64, "byte {hurt}"),
                other => panic!("byte {hurt}: {other:?}"),
            }
        }
    }

    #[test]
    fn damage_in_an_older_journal_is_an_error() {
        let mut old = commit(1, &[b"a", b"b"]);
        old[30] ^= 1;
        check_files(&[&old, &commit(2, &[b"c"])], Err(0));
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 64, ..Default::default() })]

        /// Whatever stands behind whole commits: they stay, nothing panics, and a second look finds nothing to do.
        #[test]
        fn anything_may_follow(mut tail: Vec<u8>, begin in 0..5_u8) {
            tail.insert(0, begin);
            let whole = [commit(1, &[b"a"]), commit(2, &[b"b", b""])].concat();
            let dir = store(&[&[&whole[..], &tail].concat()]);
            let got = check(dir.path(), Tail::Trust).unwrap();
            proptest::prop_assert_eq!(got.last_seqno, Some(2));
            let left = std::fs::read(dir.path().join("0.jnl")).unwrap();
            proptest::prop_assert!(left.starts_with(&whole));
            let again = check(dir.path(), Tail::WriteAgain).unwrap();
            proptest::prop_assert_eq!(again, Checked { last_seqno: Some(2), cut_bytes: 0 });
            proptest::prop_assert_eq!(std::fs::read(dir.path().join("0.jnl")).unwrap(), left);
        }
    }

    #[test]
    fn lengths_are_not_believed() {
        let mut huge = commit(1, &[b"a"]);
        huge[13 + 17..13 + 21].fill(0xff);
        check_files(&[&[&commit(0, &[b"z"])[..], &huge].concat()], Ok((0, huge.len() as u64)));
    }
}
