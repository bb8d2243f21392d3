//! Writes log lines on a thread of its own, in batches, through a bounded buffer.
//!
//! A part of the buffer is kept for lines that must not be missing: those of signed deliveries, warnings and errors. So
//! nothing that anybody can bring about takes their place.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::{Format, STRANGERS, timestamp::timestamp};

/// Bytes of lines that wait to be written.
const CAPACITY: usize = 1 << 20;

/// Of these, what is kept for [`Rank::Kept`].
const KEPT: usize = CAPACITY / 2;

/// How long lines are gathered before they are written together.
const BATCH: Duration = Duration::from_millis(10);

/// How long the last lines may take when the service ends.
const LAST: Duration = Duration::from_secs(2);

/// How much a line would be missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// That of a signed delivery, a warning or an error.
    Kept,
    /// Any other.
    Usual,
}

impl Rank {
    /// The rank of what is said at this place.
    pub(super) fn of(said: &Metadata<'_>) -> Self {
        let ours = said.target().starts_with("hookgate") && said.target() != STRANGERS;
        match *said.level() {
            Level::ERROR | Level::WARN => Self::Kept,
            Level::INFO if ours => Self::Kept,
            _ => Self::Usual,
        }
    }
}

/// Takes lines; never blocks for longer than it takes to copy one.
#[derive(Debug, Clone)]
pub struct Sink(Arc<Shared>);

/// Owns the writing thread; see [`Flush::finish`].
#[derive(Debug)]
pub struct Flush {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something to write, or the end.
    filled: Condvar,
    /// Everything is written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    dropped: u64,
    writing: bool,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    /// A sink that writes to `output` on a new thread. `format` is that of the lines that it takes.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn try_new(output: impl Write + Send + 'static, format: Format) -> io::Result<(Self, Flush)> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("log".into())
            .spawn(move || write_batches(&writer, output, format))?;
        Ok((Self(Arc::clone(&shared)), Flush { shared, thread: Some(thread) }))
    }

    /// Takes a whole line, with its end.
    pub(super) fn take(&self, line: &[u8], rank: Rank) {
        let room = match rank {
            Rank::Kept => CAPACITY,
            Rank::Usual => CAPACITY - KEPT,
        };
        let mut state = self.0.lock();
        if state.lines.len().saturating_add(line.len()) > room {
            state.dropped = state.dropped.saturating_add(1);
        } else {
            let was_empty = state.lines.is_empty();
            state.lines.extend_from_slice(line);
            drop(state);
            if was_empty {
                self.0.filled.notify_one();
            }
        }
    }
}

/// For one who writes a whole line at once.
#[derive(Debug)]
pub(super) struct Line<'s> {
    sink: &'s Sink,
    rank: Rank,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.sink.take(line, self.rank);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines of the text format, on their way into the sink.
#[derive(Debug)]
pub(super) struct Lines(pub(super) Sink);

impl<'s> MakeWriter<'s> for Lines {
    type Writer = Line<'s>;

    fn make_writer(&'s self) -> Line<'s> {
        Line { sink: &self.0, rank: Rank::Usual }
    }

    fn make_writer_for(&'s self, said: &Metadata<'_>) -> Line<'s> {
        Line { sink: &self.0, rank: Rank::of(said) }
    }
}

impl Flush {
    /// Waits until every line is written, for two seconds at most: whoever reads may have stopped reading.
    pub fn finish(mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        self.shared.filled.notify_one();
        let pending = |state: &mut State| state.writing || !state.lines.is_empty();
        let waited = self.shared.emptied.wait_timeout_while(state, LAST, pending);
        let written = waited.is_ok_and(|(_state, timeout)| !timeout.timed_out());
        if let Some(thread) = self.thread.take()
            && written
        {
            drop(thread.join());
        }
    }
}

fn write_batches(shared: &Shared, mut output: impl Write, format: Format) {
    let mut batch = Vec::new();
    loop {
        let mut state = shared.lock();
        while state.lines.is_empty() && !state.ended {
            state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.lines.is_empty() {
            return;
        }
        if !state.ended {
            // One write for what comes within the batch time: a busy service is not slowed by its log.
            let waited = shared.filled.wait_timeout_while(state, BATCH, |state| !state.ended);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        std::mem::swap(&mut batch, &mut state.lines);
        let dropped = std::mem::take(&mut state.dropped);
        state.writing = true;
        drop(state);

        // Nobody is left to tell when the log itself cannot be written.
        drop(output.write_all(&batch));
        if dropped > 0 {
            drop(output.write_all(&lines_dropped(format, dropped)));
        }
        drop(output.flush());
        batch.clear();
        batch.shrink_to(64 << 10);

        let mut state = shared.lock();
        state.writing = false;
        if state.lines.is_empty() {
            shared.emptied.notify_all();
        }
    }
}

/// The line that says how many lines are missing.
fn lines_dropped(format: Format, count: u64) -> Vec<u8> {
    const MESSAGE: &str = "log lines dropped";
    let time = timestamp();
    match format {
        Format::Json => {
            format!(r#"{{"timestamp":"{time}","level":"WARN","message":"{MESSAGE}","count":{count}}}"#) + "\n"
        }
        Format::Text => format!("{time}  WARN {MESSAGE} count={count}\n"),
    }
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use serde_json::Value;
    use tracing::{info, subscriber::with_default, warn};

    use super::*;

    /// Hands over what is written, and waits for leave before each write.
    struct Gated {
        leave: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.leave.recv().is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.written.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated(format: Format) -> (Sink, Flush, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let (leave, gate) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let (sink, flush) = Sink::try_new(Gated { leave: gate, written }, format).unwrap();
        (sink, flush, leave, lines)
    }

    fn all(flush: Flush, leave: &mpsc::Sender<()>, lines: &mpsc::Receiver<Vec<u8>>) -> String {
        for _ in 0..10_000 {
            let _sent = leave.send(());
        }
        flush.finish();
        String::from_utf8(lines.try_iter().flatten().collect()).unwrap()
    }

    #[test]
    fn no_line_is_lost_at_the_end() {
        let (sink, flush, leave, lines) = gated(Format::Json);
        for n in 0..1000 {
            sink.take(format!("line {n}\n").as_bytes(), Rank::Usual);
        }
        assert_eq!(all(flush, &leave, &lines).lines().count(), 1000);
    }

    /// As many lines as there are, and what is missing is said as every other line is.
    #[test]
    fn an_output_that_blocks_blocks_nobody_and_what_was_dropped_is_said() {
        for format in [Format::Json, Format::Text] {
            let (sink, flush, leave, lines) = gated(format);
            let said = 20_000;
            let settings = crate::ops::log::Settings { format, ..Default::default() };
            let (subscriber, _control) = crate::ops::log::subscriber(&settings, None, sink);
            with_default(subscriber, || {
                for _ in 0..said {
                    info!(text = "x".repeat(100), "said");
                }
            });
            let all = all(flush, &leave, &lines);
            assert!(all.len() < 3 * CAPACITY);
            let (mut written, mut dropped) = (0, 0);
            for line in all.lines() {
                let count = if format == Format::Json {
                    let line: Value = serde_json::from_str(line).unwrap();
                    assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
                    line["count"].as_u64().inspect(|_| assert_eq!(line["level"], "WARN"))
                } else {
                    let mut words = line.split_ascii_whitespace();
                    assert!(
                        words.next().is_some_and(|time| time.ends_with('Z') && time.len() == 27),
                        "{line}"
                    );
                    let count = line.split_once(" count=").map(|(_, count)| count.parse().unwrap());
                    assert_eq!(words.next(), Some(if count.is_some() { "WARN" } else { "INFO" }), "{line}");
                    count
                };
                match count {
                    Some(count) => dropped += count,
                    None => written += 1,
                }
            }
            assert!(dropped > 0);
            assert_eq!(written + dropped, said);
        }
    }

    /// Strangers, and what only a developer wants to know, fill a part of the buffer; the rest is for deliveries,
    /// warnings and errors.
    #[test]
    fn a_flood_does_not_take_the_place_of_what_must_not_be_missing() {
        for format in [Format::Json, Format::Text] {
            let (sink, flush, leave, lines) = gated(format);
            let settings = crate::ops::log::Settings { format, level: "trace".into() };
            let (subscriber, _control) = crate::ops::log::subscriber(&settings, None, sink);
            with_default(subscriber, || {
                for _ in 0..10_000 {
                    info!(target: STRANGERS, text = "x".repeat(100), "refused");
                    tracing::debug!(text = "x".repeat(100), "detail");
                    info!(target: "other", text = "x".repeat(100), "news of a library");
                }
                for _ in 0..1000 {
                    info!(text = "x".repeat(100), "delivery");
                    warn!(target: "other", text = "x".repeat(100), "warning");
                }
            });
            let all = all(flush, &leave, &lines);
            let count = |text: &str| all.lines().filter(|line| line.contains(text)).count();
            assert_eq!((count("delivery"), count("warning")), (1000, 1000));
            assert!(count("refused") > 500 && count("log lines dropped") > 0);
        }
    }

    #[test]
    fn a_closed_output_is_no_error() {
        let (sink, flush, leave, lines) = gated(Format::Json);
        drop((leave, lines));
        sink.take(b"line\n", Rank::Kept);
        flush.finish();
    }
}
