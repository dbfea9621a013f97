//! A store in memory for the tests of rooms: what an action asks is answered at once, or kept by the test.
//!
//! Always holds: a key that was written gets no second content (I2).

use std::collections::BTreeMap;

use banyan_proto::id::{Bucket, SegmentId};
use banyan_storage::log_store::{Said, SegmentRecord, Span, Write};
use banyan_storage::{Derived, Page};

use super::*;

#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) records: BTreeMap<SegmentId, SegmentRecord>,
    pub(super) rows: BTreeMap<(SegmentId, Seq), (Bucket, Row)>,
    pub(super) said: Option<Said>,
    pub(super) row: Option<RoomRow>,
    pub(super) members: BTreeMap<UserId, MemberRow>,
    pub(super) marks: BTreeMap<UserId, Marks>,
}

impl Disk {
    pub(super) fn write(&mut self, write: &Write) {
        match write {
            Write::Record(record) => {
                let there = self.records.entry(record.id).or_insert_with(|| (**record).clone());
                assert_eq!(*there, **record, "a segment got a second record");
            }
            Write::Rows { segment, bucket, rows } => {
                assert!(self.records.contains_key(segment), "rows of a segment without a record");
                for row in rows.iter() {
                    let there =
                        self.rows.entry((*segment, row.seq)).or_insert_with(|| (*bucket, row.clone()));
                    assert_eq!(*there, (*bucket, row.clone()), "a seq got a second content");
                }
            }
            Write::Derived(derived) => self.derive(derived),
            Write::Said(said) => self.said = Some(*said),
        }
    }

    /// What changed last stays.
    fn derive(&mut self, derived: &Derived) {
        if let Some(row) = &derived.room
            && self.row.as_ref().is_none_or(|old| old.changed <= row.changed)
        {
            self.row = Some(row.clone());
        }
        for row in &derived.members {
            if self.members.get(&row.user).is_none_or(|old| old.changed <= row.changed) {
                self.members.insert(row.user.clone(), row.clone());
            }
        }
    }

    pub(super) fn put_marks(&mut self, marks: Vec<(UserId, Marks)>) {
        for (user, marks) in marks {
            let there = self.marks.entry(user).or_default();
            *there = there.max(marks);
        }
    }

    pub(super) fn segments(&self) -> Vec<SegmentRecord> {
        self.records.values().cloned().collect()
    }

    pub(super) fn page(&self, spans: &[Span], range: Range, limit: ReadLimit) -> Page {
        let inside = |seq: Seq| match range {
            Range::After { after, through } => seq > after && seq <= through,
            Range::Before { before, above } => seq < before && seq > above,
        };
        let mut rows: Vec<Row> = Vec::new();
        for span in spans {
            let from = (span.segment, span.first);
            let of_span = self.rows.range(from..=(span.segment, span.last));
            rows.extend(of_span.map(|(_, (bucket, row))| {
                assert_eq!(*bucket, span.bucket, "looked for in another partition");
                row.clone()
            }));
        }
        rows.retain(|row| inside(row.seq));
        let more = rows.len() > limit.events;
        let rows = match range {
            Range::After { .. } => rows.into_iter().take(limit.events).collect(),
            Range::Before { .. } => rows.split_off(rows.len().saturating_sub(limit.events)),
        };
        Page { rows, more }
    }

    pub(super) fn room(&self) -> RoomRead {
        let members = self.members.values().cloned().map(|row| {
            let marks = self.marks.get(&row.user).copied().unwrap_or_default();
            (row, marks)
        });
        RoomRead { row: self.row.clone(), members: members.collect() }
    }

    /// Rows on the chain from the highest record, ascending; as whoever opens the room next would take them.
    pub(super) fn chain(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut end = Seq(u64::MAX);
        let mut next = self.records.keys().next_back().copied();
        while let Some(id) = next {
            let record = &self.records[&id];
            let of_segment = self.rows.range((id, record.first_seq)..(id, end));
            let mut of_segment: Vec<Row> = of_segment.map(|(_, (_, row))| row.clone()).collect();
            of_segment.append(&mut rows);
            rows = of_segment;
            end = record.first_seq.min(end);
            next = record.prev;
        }
        rows
    }
}
