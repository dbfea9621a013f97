//! What the end-to-end tests share. The tests themselves are in `tests/`, one file per subject.

pub mod chaos;
pub mod clock;
pub mod cluster;
pub mod crash;
pub mod pages;
pub mod power_cut;
pub mod random;
pub mod server;
mod shim;
