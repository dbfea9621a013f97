//! The vectors of `proto/vectors/invalid.json` whose frames are whole and whose commands break a rule.
//!
//! Does not: check frames that are none (proto/tests/vectors.rs does).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use banyan_gateway_core::command::{Limits, check};
use banyan_proto::frame::{Format, parse};
use banyan_proto::id::UserId;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

#[test]
fn commands_that_break_a_rule() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/vectors/invalid.json");
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let me = UserId::parse("me").unwrap();
    let mut count = 0;
    for row in rows.iter().filter(|row| row["by"] == "command") {
        let input = row["input"].as_str().unwrap();
        let (id, command) = match row["format"].as_str() {
            Some("json") => parse(Format::Json, input.as_bytes()),
            _ => parse(Format::Proto, &BASE64.decode(input).unwrap()),
        }
        .unwrap();
        let refused = check(command, &Limits::default(), &me).map_err(|error| error.code);
        assert_eq!(
            (refused.clone().err(), id),
            (row["error"].as_u64().map(|code| code as u32), 1),
            "{row}: {refused:?}"
        );
        count += 1;
    }
    assert!(count >= 15, "only {count} rows");
}
