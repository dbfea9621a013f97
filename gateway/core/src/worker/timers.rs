//! Deadlines of connections on a timing wheel, and the housekeeping that comes round every second.

use banyan_proto::codes::Close;
use banyan_proto::v1;
use banyan_proto::v1::server_frame::Body;

use super::{CLOSE_MS, Now, Worker, out_of};
use crate::connection::{Phase, What};
use crate::ws::Opcode;
use crate::ws::encode::put_frame;

/// Rings whose readers all stand at head are freed after so long without an event.
const RING_QUIET_MS: u64 = 5_000;
/// Rooms without readers are given up after so long.
const ROOM_UNUSED_MS: u64 = 5_000;
/// `token_expiring` is said so long before.
const EXPIRY_NOTICE_MS: u64 = 60_000;
const HOUSEKEEPING_MS: u64 = 1_000;

impl Worker {
    /// When [`Self::tick`] must be called if nothing else happens first; `u64::MAX`: never.
    pub fn next_deadline(&self) -> u64 {
        let mut next = self.wheel.next_deadline_ms().unwrap_or(u64::MAX);
        if !self.connections.is_empty() || !self.rooms.is_empty() {
            next = next.min(self.housekeeping_at);
        }
        next = next.min(self.heads_at).min(self.routes.next_deadline());
        for (at, _, _) in &self.pull_retries {
            next = next.min(*at);
        }
        next
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now.ms, &mut due);
        for (index, generation) in due.drain(..) {
            let current = self.connections.key_of(index).is_some_and(|key| key.generation == generation);
            // An entry that was made before an earlier one took its place means nothing any more.
            if current && self.connections.get(index).is_some_and(|connection| connection.timer_at <= now.ms)
            {
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.timer_at = u64::MAX;
                }
                self.timeout(now, index);
                self.arm(now, index);
            }
        }
        self.due = due;
        self.look_at_waiting(now);
        // Behind what may give readers of heads their turn.
        if now.ms >= self.heads_at {
            self.push_heads(now);
        }
        self.retry_pulls(now);
        if now.ms >= self.housekeeping_at {
            let elapsed = now.ms + HOUSEKEEPING_MS - self.housekeeping_at;
            self.housekeeping_at = now.ms + HOUSEKEEPING_MS;
            self.look_at_logins(elapsed);
            self.tend_rings(now, RING_QUIET_MS);
            self.drop_unused(now, ROOM_UNUSED_MS);
            self.restate_interests();
        } else {
            self.bound_rings();
        }
    }

    /// Makes sure that the wheel looks at this connection when its next deadline comes.
    pub(super) fn arm(&mut self, now: Now, index: u32) {
        let at = self.deadline(now, index);
        self.arm_at(now, index, at);
    }

    pub(super) fn arm_at(&mut self, now: Now, index: u32, at: u64) {
        // Beyond its span the wheel fires early: it is looked at once more then.
        let at = at.min(now.ms + super::WHEEL_SPAN_MS - super::WHEEL_TICK_MS);
        let Some(key) = self.connections.key_of(index) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        if at < connection.timer_at {
            connection.timer_at = at;
            self.wheel.insert(at, key.index, key.generation);
        }
    }

    /// The earliest time at which something may be due.
    fn deadline(&self, now: Now, index: u32) -> u64 {
        let Some(connection) = self.connections.get(index) else { return u64::MAX };
        let options = &self.options;
        match connection.phase {
            Phase::New | Phase::Checking => return connection.phase_since + options.auth_deadline_ms,
            Phase::Closing { .. } => return connection.phase_since + CLOSE_MS,
            Phase::Open => {}
        }
        let mut at = if connection.blocked {
            connection.progress_at + options.slow_deadline_ms
        } else if connection.pinged_at == 0 {
            connection.heard_at + options.ping_interval_ms
        } else if connection.paused_until == 0 {
            connection.pinged_at + options.pong_deadline_ms
        } else {
            u64::MAX
        };
        if connection.paused_until != 0 {
            at = at.min(connection.paused_until);
        }
        let expires = connection.expires_at.0;
        let told = if connection.expiry_told { expires } else { expires.saturating_sub(EXPIRY_NOTICE_MS) };
        at = at.min(now.ms + told.saturating_sub(now.unix.0));
        if let Some(flight) = &connection.flight {
            for pending in &flight.pending {
                if let What::Subscribe(subscribing) = &pending.what {
                    let after = if subscribing.replied {
                        super::subscribe::GIVE_UP_MS
                    } else {
                        super::subscribe::REPLY_AFTER_MS
                    };
                    at = at.min(pending.since + after);
                }
            }
        }
        at
    }

    /// Does what is due for one connection.
    fn timeout(&mut self, now: Now, index: u32) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let (auth, slow, ping, pong) = (
            self.options.auth_deadline_ms,
            self.options.slow_deadline_ms,
            self.options.ping_interval_ms,
            self.options.pong_deadline_ms,
        );
        match connection.phase {
            Phase::New | Phase::Checking => {
                if connection.phase_since + auth <= now.ms {
                    self.close(now, index, Close::NoAuth, "no `auth` in time");
                }
                return;
            }
            Phase::Closing { .. } => {
                if connection.phase_since + CLOSE_MS <= now.ms {
                    self.lost(index);
                }
                return;
            }
            Phase::Open => {}
        }
        if connection.paused_until != 0 && connection.paused_until <= now.ms {
            connection.paused_until = 0;
            // The pong may lie in the socket: its clock stood still.
            if connection.pinged_at != 0 {
                connection.pinged_at = now.ms;
            }
            if !connection.full {
                self.effects.push(super::Effect::Resume { connection: index });
            }
        }
        if connection.blocked {
            // Whoever takes no byte may not have seen our ping: only this clock runs.
            if connection.progress_at + slow <= now.ms {
                // The close frame goes where a frame ends, for the case that the client reads once more.
                self.close(now, index, Close::TooSlow, "the connection takes no data");
                return;
            }
        } else if connection.pinged_at != 0 {
            if connection.pinged_at + pong <= now.ms && connection.paused_until == 0 {
                self.close(now, index, Close::NoPong, "no answer to a ping");
                return;
            }
        } else if connection.heard_at + ping <= now.ms {
            connection.pinged_at = now.ms;
            put_frame(out_of(&mut self.outs, connection), Opcode::Ping, &[]);
            self.dirty.mark(index);
        }
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.expires_at <= now.unix {
            self.close(now, index, Close::TokenExpired, "the token has expired");
            return;
        }
        if !connection.expiry_told && connection.expires_at.0 <= now.unix.0 + EXPIRY_NOTICE_MS {
            connection.expiry_told = true;
            let expires_at = connection.expires_at.0;
            self.push(index, Body::TokenExpiring(v1::TokenExpiring { expires_at }));
        }
        self.subscribe_overdue(now, index);
        self.subscribe_given_up(now, index);
    }
}
