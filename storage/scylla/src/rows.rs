//! Pages of a room's log.
//!
//! A span is one slice of one partition, read in steps of about a megabyte. Behind the first span that is asked, further ones are asked
//! for ahead, since a room that has moved often has many short ones.

use std::sync::Arc;

use banyan_proto::id::{Origin, RoomId, Seq};
use banyan_storage::log_store::Span;
use banyan_storage::{Derived, Error, Page, READ_MAX, Range, ReadLimit, Row};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::convert::{epoch_part, id, number, ordered};
use crate::store::{Inner, corrupt, corrupt_row};

/// What one answer of the servers should hold about: far below their frames' limit of 16 MiB even if events grow tenfold.
const STEP_BYTES: usize = 1 << 20;
const STEP_ROWS_FIRST: usize = 128;
const STEP_ROWS_MAX: usize = 2_048;
/// Spans asked for ahead.
const AHEAD: usize = 8;

/// The part of a span that a range asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    span: Span,
    first: Seq,
    last: Seq,
}

/// Callers make spans from a chain of segments; wrong ones are a bug of ours.
pub(crate) fn assert_ascending(room: &RoomId, spans: &[Span]) {
    for pair in spans.windows(2) {
        assert!(
            pair[0].last < pair[1].first && pair[0].segment < pair[1].segment,
            "{room}: spans overlap or do not ascend: {pair:?}"
        );
    }
}

/// What is to be read, in the order of reading.
fn slices(spans: &[Span], range: Range) -> Vec<Slice> {
    let (low, high) = match range {
        Range::After { after, through } => (after.0.saturating_add(1), through.0),
        Range::Before { before, above } => (above.0.saturating_add(1), before.0.saturating_sub(1)),
    };
    // Nothing lies above the highest seq or below the lowest.
    let impossible = matches!(
        range,
        Range::After { after: Seq(u64::MAX), .. } | Range::Before { above: Seq(u64::MAX), .. }
    );
    let cut = |span: &Span| {
        let (first, last) = (span.first.0.max(low), span.last.0.min(high));
        (first <= last && !impossible).then_some(Slice { span: *span, first: Seq(first), last: Seq(last) })
    };
    let mut slices: Vec<_> = spans.iter().filter_map(cut).collect();
    if matches!(range, Range::Before { .. }) {
        slices.reverse();
    }
    slices
}

/// Takes rows in the order of reading until the page is full.
struct Filling {
    rows: Vec<Row>,
    bytes: usize,
    limit: ReadLimit,
    more: bool,
}

impl Filling {
    /// False: it is full, and this row is what there is more.
    fn take(&mut self, row: Row) -> bool {
        let full = self.rows.len() == self.limit.events;
        if full || (!self.rows.is_empty() && self.bytes + row.event.len() > self.limit.bytes) {
            self.more = true;
            return false;
        }
        self.bytes += row.event.len();
        self.rows.push(row);
        true
    }

    /// Rows to ask for next: what is still wanted and one more, in answers of a bearable size.
    fn step(&self) -> usize {
        let wanted = self.limit.events - self.rows.len() + 1;
        let bearable = match self.rows.len() {
            0 => STEP_ROWS_FIRST,
            count => (STEP_BYTES / (self.bytes / count).max(1)).clamp(16, STEP_ROWS_MAX),
        };
        wanted.min(bearable)
    }
}

impl Inner {
    pub(crate) async fn rows(
        &self,
        room: &RoomId,
        spans: &[Span],
        range: Range,
        limit: ReadLimit,
    ) -> Result<Page, Error> {
        let limit =
            ReadLimit { events: limit.events.min(READ_MAX.events), bytes: limit.bytes.min(READ_MAX.bytes) };
        let mut filling = Filling { rows: Vec::new(), bytes: 0, limit, more: false };
        let down = matches!(range, Range::Before { .. });
        let slices = slices(spans, range);
        if limit.events > 0
            && let Some((first, rest)) = slices.split_first()
            && self.fill(room, *first, down, None, &mut filling).await?
        {
            let step = filling.step();
            let mut begun = stream::iter(rest.iter().copied())
                .map(|slice| async move { (slice, self.slice(room, slice, down, step).await) })
                .buffered(AHEAD);
            while let Some((slice, rows)) = begun.next().await {
                if !self.fill(room, slice, down, Some((rows?, step)), &mut filling).await? {
                    break;
                }
            }
        }
        if down {
            filling.rows.reverse();
        }
        Ok(Page { rows: filling.rows, more: filling.more })
    }

    /// Reads a slice to its end. False: the page is full before. `begun`: what was read of it, and with which limit.
    async fn fill(
        &self,
        room: &RoomId,
        mut slice: Slice,
        down: bool,
        mut begun: Option<(Vec<Row>, usize)>,
        filling: &mut Filling,
    ) -> Result<bool, Error> {
        loop {
            let (rows, asked) = match begun.take() {
                Some(begun) => begun,
                None => {
                    let step = filling.step();
                    (self.slice(room, slice, down, step).await?, step)
                }
            };
            let count = rows.len();
            let Some(last) = rows.last().map(|row| row.seq) else { return Ok(true) };
            if !rows.into_iter().all(|row| filling.take(row)) {
                return Ok(false);
            }
            if count < asked || last == (if down { slice.first } else { slice.last }) {
                return Ok(true);
            }
            if down {
                slice.last = Seq(last.0 - 1); // above `first`, so above 0
            } else {
                slice.first = last.next();
            }
        }
    }

    async fn slice(&self, room: &RoomId, slice: Slice, down: bool, limit: usize) -> Result<Vec<Row>, Error> {
        const WHAT: &str = "messages";
        let statement = if down { &self.statements.rows_down } else { &self.statements.rows_up };
        let (epoch, part) = epoch_part(slice.span.segment);
        let values = (
            room.as_str(),
            i64::from(slice.span.bucket.0),
            epoch,
            part,
            ordered(slice.first.0),
            ordered(slice.last.0),
            i32::try_from(limit).unwrap_or(i32::MAX),
        );
        let found = self.read(WHAT, statement, values).await?;
        let rows = found.rows::<(i64, i64, i64, i64, &[u8], Option<&[u8]>)>().map_err(corrupt(WHAT))?;
        rows.map(|row| {
            let (seq, batch_first, n, origin, event, derived) = row.map_err(corrupt_row(WHAT))?;
            Ok(Row {
                seq: Seq(number(seq, WHAT)?),
                batch_first: Seq(number(batch_first, WHAT)?),
                n: number(n, WHAT)?,
                origin: Origin(id(origin)),
                // Copied: a slice of the answer would keep all of it.
                event: Bytes::copy_from_slice(event),
                derived: derived.map(|derived| Derived::decode(room, derived).map(Arc::new)).transpose()?,
            })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use banyan_storage::contract::log::{segment, span};

    use super::*;

    #[track_caller]
    fn check(range: Range, want: &[(u64, u64)]) {
        let spans =
            [span(segment(1, 0), 1, 1, 4), span(segment(2, 0), 1, 5, 4), span(segment(3, 0), 2, 5, u64::MAX)];
        let got: Vec<_> = slices(&spans, range).iter().map(|slice| (slice.first.0, slice.last.0)).collect();
        assert_eq!(got, want, "{range:?}");
    }

    #[test]
    fn ranges_cut_spans() {
        let (any, last) = (Seq(0), Seq(u64::MAX));
        check(Range::after(any), &[(1, 4), (5, u64::MAX)]);
        check(Range::After { after: Seq(2), through: Seq(6) }, &[(3, 4), (5, 6)]);
        check(Range::After { after: Seq(4), through: Seq(4) }, &[]);
        check(Range::after(last), &[]);
        check(Range::before(last), &[(5, u64::MAX - 1), (1, 4)]);
        check(Range::before(Seq(6)), &[(5, 5), (1, 4)]);
        check(Range::Before { before: Seq(9), above: Seq(3) }, &[(5, 8), (4, 4)]);
        check(Range::before(any), &[]);
        check(Range::Before { before: last, above: last }, &[]);
    }

    #[test]
    fn steps_follow_the_size_of_events() {
        let row = |bytes: usize| Row {
            event: Bytes::from(vec![0; bytes]),
            ..banyan_storage::contract::row(&banyan_storage::contract::room("r"), 1, 1)
        };
        let limit = ReadLimit { events: 10_000, bytes: usize::MAX };
        let mut filling = Filling { rows: Vec::new(), bytes: 0, limit, more: false };
        assert_eq!(filling.step(), STEP_ROWS_FIRST);
        assert!(filling.take(row(64 << 10)));
        assert_eq!(filling.step(), 16);
        let small = Filling { rows: vec![row(0)], bytes: 0, limit, more: false };
        assert_eq!(small.step(), STEP_ROWS_MAX);
        let nearly =
            Filling { rows: vec![row(0)], bytes: 0, limit: ReadLimit { events: 3, ..limit }, more: false };
        assert_eq!(nearly.step(), 3, "two, and one to know that there are more");
    }
}
