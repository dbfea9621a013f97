//! The id of a direct room, made from its two users.
//!
//! Always holds: both sides make the same id, and no two pairs share one (docs/protocol.md, "Who may do what").

use data_encoding::BASE32_NOPAD;
use sha2::{Digest as _, Sha256};

use crate::id::{DIRECT_PREFIX, RoomId, UserId};

/// Characters of the digest's base32 that the id keeps: 130 bits.
const DIGEST_CHARS: usize = 26;

/// `dm.` + the first 26 characters of lower-case base32 of SHA-256(for each user in byte order: one length byte, then
/// its bytes).
pub fn room_id(one: &UserId, other: &UserId) -> RoomId {
    let (low, high) = if one <= other { (one, other) } else { (other, one) };
    let mut digest = Sha256::new();
    for user in [low, high] {
        let bytes = user.as_str().as_bytes();
        // A user id has at most 128 bytes.
        digest.update([bytes.len() as u8]);
        digest.update(bytes);
    }
    let mut text = String::with_capacity(DIRECT_PREFIX.len() + 56);
    text.push_str(DIRECT_PREFIX);
    BASE32_NOPAD.encode_append(&digest.finalize(), &mut text);
    text.truncate(DIRECT_PREFIX.len() + DIGEST_CHARS);
    text.make_ascii_lowercase();
    RoomId::parse(&text).expect("base32 is in the alphabet of room ids")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(one: &str, other: &str) -> String {
        room_id(&UserId::parse(one).unwrap(), &UserId::parse(other).unwrap()).as_str().to_owned()
    }

    #[test]
    fn ids_are_those_of_the_protocol() {
        // Computed with Python's hashlib and base64.
        assert_eq!(id("alice", "bob"), "dm.mvjrvdxp5j5zg2j2n6ar37gxib");
        assert_eq!(id("bob", "alice"), "dm.mvjrvdxp5j5zg2j2n6ar37gxib");
        assert_eq!(id("a@b.example", "auth0|1"), "dm.7fr22xtjfwwg3kljnh3k3ohpr6");
    }

    #[test]
    fn the_border_between_the_two_counts() {
        assert_eq!(id("ab", "c"), "dm.yfilknva25cq6xiebwg2zd3jet");
        assert_eq!(id("a", "bc"), "dm.5iomm4vrpjojtuttka5ctclf54");
    }
}
