//! The documented example file, made from the sections themselves. The committed `deploy/banyan.toml` is this text.

use super::Config;

/// Every key with its documentation and its default.
pub(crate) fn example() -> String {
    let mut text = String::from(HEAD);
    for section in Config::default().sections() {
        text.push_str("\n\n");
        comment(&mut text, section.doc());
        text.push_str(&format!("[{}]\n", section.name()));
        for key in section.keys() {
            text.push('\n');
            comment(&mut text, key.doc);
            let value = section.show(key.name).map_or_else(String::new, |shown| shown.to_string());
            text.push_str(&format!("# Allowed: {}.\n{} = {value}\n", key.allowed, key.name));
        }
    }
    text
}

fn comment(text: &mut String, doc: &[&str]) {
    for line in doc {
        text.push_str(&format!("#{line}\n"));
    }
}

const HEAD: &str = "\
# Banyan's configuration: every key, with its default. None is needed: `banyan serve` runs without a file.
# Keep the lines that you change and leave the others out, so that better defaults of later releases reach you.
#
#   banyan serve --config banyan.toml
#   banyan checkconfig --config banyan.toml    (what holds, and where each value comes from)
#
# A variable BANYAN_SECTION__KEY wins over the file (BANYAN_SERVER__LISTEN=0.0.0.0:8000; lists with commas),
# a flag over both. Durations have units (ms, s, m, h, d), sizes too (B, KiB, MiB, GiB).
";
