//! See DESIGN.md.

pub mod ws;
