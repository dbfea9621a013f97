//! What links count. Handles are looked up per link or where something rare happens, never per message.

use metrics::{Counter, Gauge, counter, gauge};
use rustls::pki_types::UnixTime;

use crate::why::Why;

/// One direction of one side of a link.
#[derive(Clone)]
pub(crate) struct Stream {
    frames: Counter,
    bytes: Counter,
    messages: Counter,
}

impl Stream {
    /// `stream`: `live` or `bulk`; `direction`: `in` or `out`.
    pub(crate) fn new(stream: &'static str, direction: &'static str) -> Self {
        Self {
            frames: counter!("banyan_peer_frames_total", "stream" => stream, "direction" => direction),
            bytes: counter!("banyan_peer_bytes_total", "stream" => stream, "direction" => direction),
            messages: counter!("banyan_peer_messages_total", "stream" => stream, "direction" => direction),
        }
    }

    pub(crate) fn count(&self, bytes: usize, messages: usize) {
        self.frames.increment(1);
        self.bytes.increment(bytes as u64);
        self.messages.increment(messages as u64);
    }
}

/// Links that are up. `side`: `dialled` or `accepted`.
pub(crate) fn links(side: &'static str) -> Gauge {
    gauge!("banyan_peer_links", "side" => side)
}

/// When the own certificate for links ends, in Unix time.
pub(crate) fn certificate_expires(at: UnixTime) {
    gauge!("banyan_peer_certificate_expires_seconds").set(at.as_secs() as f64);
}

/// Has every way for a link to end counted from 0: a counter that begins with its first event shows no increase by it.
pub fn register_metrics() {
    for why in Why::WORDS {
        for event in ["down", "failed", "sent_away"] {
            counter!("banyan_peer_ended_total", "event" => event, "why" => why).absolute(0);
        }
    }
}

/// Links that ended, tries that failed, peers that were sent away. `event`: `down`, `failed`, `sent_away`.
pub(crate) fn ended(event: &'static str, why: &'static str) {
    debug_assert!(Why::WORDS.contains(&why), "{why} is not counted from 0");
    counter!("banyan_peer_ended_total", "event" => event, "why" => why).increment(1);
}

/// Questions that nobody waits for any more.
pub(crate) fn expired(count: u64) {
    counter!("banyan_peer_expired_total").increment(count);
}

/// Messages of a newer release.
pub(crate) fn skipped(count: u64) {
    counter!("banyan_peer_skipped_total").increment(count);
}

/// What a bound stopped. `what`: `batch`, `node`, `handoff`, `page`, `room`, `message`, `connection`.
pub(crate) fn full(what: &'static str, count: u64) {
    counter!("banyan_peer_full_total", "what" => what).increment(count);
}
