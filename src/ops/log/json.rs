//! Lines as JSON objects: `timestamp`, `level`, then the event's own fields, flat.
//!
//! One line is written for each request, so it is written straight into its place.

use std::{
    fmt::{self, Debug, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::Sink;

/// Writes each event into the sink as a JSON object.
pub(super) struct Json(pub(super) Sink);

/// Room for a usual line.
const LINE: usize = 512;

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = String::with_capacity(LINE);
        line.push_str("{\"timestamp\":\"");
        push_time(&mut line, SystemTime::now());
        line.push_str("\",\"level\":\"");
        line.push_str(event.metadata().level().as_str());
        line.push('"');
        event.record(&mut Fields(&mut line));
        line.push_str("}\n");
        self.0.take(line.as_bytes());
    }
}

/// Writes members of an object, each behind a comma.
struct Fields<'l>(&'l mut String);

impl Fields<'_> {
    fn name(&mut self, field: &Field) {
        self.0.push_str(",\"");
        self.0.push_str(field.name());
        self.0.push_str("\":");
    }

    /// A value that is written in JSON as it is in Rust.
    fn plain(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.name(field);
        self.0.write_fmt(value).expect("writing to a String does not fail");
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // What is no number in JSON has no Debug form that JSON would take.
        if value.is_finite() {
            self.plain(field, format_args!("{value:?}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.0.push('"');
        push_escaped(self.0, value);
        self.0.push('"');
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.name(field);
        self.0.push('"');
        write!(Escaped(self.0), "{value:?}").expect("writing to a String does not fail");
        self.0.push('"');
    }
}

/// Writes text into a JSON string.
struct Escaped<'l>(&'l mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        push_escaped(self.0, text);
        Ok(())
    }
}

fn push_escaped(line: &mut String, text: &str) {
    let plain = |byte: u8| byte >= b' ' && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        return line.push_str(text);
    }
    for character in text.chars() {
        match character {
            '"' | '\\' => line.extend(['\\', character]),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            ' '.. => line.push(character),
            control => {
                write!(line, "\\u{:04x}", u32::from(control)).expect("writing to a String does not fail");
            }
        }
    }
}

/// RFC 3339 in UTC, with microseconds.
fn push_time(line: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let parts = [
        (year, 4, '-'),
        (month, 2, '-'),
        (day, 2, 'T'),
        (second / 3600, 2, ':'),
        (second / 60 % 60, 2, ':'),
        (second % 60, 2, '.'),
        (since.subsec_micros().into(), 6, 'Z'),
    ];
    for (number, digits, behind) in parts {
        for place in (0..digits).rev() {
            let digit = u32::try_from(number / 10_u64.pow(place) % 10).unwrap_or_default();
            line.extend(char::from_digit(digit, 10));
        }
        line.push(behind);
    }
}

/// The Gregorian date of a day since 1970. A year that begins in March has its leap day at its end, which leaves one
/// rule for all months.
const fn date(days: u64) -> (u64, u64, u64) {
    /// Days before 1970-01-01 in the era of 400 years that began on 0000-03-01.
    const BEFORE: u64 = 719_468;
    const ERA: u64 = 146_097;
    let (era, day) = ((days + BEFORE) / ERA, (days + BEFORE) % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let january = if month >= 10 { 1 } else { 0 };
    (era * 400 + year + january, if january == 1 { month - 9 } else { month + 3 }, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::Value;

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
            let mut line = String::new();
            push_time(&mut line, UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(line, text);
        }
        let mut line = String::new();
        push_time(&mut line, UNIX_EPOCH + Duration::from_nanos(1_800_000_000_012_345_678));
        assert_eq!(line, "2027-01-15T08:00:00.012345Z");
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_it_was(text in any::<String>()) {
            let mut line = String::from("\"");
            push_escaped(&mut line, &text);
            line.push('"');
            prop_assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), Value::String(text));
        }
    }
}
