//! The identity that a delivery claims: `Pulumi-Webhook-ID` and `Pulumi-Webhook-Kind`.
//!
//! The signature covers neither, so what comes out of here is well-formed, not true: the kind must agree with
//! the signed payload, and the ID is a hint for telling duplicates.

/// Name of the header that carries the delivery's ID (matched without case, as every header name).
pub const ID: &str = "pulumi-webhook-id";
/// Name of the header that carries the event's kind.
pub const KIND: &str = "pulumi-webhook-kind";
/// Name of the header that carries the body's signature.
pub const SIGNATURE: &str = "pulumi-webhook-signature";

/// The longest ID that is accepted, in bytes. Pulumi sends UUIDs (36) and does not promise the form.
pub const MAX_ID_LEN: usize = 128;
/// The longest kind that is accepted, in bytes.
pub const MAX_KIND_LEN: usize = 64;

/// The claimed ID of a delivery: 1 to 128 of `A-Z a-z 0-9 . _ : -`. A redelivery carries the first one's ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeliveryId<'a>(&'a str);

/// The claimed kind of an event: 1 to 64 of `a-z 0-9 _`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventKind<'a>(&'a str);

/// A header value that does not follow its grammar. The value is not in it: it is the sender's, and unverified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed")]
pub struct Malformed;

impl<'a> DeliveryId<'a> {
    /// Reads the header's value.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for anything outside the grammar, the empty value included.
    pub fn parse(value: &'a [u8]) -> Result<Self, Malformed> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        token(value, MAX_ID_LEN, allowed).map(Self)
    }

    /// The ID.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl<'a> EventKind<'a> {
    /// Reads the header's value.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for anything outside the grammar, the empty value included.
    pub fn parse(value: &'a [u8]) -> Result<Self, Malformed> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        token(value, MAX_KIND_LEN, allowed).map(Self)
    }

    /// The kind.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

fn token(value: &[u8], max: usize, allowed: impl Fn(u8) -> bool) -> Result<&str, Malformed> {
    if value.is_empty() || value.len() > max || !value.iter().all(|&b| allowed(b)) {
        return Err(Malformed);
    }
    str::from_utf8(value).or(Err(Malformed))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn published_ids_and_kinds_pass() {
        assert!(DeliveryId::parse(b"8d001000-1c0e-4d6b-8f5e-0e2f4c1f9a11").is_ok());
        assert!(EventKind::parse(b"environment_revision_tag").is_ok());
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(DeliveryId::parse(&[b'a'; 128]).is_ok());
        assert_eq!(DeliveryId::parse(&[b'a'; 129]), Err(Malformed));
        assert!(EventKind::parse(&[b'a'; 64]).is_ok());
        assert_eq!(EventKind::parse(&[b'a'; 65]), Err(Malformed));
        assert_eq!(DeliveryId::parse(b""), Err(Malformed));
        assert_eq!(EventKind::parse(b""), Err(Malformed));
    }

    proptest! {
        #[test]
        fn the_grammar_is_exactly_this(value in proptest::collection::vec(any::<u8>(), 0..140)) {
            let text = String::from_utf8_lossy(&value).into_owned();
            let id = !text.is_empty() && text.len() <= 128
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c));
            let kind = !text.is_empty() && text.len() <= 64
                && text.chars().all(|c| "abcdefghijklmnopqrstuvwxyz0123456789_".contains(c));
            prop_assert_eq!(DeliveryId::parse(&value).is_ok(), id);
            prop_assert_eq!(EventKind::parse(&value).is_ok(), kind);
        }

        #[test]
        fn what_passes_is_unchanged(value in "[A-Za-z0-9._:-]{1,128}") {
            prop_assert_eq!(DeliveryId::parse(value.as_bytes()).unwrap().as_str(), &value);
        }
    }
}
