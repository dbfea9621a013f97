//! The data directory, before anything is opened in it: it is there, it is a directory, it is ours to use.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::failure::{Exit, Failure, words};

/// Makes the directory where it is missing, for its owner only: messages and keys are inside.
pub(crate) fn prepare(path: &Path) -> Result<(), Failure> {
    let cannot = |what: &str, error: &io::Error| {
        let failure = Failure::new(
            Exit::Io,
            format!("cannot {what} the data directory {}: {}", path.display(), words(error)),
        );
        failure.with_hint(
            "choose one that this user may read and write with --data-dir DIRECTORY (server.data_dir)",
        )
    };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| cannot("make", &error))?;
    // Asked of the system, not read from the mode bits: there are read-only mounts and access lists too.
    access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| cannot("use", &error.into()))?;
    fs::read_dir(path).map_err(|error| cannot("read", &error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_made_for_its_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        assert_eq!(prepare(&path), Ok(()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(prepare(&path), Ok(()), "an existing one is fine");
    }

    #[test]
    fn a_file_in_its_place_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("file");
        fs::write(&path, "").unwrap();
        let failure = prepare(&path).unwrap_err();
        assert_eq!(failure.exit, Exit::Io);
        assert_eq!(
            failure.lines,
            [format!("cannot make the data directory {}: file exists", path.display())]
        );
        let failure = prepare(&path.join("below")).unwrap_err();
        assert!(failure.lines[0].ends_with(": not a directory"), "{failure}");
    }
}
