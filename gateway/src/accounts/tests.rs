//! The service on the in-memory store.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use banyan_storage::BoxFuture;
use banyan_storage::memory::{Faults, Memory};

use super::keys::Algorithm;
use super::*;

const START: u64 = 1_700_000_000_123;
const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

struct World {
    service: Service,
    store: Arc<dyn Accounts>,
    faults: Faults,
    clock: Arc<AtomicU64>,
    keys: Keys,
}

fn cheap() -> Options {
    Options {
        hashing: password::Cost { memory_kib: 64, passes: 1, concurrency: 1, queue: 8 },
        ..Options::default()
    }
}

/// A store in which every question lets others go first, now more, now fewer of them (the same in every run): races
/// come out in many ways.
#[derive(Debug)]
struct Yielding(Memory, AtomicU32);

impl Yielding {
    fn pauses(&self) -> u32 {
        // The finaliser of MurmurHash3 over a counter, upper three bits.
        let mut hash = self.1.fetch_add(1, Ordering::Relaxed);
        hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
        (hash ^ (hash >> 16)) >> 29
    }
}

macro_rules! after_others {
    ($self:ident, $question:ident($($argument:expr),*)) => {{
        let (answer, pauses) = ($self.0.clone(), $self.pauses());
        Box::pin(async move {
            for _ in 0..pauses {
                tokio::task::yield_now().await;
            }
            Accounts::$question(&answer, $($argument),*).await
        })
    }};
}

impl Accounts for Yielding {
    fn create_user(&self, row: UserRow) -> BoxFuture<'static, Result<Creation, StoreError>> {
        after_others!(self, create_user(row))
    }

    fn user_by_username(&self, username: &str) -> BoxFuture<'static, Result<Option<UserRow>, StoreError>> {
        let username = username.to_owned();
        after_others!(self, user_by_username(&username))
    }

    fn user(&self, user: &UserId) -> BoxFuture<'static, Result<Option<UserRow>, StoreError>> {
        let user = user.clone();
        after_others!(self, user(&user))
    }

    fn put_user(&self, row: UserRow) -> BoxFuture<'static, Result<(), StoreError>> {
        after_others!(self, put_user(row))
    }

    fn put_login(&self, row: LoginRow) -> BoxFuture<'static, Result<(), StoreError>> {
        after_others!(self, put_login(row))
    }

    fn login(&self, login: &str) -> BoxFuture<'static, Result<Option<LoginRow>, StoreError>> {
        let login = login.to_owned();
        after_others!(self, login(&login))
    }

    fn end_login(&self, login: &str) -> BoxFuture<'static, Result<(), StoreError>> {
        let login = login.to_owned();
        after_others!(self, end_login(&login))
    }

    fn end_all_logins(&self, user: &UserId) -> BoxFuture<'static, Result<(), StoreError>> {
        let user = user.clone();
        after_others!(self, end_all_logins(&user))
    }

    fn sweep_logins(&self, now: UnixMs) -> BoxFuture<'static, Result<usize, StoreError>> {
        after_others!(self, sweep_logins(now))
    }
}

fn world_with(mut options: Options) -> World {
    let memory = Memory::new();
    let clock = Arc::new(AtomicU64::new(START));
    let reads = Arc::clone(&clock);
    options.clock = Clock::new(move || UnixMs(reads.load(Ordering::Relaxed)));
    let keys = Keys::generate(Algorithm::HS256, UnixMs(START)).unwrap();
    let faults = memory.faults();
    let store: Arc<dyn Accounts> = Arc::new(Yielding(memory, AtomicU32::new(0)));
    let service = Service::new(options, Arc::clone(&store), keys.clone(), None).unwrap();
    World { service, store, faults, clock, keys }
}

fn world() -> World {
    world_with(cheap())
}

impl World {
    fn pass(&self, ms: u64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    async fn ann(&self) -> Granted {
        self.service.signup("Ann", "correct horse", Some("Ann  A."), LOCAL).await.unwrap()
    }

    /// As `banyan gentoken` makes them.
    fn foreign(&self, user: &str, name: Option<&str>) -> String {
        let user = UserId::parse(user).unwrap();
        let spec = TokenSpec { user: &user, name, login: None, lifetime: Duration::from_secs(60) };
        token::issue(&self.keys, &spec, self.service.now()).unwrap().token
    }
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, v1::Error>) -> u32 {
    result.unwrap_err().code
}

#[tokio::test]
async fn signup_login_and_who_one_is() {
    let world = world();
    let signed_up = world.ann().await;
    assert_eq!(signed_up.name, "Ann A.");
    assert!(!signed_up.user.as_str().to_lowercase().contains("ann"), "never the name");
    assert_eq!(signed_up.expires_at.0, START / 1_000 * 1_000 + 86_400_000);
    let identity = world.service.authenticate(&signed_up.token).await.unwrap();
    assert_eq!(identity.person, Person { user: signed_up.user.clone(), name: "Ann A.".into() });
    assert_eq!(identity.expires_at, signed_up.expires_at);

    let logged_in = world.service.login("ANN", "correct horse", LOCAL).await.unwrap();
    assert_eq!((&logged_in.user, &logged_in.name), (&signed_up.user, &signed_up.name));
    let again = world.service.authenticate(&logged_in.token).await.unwrap();
    assert_ne!(again.login, identity.login, "each login is its own");

    let found = world.service.find_user("aNN").await.unwrap();
    assert_eq!(found, identity.person);
    for nobody in ["ann2", "a", "a b", ""] {
        assert_eq!(code(world.service.find_user(nobody).await), 122, "{nobody:?}");
    }
    let stranger = UserId::parse("stranger").unwrap();
    let persons = world.service.persons(&[stranger, signed_up.user]).await.unwrap();
    assert_eq!(persons, [None, Some(found)]);
}

#[tokio::test]
async fn what_signup_refuses() {
    let world = world();
    world.ann().await;
    for (username, password, display_name, want) in [
        ("ann", "correct horse", None, 105),
        ("ANN", "correct horse", None, 105),
        ("ab", "correct horse", None, 107),
        ("admin", "correct horse", None, 107),
        ("bob", "short", None, 107),
        ("bob", "1234567", None, 107),
        ("bob", &"x".repeat(1_025), None, 107),
        ("bobbybob", "BobbyBob", None, 107),
        ("bob", "correct horse", Some(""), 107),
        ("bob", "correct horse", Some("\u{202e}"), 107),
    ] {
        let result = world.service.signup(username, password, display_name, LOCAL).await;
        assert_eq!(code(result), want, "{username} {password}");
    }
    world.service.signup("modern", "correct horse", None, LOCAL).await.unwrap();
    assert_eq!(code(world.service.signup("modem", "correct horse", None, LOCAL).await), 105);

    let closed = world_with(Options { signup: false, ..cheap() });
    assert_eq!(code(closed.service.signup("bob", "correct horse", None, LOCAL).await), 103);
}

#[tokio::test]
async fn of_many_who_want_one_name_one_gets_it() {
    let world = world();
    let tries: Vec<_> = (0..8)
        .map(|_| {
            let service = world.service.clone();
            tokio::spawn(async move { service.signup("bob", "correct horse", None, LOCAL).await })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        match one.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(error.code, 105),
        }
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_answer_alike() {
    let world = world();
    world.ann().await;
    let wrong = world.service.login("ann", "wrong horse", LOCAL).await.unwrap_err();
    for (username, password) in
        [("nobody", "correct horse"), ("~", ""), ("", ""), ("ann", &"x".repeat(2_000))]
    {
        assert_eq!(world.service.login(username, password, LOCAL).await.unwrap_err(), wrong, "{username}");
    }
    assert_eq!(wrong.code, 101);
}

#[tokio::test]
async fn logout_ends_this_login_or_all() {
    let world = world();
    let one = world.ann().await;
    let two = world.service.login("ann", "correct horse", LOCAL).await.unwrap();
    let by_hand = world.foreign(one.user.as_str(), None);
    let mut revocations = world.service.revocations();
    let identity = |token: &str| {
        let (service, token) = (world.service.clone(), token.to_owned());
        async move { service.authenticate(&token).await }
    };
    let (first, second, third) = (
        identity(&one.token).await.unwrap(),
        identity(&two.token).await.unwrap(),
        identity(&by_hand).await.unwrap(),
    );
    assert_eq!(third.person.name, first.person.name, "a token by hand does not rename one of ours");

    world.service.logout(&one.token, false).await.unwrap();
    assert_eq!(identity(&one.token).await, Err(Refusal::Unauthenticated));
    assert_eq!(code(world.service.logout(&one.token, false).await), 101);
    let ended = revocations.recv().await.unwrap();
    assert_eq!((ended.ends(&first), ended.ends(&second), ended.ends(&third)), (true, false, false));
    assert_eq!(world.service.standing(&first), Standing::Revoked);
    assert_eq!(world.service.standing(&second), Standing::Good);

    let still = identity(&two.token).await.unwrap();
    world.pass(5);
    world.service.logout(&two.token, true).await.unwrap();
    for token in [&one.token, &two.token, &by_hand] {
        assert_eq!(identity(token).await, Err(Refusal::Unauthenticated));
    }
    let ended = revocations.recv().await.unwrap();
    assert!(ended.ends(&second) && ended.ends(&third) && ended.ends(&still));

    // A millisecond later everything is new.
    world.pass(1);
    let three = world.service.login("ann", "correct horse", LOCAL).await.unwrap();
    let fourth = identity(&three.token).await.unwrap();
    assert!(!ended.ends(&fourth));
    assert_eq!(world.service.standing(&fourth), Standing::Good);
    assert!(identity(&world.foreign(one.user.as_str(), None)).await.is_ok());
}

#[tokio::test]
async fn a_revocation_between_the_look_and_the_registration_is_seen() {
    let world = world();
    let granted = world.ann().await;
    let identity = world.service.authenticate(&granted.token).await.unwrap();
    // The worker has not registered the connection yet and hears the broadcast for nobody.
    world.service.logout(&granted.token, false).await.unwrap();
    assert_eq!(world.service.standing(&identity), Standing::Revoked);
    assert_eq!(world.service.recheck(&identity).await, Err(Refusal::Unauthenticated));
}

#[tokio::test]
async fn renewal_keeps_the_login_and_its_end() {
    let world = world();
    let granted = world.ann().await;
    // A server whose clock is behind says so; nobody is told to log in again.
    world.clock.fetch_sub(3_600_000, Ordering::Relaxed);
    assert_eq!(world.service.authenticate(&granted.token).await, Err(Refusal::NotYet));
    assert_eq!(Refusal::NotYet.error().code, 108);
    world.pass(3_600_000);
    let before = world.service.authenticate(&granted.token).await.unwrap();
    world.pass(80_000_000);
    let renewed = world.service.renew(&granted.token).await.unwrap();
    let after = world.service.authenticate(&renewed.token).await.unwrap();
    assert_eq!(after.login, before.login);
    assert_eq!(after.expires_at.0, before.expires_at.0 + 80_000_000);
    // The login's row lives as long as its longest token.
    world.pass(10_000_000);
    world.store.sweep_logins(world.service.now()).await.unwrap();
    assert_eq!(world.service.authenticate(&granted.token).await, Err(Refusal::Expired));
    assert_eq!(code(world.service.renew(&granted.token).await), 109);
    assert!(world.service.authenticate(&renewed.token).await.is_ok());
    world.service.logout(&renewed.token, false).await.unwrap();
    assert_eq!(code(world.service.renew(&renewed.token).await), 101);
    assert_eq!(world.service.authenticate(&renewed.token).await, Err(Refusal::Unauthenticated));
}

#[tokio::test]
async fn a_renewal_does_not_revive_a_login_that_ends_meanwhile() {
    let world = world();
    world.ann().await;
    let mut both = 0;
    for round in 0..200 {
        let granted = world.service.login("ann", "correct horse", LOCAL).await.unwrap();
        let (renews, ends) = (world.service.clone(), world.service.clone());
        let (one, other) = (granted.token.clone(), granted.token.clone());
        let renewed = tokio::spawn(async move { renews.renew(&one).await });
        tokio::spawn(async move { ends.logout(&other, round % 2 == 0).await }).await.unwrap().unwrap();
        assert_eq!(world.service.authenticate(&granted.token).await, Err(Refusal::Unauthenticated));
        // The renewal may be done only now.
        if let Ok(renewed) = renewed.await.unwrap() {
            both += 1;
            let revived = world.service.authenticate(&renewed.token).await;
            assert_eq!(revived, Err(Refusal::Unauthenticated), "round {round}");
        }
        // Past the millisecond whose tokens have ended.
        world.pass(2);
    }
    assert!(both > 0, "the two never met");
}

#[tokio::test]
async fn a_disabled_user_is_out_until_enabled() {
    let world = world();
    let granted = world.ann().await;
    let identity = world.service.authenticate(&granted.token).await.unwrap();
    assert_eq!(world.service.set_disabled(&granted.user, true).await, Ok(true));
    assert_eq!(world.service.standing(&identity), Standing::Revoked);
    assert_eq!(world.service.authenticate(&granted.token).await, Err(Refusal::Disabled));
    let refused = world.service.login("ann", "correct horse", LOCAL).await.unwrap_err();
    assert!(refused.message.contains("disabled"), "{refused:?}");
    // Only who knows the password learns that.
    let wrong = world.service.login("ann", "wrong horse", LOCAL).await.unwrap_err();
    assert!(!wrong.message.contains("disabled"));
    assert_eq!(
        world.service.authenticate(&world.foreign(granted.user.as_str(), None)).await,
        Err(Refusal::Disabled)
    );

    world.pass(1);
    assert_eq!(world.service.set_disabled(&granted.user, false).await, Ok(true));
    assert_eq!(world.service.authenticate(&granted.token).await, Err(Refusal::Unauthenticated));
    assert!(world.service.login("ann", "correct horse", LOCAL).await.is_ok());
    assert_eq!(world.service.set_disabled(&UserId::parse("nobody").unwrap(), true).await, Ok(false));
}

#[tokio::test]
async fn a_foreign_user_exists_from_its_first_auth() {
    let world = world();
    let user = UserId::parse("auth0|7").unwrap();
    assert_eq!(world.service.persons(std::slice::from_ref(&user)).await.unwrap(), [None]);
    let first = world.service.authenticate(&world.foreign("auth0|7", Some("Sev\u{202e}en"))).await.unwrap();
    assert_eq!((&*first.person.name, first.login), ("Seven", None));
    let row = world.store.user(&user).await.unwrap().unwrap();
    assert_eq!((row.name.as_str(), row.username, row.password_hash), ("Seven", None, None));
    // No name keeps it, another one changes it; none at all is the id.
    let named = |name| {
        let token = world.foreign("auth0|7", name);
        let service = world.service.clone();
        async move { service.authenticate(&token).await.unwrap().person.name }
    };
    assert_eq!(&*named(None).await, "Seven");
    assert_eq!(&*named(Some("")).await, "Seven");
    assert_eq!(&*named(Some("Siebt")).await, "Siebt");
    let plain = world.service.authenticate(&world.foreign("u8", None)).await.unwrap();
    assert_eq!(&*plain.person.name, "u8");
    // Known users cost no write.
    world.faults.fail_account_writes(Some(StoreError::Full));
    assert_eq!(&*named(Some("Siebt")).await, "Siebt");
    assert_eq!(world.service.authenticate(&world.foreign("u9", None)).await, Err(Refusal::Unavailable));
}

#[tokio::test]
async fn a_token_of_a_login_needs_its_user_and_its_row() {
    let world = world();
    let user = UserId::parse("u1").unwrap();
    let spec = TokenSpec { user: &user, name: None, login: Some("L"), lifetime: Duration::from_secs(60) };
    let token = token::issue(&world.keys, &spec, world.service.now()).unwrap().token;
    assert_eq!(world.service.authenticate(&token).await, Err(Refusal::Unauthenticated), "no user");
    world.service.authenticate(&world.foreign("u1", None)).await.unwrap();
    assert_eq!(world.service.authenticate(&token).await, Err(Refusal::Unauthenticated), "no login");
    let row = LoginRow {
        login: "L".to_owned(),
        user: UserId::parse("u2").unwrap(),
        created_at: UnixMs(1),
        expires_at: UnixMs(u64::MAX),
    };
    world.store.put_login(row.clone()).await.unwrap();
    assert_eq!(world.service.authenticate(&token).await, Err(Refusal::Unauthenticated), "somebody else's");
    world.store.put_login(LoginRow { user, ..row }).await.unwrap();
    assert!(world.service.authenticate(&token).await.is_ok());
}

#[tokio::test]
async fn when_the_store_is_away_nothing_is_said_of_a_token() {
    let world = world();
    let granted = world.ann().await;
    world.faults.fail_reads(Some(StoreError::Unavailable("test".to_owned())));
    assert_eq!(world.service.authenticate(&granted.token).await, Err(Refusal::Unavailable));
    assert_eq!(code(world.service.login("ann", "correct horse", LOCAL).await), 108);
    assert_eq!(code(world.service.find_user("ann").await), 108);
    world.faults.fail_reads(None);
    world.faults.fail_account_writes(Some(StoreError::Full));
    assert!(world.service.authenticate(&granted.token).await.is_ok());
    assert_eq!(code(world.service.signup("bob", "correct horse", None, LOCAL).await), 108);
    assert_eq!(code(world.service.login("ann", "correct horse", LOCAL).await), 108);
}

#[tokio::test(start_paused = true)]
async fn guessing_is_slowed_and_the_right_password_is_not_counted() {
    let options = Options { failures_per_username: Rate::per_minute(6, 3), ..cheap() };
    let world = world_with(options);
    world.ann().await;
    for _ in 0..10 {
        world.service.login("ann", "correct horse", LOCAL).await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(code(world.service.login("ann", "wrong horse", LOCAL).await), 101);
    }
    let slowed = world.service.login("Ann", "correct horse", LOCAL).await.unwrap_err();
    assert_eq!(slowed.code, 111);
    assert!(matches!(slowed.retry_after_ms, Some(1..=10_000)), "{slowed:?}");
    assert_eq!(code(world.service.login("bob", "wrong horse", LOCAL).await), 101, "others are not");
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(world.service.login("ann", "correct horse", LOCAL).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn addresses_are_limited_but_not_this_machine() {
    let rate = Rate::per_minute(1, 2);
    let world = world_with(Options { logins_per_ip: rate, signups_per_ip: rate, ..cheap() });
    let login = |ip: &str| {
        let (service, ip) = (world.service.clone(), ip.parse::<IpAddr>().unwrap());
        async move { code(service.login("nobody", "correct horse", ip).await) }
    };
    for (ip, want) in [
        ("203.0.113.7", 101),
        ("203.0.113.7", 101),
        ("203.0.113.7", 111),
        ("::ffff:203.0.113.7", 111),
        ("203.0.113.8", 101),
        ("2001:db8::1", 101),
        ("2001:db8::2", 101),
        ("2001:db8::3", 111),
        ("2001:db8:0:1::1", 101),
        ("127.0.0.1", 101),
        ("127.0.0.1", 101),
        ("127.0.0.1", 101),
        ("::1", 101),
    ] {
        assert_eq!(login(ip).await, want, "{ip}");
    }
    let ip = "203.0.113.9".parse().unwrap();
    for want in [107, 107, 111] {
        assert_eq!(code(world.service.signup("x", "correct horse", None, ip).await), want);
    }
}

#[tokio::test(start_paused = true)]
async fn maintenance_takes_up_new_keys_sweeps_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::load_or_create(dir.path(), Algorithm::HS256, UnixMs(START)).unwrap();
    let clock = Arc::new(AtomicU64::new(START));
    let reads = Arc::clone(&clock);
    let options = Options { clock: Clock::new(move || UnixMs(reads.load(Ordering::Relaxed))), ..cheap() };
    let store: Arc<dyn Accounts> = Arc::new(Memory::new());
    let service = Service::new(options, Arc::clone(&store), keys, Some(dir.path().to_owned())).unwrap();
    let granted = service.signup("ann", "correct horse", None, LOCAL).await.unwrap();
    let login = service.authenticate(&granted.token).await.unwrap().login.unwrap();
    let drain = CancellationToken::new();
    let maintained = tokio::spawn(service.clone().maintain(drain.clone()));

    tokio::time::sleep(KEYS_INTERVAL).await;
    // A second file time, whatever the file system's clock resolves.
    let rotated = Keys::rotate(dir.path(), Algorithm::EdDSA, UnixMs(START)).unwrap();
    let user = UserId::parse("u1").unwrap();
    let spec = TokenSpec { user: &user, name: None, login: None, lifetime: Duration::from_secs(60) };
    let token = token::issue(&rotated, &spec, UnixMs(START)).unwrap().token;
    assert_eq!(service.authenticate(&token).await, Err(Refusal::Unauthenticated));
    tokio::time::sleep(KEYS_INTERVAL * 2).await;
    // The files are read on another thread, which paused time does not wait for.
    let mut looks = 0;
    while service.authenticate(&token).await.is_err() {
        looks += 1;
        assert!(looks < 10_000, "the new key is not taken up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(service.authenticate(&granted.token).await.is_ok(), "the key before still counts");

    clock.fetch_add(90_000_000, Ordering::Relaxed);
    assert!(store.login(&login).await.unwrap().is_some());
    let mut looks = 0;
    while store.login(&login).await.unwrap().is_some() {
        looks += 1;
        assert!(looks < 10_000, "the expired login is not swept");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drain.cancel();
    maintained.await.unwrap();
}

/// Another node's accounts on the same store, with a clock of its own.
fn beside(world: &World, ahead_ms: u64) -> Service {
    let clock = Arc::clone(&world.clock);
    let options =
        Options { clock: Clock::new(move || UnixMs(clock.load(Ordering::Relaxed) + ahead_ms)), ..cheap() };
    Service::new(options, Arc::clone(&world.store), world.keys.clone(), None).unwrap()
}

#[tokio::test]
async fn what_ends_on_one_node_has_ended_on_another() {
    let world = world();
    let other = beside(&world, 0);
    let one = world.ann().await;
    let two = other.login("ann", "correct horse", LOCAL).await.unwrap();
    let foreign = other.authenticate(&world.foreign("auth0|1", None)).await.unwrap();
    let (one_there, two_there) =
        (other.authenticate(&one.token).await.unwrap(), other.authenticate(&two.token).await.unwrap());
    let ended = async |identity: &Identity| {
        let login = identity.login.as_deref();
        other.has_ended(&identity.person.user, login, identity.issued_at).await
    };
    for identity in [&one_there, &two_there, &foreign] {
        assert_eq!(ended(identity).await, Ok(false));
    }
    world.service.logout(&one.token, false).await.unwrap();
    assert_eq!((ended(&one_there).await, ended(&two_there).await), (Ok(true), Ok(false)));
    world.service.logout(&two.token, true).await.unwrap();
    assert_eq!((ended(&two_there).await, ended(&foreign).await), (Ok(true), Ok(false)));
    world.service.set_disabled(&foreign.person.user, true).await.unwrap();
    assert_eq!(ended(&foreign).await, Ok(true));
}

#[tokio::test]
async fn who_logs_in_after_all_was_ended_by_a_clock_ahead_is_in() {
    let world = world();
    let ahead = beside(&world, 20_000);
    let old = world.ann().await;
    ahead.logout(&old.token, true).await.unwrap();
    assert_eq!(world.service.authenticate(&old.token).await, Err(Refusal::Unauthenticated));
    let new = world.service.login("ann", "correct horse", LOCAL).await.unwrap();
    for service in [&world.service, &ahead] {
        assert_eq!(service.authenticate(&new.token).await.map(|who| who.person.user), Ok(new.user.clone()));
    }
}
