//! The sample deliveries in `tests/data/deliveries`, byte for byte as the tests sign them.

use std::path::PathBuf;

/// One file, and what it is.
#[derive(Debug)]
pub(crate) struct Sample {
    /// The file's name without `.json`.
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    /// What `Hookgate-Event` says.
    pub(crate) event: &'static str,
    /// The group that contains it, or nothing.
    pub(crate) group: &'static str,
}

impl Sample {
    pub(crate) fn path(&self) -> PathBuf {
        folder().join(format!("{}.json", self.name))
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

const fn of(name: &'static str, kind: &'static str, event: &'static str, group: &'static str) -> Sample {
    Sample { name, kind, event, group }
}

/// Every sample. The kind `team` is from 2019 and in no current list: unknown.
pub(crate) const SAMPLES: [Sample; 21] = [
    of("environment.created", "environment", "environment_created", "environments"),
    of("environment.deleted", "environment", "environment_deleted", "environments"),
    of(
        "environment_revision.created",
        "environment_revision",
        "environment_revision_created",
        "environments",
    ),
    of(
        "environment_revision.retracted",
        "environment_revision",
        "environment_revision_retracted",
        "environments",
    ),
    of(
        "environment_revision_tag.created",
        "environment_revision_tag",
        "environment_revision_tag_created",
        "environments",
    ),
    of(
        "environment_revision_tag.deleted",
        "environment_revision_tag",
        "environment_revision_tag_deleted",
        "environments",
    ),
    of(
        "environment_revision_tag.updated",
        "environment_revision_tag",
        "environment_revision_tag_updated",
        "environments",
    ),
    of("environment_tag.created", "environment_tag", "environment_tag_created", "environments"),
    of("environment_tag.deleted", "environment_tag", "environment_tag_deleted", "environments"),
    of("environment_tag.updated", "environment_tag", "environment_tag_updated", "environments"),
    of(
        "imported_environment_changed",
        "imported_environment_changed",
        "imported_environment_changed",
        "environments",
    ),
    of("stack.created", "stack", "stack_created", "stacks"),
    of("stack.deleted", "stack", "stack_deleted", "stacks"),
    of("stack_preview.update_failed", "stack_preview", "preview_failed", "stacks"),
    of("stack_update.refresh_succeeded", "stack_update", "refresh_succeeded", "stacks"),
    of("stack_update.update_failed", "stack_update", "update_failed", "stacks"),
    of("deployment.running", "deployment", "deployment_started", "deployments"),
    of("drift_detection.succeeded", "drift_detection", "drift_detected", "deployments"),
    of("drift_remediation.succeeded", "drift_remediation", "drift_remediation_succeeded", "deployments"),
    of("ping", "ping", "ping", ""),
    of("team.updated", "team", "team", ""),
];

/// The eleven of ESC.
pub(crate) const ESC: [&Sample; 11] = [
    &SAMPLES[0],
    &SAMPLES[1],
    &SAMPLES[2],
    &SAMPLES[3],
    &SAMPLES[4],
    &SAMPLES[5],
    &SAMPLES[6],
    &SAMPLES[7],
    &SAMPLES[8],
    &SAMPLES[9],
    &SAMPLES[10],
];

/// The kinds whose payload is published.
pub(crate) const PUBLISHED_KINDS: [&str; 12] = [
    "environment",
    "environment_revision",
    "environment_revision_tag",
    "environment_tag",
    "imported_environment_changed",
    "stack",
    "stack_preview",
    "stack_update",
    "deployment",
    "drift_detection",
    "drift_remediation",
    "ping",
];

pub(crate) fn sample(name: &str) -> &'static Sample {
    SAMPLES.iter().find(|sample| sample.name == name).unwrap_or_else(|| panic!("no sample {name}"))
}

/// File name, number of bytes, signature with [`super::SECRET`].
pub(crate) fn known_answers() -> Vec<(String, usize, String)> {
    let table = std::fs::read_to_string(folder().join("signatures.txt")).unwrap();
    let row = |line: &str| {
        let mut columns = line.split(' ');
        let mut next = || columns.next().unwrap().to_owned();
        (next(), next().parse().unwrap(), next())
    };
    table.lines().map(row).collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/deliveries")
}
