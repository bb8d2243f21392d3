//! What answers the requests of a server.

use std::{error::Error, sync::Arc};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
};

use super::{
    state::{ConnectionState, Peer},
    unreadable::Unreadable,
};

/// What answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The body of an answer: whole, or a stream that is made while it is sent.
    ///
    /// A stream that has nothing to send right now is not idle: its peer waits for it, so it has all the time it wants.
    /// It does not hear of a peer that has gone before it sends something, so it must send something now and then. Once the drain
    /// begins it is polled again, and should end where [`ConnectionState::is_closing`]; at the cut it is broken off.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;

    /// Answers one request of a connection.
    fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Arc<ConnectionState>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// A connection was opened (`true`) or closed.
    fn connection(&self, opened: bool);

    /// A connection was asked to give its place to a newcomer.
    fn evicted(&self);

    /// Something came that could not be read as a request; `about` says what, and what to do about it.
    fn unreadable(&self, what: Unreadable, about: &str, peer: Peer);
}
