//! What a text that should be a signature is: its 32 bytes where they can be made out, and what is wrong with its
//! form.

use super::base64::{self, Alphabet};

/// The bytes of an HMAC-SHA256.
pub(super) type Tag = [u8; 32];

/// What could be made out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// The signature's bytes.
    pub(super) tag: Option<Tag>,
    /// What is wrong with the form.
    pub(super) mistakes: Vec<String>,
}

/// What senders of other services put before the digits.
const PREFIXES: [&str; 11] =
    ["sha256=", "sha256:", "sha-256=", "hmac-sha256=", "sha512=", "sha1=", "md5=", "v0=", "v1=", "v1,", "0x"];

/// The header's own name, where the whole line was copied.
const HEADER: &str = "pulumi-webhook-signature:";

/// Reads a signature that need not be one.
pub(super) fn read(given: &str) -> Reading {
    let mut reading = Reading::default();
    let text = reading.peel(given);
    if text.is_empty() {
        reading.mistakes.push("the signature is empty".into());
        return reading;
    }
    if text.bytes().all(|c| c.is_ascii_hexdigit()) {
        reading.read_hex(text);
    } else {
        reading.read_base64(text);
    }
    reading
}

impl Reading {
    /// Takes off what stands around the digits.
    fn peel<'t>(&mut self, given: &'t str) -> &'t str {
        let mut text = given;
        loop {
            let before = text;
            text = text.trim();
            if text != before {
                self.mistakes.push("the signature has white space around it".into());
            }
            for quote in ['"', '\'', '`'] {
                if let Some(inner) = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)) {
                    self.mistakes.push("the signature has quotation marks around it".into());
                    text = inner;
                }
            }
            if let Some(value) = strip_prefix_any_case(text, HEADER) {
                self.mistakes.push("the name of the header stands before the signature".into());
                text = value;
            }
            for prefix in PREFIXES {
                if let Some(digits) = strip_prefix_any_case(text, prefix) {
                    self.mistakes.push(format!(
                        "the signature begins with `{prefix}`, as those of other services do: Pulumi sends \
                         the 64 hex digits alone"
                    ));
                    text = digits;
                }
            }
            // openssl dgst prints `HMAC-SHA2-256(body.json)= 7e94…`, with -r `7e94… *body.json`.
            if let Some((_, digits)) = text.rsplit_once(")= ").or_else(|| text.rsplit_once("stdin= ")) {
                self.mistakes.push("the label that openssl prints stands before the signature".into());
                text = digits;
            }
            if let Some((digits, _)) = text.split_once(' ')
                && digits.len() == 64
            {
                self.mistakes.push("a file's name stands behind the signature".into());
                text = digits;
            }
            if text == before {
                return text;
            }
        }
    }

    fn read_hex(&mut self, text: &str) {
        let mut tag = Tag::default();
        if hex::decode_to_slice(text, &mut tag).is_ok() {
            self.tag = Some(tag);
            return;
        }
        let digits = text.len();
        self.mistakes.push(match digest_of(digits / 2).filter(|_| digits.is_multiple_of(2)) {
            Some(name) => format!(
                "the signature has {digits} hex digits, which is {name}: Pulumi signs with HMAC-SHA256, \
                 64 digits"
            ),
            None if digits < 64 => format!("the signature is cut off: it has {digits} hex digits of 64"),
            None => format!("the signature is too long: it has {digits} hex digits instead of 64"),
        });
    }

    fn read_base64(&mut self, text: &str) {
        let Some((alphabet, bytes)) = base64::decode(text.as_bytes()) else {
            self.mistakes.push("the signature is neither hex nor base64".into());
            return;
        };
        let alphabet = match alphabet {
            Alphabet::Either => "base64",
            Alphabet::Standard => "base64 (standard alphabet)",
            Alphabet::UrlSafe => "base64 (URL-safe alphabet)",
        };
        let mut from_hex = Tag::default();
        if let Ok(tag) = Tag::try_from(bytes.as_slice()) {
            self.tag = Some(tag);
            self.mistakes.push(format!("the signature is {alphabet}: Pulumi sends 64 hex digits"));
        } else if hex::decode_to_slice(&bytes, &mut from_hex).is_ok() {
            self.tag = Some(from_hex);
            self.mistakes.push(format!(
                "the signature is the {alphabet} of the hex digits: Pulumi sends the digits themselves"
            ));
        } else if let Some(name) = digest_of(bytes.len()) {
            self.mistakes.push(format!(
                "the signature is {alphabet} of {} bytes, which is {name}: Pulumi signs with HMAC-SHA256 \
                 and sends 64 hex digits",
                bytes.len()
            ));
        } else {
            self.mistakes.push(format!(
                "the signature is neither 64 hex digits nor the base64 of 32 bytes: read as base64 it has {}",
                bytes.len()
            ));
        }
    }
}

/// The hash functions whose digest has so many bytes.
const fn digest_of(bytes: usize) -> Option<&'static str> {
    match bytes {
        16 => Some("the length of MD5"),
        20 => Some("the length of SHA-1"),
        28 => Some("the length of SHA-224"),
        48 => Some("the length of SHA-384"),
        64 => Some("the length of SHA-512"),
        _ => None,
    }
}

fn strip_prefix_any_case<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "7e94921ff44f9b3ce0f9b9ca9486e7a57835880cec293f9ee0b9cbb71a1ba436";

    fn tag() -> Tag {
        let mut tag = Tag::default();
        hex::decode_to_slice(HEX, &mut tag).unwrap();
        tag
    }

    fn assert_reads(given: &str, words: &str) {
        let reading = read(given);
        assert_eq!(reading.tag, Some(tag()), "{given:?}: {:?}", reading.mistakes);
        assert!(
            reading.mistakes.iter().any(|mistake| mistake.contains(words)),
            "{given:?}: {:?}",
            reading.mistakes
        );
    }

    #[test]
    fn hex_of_either_case_is_right() {
        for given in [HEX.to_owned(), HEX.to_uppercase()] {
            assert_eq!(read(&given), Reading { tag: Some(tag()), mistakes: vec![] });
        }
    }

    #[test]
    fn what_stands_around_the_digits_is_named() {
        assert_reads(&format!(" {HEX}\n"), "white space");
        assert_reads(&format!("\"{HEX}\""), "quotation marks");
        assert_reads(&format!("sha256={HEX}"), "`sha256=`");
        assert_reads(&format!("SHA256={HEX}"), "`sha256=`");
        assert_reads(&format!("v1={HEX}"), "`v1=`");
        assert_reads(&format!("0x{HEX}"), "`0x`");
        assert_reads(&format!("Pulumi-Webhook-Signature: {HEX}"), "name of the header");
        assert_reads(&format!("Pulumi-Webhook-Signature: sha256={HEX}"), "`sha256=`");
        assert_reads(&format!("HMAC-SHA2-256(body.json)= {HEX}"), "openssl");
        assert_reads(&format!("SHA2-256(stdin)= {HEX}"), "openssl");
        assert_reads(&format!("{HEX} *body.json"), "file's name");
    }

    #[test]
    fn base64_is_told_by_its_alphabet() {
        let standard = String::from_utf8(base64::encode(&tag())).unwrap();
        assert!(standard.contains('/') && standard.contains('+') && standard.ends_with('='), "{standard}");
        let url_safe = standard.replace('+', "-").replace('/', "_");
        assert_reads(&standard, "base64 (standard alphabet)");
        assert_reads(standard.trim_end_matches('='), "base64 (standard alphabet)");
        assert_reads(&url_safe, "base64 (URL-safe alphabet)");
        assert_reads(&format!("sha256={standard}"), "base64");
        let of_digits = String::from_utf8(base64::encode(HEX.as_bytes())).unwrap();
        assert_reads(&of_digits, "base64 of the hex digits");
    }

    #[test]
    fn other_digests_are_told_by_their_length() {
        let wrong = |given: &str, words: &str| {
            let reading = read(given);
            assert_eq!(reading.tag, None, "{given}");
            assert!(reading.mistakes.iter().any(|m| m.contains(words)), "{given}: {:?}", reading.mistakes);
        };
        wrong(&"ab".repeat(16), "MD5");
        wrong(&"ab".repeat(20), "SHA-1");
        wrong(&format!("sha1={}", "ab".repeat(20)), "SHA-1");
        wrong(&"ab".repeat(48), "SHA-384");
        wrong(&"ab".repeat(64), "SHA-512");
        wrong(&String::from_utf8(base64::encode(&[0xfb; 20])).unwrap(), "SHA-1");
        wrong(&String::from_utf8(base64::encode(&[0xfb; 64])).unwrap(), "SHA-512");
        wrong(HEX.split_at(60).0, "cut off: it has 60 hex digits of 64");
        wrong(HEX.split_at(63).0, "cut off");
        wrong(&format!("{HEX}00"), "too long");
        wrong("", "empty");
        wrong("  ", "empty");
        wrong("sha256=", "empty");
        wrong("not a signature!", "neither hex nor base64");
        wrong("bm90", "neither 64 hex digits nor the base64 of 32 bytes");
    }

    proptest! {
        #[test]
        fn any_text_is_read(given in ".{0,100}") {
            read(&given);
        }
    }
}
