//! Server frames: never masked, never fragmented.

use super::{CONTROL_PAYLOAD_MAX, Opcode};

const FIN: u8 = 0x80;

/// Bytes that a frame's header takes in front of `payload_len` bytes.
pub const fn header_len(payload_len: usize) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// Appends the header of a whole (FIN) frame; the caller appends exactly `payload_len` bytes behind it.
pub fn put_header(out: &mut Vec<u8>, opcode: Opcode, payload_len: usize) {
    assert!(
        !opcode.is_control() || payload_len <= CONTROL_PAYLOAD_MAX,
        "control frame of {payload_len} bytes"
    );
    out.push(FIN | opcode as u8);
    put_len(out, 0, payload_len);
}

/// Appends a whole frame.
pub fn put_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    out.reserve(header_len(payload.len()) + payload.len());
    put_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame. A reason that does not fit a control frame is cut at a character.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut end = reason.len().min(CONTROL_PAYLOAD_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = &reason[..end];
    put_header(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends the answer to a client's close frame: its own code back, or none if it gave none (RFC 6455 section 5.5.1).
pub fn put_close_reply(out: &mut Vec<u8>, code: Option<u16>) {
    match code {
        Some(code) => put_close(out, code, ""),
        None => put_header(out, Opcode::Close, 0),
    }
}

/// Whole length (header and payload) of the server frame that `bytes` begins with; `None` while its length field is
/// incomplete. For walking a buffer of frames that we encoded: it trusts them and checks nothing.
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    let payload_len = match *bytes.get(1)? & 0x7f {
        126 => usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        127 => usize::try_from(u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)).ok()?,
        len => usize::from(len),
    };
    Some(header_len(payload_len) + payload_len)
}

/// The length field, minimal, with `mask_bit` in its first byte.
pub(super) fn put_len(out: &mut Vec<u8>, mask_bit: u8, len: usize) {
    if let Ok(short) = u8::try_from(len)
        && short < 126
    {
        out.push(mask_bit | short);
    } else if let Ok(medium) = u16::try_from(len) {
        out.push(mask_bit | 126);
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        out.push(mask_bit | 127);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_header(payload_len: usize, want: &[u8]) {
        let mut out = Vec::new();
        put_header(&mut out, Opcode::Text, payload_len);
        assert_eq!(out, want);
        assert_eq!(out.len(), header_len(payload_len));
        assert_eq!(frame_len(&out), Some(want.len() + payload_len));
        for cut in 0..out.len().min(if want.len() == 2 { 2 } else { want.len() }) {
            assert_eq!(frame_len(&out[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn length_fields() {
        check_header(0, &[0x81, 0]);
        check_header(125, &[0x81, 125]);
        check_header(126, &[0x81, 126, 0, 126]);
        check_header(65_535, &[0x81, 126, 0xff, 0xff]);
        check_header(65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn walks_a_buffer_of_frames() {
        let mut out = Vec::new();
        let sizes = [0, 5, 125, 126, 300, 70_000, 1];
        for size in sizes {
            put_frame(&mut out, Opcode::Binary, &vec![7; size]);
        }
        let mut rest = &out[..];
        for size in sizes {
            let len = frame_len(rest).unwrap();
            assert_eq!(len, header_len(size) + size);
            rest = &rest[len..];
        }
        assert_eq!(rest, b"");
    }

    #[test]
    fn close_frames() {
        let mut out = Vec::new();
        put_close(&mut out, 3001, "draining");
        assert_eq!(out, b"\x88\x0a\x0b\xb9draining");
        out.clear();
        put_close_reply(&mut out, None);
        assert_eq!(out, b"\x88\x00");
        out.clear();
        put_close_reply(&mut out, Some(1000));
        assert_eq!(out, b"\x88\x02\x03\xe8");
    }

    /// 61 two-byte characters fit behind the code (122 bytes), the 62nd would end at 124 of 123.
    #[test]
    fn a_long_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        put_close(&mut out, 1002, &"é".repeat(80));
        assert_eq!(out[1], 2 + 122);
        assert_eq!(str::from_utf8(&out[4..]).unwrap(), "é".repeat(61));
    }

    #[test]
    #[should_panic(expected = "control frame of 126 bytes")]
    fn a_control_frame_above_125_is_our_bug() {
        put_frame(&mut Vec::new(), Opcode::Ping, &[0; 126]);
    }
}
