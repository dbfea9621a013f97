//! Who is connected: workers with their sockets, the HTTP API, accounts and tokens.
pub mod accounts;
pub mod admission;
pub mod aside;
pub mod backend;
pub mod clock;
pub mod http;
pub mod listener;
pub mod worker;
