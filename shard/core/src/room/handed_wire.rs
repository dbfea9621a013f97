//! [`HandedRoom`] as the bytes that travel to the room's next owner.
//!
//! Always holds: what is read back equals what was written. What was not written by an owner of this release or of one
//! that shares [`VERSION`] is refused, and so is what contradicts itself (a tail that does not end at the head, a chain out
//! of order): the next owner then opens the room in full, which is always right.

use std::sync::Arc;

use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{Bucket, Epoch, LogId, Origin, Part, RoomId, SegmentId, Seq, UnixMs, UserId};
use banyan_proto::node::v1 as wire;
use banyan_proto::wire::{decode_room, encode_room, incarnation, incarnation_bytes};
use banyan_storage::log_store::{SEGMENTS_MAX, SegmentRecord};
use banyan_storage::{Marks, MemberRow, RoomRow};

use super::dedupe::{Entry, Window};
use super::{HandedRoom, State};
use crate::log::Handed;
use crate::members::{Member, Members};
use crate::tail::Tail;

/// Of what is written here. Raised when a reader of the release before would misunderstand it.
const VERSION: u32 = 1;
/// Bytes of one entry of the window: key, seq, at, body.
const ENTRY: usize = 40;
/// Roles are numbered 0 to 4, kinds of rooms 1 to 3.
const ROLE_MAX: u32 = 4;
const KIND_MAX: u32 = 3;

/// Why passed state is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotUsable(String);

impl std::fmt::Display for NotUsable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the passed state of a room is not used: {}", self.0)
    }
}

impl std::error::Error for NotUsable {}

impl From<banyan_proto::wire::Error> for NotUsable {
    fn from(error: banyan_proto::wire::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<banyan_proto::id::Invalid> for NotUsable {
    fn from(error: banyan_proto::id::Invalid) -> Self {
        Self(error.to_string())
    }
}

fn no<T>(words: impl Into<String>) -> Result<T, NotUsable> {
    Err(NotUsable(words.into()))
}

impl HandedRoom {
    pub fn encode(&self) -> banyan_proto::wire::RoomBytes {
        let Handed { chain, head, n, bytes } = &self.log;
        encode_room(&wire::HandedRoom {
            version: VERSION,
            room: self.room.as_str().to_owned(),
            chain: chain.iter().map(segment_to_wire).collect(),
            head: head.0,
            n: *n,
            bytes: *bytes,
            seed: self.seed,
            state: self.state.as_deref().map(state_to_wire),
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, NotUsable> {
        let handed = decode_room(bytes)?;
        if handed.version != VERSION {
            return no(format!("it has version {}, not {VERSION}", handed.version));
        }
        let room = RoomId::parse(&handed.room)?;
        let chain = handed
            .chain
            .into_iter()
            .map(|segment| segment_from_wire(&segment))
            .collect::<Result<Vec<_>, _>>()?;
        if chain.is_empty() || chain.len() > SEGMENTS_MAX {
            return no(format!("it has {} segments", chain.len()));
        }
        let linked = |pair: &[SegmentRecord]| {
            pair[0].id < pair[1].id
                && pair[1].prev == Some(pair[0].id)
                && pair[0].first_seq <= pair[1].first_seq
        };
        let first = chain.first().is_some_and(|first| first.prev.is_none() && first.first_seq > Seq(0));
        if !first || !chain.windows(2).all(linked) {
            return no("its segments are no chain");
        }
        let log = Handed { chain: chain.into(), head: Seq(handed.head), n: handed.n, bytes: handed.bytes };
        if log.chain.last().is_none_or(|last| last.first_seq.0 > log.head.0.saturating_add(1)) {
            return no("its head lies before its newest segment");
        }
        let state = match handed.state {
            Some(state) => Some(Box::new(state_from_wire(state, &room, log.head)?)),
            None => None,
        };
        Ok(Self { room, log, seed: handed.seed, state })
    }
}

fn segment_to_wire(record: &SegmentRecord) -> wire::Segment {
    let SegmentRecord { id, bucket, first_seq, n_before, prev, incarnation, log } = record;
    wire::Segment {
        epoch: id.epoch.0,
        part: id.part.0,
        bucket: bucket.0,
        first_seq: first_seq.0,
        n_before: *n_before,
        prev: prev.map(|prev| wire::SegmentName { epoch: prev.epoch.0, part: prev.part.0 }),
        incarnation: incarnation_bytes(*incarnation),
        log: log.0,
    }
}

fn segment_from_wire(segment: &wire::Segment) -> Result<SegmentRecord, NotUsable> {
    let id = |epoch, part| SegmentId { epoch: Epoch(epoch), part: Part(part) };
    Ok(SegmentRecord {
        id: id(segment.epoch, segment.part),
        bucket: Bucket(segment.bucket),
        first_seq: Seq(segment.first_seq),
        n_before: segment.n_before,
        prev: segment.prev.as_ref().map(|prev| id(prev.epoch, prev.part)),
        incarnation: incarnation(&segment.incarnation)?,
        log: LogId(segment.log),
    })
}

fn state_to_wire(state: &State) -> wire::HandedState {
    let State { row, head, n, at, last_membership, members, tail, window } = state;
    let mut entries = Vec::new();
    for (key, Entry { seq, at, body }) in window.entries() {
        entries.extend_from_slice(&key.to_le_bytes());
        for number in [seq.0, at.0, body] {
            entries.extend_from_slice(&number.to_le_bytes());
        }
    }
    let mut tail: Vec<_> = tail
        .newest()
        .map(|event| wire::Logged { event: event.encoded.clone(), origin: event.origin.0 })
        .collect();
    tail.reverse();
    wire::HandedState {
        row: Some(row_to_wire(row)),
        head: head.0,
        n: *n,
        at: at.0,
        last_membership: last_membership.0,
        members: members.all().map(member_to_wire).collect(),
        tail,
        window_start: window.start().0,
        window_whole: window.is_whole(),
        window: entries.into(),
    }
}

fn state_from_wire(state: wire::HandedState, room: &RoomId, log_head: Seq) -> Result<State, NotUsable> {
    let Some(row) = state.row else { return no("it has no row of its room") };
    let row = row_from_wire(row)?;
    let head = Seq(state.head);
    if row.room != *room || head != log_head {
        return no("its parts are of different rooms or moments");
    }
    let mut members = Members::default();
    for member in state.members {
        members.insert(member_from_wire(member)?);
    }
    let mut tail = Tail::default();
    let mut next = Seq(head.0.saturating_add(1).saturating_sub(state.tail.len() as u64));
    for logged in state.tail {
        let event = LoggedEvent::decode(logged.event, Origin(logged.origin))
            .map_err(|error| NotUsable(error.to_string()))?;
        if event.seq() != next || next == Seq(0) {
            return no("its newest events do not end at its head");
        }
        next = next.next();
        tail.push(Arc::new(event), usize::MAX, usize::MAX);
    }
    let window = window_from_wire(Seq(state.window_start), state.window_whole, &state.window, head)?;
    let (at, last_membership) = (UnixMs(state.at), Seq(state.last_membership));
    Ok(State { row, head, n: state.n, at, last_membership, members, tail, window })
}

fn window_from_wire(start: Seq, whole: bool, bytes: &[u8], head: Seq) -> Result<Window, NotUsable> {
    let mut window = Window::above(start);
    window.set_whole(whole);
    let (entries, []) = bytes.as_chunks::<ENTRY>() else {
        return no("its window is cut off");
    };
    let mut last = start;
    for entry in entries {
        let mut key = [0; 16];
        key.copy_from_slice(&entry[..16]);
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&entry[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let entry = Entry { seq: Seq(number(16)), at: UnixMs(number(24)), body: number(32) };
        if entry.seq <= last || entry.seq > head {
            return no("its window is out of order");
        }
        last = entry.seq;
        window.push(u128::from_le_bytes(key), entry);
    }
    Ok(window)
}

fn row_to_wire(row: &RoomRow) -> wire::RoomRow {
    let RoomRow { room, log, kind, public, lazy, name, created_at, floor, changed } = row;
    wire::RoomRow {
        room: room.as_str().to_owned(),
        log: log.0,
        kind: (*kind).into(),
        public: *public,
        lazy: *lazy,
        name: name.clone(),
        created_at: created_at.0,
        floor: floor.0,
        changed: changed.0,
    }
}

fn row_from_wire(row: wire::RoomRow) -> Result<RoomRow, NotUsable> {
    if row.kind > KIND_MAX {
        return no(format!("kind {} of its room is not known", row.kind));
    }
    Ok(RoomRow {
        room: RoomId::parse(&row.room)?,
        log: LogId(row.log),
        kind: row.kind as u8,
        public: row.public,
        lazy: row.lazy,
        name: row.name,
        created_at: UnixMs(row.created_at),
        floor: Seq(row.floor),
        changed: Seq(row.changed),
    })
}

fn member_to_wire(member: &Member) -> wire::HandedMember {
    let Member { row, marks, unwritten, untold, row_is_stored: _, hearsay: _ } = member;
    let MemberRow { user, name, role, joined_seq, left_seq, out, changed } = row;
    wire::HandedMember {
        user: user.as_str().to_owned(),
        name: name.clone(),
        role: (*role).into(),
        joined_seq: joined_seq.0,
        left_seq: left_seq.map(|seq| seq.0),
        out: out.iter().map(|(left, joined)| wire::Interval { first: left.0, last: joined.0 }).collect(),
        changed: changed.0,
        delivered: marks.delivered.0,
        seen: marks.seen.0,
        seen_n: marks.seen_n,
        unwritten: *unwritten,
        untold: *untold,
    }
}

fn member_from_wire(member: wire::HandedMember) -> Result<Member, NotUsable> {
    if member.role > ROLE_MAX {
        return no(format!("role {} of a member is not known", member.role));
    }
    let row = MemberRow {
        user: UserId::parse(&member.user)?,
        name: member.name,
        role: member.role as u8,
        joined_seq: Seq(member.joined_seq),
        left_seq: member.left_seq.map(Seq),
        out: member.out.iter().map(|out| (Seq(out.first), Seq(out.last))).collect(),
        changed: Seq(member.changed),
    };
    let marks = Marks { delivered: Seq(member.delivered), seen: Seq(member.seen), seen_n: member.seen_n };
    Ok(Member { unwritten: member.unwritten, untold: member.untold, ..Member::new(row, marks) })
}

#[cfg(test)]
mod tests {
    use banyan_proto::id::Incarnation;
    use banyan_proto::v1;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn event(room: &str, seq: u64, text: &str) -> Arc<LoggedEvent> {
        let message = v1::Message { text: text.to_owned(), ..v1::Message::default() };
        let kind = Some(v1::event::Kind::Message(message));
        let event = v1::Event { room: room.to_owned(), seq, kind, ..v1::Event::default() };
        Arc::new(LoggedEvent::new(event, Origin(seq ^ 0xa5a5)))
    }

    prop_compose! {
        fn segments()(steps in vec((1_u64..5, 0_u64..9, any::<u32>(), any::<u128>(), any::<u64>()), 1..6)) -> Vec<SegmentRecord> {
            let (mut epoch, mut first, mut prev) = (0, 1, None);
            steps.into_iter().map(|(more, events, bucket, incarnation, log)| {
                epoch += more;
                first += if prev.is_some() { events } else { 0 };
                let id = SegmentId { epoch: Epoch(epoch), part: Part::of_opening(bucket) };
                SegmentRecord {
                    id,
                    bucket: Bucket(bucket),
                    first_seq: Seq(first),
                    n_before: first - 1,
                    prev: prev.replace(id),
                    incarnation: Incarnation(incarnation),
                    log: LogId(log),
                }
            }).collect()
        }
    }

    prop_compose! {
        fn member()(
            user in "[a-z]{1,12}",
            name in "\\PC{0,12}",
            role in 0_u8..5,
            numbers in any::<[u64; 5]>(),
            left in proptest::option::of(any::<u64>()),
            out in vec((any::<u64>(), any::<u64>()), 0..4),
            flags in any::<(bool, bool)>(),
        ) -> Member {
            let [joined, changed, delivered, seen, seen_n] = numbers;
            let row = MemberRow {
                user: UserId::parse(&user).unwrap(),
                name,
                role,
                joined_seq: Seq(joined),
                left_seq: left.map(Seq),
                out: out.into_iter().map(|(left, joined)| (Seq(left), Seq(joined))).collect(),
                changed: Seq(changed),
            };
            let marks = Marks { delivered: Seq(delivered), seen: Seq(seen), seen_n };
            Member { unwritten: flags.0, untold: flags.1, ..Member::new(row, marks) }
        }
    }

    prop_compose! {
        fn room()(
            chain in segments(),
            above in 0_u64..20,
            room in "[A-Za-z0-9._:-]{1,20}",
            with_state in any::<bool>(),
            members in vec(member(), 0..8),
            texts in vec("\\PC{0,30}", 0..8),
            entries in vec((1_u64..9, any::<u128>(), any::<[u64; 2]>()), 0..8),
            numbers in any::<[u64; 5]>(),
            flags in any::<(bool, bool, bool)>(),
            name in "\\PC{0,12}",
        ) -> HandedRoom {
            let last = chain.last().unwrap().first_seq.0;
            let head = last - 1 + above;
            let [n, bytes, seed, at, log] = numbers;
            let id = RoomId::parse(&room).unwrap();
            let state = with_state.then(|| {
                let mut tail = Tail::default();
                for (at, text) in texts.iter().take(head as usize).enumerate() {
                    let seq = head + 1 + at as u64 - texts.len().min(head as usize) as u64;
                    tail.push(event(&room, seq, text), usize::MAX, usize::MAX);
                }
                let mut window = Window::above(Seq(0));
                window.set_whole(flags.0);
                let mut seq = 0;
                for (step, key, [at, body]) in entries {
                    seq += step;
                    if seq <= head {
                        window.push(key, Entry { seq: Seq(seq), at: UnixMs(at), body });
                    }
                }
                let mut of = Members::default();
                members.into_iter().for_each(|member| of.insert(member));
                Box::new(State {
                    row: RoomRow {
                        room: id.clone(),
                        log: LogId(log),
                        kind: (n % 4) as u8,
                        public: flags.1,
                        lazy: flags.2,
                        name,
                        created_at: UnixMs(at),
                        floor: Seq(head / 2),
                        changed: Seq(head),
                    },
                    head: Seq(head),
                    n,
                    at: UnixMs(at),
                    last_membership: Seq(head / 3),
                    members: of,
                    tail,
                    window,
                })
            });
            HandedRoom { room: id, log: Handed { chain: chain.into(), head: Seq(head), n, bytes }, seed, state }
        }
    }

    /// Whatever is read obeys the rules that it was read by.
    fn sound(bytes: &[u8]) {
        if let Ok(room) = HandedRoom::decode(bytes) {
            assert!(HandedRoom::decode(&room.encode()).is_ok(), "{room:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

        #[test]
        fn what_is_passed_on_comes_back_as_it_was(room in room()) {
            prop_assert_eq!(HandedRoom::decode(&room.encode()), Ok(room));
        }

        #[test]
        fn bytes_that_are_cut_or_changed_never_panic(room in room(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = room.encode().to_vec();
            let at = at.index(bytes.len());
            sound(&bytes[..at]);
            bytes[at] ^= with;
            sound(&bytes);
        }

        #[test]
        fn any_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
            sound(&bytes);
        }
    }

    #[track_caller]
    fn refused(room: &wire::HandedRoom, words: &str) {
        let error = HandedRoom::decode(&encode_room(room)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn what_contradicts_itself_or_is_newer_is_refused() {
        let segment = |epoch, first_seq, prev: Option<u64>| wire::Segment {
            epoch,
            first_seq,
            prev: prev.map(|epoch| wire::SegmentName { epoch, part: 0 }),
            incarnation: incarnation_bytes(Incarnation(7)),
            ..wire::Segment::default()
        };
        let state = wire::HandedState {
            row: Some(wire::RoomRow { room: "r".into(), ..wire::RoomRow::default() }),
            head: 3,
            tail: [2, 3]
                .map(|seq| wire::Logged { event: event("r", seq, "x").encoded.clone(), origin: 1 })
                .to_vec(),
            ..wire::HandedState::default()
        };
        let good = wire::HandedRoom {
            version: VERSION,
            room: "r".into(),
            chain: vec![segment(1, 1, None), segment(2, 3, Some(1))],
            head: 3,
            state: Some(state.clone()),
            ..wire::HandedRoom::default()
        };
        HandedRoom::decode(&encode_room(&good)).unwrap();

        refused(&wire::HandedRoom { version: 2, ..good.clone() }, "version 2");
        refused(&wire::HandedRoom { room: "~".into(), ..good.clone() }, "room may only hold");
        refused(&wire::HandedRoom { chain: Vec::new(), ..good.clone() }, "0 segments");
        refused(&wire::HandedRoom { chain: vec![segment(2, 3, Some(1))], ..good.clone() }, "no chain");
        refused(&wire::HandedRoom { head: 1, ..good.clone() }, "head lies before");
        let with = |change: fn(&mut wire::HandedState)| {
            let mut state = state.clone();
            change(&mut state);
            wire::HandedRoom { state: Some(state), ..good.clone() }
        };
        refused(&with(|state| state.head = 2), "different rooms or moments");
        refused(&with(|state| state.row = None), "no row");
        refused(&with(|state| drop(state.tail.pop())), "do not end at its head");
        refused(&with(|state| state.window = vec![0; 41].into()), "cut off");
        refused(&with(|state| state.window = vec![0; 40].into()), "out of order");
        refused(&with(|state| state.members = vec![wire::HandedMember::default()]), "user is empty");
    }
}
