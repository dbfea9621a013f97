//! What `checkconfig` prints: every value that holds and where it came from.

use serde_json::{Map, Value, json as object};

use super::Loaded;

/// As TOML that can be loaded again, the origin behind each value.
pub(crate) fn text(loaded: &Loaded) -> String {
    let mut text = String::new();
    for section in loaded.config.sections() {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("[{}]\n", section.name()));
        for key in section.keys() {
            let value = section.show(key.name).map_or_else(String::new, |shown| shown.to_string());
            let line = format!("{} = {value}", key.name);
            text.push_str(&format!("{line:<44} # {}\n", loaded.origin(section.name(), key.name)));
        }
    }
    text
}

/// As JSON: `{section: {key: {value, origin}}}`.
pub(crate) fn json(loaded: &Loaded) -> Value {
    let mut root = Map::new();
    for section in loaded.config.sections() {
        let mut keys = Map::new();
        for key in section.keys() {
            let origin = loaded.origin(section.name(), key.name).to_string();
            keys.insert(key.name.to_owned(), object!({ "value": section.show(key.name), "origin": origin }));
        }
        root.insert(section.name().to_owned(), Value::Object(keys));
    }
    Value::Object(root)
}
