//! The body of an answer on its way: when it is made, whether it goes on, and its end at the cut.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::state::ConnectionState;

/// A body that tells its connection about itself. hyper drops it once it has taken all of it.
#[derive(Debug)]
pub(super) struct Answering<B> {
    body: B,
    state: Arc<ConnectionState>,
    /// Whether any of it was taken.
    begun: bool,
}

impl<B> Answering<B> {
    /// The answer begins.
    pub(super) fn new(body: B, state: Arc<ConnectionState>) -> Self {
        state.answer_begins();
        Self { body, state, begun: false }
    }
}

/// All of it is made, or nobody wants it.
impl<B> Drop for Answering<B> {
    fn drop(&mut self) {
        self.state.answer_ends();
    }
}

impl<B> Body for Answering<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Unpin,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() && self.state.is_cut() {
            return Poll::Ready(Some(Err("cut off by the end of the service".into())));
        }
        let frame = ready!(frame);
        // Of a whole answer nothing comes after its first piece.
        if std::mem::replace(&mut self.begun, true)
            && let Some(Ok(frame)) = &frame
        {
            self.state.streamed(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
