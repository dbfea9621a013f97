//! Licences, banned crates and sources of all dependencies, by `deny.toml`.
//!
//! Owns: a small part of what cargo-deny does, over `cargo metadata` and the same file. cargo-deny itself takes
//! longer to build on two cores than all of our tests.
//! Always holds: what the file does not allow is refused; an entry of the file that this check does not know is an error.
//! Does not: ask an advisory database (it is not reachable everywhere; run `cargo deny check advisories` where it is).

use crate::workspace::{Metadata, Package, Workspace};
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use std::fs;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    deny: Vec<Ban>,
    /// cargo-deny's own; duplicates of a version are not refused.
    #[serde(rename = "multiple-versions")]
    _multiple_versions: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: String,
    unknown_git: String,
    allow_registry: Vec<String>,
}

/// Checks everything in the lockfile, for every platform; gives how many packages there are.
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<usize> {
    let path = workspace.root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules: Rules =
        toml::from_str(&text).with_context(|| format!("{} is not as expected", path.display()))?;
    let metadata = workspace.metadata(&["--all-features"])?;
    let problems = problems(&rules, &metadata);
    if !problems.is_empty() {
        bail!("{} packages are not as deny.toml allows:\n{}", problems.len(), problems.join("\n"));
    }
    Ok(metadata.packages.len())
}

fn problems(rules: &Rules, metadata: &Metadata) -> Vec<String> {
    let check = |package: &Package| {
        let outcome = check_package(rules, package);
        outcome.err().map(|e| format!("  {} {}: {e:#}", package.name, package.version))
    };
    metadata.packages.iter().filter_map(check).collect()
}

fn check_package(rules: &Rules, package: &Package) -> anyhow::Result<()> {
    if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == package.name) {
        bail!("banned: {}", ban.reason);
    }
    let licence = package.license.as_deref().context("says no licence")?;
    ensure!(allowed(licence, &rules.licenses.allow)?, "licence {licence:?} is not allowed");
    let deny_others = rules.sources.unknown_registry == "deny" && rules.sources.unknown_git == "deny";
    ensure!(deny_others, "deny.toml must deny unknown sources");
    match package.source.as_deref() {
        None => Ok(()), // ours, or a path below the repository
        Some(source) => {
            let from = source.strip_prefix("registry+").unwrap_or(source);
            ensure!(rules.sources.allow_registry.iter().any(|r| r == from), "comes from {source}");
            Ok(())
        }
    }
}

/// Whether an SPDX expression can be satisfied by allowed licences. `/` is an old way to write OR.
fn allowed(expression: &str, allow: &[String]) -> anyhow::Result<bool> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let value = any_of(&mut words, allow)?;
    ensure!(words.next().is_none(), "cannot read the licence {expression:?}");
    Ok(value)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allow: &[String]) -> anyhow::Result<bool> {
    let mut value = all_of(words, allow)?;
    while words.next_if_eq(&"OR").is_some() {
        value |= all_of(words, allow)?;
    }
    Ok(value)
}

fn all_of(words: &mut Words<'_>, allow: &[String]) -> anyhow::Result<bool> {
    let mut value = single(words, allow)?;
    while words.next_if_eq(&"AND").is_some() {
        value &= single(words, allow)?;
    }
    Ok(value)
}

fn single(words: &mut Words<'_>, allow: &[String]) -> anyhow::Result<bool> {
    match words.next() {
        Some("(") => {
            let value = any_of(words, allow)?;
            ensure!(words.next() == Some(")"), "a bracket is not closed");
            Ok(value)
        }
        Some(name) => {
            let name = match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
                Some(exception) => format!("{name} WITH {exception}"),
                None => name.to_owned(),
            };
            Ok(allow.contains(&name))
        }
        None => bail!("the licence ends early"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(expression: &str, want: bool) {
        let allow = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        assert_eq!(allowed(expression, &allow).unwrap(), want, "{expression}");
    }

    #[test]
    fn licence_expressions() {
        check("MIT", true);
        check("GPL-3.0", false);
        check("GPL-3.0 OR MIT", true);
        check("MIT/Apache-2.0", true);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
        check("(MIT OR Apache-2.0) AND GPL-2.0", false);
        check("MIT AND GPL-2.0 OR Apache-2.0", true);
        check("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true);
        check("GPL-2.0 WITH LLVM-exception", false);
        assert!(allowed("(MIT", &[]).is_err());
        assert!(allowed("MIT MIT", &[]).is_err());
        assert!(allowed("", &[]).is_err());
    }

    #[test]
    fn a_banned_crate_a_strange_source_and_a_missing_licence_are_found() {
        let rules: Rules = toml::from_str(
            "[licenses]\nallow = [\"MIT\"]\n[bans]\nmultiple-versions = \"allow\"\n\
             deny = [{ crate = \"openssl-sys\", reason = \"needs a system library\" }]\n\
             [sources]\nunknown-registry = \"deny\"\nunknown-git = \"deny\"\nallow-registry = [\"https://a/index\"]\n",
        )
        .unwrap();
        let package = |name: &str, licence: Option<&str>, source: Option<&str>| Package {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: licence.map(str::to_owned),
            source: source.map(str::to_owned),
            manifest_path: "Cargo.toml".into(),
        };
        let check = |p: &Package| check_package(&rules, p).map_err(|e| e.to_string());
        assert_eq!(check(&package("good", Some("MIT"), Some("registry+https://a/index"))), Ok(()));
        assert!(check(&package("openssl-sys", Some("MIT"), None)).unwrap_err().contains("system library"));
        assert!(check(&package("bare", None, None)).unwrap_err().contains("no licence"));
        let git = package("forked", Some("MIT"), Some("git+https://b/repo"));
        assert!(check(&git).unwrap_err().contains("comes from git+"));
    }
}
