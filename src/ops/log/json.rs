//! Lines as JSON objects: `timestamp`, `level`, then the event's own fields, flat.
//!
//! One line is written for each request, so it is written straight into its place.

use std::{
    fmt::Debug,
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer as _};
use serde_json::{Serializer, ser::Formatter};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::{Sink, shown::misleads, sink::Rank};

/// Writes each event into the sink as a JSON object.
pub(super) struct Json(pub(super) Sink);

/// Room for a usual line.
const LINE: usize = 512;

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Vec::with_capacity(LINE);
        line.extend_from_slice(b"{\"timestamp\":\"");
        line.extend_from_slice(&rfc_3339(SystemTime::now()));
        line.extend_from_slice(b"\",\"level\":\"");
        line.extend_from_slice(event.metadata().level().as_str().as_bytes());
        line.push(b'"');
        event.record(&mut Fields(&mut line));
        line.extend_from_slice(b"}\n");
        self.0.take(&line, Rank::of(event.metadata()));
    }
}

/// Writes members of an object, each behind a comma.
struct Fields<'l>(&'l mut Vec<u8>);

impl Fields<'_> {
    fn name(&mut self, field: &Field) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(field.name().as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn write(&mut self, field: &Field, value: &(impl Serialize + ?Sized)) {
        self.name(field);
        let mut serializer = Serializer::with_formatter(&mut *self.0, Visible);
        value.serialize(&mut serializer).expect("a plain value is written to a Vec");
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.name(field);
        Serializer::with_formatter(&mut *self.0, Visible)
            .collect_str(&format_args!("{value:?}"))
            .expect("a text is written to a Vec");
    }
}

/// JSON in which every character is one that a reader sees: a line has no room for others, whoever they come from. The
/// text is the same for whoever reads JSON.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Control characters below a space are escaped by now.
        if fragment.bytes().fold(true, |usual, byte| usual & (byte < 0x7f)) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, character)) = rest.char_indices().find(|(_, character)| misleads(*character)) {
            let (before, from) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = from.strip_prefix(character).unwrap_or_default();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Now, as lines have it.
pub(super) fn timestamp() -> String {
    String::from_utf8_lossy(&rfc_3339(SystemTime::now())).into_owned()
}

/// In UTC, with microseconds.
fn rfc_3339(time: SystemTime) -> [u8; 27] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    for (mut number, place) in [
        (year, 0..4),
        (month, 5..7),
        (day, 8..10),
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
    use std::{
        io::Write,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use serde_json::{Value, json};
    use tracing::{subscriber::with_default, warn};
    use tracing_subscriber::{layer::SubscriberExt, registry};

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

    #[test]
    fn an_event_is_one_line_that_any_reader_of_json_takes() {
        let text = "a \"b\" \\ \n \u{1b}[31m é 🍹 \u{7f}\u{9b}\u{202e}\u{2028}\u{e0041}";
        let written = Written::default();
        let (sink, flush) = Sink::try_new(written.clone(), crate::ops::log::Format::Json).unwrap();
        with_default(registry().with(Json(sink)), || {
            warn!(text, shown = %text, number = -5, ratio = 0.25, nothing = f64::NAN, is = true, missing = None::<u64>, "said");
        });
        flush.finish();
        let lines = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(lines.ends_with("}\n") && lines.matches('\n').count() == 1, "{lines}");
        assert!(!lines.trim_end().chars().any(misleads), "{lines}");
        let mut line: Value = serde_json::from_str(&lines).unwrap();
        assert!(line["timestamp"].take().as_str().is_some_and(|time| time.ends_with('Z')), "{lines}");
        let expected = json!({
            "timestamp": null, "level": "WARN", "message": "said", "text": text, "shown": text, "number": -5, "ratio": 0.25,
            "nothing": null, "is": true,
        });
        assert_eq!(line, expected, "{lines}");
    }

    /// What was written, for everybody.
    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
