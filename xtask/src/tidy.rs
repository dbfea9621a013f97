//! Rules of the house, as tests over the files of the repository.
//!
//! Owns: what a reader may rely on in every file, and that documents name what the code has.
//! Does not: judge style that rustfmt and clippy judge.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Written by programs or by others; not ours to judge.
const NOT_OURS: &[&str] = &[".git", "target", "node_modules", "banyan-data", "LICENSE"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All text files of the repository, with their path from the root.
fn files() -> Vec<(String, String)> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().unwrap();
            if NOT_OURS.contains(&name.as_str()) || kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                walk(&entry.path(), root, found);
            } else if let Ok(text) = fs::read_to_string(entry.path()) {
                let path = entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.push((path, text));
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    assert!(found.len() > 20, "the walk over the repository found only {} files", found.len());
    found
}

fn rust_files() -> impl Iterator<Item = (String, String)> {
    files().into_iter().filter(|(path, _)| path.ends_with(".rs"))
}

#[track_caller]
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// A word of two parts, so that this file does not contain it.
fn word(a: &str, b: &str) -> String {
    format!("{a}{b}")
}

#[test]
fn every_rust_file_says_what_it_owns() {
    let bare = rust_files().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path);
    assert_none(&bare.collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_to_do() {
    let words = [
        word("TO", "DO"),
        word("FIX", "ME"),
        word("XX", "X"),
        word("todo", "!("),
        word("unimplemented", "!("),
        word("dbg", "!("),
    ];
    let code = files()
        .into_iter()
        .filter(|(path, _)| [".rs", ".ts", ".mjs", ".py", ".c"].iter().any(|e| path.ends_with(e)));
    let mut problems = Vec::new();
    for (path, text) in code {
        for (number, line) in text.lines().enumerate() {
            problems.extend(
                words
                    .iter()
                    .filter(|word| line.contains(*word))
                    .map(|w| format!("{path}:{}: {w}", number + 1)),
            );
        }
    }
    assert_none(&problems);
}

#[test]
fn no_file_speaks_of_a_workplace() {
    let words = [
        word("/wo", "rk/"),
        word("/ro", "ot/"),
        word("/home/", "runner"),
        word("artifact-", "registry"),
        word("host.docker.", "internal"),
    ];
    let mut problems = Vec::new();
    for (path, text) in files() {
        problems
            .extend(words.iter().filter(|word| text.contains(*word)).map(|word| format!("{path}: {word}")));
    }
    assert_none(&problems);
}

#[test]
fn lockfiles_name_no_host() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let index = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let strange = lock.lines().filter(|line| line.starts_with("source") && *line != index);
    assert_none(&strange.map(|line| format!("Cargo.lock: {line}")).collect::<Vec<_>>());

    let npm: Vec<_> = files().into_iter().filter(|(path, _)| path.ends_with("package-lock.json")).collect();
    assert!(!npm.is_empty(), "there is no package-lock.json");
    let mut problems = Vec::new();
    for (path, text) in npm {
        // Npm writes where it downloaded from; `omit-lockfile-registry-resolved` keeps it out. Integrity hashes stay.
        if text.contains("\"resolved\"") {
            problems.push(format!("{path}: \"resolved\""));
        }
        if text.contains("node_modules/") && !text.contains("\"integrity\"") {
            problems.push(format!("{path}: no integrity hashes"));
        }
    }
    assert_none(&problems);
}

/// Words in quotes that are metric names: `banyan_<crate>_<what>`, but for libraries' names and those of unit tests.
fn metric_names(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2).filter(|word| {
        let Some(rest) = word.strip_prefix("banyan_") else { return false };
        rest.contains('_')
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && !rest.starts_with("test_")
            && !rest.ends_with("_core")
    })
}

#[test]
fn every_metric_is_in_the_operations_page() {
    let page =
        fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md lists all metrics");
    let mut used = BTreeSet::new();
    for (path, text) in rust_files() {
        // Tests and this file may use names that no server has.
        if path.contains("/src/")
            && !path.starts_with("tests/")
            && !path.starts_with("xtask/")
            && !path.starts_with("bench/")
        {
            used.extend(metric_names(&text).map(|name| (name.to_owned(), path.clone())));
        }
    }
    let missing = used.iter().filter(|(name, _)| !page.contains(&format!("`{name}`")));
    assert_none(
        &missing
            .map(|(name, path)| format!("{path}: {name} is not in docs/operations.md"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn metric_names_are_recognised() {
    let text = r#"counter!("banyan_gateway_sends_total"); "banyan_proto" "banyan_gateway_{x}" "banyan_gateway_core" "b""#;
    assert_eq!(metric_names(text).collect::<Vec<_>>(), ["banyan_gateway_sends_total"]);
}

#[test]
fn the_readme_has_both_commands() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    for command in ["cargo run --release -- serve", "cargo xtask test"] {
        assert!(readme.contains(command), "README.md does not show `{command}`");
    }
    let ci = fs::read_to_string(root().join(".ci/run")).expect(".ci/run");
    assert!(ci.lines().any(|line| line == "exec cargo xtask test"), ".ci/run is command 2");
}

/// `[text](target)` outside of code, but for addresses of the web.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let spans = prose.flat_map(|part| part.split("](").skip(1));
    spans.filter_map(|rest| rest.split(')').next()).filter(|target| !target.contains("://")).collect()
}

/// The anchor that a heading gets where Markdown is shown.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let pages: Vec<_> = files().into_iter().filter(|(path, _)| path.ends_with(".md")).collect();
    let (mut problems, mut count) = (Vec::new(), 0);
    for (path, text) in &pages {
        for link in links(text) {
            count += 1;
            let (target, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match target {
                "" => root().join(path),
                target => root().join(path).parent().unwrap().join(target),
            };
            let headed = |fragment: &str| {
                let page = fs::read_to_string(&target).unwrap_or_default();
                page.lines().any(|line| line.starts_with('#') && anchor(line) == fragment)
            };
            if !target.exists() || !(fragment.is_empty() || headed(fragment)) {
                problems.push(format!("{path}: {link} leads nowhere"));
            }
        }
    }
    assert!(count > 30, "only {count} links were found");
    assert_none(&problems);
}

#[test]
fn decisions_have_the_house_format() {
    let mut problems = Vec::new();
    let records =
        files().into_iter().filter(|(path, _)| path.starts_with("docs/decisions/") && path.ends_with(".md"));
    for (path, text) in records {
        for heading in ["Status", "Context", "Decision", "Consequences", "Options we dropped", "Decision log"]
        {
            if !text.lines().any(|line| line.starts_with('#') && line.contains(heading)) {
                problems.push(format!("{path}: no heading {heading:?}"));
            }
        }
    }
    assert_none(&problems);
}

#[test]
fn no_member_has_dependencies_of_its_own_version() {
    // Versions stand once, in the workspace.
    let manifests = files()
        .into_iter()
        .filter(|(path, _)| path.ends_with("/Cargo.toml") && !path.contains("tonic-prost-build"));
    let mut problems = Vec::new();
    for (path, text) in manifests {
        let manifest: toml::Table = text.parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            let own = table
                .iter()
                .filter(|(_, value)| value.get("workspace").and_then(toml::Value::as_bool) != Some(true));
            problems.extend(own.map(|(name, _)| format!("{path}: {name}")));
        }
    }
    assert_none(&problems);
}
