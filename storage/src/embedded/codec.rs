//! Keys and values of the embedded store, format 1.
//!
//! Two keyspaces. `log` holds the events: `room | seq`. `state` holds everything else, each table under a byte of its own.
//! An id that is followed by something is written with its length before it (one byte; ids have at most 128), numbers are
//! big-endian: so no id is a prefix of another's range, and a range reads in order either way.
//!
//! A log value begins with a layout byte (1: `batch_first`, `n`, `origin`, then the event). One process owns the directory, so a
//! room's log is one chain and its segments need no place in the key; should they be wanted (bucket, epoch, part), they
//! come as layout 2 after those three, and rows of both layouts may stand side by side. The other values are protobuf messages, which
//! take new fields as they are.

use banyan_proto::id::{LogId, Origin, RoomId, Seq, UnixMs, UserId};
use bytes::Bytes;
use prost::Message;

use crate::accounts::{LoginRow, UserRow};
use crate::room_log::{Marks, MemberRow, RoomRow, Row};

/// Tables of the `state` keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Table {
    /// `meta | name`: about the store itself.
    Meta = 1,
    /// `room`
    Rooms = 2,
    /// `room | user`
    Members = 3,
    /// `room | user`
    Marks = 4,
    /// `user | room`, no value: rooms that the user is a member of now.
    UserRooms = 5,
    /// `user`
    Users = 6,
    /// `username`: the user id.
    Usernames = 7,
    /// `skeleton`: the user id.
    Skeletons = 8,
    /// `login`
    Logins = 9,
    /// `user | login`, no value.
    UserLogins = 10,
    /// `expires_at | login`, no value.
    LoginExpiry = 11,
}

/// What was read is not what we wrote; the text says which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

const ROW_LAYOUT: u8 = 1;
const ROW_HEADER: usize = 1 + 3 * 8;

fn push_id(key: &mut Vec<u8>, id: &str) {
    let length = u8::try_from(id.len()).unwrap_or(u8::MAX); // ids are checked: at most 128 bytes
    key.push(length);
    key.extend_from_slice(id.as_bytes());
}

pub(super) fn log_prefix(room: &RoomId) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + room.as_str().len() + 8);
    push_id(&mut key, room.as_str());
    key
}

pub(super) fn log_key(room: &RoomId, seq: Seq) -> Vec<u8> {
    let mut key = log_prefix(room);
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

pub(super) fn log_value(row: &Row) -> Vec<u8> {
    let mut value = Vec::with_capacity(ROW_HEADER + row.event.len());
    value.push(ROW_LAYOUT);
    value.extend_from_slice(&row.batch_first.0.to_be_bytes());
    value.extend_from_slice(&row.n.to_be_bytes());
    value.extend_from_slice(&row.origin.0.to_be_bytes());
    value.extend_from_slice(&row.event);
    value
}

pub(super) fn decode_row(key: &[u8], value: &[u8]) -> Result<Row, Malformed> {
    let bad = Malformed("log");
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).map_err(|_| bad);
    let seq = key.len().checked_sub(8).map(|at| &key[at..]).ok_or(bad)?;
    if value.len() < ROW_HEADER || value[0] != ROW_LAYOUT {
        return Err(bad);
    }
    Ok(Row {
        seq: Seq(number(seq)?),
        batch_first: Seq(number(&value[1..9])?),
        n: number(&value[9..17])?,
        origin: Origin(number(&value[17..25])?),
        event: Bytes::copy_from_slice(&value[ROW_HEADER..]),
        derived: None,
    })
}

/// A key of one part.
pub(super) fn key(table: Table, last: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + last.len());
    key.push(table as u8);
    key.extend_from_slice(last.as_bytes());
    key
}

/// Everything of a table under one id.
pub(super) fn prefix(table: Table, id: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + id.len() + 64);
    key.push(table as u8);
    push_id(&mut key, id);
    key
}

/// A key of two parts.
pub(super) fn key2(table: Table, id: &str, last: &str) -> Vec<u8> {
    let mut key = prefix(table, id);
    key.extend_from_slice(last.as_bytes());
    key
}

pub(super) fn expiry_key(expires_at: UnixMs, login: &str) -> Vec<u8> {
    let mut key = vec![Table::LoginExpiry as u8];
    key.extend_from_slice(&expires_at.0.to_be_bytes());
    key.extend_from_slice(login.as_bytes());
    key
}

pub(super) fn decode_expiry(key: &[u8]) -> Result<(UnixMs, &str), Malformed> {
    let bad = Malformed("login_expiry");
    let at = key.get(1..9).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes).ok_or(bad)?;
    let login = std::str::from_utf8(&key[9..]).map_err(|_| bad)?;
    Ok((UnixMs(at), login))
}

/// The last part of a two-part key.
pub(super) fn last_part<'a>(key: &'a [u8], prefix: &[u8], what: &'static str) -> Result<&'a str, Malformed> {
    key.strip_prefix(prefix).and_then(|rest| std::str::from_utf8(rest).ok()).ok_or(Malformed(what))
}

#[derive(Clone, PartialEq, Message)]
struct StoredRoom {
    #[prost(fixed64, tag = "1")]
    log: u64,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(bool, tag = "3")]
    public: bool,
    #[prost(bool, tag = "4")]
    lazy: bool,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(uint64, tag = "6")]
    created_at: u64,
    #[prost(uint64, tag = "7")]
    counted_members: u64,
    #[prost(uint64, tag = "8")]
    floor: u64,
    #[prost(uint64, tag = "9")]
    changed: u64,
}

pub(super) fn encode_room(row: &RoomRow) -> Vec<u8> {
    StoredRoom {
        log: row.log.0,
        kind: u32::from(row.kind),
        public: row.public,
        lazy: row.lazy,
        name: row.name.clone(),
        created_at: row.created_at.0,
        counted_members: row.counted_members,
        floor: row.floor.0,
        changed: row.changed.0,
    }
    .encode_to_vec()
}

pub(super) fn decode_room(room: RoomId, value: &[u8]) -> Result<RoomRow, Malformed> {
    let bad = Malformed("rooms");
    let row = StoredRoom::decode(value).map_err(|_| bad)?;
    Ok(RoomRow {
        room,
        log: LogId(row.log),
        kind: u8::try_from(row.kind).map_err(|_| bad)?,
        public: row.public,
        lazy: row.lazy,
        name: row.name,
        created_at: UnixMs(row.created_at),
        counted_members: row.counted_members,
        floor: Seq(row.floor),
        changed: Seq(row.changed),
    })
}

#[derive(Clone, PartialEq, Message)]
struct StoredMember {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    role: u32,
    #[prost(uint64, tag = "3")]
    joined_seq: u64,
    #[prost(uint64, optional, tag = "4")]
    left_seq: Option<u64>,
    /// Pairs, flat.
    #[prost(uint64, repeated, tag = "5")]
    out: Vec<u64>,
    #[prost(uint64, tag = "6")]
    changed: u64,
}

pub(super) fn encode_member(row: &MemberRow) -> Vec<u8> {
    StoredMember {
        name: row.name.clone(),
        role: u32::from(row.role),
        joined_seq: row.joined_seq.0,
        left_seq: row.left_seq.map(|seq| seq.0),
        out: row.out.iter().flat_map(|(from, to)| [from.0, to.0]).collect(),
        changed: row.changed.0,
    }
    .encode_to_vec()
}

pub(super) fn decode_member(user: UserId, value: &[u8]) -> Result<MemberRow, Malformed> {
    let bad = Malformed("members");
    let row = StoredMember::decode(value).map_err(|_| bad)?;
    if row.out.len() % 2 != 0 {
        return Err(bad);
    }
    Ok(MemberRow {
        user,
        name: row.name,
        role: u8::try_from(row.role).map_err(|_| bad)?,
        joined_seq: Seq(row.joined_seq),
        left_seq: row.left_seq.map(Seq),
        out: row.out.chunks_exact(2).map(|pair| (Seq(pair[0]), Seq(pair[1]))).collect(),
        changed: Seq(row.changed),
    })
}

#[derive(Clone, Copy, PartialEq, Message)]
struct StoredMarks {
    #[prost(uint64, tag = "1")]
    delivered: u64,
    #[prost(uint64, tag = "2")]
    seen: u64,
    #[prost(uint64, tag = "3")]
    seen_n: u64,
}

pub(super) fn encode_marks(marks: Marks) -> Vec<u8> {
    StoredMarks { delivered: marks.delivered.0, seen: marks.seen.0, seen_n: marks.seen_n }.encode_to_vec()
}

pub(super) fn decode_marks(value: &[u8]) -> Result<Marks, Malformed> {
    let row = StoredMarks::decode(value).map_err(|_| Malformed("marks"))?;
    Ok(Marks { delivered: Seq(row.delivered), seen: Seq(row.seen), seen_n: row.seen_n })
}

#[derive(Clone, PartialEq, Message)]
struct StoredUser {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, optional, tag = "2")]
    username: Option<String>,
    #[prost(string, optional, tag = "3")]
    skeleton: Option<String>,
    #[prost(string, optional, tag = "4")]
    password_hash: Option<String>,
    #[prost(bool, tag = "5")]
    disabled: bool,
    #[prost(uint64, tag = "6")]
    created_at: u64,
    #[prost(uint64, tag = "7")]
    tokens_not_before: u64,
}

pub(super) fn encode_user(row: &UserRow) -> Vec<u8> {
    StoredUser {
        name: row.name.clone(),
        username: row.username.clone(),
        skeleton: row.skeleton.clone(),
        password_hash: row.password_hash.clone(),
        disabled: row.disabled,
        created_at: row.created_at.0,
        tokens_not_before: row.tokens_not_before.0,
    }
    .encode_to_vec()
}

pub(super) fn decode_user(user: UserId, value: &[u8]) -> Result<UserRow, Malformed> {
    let row = StoredUser::decode(value).map_err(|_| Malformed("users"))?;
    Ok(UserRow {
        user,
        name: row.name,
        username: row.username,
        skeleton: row.skeleton,
        password_hash: row.password_hash,
        disabled: row.disabled,
        created_at: UnixMs(row.created_at),
        tokens_not_before: UnixMs(row.tokens_not_before),
    })
}

#[derive(Clone, PartialEq, Message)]
struct StoredLogin {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(uint64, tag = "2")]
    created_at: u64,
    #[prost(uint64, tag = "3")]
    expires_at: u64,
}

pub(super) fn encode_login(row: &LoginRow) -> Vec<u8> {
    StoredLogin {
        user: row.user.as_str().to_owned(),
        created_at: row.created_at.0,
        expires_at: row.expires_at.0,
    }
    .encode_to_vec()
}

pub(super) fn decode_login(login: &str, value: &[u8]) -> Result<LoginRow, Malformed> {
    let bad = Malformed("logins");
    let row = StoredLogin::decode(value).map_err(|_| bad)?;
    Ok(LoginRow {
        login: login.to_owned(),
        user: UserId::parse(&row.user).map_err(|_| bad)?,
        created_at: UnixMs(row.created_at),
        expires_at: UnixMs(row.expires_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_reads_anothers_log() {
        let a = RoomId::parse("a").unwrap();
        let ab = RoomId::parse("ab").unwrap();
        assert!(!log_key(&ab, Seq(1)).starts_with(&log_prefix(&a)));
        assert!(log_key(&a, Seq(1)).starts_with(&log_prefix(&a)));
    }

    #[test]
    fn log_keys_sort_by_seq() {
        let room = RoomId::parse("r").unwrap();
        let mut keys: Vec<_> = [1, 255, 256, 65_536, u64::MAX].map(|s| log_key(&room, Seq(s))).into();
        let sorted = keys.clone();
        keys.reverse();
        keys.sort();
        assert_eq!(keys, sorted);
    }

    proptest::proptest! {
        /// Keys sort as (room by length and name, seq) whatever the names; a user's rooms sort by name.
        #[test]
        fn keys_sort_as_what_they_name(a in "[a-z.]{1,6}", b in "[a-z.]{1,6}", x: u64, y: u64) {
            let (room_a, room_b) = (RoomId::parse(&a).unwrap(), RoomId::parse(&b).unwrap());
            let want = (a.len(), &a, x).cmp(&(b.len(), &b, y));
            proptest::prop_assert_eq!(log_key(&room_a, Seq(x)).cmp(&log_key(&room_b, Seq(y))), want);
            let of_user = |room: &str| key2(Table::UserRooms, "user", room);
            proptest::prop_assert_eq!(of_user(&a).cmp(&of_user(&b)), a.cmp(&b));
        }

        /// Foreign bytes are refused, or are a row that would be written so again.
        #[test]
        fn decoders_take_what_encoders_give(mut bytes: Vec<u8>, layout in 0..3_u8) {
            bytes.insert(0, layout);
            if let Ok(row) = decode_row(&[0; 8], &bytes) {
                proptest::prop_assert_eq!(log_value(&row), bytes.clone());
            }
            if let Ok(marks) = decode_marks(&bytes) {
                proptest::prop_assert_eq!(decode_marks(&encode_marks(marks)), Ok(marks));
            }
            let user = UserId::parse("u").unwrap();
            if let Ok(row) = decode_member(user.clone(), &bytes) {
                proptest::prop_assert_eq!(decode_member(user.clone(), &encode_member(&row)), Ok(row));
            }
            if let Ok(row) = decode_user(user.clone(), &bytes) {
                proptest::prop_assert_eq!(decode_user(user, &encode_user(&row)), Ok(row));
            }
            if let Ok(row) = decode_room(RoomId::parse("r").unwrap(), &bytes) {
                proptest::prop_assert_eq!(decode_room(row.room.clone(), &encode_room(&row)), Ok(row));
            }
            if let Ok(row) = decode_login("l", &bytes) {
                proptest::prop_assert_eq!(decode_login("l", &encode_login(&row)), Ok(row));
            }
            if let Ok((at, login)) = decode_expiry(&bytes) {
                proptest::prop_assert_eq!(&expiry_key(at, login)[1..], &bytes[1..]);
            }
        }
    }

    #[test]
    fn rows_come_back() {
        let room = RoomId::parse("r").unwrap();
        let row = Row {
            seq: Seq(7),
            batch_first: Seq(5),
            n: 6,
            origin: Origin(u64::MAX),
            event: Bytes::from_static(b"hello"),
            derived: None,
        };
        assert_eq!(decode_row(&log_key(&room, row.seq), &log_value(&row)), Ok(row.clone()));
        let empty = Row { event: Bytes::new(), ..row };
        assert_eq!(decode_row(&log_key(&room, empty.seq), &log_value(&empty)), Ok(empty));
    }

    #[test]
    fn foreign_bytes_are_refused_not_panicked_on() {
        for value in [&[][..], &[0], &[ROW_LAYOUT], &[2; 40], &[0xff; 24]] {
            assert_eq!(
                decode_row(&[1, b'r', 0, 0, 0, 0, 0, 0, 0, 1], value),
                Err(Malformed("log")),
                "{value:?}"
            );
        }
        assert_eq!(decode_row(&[1, 2], &[ROW_LAYOUT; 40]), Err(Malformed("log")));
        assert!(decode_member(UserId::parse("u").unwrap(), &[0xff; 9]).is_err());
        assert!(decode_marks(&[0xff]).is_err());
        assert!(decode_expiry(&[11, 0]).is_err());
    }

    #[test]
    fn members_come_back() {
        let row = MemberRow {
            user: UserId::parse("u").unwrap(),
            name: "Ü".to_owned(),
            role: 3,
            joined_seq: Seq(2),
            left_seq: Some(Seq(0)),
            out: vec![(Seq(1), Seq(9)), (Seq(20), Seq(21))],
            changed: Seq(21),
        };
        assert_eq!(decode_member(row.user.clone(), &encode_member(&row)), Ok(row));
    }
}
