//! See DESIGN.md.

pub mod head;
pub mod ws;
