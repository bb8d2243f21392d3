//! A job as scripts and people see it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::{
    config::show_instant,
    delivery::queue::{Record, State},
};

/// A job as JSON. Its fields have the names of the columns of the view `log` in the SQLite file.
#[derive(Debug, Serialize)]
pub(super) struct RecordJson<'r> {
    job: &'r str,
    webhook: &'r str,
    destination: &'r str,
    /// Whether the configuration has no such destination; null without one.
    orphaned: Option<bool>,
    state: &'static str,
    /// Why it is dead.
    death: Option<&'static str>,
    id: &'r str,
    kind: &'r str,
    event: &'r str,
    environment: Option<&'r str>,
    revision: Option<u64>,
    attempts: u32,
    size: u64,
    received: String,
    due: Option<String>,
    finished: Option<String>,
}

impl<'r> RecordJson<'r> {
    pub(super) fn new(record: &'r Record, orphaned: Option<bool>) -> Self {
        Self {
            job: &record.id.0,
            webhook: &record.recipient.webhook,
            destination: &record.recipient.destination,
            orphaned,
            state: record.state.name(),
            death: record.death.map(|death| death.name()),
            id: &record.delivery_id,
            kind: &record.kind,
            event: &record.event,
            environment: record.environment.as_deref(),
            revision: record.revision,
            attempts: record.attempts,
            size: record.size,
            received: instant(record.received),
            due: record.due.map(instant),
            finished: record.finished.map(instant),
        }
    }
}

/// RFC 3339 in UTC with milliseconds.
pub(super) fn instant(at: SystemTime) -> String {
    let millis = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_millis());
    let seconds = show_instant(at);
    format!("{}.{millis:03}Z", seconds.trim_end_matches('Z'))
}

/// How long ago something was, in one unit: `12s`, `5m`, `3h`, `9d`.
pub(super) fn age(at: SystemTime, now: SystemTime) -> String {
    span(now.duration_since(at).unwrap_or_default())
}

fn span(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match duration.as_secs() {
        seconds @ 0..MINUTE => format!("{seconds}s"),
        seconds @ MINUTE..HOUR => format!("{}m", seconds / MINUTE),
        seconds if seconds < 2 * DAY => format!("{}h", seconds / HOUR),
        seconds => format!("{}d", seconds / DAY),
    }
}

/// Where a job stands, in a few words.
pub(super) fn standing(record: &Record, orphaned: Option<bool>, now: SystemTime) -> String {
    let mut text = record.state.name().to_owned();
    match (record.state, record.death, record.due) {
        (State::Dead, Some(death), _) => text += &format!(": {}", death.name()),
        (State::Waiting, _, Some(due)) if orphaned != Some(true) => match due.duration_since(now) {
            Ok(left) if !left.is_zero() => text += &format!(", due in {}", span(left)),
            _ => text += ", due now",
        },
        _ => {}
    }
    if orphaned == Some(true) {
        text += ", orphaned";
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::delivery::{
        parcel::Facts,
        queue::{Death, JobId, Recipient},
    };

    /// 2026-06-01T00:00:00Z.
    pub(in super::super) fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_780_272_000)
    }

    pub(in super::super) fn record(state: State) -> Record {
        let waits = state == State::Waiting;
        Record {
            id: JobId("1042-1".into()),
            recipient: Recipient { webhook: "esc".into(), destination: "app".into() },
            state,
            death: (state == State::Dead).then_some(Death::Refused),
            delivery_id: "0b5c64a1".into(),
            kind: "environment_revision".into(),
            event: "environment_revision_created".into(),
            environment: Some("website/prod".into()),
            revision: Some(7),
            facts: Facts::default(),
            received: now() - Duration::from_millis(3_599_750),
            due: waits.then(|| now() + Duration::from_secs(90)),
            finished: (!waits).then(|| now() - Duration::from_secs(60)),
            attempts: 3,
            size: 1234,
        }
    }

    #[test]
    fn spans_have_one_unit() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3599, "59m"),
            (3600, "1h"),
            (172_799, "47h"),
            (172_800, "2d"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
        // A clock that was put back.
        assert_eq!(age(now() + Duration::from_secs(5), now()), "0s");
    }

    #[test]
    fn a_job_stands_somewhere() {
        let told = |state, orphaned| standing(&record(state), orphaned, now());
        assert_eq!(told(State::Waiting, None), "waiting, due in 1m");
        assert_eq!(told(State::Waiting, Some(false)), "waiting, due in 1m");
        assert_eq!(told(State::Waiting, Some(true)), "waiting, orphaned");
        assert_eq!(told(State::Dead, Some(false)), "dead: refused");
        assert_eq!(told(State::Dead, Some(true)), "dead: refused, orphaned");
        assert_eq!(told(State::Delivered, None), "delivered");
        assert_eq!(told(State::Coalesced, None), "coalesced");
        assert_eq!(
            standing(&record(State::Waiting), None, now() + Duration::from_secs(91)),
            "waiting, due now"
        );
    }

    #[test]
    fn json_has_the_same_fields_for_every_job() {
        let json = |state| {
            let record = record(state);
            serde_json::to_value(RecordJson::new(&record, None)).unwrap()
        };
        assert_eq!(
            json(State::Dead),
            serde_json::json!({
                "job": "1042-1", "webhook": "esc", "destination": "app", "orphaned": null, "state": "dead",
                "death": "refused", "id": "0b5c64a1", "kind": "environment_revision",
                "event": "environment_revision_created", "environment": "website/prod", "revision": 7, "attempts": 3,
                "size": 1234, "received": "2026-05-31T23:00:00.250Z", "due": null,
                "finished": "2026-05-31T23:59:00.000Z",
            })
        );
        assert_eq!(json(State::Waiting)["due"], "2026-06-01T00:01:30.000Z");
        let fields = |state| json(state).as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields(State::Waiting), fields(State::Dead));
    }
}
