//! The directory of an embedded store: whose it is, which format it has, and that one process has it.
//!
//! `FORMAT` names the format, `LOCK` is locked while a process has the store (and holds its number), `store` is the engine's.
//! A store is made under another name and renamed when all of it is on disk, so a power cut leaves all of it or nothing.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::OpenError;

/// The format that this release writes. Releases read every format from [`OLDEST`] up to theirs.
pub(super) const FORMAT: u32 = 2;
/// Format 1 had no segments. It was never released, so nothing turns it into another.
const OLDEST: u32 = 2;
const FORMAT_FILE: &str = "FORMAT";
const FORMAT_NEW: &str = "FORMAT.new";
const FORMAT_HEAD: &str = "banyan embedded store, format ";
const LOCK_FILE: &str = "LOCK";
const STORE: &str = "store";
const STORE_NEW: &str = "store.new";

/// A directory that is ours, and that no other process has.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Locked until it is dropped.
    lock: File,
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Not left to the closing of the file: a process that we are just starting holds a copy of it until it has become
        // itself, and the lock would live on with that.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(path = %self.path.display(), %error, "the lock of the store was not given up");
        }
    }
}

impl Directory {
    /// Checks and locks the directory; makes it, and what belongs in it, when it is missing or empty. `make` fills a new store.
    pub(super) fn open(
        path: &Path,
        make: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<Self, OpenError> {
        let io = |source| OpenError::Directory { path: path.to_owned(), source };
        make_directory(path).map_err(io)?;
        let found = read_format(path)?;
        if found.is_none() {
            refuse_foreign(path)?;
        }
        let lock = lock(path)?;
        // Again, under the lock: another process may have been quicker to make it.
        let found = read_format(path)?;
        match found {
            Some(found) if found > FORMAT => {
                return Err(OpenError::NewerFormat { path: path.to_owned(), found, supported: FORMAT });
            }
            Some(found) if found < OLDEST => {
                return Err(OpenError::OlderFormat { path: path.to_owned(), found, oldest: OLDEST });
            }
            Some(_) => {
                if !path.join(STORE).is_dir() {
                    return Err(OpenError::Damaged(format!("{} has no {STORE}", path.display())));
                }
            }
            None => {
                let (new, store) = (path.join(STORE_NEW), path.join(STORE));
                if !store.try_exists().map_err(io)? {
                    if new.try_exists().map_err(io)? {
                        // Left by a process that did not get far; nothing was ever stored in it.
                        std::fs::remove_dir_all(&new).map_err(io)?;
                    }
                    make(&new)?;
                    sync_tree(&new).map_err(io)?;
                    std::fs::rename(&new, &store).map_err(io)?;
                    sync_directory(path).map_err(io)?;
                }
                write_format(path).map_err(io)?;
            }
        }
        Ok(Self { path: path.to_owned(), lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the engine lives.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700); // password hashes live here
    }
    builder.create(path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
        _ => sync_directory(Path::new(".")),
    }
}

fn refuse_foreign(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Directory { path: path.to_owned(), source };
    for entry in std::fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let ours = [FORMAT_FILE, FORMAT_NEW, LOCK_FILE, STORE, STORE_NEW];
        if !ours.iter().any(|ours| name == **ours) {
            return Err(OpenError::NotOurs {
                path: path.to_owned(),
                entry: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn read_format(path: &Path) -> Result<Option<u32>, OpenError> {
    let mut text = String::new();
    let file = match File::open(path.join(FORMAT_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Directory { path: path.to_owned(), source }),
    };
    let read = file.take(1_024).read_to_string(&mut text);
    let number =
        text.lines().next().and_then(|line| line.strip_prefix(FORMAT_HEAD)).and_then(|n| n.parse().ok());
    match (read, number) {
        (Err(source), _) if source.kind() != io::ErrorKind::InvalidData => {
            Err(OpenError::Directory { path: path.to_owned(), source })
        }
        (Ok(_), Some(number)) if number > 0 => Ok(Some(number)),
        _ => Err(OpenError::NotOurs { path: path.to_owned(), entry: FORMAT_FILE.to_owned() }),
    }
}

fn write_format(path: &Path) -> io::Result<()> {
    let new = path.join(FORMAT_NEW);
    let mut file = File::create(&new)?;
    writeln!(file, "{FORMAT_HEAD}{FORMAT}")?;
    file.sync_all()?;
    std::fs::rename(&new, path.join(FORMAT_FILE))?;
    sync_directory(path)
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Directory { path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK_FILE))
        .map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Only to name it: whatever is wrong with the text, the lock is what counts.
            let pid = match file.take(32).read_to_string(&mut text) {
                Ok(_) => text.trim().parse().ok(),
                Err(_) => None,
            };
            return Err(OpenError::Locked { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0).map_err(io)?;
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs every file and directory below.
fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path) -> Result<(), OpenError> {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("file"), "x").unwrap();
        Ok(())
    }

    #[test]
    fn a_new_directory_is_made_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        drop(Directory::open(&path, make).unwrap());
        let again = Directory::open(&path, |_| panic!("made twice")).unwrap();
        assert!(again.store().join("file").is_file());
    }

    #[test]
    fn what_was_begun_is_begun_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(STORE_NEW)).unwrap();
        std::fs::write(root.path().join(STORE_NEW).join("half"), "").unwrap();
        let directory = Directory::open(root.path(), make).unwrap();
        assert!(!directory.store().join("half").exists());
        assert!(directory.store().join("file").is_file());
    }

    #[test]
    fn a_store_without_its_format_is_kept() {
        let root = tempfile::tempdir().unwrap();
        drop(Directory::open(root.path(), make).unwrap());
        std::fs::remove_file(root.path().join(FORMAT_FILE)).unwrap();
        drop(Directory::open(root.path(), |_| panic!("made again")).unwrap());
        assert_eq!(read_format(root.path()).unwrap(), Some(FORMAT));
    }

    #[test]
    fn anything_else_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("photo.jpg"), "").unwrap();
        let error = Directory::open(root.path(), make).unwrap_err();
        assert!(matches!(&error, OpenError::NotOurs { entry, .. } if entry == "photo.jpg"), "{error}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
        for text in
            ["", "something else", "banyan embedded store, format x", "banyan embedded store, format 0"]
        {
            let root = tempfile::tempdir().unwrap();
            std::fs::write(root.path().join(FORMAT_FILE), text).unwrap();
            assert!(matches!(Directory::open(root.path(), make), Err(OpenError::NotOurs { .. })), "{text:?}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_in_words() {
        let root = tempfile::tempdir().unwrap();
        drop(Directory::open(root.path(), make).unwrap());
        std::fs::write(root.path().join(FORMAT_FILE), "banyan embedded store, format 7\nand more\n").unwrap();
        let error = Directory::open(root.path(), make).unwrap_err();
        assert!(matches!(error, OpenError::NewerFormat { found: 7, supported: 2, .. }));
        assert!(error.to_string().contains("format 7"), "{error}");
    }

    #[test]
    fn a_format_from_before_the_first_release_is_refused_in_words() {
        let root = tempfile::tempdir().unwrap();
        drop(Directory::open(root.path(), make).unwrap());
        let format = root.path().join(FORMAT_FILE);
        std::fs::write(&format, "banyan embedded store, format 1\n").unwrap();
        let error = Directory::open(root.path(), |_| panic!("made again")).unwrap_err();
        assert!(matches!(error, OpenError::OlderFormat { found: 1, oldest: 2, .. }));
        let text = error.to_string();
        assert!(text.contains("has format 1, from before the first release"), "{text}");
        assert!(text.ends_with("move the directory away and start with an empty one"), "{text}");
        assert!(root.path().join(STORE).join("file").is_file(), "it is left as it is");
    }

    #[test]
    fn a_file_in_its_place_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Directory::open(&path, make), Err(OpenError::Directory { .. })));
    }
}
