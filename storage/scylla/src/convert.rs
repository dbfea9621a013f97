//! Numbers as CQL has them. Seqs, epochs and parts are far below 2^63, so they keep their order as `bigint`; ids without an order keep
//! their bits.

use banyan_proto::id::{Incarnation, SegmentId, Seq, UserId};
use banyan_storage::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Stands for "none" where null would leave a tombstone at every write.
pub(crate) const NONE: i64 = -1;

/// Partitions of a room's members.
pub(crate) const SHARDS: i32 = 64;

/// A number with an order. What is above 2^63 (ends of ranges) becomes the highest there is.
pub(crate) fn ordered(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What [`ordered`] or [`optional`] made, read back.
pub(crate) fn number(stored: i64, what: &'static str) -> Result<u64, Error> {
    u64::try_from(stored).map_err(|_| Error::Corrupt(format!("{what}: {stored}")))
}

/// The bits of an id.
pub(crate) fn bits(id: u64) -> i64 {
    id.cast_signed()
}

pub(crate) fn id(stored: i64) -> u64 {
    stored.cast_unsigned()
}

pub(crate) fn optional(seq: Option<Seq>) -> i64 {
    seq.map_or(NONE, |seq| ordered(seq.0))
}

pub(crate) fn epoch_part(segment: SegmentId) -> (i64, i64) {
    (ordered(segment.epoch.0), ordered(segment.part.0))
}

/// Blobs order as the numbers do.
pub(crate) fn incarnation(incarnation: Incarnation) -> [u8; 16] {
    incarnation.0.to_be_bytes()
}

pub(crate) fn incarnation_of(stored: &[u8], what: &'static str) -> Result<Incarnation, Error> {
    let bytes = stored
        .try_into()
        .map_err(|_| Error::Corrupt(format!("{what}: an incarnation of {} bytes", stored.len())))?;
    Ok(Incarnation(u128::from_be_bytes(bytes)))
}

/// The partition of a member. The hash is part of the schema: it never changes.
pub(crate) fn shard(user: &UserId) -> i32 {
    shard_of(user.as_str())
}

pub(crate) fn shard_of(user: &str) -> i32 {
    let low = xxh3_64(user.as_bytes()) & 63;
    i32::try_from(low).unwrap_or_default() // below 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        assert_eq!((ordered(7), ordered(u64::MAX)), (7, i64::MAX));
        assert_eq!(number(7, "x"), Ok(7));
        assert!(number(NONE, "x").is_err());
        for one in [0, 1, u64::MAX, 1 << 63] {
            assert_eq!(id(bits(one)), one);
        }
        let (low, high) = (Incarnation(1 << 8), Incarnation(u128::MAX));
        assert!(incarnation(low) < incarnation(high));
        assert_eq!(incarnation_of(&incarnation(high), "x"), Ok(high));
        assert!(incarnation_of(&[1, 2], "x").is_err());
    }

    /// Changing it would lose every member.
    #[test]
    fn shards_are_for_ever() {
        let of = |name: &str| shard(&UserId::parse(name).unwrap());
        assert_eq!([of("anna"), of("paul"), of("~system"), of("0")], GOLDEN);
        let mut met = std::collections::BTreeSet::new();
        for i in 0..1_000 {
            met.insert(of(&format!("u{i}")));
        }
        assert!(met.len() == 64 && met.iter().all(|shard| (0..SHARDS).contains(shard)));
    }

    const GOLDEN: [i32; 4] = [57, 38, 60, 21];
}
