//! What senders see, with times: every ack, every refusal, every lost connection.
//!
//! Owns: the series of a run. Always holds: times are those of the run's one clock, in microseconds.
//! Does not: judge; it answers how things went between two moments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

use crate::crash::load::Observer;
use crate::crash::recorder::Recorder;

/// So long after a fault an answer may still be one that was given before it and lay in a socket.
const LINGER_US: u64 = 100_000;

#[derive(Debug)]
pub struct Meter {
    recorder: Recorder,
    rooms: HashMap<String, u32>,
    series: Mutex<Series>,
}

#[derive(Debug, Default)]
struct Series {
    acks: Vec<Ack>,
    refusals: Vec<(u64, u16)>,
    lost: Vec<u64>,
    turned_away: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Ack {
    room: u32,
    /// When the send was first tried.
    asked_us: u64,
    acked_us: u64,
}

/// How sends went in a span of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Span {
    pub acks: u64,
    /// From the first try to the ack, in milliseconds; 0 without acks.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Tries that were answered with an error, by code.
    pub refused: BTreeMap<u16, u64>,
    /// Connections that servers ended, or that fell silent.
    pub lost: u64,
    /// Connections that servers did not take: the token was not good for them.
    pub turned_away: u64,
}

impl Meter {
    pub fn new(recorder: Recorder, rooms: &[String]) -> Self {
        let rooms = (0..).zip(rooms).map(|(number, room)| (room.clone(), number)).collect();
        Self { recorder, rooms, series: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn now_us(&self) -> u64 {
        self.recorder.now().0
    }

    /// Acks so far.
    pub fn acks(&self) -> usize {
        self.lock().acks.len()
    }

    /// What was acked, refused and lost from `from_us` on and before `to_us`.
    pub fn span(&self, from_us: u64, to_us: u64) -> Span {
        let series = self.lock();
        let within = |at: u64| from_us <= at && at < to_us;
        let first = series.acks.partition_point(|ack| ack.acked_us < from_us);
        let acks = series.acks[first..].iter().take_while(|ack| ack.acked_us < to_us);
        let mut took: Vec<f64> =
            acks.map(|ack| ack.acked_us.saturating_sub(ack.asked_us) as f64 / 1e3).collect();
        took.sort_by(f64::total_cmp);
        let mut span = Span {
            acks: took.len() as u64,
            p50_ms: percentile(&took, 50.0),
            p99_ms: percentile(&took, 99.0),
            max_ms: took.last().copied().unwrap_or_default(),
            lost: series.lost.iter().filter(|at| within(**at)).count() as u64,
            turned_away: series.turned_away.iter().filter(|at| within(**at)).count() as u64,
            ..Span::default()
        };
        for (at, code) in &series.refusals {
            if within(*at) {
                *span.refused.entry(*code).or_default() += 1;
            }
        }
        span
    }

    /// For each of these rooms, milliseconds from then to the next ack of a send in it: one that was asked for afterwards, or
    /// that came so late that it cannot have been said before. `None`: there was none yet.
    pub fn next_acks(&self, rooms: &[String], from_us: u64) -> Vec<Option<f64>> {
        let series = self.lock();
        let mut next: HashMap<u32, Option<f64>> =
            rooms.iter().filter_map(|room| Some((*self.rooms.get(room)?, None))).collect();
        let first = series.acks.partition_point(|ack| ack.acked_us < from_us);
        for ack in &series.acks[first..] {
            let counts = ack.asked_us >= from_us || ack.acked_us >= from_us + LINGER_US;
            if counts && let Some(found @ None) = next.get_mut(&ack.room) {
                *found = Some((ack.acked_us - from_us) as f64 / 1e3);
            }
        }
        let room =
            |room: &String| self.rooms.get(room).and_then(|number| next.get(number).copied().flatten());
        rooms.iter().map(room).collect()
    }

    /// How long the sends to these rooms took that were asked for within the span, in milliseconds, ascending.
    pub fn sends(&self, rooms: &[String], from_us: u64, to_us: u64) -> Vec<f64> {
        let rooms: HashSet<u32> = rooms.iter().filter_map(|room| self.rooms.get(room).copied()).collect();
        let asked = |ack: &&Ack| from_us <= ack.asked_us && ack.asked_us < to_us && rooms.contains(&ack.room);
        let series = self.lock();
        let took = |ack: &Ack| ack.acked_us.saturating_sub(ack.asked_us) as f64 / 1e3;
        let mut all: Vec<f64> = series.acks.iter().filter(asked).map(took).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// Of each of these rooms, the longest that a send asked for within the span took, in milliseconds.
    pub fn stalls(&self, rooms: &[String], from_us: u64, to_us: u64) -> Vec<f64> {
        let series = self.lock();
        let mut longest: HashMap<u32, f64> =
            rooms.iter().filter_map(|room| Some((*self.rooms.get(room)?, 0.0))).collect();
        let asked = |ack: &&Ack| from_us <= ack.asked_us && ack.asked_us < to_us;
        for ack in series.acks.iter().filter(asked) {
            if let Some(longest) = longest.get_mut(&ack.room) {
                *longest = longest.max(ack.acked_us.saturating_sub(ack.asked_us) as f64 / 1e3);
            }
        }
        let mut all: Vec<f64> = longest.into_values().collect();
        all.sort_by(f64::total_cmp);
        all
    }
}

impl Observer for Meter {
    fn acked(&self, room: &str, first_try: Instant, again: bool) {
        let Some(room) = self.rooms.get(room).copied().filter(|_| !again) else { return };
        // Under the lock, so that the series is in order of time.
        let mut series = self.lock();
        let acked_us = self.now_us();
        let took = u64::try_from(first_try.elapsed().as_micros()).unwrap_or(u64::MAX);
        series.acks.push(Ack { room, asked_us: acked_us.saturating_sub(took), acked_us });
    }

    fn refused(&self, code: u16) {
        let at = self.now_us();
        self.lock().refusals.push((at, code));
    }

    fn turned_away(&self) {
        let at = self.now_us();
        self.lock().turned_away.push(at);
    }

    fn lost(&self) {
        let at = self.now_us();
        self.lock().lost.push(at);
    }
}

/// Of an ascending list; 0 of an empty one.
pub fn percentile(ascending: &[f64], percent: f64) -> f64 {
    let rank = (ascending.len() as f64 * percent / 100.0).ceil() as usize;
    ascending.get(rank.max(1) - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(acks: &[(u32, u64, u64)]) -> Meter {
        let meter = Meter::new(Recorder::default(), &["a".to_owned(), "b".to_owned()]);
        let acks = acks.iter().map(|(room, asked_us, acked_us)| Ack {
            room: *room,
            asked_us: *asked_us,
            acked_us: *acked_us,
        });
        meter.lock().acks.extend(acks);
        meter
    }

    #[test]
    fn the_next_ack_is_none_that_was_said_before() {
        let rooms = ["a".to_owned(), "b".to_owned()];
        let meter = meter(&[(0, 900_000, 1_010_000), (1, 900_000, 1_200_000), (0, 1_300_000, 1_500_000)]);
        assert_eq!(meter.next_acks(&rooms, 1_000_000), [Some(500.0), Some(200.0)]);
        assert_eq!(meter.next_acks(&rooms[1..], 1_250_000), [None]);
    }

    #[test]
    fn spans_count_what_lies_in_them() {
        let meter = meter(&[(0, 0, 1_000), (0, 0, 5_000), (1, 4_000, 6_000), (1, 0, 9_000)]);
        meter.refused(108);
        let span = meter.span(5_000, 9_000);
        assert_eq!((span.acks, span.p50_ms, span.max_ms), (2, 2.0, 5.0));
        assert_eq!(meter.span(0, u64::MAX).refused, [(108, 1)].into());
        assert_eq!(meter.stalls(&["b".to_owned()], 0, 5_000), [9.0]);
        assert_eq!(meter.sends(&["b".to_owned()], 0, 5_000), [2.0, 9.0]);
    }

    #[test]
    fn percentiles_are_values_of_the_list() {
        let list: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([50.0, 99.0, 100.0, 0.0].map(|p| percentile(&list, p)), [50.0, 99.0, 100.0, 1.0]);
        assert_eq!(percentile(&[], 50.0), 0.0);
    }
}
