//! The true address of a client behind proxies that we trust.
//!
//! Owns: `trusted_proxies` as networks, and the right-most-untrusted rule over `X-Forwarded-For`.
//! Always holds: an address that only an untrusted party vouches for is never believed; a peer that is not a trusted
//! proxy is the client, whatever it claims.

use std::net::IpAddr;
use std::str::FromStr;

/// A network in CIDR form, `10.0.0.0/8` or `2001:db8::/32`; a bare address is the network of itself alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNet {
    address: IpAddr,
    prefix_len: u8,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseNetError {
    #[error("{0:?} is not an address or network: write 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32")]
    Syntax(String),
    #[error("{0:?} is not a network: the prefix is longer than the address")]
    PrefixTooLong(String),
    #[error("{0:?} has bits behind its prefix: did you mean {1}?")]
    HostBits(String, IpNet),
}

impl IpNet {
    /// An IPv4 address that came mapped into IPv6 (a dual-stack socket does that) counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                (net.to_bits() ^ address.to_bits()) & self.mask_v4() == 0
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                (net.to_bits() ^ address.to_bits()) & self.mask_v6() == 0
            }
            _ => false,
        }
    }

    fn mask_v4(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    fn mask_v6(&self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix_len)).unwrap_or(0)
    }

    fn without_host_bits(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => IpAddr::V4((address.to_bits() & self.mask_v4()).into()),
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() & self.mask_v6()).into()),
        };
        Self { address, ..self }
    }
}

impl FromStr for IpNet {
    type Err = ParseNetError;

    fn from_str(text: &str) -> Result<Self, ParseNetError> {
        let syntax = || ParseNetError::Syntax(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = match prefix {
            None => most,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let prefix_len = digits.parse().unwrap_or(u8::MAX);
                if prefix_len > most {
                    return Err(ParseNetError::PrefixTooLong(text.to_owned()));
                }
                prefix_len
            }
            Some(_) => return Err(syntax()),
        };
        let net = Self { address, prefix_len };
        let clean = net.without_host_bits();
        if net == clean { Ok(net) } else { Err(ParseNetError::HostBits(text.to_owned(), clean)) }
    }
}

impl std::fmt::Display for IpNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// Who the client is: `peer` is the other end of the socket (or what PROXY protocol said), `forwarded_for` the values of
/// the `X-Forwarded-For` lines in order.
///
/// Each proxy appends the address that it saw, so the list is believed from its right end as long as the one who
/// wrote the entry is trusted. An entry that is no address ends the walk at the proxy that wrote it.
pub fn client_addr(peer: IpAddr, forwarded_for: &[&[u8]], trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address| trusted.iter().any(|net| net.contains(address));
    let mut client = peer.to_canonical();
    let entries = forwarded_for.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    for entry in entries {
        if !is_trusted(client) {
            break;
        }
        let Some(address) = parse_entry(entry.trim_ascii()) else { break };
        client = address.to_canonical();
    }
    client
}

/// `1.2.3.4`, `::1`, and with a port, as some balancers write it: `1.2.3.4:5678`, `[::1]:5678`; `[::1]` too.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let entry = str::from_utf8(entry).ok()?;
    if let Ok(address) = entry.parse() {
        return Some(address);
    }
    if let Ok(with_port) = entry.parse::<std::net::SocketAddr>() {
        return Some(with_port.ip());
    }
    entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_contains(net: &str, address: &str, want: bool) {
        let net: IpNet = net.parse().unwrap();
        assert_eq!(net.contains(address.parse().unwrap()), want, "{net} and {address}");
    }

    #[test]
    fn networks() {
        check_contains("10.0.0.0/8", "10.255.0.1", true);
        check_contains("10.0.0.0/8", "11.0.0.1", false);
        check_contains("10.0.0.7", "10.0.0.7", true);
        check_contains("10.0.0.7", "10.0.0.6", false);
        check_contains("10.0.0.0/31", "10.0.0.1", true);
        check_contains("10.0.0.0/31", "10.0.0.2", false);
        check_contains("0.0.0.0/0", "255.1.2.3", true);
        check_contains("0.0.0.0/0", "::1", false);
        check_contains("::/0", "2001:db8::1", true);
        check_contains("2001:db8::/33", "2001:db8:7fff::1", true);
        check_contains("2001:db8::/33", "2001:db8:8000::1", false);
        check_contains("::1", "::1", true);
        check_contains("10.0.0.0/8", "::ffff:10.1.2.3", true);
    }

    #[track_caller]
    fn check_refused(text: &str, want: &str) {
        let error = text.parse::<IpNet>().unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }

    #[test]
    fn bad_networks() {
        for text in
            ["", "10.0.0", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "example", "10.0.0.0/a", " 10.0.0.1"]
        {
            check_refused(text, "is not an address or network");
        }
        check_refused("10.0.0.0/33", "longer than the address");
        check_refused("10.0.0.0/999", "longer than the address");
        check_refused("::/129", "longer than the address");
        check_refused("10.0.0.1/8", "did you mean 10.0.0.0/8?");
        check_refused("2001:db8::1/32", "did you mean 2001:db8::/32?");
    }

    #[track_caller]
    fn check(peer: &str, forwarded_for: &[&str], want: &str) {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let values: Vec<&[u8]> = forwarded_for.iter().map(|value| value.as_bytes()).collect();
        let got = client_addr(peer.parse().unwrap(), &values, &trusted);
        assert_eq!(got, want.parse::<IpAddr>().unwrap(), "{peer} {forwarded_for:?}");
    }

    #[test]
    fn right_most_untrusted() {
        check("9.9.9.9", &[], "9.9.9.9");
        check("9.9.9.9", &["1.1.1.1"], "9.9.9.9"); // not a proxy of ours: its claims mean nothing
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["1.1.1.1"], "1.1.1.1");
        check("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"); // 6.6.6.6 is what the client claimed
        check("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1");
        check("10.0.0.1", &["6.6.6.6", "1.1.1.1", "10.0.0.2,10.0.0.3"], "1.1.1.1");
        check("10.0.0.1", &["10.0.0.9,10.0.0.2"], "10.0.0.9"); // a client inside
        check("fd00::1", &["2001:db8::5"], "2001:db8::5");
        check("::ffff:10.0.0.1", &["::ffff:1.1.1.1"], "1.1.1.1");
    }

    #[test]
    fn entries_with_ports_and_without_sense() {
        check("10.0.0.1", &["1.1.1.1:4711"], "1.1.1.1");
        check("10.0.0.1", &["[2001:db8::5]:4711"], "2001:db8::5");
        check("10.0.0.1", &["[2001:db8::5]"], "2001:db8::5");
        check("10.0.0.1", &["1.1.1.1, unknown"], "10.0.0.1");
        check("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &["1.1.1.1, "], "10.0.0.1");
        check("10.0.0.1", &[""], "10.0.0.1");
    }

    proptest! {
        #[test]
        fn a_network_contains_what_shares_its_prefix(base: u32, other: u32, prefix_len in 0_u8..=32) {
            let net = IpNet { address: IpAddr::V4(base.into()), prefix_len }.without_host_bits();
            let shared = (0..u32::from(prefix_len)).all(|bit| (base ^ other) >> (31 - bit) & 1 == 0);
            prop_assert_eq!(net.contains(IpAddr::V4(other.into())), shared);
            prop_assert_eq!(net.to_string().parse::<IpNet>(), Ok(net));
        }

        /// No list makes an untrusted peer someone else.
        #[test]
        fn an_untrusted_peer_is_the_client(list in proptest::collection::vec("[0-9a-f.:, \\[\\]]{0,40}", 0..4)) {
            let values: Vec<&[u8]> = list.iter().map(String::as_bytes).collect();
            let (peer, trusted) = ("9.9.9.9".parse().unwrap(), ["10.0.0.0/8".parse().unwrap()]);
            prop_assert_eq!(client_addr(peer, &values, &trusted), peer);
        }
    }
}
