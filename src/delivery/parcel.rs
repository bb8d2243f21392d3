//! A delivery as it is forwarded: what the sender said of it, and what was found out.
//!
//! It knows nobody else here: whoever takes a delivery in makes one, queues keep it, formats and attempts read it.

use std::time::SystemTime;

use hyper::header::HeaderValue;

use crate::webhook::{
    headers::{DeliveryId, EventKind},
    payload::Delivery,
};
pub use crate::webhook::{media_type::MediaType, payload::Facts, signature::VerifiedBody};

/// A delivery as it is forwarded.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// The verified bytes.
    pub body: VerifiedBody,
    /// What `Content-Type` says: one of two fixed values, never the sender's bytes.
    pub content_type: MediaType,
    /// `Pulumi-Webhook-ID` as received.
    pub id: HeaderValue,
    /// `Pulumi-Webhook-Kind` as received.
    pub kind: HeaderValue,
    /// `Pulumi-Webhook-Signature`, in lower case.
    pub signature: HeaderValue,
    /// The filter's name where there is one, else the kind.
    pub event: HeaderValue,
    /// Whether the signed payload proves the kind.
    pub kind_verified: bool,
    /// The trace that the delivery belongs to.
    pub traceparent: HeaderValue,
    /// When it was taken in; in a queue, when it was stored.
    pub received: SystemTime,
}

impl Parcel {
    /// Its facts, read from the body: for the formats that show them. Nothing where it cannot be read, which is so only for
    /// what a store has damaged.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let id = DeliveryId::parse(self.id.as_bytes()).ok();
        let kind = EventKind::parse(self.kind.as_bytes()).ok();
        let delivery = id.zip(kind).and_then(|(id, kind)| Delivery::identify(&self.body, id, kind).ok());
        delivery.map(|delivery| delivery.facts()).unwrap_or_default()
    }
}
