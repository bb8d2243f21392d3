//! The signature check: HMAC-SHA256 over the raw body, in constant time, against every secret in force.
//!
//! [`VerifiedBody`] is the proof. Only [`Verifier::verify`] makes one, and everything behind it takes one. What was kept in
//! a store comes back by [`VerifiedBody::stored`], which nobody else calls.

use std::{fmt, time::SystemTime};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::secret::Secret;

/// Bytes of an HMAC-SHA256 tag.
const TAG_LEN: usize = 32;

/// A signature as the header carries it: exactly 64 hex digits, either case, nothing else.
#[derive(Clone, Copy)]
pub struct Signature([u8; TAG_LEN]);

/// The header's value is not 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hex digits")]
pub struct MalformedSignature;

impl Signature {
    /// Reads the header's value.
    ///
    /// # Errors
    ///
    /// [`MalformedSignature`] for anything but 64 hex digits: no prefix, no white space, no base64.
    pub fn parse(value: &[u8]) -> Result<Self, MalformedSignature> {
        let mut tag = [0; TAG_LEN];
        hex::decode_to_slice(value, &mut tag).or(Err(MalformedSignature))?;
        Ok(Self(tag))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(..)")
    }
}

/// One secret of a webhook, ready for use.
pub struct Key {
    name: String,
    expires: Option<SystemTime>,
    /// The MAC with the key already mixed in; cloned for each body.
    keyed: Hmac<Sha256>,
}

impl Key {
    /// Prepares a secret. `name` labels logs and metrics; from `expires` on the key is left out.
    #[must_use]
    pub fn new(name: String, secret: &Secret, expires: Option<SystemTime>) -> Self {
        Self { name, expires, keyed: keyed(secret) }
    }

    /// The name that labels logs and metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From when on the key is left out.
    #[must_use]
    pub const fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    fn in_force(&self, now: SystemTime) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// All secrets of a webhook.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<Key>,
}

/// No secret in force made this signature over this body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match any of the secrets in force")]
pub struct SignatureError;

/// A body that was signed with one of the webhook's secrets. [`Verifier::verify`] makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedBody(Bytes);

/// A right signature.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What it proves.
    pub body: VerifiedBody,
    /// Which of [`Verifier::keys`] made it.
    pub key: usize,
}

/// Whether a signature fits, and which secret made it, not looked at yet. Proves nothing: see [`VerifiedBody`].
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    found: Choice,
    which: u64,
}

impl VerifiedBody {
    /// The very bytes that were signed.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// A body that was verified before it was kept. For the readers of stores only: this is the one way around the
    /// signature.
    #[must_use]
    pub const fn stored(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The same body. `held` is dropped with the last copy of what is returned.
    #[must_use]
    pub fn holding(self, held: impl Send + 'static) -> Self {
        Self(Bytes::from_owner(Kept { body: self.0, _held: held }))
    }
}

/// A body, and what is given back with its last copy.
struct Kept<H> {
    body: Bytes,
    _held: H,
}

impl<H> AsRef<[u8]> for Kept<H> {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Verifier {
    /// Takes the secrets in the order of the configuration.
    #[must_use]
    pub const fn new(keys: Vec<Key>) -> Self {
        Self { keys }
    }

    /// The secrets, in the order of the configuration.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Checks `signature` over `body` with every secret that is in force at `now`.
    ///
    /// The time taken depends on the body's length and the number of secrets, not on which of them fits or how
    /// far a wrong signature agrees: every tag is computed and compared whole, and only the sum is looked at, at the
    /// very end.
    ///
    /// # Errors
    ///
    /// [`SignatureError`], which says nothing about the right tag.
    pub fn verify(
        &self,
        body: Bytes,
        signature: &Signature,
        now: SystemTime,
    ) -> Result<Verified, SignatureError> {
        let Comparison { found, which } = self.compare(&body, signature, now);
        // From here on the time may tell what the answer tells anyway.
        if bool::from(found) {
            Ok(Verified { body: VerifiedBody(body), key: usize::try_from(which).unwrap_or_default() })
        } else {
            Err(SignatureError)
        }
    }

    /// All of [`Verifier::verify`] up to the point where its outcome is looked at. Nothing here branches on secrets,
    /// tags or signatures, so it takes the same time for a right signature as for any wrong one.
    #[must_use]
    pub fn compare(&self, body: &[u8], signature: &Signature, now: SystemTime) -> Comparison {
        let mut found = Choice::from(0);
        let mut which = 0_u64;
        for (index, key) in (0_u64..).zip(&self.keys) {
            if !key.in_force(now) {
                continue;
            }
            let equal = tag(&key.keyed, body).ct_eq(&signature.0);
            which.conditional_assign(&index, equal);
            found |= equal;
        }
        Comparison { found, which }
    }
}

/// The signature of `body` as the header carries it: 64 lower-case hex digits. For making sample deliveries.
#[must_use]
pub fn sign(secret: &Secret, body: &[u8]) -> String {
    hex::encode(tag(&keyed(secret), body))
}

fn keyed(secret: &Secret) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.as_key()).expect("HMAC takes keys of any length")
}

fn tag(keyed: &Hmac<Sha256>, body: &[u8]) -> [u8; TAG_LEN] {
    keyed.clone().chain_update(body).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::try_new(text.into(), true).unwrap()
    }

    fn verifier(secrets: &[(&str, Option<SystemTime>)]) -> Verifier {
        let keys = secrets.iter().map(|(s, expires)| Key::new((*s).into(), &secret(s), *expires));
        Verifier::new(keys.collect())
    }

    fn check(verifier: &Verifier, body: &[u8], header: &str) -> Option<usize> {
        let signature = Signature::parse(header.as_bytes()).ok()?;
        let body = Bytes::copy_from_slice(body);
        verifier.verify(body, &signature, UNIX_EPOCH).ok().map(|verified| verified.key)
    }

    /// Tags of known bodies under a known secret, made with another implementation.
    #[test]
    fn known_answers() {
        let answers = [
            ("", "a81af229532c5a5b8093cb9e9ca710d7cf7c794b20306159abf6d531fa56e1d7"),
            (
                "{\"timestamp\":1778653144,\"message\":\"🍹 Just a friendly ping from Pulumi 🍹\"}",
                "4adc41c74280a93cd4f6d8014eed4c43a775f0d45d0738503fb8d9ed4156abce",
            ),
        ];
        let key = "pulumi-webhook-test-secret";
        for (body, hex) in answers {
            assert_eq!(sign(&secret(key), body.as_bytes()), hex);
            assert_eq!(check(&verifier(&[(key, None)]), body.as_bytes(), hex), Some(0));
            assert_eq!(check(&verifier(&[(key, None)]), body.as_bytes(), &hex.to_uppercase()), Some(0));
        }
    }

    #[test]
    fn only_hex_of_the_right_length_is_a_signature() {
        let right = "ab".repeat(32);
        assert!(Signature::parse(right.as_bytes()).is_ok());
        for wrong in [
            "",
            &"ab".repeat(31),
            &format!("{right}0"),
            &format!("sha256={right}"),
            &format!(" {}", "a".repeat(63)),
        ] {
            assert!(Signature::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Signature::parse("g".repeat(64).as_bytes()).is_err());
        assert!(Signature::parse("é".repeat(32).as_bytes()).is_err());
    }

    #[test]
    fn every_secret_is_tried_and_the_right_one_is_named() {
        let all = verifier(&[("one", None), ("two", None), ("three", None)]);
        for (index, key) in ["one", "two", "three"].iter().enumerate() {
            assert_eq!(check(&all, b"{}", &sign(&secret(key), b"{}")), Some(index));
        }
        assert_eq!(check(&all, b"{}", &sign(&secret("four"), b"{}")), None);
    }

    #[test]
    fn an_expired_secret_is_left_out() {
        let at = |s: u64| UNIX_EPOCH + Duration::from_secs(s);
        let both = verifier(&[("old", Some(at(100))), ("new", None)]);
        let old = Signature::parse(sign(&secret("old"), b"{}").as_bytes()).unwrap();
        let verify = |now| both.verify(Bytes::from_static(b"{}"), &old, now).is_ok();
        assert!(verify(at(99)));
        assert!(!verify(at(100)));
    }

    #[test]
    fn no_secret_lets_nothing_through() {
        assert_eq!(check(&verifier(&[]), b"", &"0".repeat(64)), None);
    }

    proptest! {
        #[test]
        fn what_was_signed_passes_and_any_flipped_bit_does_not(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            key in proptest::collection::vec(any::<u8>(), 1..200),
            bit in 0_usize..256,
        ) {
            let secret = Secret::try_new(key, true).unwrap();
            let verifier = Verifier::new(vec![Key::new("k".into(), &secret, None)]);
            let header = sign(&secret, &body);
            prop_assert_eq!(check(&verifier, &body, &header), Some(0));

            let mut wrong = hex::decode(&header).unwrap();
            wrong[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(check(&verifier, &body, &hex::encode(wrong)), None);

            let mut longer = body.clone();
            longer.push(b'\n');
            prop_assert_eq!(check(&verifier, &longer, &header), None);
        }
    }
}
