//! Where things are: the repository, cargo's target directory, tools and logs below it.
//!
//! Owns: paths, and how cargo is called.
//! Always holds: found from this crate's place, so that every command works from any current directory.

use anyhow::{Context, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository and its build directory.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

/// The part of `cargo metadata` that we read.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_members: Vec<String>,
    target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) manifest_path: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
        let mut workspace = Self { root: root.to_owned(), target: PathBuf::new() };
        workspace.target = workspace.metadata(&["--no-deps"])?.target_directory;
        Ok(workspace)
    }

    /// `cargo metadata` of the whole workspace.
    pub(crate) fn metadata(&self, arguments: &[&str]) -> anyhow::Result<Metadata> {
        let output = self
            .cargo()
            .args(["metadata", "--format-version", "1", "--locked"])
            .args(arguments)
            .output()
            .context("cannot run cargo")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).context("cargo metadata printed what we do not understand")
    }

    /// cargo, the one that runs us, in the repository.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        command.current_dir(&self.root);
        // What cargo told *us* about this crate is wrong for everybody else.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST") {
                command.env_remove(&*name);
            }
        }
        command
    }

    /// Where setup puts tools.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Where stages write what they print.
    pub(crate) fn logs(&self) -> PathBuf {
        self.target.join("xtask-logs")
    }
}

impl Metadata {
    /// Names of the workspace's own packages, by id.
    pub(crate) fn members(&self) -> BTreeMap<&str, &Package> {
        let mine = |p: &&Package| self.workspace_members.contains(&p.id);
        self.packages.iter().filter(mine).map(|p| (p.id.as_str(), p)).collect()
    }
}
