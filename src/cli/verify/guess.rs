//! Guesses at what the sender did otherwise: with the secret, with the body. Pure; trying them is another's work.

use zeroize::Zeroizing;

use super::{base64, encoding::Json};
use crate::webhook::{mangled, secret::Secret};

/// A secret that was given. The first is meant, the others might be.
#[derive(Debug)]
pub(super) struct Candidate {
    /// The option that named it.
    pub(super) label: String,
    /// What hookgate takes for the secret.
    pub(super) secret: Secret,
    /// The bytes of its source.
    pub(super) raw: Zeroizing<Vec<u8>>,
}

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
        for (words, more) in [
            ("a space at its end", [secret, b" "].concat()),
            ("a space before it", [b" ", secret].concat()),
            ("a tab at its end", [secret, b"\t"].concat()),
            ("a no-break space at its end", [secret, "\u{a0}".as_bytes()].concat()),
            ("a zero-width space at its end", [secret, "\u{200b}".as_bytes()].concat()),
            ("a byte order mark before it", [mangled::MARK, secret].concat()),
        ] {
            guess(
                format!(
                    "the sender's secret has {words} that is not part of it here: set it again in Pulumi without it"
                ),
                more,
            );
        }
        for (words, bytes) in mended(secret, label) {
            add([another(index, candidate), words].concat(), bytes);
        }
        let mut guess = |words: String, bytes: Vec<u8>| {
            let mut otherwise = another(index, candidate);
            otherwise.push(words);
            add(otherwise, bytes);
        };
        for quote in [&b"\""[..], b"'"] {
            guess(
                format!(
                    "the sender's secret has quotation marks around it that the secret of {label} does not have"
                ),
                [quote, secret, quote].concat(),
            );
        }
        guess(hashed_as("hex", "encoded"), hex::encode(secret).into());
        guess(hashed_as("base64", "encoded"), base64::encode(secret));
        guess(hashed_as("base64", "encoded, newline included,"), base64::encode(&[secret, b"\n"].concat()));
    }
    // HMAC fills short keys up with zero bytes, so this is the empty key, which `Secret` cannot be.
    add(vec!["the signature was made with an empty secret: the sender's secret was not set".into()], vec![0]);
    (guesses, given)
}

/// What the secret may have been before it was damaged on its way here, with what was done to it. Several things at once
/// are tried too, the simplest first.
fn mended(secret: &[u8], label: &str) -> Vec<(Vec<String>, Vec<u8>)> {
    /// How many things at once.
    const DEPTH: usize = 3;
    /// How many guesses for a secret.
    const MOST: usize = 60;

    let mut found: Vec<(Vec<String>, Vec<u8>)> = vec![(Vec::new(), secret.to_vec())];
    let mut from = 0;
    while let Some((words, bytes)) = found.get(from).cloned() {
        if words.len() == DEPTH || found.len() >= MOST {
            break;
        }
        for (what, mended) in steps(&bytes, label) {
            if !mended.is_empty() && !found.iter().any(|(_, known)| *known == mended) {
                found.push((words.iter().cloned().chain([what]).collect(), mended));
            }
        }
        from += 1;
    }
    found.remove(0);
    found
}

/// One thing undone.
fn steps(secret: &[u8], label: &str) -> Vec<(String, Vec<u8>)> {
    let trimmed = secret.trim_ascii();
    let of_ours = |what: &str| format!("the secret of {label} {what} that the sender's does not have");
    let visible = str::from_utf8(secret)
        .ok()
        .map(|text| text.chars().filter(|c| !mangled::is_invisible(*c)).collect::<String>().into_bytes());
    let steps = [
        Some((of_ours("ends with a newline"), trim_end(secret, |c| matches!(c, b'\n' | b'\r')).to_vec())),
        Some((of_ours("has white space around it"), trimmed.to_vec())),
        mangled::unquoted(trimmed).map(|inner| (of_ours("has quotation marks around it"), inner.to_vec())),
        secret
            .strip_prefix(mangled::MARK)
            .map(|rest| (of_ours("begins with a byte order mark"), rest.to_vec())),
        utf8(secret).map(|text| {
            (format!("the secret of {label} is UTF-16, and the sender's is not: save it as UTF-8"), text)
        }),
        mangled::assigned(trimmed, mangled::Use::Secret)
            .map(|value| (of_ours("has a name before it, as in NAME=value,"), value.to_vec())),
        visible.map(|text| {
            (of_ours("has an invisible character in it, such as a no-break or zero-width space,"), text)
        }),
        hex::decode(trimmed).ok().map(|bytes| (hashed_as("hex", "decoded"), bytes)),
        base64::decode(trimmed).map(|(_, bytes)| (hashed_as("base64", "decoded"), bytes)),
    ];
    steps.into_iter().flatten().filter(|(_, bytes)| bytes != secret).collect()
}

/// The text of UTF-16, with or without its byte order mark.
fn utf8(bytes: &[u8]) -> Option<Vec<u8>> {
    if !mangled::is_utf16(bytes) {
        return None;
    }
    let big = bytes.starts_with(b"\xfe\xff") || bytes.first() == Some(&0);
    let units = bytes.chunks_exact(2).map(|pair| match pair {
        [high, low] if big => u16::from_be_bytes([*high, *low]),
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    });
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    Some(text.trim_start_matches('\u{feff}').as_bytes().to_vec())
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
    let form = "what was signed is a form (`payload=…`) that holds this body: the sender is another than Pulumi, or something \
                on the way unwrapped it";
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
        in_form(body).and_then(|bytes| {
            guess("the body is a form (`payload=…`), and what was signed is the JSON in it: Pulumi sends the JSON itself, something on the way wrapped it", bytes)
        }),
        guess(form, form_of(body, true)),
        guess(form, form_of(body, false)),
        base64::decode(body).and_then(|(_, bytes)| {
            guess("the body is base64-encoded: a gateway between Pulumi and here wrapped it", bytes)
        }),
        first_value(body).and_then(|value| {
            guess("after the JSON value, the body has bytes that were not signed", value.to_vec())
        }),
        guess("it is the signature of the empty body: the sender signed nothing", vec![]),
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
             rewrote it; verify the bytes as received"
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

/// The value of `payload` in a form, decoded.
fn in_form(body: &[u8]) -> Option<Vec<u8>> {
    let value = body.strip_prefix(b"payload=")?;
    let value = value.split(|c| *c == b'&').next().unwrap_or_default();
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, others)) = rest.split_first() {
        let byte = match (first, others) {
            (b'%', [high, low, ..]) => {
                let mut byte = [0];
                hex::decode_to_slice([*high, *low], &mut byte).ok()?;
                rest = others.get(2..).unwrap_or_default();
                let [byte] = byte;
                byte
            }
            (b'+', _) => {
                rest = others;
                b' '
            }
            (byte, _) => {
                rest = others;
                *byte
            }
        };
        decoded.push(byte);
    }
    Some(decoded)
}

/// A form that holds this, as browsers write it (`plus`) or as `encodeURIComponent` does.
fn form_of(body: &[u8], plus: bool) -> Vec<u8> {
    let mut form = b"payload=".to_vec();
    for byte in body {
        let kept = if plus { &b"*-._"[..] } else { &b"-_.!~*'()"[..] };
        match byte {
            b' ' if plus => form.push(b'+'),
            byte if byte.is_ascii_alphanumeric() || kept.contains(byte) => form.push(*byte),
            byte => form.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    form
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
