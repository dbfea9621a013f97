//! The kinds of value that name other machines, and what opens them.

use super::kind::{Given, Kind, Shown};

/// Servers of one kind that a node may be told of.
const PLACES_MAX: usize = 64;
const TEXT_MAX: usize = 1_024;

/// `host:port`: a name or an IP address, and a port.
fn is_place(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let named = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
            !host.is_empty() && host.len() <= 253 && host.bytes().all(plain)
        }
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    named && digits && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Servers, each as `host:port`.
pub(super) struct Places;

impl Kind for Places {
    type Value = Vec<String>;

    fn read(&self, given: &Given<'_>) -> Option<Vec<String>> {
        let items = given.items()?;
        (items.len() <= PLACES_MAX).then_some(())?;
        items.iter().map(|item| item.text().filter(|text| is_place(text)).map(str::to_owned)).collect()
    }

    fn show(&self, value: &Vec<String>) -> Shown {
        Shown::List(value.clone())
    }

    fn allowed(&self) -> String {
        format!(
            "a list of up to {PLACES_MAX} servers, each as \"10.0.0.1:9042\" or \"db-1.example.com:9042\""
        )
    }
}

/// Servers, each as `http://host:port` or `https://host:port`.
pub(super) struct Urls;

impl Kind for Urls {
    type Value = Vec<String>;

    fn read(&self, given: &Given<'_>) -> Option<Vec<String>> {
        let items = given.items()?;
        (items.len() <= PLACES_MAX).then_some(())?;
        let read = |item: &Given<'_>| {
            let text = item.text()?.trim_end_matches('/');
            let place = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
            is_place(place).then(|| text.to_owned())
        };
        items.iter().map(read).collect()
    }

    fn show(&self, value: &Vec<String>) -> Shown {
        Shown::List(value.clone())
    }

    fn allowed(&self) -> String {
        format!(
            "a list of up to {PLACES_MAX} servers, each as \"http://10.0.0.1:2379\" or \"https://etcd-1.example.com:2379\""
        )
    }
}

/// One `host:port`, or nothing.
pub(super) struct OptionalPlace;

impl Kind for OptionalPlace {
    type Value = Option<String>;

    fn read(&self, given: &Given<'_>) -> Option<Option<String>> {
        match given.text()? {
            "" => Some(None),
            text => is_place(text).then(|| Some(text.to_owned())),
        }
    }

    fn show(&self, value: &Option<String>) -> Shown {
        Shown::Text(value.clone().unwrap_or_default())
    }

    fn allowed(&self) -> String {
        "a host and a port, such as \"10.0.0.1:7000\", or \"\" for none".to_owned()
    }
}

/// Any text on one line, or nothing.
pub(super) struct OptionalText;

fn text_of(given: &Given<'_>) -> Option<Option<String>> {
    let text = given.text()?;
    let fits = text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    fits.then(|| Some(text.to_owned()).filter(|text| !text.is_empty()))
}

impl Kind for OptionalText {
    type Value = Option<String>;

    fn read(&self, given: &Given<'_>) -> Option<Option<String>> {
        text_of(given)
    }

    fn show(&self, value: &Option<String>) -> Shown {
        Shown::Text(value.clone().unwrap_or_default())
    }

    fn allowed(&self) -> String {
        format!("a text of up to {TEXT_MAX} characters on one line, or \"\" for none")
    }
}

/// A password, or nothing. Shown as nothing while it is not set, and never as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Password(pub(crate) Option<String>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "(redacted)" } else { "(none)" })
    }
}

pub(super) struct Secret;

impl Kind for Secret {
    type Value = Password;
    const SECRET: bool = true;

    fn is_set(&self, value: &Password) -> bool {
        value.0.is_some()
    }

    fn read(&self, given: &Given<'_>) -> Option<Password> {
        text_of(given).map(Password)
    }

    fn show(&self, _: &Password) -> Shown {
        Shown::Text(String::new())
    }

    fn allowed(&self) -> String {
        format!("a text of up to {TEXT_MAX} characters on one line, or \"\" for none")
    }
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) gateway: bool,
    pub(crate) shard: bool,
}

impl Roles {
    pub(crate) const ALL: Self = Self { gateway: true, shard: true };

    fn words(self) -> Vec<String> {
        let all = [(self.gateway, "gateway"), (self.shard, "shard")];
        all.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()).collect()
    }
}

pub(super) struct RoleList;

impl Kind for RoleList {
    type Value = Roles;

    fn read(&self, given: &Given<'_>) -> Option<Roles> {
        let mut roles = Roles { gateway: false, shard: false };
        for item in given.items()? {
            match item.text()? {
                "gateway" => roles.gateway = true,
                "shard" => roles.shard = true,
                _ => return None,
            }
        }
        (roles.gateway || roles.shard).then_some(roles)
    }

    fn show(&self, value: &Roles) -> Shown {
        Shown::List(value.words())
    }

    fn allowed(&self) -> String {
        "a list of \"gateway\", \"shard\" or both".to_owned()
    }
}

/// A power of two in a range.
pub(super) struct PowerOfTwo(pub(super) u32, pub(super) u32);

impl Kind for PowerOfTwo {
    type Value = u32;

    fn read(&self, given: &Given<'_>) -> Option<u32> {
        let number = u32::try_from(given.integer()?).ok()?;
        (number.is_power_of_two() && (self.0..=self.1).contains(&number)).then_some(number)
    }

    fn show(&self, value: &u32) -> Shown {
        Shown::Number(u64::from(*value))
    }

    fn allowed(&self) -> String {
        format!("a power of two from {} to {}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_a_host_and_a_port() {
        for good in ["127.0.0.1:9042", "db-1.example.com:9042", "[::1]:9042"] {
            assert_eq!(Places.read(&Given::Raw(good)), Some(vec![good.to_owned()]), "{good}");
        }
        for bad in ["db-1", "db-1:", ":9042", "db-1:0", "db-1:65536", "::1:9042", "http://a:1", "a b:1"] {
            assert_eq!(Places.read(&Given::Raw(bad)), None, "{bad}");
        }
        assert_eq!(OptionalPlace.read(&Given::Raw("")), Some(None));
        assert_eq!(OptionalPlace.read(&Given::Raw("a")), None);
    }

    #[test]
    fn urls_have_a_scheme_and_no_path() {
        let both = ["http://a:2379", "https://[::1]:2379"];
        let read = Urls.read(&Given::Raw("http://a:2379/, https://[::1]:2379"));
        assert_eq!(read, Some(both.map(str::to_owned).to_vec()));
        for bad in ["a:2379", "ftp://a:2379", "http://a", "http://a:2379/x"] {
            assert_eq!(Urls.read(&Given::Raw(bad)), None, "{bad}");
        }
    }

    #[test]
    fn roles_are_named_and_at_least_one() {
        assert_eq!(RoleList.read(&Given::Raw("shard")), Some(Roles { gateway: false, shard: true }));
        assert_eq!(RoleList.read(&Given::Raw("gateway,shard")), Some(Roles::ALL));
        assert_eq!(RoleList.read(&Given::Raw("")), None);
        assert_eq!(RoleList.read(&Given::Raw("gateway,worker")), None);
        assert_eq!(RoleList.show(&Roles::ALL), Shown::List(vec!["gateway".to_owned(), "shard".to_owned()]));
    }

    #[test]
    fn a_password_is_not_shown() {
        let password = Secret.read(&Given::Raw("hunter2"));
        assert_eq!(password.as_ref().and_then(|password| password.0.as_deref()), Some("hunter2"));
        assert!(!format!("{password:?}").contains("hunter2"));
    }

    #[test]
    fn slots_are_a_power_of_two() {
        let kind = PowerOfTwo(16, 65_536);
        assert_eq!(kind.read(&Given::Integer(Some(4_096))), Some(4_096));
        for bad in [0, 8, 100, 1 << 17] {
            assert_eq!(kind.read(&Given::Integer(Some(bad))), None, "{bad}");
        }
    }
}
