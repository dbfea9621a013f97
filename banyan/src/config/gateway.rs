//! `[gateway]`: workers, rings, clocks of a connection, and whom to believe about addresses and origins.

use std::time::Duration;

use super::kind::{AutoCount, GIB, KIB, MIB, Network, Networks, Origins, Size, Switch, Time};
use super::section::section;

section! {
    /// Connections: the threads that serve them, what they keep in memory, their clocks, and whom to believe.
    "gateway" struct Gateway {
        /// Threads that serve connections and rooms. "auto" is one per core.
        workers: Option<u32> = None, AutoCount(1, 256);
        /// Recent events of one room kept encoded for its readers; who falls further behind reads from the log.
        ring_bytes_per_room: u64 = MIB, Size(64 * KIB, GIB);
        /// The same for all rooms of one worker together; the oldest go first.
        ring_bytes_per_worker: u64 = 64 * MIB, Size(MIB, 64 * GIB);
        /// How often a silent connection is pinged. Below the 30 to 60 s after which many proxies drop a silent connection.
        ping_interval: Duration = Duration::from_secs(25), Time(Duration::from_secs(1), Duration::from_secs(3600));
        /// How long a ping may go unanswered before the connection closes (3012).
        pong_deadline: Duration = Duration::from_secs(10), Time(Duration::from_secs(1), Duration::from_secs(600));
        /// How long a connection may take none of what waits for it before it closes (3008).
        progress_deadline: Duration = Duration::from_secs(20), Time(Duration::from_secs(1), Duration::from_secs(600));
        /// How long a client may take for the head of its request, TLS included.
        handshake_timeout: Duration = Duration::from_secs(5), Time(Duration::from_millis(100), Duration::from_secs(60));
        /// How long a client may take from the WebSocket upgrade to its auth command (3502).
        auth_timeout: Duration = Duration::from_secs(10), Time(Duration::from_millis(100), Duration::from_secs(60));
        /// Web origins, beside the node's own, whose pages may connect: ["https://app.example.com"]. Clients that are not
        /// browsers send no origin and are not held to this.
        allowed_origins: Vec<String> = Vec::new(), Origins;
        /// Balancers and proxies, whose X-Forwarded-For or PROXY header names the client's true address.
        /// Everybody else's is ignored.
        trusted_proxies: Vec<Network> = Vec::new(), Networks;
        /// Whether each connection from a trusted proxy begins with a PROXY protocol v2 header.
        proxy_protocol: bool = false, Switch;
    }
}
