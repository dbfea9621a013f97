//! What the store holds at the end of a run, as the checker wants to see it.

use std::collections::BTreeSet;

use banyan_checker as checker;
use banyan_proto::id::{Origin, RoomId, SegmentId, Seq};
use banyan_proto::v1;
use banyan_router::{SlotCount, slot_of};
use banyan_storage::log_store::{SegmentRecord, Span};
use banyan_storage::page::{Range, ReadLimit};
use banyan_storage::row::Row;
use prost::Message as _;

use crate::coverage::Situation;
use crate::random::Random;
use crate::sometimes;
use crate::store::{Question, Reading};
use crate::world::World;

/// Rows, each with the record of its segment.
type Kept = Vec<(Row, SegmentRecord)>;

const ALL: ReadLimit = ReadLimit { events: usize::MAX - 1, bytes: usize::MAX };

impl World {
    /// The chain of a room, oldest first, as any two replicas show it. `Err`: a link is missing.
    fn chain(&self, replicas: [usize; 2], room: &RoomId) -> Result<Vec<SegmentRecord>, SegmentId> {
        let Reading::Segments(records) = self.store.look(replicas, &Question::Segments(room.clone())) else {
            return Ok(Vec::new());
        };
        let mut chain: Vec<SegmentRecord> = records.last().cloned().into_iter().collect();
        while let Some(prev) = chain.last().and_then(|record| record.prev) {
            // A chain that comes back to itself is as broken as one with a hole.
            let found = records.iter().find(|record| record.id == prev);
            let Some(record) = found.filter(|_| chain.len() < records.len()) else { return Err(prev) };
            chain.push(record.clone());
        }
        chain.reverse();
        Ok(chain)
    }

    /// Rows of a room on its chain up to the first hole, and those off it.
    fn rows(&self, replicas: [usize; 2], room: &RoomId, chain: &[SegmentRecord]) -> (Kept, Kept) {
        let Reading::Segments(records) = self.store.look(replicas, &Question::Segments(room.clone())) else {
            return Default::default();
        };
        let (mut on, mut off) = (Vec::new(), Vec::new());
        for record in records {
            let span = Span { segment: record.id, bucket: record.bucket, first: Seq(1), last: Seq(u64::MAX) };
            let question = Question::Rows {
                room: room.clone(),
                spans: vec![span],
                range: Range::after(Seq(0)),
                limit: ALL,
            };
            let Reading::Rows(rows, _) = self.store.look(replicas, &question) else { continue };
            let place = chain.iter().position(|of| of.id == record.id);
            let end =
                place.and_then(|place| chain.get(place + 1)).map_or(Seq(u64::MAX), |next| next.first_seq);
            for row in rows {
                let mine = place.is_some() && row.seq >= record.first_seq && row.seq < end;
                if mine { &mut on } else { &mut off }.push((row, record.clone()));
            }
        }
        on.sort_by_key(|(row, _)| row.seq);
        let dense =
            on.iter().enumerate().take_while(|(place, (row, _))| row.seq.0 == *place as u64 + 1).count();
        // Behind a hole nothing was ever complete: the newest segment's end.
        off.extend(on.split_off(dense));
        (on, off)
    }

    /// Heads of all rooms, for who waits until all have them.
    pub fn heads(&self) -> Vec<u64> {
        let head = |room: &RoomId| {
            let chain = self.chain([0, 1], room).unwrap_or_default();
            let Some(last) = chain.last() else { return 0 };
            let span =
                Span { segment: last.id, bucket: last.bucket, first: last.first_seq, last: Seq(u64::MAX) };
            let range = Range::after(Seq(0));
            let question = Question::Rows { room: room.clone(), spans: vec![span], range, limit: ALL };
            let Reading::Rows(rows, _) = self.store.look([0, 1], &question) else { return 0 };
            rows.last().map_or_else(|| last.first_seq.0.saturating_sub(1), |row| row.seq.0)
        };
        self.room_ids.iter().map(head).collect()
    }

    /// Writes the store into the history.
    pub fn dump(&mut self) {
        let pair = [[0, 1], [1, 2], [0, 2]][Random::new(self.plan.seed, 8).index(3)];
        let mut store = checker::Store::default();
        for number in 0..self.room_ids.len() {
            let room = self.room_ids[number].clone();
            let chain = match self.chain(pair, &room) {
                Ok(chain) => chain,
                Err(missing) => {
                    self.wrong(|| format!("I1: the chain of {room} breaks at {missing:?}"));
                    continue;
                }
            };
            let (on, off) = self.rows(pair, &room, &chain);
            sometimes!(self.coverage, VoidRows, !off.is_empty());
            let with_rows: BTreeSet<SegmentId> = on.iter().map(|(_, record)| record.id).collect();
            if with_rows.len() >= 5 {
                self.coverage.reach(Situation::ChainLong);
            }
            let slot = slot_of(room.as_str(), SlotCount::new(self.plan.slots).unwrap_or_default());
            let mut stored = checker::StoredRoom::new(checker::Room(number as u32), checker::Slot(slot.0));
            stored.log = chain.last().map(|record| checker::Log(record.log.0));
            stored.rows = on.iter().map(|(row, record)| self.row(row, record)).collect();
            stored.void = off.iter().map(|(row, record)| self.row(row, record)).collect();
            if let Reading::Room(_, members) = self.store.look(pair, &Question::Room(room.clone())) {
                let members = members.into_iter().map(|(member, marks)| checker::MemberRow {
                    user: self.recorder.history.names.user(member.user.as_str()),
                    role: member.role,
                    joined: checker::Seq(member.joined_seq.0),
                    left: member.left_seq.map(|seq| checker::Seq(seq.0)),
                    out: member
                        .out
                        .iter()
                        .map(|(from, to)| (checker::Seq(from.0), checker::Seq(to.0)))
                        .collect(),
                    changed: checker::Seq(member.changed.0),
                    marks: checker::Marks {
                        delivered: checker::Seq(marks.delivered.0),
                        seen: checker::Seq(marks.seen.0),
                        seen_n: marks.seen_n,
                    },
                });
                stored.members = Some(members.collect());
            }
            store.rooms.push(stored);
        }
        self.subscribers(&store);
        self.recorder.history.store = Some(store);
    }

    /// Who must have reached head: every session of a member that does not read passively.
    fn subscribers(&mut self, store: &checker::Store) {
        let Some(liveness) = &mut self.recorder.history.liveness else { return };
        for room in &store.rooms {
            for client in &self.clients {
                let user = checker::User(client.user as u32);
                let members = room.members.iter().flatten();
                let is_member = members.filter(|member| member.role != 0).any(|member| member.user == user);
                if is_member && !client.is_passive(room.room.0 as usize) {
                    liveness.subscribers.push((checker::Session(client.session), room.room));
                }
            }
        }
    }

    fn row(&mut self, row: &Row, record: &SegmentRecord) -> checker::Row {
        let event = v1::Event::decode(&*row.event).unwrap_or_default();
        let Origin(origin) = row.origin;
        checker::Row {
            event: self.recorder.event(&event),
            written: Some(checker::Written {
                epoch: checker::Epoch(record.id.epoch.0),
                part: checker::Part(record.id.part.0),
                incarnation: checker::Incarnation(record.incarnation.0),
                batch_first: checker::Seq(row.batch_first.0),
                origin: checker::Origin(origin),
            }),
        }
    }
}
