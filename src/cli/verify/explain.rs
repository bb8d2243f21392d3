//! The likely mistake behind a signature that does not fit, found by trying.
//!
//! Mistakes happen in three places: the form of the signature, the secret, the body. The first is read off; the
//! other two are guessed and checked together, so that two mistakes at once are found as well. Pure: no I/O, and
//! no secret and no right signature in what it says.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{
    encoding::Json,
    guess::{self, Candidate, Guess, trim_one_newline},
    reading::{self, Tag},
};
use crate::webhook::{
    secret::Secret,
    signature::{Key, Signature, Verifier},
};

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Explanation {
    mistakes: Vec<String>,
    /// Whether the signature is right apart from the mistakes.
    fits: bool,
    /// What else can be done.
    next: Vec<String>,
}

impl Explanation {
    /// For printing.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> =
            self.mistakes.iter().map(|mistake| format!("  likely mistake: {mistake}")).collect();
        if self.fits {
            lines.push("  apart from that the signature fits".into());
            return lines;
        }
        if self.mistakes.is_empty() {
            lines.push("  no likely mistake found".into());
        }
        lines.extend(self.next.iter().map(|next| format!("  {next}")));
        lines
    }
}

/// Bodies up to this length are tried with every guess at the secret; longer ones with the secrets as given.
const EVERY_PAIR: usize = 64 << 10;

const TRIED: &str = "\
tried: base64 and prefixed signatures; every secret given, with and without newline, white space, quotes, byte \
order mark, invisible characters and NAME=, from UTF-16, hex- and base64-decoded; the body with and without newline, with \
other line ends, from a form, re-encoded JSON; hashes without a key";

/// Looks for the likely mistake in a signature that does not fit.
pub(super) fn explain(candidates: &[Candidate], body: &[u8], signature: &str) -> Explanation {
    let reading = reading::read(signature);
    let mut explanation = Explanation { mistakes: reading.mistakes, ..Explanation::default() };
    let Some(tag) = reading.tag else {
        explanation
            .next
            .push("the header carries exactly 64 hex digits: compare with `hookgate sign`".into());
        return explanation;
    };
    if let Some(found) = search(candidates, body, &tag) {
        explanation.mistakes.extend(found);
        explanation.fits = true;
    } else if let Some(found) = other_digest(candidates, body, &tag) {
        explanation.mistakes.push(found);
    } else {
        match judge_body(body) {
            Remark::Mistake(mistake) => explanation.mistakes.push(mistake),
            Remark::Next(next) => explanation.next.push(next),
        }
        explanation.next.push(TRIED.into());
        explanation.next.push(
            "check next: that this is the secret of this very webhook in Pulumi (it may have been \
             changed), and that the body is the bytes as received, before any framework read them"
                .into(),
        );
    }
    explanation
}

/// Tries guesses at the secret with guesses at the body. `Some`: what was done otherwise.
fn search(candidates: &[Candidate], body: &[u8], tag: &Tag) -> Option<Vec<String>> {
    let signature = Signature::parse(hex::encode(tag).as_bytes()).ok()?;
    let (keys, given) = guess::at_keys(candidates);
    let every = Verifier::new(keys.iter().filter_map(key).collect());
    let given = Verifier::new(keys.iter().take(given).filter_map(key).collect());

    for guess in guess::at_bodies(body) {
        let cheap = guess.otherwise.is_empty() || guess.bytes.len() <= EVERY_PAIR;
        let verifier = if cheap { &every } else { &given };
        if let Ok(verified) = verifier.verify(guess.bytes.into(), &signature, UNIX_EPOCH) {
            let of_key = keys.get(verified.key).into_iter().flat_map(|key| key.otherwise.iter().cloned());
            return Some(of_key.chain(guess.otherwise).collect());
        }
    }
    None
}

fn key(guess: &Guess<Zeroizing<Vec<u8>>>) -> Option<Key> {
    let secret = Secret::try_new(guess.bytes.to_vec(), true).ok()?;
    Some(Key::new(String::new(), &secret, None))
}

/// Digests that are not HMAC-SHA256 of the body under the secret, and have its length.
fn other_digest(candidates: &[Candidate], body: &[u8], tag: &Tag) -> Option<String> {
    let is = |parts: &[&[u8]]| {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        bool::from(hash.finalize().ct_eq(tag))
    };
    for body in [body, trim_one_newline(body), &[body, b"\n"].concat()] {
        if is(&[body]) {
            return Some(
                "the signature is the plain SHA-256 of the body, made without any secret: what is needed \
                 is HMAC-SHA256 keyed with it"
                    .into(),
            );
        }
        for candidate in candidates {
            let secret = candidate.secret.as_key();
            if is(&[secret, body]) || is(&[body, secret]) {
                return Some(format!(
                    "the signature is the plain SHA-256 of the body and the secret of {} put together: \
                     what is needed is HMAC-SHA256",
                    candidate.label
                ));
            }
            if swapped(secret, body, tag) {
                return Some(
                    "the secret and the body were swapped: the signature is the HMAC of the secret, keyed \
                     with the body"
                        .into(),
                );
            }
        }
    }
    None
}

fn swapped(secret: &[u8], body: &[u8], tag: &Tag) -> bool {
    let (Ok(key), Ok(signature)) =
        (Secret::try_new(body.to_vec(), true), Signature::parse(hex::encode(tag).as_bytes()))
    else {
        return false;
    };
    let verifier = Verifier::new(vec![Key::new(String::new(), &key, None)]);
    verifier.verify(Bytes::copy_from_slice(secret), &signature, UNIX_EPOCH).is_ok()
}

enum Remark {
    Mistake(String),
    Next(String),
}

/// What a body that fits nothing looks like.
fn judge_body(body: &[u8]) -> Remark {
    if body.is_empty() {
        return Remark::Mistake("the body is empty: it was lost or already read before it was saved".into());
    }
    match Json::parse(body) {
        Err(error) if error.is_eof() => Remark::Mistake(format!(
            "the body is truncated: its JSON stops after {} bytes before it is complete. Whether the \
             signature fits the whole body cannot be told from this part",
            body.len()
        )),
        Err(_) if body.starts_with(b"payload=") => Remark::Mistake(
            "the body is a form (`payload=…`) and not JSON, which Pulumi always sends: something on the way wrapped it, or \
             the sender is another"
                .into(),
        ),
        Err(_) => Remark::Mistake(
            "the body is not JSON, which Pulumi always sends: it was altered or is another file".into(),
        ),
        Ok(json) if json.styles().next().is_some_and(|(_, compact)| compact == body) => Remark::Next(
            "the body is complete, compact JSON as Pulumi sends it: rather the secret is another than the \
             body altered"
                .into(),
        ),
        Ok(_) => Remark::Next(
            "the body is complete JSON, but not in the compact form that Pulumi sends: it may have been \
             re-encoded in a way that cannot be undone"
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::base64, *};
    use crate::webhook::{event::Event, signature::sign};

    const SECRET: &str = "pulumi-webhook-test-secret";

    fn candidate(label: &str, raw: &[u8]) -> Candidate {
        let secret = Secret::from_content(raw.to_vec(), true).unwrap();
        Candidate { label: label.into(), secret, raw: Zeroizing::new(raw.to_vec()) }
    }

    fn key_of(bytes: impl AsRef<[u8]>) -> Secret {
        Secret::try_new(bytes.as_ref().to_vec(), true).unwrap()
    }

    fn body() -> String {
        Event::find("ping").unwrap().sample_body()
    }

    /// Explains, and checks that neither the secret nor the right signature is said.
    fn explained(secrets: &[&[u8]], body: &[u8], signature: &str) -> (String, bool) {
        let candidates: Vec<_> = secrets
            .iter()
            .enumerate()
            .map(|(index, raw)| candidate(&format!("--secret-file s{index}"), raw))
            .collect();
        let explanation = explain(&candidates, body, signature);
        let text = explanation.lines().join("\n");
        for candidate in &candidates {
            let secret = String::from_utf8_lossy(candidate.secret.as_key()).trim().to_owned();
            assert!(!text.contains(&secret), "{text}");
            assert!(!text.contains(&sign(&candidate.secret, body)), "{text}");
        }
        (text, explanation.fits)
    }

    #[track_caller]
    fn assert_found(secrets: &[&[u8]], body: impl AsRef<[u8]>, signature: &str, words: &str) {
        let (text, fits) = explained(secrets, body.as_ref(), signature);
        assert!(fits && text.contains(words), "wanted {words:?} in\n{text}");
    }

    #[test]
    fn the_form_of_the_signature() {
        let right = sign(&key_of(SECRET), body().as_bytes());
        let base64 = String::from_utf8(base64::encode(&hex::decode(&right).unwrap())).unwrap();
        let url_safe = base64.replace('+', "-").replace('/', "_").replace('=', "");
        for (given, words) in [
            (base64.clone(), "base64"),
            (url_safe, "base64"),
            (format!("sha256={right}"), "sha256="),
            (format!("sha256={base64}"), "base64"),
            (format!(" {right} "), "white space"),
        ] {
            assert_found(&[SECRET.as_bytes()], body(), &given, words);
        }
        assert!(explained(&[SECRET.as_bytes()], body().as_bytes(), &"ab".repeat(20)).0.contains("SHA-1"));
        assert!(explained(&[SECRET.as_bytes()], body().as_bytes(), &"ab".repeat(64)).0.contains("SHA-512"));
    }

    #[test]
    fn a_wrong_form_of_a_wrong_signature_does_not_fit() {
        let wrong = String::from_utf8(base64::encode(&[0x5a; 32])).unwrap();
        let (text, fits) = explained(&[SECRET.as_bytes()], body().as_bytes(), &wrong);
        assert!(!fits && text.contains("base64") && !text.contains("apart from that"), "{text}");
    }

    #[test]
    fn the_secret() {
        let signed = |key: &[u8]| sign(&key_of(key), body().as_bytes());
        let secret = SECRET.as_bytes();
        let cases: &[(&[u8], &[u8], &str)] = &[
            // given, the sender's, words
            (secret, b"pulumi-webhook-test-secret\n", "newline"),
            (secret, b"pulumi-webhook-test-secret\r\n", "newline"),
            (b"pulumi-webhook-test-secret\n", b"pulumi-webhook-test-secret\n", "newline"),
            (b"pulumi-webhook-test-secret\n\n", secret, "newline"),
            (b"pulumi-webhook-test-secret\n\n", b"pulumi-webhook-test-secret\n\n", "newline"),
            (b" pulumi-webhook-test-secret ", secret, "white space"),
            (b"\"pulumi-webhook-test-secret\"\n", secret, "quotation marks"),
            (b"'pulumi-webhook-test-secret'", secret, "quotation marks"),
            (secret, b"\"pulumi-webhook-test-secret\"", "quotation marks"),
            (
                b"00112233445566778899aabbccddeeff",
                &hex::decode("00112233445566778899aabbccddeeff").unwrap(),
                "hex-decoded",
            ),
            (&base64::encode(secret), secret, "base64-decoded"),
            (secret, &base64::encode(secret), "base64-encoded"),
            (secret, &base64::encode(b"pulumi-webhook-test-secret\n"), "base64-encoded"),
            (secret, &hex::encode(secret).into_bytes(), "hex-encoded"),
            (secret, b"pulumi-webhook-test-secret ", "a space at its end"),
            (secret, b" pulumi-webhook-test-secret", "a space before it"),
            (secret, "pulumi-webhook-test-secret\u{a0}".as_bytes(), "no-break space at its end"),
            (b"\xef\xbb\xbfpulumi-webhook-test-secret\n", secret, "byte order mark"),
            (b"WEBHOOK_SECRET=pulumi-webhook-test-secret\n", secret, "NAME=value"),
            (b"export WEBHOOK_SECRET=\"pulumi-webhook-test-secret\"\n", secret, "NAME=value"),
            (b"export WEBHOOK_SECRET=\"pulumi-webhook-test-secret\"\n", secret, "quotation marks"),
            ("pulumi-webhook-test-secret\u{a0}".as_bytes(), secret, "invisible"),
            ("pulumi-webhook\u{200b}-test-secret".as_bytes(), secret, "invisible"),
            (&base64::encode(b"pulumi-webhook-test-secret\n"), secret, "newline"),
            (&base64::encode(b"pulumi-webhook-test-secret\n"), secret, "base64-decoded"),
            (&utf16(false, false), secret, "UTF-16"),
            (&utf16(true, false), secret, "UTF-16"),
            (&utf16(true, true), secret, "UTF-16"),
        ];
        for (given, senders, words) in cases {
            assert_found(&[*given], body(), &signed(senders), words);
        }
        let unkeyed = explained(&[secret], body().as_bytes(), &signed(&[0])).0;
        assert!(unkeyed.contains("empty secret"), "{unkeyed}");
    }

    /// The secret as PowerShell writes it, with a newline at its end.
    fn utf16(marked: bool, big: bool) -> Vec<u8> {
        let mark = if marked { "\u{feff}" } else { "" };
        let units = format!("{mark}{SECRET}\r\n").encode_utf16().collect::<Vec<_>>();
        units.into_iter().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
    }

    #[test]
    fn forms_instead_of_json() {
        let json = r#"{"a":"b c","d":[1]}"#;
        let sign = |body: &str| sign(&key_of(SECRET), body.as_bytes());
        let form = "payload=%7B%22a%22%3A%22b+c%22%2C%22d%22%3A%5B1%5D%7D";
        assert_found(&[SECRET.as_bytes()], form, &sign(json), "is a form");
        assert_found(&[SECRET.as_bytes()], format!("{form}&x=y"), &sign(json), "is a form");
        assert_found(&[SECRET.as_bytes()], json, &sign(form), "signed is a form");
        let other = form.replace('+', "%20");
        assert_found(&[SECRET.as_bytes()], json, &sign(&other), "signed is a form");
        let (text, fits) = explained(&[SECRET.as_bytes()], form.as_bytes(), &"0".repeat(64));
        assert!(!fits && text.contains("is a form"), "{text}");
        assert!(!explained(&[SECRET.as_bytes()], b"payload=%7", &"0".repeat(64)).1);
    }

    #[test]
    fn another_secret_of_the_set() {
        let signature = sign(&key_of("the-old-secret-of-last-year"), body().as_bytes());
        let set: [&[u8]; 3] =
            [SECRET.as_bytes(), b"a-third-secret-nobody-uses", b"the-old-secret-of-last-year\n"];
        assert_found(
            &set,
            body(),
            &signature,
            "another secret: that of --secret-file s2, not that of --secret-file s0",
        );
        let signature = sign(&key_of("the-old-secret-of-last-year\n"), body().as_bytes());
        assert_found(&set, body(), &signature, "another secret");
        assert_found(&set, body(), &signature, "newline");
    }

    #[test]
    fn white_space_around_the_body() {
        let sign = |body: &[u8]| sign(&key_of(SECRET), body);
        let secret: [&[u8]; 1] = [SECRET.as_bytes()];
        let body = body();
        assert_found(&secret, format!("{body}\n"), &sign(body.as_bytes()), "has a newline");
        assert_found(&secret, format!("{body}\r\n"), &sign(body.as_bytes()), "has a newline");
        assert_found(&secret, format!("{body}\n\n"), &sign(body.as_bytes()), "has a newline");
        assert_found(&secret, &body, &sign(format!("{body}\n").as_bytes()), "lacks a newline");
        assert_found(&secret, &body, &sign(format!("{body}\r\n").as_bytes()), "lacks a newline");
        assert_found(&secret, format!(" {body}"), &sign(body.as_bytes()), "white space");
        assert_found(&secret, "{\r\n\"a\":1\r\n}", &sign(b"{\n\"a\":1\n}"), "line ends");
        assert_found(&secret, "{\n\"a\":1\n}", &sign(b"{\r\n\"a\":1\r\n}"), "line ends");
        assert_found(&secret, format!("\u{feff}{body}"), &sign(body.as_bytes()), "byte order mark");
        assert_found(&secret, format!("{body}--boundary--"), &sign(body.as_bytes()), "after the JSON value");
        assert_found(&secret, &body, &sign(b""), "empty body");
    }

    #[test]
    fn re_encoded_bodies() {
        let sent = r#"{"message":"🍹 <ping> & more","b":{"a":[1,2]},"a":null}"#;
        let signature = sign(&key_of(SECRET), sent.as_bytes());
        for received in [
            r#"{"message": "🍹 <ping> & more", "b": {"a": [1, 2]}, "a": null}"#,
            r#"{"message": "\ud83c\udf79 <ping> & more", "b": {"a": [1, 2]}, "a": null}"#,
            r#"{"message":"🍹 \u003cping\u003e \u0026 more","b":{"a":[1,2]},"a":null}"#,
            "{\n  \"message\": \"🍹 <ping> & more\",\n  \"b\": {\"a\": [1, 2]},\n  \"a\": null\n}\n",
            &serde_json::to_string(sent).unwrap(),
        ] {
            assert_found(&[SECRET.as_bytes()], received, &signature, "re-encoded");
        }
        let wrapped = base64::encode(sent.as_bytes());
        assert_found(&[SECRET.as_bytes()], wrapped, &signature, "base64");
    }

    #[test]
    fn bodies_that_were_signed_in_another_form() {
        let given = r#"{"b":"é<","a":[1,2]}"#;
        for (sent, words) in [
            ("{\"b\": \"é<\", \"a\": [1, 2]}", "Python"),
            ("{\"b\": \"\\u00e9<\", \"a\": [1, 2]}", "beyond ASCII"),
            ("{\"b\":\"é\\u003c\",\"a\":[1,2]}", "Go"),
            ("{\"a\":[1,2],\"b\":\"é<\"}", "sorted"),
            ("{\n  \"b\": \"é<\",\n  \"a\": [\n    1,\n    2\n  ]\n}", "two spaces"),
            ("{\n    \"b\": \"é<\",\n    \"a\": [\n        1,\n        2\n    ]\n}\n", "four spaces"),
        ] {
            let signature = sign(&key_of(SECRET), sent.as_bytes());
            assert_found(&[SECRET.as_bytes()], given, &signature, "re-encoded");
            assert_found(&[SECRET.as_bytes()], given, &signature, words);
        }
    }

    #[test]
    fn sorted_members_are_put_back_into_pulumis_order() {
        let sent = Event::find("environment_revision_created").unwrap().sample_body();
        let sorted: serde_json::Value = serde_json::from_str(&sent).unwrap();
        let received = serde_json::to_string_pretty(&sorted).unwrap();
        assert_ne!(received.replace(['\n', ' '], ""), sent.replace(' ', ""));
        assert_found(
            &[SECRET.as_bytes()],
            received,
            &sign(&key_of(SECRET), sent.as_bytes()),
            "Pulumi's order",
        );
    }

    #[test]
    fn two_mistakes_at_once() {
        let signature = sign(&key_of(format!("{SECRET}\n")), body().as_bytes());
        let base64 = String::from_utf8(base64::encode(&hex::decode(signature).unwrap())).unwrap();
        let received = format!("{}\n", body());
        for words in ["base64", "the sender's secret ends with a newline", "the body has a newline"] {
            assert_found(&[SECRET.as_bytes()], &received, &base64, words);
        }
    }

    #[test]
    fn hashes_without_a_key() {
        let body = body();
        let digest = |parts: &[&str]| {
            let mut hash = Sha256::new();
            parts.iter().for_each(|part| hash.update(part));
            hex::encode(hash.finalize())
        };
        for (signature, words) in [
            (digest(&[&body]), "plain SHA-256 of the body, made without any secret"),
            (digest(&[&body, "\n"]), "plain SHA-256 of the body, made without any secret"),
            (digest(&[SECRET, &body]), "put together"),
            (digest(&[&body, SECRET]), "put together"),
            (sign(&key_of(&body), SECRET.as_bytes()), "swapped"),
        ] {
            let (text, _) = explained(&[SECRET.as_bytes()], body.as_bytes(), &signature);
            assert!(text.contains(words), "wanted {words:?} in\n{text}");
        }
    }

    #[test]
    fn truncated_bodies_are_told_although_nothing_can_be_tried() {
        let whole = body();
        let signature = sign(&key_of(SECRET), whole.as_bytes());
        for len in 1..whole.len() {
            let (text, fits) = explained(&[SECRET.as_bytes()], &whole.as_bytes()[..len], &signature);
            assert!(!fits && text.contains("truncated"), "{len}: {text}");
        }
    }

    #[test]
    fn where_nothing_fits_it_says_what_was_tried() {
        let wrong = "0".repeat(64);
        for (body, words) in [
            (body(), "rather the secret is another"),
            ("{ \"a\": 1 }".into(), "not in the compact form"),
            ("a=1&b=2".into(), "not JSON"),
            (String::new(), "the body is empty"),
        ] {
            let (text, fits) = explained(&[SECRET.as_bytes()], body.as_bytes(), &wrong);
            assert!(
                !fits && text.contains(words) && text.contains("tried:") && text.contains("check next:"),
                "{text}"
            );
        }
    }

    /// A large body is tried with fewer guesses, not with none.
    #[test]
    fn large_bodies() {
        let sent = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
        let received = sent.replace(':', ": ");
        assert_found(
            &[b"another-secret-altogether", SECRET.as_bytes()],
            received,
            &sign(&key_of(SECRET), sent.as_bytes()),
            "re-encoded",
        );
    }
}
