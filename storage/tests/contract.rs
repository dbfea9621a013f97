//! Every store passes the one suite.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests, their helpers included"
)]

use std::sync::Arc;

use banyan_storage::contract::{ALL, Store, Subject};
use banyan_storage::embedded::{Embedded, Options};
use banyan_storage::memory::Memory;

fn run_all(mut subject: Subject) {
    for (name, check) in ALL {
        println!("{name}");
        check(&mut subject);
    }
}

#[test]
fn memory() {
    let memory = Memory::new();
    run_all(Subject::new(move |_| Arc::new(memory.clone())));
}

#[test]
fn embedded() {
    let directory = tempfile::tempdir().unwrap();
    run_all(Subject::new(move |old: Option<Arc<dyn Store>>| {
        drop(old); // the only one: this closes it
        Arc::new(Embedded::open(Options::new(directory.path().join("store"))).unwrap())
    }));
}
