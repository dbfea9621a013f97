//! The whole cluster over its cores in one thread: one seed, one run, bit for bit.
//!
//! Owns: a scheduler, and stand-ins for all that is not ours (network, store, etcd, clocks, clients). The servers are the cores
//! that the processes run. Always holds: the same plan makes the same run, to the last byte.
//! Does not: judge (`banyan-checker` does) or know the protocol's rules.

pub mod client;
pub mod coordination;
pub mod coverage;
mod dump;
pub mod etcd;
pub mod gateways;
pub mod network;
pub mod nodes;
pub mod plan;
pub mod random;
pub mod record;
pub mod recovery;
pub mod run;
pub mod schedule;
pub mod shrink;
pub mod store;
pub mod sweep;
pub mod world;
