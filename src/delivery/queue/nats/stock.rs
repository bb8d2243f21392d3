//! Counting what there is. What has not changed is not counted again, and what takes long to count is counted less often.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use async_nats::jetstream::consumer;
use tokio::time::Instant;

use super::{
    Shared, lock,
    store::{Store, info_of},
    wire::Message,
};
use crate::delivery::queue::{Depth, QueueError, Recipient, Stock};

/// How many waiting messages are looked at to see for whom they are; beyond, their share is taken for that of the others.
const SAMPLE: u64 = 1024;
/// Counting takes at most one part in so many of the time, but for this.
const SHARE: u32 = 10;
const SELDOM: Duration = Duration::from_secs(15);
/// What takes no longer is done whenever something has changed.
const QUICK: Duration = Duration::from_millis(100);

/// What was counted last.
#[derive(Debug)]
pub(super) struct Counted {
    depths: BTreeMap<Recipient, Depth>,
    /// Where the streams and the consumers were then.
    places: Vec<u64>,
    at: Instant,
    took: Duration,
}

impl Counted {
    /// Whether this still holds, or it would take too long to know.
    fn is_good(&self, places: &[u64]) -> bool {
        let too_soon = self.took > QUICK && self.at.elapsed() < (self.took * SHARE).min(SELDOM);
        self.places == places || too_soon
    }
}

impl Shared {
    pub(super) async fn stock(&self, store: &Store) -> Result<Stock, QueueError> {
        let infos = store.infos().await?;
        let consumers = store.consumers().await?;
        let states = infos.iter().map(|info| &info.state);
        let streams = states.flat_map(|state| [state.last_sequence, state.messages]);
        let brought = |it: &consumer::Info| u64::try_from(it.num_ack_pending).unwrap_or(u64::MAX);
        let consumed = consumers.iter().flat_map(|it| {
            [it.delivered.stream_sequence, it.ack_floor.stream_sequence, it.num_pending, brought(it)]
        });
        let places: Vec<_> = streams.chain(consumed).collect();
        let known = lock(&self.counted).take().filter(|known| known.is_good(&places));
        let counted = match known {
            Some(known) => known,
            None => {
                let began = Instant::now();
                let depths = count(store, &consumers).await?;
                Counted { depths, places, at: began, took: began.elapsed() }
            }
        };
        let depths = counted.depths.iter().map(|(of, depth)| (of.clone(), *depth)).collect();
        *lock(&self.counted) = Some(counted);
        Ok(Stock {
            depths,
            bytes: self.note_bytes(&infos),
            log_bytes: 0,
            max_bytes: self.retention.max_bytes,
            dead_dropped: self.dead_dropped.load(Ordering::Relaxed),
        })
    }
}

async fn count(
    store: &Store,
    consumers: &[consumer::Info],
) -> Result<BTreeMap<Recipient, Depth>, QueueError> {
    let mut depths = BTreeMap::new();
    for consumer in consumers {
        if let Some(recipient) = recipient_of(consumer) {
            let depth = count_waiting(store, &recipient, consumer).await?;
            depths.insert(recipient, depth);
        }
    }
    for job in store.marked(store.names.marks(None, None)).await? {
        let depth: &mut Depth = depths.entry(job.recipient()).or_default();
        depth.dead = depth.dead.saturating_add(1);
    }
    Ok(depths)
}

/// Whose consumer this is. `None`: it is not hookgate's.
pub(super) fn recipient_of(consumer: &consumer::Info) -> Option<Recipient> {
    let (webhook, destination) = consumer.config.description.as_deref()?.split_once('/')?;
    Some(Recipient { webhook: webhook.to_owned(), destination: destination.to_owned() })
}

/// How many jobs of a recipient wait, and since when.
async fn count_waiting(
    store: &Store,
    recipient: &Recipient,
    consumer: &consumer::Info,
) -> Result<Depth, QueueError> {
    let brought = u64::try_from(consumer.num_ack_pending).unwrap_or(u64::MAX);
    let pending = consumer.num_pending;
    // The first one behind what is done was brought, if any was. What was not brought yet may be for other destinations.
    let places = [(consumer.ack_floor, brought.min(1)), (consumer.delivered, pending.min(SAMPLE))];
    let (mut its, mut oldest): (u64, Option<SystemTime>) = (0, None);
    for (place, most) in places.into_iter().filter(|(_, most)| *most > 0) {
        let filter = consumer.config.filter_subject.clone();
        let from = place.stream_sequence.saturating_add(1);
        let mut scan = store.scan_deliveries(filter, from).await?.at_most(most);
        its = 0;
        while let Some((sequence, message)) = scan.next().await? {
            let Some(read) = Message::read(message.headers.as_ref()) else { continue };
            let Some(job) = read.job(sequence, recipient) else { continue };
            its = its.saturating_add(1);
            if oldest.is_none() {
                oldest = match read {
                    Message::Again(_) => store.delivery_of(&job).await?.map(|delivery| delivery.received),
                    Message::Delivery(_) => Some(info_of(&message)?.published.into()),
                };
            }
        }
        scan.end().await;
    }
    let share = its.saturating_mul(pending).checked_div(pending.min(SAMPLE)).unwrap_or(0);
    Ok(Depth { waiting: brought.saturating_add(share), oldest, dead: 0 })
}
