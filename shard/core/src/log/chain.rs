//! The segments of a room that count: from the highest record along `prev`. A record off the chain is void.

use banyan_proto::id::{SegmentId, Seq};
use banyan_proto::plant::{self, Bug};
use banyan_storage::log_store::{SegmentRecord, Span};

/// What a read of a room's records amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// Oldest first, at least one.
    Whole(Vec<SegmentRecord>),
    /// A record that another one names was not among them. A read of many records is no snapshot: read again.
    Missing,
    /// These cannot have been written by us.
    Damaged { after: Seq },
}

/// `top`: the record to begin with; `None`: the highest.
pub(super) fn follow(mut records: Vec<SegmentRecord>, top: Option<SegmentId>) -> Chain {
    records.sort_unstable_by_key(|record| record.id);
    if plant::is(Bug::HigherFirstSeqCuts) {
        return every_record_cuts(records);
    }
    let mut chain: Vec<SegmentRecord> = Vec::new();
    let mut next = top.or_else(|| records.last().map(|record| record.id));
    while let Some(id) = next {
        let Ok(at) = records.binary_search_by_key(&id, |record| record.id) else { return Chain::Missing };
        let record = records[at].clone();
        // Owners only ever continue what was before them.
        let fits =
            chain.last().is_none_or(|after| record.id < after.id && record.first_seq <= after.first_seq);
        if !fits || record.first_seq == Seq(0) {
            return Chain::Damaged { after: record.first_seq };
        }
        next = record.prev;
        chain.push(record);
    }
    chain.reverse();
    Chain::Whole(chain)
}

/// The bug: whatever record is there ends the ones below it, on the chain or not.
fn every_record_cuts(records: Vec<SegmentRecord>) -> Chain {
    let mut chain: Vec<SegmentRecord> = Vec::new();
    for record in records {
        chain.retain(|before| before.first_seq < record.first_seq);
        chain.push(record);
    }
    Chain::Whole(chain)
}

/// Where seqs `first..=last` lie, as far as the chain goes: each segment ends where its successor begins, the newest at
/// `end`. Ascending, without empty ones.
pub(super) fn spans(chain: &[SegmentRecord], first: Seq, last: Seq, end: Seq) -> Vec<Span> {
    let from = chain.partition_point(|record| record.first_seq <= first).saturating_sub(1);
    let mut spans = Vec::new();
    for (at, record) in chain.iter().enumerate().skip(from) {
        if record.first_seq > last {
            break;
        }
        let ends = chain.get(at + 1).map_or(end, |next| Seq(next.first_seq.0.saturating_sub(1)));
        let (low, high) = (record.first_seq.max(first), ends.min(last));
        if low <= high {
            spans.push(Span { segment: record.id, bucket: record.bucket, first: low, last: high });
        }
    }
    spans
}
