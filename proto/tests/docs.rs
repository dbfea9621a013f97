//! Holds docs/protocol.md against the schema and the codes: whatever a client may meet stands there, with the right
//! numbers, and nothing stands there that does not exist. Every JSON example is parsed.

use std::collections::{BTreeMap, BTreeSet};

use banyan_proto::codes::{Close, Code, Verdict};
use banyan_proto::frame::parse_json;
use banyan_proto::json::COMMANDS;
use banyan_proto::v1;
use serde_json::Value;

const PAGE: &str = include_str!("../../docs/protocol.md");
const SCHEMA: &str = include_str!("../banyan/v1/client.proto");
/// The replies that are a room with a field or none beside it; their sections refer to the room's own.
const ROOM_SECTION: &str = "#rooms-as-they-are-told";

/// Field and its type's name, in order, by message; members of a `oneof` among them.
fn schema() -> BTreeMap<&'static str, Vec<(&'static str, &'static str)>> {
    let mut messages = BTreeMap::<_, Vec<_>>::new();
    let mut message = None;
    for line in SCHEMA.lines() {
        let code = line.split("//").next().unwrap_or_default().trim();
        let words: Vec<&str> = code.split_whitespace().collect();
        match words[..] {
            ["message", name, ..] => {
                message = Some(name);
                messages.entry(name).or_default();
            }
            ["enum", ..] => message = None,
            [.., kind, field, "=", _] if code.ends_with(';') => {
                if let Some(message) = message {
                    messages.entry(message).or_default().push((field, kind));
                }
            }
            _ => {}
        }
    }
    assert!(
        messages.len() > 50 && messages["Send"].len() == 8,
        "the schema was not understood: {messages:?}"
    );
    messages
}

/// What stands under a heading, sub-headings included.
#[track_caller]
fn section(heading: &str) -> &'static str {
    let level = heading.split(' ').next().unwrap_or_default();
    let start = PAGE.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let body = &PAGE[start + heading.len() + 2..];
    let ends = (1..=level.len()).filter_map(|n| body.find(&format!("\n{} ", "#".repeat(n)))).min();
    &body[..ends.unwrap_or(body.len())]
}

/// Words in code spans: `name?` and `name` are the same, `a {b}` are two.
fn names(text: &str) -> BTreeSet<&str> {
    let prose = text.split("```").step_by(2);
    prose
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .flat_map(|span| span.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')))
        .filter(|word| !word.is_empty())
        .collect()
}

/// The rows of the tables in a text, as their cells.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

fn first_names(text: &'static str) -> Vec<&'static str> {
    let cells = rows(text).into_iter().map(|row| row[0]);
    cells.filter_map(|cell| cell.strip_prefix('`')?.strip_suffix('`')).collect()
}

/// The values in the examples of one kind.
fn examples(kind: &str) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for block in PAGE.split("```").skip(1).step_by(2) {
        let (info, body) = block.split_once('\n').unwrap_or((block, ""));
        assert!(
            matches!(info, "json client" | "json server" | "json http"),
            "a code block {info:?}: say whose frames they are"
        );
        if info == format!("json {kind}") {
            let lines = body.lines().filter(|line| !line.is_empty());
            found.extend(lines.map(|line| {
                let value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                (line.to_owned(), value)
            }));
        }
    }
    found
}

#[test]
fn every_field_is_named() {
    let named = names(PAGE);
    // Members of the two frames are headings, or rows of a table.
    for (message, fields) in schema().into_iter().filter(|(message, _)| !message.ends_with("Frame")) {
        for (field, _) in fields {
            assert!(named.contains(field), "{message}.{field} is not in docs/protocol.md");
        }
    }
}

#[test]
fn every_name_exists() {
    // Of HTTP, of the configuration.
    const OTHERS: [&str; 2] = ["display_name", "allowed_origins"];
    let schema = schema();
    let fields: BTreeSet<_> = schema.values().flatten().map(|(name, _)| *name).collect();
    let codes = Code::ALL.iter().map(|code| code.name()).chain(Close::ALL.iter().map(|close| close.name()));
    let codes: BTreeSet<_> = codes.collect();
    for name in names(PAGE).into_iter().filter(|name| name.trim_matches('_').contains('_')) {
        assert!(
            fields.contains(name) || codes.contains(name) || OTHERS.contains(&name),
            "`{name}` is no field, command, push, kind or code"
        );
    }
}

#[test]
fn every_command_has_its_section_and_its_fields() {
    let headings: Vec<_> =
        section("## Commands").lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(headings, COMMANDS);
    let schema = schema();
    for command in COMMANDS {
        let text = section(&format!("### {command}"));
        let mut named = names(text);
        if text.contains(ROOM_SECTION) {
            named.extend(names(section("## Rooms as they are told")));
        }
        for frame in ["ClientFrame", "ServerFrame"] {
            let member = schema[frame].iter().find(|(name, _)| *name == command);
            let (_, message) = member.unwrap_or_else(|| panic!("{frame} has no {command}"));
            for (field, kind) in &schema[message] {
                assert!(named.contains(field), "### {command} does not say {message}.{field}");
                // One level of what it holds, where that has no section of its own.
                for (inner, _) in schema
                    .get(kind)
                    .into_iter()
                    .flatten()
                    .filter(|_| *kind != "Event" && *kind != "Room" && *kind != "Error")
                {
                    assert!(named.contains(inner), "### {command} does not say {kind}.{inner} of `{field}`");
                }
            }
        }
    }
}

#[test]
fn the_tables_of_pushes_and_kinds_are_the_schema() {
    let schema = schema();
    let frame = &schema["ServerFrame"];
    let pushes: Vec<_> =
        frame.iter().skip_while(|(name, _)| *name != "event").map(|(name, _)| *name).collect();
    assert_eq!(first_names(section("## Pushes")), pushes);
    let event = &schema["Event"];
    let kinds: Vec<_> =
        event.iter().skip_while(|(name, _)| *name != "created").map(|(name, _)| *name).collect();
    assert_eq!(first_names(section("## Events")), kinds);
    for row in rows(section("## Events")).into_iter().filter(|row| row[0].starts_with('`')) {
        let (_, message) = event.iter().find(|(name, _)| *name == row[0].trim_matches('`')).unwrap();
        let named = names(row[1]);
        let fields: BTreeSet<_> = schema[message].iter().map(|(name, _)| *name).collect();
        assert_eq!(named, fields, "{}", row[0]);
    }
}

#[test]
fn the_tables_of_codes_are_the_codes() {
    let yes = |retry: bool| if retry { "yes" } else { "no" };
    let said: Vec<Vec<&str>> =
        rows(section("### Errors")).into_iter().skip(1).map(|row| row[..5].to_vec()).collect();
    let want: Vec<Vec<String>> = Code::ALL
        .iter()
        .map(|code| {
            let verdict = match code.verdict() {
                Verdict::Unknown => "unknown",
                Verdict::Refused => "refused",
                Verdict::Definite => "definite",
            };
            vec![
                code.number().to_string(),
                format!("`{}`", code.name()),
                code.http_status().to_string(),
                yes(code.may_retry()).to_owned(),
                verdict.to_owned(),
            ]
        })
        .collect();
    assert_eq!(said, want);
    let said: Vec<Vec<&str>> =
        rows(section("### Close codes")).into_iter().skip(1).map(|row| row[..3].to_vec()).collect();
    let want: Vec<Vec<String>> = Close::ALL
        .iter()
        .map(|close| {
            vec![close.number().to_string(), format!("`{}`", close.name()), yes(close.may_retry()).to_owned()]
        })
        .collect();
    assert_eq!(said, want);
}

#[test]
fn every_number_of_a_code_is_one() {
    let known = |number: u32| {
        Code::try_from(number).is_ok() || Close::ALL.iter().any(|close| u32::from(close.number()) == number)
    };
    let prose: String = PAGE.split("```").step_by(2).collect();
    for word in prose.split(|c: char| !c.is_ascii_alphanumeric() && !",.^-".contains(c)) {
        let Ok(number) = word.trim_matches([',', '.', '-']).parse::<u32>() else { continue };
        if (101..200).contains(&number) && number != 128 || (3_000..4_000).contains(&number) {
            assert!(known(number), "{number} is no code");
        }
    }
}

#[test]
fn frames_of_clients_are_frames() {
    let examples = examples("client");
    assert!(examples.len() >= 8, "only {} examples", examples.len());
    for (line, value) in examples {
        let (id, command) = parse_json(&line).unwrap_or_else(|error| panic!("{error:?}: {line}"));
        // A field that is no field would be ignored: what was read must say all that was written.
        let frame = v1::ClientFrame { id, command: Some(command) };
        assert_eq!(serde_json::to_value(&frame).unwrap(), value, "{line}");
    }
}

#[test]
fn frames_of_the_server_are_frames() {
    let examples = examples("server");
    assert!(examples.len() >= 20, "only {} examples", examples.len());
    for (line, value) in examples {
        let frame: v1::ServerFrame =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(serde_json::to_value(&frame).unwrap(), value, "{line}");
        if let Some(v1::server_frame::Body::Error(error)) = frame.body {
            let code = Code::try_from(error.code).unwrap_or_else(|code| panic!("{code}: {line}"));
            assert_eq!(code.name(), error.name, "{line}");
        }
    }
}

#[test]
fn problems_of_http_have_their_codes() {
    for (line, value) in examples("http") {
        let number = value["code"].as_u64().and_then(|code| u32::try_from(code).ok()).unwrap_or_default();
        let code = Code::try_from(number).unwrap_or_else(|code| panic!("{code}: {line}"));
        assert_eq!(value["name"], code.name(), "{line}");
    }
}
