//! The keys that sign tokens of our own.
//!
//! Owns: the key file in the data directory. Always holds: the newest key signs, the one before it still verifies,
//! a third does not exist; nobody reads the file but
//! its owner, or, where that is root, one group; it is replaced whole or not at all.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use banyan_proto::id::UnixMs;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};

/// Name of the key file in the data directory.
pub const FILE: &str = "token-keys.json";
/// Keys that are kept: the one that signs and the one before.
const KEPT: usize = 2;
const FORMAT: u32 = 1;
const FILE_MAX: u64 = 64 << 10;

/// How a key signs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Checked in some microseconds; who can check can also sign. The default: nobody but us checks our tokens.
    #[default]
    HS256,
    /// Ed25519, checked in some fifty microseconds.
    EdDSA,
}

impl Algorithm {
    pub(super) const fn of_jwt(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::HS256 => jsonwebtoken::Algorithm::HS256,
            Self::EdDSA => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is readable by others: run chmod 600 on it (and if they may have read it, delete it: everybody logs in again)", .0.display())]
    TooOpen(PathBuf),
    #[error("{} is not a key file of ours: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{} was written by a newer release (format {format})", path.display())]
    Newer { path: PathBuf, format: u32 },
    #[error("the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// One key.
#[derive(Clone)]
pub struct Key {
    pub kid: String,
    pub algorithm: Algorithm,
    pub made_at: UnixMs,
    secret: [u8; 32],
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret.
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm)
            .field("made_at", &self.made_at)
            .finish_non_exhaustive()
    }
}

impl Key {
    fn generate(algorithm: Algorithm, now: UnixMs) -> Result<Self, Error> {
        let (mut kid, mut secret) = ([0; 9], [0; 32]);
        getrandom::fill(&mut kid)?;
        getrandom::fill(&mut secret)?;
        Self::new(URL_SAFE_NO_PAD.encode(kid), algorithm, now, secret)
            .map_err(|why| Error::Damaged { path: PathBuf::new(), why })
    }

    fn new(kid: String, algorithm: Algorithm, made_at: UnixMs, secret: [u8; 32]) -> Result<Self, String> {
        let (encoding, decoding) = match algorithm {
            Algorithm::HS256 => (EncodingKey::from_secret(&secret), DecodingKey::from_secret(&secret)),
            Algorithm::EdDSA => {
                // RFC 8410: PKCS #8 around the 32 bytes of the private key.
                const PKCS8: [u8; 16] =
                    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
                let encoding = EncodingKey::from_ed_der(&[&PKCS8[..], &secret].concat());
                let public = Jwk::from_encoding_key(&encoding, algorithm.of_jwt())
                    .map_err(|error| error.to_string())?;
                let decoding = DecodingKey::from_jwk(&public).map_err(|error| error.to_string())?;
                (encoding, decoding)
            }
        };
        Ok(Self { kid, algorithm, made_at, secret, encoding, decoding })
    }
}

/// The keys in use, newest first, one or two.
#[derive(Debug, Clone)]
pub struct Keys(Vec<Key>);

/// The format alone, which a file of any release has.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// As in the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredKey {
    kid: String,
    alg: Algorithm,
    made_at: u64,
    /// Base64url.
    secret: String,
}

impl Keys {
    /// A fresh key, in no file.
    pub fn generate(algorithm: Algorithm, now: UnixMs) -> Result<Self, Error> {
        Ok(Self(vec![Key::generate(algorithm, now)?]))
    }

    /// The keys of this data directory; made on the first call. Of two processes that make them at once one wins,
    /// and both use its keys.
    pub fn load_or_create(data_dir: &Path, algorithm: Algorithm, now: UnixMs) -> Result<Self, Error> {
        let path = data_dir.join(FILE);
        if !path.exists() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
            made.map_err(|source| Error::Io { what: "make", path: data_dir.to_owned(), source })?;
            let new = beside(data_dir)?;
            Self::generate(algorithm, now)?.write(&new)?;
            // A link, not a rename: it does not replace what another process has put there meanwhile.
            let linked = fs::hard_link(&new, &path);
            fs::remove_file(&new).ok();
            match linked {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::Io { what: "make", path, source: error });
                }
                Ok(()) | Err(_) => sync_dir(data_dir)?,
            }
        }
        Self::load(data_dir)
    }

    pub fn load(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join(FILE);
        let io = |what, source| Error::Io { what, path: path.clone(), source };
        let metadata = fs::metadata(&path).map_err(|source| io("read", source))?;
        if is_too_open(metadata.permissions().mode(), metadata.uid()) {
            return Err(Error::TooOpen(path));
        }
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        if metadata.len() > FILE_MAX {
            return Err(damaged("it is too long".to_owned()));
        }
        let text = fs::read(&path).map_err(|source| io("read", source))?;
        let bad_json = |error: serde_json::Error| damaged(error.to_string());
        // First, since the keys of a newer release may look in any way.
        let Version { format } = serde_json::from_slice(&text).map_err(bad_json)?;
        if format > FORMAT {
            return Err(Error::Newer { path: path.clone(), format });
        }
        let stored: Stored = serde_json::from_slice(&text).map_err(bad_json)?;
        let mut keys = Vec::new();
        for key in stored.keys.into_iter().take(KEPT) {
            let secret = URL_SAFE_NO_PAD.decode(&key.secret).ok().and_then(|bytes| bytes.try_into().ok());
            let secret = secret.ok_or_else(|| damaged("a secret is not 32 bytes in base64url".to_owned()))?;
            keys.push(Key::new(key.kid, key.alg, UnixMs(key.made_at), secret).map_err(damaged)?);
        }
        if keys.is_empty() {
            return Err(damaged("it holds no key".to_owned()));
        }
        Ok(Self(keys))
    }

    /// Makes a new key sign from now on. Tokens of the one before stay good until they expire or until the next
    /// rotation, so rotate no more often than tokens live. A running server takes the file up within seconds.
    pub fn rotate(data_dir: &Path, algorithm: Algorithm, now: UnixMs) -> Result<Self, Error> {
        let mut keys = Self::load(data_dir)?.0;
        keys.truncate(KEPT - 1);
        keys.insert(0, Key::generate(algorithm, now)?);
        let keys = Self(keys);
        let (path, new) = (data_dir.join(FILE), beside(data_dir)?);
        keys.write(&new)?;
        fs::rename(&new, &path).map_err(|source| Error::Io { what: "replace", path, source })?;
        sync_dir(data_dir)?;
        Ok(keys)
    }

    fn write(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io { what: "write", path: path.to_owned(), source };
        let keys = self.0.iter().map(|key| StoredKey {
            kid: key.kid.clone(),
            alg: key.algorithm,
            made_at: key.made_at.0,
            secret: URL_SAFE_NO_PAD.encode(key.secret),
        });
        let stored = Stored { format: FORMAT, keys: keys.collect() };
        let text = serde_json::to_vec_pretty(&stored).map_err(|error| io(error.into()))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let written =
            file.write_all(&text).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
        if written.is_err() {
            fs::remove_file(path).ok();
        }
        written.map_err(io)
    }

    /// The key that signs.
    pub fn signing(&self) -> &Key {
        &self.0[0]
    }

    /// The newest first.
    pub fn all(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    pub fn by_kid(&self, kid: &str) -> Option<&Key> {
        self.0.iter().find(|key| key.kid == kid)
    }
}

/// A file of root's may be read by its group: that is how a Secret of Kubernetes reaches a server that is not root (`fsGroup`), and
/// a file that an operator gives to the server's own group. Nobody in the group can change it, or give it to others.
fn is_too_open(mode: u32, owner: u32) -> bool {
    let allowed = if owner == 0 { 0o740 } else { 0o700 };
    mode & 0o777 & !allowed != 0
}

/// A name for what is not whole yet, that nobody else has: of several containers on one volume each has the process id 1.
fn beside(data_dir: &Path) -> Result<PathBuf, Error> {
    let mut name = [0; 12];
    getrandom::fill(&mut name)?;
    Ok(data_dir.join(format!("{FILE}.{}", URL_SAFE_NO_PAD.encode(name))))
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| Error::Io { what: "sync", path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMs = UnixMs(1_700_000_000_000);

    #[test]
    fn made_once_readable_by_the_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = Keys::load_or_create(&data, Algorithm::HS256, NOW).unwrap();
        let second = Keys::load_or_create(&data, Algorithm::EdDSA, NOW).unwrap();
        assert_eq!(first.signing().kid, second.signing().kid);
        assert_eq!(first.signing().secret, second.signing().secret);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "no temporary file stays");
        assert!(!format!("{first:?}").contains(&URL_SAFE_NO_PAD.encode(first.signing().secret)));
    }

    #[test]
    fn rotation_keeps_one_key_before() {
        let dir = tempfile::tempdir().unwrap();
        let first = Keys::load_or_create(dir.path(), Algorithm::HS256, NOW).unwrap().signing().kid.clone();
        let second = Keys::rotate(dir.path(), Algorithm::EdDSA, NOW).unwrap();
        assert!(second.by_kid(&first).is_some());
        let second = second.signing().kid.clone();
        let third = Keys::rotate(dir.path(), Algorithm::HS256, NOW).unwrap();
        let loaded = Keys::load(dir.path()).unwrap();
        assert_eq!(loaded.signing().kid, third.signing().kid);
        assert!(loaded.by_kid(&second).is_some_and(|key| key.algorithm == Algorithm::EdDSA));
        assert!(loaded.by_kid(&first).is_none());
    }

    #[test]
    fn who_may_read_it() {
        const ROOT: u32 = 0;
        const SERVER: u32 = 65_532;
        for (mode, owner, open) in [
            (0o100_600, SERVER, false),
            (0o100_400, SERVER, false),
            (0o100_640, SERVER, true),
            (0o100_604, SERVER, true),
            (0o100_640, ROOT, false),
            (0o100_440, ROOT, false),
            (0o100_660, ROOT, true),
            (0o100_644, ROOT, true),
        ] {
            assert_eq!(is_too_open(mode, owner), open, "{mode:o} of {owner}");
        }
    }

    #[test]
    fn a_bad_file_is_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let words = || Keys::load(dir.path()).unwrap_err().to_string();
        assert!(words().contains("cannot read"));
        Keys::load_or_create(dir.path(), Algorithm::HS256, NOW).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(words().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for (text, want) in [
            ("{", "not a key file"),
            (r#"{"format":2,"keys":[]}"#, "newer release"),
            (r#"{"format":3,"sealed":"x"}"#, "newer release"),
            (r#"{"format":1,"keys":[]}"#, "no key"),
            (r#"{"format":1,"keys":[{"kid":"a","alg":"HS256","made_at":1,"secret":"YQ"}]}"#, "32 bytes"),
            (r#"{"format":1,"keys":[{"kid":"a","alg":"none","made_at":1,"secret":"YQ"}]}"#, "none"),
        ] {
            fs::write(&path, text).unwrap();
            assert!(words().contains(want), "{text}: {}", words());
        }
    }
}
