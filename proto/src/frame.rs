//! Frames of the client protocol in both formats: what came in becomes a command or the answer to a bad one; what
//! goes out becomes bytes.
//!
//! Always holds: no input panics; a frame that has a usable id is answered by that id, anything else ends the
//! connection (docs/protocol.md, "Transport"). The common case is one pass over typed structs; only a frame that
//! fails it is read a second time, to find the id and the right words.

use std::borrow::Cow;
use std::fmt;

use prost::Message as _;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::codes::Code;
use crate::id::NUMBER_MAX;
use crate::json::COMMANDS;
use crate::v1;
use crate::v1::client_frame::Command;

/// How a connection encodes its frames: its WebSocket subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `banyan.v1.json`, in text messages.
    Json,
    /// `banyan.v1.proto`, in binary messages.
    Proto,
}

impl Format {
    pub const ALL: [Self; 2] = [Self::Json, Self::Proto];

    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "banyan.v1.json",
            Self::Proto => "banyan.v1.proto",
        }
    }
}

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// Not a frame, or none with a usable id: close 3501 with these words.
    Frame(String),
    /// An error reply to this id.
    Command { id: u64, code: Code, message: String },
}

/// Reads one frame of a client.
pub fn parse(format: Format, payload: &[u8]) -> Result<(u64, Command), Bad> {
    match format {
        Format::Json => match std::str::from_utf8(payload) {
            Ok(text) => parse_json(text),
            Err(_) => Err(Bad::Frame("not UTF-8".to_owned())),
        },
        Format::Proto => parse_proto(payload),
    }
}

/// Reads one JSON frame. The text is known to be UTF-8: the codec has checked it.
pub fn parse_json(text: &str) -> Result<(u64, Command), Bad> {
    match serde_json::from_str::<v1::ClientFrame>(text) {
        Ok(v1::ClientFrame { id: id @ 1..=NUMBER_MAX, command: Some(command) }) => Ok((id, command)),
        Ok(_) | Err(_) => Err(explain(text)),
    }
}

/// Why a JSON frame is not one: the slow second look.
fn explain(text: &str) -> Bad {
    let keys = match serde_json::from_str::<Keys<'_>>(text) {
        Ok(keys) => keys,
        Err(error) => return Bad::Frame(format!("not one JSON object: {error}")),
    };
    let id = match keys.id.map(|raw| serde_json::from_str::<u64>(raw.get())) {
        Some(Ok(id @ 1..=NUMBER_MAX)) if !keys.two_ids => id,
        _ => return Bad::Frame("`id` must be one integer from 1 to 2^53-1".to_owned()),
    };
    let bad = |message: String| Bad::Command { id, code: Code::BadRequest, message };
    match (&keys.commands[..], &keys.unknown) {
        ([], None) => bad(format!("no command; one of: {}", COMMANDS.join(", "))),
        ([], Some(unknown)) => Bad::Command {
            id,
            code: Code::UnknownCommand,
            message: format!("unknown command `{}`; one of: {}", shorten(unknown), COMMANDS.join(", ")),
        },
        ([(name, raw)], _) => {
            // Alone in a frame of its own, so that the words name a place inside the command.
            let alone = format!("{{\"id\":1,\"{name}\":{}}}", raw.get());
            match serde_json::from_str::<v1::ClientFrame>(&alone) {
                Ok(v1::ClientFrame { command: Some(_), .. }) => bad("a field stands twice".to_owned()),
                Ok(_) => bad(format!("`{name}` must be an object")),
                Err(error) => bad(format!("`{name}`: {}", without_place(&error))),
            }
        }
        (several, _) => bad(format!(
            "more than one command: {}; send each in a frame of its own",
            several.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        )),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

/// serde_json's line and column speak of a text that the client never sent.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(place) => text[..place].to_owned(),
        None => text,
    }
}

/// The keys of a frame, nothing parsed but the object itself.
#[derive(Default)]
struct Keys<'a> {
    id: Option<&'a RawValue>,
    two_ids: bool,
    commands: Vec<(&'static str, &'a RawValue)>,
    unknown: Option<String>,
}

impl<'de> serde::Deserialize<'de> for Keys<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeysVisitor;
        impl<'de> Visitor<'de> for KeysVisitor {
            type Value = Keys<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys<'de>, A::Error> {
                let mut keys = Keys::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    let raw: &'de RawValue = map.next_value()?;
                    if key == "id" {
                        keys.two_ids |= keys.id.replace(raw).is_some();
                    } else if let Some(name) = COMMANDS.iter().find(|name| **name == key) {
                        // Two are as wrong as a thousand: the list stays short.
                        if raw.get() != "null" && keys.commands.len() < 4 {
                            keys.commands.push((name, raw));
                        }
                    } else if keys.unknown.is_none() {
                        keys.unknown = Some(key.into_owned());
                    }
                }
                Ok(keys)
            }
        }
        deserializer.deserialize_map(KeysVisitor)
    }
}

/// Reads one protobuf frame.
pub fn parse_proto(payload: &[u8]) -> Result<(u64, Command), Bad> {
    // prost keeps no unknown fields and lets the last of a `oneof` win: count them first.
    let mut rest = payload;
    let (mut fields, mut known, mut two_ids) = (0u32, 0u32, false);
    let mut id = None;
    while rest.has_remaining() {
        let bad = |error: prost::DecodeError| Bad::Frame(format!("not a ClientFrame: {error}"));
        let (tag, wire_type) = decode_key(&mut rest).map_err(bad)?;
        if tag == 1 && wire_type == WireType::Varint {
            two_ids |= id.replace(prost::encoding::decode_varint(&mut rest).map_err(bad)?).is_some();
            continue;
        }
        fields += 1;
        known += u32::from((2..2 + COMMANDS.len() as u32).contains(&tag));
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(bad)?;
    }
    let id = match id {
        Some(id @ 1..=NUMBER_MAX) if !two_ids => id,
        _ => return Err(Bad::Frame("`id` must be one integer from 1 to 2^53-1".to_owned())),
    };
    let bad = |code: Code, message: &str| Err(Bad::Command { id, code, message: message.to_owned() });
    match (known, fields) {
        (0, 0) => bad(Code::BadRequest, "no command"),
        (0, _) => bad(Code::UnknownCommand, "unknown command"),
        (1, _) => match v1::ClientFrame::decode(payload) {
            Ok(v1::ClientFrame { command: Some(command), .. }) => Ok((id, command)),
            Ok(_) => bad(Code::BadRequest, "no command"),
            Err(error) => Err(Bad::Frame(format!("not a ClientFrame: {error}"))),
        },
        _ => bad(Code::BadRequest, "more than one command; send each in a frame of its own"),
    }
}

/// Appends one frame of the server to `out`.
pub fn encode(format: Format, frame: &v1::ServerFrame, out: &mut Vec<u8>) {
    match format {
        Format::Json => write_json(frame, out),
        Format::Proto => encode_proto(frame, out),
    }
}

/// Appends the push of one event to `out`, without a copy of the event. `encoded` is the event's protobuf.
pub fn encode_event(format: Format, event: &v1::Event, encoded: &[u8], out: &mut Vec<u8>) {
    const EVENT_TAG: u32 = 40; // ServerFrame.event
    match format {
        Format::Json => {
            out.extend_from_slice(b"{\"event\":");
            write_json(event, out);
            out.push(b'}');
        }
        Format::Proto => {
            encode_key(EVENT_TAG, WireType::LengthDelimited, out);
            encode_varint(encoded.len() as u64, out);
            out.extend_from_slice(encoded);
        }
    }
}

fn encode_proto(frame: &v1::ServerFrame, out: &mut Vec<u8>) {
    out.reserve(frame.encoded_len());
    frame.encode_raw(out);
}

fn write_json<T: serde::Serialize>(value: &T, out: &mut Vec<u8>) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        // Only `data` that is not JSON could do that, and it is checked where it comes in.
        debug_assert!(false, "a frame that is not JSON");
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, id: u64, code: Code, words: &str) {
        match parse_json(text) {
            Err(Bad::Command { id: got_id, code: got, message }) => {
                assert_eq!((got_id, got), (id, code), "{text}: {message}");
                assert!(message.contains(words), "{text}: {message}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[track_caller]
    fn not_a_frame(text: &str) {
        assert!(matches!(parse_json(text), Err(Bad::Frame(_))), "{text}: {:?}", parse_json(text));
    }

    #[test]
    fn a_send_is_read_in_any_order_of_its_keys() {
        let want = Command::Send(v1::Send {
            room: "r".into(),
            client_msg_id: "a".into(),
            text: Some("hé".into()),
            data: Some(r#"{"x": [1, null]}"#.into()),
            ..v1::Send::default()
        });
        for text in [
            r#"{"id":7,"send":{"room":"r","client_msg_id":"a","text":"hé","data":{"x": [1, null]}}}"#,
            r#"{"send":{"data":{"x": [1, null]},"text":"h\u00e9","client_msg_id":"a","room":"r","since":null,"mentions":null},"id":7}"#,
            r#" {"id":7,"trace":{"a":1},"send":{"room":"r","client_msg_id":"a","text":"hé","data":{"x": [1, null]},"new":1}} "#,
        ] {
            assert_eq!(parse_json(text), Ok((7, want.clone())), "{text}");
        }
    }

    #[test]
    fn the_id_is_found_whatever_else_is_wrong() {
        refused(r#"{"id":3}"#, 3, Code::BadRequest, "no command");
        refused(r#"{"id":3,"dance":{}}"#, 3, Code::UnknownCommand, "dance");
        refused(r#"{"id":3,"ping":{},"leave":{"room":"r"}}"#, 3, Code::BadRequest, "ping, leave");
        refused(r#"{"id":3,"ping":{},"ping":{}}"#, 3, Code::BadRequest, "more than one");
        refused(r#"{"id":3,"ping":null}"#, 3, Code::BadRequest, "no command");
        refused(r#"{"id":3,"ping":7}"#, 3, Code::BadRequest, "ping");
        refused(r#"{"id":3,"join":["r"]}"#, 3, Code::BadRequest, "expected an object");
        refused(
            r#"{"id":3,"subscribe":{"rooms":[["r",null,null,null,null]]}}"#,
            3,
            Code::BadRequest,
            "expected an object",
        );
        refused(r#"{"send":{"room":"r"},"id":3}"#, 3, Code::BadRequest, "client_msg_id");
        refused(
            r#"{"id":3,"send":{"room":5,"client_msg_id":"a"}}"#,
            3,
            Code::BadRequest,
            "expected a string",
        );
        refused(r#"{"id":3,"history":{"room":"r","after":"7"}}"#, 3, Code::BadRequest, "expected u64");
        refused(r#"{"id":3,"history":{"room":"r","after":-1}}"#, 3, Code::BadRequest, "expected u64");
        refused(r#"{"id":3,"history":{"room":"r","room":"s"}}"#, 3, Code::BadRequest, "duplicate field");
        refused(
            r#"{"id":3,"subscribe":{"rooms":[{"room":"r","mode":"loud"}]}}"#,
            3,
            Code::BadRequest,
            "loud",
        );
        refused(r#"{"id":3,"set_role":{"room":"r","user":"u","role":null}}"#, 3, Code::BadRequest, "role");
    }

    #[test]
    fn without_a_usable_id_it_is_no_frame() {
        for text in [
            "",
            "7",
            "[]",
            "null",
            "{",
            "{}x",
            r#"{"ping":{}}"#,
            r#"{"id":0,"ping":{}}"#,
            r#"{"id":"7","ping":{}}"#,
            r#"{"id":-1,"ping":{}}"#,
            r#"{"id":1.0,"ping":{}}"#,
            r#"{"id":9007199254740992,"ping":{}}"#,
            r#"{"id":null,"ping":{}}"#,
            r#"{"id":1,"id":2,"ping":{}}"#,
            r#"{"id":1,"ping":{}}{"id":2,"ping":{}}"#,
        ] {
            not_a_frame(text);
        }
    }

    #[test]
    fn a_bomb_of_brackets_is_refused_without_a_crash() {
        let deep = format!(
            r#"{{"id":1,"send":{{"room":"r","client_msg_id":"a","data":{}1{}}}}}"#,
            "[".repeat(30_000),
            "]".repeat(30_000)
        );
        drop(parse_json(&deep));
        not_a_frame(&"[".repeat(60_000));
    }

    #[test]
    fn protobuf_frames_obey_the_same_rules() {
        let frame = v1::ClientFrame { id: 9, command: Some(Command::Ping(v1::Ping {})) };
        let mut bytes = frame.encode_to_vec();
        assert_eq!(parse_proto(&bytes), Ok((9, Command::Ping(v1::Ping {}))));
        let two = [bytes.clone(), v1::ClientFrame { id: 0, ..frame }.encode_to_vec()].concat();
        assert!(matches!(parse_proto(&two), Err(Bad::Command { id: 9, code: Code::BadRequest, .. })));
        encode_key(90, WireType::Varint, &mut bytes);
        encode_varint(1, &mut bytes);
        assert!(parse_proto(&bytes).is_ok(), "unknown fields beside a command are ignored");
        let mut unknown = vec![8, 5];
        encode_key(90, WireType::Varint, &mut unknown);
        encode_varint(1, &mut unknown);
        assert!(matches!(parse_proto(&unknown), Err(Bad::Command { id: 5, code: Code::UnknownCommand, .. })));
        assert!(matches!(parse_proto(&[8, 5]), Err(Bad::Command { id: 5, code: Code::BadRequest, .. })));
        for garbage in [&[][..], &[0xff], &[10, 200, 1], &[8, 0], &[18, 0]] {
            assert!(matches!(parse_proto(garbage), Err(Bad::Frame(_))), "{garbage:?}");
        }
    }

    #[test]
    fn an_event_push_is_the_frame_around_the_event() {
        let event = v1::Event {
            room: "r".into(),
            seq: 2,
            sender: "u".into(),
            kind: Some(v1::event::Kind::Message(v1::Message {
                text: "x".into(),
                data: Some("1".into()),
                ..v1::Message::default()
            })),
            ..v1::Event::default()
        };
        let frame = v1::ServerFrame { id: None, body: Some(v1::server_frame::Body::Event(event.clone())) };
        for format in Format::ALL {
            let (mut direct, mut framed) = (Vec::new(), Vec::new());
            encode_event(format, &event, &event.encode_to_vec(), &mut direct);
            encode(format, &frame, &mut framed);
            assert_eq!(direct, framed);
        }
    }
}
