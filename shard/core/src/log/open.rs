//! Opening a log after somebody else: what was written is read, its end written again, the own record put behind it.
//!
//! Always holds (DESIGN.md, section 5): rule 3, step by step; what must be there and is not is looked for again, and is
//! damage in the end; who opens for reads only writes nothing, and finds either that the log ends where its last owner
//! said, or opens it in full.

use std::sync::Arc;

use banyan_proto::id::{Bucket, SegmentId, Seq};
use banyan_proto::plant::{self, Bug};
use banyan_storage::log_store::{SEGMENTS_MAX, Said, SegmentRecord, Span};
use banyan_storage::{Page, Range, Row};

use super::chain::{self, Chain};
use super::tail::{self, Look};
use super::{Action, Actions, Handed, How, Log, NotOpened, Opening, Phase, REREADS_MAX, Reading, RowsWrite};
use super::{reapplies_early, row_bytes};
use crate::room::Now;

impl Log {
    /// Begins to open a log that is closed (new, or could not be opened) or was opened for reads only.
    pub fn open(&mut self, now: Now, how: Opening, out: &mut Actions) {
        debug_assert!(
            matches!(self.phase, Phase::Closed | Phase::ReadOpen),
            "opened while it {:?}",
            self.phase
        );
        self.close();
        match how {
            Opening::Full => self.read_segments(Reading { how: How::Full, tries: 0 }, out),
            Opening::Again => self.read_segments(Reading { how: How::Again, tries: 0 }, out),
            Opening::HandedOver => self.read_segments(Reading { how: How::HandedOver, tries: 0 }, out),
            Opening::Passed(handed) => {
                let Handed { chain, head, n, bytes } = *handed;
                debug_assert!(!chain.is_empty(), "an unknown room has no state to pass");
                (self.chain, self.head, self.n, self.bytes) = (chain, head, n, bytes);
                self.write_own_record(now, false, out);
            }
            Opening::ReadOnly { again } => {
                self.phase = Phase::ReadsSaid { again };
                out.push(Action::ReadSaid);
            }
        }
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.chain = Arc::default();
        (self.own, self.head, self.n, self.bytes) = (false, Seq(0), 0, 0);
        self.tail = Vec::new();
    }

    pub(super) fn open_failed(&mut self, why: NotOpened, out: &mut Actions) {
        self.close();
        out.push(Action::OpenFailed(why));
    }

    pub(super) fn read_segments(&mut self, reading: Reading, out: &mut Actions) {
        self.tail = Vec::new();
        self.phase = Phase::ReadsSegments(reading);
        out.push(Action::ReadSegments);
    }

    /// Something that must be there was not seen. Who opens for reads only opens in full instead.
    pub(super) fn read_again(&mut self, now: Now, reading: Reading, after: Seq, out: &mut Actions) {
        if let How::ReadOnly { again, .. } = reading.how {
            return self.read_segments(Reading { how: How::in_full(again), tries: 0 }, out);
        }
        let tries = reading.tries + 1;
        if tries > REREADS_MAX {
            return self.open_failed(NotOpened::Damaged { after }, out);
        }
        // Mostly a matter of one more look; each further one waits twice as long.
        let wait = u64::from(self.limits.settle_first_ms) << (tries - 1) >> 4;
        let at_ms = now.mono_ms + wait.clamp(1, u64::from(self.limits.settle_max_ms).max(1));
        self.phase = Phase::ReadsAgain { reading: Reading { tries, ..reading }, at_ms };
    }

    pub(super) fn segments_read(
        &mut self,
        now: Now,
        mut reading: Reading,
        records: Vec<SegmentRecord>,
        out: &mut Actions,
    ) {
        let Some(highest) = records.iter().map(|record| record.id).max() else {
            self.phase = Phase::Open;
            return out.push(Action::Absent);
        };
        if records.len() > SEGMENTS_MAX {
            return self.open_failed(NotOpened::TooManySegments, out);
        }
        let mut top = None;
        if let How::ReadOnly { said, again } = reading.how {
            if highest == said.segment || plant::is(Bug::ReadOpenIgnoresNewerRecords) {
                top = Some(said.segment);
            } else {
                reading.how = How::in_full(again);
            }
        }
        let in_full = !matches!(reading.how, How::ReadOnly { .. });
        if in_full && self.is_superseded(highest) {
            return self.open_failed(NotOpened::Superseded, out);
        }
        match chain::follow(records, top) {
            Chain::Whole(chain) => {
                self.chain = chain.into();
                self.read_tail(reading, Seq(u64::MAX), out);
            }
            Chain::Missing => self.read_again(now, reading, Seq(0), out),
            Chain::Damaged { after } => self.open_failed(NotOpened::Damaged { after }, out),
        }
    }

    /// A record that is not below the one that this opening would write: a later owner's, or an opening's of the same name.
    fn is_superseded(&self, highest: SegmentId) -> bool {
        highest >= self.own_id() && !plant::is(Bug::OpenRetriedUnderSameKey)
    }

    /// The newest rows below `before`, whatever segments they are in.
    fn read_tail(&mut self, reading: Reading, before: Seq, out: &mut Actions) {
        let limit = self.limits.tail;
        let spans = self.tail_spans(before);
        self.phase = Phase::ReadsTail(reading);
        out.push(Action::ReadRows { spans, range: Range::before(before), limit });
    }

    /// As many of the newest spans as a read of the tail can reach into.
    fn tail_spans(&self, before: Seq) -> Vec<Span> {
        let newest = self.chain.last().map_or(Seq(0), |record| record.first_seq);
        let reach = before.0.min(newest.0).saturating_sub(self.limits.tail.events as u64).max(1);
        chain::spans(&self.chain, Seq(reach), Seq(before.0 - 1), Seq(u64::MAX))
    }

    pub(super) fn tail_read(&mut self, now: Now, mut reading: Reading, page: Page, out: &mut Actions) {
        let Some(newest) = self.chain.last().cloned() else { return };
        let Page { mut rows, more } = page;
        let grew = !rows.is_empty();
        // Rows below what the spans of this read reach were not asked for.
        let lowest = rows.first().or_else(|| self.tail.first()).map_or(newest.first_seq, |row| row.seq);
        let more = more || (grew && lowest > self.chain[0].first_seq);
        rows.append(&mut self.tail);
        self.tail = rows;
        if let How::ReadOnly { said, again } = reading.how {
            if self.ends_where(said, more) {
                return self.read_opened(said, out);
            }
            reading.how = How::in_full(again);
            // Not asked yet: a later owner that went on in the segment that is named in `said`.
            if self.is_superseded(newest.id) {
                return self.open_failed(NotOpened::Superseded, out);
            }
        }
        match tail::look(&self.tail, more, newest.first_seq) {
            Look::Below { before } => self.read_tail(reading, before, out),
            Look::Gap { after } => self.read_again(now, reading, after, out),
            Look::Ends { head } => {
                self.tail.truncate(self.tail.partition_point(|row| row.seq <= head));
                self.head = head;
                self.n = self.tail.last().map_or(newest.n_before, |row| row.n);
                self.bytes = self.estimated_bytes(&newest);
                if plant::is(Bug::DerivedOfNewestSegmentOnly) && head < newest.first_seq {
                    self.tail.iter_mut().for_each(|row| row.derived = None);
                }
                if reading.how == How::Again && self.is_mine(&newest) {
                    self.own = true;
                    self.opened(out);
                } else if reading.how == How::HandedOver {
                    self.write_own_record(now, true, out);
                } else if plant::is(Bug::RecordBeforeRewrite) {
                    self.write_own_record(now, false, out);
                } else {
                    self.rewrite(now, newest, out);
                }
            }
        }
    }

    /// The record named in `said` is the highest: is that where the log ends?
    fn ends_where(&mut self, said: Said, more: bool) -> bool {
        if plant::is(Bug::ReadOpenIgnoresNewerRows) {
            self.tail.retain(|row| row.seq <= said.head);
        }
        let first = self.tail.first().map_or_else(|| said.head.next(), |row| row.seq);
        let dense = self.tail.iter().zip(first.0..).all(|(row, seq)| row.seq.0 == seq);
        let ends = match self.tail.last() {
            Some(last) => last.seq == said.head && last.n == said.n,
            None => said.head == Seq(0) && !more,
        };
        dense && ends
    }

    fn read_opened(&mut self, said: Said, out: &mut Actions) {
        (self.head, self.n) = (said.head, said.n);
        self.phase = Phase::ReadOpen;
        out.push(Action::ReadOpened { rows: std::mem::take(&mut self.tail) });
    }

    /// 3c: the newest record and every row of its last batch, in place, with the content that was read.
    pub(super) fn rewrite(&mut self, now: Now, newest: SegmentRecord, out: &mut Actions) {
        let last = self.tail.last().filter(|row| row.seq >= newest.first_seq);
        let mut first = last.map_or(Seq(u64::MAX), |row| row.batch_first);
        if plant::is(Bug::OnlyLastRowRewritten) {
            first = self.head;
        }
        let rows: Arc<[Row]> = self.tail.iter().filter(|row| row.seq >= first).cloned().collect();
        if !rows.is_empty() && !plant::is(Bug::NoTailRewrite) {
            let mut write = RowsWrite { segment: newest.id, bucket: newest.bucket, rows, attempt: None };
            self.send_rows(&mut write, out);
            self.rows = Some(write);
        }
        if plant::is(Bug::DerivedReappliedWithRewrite) {
            self.derive_again(out);
        }
        if !plant::is(Bug::RecordNotRewritten) {
            self.send_record(newest, out);
        }
        self.phase = Phase::Rewrites;
        self.go_on_if_rewritten(now, out);
    }

    pub(super) fn go_on_if_rewritten(&mut self, now: Now, out: &mut Actions) {
        if self.record.is_some() || self.rows.is_some() || self.derived.is_some() {
            return;
        }
        if plant::is(Bug::RecordBeforeRewrite) && self.own {
            return self.recorded(true, out);
        }
        if plant::is(Bug::DerivedReappliedAfterRewrite) && self.reapplies() {
            self.derive_again(out);
            self.phase = Phase::OpenDerives;
            return;
        }
        if plant::is(Bug::DerivedReappliedBeforeRecord) && self.reapplies() {
            self.phase = Phase::OpenAwaitsBarrier;
            return out.push(Action::Barrier);
        }
        self.write_own_record(now, true, out);
    }

    /// 3d.
    pub(super) fn write_own_record(&mut self, now: Now, reapplies: bool, out: &mut Actions) {
        if plant::is(Bug::RecordLazily) {
            return self.recorded(reapplies, out);
        }
        if plant::is(Bug::OpenRetriedUnderSameKey)
            && self.chain.last().is_some_and(|record| record.id == self.own_id())
        {
            self.own = true;
            return self.recorded(reapplies, out);
        }
        let newest = self.chain.last().map_or(Bucket(0), |record| record.bucket);
        let bucket = newest.max(self.window(now.unix));
        if bucket != newest {
            self.bytes = 0;
        }
        let record = self.next_record(bucket);
        self.phase = Phase::Records { reapplies };
        if plant::is(Bug::RecordNotAwaited) {
            self.send_record(record.clone(), out);
            self.begin_segment(record);
            return self.recorded(reapplies, out);
        }
        self.send_record(record, out);
    }

    /// The own record is complete: from now on nobody can cut what was adopted.
    pub(super) fn recorded(&mut self, reapplies: bool, out: &mut Actions) {
        if !reapplies || !self.reapplies() || reapplies_early() {
            return self.opened(out);
        }
        if plant::is(Bug::DerivedReappliedWithoutBarrier) {
            self.derive_again(out);
            self.phase = Phase::OpenDerives;
            return;
        }
        self.phase = Phase::OpenAwaitsBarrier;
        out.push(Action::Barrier);
    }

    /// The last batch on the chain, looking past empty segments, changed something beside the log.
    fn reapplies(&self) -> bool {
        let skipped = plant::is(Bug::DerivedNotReapplied) || plant::is(Bug::DerivedReappliedWithRewrite);
        !skipped && self.tail.last().is_some_and(|row| row.derived.is_some())
    }

    pub(super) fn derive_again(&mut self, out: &mut Actions) {
        if let Some(derived) = self.tail.last().and_then(|row| row.derived.as_deref()).cloned() {
            self.send_derived(derived, out);
        }
    }

    pub(super) fn opened(&mut self, out: &mut Actions) {
        self.phase = Phase::Open;
        out.push(Action::Opened { rows: std::mem::take(&mut self.tail) });
    }

    /// What the newest partition holds, from the size of the rows read.
    fn estimated_bytes(&self, newest: &SegmentRecord) -> u64 {
        let first = self.chain.iter().find(|record| record.bucket == newest.bucket);
        let rows = self.head.next().0.saturating_sub(first.map_or(u64::MAX, |record| record.first_seq.0));
        let read = self.tail.iter().map(row_bytes).sum::<u64>();
        rows * (read / (self.tail.len() as u64).max(1))
    }
}
