//! What the two streams must be like, and what is said of those that somebody else made or changed.

use async_nats::jetstream::{
    ErrorCode,
    context::GetStreamErrorKind,
    stream::{self, DiscardPolicy, RetentionPolicy, StorageType},
};

use super::{
    store::{Store, unavailable},
    wire::Names,
};
use crate::delivery::queue::QueueError;

/// What the configuration says about the streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) replicas: usize,
    pub(super) max_bytes: u64,
}

impl Shape {
    fn configs(self, names: &Names) -> [stream::Config; 2] {
        let common = stream::Config {
            num_replicas: self.replicas,
            allow_direct: true,
            max_bytes: -1,
            max_messages_per_subject: -1,
            ..stream::Config::default()
        };
        let deliveries = stream::Config {
            name: names.deliveries.clone(),
            description: Some("hookgate: deliveries".to_owned()),
            subjects: vec![names.all('d')],
            max_bytes: i64::try_from(self.max_bytes).unwrap_or(-1),
            discard: DiscardPolicy::New,
            ..common.clone()
        };
        let jobs = stream::Config {
            name: names.jobs.clone(),
            description: Some("hookgate: the outcomes of deliveries".to_owned()),
            subjects: ['j', 'x', 'k'].map(|kind| names.all(kind)).to_vec(),
            max_messages_per_subject: 1,
            ..common
        };
        [deliveries, jobs]
    }

    /// Creates the streams that are not there, and says how they are. Those that would drop something are refused; limits are
    /// brought up to date if that is wanted.
    pub(super) async fn impose(self, store: &Store, update: bool) -> Result<[stream::Info; 2], QueueError> {
        let [deliveries, jobs] = self.configs(&store.names);
        Ok([impose(store, &deliveries, update).await?, impose(store, &jobs, update).await?])
    }
}

async fn impose(store: &Store, config: &stream::Config, update: bool) -> Result<stream::Info, QueueError> {
    let info = match store.context.get_stream(&config.name).await {
        Ok(found) => found.cached_info().clone(),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                let made = store.context.create_stream(config).await.map_err(unavailable)?;
                return Ok(made.cached_info().clone());
            }
            _ => return Err(unavailable(error)),
        },
    };
    let found = &info.config;
    if let Some(objection) = objection(found, config) {
        return Err(QueueError::Unavailable(objection));
    }
    // What else an operator has changed stays.
    let wanted = stream::Config {
        max_bytes: config.max_bytes,
        max_messages_per_subject: config.max_messages_per_subject,
        num_replicas: config.num_replicas,
        allow_direct: true,
        ..found.clone()
    };
    // A limit on the records is not the operator's: `max_bytes` covers both.
    let is_limited = config.max_bytes < 0 && found.max_bytes > 0;
    if is_limited || (update && *found != wanted) {
        store.context.update_stream(&wanted).await.map_err(unavailable)?;
    }
    Ok(info)
}

/// What is wrong with a stream and how it is mended, if it would drop what waits or cannot be written.
fn objection(found: &stream::Config, wanted: &stream::Config) -> Option<String> {
    let name = &found.name;
    let mut subjects = [found.subjects.clone(), wanted.subjects.clone()];
    subjects.iter_mut().for_each(|subjects| subjects.sort());
    let [has, needs] = subjects;
    if has != needs {
        return Some(format!(
            "the stream {name} is not hookgate's: its subjects are {}, not {}; choose another `queue.stream`, or remove it (`nats stream rm {name}`)",
            has.join(", "),
            needs.join(", "),
        ));
    }
    // What can be changed. An option of the command `nats stream edit`, and what it stands for.
    let per_subject = wanted.max_messages_per_subject;
    let positive = |value: i64| value > 0;
    let limits = [
        (
            wanted.discard == DiscardPolicy::New && found.discard != DiscardPolicy::New,
            "--discard=new",
            "discards old messages when it is full",
        ),
        (positive(found.max_messages), "--max-msgs=-1", "has a limit of messages"),
        (
            positive(found.max_messages_per_subject) && found.max_messages_per_subject != per_subject,
            if positive(per_subject) { "--max-msgs-per-subject=1" } else { "--max-msgs-per-subject=-1" },
            "has a limit of messages per subject",
        ),
        (!found.max_age.is_zero(), "--max-age=0", "drops messages by their age"),
        (
            positive(found.max_message_size.into()),
            "--max-msg-size=-1",
            "has a limit of the size of a message",
        ),
        (found.no_ack, "--ack", "does not acknowledge what it stores"),
    ];
    let mine: Vec<_> = limits.iter().filter(|(wrong, ..)| *wrong).collect();
    if !mine.is_empty() {
        let texts: Vec<_> = mine.iter().map(|(_, _, text)| *text).collect();
        let options: Vec<_> = mine.iter().map(|(_, option, _)| *option).collect();
        return Some(format!(
            "the stream {name} {}, and would lose deliveries: change that, e.g. by `nats stream edit {name} {}`",
            texts.join(" and "),
            options.join(" "),
        ));
    }
    let fixed = [
        (found.retention != RetentionPolicy::Limits, "drops messages by interest or as a work queue"),
        (found.storage != StorageType::File, "is kept in memory and lost when the server restarts"),
        (found.mirror.is_some() || found.sources.is_some(), "is a copy of another stream"),
        (found.sealed, "is sealed"),
        (found.deny_delete || found.deny_purge, "denies that messages are deleted"),
    ];
    let (_, text) = fixed.iter().find(|(wrong, _)| *wrong)?;
    Some(format!(
        "the stream {name} {text}, which cannot be changed: once nothing in it is needed any more, remove it (`nats stream rm {name}`); hookgate then makes its own"
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_would_lose_something_is_objected_to() {
        let wanted = stream::Config {
            name: "S".to_owned(),
            subjects: vec!["S.d.>".to_owned()],
            discard: DiscardPolicy::New,
            max_bytes: 1 << 20,
            ..stream::Config::default()
        };
        assert_eq!(objection(&wanted, &wanted), None);
        type Change = fn(&mut stream::Config);
        let cases: &[(Change, &str)] = &[
            (|it| it.discard = DiscardPolicy::Old, "--discard=new"),
            (|it| it.max_messages = 5, "--max-msgs=-1"),
            (|it| it.max_messages_per_subject = 1, "--max-msgs-per-subject=-1"),
            (|it| it.max_age = Duration::from_secs(1), "--max-age=0"),
            (|it| it.max_message_size = 1000, "--max-msg-size=-1"),
            (|it| it.no_ack = true, "--ack"),
            (|it| it.retention = RetentionPolicy::Interest, "interest"),
            (|it| it.retention = RetentionPolicy::WorkQueue, "work queue"),
            (|it| it.storage = StorageType::Memory, "memory"),
            (|it| it.mirror = Some(stream::Source::default()), "a copy"),
            (|it| it.sealed = true, "sealed"),
            (|it| it.deny_delete = true, "denies"),
            (|it| it.deny_purge = true, "denies"),
            (|it| it.subjects.push("other".to_owned()), "not hookgate's"),
        ];
        for (change, word) in cases {
            let mut found = wanted.clone();
            change(&mut found);
            let text = objection(&found, &wanted).unwrap_or_else(|| panic!("{word} is not objected to"));
            assert!(text.contains(word) && text.contains("nats stream "), "{text}");
        }
        let jobs = stream::Config { max_messages_per_subject: 1, max_bytes: -1, ..wanted };
        assert_eq!(objection(&jobs, &jobs), None);
        let limited = stream::Config { max_bytes: 1000, ..jobs.clone() };
        // It is taken away.
        assert_eq!(objection(&limited, &jobs), None);
        let endless = stream::Config { max_messages_per_subject: -1, ..jobs.clone() };
        assert_eq!(objection(&endless, &jobs), None);
    }
}
