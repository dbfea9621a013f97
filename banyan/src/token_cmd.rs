//! `banyan gentoken`, `banyan checktoken` and `banyan keys`: what is asked of the accounts' token module, and how its answers look.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use banyan_gateway::accounts::keys::{self, Algorithm, Key, Keys};
use banyan_gateway::accounts::names;
use banyan_gateway::accounts::token::{self, Issued, TokenSpec, Verified};
use banyan_gateway::clock;
use banyan_proto::id::{UnixMs, UserId};
use serde_json::json;

use crate::cli::{Checktoken, Gentoken, KeysCommand};
use crate::failure::{Exit, Failure, words};
use crate::output::{self, print};

/// Longest token that is read: tokens travel in the auth frame, which is smaller.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;

/// Shortest lifetime: expiry is told in whole seconds, so a shorter one could be over when the token is printed.
const LIFETIME_MIN: Duration = Duration::from_secs(1);

pub(crate) fn gentoken(asked: &Gentoken) -> Result<(), Failure> {
    let users = users(&asked.user, asked.count)?;
    let name = asked.name.as_deref().map(names::display_name).transpose();
    let name = name.map_err(|error| Failure::new(Exit::Usage, format!("--name: {error}")))?;
    let config = asked.keys.load()?.config;
    let lifetime = asked.lifetime.unwrap_or(config.accounts.token_lifetime);
    if lifetime < LIFETIME_MIN {
        return Err(Failure::new(Exit::Usage, "--lifetime: must be 1s or more"));
    }
    let now = clock::unix_ms();
    let keys = keys(Keys::load_or_create(config.keys_dir(), Algorithm::default(), now))?;
    // One line at a time: a million tokens need no memory.
    output::print_all(users.map(|user| line(&keys, &user?, name.as_deref(), lifetime, now, asked.json)))
}

/// Who gets a token: the user itself, or those of the user's name with 1 to `count` behind it.
fn users(
    user: &str,
    count: Option<u32>,
) -> Result<impl Iterator<Item = Result<UserId, Failure>> + use<>, Failure> {
    let parse = |user: &str| {
        let parsed = UserId::parse(user).map_err(|error| error.to_string());
        let refused = |user: UserId| match user.is_reserved() {
            true => Err(token::Error::Reserved.to_string()),
            false => Ok(user),
        };
        parsed.and_then(refused).map_err(|error| Failure::new(Exit::Usage, format!("USER: {error}")))
    };
    let ids = |number: u32| if number == 0 { user.to_owned() } else { format!("{user}{number}") };
    let (from, through) = count.map_or((0, 0), |count| (1, count));
    // The longest of them stands for all: nothing is printed before this is known to be good.
    parse(&ids(through))?;
    let user = user.to_owned();
    Ok((from..=through).map(move |number| match number {
        0 => parse(&user),
        number => parse(&format!("{user}{number}")),
    }))
}

/// One token as it is printed.
fn line(
    keys: &Keys,
    user: &UserId,
    name: Option<&str>,
    lifetime: Duration,
    now: UnixMs,
    as_json: bool,
) -> Result<String, Failure> {
    let spec = TokenSpec { user, name, login: None, lifetime };
    let Issued { token, expires_at, .. } =
        token::issue(keys, &spec, now).map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
    if !as_json {
        return Ok(format!("{token}\n"));
    }
    let signed = json!({ "user": user.as_str(), "name": name, "token": token, "expires_at": expires_at.0 });
    Ok(format!("{signed}\n"))
}

pub(crate) fn checktoken(asked: &Checktoken) -> Result<(), Failure> {
    let token = match asked.token.as_deref() {
        Some(token) if token != "-" => token.to_owned(),
        Some(_) | None => read_token(io::stdin())?,
    };
    let claims = check(asked.keys.load()?.config.keys_dir(), token.trim())?;
    print(&if asked.json { as_json(&claims) } else { as_text(&claims) })
}

fn read_token(from: impl Read) -> Result<String, Failure> {
    let mut token = String::new();
    let read = from.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut token);
    read.map_err(|error| {
        Failure::new(Exit::Io, format!("cannot read the token from standard input: {}", words(&error)))
    })?;
    if token.len() as u64 > TOKEN_BYTES_MAX {
        return Err(Failure::new(Exit::No, "this is no token: it is longer than 16KiB"));
    }
    if token.trim().is_empty() {
        let failure = Failure::new(Exit::Usage, "there is no token on standard input");
        return Err(failure.with_hint("`banyan gentoken USER | banyan checktoken`"));
    }
    Ok(token)
}

fn as_json(claims: &Verified) -> String {
    let Verified { user, name, issued_at, expires_at, kid, .. } = claims;
    format!(
        "{}\n",
        json!({ "user": user.as_str(), "name": name, "issued_at": issued_at.0, "expires_at": expires_at.0, "key": kid })
    )
}

fn as_text(claims: &Verified) -> String {
    let Verified { user, name, issued_at, expires_at, kid, .. } = claims;
    let mut text = String::new();
    for (word, value) in [
        ("user", user.as_str()),
        ("name", name.as_deref().unwrap_or(user.as_str())),
        ("issued", &utc(issued_at.0)),
        ("expires", &utc(expires_at.0)),
        ("key", kid),
    ] {
        // Escaped, as a name may hold anything. Writing to a String cannot fail.
        writeln!(text, "{word:<8} {}", value.escape_debug()).ok();
    }
    text
}

/// Unix milliseconds as `2026-01-31 12:00:00 UTC`, by the days-to-civil algorithm of Howard Hinnant
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

pub(crate) fn keys_command(asked: &KeysCommand) -> Result<(), Failure> {
    let now = clock::unix_ms();
    match asked {
        KeysCommand::Make { keys: from } => {
            let config = from.load()?.config;
            let made = keys(Keys::load_or_create(config.keys_dir(), Algorithm::default(), now))?;
            print(&listed(&made, false))
        }
        KeysCommand::List { json, keys: from } => {
            print(&listed(&keys(Keys::load(from.load()?.config.keys_dir()))?, *json))
        }
        KeysCommand::Rotate { force, keys: from } => {
            let config = from.load()?.config;
            let there = keys(Keys::load(config.keys_dir()))?;
            // Until then tokens of the one before it are in use, and it is dropped.
            let good_from =
                there.signing().made_at.0.saturating_add(config.accounts.token_lifetime.as_millis() as u64);
            if there.all().count() > 1 && now.0 < good_from && !force {
                let line =
                    format!("the key that would be dropped may have tokens in use until {}", utc(good_from));
                let failure = Failure::new(Exit::No, line);
                return Err(failure.with_hint(
                    "wait until then; with --force everybody who has such a token logs in again",
                ));
            }
            print(&listed(&keys(Keys::rotate(config.keys_dir(), Algorithm::default(), now))?, false))
        }
    }
}

/// Without the secrets, the one that signs first.
fn listed(keys: &Keys, as_json: bool) -> String {
    let signs = |key: &Key| key.kid == keys.signing().kid;
    if as_json {
        let all = keys.all().map(|key| {
            json!({ "key": key.kid, "algorithm": format!("{:?}", key.algorithm), "made_at": key.made_at.0, "signs": signs(key) })
        });
        return format!("{}\n", serde_json::Value::Array(all.collect()));
    }
    let does = |key: &Key| if signs(key) { "signs" } else { "verifies" };
    let line =
        |key: &Key| format!("{}  {:?}  made {}  {}\n", key.kid, key.algorithm, utc(key.made_at.0), does(key));
    keys.all().map(line).collect()
}

/// Checks a token against the keys in the data directory. Logins and users are the running server's to know.
fn check(data_dir: &Path, text: &str) -> Result<Verified, Failure> {
    let keys = keys(Keys::load(data_dir))?;
    token::verify(&keys, text, clock::unix_ms()).map_err(|error| Failure::new(Exit::No, error.to_string()))
}

/// The keys of the data directory, or what is wrong with their file.
pub(crate) fn keys(loaded: Result<Keys, keys::Error>) -> Result<Keys, Failure> {
    loaded.map_err(|error| {
        let failure = Failure::new(Exit::Io, format!("token keys: {error}"));
        match error {
            keys::Error::Io { .. } => failure.with_hint(
                "is this the server's data directory, and may this user use it (--data-dir DIRECTORY)?",
            ),
            keys::Error::Newer { .. } => failure.with_hint("run the release that wrote it or a newer one"),
            keys::Error::Damaged { .. } => failure.with_hint(
                "put a copy back; without one delete it: new keys are made, and everybody logs in again",
            ),
            keys::Error::TooOpen(_) | keys::Error::Random(_) => failure,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Verified {
        Verified {
            user: UserId::parse("u1").unwrap(),
            name: Some("A\nB".to_owned()),
            login: None,
            issued_at: UnixMs(0),
            expires_at: UnixMs(1_767_225_599_000),
            kid: "k1".to_owned(),
        }
    }

    #[test]
    fn claims_read_well() {
        let want = "user     u1\nname     A\\nB\nissued   1970-01-01 00:00:00 UTC\nexpires  2025-12-31 23:59:59 UTC\nkey      k1\n";
        assert_eq!(as_text(&claims()), want);
        let want = "{\"expires_at\":1767225599000,\"issued_at\":0,\"key\":\"k1\",\"name\":\"A\\nB\",\"user\":\"u1\"}\n";
        assert_eq!(as_json(&claims()), want);
    }

    #[test]
    fn dates() {
        for (seconds, want) in [
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_799, "2000-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (1_735_689_600, "2025-01-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds * 1000), want);
        }
    }

    #[test]
    fn users_are_counted_from_one() {
        let all = |user, count| -> Result<Vec<String>, Failure> {
            users(user, count)?.map(|user| Ok(user?.as_str().to_owned())).collect()
        };
        assert_eq!(all("u", None), Ok(vec!["u".to_owned()]));
        assert_eq!(all("u", Some(2)), Ok(vec!["u1".to_owned(), "u2".to_owned()]));
        let longest = "u".repeat(127);
        assert!(all(&longest, Some(9)).is_ok());
        for (user, count) in [("~u", None), ("~u", Some(1)), ("a b", None), ("", None), (&longest, Some(10))]
        {
            assert_eq!(all(user, count).unwrap_err().exit, Exit::Usage, "{user} {count:?}");
        }
    }

    #[test]
    fn tokens_on_standard_input() {
        assert_eq!(read_token(&b"abc\n"[..]), Ok("abc\n".to_owned()));
        assert_eq!(read_token(&b" \n"[..]).unwrap_err().exit, Exit::Usage);
        assert_eq!(read_token(&vec![b'a'; 20_000][..]).unwrap_err().exit, Exit::No);
        assert_eq!(read_token(&[0xff_u8][..]).unwrap_err().exit, Exit::Io);
    }
}
