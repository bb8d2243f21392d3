//! Which deliveries a webhook wants: by event, organization, environment and tag.

use wildmatch::WildMatch;

use super::{
    event::{EVENTS, Event, Group, KINDS, Kind, PING, Scope},
    headers::{EventKind, Malformed},
    payload::{Agreement, Delivery, EventSet, Mismatch, Tag},
};

/// What a webhook wants, as configured.
#[derive(Debug, Clone)]
pub struct Filter {
    /// The wanted events.
    pub events: Events,
    /// The only organization whose deliveries are let in (`githubLogin`); compared without regard to ASCII case.
    pub organization: Option<String>,
    /// The wanted environments, as `project/environment`. `None`: all, and events without an environment too.
    pub environments: Option<Globs>,
    /// The wanted tags. `None`: all. Events without a tag always pass.
    pub tags: Option<Globs>,
    /// What becomes of a payload that does not fit its kind.
    pub kind_check: KindCheck,
}

/// What becomes of a payload that does not fit the claimed kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KindCheck {
    /// It is refused.
    #[default]
    Enforce,
    /// It is logged and forwarded, marked as unverified.
    Warn,
}

/// What is to be done with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is wanted.
    Forward,
    /// It is genuine but not wanted.
    Ignore(Unwanted),
    /// It is a ping that nobody asked to have forwarded.
    Pong,
    /// Its payload is not that of its kind.
    KindMismatch(Mismatch),
    /// It comes from another organization than the pinned one, or names none.
    WrongOrganization,
}

/// Why a genuine delivery is not wanted. For the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// Its event is not among `events`.
    Event,
    /// Of its kind only filters are wanted, and as its payload is not that of the kind, it fits none.
    Misfit,
    /// Its environment fits none of `environments`, or it has none.
    Environment,
    /// Its tag fits none of `tags`.
    Tag,
}

impl Unwanted {
    /// In words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Event => "the event is not among the webhook's `events`",
            Self::Misfit => {
                "the payload does not fit its kind, so no filter in the webhook's `events` matches it"
            }
            Self::Environment => "the environment is not among the webhook's `environments`",
            Self::Tag => "the tag is not among the webhook's `tags`",
        }
    }
}

impl Filter {
    /// Decides about a delivery: payload, then organization, then events, environment and tag.
    #[must_use]
    pub fn judge(&self, delivery: &Delivery<'_>) -> Verdict {
        match delivery.agreement {
            // Where an organization is pinned, a payload without one has the wrong one.
            Agreement::Differs(Mismatch::NoOrganization) if self.organization.is_some() => {}
            Agreement::Differs(mismatch)
                if self.kind_check == KindCheck::Enforce || mismatch == Mismatch::FilterName =>
            {
                return Verdict::KindMismatch(mismatch);
            }
            Agreement::Differs(_) | Agreement::Proven | Agreement::Unpublished => {}
        }
        let ping = delivery.is_ping();
        if let Some(pinned) = &self.organization
            && !ping
            && !delivery.organization().is_some_and(|organization| organization.eq_ignore_ascii_case(pinned))
        {
            return Verdict::WrongOrganization;
        }
        if !self.events.contain(delivery) {
            return match delivery.agreement {
                _ if ping => Verdict::Pong,
                Agreement::Differs(_) if self.events.have_filter_of(delivery.kind) => {
                    Verdict::Ignore(Unwanted::Misfit)
                }
                _ => Verdict::Ignore(Unwanted::Event),
            };
        }
        if let Some(wanted) = &self.environments
            && !ping
            && !delivery.environment().is_some_and(|(project, name)| wanted.match_path(project, name))
        {
            return Verdict::Ignore(Unwanted::Environment);
        }
        let wants = |tags: &Globs| match delivery.tag() {
            Tag::None => true,
            Tag::Named(tag) => tags.match_tag(tag),
            Tag::Unreadable => false,
        };
        if self.tags.as_ref().is_some_and(|tags| !wants(tags)) {
            return Verdict::Ignore(Unwanted::Tag);
        }
        Verdict::Forward
    }
}

/// A set of patterns: `*` is any run of characters, `?` is one; the whole name must fit, case counts.
#[derive(Debug, Clone)]
pub struct Globs(Vec<WildMatch>);

impl Globs {
    /// Takes patterns as configured.
    #[must_use]
    pub fn new<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Self {
        Self(patterns.into_iter().map(WildMatch::new).collect())
    }

    /// Whether one of the patterns fits.
    #[must_use]
    pub fn match_name(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether one of the patterns fits an environment. None fits what cannot be one in Pulumi: a name that is empty, or
    /// has other characters than letters, digits, `-`, `_` and `.`. So whatever a `*` spans, there is one `/`, and
    /// it stands between project and environment.
    fn match_path(&self, project: &str, name: &str) -> bool {
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let is_name = |name: &str| !matches!(name, "" | "." | "..") && name.bytes().all(usual);
        is_name(project) && is_name(name) && self.match_name(&[project, name].join("/"))
    }

    /// Whether one of the patterns fits a tag. None fits an empty one, and one with control characters.
    fn match_tag(&self, tag: &str) -> bool {
        !tag.is_empty() && !tag.contains(char::is_control) && self.match_name(tag)
    }
}

/// The wanted events.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// `*`: every event, known or not.
    all: bool,
    /// Kinds that are wanted whatever their payload says.
    kinds: Vec<String>,
    /// Beginnings of kinds about which nothing is published.
    kind_prefixes: Vec<&'static str>,
    /// Single filters.
    filters: EventSet,
}

/// Why a name is not an event that this webhook can have. Says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// No group, kind or filter has this name.
    #[error("`{name}` is not an event, kind or group{}", suggest(*.similar))]
    Unknown {
        /// The name as configured.
        name: String,
        /// The known name nearest to it.
        similar: Option<&'static str>,
    },
    /// What follows `kind:` is not a kind.
    #[error("`{name}` is not a kind: after `kind:` come 1 to 64 of a-z, 0-9 and _")]
    MalformedKind {
        /// The name as configured.
        name: String,
    },
    /// What follows `kind:` is a filter, which never comes as a kind.
    #[error(
        "`kind:{filter}` matches nothing: `{filter}` is the name of a filter, not of a kind; write `{filter}`"
    )]
    FilterAsKind {
        /// The filter's name.
        filter: String,
    },
    /// Webhooks of the configured scope never send it.
    #[error("`{name}` is never sent by a webhook on {}: only by one on {}", article(*.scope), .senders.join(" or "))]
    OutOfScope {
        /// The name as configured.
        name: String,
        /// The configured scope.
        scope: Scope,
        /// The scopes that send it.
        senders: Vec<&'static str>,
    },
}

fn suggest(similar: Option<&'static str>) -> String {
    match similar {
        Some(similar) => format!("; did you mean `{similar}`?"),
        None => "; for a kind that hookgate does not know write `kind:NAME`".into(),
    }
}

const fn article(scope: Scope) -> &'static str {
    match scope {
        Scope::Organization => "an organization",
        Scope::Environment => "an environment",
        Scope::Stack => "a stack",
    }
}

/// How unlike a known name may be to be suggested: 0 is unlike, 1 is equal.
const SIMILAR: f64 = 0.75;

impl Events {
    /// Adds what one entry of `events` names: a group, a kind, a filter, `kind:NAME` or `*`.
    ///
    /// With a scope, groups hold only what webhooks of that scope send.
    ///
    /// # Errors
    ///
    /// [`EventError`] for a name that is not one of these, and for one that the scope never sends.
    pub fn add(&mut self, name: &str, scope: Option<Scope>) -> Result<(), EventError> {
        let in_scope = |event: &Event| scope.is_none_or(|scope| event.sent_by(scope));
        if name == "*" {
            self.all = true;
            return Ok(());
        }
        if let Some(kind) = name.strip_prefix("kind:") {
            EventKind::parse(kind.as_bytes())
                .map_err(|Malformed| EventError::MalformedKind { name: name.into() })?;
            if Kind::find(kind).is_none() && Event::find(kind).is_some_and(Event::is_published) {
                return Err(EventError::FilterAsKind { filter: kind.into() });
            }
            if let Some(known) = Kind::find(kind) {
                out_of_scope(name, scope, EVENTS.iter().filter(|event| event.kind == Some(known.name)))?;
            }
            self.kinds.push(kind.into());
            return Ok(());
        }
        if let Some(group) = Group::ALL.into_iter().find(|group| group.name() == name) {
            let members = || EVENTS.iter().filter(move |event| event.group == Some(group));
            out_of_scope(name, scope, members())?;
            let kinds = KINDS.iter().filter(|kind| kind.group == Some(group));
            let sent = kinds.filter(|kind| scope.is_none_or(|scope| kind.sent_by(scope)));
            self.kinds.extend(sent.map(|kind| kind.name.to_owned()));
            self.kind_prefixes.extend(group.kind_prefix());
            members().filter(|event| in_scope(event)).for_each(|event| self.filters.insert(event));
            return Ok(());
        }
        // A name can be a kind and its only filter at once; the kind says more.
        if let Some(kind) = Kind::find(name) {
            let members = || EVENTS.iter().filter(|event| event.kind == Some(kind.name));
            out_of_scope(name, scope, members())?;
            self.kinds.push(kind.name.to_owned());
            members().filter(|event| in_scope(event)).for_each(|event| self.filters.insert(event));
            return Ok(());
        }
        if let Some(event) = Event::find(name) {
            out_of_scope(name, scope, std::iter::once(event))?;
            self.filters.insert(event);
            return Ok(());
        }
        Err(EventError::Unknown { name: name.into(), similar: nearest(name) })
    }

    /// Whether the delivery is one of these.
    #[must_use]
    pub fn contain(&self, delivery: &Delivery<'_>) -> bool {
        let kind = delivery.kind.as_str();
        self.all
            || self.filters.intersects(delivery.events)
            || self.kinds.iter().any(|wanted| wanted == kind)
            || self.kind_prefixes.iter().any(|prefix| kind.starts_with(prefix))
    }

    /// Whether a filter of this kind is among them.
    fn have_filter_of(&self, kind: EventKind<'_>) -> bool {
        self.filters().any(|event| event.kind == Some(kind.as_str()))
    }

    /// Whether `*` is among them.
    #[must_use]
    pub const fn are_all(&self) -> bool {
        self.all
    }

    /// The kinds that are wanted whole, in the order of the configuration.
    #[must_use]
    pub fn kinds(&self) -> &[String] {
        &self.kinds
    }

    /// The beginnings of kinds that are wanted because nothing about them is published.
    #[must_use]
    pub fn kind_prefixes(&self) -> &[&'static str] {
        &self.kind_prefixes
    }

    /// Whether some delivery can be among both.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> bool {
        let begin = |a: &Self, b: &Self| {
            a.kind_prefixes.iter().any(|prefix| {
                b.kind_prefixes.contains(prefix) || b.kinds.iter().any(|kind| kind.starts_with(prefix))
            })
        };
        // A kind that is wanted whole holds its filters, written out or not.
        let hold = |a: &Self, b: &Self| {
            b.filters().filter_map(|event| event.kind).any(|kind| a.kinds.iter().any(|wanted| wanted == kind))
        };
        self.all
            || other.all
            || self.filters.intersects(other.filters)
            || self.kinds.iter().any(|kind| other.kinds.contains(kind))
            || begin(self, other)
            || begin(other, self)
            || hold(self, other)
            || hold(other, self)
    }

    /// The filters among them, in the table's order.
    pub fn filters(&self) -> impl Iterator<Item = &'static Event> {
        self.filters.iter()
    }
}

/// Refuses a name none of whose events the scope sends.
fn out_of_scope<'e>(
    name: &str,
    scope: Option<Scope>,
    mut events: impl Iterator<Item = &'e Event> + Clone,
) -> Result<(), EventError> {
    let Some(scope) = scope else { return Ok(()) };
    let mut senders = Vec::new();
    for event in events.clone() {
        for sender in event.scopes.iter().map(|scope| article(*scope)) {
            if !senders.contains(&sender) {
                senders.push(sender);
            }
        }
    }
    if events.any(|event| event.sent_by(scope)) {
        Ok(())
    } else {
        Err(EventError::OutOfScope { name: name.into(), scope, senders })
    }
}

/// The known name that is most like a misspelt one.
fn nearest(name: &str) -> Option<&'static str> {
    let groups = Group::ALL.into_iter().map(Group::name);
    let kinds = KINDS.iter().map(|kind| kind.name);
    let filters = EVENTS.iter().map(|event| event.name);
    groups
        .chain(kinds)
        .chain(filters)
        .chain([PING])
        .map(|known| {
            (
                strsim::jaro_winkler(known, &name.to_ascii_lowercase())
                    .max(strsim::normalized_damerau_levenshtein(known, &name.to_ascii_lowercase())),
                known,
            )
        })
        .filter(|(likeness, _)| *likeness >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests;
