//! See DESIGN.md.

pub mod forwarded;
pub mod head;
pub mod proxy;
pub mod ws;
