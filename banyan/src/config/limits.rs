//! `[limits]`: what one process, one address, one user and one connection may use.

use super::kind::{Count, KIB, Size};
use super::section::section;

section! {
    /// What one process, one address, one user and one connection may use. Limits per address count the client's true
    /// address (see gateway.trusted_proxies) and do not hold for this machine's own (loopback).
    "limits" struct Limits {
        /// Open connections of this process; lowered by itself to 90 % of the open files that the system allows.
        connections: u32 = 100_000, Count(1, 10_000_000);
        /// Connections that have not yet authenticated; beyond it new ones are refused before anything is allocated for them.
        unauthenticated: u32 = 2_000, Count(1, 1_000_000);
        /// Connections from one IPv4 address or IPv6 /64. Offices and mobile networks share addresses, so not low.
        connections_per_ip: u32 = 200, Count(1, 10_000_000);
        /// Connections of one user; the next closes with 3013. Ten are a phone, two computers and some tabs.
        connections_per_user: u32 = 10, Count(1, 100_000);
        /// New connections a second; the rest wait in the system's queue. High enough for everybody to come back after a restart.
        accepts_per_s: u32 = 5_000, Count(1, 1_000_000);
        /// Largest frame from a client (1009 beyond it). 64 KiB is the protocol's; it can only be lowered.
        frame_bytes: u64 = 64 * KIB, Size(4 * KIB, 64 * KIB);
        /// Largest text of a message (121 beyond it). 8 KiB is the protocol's; it can only be lowered.
        text_bytes: u64 = 8 * KIB, Size(1, 8 * KIB);
        /// Largest data of a message (121 beyond it). 8 KiB is the protocol's; it can only be lowered.
        data_bytes: u64 = 8 * KIB, Size(1, 8 * KIB);
        /// Commands that one connection may have in flight (106 beyond it). 64 is the protocol's; it can only be lowered.
        in_flight: u32 = 64, Count(1, 64);
        /// Rooms that one connection may be subscribed to (106 beyond it).
        subscriptions: u32 = 500, Count(1, 100_000);
        /// Sends a second of one user, on average (111 beyond it, with the time to wait).
        sends_per_s: u32 = 50, Count(1, 1_000_000);
        /// Sends that one user may make at once after a pause.
        sends_burst: u32 = 200, Count(1, 1_000_000);
    }
}
