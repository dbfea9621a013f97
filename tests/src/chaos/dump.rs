//! What the store holds when all is quiet, as the check wants to see it.
//!
//! Owns: reading it, past all nodes, with the driver that they use.
//! Always holds: the chain is followed here anew, so that a mistake of an owner shows.
//! Does not: judge.

use anyhow::{Context, bail};
use banyan_checker::{self as checker, StoredRoom};
use banyan_proto::event::LoggedEvent;
use banyan_proto::id::{RoomId, Seq, SlotId};
use banyan_router::{SlotCount, slot_of};
use banyan_storage::LogStore;
use banyan_storage::log_store::{SegmentRecord, SlotOwner, Span};
use banyan_storage::page::{PAGE_MAX, READ_MAX, Range};
use banyan_storage::row::Row;
use banyan_storage_scylla::{Options, Scylla, Server};
use futures_util::StreamExt as _;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::crash::recorder::Recorder;

/// Until servers answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Reads under way at once.
const AT_ONCE: usize = 32;

/// Opens the store beside the nodes.
pub(super) async fn open(contact_points: Vec<String>, keyspace: &str) -> anyhow::Result<Scylla> {
    let options = Options { start_deadline: Some(START_LIMIT), ..Options::new(contact_points, keyspace) };
    Ok(Server::connect(options, |_| {}).await?.open(|_| {}).await?)
}

/// The rooms of a dump, and who wrote in which slot under which epoch.
#[derive(Debug)]
pub(super) struct Dump {
    pub(super) rooms: Vec<StoredRoom>,
    pub(super) wrote: BTreeSet<(u16, u64, u128)>,
}

/// Reads these rooms.
pub(super) async fn rooms(
    store: &dyn LogStore,
    recorder: &Recorder,
    slots: SlotCount,
    rooms: &[String],
) -> anyhow::Result<Dump> {
    let mut dump = Dump { rooms: Vec::new(), wrote: BTreeSet::new() };
    for room in rooms {
        let id = RoomId::parse(room)?;
        let slot = slot_of(room, slots);
        let stored = self::room(store, recorder, &id, slot, &mut dump.wrote);
        dump.rooms.push(stored.await.with_context(|| format!("reading {room} from the store"))?);
    }
    Ok(dump)
}

async fn room(
    store: &dyn LogStore,
    recorder: &Recorder,
    id: &RoomId,
    slot: SlotId,
    wrote: &mut BTreeSet<(u16, u64, u128)>,
) -> anyhow::Result<StoredRoom> {
    let records = store.segments(id.clone()).await?;
    wrote.extend(records.iter().map(|record| (slot.0, record.id.epoch.0, record.incarnation.0)));
    let chain = chain(&records)?;
    let mut stored = StoredRoom::new(recorder.room(id.as_str()), checker::Slot(slot.0));
    stored.log = chain.last().map(|record| checker::Log(record.log.0));
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for record in &records {
        let place = chain.iter().position(|of| of.id == record.id);
        let end = place.and_then(|place| chain.get(place + 1)).map_or(Seq(u64::MAX), |next| next.first_seq);
        for row in rows(store, id, record).await? {
            let mine = place.is_some() && row.seq >= record.first_seq && row.seq < end;
            if mine { &mut on } else { &mut off }.push((row, record));
        }
    }
    on.sort_by_key(|(row, _)| row.seq);
    // Behind a hole nothing was ever complete: the newest segment's end. A hole before it shows as a log that ends too early.
    let dense = on.iter().zip(1..).take_while(|((row, _), seq)| row.seq.0 == *seq).count();
    off.extend(on.split_off(dense));
    for (rows, into) in [(on, &mut stored.rows), (off, &mut stored.void)] {
        for (row, record) in rows {
            into.push(told(recorder, &row, record)?);
        }
    }
    stored.members = Some(members(store, recorder, id).await?);
    Ok(stored)
}

/// From the newest record back along `prev`, oldest first.
fn chain(records: &[SegmentRecord]) -> anyhow::Result<Vec<&SegmentRecord>> {
    let mut chain: Vec<&SegmentRecord> = records.last().into_iter().collect();
    while let Some(prev) = chain.last().and_then(|record| record.prev) {
        match records.iter().find(|record| record.id == prev) {
            // A chain that comes back to itself is as broken as one with a hole.
            Some(record) if chain.len() < records.len() => chain.push(record),
            _ => bail!("the chain of segments breaks at {prev:?}"),
        }
    }
    chain.reverse();
    Ok(chain)
}

/// All rows of a segment.
async fn rows(store: &dyn LogStore, room: &RoomId, record: &SegmentRecord) -> anyhow::Result<Vec<Row>> {
    let mut all: Vec<Row> = Vec::new();
    loop {
        let after = all.last().map_or(Seq(0), |row| row.seq);
        let span =
            Span { segment: record.id, bucket: record.bucket, first: after.next(), last: Seq(u64::MAX) };
        let page = store.rows(room.clone(), vec![span], Range::after(after), READ_MAX).await?;
        let empty = page.rows.is_empty();
        all.extend(page.rows);
        if !page.more || empty {
            return Ok(all);
        }
    }
}

fn told(recorder: &Recorder, row: &Row, record: &SegmentRecord) -> anyhow::Result<checker::Row> {
    let event = LoggedEvent::decode(row.event.clone(), row.origin)?;
    let push: serde_json::Value = serde_json::from_slice(event.json_push())?;
    let event = recorder.event(&push["event"])?;
    let written = checker::Written {
        epoch: checker::Epoch(record.id.epoch.0),
        part: checker::Part(record.id.part.0),
        incarnation: checker::Incarnation(record.incarnation.0),
        batch_first: checker::Seq(row.batch_first.0),
        origin: checker::Origin(row.origin.0),
    };
    Ok(checker::Row { event, written: Some(written) })
}

async fn members(
    store: &dyn LogStore,
    recorder: &Recorder,
    room: &RoomId,
) -> anyhow::Result<Vec<checker::MemberRow>> {
    let seq = |seq: Seq| checker::Seq(seq.0);
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let (page, more) = store.members(room.clone(), after, PAGE_MAX).await?;
        after = page.last().map(|(row, _)| row.user.clone());
        all.extend(page.into_iter().map(|(row, marks)| checker::MemberRow {
            user: recorder.user(row.user.as_str()),
            role: row.role,
            joined: seq(row.joined_seq),
            left: row.left_seq.map(seq),
            out: row.out.iter().map(|(from, to)| (seq(*from), seq(*to))).collect(),
            changed: seq(row.changed),
            marks: checker::Marks {
                delivered: seq(marks.delivered),
                seen: seq(marks.seen),
                seen_n: marks.seen_n,
            },
        }));
        if !more || after.is_none() {
            return Ok(all);
        }
    }
}

/// Who has ever registered for each slot.
pub(super) async fn slot_owners(
    store: &dyn LogStore,
    slots: SlotCount,
) -> anyhow::Result<Vec<(SlotId, Vec<SlotOwner>)>> {
    let all = (0..slots.get()).filter_map(|slot| u16::try_from(slot).ok().map(SlotId));
    let reads = all.map(|slot| async move { anyhow::Ok((slot, store.slot_owners(slot).await?)) });
    let answers: Vec<_> = futures_util::stream::iter(reads).buffered(AT_ONCE).collect().await;
    answers.into_iter().collect()
}

/// Runs that were ended for ever.
pub(super) async fn fenced(store: &dyn LogStore) -> anyhow::Result<Vec<checker::Incarnation>> {
    let mut fenced = Vec::new();
    for (incarnation, _) in store.incarnations().await? {
        if store.is_fenced(incarnation).get().await? {
            fenced.push(checker::Incarnation(incarnation.0));
        }
    }
    Ok(fenced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use banyan_proto::id::{Bucket, Epoch, Incarnation, LogId, Part, SegmentId};

    fn record(epoch: u64, prev: Option<u64>) -> SegmentRecord {
        let id = |epoch| SegmentId { epoch: Epoch(epoch), part: Part(0) };
        SegmentRecord {
            id: id(epoch),
            bucket: Bucket(0),
            first_seq: Seq(1),
            n_before: 0,
            prev: prev.map(id),
            incarnation: Incarnation(1),
            log: LogId(1),
        }
    }

    #[test]
    fn the_chain_leaves_out_what_was_passed_over_and_must_not_break() {
        let epochs = |records: &[SegmentRecord]| {
            chain(records).map(|chain| chain.iter().map(|record| record.id.epoch.0).collect::<Vec<_>>()).ok()
        };
        assert_eq!(epochs(&[record(1, None), record(2, Some(1)), record(3, Some(1))]), Some(vec![1, 3]));
        assert_eq!(epochs(&[record(1, None), record(3, Some(2))]), None);
        assert_eq!(epochs(&[]), Some(Vec::new()));
    }

    #[test]
    fn what_is_stored_and_what_is_pushed_are_one_content() {
        use banyan_proto::v1;
        let recorder = Recorder::default();
        let message = v1::Message {
            text: "hello".to_owned(),
            content_type: "text/plain".to_owned(),
            ..v1::Message::default()
        };
        let event = v1::Event {
            room: "r".to_owned(),
            seq: 1,
            at: 5,
            n: 1,
            sender: "u".to_owned(),
            client_msg_id: Some("c".to_owned()),
            kind: Some(v1::event::Kind::Message(message)),
            ..v1::Event::default()
        };
        let logged = LoggedEvent::new(event, banyan_proto::id::Origin(1));
        let row = Row {
            seq: Seq(1),
            batch_first: Seq(1),
            n: 1,
            origin: logged.origin,
            event: logged.encoded,
            derived: None,
        };
        let told = told(&recorder, &row, &record(1, None)).unwrap();
        assert_eq!(told.event.content, crate::crash::recorder::content_of_text("hello"));
        assert_eq!(told.event.kind, checker::Kind::Message);
    }
}
