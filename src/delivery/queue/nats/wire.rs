//! Deliveries as they are written to their stream, and the subjects of everything.
//!
//! A delivery is one message: the body as it came, and everything else in one header. Its subject ends in a digest of
//! webhook and ID, so that the server itself refuses a second one: see [`delivery`](super).

use std::time::SystemTime;

use async_nats::{HeaderMap, jetstream::message::StreamMessage};
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use crate::delivery::{
    destination::{MediaType, Parcel},
    queue::{Delivery, JobId, Recipient},
};

/// The names of streams and subjects.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// The stream of deliveries, and the first word of every subject.
    pub(super) deliveries: String,
    /// The stream of the jobs' records.
    pub(super) jobs: String,
}

/// Environments are spread over this many subjects where order matters, each with a consumer of its own.
const PARTITIONS: u64 = 16;

impl Names {
    pub(super) fn new(stream: &str) -> Self {
        Self { deliveries: stream.to_owned(), jobs: format!("{stream}_JOBS") }
    }

    /// Everything in the stream of deliveries.
    pub(super) fn all_deliveries(&self) -> String {
        format!("{}.d.>", self.deliveries)
    }

    /// Everything in the stream of records: the records, and a mark for each dead letter.
    pub(super) fn all_jobs(&self) -> [String; 2] {
        [format!("{}.j.>", self.deliveries), self.all_marks()]
    }

    /// The marks of the dead.
    pub(super) fn all_marks(&self) -> String {
        format!("{}.x.>", self.deliveries)
    }

    /// Where a delivery goes. Its partition and key are there for destinations that want order or the newest only.
    pub(super) fn delivery(&self, delivery: &Delivery) -> String {
        let environment = delivery.environment.as_deref().unwrap_or_default();
        let ordered = delivery.destinations.iter().any(|(_, policy)| policy.in_order);
        let partition = if ordered { 1 + xxh3_64(environment.as_bytes()) % PARTITIONS } else { 0 };
        let key = if delivery.destinations.iter().any(|(_, policy)| policy.coalesce.is_some()) {
            let event = delivery.parcel.event.as_bytes();
            hex::encode(xxh3_64(&[environment.as_bytes(), b"\0", event].concat()).to_be_bytes())
        } else {
            "0".to_owned()
        };
        let id = id_digest(delivery.parcel.id.as_bytes());
        format!("{}.d.{}.{partition}.{key}.{id}", self.deliveries, encode(&delivery.webhook))
    }

    /// All deliveries of a webhook.
    pub(super) fn of_webhook(&self, webhook: &str) -> String {
        format!("{}.d.{}.>", self.deliveries, encode(webhook))
    }

    /// All deliveries under an ID.
    pub(super) fn of_id(&self, webhook: Option<&str>, id: &str) -> String {
        let webhook = webhook.map_or_else(|| "*".to_owned(), encode);
        format!("{}.d.{webhook}.*.*.{}", self.deliveries, id_digest(id.as_bytes()))
    }

    /// Deliveries of the same environment and event as that of this subject.
    pub(super) fn alike(&self, subject: &str) -> Option<String> {
        let (head, _) = subject.rsplit_once('.')?;
        (!head.ends_with(".0")).then(|| format!("{head}.*"))
    }

    /// Where the message goes that calls a finished job back.
    pub(super) fn again(&self, subject: &str, job: &JobKey) -> Option<String> {
        let mut words = subject.strip_prefix(&self.deliveries)?.strip_prefix(".d.")?.split('.');
        let (webhook, partition) = (words.next()?, words.next()?);
        let destination = encode(&job.destination);
        Some(format!("{}.d.{webhook}.{partition}.0.again-{}-{destination}", self.deliveries, job.sequence))
    }

    /// A job's record.
    pub(super) fn record(&self, webhook: &str, job: &JobKey) -> String {
        let destination = encode(&job.destination);
        format!("{}.j.{}.{destination}.{}", self.deliveries, encode(webhook), job.sequence)
    }

    /// The mark of a dead letter, so that they can be counted.
    pub(super) fn mark(&self, webhook: &str, job: &JobKey) -> String {
        let destination = encode(&job.destination);
        format!("{}.x.{}.{destination}.{}", self.deliveries, encode(webhook), job.sequence)
    }

    /// Whose record or mark has this subject.
    pub(super) fn read_job(&self, subject: &str) -> Option<(String, JobKey)> {
        let mut words = subject.strip_prefix(&self.deliveries)?.strip_prefix('.')?.splitn(4, '.').skip(1);
        let (webhook, destination) = (decode(words.next()?)?, decode(words.next()?)?);
        Some((webhook, JobKey { sequence: words.next()?.parse().ok()?, destination }))
    }

    /// The consumer that brings a delivery of this subject to a recipient.
    pub(super) fn consumer_of(&self, recipient: &Recipient, in_order: bool, subject: &str) -> Option<String> {
        let mut words = subject.strip_prefix(&self.deliveries)?.strip_prefix(".d.")?.split('.').skip(1);
        let partition: usize = words.next()?.parse().ok()?;
        let mut consumers = self.consumers(recipient, in_order).into_iter();
        let (name, _) = consumers.nth(if in_order { partition } else { 0 })?;
        Some(name)
    }

    /// The consumers of a recipient: their names, and the subjects that they see.
    pub(super) fn consumers(&self, recipient: &Recipient, in_order: bool) -> Vec<(String, String)> {
        let (webhook, destination) = (encode(&recipient.webhook), encode(&recipient.destination));
        let mut name = format!("{webhook}~{destination}");
        if name.len() > 200 {
            // A consumer's name is that of a folder on the server.
            name = hex::encode(Sha256::digest(name.as_bytes()));
        }
        if in_order {
            let filter = |partition| format!("{}.d.{webhook}.{partition}.*.*", self.deliveries);
            (0..=PARTITIONS).map(|partition| (format!("{name}~{partition}"), filter(partition))).collect()
        } else {
            vec![(name, self.of_webhook(&recipient.webhook))]
        }
    }
}

/// A job: the sequence of its delivery, and the destination's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct JobKey {
    pub(super) sequence: u64,
    pub(super) destination: String,
}

impl JobKey {
    pub(super) fn id(&self) -> JobId {
        JobId(format!("{}.{}", self.sequence, self.destination))
    }

    pub(super) fn parse(id: &str) -> Option<Self> {
        let (sequence, destination) = id.split_once('.')?;
        Some(Self { sequence: sequence.parse().ok()?, destination: destination.to_owned() })
    }
}

/// A name as one word of a subject.
fn encode(name: &str) -> String {
    let mut word = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            word.push(char::from(byte));
        } else {
            word.push('=');
            word.push_str(&hex::encode([byte]));
        }
    }
    if word.is_empty() { "=".to_owned() } else { word }
}

fn decode(word: &str) -> Option<String> {
    if word == "=" {
        return Some(String::new());
    }
    let mut parts = word.split('=');
    let mut name = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.split_at_checked(2)?;
        name.push(u8::from_str_radix(byte, 16).ok()?);
        name.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(name).ok()
}

fn id_digest(id: &[u8]) -> String {
    let mut digest = hex::encode(Sha256::digest(id));
    digest.truncate(32);
    digest
}

/// The digest of a body.
pub(super) fn body_digest(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

/// By what the server knows a copy of a delivery for a while, whatever environment its body names.
pub(super) fn message_id(delivery: &Delivery) -> String {
    format!("{}.{}", encode(&delivery.webhook), id_digest(delivery.parcel.id.as_bytes()))
}

/// What the headers of a message take at most, in bytes: with names, ID and kind as long as they may be, and a dozen
/// destinations. A sender can make them longer still by the names in its payload.
pub(super) const HEADERS: usize = 4 << 10;

/// The header with everything about a delivery but its body.
const DELIVERY: &str = "Hookgate-Delivery";
/// The header of a message that calls a finished job back.
const AGAIN: &str = "Hookgate-Again";

/// What the header says. Values of HTTP headers are escaped: they may be any bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) webhook: String,
    content_type: String,
    id: String,
    kind: String,
    signature: String,
    event: String,
    kind_verified: bool,
    traceparent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) environment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) revision: Option<u64>,
    pub(super) destinations: Vec<String>,
    pub(super) digest: String,
    pub(super) size: u64,
}

impl Meta {
    pub(super) fn new(delivery: &Delivery, digest: &str) -> Self {
        let parcel = &delivery.parcel;
        Self {
            webhook: delivery.webhook.clone(),
            content_type: parcel.content_type.as_str().to_owned(),
            id: escape(&parcel.id),
            kind: escape(&parcel.kind),
            signature: escape(&parcel.signature),
            event: escape(&parcel.event),
            kind_verified: parcel.kind_verified,
            traceparent: escape(&parcel.traceparent),
            environment: delivery.environment.clone(),
            revision: delivery.revision,
            destinations: delivery.destinations.iter().map(|(name, _)| name.clone()).collect(),
            digest: digest.to_owned(),
            size: u64::try_from(parcel.body.len()).unwrap_or(u64::MAX),
        }
    }

    /// The headers of a delivery's message.
    pub(super) fn headers(&self) -> HeaderMap {
        header(DELIVERY, self)
    }

    pub(super) fn parcel(&self, body: Bytes) -> Option<Parcel> {
        Some(Parcel {
            body,
            content_type: MediaType::of_stored(self.content_type.as_bytes()),
            id: unescape(&self.id)?,
            kind: unescape(&self.kind)?,
            signature: unescape(&self.signature)?,
            event: unescape(&self.event)?,
            kind_verified: self.kind_verified,
            traceparent: unescape(&self.traceparent)?,
        })
    }

    pub(super) fn delivery_id(&self) -> String {
        shown(&self.id)
    }

    pub(super) fn kind(&self) -> String {
        shown(&self.kind)
    }

    pub(super) fn event(&self) -> String {
        shown(&self.event)
    }

    pub(super) fn is_alike(&self, other: &Self) -> bool {
        self.environment == other.environment && self.event == other.event
    }
}

/// A call for a finished job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Again {
    /// The sequence of its delivery.
    pub(super) sequence: u64,
    pub(super) destination: String,
    /// How often it has been called back, this call included.
    pub(super) generation: u32,
}

impl Again {
    pub(super) fn headers(&self) -> HeaderMap {
        header(AGAIN, self)
    }
}

fn header(name: &str, value: &impl Serialize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // JSON of strings and numbers has no reason to fail; without it the message would be taken for a stranger's.
    headers.insert(name, serde_json::to_string(value).unwrap_or_default());
    headers
}

/// A message of the stream of deliveries.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Delivery(Box<Meta>),
    Again(Again),
}

impl Message {
    /// `None`: it is not ours, or of a version to come.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        if let Some(value) = headers.get(DELIVERY) {
            return serde_json::from_str(value.as_str()).ok().map(Box::new).map(Self::Delivery);
        }
        serde_json::from_str(headers.get(AGAIN)?.as_str()).ok().map(Self::Again)
    }
}

/// A delivery as it is in its stream.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) received: SystemTime,
    pub(super) meta: Meta,
    pub(super) body: Bytes,
}

impl Stored {
    pub(super) fn read(message: StreamMessage) -> Option<Self> {
        match Message::read(&message.headers)? {
            Message::Delivery(meta) => Some(Self {
                sequence: message.sequence,
                subject: message.subject.to_string(),
                received: message.time.into(),
                meta: *meta,
                body: message.payload,
            }),
            Message::Again(_) => None,
        }
    }

    pub(super) fn job(&self, destination: &str) -> JobKey {
        JobKey { sequence: self.sequence, destination: destination.to_owned() }
    }
}

fn escape(value: &HeaderValue) -> String {
    let mut escaped = String::with_capacity(value.len());
    for &byte in value.as_bytes() {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            escaped.push(char::from(byte));
        } else {
            escaped.push('%');
            escaped.push_str(&hex::encode([byte]));
        }
    }
    escaped
}

/// What any bytes were before they were written as `%` and two digits.
pub(super) fn unescaped(escaped: &str) -> Option<Vec<u8>> {
    let mut parts = escaped.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(byte, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Some(bytes)
}

fn unescape(escaped: &str) -> Option<HeaderValue> {
    HeaderValue::from_bytes(&unescaped(escaped)?).ok()
}

/// A header's value as text for users.
fn shown(escaped: &str) -> String {
    unescape(escaped).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_become_words_and_back(name in "\\PC{0,40}") {
            let word = encode(&name);
            prop_assert!(!word.is_empty());
            prop_assert!(word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-=".contains(&b)));
            prop_assert_eq!(decode(&word), Some(name));
        }

        #[test]
        fn header_values_are_kept_byte_for_byte(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let escaped = escape(&value);
                prop_assert!(escaped.is_ascii());
                prop_assert_eq!(unescape(&escaped), Some(value));
            }
        }
    }

    #[test]
    fn headers_have_a_bound() {
        let value = |length| HeaderValue::try_from("v".repeat(length)).unwrap();
        let name = |length| ".".repeat(length);
        let delivery = Delivery {
            webhook: name(64),
            parcel: Parcel {
                body: Bytes::new(),
                content_type: MediaType::JsonUtf8,
                id: value(128),
                kind: value(64),
                signature: value(64),
                event: value(64),
                kind_verified: false,
                traceparent: value(55),
            },
            environment: Some(name(256)),
            revision: Some(u64::MAX),
            destinations: (0..12).map(|_| (name(64), crate::delivery::queue::Policy::default())).collect(),
        };
        let mut headers = Meta::new(&delivery, &body_digest(b"")).headers();
        headers.insert("Nats-Msg-Id", message_id(&delivery));
        headers.insert("Nats-Expected-Last-Subject-Sequence", u64::MAX.to_string());
        let length: usize = headers
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
            .map(|(name, value)| AsRef::<str>::as_ref(name).len() + value.as_str().len() + ": \r\n".len())
            .sum();
        assert!((1 << 10..HEADERS - 100).contains(&length), "{length}");
    }

    #[test]
    fn each_delivery_has_its_consumer() {
        let names = Names::new("S");
        let recipient = Recipient { webhook: "w.1".to_owned(), destination: "app".to_owned() };
        for in_order in [false, true] {
            for (name, filter) in names.consumers(&recipient, in_order) {
                let subject = filter.replace('*', "x").replace('>', "3.x.x");
                assert_eq!(names.consumer_of(&recipient, in_order, &subject), Some(name), "{subject}");
            }
        }
        assert_eq!(names.consumer_of(&recipient, false, "T.d.w.0.0.x"), None);
    }

    #[test]
    fn subjects_of_jobs_are_read_back() {
        let names = Names::new("S");
        let job = JobKey { sequence: 17, destination: "a.b".to_owned() };
        for subject in [names.record("w.1", &job), names.mark("w.1", &job)] {
            assert_eq!(names.read_job(&subject), Some(("w.1".to_owned(), job.clone())));
        }
        assert_eq!(JobKey::parse(&job.id().0), Some(job));
        assert_eq!(JobKey::parse("a.b"), None);
    }
}
