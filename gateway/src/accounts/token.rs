//! Tokens of our own: JSON web tokens signed by [`Keys`].
//!
//! Owns: their claims. Always holds: a token counts only under the one algorithm of the key that its `kid` names;
//! issuer, audience, subject and times are checked; the time is an argument. Does not: know whether the login that
//! a token names still lives, or its user: [`super::Service`] asks the store.

use std::time::Duration;

use banyan_gateway_core::command::TOKEN_MAX;
use banyan_proto::id::{NUMBER_MAX, UnixMs, UserId};
use jsonwebtoken::{Header, Validation};
use serde::{Deserialize, Serialize};

use super::keys::Keys;

/// `iss` and `aud` of our tokens.
const ISSUER: &str = "banyan";
/// How far another node's clock may be ahead of ours.
const SKEW_MS: u64 = 30_000;

/// What to say in a token.
#[derive(Debug, Clone)]
pub struct TokenSpec<'a> {
    pub user: &'a UserId,
    /// Display name. None: the user's id, or the name that the user already has.
    pub name: Option<&'a str>,
    /// The login that it belongs to and ends with. None: good until it expires, or until all of the user's tokens end.
    pub login: Option<&'a str>,
    pub lifetime: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    pub issued_at: UnixMs,
    pub expires_at: UnixMs,
    /// Which key signed it.
    pub kid: String,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub user: UserId,
    pub name: Option<String>,
    pub login: Option<String>,
    pub issued_at: UnixMs,
    pub expires_at: UnixMs,
    pub kid: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("this is not a token of this server: {0}")]
    Malformed(&'static str),
    #[error("the token is signed by a key that this server does not have (any longer)")]
    UnknownKey,
    #[error("the token's signature or its claims are wrong: {0}")]
    Wrong(String),
    #[error("the token has expired")]
    Expired(UnixMs),
    #[error("the token is from the future: compare the clocks")]
    NotYet,
    #[error("user ids that begin with `~` are the server's")]
    Reserved,
    #[error("the token could not be signed: {0}")]
    Signing(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    /// Seconds with a fraction: a token made in the very second in which all tokens before it ended is good.
    iat: f64,
    exp: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<f64>,
    /// The login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// Signs a token by the newest key.
pub fn issue(keys: &Keys, spec: &TokenSpec<'_>, now: UnixMs) -> Result<Issued, Error> {
    if spec.user.is_reserved() {
        return Err(Error::Reserved);
    }
    let key = keys.signing();
    let mut header = Header::new(key.algorithm.of_jwt());
    header.kid = Some(key.kid.clone());
    let lifetime_ms = u64::try_from(spec.lifetime.as_millis()).unwrap_or(u64::MAX);
    // Whole seconds: not every reader of tokens takes a fraction here.
    let expires_at = UnixMs(now.0.saturating_add(lifetime_ms) / 1_000 * 1_000);
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: ISSUER.to_owned(),
        sub: spec.user.as_str().to_owned(),
        iat: seconds(now),
        exp: seconds(expires_at),
        nbf: None,
        sid: spec.login.map(str::to_owned),
        name: spec.name.map(str::to_owned),
    };
    let token = jsonwebtoken::encode(&header, &claims, &key.encoding)
        .map_err(|error| Error::Signing(error.to_string()))?;
    Ok(Issued { token, issued_at: now, expires_at, kid: key.kid.clone() })
}

/// Checks all of a token that needs no store.
pub fn verify(keys: &Keys, token: &str, now: UnixMs) -> Result<Verified, Error> {
    let (verified, not_before) = read(keys, token)?;
    if verified.expires_at <= now {
        return Err(Error::Expired(verified.expires_at));
    }
    if verified.issued_at.max(not_before).0 > now.0.saturating_add(SKEW_MS) {
        return Err(Error::NotYet);
    }
    Ok(verified)
}

/// The same, but for the time: what a token says, expired or not.
pub fn inspect(keys: &Keys, token: &str) -> Result<Verified, Error> {
    read(keys, token).map(|(verified, _)| verified)
}

/// What a token says, and from when on.
fn read(keys: &Keys, token: &str) -> Result<(Verified, UnixMs), Error> {
    if token.len() > TOKEN_MAX {
        return Err(Error::Malformed("it is too long"));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| Error::Malformed("it has no JWT header"))?;
    let kid = header.kid.ok_or(Error::Malformed("it names no key"))?;
    let key = keys.by_kid(&kid).ok_or(Error::UnknownKey)?;
    // The algorithm is the key's, not the token's.
    let mut validation = Validation::new(key.algorithm.of_jwt());
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[ISSUER]);
    validation.set_required_spec_claims(&["iss", "aud", "sub"]);
    // Times are checked against the caller's clock.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    let decoded = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation)
        .map_err(|error| Error::Wrong(error.to_string()))?;
    let claims = decoded.claims;
    let user = UserId::parse(&claims.sub).map_err(|error| Error::Wrong(error.to_string()))?;
    if user.is_reserved() {
        return Err(Error::Reserved);
    }
    let verified = Verified {
        user,
        name: claims.name,
        login: claims.sid,
        issued_at: unix_ms(claims.iat),
        expires_at: unix_ms(claims.exp),
        kid,
    };
    Ok((verified, unix_ms(claims.nbf.unwrap_or_default())))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 ms")]
fn seconds(at: UnixMs) -> f64 {
    at.0 as f64 / 1_000.0
}

/// A number that is none, or none of a time, is the beginning of time: such a token has expired. The end of time is
/// the largest number that clients can read.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is meant")]
fn unix_ms(seconds: f64) -> UnixMs {
    UnixMs(((seconds * 1_000.0).round() as u64).min(NUMBER_MAX))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;
    use crate::accounts::keys::Algorithm;

    const NOW: UnixMs = UnixMs(1_700_000_000_123);
    const HOUR: Duration = Duration::from_secs(3_600);

    fn user() -> UserId {
        UserId::parse("auth0|1").unwrap()
    }

    fn spec(user: &UserId) -> TokenSpec<'_> {
        TokenSpec { user, name: Some("Ann \"A\" é"), login: Some("L"), lifetime: HOUR }
    }

    /// A token that says whatever a forger wants, signed with `key`.
    fn forged(keys: &Keys, header: &Header, claims: &serde_json::Value) -> String {
        jsonwebtoken::encode(header, claims, &keys.signing().encoding).unwrap()
    }

    #[test]
    fn what_was_said_is_read_with_both_algorithms() {
        for algorithm in [Algorithm::HS256, Algorithm::EdDSA] {
            let keys = Keys::generate(algorithm, NOW).unwrap();
            let issued = issue(&keys, &spec(&user()), NOW).unwrap();
            let want = Verified {
                user: user(),
                name: Some("Ann \"A\" é".to_owned()),
                login: Some("L".to_owned()),
                issued_at: NOW,
                expires_at: UnixMs(1_700_003_600_000),
                kid: keys.signing().kid.clone(),
            };
            assert_eq!(issued.expires_at, want.expires_at);
            assert_eq!(verify(&keys, &issued.token, NOW), Ok(want.clone()));
            let last = UnixMs(want.expires_at.0 - 1);
            assert_eq!(verify(&keys, &issued.token, last), Ok(want.clone()));
            assert_eq!(verify(&keys, &issued.token, want.expires_at), Err(Error::Expired(want.expires_at)));
            assert_eq!(inspect(&keys, &issued.token), Ok(want));
            assert!(verify(&keys, &issued.token, UnixMs(NOW.0 - SKEW_MS)).is_ok());
            assert_eq!(verify(&keys, &issued.token, UnixMs(NOW.0 - SKEW_MS - 1)), Err(Error::NotYet));
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let keys = Keys::generate(Algorithm::HS256, NOW).unwrap();
        let token = issue(&keys, &spec(&user()), NOW).unwrap().token;
        for place in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            // The last character of base64 has bits that say nothing; this changes one that does.
            bytes[place] = match bytes[place] {
                b'.' => b'A',
                b'A'..=b'D' => b'z',
                _ => b'A',
            };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(&keys, &changed, NOW).is_err(), "byte {place}");
        }
        for nothing in ["", ".", "..", "a.b.c", &"x".repeat(TOKEN_MAX + 1), &token[..token.len() - 1]] {
            assert!(verify(&keys, nothing, NOW).is_err());
        }
    }

    #[test]
    fn forgeries_are_refused() {
        let keys = Keys::generate(Algorithm::HS256, NOW).unwrap();
        let kid = keys.signing().kid.clone();
        let good = json!({"iss": "banyan", "aud": "banyan", "sub": "u", "iat": 1.0, "exp": 2e9});
        let mut header = Header::new(jsonwebtoken::Algorithm::HS256);
        header.kid = Some(kid.clone());
        assert!(verify(&keys, &forged(&keys, &header, &good), NOW).is_ok());

        let with = |name: &str, value: serde_json::Value| {
            let mut claims = good.clone();
            claims[name] = value;
            verify(&keys, &forged(&keys, &header, &claims), NOW)
        };
        for (name, value) in [
            ("iss", json!("other")),
            ("aud", json!("other")),
            ("aud", json!(null)),
            ("sub", json!("a b")),
            ("sub", json!(7)),
            ("exp", json!("2000000000")),
            ("exp", json!(null)),
            ("exp", json!(-1)),
            ("iat", json!(2e9)),
            ("nbf", json!(2e9)),
        ] {
            assert!(with(name, value.clone()).is_err(), "{name} = {value}");
        }
        assert_eq!(with("sub", json!("~system")), Err(Error::Reserved));
        assert_eq!(with("exp", json!(1e300)).map(|token| token.expires_at), Ok(UnixMs(NUMBER_MAX)));
        // What ends tokens goes by when they were made, not by when they begin.
        assert_eq!(with("nbf", json!(1.6e9)).map(|token| token.issued_at), Ok(UnixMs(1_000)));

        let mut other = header.clone();
        other.alg = jsonwebtoken::Algorithm::HS512;
        assert!(matches!(verify(&keys, &forged(&keys, &other, &good), NOW), Err(Error::Wrong(_))));
        other.alg = jsonwebtoken::Algorithm::HS256;
        other.kid = Some("else".to_owned());
        assert_eq!(verify(&keys, &forged(&keys, &other, &good), NOW), Err(Error::UnknownKey));
        other.kid = None;
        assert!(matches!(verify(&keys, &forged(&keys, &other, &good), NOW), Err(Error::Malformed(_))));

        // `none`, with and without a signature.
        let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "typ": "JWT", "kid": kid}).to_string());
        let claims = URL_SAFE_NO_PAD.encode(good.to_string());
        for signature in ["", "AAAA"] {
            assert!(verify(&keys, &format!("{none}.{claims}.{signature}"), NOW).is_err());
        }
    }

    #[test]
    fn a_public_key_cannot_sign_as_a_secret() {
        let keys = Keys::generate(Algorithm::EdDSA, NOW).unwrap();
        let public = jsonwebtoken::jwk::Jwk::from_encoding_key(
            &keys.signing().encoding,
            jsonwebtoken::Algorithm::EdDSA,
        )
        .unwrap();
        let jsonwebtoken::jwk::AlgorithmParameters::OctetKeyPair(pair) = public.algorithm else {
            panic!("not an Ed25519 key")
        };
        let public = URL_SAFE_NO_PAD.decode(pair.x).unwrap();
        let mut header = Header::new(jsonwebtoken::Algorithm::HS256);
        header.kid = Some(keys.signing().kid.clone());
        let claims = json!({"iss": "banyan", "aud": "banyan", "sub": "u", "iat": 1, "exp": 2_000_000_000});
        let confused =
            jsonwebtoken::encode(&header, &claims, &jsonwebtoken::EncodingKey::from_secret(&public)).unwrap();
        assert!(matches!(verify(&keys, &confused, NOW), Err(Error::Wrong(_))));
    }

    #[test]
    fn the_key_before_still_counts() {
        let dir = tempfile::tempdir().unwrap();
        let old = Keys::load_or_create(dir.path(), Algorithm::HS256, NOW).unwrap();
        let token = issue(&old, &spec(&user()), NOW).unwrap().token;
        let new = Keys::rotate(dir.path(), Algorithm::HS256, NOW).unwrap();
        assert!(verify(&new, &token, NOW).is_ok());
        let newest = Keys::rotate(dir.path(), Algorithm::HS256, NOW).unwrap();
        assert_eq!(verify(&newest, &token, NOW), Err(Error::UnknownKey));
    }

    #[test]
    fn nobody_signs_for_the_server() {
        let keys = Keys::generate(Algorithm::HS256, NOW).unwrap();
        let system = UserId::parse(UserId::SYSTEM).unwrap();
        assert_eq!(issue(&keys, &spec(&system), NOW), Err(Error::Reserved));
    }
}
