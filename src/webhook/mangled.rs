//! What looks as if a secret or a header's value had been damaged on its way: by an editor, a shell, a secret store, a
//! copy. Nothing is ever mended here, since what looks odd may be meant; and nothing of a value is ever in a text.

use std::fmt;

/// What a value is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A webhook's secret.
    Secret,
    /// The value of a header.
    Header,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret",
            Self::Header => "value",
        })
    }
}

/// The byte order mark of UTF-8.
pub const MARK: &[u8] = b"\xef\xbb\xbf";

/// Everything that looks odd about a value, in words that follow "it". `None`: nothing does.
#[must_use]
pub fn describe(value: &[u8], of: Use) -> Option<String> {
    let oddities = oddities(value, of);
    (!oddities.is_empty()).then(|| oddities.join(", and it "))
}

fn oddities(value: &[u8], of: Use) -> Vec<&'static str> {
    let mut found = Vec::new();
    if is_utf16(value) {
        // Every other rule would find the zero bytes.
        return vec!["is UTF-16: save it as UTF-8 without a byte order mark"];
    }
    let (value, marked) = value.strip_prefix(MARK).map_or((value, false), |rest| (rest, true));
    if marked {
        found.push("begins with a byte order mark (U+FEFF)");
    }
    let trimmed = trim(value);
    if trimmed.len() < value.len() {
        found.push("has white space around it");
    }
    if unquoted(trimmed).is_some() {
        found.push("has quotation marks around it");
    }
    let text = str::from_utf8(trimmed);
    match text {
        Err(_) => found.push("is not text in UTF-8"),
        Ok(text) => {
            if text.chars().any(is_invisible) {
                found.push("has an invisible character in it, such as a no-break or zero-width space");
            } else if !text.is_ascii() {
                found.push("has characters other than ASCII in it");
            }
            if text.contains(['\n', '\r']) {
                found.push("has a line break in it");
            } else if text.chars().any(|c| c.is_control()) {
                found.push("has a control character in it");
            }
        }
    }
    if assigned(trimmed, of).is_some() {
        found.push(match of {
            Use::Secret => "begins with a name: NAME=value, where only the value is the secret",
            Use::Header => "begins with a name, where only the value belongs here",
        });
    }
    if holds_a_newline_in_base64(trimmed, of) {
        found.push(
            "is base64 of a text that ends with a newline: encode it with `printf %s`, not with `echo`",
        );
    }
    if value.len() > 1 && value.iter().all(|byte| Some(byte) == value.first()) {
        found.push("is one character, repeated");
    }
    found
}

/// Whether every other byte of what should be short ASCII text is zero, or it begins with the mark.
#[must_use]
pub fn is_utf16(value: &[u8]) -> bool {
    let zeros = |from: usize| value.iter().skip(from).step_by(2).all(|byte| *byte == 0);
    value.starts_with(b"\xff\xfe")
        || value.starts_with(b"\xfe\xff")
        || value.len() >= 4 && value.len().is_multiple_of(2) && (zeros(0) || zeros(1))
}

/// Without the white space at both ends, of ASCII and beyond.
#[must_use]
pub fn trim(value: &[u8]) -> &[u8] {
    match str::from_utf8(value) {
        Ok(text) => text.trim_matches(|c: char| c.is_whitespace() || is_invisible(c)).as_bytes(),
        Err(_) => value.trim_ascii(),
    }
}

/// Invisible characters other than ASCII control characters.
#[must_use]
pub const fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{a0}' | '\u{ad}' | '\u{61c}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{feff}')
}

/// What stands between quotation marks.
#[must_use]
pub fn unquoted(value: &[u8]) -> Option<&[u8]> {
    const PAIRS: [(&str, &str); 6] =
        [("\"", "\""), ("'", "'"), ("`", "`"), ("“", "”"), ("‘", "’"), ("„", "“")];
    PAIRS.iter().find_map(|(open, close)| value.strip_prefix(open.as_bytes())?.strip_suffix(close.as_bytes()))
}

/// What follows `NAME=` or `NAME: `, with or without `export` before it. Base64 ends with `=`, and is not a name.
#[must_use]
pub fn assigned(value: &[u8], of: Use) -> Option<&[u8]> {
    let value = value.strip_prefix(b"export ").unwrap_or(value);
    let end = value.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"_-".contains(byte))?;
    let (name, rest) = value.split_at_checked(end)?;
    let is_name = name.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_');
    let rest = match of {
        // A cookie is NAME=value too; a variable is written in capitals.
        Use::Header if name.iter().any(u8::is_ascii_lowercase) => rest.strip_prefix(b": ")?,
        _ => rest.strip_prefix(b"=").or_else(|| rest.strip_prefix(b": "))?,
    };
    (is_name && rest.iter().any(|byte| *byte != b'=')).then_some(rest)
}

/// Whether it is base64 that `echo` was piped into: of printable text with a newline at its end.
fn holds_a_newline_in_base64(value: &[u8], of: Use) -> bool {
    let value = match of {
        Use::Header => value.strip_prefix(b"Basic ").unwrap_or(value),
        Use::Secret => value,
    };
    let Some(text) = decode(value) else { return false };
    let Some(text) = text.strip_suffix(b"\n") else { return false };
    text.len() >= 3 && text.iter().all(|byte| byte.is_ascii_graphic() || b" \r\n".contains(byte))
}

/// Strict base64 in the standard alphabet, padded.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0_u32, 0_u32);
    for byte in digits {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(digit)) & 0xfff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_came_off_its_way_is_named() {
        let utf16: Vec<u8> = "pulumi-webhook-test-secret".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked = [&b"\xff\xfe"[..], &utf16].concat();
        for (value, words) in [
            (&b"pulumi-webhook-test-secret\n"[..], "white space around"),
            (b" pulumi-webhook-test-secret", "white space around"),
            (b"pulumi-webhook-test-secret\t", "white space around"),
            ("pulumi-webhook-test-secret\u{a0}".as_bytes(), "white space around"),
            ("pulumi-webhook-test-secret\u{200b}".as_bytes(), "white space around"),
            ("pulumi-webhook\u{200b}-test-secret".as_bytes(), "invisible"),
            ("pulumi-webhook\u{a0}-test-secret".as_bytes(), "invisible"),
            ("pulumi-webhook-täst-secret".as_bytes(), "other than ASCII"),
            (b"\"pulumi-webhook-test-secret\"", "quotation marks"),
            (b"'pulumi-webhook-test-secret' ", "quotation marks"),
            ("“pulumi-webhook-test-secret”".as_bytes(), "quotation marks"),
            (b"\xef\xbb\xbfpulumi-webhook-test-secret", "byte order mark"),
            (&utf16, "UTF-16"),
            (&marked, "UTF-16"),
            (b"WEBHOOK_SECRET=pulumi-webhook-test-secret", "begins with a name"),
            (b"export secret=pulumi-webhook-test-secret", "begins with a name"),
            (b"secret: pulumi-webhook-test-secret", "begins with a name"),
            (b"cHVsdW1pLXdlYmhvb2stdGVzdC1zZWNyZXQK", "base64"),
            (b"pulumi-webhook\n-test-secret", "line break"),
            (b"pulumi-webhook\0-test-secret", "control character"),
            (b"pulumi-webhook\xff-test-secret", "not text"),
            (b"aaaaaaaaaaaaaaaa", "one character, repeated"),
            (b"                                ", "one character, repeated"),
        ] {
            let told = describe(value, Use::Secret).unwrap_or_default();
            assert!(told.contains(words), "{value:?}: {told}");
            assert!(!told.contains("pulumi"), "{told}");
        }
        for (value, words) in [
            (&b"Authorization: Bearer abc"[..], "begins with a name"),
            (b"TOKEN=abc", "begins with a name"),
            (b"Basic dXNlcjpwYXNzd29yZAo=", "base64"),
            (b"\xef\xbb\xbfBearer abc", "byte order mark"),
            (b"Bearer abc ", "white space"),
            ("Bearer\u{a0}abc".as_bytes(), "invisible"),
        ] {
            let told = describe(value, Use::Header).unwrap_or_default();
            assert!(told.contains(words), "{value:?}: {told}");
        }
    }

    #[test]
    fn good_ones_are_left_alone() {
        for value in [
            "pulumi-webhook-test-secret",
            "correct horse battery staple",
            "5f1c09e2b7a84d3600112233445566ff",
            "kJ8sdh3Kd83jdKDj38dKD83jdkf9kJ8sdh3Kd83jdKA=",
            "AAECAwQFBgcICQoLDA0ODw==",
            "whsec_kJ8sdh3Kd83jdKDj38dKD83jdkf9",
            "!\"§".get(..2).unwrap(),
        ] {
            assert_eq!(describe(value.as_bytes(), Use::Secret), None, "{value}");
        }
        for value in ["Bearer abc", "Basic dXNlcjpwYXNzd29yZA==", "session=abc; other=def", "a"] {
            assert_eq!(describe(value.as_bytes(), Use::Header), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn hex_base64_and_letters_are_never_odd(value in "[0-9a-f]{16,64}|[A-Za-z0-9_-]{16,64}") {
            let one = value.bytes().all(|byte| Some(byte) == value.bytes().next());
            prop_assert!(one || describe(value.as_bytes(), Use::Secret).is_none_or(|told| told.contains("base64")));
        }

        #[test]
        fn nothing_makes_it_panic(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            for of in [Use::Secret, Use::Header] {
                prop_assert!(describe(&value, of).is_none_or(|told| !told.is_empty()));
            }
        }
    }
}
