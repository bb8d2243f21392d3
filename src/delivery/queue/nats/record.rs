//! A job's record: where it stands, and what was tried. It is one message, the last of its subject.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::wire::{escaped, unescaped};
use crate::delivery::queue::{Attempt, Death, KEPT_ATTEMPTS, MAX_ANSWER, State};

/// What is known of a job beyond its delivery.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct JobRecord {
    /// The name of its state. Absent: it was forgotten, and the record stays as long as a message could bring the job back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// How often it was called back after an end.
    #[serde(default)]
    pub(super) calls: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    death: Option<String>,
    /// Milliseconds since 1970, like every time here. Absent: when it was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<u64>,
    #[serde(default)]
    pub(super) attempts: u32,
    #[serde(default)]
    pub(super) attempts_ever: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) due: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished: Option<u64>,
    /// Where the server is told to bring it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply: Option<String>,
    /// Every destination of its delivery.
    #[serde(default)]
    pub(super) destinations: Vec<String>,
    #[serde(default)]
    log: Vec<Logged>,
}

impl JobRecord {
    /// That of a job without one.
    pub(super) fn waiting(destinations: &[String]) -> Self {
        let state = Some(State::Waiting.name().to_owned());
        Self { state, destinations: destinations.to_vec(), ..Self::default() }
    }

    /// `None`: it was forgotten, and users see nothing of it.
    pub(super) fn state(&self) -> Option<State> {
        self.state.as_deref().and_then(|name| name.parse().ok())
    }

    /// Whether this record is that of a job which waits, after so many calls.
    pub(super) fn waits(&self, calls: u32) -> bool {
        self.state() == Some(State::Waiting) && self.calls == calls
    }

    pub(super) fn finished(&self) -> Option<SystemTime> {
        self.finished.map(time)
    }

    pub(super) fn finish(&mut self, state: Option<State>, death: Option<Death>) {
        self.state = state.map(|state| state.name().to_owned());
        self.death = death.map(|death| death.name().to_owned());
        self.finished = Some(millis(SystemTime::now()));
        self.due = None;
        self.reply = None;
        if state.is_none() {
            self.log.clear();
        }
    }

    pub(super) fn death(&self) -> Option<Death> {
        let name = self.death.as_deref()?;
        Death::ALL.into_iter().find(|death| death.name() == name)
    }

    /// It waits again, called back for the `calls`th time.
    pub(super) fn revive(&mut self, calls: u32) {
        self.state = Some(State::Waiting.name().to_owned());
        self.calls = calls;
        self.death = None;
        self.since = Some(millis(SystemTime::now()));
        self.attempts = 0;
        self.due = None;
        self.finished = None;
        self.reply = None;
    }

    pub(super) fn add(&mut self, attempt: &Attempt) {
        self.attempts = self.attempts.saturating_add(1);
        self.attempts_ever = self.attempts_ever.saturating_add(1).max(attempt.number);
        self.log.push(Logged::new(attempt));
        let excess = self.log.len().saturating_sub(KEPT_ATTEMPTS);
        self.log.drain(..excess);
    }

    /// Whether this is the last attempt that was added.
    pub(super) fn has(&self, attempt: &Attempt) -> bool {
        let last = self.log.last();
        last.is_some_and(|last| last.number == attempt.number && last.at == millis(attempt.at))
    }

    pub(super) fn log(&self) -> Vec<Attempt> {
        self.log.iter().map(Logged::attempt).collect()
    }

    /// The record as it is written, without the oldest attempts if it would be longer than this.
    pub(super) fn payload(&self, max: usize) -> Bytes {
        // As for headers: there is no reason to fail, and an empty record is read as none.
        let write = |record: &Self| serde_json::to_vec(record).unwrap_or_default();
        let mut written = write(self);
        let mut shorter = self.clone();
        while written.len() > max && !shorter.log.is_empty() {
            shorter.log.remove(0);
            written = write(&shorter);
        }
        written.into()
    }
}

/// What stays of a delivery that was delivered and is gone: a copy is known by it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Gone {
    /// Of the body.
    pub(super) digest: String,
    pub(super) finished: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Logged {
    number: u32,
    at: u64,
    micros: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Escaped as headers are.
    answer: String,
}

impl Logged {
    fn new(attempt: &Attempt) -> Self {
        let answer = attempt.answer.get(..MAX_ANSWER).unwrap_or(&attempt.answer);
        Self {
            number: attempt.number,
            at: millis(attempt.at),
            micros: u64::try_from(attempt.duration.as_micros()).unwrap_or(u64::MAX),
            status: attempt.status,
            error: attempt.error.clone(),
            answer: escaped(answer),
        }
    }

    fn attempt(&self) -> Attempt {
        Attempt {
            number: self.number,
            at: time(self.at),
            duration: Duration::from_micros(self.micros),
            status: self.status,
            error: self.error.clone(),
            answer: unescaped(&self.answer).unwrap_or_default().into(),
        }
    }
}

/// A time as it is written.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time that was written.
pub(super) fn time(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_would_be_too_long_loses_its_oldest_attempts() {
        let mut record = JobRecord::waiting(&["app".to_owned()]);
        for number in 1..=30 {
            record.add(&Attempt {
                number,
                at: UNIX_EPOCH,
                duration: Duration::ZERO,
                status: Some(500),
                error: None,
                answer: vec![1; MAX_ANSWER].into(),
            });
        }
        for (max, kept) in [(usize::MAX, 20), (64 << 10, 10), (0, 0)] {
            let read: JobRecord = serde_json::from_slice(&record.payload(max)).unwrap();
            let numbers: Vec<_> = read.log().iter().map(|attempt| attempt.number).collect();
            assert_eq!(numbers, (31 - kept..=30).collect::<Vec<_>>(), "{max}");
            assert_eq!(read.attempts, 30);
        }
    }
}
