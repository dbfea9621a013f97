//! `[storage]`: the embedded store.

use super::kind::{GIB, MIB, Size};
use super::section::section;

section! {
    /// The embedded store, in server.data_dir.
    "storage" struct Storage {
        /// Memory for recently read blocks of the store.
        cache: u64 = 64 * MIB, Size(MIB, 1024 * GIB);
        /// With less free space on the disk new sends are answered "unavailable" (108); reading goes on, and sends too once
        /// there is space again. Enough for what was accepted before to be finished.
        min_free: u64 = 64 * MIB, Size(16 * MIB, 1024 * 1024 * GIB);
    }
}
