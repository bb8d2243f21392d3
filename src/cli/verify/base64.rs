//! Base64, as far as mistakes with it must be told: both alphabets, padded or not.

/// Which of the two alphabets a text uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Only letters and digits: it could be either.
    Either,
    /// With `+` or `/`.
    Standard,
    /// With `-` or `_`.
    UrlSafe,
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes that a text stands for, white space apart. `None` where it is not base64, or empty.
pub(super) fn decode(text: &[u8]) -> Option<(Alphabet, Vec<u8>)> {
    let mut alphabet = Alphabet::Either;
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let mut held = 0_u32;
    let mut bits = 0_u32;
    let mut digits = 0_usize;
    let mut padding = 0_usize;
    for &c in text.iter().filter(|c| !c.is_ascii_whitespace()) {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'/' if alphabet != Alphabet::UrlSafe => {
                alphabet = Alphabet::Standard;
                if c == b'+' { 62 } else { 63 }
            }
            b'-' | b'_' if alphabet != Alphabet::Standard => {
                alphabet = Alphabet::UrlSafe;
                if c == b'-' { 62 } else { 63 }
            }
            b'=' => {
                padding += 1;
                continue;
            }
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        digits += 1;
        held = (held << 6 | u32::from(digit)) & 0xfff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            decoded.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
    }
    let complete = match digits % 4 {
        0 => digits > 0 && padding == 0,
        2 => matches!(padding, 0 | 2),
        3 => matches!(padding, 0 | 1),
        _ => false,
    };
    complete.then_some((alphabet, decoded))
}

/// The padded text in the standard alphabet.
pub(super) fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_usize, |group, byte| group << 8 | usize::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = STANDARD.get(group >> (18 - 6 * place) & 63).copied().unwrap_or_default();
            text.push(if place <= chunk.len() { digit } else { b'=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The vectors of RFC 4648.
    #[test]
    fn known_texts() {
        for (bytes, text) in
            [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(encode(bytes.as_bytes()), text.as_bytes());
            assert_eq!(decode(text.as_bytes()), Some((Alphabet::Either, bytes.into())));
            assert_eq!(decode(text.trim_end_matches('=').as_bytes()), Some((Alphabet::Either, bytes.into())));
        }
        assert_eq!(decode(b"+/+/"), Some((Alphabet::Standard, vec![0xfb, 0xff, 0xbf])));
        assert_eq!(decode(b"-_-_"), Some((Alphabet::UrlSafe, vec![0xfb, 0xff, 0xbf])));
        assert_eq!(decode(b"Zm9v\nYmFy\n"), Some((Alphabet::Either, b"foobar".to_vec())));
    }

    #[test]
    fn what_is_none() {
        for text in ["", " ", "=", "A", "AAAAA", "A===", "AA=", "AA=A", "AAAA=", "+_AA", "A!AA", "é"] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
            prop_assert_eq!(decode(&encode(&bytes)).map(|(_, decoded)| decoded), Some(bytes));
        }

        #[test]
        fn nothing_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            decode(&text);
        }
    }
}
