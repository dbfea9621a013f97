//! What people may call themselves.
//!
//! Owns: the rules for usernames (unique, typed at login) and display names (shown, never unique).
//! Always holds: normalising a [`Username`] again changes nothing; two usernames that look alike have the same
//! skeleton (UTS 39), so only one of them can be taken; a display name cannot turn, hide or overflow the text around it.

use std::sync::LazyLock;

use banyan_gateway_core::command::is_hidden;
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;
use unicode_security::{GeneralSecurityProfile as _, MixedScript as _, skeleton};

/// Characters of a username.
pub const USERNAME_MIN: usize = 3;
pub const USERNAME_MAX: usize = 32;
/// Characters of a display name.
pub const DISPLAY_NAME_MAX: usize = 64;
/// Marks on one base character; more would paint over the lines around.
const MARKS_MAX: usize = 4;
/// Nothing longer is looked at: normalisation makes some characters eighteen.
const INPUT_MAX: usize = 1_024;

/// Names that would speak for the server or for everybody, or that programs take for something else.
const RESERVED: &[&str] = &[
    "abuse",
    "admin",
    "administrator",
    "all",
    "anonymous",
    "banyan",
    "bot",
    "channel",
    "everyone",
    "help",
    "here",
    "hostmaster",
    "moderator",
    "nobody",
    "none",
    "null",
    "official",
    "operator",
    "owner",
    "postmaster",
    "root",
    "security",
    "server",
    "service",
    "staff",
    "superuser",
    "support",
    "sysadmin",
    "system",
    "undefined",
    "webmaster",
];

static RESERVED_SKELETONS: LazyLock<Vec<String>> =
    LazyLock::new(|| RESERVED.iter().map(|name| looks(name)).collect());

/// Why a name is not one. Its words are shown to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("a username has {USERNAME_MIN} to {USERNAME_MAX} characters")]
    UsernameLength,
    #[error("a username may hold letters, digits, `.`, `_` and `-`, not {0:?}")]
    UsernameCharacter(char),
    #[error(
        "a username begins and ends with a letter or digit, and marks follow letters, at most {MARKS_MAX}"
    )]
    UsernameShape,
    #[error("a username is written in one script")]
    UsernameScripts,
    #[error("this username is reserved")]
    UsernameReserved,
    #[error("a display name has 1 to {DISPLAY_NAME_MAX} visible characters")]
    DisplayNameLength,
}

/// A username as it is stored and looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Username {
    pub text: String,
    /// What it looks like; the same for all that look the same.
    pub skeleton: String,
}

/// Checks a new username: after RFC 8265 (UsernameCaseMapped: width and case mapped; NFKC instead of NFC, so that
/// compatibility forms fold too) and UTS 39 (identifier characters, one script, skeleton).
pub fn username(text: &str) -> Result<Username, Invalid> {
    let text = normal(text).ok_or(Invalid::UsernameLength)?;
    let length = text.chars().count();
    if !(USERNAME_MIN..=USERNAME_MAX).contains(&length) {
        return Err(Invalid::UsernameLength);
    }
    let separator = |c: char| matches!(c, '.' | '_' | '-');
    let allowed =
        |c: char| separator(c) || ((c.is_alphanumeric() || is_combining_mark(c)) && c.identifier_allowed());
    if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
        return Err(Invalid::UsernameCharacter(bad));
    }
    let mut marks = MARKS_MAX + 1; // none may come first
    for c in text.chars() {
        marks = match c {
            _ if is_combining_mark(c) => marks + 1,
            _ if separator(c) => MARKS_MAX + 1,
            _ => 0,
        };
        if marks > MARKS_MAX && !separator(c) {
            return Err(Invalid::UsernameShape);
        }
    }
    if text.starts_with(separator) || text.ends_with(separator) {
        return Err(Invalid::UsernameShape);
    }
    if !text.as_str().is_single_script() {
        return Err(Invalid::UsernameScripts);
    }
    let bare: String = text.chars().filter(|c| !separator(*c)).collect();
    let bare = looks(&bare);
    if RESERVED_SKELETONS.contains(&bare) {
        return Err(Invalid::UsernameReserved);
    }
    let skeleton = looks(&text);
    Ok(Username { text, skeleton })
}

/// A username as somebody typed it, in the form under which it would be stored. None: no username looks like this.
pub fn normal(text: &str) -> Option<String> {
    if text.len() > INPUT_MAX {
        return None;
    }
    let mut text: String = text.nfkc().collect();
    // Lower case can make new compositions possible and back; it settles at once or in one more round.
    for _ in 0..4 {
        let next: String = text.to_lowercase().nfkc().collect();
        if next == text {
            return Some(text);
        }
        text = next;
    }
    None
}

/// The UTS 39 skeleton in lower case: some prototypes are capitals (that of `0` is `O`).
fn looks(text: &str) -> String {
    skeleton(text).collect::<String>().to_lowercase()
}

/// Cleans a display name: NFC, no control or direction characters, white space as single spaces, few marks.
pub fn display_name(text: &str) -> Result<String, Invalid> {
    if text.len() > INPUT_MAX {
        return Err(Invalid::DisplayNameLength);
    }
    let mut clean = String::with_capacity(text.len());
    let (mut length, mut marks, mut visible, mut space) = (0, MARKS_MAX, false, false);
    // Spaces before hidden characters: a line break parts words.
    for c in text.nfc() {
        if c.is_whitespace() {
            space = !clean.is_empty();
            continue;
        }
        if is_hidden(c) || is_invisible(c) {
            continue;
        }
        let joiner = matches!(c, '\u{200c}' | '\u{200d}');
        if is_combining_mark(c) {
            // None without a base.
            if marks >= MARKS_MAX || space {
                continue;
            }
            marks += 1;
        } else if joiner {
            if clean.is_empty() || space {
                continue;
            }
        } else {
            marks = 0;
            visible = true;
        }
        if std::mem::take(&mut space) {
            clean.push(' ');
            length += 1;
        }
        clean.push(c);
        length += 1;
    }
    // Leaving something out may let its neighbours compose.
    let clean: String = if visible { clean.nfc().collect() } else { String::new() };
    if clean.is_empty() || length > DISPLAY_NAME_MAX {
        return Err(Invalid::DisplayNameLength);
    }
    Ok(clean)
}

/// Format characters that show nothing and join nothing, and letters that are drawn blank.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}' | '\u{2060}'..='\u{2065}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usernames_by_example() {
        for (typed, stored) in [
            ("alice", "alice"),
            ("Alice_W.2", "alice_w.2"),
            ("ＡＬＩＣＥ", "alice"),
            ("ﬁona", "fiona"),
            ("STRASSE", "strasse"),
            ("Zoë", "zoë"),
            ("Zoe\u{308}", "zoë"),
            ("Иван", "иван"),
            ("さくら", "さくら"),
            ("山田さん", "山田さん"),
            ("वंदना", "वंदना"),
            ("x_1", "x_1"),
        ] {
            assert_eq!(username(typed).map(|name| name.text), Ok(stored.to_owned()), "{typed}");
        }
        for (typed, why) in [
            ("", Invalid::UsernameLength),
            ("ab", Invalid::UsernameLength),
            (&"a".repeat(33), Invalid::UsernameLength),
            (&"a".repeat(2_000), Invalid::UsernameLength),
            ("a b", Invalid::UsernameCharacter(' ')),
            ("a@b.example", Invalid::UsernameCharacter('@')),
            ("ali\u{200b}ce", Invalid::UsernameCharacter('\u{200b}')),
            ("ali\u{202e}ce", Invalid::UsernameCharacter('\u{202e}')),
            ("ali\u{0}ce", Invalid::UsernameCharacter('\u{0}')),
            ("ali\u{ad}ce", Invalid::UsernameCharacter('\u{ad}')),
            ("ali🎉ce", Invalid::UsernameCharacter('🎉')),
            ("~system", Invalid::UsernameCharacter('~')),
            (".alice", Invalid::UsernameShape),
            ("alice-", Invalid::UsernameShape),
            ("\u{301}alice", Invalid::UsernameShape),
            ("ali\u{33f}\u{33f}\u{33f}\u{33f}\u{33f}ce", Invalid::UsernameCharacter('\u{33f}')),
            ("аlice", Invalid::UsernameScripts),
            ("admin", Invalid::UsernameReserved),
            ("ADMIN", Invalid::UsernameReserved),
            ("a.d-m_in", Invalid::UsernameReserved),
            ("nu11", Invalid::UsernameReserved),
            ("r00t", Invalid::UsernameReserved),
            ("everyone", Invalid::UsernameReserved),
        ] {
            assert_eq!(username(typed), Err(why), "{typed:?}");
        }
    }

    #[test]
    fn what_looks_the_same_has_one_skeleton() {
        for (one, other) in [("paypal", "paypa1"), ("bob", "b0b"), ("modern", "modem"), ("сосо", "coco")]
        {
            let skeleton = |name: &str| username(name).unwrap().skeleton;
            assert_eq!(skeleton(one), skeleton(other), "{one} {other}");
        }
        assert_ne!(username("alice").unwrap().skeleton, username("alicia").unwrap().skeleton);
    }

    #[test]
    fn display_names_by_example() {
        for (given, shown) in [
            ("Alice", "Alice"),
            ("  Alice \t\n W. ", "Alice W."),
            ("Al\u{202e}ice\u{2066}", "Alice"),
            ("A\u{0}\u{7}B", "AB"),
            ("a\u{200b}b\u{ad}c", "abc"),
            ("Zoe\u{308}", "Zoë"),
            ("👩\u{200d}💻 dev", "👩\u{200d}💻 dev"),
            ("❤\u{fe0f}", "❤\u{fe0f}"),
            ("z\u{33f}\u{33f}\u{33f}\u{33f}\u{33f}\u{33f}z", "z\u{33f}\u{33f}\u{33f}\u{33f}z"),
            ("\u{301}a", "a"),
            ("Иван Alice", "Иван Alice"),
        ] {
            assert_eq!(display_name(given).as_deref(), Ok(shown), "{given:?}");
        }
        let long = "x".repeat(65);
        for nothing in ["", " ", "\u{200d}", "\u{202e}\u{202c}", "\u{301}", "\u{3164}", "\u{2800}", &long] {
            assert_eq!(display_name(nothing), Err(Invalid::DisplayNameLength), "{nothing:?}");
        }
    }

    proptest! {
        #[test]
        fn usernames_are_settled(typed in "\\PC{0,40}|[a-zA-Z0-9._-]{1,34}|[à-ÿΑ-ωа-я]{3,20}") {
            if let Ok(name) = username(&typed) {
                let again = username(&name.text);
                prop_assert_eq!(again.as_ref(), Ok(&name));
                prop_assert_eq!(normal(&typed), Some(name.text.clone()));
                prop_assert!(name.text.len() <= 256 && name.skeleton.len() <= 1_024);
            }
        }

        #[test]
        fn display_names_are_settled(given in any::<String>().boxed().prop_union("[a \u{301}\u{200d}\u{202e}\u{1100}-\u{11ff}]{0,80}".boxed())) {
            if let Ok(name) = display_name(&given) {
                let again = display_name(&name);
                prop_assert_eq!(again.as_ref(), Ok(&name));
                prop_assert!(!name.chars().any(is_hidden));
                prop_assert!(name.chars().count() <= DISPLAY_NAME_MAX);
            }
        }
    }
}
