//! `Pulumi-Webhook-Signature`: the whole input as its value, over a fixed body.
//!
//! Promise: only 64 hex digits are read, and only those of the right tag verify, whichever secret made them.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use hookgate::webhook::{
    secret::Secret,
    signature::{Key, Signature, Verifier},
};

use super::mac::hmac_sha256;

/// The secrets of the verifier.
pub const SECRETS: [&str; 3] =
    ["fuzz-secret-number-one", "fuzz-secret-number-two", "fuzz-secret-number-three"];
/// The body that is verified.
pub const BODY: &[u8] = b"{\"message\":\"fuzz\"}";

/// Judges one input.
pub fn run(value: &[u8]) {
    let digits = value.len() == 64 && value.iter().all(u8::is_ascii_hexdigit);
    let signature = Signature::parse(value);
    assert_eq!(signature.is_ok(), digits);
    let Ok(signature) = signature else { return };

    let keys = SECRETS.map(|text| {
        let secret = Secret::try_new(text.into(), false).expect("it is long enough");
        Key::new(text.into(), &secret, None)
    });
    let verified = Verifier::new(keys.into()).verify(Bytes::from_static(BODY), &signature, UNIX_EPOCH);
    let right = SECRETS.iter().position(|secret| {
        hex::encode(hmac_sha256(secret.as_bytes(), BODY)).as_bytes().eq_ignore_ascii_case(value)
    });
    assert_eq!(verified.ok().map(|verified| verified.key), right);
}
