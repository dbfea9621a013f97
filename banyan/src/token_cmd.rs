//! `banyan gentoken` and `banyan checktoken`: what is asked of the accounts' token module, and how its answers look.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use banyan_proto::id::UserId;
use serde_json::json;

use crate::cli::{Checktoken, Gentoken};
use crate::failure::{Exit, Failure, words};
use crate::output::print;

/// Longest token that is read: tokens travel in the auth frame, which is smaller.
const TOKEN_BYTES_MAX: u64 = 16 * 1024;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claims {
    user: String,
    /// None: the name that the user already has, or the user's id.
    name: Option<String>,
    /// Unix milliseconds.
    issued_at: u64,
    /// Unix milliseconds.
    expires_at: u64,
    /// Which of the node's keys signed it.
    key: String,
}

pub(crate) fn gentoken(asked: &Gentoken) -> Result<(), Failure> {
    let user =
        UserId::parse(&asked.user).map_err(|error| Failure::new(Exit::Usage, format!("USER: {error}")))?;
    let config = asked.keys.load()?.config;
    let lifetime = asked.lifetime.unwrap_or(config.accounts.token_lifetime);
    let (token, claims) = sign(&config.server.data_dir, &user, asked.name.as_deref(), lifetime)?;
    if !asked.json {
        return print(&format!("{token}\n"));
    }
    let signed =
        json!({ "user": claims.user, "name": claims.name, "token": token, "expires_at": claims.expires_at });
    print(&format!("{signed}\n"))
}

pub(crate) fn checktoken(asked: &Checktoken) -> Result<(), Failure> {
    let token = match asked.token.as_deref() {
        Some(token) if token != "-" => token.to_owned(),
        Some(_) | None => read_token(io::stdin())?,
    };
    let claims = check(&asked.keys.load()?.config.server.data_dir, token.trim())?;
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

fn as_json(claims: &Claims) -> String {
    let Claims { user, name, issued_at, expires_at, key } = claims;
    format!(
        "{}\n",
        json!({ "user": user, "name": name, "issued_at": issued_at, "expires_at": expires_at, "key": key })
    )
}

fn as_text(claims: &Claims) -> String {
    let Claims { user, name, issued_at, expires_at, key } = claims;
    let mut text = String::new();
    for (word, value) in [
        ("user", user),
        ("name", name.as_ref().unwrap_or(user)),
        ("issued", &utc(*issued_at)),
        ("expires", &utc(*expires_at)),
        ("key", key),
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

/// Signs a token with the newest of the keys in the data directory.
fn sign(
    data_dir: &Path,
    _user: &UserId,
    _name: Option<&str>,
    _lifetime: Duration,
) -> Result<(String, Claims), Failure> {
    Err(without_accounts(data_dir))
}

/// Checks a token against the keys in the data directory.
fn check(data_dir: &Path, _token: &str) -> Result<Claims, Failure> {
    Err(without_accounts(data_dir))
}

/// The two calls above wait for the accounts' keys; until then the commands say so.
fn without_accounts(data_dir: &Path) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("this build has no accounts yet, so no keys in {}", data_dir.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            user: "u1".to_owned(),
            name: Some("A\nB".to_owned()),
            issued_at: 0,
            expires_at: 1_767_225_599_000,
            key: "k1".to_owned(),
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
    fn tokens_on_standard_input() {
        assert_eq!(read_token(&b"abc\n"[..]), Ok("abc\n".to_owned()));
        assert_eq!(read_token(&b" \n"[..]).unwrap_err().exit, Exit::Usage);
        assert_eq!(read_token(&vec![b'a'; 20_000][..]).unwrap_err().exit, Exit::No);
        assert_eq!(read_token(&[0xff_u8][..]).unwrap_err().exit, Exit::Io);
    }
}
