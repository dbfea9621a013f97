//! The client's half of RFC 6455, as little as a load generator needs: a handshake, masked frames out, unmasked
//! frames in.
//!
//! Why not tokio-tungstenite, as in the project's other clients: a task and a buffered stream per connection cost more
//! per frame than the server that is to be measured, and the generator would be the limit. This reads frames in place
//! from one buffer for all connections.
//!
//! Always holds: a frame that a server must not send (masked, reserved bits, a fragmented or long control frame,
//! longer than [`PAYLOAD_MAX`]) is an error, never skipped.

use tungstenite::handshake::derive_accept_key;

/// No server frame exceeds 512 KiB (docs/protocol.md); beyond twice that the stream is taken for broken.
const PAYLOAD_MAX: usize = 1 << 20;
/// A server that sends more head than this is not one of ours.
const HEAD_MAX: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Close,
    Ping,
    Pong,
}

/// One frame as it stands in the buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) fin: bool,
    pub(crate) opcode: Opcode,
    pub(crate) payload: &'a [u8],
    /// Bytes of the frame, its head included.
    pub(crate) length: usize,
}

/// Reads the first frame of the buffer; `None` when it is not all there yet.
pub(crate) fn parse(buffer: &[u8]) -> Result<Option<Frame<'_>>, String> {
    let [first, second, ..] = *buffer else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(format!("a frame with reserved bits (first byte {first:#04x})"));
    }
    if second & 0x80 != 0 {
        return Err("a masked frame from the server".to_owned());
    }
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => return Err(format!("a frame of opcode {other} on a JSON connection")),
    };
    let fin = first & 0x80 != 0;
    let (head, payload_length) = match second {
        126 => match buffer.get(2..4) {
            Some(bytes) => (4, usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))),
            None => return Ok(None),
        },
        127 => match buffer.get(2..10).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()) {
            Some(bytes) => (10, usize::try_from(u64::from_be_bytes(bytes)).unwrap_or(usize::MAX)),
            None => return Ok(None),
        },
        short => (2, usize::from(short)),
    };
    if matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong) && (!fin || payload_length > 125) {
        return Err("a control frame that is fragmented or longer than 125 bytes".to_owned());
    }
    if payload_length > PAYLOAD_MAX {
        return Err(format!("a frame of {payload_length} bytes"));
    }
    let length = head + payload_length;
    Ok(buffer.get(head..length).map(|payload| Frame { fin, opcode, payload, length }))
}

/// Appends a final frame, masked as clients must.
pub(crate) fn put_masked(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    put_head(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    for (byte, key) in out.iter_mut().skip(start).zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// The frame of a text as a server sends it: what the floor sends.
pub(crate) fn server_text(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 10);
    put_head(&mut out, Opcode::Text, payload.len(), 0);
    out.extend_from_slice(payload);
    out
}

fn put_head(out: &mut Vec<u8>, opcode: Opcode, length: usize, mask_bit: u8) {
    out.push(
        0x80 | match opcode {
            Opcode::Continuation => 0,
            Opcode::Text => 1,
            Opcode::Close => 8,
            Opcode::Ping => 9,
            Opcode::Pong => 10,
        },
    );
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..=125), _) => out.push(mask_bit | length),
        (_, Ok(length)) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// The request that opens a connection.
pub(crate) fn request(host: &str, key: &str) -> String {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: banyan.v1.json\r\n\r\n"
    )
}

/// Reads the answer to [`request`]: its length when the connection is open, `None` when it is not all there yet.
pub(crate) fn response(buffer: &[u8], key: &str) -> Result<Option<usize>, String> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if buffer.len() > HEAD_MAX {
            Err("a response head without end".to_owned())
        } else {
            Ok(None)
        };
    };
    let head = String::from_utf8_lossy(&buffer[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("101") {
        let body = String::from_utf8_lossy(&buffer[end + 4..]);
        return Err(format!("the server refused the upgrade: {status} {}", body.trim()));
    }
    let header = |wanted: &str| {
        let mut values = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        values.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    if header("sec-websocket-accept") != Some(&*derive_accept_key(key.as_bytes())) {
        return Err("the server's Sec-WebSocket-Accept is wrong".to_owned());
    }
    if header("sec-websocket-protocol") != Some("banyan.v1.json") {
        return Err("the server did not choose banyan.v1.json".to_owned());
    }
    Ok(Some(end + 4))
}

/// A stream of masks. Not for security (there is no proxy to protect on loopback): only so that the server unmasks
/// with keys that differ.
#[derive(Debug)]
pub(crate) struct Masks(u64);

impl Masks {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// splitmix64.
    pub(crate) fn next(&mut self) -> [u8; 4] {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [a, b, c, d, ..] = (mixed ^ (mixed >> 31)).to_le_bytes();
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_form_survives_every_cut() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let bytes = server_text(&payload);
            let frame = parse(&bytes).unwrap().unwrap();
            assert_eq!(
                (frame.payload, frame.length, frame.fin, frame.opcode),
                (&payload[..], bytes.len(), true, Opcode::Text)
            );
            for cut in [0, 1, 2, 3, 9, bytes.len() - 1].into_iter().filter(|&cut| cut < bytes.len()) {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{length} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_a_server_must_not_send() {
        for (bytes, what) in [
            (&[0xc1, 0][..], "reserved"),
            (&[0x81, 0x80, 0, 0, 0, 0], "masked"),
            (&[0x82, 0], "opcode 2"),
            (&[0x83, 0], "opcode 3"),
            (&[0x09, 0], "control"),
            (&[0x88, 126, 0, 200], "control"),
            (&[0x81, 127, 0, 0, 0, 0, 0x40, 0, 0, 0], "1073741824 bytes"),
            (&[0x81, 127, 255, 255, 255, 255, 255, 255, 255, 255], "bytes"),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn tungstenite_reads_what_we_send() {
        use std::io::Cursor;
        use tungstenite::protocol::{Message, Role, WebSocket};
        let mut masks = Masks::new(1);
        for length in [0, 5, 126, 70_000] {
            let text = "x".repeat(length);
            let mut out = Vec::new();
            put_masked(&mut out, Opcode::Text, text.as_bytes(), masks.next());
            let mut socket = WebSocket::from_raw_socket(Cursor::new(out), Role::Server, None);
            assert_eq!(socket.read().unwrap(), Message::text(text));
        }
    }

    #[test]
    fn handshakes() {
        // The example of RFC 6455, section 1.3.
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let good = "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: banyan.v1.json\r\n\r\n";
        assert_eq!(response(format!("{good}\u{1}").as_bytes(), key), Ok(Some(good.len())));
        assert_eq!(response(&good.as_bytes()[..good.len() - 1], key), Ok(None));
        let cases = [
            (good.replace("101 Switching", "503 Busy"), "503"),
            (good.replace("s3pP", "xxxx"), "Accept"),
            (good.replace("v1.json", "v1.proto"), "choose"),
            ("x".repeat(HEAD_MAX + 1), "without end"),
        ];
        for (head, what) in cases {
            let error = response(head.as_bytes(), key).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        assert!(request("h", key).ends_with("\r\n\r\n"));
    }

    #[test]
    fn masks_differ() {
        let mut masks = Masks::new(7);
        assert_ne!(masks.next(), masks.next());
    }
}
