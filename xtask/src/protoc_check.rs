//! Builds a crate that depends on etcd-client, from `/`, with no `protoc` on the machine's PATH.
//!
//! Owns: the scratch crate. It keeps the promise of docs/decisions/0002-protoc.md checkable until the workspace
//! itself depends on etcd-client. Not a stage of `test`: it builds a hundred crates.

use crate::terminal;
use crate::workspace::Workspace;
use anyhow::{Context, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version whose build script the stand-in was written for.
const ETCD_CLIENT: &str = "=0.21.1";

pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = path_without_protoc(dir.path())?;
    let stand_in = workspace.root.join("proto/tonic-prost-build");
    fs::create_dir_all(dir.path().join("scratch/src"))?;
    let manifest = dir.path().join("scratch/Cargo.toml");
    let text = format!(
        "[package]\nname = \"scratch\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n\
         etcd-client = {{ version = \"{ETCD_CLIENT}\", default-features = false }}\n\
         [patch.crates-io]\ntonic-prost-build = {{ path = {:?} }}\n",
        stand_in.display().to_string()
    );
    fs::write(&manifest, text)?;
    // Names that come from generated code, so that an empty module would not do.
    let source = "pub async fn get(client: &mut etcd_client::Client) -> Option<i64> {\n    \
                  client.get(\"key\", None).await.ok()?.header().map(|header| header.revision())\n}\n";
    fs::write(dir.path().join("scratch/src/lib.rs"), source)?;
    let began = terminal::now();
    let status = workspace
        .cargo()
        .current_dir("/")
        .args(["build", "--manifest-path"])
        .arg(&manifest)
        .env("PATH", &path)
        .env("CARGO_TARGET_DIR", dir.path().join("target"))
        .env_remove("PROTOC")
        .status()?;
    ensure!(status.success(), "etcd-client does not build without protoc");
    println!("etcd-client builds from / without protoc, in {}", terminal::duration(began.elapsed()));
    Ok(())
}

/// A directory with links to every program of PATH but protoc: the machine may have it beside the compiler.
fn path_without_protoc(dir: &Path) -> anyhow::Result<PathBuf> {
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    let path = std::env::var_os("PATH").context("no PATH")?;
    for entry in std::env::split_paths(&path).filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("protoc") {
            // The first of a name wins, as in PATH.
            std::os::unix::fs::symlink(entry.path(), bin.join(entry.file_name())).ok();
        }
    }
    ensure!(Command::new(bin.join("protoc")).output().is_err(), "protoc is still there");
    Ok(bin)
}
