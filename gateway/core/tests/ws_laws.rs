//! Laws of the WebSocket codec over random streams, from outside: against tungstenite as a client, against
//! `str::from_utf8`, and against itself under other cuts of the same bytes.

use banyan_gateway_core::ws::{Accept, Decoder, Item, Limits, client, encode};
use banyan_proto::codes::Close;
use proptest::prelude::*;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

/// Box of the partial state, whatever it holds; the rest of a decoder's heap is payload.
const PARTIAL_OVERHEAD: usize = 256;

/// Feeds `bytes` cut at `cuts` (each taken modulo what is left) and returns the items, checking the memory bound.
fn decode(bytes: &[u8], cuts: &[usize], limits: &Limits) -> (Vec<Item<'static>>, Decoder) {
    let (mut decoder, mut items) = (Decoder::default(), Vec::new());
    let mut cuts = cuts.iter().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let take = cuts.next().map_or(rest.len(), |cut| 1 + cut % rest.len());
        let (piece, behind) = rest.split_at(take);
        let (mut input, mut pos) = (piece.to_vec(), 0);
        while let Some(item) = decoder.next(&mut input, &mut pos, limits) {
            items.push(item.into_owned());
        }
        assert_eq!(pos, input.len());
        assert!(decoder.heap_bytes() <= limits.message_bytes as usize + 125 + PARTIAL_OVERHEAD);
        rest = behind;
    }
    (items, decoder)
}

/// What a well-behaved client may send, one message or control frame.
#[derive(Debug, Clone)]
enum Said {
    Text(String, Vec<usize>),
    Binary(Vec<u8>, Vec<usize>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

fn said() -> impl Strategy<Value = Said> {
    let fragments = || proptest::collection::vec(0_usize..400, 0..6);
    let control = || proptest::collection::vec(any::<u8>(), 0..=125);
    prop_oneof![
        4 => ("\\PC{0,300}", fragments()).prop_map(|(text, cuts)| Said::Text(text, cuts)),
        4 => (proptest::collection::vec(any::<u8>(), 0..1000), fragments()).prop_map(|(bytes, cuts)| Said::Binary(bytes, cuts)),
        1 => control().prop_map(Said::Ping),
        1 => control().prop_map(Said::Pong),
    ]
}

/// Encodes by tungstenite; `between` are control frames that it puts between the fragments.
fn encode_by_tungstenite(
    said: &Said,
    mask: [u8; 4],
    between: &[Vec<u8>],
    out: &mut Vec<u8>,
) -> Vec<Item<'static>> {
    fn put(out: &mut Vec<u8>, opcode: OpCode, fin: bool, mask: [u8; 4], payload: &[u8]) {
        let header = FrameHeader { is_final: fin, opcode, mask: Some(mask), ..FrameHeader::default() };
        Frame::from_payload(header, payload.to_vec().into()).format(out).expect("a Vec takes all");
    }
    let (data, cuts, first, item) = match said {
        Said::Ping(payload) => {
            put(out, OpCode::Control(Control::Ping), true, mask, payload);
            return vec![Item::Ping(payload.clone().into())];
        }
        Said::Pong(payload) => {
            put(out, OpCode::Control(Control::Pong), true, mask, payload);
            return vec![Item::Pong];
        }
        Said::Text(text, cuts) => (text.as_bytes(), cuts, Data::Text, Item::Text(text.clone().into())),
        Said::Binary(bytes, cuts) => (&bytes[..], cuts, Data::Binary, Item::Binary(bytes.clone().into())),
    };
    let (mut rest, mut opcode, mut items) = (data, first, Vec::new());
    for (i, cut) in cuts.iter().enumerate() {
        let (piece, behind) = rest.split_at((*cut).min(rest.len()));
        put(out, OpCode::Data(opcode), false, mask, piece);
        (rest, opcode) = (behind, Data::Continue);
        if let Some(payload) = between.get(i) {
            put(out, OpCode::Control(Control::Ping), true, mask, payload);
            items.push(Item::Ping(payload.clone().into()));
        }
    }
    put(out, OpCode::Data(opcode), true, mask, rest);
    items.push(item);
    items
}

const LIMITS: Limits = Limits { message_bytes: 4096, fragments: 8, accept: Accept::Both };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever tungstenite says as a client arrives, at any cut, and leaves no memory behind.
    #[test]
    fn hears_what_tungstenite_says(
        script in proptest::collection::vec((said(), any::<[u8; 4]>(), proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..3)), 0..8),
        cuts in proptest::collection::vec(0_usize..2000, 0..12),
    ) {
        let (mut bytes, mut want) = (Vec::new(), Vec::new());
        for (said, mask, between) in &script {
            want.extend(encode_by_tungstenite(said, *mask, between, &mut bytes));
        }
        let (got, decoder) = decode(&bytes, &cuts, &LIMITS);
        prop_assert_eq!(got, want);
        prop_assert_eq!(decoder.heap_bytes(), 0);
    }

    /// Frames with any first byte, any payload: right or wrong, the cuts change nothing, and the answer ends at an error.
    #[test]
    fn cuts_change_nothing(
        frames in proptest::collection::vec((prop_oneof![8 => prop::sample::select(vec![0x81_u8, 0x01, 0x80, 0x00, 0x82, 0x02, 0x89, 0x8a, 0x88]), 1 => any::<u8>()],
            any::<[u8; 4]>(), prop_oneof!["[ -~é🦀]{0,40}".prop_map(String::into_bytes), proptest::collection::vec(any::<u8>(), 0..200)]), 0..20),
        cuts in proptest::collection::vec(0_usize..300, 1..12),
        truncate in 0_usize..40,
        small in any::<bool>(),
    ) {
        let limits = if small { Limits { message_bytes: 100, fragments: 3, accept: Accept::Text } } else { LIMITS };
        let mut bytes = Vec::new();
        for (first, mask, payload) in &frames {
            client::put_frame(&mut bytes, *first, *mask, payload);
        }
        bytes.truncate(bytes.len().saturating_sub(truncate));
        let (whole, decoder) = decode(&bytes, &[], &limits);
        let (cut, _) = decode(&bytes, &cuts, &limits);
        let (by_byte, _) = decode(&bytes, &[0], &limits);
        prop_assert_eq!(&whole, &cut);
        prop_assert_eq!(&whole, &by_byte);
        let ends = whole.iter().position(|item| matches!(item, Item::Error { .. } | Item::Close { .. }));
        prop_assert!(ends.is_none_or(|at| at + 1 == whole.len()));
        prop_assert_eq!(ends.is_some(), decoder.has_ended());
    }

    /// Garbage: no panic, bounded memory (asserted in `decode`), the same at every cut.
    #[test]
    fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), cuts in proptest::collection::vec(0_usize..50, 1..8)) {
        let (whole, _) = decode(&bytes, &[], &LIMITS);
        let (cut, _) = decode(&bytes, &cuts, &LIMITS);
        prop_assert_eq!(whole, cut);
    }

    /// Text is taken exactly when std takes it, over fragments and cuts.
    #[test]
    fn utf8_as_std_sees_it(
        pieces in proptest::collection::vec(prop_oneof![3 => "[aé€🦀\u{10ffff}\u{d7ff}\u{e000}]{0,3}".prop_map(String::into_bytes), 1 => proptest::collection::vec(any::<u8>(), 0..3),
            1 => prop::sample::select(vec![b"\xed\xa0\x80".to_vec(), b"\xf4\x90".to_vec(), b"\xe2\x82".to_vec(), b"\xac".to_vec(), b"\xf0\x9f".to_vec(), b"\xa6\x80".to_vec(), b"\xc0\x80".to_vec()])], 1..8),
        mask: [u8; 4],
        cuts in proptest::collection::vec(0_usize..20, 1..8),
    ) {
        let mut bytes = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            let fin = if i + 1 == pieces.len() { 0x80 } else { 0 };
            client::put_frame(&mut bytes, fin | u8::from(i == 0), mask, piece);
        }
        let (got, _) = decode(&bytes, &cuts, &LIMITS);
        match String::from_utf8(pieces.concat()) {
            Ok(text) => prop_assert_eq!(got, [Item::Text(text.into())]),
            Err(_) => prop_assert_eq!(got, [Item::Error { close: Close::BadUtf8, reason: "text is not valid UTF-8" }]),
        }
    }

    /// Our frames, read by tungstenite as a client.
    #[test]
    fn tungstenite_hears_what_we_say(messages in proptest::collection::vec(prop_oneof!["\\PC{0,200}".prop_map(|s| (s.clone(), s.len())), (65_500_usize..65_600).prop_map(|n| ("x".repeat(n), n))], 0..5)) {
        use tungstenite::protocol::{Role, WebSocket};
        let mut bytes = Vec::new();
        for (text, _) in &messages {
            encode::put_frame(&mut bytes, banyan_gateway_core::ws::Opcode::Text, text.as_bytes());
        }
        encode::put_close(&mut bytes, 3001, "draining");
        let mut socket = WebSocket::from_raw_socket(std::io::Cursor::new(bytes), Role::Client, None);
        for (text, _) in &messages {
            let heard = socket.read().unwrap().into_text().unwrap();
            prop_assert_eq!(heard.as_str(), text);
        }
        match socket.read().unwrap() {
            tungstenite::Message::Close(Some(frame)) => prop_assert_eq!((u16::from(frame.code), frame.reason.as_str()), (3001, "draining")),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
