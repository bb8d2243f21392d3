//! Writes log lines on a thread of its own, in batches, through a bounded buffer.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

/// Bytes of lines that wait to be written.
const CAPACITY: usize = 1 << 20;

/// How long lines are gathered before they are written together.
const BATCH: Duration = Duration::from_millis(10);

/// How long the last lines may take when the service ends.
const LAST: Duration = Duration::from_secs(2);

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
    /// A sink that writes to `output` on a new thread.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn try_new(output: impl Write + Send + 'static) -> io::Result<(Self, Flush)> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("log".into()).spawn(move || write_batches(&writer, output))?;
        Ok((Self(Arc::clone(&shared)), Flush { shared, thread: Some(thread) }))
    }

    /// Takes a whole line, with its end.
    pub fn take(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.lines.len().saturating_add(line.len()) > CAPACITY {
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

/// For those who write a whole line at once.
impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.take(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

fn write_batches(shared: &Shared, mut output: impl Write) {
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
            drop(writeln!(output, r#"{{"level":"WARN","message":"log lines dropped","count":{dropped}}}"#));
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

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

    #[test]
    fn no_line_is_lost_at_the_end() {
        let (leave, gate) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let (mut sink, flush) = Sink::try_new(Gated { leave: gate, written }).unwrap();
        for n in 0..1000 {
            writeln!(sink, "line {n}").unwrap();
            leave.send(()).unwrap();
        }
        flush.finish();
        let all: Vec<u8> = lines.try_iter().flatten().collect();
        assert_eq!(String::from_utf8(all).unwrap().lines().count(), 1000);
    }

    #[test]
    fn an_output_that_blocks_blocks_nobody_and_what_was_dropped_is_said() {
        let (leave, gate) = mpsc::channel();
        let (written, lines) = mpsc::channel();
        let (mut sink, flush) = Sink::try_new(Gated { leave: gate, written }).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..4096 {
            sink.write_all(&line).unwrap();
        }
        for _ in 0..10_000 {
            let _sent = leave.send(());
        }
        flush.finish();
        let all: Vec<u8> = lines.try_iter().flatten().collect();
        assert!(all.len() < 3 * CAPACITY);
        assert!(String::from_utf8(all).unwrap().contains("log lines dropped"));
    }

    #[test]
    fn a_closed_output_is_no_error() {
        let (leave, gate) = mpsc::channel();
        let (written, _) = mpsc::channel();
        drop(leave);
        let (mut sink, flush) = Sink::try_new(Gated { leave: gate, written }).unwrap();
        sink.write_all(b"line\n").unwrap();
        flush.finish();
    }
}
