//! The token that opens the admin page.

use std::fs;
use std::hint::black_box;

use crate::config::Server;
use crate::failure::{Exit, Failure, words};

/// 16 characters of an alphabet of 16 are 64 bits: out of reach at the rate at which they may be tried.
const SHORTEST: usize = 16;
const LONGEST: usize = 256;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(Box<[u8]>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(redacted)")
    }
}

impl Token {
    /// The one that is configured, read from its file where it is in one.
    pub(crate) fn of(server: &Server) -> Result<Option<Self>, Failure> {
        let (text, place) = match (&server.admin_token.0, &server.admin_token_file) {
            (Some(text), _) => (text.clone(), "server.admin_token".to_owned()),
            (None, Some(path)) => {
                let text = fs::read_to_string(path).map_err(|error| {
                    let why = words(&error);
                    Failure::new(
                        Exit::Io,
                        format!("cannot read server.admin_token_file {}: {why}", path.display()),
                    )
                })?;
                (text.trim_end_matches(['\n', '\r']).to_owned(), format!("the token in {}", path.display()))
            }
            (None, None) => return Ok(None),
        };
        Self::parse(&text).map(Some).ok_or_else(|| {
            let line = format!(
                "{place} must have {SHORTEST} to {LONGEST} visible characters of ASCII, without spaces"
            );
            Failure::new(Exit::Usage, line).with_hint("`openssl rand -hex 32` makes a good one")
        })
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fits = (SHORTEST..=LONGEST).contains(&text.len());
        (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.as_bytes().into()))
    }

    /// Takes as long for one that is wrong in its first character as for one that is wrong in its last.
    pub(super) fn is(&self, offered: &[u8]) -> bool {
        let pairs = self.0.iter().zip(offered);
        let different = pairs.fold(0, |different, (one, other)| black_box(different | (one ^ other)));
        black_box(different) == 0 && self.0.len() == offered.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const GOOD: &str = "0123456789abcdef";

    #[test]
    fn one_is_itself_and_no_other() {
        let token = Token::parse(GOOD).unwrap();
        assert!(token.is(GOOD.as_bytes()));
        for other in ["", "0123456789abcde", "0123456789abcdeg", "1123456789abcdef", "0123456789abcdef0"] {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        assert!(!format!("{token:?}").contains(GOOD));
        for bad in ["", "short", "0123456789abcde f", "0123456789abcdé\u{301}f", &"x".repeat(257)] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn it_comes_from_the_settings_or_from_a_file() {
        let mut server = Config::default().server;
        assert_eq!(Token::of(&server), Ok(None));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        server.admin_token_file = Some(file.clone());
        assert_eq!(Token::of(&server).unwrap_err().exit, Exit::Io);
        fs::write(&file, format!("{GOOD}\n")).unwrap();
        assert_eq!(Token::of(&server), Ok(Token::parse(GOOD)));
        fs::write(&file, "hunter2").unwrap();
        let failure = Token::of(&server).unwrap_err();
        assert!(failure.exit == Exit::Usage && !failure.to_string().contains("hunter2"), "{failure}");
    }
}
