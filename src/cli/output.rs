//! Standard output and standard error for the commands.
//!
//! A reader that has seen enough (`hookgate check | head -1`) ends no command: from then on what is written is
//! dropped, and the exit status stays what it would have been.

use std::{
    fmt,
    io::{self, Write},
};

use super::Failure;
use crate::config::is_hidden;

/// Where a command prints. `write!` and `writeln!` work on it.
pub(super) struct Out<W> {
    sink: W,
    closed: bool,
}

impl<W: Write> Out<W> {
    pub(super) const fn new(sink: W) -> Self {
        Self { sink, closed: false }
    }

    /// What `write!` and `writeln!` call.
    pub(super) fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        self.write(|sink| sink.write_fmt(text))
    }

    /// Writes bytes as they are.
    pub(super) fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.write(|sink| sink.write_all(bytes))
    }

    fn write(&mut self, write: impl FnOnce(&mut W) -> io::Result<()>) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        match write(&mut self.sink).and_then(|()| self.sink.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(Failure::Failed(format!("cannot write to standard output: {error}"))),
        }
    }
}

/// Says on standard error what went wrong. Where nobody reads that either there is nobody left to tell.
pub(super) fn complain(sentence: &impl fmt::Display) {
    writeln!(io::stderr(), "hookgate: {sentence}").ok();
}

/// Prints a report on standard error as it is.
pub(super) fn report(report: &impl fmt::Display) {
    writeln!(io::stderr(), "{report}").ok();
}

/// Text of somebody else, safe to print: what cannot be seen as what it is or reorders text is escaped, line breaks
/// and tabs stay if `lines`.
pub(super) fn printable(bytes: &[u8], lines: bool) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        if lines && matches!(c, '\n' | '\t') || !is_hidden(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_default());
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes one line, then says that its reader is gone.
    struct Head(Vec<u8>);

    impl Write for Head {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.contains(&b'\n') {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let mut out = Out::new(Head(Vec::new()));
        for line in ["first\n", "second\n", "third\n"] {
            write!(out, "{line}").unwrap();
        }
        assert_eq!(out.sink.0, b"first\n");
    }

    #[test]
    fn a_full_disk_is_one() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let failure = writeln!(Out::new(Full), "x").unwrap_err();
        assert!(failure.to_string().starts_with("cannot write to standard output"), "{failure}");
    }

    #[test]
    fn what_others_wrote_cannot_move_the_cursor() {
        assert_eq!(printable(b"a\x1b[2Jb\r\n\tc", true), "a\\u{1b}[2Jb\\r\n\tc");
        assert_eq!(printable(b"a\nb", false), "a\\nb");
        assert_eq!(printable("é\u{202e}🍹".as_bytes(), true), "é\\u{202e}🍹");
        assert_eq!(printable(b"\xff", true), "\u{fffd}");
        // Directions, no width, and spaces that look like another.
        for hidden in "\u{61c}\u{200b}\u{200c}\u{200d}\u{200f}\u{2060}\u{2066}\u{2069}\u{2028}\u{feff}\u{ad}\u{a0}\u{e0041}".chars()
        {
            let shown = printable(format!("a{hidden}b").as_bytes(), true);
            assert_eq!(shown, format!("a{}b", hidden.escape_default()), "{hidden:?}");
            assert!(shown.is_ascii());
        }
    }
}
