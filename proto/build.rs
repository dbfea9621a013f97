//! Generates the client protocol's types from `banyan/v1/client.proto` with protox (pure Rust: no `protoc` needed)
//! and gives every field the serde attributes that docs/protocol.md ("JSON") asks for; and the messages between nodes
//! from `banyan/node/v1/node.proto`, which have no JSON.

use std::error::Error;

use prost_build::Config;
use protox::prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};

const PROTO: &str = "banyan/v1/client.proto";
const NODE_PROTO: &str = "banyan/node/v1/node.proto";

/// What of the schema has JSON.
const CLIENT_PACKAGE: &str = "banyan.v1";

/// Written by hand in `src/json.rs`: their `oneof` is a key of the same JSON object.
const FLAT: [&str; 3] = ["ClientFrame", "ServerFrame", "Event"];

/// Their `oneof`s hold such messages.
const EXCHANGES: [&str; 2] = ["ClientFrame", "ServerFrame"];

/// What clients send: a missing field is an error there. Everything else is read leniently, since a server of the
/// release before may not know a field.
const REQUESTS: [&str; 18] = [
    "Auth",
    "Refresh",
    "Subscribe",
    "SubscribeRoom",
    "Unsubscribe",
    "Send",
    "History",
    "Mark",
    "CreateRoom",
    "UpdateRoom",
    "AddMembers",
    "RemoveMember",
    "SetRole",
    "Join",
    "Leave",
    "Members",
    "Rooms",
    "FindUser",
];

/// Repeated fields that docs/protocol.md marks with `?`: absent, null and empty are the same.
const OPTIONAL_LISTS: [&str; 2] = ["Send.mentions", "CreateRoom.members"];

/// Byte fields that hold one JSON value and appear as that value.
const RAW_JSON: [&str; 2] = ["Send.data", "Message.data"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    println!("cargo:rerun-if-changed={NODE_PROTO}");
    let files = protox::Compiler::new(["."])?
        .include_source_info(true)
        .include_imports(true)
        .open_files([PROTO, NODE_PROTO])?
        .file_descriptor_set();
    let pool = protox::prost_reflect::DescriptorPool::from_file_descriptor_set(files.clone())?;

    let mut config = Config::new();
    config.bytes(["."]);
    for message in pool.all_messages().filter(|message| message.package_name() == CLIENT_PACKAGE) {
        // prost leaves these two out where it cannot tell; none of ours holds a floating-point number. What holds
        // messages in the cores must be comparable and hashable, so that a model checker can tell states apart.
        let lists = |field: &FieldDescriptor| {
            field.cardinality() == Cardinality::Repeated && matches!(field.kind(), Kind::Message(_))
        };
        if message.fields().any(|field| lists(&field)) || EXCHANGES.contains(&message.name()) {
            config.message_attribute(message.full_name(), "#[derive(Eq, Hash)]");
        }
        if FLAT.contains(&message.name()) {
            continue;
        }
        config.message_attribute(message.full_name(), "#[derive(serde::Serialize, serde::Deserialize)]");
        if !REQUESTS.contains(&message.name()) {
            config.message_attribute(message.full_name(), "#[serde(default)]");
        }
        for field in message.fields() {
            for attribute in serde_of(&message, &field) {
                config.field_attribute(field.full_name(), attribute);
            }
        }
    }
    for oneof in ["banyan.v1.ClientFrame.command", "banyan.v1.ServerFrame.body"] {
        config.enum_attribute(oneof, "#[derive(Eq, Hash)]");
    }
    config.compile_fds(files)?;
    Ok(())
}

fn serde_of(message: &MessageDescriptor, field: &FieldDescriptor) -> Vec<String> {
    let path = format!("{}.{}", message.name(), field.name());
    let mut attributes = Vec::new();
    if OPTIONAL_LISTS.contains(&path.as_str()) {
        attributes.push(
            "#[serde(default, deserialize_with = \"crate::json::null_is_empty\", skip_serializing_if = \"Vec::is_empty\")]".to_owned(),
        );
    } else if field.cardinality() != Cardinality::Repeated && field.field_descriptor_proto().proto3_optional()
    {
        attributes.push("#[serde(default, skip_serializing_if = \"Option::is_none\")]".to_owned());
    }
    if field.cardinality() == Cardinality::Repeated
        && matches!(field.kind(), Kind::Message(_))
        && REQUESTS.contains(&message.name())
    {
        attributes.push("#[serde(deserialize_with = \"crate::json::objects\")]".to_owned());
    }
    let optional = if field.field_descriptor_proto().proto3_optional() { "::optional" } else { "" };
    match field.kind() {
        Kind::Enum(of) => {
            let module = match of.name() {
                "RoomKind" => "room_kind",
                "Role" => "role",
                "Mode" => "mode",
                other => panic!("{path}: give the enum {other} its words in src/json.rs"),
            };
            attributes.push(format!("#[serde(with = \"crate::json::{module}{optional}\")]"));
        }
        Kind::Bytes if RAW_JSON.contains(&path.as_str()) => {
            attributes.push("#[serde(with = \"crate::json::raw\")]".to_owned());
        }
        Kind::Bytes => panic!("{path}: say in build.rs how its bytes look in JSON"),
        _ => {}
    }
    attributes
}
