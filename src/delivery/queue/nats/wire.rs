//! Deliveries as they are written to their stream, and the subjects of everything.
//!
//! A delivery is one message: the body as it came, and everything else in one header. Its subject ends in a digest of its
//! ID, so that the server itself refuses a second one. With it a nonce is written that no other delivery has: a job is known
//! by it, and never by a sequence alone, which a stream that was lost or restored gives a second time.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::SystemTime,
};

use async_nats::{HeaderMap, jetstream::message::StreamMessage};
use bytes::Bytes;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::delivery::{
    parcel::{Facts, MediaType, Parcel, VerifiedBody},
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

impl Names {
    pub(super) fn new(stream: &str) -> Self {
        Self { deliveries: stream.to_owned(), jobs: format!("{stream}_JOBS") }
    }

    /// Everything in the stream of deliveries.
    pub(super) fn all_deliveries(&self) -> String {
        format!("{}.d.>", self.deliveries)
    }

    /// Everything in the stream of records: the records, a mark for each dead letter, how far consumers are, and IDs of
    /// what is gone.
    pub(super) fn all_jobs(&self) -> [String; 4] {
        ["j", "x", "w", "k"].map(|kind| format!("{}.{kind}.>", self.deliveries))
    }

    /// The records.
    pub(super) fn all_records(&self) -> String {
        format!("{}.j.>", self.deliveries)
    }

    /// The marks of the dead: of all, of a webhook, of a destination, of both.
    pub(super) fn marks(&self, webhook: Option<&str>, destination: Option<&str>) -> String {
        let word = |name: Option<&str>| name.map_or_else(|| "*".to_owned(), encode);
        format!("{}.x.{}.{}.*", self.deliveries, word(webhook), word(destination))
    }

    /// Where a delivery goes.
    pub(super) fn delivery(&self, delivery: &Delivery) -> String {
        let id = id_digest(delivery.parcel.id.as_bytes());
        format!("{}.d.{}.{id}", self.deliveries, encode(&delivery.webhook))
    }

    /// All deliveries of a webhook.
    pub(super) fn of_webhook(&self, webhook: &str) -> String {
        format!("{}.d.{}.>", self.deliveries, encode(webhook))
    }

    /// All deliveries under an ID.
    pub(super) fn of_id(&self, webhook: Option<&str>, id: &str) -> String {
        let webhook = webhook.map_or_else(|| "*".to_owned(), encode);
        format!("{}.d.{webhook}.{}", self.deliveries, id_digest(id.as_bytes()))
    }

    /// Where the message goes that calls a job.
    pub(super) fn again(&self, webhook: &str, job: &JobKey) -> String {
        format!("{}.d.{}.again.{}.{}", self.deliveries, encode(webhook), encode(&job.destination), job.key())
    }

    /// All calls for jobs of a webhook, or of any.
    pub(super) fn calls(&self, webhook: Option<&str>) -> String {
        let webhook = webhook.map_or_else(|| "*".to_owned(), encode);
        format!("{}.d.{webhook}.again.>", self.deliveries)
    }

    /// A job's record.
    pub(super) fn record(&self, webhook: &str, job: &JobKey) -> String {
        self.of_job('j', webhook, job)
    }

    /// The mark of a dead letter, so that they can be counted.
    pub(super) fn mark(&self, webhook: &str, job: &JobKey) -> String {
        self.of_job('x', webhook, job)
    }

    fn of_job(&self, kind: char, webhook: &str, job: &JobKey) -> String {
        let destination = encode(&job.destination);
        format!("{}.{kind}.{}.{destination}.{}", self.deliveries, encode(webhook), job.key())
    }

    /// An ID whose delivery is gone.
    pub(super) fn known(&self, webhook: &str, id: &str) -> String {
        format!("{}.k.{}.{}", self.deliveries, encode(webhook), id_digest(id.as_bytes()))
    }

    /// Every ID whose delivery is gone.
    pub(super) fn all_known(&self) -> String {
        format!("{}.k.>", self.deliveries)
    }

    /// How far a recipient's consumer is.
    pub(super) fn watermark(&self, recipient: &Recipient) -> String {
        let (webhook, destination) = (encode(&recipient.webhook), encode(&recipient.destination));
        format!("{}.w.{webhook}.{destination}", self.deliveries)
    }

    /// Whose record or mark has this subject.
    pub(super) fn read_job(&self, subject: &str) -> Option<(String, JobKey)> {
        let mut words = subject.strip_prefix(&self.deliveries)?.strip_prefix('.')?.splitn(4, '.').skip(1);
        let (webhook, destination) = (decode(words.next()?)?, decode(words.next()?)?);
        let (sequence, nonce) = words.next()?.split_once('-')?;
        Some((webhook, JobKey { sequence: sequence.parse().ok()?, nonce: nonce.to_owned(), destination }))
    }

    /// The name of a recipient's consumer.
    pub(super) fn consumer(&self, recipient: &Recipient) -> String {
        let name = format!("{}~{}", encode(&recipient.webhook), encode(&recipient.destination));
        // A consumer's name is that of a folder on the server.
        if name.len() > 200 { hex::encode(Sha256::digest(name.as_bytes())) } else { name }
    }
}

/// A job: its delivery, by nonce and by where it is, and the destination's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct JobKey {
    pub(super) sequence: u64,
    pub(super) nonce: String,
    pub(super) destination: String,
}

impl JobKey {
    /// What users call it.
    pub(super) fn id(&self) -> JobId {
        JobId(format!("{}.{}", self.sequence, self.destination))
    }

    fn key(&self) -> String {
        format!("{}-{}", self.sequence, self.nonce)
    }

    /// The sequence of the delivery and the name of the destination that a user means.
    pub(super) fn parse(id: &str) -> Option<(u64, &str)> {
        let (sequence, destination) = id.split_once('.')?;
        Some((sequence.parse().ok()?, destination))
    }
}

/// Bytes as text in which others than these are written as a mark and two digits.
fn written(bytes: &[u8], mark: char, stays: impl Fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if stays(byte) {
            text.push(char::from(byte));
        } else {
            text.push(mark);
            text.push_str(&hex::encode([byte]));
        }
    }
    text
}

/// What was written so.
fn read(text: &str, mark: char) -> Option<Vec<u8>> {
    let mut parts = text.split(mark);
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(byte, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    Some(bytes)
}

/// A name as one word of a subject.
fn encode(name: &str) -> String {
    let stays = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let word = written(name.as_bytes(), '=', stays);
    if word.is_empty() { "=".to_owned() } else { word }
}

fn decode(word: &str) -> Option<String> {
    if word == "=" { Some(String::new()) } else { String::from_utf8(read(word, '=')?).ok() }
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
pub(super) const HEADERS: usize = 8 << 10;

/// The header with everything about a delivery but its body.
const DELIVERY: &str = "Hookgate-Delivery";
/// The header of a message that calls a finished job back.
const AGAIN: &str = "Hookgate-Again";

/// What the header says. Values of HTTP headers are escaped: they may be any bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Meta {
    /// No other delivery has it.
    nonce: String,
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
    pub(super) facts: Facts,
    pub(super) destinations: Vec<String>,
    pub(super) digest: String,
    pub(super) size: u64,
}

impl Meta {
    pub(super) fn new(delivery: &Delivery, digest: &str) -> Self {
        let parcel = &delivery.parcel;
        Self {
            nonce: nonce(),
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
            facts: delivery.facts.clone(),
            destinations: delivery.destinations.iter().map(|(name, _)| name.clone()).collect(),
            digest: digest.to_owned(),
            size: u64::try_from(parcel.body.bytes().len()).unwrap_or(u64::MAX),
        }
    }

    /// The headers of a delivery's message.
    pub(super) fn headers(&self) -> HeaderMap {
        header(DELIVERY, self)
    }

    pub(super) fn parcel(&self, body: Bytes, received: SystemTime) -> Option<Parcel> {
        Some(Parcel {
            body: VerifiedBody::stored(body),
            content_type: MediaType::of_stored(self.content_type.as_bytes()),
            id: unescape(&self.id)?,
            kind: unescape(&self.kind)?,
            signature: unescape(&self.signature)?,
            event: unescape(&self.event)?,
            kind_verified: self.kind_verified,
            traceparent: unescape(&self.traceparent)?,
            received,
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

    /// The job of one of its destinations. `sequence` is that of its message.
    pub(super) fn job(&self, sequence: u64, destination: &str) -> JobKey {
        JobKey { sequence, nonce: self.nonce.clone(), destination: destination.to_owned() }
    }

    /// Whether a job is of this delivery.
    pub(super) fn has(&self, job: &JobKey) -> bool {
        self.nonce == job.nonce && self.destinations.contains(&job.destination)
    }
}

/// A number that does not come again and that nobody can guess: the keys of the hasher are those of the system.
fn nonce() -> String {
    hex::encode(RandomState::new().build_hasher().finish().to_be_bytes())
}

/// A call for a job: it is to be brought once more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Again {
    /// The sequence and the nonce of its delivery.
    sequence: u64,
    nonce: String,
    pub(super) destination: String,
    /// How often it has been called after an end, this call included.
    pub(super) calls: u32,
}

impl Again {
    pub(super) fn new(job: &JobKey, calls: u32) -> Self {
        let JobKey { sequence, nonce, destination } = job.clone();
        Self { sequence, nonce, destination, calls }
    }

    pub(super) fn job(&self) -> JobKey {
        let Self { sequence, nonce, destination, .. } = self.clone();
        JobKey { sequence, nonce, destination }
    }

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
    pub(super) fn read(headers: Option<&HeaderMap>) -> Option<Self> {
        let headers = headers?;
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
        match Message::read(Some(&message.headers))? {
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
        self.meta.job(self.sequence, destination)
    }

    /// Its jobs.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobKey> {
        self.meta.destinations.iter().map(|destination| self.job(destination))
    }
}

/// Any bytes as printable text.
pub(super) fn escaped(bytes: &[u8]) -> String {
    written(bytes, '%', |byte| (0x20..0x7f).contains(&byte) && byte != b'%')
}

/// What any bytes were before they were written as `%` and two digits.
pub(super) fn unescaped(escaped: &str) -> Option<Vec<u8>> {
    read(escaped, '%')
}

fn escape(value: &HeaderValue) -> String {
    escaped(value.as_bytes())
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
    use crate::webhook::payload::User;
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

    /// A project and so on that are as long as they may be.
    fn longest_facts() -> Facts {
        let (name, word) = (Some(".".repeat(128)), Some(".".repeat(64)));
        Facts {
            organization: name.clone(),
            project: name.clone(),
            environment: name.clone(),
            stack: name.clone(),
            tag: name.clone(),
            revision: Some(u64::MAX),
            action: word.clone(),
            operation: word.clone(),
            result: word,
            drift: Some(false),
            changes: vec![(".".repeat(64), u64::MAX); 16],
            user: Some(User { name: name.clone(), login: name }),
            link: Some(".".repeat(512)),
        }
    }

    #[test]
    fn headers_have_a_bound() {
        let value = |length| HeaderValue::try_from("v".repeat(length)).unwrap();
        let name = |length| ".".repeat(length);
        let delivery = Delivery {
            webhook: name(64),
            parcel: Parcel {
                body: VerifiedBody::stored(Bytes::new()),
                content_type: MediaType::JsonUtf8,
                id: value(128),
                kind: value(64),
                signature: value(64),
                event: value(64),
                kind_verified: false,
                traceparent: value(55),
                received: SystemTime::UNIX_EPOCH,
            },
            environment: Some(name(256)),
            revision: Some(u64::MAX),
            facts: longest_facts(),
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
    fn subjects_of_jobs_are_read_back() {
        let names = Names::new("S");
        let job = JobKey { sequence: 17, nonce: "0a".to_owned(), destination: "a.b".to_owned() };
        for subject in [names.record("w.1", &job), names.mark("w.1", &job)] {
            assert_eq!(names.read_job(&subject), Some(("w.1".to_owned(), job.clone())));
        }
        assert_eq!(JobKey::parse(&job.id().0), Some((17, "a.b")));
        assert_eq!(JobKey::parse("a.b"), None);
    }
}
