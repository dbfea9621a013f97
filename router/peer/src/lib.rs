//! Links between the processes of a cluster: gateways reach owners of rooms, owners reach each other.
//!
//! Owns: connections, who may open them, what waits for them. One process dials another it wants something of: one
//! connection (HTTP/2, gRPC: `proto/banyan/node/v1/node.proto`) with a live stream and a bulk stream; where both want
//! something of each other there are two.
//! Always holds: per end of a link and direction messages arrive in the order in which they were sent, but that a page may
//! be overtaken by what was sent after it (never the reverse); a lost connection loses what was in flight and says so
//! once; a connection that comes again is a new link, and nothing of the old one holds; a time-out is never called a
//! refusal.
//! Does not: know rooms, slots or etcd, decide whom to dial or what to do about a lost peer.

mod options;
mod server;

mod hello;
mod outgoing;
mod why;

mod certs;
mod tls;

mod codec;
mod merge;
mod metrics;
mod socket;

pub use certs::{Holder, Made, make_ca, make_node};
pub use hello::{Hello, Me};
pub use metrics::register_metrics;
pub use options::Options;
pub use outgoing::{Events, Link, Outgoing};
pub use server::{Accept, Asked, Handle, Inbound, Server};
pub use tls::{Identity, Security, Tls, TlsFiles};
pub use why::Why;

/// What keeps a server from starting, or certificates from being used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen for other nodes on {address}: {why}")]
    Bind { address: std::net::SocketAddr, why: std::io::Error },
    #[error(
        "{address} is not a loopback address: links between nodes need certificates there (`banyan gencerts`), or the \
         setting that says that plain text is wanted"
    )]
    PlainText { address: std::net::SocketAddr },
    #[error("{path}: {why}")]
    File { path: std::path::PathBuf, why: String },
    #[error("certificate: {0}")]
    Certificate(String),
}
