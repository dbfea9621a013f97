//! What the controller and its generator processes say to each other: one JSON object per line on the generator's
//! standard input and output. One command at a time; each ends in exactly one reply.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::stats::Packed;

/// Which rooms (by their place in the command's list) each connection is to act on.
pub(crate) type Plan = Vec<(u32, Vec<u32>)>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Command {
    /// Opens connections, numbered on from those that are there; over when the last is authenticated.
    Connect(Connect),
    Create {
        rooms: Vec<String>,
        plan: Plan,
    },
    Join {
        rooms: Vec<String>,
        plan: Plan,
    },
    /// `after` by room; without it the cursors begin where the server chooses.
    Subscribe {
        rooms: Vec<String>,
        plan: Plan,
        modes: Modes,
        after: Option<Vec<u64>>,
    },
    /// Listens for what the other generators report of their receivers.
    Coordinate {
        peers: usize,
    },
    /// Counts from here on what every live subscriber of the room gets (`None`: the floor's sockets), the sender left
    /// out, and reports to the coordinator what all of them have.
    Watch {
        room: Option<String>,
        sender: Option<u32>,
        coordinator: Option<SocketAddr>,
    },
    Load(Load),
    /// Waits until every watched receiver has so many events, then says how it went.
    Finish {
        events: u64,
    },
    /// Waits until every live subscriber has reached the head of each room.
    Await {
        heads: Vec<(String, u64)>,
    },
    Sends(Sends),
    /// Stops reading a connection.
    Pause {
        connection: u32,
    },
    /// Reads it again; over when it has reached this seq.
    Resume {
        connection: u32,
        room: String,
        through: u64,
    },
    /// Reads a connection to its end and says how it ended.
    ReadToEnd {
        connection: u32,
    },
    Disconnect,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Connect {
    pub(crate) server: SocketAddr,
    /// Source addresses, taken in turn: each has some 28,000 ports.
    pub(crate) sources: Vec<Ipv4Addr>,
    pub(crate) users: Vec<User>,
    /// Plain sockets that speak first with nothing, for the floor; `users` only counts then.
    pub(crate) raw: bool,
    pub(crate) receive_buffer: Option<usize>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) user: String,
    pub(crate) token: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Modes {
    Live,
    Passive,
    /// The first room of a connection live, its others passive.
    FirstLive,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) sender: u32,
    /// Taken in turn.
    pub(crate) rooms: Vec<String>,
    pub(crate) pace: Pace,
    /// Ends after so many events, or after this time, whichever is first.
    pub(crate) events: u64,
    pub(crate) seconds: f64,
    /// Bytes of text.
    pub(crate) payload: usize,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pace {
    /// So many that not every receiver has yet: the next is sent when the last receiver has the one before.
    LastReceiver { in_flight: u64 },
    /// So many that are not acked yet.
    Acked { in_flight: u64 },
    /// So many a second, whatever comes back.
    Rate { per_s: f64 },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sends {
    pub(crate) seconds: f64,
    pub(crate) payload: usize,
    /// Every connection sends to its live rooms in turn.
    pub(crate) connections: Vec<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Reply {
    Done,
    Connected {
        first: u32,
        /// The connections' own addresses.
        addresses: Vec<SocketAddr>,
    },
    Subscribed {
        /// By room: the highest head that was told.
        heads: Vec<u64>,
    },
    Coordinating {
        address: SocketAddr,
    },
    Loaded {
        sent: u64,
        /// Highest seq acked, by room of the command.
        heads: Vec<u64>,
        seconds: f64,
    },
    Finished(Finished),
    Sent {
        acked: u64,
        seconds: f64,
        latencies: Packed,
    },
    Resumed {
        events: u64,
    },
    Ended {
        events: u64,
        how: String,
    },
    /// The run is void.
    Failed {
        why: String,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) receivers: u64,
    pub(crate) deliveries: u64,
    /// By event: when it was sent, and when the last receiver of this generator had it.
    pub(crate) sent_ns: Vec<u64>,
    pub(crate) completed_ns: Vec<u64>,
    pub(crate) latencies: Packed,
    /// The newest event as it was delivered.
    pub(crate) payload: Option<String>,
}
