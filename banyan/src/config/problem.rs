//! What can be wrong with a configuration, in words that say what to do.

use std::fmt;

use super::kind::Given;
use super::origin::Origin;

/// One thing that is wrong; its words are one line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Where; problems are told in this order.
    origin: Origin,
    words: String,
}

impl Problem {
    pub(crate) fn new(origin: Origin, words: impl Into<String>) -> Self {
        Self { origin, words: words.into() }
    }

    /// A value of the wrong type or out of range. `key` is section.key; a secret is not repeated.
    pub(crate) fn value(origin: Origin, key: &str, given: &Given<'_>, secret: bool, allowed: &str) -> Self {
        let given = if secret { "(redacted)".to_owned() } else { given.to_string() };
        let words = match origin {
            // The variable's or flag's own name says which key.
            Origin::Variable(_) | Origin::Flag(_) => format!("{given} is not possible: must be {allowed}"),
            Origin::Default | Origin::File { .. } => {
                format!("{key} = {given} is not possible: must be {allowed}")
            }
        };
        Self::new(origin, words)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.words)
    }
}

/// The candidate that `word` was most likely meant to be, if any is near enough to be worth a guess:
/// at most a third of its letters wrong, swapped letters counted once.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let near = candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &candidate.to_ascii_lowercase()), candidate));
    let (distance, candidate) = near.min_by_key(|(distance, _)| *distance)?;
    (distance <= (candidate.len() / 3).max(1)).then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_only_what_is_near() {
        let keys = ["listen", "ops_listen", "data_dir"];
        assert_eq!(nearest("lisetn", keys), Some("listen"));
        assert_eq!(nearest("datadir", keys), Some("data_dir"));
        assert_eq!(nearest("OPS_LISTEN", keys), Some("ops_listen"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("x", []), None);
    }
}
