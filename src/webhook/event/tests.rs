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
        assert_eq!(others.collect::<Vec<_>>(), expected.filter(|_| !whole).into_iter().collect::<Vec<_>>());
    }
    assert!(Scope::ALL.iter().all(|scope| Kind::find(PING).unwrap().sent_by(*scope)));
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
fn the_table_of_events_is_this_table() {
    let table = markdown_table();
    assert_eq!(table.lines().count(), EVENTS.len() + 2);
    assert!(
        include_str!("../../../docs/events.md").contains(&table),
        "the table of docs/events.md should be:\n{table}"
    );
}

/// The rows of the table in `docs/events.md`, made from [`EVENTS`].
fn markdown_table() -> String {
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
