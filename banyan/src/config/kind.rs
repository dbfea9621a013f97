//! The kinds of value that a key can have: how each is read, written back and described.
//!
//! Always holds: a kind reads what it writes (`read(show(v)) = v`), and reads nothing outside its stated range.
//! Does not: know keys, files or variables. [`Given`] is all that it sees of where a value came from.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use banyan_storage_scylla::{KEYSPACE, is_keyspace};
use tracing_subscriber::filter::Targets;

/// One kibibyte, the unit of the sizes below.
pub(crate) const KIB: u64 = 1024;
/// One mebibyte.
pub(crate) const MIB: u64 = 1024 * KIB;
/// One gibibyte.
pub(crate) const GIB: u64 = 1024 * MIB;

/// Longest part of a given value that an error repeats, in characters.
const SHOWN_CHARS: usize = 64;
/// Most entries of a list (origins, networks): every connection is checked against them.
const LIST_MAX: usize = 256;

/// A value as somebody wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given<'a> {
    /// A TOML string.
    Text(Cow<'a, str>),
    /// A TOML integer; none where it does not fit 64 bits.
    Integer(Option<i64>),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array.
    List(Vec<Self>),
    /// A TOML value that no key takes (float, date, table), as words.
    Other(&'static str),
    /// From a variable or a flag, where everything is text: also read as a number, a boolean or a list.
    Raw(&'a str),
}

impl Given<'_> {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Raw(text) => Some(text.trim()),
            Self::Integer(_) | Self::Boolean(_) | Self::List(_) | Self::Other(_) => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => *number,
            Self::Raw(text) => text.trim().replace('_', "").parse().ok(),
            Self::Text(_) | Self::Boolean(_) | Self::List(_) | Self::Other(_) => None,
        }
    }

    pub(super) fn items(&self) -> Option<Vec<Given<'_>>> {
        match self {
            Self::List(items) => Some(items.clone()),
            Self::Raw(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(items.map(Given::Raw).collect())
            }
            Self::Text(_) | Self::Integer(_) | Self::Boolean(_) | Self::Other(_) => None,
        }
    }
}

/// As an error repeats it: short, on one line, and with control characters escaped.
impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => quoted(text, f),
            Self::Raw(text) => quoted(text, f),
            Self::Integer(Some(number)) => write!(f, "{number}"),
            Self::Integer(None) => f.write_str("a number beyond 64 bits"),
            Self::Boolean(value) => write!(f, "{value}"),
            Self::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().take(4).enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str(if items.len() > 4 { ", …]" } else { "]" })
            }
            Self::Other(words) => f.write_str(words),
        }
    }
}

fn quoted(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => write!(f, "{:?}…", &text[..end]),
        None => write!(f, "{text:?}"),
    }
}

/// A value as the example file and `checkconfig` write it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum Shown {
    Text(String),
    Number(u64),
    List(Vec<String>),
}

/// As TOML. Every JSON string without DEL is a TOML basic string, and no kind lets control characters through.
impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = |text: &String| serde_json::Value::from(text.as_str()).to_string();
        match self {
            Self::Text(text) => f.write_str(&quote(text)),
            Self::Number(number) => write!(f, "{number}"),
            Self::List(items) => write!(f, "[{}]", items.iter().map(quote).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// How values of one key are read, written and described.
pub(crate) trait Kind {
    type Value;
    /// Whether a value is to be kept out of errors, logs and `checkconfig`.
    const SECRET: bool = false;
    /// Whether there is a secret to be kept.
    fn is_set(&self, _value: &Self::Value) -> bool {
        true
    }
    /// The value, if it is of this kind and in range.
    fn read(&self, given: &Given<'_>) -> Option<Self::Value>;
    /// The value as [`Kind::read`] takes it.
    fn show(&self, value: &Self::Value) -> Shown;
    /// What may stand there: continues "must be …".
    fn allowed(&self) -> String;
}

/// `"on"` or `"off"`; TOML's own booleans are understood too.
pub(crate) struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn read(&self, given: &Given<'_>) -> Option<bool> {
        if let Given::Boolean(value) = given {
            return Some(*value);
        }
        match given.text()? {
            "on" | "true" => Some(true),
            "off" | "false" => Some(false),
            _ => None,
        }
    }

    fn show(&self, value: &bool) -> Shown {
        Shown::Text(if *value { "on" } else { "off" }.to_owned())
    }

    fn allowed(&self) -> String {
        "\"on\" or \"off\"".to_owned()
    }
}

/// A whole number in a range.
pub(crate) struct Count(pub(crate) u32, pub(crate) u32);

impl Kind for Count {
    type Value = u32;

    fn read(&self, given: &Given<'_>) -> Option<u32> {
        let number = u32::try_from(given.integer()?).ok()?;
        (self.0..=self.1).contains(&number).then_some(number)
    }

    fn show(&self, value: &u32) -> Shown {
        Shown::Number(u64::from(*value))
    }

    fn allowed(&self) -> String {
        format!("a whole number from {} to {}", self.0, self.1)
    }
}

/// A whole number in a range, or `"auto"` for what suits the machine.
pub(crate) struct AutoCount(pub(crate) u32, pub(crate) u32);

impl Kind for AutoCount {
    type Value = Option<u32>;

    fn read(&self, given: &Given<'_>) -> Option<Option<u32>> {
        match given.text() {
            Some("auto") => Some(None),
            Some(_) | None => Count(self.0, self.1).read(given).map(Some),
        }
    }

    fn show(&self, value: &Option<u32>) -> Shown {
        value.map_or_else(|| Shown::Text("auto".to_owned()), |number| Shown::Number(u64::from(number)))
    }

    fn allowed(&self) -> String {
        format!("\"auto\" or {}", Count(self.0, self.1).allowed())
    }
}

/// A size in bytes: a number, or text with a unit.
pub(crate) struct Size(pub(crate) u64, pub(crate) u64);

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)];

impl Kind for Size {
    type Value = u64;

    fn read(&self, given: &Given<'_>) -> Option<u64> {
        let bytes = match given.integer() {
            Some(number) => u64::try_from(number).ok()?,
            None => {
                let text = given.text()?;
                let digits = text.find(|c: char| !c.is_ascii_digit())?;
                let unit = text[digits..].trim_start();
                let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
                text[..digits].parse::<u64>().ok()?.checked_mul(*factor)?
            }
        };
        (self.0..=self.1).contains(&bytes).then_some(bytes)
    }

    fn show(&self, value: &u64) -> Shown {
        Shown::Text(size_text(*value))
    }

    fn allowed(&self) -> String {
        format!("a size from {} to {}, such as \"64KiB\"", size_text(self.0), size_text(self.1))
    }
}

fn size_text(bytes: u64) -> String {
    let fits = |&&(_, factor): &&(&str, u64)| bytes.is_multiple_of(factor) && bytes >= factor;
    let (unit, factor) = SIZE_UNITS.iter().find(fits).unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// A duration: text with units, such as `"30s"` or `"1h30m"`.
pub(crate) struct Time(pub(crate) Duration, pub(crate) Duration);

const TIME_UNITS_MS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Kind for Time {
    type Value = Duration;

    fn read(&self, given: &Given<'_>) -> Option<Duration> {
        let duration = parse_duration(given.text()?)?;
        (self.0..=self.1).contains(&duration).then_some(duration)
    }

    fn show(&self, value: &Duration) -> Shown {
        Shown::Text(duration_text(*value))
    }

    fn allowed(&self) -> String {
        format!("a duration from {} to {}, such as \"30s\"", duration_text(self.0), duration_text(self.1))
    }
}

/// Reads `"500ms"`, `"30s"`, `"1h30m"`: numbers with units, at least one. Also the flags' durations.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total_ms = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let (_, factor) = TIME_UNITS_MS.iter().find(|(name, _)| *name == unit)?;
        total_ms = total_ms.checked_add(number.parse::<u64>().ok()?.checked_mul(*factor)?)?;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total_ms))
}

/// The shortest text that [`parse_duration`] reads back; below a millisecond nothing is kept.
pub(crate) fn duration_text(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, factor) in TIME_UNITS_MS {
        if rest_ms >= factor {
            text.push_str(&format!("{}{unit}", rest_ms / factor));
            rest_ms %= factor;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// An address to listen on. Names are not resolved: a node must not listen where a DNS server says.
pub(crate) struct Address;

impl Kind for Address {
    type Value = SocketAddr;

    fn read(&self, given: &Given<'_>) -> Option<SocketAddr> {
        given.text()?.parse().ok()
    }

    fn show(&self, value: &SocketAddr) -> Shown {
        Shown::Text(value.to_string())
    }

    fn allowed(&self) -> String {
        "an IP address with a port, such as \"127.0.0.1:8000\" or \"[::]:8000\"".to_owned()
    }
}

/// A path; relative ones are relative to the directory in which `banyan` is started.
pub(crate) struct Location;

impl Kind for Location {
    type Value = PathBuf;

    fn read(&self, given: &Given<'_>) -> Option<PathBuf> {
        let text = given.text()?;
        let usable = !text.is_empty() && !text.contains(char::is_control);
        usable.then(|| PathBuf::from(text))
    }

    fn show(&self, value: &PathBuf) -> Shown {
        Shown::Text(value.to_string_lossy().into_owned())
    }

    fn allowed(&self) -> String {
        "a path".to_owned()
    }
}

/// A path, or `""` for none.
pub(crate) struct OptionalLocation;

impl Kind for OptionalLocation {
    type Value = Option<PathBuf>;

    fn read(&self, given: &Given<'_>) -> Option<Option<PathBuf>> {
        match given.text() {
            Some("") => Some(None),
            Some(_) | None => Location.read(given).map(Some),
        }
    }

    fn show(&self, value: &Option<PathBuf>) -> Shown {
        value.as_ref().map_or_else(|| Shown::Text(String::new()), |path| Location.show(path))
    }

    fn allowed(&self) -> String {
        "a path, or \"\" for none".to_owned()
    }
}

/// A node's name: it stands in logs, metrics and replies to clients.
pub(crate) struct Name;

impl Kind for Name {
    type Value = String;

    fn read(&self, given: &Given<'_>) -> Option<String> {
        let text = given.text()?;
        let fits = (1..=64).contains(&text.len());
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        (fits && plain).then(|| text.to_owned())
    }

    fn show(&self, value: &String) -> Shown {
        Shown::Text(value.clone())
    }

    fn allowed(&self) -> String {
        "1 to 64 characters of A-Z a-z 0-9 . _ -".to_owned()
    }
}

/// Of the tables in the store.
pub(crate) struct Keyspace;

impl Kind for Keyspace {
    type Value = String;

    fn read(&self, given: &Given<'_>) -> Option<String> {
        given.text().filter(|text| is_keyspace(text)).map(str::to_owned)
    }

    fn show(&self, value: &String) -> Shown {
        Shown::Text(value.clone())
    }

    fn allowed(&self) -> String {
        KEYSPACE.to_owned()
    }
}

/// One of a closed set of words.
pub(crate) struct Choice<T: 'static>(pub(crate) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for Choice<T> {
    type Value = T;

    fn read(&self, given: &Given<'_>) -> Option<T> {
        let text = given.text()?;
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn show(&self, value: &T) -> Shown {
        let word = self.0.iter().find(|(_, choice)| choice == value).map_or("", |(word, _)| word);
        Shown::Text(word.to_owned())
    }

    fn allowed(&self) -> String {
        let words: Vec<_> = self.0.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("one of {}", words.join(", "))
    }
}

/// Log levels, one for all and others for parts: `"info,banyan_gateway=debug"`.
pub(crate) struct Levels;

impl Kind for Levels {
    type Value = String;

    fn read(&self, given: &Given<'_>) -> Option<String> {
        let text = given.text()?;
        let known = !text.is_empty() && !text.contains(char::is_control) && Targets::from_str(text).is_ok();
        // `Targets` takes a lone unknown word for a target that is wholly on: "inof" would log everything of nothing.
        let worded = text.split(',').all(|part| {
            let level = part.rsplit('=').next().unwrap_or(part).trim();
            ["off", "error", "warn", "info", "debug", "trace"].contains(&level)
        });
        (known && worded).then(|| text.to_owned())
    }

    fn show(&self, value: &String) -> Shown {
        Shown::Text(value.clone())
    }

    fn allowed(&self) -> String {
        "off, error, warn, info, debug or trace, also per part as in \"info,banyan_gateway=debug\"".to_owned()
    }
}

/// Web origins: scheme, host and port, nothing after.
pub(crate) struct Origins;

impl Kind for Origins {
    type Value = Vec<String>;

    fn read(&self, given: &Given<'_>) -> Option<Vec<String>> {
        let items = given.items()?;
        (items.len() <= LIST_MAX).then_some(())?;
        items.iter().map(|item| item.text().and_then(parse_origin)).collect()
    }

    fn show(&self, value: &Vec<String>) -> Shown {
        Shown::List(value.clone())
    }

    fn allowed(&self) -> String {
        format!(
            "a list of up to {LIST_MAX} origins, each as \"https://chat.example.com\" or with a port, without a path"
        )
    }
}

/// Lower-cased, since browsers send an origin so; a default port is left out, as they leave it out.
fn parse_origin(text: &str) -> Option<String> {
    let origin = text.to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://")?;
    let default_port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let host_end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, port) = authority.split_at(host_end);
    if let Some(host) = host.strip_prefix('[') {
        host.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?;
    } else {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        (!host.is_empty() && host.bytes().all(plain)).then_some(())?;
    }
    if !port.is_empty() {
        let digits = port.strip_prefix(':')?;
        (digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().ok()? > 0).then_some(())?;
    }
    Some(origin.strip_suffix(default_port).unwrap_or(&origin).to_owned())
}

/// A range of addresses: those whose first `prefix` bits are those of `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) address: IpAddr,
    /// Leading bits that count: 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub(crate) prefix: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= bits)?,
            None => bits,
        };
        Some(Self { address, prefix })
    }
}

/// Networks, each `"10.0.0.0/8"`, `"fd00::/8"` or a lone address.
pub(crate) struct Networks;

impl Kind for Networks {
    type Value = Vec<Network>;

    fn read(&self, given: &Given<'_>) -> Option<Vec<Network>> {
        let items = given.items()?;
        (items.len() <= LIST_MAX).then_some(())?;
        items.iter().map(|item| item.text().and_then(Network::parse)).collect()
    }

    fn show(&self, value: &Vec<Network>) -> Shown {
        Shown::List(value.iter().map(|network| format!("{}/{}", network.address, network.prefix)).collect())
    }

    fn allowed(&self) -> String {
        format!("a list of up to {LIST_MAX} addresses or networks, each as \"10.0.0.0/8\" or \"10.1.2.3\"")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    #[allow(clippy::needless_pass_by_value, reason = "a table's rows read better with values")]
    fn check<K: Kind>(kind: &K, raw: &str, want: Option<K::Value>)
    where
        K::Value: PartialEq + fmt::Debug,
    {
        let got = kind.read(&Given::Raw(raw));
        assert!(got == want, "{raw}: {got:?}, not {want:?}");
    }

    #[test]
    fn durations() {
        let kind = Time(Duration::from_millis(10), Duration::from_secs(86_400));
        check(&kind, "30s", Some(Duration::from_secs(30)));
        check(&kind, "1h30m", Some(Duration::from_secs(5400)));
        check(&kind, "250ms", Some(Duration::from_millis(250)));
        check(&kind, "1d", Some(Duration::from_secs(86_400)));
        for bad in [
            "",
            "30",
            "s",
            "1.5s",
            "-1s",
            "9ms",
            "25h",
            "1w",
            "99999999999999999999s",
            "18446744073709551615d",
            "1S",
        ] {
            check(&kind, bad, None);
        }
        assert_eq!(kind.read(&Given::Integer(Some(30))), None, "a number alone has no unit");
    }

    #[test]
    fn sizes() {
        let kind = Size(KIB, GIB);
        check(&kind, "64KiB", Some(64 * KIB));
        check(&kind, "64 kib", Some(64 * KIB));
        check(&kind, "2048", Some(2048));
        check(&kind, "2_048", Some(2048));
        check(&kind, "1GiB", Some(GIB));
        for bad in ["", "KiB", "64KB", "1B", "2GiB", "-1", "1.5MiB", "99999999999GiB"] {
            check(&kind, bad, None);
        }
        assert_eq!(kind.read(&Given::Integer(Some(65536))), Some(64 * KIB));
        assert_eq!(kind.read(&Given::Integer(None)), None);
    }

    #[test]
    fn switches_counts_and_choices() {
        check(&Switch, "on", Some(true));
        check(&Switch, "yes", None);
        assert_eq!(Switch.read(&Given::Boolean(false)), Some(false));
        check(&Count(1, 10), "10", Some(10));
        check(&Count(1, 10), "0", None);
        check(&Count(1, 10), "11", None);
        assert_eq!(Count(1, 10).read(&Given::Text("5".into())), None, "text in the file is not a number");
        check(&AutoCount(1, 8), "auto", Some(None));
        check(&AutoCount(1, 8), "3", Some(Some(3)));
        check(&AutoCount(1, 8), "9", None);
        check(&Choice(&[("json", 1), ("text", 2)]), "text", Some(2));
        check(&Choice(&[("json", 1), ("text", 2)]), "xml", None);
    }

    #[test]
    fn addresses_names_and_paths() {
        check(&Address, "[::1]:80", Some("[::1]:80".parse().unwrap()));
        for bad in ["localhost:8000", ":8000", "127.0.0.1", "127.0.0.1:99999"] {
            check(&Address, bad, None);
        }
        check(&Name, "node-1.eu_a", Some("node-1.eu_a".to_owned()));
        check(&Name, "", None);
        check(&Name, "a b", None);
        check(&Name, &"x".repeat(65), None);
        check(&Keyspace, "banyan_2", Some("banyan_2".to_owned()));
        for bad in ["", "2b", "Banyan", "ban-yan", "ban.yan", &"x".repeat(49)] {
            check(&Keyspace, bad, None);
        }
        check(&Location, "", None);
        check(&Location, "a\nb", None);
        check(&OptionalLocation, "", Some(None));
        assert_eq!(Location.read(&Given::Boolean(true)), None);
    }

    #[test]
    fn origins_and_networks() {
        check(
            &Origins,
            "https://Chat.example.com:443, http://localhost:3000",
            Some(vec!["https://chat.example.com".to_owned(), "http://localhost:3000".to_owned()]),
        );
        check(&Origins, "", Some(Vec::new()));
        check(&Origins, "http://[::1]:80", Some(vec!["http://[::1]".to_owned()]));
        for bad in [
            "chat.example.com",
            "https://a/b",
            "https://",
            "ws://a",
            "*",
            "https://a:0",
            "https://a:",
            "https://[zz]",
            "https://a:+1",
        ] {
            check(&Origins, bad, None);
        }
        assert_eq!(Origins.read(&Given::List(vec![Given::Raw("https://a"); LIST_MAX + 1])), None);
        let network = |address: &str, prefix| Network { address: address.parse().unwrap(), prefix };
        check(
            &Networks,
            "10.0.0.0/8,fd00::/8,1.2.3.4",
            Some(vec![network("10.0.0.0", 8), network("fd00::", 8), network("1.2.3.4", 32)]),
        );
        for bad in ["10.0.0.0/33", "10.0.0.0/", "example.com", "10/8"] {
            check(&Networks, bad, None);
        }
    }

    #[test]
    fn levels() {
        check(&Levels, "info", Some("info".to_owned()));
        check(&Levels, "warn,banyan_gateway=debug", Some("warn,banyan_gateway=debug".to_owned()));
        for bad in ["", "inof", "banyan_gateway", "info,banyan=loud"] {
            check(&Levels, bad, None);
        }
    }

    #[test]
    fn what_was_given_is_shown_short_and_on_one_line() {
        assert_eq!(Given::Raw("a\nb\u{1b}").to_string(), r#""a\nb\u{1b}""#);
        let long = "é".repeat(1000);
        assert!(Given::Raw(&long).to_string().chars().count() < SHOWN_CHARS + 4);
    }

    proptest! {
        #[test]
        fn durations_are_read_back(ms in 0_u64..=10_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&duration_text(duration)), Some(duration));
        }

        #[test]
        fn sizes_are_read_back(bytes in 0_u64..=u64::MAX / 2) {
            let kind = Size(0, u64::MAX);
            let Shown::Text(text) = kind.show(&bytes) else { unreachable!() };
            prop_assert_eq!(kind.read(&Given::Text(text.into())), Some(bytes));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let given = Given::Raw(&text);
            let _ = (Switch.read(&given), Count(0, 9).read(&given), Size(0, 9).read(&given), Origins.read(&given));
            let _ = (Networks.read(&given), Levels.read(&given), parse_duration(&text), Address.read(&given), given.to_string());
        }
    }
}
