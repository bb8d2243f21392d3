//! The time of a line, in RFC 3339.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// Now, as lines have it.
pub(super) fn timestamp() -> String {
    String::from_utf8_lossy(&rfc_3339(SystemTime::now())).into_owned()
}

/// In UTC, with microseconds.
pub(super) fn rfc_3339(time: SystemTime) -> [u8; 27] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let second = since.as_secs() % 86_400;
    // A clock that is beyond the year 9999 is wrong anyway.
    let date = i64::try_from(since.as_secs()).map(OffsetDateTime::from_unix_timestamp);
    let (year, month, day) =
        date.ok().and_then(Result::ok).unwrap_or(OffsetDateTime::UNIX_EPOCH).to_calendar_date();
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    for (mut number, place) in [
        (u64::try_from(year).unwrap_or_default(), 0..4),
        (u8::from(month).into(), 5..7),
        (day.into(), 8..10),
        (second / 3600, 11..13),
        (second / 60 % 60, 14..16),
        (second % 60, 17..19),
        (since.subsec_micros().into(), 20..26),
    ] {
        for digit in text.get_mut(place).unwrap_or_default().iter_mut().rev() {
            *digit += u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_in_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (68_169_600, "1972-02-29T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (1_767_225_600, "2026-01-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc_3339(UNIX_EPOCH + Duration::from_secs(seconds)), text.as_bytes());
        }
        let time = UNIX_EPOCH + Duration::from_nanos(1_800_000_000_012_345_678);
        assert_eq!(&rfc_3339(time), b"2027-01-15T08:00:00.012345Z");
    }
}
