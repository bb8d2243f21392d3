//! Reads a verified body, and says whether it agrees with the kind that the header claims.
//!
//! Nothing is copied that need not be: members borrow from the body. Members that nobody here needs are skipped,
//! unknown ones are fine. A member of the wrong type is not an error while reading; it makes the payload not fit its
//! kind. `null` counts as absent.

mod facts;
mod member;
mod object;

use std::{fmt, mem::discriminant, sync::LazyLock};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::error::Category;

use super::{
    event::{EVENTS, Event, Field, KINDS, Kind, MARKERS, Mark},
    headers::{DeliveryId, EventKind},
    signature::VerifiedBody,
};
pub use facts::{Facts, User};
use member::{Counts, Integer, Integers, Member, Shape, State, Text};
use object::object;

/// A verified delivery that was read: what it says it is, and whether the signed payload bears that out.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The claimed ID.
    pub id: DeliveryId<'a>,
    /// The claimed kind.
    pub kind: EventKind<'a>,
    /// Whether the payload proves the kind.
    pub agreement: Agreement,
    /// The filters that it fits. None where the payload is not that of the claimed kind.
    pub events: EventSet,
    /// The body.
    text: &'a str,
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
    /// The kind is the name of a filter, such as `environment_deleted`. Pulumi never sends one, and the service must
    /// not take it for the event of that name.
    #[error("the kind is the name of a filter, which Pulumi does not send as a kind")]
    FilterName,
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
    /// [`PayloadError`] where the body cannot be read. A body that reads but does not fit is not an error here:
    /// see [`Agreement`].
    pub fn identify(
        body: &'a VerifiedBody,
        id: DeliveryId<'a>,
        kind: EventKind<'a>,
    ) -> Result<Self, PayloadError> {
        let (text, payload) = Payload::parse(body.bytes())?;
        let known = Kind::find(kind.as_str());
        let agreement = match known.map(|known| (known, known.fields)) {
            Some((known, Some(fields))) => payload.compare(known, fields),
            None if Event::find(kind.as_str()).is_some_and(Event::is_published) => {
                Agreement::Differs(Mismatch::FilterName)
            }
            _ => Agreement::Unpublished,
        };
        let events = match agreement {
            // It is no more than a claim that this is the kind, so nothing in it stands for one of the kind's filters.
            Agreement::Differs(_) => EventSet::default(),
            Agreement::Proven | Agreement::Unpublished => {
                let candidates = known.map_or(EventSet::ALL, EventSet::of_kind);
                candidates.filter(|event| payload.shows(event, kind.as_str()))
            }
        };
        Ok(Self { id, kind, agreement, events, text, payload })
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

    /// The number of the revision that the delivery is about. Of the kind `environment_revision` only, and proven: a tag
    /// may be moved to a lower one.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        let number = |Integer(number): &Integer| *number;
        if self.kind.as_str() == "environment_revision" && self.agreement == Agreement::Proven {
            self.payload.revision.get().and_then(number)
        } else {
            None
        }
    }

    /// The tag that the payload is about.
    #[must_use]
    pub fn tag(&self) -> Tag<'_> {
        let has_tags = || Kind::find(self.kind.as_str()).and_then(|kind| kind.fields).unwrap_or_default();
        match &self.payload.tag_name {
            Member::Is(text) => Tag::Named(text.as_str()),
            Member::Null if self.agreement == Agreement::Proven => Tag::None,
            Member::Absent if !has_tags().contains(&Field::TagName) => Tag::None,
            Member::Absent | Member::Null | Member::Wrong => Tag::Unreadable,
        }
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
        self.event_number().and_then(|number| EVENTS.get(number))
    }

    /// The place of that filter in the table.
    #[must_use]
    pub fn event_number(&self) -> Option<usize> {
        self.events.first()
    }
}

/// What a payload says about a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag<'a> {
    /// It is about none.
    None,
    /// It is about the tag of this name.
    Named(&'a str),
    /// Its `tagName` is not text, or is missing although the kind has one.
    Unreadable,
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

    /// The place of its first filter in the table.
    fn first(self) -> Option<usize> {
        usize::try_from(self.0.trailing_zeros()).ok().filter(|place| *place < EVENTS.len())
    }

    /// The filters in it, in the table's order.
    pub fn iter(self) -> impl Iterator<Item = &'static Event> {
        EVENTS.iter().enumerate().filter(move |(index, _)| self.0 & (1 << index) != 0).map(|(_, event)| event)
    }
}

object! {
    /// The members of a payload that tell kinds, filters and scopes apart.
    struct Payload<'a> {
        organization "organization": Organization<'a>,
        project_name "projectName": Text<'a>,
        environment_name "environmentName": Text<'a>,
        stack_name "stackName": Text<'a>,
        action "action": Text<'a>,
        revision "revision": Integer,
        tag_name "tagName": Text<'a>,
        affected_revisions "affectedRevisions": Integers,
        imported_environment_reference "importedEnvironmentReference": Reference<'a>,
        update_url "updateUrl": Text<'a>,
        kind "kind": Text<'a>,
        result "result": Text<'a>,
        resource_changes "resourceChanges": Counts,
        is_preview "isPreview": bool,
        deployment_url "deploymentUrl": Text<'a>,
        version "version": Integer,
        operation "operation": Text<'a>,
        status "status": Text<'a>,
        drift_detected "driftDetected": bool,
        drift_run_id "driftRunId": Text<'a>,
        reference_url "referenceUrl": Text<'a>,
        timestamp "timestamp": Integer,
        message "message": Text<'a>,
    }
}

object! {
    struct Organization<'a> {
        github_login "githubLogin": Text<'a>,
    }
}

object! {
    struct Reference<'a> {
        project_name "projectName": Text<'a>,
        environment_name "environmentName": Text<'a>,
        revision "revision": Integer,
    }
}

impl<'a> Payload<'a> {
    fn parse(body: &'a [u8]) -> Result<(&'a str, Self), PayloadError> {
        // The whole body is checked here because serde_json does not look into members that are skipped.
        let text = str::from_utf8(body).or(Err(PayloadError::NotUtf8))?;
        // Said by itself, since it is what a byte order mark looks like.
        if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return Err(PayloadError::NotAnObject);
        }
        let read: Result<Member<Self>, _> = serde_json::from_str(text);
        match read {
            Ok(Member::Is(payload)) => Ok((text, payload)),
            Ok(_) => Err(PayloadError::NotAnObject),
            Err(error) => Err(PayloadError::Syntax {
                // serde_json's message can repeat the body, so it stays here.
                what: match error.classify() {
                    Category::Data if error.to_string().starts_with(object::TWICE) => object::TWICE,
                    Category::Data => object::FOLDED,
                    Category::Eof => "an early end",
                    // So it stands in a sample of Pulumi's documentation.
                    _ if error.to_string().starts_with("trailing comma") => "a comma before a closing brace",
                    Category::Syntax | Category::Io => "wrong syntax",
                },
                line: error.line(),
                column: error.column(),
            }),
        }
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

#[cfg(test)]
mod tests;
