//! How long to wait between two attempts: exponential backoff, half of it fixed and half of it random.
//!
//! Pure: neither clock nor chance is in here. Delays are spread from half the limit of their attempt to the limit, so that jobs
//! that failed together do not come back together, and none uses up its attempts in no time.

use std::time::Duration;

/// The bounds of the delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The limit after the first attempt. It doubles with each further one.
    pub initial: Duration,
    /// No delay is longer.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(15 * 60) }
    }
}

impl Backoff {
    /// The longest delay after attempt number `attempt` (from 1).
    #[must_use]
    pub fn limit(self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        self.initial.saturating_mul(factor).min(self.max)
    }

    /// The delay after attempt number `attempt` (from 1). `chance` is anything, evenly spread.
    ///
    /// `asked` is what the upstream asked for. It is advice: it makes the delay longer and never shorter, and never longer
    /// than [`Backoff::max`].
    #[must_use]
    pub fn delay(self, attempt: u32, chance: u64, asked: Option<Duration>) -> Duration {
        let limit = self.limit(attempt);
        let fixed = limit / 2;
        let rest = u64::try_from(limit.saturating_sub(fixed).as_nanos()).unwrap_or(u64::MAX);
        // The upper half of the product: evenly spread from 0 to the other half of the limit.
        let spread = (u128::from(chance) * (u128::from(rest) + 1)) >> 64;
        let spread = fixed + Duration::from_nanos(u64::try_from(spread).unwrap_or(0));
        spread.max(asked.unwrap_or_default().min(self.max))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backoff() -> impl Strategy<Value = Backoff> {
        let duration = || any::<u64>().prop_map(Duration::from_millis);
        (duration(), duration()).prop_map(|(a, b)| Backoff { initial: a.min(b), max: a.max(b) })
    }

    #[test]
    fn limits_double_up_to_the_longest() {
        let backoff = Backoff::default();
        let seconds: Vec<_> = (1..=14).map(|attempt| backoff.limit(attempt).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900, 900]);
        assert_eq!(backoff.limit(0), backoff.initial);
        assert_eq!(backoff.limit(u32::MAX), backoff.max);
    }

    #[test]
    fn half_of_a_delay_is_fixed() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(3, 0, None), Duration::from_secs(2));
        assert_eq!(backoff.delay(3, 1 << 63, None), Duration::from_secs(3));
        assert_eq!(backoff.delay(3, u64::MAX, None), Duration::from_secs(4));
    }

    #[test]
    fn what_the_upstream_asks_for_is_heeded_within_bounds() {
        let backoff = Backoff { initial: Duration::from_secs(2), max: Duration::from_secs(60) };
        let asked = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(backoff.delay(1, 0, asked(30)), Duration::from_secs(30));
        assert_eq!(backoff.delay(1, 0, asked(1_000_000)), Duration::from_secs(60));
        assert_eq!(backoff.delay(1, u64::MAX, asked(1)), Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds(
            backoff in backoff(),
            attempt in any::<u32>(),
            chance in any::<u64>(),
            asked in proptest::option::of(any::<u64>().prop_map(Duration::from_millis)),
        ) {
            let limit = backoff.limit(attempt);
            prop_assert!(limit >= backoff.initial && limit <= backoff.max);
            let delay = backoff.delay(attempt, chance, None);
            prop_assert!(limit / 2 <= delay && delay <= limit);
            let advised = backoff.delay(attempt, chance, asked);
            prop_assert!(advised >= delay && advised <= backoff.max);
            prop_assert!(advised >= asked.unwrap_or_default().min(backoff.max));
        }

        #[test]
        fn limits_and_delays_never_fall(backoff in backoff(), attempt in 0_u32..100, chance in any::<u64>()) {
            prop_assert!(backoff.limit(attempt) <= backoff.limit(attempt + 1));
            prop_assert!(backoff.delay(attempt, chance, None) <= backoff.delay(attempt + 1, chance, None));
            prop_assert!(backoff.delay(attempt, chance, None) <= backoff.delay(attempt, chance | 1 << 63, None));
        }
    }
}
