//! Reads a verified body, and says whether it agrees with the kind that the header claims.
//!
//! Nothing is copied that need not be: members borrow from the body. Members that nobody here needs are skipped,
//! unknown ones are fine. A member of the wrong type is no error while reading; it makes the payload not fit its
//! kind. `null` counts as absent.

mod member;

use std::{mem::discriminant, sync::LazyLock};

use serde::{
    Deserialize,
    de::{MapAccess, value::MapAccessDeserializer},
};

use super::{
    event::{EVENTS, Event, Field, KINDS, Kind, MARKERS, Mark},
    headers::{DeliveryId, EventKind},
    signature::VerifiedBody,
};
use member::{Counts, Integer, Integers, Member, Shape, State, Text};

/// A verified delivery that was read: what it says it is, and whether the signed payload bears that out.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The claimed ID.
    pub id: DeliveryId<'a>,
    /// The claimed kind.
    pub kind: EventKind<'a>,
    /// Whether the payload proves the kind.
    pub agreement: Agreement,
    /// The filters that it fits.
    pub events: EventSet,
    payload: Payload<'a>,
}

/// Whether a payload proves the kind that its delivery claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// It has what this kind has and nothing that marks another.
    Proven,
    /// Nothing is published about this kind's payload, so it proves nothing.
    Unpublished,
    /// It is not this kind's payload.
    Differs(Mismatch),
}

/// Where a payload differs from the claimed kind's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A member that the kind has is absent.
    #[error("the payload has no `{0}`, which this kind has")]
    Missing(&'static str),
    /// A member has another type, or another value where only one is right.
    #[error("the payload's `{0}` is not what this kind has there")]
    WrongType(&'static str),
    /// A member marks another kind.
    #[error("the payload has `{0}`, which this kind does not have")]
    Foreign(&'static str),
    /// The payload names no organization.
    #[error("the payload has no `organization` with a `githubLogin`")]
    NoOrganization,
}

/// The body is not one JSON object in UTF-8, or a member that is read stands in it twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// JSON, perhaps, but not an object. A byte order mark lands here too.
    #[error("the body does not begin with a JSON object")]
    NotAnObject,
    /// Not JSON, or a member that is read stands in it twice. Says where, never what.
    #[error("the body is not one JSON object: {what} at line {line}, column {column}")]
    Syntax {
        /// What is wrong, without a word of the body.
        what: &'static str,
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
}

impl<'a> Delivery<'a> {
    /// Reads the body and compares it with the claimed kind.
    ///
    /// # Errors
    ///
    /// [`PayloadError`] where the body cannot be read. A body that reads but does not fit is no error here:
    /// see [`Agreement`].
    pub fn identify(
        body: &'a VerifiedBody,
        id: DeliveryId<'a>,
        kind: EventKind<'a>,
    ) -> Result<Self, PayloadError> {
        let payload = Payload::parse(body.bytes())?;
        let known = Kind::find(kind.as_str());
        let agreement = match known.map(|known| (known, known.fields)) {
            Some((known, Some(fields))) => payload.compare(known, fields),
            _ => Agreement::Unpublished,
        };
        let candidates = known.map_or(EventSet::ALL, EventSet::of_kind);
        let events = candidates.filter(|event| payload.shows(event, kind.as_str()));
        Ok(Self { id, kind, agreement, events, payload })
    }

    /// The login of the organization that the payload names: the slug in Pulumi's URLs.
    #[must_use]
    pub fn organization(&self) -> Option<&str> {
        self.payload.organization.get()?.github_login.text()
    }

    /// The environment that the payload is about, as project and name.
    #[must_use]
    pub fn environment(&self) -> Option<(&str, &str)> {
        Some((self.payload.project_name.text()?, self.payload.environment_name.text()?))
    }

    /// The number of the revision that the delivery is about. Of the kind `environment_revision` only: a tag may be
    /// moved to a lower one.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        let number = |Integer(number): &Integer| *number;
        if self.kind.as_str() == "environment_revision" {
            self.payload.revision.get().and_then(number)
        } else {
            None
        }
    }

    /// The tag that the payload is about.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.payload.tag_name.text()
    }

    /// Whether it is a ping, proven by its payload.
    #[must_use]
    pub fn is_ping(&self) -> bool {
        self.kind.as_str() == super::event::PING && self.agreement == Agreement::Proven
    }

    /// The filter that it fits: the first in the table where there are two, and none where the payload is not that
    /// of the claimed kind.
    #[must_use]
    pub fn event(&self) -> Option<&'static Event> {
        match self.agreement {
            Agreement::Proven | Agreement::Unpublished => self.events.iter().next(),
            Agreement::Differs(_) => None,
        }
    }
}

/// A set of filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventSet(u64);

const _: () = assert!(EVENTS.len() <= 64, "an EventSet has a bit for each filter");

impl EventSet {
    const ALL: Self = Self(u64::MAX >> (64 - EVENTS.len()));

    /// The filters that a delivery of this kind can fit, whatever its payload.
    fn of_kind(kind: &Kind) -> Self {
        /// In the order of the kinds.
        static OF_KINDS: LazyLock<Vec<EventSet>> = LazyLock::new(|| {
            let of = |kind: &Kind| {
                EventSet::ALL.filter(|event| match event.mark {
                    Mark::Unpublished => event.name.starts_with(kind.name),
                    _ => event.kind == Some(kind.name),
                })
            };
            KINDS.iter().map(of).collect()
        });
        let place = KINDS.iter().position(|known| std::ptr::eq(known, kind));
        place.and_then(|place| OF_KINDS.get(place)).copied().unwrap_or(Self::ALL)
    }

    /// Those of them for which `holds` does.
    fn filter(self, holds: impl Fn(&Event) -> bool) -> Self {
        let mut set = self;
        for (index, event) in EVENTS.iter().enumerate() {
            let bit = 1 << index;
            if self.0 & bit != 0 && !holds(event) {
                set.0 ^= bit;
            }
        }
        set
    }

    /// Adds a filter.
    pub fn insert(&mut self, event: &'static Event) {
        if let Some(index) = EVENTS.iter().position(|e| std::ptr::eq(e, event)) {
            self.0 |= 1 << index;
        }
    }

    /// Whether the two have a filter in common.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The filters in it, in the table's order.
    pub fn iter(self) -> impl Iterator<Item = &'static Event> {
        EVENTS.iter().enumerate().filter(move |(index, _)| self.0 & (1 << index) != 0).map(|(_, event)| event)
    }
}

/// The members of a payload that tell kinds, filters and scopes apart.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Payload<'a> {
    #[serde(borrow)]
    organization: Member<Organization<'a>>,
    #[serde(borrow)]
    project_name: Member<Text<'a>>,
    #[serde(borrow)]
    environment_name: Member<Text<'a>>,
    #[serde(borrow)]
    stack_name: Member<Text<'a>>,
    #[serde(borrow)]
    action: Member<Text<'a>>,
    revision: Member<Integer>,
    #[serde(borrow)]
    tag_name: Member<Text<'a>>,
    affected_revisions: Member<Integers>,
    #[serde(borrow)]
    imported_environment_reference: Member<Reference<'a>>,
    #[serde(borrow)]
    update_url: Member<Text<'a>>,
    #[serde(borrow)]
    kind: Member<Text<'a>>,
    #[serde(borrow)]
    result: Member<Text<'a>>,
    resource_changes: Member<Counts>,
    is_preview: Member<bool>,
    #[serde(borrow)]
    deployment_url: Member<Text<'a>>,
    version: Member<Integer>,
    #[serde(borrow)]
    operation: Member<Text<'a>>,
    #[serde(borrow)]
    status: Member<Text<'a>>,
    drift_detected: Member<bool>,
    #[serde(borrow)]
    drift_run_id: Member<Text<'a>>,
    #[serde(borrow)]
    reference_url: Member<Text<'a>>,
    timestamp: Member<Integer>,
    #[serde(borrow)]
    message: Member<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Organization<'a> {
    #[serde(borrow)]
    github_login: Member<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reference<'a> {
    #[serde(borrow)]
    project_name: Member<Text<'a>>,
    #[serde(borrow)]
    environment_name: Member<Text<'a>>,
    revision: Member<Integer>,
}

impl<'a> Payload<'a> {
    fn parse(body: &'a [u8]) -> Result<Self, PayloadError> {
        // The whole body is checked here because serde_json does not look into members that are skipped.
        let text = str::from_utf8(body).or(Err(PayloadError::NotUtf8))?;
        // Derived readers take a sequence for a struct; Pulumi never sends one.
        if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return Err(PayloadError::NotAnObject);
        }
        serde_json::from_str(text).map_err(|error| PayloadError::Syntax {
            // serde_json's message can repeat a key of the body, so it stays here.
            what: if error.is_data() { "a key given twice" } else { "wrong syntax" },
            line: error.line(),
            column: error.column(),
        })
    }

    fn compare(&self, kind: &Kind, fields: &[Field]) -> Agreement {
        for field in fields {
            match self.state(*field) {
                State::Fits => {}
                State::Absent => return Agreement::Differs(Mismatch::Missing(field.name())),
                State::Wrong => return Agreement::Differs(Mismatch::WrongType(field.name())),
            }
        }
        for marker in MARKERS {
            let is_own = || fields.iter().any(|field| discriminant(field) == discriminant(&marker));
            if self.state(marker) != State::Absent && !is_own() {
                return Agreement::Differs(Mismatch::Foreign(marker.name()));
            }
        }
        let organization = self.organization.get().and_then(|o| o.github_login.text());
        if !kind.is_ping() && organization.is_none() {
            return Agreement::Differs(Mismatch::NoOrganization);
        }
        Agreement::Proven
    }

    fn state(&self, field: Field) -> State {
        match field {
            Field::ProjectName => self.project_name.state(),
            Field::EnvironmentName => self.environment_name.state(),
            Field::StackName => self.stack_name.state(),
            Field::Action => self.action.state(),
            Field::Revision => self.revision.state(),
            Field::TagName => self.tag_name.state(),
            Field::AffectedRevisions => self.affected_revisions.state(),
            Field::ImportedEnvironmentReference => self.imported_environment_reference.state_where(|r| {
                [r.project_name.state(), r.environment_name.state(), r.revision.state()] == [State::Fits; 3]
            }),
            Field::UpdateUrl => self.update_url.state(),
            Field::Kind => self.kind.state(),
            Field::Result => self.result.state(),
            Field::ResourceChanges => self.resource_changes.state(),
            Field::IsPreview(value) => self.is_preview.state_where(|is| *is == value),
            Field::DeploymentUrl => self.deployment_url.state(),
            Field::Version => self.version.state(),
            Field::Operation => self.operation.state(),
            Field::Status => self.status.state(),
            Field::DriftDetected => self.drift_detected.state(),
            Field::DriftRunId => self.drift_run_id.state(),
            Field::ReferenceUrl => self.reference_url.state(),
            Field::Timestamp => self.timestamp.state(),
            Field::Message => self.message.state(),
        }
    }

    /// Whether a delivery of `kind` with this payload is what the filter `event` stands for.
    fn shows(&self, event: &Event, kind: &str) -> bool {
        match event.mark {
            Mark::Unpublished => self.may_be(event.name, kind),
            _ if event.kind != Some(kind) => false,
            Mark::Kind => true,
            Mark::Action(action) => self.action.text() == Some(action),
            Mark::Result(result) => self.result.text() == Some(result),
            Mark::Operation(kind, result) => {
                self.kind.text() == Some(kind) && self.result.text() == Some(result)
            }
            Mark::Status(values) => self.status.text().is_some_and(|status| values.contains(&status)),
            Mark::DriftDetected => matches!(self.drift_detected, Member::Is(true)),
        }
    }

    /// The rule for filters whose kind or body is not published: the kind is the filter's name, or its beginning
    /// while `action`, `result` or `status` is its end.
    fn may_be(&self, filter: &str, kind: &str) -> bool {
        match filter.strip_prefix(kind) {
            None => false,
            Some("") => true,
            Some(rest) => rest.strip_prefix('_').is_some_and(|end| {
                [&self.action, &self.result, &self.status].iter().any(|member| member.text() == Some(end))
            }),
        }
    }
}

impl<'de: 'a, 'a> Shape<'de> for Organization<'a> {
    fn of_object<A: MapAccess<'de>>(members: A) -> Result<Option<Self>, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(members)).map(Some)
    }
}

impl<'de: 'a, 'a> Shape<'de> for Reference<'a> {
    fn of_object<A: MapAccess<'de>>(members: A) -> Result<Option<Self>, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(members)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{
        super::{
            event::PING,
            secret::Secret,
            signature::{Key, Signature, Verifier, sign},
        },
        *,
    };

    fn verified(body: impl AsRef<[u8]>) -> VerifiedBody {
        let body = Bytes::copy_from_slice(body.as_ref());
        let secret = Secret::try_new(b"secret".to_vec(), true).unwrap();
        let signature = Signature::parse(sign(&secret, &body).as_bytes()).unwrap();
        let verifier = Verifier::new(vec![Key::new("key".into(), &secret, None)]);
        verifier.verify(body, &signature, UNIX_EPOCH).unwrap()
    }

    /// What a body is taken for under a claimed kind: the agreement, and the filters that it shows.
    fn identify(body: impl AsRef<[u8]>, kind: &str) -> Result<(Agreement, Vec<&'static str>), PayloadError> {
        let body = verified(body);
        let id = DeliveryId::parse(b"1").unwrap();
        let delivery = Delivery::identify(&body, id, EventKind::parse(kind.as_bytes()).unwrap())?;
        Ok((delivery.agreement, delivery.events.iter().map(|event| event.name).collect()))
    }

    fn agreement(body: &Value, kind: &str) -> Agreement {
        identify(body.to_string(), kind).unwrap().0
    }

    /// A sample of each kind whose payload is published, as JSON.
    fn samples() -> Vec<(&'static Kind, Value)> {
        let published = KINDS.iter().filter(|kind| kind.fields.is_some());
        let samples: Vec<_> = published
            .map(|kind| {
                let event = EVENTS.iter().find(|event| event.kind == Some(kind.name)).unwrap();
                (kind, serde_json::from_str(&event.sample_body()).unwrap())
            })
            .collect();
        assert_eq!(samples.len(), 12);
        samples
    }

    #[test]
    fn every_sample_fits_its_kind_and_shows_its_own_filter() {
        for event in EVENTS {
            let (agreement, shown) = identify(event.sample_body(), event.sample_kind()).unwrap();
            if event.is_published() {
                assert_eq!(agreement, Agreement::Proven, "{}", event.name);
            } else {
                assert_eq!(agreement, Agreement::Unpublished, "{}", event.name);
            }
            match event.name {
                "drift_detected" => assert_eq!(shown, ["drift_detected", "drift_detection_succeeded"]),
                name => assert_eq!(shown, [name]),
            }
        }
    }

    #[test]
    fn no_sample_fits_another_kind() {
        for (kind, body) in samples() {
            for (claimed, _) in samples() {
                let found = agreement(&body, claimed.name);
                assert_eq!(
                    found == Agreement::Proven,
                    kind.name == claimed.name,
                    "{} claimed as {}: {found:?}",
                    kind.name,
                    claimed.name
                );
            }
            for unknown in ["team", "policy_violation", "environment_rotation"] {
                assert_eq!(agreement(&body, unknown), Agreement::Unpublished);
            }
        }
    }

    #[test]
    fn each_member_of_a_kind_has_to_be_there_with_its_type() {
        for (kind, body) in samples() {
            for field in kind.fields.unwrap() {
                let name = field.name();
                let mut without = body.clone();
                without.as_object_mut().unwrap().remove(name);
                assert_eq!(agreement(&without, kind.name), Agreement::Differs(Mismatch::Missing(name)));
                let mut changed = body.clone();
                changed[name] = Value::Null;
                assert_eq!(agreement(&changed, kind.name), Agreement::Differs(Mismatch::Missing(name)));
                for wrong in
                    [json!(1.5), json!([[]]), json!([null]), json!({"a": "b"}), json!({"a": 1, "b": null})]
                {
                    changed[name] = wrong;
                    let expected = Agreement::Differs(Mismatch::WrongType(name));
                    assert_eq!(agreement(&changed, kind.name), expected, "{changed}");
                }
                let other = match &body[name] {
                    Value::String(_) => json!(1),
                    _ => json!("text"),
                };
                changed[name] = other;
                let expected = Agreement::Differs(Mismatch::WrongType(name));
                assert_eq!(agreement(&changed, kind.name), expected, "{changed}");
            }
        }
    }

    #[test]
    fn a_member_that_marks_another_kind_must_not_be_there() {
        for (kind, body) in samples() {
            let own = |name: &str| kind.fields.unwrap().iter().any(|field| field.name() == name);
            for marker in MARKERS.into_iter().map(Field::name).filter(|name| !own(name)) {
                let mut with = body.clone();
                for value in [json!("text"), json!(1), json!({}), json!(false)] {
                    with[marker] = value;
                    assert_eq!(
                        agreement(&with, kind.name),
                        Agreement::Differs(Mismatch::Foreign(marker)),
                        "{with}"
                    );
                }
                with[marker] = Value::Null;
                assert_eq!(agreement(&with, kind.name), Agreement::Proven, "{with}");
            }
        }
    }

    #[test]
    fn previews_and_updates_are_told_apart_by_the_signed_flag() {
        for (kind, flag) in [("stack_preview", false), ("stack_update", true)] {
            let (_, mut body) = samples().into_iter().find(|(sample, _)| sample.name == kind).unwrap();
            body["isPreview"] = json!(flag);
            assert_eq!(agreement(&body, kind), Agreement::Differs(Mismatch::WrongType("isPreview")));
        }
    }

    #[test]
    fn revisions_have_a_number_and_tags_of_them_have_none() {
        let mut seen = 0;
        for (kind, mut body) in samples() {
            for (revision, number) in
                [(json!(7), Some(7)), (json!(u64::MAX), Some(u64::MAX)), (json!(-1), None)]
            {
                body["revision"] = revision;
                let text = body.to_string();
                let verified = verified(text.as_bytes());
                let id = DeliveryId::parse(b"id").unwrap();
                let delivery =
                    Delivery::identify(&verified, id, EventKind::parse(kind.name.as_bytes()).unwrap())
                        .unwrap();
                let is_revision = kind.name == "environment_revision";
                assert_eq!(delivery.revision(), number.filter(|_| is_revision), "{body}");
                seen += usize::from(is_revision);
            }
        }
        assert_eq!(seen, 3);
    }

    #[test]
    fn an_imported_environment_is_named_whole() {
        let kind = "imported_environment_changed";
        let (_, body) = samples().into_iter().find(|(sample, _)| sample.name == kind).unwrap();
        let wrong = Agreement::Differs(Mismatch::WrongType("importedEnvironmentReference"));
        for member in ["projectName", "environmentName", "revision"] {
            let mut changed = body.clone();
            changed["importedEnvironmentReference"][member] = Value::Null;
            assert_eq!(agreement(&changed, kind), wrong);
            changed["importedEnvironmentReference"][member] = json!([]);
            assert_eq!(agreement(&changed, kind), wrong);
        }
        let mut more = body.clone();
        more["importedEnvironmentReference"]["tag"] = json!("stable");
        assert_eq!(agreement(&more, kind), Agreement::Proven);
        let mut none = body;
        none["affectedRevisions"] = json!([]);
        assert_eq!(agreement(&none, kind), Agreement::Proven);
    }

    #[test]
    fn every_kind_but_ping_names_an_organization() {
        for (kind, body) in samples() {
            let expected = match kind.name {
                PING => Agreement::Proven,
                _ => Agreement::Differs(Mismatch::NoOrganization),
            };
            for organization in
                [json!(null), json!("acme"), json!({}), json!({"githubLogin": 1}), json!({"name": "A"})]
            {
                let mut changed = body.clone();
                changed["organization"] = organization;
                assert_eq!(agreement(&changed, kind.name), expected, "{changed}");
            }
        }
    }

    #[test]
    fn what_is_unknown_is_fine() {
        for (kind, body) in samples() {
            let mut more = body.clone();
            more["user"] = Value::Null;
            more["added"] = json!([{"a": [1, "x", null]}]);
            more["Action"] = json!(7);
            more["organization"]["plan"] = json!(3);
            let agreement = agreement(&more, kind.name);
            assert_eq!(agreement, Agreement::Proven, "{more}");
        }
        let (_, mut body) = samples().swap_remove(0);
        body["action"] = json!("renamed");
        assert_eq!(identify(body.to_string(), "environment").unwrap(), (Agreement::Proven, vec![]));
    }

    #[test]
    fn a_delivery_says_what_it_is_about() {
        let id = || DeliveryId::parse(b"1").unwrap();
        let body = verified(Event::find("environment_revision_tag_updated").unwrap().sample_body());
        let kind = EventKind::parse(b"environment_revision_tag").unwrap();
        let delivery = Delivery::identify(&body, id(), kind).unwrap();
        assert_eq!(delivery.organization(), Some("crazy-adventures"));
        assert_eq!(delivery.environment(), Some(("website", "prod")));
        assert_eq!(delivery.tag(), Some("stable"));
        assert_eq!(delivery.event().map(|event| event.name), Some("environment_revision_tag_updated"));

        // The same payload under a kind that nothing is known about.
        let delivery = Delivery::identify(&body, id(), EventKind::parse(b"something_new").unwrap()).unwrap();
        assert!(delivery.agreement == Agreement::Unpublished && delivery.event().is_none());

        let ping = verified(Event::find(PING).unwrap().sample_body());
        let delivery = Delivery::identify(&ping, id(), EventKind::parse(b"ping").unwrap()).unwrap();
        assert!(delivery.is_ping() && delivery.organization().is_none() && delivery.environment().is_none());
        assert_eq!(delivery.event().map(|event| event.name), Some("ping"));
        // The kind alone makes no ping.
        assert!(!Delivery::identify(&body, id(), EventKind::parse(b"ping").unwrap()).unwrap().is_ping());
    }

    #[test]
    fn drift_is_named_by_the_first_filter_of_the_table() {
        let body = verified(Event::find("drift_detected").unwrap().sample_body());
        let kind = EventKind::parse(b"drift_detection").unwrap();
        let delivery = Delivery::identify(&body, DeliveryId::parse(b"1").unwrap(), kind).unwrap();
        assert_eq!(delivery.event().map(|event| event.name), Some("drift_detected"));
    }

    #[test]
    fn unpublished_filters_match_by_name_or_by_beginning_and_end() {
        for (kind, body, shown) in [
            ("environment_rotation_failed", json!({}), vec!["environment_rotation_failed"]),
            ("environment_rotation", json!({"status": "failed"}), vec!["environment_rotation_failed"]),
            ("environment_rotation", json!({"action": "succeeded"}), vec!["environment_rotation_succeeded"]),
            ("environment", json!({"result": "rotation_failed"}), vec!["environment_rotation_failed"]),
            (
                "environment_rotation",
                json!({"action": "succeeded", "status": "failed"}),
                vec!["environment_rotation_succeeded", "environment_rotation_failed"],
            ),
            ("environment_rotation", json!({"action": "started"}), vec![]),
            ("environment_rotation", json!({"kind": "failed"}), vec![]),
            ("environment_rotation", json!({"status": ["failed"]}), vec![]),
            ("environment_rot", json!({"status": "ation_failed"}), vec![]),
            ("environment_rotation_", json!({"status": "failed"}), vec![]),
            ("environment_rotation_failed_again", json!({}), vec![]),
            ("change_request", json!({"action": "approved"}), vec!["change_request_approved"]),
            ("policy_violation", json!({"result": "advisory"}), vec!["policy_violation_advisory"]),
            ("policy_violation_mandatory", json!({}), vec!["policy_violation_mandatory"]),
            (
                "deployment_file_ingestion",
                json!({"status": "failed"}),
                vec!["deployment_file_ingestion_failed"],
            ),
        ] {
            assert_eq!(identify(body.to_string(), kind).unwrap().1, shown, "{kind} {body}");
        }
    }

    #[test]
    fn only_one_object_in_utf_8_is_a_payload() {
        for body in ["{}", " \t\r\n{ } \n", "{\"a\":\"\\u0041\",\"b\":[1e400,-0,{}]}"] {
            assert!(identify(body, "team").is_ok(), "{body}");
        }
        for body in ["", " ", "[]", "[{}]", "null", "1", "\"{}\"", "\u{feff}{}", "\u{a0}{}", "x{}"] {
            assert_eq!(identify(body, "team"), Err(PayloadError::NotAnObject), "{body}");
        }
        for body in [
            "{",
            "{}{}",
            "{} x",
            "{},",
            "{}\0",
            "{'a':1}",
            "{\"a\":1,}",
            "{\"a\" 1}",
            "{a:1}",
            "{\"a\":01}",
            "{\"a\":NaN}",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\\x\"}",
            "{\"action\":\"\\ud800\"}",
            "{/**/}",
            "{\"a\":tru}",
        ] {
            assert!(matches!(identify(body, "team"), Err(PayloadError::Syntax { .. })), "{body}");
        }
        for body in
            [&b"\xff"[..], b"{\"a\":\"\xff\"}", b"{\"user\":{\"name\":\"\xc3\x28\"}}", b"\xff\xfe{\0}\0"]
        {
            assert_eq!(identify(body, "team"), Err(PayloadError::NotUtf8));
        }
        // Depth costs no stack, in members that are read and in others.
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let deeper = format!("{}1{}", "{\"organization\":".repeat(100_000), "}".repeat(100_000));
        for member in ["added", "action", "organization", "affectedRevisions", "resourceChanges"] {
            assert!(identify(format!("{{\"{member}\":{deep}}}"), "team").is_ok());
            assert!(identify(format!("{{\"{member}\":{deeper}}}"), "team").is_ok());
        }
        assert!(matches!(identify("{\"a\":".repeat(100_000), "team"), Err(PayloadError::Syntax { .. })));
    }

    #[test]
    fn what_is_read_stands_there_once() {
        let twice =
            |error: PayloadError| matches!(error, PayloadError::Syntax { what: "a key given twice", .. });
        let mut names: Vec<_> = MARKERS.into_iter().map(Field::name).collect();
        names.extend(["projectName", "organization"]);
        for name in names {
            // Written plainly, and with its first letter as an escape.
            let escaped = format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), name.get(1..).unwrap());
            for second in [name, &escaped] {
                let body = format!("{{\"{name}\":1,\"{second}\":null}}");
                assert!(identify(&body, "team").is_err_and(twice), "{body}");
            }
        }
        for body in [
            r#"{"organization":{"githubLogin":"a","githubLogin":"b"}}"#,
            r#"{"importedEnvironmentReference":{"revision":1,"revision":2}}"#,
        ] {
            assert!(identify(body, "team").is_err_and(twice), "{body}");
        }
        for body in [
            r#"{"user":1,"user":2}"#,
            r#"{"organization":{"name":1,"name":2}}"#,
            r#"{"a":{"action":1,"action":2}}"#,
        ] {
            assert!(identify(body, "team").is_ok(), "{body}");
        }
    }

    #[test]
    fn escapes_in_keys_and_values_say_the_same() {
        let body = r#"{"organization":{"github\u004cogin":"acme"},"projec\u0074Name":"p","environmentName":"e","\u0061ction":"cre\u0061ted"}"#;
        assert_eq!(identify(body, "environment").unwrap(), (Agreement::Proven, vec!["environment_created"]));
    }

    #[test]
    fn an_error_repeats_nothing_of_the_body() {
        for body in ["{\"hidden\":hidden}", "{\"action\":1,\"action\":\"hidden\"}", "hidden", "{\"hidden"] {
            let error = identify(body, "team").unwrap_err();
            assert!(
                !error.to_string().contains("hidden") && !error.to_string().contains("action"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_set_holds_what_was_put_into_it() {
        let mut set = EventSet::default();
        assert_eq!(set.iter().count(), 0);
        for event in EVENTS {
            let mut one = EventSet::default();
            one.insert(event);
            assert!(!set.intersects(one), "{}", event.name);
            set.insert(event);
            assert!(set.intersects(one), "{}", event.name);
        }
        assert!(set.iter().map(|event| event.name).eq(EVENTS.iter().map(|event| event.name)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200), text in "[{}\\[\\]\":,a\\\\u0-9 nulltruefs]{0,60}") {
            for body in [&body[..], text.as_bytes()] {
                for kind in ["environment", "ping", "team"] {
                    // What is read is never proven by chance.
                    if let Ok((agreement, _)) = identify(body, kind) {
                        prop_assert!(agreement != Agreement::Proven);
                    }
                }
            }
        }

        #[test]
        fn white_space_and_order_change_nothing(index in 0..EVENTS.len(), pretty in any::<bool>()) {
            let event = &EVENTS[index];
            let body: Value = serde_json::from_str(&event.sample_body()).unwrap();
            let other = if pretty { serde_json::to_string_pretty(&body).unwrap() } else { body.to_string() };
            prop_assert_eq!(
                identify(other, event.sample_kind()),
                identify(event.sample_body(), event.sample_kind())
            );
        }

        #[test]
        fn names_are_read_as_they_were_written(project in any::<String>(), name in any::<String>(), tag in any::<String>()) {
            let body = json!({"projectName": project, "environmentName": name, "tagName": tag}).to_string();
            let body = verified(body);
            let kind = EventKind::parse(b"team").unwrap();
            let delivery = Delivery::identify(&body, DeliveryId::parse(b"1").unwrap(), kind).unwrap();
            prop_assert_eq!(delivery.environment(), Some((&*project, &*name)));
            prop_assert_eq!(delivery.tag(), Some(&*tag));
        }
    }
}
