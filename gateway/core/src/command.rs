//! Commands as clients send them become commands that can be carried out.
//!
//! Owns: every rule of docs/protocol.md that needs nothing but the command and who sends it: ids, lengths, counts,
//! characters, what excludes what. Always holds: a [`Checked`] command obeys them all; no rule looks at a room.
//! Does not: know whether a room or user exists, or what the caller may do there: the owner of the room decides that.

use banyan_proto::codes::Code;
use banyan_proto::id::{
    CLIENT_MSG_ID_MAX, DIRECT_PREFIX, LogId, NUMBER_MAX, RESERVED_PREFIX, RoomId, Seq, UserId,
};
use banyan_proto::link::{Person, RoomCommand};
use banyan_proto::v1;
use banyan_proto::v1::client_frame::Command;
use bytes::Bytes;

/// Users that one `create_room` or `add_members` may name.
pub const USERS_MAX: usize = 100;
/// Users that one message may mention.
pub const MENTIONS_MAX: usize = 50;
/// Entries of a page of `history`, `members`, `rooms`, and of `last`.
pub const PAGE_MAX: u32 = 100;
/// The same where the client does not say.
pub const PAGE_DEFAULT: u32 = 50;
/// Longest room name in bytes of UTF-8: some forty characters of any script.
pub const ROOM_NAME_MAX: usize = 128;
pub const CONTENT_TYPE_MAX: usize = 128;
/// Deepest nesting of `data`: readers that recurse must not be made to overflow (serde_json's own limit is 128).
pub const DATA_DEPTH_MAX: u32 = 64;
/// Longest token. Ours have some 300 bytes; foreign ones carry claims that we do not read.
pub const TOKEN_MAX: usize = 8 << 10;
/// What a client may call itself is cut to this, in characters.
pub const CLIENT_NAME_MAX: usize = 64;
/// Longest username that is looked up at all; normalisation never makes a longer one valid.
pub const USERNAME_MAX: usize = 256;

/// Limits that a configuration may lower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub text_bytes: usize,
    pub data_bytes: usize,
    pub rooms_per_subscribe: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { text_bytes: 8 << 10, data_bytes: 8 << 10, rooms_per_subscribe: 200 }
    }
}

/// A command that obeys the rules.
#[derive(Debug, Clone, PartialEq)]
pub enum Checked {
    Auth {
        token: String,
        /// What the client calls itself, for logs: no control characters, cut to [`CLIENT_NAME_MAX`].
        client: Option<String>,
    },
    Refresh {
        token: String,
    },
    Subscribe(Vec<SubscribeTo>),
    Unsubscribe(Vec<RoomId>),
    /// For the owner of the room, as it is.
    Room {
        room: RoomId,
        command: RoomCommand,
    },
    /// A `create_room`; its members must be looked up first ([`resolve`]).
    Create(Create),
    /// An `add_members`; its users must be looked up first ([`resolve`]).
    Add {
        room: RoomId,
        users: Vec<UserId>,
    },
    Rooms {
        after: Option<RoomId>,
        limit: u32,
    },
    FindUser {
        username: String,
    },
    Ping,
}

/// A new room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    pub room: NewRoom,
    pub kind: v1::RoomKind,
    /// Empty: none given.
    pub name: String,
    pub public: bool,
    /// Others than the caller, each once; of a direct room exactly one.
    pub members: Vec<UserId>,
}

/// Which id a new room gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewRoom {
    /// The client's own: a retry finds the room that the first try made.
    Own(RoomId),
    /// The server makes one.
    Fresh,
    /// Both members of a direct room make the same one: `banyan_proto::direct::room_id`.
    Direct,
}

/// One room of a `subscribe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeTo {
    pub room: RoomId,
    pub start: Start,
    pub mode: v1::Mode,
}

/// Where a cursor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Everything above this seq of this log (any, if the client does not say).
    After { seq: Seq, log: Option<LogId> },
    /// The newest n; 0: what comes from now on.
    Last(u32),
    /// The unread ones, at most the newest fifty.
    Unread,
}

/// Checks one command of `caller`. The error is the reply.
pub fn check(command: Command, limits: &Limits, caller: &UserId) -> Result<Checked, v1::Error> {
    Ok(match command {
        Command::Auth(auth) => Checked::Auth {
            token: token(auth.token)?,
            client: auth.client.map(|name| client_name(&name)).filter(|name| !name.is_empty()),
        },
        Command::Refresh(refresh) => Checked::Refresh { token: token(refresh.token)? },
        Command::Subscribe(subscribe) => {
            at_most("rooms", subscribe.rooms.len(), limits.rooms_per_subscribe)?;
            Checked::Subscribe(subscribe.rooms.into_iter().map(subscribe_to).collect::<Result<_, _>>()?)
        }
        Command::Unsubscribe(unsubscribe) => {
            at_most("rooms", unsubscribe.rooms.len(), limits.rooms_per_subscribe)?;
            Checked::Unsubscribe(unsubscribe.rooms.iter().map(|id| room(id)).collect::<Result<_, _>>()?)
        }
        Command::Send(mut send) => {
            // Named once: the send is kept until it is answered.
            let room = room(&std::mem::take(&mut send.room))?;
            Checked::Room { room, command: RoomCommand::Send(checked_send(send, limits)?) }
        }
        Command::History(history) => {
            if history.before.is_some() && history.after.is_some() {
                return Err(bad("`before` and `after` exclude each other"));
            }
            Checked::Room {
                room: room(&history.room)?,
                command: RoomCommand::History {
                    before: seq("before", history.before)?,
                    after: seq("after", history.after)?,
                    limit: limit(history.limit)?,
                },
            }
        }
        Command::Mark(mark) => Checked::Room {
            room: room(&mark.room)?,
            command: RoomCommand::Mark {
                delivered: seq("delivered", mark.delivered)?,
                seen: seq("seen", mark.seen)?,
            },
        },
        Command::CreateRoom(create) => Checked::Create(checked_create(create, caller)?),
        Command::UpdateRoom(update) => {
            if update.name.is_none() && update.public.is_none() {
                return Err(bad("nothing to change: give `name`, `public` or both"));
            }
            if let Some(name) = &update.name {
                room_name(name)?;
            }
            Checked::Room {
                room: room(&update.room)?,
                command: RoomCommand::Update { name: update.name, public: update.public },
            }
        }
        Command::AddMembers(add) => {
            if add.users.is_empty() {
                return Err(bad("`users` is empty: name at least one"));
            }
            Checked::Add { room: room(&add.room)?, users: users("users", &add.users)? }
        }
        Command::RemoveMember(remove) => Checked::Room {
            room: room(&remove.room)?,
            command: RoomCommand::Remove { user: user(&remove.user)? },
        },
        Command::SetRole(set) => {
            let role = match v1::Role::try_from(set.role) {
                Ok(v1::Role::None) => {
                    return Err(bad("`role` cannot be \"none\": remove_member takes somebody out"));
                }
                Ok(role) => role,
                Err(_) => return Err(bad("`role` is not one of reader, member, admin, owner")),
            };
            Checked::Room {
                room: room(&set.room)?,
                command: RoomCommand::SetRole { user: user(&set.user)?, role },
            }
        }
        Command::Join(join) => Checked::Room { room: room(&join.room)?, command: RoomCommand::Join },
        Command::Leave(leave) => Checked::Room { room: room(&leave.room)?, command: RoomCommand::Leave },
        Command::Members(members) => Checked::Room {
            room: room(&members.room)?,
            command: RoomCommand::Members {
                after: members.after.as_deref().map(user).transpose()?,
                limit: limit(members.limit)?,
            },
        },
        Command::Rooms(rooms) => Checked::Rooms {
            after: rooms.after.as_deref().map(room).transpose()?,
            limit: limit(rooms.limit)?,
        },
        Command::FindUser(find) => {
            if find.username.is_empty() || find.username.len() > USERNAME_MAX {
                return Err(bad(format!("`username` must have 1 to {USERNAME_MAX} bytes")));
            }
            Checked::FindUser { username: find.username }
        }
        Command::Ping(_) => Checked::Ping,
    })
}

/// Puts the persons that were looked up in the place of their ids, in the same order; 122 for the first who does not
/// exist.
pub fn resolve(users: &[UserId], persons: Vec<Option<Person>>) -> Result<Vec<Person>, v1::Error> {
    debug_assert_eq!(users.len(), persons.len());
    users
        .iter()
        .zip(persons)
        .map(|(user, person)| {
            person.ok_or_else(|| Code::UnknownUser.error(format!("there is no user `{user}`")))
        })
        .collect()
}

fn bad(message: impl Into<String>) -> v1::Error {
    Code::BadRequest.error(message)
}

fn too_large(message: impl Into<String>) -> v1::Error {
    Code::MessageTooLarge.error(message)
}

fn at_most(what: &str, count: usize, most: usize) -> Result<(), v1::Error> {
    if count > most {
        return Err(bad(format!("`{what}` has {count} entries, {most} are allowed in one command")));
    }
    Ok(())
}

fn room(id: &str) -> Result<RoomId, v1::Error> {
    RoomId::parse(id).map_err(|invalid| bad(invalid.to_string()))
}

/// A user whom a client may name.
fn user(id: &str) -> Result<UserId, v1::Error> {
    let user = UserId::parse(id).map_err(|invalid| bad(invalid.to_string()))?;
    if user.is_reserved() {
        return Err(bad(format!("user ids that begin with `{RESERVED_PREFIX}` are the server's")));
    }
    Ok(user)
}

/// At most [`USERS_MAX`], each once, in the order given.
fn users(what: &str, ids: &[String]) -> Result<Vec<UserId>, v1::Error> {
    at_most(what, ids.len(), USERS_MAX)?;
    let mut users = Vec::with_capacity(ids.len());
    for id in ids {
        let user = user(id)?;
        // A hundred at most: looking is cheaper than hashing.
        if !users.contains(&user) {
            users.push(user);
        }
    }
    Ok(users)
}

fn number(what: &str, value: u64) -> Result<u64, v1::Error> {
    if value > NUMBER_MAX {
        return Err(bad(format!("`{what}` is above 2^53-1")));
    }
    Ok(value)
}

fn seq(what: &str, value: Option<u64>) -> Result<Option<Seq>, v1::Error> {
    value.map(|value| number(what, value).map(Seq)).transpose()
}

fn limit(value: Option<u32>) -> Result<u32, v1::Error> {
    match value {
        None => Ok(PAGE_DEFAULT),
        Some(limit @ 1..=PAGE_MAX) => Ok(limit),
        Some(_) => Err(bad(format!("`limit` must be 1 to {PAGE_MAX}"))),
    }
}

fn token(token: String) -> Result<String, v1::Error> {
    if token.is_empty() || token.len() > TOKEN_MAX {
        return Err(Code::Unauthenticated.error("this is not a token"));
    }
    Ok(token)
}

fn client_name(name: &str) -> String {
    name.chars().filter(|c| !is_hidden(*c)).take(CLIENT_NAME_MAX).collect()
}

fn subscribe_to(one: v1::SubscribeRoom) -> Result<SubscribeTo, v1::Error> {
    let mode = v1::Mode::try_from(one.mode.unwrap_or_default())
        .map_err(|_| bad("`mode` is not one of live, passive"))?;
    let start = match (one.after, one.last) {
        (Some(_), Some(_)) => return Err(bad("`after` and `last` exclude each other")),
        (Some(after), None) => Start::After {
            seq: Seq(number("after", after)?),
            // A text that is no log's name is another log's: the cursor is reset.
            log: one.log.map(|text| LogId(u64::from_str_radix(&text, 16).unwrap_or_default())),
        },
        (None, Some(last @ 0..=PAGE_MAX)) => Start::Last(last),
        (None, Some(_)) => return Err(bad(format!("`last` must be at most {PAGE_MAX}"))),
        (None, None) => Start::Unread,
    };
    Ok(SubscribeTo { room: room(&one.room)?, start, mode })
}

fn checked_send(mut send: v1::Send, limits: &Limits) -> Result<v1::Send, v1::Error> {
    if send.client_msg_id.is_empty() || send.client_msg_id.len() > CLIENT_MSG_ID_MAX {
        return Err(bad(format!("`client_msg_id` must have 1 to {CLIENT_MSG_ID_MAX} bytes")));
    }
    for (what, value) in [("since", send.since), ("reply_to", send.reply_to)] {
        number(what, value.unwrap_or_default())?;
    }
    at_most("mentions", send.mentions.len(), MENTIONS_MAX)?;
    for mentioned in &send.mentions {
        user(mentioned)?;
    }
    if let Some(content_type) = &send.content_type {
        is_content_type(content_type)?;
    }
    if let Some(text) = &send.text {
        if text.len() > limits.text_bytes {
            return Err(too_large(format!(
                "`text` has {} bytes, {} are allowed",
                text.len(),
                limits.text_bytes
            )));
        }
        if text.contains('\0') {
            return Err(bad("`text` holds a NUL character"));
        }
    }
    if let Some(data) = &send.data {
        if data.len() > limits.data_bytes {
            return Err(too_large(format!(
                "`data` has {} bytes, {} are allowed",
                data.len(),
                limits.data_bytes
            )));
        }
        if !is_shallow_json(data) {
            return Err(bad(format!("`data` must be one JSON value, nested at most {DATA_DEPTH_MAX} deep")));
        }
    }
    // In JSON null is absent; so it is in protobuf.
    send.data = send.data.filter(|data| data.trim_ascii() != b"null");
    if send.text.as_deref().unwrap_or_default().is_empty() && send.data.is_none() {
        return Err(bad("nothing to send: give `text`, `data` or both"));
    }
    Ok(send)
}

/// `type/subtype` with parameters, as RFC 9110 writes them, loosely: visible ASCII and spaces.
fn is_content_type(text: &str) -> Result<(), v1::Error> {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let essence = text.split(';').next().unwrap_or_default().trim_end_matches(' ');
    let well_formed = essence.split_once('/').is_some_and(|(kind, sub)| token(kind) && token(sub));
    if text.len() > CONTENT_TYPE_MAX || !well_formed || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(bad(format!(
            "`content_type` must look like text/plain and have at most {CONTENT_TYPE_MAX} bytes"
        )));
    }
    Ok(())
}

/// One JSON value of bounded depth. Depth first: the parser recurses, so it must not see deep input.
fn is_shallow_json(data: &Bytes) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
    for byte in data {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > DATA_DEPTH_MAX {
                    return false;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    std::str::from_utf8(data).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

fn checked_create(create: v1::CreateRoom, caller: &UserId) -> Result<Create, v1::Error> {
    let kind = match v1::RoomKind::try_from(create.kind) {
        Ok(kind @ (v1::RoomKind::Group | v1::RoomKind::Direct | v1::RoomKind::Broadcast)) => kind,
        Ok(v1::RoomKind::Unspecified) | Err(_) => {
            return Err(bad("`kind` is not one of group, direct, broadcast"));
        }
    };
    let mut members = users("members", &create.members)?;
    if kind == v1::RoomKind::Direct {
        if create.room.is_some() || create.name.is_some() || create.public.is_some() {
            return Err(bad("a direct room takes no `room`, `name` or `public`"));
        }
        if create.members.len() != 1 || members.contains(caller) {
            return Err(bad("`members` of a direct room is exactly one other user"));
        }
        return Ok(Create { room: NewRoom::Direct, kind, name: String::new(), public: false, members });
    }
    if let Some(name) = &create.name {
        room_name(name)?;
    }
    let room = match create.room {
        None => NewRoom::Fresh,
        // Both prefixes with their reason; `~` would fail as a character only.
        Some(id) if id.starts_with(DIRECT_PREFIX) || id.starts_with(RESERVED_PREFIX) => {
            return Err(bad(format!(
                "room ids that begin with `{DIRECT_PREFIX}` or `{RESERVED_PREFIX}` are the server's"
            )));
        }
        Some(id) => NewRoom::Own(room(&id)?),
    };
    members.retain(|member| member != caller);
    Ok(Create {
        room,
        kind,
        name: create.name.unwrap_or_default(),
        public: create.public.unwrap_or_default(),
        members,
    })
}

fn room_name(name: &str) -> Result<(), v1::Error> {
    if name.len() > ROOM_NAME_MAX {
        return Err(bad(format!("`name` has {} bytes, {ROOM_NAME_MAX} are allowed", name.len())));
    }
    if name.chars().any(is_hidden) {
        return Err(bad("`name` holds control characters or characters that turn the direction of text"));
    }
    if name.trim().is_empty() {
        return Err(bad("`name` is empty"));
    }
    Ok(())
}

/// Control characters, line breaks, and those that reorder or hide what stands around them. Zero-width joiners stay:
/// scripts and emoji need them.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e001f}')
}

#[cfg(test)]
mod tests {
    use banyan_proto::frame::{Format, parse};

    use super::*;

    fn me() -> UserId {
        UserId::parse("me").unwrap()
    }

    /// As a client would say it: JSON of the command.
    #[track_caller]
    fn checked(json: &str) -> Result<Checked, v1::Error> {
        let frame = format!(r#"{{"id":1,{json}}}"#);
        let (_, command) = parse(Format::Json, frame.as_bytes()).unwrap();
        check(command, &Limits::default(), &me())
    }

    #[track_caller]
    fn refused(json: &str, code: Code, words: &str) {
        match checked(json) {
            Err(error) => {
                assert_eq!(error.code, code.number(), "{json}: {error:?}");
                assert!(error.message.contains(words), "{json}: {error:?}");
            }
            Ok(taken) => panic!("{json} was taken: {taken:?}"),
        }
    }

    #[track_caller]
    fn taken(json: &str) -> Checked {
        checked(json).unwrap_or_else(|error| panic!("{json}: {error:?}"))
    }

    fn room_id(id: &str) -> RoomId {
        RoomId::parse(id).unwrap()
    }

    #[test]
    fn every_rule_has_its_answer() {
        use Code::{BadRequest, MessageTooLarge, Unauthenticated};
        let many = |n: usize, one: &str| vec![one; n].join(",");
        let text = |n: usize| "x".repeat(n);
        let rows: Vec<(String, Code, &str)> = vec![
            (r#""auth":{"token":""}"#.into(), Unauthenticated, "token"),
            (format!(r#""auth":{{"token":"{}"}}"#, text(TOKEN_MAX + 1)), Unauthenticated, "token"),
            (r#""refresh":{"token":""}"#.into(), Unauthenticated, "token"),
            // subscribe
            (format!(r#""subscribe":{{"rooms":[{}]}}"#, many(201, r#"{"room":"r"}"#)), BadRequest, "200"),
            (r#""subscribe":{"rooms":[{"room":"a b"}]}"#.into(), BadRequest, "room may only hold"),
            (r#""subscribe":{"rooms":[{"room":"r","after":1,"last":1}]}"#.into(), BadRequest, "exclude"),
            (r#""subscribe":{"rooms":[{"room":"r","last":101}]}"#.into(), BadRequest, "at most 100"),
            (r#""subscribe":{"rooms":[{"room":"r","after":9007199254740992}]}"#.into(), BadRequest, "2^53"),
            (format!(r#""unsubscribe":{{"rooms":[{}]}}"#, many(201, r#""r""#)), BadRequest, "200"),
            (r#""unsubscribe":{"rooms":[""]}"#.into(), BadRequest, "empty"),
            // send
            (r#""send":{"room":"","client_msg_id":"a","text":"x"}"#.into(), BadRequest, "room is empty"),
            (
                format!(r#""send":{{"room":"{}","client_msg_id":"a","text":"x"}}"#, text(129)),
                BadRequest,
                "longer than 128",
            ),
            (r#""send":{"room":"r","client_msg_id":"","text":"x"}"#.into(), BadRequest, "client_msg_id"),
            (
                format!(r#""send":{{"room":"r","client_msg_id":"{}","text":"x"}}"#, text(65)),
                BadRequest,
                "1 to 64",
            ),
            (r#""send":{"room":"r","client_msg_id":"a"}"#.into(), BadRequest, "nothing to send"),
            (r#""send":{"room":"r","client_msg_id":"a","text":""}"#.into(), BadRequest, "nothing to send"),
            (r#""send":{"room":"r","client_msg_id":"a","data":null}"#.into(), BadRequest, "nothing to send"),
            (
                format!(r#""send":{{"room":"r","client_msg_id":"a","text":"{}"}}"#, text(8193)),
                MessageTooLarge,
                "`text` has 8193",
            ),
            (
                format!(r#""send":{{"room":"r","client_msg_id":"a","data":"{}"}}"#, text(8191)),
                MessageTooLarge,
                "`data` has 8193",
            ),
            (r#""send":{"room":"r","client_msg_id":"a","text":"a\u0000b"}"#.into(), BadRequest, "NUL"),
            (
                format!(
                    r#""send":{{"room":"r","client_msg_id":"a","data":{}1{}}}"#,
                    "[".repeat(65),
                    "]".repeat(65)
                ),
                BadRequest,
                "nested",
            ),
            (
                format!(
                    r#""send":{{"room":"r","client_msg_id":"a","text":"x","mentions":[{}]}}"#,
                    many(51, r#""u""#)
                ),
                BadRequest,
                "50",
            ),
            (
                r#""send":{"room":"r","client_msg_id":"a","text":"x","mentions":["~system"]}"#.into(),
                BadRequest,
                "begin with `~`",
            ),
            (
                r#""send":{"room":"r","client_msg_id":"a","text":"x","mentions":["a b"]}"#.into(),
                BadRequest,
                "user may only hold",
            ),
            (
                r#""send":{"room":"r","client_msg_id":"a","text":"x","since":9007199254740992}"#.into(),
                BadRequest,
                "`since`",
            ),
            (
                r#""send":{"room":"r","client_msg_id":"a","text":"x","reply_to":9007199254740992}"#.into(),
                BadRequest,
                "`reply_to`",
            ),
            (
                r#""send":{"room":"r","client_msg_id":"a","text":"x","content_type":"plain"}"#.into(),
                BadRequest,
                "content_type",
            ),
            (
                r#""send":{"room":"r","client_msg_id":"a","text":"x","content_type":""}"#.into(),
                BadRequest,
                "content_type",
            ),
            (
                r#""send":{"room":"r","client_msg_id":"a","text":"x","content_type":"a/b\n"}"#.into(),
                BadRequest,
                "content_type",
            ),
            (
                format!(
                    r#""send":{{"room":"r","client_msg_id":"a","text":"x","content_type":"a/{}"}}"#,
                    text(127)
                ),
                BadRequest,
                "128",
            ),
            // history, mark, pages
            (r#""history":{"room":"r","before":3,"after":1}"#.into(), BadRequest, "exclude"),
            (r#""history":{"room":"r","limit":0}"#.into(), BadRequest, "1 to 100"),
            (r#""history":{"room":"r","limit":101}"#.into(), BadRequest, "1 to 100"),
            (r#""history":{"room":"r","before":9007199254740992}"#.into(), BadRequest, "`before`"),
            (r#""mark":{"room":"r","seen":9007199254740992}"#.into(), BadRequest, "`seen`"),
            (r#""mark":{"room":"r","delivered":9007199254740992}"#.into(), BadRequest, "`delivered`"),
            (r#""members":{"room":"r","limit":101}"#.into(), BadRequest, "1 to 100"),
            (r#""members":{"room":"r","after":"a b"}"#.into(), BadRequest, "user may only hold"),
            (r#""rooms":{"limit":0}"#.into(), BadRequest, "1 to 100"),
            (r#""rooms":{"after":"~u"}"#.into(), BadRequest, "room may only hold"),
            (r#""find_user":{"username":""}"#.into(), BadRequest, "username"),
            (format!(r#""find_user":{{"username":"{}"}}"#, text(257)), BadRequest, "username"),
            // create_room
            (r#""create_room":{"kind":"group","room":"dm.x"}"#.into(), BadRequest, "begin with `dm.`"),
            (r#""create_room":{"kind":"group","room":"~x"}"#.into(), BadRequest, "begin with `dm.` or `~`"),
            (r#""create_room":{"kind":"group","room":"a/b"}"#.into(), BadRequest, "room may only hold"),
            (r#""create_room":{"kind":"group","name":""}"#.into(), BadRequest, "`name` is empty"),
            (r#""create_room":{"kind":"group","name":" \u3000"}"#.into(), BadRequest, "`name` is empty"),
            (r#""create_room":{"kind":"group","name":"a\nb"}"#.into(), BadRequest, "control"),
            (r#""create_room":{"kind":"group","name":"a\u202eb"}"#.into(), BadRequest, "direction"),
            (
                format!(r#""create_room":{{"kind":"group","name":"{}"}}"#, text(129)),
                BadRequest,
                "128 are allowed",
            ),
            (
                format!(r#""create_room":{{"kind":"group","members":[{}]}}"#, many(101, r#""u""#)),
                BadRequest,
                "100",
            ),
            (r#""create_room":{"kind":"group","members":["~x"]}"#.into(), BadRequest, "begin with `~`"),
            (r#""create_room":{"kind":"direct"}"#.into(), BadRequest, "exactly one other"),
            (r#""create_room":{"kind":"direct","members":["me"]}"#.into(), BadRequest, "exactly one other"),
            (
                r#""create_room":{"kind":"direct","members":["a","b"]}"#.into(),
                BadRequest,
                "exactly one other",
            ),
            (
                r#""create_room":{"kind":"direct","members":["me","a"]}"#.into(),
                BadRequest,
                "exactly one other",
            ),
            (r#""create_room":{"kind":"direct","members":["a"],"room":"r"}"#.into(), BadRequest, "takes no"),
            (r#""create_room":{"kind":"direct","members":["a"],"name":"n"}"#.into(), BadRequest, "takes no"),
            (
                r#""create_room":{"kind":"direct","members":["a"],"public":false}"#.into(),
                BadRequest,
                "takes no",
            ),
            // membership
            (r#""update_room":{"room":"r"}"#.into(), BadRequest, "nothing to change"),
            (r#""update_room":{"room":"r","name":""}"#.into(), BadRequest, "`name` is empty"),
            (r#""add_members":{"room":"r","users":[]}"#.into(), BadRequest, "at least one"),
            (format!(r#""add_members":{{"room":"r","users":[{}]}}"#, many(101, r#""u""#)), BadRequest, "100"),
            (r#""add_members":{"room":"r","users":["é"]}"#.into(), BadRequest, "user may only hold"),
            (r#""remove_member":{"room":"r","user":""}"#.into(), BadRequest, "user is empty"),
            (r#""remove_member":{"room":"r","user":"~system"}"#.into(), BadRequest, "begin with `~`"),
            (r#""set_role":{"room":"r","user":"u","role":"none"}"#.into(), BadRequest, "remove_member"),
            (r#""set_role":{"room":"r","user":"~u","role":"admin"}"#.into(), BadRequest, "begin with `~`"),
            (r#""join":{"room":"a b"}"#.into(), BadRequest, "room may only hold"),
            (r#""leave":{"room":""}"#.into(), BadRequest, "room is empty"),
        ];
        for (json, code, words) in &rows {
            refused(json, *code, words);
        }
    }

    #[test]
    fn numbers_of_protobuf_that_no_enum_has() {
        let refuse = |command| check(command, &Limits::default(), &me()).unwrap_err();
        let create = |kind| Command::CreateRoom(v1::CreateRoom { kind, ..v1::CreateRoom::default() });
        for kind in [0, 9, -1] {
            assert!(refuse(create(kind)).message.contains("`kind`"));
        }
        let set = |role| Command::SetRole(v1::SetRole { room: "r".into(), user: "u".into(), role });
        for role in [0, 9] {
            assert!(refuse(set(role)).message.contains("`role`"));
        }
        let one = v1::SubscribeRoom { room: "r".into(), mode: Some(7), ..v1::SubscribeRoom::default() };
        assert!(refuse(Command::Subscribe(v1::Subscribe { rooms: vec![one] })).message.contains("`mode`"));
    }

    #[test]
    fn data_of_protobuf_is_json_too() {
        let send = |data: &'static [u8]| {
            let send = v1::Send {
                room: "r".into(),
                client_msg_id: "a".into(),
                data: Some(data.into()),
                ..v1::Send::default()
            };
            check(Command::Send(send), &Limits::default(), &me())
        };
        for good in [&b"1"[..], b" {\"a\":[]} ", b"\"[[[[\\\"[[[\"", b"false"] {
            assert!(send(good).is_ok(), "{good:?}");
        }
        for not_json in [&b""[..], b"{", b"1 2", b"\xff", b"\"", b"{a:1}", b"NaN", b"]"] {
            assert!(send(not_json).unwrap_err().message.contains("JSON"), "{not_json:?}");
        }
        assert!(send(b" null ").unwrap_err().message.contains("nothing to send"));
        let deep = [vec![b'['; 64], vec![b']'; 64]].concat();
        assert!(is_shallow_json(&deep.into()));
    }

    #[test]
    fn what_obeys_passes_unchanged() {
        assert_eq!(
            taken(r#""auth":{"token":"t","client":"a\u202e\u0007b"}"#),
            Checked::Auth { token: "t".into(), client: Some("ab".into()) }
        );
        let Checked::Subscribe(rooms) = taken(
            r#""subscribe":{"rooms":[
                {"room":"a"}, {"room":"b","after":7,"log":"00000000000000ff"},
                {"room":"c","last":0,"mode":"passive"}, {"room":"d","after":0,"log":"not a log"}]}"#,
        ) else {
            panic!("not a subscribe")
        };
        let live = v1::Mode::Live;
        let want = [
            ("a", Start::Unread, live),
            ("b", Start::After { seq: Seq(7), log: Some(LogId(255)) }, live),
            ("c", Start::Last(0), v1::Mode::Passive),
            ("d", Start::After { seq: Seq(0), log: Some(LogId(0)) }, live),
        ];
        let want = want.map(|(room, start, mode)| SubscribeTo { room: room_id(room), start, mode });
        assert_eq!(rooms, want);

        let text = "x".repeat(8192);
        let Checked::Room { room, command: RoomCommand::Send(send) } = taken(&format!(
            r#""send":{{"room":"dm.x","client_msg_id":"é","since":3,"text":"{text}","content_type":"text/markdown; charset=utf-8","mentions":["auth0|1"],"data":{{"k": "[["}}}}"#
        )) else {
            panic!("not a send")
        };
        assert_eq!((room, send.text.as_deref()), (room_id("dm.x"), Some(&*text)));
        assert_eq!(send.data.as_deref(), Some(&br#"{"k": "[["}"#[..]));

        assert_eq!(
            taken(r#""history":{"room":"r","after":7}"#),
            Checked::Room {
                room: room_id("r"),
                command: RoomCommand::History { before: None, after: Some(Seq(7)), limit: PAGE_DEFAULT },
            }
        );
        assert_eq!(taken(r#""rooms":{"limit":100}"#), Checked::Rooms { after: None, limit: 100 });
        assert_eq!(taken(r#""ping":{}"#), Checked::Ping);
    }

    #[test]
    fn a_new_room_names_everybody_once_and_not_its_maker() {
        let user = |id| UserId::parse(id).unwrap();
        assert_eq!(
            taken(r#""create_room":{"kind":"group","name":"Fun 🎉","members":["b","me","a","b"]}"#),
            Checked::Create(Create {
                room: NewRoom::Fresh,
                kind: v1::RoomKind::Group,
                name: "Fun 🎉".into(),
                public: false,
                members: vec![user("b"), user("a")],
            })
        );
        let Checked::Create(direct) = taken(r#""create_room":{"kind":"direct","members":["a"]}"#) else {
            panic!("not a create")
        };
        assert_eq!((direct.room, direct.members), (NewRoom::Direct, vec![user("a")]));
        let Checked::Create(own) = taken(r#""create_room":{"kind":"broadcast","room":"news","public":true}"#)
        else {
            panic!("not a create")
        };
        assert_eq!((own.room, own.public, own.name), (NewRoom::Own(room_id("news")), true, String::new()));
    }

    #[test]
    fn users_that_do_not_exist_are_named() {
        let users = [UserId::parse("a").unwrap(), UserId::parse("b").unwrap()];
        let person = |user: &UserId| Some(Person { user: user.clone(), name: "N".into() });
        assert_eq!(resolve(&users, users.iter().map(person).collect()).unwrap().len(), 2);
        let error = resolve(&users, vec![person(&users[0]), None]).unwrap_err();
        assert_eq!(error.code, Code::UnknownUser.number());
        assert!(error.message.contains("`b`"));
    }
}
