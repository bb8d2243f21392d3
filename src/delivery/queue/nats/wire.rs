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

    /// Everything of a kind. In the stream of deliveries these are the deliveries, `d`, and in that of records the records,
    /// `j`, a mark for each dead letter, `x`, and IDs of what is gone, `k`.
    pub(super) fn all(&self, kind: char) -> String {
        format!("{}.{kind}.>", self.deliveries)
    }

    /// The marks of the dead: of all, of a webhook, of a destination, of both.
    pub(super) fn marks(&self, webhook: Option<&str>, destination: Option<&str>) -> String {
        format!("{}.x.{}.{}.*", self.deliveries, word(webhook), word(destination))
    }

    /// All deliveries of a webhook, and calls.
    pub(super) fn of_webhook(&self, webhook: &str) -> String {
        format!("{}.d.{}.>", self.deliveries, encode(webhook))
    }

    /// Where deliveries under an ID go.
    pub(super) fn of_id(&self, webhook: Option<&str>, id: &[u8]) -> String {
        format!("{}.d.{}.{}", self.deliveries, word(webhook), id_digest(id))
    }

    /// An ID whose delivery is gone.
    pub(super) fn known(&self, webhook: &str, id: &[u8]) -> String {
        format!("{}.k.{}.{}", self.deliveries, encode(webhook), id_digest(id))
    }

    /// Where the message goes that calls a job.
    pub(super) fn again(&self, job: &JobKey) -> String {
        let JobKey { webhook, destination, sequence, nonce } = job;
        format!("{}.d.{}.again.{}.{sequence}-{nonce}", self.deliveries, encode(webhook), encode(destination))
    }

    /// All calls for jobs of a webhook, or of any.
    pub(super) fn calls(&self, webhook: Option<&str>) -> String {
        format!("{}.d.{}.again.>", self.deliveries, word(webhook))
    }

    /// A job's record, `j`, or the mark that it is dead, `x`, so that they can be counted.
    pub(super) fn of_job(&self, kind: char, job: &JobKey) -> String {
        let JobKey { webhook, destination, sequence, nonce } = job;
        format!("{}.{kind}.{}.{}.{sequence}-{nonce}", self.deliveries, encode(webhook), encode(destination))
    }

    /// Whose record or mark has this subject.
    pub(super) fn read_job(&self, subject: &str) -> Option<JobKey> {
        let mut words = subject.strip_prefix(&self.deliveries)?.strip_prefix('.')?.splitn(4, '.').skip(1);
        let (webhook, destination) = (decode(words.next()?)?, decode(words.next()?)?);
        let (sequence, nonce) = words.next()?.split_once('-')?;
        Some(JobKey { webhook, destination, sequence: sequence.parse().ok()?, nonce: nonce.to_owned() })
    }

    /// The name of a recipient's consumer.
    pub(super) fn consumer(&self, recipient: &Recipient) -> String {
        let name = format!("{}~{}", encode(&recipient.webhook), encode(&recipient.destination));
        // A consumer's name is that of a folder on the server.
        if name.len() > 200 { hex::encode(Sha256::digest(name.as_bytes())) } else { name }
    }
}

/// A name as one word of a subject, or any.
fn word(name: Option<&str>) -> String {
    name.map_or_else(|| "*".to_owned(), encode)
}

/// A job: where it goes, and its delivery, by nonce and by where it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct JobKey {
    pub(super) webhook: String,
    pub(super) destination: String,
    pub(super) sequence: u64,
    pub(super) nonce: String,
}

impl JobKey {
    /// What users call it.
    pub(super) fn id(&self) -> JobId {
        JobId(format!("{}.{}", self.sequence, self.destination))
    }

    /// The sequence of the delivery and the name of the destination that a user means.
    pub(super) fn parse(id: &str) -> Option<(u64, &str)> {
        let (sequence, destination) = id.split_once('.')?;
        Some((sequence.parse().ok()?, destination))
    }

    pub(super) fn recipient(&self) -> Recipient {
        Recipient { webhook: self.webhook.clone(), destination: self.destination.clone() }
    }

    pub(super) fn is_of(&self, recipient: &Recipient) -> bool {
        self.webhook == recipient.webhook && self.destination == recipient.destination
    }
}

/// A name as one word of a subject: what it cannot hold is written as `=` and two digits.
fn encode(name: &str) -> String {
    if name.is_empty() {
        return "=".to_owned();
    }
    let mut word = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            word.push(char::from(byte));
        } else {
            word.push('=');
            word.push_str(&hex::encode([byte]));
        }
    }
    word
}

fn decode(word: &str) -> Option<String> {
    if word == "=" { Some(String::new()) } else { unmarked(word, '=') }
}

/// A text without the marks that stand before two digits.
pub(super) fn unmarked(text: &str, mark: char) -> Option<String> {
    let mut parts = text.split(mark);
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (byte, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(byte, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

fn id_digest(id: &[u8]) -> String {
    let mut digest = hex::encode(Sha256::digest(id));
    digest.truncate(32);
    digest
}

/// What the headers of a message take at most, in bytes: with names, ID and kind as long as they may be, and a dozen
/// destinations. A sender can make them longer still by the names in its payload.
pub(super) const HEADERS: usize = 8 << 10;

/// The header with everything about a delivery but its body.
const DELIVERY: &str = "Hookgate-Delivery";
/// The header of a message that calls a finished job back.
const AGAIN: &str = "Hookgate-Again";

/// What the header says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Meta {
    /// No other delivery has it.
    nonce: String,
    pub(super) webhook: String,
    content_type: String,
    #[serde(with = "text")]
    pub(super) id: HeaderValue,
    #[serde(with = "text")]
    pub(super) kind: HeaderValue,
    #[serde(with = "text")]
    signature: HeaderValue,
    #[serde(with = "text")]
    pub(super) event: HeaderValue,
    kind_verified: bool,
    #[serde(with = "text")]
    traceparent: HeaderValue,
    pub(super) environment: Option<String>,
    pub(super) revision: Option<u64>,
    pub(super) facts: Facts,
    pub(super) destinations: Vec<String>,
    pub(super) digest: String,
    pub(super) size: u64,
}

impl Meta {
    pub(super) fn new(delivery: &Delivery) -> Self {
        let Parcel { body, content_type, id, kind, signature, event, kind_verified, traceparent, .. } =
            delivery.parcel.clone();
        Self {
            nonce: nonce(),
            webhook: delivery.webhook.clone(),
            content_type: content_type.as_str().to_owned(),
            id,
            kind,
            signature,
            event,
            kind_verified,
            traceparent,
            environment: delivery.environment.clone(),
            revision: delivery.revision,
            facts: delivery.facts.clone(),
            destinations: delivery.destinations.iter().map(|(name, _)| name.clone()).collect(),
            digest: hex::encode(Sha256::digest(body.bytes())),
            size: u64::try_from(body.bytes().len()).unwrap_or(u64::MAX),
        }
    }

    /// The headers of a delivery's message.
    pub(super) fn headers(&self) -> HeaderMap {
        header(DELIVERY, self)
    }

    pub(super) fn parcel(&self, body: Bytes, received: SystemTime) -> Parcel {
        let body = VerifiedBody::stored(body);
        let Self { id, kind, signature, event, kind_verified, traceparent, .. } = self.clone();
        let content_type = MediaType::of_stored(self.content_type.as_bytes());
        Parcel { body, content_type, id, kind, signature, event, kind_verified, traceparent, received }
    }

    /// The job of one of its destinations. `sequence` is that of its message.
    pub(super) fn job(&self, sequence: u64, destination: &str) -> JobKey {
        let (webhook, destination) = (self.webhook.clone(), destination.to_owned());
        JobKey { webhook, destination, sequence, nonce: self.nonce.clone() }
    }

    /// Whether a job is of this delivery.
    pub(super) fn has(&self, job: &JobKey) -> bool {
        self.nonce == job.nonce && self.webhook == job.webhook && self.destinations.contains(&job.destination)
    }
}

/// A number that does not come again and that nobody can guess: the keys of the hasher are those of the system.
fn nonce() -> String {
    hex::encode(RandomState::new().build_hasher().finish().to_be_bytes())
}

/// A header's value as text for users.
pub(super) fn shown(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// A call for a job: it is to be brought once more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Again {
    #[serde(flatten)]
    pub(super) job: JobKey,
    /// How often it has been called after an end, this call included.
    pub(super) calls: u32,
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
    pub(super) fn read(headers: Option<&HeaderMap>) -> Option<Self> {
        let headers = headers?;
        if let Some(value) = headers.get(DELIVERY) {
            return serde_json::from_str(value.as_str()).ok().map(Box::new).map(Self::Delivery);
        }
        serde_json::from_str(headers.get(AGAIN)?.as_str()).ok().map(Self::Again)
    }

    /// The job that it brings to a recipient. `sequence` is the message's own.
    pub(super) fn job(&self, sequence: u64, recipient: &Recipient) -> Option<JobKey> {
        let job = match self {
            Self::Delivery(meta) => {
                Some(meta.job(sequence, &recipient.destination)).filter(|job| meta.has(job))
            }
            Self::Again(again) => Some(again.job.clone()),
        };
        job.filter(|job| job.is_of(recipient))
    }
}

/// A delivery as it is in its stream. Read without its body, it has none.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) received: SystemTime,
    pub(super) meta: Meta,
    pub(super) body: Bytes,
}

impl Stored {
    /// `None`: it is not a delivery.
    pub(super) fn read(message: StreamMessage) -> Option<Self> {
        let Message::Delivery(meta) = Message::read(Some(&message.headers))? else { return None };
        let (sequence, received) = (message.sequence, message.time.into());
        Some(Self { sequence, received, meta: *meta, body: message.payload })
    }

    pub(super) fn job(&self, destination: &str) -> JobKey {
        self.meta.job(self.sequence, destination)
    }

    /// Its jobs.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobKey> {
        self.meta.destinations.iter().map(|destination| self.job(destination))
    }
}

/// Any bytes as text: each is the character of its number.
pub(super) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(bytes: impl AsRef<[u8]>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&bytes.as_ref().iter().copied().map(char::from).collect::<String>())
    }

    pub(crate) fn deserialize<'de, T: TryFrom<Vec<u8>>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        let bytes: Option<Vec<u8>> = text.chars().map(|char| u8::try_from(char).ok()).collect();
        bytes.and_then(|bytes| T::try_from(bytes).ok()).ok_or_else(|| D::Error::custom("these are not bytes"))
    }
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
                let mut delivery = delivery();
                delivery.parcel.id = value.clone();
                let headers = Meta::new(&delivery).headers();
                let Some(Message::Delivery(read)) = Message::read(Some(&headers)) else { panic!() };
                prop_assert_eq!(read.parcel(Bytes::new(), SystemTime::UNIX_EPOCH).id, value);
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

    /// With everything as long as it may be.
    fn delivery() -> Delivery {
        let value = |length| HeaderValue::try_from("v".repeat(length)).unwrap();
        let name = |length| ".".repeat(length);
        Delivery {
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
        }
    }

    #[test]
    fn headers_have_a_bound() {
        let mut headers = Meta::new(&delivery()).headers();
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
        let job = JobKey {
            webhook: "w.1".to_owned(),
            destination: "a.b".to_owned(),
            sequence: 17,
            nonce: "0a".to_owned(),
        };
        for subject in ['j', 'x'].map(|kind| names.of_job(kind, &job)) {
            assert_eq!(names.read_job(&subject), Some(job.clone()));
        }
        assert_eq!(JobKey::parse(&job.id().0), Some((17, "a.b")));
        assert_eq!(JobKey::parse("a.b"), None);
    }
}
