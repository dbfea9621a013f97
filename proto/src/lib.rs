//! What is said, on every wire: the client protocol, its JSON mapping and its codes; ids; stored events.

pub mod id;
