//! Segments of our own: when a new one begins, how it is called, what its record says.
//!
//! Always holds: no name is given twice; partitions only ever go up.

use banyan_proto::id::{Bucket, SegmentId, Tenure, UnixMs};
use banyan_storage::log_store::SegmentRecord;

use super::Log;

impl Log {
    pub(super) const fn own_id(&self) -> SegmentId {
        SegmentId { epoch: self.tenure.epoch, part: self.part }
    }

    pub(super) fn is_mine(&self, record: &SegmentRecord) -> bool {
        Tenure { epoch: record.id.epoch, incarnation: record.incarnation } == self.tenure
    }

    /// The first partition of the time window.
    pub(super) fn window(&self, at: UnixMs) -> Bucket {
        // 2^24 windows of ten days are 450,000 years.
        Bucket(u32::try_from((at.0 / self.limits.window_ms.max(1)) << 8).unwrap_or(u32::MAX))
    }

    /// The partition of the new segment that a batch has to begin with, if it has to. Partitions only ever go up, whatever
    /// the clock does.
    pub(super) fn next_bucket(&self, at: UnixMs, bytes: u64) -> Option<Bucket> {
        let window = self.window(at);
        let Some(newest) = self.chain.last() else { return Some(window) };
        let full = self.bytes > 0 && self.bytes + bytes > self.limits.bucket_bytes;
        if window > newest.bucket {
            Some(window)
        } else if full {
            Some(Bucket(newest.bucket.0.saturating_add(1)))
        } else if self.own {
            None
        } else {
            Some(newest.bucket)
        }
    }

    /// The record of a segment that continues the log at the head. An empty segment at its end drops off the chain, so that
    /// chains grow with segments that hold rows.
    pub(super) fn next_record(&mut self, bucket: Bucket) -> SegmentRecord {
        let id = self.own_id();
        self.part = self.part.rolled();
        let newest = self.chain.last();
        let prev = newest.and_then(|newest| {
            let empty = newest.first_seq > self.head && newest.prev.is_some();
            if empty { newest.prev } else { Some(newest.id) }
        });
        SegmentRecord {
            id,
            bucket,
            first_seq: self.head.next(),
            n_before: self.n,
            prev,
            incarnation: self.tenure.incarnation,
            log: newest.map_or(self.fresh_log, |newest| newest.log),
        }
    }

    /// The record of a segment of our own is stored.
    pub(super) fn begin_segment(&mut self, record: SegmentRecord) {
        if self.chain.last().is_some_and(|newest| newest.bucket != record.bucket) {
            self.bytes = 0;
        }
        let prev = record.prev;
        let kept = self.chain.iter().take_while(|old| prev.is_some_and(|prev| old.id <= prev));
        self.chain = kept.cloned().chain([record]).collect();
        self.own = true;
    }
}
