//! The file's own clock, which never steps.
//!
//! The system's clock may be set while the service runs, and may be wrong for hours after a boot. What waits, ages and is
//! forgotten goes by a clock that only ticks. The file keeps by how much the system's is ahead of it (`setting`, `clock`),
//! so that people are shown the times of the system.

use std::{
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension};
use tokio::time::Instant;

/// A difference of the clocks that is larger than this is a step.
const STEP: u64 = 1000;

/// Milliseconds since 1970, as the file counts them.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    /// What it showed then.
    from: i64,
    /// How far the system's clock is ahead.
    ahead: AtomicI64,
}

impl Clock {
    /// Goes on from what the file knows. A system's clock that was set back meanwhile does not bring back the past.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).optional();
        let ahead = number("SELECT value FROM setting WHERE name = 'clock'")?.flatten().unwrap_or(0);
        let newest = number(
            "SELECT max((SELECT coalesce(max(finished), 0) FROM known),
                 coalesce((SELECT received FROM delivery ORDER BY number DESC LIMIT 1), 0),
                 coalesce((SELECT max(finished) FROM job WHERE state = 'delivered' AND state <> 'waiting'), 0))",
        )?;
        Ok(Self::new(to_millis(SystemTime::now()), ahead, newest.flatten().unwrap_or(0)))
    }

    fn new(wall: i64, ahead: i64, newest: i64) -> Self {
        let from = wall.saturating_sub(ahead).max(newest);
        Self { began: Instant::now(), from, ahead: AtomicI64::new(wall.saturating_sub(from)) }
    }

    pub(super) fn now(&self) -> i64 {
        self.from.saturating_add(millis(self.began.elapsed()))
    }

    pub(super) fn ahead(&self) -> i64 {
        self.ahead.load(Relaxed)
    }

    /// Compares it with the system's clock, which may have stepped.
    pub(super) fn compare(&self, wall: SystemTime) {
        let ahead = to_millis(wall).saturating_sub(self.now());
        if ahead.abs_diff(self.ahead()) > STEP {
            self.ahead.store(ahead, Relaxed);
        }
    }

    /// What the system's clock shows at a time of the file.
    pub(super) fn shown(&self, time: i64) -> SystemTime {
        from_millis(time.saturating_add(self.ahead()))
    }

    /// The file's time for what the system's clock shows.
    pub(super) fn stored(&self, shown: SystemTime) -> i64 {
        to_millis(shown).saturating_sub(self.ahead())
    }
}

/// Milliseconds since 1970, as times are stored.
fn to_millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, millis)
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[tokio::test(start_paused = true)]
    async fn it_ticks_whatever_the_system_s_clock_does() {
        let start = 1_800_000_000_000;
        let clock = Clock::new(start, 0, 0);
        tokio::time::advance(Duration::from_secs(5)).await;
        clock.compare(from_millis(start + 5_300));
        assert_eq!(clock.ahead(), 0);
        for step in [HOUR, -HOUR, 25 * HOUR, 0] {
            clock.compare(from_millis(start + 5_000 + step));
            assert_eq!(clock.now(), start + 5_000);
            assert_eq!(clock.shown(clock.now()), from_millis(start + 5_000 + step));
            assert_eq!(clock.stored(clock.shown(start)), start);
        }
        // It goes on where it was, also where the system's clock is an hour behind after a restart.
        let (ahead, newest) = (clock.ahead(), start + 5_000);
        let again = Clock::new(start + 5_000 - HOUR, ahead, newest);
        assert_eq!((again.now(), again.ahead()), (newest, -HOUR));
        // A downtime is one.
        assert_eq!(Clock::new(start + HOUR, ahead, newest).now(), start + HOUR);
    }
}
