//! Exhaustive check of the log protocol over small worlds: the cores of the server, every order of events.

pub mod world;

pub mod search;

pub mod explore;
pub mod node;
pub mod rooms;
pub mod universe;

pub mod bits;
pub mod intern;
pub mod store;
