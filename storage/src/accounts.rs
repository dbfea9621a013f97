//! Users and their logins.
//!
//! Every write is durable when its future resolves. The store has no clock: it is told what has expired.

use std::fmt::Debug;

use banyan_proto::id::{UnixMs, UserId};

use crate::{BoxFuture, Error};

/// Longest name, username, skeleton, password hash or login that a row may hold, in bytes.
pub const TEXT_MAX: usize = 1_024;
/// Logins that one [`Accounts::sweep_logins`] ends at most.
pub const SWEEP_MAX: usize = 10_000;

/// A user of our own signup, or one whom a foreign token brought.
#[derive(Clone, PartialEq, Eq)]
pub struct UserRow {
    pub user: UserId,
    /// Display name.
    pub name: String,
    /// Normalised, as login and `find_user` ask for it. None: a foreign user.
    pub username: Option<String>,
    /// What the username looks like (UTS 39); two users never share one.
    pub skeleton: Option<String>,
    /// PHC string.
    pub password_hash: Option<String>,
    pub disabled: bool,
    pub created_at: UnixMs,
    /// Tokens issued before it are not taken.
    pub tokens_not_before: UnixMs,
}

impl UserRow {
    /// What [`TEXT_MAX`] is about.
    pub fn texts(&self) -> [Option<&String>; 4] {
        [Some(&self.name), self.username.as_ref(), self.skeleton.as_ref(), self.password_hash.as_ref()]
    }
}

impl Debug for UserRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the hash: rows end up in logs.
        f.debug_struct("UserRow")
            .field("user", &self.user)
            .field("name", &self.name)
            .field("username", &self.username)
            .field("disabled", &self.disabled)
            .field("created_at", &self.created_at)
            .field("tokens_not_before", &self.tokens_not_before)
            .finish_non_exhaustive()
    }
}

/// One login of a user; every token made by it names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRow {
    pub login: String,
    pub user: UserId,
    pub created_at: UnixMs,
    pub expires_at: UnixMs,
}

/// What [`Accounts::create_user`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    Created,
    /// The username, or one that looks like it, belongs to somebody else.
    UsernameTaken,
    /// The user id is there already (never with server-made ids).
    IdTaken,
}

/// Users and logins. Texts longer than [`TEXT_MAX`] are [`Error::Refused`].
pub trait Accounts: Send + Sync + Debug + 'static {
    /// Takes the username (and its skeleton) and stores the row, or neither. Of many at once exactly one wins.
    /// The very same row again is `Created`, so an [`Error::Unknown`] is settled by calling again.
    fn create_user(&self, row: UserRow) -> BoxFuture<'static, Result<Creation, Error>>;

    /// By the normalised username, exactly.
    fn user_by_username(&self, username: &str) -> BoxFuture<'static, Result<Option<UserRow>, Error>>;

    fn user(&self, user: &UserId) -> BoxFuture<'static, Result<Option<UserRow>, Error>>;

    /// Writes a foreign user, or a known user's new name, password hash, `disabled` and `tokens_not_before`.
    /// Username, skeleton and `created_at` of a known user stay as they are; a new user with a username is refused.
    fn put_user(&self, row: UserRow) -> BoxFuture<'static, Result<(), Error>>;

    fn put_login(&self, row: LoginRow) -> BoxFuture<'static, Result<(), Error>>;

    /// Also an expired one, until it is swept.
    fn login(&self, login: &str) -> BoxFuture<'static, Result<Option<LoginRow>, Error>>;

    /// Forgets the login, if it is there. Goes on when the disk is full.
    fn end_login(&self, login: &str) -> BoxFuture<'static, Result<(), Error>>;

    /// Forgets every login of the user. Goes on when the disk is full.
    fn end_all_logins(&self, user: &UserId) -> BoxFuture<'static, Result<(), Error>>;

    /// Forgets logins that expired at or before `now`, at most [`SWEEP_MAX`] a call, and says how many. Call it now and then.
    fn sweep_logins(&self, now: UnixMs) -> BoxFuture<'static, Result<usize, Error>>;
}
