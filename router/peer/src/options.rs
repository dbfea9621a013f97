//! Times and bounds of links. What a process may set is few of them; the rest is here with its reasons.

use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// From dialling to a connection, and for each step after it (TLS, hello). A node in the same data centre answers in
    /// well under a millisecond; what takes a second is as good as gone.
    pub connect: Duration,
    /// A ping goes out when nothing has come for so long…
    pub keep_alive_every: Duration,
    /// …and the link is lost if nothing comes for so long after it. Together below 2 s: what is half-open is known before a
    /// lease of 3 s is over.
    pub keep_alive_within: Duration,
    /// First wait after a failed try, doubled up to `retry_max`, each ± 50 %. The first try after a lost connection is made
    /// at once: it tells whether the peer is gone.
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// A link that was up for so long begins its tries anew.
    pub settled: Duration,
    /// Batches towards a shard that wait for the wire. Full: they come back at once.
    pub queue_batches: usize,
    /// Batches of one end that wait at the server for the wire. Full: the shard keeps answers, drops events, and says later
    /// where rooms stand.
    pub out_batches: usize,
    /// Handoffs that wait for the wire, and their bytes. Full: they come back at once.
    pub queue_handoffs: usize,
    pub handoff_bytes: usize,
    /// Pages that wait at the server for the wire, in bytes. Above it further ones are answered 112.
    pub page_bytes: usize,
    /// Pages and such answers that wait; above it the shard's link is not drained.
    pub pages: usize,
    /// A frame is closed above so many bytes, on each stream.
    pub frame_bytes: usize,
    /// Connections of a server; above it new ones are closed at once. A cluster has fewer processes.
    pub connections: usize,
    /// Ends that a peer may have: a gateway's workers and its HTTP part.
    pub links: u16,
    /// How long a goodbye may take.
    pub goodbye: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            keep_alive_every: Duration::from_millis(600),
            keep_alive_within: Duration::from_millis(1_200),
            retry_first: Duration::from_millis(20),
            retry_max: Duration::from_secs(1),
            settled: Duration::from_secs(5),
            queue_batches: 1_024,
            out_batches: 256,
            queue_handoffs: 64,
            handoff_bytes: 64 << 20,
            page_bytes: 32 << 20,
            pages: 1_024,
            frame_bytes: 64 << 10,
            connections: 2_048,
            links: 1_024,
            goodbye: Duration::from_millis(250),
        }
    }
}

/// Of each stream. What one event loop may have in flight at 10 Gbit/s and 1 ms.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Of the connection: more than its two streams may use, so that neither ever waits for the other.
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;
/// Small, so that the two streams alternate on the wire.
pub(crate) const HTTP2_FRAME: u32 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_half_open_is_known_within_two_seconds() {
        let Options { keep_alive_every, keep_alive_within, .. } = Options::default();
        assert!(keep_alive_every + keep_alive_within < Duration::from_secs(2));
    }
}
