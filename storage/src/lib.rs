//! What lasts: the log of every room, who is in it, and the accounts, behind two traits.
//!
//! Owns: [`LogStore`] and [`Accounts`], their rows, and what a write's outcome means.
//! Always holds: a batch is there whole or not at all; [`Outcome::Done`] is said only of what a power cut cannot take back.
//! Does not: read events (they are opaque bytes here), give sequence numbers, or know who may do what.

pub mod accounts;
pub mod contract;
pub mod embedded;
pub mod error;
pub mod log_store;
pub mod memory;
mod metrics;
pub mod outcome;
pub mod page;
pub mod row;

pub use accounts::Accounts;
pub use embedded::Embedded;
pub use error::Error;
pub use log_store::LogStore;
pub use memory::Memory;
pub use outcome::{Completion, NotDone, Outcome};
pub use page::{MemberPage, PAGE_MAX, Page, READ_MAX, Range, ReadLimit, RoomPage, TAIL};
pub use row::{Derived, Marks, MemberRow, OUT_MAX, RoomRow, Row};

use std::pin::Pin;

/// What every question to a store answers with. Made once a question, never once a message.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
