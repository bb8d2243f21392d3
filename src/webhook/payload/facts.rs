//! What a payload says that people want to know: where something happened, what, and who did it.
//!
//! Facts are for showing and for finding, and are kept beside a delivery: whether it is let in, and by whom it is wanted, is
//! decided by [`Delivery`] itself. They are made only where somebody needs them, and reading them costs a second look at
//! the body. A new one has its place here and nowhere else.
//!
//! All of them are bounded, since they are copied where bodies are not. A text that is longer than its bound is left out, never
//! cut: half a name is another name.

use std::fmt;

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor},
};

use super::{
    Delivery, Payload,
    member::{Integer, Member, Shape, Text},
    object::{self, object},
};

/// The longest name, in bytes. Pulumi's own have at most 100 characters of ASCII.
const NAME: usize = 128;
/// The longest link, in bytes.
const LINK: usize = 512;
/// The longest word that says what happened, in bytes.
const WORD: usize = 64;
/// Of the operations on resources, this many are kept, as they stand in the payload.
const CHANGES: usize = 16;

/// The facts of a delivery. What the payload does not say, or not as text, is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The organization's login: the slug in Pulumi's URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// The project of the environment or stack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The environment's name within its project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The stack's name within its project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// The tag that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The number of the revision that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What was done: `action`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// What was run: `update`, `refresh`, … (`kind` or `operation`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// How it ended, or how far it is: `result` or `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Whether drift was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<bool>,
    /// How many resources each operation touched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<(String, u64)>,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// A page of Pulumi Cloud about it, always `https:`: the one that the payload names, else that of the environment or
    /// stack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// Who did something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// The name that is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
}

impl Facts {
    /// `project/environment`.
    #[must_use]
    pub fn environment_path(&self) -> Option<String> {
        Some(format!("{}/{}", self.project.as_ref()?, self.environment.as_ref()?))
    }

    /// `project/stack`.
    #[must_use]
    pub fn stack_path(&self) -> Option<String> {
        Some(format!("{}/{}", self.project.as_ref()?, self.stack.as_ref()?))
    }
}

object! {
    /// The members that are read for facts only.
    struct Further<'a> {
        user "user": Person<'a>,
        resource_changes "resourceChanges": Changes,
    }
}

object! {
    struct Person<'a> {
        name "name": Text<'a>,
        github_login "githubLogin": Text<'a>,
    }
}

/// An object whose values are integers.
#[derive(Debug)]
struct Changes(Vec<(String, u64)>);

impl<'de> Shape<'de> for Changes {
    fn of_object<A: MapAccess<'de>>(mut members: A) -> Result<Option<Self>, A::Error> {
        let mut changes = Vec::new();
        while let Some((operation, count)) = members.next_entry::<String, Member<Integer>>()? {
            if changes.len() < CHANGES
                && operation.len() <= WORD
                && let Some(Integer(Some(count))) = count.get()
            {
                changes.push((operation, *count));
            }
        }
        Ok(Some(Self(changes)))
    }
}

impl Delivery<'_> {
    /// What it says that people want to know.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let Payload { organization, project_name, environment_name, stack_name, tag_name, .. } =
            &self.payload;
        let Payload { revision, action, kind, operation, result, status, drift_detected, .. } = &self.payload;
        // The body was read before, so it can be: what stands in it twice is nobody's fact.
        let further: Option<Member<Further<'_>>> = serde_json::from_str(self.text).ok();
        let further = further.as_ref().and_then(Member::get);
        let user = further
            .and_then(|further| further.user.get())
            .map(|person| User { name: kept(&person.name, NAME), login: kept(&person.github_login, NAME) });
        let changes = further.and_then(|further| further.resource_changes.get());
        let mut facts = Facts {
            organization: organization.get().and_then(|organization| kept(&organization.github_login, NAME)),
            project: kept(project_name, NAME),
            environment: kept(environment_name, NAME),
            stack: kept(stack_name, NAME),
            tag: kept(tag_name, NAME),
            revision: revision.get().and_then(|Integer(number)| *number),
            action: kept(action, WORD),
            operation: kept(kind, WORD).or_else(|| kept(operation, WORD)),
            result: kept(result, WORD).or_else(|| kept(status, WORD)),
            drift: drift_detected.get().copied(),
            changes: changes.map(|Changes(changes)| changes.clone()).unwrap_or_default(),
            user: user.filter(|user| *user != User::default()),
            link: None,
        };
        facts.link = named_link(&self.payload).or_else(|| page(&facts));
        facts
    }
}

/// A text, unless it is empty or longer than `most` bytes.
fn kept(member: &Member<Text<'_>>, most: usize) -> Option<String> {
    member.text().filter(|text| (1..=most).contains(&text.len())).map(str::to_owned)
}

/// The first sound link of the payload.
fn named_link(payload: &Payload<'_>) -> Option<String> {
    [&payload.update_url, &payload.deployment_url, &payload.reference_url]
        .into_iter()
        .filter_map(Member::text)
        .find(|link| is_sound(link))
        .map(str::to_owned)
}

/// Whether a link is `https:`, names a host, hides nobody behind an `@`, and has no byte that could end it where it is
/// shown.
fn is_sound(link: &str) -> bool {
    let Some(rest) = link.strip_prefix("https://") else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let may_stand = |byte: u8| byte.is_ascii_graphic() && !b"\"'<>\\^`{|}()[]*".contains(&byte);
    link.len() <= LINK
        && host.starts_with(|first: char| first.is_ascii_alphanumeric())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:".contains(&byte))
        && rest.bytes().all(may_stand)
}

/// The page of the environment or stack.
fn page(facts: &Facts) -> Option<String> {
    let (organization, project) = (segment(facts.organization.as_ref()?)?, segment(facts.project.as_ref()?)?);
    let page = match (&facts.environment, &facts.stack) {
        (Some(environment), _) => format!("esc/{project}/{}", segment(environment)?),
        (None, Some(stack)) => format!("{project}/{}", segment(stack)?),
        (None, None) => return None,
    };
    Some(format!("https://app.pulumi.com/{organization}/{page}")).filter(|link| link.len() <= LINK)
}

/// A name as one segment of a path. `None`: as a segment it would mean another place.
fn segment(name: &str) -> Option<String> {
    if matches!(name, "." | "..") {
        return None;
    }
    let mut written = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            written.push(char::from(byte));
        } else {
            written.push('%');
            written.push_str(&hex::encode_upper([byte]));
        }
    }
    Some(written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{
        super::{
            super::{
                event::EVENTS,
                headers::{DeliveryId, EventKind},
                signature::VerifiedBody,
            },
            tests::verified,
        },
        *,
    };

    fn facts(body: &VerifiedBody, kind: &str) -> Facts {
        let id = DeliveryId::parse(b"1").unwrap();
        Delivery::identify(body, id, EventKind::parse(kind.as_bytes()).unwrap()).unwrap().facts()
    }

    fn of(body: &Value) -> Facts {
        facts(&verified(body.to_string()), "unknown")
    }

    #[test]
    fn every_sample_has_the_facts_that_stand_in_it() {
        for event in EVENTS {
            let body = event.sample_body();
            let found = facts(&verified(&body), event.sample_kind());
            let json: Value = serde_json::from_str(&body).unwrap();
            let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let name = event.name;
            assert_eq!(found.organization, text("/organization/githubLogin"), "{name}");
            assert_eq!(found.project, text("/projectName"), "{name}");
            assert_eq!(found.environment, text("/environmentName"), "{name}");
            assert_eq!(found.stack, text("/stackName"), "{name}");
            assert_eq!(found.tag, text("/tagName"), "{name}");
            assert_eq!(found.revision, json.get("revision").and_then(Value::as_u64), "{name}");
            assert_eq!(found.action, text("/action"), "{name}");
            assert_eq!(found.operation, text("/kind").or_else(|| text("/operation")), "{name}");
            assert_eq!(found.result, text("/result").or_else(|| text("/status")), "{name}");
            assert_eq!(found.drift, json.get("driftDetected").and_then(Value::as_bool), "{name}");
            let user = found.user.clone().unwrap_or_default();
            assert_eq!((user.name, user.login), (text("/user/name"), text("/user/githubLogin")), "{name}");
            let changes = json.get("resourceChanges").and_then(Value::as_object);
            let changes: Vec<_> = changes
                .into_iter()
                .flatten()
                .map(|(operation, count)| (operation.clone(), count.as_u64().unwrap()))
                .collect();
            let mut kept = found.changes.clone();
            kept.sort();
            assert_eq!(kept, changes, "{name}");
            let named = ["/updateUrl", "/deploymentUrl", "/referenceUrl"].into_iter().find_map(text);
            match named {
                Some(link) => assert_eq!(found.link, Some(link), "{name}"),
                None => assert_eq!(found.link.is_some(), found.project.is_some(), "{name}"),
            }
        }
    }

    #[test]
    fn an_environment_and_a_stack_have_a_page() {
        let organization = json!({"githubLogin": "a b"});
        let environment = of(&json!({
            "organization": organization, "projectName": "p/q", "environmentName": "e", "updateUrl": "javascript:x",
        }));
        assert_eq!(environment.link.as_deref(), Some("https://app.pulumi.com/a%20b/esc/p%2Fq/e"));
        assert_eq!(environment.environment_path().as_deref(), Some("p/q/e"));
        let stack = of(&json!({"organization": organization, "projectName": "p", "stackName": "s"}));
        assert_eq!(stack.link.as_deref(), Some("https://app.pulumi.com/a%20b/p/s"));
        assert_eq!(stack.stack_path().as_deref(), Some("p/s"));
        for name in [".", ".."] {
            let elsewhere = json!({"organization": organization, "projectName": "p", "stackName": name});
            assert_eq!(of(&elsewhere).link, None);
        }
        assert_eq!(of(&json!({"organization": organization})).link, None);
    }

    #[test]
    fn only_sound_links_are_links() {
        for sound in ["https://app.pulumi.com/a/b?c=d&e#f", "https://pulumi.example.com:8443/x", "https://a"]
        {
            assert!(is_sound(sound), "{sound}");
        }
        for unsound in [
            "",
            "https://",
            "https:///x",
            "https://:1/",
            "http://app.pulumi.com/",
            "HTTPS://app.pulumi.com/",
            "javascript:alert(1)",
            "https://app.pulumi.com@evil.example/",
            "https://a/ b",
            "https://a/\n",
            "https://a/\"",
            "https://a/>x",
            "https://a/|x",
            "https://a/\u{202e}",
            "https://app.pulumi.com\\@evil.example/",
            &format!("https://a/{}", "x".repeat(LINK)),
        ] {
            assert!(!is_sound(unsound), "{unsound:?}");
        }
    }

    #[test]
    fn of_a_user_that_cannot_be_read_nothing_is_said() {
        for user in [json!(null), json!("morty"), json!({}), json!({"name": 1, "githubLogin": ["x"]})] {
            assert_eq!(of(&json!({"user": user})).user, None, "{user}");
        }
        let twice = verified(r#"{"user":{"name":"a"},"user":{"name":"b"},"action":"created"}"#);
        let found = facts(&twice, "unknown");
        assert_eq!((found.user, found.action.as_deref()), (None, Some("created")));
    }

    proptest! {
        #[test]
        fn facts_are_bounded_and_read_back_as_they_were_written(
            text in "\\PC{0,200}", number in any::<u64>(), keys in proptest::collection::vec("\\PC{0,80}", 0..40),
        ) {
            let changes: serde_json::Map<_, _> = keys.into_iter().map(|key| (key, json!(number))).collect();
            let found = of(&json!({
                "organization": {"githubLogin": text}, "user": {"name": text, "githubLogin": text},
                "projectName": text, "environmentName": text, "stackName": text, "tagName": text, "action": text,
                "kind": text, "result": text, "revision": number, "updateUrl": text, "resourceChanges": changes,
            }));
            let written = serde_json::to_string(&found).unwrap();
            prop_assert!(written.len() <= 6 << 10, "{}", written.len());
            prop_assert_eq!(serde_json::from_str::<Facts>(&written).unwrap(), found);
        }
    }
}
