//! Where a log ends, from the newest rows that a read gave.

use banyan_proto::id::Seq;
use banyan_storage::Row;

/// What the newest rows say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The log ends here; rows above are of a batch that was never completed. All rows of the last batch are among the
    /// ones read.
    Ends { head: Seq },
    /// Rows below this one are needed to know the last batch.
    Below { before: Seq },
    /// A row that must be there was not seen. An owner that has been fenced but does not know it may complete a batch and
    /// begin the next one while a read is under way: read again.
    Gap { after: Seq },
}

/// `rows`: the newest ones, ascending, whatever segment of the chain they are of. `more`: there may be rows below them.
/// `newest_first`: the first seq of the newest segment.
///
/// One batch is in flight at a time, so whatever lies below the first seq of the newest batch seen is complete, seen or
/// not; of that batch itself the part without a hole counts.
pub(super) fn look(rows: &[Row], more: bool, newest_first: Seq) -> Look {
    let lowest = rows.first().map_or(Seq(u64::MAX), |row| row.seq);
    let head = match rows.last() {
        Some(last) if last.seq >= newest_first => {
            let first = last.batch_first.max(newest_first);
            if lowest > first && more {
                return Look::Below { before: lowest };
            }
            let from = rows.partition_point(|row| row.seq < first);
            let whole = rows[from..].iter().zip(first.0..).take_while(|(row, seq)| row.seq.0 == *seq).count();
            Seq(first.0 - 1 + whole as u64)
        }
        _ => Seq(newest_first.0.saturating_sub(1)),
    };
    if head == Seq(0) {
        return Look::Ends { head };
    }
    let kept = &rows[..rows.partition_point(|row| row.seq <= head)];
    if let Some(pair) = kept.windows(2).find(|pair| pair[0].seq.next() != pair[1].seq) {
        return Look::Gap { after: pair[0].seq };
    }
    match kept.last() {
        Some(last) if last.seq != head => Look::Gap { after: last.seq },
        Some(last) if kept[0].seq <= last.batch_first => Look::Ends { head },
        _ if more => Look::Below { before: lowest.min(head.next()) },
        Some(last) => Look::Gap { after: Seq(last.batch_first.0.saturating_sub(1)) },
        None => Look::Gap { after: Seq(0) },
    }
}
