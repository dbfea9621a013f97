//! The scripts of `web/e2e` that drive a page in a real browser: how one is started, and how its failure is told.

use std::path::Path;
use tempfile::TempDir;
use tokio::process::Command;

/// The command `node e2e/NAME.mjs BASE`, ended when it is dropped. What fails is left in `work`: words and pictures.
///
/// # Panics
///
/// Without the packages of `web/`.
#[must_use]
pub fn script(name: &str, base: &str, work: &TempDir) -> Command {
    let web = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../web"));
    assert!(
        web.join("node_modules").is_dir(),
        "web/ has no packages: run `npm ci` there, or `cargo xtask setup`"
    );
    let mut command = Command::new("node");
    command.current_dir(web).arg(format!("e2e/{name}.mjs")).arg(base);
    command.env("FAILURE_DIR", work.path()).kill_on_drop(true);
    command
}

/// Ends the test of a script that failed, with the script's own words; everything in `work` is kept.
///
/// # Panics
///
/// Always.
#[expect(clippy::panic, reason = "it is how a test fails")]
pub fn fail(name: &str, work: TempDir) -> ! {
    let words = std::fs::read_to_string(work.path().join(format!("{name}.txt")))
        .unwrap_or_else(|_| format!("{name} did not end in time, or could not say what failed"));
    panic!("{words}\npictures, data and logs are in {}", work.keep().display());
}
