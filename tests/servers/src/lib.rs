//! The real servers that Banyan works with, as child processes on loopback: for tests, chaos and local clusters.
//!
//! Owns: finding them (`cargo xtask setup` installs them), their configuration, data directories, ports, logs and
//! end; a TCP proxy that breaks connections.
//! Always holds: a server ends with its handle and with the process that started it, however that ends; only
//! processes that this crate started are signalled; every wait has a deadline, and its error carries the log's end.
//! Does not: know Banyan, or speak more of a server's protocol than it takes to see that it is ready.

pub mod balancer;
pub mod cassandra;
mod cql;
mod directory;
pub mod etcd;
mod http;
mod ports;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod redis;
mod spawner;
pub mod tools;

pub use ports::Ports;
pub use process::Process;
