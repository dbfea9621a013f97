//! See DESIGN.md.
pub mod bucket;
pub mod command;
