//! Random histories: no false alarm on good ones, and no hole for random changes to them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use banyan_checker::specimen::Specimen;
use banyan_checker::{
    Content, Demand, Epoch, History, Kind, Mode, Promise, Record, Room, Rules, Seq, Start, State, Verdict,
    What, check,
};
use proptest::prelude::*;

fn specimen(seed: u64, records: usize) -> Specimen {
    Specimen { seed, records, rooms: 1 + (seed % 3) as u32, users: 2 + (seed % 5) as u32 }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn a_good_history_raises_no_alarm(seed in any::<u64>(), records in 10..3_000_usize) {
        let history = specimen(seed, records).make();
        let report = check(&history, &Rules::default());
        prop_assert!(!report.is_violated(), "{}", report);
    }
}

#[test]
fn good_histories_exercise_what_a_cluster_must_show() {
    let report = check(&specimen(7, 20_000).make(), &Rules::default());
    assert_eq!(report.verdict(&Demand::cluster()), Verdict::Green, "{report}");
    let coverage = report.coverage;
    assert!(coverage.resumes > 0 && coverage.duplicates > 0 && coverage.gaps > 0, "{report}");
    assert!(coverage.removals > 0 && coverage.ended > 0 && coverage.in_place > 0, "{report}");
}

// ---------------------------------------------------------------- changes

/// Changes a good history, in a place that depends on the number. `None`: the history has no such place.
type Change = fn(&mut History, u64) -> Option<()>;

/// Whatever place is taken, the change must be found, as one of these promises.
#[track_caller]
fn found(promises: &[Promise], change: Change) {
    let mut done = 0;
    for seed in 0..120 {
        let mut history = specimen(seed, 200 + (seed as usize % 7) * 150).make();
        if change(&mut history, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7).is_none() {
            continue;
        }
        done += 1;
        let report = check(&history, &Rules::default());
        let is_found = promises.iter().any(|promise| report.outcome(*promise).state == State::Violated);
        assert!(is_found, "seed {seed}: {report}");
        for violation in report.violations() {
            assert!(violation.records.len() <= 20, "{violation}");
        }
    }
    assert!(done >= 50, "only {done} histories had a place for the change");
}

/// The index of one of the records that fit.
fn pick(history: &History, at: u64, fits: impl Fn(usize, &Record) -> bool) -> Option<usize> {
    let all: Vec<usize> =
        history.records.iter().enumerate().filter(|(i, record)| fits(*i, record)).map(|(i, _)| i).collect();
    (!all.is_empty()).then(|| all[(at % all.len() as u64) as usize])
}

fn pick_push(history: &History, at: u64) -> Option<(usize, Room)> {
    let index = pick(history, at, |_, record| matches!(record.what, What::Event { .. }))?;
    let What::Event { room, .. } = history.records[index].what else { return None };
    Some((index, room))
}

/// The next push of the same subscription, with nothing between them that begins another one.
fn next_push(history: &History, index: usize, room: Room) -> Option<usize> {
    let on = history.records[index].on;
    for (at, record) in history.records.iter().enumerate().skip(index + 1).filter(|(_, r)| r.on == on) {
        match &record.what {
            What::Event { room: of, .. } | What::Gap { room: of, .. } if *of == room => return Some(at),
            // A reply may stand for the next one.
            What::Sent { .. } | What::End => return None,
            What::Subscribe { room: of, .. } | What::Unsubscribe { room: of, .. } if *of == room => {
                return None;
            }
            _ => {}
        }
    }
    None
}

fn rows(history: &mut History, at: u64) -> &mut Vec<banyan_checker::Row> {
    let rooms = &mut history.store.as_mut().unwrap().rooms;
    let count = rooms.len() as u64;
    &mut rooms[(at % count) as usize].rows
}

#[test]
fn a_row_that_was_told_is_taken_away() {
    // Everything was told at the end of a specimen.
    found(&[Promise::I1], |history, at| {
        let rows = rows(history, at);
        let index = (at / 7) as usize % rows.len();
        rows.remove(index);
        Some(())
    });
}

#[test]
fn a_push_is_changed() {
    found(&[Promise::I2], |history, at| {
        let (index, _) = pick_push(history, at)?;
        if let What::Event { event, .. } = &mut history.records[index].what {
            event.content = Content(event.content.0 ^ 1);
        }
        Some(())
    });
}

#[test]
fn a_push_is_left_out() {
    found(&[Promise::I5, Promise::I14], |history, at| {
        let (index, room) = pick_push(history, at)?;
        next_push(history, index, room)?;
        history.records.remove(index);
        Some(())
    });
}

#[test]
fn a_push_comes_twice() {
    found(&[Promise::I5, Promise::I14], |history, at| {
        let (index, _) = pick_push(history, at)?;
        let again = history.records[index].clone();
        history.records.insert(index + 1, again);
        Some(())
    });
}

#[test]
fn two_pushes_change_places() {
    found(&[Promise::I5, Promise::I14], |history, at| {
        let (index, room) = pick_push(history, at)?;
        let next = next_push(history, index, room)?;
        let first = history.records[index].what.clone();
        history.records[index].what = std::mem::replace(&mut history.records[next].what, first);
        Some(())
    });
}

#[test]
fn an_ack_names_another_seq() {
    found(&[Promise::I1], |history, at| {
        let index = pick(history, at, |_, record| matches!(record.what, What::Sent { .. }))?;
        if let What::Sent { seq, .. } = &mut history.records[index].what {
            *seq = if at % 2 == 0 { seq.next() } else { seq.before() };
        }
        Some(())
    });
}

#[test]
fn an_ack_becomes_a_refusal_for_good() {
    found(&[Promise::I8], |history, at| {
        let index = pick(history, at, |_, record| matches!(record.what, What::Sent { .. }))?;
        let What::Sent { call, .. } = history.records[index].what else { return None };
        history.records[index].what = What::Refused { call, room: None, code: 121 };
        Some(())
    });
}

#[test]
fn a_stored_message_was_never_sent() {
    found(&[Promise::I8], |history, at| {
        let row = *rows(history, at).iter().rev().find(|row| row.event.kind == Kind::Message)?;
        let of = row.event.message?;
        history.records.retain(|record| !matches!(record.what, What::Send { message, .. } if message == of));
        Some(())
    });
}

#[test]
fn a_message_is_stored_twice() {
    found(&[Promise::I7], |history, at| {
        let rows = rows(history, at);
        let mut twin = *rows.iter().find(|row| row.event.kind == Kind::Message)?;
        let last = *rows.last()?;
        (twin.event.seq, twin.event.n, twin.event.at) =
            (last.event.seq.next(), last.event.n + 1, last.event.at);
        twin.written = last.written.map(|mut written| {
            written.batch_first = twin.event.seq;
            written
        });
        rows.push(twin);
        Some(())
    });
}

#[test]
fn a_subscription_begins_elsewhere() {
    found(&[Promise::I14], |history, at| {
        // Those that resume; the unread ones may begin anywhere.
        let resumed: Vec<_> = history
            .records
            .iter()
            .filter_map(|record| match record.what {
                What::Subscribe { call, room, start: Start::After { .. }, mode: Mode::Live } => {
                    Some((record.on, call, room))
                }
                _ => None,
            })
            .collect();
        let index = pick(history, at, |_, record| match &record.what {
            What::Subscribed { call, room, .. } => resumed.contains(&(record.on, *call, *room)),
            _ => false,
        })?;
        if let What::Subscribed { reply, .. } = &mut history.records[index].what {
            reply.from = if at % 2 == 0 { reply.from.next() } else { reply.from.before() };
        }
        Some(())
    });
}

#[test]
fn an_epoch_falls() {
    found(&[Promise::I4], |history, at| {
        let rows = rows(history, at);
        let index = 1 + (at / 7) as usize % (rows.len() - 1);
        rows[index].written.as_mut()?.epoch = Epoch(0);
        Some(())
    });
}

#[test]
fn a_read_is_older_than_what_was_told() {
    found(&[Promise::I10], |history, at| {
        let index = pick(history, at, |index, record| {
            // The head of a summary had been told before it was asked for, by a push or a page.
            let What::Answered { head: Some(head), .. } = record.what else { return false };
            let What::Ask { room, .. } = history.records[index - 1].what else { return false };
            head > Seq(0)
                && history.records[..index - 1].iter().any(|record| match &record.what {
                    What::Event { room: of, event } => *of == room && event.seq >= head,
                    _ => false,
                })
        })?;
        if let What::Answered { head: Some(head), .. } = &mut history.records[index].what {
            *head = Seq(0);
        }
        Some(())
    });
}

#[test]
fn a_mark_counts_wrong() {
    found(&[Promise::I11], |history, at| {
        let index = pick(history, at, |_, record| matches!(record.what, What::Marked { .. }))?;
        if let What::Marked { marks, .. } = &mut history.records[index].what {
            marks.seen_n += 1;
        }
        Some(())
    });
}

#[test]
fn an_event_reaches_who_is_out() {
    found(&[Promise::I12], |history, at| {
        // A push at the very end of what somebody out of the room may not see.
        let stored =
            &history.store.as_ref()?.rooms[(at % history.store.as_ref()?.rooms.len() as u64) as usize];
        let gone = stored.members.as_ref()?.iter().find(|row| row.left.is_some())?;
        let event = stored.rows.iter().map(|row| row.event).find(|event| Some(event.seq) > gone.left)?;
        let (room, user) = (stored.room, gone.user);
        let session = history.sessions.iter().position(|of| *of == user)?;
        let begin = history.records.iter().rposition(
            |record| matches!(record.what, What::Begin { session: of } if of.0 as usize == session),
        )?;
        let (on, at) = (history.records[begin].on, history.records.last()?.at);
        history.records.push(Record { at, on, what: What::Event { room, event } });
        Some(())
    });
}
