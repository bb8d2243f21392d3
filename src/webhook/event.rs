//! Pulumi's vocabulary of events in one table: groups, kinds, filters, what marks them, who sends them.
//!
//! Everything that knows an event by name reads it here: the configuration, the agreement of kind and payload,
//! the filter name of a delivery, the samples of `send` and `demo`, and the README's table.
//!
//! Three words, often confused. A *filter* is what a webhook subscribes to (`environment_revision_created`); it
//! is never sent. A *kind* is what the header carries (`environment_revision`). A *group* is a named set of
//! filters (`environments`).
//!
//! Sources: the pages "ESC Webhooks" (`pulumi.com/docs/esc/concepts/webhooks`) and "Pulumi Cloud Webhooks"
//! (`pulumi.com/docs/deployments/concepts/webhooks`) for kinds and bodies; the Pulumi CLI
//! (`pulumi/pulumi`, `pkg/cmd/pulumi/org/org_webhook_new.go`, `pkg/cmd/esc/cli/env_webhook_new.go`) for groups and
//! the names that no page explains; `pulumi/pulumi-pulumiservice` (`provider/pkg/resources/webhook.go`) for the
//! rotation filters. State: mid-2026.

use std::fmt;

/// What a webhook is attached to in Pulumi. It decides which events the webhook can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// An organization.
    Organization,
    /// One ESC environment.
    Environment,
    /// One stack.
    Stack,
}

impl Scope {
    /// Every scope, with the name that configuration uses.
    pub const ALL: [(&'static str, Self); 3] =
        [("organization", Self::Organization), ("environment", Self::Environment), ("stack", Self::Stack)];

    /// The name that configuration uses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::Environment => "environment",
            Self::Stack => "stack",
        }
    }
}

/// A named set of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The five documented ESC kinds. Whether Pulumi counts rotation among them is not published.
    Environments,
    /// The change request filters; their kinds are not published.
    ChangeRequests,
    /// Stacks and their updates and previews.
    Stacks,
    /// Deployments and drift.
    Deployments,
    /// Policy violations.
    Policies,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 5] =
        [Self::Environments, Self::ChangeRequests, Self::Stacks, Self::Deployments, Self::Policies];

    /// The name that Pulumi and the configuration use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Environments => "environments",
            Self::ChangeRequests => "change_requests",
            Self::Stacks => "stacks",
            Self::Deployments => "deployments",
            Self::Policies => "policies",
        }
    }

    /// The beginning of kinds that belong to the group although nothing about them is published.
    #[must_use]
    pub const fn kind_prefix(self) -> Option<&'static str> {
        match self {
            Self::ChangeRequests => Some("change_request"),
            _ => None,
        }
    }
}

/// A member of a payload that tells kinds apart. Members that mark nothing are not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `projectName`, text. Common to all kinds but ping, so it marks none.
    ProjectName,
    /// `environmentName`, text.
    EnvironmentName,
    /// `stackName`, text.
    StackName,
    /// `action`, text.
    Action,
    /// `revision`, an integer.
    Revision,
    /// `tagName`, text.
    TagName,
    /// `affectedRevisions`, integers.
    AffectedRevisions,
    /// `importedEnvironmentReference`: an object with `projectName`, `environmentName`, `revision`.
    ImportedEnvironmentReference,
    /// `updateUrl`, text.
    UpdateUrl,
    /// `kind`, text: the operation of an update, not the event's kind.
    Kind,
    /// `result`, text.
    Result,
    /// `resourceChanges`: an object of counts.
    ResourceChanges,
    /// `isPreview`, with the one value that the kind allows.
    IsPreview(bool),
    /// `deploymentUrl`, text.
    DeploymentUrl,
    /// `version`, an integer.
    Version,
    /// `operation`, text.
    Operation,
    /// `status`, text.
    Status,
    /// `driftDetected`, a boolean.
    DriftDetected,
    /// `driftRunId`, text.
    DriftRunId,
    /// `referenceUrl`, text.
    ReferenceUrl,
    /// `timestamp`, an integer: Unix seconds.
    Timestamp,
    /// `message`, text.
    Message,
}

impl Field {
    /// The member's name in the payload.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProjectName => "projectName",
            Self::EnvironmentName => "environmentName",
            Self::StackName => "stackName",
            Self::Action => "action",
            Self::Revision => "revision",
            Self::TagName => "tagName",
            Self::AffectedRevisions => "affectedRevisions",
            Self::ImportedEnvironmentReference => "importedEnvironmentReference",
            Self::UpdateUrl => "updateUrl",
            Self::Kind => "kind",
            Self::Result => "result",
            Self::ResourceChanges => "resourceChanges",
            Self::IsPreview(_) => "isPreview",
            Self::DeploymentUrl => "deploymentUrl",
            Self::Version => "version",
            Self::Operation => "operation",
            Self::Status => "status",
            Self::DriftDetected => "driftDetected",
            Self::DriftRunId => "driftRunId",
            Self::ReferenceUrl => "referenceUrl",
            Self::Timestamp => "timestamp",
            Self::Message => "message",
        }
    }

    /// A value as Pulumi's published examples have it, as JSON.
    const fn sample(self) -> &'static str {
        match self {
            Self::ProjectName => "\"website\"",
            Self::EnvironmentName => "\"prod\"",
            Self::StackName => "\"website-prod\"",
            Self::Action => "\"created\"",
            Self::Revision => "5",
            Self::TagName => "\"stable\"",
            Self::AffectedRevisions => "[2,5,6,7]",
            Self::ImportedEnvironmentReference => {
                r#"{"projectName":"website","environmentName":"base","revision":10}"#
            }
            Self::UpdateUrl => "\"https://app.pulumi.com/crazy-adventures/website/website-prod/updates/42\"",
            Self::Kind | Self::Operation => "\"update\"",
            Self::Result | Self::Status => "\"succeeded\"",
            Self::ResourceChanges => r#"{"update":3,"delete":1}"#,
            Self::IsPreview(true) => "true",
            Self::IsPreview(false) | Self::DriftDetected => "false",
            Self::DeploymentUrl | Self::ReferenceUrl => {
                "\"https://app.pulumi.com/crazy-adventures/website/website-prod/deployments/127\""
            }
            Self::Version => "127",
            Self::DriftRunId => "\"11bf162b-d9d5-4715-8f88-20dcd0e0b167\"",
            Self::Timestamp => "1778653144",
            Self::Message => "\"🍹 Just a friendly ping from Pulumi 🍹\"",
        }
    }
}

/// Members that mark a kind: where one stands that a kind does not have, the payload is another kind's.
pub const MARKERS: [Field; 21] = [
    Field::EnvironmentName,
    Field::StackName,
    Field::Action,
    Field::Revision,
    Field::TagName,
    Field::AffectedRevisions,
    Field::ImportedEnvironmentReference,
    Field::UpdateUrl,
    Field::Kind,
    Field::Result,
    Field::ResourceChanges,
    Field::IsPreview(true),
    Field::DeploymentUrl,
    Field::Version,
    Field::Operation,
    Field::Status,
    Field::DriftDetected,
    Field::DriftRunId,
    Field::ReferenceUrl,
    Field::Timestamp,
    Field::Message,
];

/// A kind: what `Pulumi-Webhook-Kind` carries.
#[derive(Debug)]
pub struct Kind {
    /// The header's value.
    pub name: &'static str,
    /// The group that holds every delivery of this kind.
    pub group: Option<Group>,
    /// The members that its payload has beside `user` and `organization`, in Pulumi's order.
    /// `None`: not published, so the payload is not checked and proves nothing.
    pub fields: Option<&'static [Field]>,
}

impl Kind {
    /// The kind of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// Whether it is the ping that Pulumi sends on demand, which belongs to no organization and no environment.
    #[must_use]
    pub fn is_ping(&self) -> bool {
        self.name == PING
    }

    /// Whether a webhook of this scope can send it.
    #[must_use]
    pub fn sent_by(&self, scope: Scope) -> bool {
        EVENTS.iter().any(|event| event.kind == Some(self.name) && event.sent_by(scope))
    }
}

/// The kind of a ping.
pub const PING: &str = "ping";

/// How the payload tells one filter of a kind from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The kind has one filter only.
    Kind,
    /// `action` has this value.
    Action(&'static str),
    /// `result` has this value.
    Result(&'static str),
    /// `kind` and `result` have these values.
    Operation(&'static str, &'static str),
    /// `status` has one of these values.
    Status(&'static [&'static str]),
    /// `driftDetected` is true.
    DriftDetected,
    /// Not published: the name is the kind, or the kind and what `action`, `result` or `status` says.
    Unpublished,
}

/// A filter: what a webhook can subscribe to.
#[derive(Debug)]
pub struct Event {
    /// Pulumi's name of the filter.
    pub name: &'static str,
    /// The kind that it arrives as; `None`: not published.
    pub kind: Option<&'static str>,
    /// How the payload shows it.
    pub mark: Mark,
    /// The group that holds it.
    pub group: Option<Group>,
    /// The scopes of the webhooks that can send it; where that is not published, those that might.
    pub scopes: &'static [Scope],
}

impl Event {
    /// The filter of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        EVENTS.iter().find(|event| event.name == name)
    }

    /// Whether kind and body of its deliveries are published.
    #[must_use]
    pub const fn is_published(&self) -> bool {
        !matches!(self.mark, Mark::Unpublished)
    }

    /// Whether a webhook of this scope can send it.
    #[must_use]
    pub fn sent_by(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// The kind that a sample of this event carries. Where none is published it is the filter's own name, which is
    /// a guess that [`Mark::Unpublished`] matches.
    #[must_use]
    pub fn sample_kind(&self) -> &'static str {
        self.kind.unwrap_or(self.name)
    }

    /// A body as Pulumi would send it: compact JSON, members in Pulumi's order, values of the published examples.
    #[must_use]
    pub fn sample_body(&self) -> String {
        const ORGANIZATION: &str = concat!(
            r#""user":{"name":"Morty Smith","githubLogin":"morty","#,
            r#""avatarUrl":"https://crazy-adventures.net/morty.png"},"#,
            r#""organization":{"name":"Crazy Adventures","githubLogin":"crazy-adventures","#,
            r#""avatarUrl":"https://crazy-adventures.net/logo.png"}"#,
        );
        /// What an unpublished body is guessed to hold.
        const GUESSED: &[Field] = &[Field::ProjectName, Field::EnvironmentName];

        let fields = Kind::find(self.sample_kind()).and_then(|kind| kind.fields).unwrap_or(GUESSED);
        let mut members = Vec::with_capacity(fields.len() + 2);
        if self.name != PING {
            members.push(ORGANIZATION.to_owned());
        }
        members.extend(fields.iter().map(|field| {
            let value = self.mark.value_of(*field).unwrap_or_else(|| field.sample().to_owned());
            format!("\"{}\":{value}", field.name())
        }));
        if self.kind.is_some() && !self.is_published() {
            let ending = self.name.rsplit('_').next().unwrap_or_default();
            members.push(format!("\"action\":\"{ending}\""));
        }
        format!("{{{}}}", members.join(","))
    }
}

impl Mark {
    /// What the mark says about a member, as JSON.
    fn value_of(self, field: Field) -> Option<String> {
        let text = |value: &str| Some(format!("\"{value}\""));
        match (self, field) {
            (Self::Action(value), Field::Action)
            | (Self::Result(value) | Self::Operation(_, value), Field::Result)
            | (Self::Operation(value, _), Field::Kind) => text(value),
            (Self::Status(values), Field::Status) => values.first().and_then(|value| text(value)),
            (Self::DriftDetected, Field::DriftDetected) => Some("true".into()),
            _ => None,
        }
    }
}

/// In the words of the README's table.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind => f.write_str("the kind alone"),
            Self::Action(value) => write!(f, "`action`: `{value}`"),
            Self::Result(value) => write!(f, "`result`: `{value}`"),
            Self::Operation(kind, result) => write!(f, "`kind`: `{kind}`, `result`: `{result}`"),
            Self::Status(values) => write!(f, "`status`: `{}`", values.join("` or `")),
            Self::DriftDetected => f.write_str("`driftDetected`: `true`"),
            Self::Unpublished => f.write_str("not published"),
        }
    }
}

/// The rows of the README's events table, made from [`EVENTS`].
#[must_use]
pub fn markdown_table() -> String {
    let mut table = String::from(
        "| Filter | Kind | Told by | Group | Sent by webhooks on |\n| --- | --- | --- | --- | --- |\n",
    );
    for event in EVENTS {
        let kind = event.kind.map_or_else(|| "not published".into(), |kind| format!("`{kind}`"));
        let group = event.group.map_or_else(|| "–".into(), |group| format!("`{}`", group.name()));
        let scopes: Vec<_> = event.scopes.iter().map(|scope| scope.name()).collect();
        table +=
            &format!("| `{}` | {kind} | {} | {group} | {} |\n", event.name, event.mark, scopes.join(", "));
    }
    table
}

/// The kinds that Pulumi publishes.
pub static KINDS: &[Kind] = {
    use Field as F;
    const fn kind(name: &'static str, group: Group, fields: &'static [Field]) -> Kind {
        Kind { name, group: Some(group), fields: Some(fields) }
    }
    &[
        kind("environment", Group::Environments, &[F::ProjectName, F::EnvironmentName, F::Action]),
        kind(
            "environment_revision",
            Group::Environments,
            &[F::ProjectName, F::EnvironmentName, F::Action, F::Revision],
        ),
        kind(
            "environment_revision_tag",
            Group::Environments,
            &[F::ProjectName, F::EnvironmentName, F::TagName, F::Action, F::Revision],
        ),
        kind(
            "environment_tag",
            Group::Environments,
            &[F::ProjectName, F::EnvironmentName, F::TagName, F::Action],
        ),
        kind(
            "imported_environment_changed",
            Group::Environments,
            &[F::ProjectName, F::EnvironmentName, F::AffectedRevisions, F::ImportedEnvironmentReference],
        ),
        kind("stack", Group::Stacks, &[F::Action, F::ProjectName, F::StackName]),
        kind(
            "stack_preview",
            Group::Stacks,
            &[
                F::ProjectName,
                F::StackName,
                F::UpdateUrl,
                F::Kind,
                F::Result,
                F::ResourceChanges,
                F::IsPreview(true),
            ],
        ),
        kind(
            "stack_update",
            Group::Stacks,
            &[
                F::ProjectName,
                F::StackName,
                F::UpdateUrl,
                F::Kind,
                F::Result,
                F::ResourceChanges,
                F::IsPreview(false),
            ],
        ),
        kind(
            "deployment",
            Group::Deployments,
            &[F::ProjectName, F::StackName, F::DeploymentUrl, F::Version, F::Operation, F::Status],
        ),
        kind(
            "drift_detection",
            Group::Deployments,
            &[
                F::ProjectName,
                F::StackName,
                F::DriftDetected,
                F::DriftRunId,
                F::Status,
                F::ResourceChanges,
                F::ReferenceUrl,
            ],
        ),
        kind(
            "drift_remediation",
            Group::Deployments,
            &[F::ProjectName, F::StackName, F::Status, F::ResourceChanges, F::ReferenceUrl],
        ),
        Kind { name: "policy_violation", group: Some(Group::Policies), fields: None },
        Kind { name: PING, group: None, fields: Some(&[F::Timestamp, F::Message]) },
    ]
};

const ORG: &[Scope] = &[Scope::Organization];
const ORG_ENV: &[Scope] = &[Scope::Organization, Scope::Environment];
const ORG_STACK: &[Scope] = &[Scope::Organization, Scope::Stack];
const EVERY: &[Scope] = &[Scope::Organization, Scope::Environment, Scope::Stack];

/// Every filter, in the order in which a delivery that fits two of them is named: the first wins.
pub static EVENTS: &[Event] = {
    const fn event(
        name: &'static str,
        kind: &'static str,
        mark: Mark,
        group: Group,
        scopes: &'static [Scope],
    ) -> Event {
        Event { name, kind: Some(kind), mark, group: Some(group), scopes }
    }
    const fn unpublished(name: &'static str, group: Option<Group>, scopes: &'static [Scope]) -> Event {
        Event { name, kind: None, mark: Mark::Unpublished, group, scopes }
    }
    use Group::{ChangeRequests, Deployments, Environments, Policies, Stacks};
    use Mark::{Action, DriftDetected, Operation, Result, Status};

    &[
        event("environment_created", "environment", Action("created"), Environments, ORG),
        event("environment_deleted", "environment", Action("deleted"), Environments, ORG),
        event(
            "environment_revision_created",
            "environment_revision",
            Action("created"),
            Environments,
            ORG_ENV,
        ),
        event(
            "environment_revision_retracted",
            "environment_revision",
            Action("retracted"),
            Environments,
            ORG_ENV,
        ),
        event(
            "environment_revision_tag_created",
            "environment_revision_tag",
            Action("created"),
            Environments,
            ORG_ENV,
        ),
        event(
            "environment_revision_tag_deleted",
            "environment_revision_tag",
            Action("deleted"),
            Environments,
            ORG_ENV,
        ),
        event(
            "environment_revision_tag_updated",
            "environment_revision_tag",
            Action("updated"),
            Environments,
            ORG_ENV,
        ),
        event("environment_tag_created", "environment_tag", Action("created"), Environments, ORG_ENV),
        event("environment_tag_deleted", "environment_tag", Action("deleted"), Environments, ORG_ENV),
        event("environment_tag_updated", "environment_tag", Action("updated"), Environments, ORG_ENV),
        event(
            "imported_environment_changed",
            "imported_environment_changed",
            Mark::Kind,
            Environments,
            ORG_ENV,
        ),
        unpublished("environment_rotation_succeeded", None, ORG_ENV),
        unpublished("environment_rotation_failed", None, ORG_ENV),
        unpublished("change_request_created", Some(ChangeRequests), ORG_ENV),
        unpublished("change_request_updated", Some(ChangeRequests), ORG_ENV),
        unpublished("change_request_approved", Some(ChangeRequests), ORG_ENV),
        unpublished("change_request_unapproved", Some(ChangeRequests), ORG_ENV),
        unpublished("change_request_closed", Some(ChangeRequests), ORG_ENV),
        unpublished("change_request_applied", Some(ChangeRequests), ORG_ENV),
        unpublished("change_request_submitted", Some(ChangeRequests), ORG_ENV),
        event("stack_created", "stack", Action("created"), Stacks, ORG),
        event("stack_deleted", "stack", Action("deleted"), Stacks, ORG),
        event("preview_succeeded", "stack_preview", Result("succeeded"), Stacks, ORG_STACK),
        event("preview_failed", "stack_preview", Result("failed"), Stacks, ORG_STACK),
        event("update_succeeded", "stack_update", Operation("update", "succeeded"), Stacks, ORG_STACK),
        event("update_failed", "stack_update", Operation("update", "failed"), Stacks, ORG_STACK),
        event("destroy_succeeded", "stack_update", Operation("destroy", "succeeded"), Stacks, ORG_STACK),
        event("destroy_failed", "stack_update", Operation("destroy", "failed"), Stacks, ORG_STACK),
        event("refresh_succeeded", "stack_update", Operation("refresh", "succeeded"), Stacks, ORG_STACK),
        event("refresh_failed", "stack_update", Operation("refresh", "failed"), Stacks, ORG_STACK),
        event("import_succeeded", "stack_update", Operation("import", "succeeded"), Stacks, ORG_STACK),
        event("import_failed", "stack_update", Operation("import", "failed"), Stacks, ORG_STACK),
        // Published is only that `running` is what `deployment_started` sends; the other states are those of the
        // Deployments API (not-started, accepted, running, failed, succeeded, skipped).
        event(
            "deployment_queued",
            "deployment",
            Status(&["not-started", "accepted", "queued"]),
            Deployments,
            ORG_STACK,
        ),
        event("deployment_started", "deployment", Status(&["running", "started"]), Deployments, ORG_STACK),
        event("deployment_succeeded", "deployment", Status(&["succeeded"]), Deployments, ORG_STACK),
        event("deployment_failed", "deployment", Status(&["failed"]), Deployments, ORG_STACK),
        unpublished("deployment_file_ingestion_failed", Some(Deployments), ORG_STACK),
        event("drift_detected", "drift_detection", DriftDetected, Deployments, ORG_STACK),
        event("drift_detection_succeeded", "drift_detection", Status(&["succeeded"]), Deployments, ORG_STACK),
        event("drift_detection_failed", "drift_detection", Status(&["failed"]), Deployments, ORG_STACK),
        event(
            "drift_remediation_succeeded",
            "drift_remediation",
            Status(&["succeeded"]),
            Deployments,
            ORG_STACK,
        ),
        event("drift_remediation_failed", "drift_remediation", Status(&["failed"]), Deployments, ORG_STACK),
        event("policy_violation_mandatory", "policy_violation", Mark::Unpublished, Policies, ORG_STACK),
        event("policy_violation_advisory", "policy_violation", Mark::Unpublished, Policies, ORG_STACK),
        Event { name: PING, kind: Some(PING), mark: Mark::Kind, group: None, scopes: EVERY },
    ]
};

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, mem::discriminant};

    use serde_json::Value;

    use super::*;

    /// The eleven filters of the page "ESC Webhooks".
    const ESC: [&str; 11] = [
        "environment_created",
        "environment_deleted",
        "environment_revision_created",
        "environment_revision_retracted",
        "environment_revision_tag_created",
        "environment_revision_tag_deleted",
        "environment_revision_tag_updated",
        "environment_tag_created",
        "environment_tag_deleted",
        "environment_tag_updated",
        "imported_environment_changed",
    ];

    fn of_kind(kind: &Kind) -> impl Iterator<Item = &'static Event> {
        let name = kind.name;
        EVENTS.iter().filter(move |event| event.kind == Some(name))
    }

    #[test]
    fn the_table_is_as_long_as_the_vocabulary() {
        assert_eq!((EVENTS.len(), KINDS.len(), Group::ALL.len(), MARKERS.len()), (45, 13, 5, 21));
        let published = EVENTS.iter().filter(|event| event.is_published()).count();
        assert_eq!(published, 33);
    }

    #[test]
    fn every_name_is_unique_and_found() {
        let events: BTreeSet<_> = EVENTS.iter().map(|event| event.name).collect();
        let kinds: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        let groups: BTreeSet<_> = Group::ALL.into_iter().map(Group::name).collect();
        assert_eq!((events.len(), kinds.len(), groups.len()), (EVENTS.len(), KINDS.len(), Group::ALL.len()));
        // A kind may share its only filter's name, which then means the same. A group shares none.
        for name in kinds.intersection(&events) {
            assert_eq!(EVENTS.iter().filter(|event| event.kind == Some(*name)).count(), 1, "{name}");
        }
        assert!(groups.is_disjoint(&events) && groups.is_disjoint(&kinds));
        assert!(events.iter().all(|name| Event::find(name).is_some_and(|event| event.name == *name)));
        assert!(kinds.iter().all(|name| Kind::find(name).is_some_and(|kind| kind.name == *name)));
        for name in events.iter().chain(&kinds).chain(&groups) {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
    }

    #[test]
    fn the_group_environments_is_the_eleven_esc_filters() {
        let found: Vec<_> = EVENTS
            .iter()
            .filter(|event| event.group == Some(Group::Environments))
            .map(|event| event.name)
            .collect();
        assert_eq!(found, ESC);
        let kinds = KINDS.iter().filter(|kind| kind.group == Some(Group::Environments)).count();
        assert_eq!(kinds, 5);
    }

    #[test]
    fn every_group_has_members_and_every_kind_has_filters_of_its_group() {
        for group in Group::ALL {
            assert!(EVENTS.iter().any(|event| event.group == Some(group)), "{}", group.name());
        }
        for event in EVENTS {
            let Some(kind) = event.kind else {
                assert!(!event.is_published(), "{}", event.name);
                continue;
            };
            let kind = Kind::find(kind).unwrap();
            assert_eq!(event.group, kind.group, "{}", event.name);
            assert_eq!(event.is_published(), kind.fields.is_some(), "{}", event.name);
        }
        for kind in KINDS {
            assert!(of_kind(kind).next().is_some(), "{}", kind.name);
            assert_eq!(kind.is_ping(), kind.name == "ping");
        }
    }

    #[test]
    fn what_begins_like_a_group_of_unpublished_kinds_is_in_it() {
        for group in Group::ALL {
            let Some(prefix) = group.kind_prefix() else { continue };
            for event in EVENTS {
                assert_eq!(event.name.starts_with(prefix), event.group == Some(group), "{}", event.name);
            }
        }
    }

    #[test]
    fn marks_tell_the_filters_of_a_kind_apart_and_read_what_the_kind_has() {
        for kind in KINDS {
            let events: Vec<_> = of_kind(kind).filter(|event| event.is_published()).collect();
            for (index, event) in events.iter().enumerate() {
                assert!(!events[..index].iter().any(|other| other.mark == event.mark), "{}", event.name);
                let needed: &[Field] = match event.mark {
                    Mark::Kind => &[],
                    Mark::Action(_) => &[Field::Action],
                    Mark::Result(_) => &[Field::Result],
                    Mark::Operation(..) => &[Field::Kind, Field::Result],
                    Mark::Status(_) => &[Field::Status],
                    Mark::DriftDetected => &[Field::DriftDetected],
                    Mark::Unpublished => panic!("{} is published", event.name),
                };
                assert!(needed.iter().all(|field| kind.fields.unwrap().contains(field)), "{}", event.name);
                assert!(event.mark != Mark::Kind || events.len() == 1, "{}", event.name);
            }
        }
    }

    #[test]
    fn every_member_of_a_kind_but_the_project_marks_kinds() {
        for field in KINDS.iter().filter_map(|kind| kind.fields).flatten() {
            let marks = MARKERS.iter().any(|marker| discriminant(marker) == discriminant(field));
            assert_eq!(marks, *field != Field::ProjectName, "{}", field.name());
        }
        // No two kinds have the same members, or a payload would prove both.
        for (index, kind) in KINDS.iter().enumerate() {
            let same = |other: &&Kind| kind.fields.is_some() && other.fields == kind.fields;
            assert!(!KINDS[..index].iter().any(|other| same(&other)), "{}", kind.name);
        }
    }

    #[test]
    fn scopes_are_those_of_the_reference() {
        for (name, scope) in Scope::ALL {
            assert_eq!(scope.name(), name);
        }
        for event in EVENTS {
            assert!(event.sent_by(Scope::Organization), "{}", event.name);
            let expected = match event.group {
                Some(Group::Environments | Group::ChangeRequests) => Some(Scope::Environment),
                Some(Group::Stacks | Group::Deployments | Group::Policies) => Some(Scope::Stack),
                None => continue,
            };
            // Nothing but an organization can tell that a thing of its own came or went.
            let whole = matches!(event.kind, Some("environment" | "stack"));
            let others = [Scope::Environment, Scope::Stack].into_iter().filter(|scope| event.sent_by(*scope));
            assert_eq!(
                others.collect::<Vec<_>>(),
                expected.filter(|_| !whole).into_iter().collect::<Vec<_>>()
            );
        }
        assert!(Scope::ALL.iter().all(|(_, scope)| Kind::find(PING).unwrap().sent_by(*scope)));
        assert!(!Kind::find("environment").unwrap().sent_by(Scope::Environment));
        assert!(Kind::find("environment_revision").unwrap().sent_by(Scope::Environment));
    }

    #[test]
    fn samples_are_compact_json_with_exactly_the_members_of_their_kind() {
        for event in EVENTS {
            let body = event.sample_body();
            let Value::Object(members) = serde_json::from_str(&body).unwrap() else { panic!("{body}") };
            assert_eq!(members.contains_key("organization"), event.name != PING, "{body}");
            let Some(fields) = Kind::find(event.sample_kind()).and_then(|kind| kind.fields) else { continue };
            let mut expected: BTreeSet<_> = fields.iter().map(|field| field.name()).collect();
            if event.name != PING {
                expected.extend(["user", "organization"]);
            }
            assert_eq!(members.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{body}");
            assert!(!body.contains(": ") && !body.contains('\n'), "{body}");
        }
    }

    #[test]
    fn the_readmes_table_is_this_table() {
        let table = markdown_table();
        assert_eq!(table.lines().count(), EVENTS.len() + 2);
        assert!(
            include_str!("../../README.md").contains(&table),
            "the README's events table should be:\n{table}"
        );
    }
}
