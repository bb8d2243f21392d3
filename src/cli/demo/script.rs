//! What the demo sends, and what must become of it. Pure.

use bytes::Bytes;

use crate::webhook::{
    event::{EVENTS, Event, Group, PING},
    secret::Secret,
    signature::sign,
};

/// One request of the demo.
#[derive(Debug)]
pub(super) struct Step {
    /// What is sent, in words.
    pub(super) what: String,
    pub(super) body: Bytes,
    /// `None`: a new one.
    pub(super) id: Option<&'static str>,
    pub(super) kind: &'static str,
    pub(super) signature: Option<String>,
    pub(super) expected: Expected,
}

/// What must become of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) status: u16,
    pub(super) outcome: &'static str,
    /// The event as which it must reach the upstream, if it must.
    pub(super) reaches: Option<&'static str>,
}

/// A part of the demo.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) title: &'static str,
    pub(super) steps: Vec<Step>,
}

/// The events whose deliveries the demo's webhook wants.
pub(super) const WANTED: Group = Group::Environments;

/// The event of which forgeries are made.
const FORGED: &str = "environment_revision_created";

/// The ID of the delivery that is sent again.
const REPEATED: &str = "d0000000-0000-4000-8000-000000000001";

/// Everything the demo sends, signed with `secret`; `stranger` is a secret that hookgate does not know.
pub(super) fn scenes(secret: &Secret, stranger: &Secret) -> Vec<Scene> {
    vec![
        Scene { title: "Signed deliveries of every ESC event", steps: genuine(secret) },
        Scene { title: "Signed, but not for the service", steps: kept_back(secret) },
        Scene { title: "Forgeries", steps: forgeries(secret, stranger) },
    ]
}

fn genuine(secret: &Secret) -> Vec<Step> {
    EVENTS
        .iter()
        .filter(|event| event.group == Some(WANTED))
        .map(|event| {
            let mut step = sample(event, secret);
            step.id = (event.name == FORGED).then_some(REPEATED);
            step
        })
        .collect()
}

fn kept_back(secret: &Secret) -> Vec<Step> {
    let not_forwarded = |what: &str, name: &str, outcome| {
        let mut step = named(name, secret)?;
        step.what = what.to_owned();
        step.expected = Expected { status: 200, outcome, reaches: None };
        Some(step)
    };
    let again = not_forwarded("the revision_created above, again", FORGED, "duplicate");
    let again = again.map(|step| Step { id: Some(REPEATED), ..step });
    [
        not_forwarded("a ping", PING, "pong"),
        not_forwarded("an unwanted event: stack_created", "stack_created", "filtered"),
        again,
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn forgeries(secret: &Secret, stranger: &Secret) -> Vec<Step> {
    let forged = |what: &str, status, outcome, forge: &dyn Fn(&mut Step)| {
        let mut step = named(FORGED, secret)?;
        what.clone_into(&mut step.what);
        step.expected = Expected { status, outcome, reaches: None };
        forge(&mut step);
        Some(step)
    };
    [
        forged("no signature", 401, "missing_signature", &|step| step.signature = None),
        forged("a wrong signature", 401, "bad_signature", &|step| step.signature = Some("0".repeat(64))),
        forged("signed with another secret", 401, "bad_signature", &|step| {
            step.signature = Some(sign(stranger, &step.body));
        }),
        forged("the body re-encoded after signing", 401, "bad_signature", &|step| {
            step.body = String::from_utf8_lossy(&step.body).replace("\":", "\": ").into();
        }),
        forged("revision 5 made 6 after signing", 401, "bad_signature", &|step| {
            step.body =
                String::from_utf8_lossy(&step.body).replace("\"revision\":5", "\"revision\":6").into();
        }),
        forged("its kind swapped for `environment`", 422, "kind_mismatch", &|step| step.kind = "environment"),
        forged("another signed body under a used ID", 409, "id_conflict", &|step| {
            if let Some(other) = named("environment_revision_retracted", secret) {
                step.body = other.body;
                step.signature = other.signature;
            }
            step.id = Some(REPEATED);
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn named(name: &str, secret: &Secret) -> Option<Step> {
    Event::find(name).map(|event| sample(event, secret))
}

fn sample(event: &'static Event, secret: &Secret) -> Step {
    let body = Bytes::from(event.sample_body());
    Step {
        what: event.name.to_owned(),
        signature: Some(sign(secret, &body)),
        body,
        id: None,
        kind: event.sample_kind(),
        expected: Expected { status: 200, outcome: "forwarded", reaches: Some(event.name) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> Vec<Step> {
        let secret = |text: &str| Secret::try_new(text.into(), true).unwrap();
        scenes(&secret("demo"), &secret("stranger")).into_iter().flat_map(|scene| scene.steps).collect()
    }

    #[test]
    fn all_eleven_esc_events_are_sent() {
        let reaching: Vec<_> = steps().iter().filter_map(|step| step.expected.reaches).collect();
        assert_eq!(reaching.len(), 11, "{reaching:?}");
    }

    #[test]
    fn every_forgery_is_one() {
        let secret = Secret::try_new(b"demo".to_vec(), true).unwrap();
        let genuine = named(FORGED, &secret).unwrap();
        let steps = steps();
        let forgeries: Vec<_> = steps.iter().filter(|step| step.expected.status >= 400).collect();
        assert_eq!(forgeries.len(), 7);
        for step in forgeries {
            assert!(
                step.signature != genuine.signature || step.body != genuine.body || step.kind != genuine.kind,
                "{}",
                step.what
            );
        }
    }

    #[test]
    fn lines_fit_the_table() {
        assert!(steps().iter().all(|step| step.what.chars().count() <= super::super::WHAT));
    }
}
