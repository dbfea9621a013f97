//! Messages between nodes: every kind comes back as it went out, recordings of each wire version are still read as what
//! they were, and whatever else comes is refused with words and in bounded memory.
//!
//! `proto/vectors/node/{version}.json` holds frames as that version wrote them. After a change that only adds (the rules
//! are in node.proto) add a sample (`tests/node/samples.rs`) and run with `BANYAN_UPDATE=1`: frames that are not recorded
//! yet are added to the file of the present version; what is recorded is never rewritten. If a recorded frame is written
//! differently now, or read as something else, this fails: then old releases do not understand us, or we them, and
//! [`wire::VERSION`] must rise (which starts a new file).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "node/samples.rs"]
mod samples;

use std::collections::BTreeMap;
use std::fs;

use banyan_proto::id::{Epoch, Incarnation, Seq, SlotId, UnixMs};
use banyan_proto::link::{Answer, FromShard, LinkId, Ticket};
use banyan_proto::node::v1 as node;
use banyan_proto::v1;
use banyan_proto::wire::{
    self, Assembly, Bulk, Error, Handed, LIST_MAX, NodeMessage, Outgoing, PART_BYTES, WANTED_MAX,
    put_from_shard, put_handed, put_node, put_to_shard, read_bulk_down, read_bulk_up, read_down, read_hello,
    read_up,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use prost::Message as _;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/node");
const ENDS: [LinkId; 2] = [LinkId(0), LinkId(300)];

fn handed() -> Handed {
    let rooms = vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 20])];
    Handed { slot: SlotId(9), epoch: Epoch(1 << 40), complete: true, rooms }
}

fn hello() -> node::Hello {
    node::Hello {
        wire: 1,
        release: "0.1.0".into(),
        cluster: "c".into(),
        node: "n-1".into(),
        incarnation: wire::incarnation_bytes(Incarnation(1 << 100)),
        roles: vec![node::NodeRole::Gateway.into(), node::NodeRole::Shard.into()],
        links: 3,
        expects_node: "n-2".into(),
        expects_incarnation: wire::incarnation_bytes(Incarnation(5)),
    }
}

fn nodes() -> [NodeMessage; 4] {
    [
        NodeMessage::AskReady,
        NodeMessage::Ready,
        NodeMessage::Refused { incarnation: Incarnation(77) },
        NodeMessage::Wanted { slots: vec![SlotId(0), SlotId(300), SlotId(u16::MAX)] },
    ]
}

/// The frame of one message of a shard.
fn frame_of(message: FromShard) -> Vec<u8> {
    match message.into() {
        Outgoing::Live(message) => {
            let mut frame = Vec::new();
            put_from_shard(&ENDS, message, &mut frame);
            frame
        }
        Outgoing::Bulk(page) => Bulk { end: ENDS[1], after_live: 1 << 35, page }.frame(),
    }
}

/// Every sample as the frame that it travels in.
fn frames() -> BTreeMap<String, Vec<u8>> {
    let mut frames = BTreeMap::new();
    for (name, message) in samples::to_shard() {
        let mut frame = Vec::new();
        assert!(put_to_shard(ENDS[1], 9_000, message, &mut frame));
        frames.insert(format!("up_{name}"), frame);
    }
    for (name, message) in samples::from_shard() {
        let stream = if matches!(message, FromShard::Page { .. }) { "bulk_down" } else { "down" };
        frames.insert(format!("{stream}_{name}"), frame_of(message));
    }
    // Numbered as they were recorded first.
    for (n, message) in (44..).zip(nodes()) {
        let mut frame = Vec::new();
        put_node(message, &mut frame);
        frames.insert(format!("up_node_{n}"), frame);
    }
    let [frame] = <[_; 1]>::try_from(put_handed(handed()).collect::<Vec<_>>()).unwrap();
    frames.insert("bulk_up_handed".into(), frame);
    frames.insert("hello".into(), wire::hello_frame(&hello()));
    frames
}

/// What a frame says, by the stream that its name begins with.
fn read(name: &str, frame: &[u8]) -> Result<String, Error> {
    let say = |value: &dyn std::fmt::Debug| format!("{value:?}");
    Ok(match name.split('_').next().unwrap() {
        "up" => say(&read_up(frame)?),
        "down" => say(&read_down(frame)?),
        "bulk" if name.starts_with("bulk_down") => say(&read_bulk_down(frame)?),
        "bulk" => say(&read_bulk_up(frame, &mut Assembly::new(1 << 20))?),
        _ => say(&read_hello(frame)?),
    })
}

#[test]
fn every_kind_comes_back_as_it_went_out() {
    for (name, message) in samples::to_shard() {
        let mut frame = Vec::new();
        assert!(put_to_shard(ENDS[1], 9_000, message.clone(), &mut frame));
        let up = read_up(&frame).unwrap();
        let question = name.starts_with("room") || name.starts_with("pull");
        assert_eq!(up.to_shard, [(ENDS[1], if question { 9_000 } else { 0 }, message)], "{name}");
        assert_eq!((up.skipped, up.unknown_commands.len(), up.node.len()), (0, 0, 0));
    }
    for (name, message) in samples::from_shard() {
        let frame = frame_of(message.clone());
        match message {
            FromShard::Page { .. } => {
                let [bulk] = <[_; 1]>::try_from(read_bulk_down(&frame).unwrap()).unwrap();
                assert_eq!((bulk.end, bulk.after_live), (ENDS[1], 1 << 35));
                assert_eq!(FromShard::from(bulk.page), message, "{name}");
            }
            message => {
                assert_eq!(read_down(&frame).unwrap().from_shard, [(ENDS.to_vec(), message)], "{name}")
            }
        }
    }
    for message in nodes() {
        let mut frame = Vec::new();
        put_node(message.clone(), &mut frame);
        assert_eq!(read_up(&frame).unwrap().node, [message]);
    }
    assert_eq!(read_hello(&wire::hello_frame(&hello())), Ok(hello()));
}

#[test]
fn recordings_are_read_as_what_they_were() {
    let present = frames();
    let newest = format!("{}.json", wire::VERSION);
    let path = format!("{DIRECTORY}/{newest}");
    if std::env::var_os("BANYAN_UPDATE").is_some() {
        let mut recorded: BTreeMap<String, String> = fs::read_to_string(&path)
            .map_or_else(|_| BTreeMap::new(), |text| serde_json::from_str(&text).unwrap());
        for (name, frame) in &present {
            recorded.entry(name.clone()).or_insert_with(|| BASE64.encode(frame));
        }
        fs::write(&path, serde_json::to_string_pretty(&recorded).unwrap() + "\n").unwrap();
    }
    let mut files = 0;
    for entry in fs::read_dir(DIRECTORY).unwrap() {
        let entry = entry.unwrap();
        let file = entry.file_name().into_string().unwrap();
        let recorded: BTreeMap<String, String> =
            serde_json::from_str(&fs::read_to_string(entry.path()).unwrap()).unwrap();
        files += 1;
        for (name, frame) in &recorded {
            let frame = BASE64.decode(frame).unwrap();
            let now = present.get(name).unwrap_or_else(|| panic!("{file}: {name} has lost its sample"));
            assert_eq!(read(name, &frame), read(name, now), "{file}: {name}");
            assert!(file != newest || *now == frame, "{file}: {name} is written differently now");
        }
        if file == newest {
            let missing: Vec<_> = present.keys().filter(|name| !recorded.contains_key(*name)).collect();
            assert!(missing.is_empty(), "{file}: not recorded (BANYAN_UPDATE=1): {missing:?}");
        }
    }
    assert!(files > 0);
}

#[test]
fn whatever_is_cut_or_changed_is_read_or_refused() {
    let mut seed = 1_u64;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let (mut good, mut bad) = (0, 0);
    for (name, frame) in frames() {
        for cut in 0..frame.len() {
            // A cut in the middle of a message is seen; between fields it may not be.
            match read(&name, &frame[..cut]) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
        }
        for _ in 0..300 {
            let mut frame = frame.clone();
            for _ in 0..1 + next(3) {
                let at = next(frame.len());
                frame[at] = next(256) as u8;
            }
            match read(&name, &frame) {
                Ok(_) => good += 1,
                Err(error) => {
                    bad += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
    assert!(good > 500 && bad > 5_000, "{good} {bad}");
}

#[track_caller]
fn refused(read: Result<impl std::fmt::Debug, Error>, words: &str) {
    let error = read.unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}

fn field(tag: u32, bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::bytes::encode(tag, &bytes.to_vec(), &mut field);
    field
}

#[test]
fn small_bytes_do_not_become_large_lists() {
    let many = [0x52, 0x00].repeat(LIST_MAX + 1);
    refused(read_up(&[0x12, 0x00].repeat(LIST_MAX + 1)), "the number of messages in a frame is larger");
    // Events of history in a body in an answer; marks; a page; a body pushed to a user, and to a user's channel.
    let events = [0x0a, 0x00].repeat(LIST_MAX + 1);
    let body = field(9, &events);
    refused(read_down(&field(2, &field(10, &field(10, &body)))), "a list is larger");
    refused(read_down(&field(2, &field(14, &many))), "a list is larger");
    refused(read_down(&field(2, &field(16, &field(2, &body)))), "a list is larger");
    refused(read_bulk_down(&field(1, &many)), "a list is larger");
    refused(read_up(&field(2, &field(17, &field(2, &body)))), "a list is larger");
    refused(read_up(&field(2, &vec![0; wire::TO_SHARD_MAX + 1])), "a message to a shard is larger");
    refused(read_hello(&field(1, &many)), "a list is larger");
    let wanted = |slots: &[u8]| field(3, &field(13, &field(1, slots)));
    refused(read_up(&wanted(&[0; WANTED_MAX + 1])), "a list of wanted slots is larger");
    refused(read_up(&wanted(&[0x80, 0x80, 0x04])), "a slot cannot be 65536");
    // A length beyond everything.
    refused(read_up(&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), "the end of a field");
}

#[test]
fn what_is_newer_is_skipped_unless_it_must_not_be() {
    let up = |message: node::ToShard| field(2, &message.encode_to_vec());
    let unknown = node::ToShard::default();
    assert_eq!(read_up(&up(unknown.clone())).unwrap().skipped, 1);
    refused(read_up(&up(node::ToShard { required: true, ..unknown })), "newer release");
    refused(
        read_up(&field(3, &node::NodeMessage { required: true, message: None }.encode_to_vec())),
        "newer",
    );
    assert_eq!(read_up(&field(3, &[])).unwrap().skipped, 1);
    assert_eq!(read_up(&field(99, b"a frame may hold more kinds of messages")).unwrap().skipped, 1);
    // A command that this release does not have: whoever asked is told.
    let call = node::RoomCall { ticket: 8, ..node::RoomCall::default() };
    let call = node::to_shard::Message::Room(call);
    let call = node::ToShard { end: 2, message: Some(call), ..node::ToShard::default() };
    assert_eq!(read_up(&up(call)).unwrap().unknown_commands, [(LinkId(2), Ticket(8))]);

    let down = |message: node::FromShard| field(2, &message.encode_to_vec());
    assert_eq!(read_down(&down(node::FromShard::default())).unwrap().skipped, 1);
    let required = node::FromShard { required: true, ..node::FromShard::default() };
    refused(read_down(&down(required)), "newer");
    // An answer in newer words is not known to have been a refusal.
    let answer = node::from_shard::Message::Answer(node::Answer { ticket: 3, epoch: 1, answer: None });
    let answer = node::FromShard { ends: vec![1], message: Some(answer), required: false };
    let read = read_down(&down(answer)).unwrap().from_shard;
    assert!(format!("{read:?}").contains("code: 108"), "{read:?}");
    // An end that no link has, an id that is none.
    let left = node::from_shard::Message::Left(node::Left { room: "~".into(), ..node::Left::default() });
    let left = |ends| node::FromShard { ends, message: Some(left.clone()), required: false };
    refused(read_down(&down(left(vec![1]))), "room may only hold");
    let head = node::from_shard::Message::Head(node::Head { room: "r".into(), ..node::Head::default() });
    let head = node::FromShard { ends: vec![70_000], message: Some(head), required: false };
    refused(read_down(&down(head)), "the end of a link cannot be 70000");
}

/// Who has asked knows the room: it is not sent, and not missed or looked at.
#[test]
fn an_answer_to_a_send_may_name_its_room() {
    let answered = |room: &str| {
        let reply = v1::SendReply { room: room.into(), seq: 9, at: 5, duplicate: true };
        let answer = node::Answer { ticket: 3, epoch: 1, answer: Some(node::answer::Answer::Sent(reply)) };
        let message = Some(node::from_shard::Message::Answer(answer));
        let frame = node::FromShard { ends: vec![1], message, required: false };
        read_down(&field(2, &frame.encode_to_vec())).unwrap().from_shard
    };
    let answer = Answer::Sent { seq: Seq(9), at: UnixMs(5), duplicate: true };
    let want = FromShard::Answer { ticket: Ticket(3), epoch: Epoch(1), answer };
    for room in ["", "r", "~ not a name"] {
        assert_eq!(answered(room), [(vec![LinkId(1)], want.clone())]);
    }
}

#[test]
fn a_handoff_of_any_size_comes_together_again() {
    let rooms: Vec<Bytes> = [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 5, 10]
        .map(|n| vec![n as u8; n].into())
        .to_vec();
    let handed = Handed { rooms, ..handed() };
    let mut assembly = Assembly::new(64 << 20);
    let mut got = Vec::new();
    let mut frames = 0;
    for frame in put_handed(handed.clone()).chain(put_handed(Handed { complete: false, ..handed.clone() })) {
        assert!(frame.len() <= PART_BYTES + 1_024, "{}", frame.len());
        frames += 1;
        got.extend(read_bulk_up(&frame, &mut assembly).unwrap());
    }
    assert_eq!(got, [handed.clone(), Handed { complete: false, ..handed.clone() }]);
    assert!((14..=20).contains(&frames) && assembly.dropped() == 0, "{frames}");

    // What is too much is left out room by room; the handoff itself arrives.
    let mut assembly = Assembly::new(2 * PART_BYTES);
    let got: Vec<_> =
        put_handed(handed.clone()).flat_map(|frame| read_bulk_up(&frame, &mut assembly).unwrap()).collect();
    let [got] = <[_; 1]>::try_from(got).unwrap();
    assert_eq!(got.rooms.iter().map(Bytes::len).collect::<Vec<_>>(), [0, 1, PART_BYTES - 1, 10]);
    assert_eq!((got.slot, got.epoch, got.complete, assembly.dropped()), (handed.slot, handed.epoch, true, 3));

    refused(read_bulk_up(&field(1, &[]), &mut Assembly::new(1)), "a part of a handoff is out of order");
    let begin = node::HandedPart { begin: Some(node::HandedBegin::default()), ..node::HandedPart::default() };
    let twice = field(1, &begin.encode_to_vec()).repeat(2);
    refused(read_bulk_up(&twice, &mut Assembly::new(1_000)), "the begin of a handoff is out of order");
}
