//! One connection that sends: as fast as the receivers take it, as the server acks it, or at a rate.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use banyan_proto::v1::server_frame::Body;

use super::{Generator, Reply, put_send};
use crate::clock::now_ns;
use crate::control::{Load, Pace};

/// A run is cut into at most so many events: what the completion times may take.
const EVENTS_MAX: u64 = 2_000_000;
/// Sent in one turn at most, so that sockets are looked at in between.
const BURST: u64 = 32;
/// What the server lets one connection have in flight.
const IN_FLIGHT_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Loading {
    load: Load,
    sender: usize,
    rooms: Vec<u32>,
    live: bool,
    started_ns: u64,
    sent: u64,
    acked: u64,
    /// True when no more is to be sent.
    over: bool,
    /// Which room a command in flight is for.
    flying: HashMap<u64, usize>,
    /// By room: lowest and highest seq acked, and how many.
    seqs: Vec<(u64, u64, u64)>,
    frame: Vec<u8>,
}

impl Loading {
    pub(super) fn new(generator: &mut Generator, load: Load) -> anyhow::Result<Self> {
        ensure!(!load.rooms.is_empty() && load.events > 0 && load.seconds > 0.0, "nothing to send");
        let rooms: Vec<u32> = load.rooms.iter().map(|room| generator.room(room)).collect();
        let sender = load.sender as usize;
        let connection = generator.connections.get(sender).context("there is no such sender")?;
        let live = connection.subscriptions.iter().any(|cursor| cursor.live && rooms.contains(&cursor.room));
        if matches!(load.pace, Pace::LastReceiver { .. }) {
            ensure!(
                generator.watch.is_some() && rooms.len() == 1,
                "the last receiver is known of one watched room only"
            );
        }
        let seqs = vec![(u64::MAX, 0, 0); rooms.len()];
        let started_ns = now_ns();
        let (sent, acked, over) = (0, 0, false);
        Ok(Self {
            load,
            sender,
            rooms,
            live,
            started_ns,
            sent,
            acked,
            over,
            flying: HashMap::new(),
            seqs,
            frame: Vec::new(),
        })
    }

    pub(super) fn describe(&self, generator: &Generator) -> String {
        format!("{} sent, {} acked, {} complete", self.sent, self.acked, generator.completed().min(self.sent))
    }

    /// How long the generator may sleep.
    pub(super) fn wait(&self, now_ns: u64) -> Duration {
        match self.load.pace {
            // With as many in flight as the server takes, only a reply changes anything.
            Pace::Rate { per_s } if !self.over && self.flying.len() < IN_FLIGHT_MAX => {
                let due_ns = self.started_ns + (self.sent as f64 * 1e9 / per_s) as u64;
                Duration::from_nanos(due_ns.saturating_sub(now_ns))
            }
            _ => Duration::from_millis(100),
        }
    }

    pub(super) fn advance(&mut self, generator: &mut Generator) -> anyhow::Result<Option<Reply>> {
        let elapsed_s = generator.now_ns.saturating_sub(self.started_ns) as f64 / 1e9;
        let limit = self.load.events.min(EVENTS_MAX);
        self.over |= self.sent >= limit || elapsed_s >= self.load.seconds;
        if !self.over {
            let allowed = match self.load.pace {
                Pace::LastReceiver { in_flight } => {
                    (self.acked.min(generator.completed()) + in_flight).saturating_sub(self.sent)
                }
                Pace::Acked { in_flight } => (self.acked + in_flight).saturating_sub(self.sent),
                // The first is due at once.
                Pace::Rate { per_s } => ((elapsed_s * per_s) as u64 + 1)
                    .saturating_sub(self.sent)
                    .min(IN_FLIGHT_MAX.saturating_sub(self.flying.len()) as u64),
            };
            for _ in 0..allowed.min(BURST).min(limit - self.sent) {
                self.send(generator);
            }
            return Ok(None);
        }
        let complete = match self.load.pace {
            Pace::LastReceiver { .. } => generator.completed() >= self.sent,
            Pace::Acked { .. } | Pace::Rate { .. } => true,
        };
        if !complete || self.acked < self.sent {
            return Ok(None);
        }
        for (place, &(lowest, highest, count)) in self.seqs.iter().enumerate() {
            let dense = count == 0 || highest - lowest + 1 == count;
            ensure!(dense, "{}: {count} acks cover the seqs {lowest}–{highest}", self.load.rooms[place]);
        }
        let heads = self.seqs.iter().map(|&(_, highest, _)| highest).collect();
        let seconds = now_ns().saturating_sub(self.started_ns) as f64 / 1e9;
        Ok(Some(Reply::Loaded { sent: self.sent, heads, seconds }))
    }

    fn send(&mut self, generator: &mut Generator) {
        let place = usize::try_from(self.sent).unwrap_or_default() % self.rooms.len();
        let (room, highest) = (self.rooms[place], self.seqs[place].1);
        let connection = &mut generator.connections[self.sender];
        let since = connection
            .subscription(room)
            .map_or(highest, |cursor| cursor.expected.saturating_sub(1).max(highest));
        let id = connection.take_id();
        put_send(&mut self.frame, id, &self.load.rooms[place], since, self.load.payload, now_ns());
        self.flying.insert(id, place);
        self.sent += 1;
        generator.send(self.sender, &self.frame);
    }

    pub(super) fn reply(&mut self, generator: &mut Generator, index: usize, id: u64, body: &Body) {
        let place = self.flying.remove(&id).filter(|_| index == self.sender);
        let Some(place) = place else {
            return generator.violation(format!("connection {index}: a reply to {id}, which was not asked"));
        };
        let Body::Send(ack) = body else {
            return generator.violation(format!("connection {index}: a send was answered {body:?}"));
        };
        self.acked += 1;
        let (lowest, highest, count) = &mut self.seqs[place];
        (*lowest, *highest, *count) = ((*lowest).min(ack.seq), (*highest).max(ack.seq), *count + 1);
        if ack.duplicate {
            return generator.violation(format!(
                "connection {index}: a first send was called a duplicate of {}",
                ack.seq
            ));
        }
        if self.live {
            generator.ack_in_place(index, self.rooms[place], ack.seq);
        }
    }
}

impl Generator {
    /// On a live connection the reply to a send stands in the place of its event.
    pub(super) fn ack_in_place(&mut self, index: usize, room: u32, seq: u64) {
        let expected = self.connections[index].subscription(room).map(|cursor| {
            let expected = cursor.expected;
            cursor.expected = seq + 1;
            expected
        });
        if let Some(expected) = expected
            && expected != seq
        {
            self.violation(format!("connection {index}: a reply with seq {seq} in the place of {expected}"));
        }
    }
}
