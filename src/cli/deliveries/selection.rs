//! Which deliveries are meant.

use std::time::SystemTime;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::{
    config::{parse_duration, parse_instant},
    delivery::queue::{Filter, State},
};

/// Conditions, all of which must hold.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Filters")]
pub(super) struct Conditions {
    /// In this state; give it again, or several with commas, for any of them
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',', value_parser = state())]
    pub(super) states: Vec<State>,
    /// Of this webhook, by its name
    #[arg(long, value_name = "NAME")]
    webhook: Option<String>,
    /// For this destination, by its name
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Of this event: a filter such as environment_created, or a kind
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Accepted at this time or later: 2026-11-23T20:00:00Z, or an age such as 2h or 3d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Accepted before this time, written the same way
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
}

impl Conditions {
    /// Whether there is none.
    pub(super) const fn are_none(&self) -> bool {
        let Self { states, webhook, destination, event, since, until } = self;
        states.is_empty()
            && webhook.is_none()
            && destination.is_none()
            && event.is_none()
            && since.is_none()
            && until.is_none()
    }

    /// As the queue takes them. Without states of their own, `states` are meant.
    pub(super) fn filter(&self, ids: &[String], states: &[State]) -> Filter {
        Filter {
            ids: ids.to_vec(),
            states: if self.states.is_empty() { states.to_vec() } else { self.states.clone() },
            webhook: self.webhook.clone(),
            destination: self.destination.clone(),
            event: self.event.clone(),
            since: self.since,
            until: self.until,
        }
    }
}

fn state() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::ALL.map(State::name)).try_map(|name| name.parse::<State>())
}

fn time(text: &str) -> Result<SystemTime, String> {
    time_at(text, SystemTime::now())
}

/// A point in time, or how long before `now` it was.
fn time_at(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    parse_instant(text)
        .or_else(|| parse_duration(text).and_then(|age| now.checked_sub(age)))
        .ok_or_else(|| "write 2026-11-23T20:00:00Z, or an age such as 90m, 2h or 3d".into())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        conditions: Conditions,
    }

    fn conditions(args: &[&str]) -> Result<Conditions, String> {
        Command::try_parse_from(["test"].iter().chain(args))
            .map(|command| command.conditions)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn times_are_points_or_ages() {
        let now = UNIX_EPOCH + Duration::from_secs(1_780_272_000);
        let ago = |seconds| now - Duration::from_secs(seconds);
        for (text, expected) in [
            ("2026-06-01T00:00:00Z", now),
            ("2026-06-01T02:00:00+02:00", now),
            ("2026-05-31T23:59:59Z", ago(1)),
            ("1970-01-01T00:00:00Z", UNIX_EPOCH),
            ("2h", ago(7200)),
            ("3d", ago(3 * 86_400)),
            ("1h30m", ago(5400)),
            ("0s", now),
        ] {
            assert_eq!(time_at(text, now), Ok(expected), "{text}");
        }
        for wrong in ["", "2", "h", "-2h", "yesterday", "2026-06-01", "2026-06-01T00:00:00", "12:00:00"] {
            assert!(time_at(wrong, now).unwrap_err().contains("2h"), "{wrong}");
        }
    }

    #[test]
    fn conditions_become_a_filter() {
        let none = conditions(&[]).unwrap();
        assert!(none.are_none());
        assert_eq!(none.filter(&[], &[]), Filter::default());
        assert_eq!(none.filter(&["a".into()], &[State::Dead]).states, [State::Dead]);
        let all = conditions(&[
            "--state=dead,waiting",
            "--state=delivered",
            "--webhook=esc",
            "--destination=app",
            "--event=ping",
            "--since=1970-01-01T00:00:01Z",
            "--until=1970-01-01T00:00:02Z",
        ])
        .unwrap();
        let filter = Filter {
            ids: vec!["1-1".into()],
            states: vec![State::Dead, State::Waiting, State::Delivered],
            webhook: Some("esc".into()),
            destination: Some("app".into()),
            event: Some("ping".into()),
            since: Some(UNIX_EPOCH + Duration::from_secs(1)),
            until: Some(UNIX_EPOCH + Duration::from_secs(2)),
        };
        assert_eq!(all.filter(&["1-1".into()], &[State::Coalesced]), filter);
        for one in ["--state=dead", "--webhook=a", "--destination=a", "--event=a", "--since=1h", "--until=1h"]
        {
            assert!(!conditions(&[one]).unwrap().are_none(), "{one}");
        }
        assert!(conditions(&["--state=dad"]).unwrap_err().contains("dead"));
        assert!(conditions(&["--since=soon"]).unwrap_err().contains("age"));
    }
}
