//! Judges what clients saw against what the store kept and who owned which slot (DESIGN.md, section 10: I1–I16).
//!
//! Owns: the form of a history and the promises as functions over it.
//! Always holds: O(n log n) in the records; no socket, no clock, nothing shared with the server, so that planted bad
//! histories test it and both cannot be wrong in the same way.
//! Does not: collect histories, or know how any of them was made (simulator, killed processes, chaos).

mod check;
mod facts;
mod found;
mod history;
mod id;
pub mod jsonl;
mod live;
mod log;
mod members;
mod names;
mod pass;
mod report;
mod sends;
pub mod specimen;
mod store;
mod world;

pub use check::{Rules, check};
pub use facts::{Counted, Fault, FaultKind, Fence, How, Liveness, SlotChange};
pub use history::{
    Ask, Event, Gap, History, Kind, Marks, Mode, Range, Record, Refusal, Start, Subscribed, What,
};
pub use id::{
    Call, Connection, Content, Epoch, Incarnation, Log, Message, Origin, Part, Room, Seq, Session, Slot,
    Time, UnixMs, User,
};
pub use names::{Named, Names};
pub use report::{Coverage, Demand, Line, Outcome, Promise, Report, State, Verdict, Violation};
pub use store::{MemberRow, Row, Store, StoredRoom, Written};
