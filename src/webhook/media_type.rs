//! The media type that a delivery claims, which the signature does not cover.
//!
//! Frameworks decode a body by it: in UTF-7 the plain ASCII `+ACI-` is a quotation mark, so whoever chooses the charset
//! chooses what a signed body says. So only JSON in UTF-8 passes, and what goes on is one of two fixed values, never the
//! sender's bytes.

/// What a delivery may be, and what the service is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MediaType {
    /// `application/json`.
    #[default]
    Json,
    /// `application/json; charset=utf-8`.
    JsonUtf8,
}

/// Why a media type is refused. Without a word of the header: it is the sender's, and unverified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum MediaTypeError {
    /// Another type, or none.
    NotJson,
    /// Something behind the type that is not one `charset=utf-8`.
    Parameter,
}

impl MediaTypeError {
    /// In words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotJson => "the Content-Type is not application/json",
            Self::Parameter => {
                "only one `charset=utf-8` may follow application/json in the Content-Type, and something else does"
            }
        }
    }
}

impl MediaType {
    /// Reads the header's value by the grammar of RFC 9110, 8.3.1, as narrowly as it can be read: `application/json`,
    /// and behind it at most one `charset` that is `utf-8`, plain or in quotation marks, in any case.
    ///
    /// # Errors
    ///
    /// [`MediaTypeError`] for everything else. Also for what the grammar allows and programs read differently: an
    /// empty parameter, and an escape within the quotation marks.
    pub fn parse(value: &[u8]) -> Result<Self, MediaTypeError> {
        let json = Self::Json.as_str().as_bytes();
        let (essence, rest) = value.split_at_checked(json.len()).ok_or(MediaTypeError::NotJson)?;
        if !essence.eq_ignore_ascii_case(json) {
            return Err(MediaTypeError::NotJson);
        }
        if rest.is_empty() {
            return Ok(Self::Json);
        }
        let parameter = match trim(rest).split_first() {
            Some((b';', parameter)) => trim(parameter),
            // More of the type's name, such as `application/json-patch+json`.
            _ if rest.first().is_some_and(|byte| !matches!(byte, b' ' | b'\t')) => {
                return Err(MediaTypeError::NotJson);
            }
            _ => return Err(MediaTypeError::Parameter),
        };
        let (name, charset) =
            parameter.split_at_checked(b"charset=".len()).ok_or(MediaTypeError::Parameter)?;
        let charset = charset
            .strip_prefix(b"\"")
            .map_or(Some(charset), |quoted| quoted.strip_suffix(b"\""))
            .ok_or(MediaTypeError::Parameter)?;
        if name.eq_ignore_ascii_case(b"charset=") && charset.eq_ignore_ascii_case(b"utf-8") {
            Ok(Self::JsonUtf8)
        } else {
            Err(MediaTypeError::Parameter)
        }
    }

    /// What a queue has kept. Anything but the two values was kept by a version that took more, and was verified to be
    /// JSON in UTF-8, too.
    #[must_use]
    pub fn of_stored(value: &[u8]) -> Self {
        Self::parse(value).unwrap_or_default()
    }

    /// The header's value as it goes on.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonUtf8 => "application/json; charset=utf-8",
        }
    }
}

/// Without the optional white space of RFC 9110, 5.6.3 around it: spaces and tabs, nothing else.
fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_in_utf_8_passes_however_it_is_written() {
        for value in ["application/json", "Application/JSON", "APPLICATION/JSON"] {
            assert_eq!(MediaType::parse(value.as_bytes()), Ok(MediaType::Json), "{value}");
        }
        for value in [
            "application/json; charset=utf-8",
            "application/json;charset=utf-8",
            "application/json \t; \t Charset=UTF-8",
            "Application/JSON;CHARSET=\"Utf-8\"",
            "application/json; charset=\"utf-8\" \t",
        ] {
            assert_eq!(MediaType::parse(value.as_bytes()), Ok(MediaType::JsonUtf8), "{value}");
        }
    }

    #[test]
    fn other_types_are_not_json() {
        for value in [
            "",
            ";",
            "json",
            "text/json",
            "application/jso",
            "application /json",
            " application/json",
            "application/json5",
            "application/json-patch+json",
            "application/json+x; charset=utf-8",
            "application/json/x",
            "application/json,application/json",
            "application/json\0",
            "application/json\u{a0}",
            "application/vnd.api+json",
            "application/x-www-form-urlencoded",
            "\"application/json\"",
        ] {
            assert_eq!(MediaType::parse(value.as_bytes()), Err(MediaTypeError::NotJson), "{value}");
        }
    }

    #[test]
    fn nothing_but_one_charset_stands_behind_the_type() {
        for value in [
            "application/json;",
            "application/json ;",
            "application/json; ",
            "application/json;;charset=utf-8",
            "application/json; charset=utf-8;",
            "application/json; charset=utf-8; charset=utf-8",
            "application/json; charset=utf-8; charset=utf-7",
            "application/json; charset=utf-8, application/json",
            "application/json; charset=utf-8 x",
            "application/json; charset=utf-8\0",
            "application/json; charset=utf-8\u{80}",
            "application/json; charset=utf8",
            "application/json; charset=utf-7",
            "application/json; charset=utf-16le",
            "application/json; charset=utf-8-sig",
            "application/json; charset=us-ascii",
            "application/json; charset=",
            "application/json; charset",
            "application/json; charset =utf-8",
            "application/json; charset= utf-8",
            "application/json; charset=\"\"",
            "application/json; charset=\"utf-8",
            "application/json; charset=utf-8\"",
            "application/json; charset=\" utf-8\"",
            "application/json; charset=\"utf\\-8\"",
            "application/json; charset='utf-8'",
            "application/json; charset*=utf-8''utf-8",
            "application/json; x=\"; charset=utf-8\"",
            "application/json; boundary=x",
            "application/json; version=1; charset=utf-8",
            "application/json;\tfoo\u{80}bar",
            "application/json charset=utf-8",
            "application/json, text/plain",
            "application/json\t",
        ] {
            let found = MediaType::parse(value.as_bytes());
            assert!(found.is_err(), "{value}: {found:?}");
        }
    }

    #[test]
    fn what_is_stored_goes_on_as_one_of_the_two() {
        for of in [MediaType::Json, MediaType::JsonUtf8] {
            assert_eq!(MediaType::parse(of.as_str().as_bytes()), Ok(of));
            assert_eq!(MediaType::of_stored(of.as_str().as_bytes()), of);
        }
        for old in [&b"application/json; charset=utf-7"[..], b"Application/JSON;\tx\x80", b"", b"text/plain"]
        {
            assert_eq!(MediaType::of_stored(old), MediaType::Json);
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_one_of_the_two_in_other_letters(
            value in "[aA]pplication/json[ \t]{0,2};?[ \t]{0,2}[cC]?harset=\"?[uU]?tf-8\"?[ \t;]{0,1}",
        ) {
            if let Ok(read) = MediaType::parse(value.as_bytes()) {
                let plain = value.to_ascii_lowercase().replace([' ', '\t', '"'], "");
                prop_assert_eq!(plain, read.as_str().replace(' ', ""));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(MediaType::parse(&value).is_err());
            let behind = [&b"application/json;"[..], &value].concat();
            prop_assert!(MediaType::parse(&behind).is_err());
        }
    }
}
