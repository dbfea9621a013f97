//! Users, usernames, logins.
//!
//! A username, and what it looks like, are rows of `usernames` that lightweight transactions alone write: whoever's insert finds none has
//! the name. A user's own row is written before, and counts for nothing (`pending`) until the username is theirs: so the username's
//! row is what makes a user, and one that was cut off half-way is finished by whoever meets it.
//!
//! Everything else counts its own versions: a change reads the row and writes it with the next version as its timestamp. Of two changes
//! at once either may stay, and of an end and a renewal of one login the end does. No clock is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use banyan_proto::id::{UnixMs, UserId};
use banyan_storage::Error;
use banyan_storage::accounts::{Creation, LoginRow, SWEEP_MAX, UserRow};
use futures_util::{StreamExt, TryStreamExt, stream, try_join};
use scylla::response::query_result::QueryResult;
use scylla::value::{CqlValue, Row};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::convert::{number, ordered};
use crate::metrics::Kind;
use crate::store::{Inner, corrupt, corrupt_row};

/// What a name is, in `usernames`.
const USERNAME: i32 = 0;
const SKELETON: i32 = 1;

/// Tries of a transaction whose outcome is unknown and of which nothing is found: with their pauses, some seconds.
const LWT_TRIES: u32 = 6;
/// The first pause is up to so long; each one after it twice that.
const LWT_PAUSE_MS: u64 = 40;
/// Statements of one call at once.
const AT_ONCE: usize = 16;
const PAGE: i32 = 1_000;

const DAY_MS: u64 = 24 * 3_600 * 1_000;

const USERS: &str = "users";
const LOGINS: &str = "logins";

struct StoredUser {
    row: UserRow,
    /// It counts only if the username is theirs.
    pending: bool,
    version: i64,
}

struct StoredLogin {
    row: LoginRow,
    ended: bool,
    version: i64,
}

/// A name's kind and text.
type Name<'a> = (i32, &'a str);

fn day_of(at: UnixMs) -> i64 {
    ordered(at.0 / DAY_MS)
}

/// Differs from rival to rival, so that they part.
fn pause(tried: u32, user: &UserId) -> Duration {
    let longest = LWT_PAUSE_MS << tried.min(8);
    let spread = xxh3_64_with_seed(user.as_str().as_bytes(), tried.into());
    Duration::from_millis(longest / 4 + spread % longest)
}

/// The names that a user must have to be one; what they look like comes first, so that the username is the last step.
fn names(row: &UserRow) -> impl DoubleEndedIterator<Item = Name<'_>> {
    let skeleton = row.skeleton.as_deref().map(|name| (SKELETON, name));
    let username = row.username.as_deref().map(|name| (USERNAME, name));
    skeleton.into_iter().chain(username)
}

impl Inner {
    pub(crate) async fn create_user(&self, row: &UserRow) -> Result<Creation, Error> {
        match self.stored_user(&row.user).await? {
            Some(stored) if stored.row != *row => return Ok(Creation::IdTaken),
            Some(stored) if self.counts(&stored).await? => return Ok(Creation::Created),
            Some(_) => {} // an earlier try that was cut off
            None => {
                // Asked before anything is written: who tries names that are taken leaves nothing behind.
                for name in names(row) {
                    if self.name_owner(name).await?.is_some_and(|owner| owner != row.user.as_str())
                        && !self.finish_or_free(name).await?
                    {
                        return Ok(Creation::UsernameTaken);
                    }
                }
                self.add_user(row, true, 1).await?;
            }
        }
        for name in names(row) {
            let theirs = self.take(name, &row.user).await?
                || (self.finish_or_free(name).await? && self.take(name, &row.user).await?);
            if !theirs {
                // Nobody is made, so what the name looks like must not stay theirs.
                if let (USERNAME, Some(skeleton)) = (name.0, row.skeleton.as_deref()) {
                    self.release((SKELETON, skeleton), row.user.as_str()).await;
                }
                return Ok(Creation::UsernameTaken);
            }
        }
        self.confirm(&row.user).await;
        Ok(Creation::Created)
    }

    /// A name that belongs to somebody whose creation was cut off: their creation is finished, or, when their username is somebody
    /// else's, the name is freed. True: it may be free now.
    async fn finish_or_free(&self, name: Name<'_>) -> Result<bool, Error> {
        let Some(owner) = self.name_owner(name).await? else { return Ok(true) };
        let Ok(user) = UserId::parse(&owner) else {
            return Err(Error::Corrupt(format!("usernames: {owner}")));
        };
        let Some(stored) = self.stored_user(&user).await? else { return Ok(false) };
        if !stored.pending {
            return Ok(false);
        }
        for other in names(&stored.row) {
            if !self.take(other, &user).await? {
                if name.0 == SKELETON {
                    self.release(name, &owner).await;
                }
                return Ok(name.0 == SKELETON);
            }
        }
        self.confirm(&user).await;
        Ok(false)
    }

    /// The transaction. True: the name is theirs. Rivals for one name disturb each other's, so a try that got no answer waits a little,
    /// and looks whether somebody has won before it joins in again.
    async fn take(&self, name: Name<'_>, user: &UserId) -> Result<bool, Error> {
        let (kind, text) = name;
        for tried in 0..LWT_TRIES {
            let values = (kind, text, user.as_str());
            match self.execute(Kind::Account, &self.statements.take_name, values).await.map(transaction) {
                Ok(answer) => match answer? {
                    Transaction::Applied => return Ok(true),
                    Transaction::Owner(owner) => return Ok(owner == user.as_str()),
                },
                // Any error of a transaction can come from its last step. A serial read finishes it or rules it out.
                Err(error) => tracing::debug!(%error, tried, "the outcome of taking a username is unknown"),
            }
            tokio::time::sleep(pause(tried, user)).await;
            match self.name_owner_serial(name).await {
                Ok(Some(owner)) => return Ok(owner == user.as_str()),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, tried, "a serial read of a username failed"),
            }
        }
        Err(Error::Unknown)
    }

    async fn release(&self, (kind, text): Name<'_>, owner: &str) {
        let released = self.execute(Kind::Account, &self.statements.release_name, (kind, text, owner)).await;
        if let Err(error) = released {
            // Whoever wants the name next meets a user who does not count, and frees it.
            tracing::warn!(%error, "a name that looks like a username was not released");
        }
    }

    /// From now on the row needs no second look. If it fails, readers go on to look at the username.
    async fn confirm(&self, user: &UserId) {
        let confirmed =
            self.put(Kind::Account, "user", &self.statements.confirm_user, (user.as_str(),)).await;
        if let Err(error) = confirmed {
            tracing::debug!(%error, "a new user was not confirmed");
        }
    }

    async fn counts(&self, stored: &StoredUser) -> Result<bool, Error> {
        // The last of the names is the last step.
        match names(&stored.row).next_back() {
            Some(name) if stored.pending => {
                let owner = self.name_owner(name).await?;
                Ok(owner.is_some_and(|owner| owner == stored.row.user.as_str()))
            }
            _ => Ok(true),
        }
    }

    async fn name_owner(&self, (kind, text): Name<'_>) -> Result<Option<String>, Error> {
        let found = self.read("usernames", &self.statements.name, (kind, text)).await?;
        let owner = found
            .maybe_first_row::<(String,)>()
            .map_err(|error| Error::Corrupt(format!("usernames: {error}")))?;
        Ok(owner.map(|(owner,)| owner))
    }

    async fn name_owner_serial(&self, (kind, text): Name<'_>) -> Result<Option<String>, Error> {
        let found = self.read("usernames", &self.statements.name_serial, (kind, text)).await?;
        let owner = found
            .maybe_first_row::<(String,)>()
            .map_err(|error| Error::Corrupt(format!("usernames: {error}")))?;
        Ok(owner.map(|(owner,)| owner))
    }

    async fn stored_user(&self, user: &UserId) -> Result<Option<StoredUser>, Error> {
        type Stored = (
            Option<String>,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<bool>,
            Option<i64>,
            Option<i64>,
            Option<bool>,
            Option<i64>,
        );
        let found = self.read(USERS, &self.statements.user, (user.as_str(),)).await?;
        let row =
            found.maybe_first_row::<Stored>().map_err(|error| Error::Corrupt(format!("{USERS}: {error}")))?;
        let Some((
            Some(name),
            username,
            skeleton,
            password_hash,
            disabled,
            created_at,
            not_before,
            pending,
            version,
        )) = row
        else {
            return Ok(None);
        };
        let at = |stored: Option<i64>| number(stored.unwrap_or(0), USERS).map(UnixMs);
        let row = UserRow {
            user: user.clone(),
            name,
            username,
            skeleton,
            password_hash,
            disabled: disabled.unwrap_or(false),
            created_at: at(created_at)?,
            tokens_not_before: at(not_before)?,
        };
        Ok(Some(StoredUser { row, pending: pending.unwrap_or(false), version: version.unwrap_or(0) }))
    }

    pub(crate) async fn user(&self, user: &UserId) -> Result<Option<UserRow>, Error> {
        let Some(stored) = self.stored_user(user).await? else { return Ok(None) };
        Ok(self.counts(&stored).await?.then_some(stored.row))
    }

    pub(crate) async fn user_by_username(&self, username: &str) -> Result<Option<UserRow>, Error> {
        let Some(owner) = self.name_owner((USERNAME, username)).await? else { return Ok(None) };
        let user = UserId::parse(&owner).map_err(|_| Error::Corrupt(format!("usernames: {owner}")))?;
        Ok(self.stored_user(&user).await?.map(|stored| stored.row))
    }

    pub(crate) async fn put_user(&self, row: &UserRow) -> Result<(), Error> {
        let Some(stored) = self.stored_user(&row.user).await? else {
            if row.username.is_some() || row.skeleton.is_some() {
                return Err(Error::Refused("a new user with a username is made by create_user"));
            }
            return self.add_user(row, false, 1).await;
        };
        if !self.counts(&stored).await? {
            return Err(Error::Refused("the user was not made: the username is somebody else's"));
        }
        let version = stored.version + 1;
        let values = (
            version,
            row.name.as_str(),
            row.password_hash.as_deref(),
            row.disabled,
            ordered(row.tokens_not_before.0),
            version,
            row.user.as_str(),
        );
        self.put(Kind::Account, "user", &self.statements.change_user, values).await
    }

    async fn add_user(&self, row: &UserRow, pending: bool, version: i64) -> Result<(), Error> {
        let values = (
            row.user.as_str(),
            row.name.as_str(),
            row.username.as_deref(),
            row.skeleton.as_deref(),
            row.password_hash.as_deref(),
            row.disabled,
            ordered(row.created_at.0),
            ordered(row.tokens_not_before.0),
            pending,
            version,
            version,
        );
        self.put(Kind::Account, "user", &self.statements.add_user, values).await
    }

    // ---------------------------------------------------------------- logins

    async fn stored_login(&self, login: &str) -> Result<Option<StoredLogin>, Error> {
        type Stored = (Option<String>, Option<i64>, Option<i64>, Option<bool>, Option<i64>);
        let found = self.read(LOGINS, &self.statements.login, (login,)).await?;
        let row = found
            .maybe_first_row::<Stored>()
            .map_err(|error| Error::Corrupt(format!("{LOGINS}: {error}")))?;
        // An end that came late, after the login was swept, leaves a row without a user: nobody's.
        let Some((Some(user), Some(created_at), Some(expires_at), ended, version)) = row else {
            return Ok(None);
        };
        let row = LoginRow {
            login: login.to_owned(),
            user: UserId::parse(&user).map_err(|_| Error::Corrupt(format!("{LOGINS}: {user}")))?,
            created_at: UnixMs(number(created_at, LOGINS)?),
            expires_at: UnixMs(number(expires_at, LOGINS)?),
        };
        Ok(Some(StoredLogin { row, ended: ended.unwrap_or(false), version: version.unwrap_or(0) }))
    }

    /// The lists by which it is found come first, so that no login is ever missed by an end of all or by a sweep. A login's name is
    /// never used again after it was swept.
    pub(crate) async fn put_login(&self, row: &LoginRow) -> Result<(), Error> {
        let version = self.stored_login(&row.login).await?.map_or(0, |stored| stored.version) + 1;
        let (statements, login, user) = (&self.statements, row.login.as_str(), row.user.as_str());
        let (day, expires_at) = (day_of(row.expires_at), ordered(row.expires_at.0));
        try_join!(
            self.put(Kind::Account, "login", &statements.put_user_login, (user, login, version)),
            self.put(
                Kind::Account,
                "login",
                &statements.put_expiry,
                (day, expires_at, login, version, version)
            ),
            self.put(Kind::Account, "login", &statements.put_day, (day,)),
        )?;
        let values = (login, user, ordered(row.created_at.0), expires_at, version, version);
        self.put(Kind::Account, "login", &statements.put_login, values).await
    }

    pub(crate) async fn login(&self, login: &str) -> Result<Option<LoginRow>, Error> {
        let stored = self.stored_login(login).await?;
        Ok(stored.filter(|stored| !stored.ended).map(|stored| stored.row))
    }

    /// The row stays, as ended, until it is swept.
    pub(crate) async fn end_login(&self, login: &str) -> Result<(), Error> {
        match self.stored_login(login).await? {
            Some(stored) if !stored.ended => {
                let version = stored.version + 1;
                self.put(Kind::Account, "login", &self.statements.end_login, (version, version, login)).await
            }
            _ => Ok(()),
        }
    }

    pub(crate) async fn end_all_logins(&self, user: &UserId) -> Result<(), Error> {
        let mut at = String::new();
        loop {
            let found = self
                .read("user_logins", &self.statements.user_logins, (user.as_str(), at.as_str(), PAGE))
                .await?;
            let rows = found.rows::<(String,)>().map_err(corrupt("user_logins"))?;
            let logins: Vec<_> = rows
                .map(|row| row.map(|(login,)| login).map_err(corrupt_row("user_logins")))
                .collect::<Result<_, _>>()?;
            stream::iter(&logins)
                .map(Ok)
                .try_for_each_concurrent(AT_ONCE, |login| self.end_login(login))
                .await?;
            match logins.into_iter().last() {
                Some(last) if found.rows_num() >= PAGE.unsigned_abs() as usize => at = last,
                _ => return Ok(()),
            }
        }
    }

    pub(crate) async fn sweep_logins(&self, now: UnixMs) -> Result<usize, Error> {
        const WHAT: &str = "login_expiry";
        let today = day_of(now);
        let found = self.read("login_days", &self.statements.days, (today, PAGE)).await?;
        let days: Vec<_> = found
            .rows::<(i64,)>()
            .map_err(corrupt("login_days"))?
            .map(|row| row.map(|(day,)| day).map_err(corrupt_row("login_days")))
            .collect::<Result<_, _>>()?;
        let mut swept = 0;
        for day in days {
            loop {
                let found = self.read(WHAT, &self.statements.expired, (day, ordered(now.0), PAGE)).await?;
                let rows = found.rows::<(i64, String, Option<i64>)>().map_err(corrupt(WHAT))?;
                let entries: Vec<_> =
                    rows.map(|row| row.map_err(corrupt_row(WHAT))).collect::<Result<_, _>>()?;
                let count = entries.len();
                let ended: Vec<bool> = stream::iter(entries)
                    .map(|(expires_at, login, version)| {
                        self.sweep_one(now, day, expires_at, login, version.unwrap_or(0))
                    })
                    .buffer_unordered(AT_ONCE)
                    .try_collect()
                    .await?;
                swept += ended.into_iter().filter(|ended| *ended).count();
                if swept >= SWEEP_MAX {
                    return Ok(swept);
                }
                if count < PAGE.unsigned_abs() as usize {
                    break;
                }
            }
            // Nothing expires on a day that is over, but for a login of the last minutes.
            if day < today - 1 {
                self.put(Kind::Account, "login", &self.statements.drop_day, (day,)).await?;
            }
        }
        Ok(swept)
    }

    /// True: the login was there until now. The entry that led here goes last, so that a sweep that is cut off is repeated.
    async fn sweep_one(
        &self,
        now: UnixMs,
        day: i64,
        expires_at: i64,
        login: String,
        version: i64,
    ) -> Result<bool, Error> {
        let statements = &self.statements;
        let stored = self.stored_login(&login).await?;
        let mut was_there = false;
        if let Some(StoredLogin { row, ended, version }) = stored
            && row.expires_at <= now
        {
            try_join!(
                self.put(Kind::Account, "login", &statements.drop_login, (version, login.as_str())),
                self.put(
                    Kind::Account,
                    "login",
                    &statements.drop_user_login,
                    (version, row.user.as_str(), login.as_str())
                ),
            )?;
            was_there = !ended;
        }
        self.put(Kind::Account, "login", &statements.drop_expiry, (version, day, expires_at, login.as_str()))
            .await?;
        Ok(was_there)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Transaction {
    Applied,
    /// Whose it is.
    Owner(String),
}

/// Products differ in which columns come with `[applied]`.
fn transaction(answer: QueryResult) -> Result<Transaction, Error> {
    let bad = |why: &dyn std::fmt::Display| Error::Corrupt(format!("usernames: {why}"));
    let rows = answer.into_rows_result().map_err(|error| bad(&error))?;
    let names: Vec<_> = rows.column_specs().iter().map(|spec| spec.name().to_owned()).collect();
    let row = rows.first_row::<Row>().map_err(|error| bad(&error))?;
    let mut columns: BTreeMap<_, _> = names.into_iter().zip(row.columns).collect();
    if let Some(Some(CqlValue::Boolean(true))) = columns.get("[applied]") {
        return Ok(Transaction::Applied);
    }
    match columns.remove("user_id") {
        Some(Some(CqlValue::Text(owner))) => Ok(Transaction::Owner(owner)),
        _ => Err(bad(&"a transaction that was not applied names nobody")),
    }
}
