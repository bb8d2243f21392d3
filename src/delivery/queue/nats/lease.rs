//! Bringing jobs to those who lease them.
//!
//! One request asks the server for as many messages as leases are wanted: it waits until there is one, and ends with what
//! is there. It is made in a task of its own, so that a caller who gives up waiting loses nothing: what is brought then is
//! given back at once.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull},
    message::AckKind,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::oneshot, time::sleep};

use super::{
    Shared,
    enqueue::revive,
    hold::{ACK_WAIT, Brought, InHand, Leased},
    lock,
    record::{JobRecord, time},
    store::{Store, failed, info_of, unavailable},
    wire::{Message, Stored},
};
use crate::delivery::queue::{Job, Lease, QueueError, Recipient};

/// For one request for messages. The server forgets it then.
const PULL: Duration = Duration::from_secs(5);
/// Before the server is asked again after an error.
const PAUSE: Duration = Duration::from_millis(250);
/// How many messages of a recipient may be leased or wait for their next attempt. What is beyond waits for these.
const MAX_PENDING: i64 = 65_536;

impl Shared {
    /// Leases of a recipient.
    pub(super) async fn lease(
        self: &Arc<Self>,
        recipient: &Recipient,
        max: usize,
    ) -> Result<Vec<Lease>, QueueError> {
        loop {
            // What was leased comes to its end first.
            self.closing.run_until_cancelled(self.held.wait(false)).await;
            self.open()?;
            let (found, told) = oneshot::channel();
            let (this, of) = (Arc::clone(self), recipient.clone());
            self.spawn(async move {
                let brought = this.closing.run_until_cancelled(this.bring(&of, max.max(1))).await;
                drop(brought.map(|leases| found.send(leases)));
            });
            match told.await {
                Ok(Ok(leases)) if !leases.is_empty() => return Ok(leases),
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%recipient, %error, "nothing can be leased now");
                    self.closing.run_until_cancelled(sleep(PAUSE)).await;
                }
            }
        }
    }

    /// One request for messages, and what comes of it. There may be nothing among it that is to be delivered now.
    async fn bring(self: &Arc<Self>, recipient: &Recipient, max: usize) -> Result<Vec<Lease>, QueueError> {
        let store = self.ready()?;
        let mut connections = self.connections.subscribe();
        let consumer = self.consumer(store, recipient).await?;
        let fetch = consumer.fetch().max_messages(max).expires(PULL);
        let mut messages = fetch.messages().await.map_err(unavailable)?;
        let mut looked_at = FuturesUnordered::new();
        let mut leases = Vec::new();
        let mut ended = None;
        while ended.is_none() || !looked_at.is_empty() {
            tokio::select! {
                message = messages.next(), if ended.is_none() => match message {
                    Some(Ok(message)) => looked_at.push(self.look(store, recipient, message)),
                    Some(Err(error)) => ended = Some(Err(failed(&*error))),
                    None => ended = Some(Ok(())),
                },
                Some(lease) = looked_at.next(), if !looked_at.is_empty() => leases.extend(lease),
                // Requests do not outlive their connection.
                _ = connections.changed(), if ended.is_none() => ended = Some(Ok(())),
            }
        }
        if let Some(Err(error)) = ended {
            // The consumer may be gone.
            lock(&self.consumers).remove(recipient);
            if leases.is_empty() {
                return Err(error);
            }
        }
        Ok(leases)
    }

    /// A recipient's consumer, which is made if there is none.
    pub(super) async fn consumer(
        &self,
        store: &Store,
        recipient: &Recipient,
    ) -> Result<Arc<PullConsumer>, QueueError> {
        if let Some(known) = lock(&self.consumers).get(recipient) {
            return Ok(Arc::clone(known));
        }
        let name = store.names.consumer(recipient);
        let config = pull::Config {
            durable_name: Some(name.clone()),
            name: Some(name),
            description: Some(recipient.to_string()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            filter_subject: store.names.of_webhook(&recipient.webhook),
            max_ack_pending: MAX_PENDING,
            ..pull::Config::default()
        };
        let consumer = Arc::new(store.consumer(config).await?);
        lock(&self.consumers).insert(recipient.clone(), Arc::clone(&consumer));
        Ok(consumer)
    }

    /// Whether a message is a job for now. If it is not, the server is told.
    async fn look(
        self: &Arc<Self>,
        store: &Store,
        recipient: &Recipient,
        message: jetstream::Message,
    ) -> Option<Lease> {
        let reply = message.message.reply.as_ref()?.to_string();
        match self.looked_at(store, recipient, message, &reply).await {
            Ok(lease) => lease,
            Err(error) => {
                tracing::debug!(%recipient, %error, "a delivery cannot be leased now");
                store.reply(&reply, AckKind::Nak(Some(PAUSE))).await;
                None
            }
        }
    }

    async fn looked_at(
        self: &Arc<Self>,
        store: &Store,
        recipient: &Recipient,
        message: jetstream::Message,
        reply: &str,
    ) -> Result<Option<Lease>, QueueError> {
        let info = info_of(&message)?;
        let (sequence, received) = (info.stream_sequence, SystemTime::from(info.published));
        let Some(read) = Message::read(message.headers.as_ref()) else {
            tracing::error!(sequence, "a message in the queue is not a delivery: it is passed over");
            store.reply(reply, AckKind::Term).await;
            return Ok(None);
        };
        let job = read.job(sequence, recipient);
        // Calls for other destinations are their consumers'.
        let is_call = job.is_some() && matches!(read, Message::Again(_));
        let brought = Brought { reply: reply.to_owned(), sequence, is_call };
        let Some(job) = job else {
            brought.done(store).await;
            return Ok(None);
        };
        let (delivery, calls) = match read {
            Message::Delivery(meta) => {
                (Some(Stored { sequence, received, meta: *meta, body: message.payload.clone() }), 0)
            }
            Message::Again(again) => (store.delivery_of(&job).await?, again.calls),
        };
        let Some(delivery) = delivery else {
            brought.done(store).await;
            return Ok(None);
        };
        let Some(mut in_hand) = InHand::take(self, store, job, brought).await else { return Ok(None) };
        if self.held.trouble().is_some() {
            in_hand.brought.later(store, PAUSE).await;
            return Ok(None);
        }
        let mut found = store.record(&in_hand.job).await?;
        if found.as_ref().is_some_and(|record| !record.unreadable && record.is_called_by(calls)) {
            // Whoever called it did not come to writing that.
            revive(store, &in_hand.job, calls).await?;
            found = store.record(&in_hand.job).await?;
        }
        let record = match found {
            Some(record) if !record.unreadable => record,
            found => {
                let sequence = found.map_or(0, |record| record.sequence);
                if sequence > 0 {
                    let (job, webhook) = (in_hand.job.id(), &recipient.webhook);
                    tracing::error!(%job, webhook, "what was recorded of a delivery cannot be read: it is made once more");
                }
                JobRecord { sequence, calls, ..JobRecord::waiting() }
            }
        };
        if !record.waits(calls) {
            in_hand.brought.done(store).await;
            return Ok(None);
        }
        let left = record.due.and_then(|due| time(due).duration_since(SystemTime::now()).ok());
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            in_hand.brought.later(store, left).await;
            return Ok(None);
        }
        in_hand.goes_back = Some(store.clone());
        let job = Job {
            id: in_hand.job.id(),
            recipient: recipient.clone(),
            parcel: delivery.meta.parcel(delivery.body, delivery.received),
            since: record.since.map_or(delivery.received, time),
            attempts: record.attempts,
            attempts_ever: record.attempts_ever,
        };
        Ok(Some(Lease::new(job, Box::new(Leased { store: store.clone(), in_hand, record }))))
    }
}
