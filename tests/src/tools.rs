//! Where `cargo xtask setup` put the tools of others that tests use.
//!
//! Owns: finding them. Does not: install them.

use anyhow::Context;
use std::path::PathBuf;

/// The directory: `BANYAN_TOOLS` when set, else `tools` in the target directory of this build.
pub fn directory() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BANYAN_TOOLS") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    let found = me.ancestors().skip(1).take(4).map(|dir| dir.join("tools")).find(|path| path.is_dir());
    found.context("the tools are not installed: run `cargo xtask setup`")
}
