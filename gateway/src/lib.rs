//! Who is connected: workers with their sockets, the HTTP API, accounts and tokens.
//!
//! Gateways hold no truth: kill one and its clients resume elsewhere. With owners of rooms they talk in the messages of
//! `banyan_proto::link` alone.

pub mod accounts;
pub mod admission;
pub mod aside;
pub mod backend;
pub mod clock;
pub mod handover;
pub mod http;
pub mod listener;
pub mod local;
pub mod tls;
pub mod worker;
