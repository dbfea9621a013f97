//! Which web pages may open a WebSocket here.
//!
//! A browser sends the page's `Origin` with an upgrade and does not ask first, so the server must look (RFC 6455 section 10.2).
//! Allowed are: no Origin at all (not a browser; and our tokens are not cookies, so there is nothing that a foreign page
//! could ride on), the same origin, and the configured `allowed_origins`, which add to it as they do in CORS.
//!
//! Same origin means that Origin's host and port are those of `Host`. The scheme may be http or https: behind a balancer
//! that ends TLS we cannot know which one the browser saw; a port that is missing in either counts as the default of
//! Origin's scheme. A balancer that rewrites `Host` needs the public origin in `allowed_origins`.

/// The configured list. Exact: scheme, host and port; no wildcards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    allowed: Vec<Origin>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    https: bool,
    /// Lower case; an IPv6 address with its brackets.
    host: String,
    port: u16,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an origin: write scheme, host and, if it is not the default, port, as in https://chat.example.com"
)]
pub struct ParseOriginError(String);

impl Origins {
    /// Parses the list of the config.
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, ParseOriginError> {
        let parse = |text: &str| Origin::parse(text).ok_or_else(|| ParseOriginError(text.to_owned()));
        Ok(Self { allowed: list.into_iter().map(parse).collect::<Result<_, _>>()? })
    }

    /// May a page of this `Origin` connect to the server that it knows as `host` (the `Host` header)?
    pub fn allow(&self, origin: Option<&str>, host: &str) -> bool {
        let Some(origin) = origin else { return true };
        // Also `null` (sandboxed frames, files) ends here: it names nobody.
        let Some(origin) = Origin::parse(origin) else { return false };
        self.allowed.contains(&origin) || origin.is_same_site_as(host)
    }
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        let https = scheme.eq_ignore_ascii_case("https");
        if !https && !scheme.eq_ignore_ascii_case("http") {
            return None;
        }
        let (host, port) = split_authority(authority)?;
        Some(Self {
            https,
            host: host.to_ascii_lowercase(),
            port: port.unwrap_or_else(|| default_port(https)),
        })
    }

    fn is_same_site_as(&self, host: &str) -> bool {
        let Some((host, port)) = split_authority(host) else { return false };
        self.host.eq_ignore_ascii_case(host) && self.port == port.unwrap_or_else(|| default_port(self.https))
    }
}

const fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

/// Host and port, without looking closely at the host: it is only compared.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let end_of_host = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end_of_host);
    let port = match rest.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        Some(_) => return None,
        None if rest.is_empty() => None,
        None => return None,
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/\\?#@,\"".contains(&byte);
    (!host.is_empty() && host.bytes().all(plain)).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(allowed: &[&str], origin: Option<&str>, host: &str, want: bool) {
        let origins = Origins::parse(allowed.iter().copied()).unwrap();
        assert_eq!(origins.allow(origin, host), want, "{origin:?} at {host}");
    }

    #[test]
    fn same_origin() {
        check(&[], None, "chat.example", true);
        check(&[], Some("https://chat.example"), "chat.example", true);
        check(&[], Some("http://chat.example"), "chat.example", true);
        check(&[], Some("http://CHAT.example:80"), "chat.Example", true);
        check(&[], Some("https://chat.example"), "chat.example:443", true);
        check(&[], Some("http://127.0.0.1:8000"), "127.0.0.1:8000", true);
        check(&[], Some("http://[::1]:8000"), "[::1]:8000", true);
    }

    #[test]
    fn foreign_origins() {
        check(&[], Some("https://evil.example"), "chat.example", false);
        check(&[], Some("https://chat.example.evil.example"), "chat.example", false);
        check(&[], Some("https://xchat.example"), "chat.example", false);
        check(&[], Some("https://chat.example:8443"), "chat.example", false);
        check(&[], Some("http://127.0.0.1:8000"), "127.0.0.1:8001", false);
        check(&[], Some("http://localhost:8000"), "127.0.0.1:8000", false);
        check(&[], Some("null"), "chat.example", false);
        check(&[], Some("null"), "null", false);
        check(&[], Some(""), "", false);
        check(&[], Some("https://"), "", false);
        check(&[], Some("file://chat.example"), "chat.example", false);
        check(&[], Some("https://user@chat.example"), "user@chat.example", false);
        check(&[], Some("https://chat.example/"), "chat.example/", false);
        check(&[], Some("http://[::1"), "[::1", false);
    }

    #[test]
    fn the_list_is_exact_and_adds() {
        let list = ["https://app.example", "http://dev.example:3000"];
        check(&list, Some("https://app.example"), "chat.example", true);
        check(&list, Some("https://app.example:443"), "chat.example", true);
        check(&list, Some("http://app.example"), "chat.example", false);
        check(&list, Some("https://app.example:444"), "chat.example", false);
        check(&list, Some("http://dev.example:3000"), "chat.example", true);
        check(&list, Some("http://dev.example"), "chat.example", false);
        check(&list, Some("https://chat.example"), "chat.example", true);
    }

    #[test]
    fn a_bad_list_is_named() {
        for bad in [
            "*",
            "app.example",
            "https://app.example/",
            "https://app.example:port",
            "https://a:99999",
            "null",
            "",
        ] {
            let error = Origins::parse(["https://fine.example", bad]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{bad:?} is not an origin")), "{error}");
        }
    }
}
