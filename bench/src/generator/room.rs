//! A room as a generator sees it: the newest events, so that the same bytes on other connections need no parsing, and
//! the watch that says when every receiver has an event.
//!
//! Always holds: an event counts for a connection only when its bytes are those that were parsed as the seq that this
//! connection must get next. So comparing bytes checks every seq and the content too.

use crate::stats::Latencies;

/// Events kept for comparison: above what can be in flight between the first and the last reader of a busy room.
const SEEN: u64 = 256;

#[derive(Debug)]
struct Seen {
    seq: u64,
    payload: Box<[u8]>,
    sent_ns: u64,
}

#[derive(Debug)]
pub(super) struct Room {
    pub(super) name: String,
    /// By seq modulo [`SEEN`].
    seen: Vec<Option<Seen>>,
    /// All frames are these bytes, whatever their place: the floor's.
    same: Option<Box<[u8]>>,
    newest: u64,
}

impl Room {
    pub(super) fn new(name: String) -> Self {
        Self { name, seen: Vec::new(), same: None, newest: 0 }
    }

    /// When the event was sent, if these bytes are known as this seq.
    pub(super) fn recognise(&self, seq: u64, payload: &[u8]) -> Option<u64> {
        if let Some(same) = &self.same {
            return (**same == *payload).then_some(0);
        }
        let seen = self.seen.get(place(seq))?.as_ref()?;
        (seen.seq == seq && *seen.payload == *payload).then_some(seen.sent_ns)
    }

    /// Keeps an event that was parsed. False when the same seq had other bytes before.
    pub(super) fn keep(&mut self, seq: u64, payload: &[u8], sent_ns: u64) -> bool {
        if self.seen.is_empty() {
            self.seen.resize_with(place(SEEN - 1) + 1, || None);
        }
        self.newest = self.newest.max(seq);
        let seen = &mut self.seen[place(seq)];
        match seen {
            Some(seen) if seen.seq == seq => *seen.payload == *payload,
            // A reader that is far behind does not push out what the others need.
            Some(newer) if newer.seq > seq => true,
            _ => {
                *seen = Some(Seen { seq, payload: payload.into(), sent_ns });
                true
            }
        }
    }

    pub(super) fn keep_same(&mut self, payload: &[u8]) {
        self.same = Some(payload.into());
    }

    pub(super) fn forget_same(&mut self) {
        self.same = None;
    }

    pub(super) fn has_same(&self) -> bool {
        self.same.is_some()
    }

    pub(super) fn newest_payload(&self) -> Option<&[u8]> {
        match &self.same {
            Some(same) => Some(same),
            None => Some(&self.seen.get(place(self.newest))?.as_ref()?.payload),
        }
    }
}

fn place(seq: u64) -> usize {
    usize::try_from(seq % SEEN).unwrap_or_default()
}

/// Who of the room's receivers has what, since the watch began.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) room: u32,
    /// The seq of the first watched event.
    first: u64,
    pub(super) receivers: u64,
    /// By event: how many receivers have it.
    counts: Vec<u64>,
    pub(super) sent_ns: Vec<u64>,
    pub(super) completed_ns: Vec<u64>,
    pub(super) deliveries: u64,
    pub(super) latencies: Latencies,
}

impl Watch {
    pub(super) fn new(room: u32, first: u64, receivers: u64) -> Self {
        Self {
            room,
            first,
            receivers,
            counts: Vec::new(),
            sent_ns: Vec::new(),
            completed_ns: Vec::new(),
            deliveries: 0,
            latencies: Latencies::new(),
        }
    }

    /// Events that every receiver has. Each gets them in order, so the completed ones are a beginning.
    pub(super) fn completed(&self) -> u64 {
        self.completed_ns.len() as u64
    }

    /// Events that any receiver has.
    pub(super) fn begun(&self) -> u64 {
        self.counts.len() as u64
    }

    pub(super) fn delivered(&mut self, seq: u64, sent_ns: u64, now_ns: u64) {
        let Some(event) = seq.checked_sub(self.first).and_then(|event| usize::try_from(event).ok()) else {
            return;
        };
        while self.counts.len() <= event {
            self.counts.push(0);
            self.sent_ns.push(sent_ns);
        }
        self.counts[event] += 1;
        self.deliveries += 1;
        if sent_ns > 0 {
            self.latencies.record_ns(now_ns.saturating_sub(sent_ns));
        }
        if self.counts[event] == self.receivers {
            self.completed_ns.push(now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_only_as_the_seq_they_were_parsed_as() {
        let mut room = Room::new("r".to_owned());
        assert_eq!(room.recognise(1, b"one"), None);
        assert!(room.keep(1, b"one", 7));
        assert_eq!(room.recognise(1, b"one"), Some(7));
        assert_eq!(room.recognise(2, b"one"), None, "a duplicate is not the next event");
        assert_eq!(room.recognise(1, b"two"), None);
        assert!(!room.keep(1, b"two", 7), "one seq, two contents");
        assert!(room.keep(1 + SEEN, b"later", 8));
        assert!(room.keep(1, b"one", 7), "an old one is not kept again");
        assert_eq!(room.recognise(1 + SEEN, b"later"), Some(8));
        assert_eq!(room.newest_payload(), Some(&b"later"[..]));
    }

    #[test]
    fn an_event_is_complete_with_its_last_receiver() {
        let mut watch = Watch::new(0, 11, 2);
        watch.delivered(11, 1_000, 5_000);
        watch.delivered(12, 2_000, 6_000);
        assert_eq!((watch.completed(), watch.begun()), (0, 2));
        watch.delivered(11, 1_000, 9_000);
        assert_eq!((watch.completed(), watch.completed_ns[0], watch.sent_ns[0]), (1, 9_000, 1_000));
        watch.delivered(3, 1, 2);
        assert_eq!(watch.deliveries, 3, "events from before the watch do not count");
    }
}
