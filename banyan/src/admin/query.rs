//! The query of an address, as `URLSearchParams` writes it.

/// Names and values. What is wrong with it, if it is none.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let parts = text.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decoded(name)?, decoded(value)?))
        })
        .collect()
}

fn decoded(text: &str) -> Result<String, String> {
    let error = || format!("{text:?} is no text of a query: % goes with two hexadecimal digits of UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit().ok_or_else(error)?, digit().ok_or_else(error)?);
                // Below 256.
                (high << 4 | low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_browsers_write_it() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        for (text, want) in [
            ("", vec![]),
            ("room=r%3A1&x", vec![pair("room", "r:1"), pair("x", "")]),
            ("room=%7Eada+b", vec![pair("room", "~ada b")]),
            ("r%C3%B6m=a=b", vec![pair("röm", "a=b")]),
        ] {
            assert_eq!(pairs(text), Ok(want), "{text}");
        }
        for bad in ["room=%", "room=%4", "room=%zz", "room=%ff", "%ff=1"] {
            assert!(pairs(bad).is_err(), "{bad}");
        }
    }
}
