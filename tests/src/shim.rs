//! Libraries that are loaded before a process' own (`tests/shim/*.c`), compiled when they are needed.

use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `shim/NAME.c` with `cc` into a directory.
pub(crate) fn build(name: &str, directory: &Path) -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("shim/{name}.c"));
    let library = directory.join(format!("{name}.so"));
    compile(&source, &library, &["-shared", "-fPIC"])?;
    Ok(library)
}

/// Compiles one file of C.
pub(crate) fn compile(source: &Path, into: &Path, how: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror"])
        .args(how)
        .arg("-o")
        .arg(into)
        .arg(source)
        .args(["-ldl", "-lpthread"])
        .output()
        .context("cannot run `cc`: these tests need a C compiler (apt-get install gcc libc6-dev)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} does not compile:\n{said}", source.display());
    Ok(())
}
