//! Whether a destination is tried at all: after repeated failures it is left alone, and probed with one job at a time.
//!
//! Jobs of a destination that is down would otherwise use up their attempts in no time. Pure: it is told what time it is.
//! One circuit is for one destination, so that none holds up another.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;

/// Failures in a row that open it.
pub const FAILURES: u32 = 5;

/// The longest pause between two probes.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The circuit of one destination.
#[derive(Debug)]
pub struct Circuit {
    pauses: Backoff,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Jobs flow. So many failed in a row.
    Closed { failures: u32 },
    /// Nothing flows until then. It is pause number `pause`.
    Open { until: Instant, pause: u32 },
    /// One job is on its way, and decides.
    Probing { pause: u32 },
}

/// What may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// As much as there is.
    Free,
    /// One job, as a probe: see [`Circuit::probe`].
    Probe,
    /// Nothing before this time.
    NotBefore(Instant),
    /// Nothing before the probe that is under way has ended.
    Probing,
}

/// What an attempt says of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It answers for itself, even if it declined the job.
    Alive,
    /// It could not be reached, or said that it cannot serve now.
    Failing,
    /// Nothing: there was no attempt.
    None,
}

impl Circuit {
    /// A closed one. Its pauses grow as `backoff` does, up to half a minute.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        let max = backoff.max.min(LONGEST_PAUSE);
        let pauses = Backoff { initial: backoff.initial.min(max), max };
        Self { pauses, state: State::Closed { failures: 0 } }
    }

    /// Whether jobs are held back.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// What may be sent at `now`.
    #[must_use]
    pub fn ask(&self, now: Instant) -> Flow {
        match self.state {
            State::Closed { .. } => Flow::Free,
            State::Open { until, .. } if now < until => Flow::NotBefore(until),
            State::Open { .. } => Flow::Probe,
            State::Probing { .. } => Flow::Probing,
        }
    }

    /// A job is sent as a probe. Its sign must be told as that of the probe, or nothing flows any more.
    pub const fn probe(&mut self) {
        if let State::Open { pause, .. } = self.state {
            self.state = State::Probing { pause };
        }
    }

    /// Takes note of what came of a job. `probe`: it was the one that was sent as a probe.
    pub fn tell(&mut self, sign: Sign, probe: bool, now: Instant) {
        self.state = match (self.state, sign) {
            // Whoever is seen alive is: also by an attempt that began before the circuit opened.
            (_, Sign::Alive) => State::Closed { failures: 0 },
            (State::Closed { failures }, Sign::Failing) if failures + 1 >= FAILURES => self.open(1, now),
            (State::Closed { failures }, Sign::Failing) => State::Closed { failures: failures + 1 },
            (State::Probing { pause }, Sign::Failing) if probe => self.open(pause.saturating_add(1), now),
            // The next one is the probe.
            (State::Probing { pause }, Sign::None) if probe => State::Open { until: now, pause },
            (state, Sign::Failing | Sign::None) => state,
        };
    }

    fn open(&self, pause: u32, now: Instant) -> State {
        State::Open { until: now + self.pauses.limit(pause), pause }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn circuit() -> Circuit {
        Circuit::new(Backoff { initial: Duration::from_secs(2), max: Duration::from_secs(3600) })
    }

    fn opened(now: Instant) -> Circuit {
        let mut circuit = circuit();
        for _ in 0..FAILURES {
            assert_eq!(circuit.ask(now), Flow::Free);
            assert!(!circuit.is_open());
            circuit.tell(Sign::Failing, false, now);
        }
        assert!(circuit.is_open());
        circuit
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let now = Instant::now();
        let mut circuit = circuit();
        for _ in 0..FAILURES * 2 {
            circuit.tell(Sign::Failing, false, now);
            circuit.tell(Sign::None, false, now);
            circuit.tell(Sign::Alive, false, now);
        }
        assert!(!circuit.is_open());
        opened(now);
    }

    #[test]
    fn one_probe_goes_through_after_each_pause_and_pauses_grow_to_half_a_minute() {
        let mut now = Instant::now();
        let mut circuit = opened(now);
        for seconds in [2, 4, 8, 16, 30, 30, 30] {
            let until = now + Duration::from_secs(seconds);
            assert_eq!(circuit.ask(now), Flow::NotBefore(until));
            // What was on its way when it opened changes nothing.
            circuit.tell(Sign::Failing, false, now);
            assert_eq!(circuit.ask(until - Duration::from_millis(1)), Flow::NotBefore(until));
            now = until;
            assert_eq!(circuit.ask(now), Flow::Probe);
            circuit.probe();
            assert_eq!(circuit.ask(now), Flow::Probing);
            circuit.tell(Sign::Failing, false, now);
            assert_eq!(circuit.ask(now), Flow::Probing);
            circuit.tell(Sign::Failing, true, now);
        }
    }

    #[test]
    fn a_probe_that_succeeds_closes_it() {
        let now = Instant::now();
        let mut circuit = opened(now);
        let now = now + Duration::from_secs(2);
        circuit.probe();
        circuit.tell(Sign::Alive, true, now);
        assert_eq!((circuit.ask(now), circuit.is_open()), (Flow::Free, false));
        // And it takes as many failures as ever to open it again.
        circuit.tell(Sign::Failing, false, now);
        assert!(!circuit.is_open());
    }

    #[test]
    fn a_probe_without_an_attempt_decides_nothing() {
        let now = Instant::now() + Duration::from_secs(2);
        let mut circuit = opened(now - Duration::from_secs(2));
        circuit.probe();
        circuit.tell(Sign::None, true, now);
        assert!(circuit.is_open());
        assert_eq!(circuit.ask(now), Flow::Probe);
    }

    proptest! {
        /// Whatever comes: it is never stuck, and there is one probe at a time.
        #[test]
        fn there_is_always_a_way_back(steps in proptest::collection::vec((0_u8..4, any::<bool>(), 0_u64..40), 0..60)) {
            let mut now = Instant::now();
            let mut circuit = circuit();
            let mut probing = false;
            for (what, of_probe, seconds) in steps {
                now += Duration::from_secs(seconds);
                match what {
                    0 => match circuit.ask(now) {
                        Flow::Probe => {
                            prop_assert!(!probing);
                            circuit.probe();
                            probing = true;
                        }
                        Flow::Probing => prop_assert!(probing),
                        Flow::NotBefore(until) => prop_assert!(until > now && until <= now + LONGEST_PAUSE),
                        Flow::Free => prop_assert!(!circuit.is_open()),
                    },
                    sign => {
                        let sign = [Sign::Alive, Sign::Failing, Sign::None][usize::from(sign) - 1];
                        let probe = of_probe && probing;
                        circuit.tell(sign, probe, now);
                        if probe || sign == Sign::Alive {
                            probing = false;
                        }
                    }
                }
            }
            if probing {
                circuit.tell(Sign::Failing, true, now);
            }
            now += LONGEST_PAUSE;
            prop_assert!(matches!(circuit.ask(now), Flow::Free | Flow::Probe));
        }
    }
}
