//! The store in ScyllaDB or Apache Cassandra: the same traits as the embedded store, over CQL.
//!
//! Owns: the schema and its versions, the statements, what an answer of the servers means for a write's outcome, and the checks of the
//! servers' own settings.
//! Always holds: an append is one unlogged batch of one partition, sent once; what is not certain is [`banyan_storage::Outcome::Unknown`];
//! nothing that must last depends on a server's clock (rows carry a fixed timestamp, derived rows that of their seq).
//! Does not: number events, fence by itself, or decide when to try again: an owner says the same write again.

mod accounts;
mod admission;
mod check;
mod convert;
mod failure;
mod hedge;
mod log;
mod marks;
mod members;
mod metrics;
mod options;
mod overheard;
mod owners;
mod rows;
pub mod schema;
mod server;
mod statements;
mod store;
mod tls;
mod unsettled;

pub use check::{Finding, Level};
pub use options::{KEYSPACE, Options, is_keyspace};
pub use server::{ConnectError, Server, Waiting};
pub use store::Scylla;
pub use tls::Tls;
