//! `Pulumi-Webhook-ID` and `-Kind`: the whole input as the value of each.
//!
//! Promise: what is accepted is exactly the grammar of the contract, and comes out unchanged.

use hookgate::webhook::headers::{DeliveryId, EventKind};

/// Judges one input.
pub fn run(value: &[u8]) {
    let of = |value: &[u8], max: usize, letters: &str| {
        (1..=max).contains(&value.len()) && value.iter().all(|byte| letters.as_bytes().contains(byte))
    };
    const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
    const DIGITS: &str = "0123456789";

    let id = DeliveryId::parse(value);
    assert_eq!(id.is_ok(), of(value, 128, &[UPPER, LOWER, DIGITS, "._:-"].concat()));
    assert!(id.is_ok_and(|id| id.as_str().as_bytes() == value) || id.is_err());

    let kind = EventKind::parse(value);
    assert_eq!(kind.is_ok(), of(value, 64, &[LOWER, DIGITS, "_"].concat()));
    assert!(kind.is_ok_and(|kind| kind.as_str().as_bytes() == value) || kind.is_err());
}
