//! A job's record: where it stands, and what was tried. It is one message, the last of its subject.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::wire;
use crate::delivery::queue::{Attempt, Death, KEPT_ATTEMPTS, MAX_ANSWER, State};

/// What is known of a job beyond its delivery.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct JobRecord {
    /// Absent: it was forgotten, and the record stays as long as a message could bring the job back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<State>,
    /// How often it was called back after an end.
    #[serde(default)]
    pub(super) calls: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) death: Option<Death>,
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
    pub(super) finished: Option<u64>,
    /// Where the server is told to bring it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply: Option<String>,
    /// The sequence of its mark: it is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mark: Option<u64>,
    #[serde(default)]
    pub(super) log: Vec<Logged>,
    /// Where it is in its stream, 0 if it is not there yet.
    #[serde(skip)]
    pub(super) sequence: u64,
    /// What was written could not be read.
    #[serde(skip)]
    pub(super) unreadable: bool,
}

impl JobRecord {
    /// What a record says. One that cannot be read is that of a dead letter: a person must look at it.
    pub(super) fn read(sequence: u64, payload: &[u8]) -> Self {
        match serde_json::from_slice(payload) {
            Ok(record) => Self { sequence, ..record },
            Err(_) => {
                let mut record = Self { sequence, unreadable: true, ..Self::default() };
                record.finish(Some(State::Dead), Some(Death::Damaged));
                record
            }
        }
    }

    /// That of a job without one.
    pub(super) fn waiting() -> Self {
        Self { state: Some(State::Waiting), ..Self::default() }
    }

    /// Whether this record is that of a job which waits, after so many calls.
    pub(super) fn waits(&self, calls: u32) -> bool {
        self.state == Some(State::Waiting) && self.calls == calls
    }

    /// Whether this record is that of a job which ended before this call of it.
    pub(super) fn is_called_by(&self, calls: u32) -> bool {
        let ended = self.state.is_some_and(|state| state != State::Waiting);
        ended && self.calls.saturating_add(1) == calls
    }

    pub(super) fn finished(&self) -> Option<SystemTime> {
        self.finished.map(time)
    }

    pub(super) fn finish(&mut self, state: Option<State>, death: Option<Death>) {
        (self.state, self.death) = (state, death);
        self.finished = Some(millis(SystemTime::now()));
        self.due = None;
        self.reply = None;
        if state.is_none() {
            self.log.clear();
        }
    }

    /// It waits again, called back for the `calls`th time.
    pub(super) fn revive(&mut self, calls: u32) {
        (self.state, self.death) = (Some(State::Waiting), None);
        (self.since, self.attempts) = (Some(millis(SystemTime::now())), 0);
        (self.due, self.finished, self.reply) = (None, None, None);
        self.calls = calls;
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

/// An attempt as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Logged {
    number: u32,
    at: u64,
    micros: u64,
    status: Option<u16>,
    error: Option<String>,
    #[serde(with = "wire::text")]
    answer: Vec<u8>,
}

impl Logged {
    fn new(attempt: &Attempt) -> Self {
        let Attempt { number, at, duration, status, error, answer } = attempt;
        Self {
            number: *number,
            at: millis(*at),
            micros: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            status: *status,
            error: error.clone(),
            answer: answer.get(..MAX_ANSWER).unwrap_or(answer).to_vec(),
        }
    }

    fn attempt(&self) -> Attempt {
        let Self { number, at, micros, status, error, answer } = self.clone();
        let (at, duration, answer) = (time(at), Duration::from_micros(micros), answer.into());
        Attempt { number, at, duration, status, error, answer }
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
        let mut record = JobRecord::waiting();
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
        for (max, kept) in [(usize::MAX, 20), (128 << 10, 10), (0, 0)] {
            let read = JobRecord::read(1, &record.payload(max));
            let numbers: Vec<_> = read.log().iter().map(|attempt| attempt.number).collect();
            assert_eq!(numbers, (31 - kept..=30).collect::<Vec<_>>(), "{max}");
            assert_eq!(read.attempts, 30);
        }
    }
}
