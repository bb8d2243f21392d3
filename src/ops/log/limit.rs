//! A limit on the lines that strangers cause: so many a second, and then a count of what was left out.
//!
//! A line of every refused request would let anybody who can connect fill the disk. The requests that are left out are
//! told by their number, once a second, as a line of the log. What the operator must see does not pass through here.

use std::{
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::info;

/// The lines of a second.
const MOST: u32 = 10;

/// Of these, what one kind of event leaves to the others: a flood of one kind does not hide that there is another.
const FOR_OTHERS: u32 = 2;

/// How often it is said what was left out, and counted again.
const EVERY: Duration = Duration::from_secs(1);

/// Admits ten lines a second. Kinds are few and fixed: labels of outcomes, never words of a sender.
#[derive(Debug, Default)]
pub struct Limiter(Mutex<Vec<Kind>>);

/// What happened in this second.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    written: u32,
    left_out: u64,
}

impl Limiter {
    /// Whether one more line of this kind may be written. If not, it is counted, and [`Limiter::tell`] tells it.
    #[must_use]
    pub fn admits(&self, kind: &'static str) -> bool {
        let mut kinds = self.lock();
        let written: u32 = kinds.iter().map(|kind| kind.written).sum();
        let place = kinds.iter().position(|known| known.name == kind);
        let place = place.unwrap_or_else(|| {
            kinds.push(Kind { name: kind, written: 0, left_out: 0 });
            kinds.len() - 1
        });
        let Some(kind) = kinds.get_mut(place) else { return false };
        let admitted = written < MOST - FOR_OTHERS || (written < MOST && kind.written == 0);
        if admitted {
            kind.written += 1;
        } else {
            kind.left_out = kind.left_out.saturating_add(1);
        }
        admitted
    }

    /// Begins a new second, and says in one line what was left out of the one before.
    pub fn tell(&self) {
        let mut count = 0_u64;
        let mut outcomes = String::new();
        for Kind { name, written, left_out } in &mut *self.lock() {
            if *left_out > 0 {
                let comma = if outcomes.is_empty() { "" } else { ", " };
                write!(outcomes, "{comma}{name} {left_out}").expect("writing to a String does not fail");
                count = count.saturating_add(*left_out);
            }
            (*written, *left_out) = (0, 0);
        }
        if count > 0 {
            info!(count, outcomes, "more requests were refused than are logged one by one");
        }
    }

    /// Tells once a second what was left out. Does not end.
    pub async fn tell_every_second(&self) {
        let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
        // No second is shorter, also when this task was held up.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.tell();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::sleep;
    use tracing::{Event, Subscriber, field::Visit, subscriber::set_default};
    use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry};

    use super::*;

    #[test]
    fn ten_lines_are_admitted_and_one_kind_does_not_take_them_all() {
        let limiter = Limiter::default();
        let admitted = |kind, times| (0..times).filter(|_| limiter.admits(kind)).count();
        assert_eq!(admitted("not_found", 1000), 8);
        assert_eq!(admitted("bad_signature", 1000), 1);
        assert_eq!(admitted("timeout", 1000), 1);
        assert_eq!(admitted("too_large", 1000), 0);
        limiter.tell();
        assert_eq!(admitted("too_large", 1000), 8);
        assert_eq!(admitted("not_found", 1), 1);
    }

    /// The counts of what was told.
    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<u64>>>);

    impl<S: Subscriber> Layer<S> for Told {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            event.record(&mut Counts(&mut self.0.lock().unwrap()));
        }
    }

    struct Counts<'c>(&'c mut Vec<u64>);

    impl Visit for Counts<'_> {
        fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
            assert_eq!(field.name(), "count");
            self.0.push(value);
        }

        fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
    }

    /// Also when nothing comes any more.
    #[tokio::test(start_paused = true)]
    async fn what_was_left_out_is_told_once_a_second_and_once() {
        let told = Told::default();
        let _set = set_default(registry().with(told.clone()));
        let limiter = Limiter::default();
        let admit = async {
            // Between two ticks.
            sleep(EVERY / 2).await;
            for second in 1..=3_u64 {
                let times = 8 + 100 * second;
                assert_eq!((0..times).filter(|_| limiter.admits("not_found")).count(), 8);
                sleep(EVERY).await;
            }
            assert_eq!(*told.0.lock().unwrap(), [100, 200, 300]);
            sleep(5 * EVERY).await;
        };
        tokio::select! {
            biased;
            () = admit => {}
            () = limiter.tell_every_second() => {}
        }
        assert_eq!(*told.0.lock().unwrap(), [100, 200, 300]);
    }
}
