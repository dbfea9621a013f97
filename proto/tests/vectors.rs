//! The conformance vectors of `proto/vectors`, in both directions, and that they leave nothing out.
//!
//! Owns: how a vector is read. `BANYAN_UPDATE=1` writes the protobuf of each vector anew from its JSON.
//! Always holds: the JSON is also compared with what the schema's descriptors say of the protobuf bytes, by rules that
//! share no code with the crate; each field of the schema is set in some vector, each optional one unset in another.
//! Does not: check the rules of single commands (gateway/core/tests/vectors.rs does).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;

use banyan_proto::frame::{Bad, Format, encode, parse};
use banyan_proto::v1::{ClientFrame, ServerFrame};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message;
use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors");

/// A frame that is valid.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    /// The frame as we write it: this text, byte for byte.
    json: Box<RawValue>,
    /// Other texts that are read as the same frame.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    also: Vec<String>,
    /// The same in protobuf, in base64.
    proto: String,
}

/// A frame that is not.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invalid {
    name: String,
    format: String,
    /// JSON as its text, protobuf in base64.
    input: String,
    close: Option<u16>,
    id: Option<u64>,
    error: Option<u32>,
    /// "command": the frame is one, the command in it is refused.
    by: Option<String>,
}

fn read(file: &str) -> String {
    fs::read_to_string(format!("{DIRECTORY}/{file}.json")).unwrap()
}

/// The vectors of a file, after an update if that is asked for.
fn vectors<T: Message + DeserializeOwned + Default>(file: &str) -> Vec<Vector> {
    let text = read(file);
    let mut vectors: Vec<Vector> =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
    if std::env::var_os("BANYAN_UPDATE").is_some() {
        for vector in &mut vectors {
            let frame: T = serde_json::from_str(vector.json.get()).unwrap();
            vector.proto = BASE64.encode(frame.encode_to_vec());
        }
        let lines: Vec<_> = vectors.iter().map(|vector| serde_json::to_string(vector).unwrap()).collect();
        fs::write(format!("{DIRECTORY}/{file}.json"), format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
    }
    vectors
}

/// Both directions of one kind of frame; gives the protobuf of all.
fn check<T>(files: &[&str], message: &str, write_json: impl Fn(&T) -> String) -> Vec<DynamicMessage>
where
    T: Message + DeserializeOwned + Default + PartialEq + std::fmt::Debug,
{
    let descriptor = pool().get_message_by_name(&format!("banyan.v1.{message}")).unwrap();
    let (mut names, mut all) = (BTreeSet::new(), Vec::new());
    for file in files {
        for vector in vectors::<T>(file) {
            let name = format!("{file}: {}", vector.name);
            assert!(names.insert(name.clone()), "{name} is there twice");
            let bytes = BASE64.decode(&vector.proto).unwrap();
            let frame: T =
                serde_json::from_str(vector.json.get()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(BASE64.encode(frame.encode_to_vec()), vector.proto, "{name}: JSON to protobuf");
            let decoded = T::decode(&*bytes).unwrap();
            assert_eq!(decoded, frame, "{name}");
            assert_eq!(write_json(&decoded), vector.json.get(), "{name}: protobuf to JSON");
            for also in &vector.also {
                let other: T =
                    serde_json::from_str(also).unwrap_or_else(|error| panic!("{name}: {also}: {error}"));
                assert_eq!(other, frame, "{name}: {also}");
            }
            let dynamic = DynamicMessage::decode(descriptor.clone(), &*bytes).unwrap();
            agrees(&name, &dynamic, &serde_json::from_str(vector.json.get()).unwrap());
            all.push(dynamic);
        }
    }
    all
}

fn pool() -> DescriptorPool {
    let root = env!("CARGO_MANIFEST_DIR");
    let files = protox::compile(["banyan/v1/client.proto"], [root]).unwrap();
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

/// docs/protocol.md, "Transport": how a message looks in JSON, by its descriptor alone.
fn agrees(name: &str, message: &DynamicMessage, json: &serde_json::Value) {
    let object = json.as_object().unwrap_or_else(|| panic!("{name}: {json} is no object"));
    let mut left: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    for field in message.descriptor().fields() {
        let value = message.get_field(&field);
        left.remove(field.name());
        if is_left_out(&field) && !message.has_field(&field) {
            assert!(!object.contains_key(field.name()), "{name}: {} is unset", field.full_name());
            continue;
        }
        let json = object.get(field.name());
        let json = json.unwrap_or_else(|| panic!("{name}: {} is missing", field.full_name()));
        match (&*value, json) {
            (Value::List(values), serde_json::Value::Array(items)) => {
                assert_eq!(values.len(), items.len(), "{name}: {}", field.full_name());
                values.iter().zip(items).for_each(|(value, item)| is_same(name, &field, value, item));
            }
            (value, json) => is_same(name, &field, value, json),
        }
    }
    assert!(left.is_empty(), "{name}: {left:?} are no fields");
}

/// Fields that the page marks with `?`, and members of a `oneof`.
fn is_left_out(field: &FieldDescriptor) -> bool {
    let lists = ["banyan.v1.Send.mentions", "banyan.v1.CreateRoom.members"];
    field.supports_presence() && !ALWAYS.contains(&field.full_name()) || lists.contains(&field.full_name())
}

/// Messages have presence in protobuf whatever the page says; this one is always there.
const ALWAYS: [&str; 1] = ["banyan.v1.AuthReply.limits"];

fn is_same(name: &str, field: &FieldDescriptor, value: &Value, json: &serde_json::Value) {
    let same = match (value, field.kind()) {
        (Value::Message(message), _) => return agrees(name, message, json),
        (Value::U32(number), _) => json.as_u64() == Some(u64::from(*number)),
        (Value::U64(number), _) => json.as_u64() == Some(*number),
        (Value::Bool(value), _) => json.as_bool() == Some(*value),
        (Value::String(text), _) => json.as_str() == Some(text),
        // `data`, which holds one JSON value.
        (Value::Bytes(bytes), _) => {
            serde_json::from_slice::<serde_json::Value>(bytes).ok().as_ref() == Some(json)
        }
        (Value::EnumNumber(number), Kind::Enum(of)) => {
            let value = of.get_value(*number).unwrap();
            let word = value.name().rsplit('_').next().unwrap().to_lowercase();
            json.as_str() == Some(&word)
        }
        _ => false,
    };
    assert!(same, "{name}: {} is {value:?} in protobuf and {json} in JSON", field.full_name());
}

/// What of the schema the vectors show: fields that are set, optional ones that are not, words of enums.
#[derive(Debug, Default)]
struct Shown(BTreeSet<String>);

impl Shown {
    fn note(&mut self, message: &DynamicMessage) {
        for field in message.descriptor().fields() {
            let name = field.full_name();
            if !message.has_field(&field) {
                self.0.insert(format!("{name} unset"));
                continue;
            }
            self.0.insert(format!("{name} set"));
            let value = message.get_field(&field);
            let one = std::slice::from_ref(&*value);
            for value in value.as_list().unwrap_or(one) {
                match (value, field.kind()) {
                    (Value::Message(message), _) => self.note(message),
                    (Value::EnumNumber(number), Kind::Enum(of)) => {
                        self.0.insert(of.get_value(*number).unwrap().name().to_owned());
                    }
                    _ => {}
                }
            }
        }
    }

    /// What is missing of a message and of everything in it.
    fn missing(&self, message: &MessageDescriptor, known: &mut BTreeSet<String>, missing: &mut Vec<String>) {
        if !known.insert(message.full_name().to_owned()) {
            return;
        }
        for field in message.fields() {
            let mut want = vec![format!("{} set", field.full_name())];
            if is_left_out(&field) {
                want.push(format!("{} unset", field.full_name()));
            }
            match field.kind() {
                Kind::Message(inner) => self.missing(&inner, known, missing),
                // Number 0 is what is unset.
                Kind::Enum(of) => {
                    want.extend(
                        of.values().filter(|value| value.number() != 0).map(|value| value.name().to_owned()),
                    );
                }
                _ => {}
            }
            missing.extend(want.into_iter().filter(|want| !self.0.contains(want)));
        }
    }
}

fn nothing_is_missing(messages: &[DynamicMessage]) {
    let (mut shown, mut missing) = (Shown::default(), Vec::new());
    messages.iter().for_each(|message| shown.note(message));
    shown.missing(&messages[0].descriptor(), &mut BTreeSet::new(), &mut missing);
    assert!(missing.is_empty(), "no vector shows: {missing:#?}");
}

#[test]
fn commands() {
    let all =
        check::<ClientFrame>(&["commands"], "ClientFrame", |frame| serde_json::to_string(frame).unwrap());
    nothing_is_missing(&all);
    // The way that a server reads them.
    for vector in vectors::<ClientFrame>("commands") {
        let json = parse(Format::Json, vector.json.get().as_bytes()).unwrap();
        assert_eq!(
            parse(Format::Proto, &BASE64.decode(&vector.proto).unwrap()).unwrap(),
            json,
            "{}",
            vector.name
        );
        for also in vector.also {
            assert_eq!(parse(Format::Json, also.as_bytes()).unwrap(), json, "{also}");
        }
    }
}

#[test]
fn replies_pushes_and_events() {
    let write = |frame: &ServerFrame| {
        let mut text = Vec::new();
        encode(Format::Json, frame, &mut text);
        String::from_utf8(text).unwrap()
    };
    nothing_is_missing(&check::<ServerFrame>(&["replies", "pushes", "events"], "ServerFrame", write));
}

#[test]
fn invalid_frames() {
    let rows: Vec<Invalid> = serde_json::from_str(&read("invalid")).unwrap();
    for row in rows {
        let name = format!("{} ({})", row.name, row.format);
        let parsed = match row.format.as_str() {
            "json" => parse(Format::Json, row.input.as_bytes()),
            "proto" => parse(Format::Proto, &BASE64.decode(&row.input).unwrap()),
            other => panic!("{name}: {other} is no format"),
        };
        match (parsed, row.close, row.id, row.error, row.by.as_deref()) {
            (Err(Bad::Frame(_)), Some(3501), None, None, None) => {}
            (Err(Bad::Command { id, code, .. }), None, Some(want_id), Some(want), None) => {
                assert_eq!((id, code.number()), (want_id, want), "{name}");
            }
            (Ok((id, _)), None, Some(want_id), Some(_), Some("command")) => assert_eq!(id, want_id, "{name}"),
            (parsed, ..) => panic!("{name}: {parsed:?}"),
        }
    }
}
