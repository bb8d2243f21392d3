//! Lines as JSON objects: `timestamp`, `level`, then the event's own fields, flat.
//!
//! One line is written for each request, so it is written straight into its place.

use std::{fmt::Debug, io, time::SystemTime};

use serde::{Serialize, Serializer as _};
use serde_json::{Serializer, ser::Formatter};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::{Sink, shown::misleads, sink::Rank, timestamp::rfc_3339};

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

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing::{subscriber::with_default, warn};
    use tracing_subscriber::{layer::SubscriberExt, registry};

    use super::*;

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
