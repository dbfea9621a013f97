//! The incremental decoder of client frames.
//!
//! A worker reads every socket into one shared buffer and runs the connection's decoder over it:
//!
//! ```
//! use banyan_gateway_core::ws::{Accept, Decoder, Item, Limits, client};
//!
//! let mut buffer = Vec::new();
//! client::put_frame(&mut buffer, 0x81, *b"mask", b"hello");
//! let (mut decoder, mut pos, limits) = (Decoder::default(), 0, Limits::protocol_v1(Accept::Text));
//! while let Some(item) = decoder.next(&mut buffer, &mut pos, &limits) {
//!     assert_eq!(item, Item::Text("hello".into()));
//! }
//! assert_eq!(pos, buffer.len());
//! ```
//!
//! A message that lies whole and unfragmented in the buffer is unmasked there and handed out as a borrow of it: no copy,
//! no allocation. Anything else is gathered in the decoder and handed out owned. Every byte is consumed either way, so
//! the caller's buffer is free after the loop.
//!
//! Everything is checked as early as it can be known: a bad first byte ends the connection at that byte, bad UTF-8 at the
//! first byte that no text can continue with, a message above the limit at the header that declares it.

use std::borrow::Cow;
use std::ops::Range;

use banyan_proto::codes::Close;

use super::{Accept, CONTROL_PAYLOAD_MAX, Limits, Opcode, mask};

/// First byte of a frame: this is the message's last frame.
const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
/// Second byte of a frame: the payload is masked.
const MASKED: u8 = 0x80;
/// 2 bytes, 8 of extended length, 4 of mask.
const HEADER_MAX: usize = 14;
/// First allocation for a message that did not come in one piece; typical chat frames fit without a second one.
const FIRST_ALLOCATION: usize = 512;

/// What the client said. Payloads borrow from the input where they can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole text message: valid UTF-8.
    Text(Cow<'a, str>),
    Binary(Cow<'a, [u8]>),
    /// To be answered with a pong of the same payload.
    Ping(Cow<'a, [u8]>),
    Pong,
    /// The client's close frame, to be answered with [`super::encode::put_close_reply`]. Nothing follows.
    Close {
        code: Option<u16>,
        reason: Cow<'a, str>,
    },
    /// The client broke a rule or a limit: send a close frame with this code and end the connection. Nothing follows.
    Error {
        close: Close,
        reason: &'static str,
    },
}

impl Item<'_> {
    pub fn into_owned(self) -> Item<'static> {
        match self {
            Self::Text(text) => Item::Text(Cow::Owned(text.into_owned())),
            Self::Binary(bytes) => Item::Binary(Cow::Owned(bytes.into_owned())),
            Self::Ping(bytes) => Item::Ping(Cow::Owned(bytes.into_owned())),
            Self::Pong => Item::Pong,
            Self::Close { code, reason } => Item::Close { code, reason: Cow::Owned(reason.into_owned()) },
            Self::Error { close, reason } => Item::Error { close, reason },
        }
    }
}

/// State of one connection's input: 16 bytes, and a box while a frame or message is incomplete.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
    /// Control frames (ping, pong, close) since [`Self::take_control_frames`].
    control_frames: u32,
    /// A close or an error was handed out: the rest of the input means nothing.
    ended: bool,
}

/// What is incomplete.
#[derive(Debug, Default)]
struct Partial {
    stage: Stage,
    /// The data message under way: its first frame has begun, its last has not ended.
    message: Option<Message>,
    /// Payload so far of the control frame under way. It may lie between two fragments of `message`.
    control: Vec<u8>,
}

#[derive(Debug)]
enum Stage {
    /// Between two frames (`len` 0), or `len` bytes into a header.
    Header { bytes: [u8; HEADER_MAX], len: u8 },
    /// Inside a payload that comes in pieces.
    Payload { header: Header, done: usize },
}

impl Default for Stage {
    fn default() -> Self {
        Self::Header { bytes: [0; HEADER_MAX], len: 0 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Header {
    fin: bool,
    opcode: Opcode,
    mask: [u8; 4],
    payload_len: usize,
}

#[derive(Debug)]
struct Message {
    text: bool,
    data: Vec<u8>,
    /// `data[..checked]` is valid UTF-8 that ends at a character (text only).
    checked: usize,
    /// Frames begun so far.
    fragments: u32,
}

/// A complete frame (control) or message (data) before its payload is looked at.
type Found = (Opcode, Payload);

#[derive(Debug)]
enum Payload {
    InPlace(Range<usize>),
    Gathered(Vec<u8>),
}

/// Why the connection ends; becomes [`Item::Error`].
type Violation = (Close, &'static str);

const INVALID_UTF8: Violation = (Close::BadUtf8, "text is not valid UTF-8");
const TOO_BIG: Violation = (Close::TooBig, "message too big");

const fn protocol_error(reason: &'static str) -> Violation {
    (Close::ProtocolError, reason)
}

impl Decoder {
    /// The next item in `input[*pos..]`, advancing `pos`; `None` when all of it is consumed. Call it until then.
    ///
    /// `limits` may differ between calls; a frame is judged by those that hold when its header is read.
    pub fn next<'a>(&mut self, input: &'a mut [u8], pos: &mut usize, limits: &Limits) -> Option<Item<'a>> {
        if self.ended {
            *pos = input.len();
            return None;
        }
        let item = match self.step(input, pos, limits) {
            Ok(None) => return None,
            Ok(Some((opcode, payload))) => {
                if opcode.is_control() {
                    self.control_frames = self.control_frames.saturating_add(1);
                }
                let payload = match payload {
                    Payload::InPlace(range) => Cow::Borrowed(&input[range]),
                    Payload::Gathered(bytes) => Cow::Owned(bytes),
                };
                item(opcode, payload)
            }
            Err(violation) => Err(violation),
        };
        let item = item.unwrap_or_else(|(close, reason)| Item::Error { close, reason });
        if matches!(item, Item::Close { .. } | Item::Error { .. }) {
            self.ended = true;
            self.partial = None;
        }
        Some(item)
    }

    /// Control frames since the last call, for the caller's rate limit: they cost it an answer, but carry no command.
    pub const fn take_control_frames(&mut self) -> u32 {
        std::mem::replace(&mut self.control_frames, 0)
    }

    /// The client is in the middle of a frame or message (so silence has a deadline).
    pub const fn is_incomplete(&self) -> bool {
        self.partial.is_some()
    }

    /// A close or an error was handed out.
    pub const fn has_ended(&self) -> bool {
        self.ended
    }

    /// Bytes of heap that this decoder owns, for the worker's memory budget.
    pub fn heap_bytes(&self) -> usize {
        let Some(partial) = &self.partial else { return 0 };
        let data = partial.message.as_ref().map_or(0, |message| message.data.capacity());
        size_of::<Partial>() + data + partial.control.capacity()
    }

    /// Finds the next complete frame or message. `Ok(None)`: the input is used up.
    fn step(
        &mut self,
        input: &mut [u8],
        pos: &mut usize,
        limits: &Limits,
    ) -> Result<Option<Found>, Violation> {
        loop {
            let rest = &mut input[*pos..];
            // The hot path has no partial state at all.
            let header = if let Some(partial) = &mut self.partial {
                if let Stage::Payload { .. } = partial.stage {
                    let Some(found) = partial.take_payload(rest, pos, limits)? else {
                        if matches!(partial.stage, Stage::Payload { .. }) {
                            return Ok(None);
                        }
                        continue;
                    };
                    self.free_if_empty();
                    return Ok(Some(found));
                }
                partial.take_header(rest, pos, limits)?
            } else {
                let header = parse_header(rest, None, limits)?;
                match header {
                    Some((header, header_len)) => {
                        *pos += header_len;
                        Some(header)
                    }
                    None if rest.is_empty() => None,
                    None => self.partial.get_or_insert_default().take_header(rest, pos, limits)?,
                }
            };
            let Some(header) = header else { return Ok(None) };
            let open = self.partial.as_ref().is_some_and(|partial| partial.message.is_some());
            let whole_unit = header.opcode.is_control() || (header.fin && !open);
            let end = pos.saturating_add(header.payload_len);
            if whole_unit && end <= input.len() {
                let range = *pos..end;
                mask::apply(&mut input[range.clone()], header.mask, 0);
                *pos = end;
                self.free_if_empty();
                return Ok(Some((header.opcode, Payload::InPlace(range))));
            }
            self.partial.get_or_insert_default().begin_payload(header);
        }
    }

    /// Gives the partial state back once nothing is under way.
    fn free_if_empty(&mut self) {
        if let Some(partial) = &self.partial
            && partial.message.is_none()
            && matches!(partial.stage, Stage::Header { len: 0, .. })
        {
            self.partial = None;
        }
    }
}

impl Partial {
    /// Takes header bytes one by one until the header is complete: it is at most 14 bytes, and so a wrong byte is
    /// found at the same place however the stream was cut.
    fn take_header(
        &mut self,
        rest: &[u8],
        pos: &mut usize,
        limits: &Limits,
    ) -> Result<Option<Header>, Violation> {
        let Stage::Header { bytes, len } = &mut self.stage else {
            unreachable!("asked for a header inside a payload")
        };
        for &byte in rest {
            bytes[usize::from(*len)] = byte;
            *len += 1;
            *pos += 1;
            let complete = parse_header(&bytes[..usize::from(*len)], self.message.as_ref(), limits)?;
            if let Some((header, _)) = complete {
                *len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    fn begin_payload(&mut self, header: Header) {
        if header.opcode.is_control() {
            // At most 125 bytes, so taken at once.
            self.control.reserve_exact(header.payload_len);
        } else if let Some(message) = &mut self.message {
            message.fragments += 1;
        } else {
            let text = header.opcode == Opcode::Text;
            self.message = Some(Message { text, data: Vec::new(), checked: 0, fragments: 1 });
        }
        self.stage = Stage::Payload { header, done: 0 };
    }

    /// Takes what there is of the current payload. `None`: either the payload is still incomplete (then `stage` says so),
    /// or it ended and its message goes on.
    fn take_payload(
        &mut self,
        rest: &mut [u8],
        pos: &mut usize,
        limits: &Limits,
    ) -> Result<Option<Found>, Violation> {
        let Stage::Payload { header, done } = &mut self.stage else { unreachable!("not inside a payload") };
        let left = header.payload_len - *done;
        let taken = left.min(rest.len());
        let piece = &mut rest[..taken];
        mask::apply(piece, header.mask, *done);
        *done += taken;
        *pos += taken;
        let (header, ended) = (*header, taken == left);
        if ended {
            self.stage = Stage::default();
        }
        if header.opcode.is_control() {
            self.control.extend_from_slice(piece);
            let whole = ended.then(|| (header.opcode, Payload::Gathered(std::mem::take(&mut self.control))));
            return Ok(whole);
        }
        let Some(message) = &mut self.message else { unreachable!("a data payload without a message") };
        let bound = if header.fin { message.data.len() + left } else { limits.message_bytes as usize };
        message.append(piece, bound)?;
        if !(ended && header.fin) {
            return Ok(None);
        }
        let opcode = if message.text { Opcode::Text } else { Opcode::Binary };
        let data = std::mem::take(&mut message.data);
        self.message = None;
        Ok(Some((opcode, Payload::Gathered(data))))
    }
}

impl Message {
    /// Appends a piece of payload. The buffer doubles as bytes come, but never beyond `bound`, the most that this
    /// message can still become.
    fn append(&mut self, piece: &[u8], bound: usize) -> Result<(), Violation> {
        let needed = self.data.len() + piece.len();
        if needed > self.data.capacity() {
            let roomy = (self.data.capacity() * 2).max(FIRST_ALLOCATION).min(bound);
            self.data.reserve_exact(roomy.max(needed) - self.data.len());
        }
        self.data.extend_from_slice(piece);
        if self.text {
            match str::from_utf8(&self.data[self.checked..]) {
                Ok(_) => self.checked = self.data.len(),
                // Only the last character is cut: what there is of it can still become one.
                Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
                Err(_) => return Err(INVALID_UTF8),
            }
        }
        Ok(())
    }
}

/// Reads a frame header from the beginning of `bytes`: the header and its length, or `None` if it is incomplete.
/// Each field is judged as soon as its bytes are there.
fn parse_header(
    bytes: &[u8],
    open: Option<&Message>,
    limits: &Limits,
) -> Result<Option<(Header, usize)>, Violation> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let fin = first & FIN != 0;
    if first & RESERVED_BITS != 0 {
        return Err(protocol_error("reserved bits are set"));
    }
    let Some(opcode) = Opcode::from_bits(first) else { return Err(protocol_error("unknown opcode")) };
    match (opcode, open) {
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) if fin => {}
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => {
            return Err(protocol_error("fragmented control frame"));
        }
        (Opcode::Continuation, None) => return Err(protocol_error("continuation of no message")),
        (Opcode::Continuation, Some(message)) if message.fragments >= limits.fragments => {
            return Err((Close::TooBig, "too many fragments"));
        }
        (Opcode::Continuation, Some(_)) => {}
        (Opcode::Text | Opcode::Binary, Some(_)) => {
            return Err(protocol_error("new message inside a message"));
        }
        (Opcode::Text, None) if limits.accept == Accept::Binary => {
            return Err((Close::WrongKind, "text on a binary connection"));
        }
        (Opcode::Binary, None) if limits.accept == Accept::Text => {
            return Err((Close::WrongKind, "binary on a text connection"));
        }
        (Opcode::Text | Opcode::Binary, None) => {}
    }

    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & MASKED == 0 {
        return Err(protocol_error("unmasked client frame"));
    }
    let short = second & !MASKED;
    if opcode.is_control() && usize::from(short) > CONTROL_PAYLOAD_MAX {
        return Err(protocol_error("control frame above 125 bytes"));
    }
    let (payload_len, mask_at) = match short {
        126 => {
            let Some(field) = bytes.get(2..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*field)), 4)
        }
        127 => {
            let Some(field) = bytes.get(2..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
            (u64::from_be_bytes(*field), 10)
        }
        short => (u64::from(short), 2),
    };
    // RFC 6455 section 5.2: the minimal number of bytes MUST be used, and the top bit of 64 MUST be 0.
    let minimal = match short {
        126 => payload_len > 125,
        127 => payload_len > 0xffff && payload_len >> 63 == 0,
        _ => true,
    };
    if !minimal {
        return Err(protocol_error("length not encoded minimally"));
    }
    if !opcode.is_control() {
        let before = open.map_or(0, |message| message.data.len() as u64);
        if payload_len > u64::from(limits.message_bytes).saturating_sub(before) {
            return Err(TOO_BIG);
        }
    }
    let Some(&mask) = bytes.get(mask_at..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
    // It is within the u32 limit, or a control frame's 125.
    let payload_len = usize::try_from(payload_len).map_err(|_| TOO_BIG)?;
    Ok(Some((Header { fin, opcode, mask, payload_len }, mask_at + 4)))
}

/// Makes an item of a complete payload, which is where its content is judged.
fn item(opcode: Opcode, payload: Cow<'_, [u8]>) -> Result<Item<'_>, Violation> {
    Ok(match opcode {
        Opcode::Text => Item::Text(text(payload)?),
        Opcode::Binary => Item::Binary(payload),
        Opcode::Ping => Item::Ping(payload),
        Opcode::Pong => Item::Pong,
        Opcode::Close => close(&payload)?,
        Opcode::Continuation => unreachable!("a continuation ends as the message that it continues"),
    })
}

fn text(payload: Cow<'_, [u8]>) -> Result<Cow<'_, str>, Violation> {
    match payload {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| INVALID_UTF8),
        // Checked while it came, but for a character cut at the very end. The second look costs 64 KiB at most.
        Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).map_err(|_| INVALID_UTF8),
    }
}

fn close<'a>(payload: &[u8]) -> Result<Item<'a>, Violation> {
    match payload {
        [] => Ok(Item::Close { code: None, reason: Cow::Borrowed("") }),
        [_] => Err(protocol_error("close payload of one byte")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !may_be_sent(code) {
                return Err(protocol_error("close code that may not be sent"));
            }
            let reason = str::from_utf8(reason).map_err(|_| INVALID_UTF8)?;
            Ok(Item::Close { code: Some(code), reason: Cow::Owned(reason.to_owned()) })
        }
    }
}

/// Codes that may stand in a close frame: RFC 6455 section 7.4 and the IANA registry (1012 to 1014 came later);
/// 1004, 1005, 1006 and 1015 must never be on the wire.
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::client;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    const LIMITS: Limits = Limits { message_bytes: 1000, fragments: 4, accept: Accept::Both };

    /// First byte of each frame kind: `F` with FIN, the others without.
    const TEXT_F: u8 = 0x81;
    const BINARY_F: u8 = 0x82;
    const CONT_F: u8 = 0x80;
    const CLOSE_F: u8 = 0x88;
    const PING_F: u8 = 0x89;
    const PONG_F: u8 = 0x8a;
    const TEXT: u8 = 0x01;
    const BINARY: u8 = 0x02;
    const CONT: u8 = 0x00;

    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (first, payload) in frames {
            client::put_frame(&mut out, *first, MASK, payload);
        }
        out
    }

    fn feed(decoder: &mut Decoder, bytes: &[u8], limits: &Limits, out: &mut Vec<Item<'static>>) {
        let (mut input, mut pos) = (bytes.to_vec(), 0);
        while let Some(item) = decoder.next(&mut input, &mut pos, limits) {
            out.push(item.into_owned());
        }
        assert_eq!(pos, input.len(), "every byte is consumed");
    }

    /// The items of `bytes`, in one piece and byte by byte; the last item is an error in the error tables.
    #[track_caller]
    fn check_with(limits: Limits, bytes: &[u8], want: &[Item<'static>]) {
        for piece in [bytes.len().max(1), 1, 3] {
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for chunk in bytes.chunks(piece) {
                feed(&mut decoder, chunk, &limits, &mut got);
            }
            assert_eq!(got, want, "in pieces of {piece}");
        }
    }

    #[track_caller]
    fn check(sent: &[(u8, &[u8])], want: &[Item<'static>]) {
        check_with(LIMITS, &frames(sent), want);
    }

    /// `bytes` end the connection with `close_code`, and no byte less does.
    #[track_caller]
    fn check_error(bytes: &[u8], close_code: u16) {
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        let (last, before) = bytes.split_last().unwrap();
        feed(&mut decoder, before, &LIMITS, &mut got);
        assert!(!decoder.has_ended(), "ended before the wrong byte: {got:?}");
        feed(&mut decoder, &[*last], &LIMITS, &mut got);
        let code = match got.last() {
            Some(Item::Error { close, .. }) => Some(close.number()),
            _ => None,
        };
        assert_eq!(code, Some(close_code), "{got:?}");
        assert_eq!(decoder.heap_bytes(), 0);
    }

    fn text(text: &'static str) -> Item<'static> {
        Item::Text(Cow::Borrowed(text))
    }

    fn binary(bytes: &'static [u8]) -> Item<'static> {
        Item::Binary(Cow::Borrowed(bytes))
    }

    fn ping(bytes: &'static [u8]) -> Item<'static> {
        Item::Ping(Cow::Borrowed(bytes))
    }

    fn closed(code: u16, reason: &'static str) -> Item<'static> {
        Item::Close { code: Some(code), reason: Cow::Borrowed(reason) }
    }

    /// RFC 6455 section 5.7, byte for byte.
    #[test]
    fn rfc_example_of_a_masked_hello() {
        let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        check_with(LIMITS, &bytes, &[text("Hello")]);
    }

    #[test]
    fn whole_messages() {
        check(&[], &[]);
        check(&[(TEXT_F, b"")], &[text("")]);
        check(
            &[(TEXT_F, "grüße 🦀".as_bytes()), (BINARY_F, &[0, 255])],
            &[text("grüße 🦀"), binary(&[0, 255])],
        );
        check(&[(TEXT_F, b"a"), (TEXT_F, b"b"), (TEXT_F, b"c")], &[text("a"), text("b"), text("c")]);
    }

    #[test]
    fn length_encodings() {
        let limits = Limits { message_bytes: 70_000, ..LIMITS };
        for len in [125, 126, 127, 65_535, 65_536, 70_000] {
            let payload = vec![b'x'; len];
            check_with(
                limits,
                &frames(&[(BINARY_F, &payload)]),
                &[Item::Binary(Cow::Owned(payload.clone()))],
            );
        }
    }

    #[test]
    fn fragments_and_what_may_come_between() {
        check(&[(TEXT, b"ab"), (CONT, b""), (CONT, b"c"), (CONT_F, b"d")], &[text("abcd")]);
        check(&[(TEXT, b""), (CONT_F, b"")], &[text("")]);
        check(
            &[(TEXT, b"a"), (PING_F, b"1"), (CONT, b"b"), (PONG_F, b"2"), (CONT_F, b"c"), (TEXT_F, b"d")],
            &[ping(b"1"), Item::Pong, text("abc"), text("d")],
        );
        check(&[(BINARY, b"a"), (CLOSE_F, b"\x03\xe8bye"), (CONT_F, b"b")], &[closed(1000, "bye")]);
        // A character over the border of two fragments, a control frame between its halves.
        check(&[(TEXT, b"\xf0\x9f"), (PING_F, b""), (CONT_F, b"\xa6\x80")], &[ping(b""), text("🦀")]);
    }

    #[test]
    fn frame_rules() {
        for first in [0xc1, 0xa1, 0x91, 0xf1, 0xc9] {
            check_error(&[first], 1002); // reserved bits
        }
        for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
            check_error(&[0x80 | opcode], 1002);
            check_error(&[opcode], 1002);
        }
        check_error(&[0x81, 0x05], 1002); // not masked
        check_error(&[0x81, 0x00], 1002);
        check_error(&[0x89, 0x05], 1002);
        for fragmented in [0x08, 0x09, 0x0a] {
            check_error(&[fragmented], 1002);
        }
        for control in [CLOSE_F, PING_F, PONG_F] {
            check_error(&[control, 0x80 | 126], 1002);
            check_error(&[control, 0x80 | 127], 1002);
        }
        check_error(&[CONT_F], 1002); // continues nothing
        check_error(&[CONT], 1002);
        let mut open = frames(&[(TEXT, b"a"), (PING_F, b"")]);
        open.push(TEXT_F);
        check_error(&open, 1002);
        let mut after_the_end = frames(&[(TEXT, b"a"), (CONT_F, b"")]);
        after_the_end.push(CONT_F);
        check_error(&after_the_end, 1002);
        // lengths that are not minimal, or have the top bit
        check_error(&[0x82, 0xfe, 0, 125], 1002);
        check_error(&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002);
        check_error(&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002);
    }

    #[test]
    fn control_frames() {
        let longest = vec![b'p'; 125];
        check(&[(PING_F, &longest)], &[Item::Ping(Cow::Owned(longest.clone()))]);
        check(&[(PONG_F, b"unasked")], &[Item::Pong]);
    }

    #[test]
    fn control_frames_are_counted() {
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        let sent = frames(&[(PING_F, b"1"), (TEXT, b"a"), (PONG_F, b""), (CONT_F, b""), (PING_F, b"")]);
        for chunk in sent.chunks(2) {
            feed(&mut decoder, chunk, &LIMITS, &mut got);
        }
        assert_eq!(decoder.take_control_frames(), 3);
        assert_eq!(decoder.take_control_frames(), 0);
    }

    #[test]
    fn close_frames() {
        check(&[(CLOSE_F, b"")], &[Item::Close { code: None, reason: Cow::Borrowed("") }]);
        check(&[(CLOSE_F, b"\x03\xe8"), (TEXT_F, b"x"), (0xff, b"")], &[closed(1000, "")]);
        check_error(&frames(&[(CLOSE_F, b"\x03")]), 1002);
        for code in [1000, 1003, 1007, 1011, 1012, 1014, 3000, 3999, 4000, 4999] {
            check(&[(CLOSE_F, &u16::to_be_bytes(code))], &[closed(code, "")]);
        }
        for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            check_error(&frames(&[(CLOSE_F, &u16::to_be_bytes(code))]), 1002);
        }
        check_error(&frames(&[(CLOSE_F, b"\x03\xe8\xff")]), 1007);
        check_error(&frames(&[(CLOSE_F, b"\x03\xe8\xf0\x9f")]), 1007);
    }

    #[test]
    fn nothing_comes_after_an_error() {
        let mut bytes = frames(&[(TEXT_F, b"a")]);
        bytes.push(0xff);
        bytes.extend(frames(&[(TEXT_F, b"b")]));
        check_with(
            LIMITS,
            &bytes,
            &[text("a"), Item::Error { close: Close::ProtocolError, reason: "reserved bits are set" }],
        );
    }

    #[test]
    fn the_wrong_kind_is_1003_at_its_first_byte() {
        for (accept, first) in [(Accept::Text, BINARY_F), (Accept::Text, BINARY), (Accept::Binary, TEXT_F)] {
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            feed(&mut decoder, &[first], &Limits { accept, ..LIMITS }, &mut got);
            assert!(matches!(got[..], [Item::Error { close: Close::WrongKind, .. }]), "{accept:?} {got:?}");
        }
        check_with(Limits { accept: Accept::Text, ..LIMITS }, &frames(&[(TEXT_F, b"a")]), &[text("a")]);
        check_with(
            Limits { accept: Accept::Binary, ..LIMITS },
            &frames(&[(BINARY_F, b"a")]),
            &[binary(b"a")],
        );
    }

    #[test]
    fn bad_utf8_ends_the_connection_at_its_first_byte() {
        for bad in [
            &b"\xff"[..],
            b"\xc0",
            b"a\x80",
            b"\xe0\x80",
            b"\xed\xa0",
            b"\xf4\x90",
            b"\xf5",
            b"\xce\xba\xce\x41",
        ] {
            // a frame that declares ten more bytes than the wrong one, and a fragment that ends there
            let mut half = frames(&[(TEXT_F, &[bad, &[b'x'; 10]].concat())]);
            half.truncate(half.len() - 10);
            check_error(&half, 1007);
            check_error(&frames(&[(TEXT, b"fine"), (CONT, bad)]), 1007);
        }
        // A character cut off by the end of the message is wrong only there.
        check_error(&frames(&[(TEXT_F, b"caf\xc3")]), 1007);
        check(&[(BINARY_F, b"\xff\xc0")], &[binary(b"\xff\xc0")]);
    }

    #[test]
    fn messages_above_the_limit() {
        let (most, half) = (vec![b'x'; 1000], vec![b'x'; 500]);
        check(&[(BINARY_F, &most)], &[Item::Binary(Cow::Owned(most.clone()))]);
        check(&[(BINARY, &half), (CONT_F, &half)], &[Item::Binary(Cow::Owned(most))]);
        check_error(&[BINARY_F, 0xfe, 0x03, 0xe9], 1009); // 1001
        // 1 GiB: said at the length, before the mask
        check_error(&[BINARY_F, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0], 1009);
        check_error(&[BINARY_F, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 1009);
        // the last fragment goes one byte over
        let mut over = frames(&[(BINARY, &half), (CONT, &half)]);
        over.extend([CONT_F, 0x81]);
        check_error(&over, 1009);
    }

    #[test]
    fn too_many_fragments_even_empty_ones() {
        check(&[(TEXT, b""), (CONT, b""), (CONT, b""), (CONT_F, b"")], &[text("")]);
        let mut fifth = frames(&[(TEXT, b""), (CONT, b""), (CONT, b""), (CONT, b"")]);
        fifth.push(CONT_F);
        check_error(&fifth, 1009);
    }

    #[test]
    fn ten_thousand_fragments_stop_at_the_limit() {
        let mut sent = vec![(TEXT, &b"x"[..])];
        sent.resize(10_000, (CONT, b"x"));
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        feed(&mut decoder, &frames(&sent), &Limits::protocol_v1(Accept::Text), &mut got);
        assert_eq!(got, [Item::Error { close: Close::TooBig, reason: "too many fragments" }]);
        // ... and all of them make a message where the limits allow it
        let limits = Limits { message_bytes: 10_000, fragments: 10_000, accept: Accept::Text };
        sent[9_999].0 = CONT_F;
        check_with(limits, &frames(&sent), &[Item::Text(Cow::Owned("x".repeat(10_000)))]);
    }

    /// Memory follows the bytes that came, not the length that was declared, and stops at the declared length.
    #[test]
    fn memory_grows_with_the_bytes() {
        let limits = Limits { message_bytes: 1 << 30, ..LIMITS };
        let payload = vec![b'x'; 100_000];
        let sent = frames(&[(BINARY_F, &payload)]);
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        for (i, chunk) in sent[..sent.len() - 1].chunks(100).enumerate() {
            feed(&mut decoder, chunk, &limits, &mut got);
            let data = decoder.heap_bytes() - size_of::<Partial>();
            assert!(data <= (2 * 100 * (i + 1)).max(FIRST_ALLOCATION), "{data} bytes after {} chunks", i + 1);
            assert!(data <= payload.len());
        }
        assert!(decoder.is_incomplete());
        feed(&mut decoder, &sent[sent.len() - 1..], &limits, &mut got);
        assert_eq!(got, [Item::Binary(Cow::Owned(payload))]);
        assert_eq!(decoder.heap_bytes(), 0);
    }

    #[test]
    fn an_idle_decoder_is_sixteen_bytes_and_nothing_else() {
        assert_eq!(size_of::<Decoder>(), 16);
        let (mut decoder, mut got) = (Decoder::default(), Vec::new());
        for byte in frames(&[(TEXT, b"a"), (PING_F, b"p"), (CONT_F, b"b"), (PING_F, b"q"), (TEXT_F, b"c")]) {
            feed(&mut decoder, &[byte], &LIMITS, &mut got);
        }
        assert_eq!(got.len(), 4);
        assert_eq!((decoder.heap_bytes(), decoder.is_incomplete()), (0, false));
    }

    /// The hot path: the item is a borrow of the input, also when only its header was cut off by the read before.
    #[test]
    fn a_whole_frame_is_not_copied() {
        let mut sent = frames(&[(TEXT_F, b"hello"), (PING_F, b"p")]);
        for cut in 0..6 {
            let mut decoder = Decoder::default();
            let (head, rest) = sent.split_at_mut(cut);
            assert!(decoder.next(head, &mut 0, &LIMITS).is_none());
            let mut copy = rest.to_vec();
            let mut pos = 0;
            let item = decoder.next(&mut copy, &mut pos, &LIMITS);
            assert!(matches!(item, Some(Item::Text(Cow::Borrowed("hello")))), "cut at {cut}: {item:?}");
            let item = decoder.next(&mut copy, &mut pos, &LIMITS);
            assert!(matches!(item, Some(Item::Ping(Cow::Borrowed(b"p")))), "cut at {cut}: {item:?}");
        }
    }
}
