//! Appending to a log that is open: rows first, what they change beside the log behind a barrier.

use std::sync::Arc;

use banyan_proto::plant::{self, Bug};
use banyan_storage::{Derived, Row};

use super::attempt::Attempt;
use super::{Action, Actions, Log, Phase, RowsWrite, row_bytes};
use crate::room::Now;

impl Log {
    /// Appends a batch of rows that follow the head. The derived rows of the batch are on its last row.
    pub fn append(&mut self, now: Now, rows: Arc<[Row]>, out: &mut Actions) {
        debug_assert!(self.phase == Phase::Open, "append while it {:?}", self.phase);
        debug_assert!(
            rows.iter().zip(self.head.0 + 1..).all(|(row, seq)| row.seq.0 == seq),
            "rows follow the head"
        );
        debug_assert!(rows.iter().all(|row| row.batch_first == self.head.next()), "a batch is one batch");
        let Some(last) = rows.last() else {
            debug_assert!(false, "an empty batch");
            return;
        };
        let bytes = rows.iter().map(row_bytes).sum::<u64>();
        debug_assert!(last.n >= self.n, "messages are never fewer");
        if let Some(bucket) = self.next_bucket(now.unix, bytes) {
            let record = self.next_record(bucket);
            let mut write = RowsWrite { segment: record.id, bucket, rows, attempt: None };
            if plant::is(Bug::RollNotAwaited) && !self.chain.is_empty() {
                self.send_record(record.clone(), out);
                self.begin_segment(record);
                self.send_rows(&mut write, out);
                self.phase = Phase::AppendsRows;
            } else {
                self.send_record(record, out);
                self.phase = Phase::AppendsRecord;
            }
            self.rows = Some(write);
        } else if let Some(newest) = self.chain.last() {
            let mut write = RowsWrite { segment: newest.id, bucket: newest.bucket, rows, attempt: None };
            self.send_rows(&mut write, out);
            self.rows = Some(write);
            self.phase = Phase::AppendsRows;
        }
    }

    /// Writes member rows that no event of the log tells of; `changed` of each is the head, or below it where a row is
    /// written once more. Behind a barrier: the head of
    /// an owner that is fenced and has not noticed may lie above what the log will ever hold, and a row that names such a
    /// seq would win over what the true owner writes.
    pub fn change(&mut self, derived: Derived, out: &mut Actions) {
        debug_assert!(self.phase == Phase::Open, "change while it {:?}", self.phase);
        if plant::is(Bug::DerivedBeforeBarrier) {
            self.send_derived(derived, out);
            self.phase = Phase::Changes;
            return;
        }
        self.derived = Some(Box::new((derived, Attempt::sent(&self.limits))));
        self.phase = Phase::ChangeAwaitsBarrier;
        out.push(Action::Barrier);
    }

    pub(super) fn rows_stored(&mut self, now: Now, rows: &[Row], out: &mut Actions) {
        if self.phase == Phase::Rewrites {
            return self.go_on_if_rewritten(now, out);
        }
        self.bytes += rows.iter().map(row_bytes).sum::<u64>();
        let Some(last) = rows.last() else { return };
        (self.head, self.n) = (last.seq, last.n);
        if last.derived.is_none() {
            self.phase = Phase::Open;
            return out.push(Action::Appended);
        }
        // Kept until the barrier has passed.
        self.tail = rows.to_vec();
        if plant::is(Bug::DerivedBeforeBarrier) {
            return self.derive_batch(out);
        }
        self.phase = Phase::AppendAwaitsBarrier;
        out.push(Action::Barrier);
    }

    pub(super) fn derive_batch(&mut self, out: &mut Actions) {
        self.derive_again(out);
        self.tail = Vec::new();
        self.phase = Phase::AppendDerives;
        if plant::is(Bug::DerivedNotAwaited) {
            self.phase = Phase::Open;
            out.push(Action::Appended);
        }
    }
}
