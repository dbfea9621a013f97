//! PROXY protocol version 2, as a balancer puts it before the first byte of the client
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).
//!
//! Always holds: a header is at most [`HEADER_MAX`] bytes, and bytes that cannot become one are refused at the first wrong byte.
//! Does not: guess. The listener either expects this header on every connection or on none: a client that could choose
//! could also choose its address. Version 1 (text) is told apart and refused in words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_LEN: usize = 16;
/// "A sender must ensure that all the protocol header is sent at once" in one segment of the smallest MSS, 536 bytes: the
/// specification's section 2.2.
pub const HEADER_MAX: usize = 536;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Right so far, and incomplete.
    Partial,
    /// The client's bytes begin at `len`. `source` is the client; `None` when the balancer speaks for itself (a health
    /// check) or has no address for it: then the socket's peer is the client.
    Complete { len: usize, source: Option<SocketAddr> },
    /// Not a header that we take; close without an answer (the other end does not speak HTTP here).
    Bad(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "no PROXY protocol header, which this listener expects: turn it on in the balancer (version 2), or off here"
    )]
    Missing,
    #[error("PROXY protocol version 1: set the balancer to send version 2")]
    Version1,
    #[error("PROXY protocol header of an unknown version or command")]
    Version,
    #[error("PROXY protocol header for something that is not TCP over IPv4 or IPv6")]
    Family,
    #[error("PROXY protocol header above {HEADER_MAX} bytes")]
    TooLong,
    #[error("PROXY protocol header whose parts do not fit its length")]
    Malformed,
}

/// Judges the beginning of a connection, `bytes` being all that was read of it so far.
pub fn parse(bytes: &[u8]) -> Parsed {
    match header(bytes) {
        Ok(Some((len, source))) => Parsed::Complete { len, source },
        Ok(None) => Parsed::Partial,
        Err(error) => Parsed::Bad(error),
    }
}

fn header(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Error> {
    let seen = bytes.len().min(SIGNATURE.len());
    if bytes[..seen] != SIGNATURE[..seen] {
        // "PROXY " cannot be told from an HTTP method before its sixth byte, but it is wrong before.
        return match bytes.starts_with(b"PROXY ") {
            true => Err(Error::Version1),
            false if !bytes.is_empty() && b"PROXY ".starts_with(bytes) => Ok(None),
            false => Err(Error::Missing),
        };
    }
    let Some(&version_command) = bytes.get(12) else { return Ok(None) };
    let local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Error::Version),
    };
    let Some(&family) = bytes.get(13) else { return Ok(None) };
    let Some(&[high, low]) = bytes.get(14..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
    let len = FIXED_LEN + usize::from(u16::from_be_bytes([high, low]));
    if len > HEADER_MAX {
        return Err(Error::TooLong);
    }
    let Some(body) = bytes.get(FIXED_LEN..len) else { return Ok(None) };
    // What a LOCAL header says about addresses is to be ignored (section 2.2).
    if local {
        return Ok(Some((len, None)));
    }
    let (source, addresses_len) = match family {
        0x00 => (None, 0),
        0x11 => {
            let &[a, b, c, d, _, _, _, _, high, low, _, _] = body.first_chunk().ok_or(Error::Malformed)?;
            let address = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
            (Some(SocketAddr::new(address, u16::from_be_bytes([high, low]))), 12)
        }
        0x21 => {
            let addresses: &[u8; 36] = body.first_chunk().ok_or(Error::Malformed)?;
            let octets: [u8; 16] = *addresses.first_chunk().ok_or(Error::Malformed)?;
            let address = IpAddr::V6(Ipv6Addr::from(octets)).to_canonical();
            (Some(SocketAddr::new(address, u16::from_be_bytes([addresses[32], addresses[33]]))), 36)
        }
        _ => return Err(Error::Family),
    };
    // Of an unspecified family the rest has no known shape.
    if family != 0x00 {
        check_tlvs(&body[addresses_len..])?;
    }
    Ok(Some((len, source)))
}

/// Walks the type-length-values: none of them is used, all of them must fit.
fn check_tlvs(mut rest: &[u8]) -> Result<(), Error> {
    while !rest.is_empty() {
        let &[_, high, low] = rest.first_chunk().ok_or(Error::Malformed)?;
        let len = 3 + usize::from(u16::from_be_bytes([high, low]));
        rest = rest.get(len..).ok_or(Error::Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: &[u8] = &[203, 0, 113, 7, 10, 0, 0, 1, 0xd4, 0x31, 0x1f, 0x40];

    fn header_of(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[version_command, family], &len, body].concat()
    }

    /// The verdict on the whole; and no prefix says anything else than "partial" or that same error.
    #[track_caller]
    fn check(bytes: &[u8], want: Parsed) {
        assert_eq!(parse(bytes), want);
        for cut in 0..bytes.len() {
            let early = parse(&bytes[..cut]);
            assert!(
                early == Parsed::Partial || (early == want && matches!(want, Parsed::Bad(_))),
                "cut {cut}: {early:?}"
            );
        }
    }

    #[track_caller]
    fn check_source(bytes: &[u8], want: Option<&str>) {
        let source = want.map(|want| want.parse().unwrap());
        check(bytes, Parsed::Complete { len: bytes.len(), source });
        let behind = [bytes, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(parse(&behind), Parsed::Complete { len: bytes.len(), source });
    }

    #[test]
    fn sources() {
        check_source(&header_of(0x21, 0x11, V4), Some("203.0.113.7:54321"));
        let v6 = [
            &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..],
            &[0; 16],
            &[0xd4, 0x31, 0x1f, 0x40],
        ];
        check_source(&header_of(0x21, 0x21, &v6.concat()), Some("[2001:db8::5]:54321"));
        let mapped = [&Ipv4Addr::new(1, 2, 3, 4).to_ipv6_mapped().octets()[..], &[0; 16], &[0, 80, 0, 80]];
        check_source(&header_of(0x21, 0x21, &mapped.concat()), Some("1.2.3.4:80"));
        // health checks, and families without an address
        check_source(&header_of(0x20, 0x00, b""), None);
        check_source(&header_of(0x20, 0x11, V4), None);
        check_source(&header_of(0x20, 0x31, b"what it likes"), None);
        check_source(&header_of(0x21, 0x00, b"what it likes"), None);
    }

    #[test]
    fn type_length_values_are_skipped() {
        let tlvs = [V4, &[0x03, 0, 4, 1, 2, 3, 4], &[0x04, 0, 0], &[0xea, 0, 2, 9, 9]].concat();
        check_source(&header_of(0x21, 0x11, &tlvs), Some("203.0.113.7:54321"));
        let most = [V4, &[0x04, 0x01, 0xf9], &[0; 505]].concat();
        assert_eq!(most.len() + FIXED_LEN, HEADER_MAX);
        check_source(&header_of(0x21, 0x11, &most), Some("203.0.113.7:54321"));
    }

    #[test]
    fn refusals() {
        let bad = |bytes: &[u8], error| check(bytes, Parsed::Bad(error));
        bad(b"GET / HTTP/1.1\r\n", Error::Missing);
        bad(b"\r\n\r\nGET", Error::Missing);
        bad(b"POST / HTTP/1.1\r\n", Error::Missing);
        bad(b"\x16\x03\x01", Error::Missing);
        bad(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Error::Version1);
        bad(&header_of(0x11, 0x11, V4), Error::Version);
        bad(&header_of(0x22, 0x11, V4), Error::Version);
        bad(&header_of(0x21, 0x12, V4), Error::Family); // UDP
        bad(&header_of(0x21, 0x31, &[0; 216]), Error::Family); // a unix socket
        bad(&header_of(0x21, 0x11, &V4[..11]), Error::Malformed);
        bad(&header_of(0x21, 0x21, V4), Error::Malformed);
        bad(&header_of(0x21, 0x11, &[V4, &[4]].concat()), Error::Malformed);
        bad(&header_of(0x21, 0x11, &[V4, &[4, 0, 2, 0]].concat()), Error::Malformed);
        // above the bound: said at the length
        bad(&header_of(0x21, 0x11, &[0; 521])[..16], Error::TooLong);
        bad(&header_of(0x20, 0x00, &[0; 65_535])[..16], Error::TooLong);
    }

    proptest! {
        #[test]
        fn garbage_behind_a_signature_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), sane in any::<bool>()) {
            let mut input = SIGNATURE.to_vec();
            if sane {
                input.extend([0x21, 0x11, 0, 60]);
            }
            input.extend(&bytes);
            if let Parsed::Complete { len, .. } = parse(&input) {
                prop_assert!(len <= input.len() && len <= HEADER_MAX);
            }
        }
    }
}
