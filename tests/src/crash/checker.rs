//! Judges what clients saw against what the server kept.
//!
//! Owns: the histories and the rules (DESIGN.md, section 10: I1, I2, I3, I5, I7, I8, I14).
//! Always holds: linear in the size of the histories, up to sorting; no socket, no clock, so that planted bad
//! histories test it.
//! Does not: collect histories (`load`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

/// One message that a client wanted stored, over all its tries.
#[derive(Debug, Clone)]
pub struct Sent {
    pub room: String,
    pub client_msg_id: String,
    pub sender: String,
    pub text: String,
    /// The seqs of all ok replies. Empty: the client never learned what became of it.
    pub acks: Vec<u64>,
}

/// What one subscriber was told, in order, over all its connections.
#[derive(Debug, Clone)]
pub enum Told {
    /// Everything up to this seq was known before (the seq at which it began).
    Start {
        room: String,
        seq: u64,
    },
    Event(Event),
    /// An announced gap: these will not be pushed.
    Gap {
        room: String,
        from: u64,
        to: u64,
    },
    /// The server said that the log is another one.
    Reset {
        room: String,
    },
}

/// One event, as pushed or as read back. Events that are not messages have no id and no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub room: String,
    pub seq: u64,
    pub sender: String,
    pub client_msg_id: Option<String>,
    pub text: Option<String>,
}

/// A room as read back at the end.
#[derive(Debug, Clone)]
pub struct Stored {
    pub room: String,
    pub head: u64,
    pub events: Vec<Event>,
}

/// Everything that a run saw.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub sent: Vec<Sent>,
    /// One list for each subscriber.
    pub told: Vec<Vec<Told>>,
    pub stored: Vec<Stored>,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    AckedMissing {
        room: String,
        client_msg_id: String,
        seq: u64,
    },
    AckedDiffers {
        room: String,
        client_msg_id: String,
        seq: u64,
    },
    AcksDisagree {
        room: String,
        client_msg_id: String,
        seqs: Vec<u64>,
    },
    AckShared {
        room: String,
        seq: u64,
        ids: [String; 2],
    },
    StoredTwice {
        room: String,
        client_msg_id: String,
        seqs: Vec<u64>,
    },
    NotDense {
        room: String,
        want: u64,
        found: u64,
    },
    HeadDiffers {
        room: String,
        head: u64,
        last: u64,
    },
    Phantom {
        room: String,
        seq: u64,
        what: String,
    },
    ToldTwice {
        subscriber: usize,
        room: String,
        seq: u64,
        last: u64,
    },
    Skipped {
        subscriber: usize,
        room: String,
        from: u64,
        to: u64,
    },
    ToldDiffers {
        subscriber: usize,
        room: String,
        seq: u64,
    },
    NotTold {
        subscriber: usize,
        room: String,
        last: u64,
        head: u64,
    },
    LogReset {
        subscriber: usize,
        room: String,
    },
    /// What a client was told directly and must never be told here.
    Refused {
        what: String,
    },
    /// The server did not come back on what the kill left.
    DoesNotStart {
        why: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AckedMissing { room, client_msg_id, seq } => {
                write!(f, "{room}: {client_msg_id} was acked as seq {seq} and is not in the log")
            }
            Self::AckedDiffers { room, client_msg_id, seq } => {
                write!(f, "{room}: seq {seq}, acked for {client_msg_id}, has another content")
            }
            Self::AcksDisagree { room, client_msg_id, seqs } => {
                write!(f, "{room}: {client_msg_id} was acked with different seqs {seqs:?}")
            }
            Self::AckShared { room, seq, ids: [a, b] } => {
                write!(f, "{room}: seq {seq} was acked for both {a} and {b}")
            }
            Self::StoredTwice { room, client_msg_id, seqs } => {
                write!(f, "{room}: {client_msg_id} is in the log more than once, at {seqs:?}")
            }
            Self::NotDense { room, want, found } => write!(f, "{room}: seq {found} stands where {want} must"),
            Self::HeadDiffers { room, head, last } => {
                write!(f, "{room}: the head is {head}, the last event read back {last}")
            }
            Self::Phantom { room, seq, what } => {
                write!(f, "{room}: seq {seq} holds what nobody sent: {what}")
            }
            Self::ToldTwice { subscriber, room, seq, last } => {
                write!(f, "{room}: subscriber {subscriber} was told seq {seq} after {last}")
            }
            Self::Skipped { subscriber, room, from, to } => {
                write!(
                    f,
                    "{room}: subscriber {subscriber} was not told {from} to {to}, and no gap was announced"
                )
            }
            Self::ToldDiffers { subscriber, room, seq } => {
                write!(f, "{room}: subscriber {subscriber} was told another seq {seq} than the log holds")
            }
            Self::NotTold { subscriber, room, last, head } => {
                write!(f, "{room}: subscriber {subscriber} ended at {last}, the head is {head}")
            }
            Self::LogReset { subscriber, room } => {
                write!(f, "{room}: subscriber {subscriber} was told that the log is another one")
            }
            Self::Refused { what } => write!(f, "{what}"),
            Self::DoesNotStart { why } => write!(f, "the server does not start again: {why}"),
        }
    }
}

/// All violations, those of the log first.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut rooms = HashMap::new();
    for stored in &history.stored {
        check_stored(stored, &mut found);
        let events: BTreeMap<u64, &Event> = stored.events.iter().map(|e| (e.seq, e)).collect();
        rooms.insert(stored.room.as_str(), (stored.head, events));
    }
    check_sent(history, &rooms, &mut found);
    for (subscriber, told) in history.told.iter().enumerate() {
        check_told(subscriber, told, &rooms, &mut found);
    }
    found
}

type Rooms<'a> = HashMap<&'a str, (u64, BTreeMap<u64, &'a Event>)>;

/// I3, and I7 as far as the log alone shows it.
fn check_stored(stored: &Stored, found: &mut Vec<Violation>) {
    let room = &stored.room;
    let mut want = 1;
    let mut ids: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for event in &stored.events {
        if event.seq != want {
            found.push(Violation::NotDense { room: room.clone(), want, found: event.seq });
        }
        want = event.seq + 1;
        if let Some(id) = &event.client_msg_id {
            ids.entry((&event.sender, id)).or_default().push(event.seq);
        }
    }
    let last = want - 1;
    if last != stored.head {
        found.push(Violation::HeadDiffers { room: room.clone(), head: stored.head, last });
    }
    for ((_, id), seqs) in ids {
        if seqs.len() > 1 {
            found.push(Violation::StoredTwice { room: room.clone(), client_msg_id: id.to_owned(), seqs });
        }
    }
}

/// I1, I2, I7, I8.
fn check_sent(history: &History, rooms: &Rooms<'_>, found: &mut Vec<Violation>) {
    let mut invoked = HashSet::new();
    let mut taken: HashMap<(&str, u64), &str> = HashMap::new();
    for sent in &history.sent {
        let (room, id) = (&sent.room, &sent.client_msg_id);
        invoked.insert((room.as_str(), sent.sender.as_str(), id.as_str(), sent.text.as_str()));
        if sent.acks.iter().any(|seq| *seq != sent.acks[0]) {
            let seqs = sent.acks.clone();
            found.push(Violation::AcksDisagree { room: room.clone(), client_msg_id: id.clone(), seqs });
        }
        let Some(&seq) = sent.acks.first() else { continue };
        if let Some(other) = taken.insert((room, seq), id) {
            let ids = [other.to_owned(), id.clone()];
            found.push(Violation::AckShared { room: room.clone(), seq, ids });
        }
        match rooms.get(room.as_str()).and_then(|(_, events)| events.get(&seq)) {
            None => {
                found.push(Violation::AckedMissing { room: room.clone(), client_msg_id: id.clone(), seq });
            }
            Some(event)
                if event.client_msg_id.as_ref() != Some(id)
                    || event.text.as_ref() != Some(&sent.text)
                    || event.sender != sent.sender =>
            {
                found.push(Violation::AckedDiffers { room: room.clone(), client_msg_id: id.clone(), seq });
            }
            Some(_) => {}
        }
    }
    for stored in &history.stored {
        for event in &stored.events {
            // Membership events have no text; the server makes them.
            let Some(text) = &event.text else { continue };
            let id = event.client_msg_id.as_deref().unwrap_or_default();
            if !invoked.contains(&(stored.room.as_str(), event.sender.as_str(), id, text.as_str())) {
                let what = format!("{id} of {}: {text:?}", event.sender);
                found.push(Violation::Phantom { room: stored.room.clone(), seq: event.seq, what });
            }
        }
    }
}

/// I2, I5, I14: each event once, in order, with announced gaps only, up to the head.
fn check_told(subscriber: usize, told: &[Told], rooms: &Rooms<'_>, found: &mut Vec<Violation>) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for item in told {
        let (room, from, to) = match item {
            Told::Start { room, seq } => {
                last.insert(room, *seq);
                continue;
            }
            Told::Reset { room } => {
                found.push(Violation::LogReset { subscriber, room: room.clone() });
                continue;
            }
            Told::Event(event) => (&event.room, event.seq, event.seq),
            Told::Gap { room, from, to } => (room, *from, *to),
        };
        let before = last.entry(room).or_default();
        if from <= *before {
            found.push(Violation::ToldTwice { subscriber, room: room.clone(), seq: from, last: *before });
        } else if from > *before + 1 {
            found.push(Violation::Skipped {
                subscriber,
                room: room.clone(),
                from: *before + 1,
                to: from - 1,
            });
        }
        *before = to.max(*before);
        if let Told::Event(event) = item {
            let kept = rooms.get(room.as_str()).and_then(|(_, events)| events.get(&event.seq));
            if kept.is_none_or(|kept| *kept != event) {
                found.push(Violation::ToldDiffers { subscriber, room: room.clone(), seq: event.seq });
            }
        }
    }
    for (room, last) in last {
        if let Some((head, _)) = rooms.get(room)
            && last < *head
        {
            found.push(Violation::NotTold { subscriber, room: room.to_owned(), last, head: *head });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, id: &str) -> Event {
        let (room, sender) = ("r".to_owned(), "alice".to_owned());
        Event { room, seq, sender, client_msg_id: Some(id.to_owned()), text: Some(format!("text of {id}")) }
    }

    fn sent(id: &str, acks: &[u64]) -> Sent {
        let (room, sender) = ("r".to_owned(), "alice".to_owned());
        Sent {
            room,
            sender,
            client_msg_id: id.to_owned(),
            text: format!("text of {id}"),
            acks: acks.to_vec(),
        }
    }

    /// Four messages, all well: the third was never acked but is there, the fourth was acked twice.
    fn good() -> History {
        let events: Vec<Event> = (1..=4).map(|n| event(n, &format!("m{n}"))).collect();
        let mut told = vec![Told::Start { room: "r".to_owned(), seq: 0 }];
        told.extend(events.iter().cloned().map(Told::Event));
        let late = vec![
            Told::Start { room: "r".to_owned(), seq: 1 },
            Told::Gap { room: "r".to_owned(), from: 2, to: 3 },
            Told::Event(event(4, "m4")),
        ];
        History {
            sent: vec![
                sent("m1", &[1]),
                sent("m2", &[2]),
                sent("m3", &[]),
                sent("m4", &[4, 4]),
                sent("lost", &[]),
            ],
            told: vec![told, late],
            stored: vec![Stored { room: "r".to_owned(), head: 4, events }],
        }
    }

    #[track_caller]
    fn check_planted(plant: impl FnOnce(&mut History), want: &[&str]) {
        let mut history = good();
        plant(&mut history);
        let found: Vec<String> = check(&history).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), want.len(), "{found:#?}");
        for (found, want) in found.iter().zip(want) {
            assert!(found.contains(want), "{found:?} does not say {want:?}");
        }
    }

    #[test]
    fn a_good_history_passes() {
        check_planted(|_| {}, &[]);
    }

    #[test]
    fn a_lost_ack_is_found() {
        let plant = |h: &mut History| {
            h.stored[0].events.pop();
            h.stored[0].head = 3;
        };
        check_planted(
            plant,
            &["m4 was acked as seq 4", "subscriber 0 was told another", "subscriber 1 was told"],
        );
    }

    #[test]
    fn a_hole_in_the_log_is_found() {
        let plant = |h: &mut History| {
            h.stored[0].events.remove(2);
        };
        check_planted(plant, &["seq 4 stands where 3 must", "told another seq 3"]);
    }

    #[test]
    fn a_head_beyond_the_log_is_found() {
        check_planted(
            |h| h.stored[0].head = 5,
            &["the head is 5", "subscriber 0 ended at 4", "subscriber 1 ended at 4"],
        );
    }

    #[test]
    fn a_retry_stored_twice_is_found() {
        let plant = |h: &mut History| {
            h.stored[0].events.push(event(5, "m2"));
            h.stored[0].head = 5;
            for told in &mut h.told {
                told.push(Told::Event(event(5, "m2")));
            }
        };
        check_planted(plant, &["m2 is in the log more than once, at [2, 5]"]);
    }

    #[test]
    fn acks_that_disagree_are_found() {
        check_planted(|h| h.sent[1].acks.push(3), &["m2 was acked with different seqs [2, 3]"]);
    }

    #[test]
    fn an_ack_with_a_seq_of_another_message_is_found() {
        check_planted(
            |h| h.sent[2].acks.push(2),
            &["seq 2 was acked for both m2 and m3", "acked for m3, has another"],
        );
    }

    #[test]
    fn changed_content_is_found() {
        let plant = |h: &mut History| h.stored[0].events[1].text = Some("other".to_owned());
        check_planted(
            plant,
            &["seq 2, acked for m2, has another content", "holds what nobody sent", "told another seq 2"],
        );
    }

    #[test]
    fn a_message_of_nobody_is_found() {
        let plant = |h: &mut History| {
            h.sent.remove(2);
        };
        check_planted(plant, &["seq 3 holds what nobody sent: m3 of alice"]);
    }

    #[test]
    fn a_duplicate_to_a_resuming_client_is_found() {
        let plant = |h: &mut History| h.told[0].insert(3, Told::Event(event(2, "m2")));
        check_planted(plant, &["subscriber 0 was told seq 2 after 2"]);
    }

    #[test]
    fn a_silent_gap_is_found() {
        let plant = |h: &mut History| {
            h.told[1].remove(1);
        };
        check_planted(plant, &["subscriber 1 was not told 2 to 3"]);
    }

    #[test]
    fn a_subscriber_left_behind_is_found() {
        let plant = |h: &mut History| {
            h.told[0].pop();
        };
        check_planted(plant, &["subscriber 0 ended at 3, the head is 4"]);
    }

    #[test]
    fn a_reset_log_is_found() {
        let plant = |h: &mut History| h.told[0].push(Told::Reset { room: "r".to_owned() });
        check_planted(plant, &["subscriber 0 was told that the log is another one"]);
    }
}
