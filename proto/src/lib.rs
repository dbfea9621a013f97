//! What is said, on every wire: the client protocol with its two encodings and its codes, ids, stored events, and
//! the messages between gateways and shards.
//!
//! Owns: `banyan/v1/client.proto`, `banyan/node/v1/node.proto` and the types made from them. Does not: check what a
//! field means (lengths, permissions): that is the gateway's and the room's part.

pub mod direct;
pub mod id;

pub mod codes;
pub mod event;
pub mod frame;
pub mod json;

pub mod link;
pub mod wire;

pub mod plant;

/// The client protocol, version 1. Generated from `banyan/v1/client.proto`.
#[allow(clippy::large_enum_variant, clippy::use_self, reason = "generated")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/banyan.v1.rs"));
}

/// What nodes say to each other: [`wire`] makes it from the values of the cores, and reads it.
pub mod node {
    /// Version 1. Generated from `banyan/node/v1/node.proto`.
    #[allow(clippy::large_enum_variant, clippy::use_self, reason = "generated")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/banyan.node.v1.rs"));
    }
}
