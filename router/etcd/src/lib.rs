//! The ring in etcd: what `banyan-router` decides is carried out here.
//!
//! [`Coordination`] is what the cluster keeps in etcd, in the terms of the ring: [`Etcd`] on real servers, [`Memory`] in this
//! process. [`Runner`] drives one [`banyan_router::node::Node`] with it, and [`recover()`] one `ring recover`.

pub mod coordination;
mod keys;
mod kv;
mod swaps;
mod watch;

pub mod contract;
pub mod memory;
pub mod servers;

pub mod recover;
pub mod runner;
pub mod surroundings;
pub mod view;

mod metrics;

pub use coordination::{Coordination, LeaseId};
pub use keys::Keys;
pub use kv::Refusal;
pub use recover::recover;
pub use runner::{Runner, RunnerHandle};
pub use surroundings::{Records, Surroundings};
pub use view::{SlotTable, View};

/// The ring in etcd. Clones share their connections.
pub type Etcd = Keys<servers::Servers>;
/// The ring in this process. Clones are one and the same.
pub type Memory = Keys<memory::Store>;
