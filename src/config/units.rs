//! Quantities as the configuration writes them: durations (`"1m30s"`), sizes (`"64MiB"`), points in time (RFC 3339).
//!
//! Each is read and written here, and what is written reads as the same value. Numbers are whole: `"1500ms"`, not
//! `"1.5s"`. No time zones beyond the offset that a timestamp carries.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{Date, Month, UtcDateTime};
use toml::value::{Datetime, Offset};

/// Units of durations in milliseconds, the longest first.
const DURATIONS: [(&str, u64); 5] =
    [("d", 24 * 60 * 60 * 1000), ("h", 60 * 60 * 1000), ("m", 60 * 1000), ("s", 1000), ("ms", 1)];

/// Units of sizes in bytes. Those of the second half are read and never written.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("kB", 1000),
];

/// Reads a duration: whole numbers with units, the longest unit first, each at most once.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut units = DURATIONS.iter();
    while !rest.is_empty() {
        let (number, after) = split_number(rest)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.checked_mul(*millis)?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(Duration::from_millis(total))
}

/// Writes a duration as `parse_duration` reads it; what is below a millisecond is left out.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, millis) in DURATIONS {
        if rest >= millis {
            text += &format!("{}{name}", rest / millis);
            rest %= millis;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

/// Reads a size: one whole number with its unit.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let (_, bytes) = SIZES.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*bytes)
}

/// Writes a size as `parse_size` reads it, in the largest binary unit that divides it.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let mut binary = SIZES.iter().take_while(|(name, _)| *name != "B");
    match binary.find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

/// The digits that a text begins with, and what follows them.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// The point in time that a date-time with an offset names. `None`: it has no date, no time or no offset.
pub(super) fn instant(written: Datetime) -> Option<SystemTime> {
    let (date, time) = (written.date?, written.time?);
    let offset = match written.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let minutes = i64::from(time.hour) * 60 + i64::from(time.minute) - offset;
    let month = Month::try_from(date.month).ok()?;
    let date = Date::from_calendar_date(date.year.into(), month, date.day).ok()?;
    let days = i64::from(date.to_julian_day() - UtcDateTime::UNIX_EPOCH.to_julian_day());
    let seconds = days * 86_400 + minutes * 60 + i64::from(time.second.unwrap_or_default());
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    start?.checked_add(Duration::from_nanos(u64::from(time.nanosecond.unwrap_or_default())))
}

/// Reads a point in time in RFC 3339, with its offset.
#[must_use]
pub fn parse_instant(text: &str) -> Option<SystemTime> {
    text.parse().ok().and_then(instant)
}

/// Writes a point in time in RFC 3339, in UTC, to the second before it.
#[must_use]
pub fn show_instant(instant: SystemTime) -> String {
    let seconds = match instant.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -whole - i64::from(before.subsec_nanos() > 0)
        }
    };
    // What is beyond the years that can be written is shown as the last or the first of them.
    let shown = seconds.clamp(UtcDateTime::MIN.unix_timestamp(), UtcDateTime::MAX.unix_timestamp());
    let shown = UtcDateTime::from_unix_timestamp(shown).unwrap_or(UtcDateTime::UNIX_EPOCH);
    let ((year, month, day), (hour, minute, second)) = (shown.to_calendar_date(), shown.as_hms());
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Option<SystemTime> {
        parse_instant(text)
    }

    fn unix(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("24h", 86_400_000),
            ("30d", 2_592_000_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "10 s",
            "1.5s",
            "-1s",
            "+1s",
            "1s1m",
            "1s1s",
            "1S",
            "1min",
            "99999999999999999999s",
            "999999999999999d",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0B", 0),
            ("512B", 512),
            ("16KiB", 16 << 10),
            ("1MiB", 1 << 20),
            ("1GiB", 1 << 30),
            ("1KB", 1000),
            ("1kB", 1000),
            ("2MB", 2_000_000),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "1", "MiB", "1 MiB", "1mib", "1.5MiB", "-1B", "1MiB1KiB", "99999999TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(
            [show_size(0), show_size(1000), show_size(1536), show_size(3 << 20)],
            ["0B", "1000B", "1536B", "3MiB"]
        );
    }

    #[test]
    fn timestamps() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2027-01-31T00:00:00Z", 1_801_353_600),
            ("2027-01-31T01:30:00+01:30", 1_801_353_600),
            ("2027-01-30 19:00:00-05:00", 1_801_353_600),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(at(text), Some(unix(seconds)), "{text}");
        }
        assert_eq!(at("1969-12-31T23:59:59.5Z"), UNIX_EPOCH.checked_sub(Duration::from_millis(500)));
        assert_eq!(at("1969-12-31T23:59:59.5Z").map(show_instant).unwrap(), "1969-12-31T23:59:59Z");
        for text in [
            "",
            "tomorrow",
            "2027-01-31",
            "2027-01-31T00:00:00",
            "07:32:00",
            "2027-02-29T00:00:00Z",
            "2027-13-01T00:00:00Z",
        ] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_is_read_as_it_was_written(millis in any::<u64>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }

        #[test]
        fn a_size_is_read_as_it_was_written(number in any::<u64>(), shift in 0_u32..50) {
            let bytes = number >> shift << shift;
            prop_assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }

        #[test]
        fn a_timestamp_is_read_as_it_was_written(seconds in 0_u64..253_402_300_800) {
            prop_assert_eq!(at(&show_instant(unix(seconds))), Some(unix(seconds)));
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>(), near in "[0-9]{0,22}[a-zA-Z]{0,3}[0-9]{0,22}[a-zµ]{0,3}") {
            for text in [&text, &near] {
                parse_duration(text);
                parse_size(text);
                at(text);
            }
        }
    }
}
