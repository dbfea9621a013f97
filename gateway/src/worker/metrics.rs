//! What a worker tells of itself. The core counts in plain numbers; once a second the differences go to the recorder.

use banyan_gateway_core::Worker as Core;
use banyan_gateway_core::worker::Counters;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

type Read = fn(&Counters) -> u64;

#[derive(Debug)]
pub(super) struct Published {
    last: Counters,
    counters: Vec<(Counter, Read)>,
    connections: Gauge,
    greetings: Gauge,
    rooms: Gauge,
    ring_bytes: Gauge,
    held_bytes: Gauge,
    acks: Histogram,
    /// By status: those that an alert counts, and others that there were.
    refused: Vec<(u16, Counter)>,
}

/// Counters that are a plain name, and those of one name that differ by a label.
const PLAIN: &[(&str, Read)] = &[
    ("banyan_gateway_commands_total", |c| c.commands),
    ("banyan_gateway_events_applied_total", |c| c.events_applied),
    ("banyan_gateway_deliveries_total", |c| c.deliveries),
    ("banyan_gateway_send_calls_total", |c| c.send_calls),
    ("banyan_gateway_sent_bytes_total", |c| c.bytes_sent),
    ("banyan_gateway_fell_to_log_total", |c| c.fell_to_log),
    ("banyan_gateway_gaps_announced_total", |c| c.gaps_announced),
    ("banyan_gateway_gaps_repaired_total", |c| c.gaps_repaired),
    ("banyan_gateway_pulls_total", |c| c.pulls),
    ("banyan_gateway_auth_failures_total", |c| c.auth_failures),
    ("banyan_gateway_pushes_skipped_total", |c| c.pushes_skipped),
    ("banyan_gateway_held_total", |c| c.held),
    ("banyan_gateway_handed_again_total", |c| c.handed_again),
    ("banyan_gateway_moved_total", |c| c.moved),
    ("banyan_gateway_stale_total", |c| c.stale),
];
const LIMITS: &[(&str, Read)] = &[("in_flight", |c| c.in_flight_refused), ("sends", |c| c.rate_limited)];
const HOLDS: &[(&str, Read)] = &[("expired", |c| c.hold_expired), ("full", |c| c.hold_refused)];
const CLOSES: &[(&str, Read)] = &[
    ("slow", |c| c.closed_slow),
    ("no_pong", |c| c.closed_no_pong),
    ("no_auth", |c| c.closed_no_auth),
    ("bad_frame", |c| c.closed_bad_frame),
    ("other", |c| c.closed_other),
];
/// A counter that begins with its first event shows no increase by it.
const REFUSALS: [u16; 2] = [429, 503];

fn refused(status: u16) -> (u16, Counter) {
    (status, counter!("banyan_gateway_refused_total", "status" => status.to_string()))
}

impl Published {
    pub(super) fn new(worker: usize) -> Self {
        let worker = worker.to_string();
        let mut counters: Vec<(Counter, Read)> =
            PLAIN.iter().map(|(name, read)| (counter!(*name, "worker" => worker.clone()), *read)).collect();
        counters.extend(LIMITS.iter().map(|(limit, read)| {
            (
                counter!("banyan_gateway_limit_hits_total", "worker" => worker.clone(), "limit" => *limit),
                *read,
            )
        }));
        counters.extend(HOLDS.iter().map(|(reason, read)| {
            (
                counter!("banyan_gateway_hold_refused_total", "worker" => worker.clone(), "reason" => *reason),
                *read,
            )
        }));
        counters.extend(CLOSES.iter().map(|(reason, read)| {
            (counter!("banyan_gateway_closed_total", "worker" => worker.clone(), "reason" => *reason), *read)
        }));
        Self {
            last: Counters::default(),
            refused: REFUSALS.map(refused).into(),
            acks: histogram!("banyan_gateway_ack_seconds"),
            counters,
            connections: gauge!("banyan_gateway_connections", "worker" => worker.clone()),
            greetings: gauge!("banyan_gateway_greetings", "worker" => worker.clone()),
            rooms: gauge!("banyan_gateway_rooms", "worker" => worker.clone()),
            ring_bytes: gauge!("banyan_gateway_ring_bytes", "worker" => worker.clone()),
            held_bytes: gauge!("banyan_gateway_held_bytes", "worker" => worker),
        }
    }

    pub(super) fn publish(&mut self, core: &Core, greetings: usize) {
        let counters = *core.counters();
        for (counter, read) in &self.counters {
            let more = read(&counters) - read(&self.last);
            if more > 0 {
                counter.increment(more);
            }
        }
        for (count, seconds) in counters.acks.since(&self.last.acks) {
            self.acks.record_many(seconds, count);
        }
        self.last = counters;
        let (connections, rooms, ring_bytes) = core.sizes();
        self.connections.set(connections as f64);
        self.greetings.set(greetings as f64);
        self.rooms.set(rooms as f64);
        self.ring_bytes.set(ring_bytes as f64);
        self.held_bytes.set(core.held_bytes() as f64);
    }

    /// A connection was answered with this status instead of an upgrade.
    pub(super) fn refused(&mut self, status: u16) {
        if let Some((_, counter)) = self.refused.iter().find(|(of, _)| *of == status) {
            return counter.increment(1);
        }
        let (status, counter) = refused(status);
        counter.increment(1);
        self.refused.push((status, counter));
    }
}
