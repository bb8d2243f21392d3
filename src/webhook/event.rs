//! Pulumi's vocabulary of events in one table: groups, kinds, filters, what marks them, who sends them.
//!
//! Everything that knows an event by name reads it here: the configuration, the agreement of kind and payload,
//! the filter name of a delivery, the samples of `send` and `demo`, and the table of `docs/events.md`.
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

mod sample;

use std::fmt;

listed! {
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
}

impl Scope {
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

listed! {
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
}

impl Group {
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
}

/// In the words of the table in `docs/events.md`.
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
mod tests;
