//! Keys and values of the embedded store, format 2.
//!
//! Two keyspaces. `log` holds the events: `room | bucket | epoch | part | seq`. `state` holds everything else, each table under a
//! byte of its own.
//! An id that is followed by something is written with its length before it (one byte; ids have at most 128), numbers are
//! big-endian: so no id is a prefix of another's range, and a range reads in order either way.
//!
//! A log value begins with a layout byte. 1: `batch_first`, `n`, `origin`, then the event. 2: the same three, then the length (four bytes)
//! of what the batch changes beside the log and that, then the event. Rows of both layouts stand side by side. The other values
//! are protobuf messages, which take new fields as they are.
//!
//! Format 1 had no segments; it was never released.

use std::sync::Arc;

use banyan_proto::id::{
    Bucket, Epoch, Incarnation, LogId, Origin, Part, RoomId, SegmentId, Seq, SlotId, UnixMs, UserId,
};
use bytes::Bytes;
use prost::Message;

use crate::accounts::{LoginRow, UserRow};
use crate::log_store::{Said, SegmentRecord, SlotOwner};
use crate::row::{Derived, Marks, MemberRow, RoomRow, Row};

/// Tables of the `state` keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Table {
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
    /// `room | epoch | part`
    Segments = 12,
    /// `room`
    Said = 13,
    /// `incarnation`, no value.
    Fences = 14,
    /// `incarnation`: the name of its node.
    Incarnations = 15,
    /// `slot | epoch | incarnation`: one byte, 1 if closed.
    SlotOwners = 16,
}

/// What was read is not what we wrote; the text says which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

const ROW_LAYOUT: u8 = 1;
const ROW_LAYOUT_DERIVED: u8 = 2;
const ROW_HEADER: usize = 1 + 3 * 8;

fn push_id(key: &mut Vec<u8>, id: &str) {
    let length = u8::try_from(id.len()).unwrap_or(u8::MAX); // ids are checked: at most 128 bytes
    key.push(length);
    key.extend_from_slice(id.as_bytes());
}

pub(super) fn row_key(room: &RoomId, bucket: Bucket, segment: SegmentId, seq: Seq) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + room.as_str().len() + 4 + 3 * 8);
    put_row_key(&mut key, room, bucket, segment, seq);
    key
}

/// As [`row_key`], behind what is in `key`.
pub(super) fn put_row_key(key: &mut Vec<u8>, room: &RoomId, bucket: Bucket, segment: SegmentId, seq: Seq) {
    push_id(key, room.as_str());
    key.extend_from_slice(&bucket.0.to_be_bytes());
    push_segment(key, segment);
    key.extend_from_slice(&seq.0.to_be_bytes());
}

fn push_segment(key: &mut Vec<u8>, segment: SegmentId) {
    key.extend_from_slice(&segment.epoch.0.to_be_bytes());
    key.extend_from_slice(&segment.part.0.to_be_bytes());
}

/// Behind what is in `value`.
pub(super) fn put_log_value(value: &mut Vec<u8>, row: &Row) {
    let derived = row.derived.as_deref().map(encode_derived);
    value.push(if derived.is_none() { ROW_LAYOUT } else { ROW_LAYOUT_DERIVED });
    value.extend_from_slice(&row.batch_first.0.to_be_bytes());
    value.extend_from_slice(&row.n.to_be_bytes());
    value.extend_from_slice(&row.origin.0.to_be_bytes());
    if let Some(derived) = derived {
        // A batch is bounded far below 4 GiB.
        value.extend_from_slice(&u32::try_from(derived.len()).unwrap_or(u32::MAX).to_be_bytes());
        value.extend_from_slice(&derived);
    }
    value.extend_from_slice(&row.event);
}

pub(super) fn decode_row(room: &RoomId, key: &[u8], value: &[u8]) -> Result<Row, Malformed> {
    let bad = Malformed("log");
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).map_err(|_| bad);
    let seq = key.len().checked_sub(8).map(|at| &key[at..]).ok_or(bad)?;
    let (header, rest) = value.split_at_checked(ROW_HEADER).ok_or(bad)?;
    let (derived, event) = match header[0] {
        ROW_LAYOUT => (None, rest),
        ROW_LAYOUT_DERIVED => {
            let (len, rest) = rest.split_first_chunk::<4>().ok_or(bad)?;
            let len = usize::try_from(u32::from_be_bytes(*len)).map_err(|_| bad)?;
            let (derived, event) = rest.split_at_checked(len).ok_or(bad)?;
            (Some(Arc::new(decode_derived(room, derived)?)), event)
        }
        _ => return Err(bad),
    };
    Ok(Row {
        seq: Seq(number(seq)?),
        batch_first: Seq(number(&header[1..9])?),
        n: number(&header[9..17])?,
        origin: Origin(number(&header[17..25])?),
        event: Bytes::copy_from_slice(event),
        derived,
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

pub(super) fn record_key(room: &RoomId, segment: SegmentId) -> Vec<u8> {
    let mut key = prefix(Table::Segments, room.as_str());
    push_segment(&mut key, segment);
    key
}

pub(super) fn incarnation_key(table: Table, incarnation: Incarnation) -> Vec<u8> {
    let mut key = vec![table as u8];
    key.extend_from_slice(&incarnation.0.to_be_bytes());
    key
}

pub(super) fn decode_incarnation(key: &[u8]) -> Result<Incarnation, Malformed> {
    let number = key.get(1..).and_then(|bytes| bytes.try_into().ok()).map(u128::from_be_bytes);
    number.map(Incarnation).ok_or(Malformed("incarnations"))
}

/// Everybody who has owned the slot.
pub(super) fn slot_prefix(slot: SlotId) -> Vec<u8> {
    let mut key = vec![Table::SlotOwners as u8];
    key.extend_from_slice(&slot.0.to_be_bytes());
    key
}

pub(super) fn slot_owner_key(slot: SlotId, epoch: Epoch, incarnation: Incarnation) -> Vec<u8> {
    let mut key = slot_prefix(slot);
    key.extend_from_slice(&epoch.0.to_be_bytes());
    key.extend_from_slice(&incarnation.0.to_be_bytes());
    key
}

pub(super) fn decode_slot_owner(key: &[u8], value: &[u8]) -> Result<SlotOwner, Malformed> {
    let bad = Malformed("slot_owners");
    let (epoch, incarnation) = key.get(3..).and_then(<[u8]>::split_first_chunk::<8>).ok_or(bad)?;
    Ok(SlotOwner {
        epoch: Epoch(u64::from_be_bytes(*epoch)),
        incarnation: Incarnation(incarnation.try_into().map(u128::from_be_bytes).map_err(|_| bad)?),
        closed: decode_closed(value)?,
    })
}

pub(super) fn decode_closed(value: &[u8]) -> Result<bool, Malformed> {
    match value {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Malformed("slot_owners")),
    }
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
    // Tag 7 is not to be used again: it was a count of members, which is counted from their own rows.
    #[prost(uint64, tag = "8")]
    floor: u64,
    #[prost(uint64, tag = "9")]
    changed: u64,
}

impl From<&RoomRow> for StoredRoom {
    fn from(row: &RoomRow) -> Self {
        Self {
            log: row.log.0,
            kind: u32::from(row.kind),
            public: row.public,
            lazy: row.lazy,
            name: row.name.clone(),
            created_at: row.created_at.0,
            floor: row.floor.0,
            changed: row.changed.0,
        }
    }
}

impl StoredRoom {
    fn of(self, room: RoomId) -> Result<RoomRow, Malformed> {
        Ok(RoomRow {
            room,
            log: LogId(self.log),
            kind: u8::try_from(self.kind).map_err(|_| Malformed("rooms"))?,
            public: self.public,
            lazy: self.lazy,
            name: self.name,
            created_at: UnixMs(self.created_at),
            floor: Seq(self.floor),
            changed: Seq(self.changed),
        })
    }
}

pub(super) fn encode_room(row: &RoomRow) -> Vec<u8> {
    StoredRoom::from(row).encode_to_vec()
}

pub(super) fn decode_room(room: RoomId, value: &[u8]) -> Result<RoomRow, Malformed> {
    StoredRoom::decode(value).map_err(|_| Malformed("rooms"))?.of(room)
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

impl From<&MemberRow> for StoredMember {
    fn from(row: &MemberRow) -> Self {
        Self {
            name: row.name.clone(),
            role: u32::from(row.role),
            joined_seq: row.joined_seq.0,
            left_seq: row.left_seq.map(|seq| seq.0),
            out: row.out.iter().flat_map(|(from, to)| [from.0, to.0]).collect(),
            changed: row.changed.0,
        }
    }
}

impl StoredMember {
    fn of(self, user: UserId) -> Result<MemberRow, Malformed> {
        let bad = Malformed("members");
        if !self.out.len().is_multiple_of(2) {
            return Err(bad);
        }
        Ok(MemberRow {
            user,
            name: self.name,
            role: u8::try_from(self.role).map_err(|_| bad)?,
            joined_seq: Seq(self.joined_seq),
            left_seq: self.left_seq.map(Seq),
            out: self.out.chunks_exact(2).map(|pair| (Seq(pair[0]), Seq(pair[1]))).collect(),
            changed: Seq(self.changed),
        })
    }
}

pub(super) fn encode_member(row: &MemberRow) -> Vec<u8> {
    StoredMember::from(row).encode_to_vec()
}

pub(super) fn decode_member(user: UserId, value: &[u8]) -> Result<MemberRow, Malformed> {
    StoredMember::decode(value).map_err(|_| Malformed("members"))?.of(user)
}

/// What a batch changes beside the log, as its last row carries it.
#[derive(Clone, PartialEq, Message)]
struct StoredDerived {
    #[prost(message, optional, tag = "1")]
    room: Option<StoredRoom>,
    #[prost(message, repeated, tag = "2")]
    members: Vec<StoredDerivedMember>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredDerivedMember {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(message, optional, tag = "2")]
    row: Option<StoredMember>,
}

pub(crate) fn encode_derived(derived: &Derived) -> Vec<u8> {
    let member =
        |row: &MemberRow| StoredDerivedMember { user: row.user.as_str().to_owned(), row: Some(row.into()) };
    StoredDerived {
        room: derived.room.as_ref().map(Into::into),
        members: derived.members.iter().map(member).collect(),
    }
    .encode_to_vec()
}

pub(crate) fn decode_derived(room: &RoomId, value: &[u8]) -> Result<Derived, Malformed> {
    let bad = Malformed("log");
    let stored = StoredDerived::decode(value).map_err(|_| bad)?;
    let member = |stored: StoredDerivedMember| {
        stored.row.unwrap_or_default().of(UserId::parse(&stored.user).map_err(|_| bad)?)
    };
    Ok(Derived {
        room: stored.room.map(|row| row.of(room.clone())).transpose()?,
        members: stored.members.into_iter().map(member).collect::<Result<_, _>>()?,
    })
}

#[derive(Clone, PartialEq, Message)]
struct StoredSegment {
    #[prost(uint32, tag = "1")]
    bucket: u32,
    #[prost(uint64, tag = "2")]
    first_seq: u64,
    #[prost(uint64, tag = "3")]
    n_before: u64,
    /// Neither or both.
    #[prost(uint64, optional, tag = "4")]
    prev_epoch: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    prev_part: Option<u64>,
    /// 16 bytes, big-endian.
    #[prost(bytes = "vec", tag = "6")]
    incarnation: Vec<u8>,
    #[prost(fixed64, tag = "7")]
    log: u64,
}

pub(super) fn encode_record(record: &SegmentRecord) -> Vec<u8> {
    StoredSegment {
        bucket: record.bucket.0,
        first_seq: record.first_seq.0,
        n_before: record.n_before,
        prev_epoch: record.prev.map(|prev| prev.epoch.0),
        prev_part: record.prev.map(|prev| prev.part.0),
        incarnation: record.incarnation.0.to_be_bytes().to_vec(),
        log: record.log.0,
    }
    .encode_to_vec()
}

/// The key is that of [`record_key`].
pub(super) fn decode_record(key: &[u8], value: &[u8]) -> Result<SegmentRecord, Malformed> {
    let bad = Malformed("segments");
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).map_err(|_| bad);
    let id = key.len().checked_sub(16).map(|at| &key[at..]).ok_or(bad)?;
    let row = StoredSegment::decode(value).map_err(|_| bad)?;
    let prev = match (row.prev_epoch, row.prev_part) {
        (Some(epoch), Some(part)) => Some(SegmentId { epoch: Epoch(epoch), part: Part(part) }),
        (None, None) => None,
        _ => return Err(bad),
    };
    Ok(SegmentRecord {
        id: SegmentId { epoch: Epoch(number(&id[..8])?), part: Part(number(&id[8..])?) },
        bucket: Bucket(row.bucket),
        first_seq: Seq(row.first_seq),
        n_before: row.n_before,
        prev,
        incarnation: row
            .incarnation
            .try_into()
            .map(|bytes| Incarnation(u128::from_be_bytes(bytes)))
            .map_err(|_| bad)?,
        log: LogId(row.log),
    })
}

#[derive(Clone, Copy, PartialEq, Message)]
struct StoredSaid {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(uint64, tag = "2")]
    part: u64,
    #[prost(uint64, tag = "3")]
    head: u64,
    #[prost(uint64, tag = "4")]
    n: u64,
}

pub(super) fn encode_said(said: Said) -> Vec<u8> {
    let Said { segment, head, n } = said;
    StoredSaid { epoch: segment.epoch.0, part: segment.part.0, head: head.0, n }.encode_to_vec()
}

pub(super) fn decode_said(value: &[u8]) -> Result<Said, Malformed> {
    let row = StoredSaid::decode(value).map_err(|_| Malformed("said"))?;
    let segment = SegmentId { epoch: Epoch(row.epoch), part: Part(row.part) };
    Ok(Said { segment, head: Seq(row.head), n: row.n })
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

    fn log_key(room: &RoomId, seq: Seq) -> Vec<u8> {
        row_key(room, Bucket(3), SegmentId { epoch: Epoch(4), part: Part(5) }, seq)
    }

    fn log_value(row: &Row) -> Vec<u8> {
        let mut value = Vec::new();
        put_log_value(&mut value, row);
        value
    }

    proptest::proptest! {
        /// A user's rooms sort by name.
        #[test]
        fn user_rooms_sort_by_name(a in "[a-z.]{1,6}", b in "[a-z.]{1,6}") {
            let of_user = |room: &str| key2(Table::UserRooms, "user", room);
            proptest::prop_assert_eq!(of_user(&a).cmp(&of_user(&b)), a.cmp(&b));
        }

        /// Rows sort as (room by length and name, bucket, epoch, part, seq), records as their segments.
        #[test]
        fn segments_sort_as_what_they_name(
            a in "[a-z.]{1,3}", b in "[a-z.]{1,3}",
            x: (u32, u64, u64, u64), y: (u32, u64, u64, u64), same in 0..5_usize,
        ) {
            // Random numbers differ at once; some of their beginnings are the same.
            let y = (
                if same > 0 { x.0 } else { y.0 }, if same > 1 { x.1 } else { y.1 },
                if same > 2 { x.2 } else { y.2 }, if same > 3 { x.3 } else { y.3 },
            );
            let b = if same > 0 { a.clone() } else { b };
            let (room_a, room_b) = (RoomId::parse(&a).unwrap(), RoomId::parse(&b).unwrap());
            let segment = |of: (u32, u64, u64, u64)| SegmentId { epoch: Epoch(of.1), part: Part(of.2) };
            let key = |room: &RoomId, of: (u32, u64, u64, u64)| {
                row_key(room, Bucket(of.0), segment(of), Seq(of.3))
            };
            let want = (a.len(), &a, x).cmp(&(b.len(), &b, y));
            proptest::prop_assert_eq!(key(&room_a, x).cmp(&key(&room_b, y)), want);
            let want = (a.len(), &a, segment(x)).cmp(&(b.len(), &b, segment(y)));
            proptest::prop_assert_eq!(record_key(&room_a, segment(x)).cmp(&record_key(&room_b, segment(y))), want);
        }

        /// Foreign bytes are refused, or are a row that would be written so again.
        #[test]
        fn decoders_take_what_encoders_give(mut bytes: Vec<u8>, layout in 0..3_u8) {
            bytes.insert(0, layout);
            let room = RoomId::parse("r").unwrap();
            if let Ok(row) = decode_row(&room, &[0; 8], &bytes) {
                if row.derived.is_none() {
                    proptest::prop_assert_eq!(log_value(&row), bytes.clone());
                }
                proptest::prop_assert_eq!(decode_row(&room, &[0; 8], &log_value(&row)), Ok(row));
            }
            if let Ok(record) = decode_record(&[7; 20], &bytes) {
                proptest::prop_assert_eq!(decode_record(&[7; 20], &encode_record(&record)), Ok(record));
            }
            if let Ok(said) = decode_said(&bytes) {
                proptest::prop_assert_eq!(decode_said(&encode_said(said)), Ok(said));
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
        let back = |row: &Row| decode_row(&room, &log_key(&room, row.seq), &log_value(row));
        assert_eq!(back(&row), Ok(row.clone()));
        let empty = Row { event: Bytes::new(), ..row };
        assert_eq!(back(&empty), Ok(empty.clone()));
        // Layout 1 is what rows without anything beside the log have.
        assert_eq!(log_value(&empty)[0], ROW_LAYOUT);
        let nothing = Row { derived: Some(Arc::default()), ..empty };
        assert_eq!((back(&nothing), log_value(&nothing)[0]), (Ok(nothing.clone()), ROW_LAYOUT_DERIVED));
    }

    #[test]
    fn foreign_bytes_are_refused_not_panicked_on() {
        let room = RoomId::parse("r").unwrap();
        for value in [&[][..], &[0], &[ROW_LAYOUT], &[2; 40], &[2; 27], &[3; 40], &[0xff; 24]] {
            assert_eq!(
                decode_row(&room, &[1, b'r', 0, 0, 0, 0, 0, 0, 0, 1], value),
                Err(Malformed("log")),
                "{value:?}"
            );
        }
        assert_eq!(decode_row(&room, &[1, 2], &[ROW_LAYOUT; 40]), Err(Malformed("log")));
        assert!(decode_record(&[1; 15], &[]).is_err());
        assert!(decode_record(&[1; 16], &[]).is_err(), "no incarnation");
        assert!(decode_slot_owner(&[16, 0, 1], &[0]).is_err());
        assert!(decode_slot_owner(&slot_owner_key(SlotId(1), Epoch(2), Incarnation(3)), &[2]).is_err());
        assert!(decode_incarnation(&[14, 0]).is_err());
        assert!(decode_member(UserId::parse("u").unwrap(), &[0xff; 9]).is_err());
        assert!(decode_marks(&[0xff]).is_err());
        assert!(decode_expiry(&[11, 0]).is_err());
    }

    #[test]
    fn a_room_that_still_has_a_count_of_members_comes_back() {
        let room = RoomId::parse("r").unwrap();
        let row = RoomRow {
            room: room.clone(),
            log: LogId(7),
            kind: 1,
            public: true,
            lazy: false,
            name: "n".to_owned(),
            created_at: UnixMs(3),
            floor: Seq(4),
            changed: Seq(5),
        };
        // Tag 7, a varint.
        let bytes = [encode_room(&row), vec![7 << 3, 77]].concat();
        assert_eq!(decode_room(room, &bytes), Ok(row));
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
