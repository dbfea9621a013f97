//! Whether this node wants traffic, for balancers and people.

use std::sync::{Arc, Mutex, PoisonError};

/// What the node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Not yet serving.
    Starting,
    Ready,
    /// Serving, but something is amiss that a person should look at.
    Degraded {
        why: String,
    },
    /// It runs, and can do nothing for clients.
    Unready {
        why: &'static str,
    },
    /// An operator has drained it: its clients belong elsewhere.
    Drained,
    /// Stopping; for ever.
    Draining,
}

impl State {
    /// Whether a balancer should send clients here.
    pub(crate) fn serves(&self) -> bool {
        matches!(self, Self::Ready | Self::Degraded { .. })
    }

    /// Every [`Self::word`].
    const WORDS: [&str; 6] = ["starting", "ready", "degraded", "unready", "drained", "draining"];

    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded { .. } => "degraded",
            Self::Unready { .. } => "unready",
            Self::Drained => "drained",
            Self::Draining => "draining",
        }
    }
}

/// Handle to the node's one state; copies share it. Changes rarely and is read by probes only, so a lock suits it.
#[derive(Debug, Clone)]
pub(crate) struct Readiness(Arc<Mutex<State>>);

impl Readiness {
    pub(crate) fn starting() -> Self {
        publish(&State::Starting);
        Self(Arc::new(Mutex::new(State::Starting)))
    }

    pub(crate) fn get(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the state, except that a draining node stays draining.
    pub(crate) fn set(&self, state: State) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == State::Draining || *held == state {
            return;
        }
        tracing::info!(from = held.word(), to = state.word(), "readiness changed");
        publish(&state);
        *held = state;
    }
}

/// 1 for the state that the node is in, 0 for the others.
fn publish(state: &State) {
    for word in State::WORDS {
        metrics::gauge!("banyan_readiness", "state" => word).set(f64::from(u8::from(word == state.word())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_gauge() {
        let states = [
            State::Starting,
            State::Ready,
            State::Degraded { why: String::new() },
            State::Unready { why: "" },
            State::Drained,
            State::Draining,
        ];
        assert_eq!(states.map(|state| state.word()), State::WORDS);
    }

    #[test]
    fn draining_is_final() {
        let readiness = Readiness::starting();
        assert!(!readiness.get().serves());
        readiness.set(State::Ready);
        assert!(readiness.get().serves());
        readiness.set(State::Degraded { why: "disk full".to_owned() });
        assert!(readiness.get().serves());
        readiness.set(State::Unready { why: "alone" });
        assert!(!readiness.get().serves());
        readiness.set(State::Drained);
        assert!(!readiness.get().serves());
        readiness.set(State::Ready);
        assert!(readiness.get().serves());
        readiness.set(State::Draining);
        readiness.set(State::Ready);
        assert_eq!(readiness.get(), State::Draining);
    }
}
