//! Where the servers' programs are.
//!
//! Owns: finding them: in the directory that `cargo xtask setup` fills, else where the system keeps programs.
//! Does not: install them.

use anyhow::Context;
use std::path::{Path, PathBuf};

/// The directory: `BANYAN_TOOLS` when set, else `tools` in the target directory of this build.
pub fn directory() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BANYAN_TOOLS") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    let found = me.ancestors().skip(1).take(4).map(|dir| dir.join("tools")).find(|path| path.is_dir());
    found.context("the tools are not installed: run `cargo xtask setup`")
}

/// A file or directory below [`directory`].
pub fn installed(path: &str) -> anyhow::Result<PathBuf> {
    let found = directory()?.join(path);
    anyhow::ensure!(
        found.exists(),
        "there is no {}: run `cargo xtask setup`, or set BANYAN_TOOLS to a directory that has {path}",
        found.display()
    );
    Ok(found)
}

/// A program of the system. `package`: what brings it.
pub fn system(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers are kept where only root's PATH leads.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let directories = std::env::split_paths(&path).chain(more);
    let found = directories.map(|dir| dir.join(name)).find(|path| is_program(path));
    found
        .with_context(|| format!("there is no {name}: run `cargo xtask setup`, or apt-get install {package}"))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let error = system("no-such-server", "some-package").unwrap_err().to_string();
        assert!(
            error.contains("no-such-server") && error.contains("apt-get install some-package"),
            "{error}"
        );
        assert!(system("sh", "dash").unwrap().is_absolute());
    }
}
