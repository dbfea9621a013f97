//! The file's layer: TOML with sections, each key with its line.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::kind::Given;
use super::origin::Origin;
use super::problem::nearest;
use super::{Loader, plain};

/// Largest file that is read: the documented example is a fiftieth of it.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Syntax errors that are told: one slip can make many.
const SYNTAX_ERRORS_MAX: usize = 5;

pub(super) fn read(loader: &mut Loader, path: &Path) {
    let file = path.display().to_string();
    match read_text(path) {
        Ok(text) => parse(loader, &file, &text),
        Err(words) => loader.problem(Origin::File { file, line: 1 }, words),
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot read the file: {}", crate::failure::words(&error));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("is larger than 1MiB: this is no configuration".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// Reads the text of a file; `file` is its name in what is told of it.
pub(super) fn parse(loader: &mut Loader, file: &str, text: &str) {
    let at = |span: Range<usize>| {
        let line = 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
        Origin::File { file: file.to_owned(), line }
    };
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // A file that does not parse says nothing reliable about its keys: tell the syntax alone.
        for error in errors.iter().take(SYNTAX_ERRORS_MAX) {
            let words = plain(&error.message().replace('\n', ", "));
            loader.problem(at(error.span().unwrap_or_default()), format!("is not TOML: {words}"));
        }
        return;
    }
    for (name, value) in root.get_ref() {
        let section = name.get_ref().as_ref();
        match value.get_ref() {
            DeValue::Table(keys) if loader.config.section_mut(section).is_some() => {
                for (key, value) in keys {
                    loader.set(at(key.span()), section, key.get_ref(), &given(value.get_ref()));
                }
            }
            DeValue::Table(_) => {
                let known: Vec<_> = loader.config.sections().iter().map(|section| section.name()).collect();
                let rest = match nearest(section, known.iter().copied()) {
                    Some(meant) => format!("; did you mean [{meant}]?"),
                    None => format!("; there are {}", known.join(", ")),
                };
                loader.problem(at(name.span()), format!("[{}] is no section{rest}", plain(section)));
            }
            _ if loader.config.section_mut(section).is_some() => {
                loader.problem(
                    at(name.span()),
                    format!("{section} is a section: write [{section}] and its keys below"),
                );
            }
            _ => {
                let rest = match loader.guess("", section) {
                    Some((section, key)) => format!("; did you mean {key} in [{section}]?"),
                    None => "; keys stand in sections such as [server]".to_owned(),
                };
                loader.problem(at(name.span()), format!("{} is no key{rest}", plain(section)));
            }
        }
    }
}

fn given<'a>(value: &'a DeValue<'_>) -> Given<'a> {
    match value {
        DeValue::String(text) => Given::Text(text.as_ref().into()),
        DeValue::Integer(number) => Given::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Boolean(value) => Given::Boolean(*value),
        DeValue::Array(items) => Given::List(items.iter().map(|item| given(item.get_ref())).collect()),
        DeValue::Float(_) => Given::Other("a number with a point"),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Table(_) => Given::Other("a table"),
    }
}
