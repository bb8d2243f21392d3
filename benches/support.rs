//! A delivery of any size, and the pure part of its path in the order in which `ingress::receive` goes it.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use hookgate::webhook::{
    event::Event,
    filter::{Events, Filter, KindCheck, Verdict},
    headers::{DeliveryId, EventKind},
    payload::Delivery,
    secret::Secret,
    signature::{Key, Signature, Verifier, sign},
};

/// The sizes that are measured, in bytes.
pub(crate) const SIZES: [(&str, usize); 3] = [("400 B", 400), ("4 KiB", 4 << 10), ("64 KiB", 64 << 10)];

/// The secret of every delivery here.
pub(crate) fn secret() -> Secret {
    Secret::try_new(b"the secret of the benches".into(), false).unwrap()
}

/// One secret, as most webhooks have.
pub(crate) fn verifier() -> Verifier {
    Verifier::new(vec![Key::new("bench".into(), &secret(), None)])
}

/// A filter for one name, and nothing else.
pub(crate) fn filter(event: &str) -> Filter {
    let mut events = Events::default();
    events.add(event, None).unwrap();
    Filter { events, organization: None, environments: None, tags: None, kind_check: KindCheck::Enforce }
}

/// A delivery as it comes.
pub(crate) struct Sample {
    pub(crate) body: Bytes,
    pub(crate) signature: String,
    pub(crate) kind: &'static str,
}

impl Sample {
    /// The sample of a usual event, at least `size` bytes long: the rest is a member that nobody reads.
    pub(crate) fn new(size: usize) -> Self {
        let event = Event::find("environment_revision_created").unwrap();
        let mut body = event.sample_body();
        if body.len() < size {
            let padding = "x".repeat(size - body.len());
            body = format!("{},\"more\":\"{padding}\"}}", body.trim_end_matches('}'));
        }
        let signature = sign(&secret(), body.as_bytes());
        Self { body: body.into(), signature, kind: event.sample_kind() }
    }
}

/// Verify, identify, filter. Whether it is to be forwarded.
pub(crate) fn head_to_toe(verifier: &Verifier, filter: &Filter, sample: &Sample) -> bool {
    let signature = Signature::parse(sample.signature.as_bytes()).unwrap();
    let verified = verifier.verify(sample.body.clone(), &signature, UNIX_EPOCH).unwrap().body;
    let id = DeliveryId::parse(b"8d001000-1c0e-4d6b-8f5e-0e2f4c1f9a11").unwrap();
    let kind = EventKind::parse(sample.kind.as_bytes()).unwrap();
    let delivery = Delivery::identify(&verified, id, kind).unwrap();
    filter.judge(&delivery) == Verdict::Forward
}
