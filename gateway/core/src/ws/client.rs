//! Encoding of client frames: what tests send. Clients that mean it use `tokio-tungstenite`.

use super::mask;

/// Appends one masked frame. `first` is the frame's first byte as it stands (FIN, reserved bits, opcode), so that
/// tests can build wrong ones; the length is encoded minimally.
pub fn put_frame(out: &mut Vec<u8>, first: u8, mask: [u8; 4], payload: &[u8]) {
    out.push(first);
    super::encode::put_len(out, 0x80, payload.len());
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    mask::apply(&mut out[start..], mask, 0);
}
