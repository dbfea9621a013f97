//! See DESIGN.md.

pub mod forwarded;
pub mod head;
pub mod proxy;
pub mod timing_wheel;
pub mod ws;
