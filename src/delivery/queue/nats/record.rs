//! A job's record: where it stands, and what was tried. It is one message, the last of its subject.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::delivery::queue::{Attempt, Death, MAX_ANSWER, State};

/// Where a job stands in its record. Without a record it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Standing {
    #[default]
    Waiting,
    Delivered,
    Dead,
    Coalesced,
    /// Forgotten. The record stays as long as a message could bring the job back.
    Purged,
}

impl Standing {
    /// `None`: users see nothing of it.
    pub(super) const fn state(self) -> Option<State> {
        match self {
            Self::Waiting => Some(State::Waiting),
            Self::Delivered => Some(State::Delivered),
            Self::Dead => Some(State::Dead),
            Self::Coalesced => Some(State::Coalesced),
            Self::Purged => None,
        }
    }
}

/// What is known of a job beyond its delivery.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct JobRecord {
    pub(super) standing: Standing,
    /// How often it was called back after an end.
    #[serde(default)]
    pub(super) generation: u32,
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
    /// It waits for no newer one.
    #[serde(default)]
    pub(super) chosen: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) finished: Option<u64>,
    /// Where the server is told to bring it at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply: Option<String>,
    /// Every destination of its delivery.
    #[serde(default)]
    pub(super) destinations: Vec<String>,
    #[serde(default)]
    log: Vec<Logged>,
}

/// Of a job's attempts, the last ones are kept.
const ATTEMPTS: usize = 20;

impl JobRecord {
    pub(super) fn waiting(destinations: &[String]) -> Self {
        Self { destinations: destinations.to_vec(), ..Self::default() }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.standing != Standing::Waiting
    }

    pub(super) fn finish(&mut self, standing: Standing) {
        self.standing = standing;
        self.death = None;
        self.finished = Some(millis(SystemTime::now()));
        self.due = None;
        self.reply = None;
        self.chosen = false;
    }

    pub(super) fn die(&mut self, death: Death) {
        self.finish(Standing::Dead);
        self.death = Some(death.name().to_owned());
    }

    pub(super) fn death(&self) -> Option<Death> {
        let name = self.death.as_deref()?;
        Death::ALL.into_iter().find(|death| death.name() == name)
    }

    /// It waits again, called back for the `generation`th time.
    pub(super) fn revive(&mut self, generation: u32) {
        self.standing = Standing::Waiting;
        self.generation = generation;
        self.death = None;
        self.since = Some(millis(SystemTime::now()));
        self.attempts = 0;
        self.due = None;
        self.chosen = true;
        self.finished = None;
        self.reply = None;
    }

    pub(super) fn purge(&mut self) {
        self.finish(Standing::Purged);
        self.log.clear();
    }

    pub(super) fn add(&mut self, attempt: &Attempt) {
        self.attempts = self.attempts.saturating_add(1);
        self.attempts_ever = self.attempts_ever.saturating_add(1).max(attempt.number);
        self.log.push(Logged::new(attempt));
        let excess = self.log.len().saturating_sub(ATTEMPTS);
        self.log.drain(..excess);
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

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Logged {
    number: u32,
    at: u64,
    micros: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The answer, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// If it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl Logged {
    fn new(attempt: &Attempt) -> Self {
        let answer = attempt.answer.get(..MAX_ANSWER).unwrap_or(&attempt.answer);
        let text = std::str::from_utf8(answer).ok();
        Self {
            number: attempt.number,
            at: millis(attempt.at),
            micros: u64::try_from(attempt.duration.as_micros()).unwrap_or(u64::MAX),
            status: attempt.status,
            error: attempt.error.clone(),
            text: text.map(str::to_owned),
            hex: text.is_none().then(|| hex::encode(answer)),
        }
    }

    fn attempt(&self) -> Attempt {
        let answer = match (&self.text, &self.hex) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(digits)) => hex::decode(digits).unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        Attempt {
            number: self.number,
            at: time(self.at),
            duration: Duration::from_micros(self.micros),
            status: self.status,
            error: self.error.clone(),
            answer: answer.into(),
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
        for (max, kept) in [(usize::MAX, 20), (64 << 10, 5), (0, 0)] {
            let read: JobRecord = serde_json::from_slice(&record.payload(max)).unwrap();
            let numbers: Vec<_> = read.log().iter().map(|attempt| attempt.number).collect();
            assert_eq!(numbers, (31 - kept..=30).collect::<Vec<_>>(), "{max}");
            assert_eq!(read.attempts, 30);
        }
    }
}
