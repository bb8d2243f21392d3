//! Guesses at what the sender did otherwise: with the secret, with the body. Pure; trying them is another's work.

use zeroize::Zeroizing;

use super::{base64, encoding::Json, explain::Candidate};

/// A guess: what the sender did otherwise (nothing: as given), and what comes of it.
pub(super) struct Guess<B> {
    pub(super) otherwise: Vec<String>,
    pub(super) bytes: B,
}

/// What the sender's secret may be, and how many of these, at the front, are the secrets as given. No two are equal
/// (equal keys would be told apart by chance), none is empty.
pub(super) fn at_keys(candidates: &[Candidate]) -> (Vec<Guess<Zeroizing<Vec<u8>>>>, usize) {
    let mut guesses: Vec<Guess<Zeroizing<Vec<u8>>>> = Vec::new();
    let mut add = |otherwise: Vec<String>, bytes: Vec<u8>| {
        let bytes = Zeroizing::new(bytes);
        if !bytes.is_empty() && !guesses.iter().any(|guess| guess.bytes == bytes) {
            guesses.push(Guess { otherwise, bytes });
        }
        guesses.len()
    };
    let meant = candidates.first().map_or("", |candidate| candidate.label.as_str());
    let another = |index: usize, candidate: &Candidate| {
        let words = format!(
            "the signature was made with another secret: that of {}, not that of {meant}",
            candidate.label
        );
        if index == 0 { vec![] } else { vec![words] }
    };
    let mut given = 0;
    for (index, candidate) in candidates.iter().enumerate() {
        given = add(another(index, candidate), candidate.secret.as_key().to_vec());
    }
    for (index, candidate) in candidates.iter().enumerate() {
        let label = &candidate.label;
        let secret = candidate.secret.as_key();
        let mut guess = |words: String, bytes: Vec<u8>| {
            let mut otherwise = another(index, candidate);
            otherwise.push(words);
            add(otherwise, bytes);
        };
        let newline = "the sender's secret ends with a newline that is not part of it here: it was \
                       probably written by \
                       `echo`; set it again in Pulumi without one";
        guess(newline.into(), [secret, b"\n"].concat());
        guess(newline.into(), [secret, b"\r\n"].concat());
        guess(newline.into(), candidate.raw.to_vec());
        let without_newline = trim_end(secret, |c| matches!(c, b'\n' | b'\r'));
        guess(
            format!("the secret of {label} ends with a newline that the sender's has not"),
            without_newline.to_vec(),
        );
        let trimmed = secret.trim_ascii();
        guess(
            format!("the secret of {label} has white space around it that the sender's has not"),
            trimmed.to_vec(),
        );
        if let Some(inner) = unquoted(trimmed) {
            guess(
                format!("the secret of {label} has quotation marks around it that the sender's has not"),
                inner.to_vec(),
            );
        }
        for quote in [&b"\""[..], b"'"] {
            guess(
                format!("the sender's secret has quotation marks around it that the one of {label} has not"),
                [quote, secret, quote].concat(),
            );
        }
        if let Ok(bytes) = hex::decode(trimmed) {
            guess(hashed_as("hex", "decoded"), bytes);
        }
        if let Some((_, bytes)) = base64::decode(trimmed) {
            guess(hashed_as("base64", "decoded"), bytes);
        }
        guess(hashed_as("hex", "encoded"), hex::encode(secret).into());
        guess(hashed_as("base64", "encoded"), base64::encode(secret));
        guess(hashed_as("base64", "encoded, newline included,"), base64::encode(&[secret, b"\n"].concat()));
    }
    // HMAC fills short keys up with zero bytes, so this is the empty key, which `Secret` cannot be.
    add(vec!["the signature was made with an empty secret: the sender's secret was not set".into()], vec![0]);
    (guesses, given)
}

fn hashed_as(code: &str, done: &str) -> String {
    format!("the sender's key is the secret {code}-{done}: Pulumi uses the text of the secret as it stands")
}

/// What was signed instead of the given body, which comes first.
pub(super) fn at_bodies(body: &[u8]) -> impl Iterator<Item = Guess<Vec<u8>>> + '_ {
    let as_given = Guess { otherwise: vec![], bytes: body.to_vec() };
    let guess = |words: &str, bytes: Vec<u8>| {
        (bytes != body).then(|| Guess { otherwise: vec![words.to_owned()], bytes })
    };
    let missing = "the body lacks a newline at its end that was there when it was signed";
    let added = "the body has a newline at its end that was not there when it was signed: an editor or \
                 `echo` added it";
    let lines = "the line ends of the body were converted between LF and CRLF after it was signed";
    let unix = replace_all(body, b"\r\n", b"\n");
    let simple = [
        guess(missing, [body, b"\n"].concat()),
        guess(missing, [body, b"\r\n"].concat()),
        guess(added, trim_one_newline(body).to_vec()),
        guess(added, trim_end(body, |c| matches!(c, b'\n' | b'\r')).to_vec()),
        guess(
            "the body has white space around it that was not there when it was signed",
            body.trim_ascii().to_vec(),
        ),
        guess(lines, replace_all(&unix, b"\n", b"\r\n")),
        guess(lines, unix),
        body.strip_prefix(b"\xef\xbb\xbf").and_then(|rest| {
            guess(
                "the body begins with a byte order mark that was not there when it was signed",
                rest.to_vec(),
            )
        }),
        base64::decode(body).and_then(|(_, bytes)| {
            guess("the body is base64-encoded: a gateway between Pulumi and here wrapped it", bytes)
        }),
        first_value(body).and_then(|value| {
            guess("behind the JSON value the body goes on with bytes that were not signed", value.to_vec())
        }),
        guess("it is the signature of the empty body: whoever signed had nothing in hand", vec![]),
    ];
    std::iter::once(as_given).chain(simple.into_iter().flatten()).chain(encodings(body))
}

/// The JSON of the body in the styles of common libraries.
fn encodings(body: &[u8]) -> impl Iterator<Item = Guess<Vec<u8>>> + use<> {
    let parsed = Json::parse(body).ok();
    let inner = match &parsed {
        Some(Json::Text(text)) => Some(Guess {
            otherwise: vec![
                "the body was re-encoded: it is a JSON string that holds the signed JSON".to_owned(),
            ],
            bytes: text.clone().into_bytes(),
        }),
        _ => None,
    };
    let styles = parsed.into_iter().flat_map(|json| {
        // The styles borrow the value, which moves along with them only when they are collected.
        json.styles().collect::<Vec<_>>()
    });
    let guesses = styles.flat_map(|(style, bytes)| {
        let words = format!(
            "the body was re-encoded: the signature fits it {style}. Something on the way parsed it and \
             wrote it anew; verify the bytes as received"
        );
        let with_newline = Guess {
            otherwise: vec![format!("{words}, with a newline at the end")],
            bytes: [&bytes, &b"\n"[..]].concat(),
        };
        [Guess { otherwise: vec![words], bytes }, with_newline]
    });
    inner.into_iter().chain(guesses)
}

/// The beginning of a body that is one JSON value, where something follows it.
fn first_value(body: &[u8]) -> Option<&[u8]> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<serde::de::IgnoredAny>();
    values.next()?.ok()?;
    body.get(..values.byte_offset())
}

fn trim_end(bytes: &[u8], unwanted: impl Fn(u8) -> bool) -> &[u8] {
    let end = bytes.iter().rposition(|c| !unwanted(*c)).map_or(0, |last| last + 1);
    bytes.get(..end).unwrap_or_default()
}

pub(super) fn trim_one_newline(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).unwrap_or(bytes)
}

fn unquoted(bytes: &[u8]) -> Option<&[u8]> {
    [b"\"", b"'", b"`"].into_iter().find_map(|quote| bytes.strip_prefix(quote)?.strip_suffix(quote))
}

fn replace_all(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, others)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(from) {
            replaced.extend_from_slice(to);
            rest = behind;
        } else {
            replaced.push(*first);
            rest = others;
        }
    }
    replaced
}
