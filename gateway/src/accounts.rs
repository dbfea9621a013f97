//! Who somebody is: signup, login, tokens, and their end.
//!
//! Owns: the rules of names and passwords, the keys and their tokens, the logins, and [`Service`], which joins them to
//! the store. Always holds: no password is hashed on the caller's thread; what has ended durably is broadcast to live
//! connections at once; a token that names a login is good only while that login lives; nothing is revived by a race
//! (changes of one user take turns).
//! Does not: close connections (workers do, told by [`Service::revocations`]).
//!
//! In a cluster the turns are only one node's; the store of a cluster must then refuse to revive a login itself. What ends
//! on another node is found by [`Service::has_ended`], which workers ask for when they are told, and by turns.

pub mod keys;
pub mod names;
pub mod password;
pub mod revocation;
pub mod token;

mod metrics;

use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use banyan_gateway_core::bucket::{Buckets, Rate};
use banyan_proto::codes::Code;
use banyan_proto::id::{UnixMs, UserId};
use banyan_proto::link::Person;
use banyan_proto::v1;
use banyan_storage::accounts::{Creation, LoginRow, UserRow};
use banyan_storage::{Accounts, Error as StoreError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::{Mutex, MutexGuard, broadcast};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::keys::Keys;
use self::metrics::{LoginOutcome, Metrics};
use self::password::{Hasher, PASSWORD_MAX};
use self::revocation::Revocations;
pub use self::revocation::{Revocation, Standing};
use self::token::TokenSpec;
use crate::clock::Clock;

/// How often the key file is looked at, and so how soon a rotation is taken up.
const KEYS_INTERVAL: Duration = Duration::from_secs(5);
/// How often expired logins are swept, in looks at the key file.
const SWEEP_EVERY: u32 = 12;
/// Locks that the users share: two users of one lock wait for each other, which costs a write of time at most.
const TURNS: usize = 256;
/// Throttle cells, 8 bytes each.
const CELLS: usize = 1 << 14;
/// When to come back to a full queue of hashes.
const OVERLOADED_RETRY_MS: u64 = 2_000;
const UNAVAILABLE_RETRY_MS: u64 = 1_000;

/// What a deployment chooses.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether strangers may make accounts.
    pub signup: bool,
    /// Of tokens from signup, login and renewal.
    pub token_lifetime: Duration,
    /// Fewest characters of a new password.
    pub password_min: usize,
    pub hashing: password::Cost,
    /// Logins of one address (IPv4, or IPv6 /64), failed or not. Loopback is not limited.
    pub logins_per_ip: Rate,
    /// Failed logins of one username, from wherever.
    pub failures_per_username: Rate,
    /// Accounts that one address makes. Loopback is not limited.
    pub signups_per_ip: Rate,
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            signup: true,
            token_lifetime: Duration::from_secs(24 * 3_600),
            password_min: 8,
            hashing: password::Cost::default(),
            // Offices share addresses: a hundred people may come at nine o'clock.
            logins_per_ip: Rate::per_minute(60, 120),
            // A guesser gets 14,400 tries a day on one name; a person with the right password who is behind a guesser
            // waits six seconds.
            failures_per_username: Rate::per_minute(10, 20),
            signups_per_ip: Rate::per_minute(10, 30),
            clock: Clock::system(),
        }
    }
}

/// Who has authenticated, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub person: Person,
    /// The login that the token belongs to; tokens made by hand have none.
    pub login: Option<Arc<str>>,
    pub issued_at: UnixMs,
    pub expires_at: UnixMs,
    /// The number of the last revocation before the store was asked.
    pub as_of: u64,
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// It is no token of ours, or its login has ended.
    Unauthenticated,
    Expired,
    /// It is from a time that this server's clock has not reached: whose clock is wrong nobody can say, and another server
    /// may take it.
    NotYet,
    Disabled,
    /// The store cannot say now: nothing is said of the token.
    Unavailable,
}

impl Refusal {
    pub fn error(self) -> v1::Error {
        match self {
            Self::Unauthenticated => {
                Code::Unauthenticated.error("the token is not valid (any longer): log in again")
            }
            Self::Expired => Code::TokenExpired.error("the token has expired: log in again"),
            Self::NotYet => Code::Unavailable.error(
                "the token is from the future by this server's clock: try another server, or compare the clocks",
            ),
            Self::Disabled => Code::Unauthenticated.error("this account is disabled"),
            Self::Unavailable => unavailable(),
        }
    }
}

/// What signup, login and renewal answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub user: UserId,
    pub name: String,
    pub token: String,
    pub expires_at: UnixMs,
}

/// The accounts of a node; clones share it.
#[derive(Debug, Clone)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: Options,
    store: Arc<dyn Accounts>,
    keys: ArcSwap<Keys>,
    /// Where the keys are kept; none in tests.
    keys_dir: Option<PathBuf>,
    hasher: Hasher,
    turns: Vec<Mutex<()>>,
    turn_of: foldhash::fast::RandomState,
    revocations: Revocations,
    started: Instant,
    logins_by_ip: Buckets,
    failures_by_username: Buckets,
    signups_by_ip: Buckets,
    metrics: Metrics,
}

impl Service {
    /// Hashes one password on this thread: some tens of milliseconds. `keys_dir`: where `keys` were loaded from, to
    /// see when they are rotated.
    pub fn new(
        options: Options,
        store: Arc<dyn Accounts>,
        keys: Keys,
        keys_dir: Option<PathBuf>,
    ) -> Result<Self, password::Error> {
        Ok(Self(Arc::new(Inner {
            hasher: Hasher::new(options.hashing)?,
            store,
            keys: ArcSwap::from_pointee(keys),
            keys_dir,
            turns: (0..TURNS).map(|_| Mutex::new(())).collect(),
            turn_of: foldhash::fast::RandomState::default(),
            revocations: Revocations::new(),
            started: Instant::now(),
            logins_by_ip: Buckets::new(CELLS, options.logins_per_ip),
            failures_by_username: Buckets::new(CELLS, options.failures_per_username),
            signups_by_ip: Buckets::new(CELLS, options.signups_per_ip),
            metrics: Metrics::new(),
            options,
        })))
    }

    /// Takes up rotated keys and sweeps expired logins, until it is told to stop.
    pub async fn maintain(self, drain: CancellationToken) {
        let mut ticks = interval(KEYS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut ticked) = (None, 0u32);
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.reload_keys(&mut seen).await;
            if ticked.is_multiple_of(SWEEP_EVERY) {
                // What is left over above the store's bound is swept next time.
                match self.0.store.sweep_logins(self.now()).await {
                    Ok(0) => {}
                    Ok(swept) => tracing::debug!(swept, "expired logins forgotten"),
                    Err(error) => tracing::warn!(%error, "expired logins could not be swept"),
                }
            }
            ticked = ticked.wrapping_add(1);
        }
    }

    async fn reload_keys(&self, seen: &mut Option<(u64, i64, i64)>) {
        let Some(dir) = self.0.keys_dir.clone() else { return };
        let before = *seen;
        let looked = tokio::task::spawn_blocking(move || {
            let file = std::fs::metadata(dir.join(keys::FILE)).ok()?;
            // A rotation makes a new file; one of the very same time has another number still.
            let changed = (file.ino(), file.mtime(), file.mtime_nsec());
            (before != Some(changed)).then(|| (changed, Keys::load(&dir)))
        });
        match looked.await {
            Ok(Some((changed, Ok(keys)))) => {
                if keys.signing().kid != self.0.keys.load().signing().kid {
                    tracing::info!(kid = keys.signing().kid, "a new key signs tokens");
                }
                *seen = Some(changed);
                self.0.keys.store(Arc::new(keys));
            }
            Ok(Some((_, Err(error)))) => tracing::error!(%error, "the token keys stay as they were"),
            Ok(None) | Err(_) => {}
        }
    }

    /// Makes an account and logs it in. Of two that want one name at once, one gets it.
    pub async fn signup(
        &self,
        username: &str,
        password: &str,
        display_name: Option<&str>,
        ip: IpAddr,
    ) -> Result<Granted, v1::Error> {
        let granted = self.signup_inner(username, password, display_name, ip).await;
        self.0.metrics.signup(granted.as_ref().err());
        granted
    }

    async fn signup_inner(
        &self,
        username: &str,
        password: &str,
        display_name: Option<&str>,
        ip: IpAddr,
    ) -> Result<Granted, v1::Error> {
        if !self.0.options.signup {
            return Err(Code::PermissionDenied.error("this server does not take signups"));
        }
        self.throttle_ip(&self.0.signups_by_ip, ip)?;
        let bad = |why: names::Invalid| Code::BadRequest.error(why.to_string());
        let name = names::username(username).map_err(bad)?;
        let display_name = names::display_name(display_name.unwrap_or(username)).map_err(bad)?;
        self.check_new_password(&name.text, password)?;
        let taken = || Code::AlreadyExists.error("this username is taken, or one that looks like it");
        // Before the hash, which is dear. The store decides.
        if self.0.store.user_by_username(&name.text).await.map_err(|error| store_error(&error))?.is_some() {
            return Err(taken());
        }
        let password_hash = self.0.hasher.hash(password).await.map_err(|error| hash_error(&error))?;
        let now = self.now();
        let row = UserRow {
            user: new_user_id()?,
            name: display_name,
            username: Some(name.text),
            skeleton: Some(name.skeleton),
            password_hash: Some(password_hash),
            disabled: false,
            created_at: now,
            tokens_not_before: UnixMs(0),
        };
        let mut created = self.0.store.create_user(row.clone()).await;
        if created == Err(StoreError::Unknown) {
            // The very same row again settles it.
            created = self.0.store.create_user(row.clone()).await;
        }
        match created.map_err(|error| store_error(&error))? {
            Creation::Created => self.grant(&row, None).await,
            Creation::UsernameTaken => Err(taken()),
            Creation::IdTaken => Err(Code::Internal.error("try again")),
        }
    }

    fn check_new_password(&self, username: &str, password: &str) -> Result<(), v1::Error> {
        let least = self.0.options.password_min;
        if password.chars().count() < least || password.len() > PASSWORD_MAX {
            let words =
                format!("a password has at least {least} characters and at most {PASSWORD_MAX} bytes");
            return Err(Code::BadRequest.error(words));
        }
        if names::normal(password).as_deref() == Some(username) {
            return Err(Code::BadRequest.error("the password must not be the username"));
        }
        Ok(())
    }

    pub async fn login(&self, username: &str, password: &str, ip: IpAddr) -> Result<Granted, v1::Error> {
        let (granted, outcome) = match self.login_inner(username, password, ip).await {
            Ok(granted) => (Ok(granted), LoginOutcome::Ok),
            Err((error, outcome)) => (Err(error), outcome),
        };
        self.0.metrics.login(outcome);
        granted
    }

    async fn login_inner(
        &self,
        username: &str,
        password: &str,
        ip: IpAddr,
    ) -> Result<Granted, (v1::Error, LoginOutcome)> {
        use LoginOutcome::{Bad, Disabled, Overloaded, Throttled, Unavailable};
        self.throttle_ip(&self.0.logins_by_ip, ip).map_err(|error| (error, Throttled))?;
        // What cannot be a username is looked for all the same, by no name: the answer takes as long.
        let username = names::normal(username).unwrap_or_default();
        self.throttle(&self.0.failures_by_username, &username).map_err(|error| (error, Throttled))?;
        let refused = |error: StoreError| (store_error(&error), Unavailable);
        let row = self.0.store.user_by_username(&username).await.map_err(refused)?;
        let phc = row.as_ref().and_then(|row| row.password_hash.clone());
        let password = if password.len() > PASSWORD_MAX { "" } else { password };
        let right = self.0.hasher.verify(password, phc).await;
        let right = right.map_err(|error| (hash_error(&error), Overloaded))?;
        let Some(row) = row.filter(|_| right) else {
            return Err((Code::Unauthenticated.error("wrong username or password"), Bad));
        };
        self.0.failures_by_username.give_back(username.as_str());
        if row.disabled {
            return Err((Refusal::Disabled.error(), Disabled));
        }
        self.grant(&row, None).await.map_err(|error| (error, Unavailable))
    }

    /// Stores the login (a new one, or this one for longer) and signs a token of it.
    async fn grant(&self, row: &UserRow, login: Option<&str>) -> Result<Granted, v1::Error> {
        let login = match login {
            Some(login) => login.to_owned(),
            None => random_id()?,
        };
        let now = self.now();
        let issued = self.issue(row, Some(&login), now)?;
        let stored =
            LoginRow { login, user: row.user.clone(), created_at: now, expires_at: issued.expires_at };
        self.0.store.put_login(stored).await.map_err(|error| store_error(&error))?;
        Ok(granted(row, issued))
    }

    fn issue(&self, row: &UserRow, login: Option<&str>, now: UnixMs) -> Result<token::Issued, v1::Error> {
        let lifetime = self.0.options.token_lifetime;
        let spec = TokenSpec { user: &row.user, name: Some(&row.name), login, lifetime };
        // Everything may have been ended by a node whose clock is ahead: who logs in after that is not to wait for it.
        let now = now.max(row.tokens_not_before);
        token::issue(&self.0.keys.load(), &spec, now).map_err(|error| {
            tracing::error!(%error, "a token could not be signed");
            Code::Internal.error("the token could not be signed")
        })
    }

    /// A new token for the same login. (A token without a login is followed by one without.)
    pub async fn renew(&self, token: &str) -> Result<Granted, v1::Error> {
        let identity = self.authenticate(token).await.map_err(Refusal::error)?;
        let _turn = self.turn(&identity.person.user).await;
        // Looked at again now that nobody else changes it: the login must not come back from its end.
        let row = self.alive(&identity.person.user, identity.login.as_deref(), identity.issued_at).await;
        let row = row.map_err(Refusal::error)?.ok_or_else(|| Refusal::Unauthenticated.error())?;
        match &identity.login {
            Some(login) => self.grant(&row, Some(login)).await,
            None => Ok(granted(&row, self.issue(&row, None, self.now())?)),
        }
    }

    /// Ends this login, or with `all` every login and token that the user has had up to now.
    pub async fn logout(&self, token: &str, all: bool) -> Result<(), v1::Error> {
        let identity = self.authenticate(token).await.map_err(Refusal::error)?;
        let user = &identity.person.user;
        match &identity.login {
            Some(login) if !all => {
                let _turn = self.turn(user).await;
                self.0.store.end_login(login).await.map_err(|error| store_error(&error))?;
                self.0.revocations.revoke(user.clone(), Some(Arc::clone(login)));
                Ok(())
            }
            // A token without a login has no end of its own: what can be ended is everything before now.
            None | Some(_) => self.end_all(user, None).await,
        }
    }

    /// Ends every login and token of the user, and with `disabled` decides whether there can be new ones.
    /// False: there is no such user.
    pub async fn set_disabled(&self, user: &UserId, disabled: bool) -> Result<bool, v1::Error> {
        match self.end_all(user, Some(disabled)).await {
            Ok(()) => Ok(true),
            Err(error) if error.code == Code::UnknownUser.number() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn end_all(&self, user: &UserId, disabled: Option<bool>) -> Result<(), v1::Error> {
        let _turn = self.turn(user).await;
        let unavailable = |error: StoreError| store_error(&error);
        let row = self.0.store.user(user).await.map_err(unavailable)?;
        let mut row = row.ok_or_else(|| Code::UnknownUser.error("there is no such user"))?;
        let enabling = disabled == Some(false);
        row.disabled = disabled.unwrap_or(row.disabled);
        if !enabling {
            // Tokens of this very millisecond end too.
            row.tokens_not_before = row.tokens_not_before.max(UnixMs(self.now().0 + 1));
        }
        self.0.store.put_user(row).await.map_err(unavailable)?;
        if !enabling {
            // Their tokens are dead already by the line above; this only makes room.
            self.0.store.end_all_logins(user).await.map_err(unavailable)?;
            self.0.revocations.revoke(user.clone(), None);
        }
        Ok(())
    }

    /// Who a token speaks for: two reads of the store, no write but at the first sight of a foreign user.
    pub async fn authenticate(&self, token: &str) -> Result<Identity, Refusal> {
        let identity = self.authenticate_inner(token).await;
        self.0.metrics.auth(identity.as_ref().err().copied());
        identity
    }

    async fn authenticate_inner(&self, token: &str) -> Result<Identity, Refusal> {
        // Before the store is asked: what is revoked while it answers is seen afterwards.
        let as_of = self.0.revocations.number();
        let verified = match token::verify(&self.0.keys.load(), token, self.now()) {
            Ok(verified) => verified,
            Err(token::Error::Expired(_)) => return Err(Refusal::Expired),
            Err(token::Error::NotYet) => return Err(Refusal::NotYet),
            Err(_) => return Err(Refusal::Unauthenticated),
        };
        let name = verified.name.as_deref().and_then(|name| names::display_name(name).ok());
        let known = self.alive(&verified.user, verified.login.as_deref(), verified.issued_at).await?;
        let name = match known {
            // Ours keep the name that they have chosen; a foreign user has the name of the newest token.
            Some(row) if row.username.is_some() || name.is_none() || name.as_ref() == Some(&row.name) => {
                row.name
            }
            Some(_) | None => self.meet(&verified.user, name, verified.issued_at).await?,
        };
        Ok(Identity {
            person: Person { user: verified.user, name: name.into() },
            login: verified.login.map(Into::into),
            issued_at: verified.issued_at,
            expires_at: verified.expires_at,
            as_of,
        })
    }

    /// The user of a token that may be used: not disabled, the token not ended, its login there.
    /// None: nobody has heard of this user, and the token claims no login.
    async fn alive(
        &self,
        user: &UserId,
        login: Option<&str>,
        issued_at: UnixMs,
    ) -> Result<Option<UserRow>, Refusal> {
        self.look(user, login, issued_at).await.map_err(|error| refusal(&error))?
    }

    /// Whether the store says that a token which once held does not hold any more, for another reason than its age.
    pub(crate) async fn has_ended(
        &self,
        user: &UserId,
        login: Option<&str>,
        issued_at: UnixMs,
    ) -> Result<bool, StoreError> {
        self.look(user, login, issued_at).await.map(|found| found.is_err())
    }

    async fn look(
        &self,
        user: &UserId,
        login: Option<&str>,
        issued_at: UnixMs,
    ) -> Result<Result<Option<UserRow>, Refusal>, StoreError> {
        let row = self.0.store.user(user).await?;
        match &row {
            Some(row) if row.disabled => return Ok(Err(Refusal::Disabled)),
            Some(row) if issued_at < row.tokens_not_before => return Ok(Err(Refusal::Unauthenticated)),
            None if login.is_some() => return Ok(Err(Refusal::Unauthenticated)),
            Some(_) | None => {}
        }
        if let Some(login) = login {
            let login = self.0.store.login(login).await?;
            if login.is_none_or(|login| login.user != *user) {
                return Ok(Err(Refusal::Unauthenticated));
            }
        }
        Ok(Ok(row))
    }

    /// Writes down a foreign user, or its new name. Returns the name that it has now.
    async fn meet(&self, user: &UserId, name: Option<String>, issued_at: UnixMs) -> Result<String, Refusal> {
        let _turn = self.turn(user).await;
        let row = match self.alive(user, None, issued_at).await? {
            Some(row) if row.username.is_some() || name.as_ref().is_none_or(|name| *name == row.name) => {
                return Ok(row.name);
            }
            Some(row) => UserRow { name: name.unwrap_or_default(), ..row },
            None => UserRow {
                user: user.clone(),
                name: name.unwrap_or_else(|| user.as_str().to_owned()),
                username: None,
                skeleton: None,
                password_hash: None,
                disabled: false,
                created_at: self.now(),
                tokens_not_before: UnixMs(0),
            },
        };
        let name = row.name.clone();
        self.0.store.put_user(row).await.map_err(|error| refusal(&error))?;
        Ok(name)
    }

    /// What has become of an identity since it was made, without a look into the store. A worker asks it right after
    /// it has registered the connection (and so the login ends it from now on by [`Service::revocations`]), and for
    /// each of its connections after its receiver has lagged.
    pub fn standing(&self, identity: &Identity) -> Standing {
        self.0.revocations.standing(identity)
    }

    /// The same from the store; for [`Standing::Unknown`]. On `Ok` the identity counts as made now.
    pub async fn recheck(&self, identity: &Identity) -> Result<Identity, Refusal> {
        let as_of = self.0.revocations.number();
        self.alive(&identity.person.user, identity.login.as_deref(), identity.issued_at)
            .await?
            .ok_or(Refusal::Unauthenticated)?;
        Ok(Identity { as_of, ..identity.clone() })
    }

    /// Every revocation from now on, at most [`Revocation`]s of a thousand behind. A receiver that has lagged asks
    /// [`Service::standing`] for each of its connections and, where that is unknown, [`Service::recheck`].
    pub fn revocations(&self) -> broadcast::Receiver<Revocation> {
        self.0.revocations.subscribe()
    }

    /// By username, as signup would normalise it.
    pub async fn find_user(&self, username: &str) -> Result<Person, v1::Error> {
        let unknown = || Code::UnknownUser.error("there is no user of this name");
        let username = names::normal(username).ok_or_else(unknown)?;
        let row = self.0.store.user_by_username(&username).await.map_err(|error| store_error(&error))?;
        let row = row.ok_or_else(unknown)?;
        Ok(Person { user: row.user, name: row.name.into() })
    }

    /// Who these users are, in the same order; none for who does not exist.
    pub async fn persons(&self, users: &[UserId]) -> Result<Vec<Option<Person>>, v1::Error> {
        let mut persons = Vec::with_capacity(users.len());
        for user in users {
            let row = self.0.store.user(user).await.map_err(|error| store_error(&error))?;
            persons.push(row.map(|row| Person { user: row.user, name: row.name.into() }));
        }
        Ok(persons)
    }

    /// What time it is for accounts, and so for everything that is said about tokens.
    pub fn now(&self) -> UnixMs {
        self.0.options.clock.now()
    }

    async fn turn(&self, user: &UserId) -> MutexGuard<'_, ()> {
        let turn = self.0.turn_of.hash_one(user.as_str()) as usize % TURNS;
        self.0.turns[turn].lock().await
    }

    fn throttle_ip(&self, buckets: &Buckets, ip: IpAddr) -> Result<(), v1::Error> {
        let ip = ip.to_canonical();
        if ip.is_loopback() {
            return Ok(());
        }
        let key = match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            // A /64 is what one customer gets.
            IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        };
        self.throttle(buckets, &key)
    }

    fn throttle<K: std::hash::Hash + ?Sized>(&self, buckets: &Buckets, key: &K) -> Result<(), v1::Error> {
        let now_ms = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        buckets.take(key, now_ms).map_err(|retry_after_ms| {
            Code::TooManyRequests.error_retry_after("too many tries: wait a little", retry_after_ms)
        })
    }
}

fn granted(row: &UserRow, issued: token::Issued) -> Granted {
    Granted {
        user: row.user.clone(),
        name: row.name.clone(),
        token: issued.token,
        expires_at: issued.expires_at,
    }
}

fn random_id() -> Result<String, v1::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the system gives no random bytes");
        Code::Internal.error("the system gives no random bytes")
    })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// 128 random bits; the letter keeps it from beginning with `-`.
fn new_user_id() -> Result<UserId, v1::Error> {
    let id = format!("u{}", random_id()?);
    UserId::parse(&id).map_err(|error| Code::Internal.error(error.to_string()))
}

fn unavailable() -> v1::Error {
    Code::Unavailable.error_retry_after("accounts cannot be read or written now", UNAVAILABLE_RETRY_MS)
}

fn store_error(error: &StoreError) -> v1::Error {
    match error {
        StoreError::Overloaded => {
            Code::Overloaded.error_retry_after("the store has too much to do", UNAVAILABLE_RETRY_MS)
        }
        StoreError::Full => Code::Unavailable
            .error_retry_after("the server's disk is full: nothing can be stored", UNAVAILABLE_RETRY_MS),
        StoreError::Unavailable(_) | StoreError::Unknown | StoreError::Closed => unavailable(),
        StoreError::Corrupt(_) | StoreError::Refused(_) => {
            tracing::error!(%error, "accounts store");
            Code::Internal.error("the store refused")
        }
    }
}

fn refusal(error: &StoreError) -> Refusal {
    tracing::warn!(%error, "a token cannot be checked");
    Refusal::Unavailable
}

fn hash_error(error: &password::Error) -> v1::Error {
    match error {
        password::Error::Overloaded => {
            Code::Overloaded.error_retry_after("too many people log in at this moment", OVERLOADED_RETRY_MS)
        }
        password::Error::Cost(_) | password::Error::Failed(_) => {
            tracing::error!(%error, "password hash");
            Code::Internal.error("the password could not be checked")
        }
    }
}

#[cfg(test)]
mod tests;
