//! The streams, as the engine reads and writes them. Every request has a deadline.

use std::{
    error::Error,
    fmt,
    time::{Duration, SystemTime},
};

use async_nats::{
    Client, HeaderMap,
    connection::State,
    jetstream::{
        self, Context, ErrorCode,
        consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull},
        context::{PublishError, PublishErrorKind},
        message::{AckKind, PublishMessage, StreamMessage},
        response::Response,
        stream::{self, DirectGetErrorKind, RawMessageErrorKind, Stream},
    },
};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use tokio::time::timeout;

use super::{
    record::{Gone, JobRecord, millis},
    wire::{HEADERS, JobKey, Meta, Names, Stored},
};
use crate::delivery::queue::{QueueError, State as JobState};

/// For one request to the server.
pub(super) const REQUEST: Duration = Duration::from_secs(5);

/// How many requests one operation has under way at a time.
pub(super) const AT_ONCE: usize = 32;

/// A connection, and what is stored behind it.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) names: Names,
    /// What of several servers any may answer can be old. With one server there is nobody else to ask.
    alone: bool,
    deliveries: Stream<()>,
    jobs: Stream<()>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Why a message was not stored.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another message came first.
    Stale,
    /// The stream has all the bytes it may have.
    Full,
    /// The server did not take it.
    Failed(QueueError),
}

/// Which message of a stream.
#[derive(Debug, Clone)]
pub(super) enum Which {
    At(u64),
    /// Of this subject.
    Last(String),
}

impl Store {
    pub(super) async fn new(client: Client, names: Names, replicas: usize) -> Result<Self, QueueError> {
        let mut context = jetstream::new(client.clone());
        context.set_timeout(REQUEST);
        let deliveries = context.get_stream_no_info(&names.deliveries).await.map_err(unavailable)?;
        let jobs = context.get_stream_no_info(&names.jobs).await.map_err(unavailable)?;
        Ok(Self { client, context, names, alone: replicas <= 1, deliveries, jobs })
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// What the server says of the two streams: deliveries and jobs.
    pub(super) async fn infos(&self) -> Result<[stream::Info; 2], QueueError> {
        let (deliveries, jobs) = tokio::join!(self.deliveries.get_info(), self.jobs.get_info());
        Ok([deliveries.map_err(unavailable)?, jobs.map_err(unavailable)?])
    }

    /// Stores a message; its sequence. With `expected`, only if that is the last sequence of its subject, 0 for none.
    pub(super) async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        expected: Option<u64>,
    ) -> Result<u64, Refused> {
        if !self.is_connected() {
            return Err(Refused::Failed(disconnected()));
        }
        let mut message = PublishMessage::build().payload(payload);
        // Even if there are none, they would take room.
        if !headers.is_empty() {
            message = message.headers(headers);
        }
        if let Some(expected) = expected {
            message = message.expected_last_subject_sequence(expected);
        }
        let ack = self.context.send_publish(subject, message).await.map_err(refused)?;
        Ok(ack.await.map_err(refused)?.sequence)
    }

    async fn load(&self, stream: &Stream<()>, which: Which) -> Result<Option<StreamMessage>, QueueError> {
        if !self.is_connected() {
            return Err(disconnected());
        }
        if self.alone {
            let get = stream.direct_get_builder();
            let got = match which {
                Which::At(sequence) => get.sequence(sequence).send().await,
                Which::Last(subject) => get.last_by_subject(subject).send().await,
            };
            return match got {
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
                got => got.map(Some).map_err(unavailable),
            };
        }
        let get = stream.raw_message_builder();
        let got = match which {
            Which::At(sequence) => get.sequence(sequence).send().await,
            Which::Last(subject) => get.last_by_subject(subject).send().await,
        };
        match got {
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            got => got.map(Some).map_err(unavailable),
        }
    }

    /// A message of the stream of deliveries.
    pub(super) async fn message(&self, which: Which) -> Result<Option<StreamMessage>, QueueError> {
        self.load(&self.deliveries, which).await
    }

    /// A delivery. `None`: it is gone, or the message is not a delivery.
    pub(super) async fn delivery(&self, sequence: u64) -> Result<Option<Stored>, QueueError> {
        Ok(self.message(Which::At(sequence)).await?.and_then(Stored::read))
    }

    /// A job's delivery, if it is where it was: another one may be there now.
    pub(super) async fn delivery_of(&self, job: &JobKey) -> Result<Option<Stored>, QueueError> {
        Ok(self.delivery(job.sequence).await?.filter(|delivery| delivery.meta.has(job)))
    }

    /// A job's record.
    pub(super) async fn record(&self, job: &JobKey) -> Result<Option<JobRecord>, QueueError> {
        let message = self.load(&self.jobs, Which::Last(self.names.of_job('j', job))).await?;
        Ok(message.map(|message| JobRecord::read(message.sequence, &message.payload)))
    }

    /// The records of some jobs, in their order.
    pub(super) async fn records(
        &self,
        jobs: impl IntoIterator<Item = JobKey>,
    ) -> Result<Vec<(JobKey, Option<JobRecord>)>, QueueError> {
        let records = jobs.into_iter().map(|job| async {
            let record = self.record(&job).await?;
            Ok((job, record))
        });
        join_all(records).await.into_iter().collect()
    }

    /// Writes a job's record in the place of the one that was read.
    ///
    /// A dead letter is marked first: whatever is lost afterwards, none is without its mark. One mark too many can be left.
    pub(super) async fn write(&self, job: &JobKey, mut record: JobRecord) -> Result<(), Refused> {
        let is_dead = record.state == Some(JobState::Dead);
        if is_dead && record.mark.is_none() {
            let mark =
                self.publish(self.names.of_job('x', job), HeaderMap::new(), Bytes::new(), None).await?;
            record.mark = Some(mark);
        }
        let unmarked = if is_dead { None } else { record.mark.take() };
        let payload = record.payload(self.client.max_payload().saturating_sub(HEADERS));
        self.publish(self.names.of_job('j', job), HeaderMap::new(), payload, Some(record.sequence)).await?;
        if let Some(mark) = unmarked
            && let Err(error) = self.delete_record(mark).await
        {
            tracing::debug!(%error, "a job is still counted as a dead letter: the next connection corrects that");
        }
        Ok(())
    }

    /// The jobs that are marked as dead under these subjects.
    pub(super) async fn marked(&self, subjects: String) -> Result<Vec<JobKey>, QueueError> {
        let info = self.jobs.info_builder().subjects(subjects).fetch();
        let mut subjects = info.await.map_err(unavailable)?;
        let mut marked = Vec::new();
        while let Some(subject) = subjects.next().await {
            marked.extend(self.names.read_job(&subject.map_err(unavailable)?.0));
        }
        Ok(marked)
    }

    /// Takes the mark of a job away that is not dead.
    pub(super) async fn unmark(&self, job: &JobKey) -> Result<(), QueueError> {
        self.jobs.purge().filter(self.names.of_job('x', job)).await.map(drop).map_err(unavailable)
    }

    /// Writes what stays of a delivery that goes, if one of its jobs was delivered this lately.
    pub(super) async fn remember(
        &self,
        meta: &Meta,
        delivered: Option<SystemTime>,
        lately: Duration,
    ) -> Result<(), QueueError> {
        let age = |at: SystemTime| SystemTime::now().duration_since(at).unwrap_or_default();
        let Some(delivered) = delivered.filter(|at| age(*at) < lately) else { return Ok(()) };
        let gone = Gone { digest: meta.digest.clone(), finished: millis(delivered) };
        let payload = serde_json::to_vec(&gone).unwrap_or_default().into();
        let subject = self.names.known(&meta.webhook, meta.id.as_bytes());
        self.publish(subject, HeaderMap::new(), payload, None).await?;
        Ok(())
    }

    /// What stayed of a delivery that is gone.
    pub(super) async fn remembered(&self, webhook: &str, id: &[u8]) -> Result<Option<Gone>, QueueError> {
        let message = self.load(&self.jobs, Which::Last(self.names.known(webhook, id))).await?;
        Ok(message.and_then(|message| serde_json::from_slice(&message.payload).ok()))
    }

    /// Deletes a delivery's message. It may be gone already.
    pub(super) async fn delete_delivery(&self, sequence: u64) -> Result<(), QueueError> {
        self.delete(&self.names.deliveries, sequence).await.map(drop)
    }

    /// Deletes a message of the stream of records. False: it is gone already.
    pub(super) async fn delete_record(&self, sequence: u64) -> Result<bool, QueueError> {
        self.delete(&self.names.jobs, sequence).await
    }

    /// Deletes a message. The server would overwrite it first, which takes longer.
    async fn delete(&self, stream: &str, sequence: u64) -> Result<bool, QueueError> {
        const GONE: [ErrorCode; 3] = [
            ErrorCode::SEQUENCE_NOT_FOUND,
            ErrorCode::NO_MESSAGE_FOUND,
            ErrorCode::STREAM_MESSAGE_DELETE_FAILED,
        ];
        let how = serde_json::json!({ "seq": sequence, "no_erase": true });
        let answer = self.context.request(format!("STREAM.MSG.DELETE.{stream}"), &how).await;
        match answer.map_err(unavailable)? {
            Response::Ok(stream::DeleteStatus { success }) => Ok(success),
            Response::Err { error } if GONE.contains(&error.error_code()) => Ok(false),
            Response::Err { error } => Err(unavailable(error)),
        }
    }

    /// Tells the server what became of a message that it brought. It does not answer.
    pub(super) async fn reply(&self, to: &str, kind: AckKind) {
        if self.is_connected() {
            // Without a connection the server brings the message again.
            drop(timeout(REQUEST, self.client.publish(to.to_owned(), kind.into())).await);
        }
    }

    /// Everything that is in the stream of deliveries from `from` on under these subjects, without bodies.
    pub(super) async fn scan_deliveries(&self, filter: String, from: u64) -> Result<Scan, QueueError> {
        Scan::new(&self.deliveries, filter, from, true).await
    }

    /// What is in the stream of records from `from` on under these subjects, what was written longest ago first.
    pub(super) async fn scan_records(&self, filter: String, from: u64) -> Result<Scan, QueueError> {
        Scan::new(&self.jobs, filter, from, false).await
    }

    /// The consumers of the deliveries.
    pub(super) async fn consumers(&self) -> Result<Vec<consumer::Info>, QueueError> {
        let mut found = self.deliveries.consumers();
        let mut consumers = Vec::new();
        while let Some(consumer) = found.next().await {
            consumers.push(consumer.map_err(unavailable)?);
        }
        Ok(consumers)
    }

    /// Creates a consumer of the deliveries, or finds it.
    pub(super) async fn consumer(&self, config: pull::Config) -> Result<PullConsumer, QueueError> {
        self.deliveries.create_consumer(config).await.map_err(unavailable)
    }

    /// Deletes a consumer. It may be gone already.
    pub(super) async fn delete_consumer(&self, name: &str) {
        drop(self.deliveries.delete_consumer(name).await);
    }
}

/// Reads a stream from one end to what is the other end at the start.
pub(super) struct Scan {
    consumer: PullConsumer,
    stream: Stream<()>,
    left: u64,
    batch: std::vec::IntoIter<jetstream::Message>,
}

impl Scan {
    const BATCH: u64 = 256;

    async fn new(
        stream: &Stream<()>,
        filter: String,
        from: u64,
        headers_only: bool,
    ) -> Result<Self, QueueError> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            ack_policy: AckPolicy::None,
            filter_subject: filter,
            headers_only,
            inactive_threshold: 2 * REQUEST,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(unavailable)?;
        let left = consumer.cached_info().num_pending;
        Ok(Self { consumer, stream: stream.clone(), left, batch: Vec::new().into_iter() })
    }

    /// Ends after so many messages.
    pub(super) fn at_most(self, most: u64) -> Self {
        Self { left: self.left.min(most), ..self }
    }

    /// The next message with its sequence.
    pub(super) async fn next(&mut self) -> Result<Option<(u64, jetstream::Message)>, QueueError> {
        loop {
            if let Some(message) = self.batch.next() {
                let sequence = info_of(&message)?.stream_sequence;
                return Ok(Some((sequence, message)));
            }
            if self.left == 0 {
                return Ok(None);
            }
            let wanted = self.left.min(Self::BATCH);
            let fetch =
                self.consumer.fetch().max_messages(usize::try_from(wanted).unwrap_or(1)).expires(REQUEST);
            let mut messages = fetch.messages().await.map_err(unavailable)?;
            let mut batch = Vec::new();
            while let Some(message) = messages.next().await {
                batch.push(message.map_err(|error| failed(&*error))?);
            }
            // Fewer than there were: some were deleted meanwhile.
            self.left = if batch.is_empty() { 0 } else { self.left.saturating_sub(wanted) };
            self.batch = batch.into_iter();
        }
    }

    /// Gives the server's part of it back.
    pub(super) async fn end(self) {
        drop(self.stream.delete_consumer(&self.consumer.cached_info().name).await);
    }
}

/// What the server says of a message that it brought.
pub(super) fn info_of(message: &jetstream::Message) -> Result<jetstream::message::Info<'_>, QueueError> {
    message.info().map_err(|error| failed(&*error))
}

/// The store does not work, for this reason.
pub(super) fn unavailable(error: impl Error) -> QueueError {
    failed(&error)
}

/// The same for an error of any type.
pub(super) fn failed(error: &(impl Error + ?Sized)) -> QueueError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    QueueError::Unavailable(plain(&text))
}

/// The text of an error without what the library writes for those who look for its mistakes.
pub(super) fn plain(text: &str) -> String {
    text.replace(", None", "").replace("Some(\"", "").replace("\")", "")
}

/// There is no connection.
pub(super) fn disconnected() -> QueueError {
    QueueError::Unavailable("there is no connection to NATS".to_owned())
}

fn refused(error: PublishError) -> Refused {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => return Refused::Stale,
        // Nothing was sent. The source has both sizes.
        PublishErrorKind::MaxPayloadExceeded => {
            let sizes = error.source().map(ToString::to_string).unwrap_or_default();
            return Refused::Failed(QueueError::Unavailable(format!(
                "a message would be too large for the NATS server ({sizes}): raise `max_payload` of the server, or lower `server.max_body`"
            )));
        }
        _ => {}
    }
    let told = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    if told.is_some_and(|told| {
        told.error_code() == ErrorCode::STREAM_STORE_FAILED && told.to_string().contains("maximum")
    }) {
        return Refused::Full;
    }
    Refused::Failed(unavailable(error))
}

impl From<Refused> for QueueError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Stale => Self::Unavailable("others keep changing the same".to_owned()),
            Refused::Full => Self::Full,
            Refused::Failed(error) => error,
        }
    }
}
