//! Logins that end while their connections live.
//!
//! Owns: whom the store is asked about, and how fast. Always holds: a connection is ended only if it still stands on the
//! token that was asked about; all connections are asked about in turn, evenly over [`super::Options::login_check_ms`], and
//! at most [`CHECKS_PER_S`] in a second, so that a worker with very many of them is slower and not a burden to the store.
//! Does not: hold what was asked: an answer that never comes is asked for again when its turn comes round.

use banyan_proto::codes::Close;
use banyan_proto::id::{UnixMs, UserId};

use super::{Effect, Now, Worker};
use crate::slab::Key;

/// Looks at the store that one worker asks for in a second, by turns; each is two small reads.
const CHECKS_PER_S: usize = 100;

impl Worker {
    /// Somebody has ended logins of this user: the store says whether these here are among them.
    pub(super) fn look_at_logins_of(&mut self, user: &UserId) {
        let Some(user) = self.user_ids.get(user.as_str()).and_then(|index| self.users.get(*index)) else {
            return;
        };
        for index in user.connections.clone() {
            self.ask_for_login(index);
        }
    }

    /// A second has passed: the next few are asked about.
    pub(super) fn look_at_logins(&mut self, elapsed_ms: u64) {
        let Some(round_ms) = self.options.login_check_ms else { return };
        let slots = self.connections.slots();
        // At most 2^20 slots.
        let share = (slots as u64 * elapsed_ms).div_ceil(round_ms.max(1)).min(slots as u64);
        let mut left = CHECKS_PER_S;
        for _ in 0..share {
            if left == 0 {
                return;
            }
            let index = self.login_cursor;
            self.login_cursor = if (index as usize) + 1 < slots { index + 1 } else { 0 };
            left -= usize::from(self.ask_for_login(index));
        }
    }

    fn ask_for_login(&mut self, index: u32) -> bool {
        let (Some(connection), Some(login)) = (self.connections.key_of(index), self.logins.get(&index))
        else {
            return false;
        };
        let Some(user) = self.connections.get(index).and_then(|entry| self.users.get(entry.user)) else {
            return false;
        };
        self.effects.push(Effect::CheckLogin {
            connection,
            user: user.person.user.clone(),
            login: login.login.clone(),
            issued_at: login.issued_at,
        });
        true
    }

    /// The answer to [`Effect::CheckLogin`] where it is no. Whoever has shown another token meanwhile stays.
    pub fn login_ended(&mut self, now: Now, connection: Key, login: Option<&str>, issued_at: UnixMs) {
        let same = self.connections.get_key(connection).is_some()
            && self
                .logins
                .get(&connection.index)
                .is_some_and(|entry| entry.login.as_deref() == login && entry.issued_at == issued_at);
        if same {
            self.close(now, connection.index, Close::Ended, "signed out, disabled or disconnected");
        }
    }
}
