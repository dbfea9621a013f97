//! `banyan version`.

use serde_json::json;

use crate::failure::Failure;
use crate::output::print;

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(as_json: bool) -> Result<(), Failure> {
    if !as_json {
        return print(&format!("banyan {VERSION}\n"));
    }
    let about = json!({
        "name": "banyan",
        "version": VERSION,
        "protocol": "banyan.v1",
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
    });
    print(&format!("{about}\n"))
}
