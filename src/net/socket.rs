//! What a connection goes over, and whether it is quiet.
//!
//! Before a connection is used again, the system itself is asked, by one call, what has come on it. The runtime only knows
//! what it has last heard: an answer that nobody asked for, or a close, may lie in the socket for a while before.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

/// What a connection goes over.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    /// Whether the other side has neither closed the connection nor said anything that could be taken for an answer.
    fn is_quiet(&mut self) -> bool;
}

impl Socket for TcpStream {
    fn is_quiet(&mut self) -> bool {
        recv(&*self, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
    }
}

impl Socket for UnixStream {
    fn is_quiet(&mut self) -> bool {
        recv(&*self, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
    }
}

/// So many reads find the end of what a server sends between two answers: session tickets, new keys. More is not waited for.
const READS: usize = 4;

/// Session tickets and new keys are not an answer, and are taken in. Anything else is: data, a close, half a record.
impl Socket for TlsStream<Below> {
    fn is_quiet(&mut self) -> bool {
        let (below, session) = self.get_mut();
        for _ in 0..READS {
            let read = session.read_tls(below);
            let Ok(state) = session.process_new_packets() else { return false };
            if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
                return false;
            }
            match read {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return below.records.are_whole(),
                Ok(0) | Err(_) => return false,
            }
        }
        false
    }
}

/// The TCP connection below TLS. It keeps count of the records that were read off it.
#[derive(Debug)]
pub struct Below {
    socket: TcpStream,
    records: Records,
}

impl Below {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, records: Records::default() }
    }
}

/// Reads what is there already, past the runtime.
impl io::Read for Below {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (count, _) = recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT)?;
        self.records.pass(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

impl AsyncRead for Below {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        self.records.pass(buffer.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Below {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Where one is among the records of TLS. TLS itself does not tell that it has half of one, which may become an answer.
#[derive(Debug, Default)]
struct Records {
    /// Bytes of the record's head that were passed.
    head: usize,
    /// Bytes of the record that are to come behind its head.
    left: usize,
}

impl Records {
    /// The head of a record: a type, a version of two bytes, a length of two bytes.
    const HEAD: usize = 5;
    const LENGTH_AT: usize = 3;

    fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.head < Self::HEAD {
                if self.head >= Self::LENGTH_AT {
                    self.left = self.left << 8 | usize::from(*first);
                }
                self.head += 1;
                bytes = rest;
            } else {
                let here = self.left.min(bytes.len());
                self.left -= here;
                bytes = bytes.get(here..).unwrap_or_default();
            }
            if self.head == Self::HEAD && self.left == 0 {
                self.head = 0;
            }
        }
    }

    /// Whether nothing is missing of what was passed.
    const fn are_whole(&self) -> bool {
        self.head == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole_at_their_ends_only() {
        let bytes =
            [&b"\x16\x03\x03\x00\x02ab"[..], b"\x17\x03\x03\x01\x00", &[7; 256], b"\x14\x03\x03\x00\x00"];
        let (bytes, ends) = (bytes.concat(), [0, 7, 7 + 5 + 256, 7 + 5 + 256 + 5]);
        for piece in [1, 2, 3, 7, 1000] {
            for end in 0..=bytes.len() {
                let mut records = Records::default();
                bytes[..end].chunks(piece).for_each(|piece| records.pass(piece));
                assert_eq!(records.are_whole(), ends.contains(&end), "{end} by {piece}");
            }
        }
    }
}
