//! Which incarnations are fenced, in memory: every worker asks once a turn.
//!
//! Always holds: what is in it is durable; a fence whose write was answered as done is in it. It only ever grows.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use banyan_proto::id::Incarnation;

#[derive(Debug, Default)]
pub(super) struct Fences(RwLock<HashSet<Incarnation>>);

impl Fences {
    /// Neither I/O nor allocation; waits for nothing but an [`Self::extend`] under way.
    pub(super) fn contains(&self, incarnation: Incarnation) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&incarnation)
    }

    pub(super) fn extend(&self, durable: Vec<Incarnation>) {
        if !durable.is_empty() {
            self.0.write().unwrap_or_else(PoisonError::into_inner).extend(durable);
        }
    }
}
