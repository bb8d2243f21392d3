//! Lists of events, of webhooks and of destinations.

use super::{
    reader::{Item, MISSPELT},
    report::short,
};
use crate::webhook::{
    event::{EVENTS, Event, Group, KINDS, Kind, Scope},
    filter::{EventError, Events},
};

/// A list of events; each wrong one is a mistake of its own.
pub(super) fn events(item: &Item<'_>, scope: Option<Scope>) -> Option<Events> {
    let names = item.texts("[\"environments\"]")?;
    let mut events = Events::default();
    let mut good = true;
    for (item, name) in names {
        if let Err(error) = events.add(name, scope) {
            good = false;
            match error {
                EventError::OutOfScope { .. } => {
                    item.mistake(format_args!("{error}; remove it, or correct `scope`"));
                }
                EventError::Unknown { similar: Some(similar), .. } if name.len() <= similar.len() + MISSPELT => {
                    item.mistake(error);
                }
                // It names a filter that is known.
                EventError::FilterAsKind { .. } => item.mistake(error),
                _ if short(name).is_some() => item.mistake(error),
                EventError::Unknown { similar: Some(similar), .. } => item.mistake(format_args!(
                    "this value is not an event, kind or group; did you mean `{similar}`?"
                )),
                EventError::Unknown { .. } => item.mistake(
                    "this value is not an event, kind or group; for a kind that hookgate does not know write `kind:NAME`",
                ),
                EventError::MalformedKind { .. } => {
                    item.mistake("this value is not a kind: after `kind:` come 1 to 64 of a-z, 0-9 and _");
                }
            }
        } else if let Some(group) = name.strip_prefix("kind:").filter(|name| is_group_alone(name)) {
            good = false;
            item.mistake(format_args!(
                "`kind:{group}` matches nothing: `{group}` is the name of a group, not of a kind; write `{group}`"
            ));
        } else {
            warn_of_unpublished(&item, name);
        }
    }
    good.then_some(events)
}

/// Whether a name is that of a group whose kinds are known, and of none of them.
fn is_group_alone(name: &str) -> bool {
    let group = Group::ALL.into_iter().find(|group| group.name() == name && group.kind_prefix().is_none());
    group
        .is_some_and(|group| Kind::find(name).is_none() && KINDS.iter().any(|kind| kind.group == Some(group)))
}

/// Some names are guesses, and the operator must know which.
fn warn_of_unpublished(item: &Item<'_>, name: &str) {
    const SURE: &str = "once a delivery's kind is known (the log shows it), `kind:NAME` is the safest choice";
    let of_group = Group::ALL.into_iter().find(|group| group.name() == name).and_then(Group::kind_prefix);
    if let Some(prefix) = of_group {
        item.warning(format_args!(
            "Pulumi publishes no kind for `{name}`: every kind that begins with `{prefix}` is taken for it; {SURE}"
        ));
    } else if EVENTS.iter().any(|event| event.name == name && !Event::is_published(event)) {
        item.warning(format_args!(
            "Pulumi does not publish what `{name}` looks like: taken for it is a kind of that name, or one that is \
             its beginning while `action`, `result` or `status` is its end; {SURE}"
        ));
    }
}
