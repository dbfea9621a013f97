//! The JSON of the client protocol, by serde on the generated types (docs/protocol.md, "Transport").
//!
//! Most of it is attributes that build.rs puts on the generated fields. By hand: the words of enums, `data` as the
//! bytes that were sent, and the three objects in which the name of a `oneof` member is a key beside plain fields
//! (`ClientFrame`, `ServerFrame`, `Event`): serde's `flatten` would copy them through a buffer and cannot hold raw
//! values.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::v1;

/// `null` and absent are the empty list.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Read from an object and nothing else: by itself serde takes an array for a struct, its fields by position.
pub(crate) struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A list of objects in what a client sends.
pub(crate) fn objects<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let objects = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(objects.into_iter().map(|object| object.0).collect())
}

/// One JSON value, kept as the bytes that were sent.
pub(crate) mod raw {
    use bytes::Bytes;
    use serde::de::Deserializer;
    use serde::ser::{Error, Serializer};
    use serde::{Deserialize, Serialize};
    use serde_json::value::RawValue;
    pub(crate) fn serialize<S: Serializer>(data: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(data) = data else { return serializer.serialize_none() };
        let text = std::str::from_utf8(data).map_err(S::Error::custom)?;
        let raw: &RawValue = serde_json::from_str(text).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        let raw = Option::<Box<RawValue>>::deserialize(deserializer)?;
        Ok(raw.map(|raw| Bytes::from(Box::<str>::from(raw).into_string())))
    }
}

/// Enums are lower-case words.
macro_rules! words {
    ($module:ident, $name:ident, { $($variant:ident = $word:literal),+ $(,)? }) => {
        #[allow(dead_code, reason = "not every enum stands in both an optional and a plain field")]
        pub(crate) mod $module {
            use serde::de::{Deserializer, Error};
            use serde::ser::Serializer;
            use serde::Deserialize;

            use crate::v1::$name;

            const WORDS: &[&str] = &[$($word),+];

            fn word(value: i32) -> &'static str {
                match $name::try_from(value).unwrap_or_default() {
                    $($name::$variant => $word,)+
                    #[allow(unreachable_patterns, reason = "an enum may have a value without a word")]
                    _ => "",
                }
            }

            pub(super) fn parse<E: Error>(text: &str) -> Result<i32, E> {
                match text {
                    $($word => Ok($name::$variant as i32),)+
                    _ => Err(E::unknown_variant(text, WORDS)),
                }
            }
            pub(crate) fn serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(word(*value))
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
                deserializer.deserialize_str(super::WordVisitor(parse::<D::Error>))
            }

            impl $name {
                /// The word that stands for it in JSON, tables and logs.
                pub fn word(self) -> &'static str {
                    word(self as i32)
                }
            }

            pub(crate) mod optional {
                use super::*;
                pub(crate) fn serialize<S: Serializer>(value: &Option<i32>, serializer: S) -> Result<S::Ok, S::Error> {
                    match value {
                        Some(value) => serializer.serialize_str(word(*value)),
                        None => serializer.serialize_none(),
                    }
                }

                pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
                    let text = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                    text.map(|text| parse(&text)).transpose()
                }
            }
        }
    };
}

words!(room_kind, RoomKind, { Group = "group", Direct = "direct", Broadcast = "broadcast" });
words!(role, Role, { None = "none", Reader = "reader", Member = "member", Admin = "admin", Owner = "owner" });
words!(mode, Mode, { Live = "live", Passive = "passive" });

struct WordVisitor<E>(fn(&str) -> Result<i32, E>);

impl<E: de::Error> Visitor<'_> for WordVisitor<E> {
    type Value = i32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word")
    }

    fn visit_str<X: de::Error>(self, text: &str) -> Result<i32, X> {
        (self.0)(text).map_err(X::custom)
    }
}

/// Serialize and Deserialize of an object with plain fields and one `oneof` member, whose name is a key.
macro_rules! flat {
    (
        $name:ident, $oneof:ident: $oneof_type:path,
        fields { $($field:ident),* }, optional { $($optional:ident),* },
        members { $($key:literal = $variant:ident($payload:ty)),+ $(,)? }
    ) => {
        impl Serialize for v1::$name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use $oneof_type as Member;
                let mut map = serializer.serialize_map(None)?;
                $(map.serialize_entry(stringify!($field), &self.$field)?;)*
                $(if let Some(value) = &self.$optional {
                    map.serialize_entry(stringify!($optional), value)?;
                })*
                match &self.$oneof {
                    $(Some(Member::$variant(payload)) => map.serialize_entry($key, payload)?,)+
                    None => {}
                }
                map.end()
            }
        }

        impl<'de> Deserialize<'de> for v1::$name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use $oneof_type as Member;

                #[allow(non_camel_case_types, reason = "named after the fields")]
                enum Key { $($field,)* $($optional,)* $($variant,)+ Unknown }

                struct KeySeed;
                impl<'de> DeserializeSeed<'de> for KeySeed {
                    type Value = Key;
                    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
                        deserializer.deserialize_identifier(self)
                    }
                }
                impl Visitor<'_> for KeySeed {
                    type Value = Key;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a field name")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<Key, E> {
                        $(if text == stringify!($field) { return Ok(Key::$field) })*
                        $(if text == stringify!($optional) { return Ok(Key::$optional) })*
                        Ok(match text {
                            $($key => Key::$variant,)+
                            _ => Key::Unknown,
                        })
                    }
                }

                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = v1::$name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<v1::$name, A::Error> {
                        $(let mut $field = None;)*
                        $(let mut $optional = None;)*
                        let mut member: Option<Member> = None;
                        while let Some(key) = map.next_key_seed(KeySeed)? {
                            match key {
                                $(Key::$field => {
                                    if $field.replace(map.next_value()?).is_some() {
                                        return Err(de::Error::duplicate_field(stringify!($field)));
                                    }
                                })*
                                $(Key::$optional => $optional = map.next_value()?,)*
                                $(Key::$variant => {
                                    if let Some(Object(payload)) = map.next_value::<Option<Object<$payload>>>()?
                                        && member.replace(Member::$variant(payload)).is_some() {
                                        return Err(de::Error::custom("more than one of its kind in one object"));
                                    }
                                })+
                                Key::Unknown => { map.next_value::<IgnoredAny>()?; }
                            }
                        }
                        Ok(v1::$name {
                            $($field: $field.ok_or_else(|| de::Error::missing_field(stringify!($field)))?,)*
                            $($optional,)*
                            $oneof: member,
                        })
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}

flat! {
    ClientFrame, command: v1::client_frame::Command,
    fields { id }, optional {},
    members {
        "auth" = Auth(v1::Auth),
        "refresh" = Refresh(v1::Refresh),
        "subscribe" = Subscribe(v1::Subscribe),
        "unsubscribe" = Unsubscribe(v1::Unsubscribe),
        "send" = Send(v1::Send),
        "history" = History(v1::History),
        "mark" = Mark(v1::Mark),
        "create_room" = CreateRoom(v1::CreateRoom),
        "update_room" = UpdateRoom(v1::UpdateRoom),
        "add_members" = AddMembers(v1::AddMembers),
        "remove_member" = RemoveMember(v1::RemoveMember),
        "set_role" = SetRole(v1::SetRole),
        "join" = Join(v1::Join),
        "leave" = Leave(v1::Leave),
        "members" = Members(v1::Members),
        "rooms" = Rooms(v1::Rooms),
        "find_user" = FindUser(v1::FindUser),
        "ping" = Ping(v1::Ping),
    }
}

flat! {
    ServerFrame, body: v1::server_frame::Body,
    fields {}, optional { id },
    members {
        "error" = Error(v1::Error),
        "auth" = Auth(v1::AuthReply),
        "refresh" = Refresh(v1::RefreshReply),
        "subscribe" = Subscribe(v1::SubscribeReply),
        "unsubscribe" = Unsubscribe(v1::Empty),
        "send" = Send(v1::SendReply),
        "history" = History(v1::HistoryReply),
        "mark" = Mark(v1::MarkReply),
        "create_room" = CreateRoom(v1::CreateRoomReply),
        "update_room" = UpdateRoom(v1::Empty),
        "add_members" = AddMembers(v1::Empty),
        "remove_member" = RemoveMember(v1::Empty),
        "set_role" = SetRole(v1::Empty),
        "join" = Join(v1::JoinReply),
        "leave" = Leave(v1::Empty),
        "members" = Members(v1::MembersReply),
        "rooms" = Rooms(v1::RoomsReply),
        "find_user" = FindUser(v1::FindUserReply),
        "ping" = Ping(v1::PingReply),
        "event" = Event(v1::Event),
        "head" = Head(v1::Head),
        "marks" = Marks(v1::MarksPush),
        "gap" = Gap(v1::GapPush),
        "subscribed" = Subscribed(v1::SubscribedRoom),
        "unsubscribed" = Unsubscribed(v1::Unsubscribed),
        "room" = Room(v1::Room),
        "room_gone" = RoomGone(v1::RoomGone),
        "token_expiring" = TokenExpiring(v1::TokenExpiring),
        "reconnect" = Reconnect(v1::Reconnect),
    }
}

flat! {
    Event, kind: v1::event::Kind,
    fields { room, seq, at, n, sender, sender_name }, optional { client_msg_id },
    members {
        "created" = Created(v1::Created),
        "message" = Message(v1::Message),
        "joined" = Joined(v1::Joined),
        "left" = Left(v1::Left),
        "removed" = Removed(v1::Removed),
        "role_changed" = RoleChanged(v1::RoleChanged),
        "room_changed" = RoomChanged(v1::RoomChanged),
    }
}

/// Names of the commands, as they stand in a client frame.
pub const COMMANDS: [&str; 18] = [
    "auth",
    "refresh",
    "subscribe",
    "unsubscribe",
    "send",
    "history",
    "mark",
    "create_room",
    "update_room",
    "add_members",
    "remove_member",
    "set_role",
    "join",
    "leave",
    "members",
    "rooms",
    "find_user",
    "ping",
];

/// Names of the pushes, as they stand in a server frame.
pub const PUSHES: [&str; 10] = [
    "event",
    "head",
    "marks",
    "gap",
    "subscribed",
    "unsubscribed",
    "room",
    "room_gone",
    "token_expiring",
    "reconnect",
];
