//! `Pulumi-Webhook-ID` and `-Kind` and `Content-Type`: the whole input as the value of each.
//!
//! Promise: what is accepted is exactly the grammar of the contract. ID and kind come out unchanged, and of the media type
//! nothing is left but which of two it is.

use hookgate::webhook::{
    headers::{DeliveryId, EventKind},
    media_type::MediaType,
};

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

    if let Ok(media_type) = MediaType::parse(value) {
        let text = str::from_utf8(value).expect("it is ASCII").to_ascii_lowercase();
        let plain = text.replace([' ', '\t', '"'], "");
        assert_eq!(plain, media_type.as_str().replace(' ', ""));
        assert!(text.starts_with(MediaType::Json.as_str()) && matches!(text.matches('"').count(), 0 | 2));
    }
}
