mod trust;

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    super::{
        headers::DeliveryId,
        secret::Secret,
        signature::{Key, Signature, Verifier, sign},
    },
    *,
};

/// A filter that wants these events and asks for nothing else.
fn wants(names: &[&str]) -> Filter {
    Filter {
        events: events(names, None),
        organization: None,
        environments: None,
        tags: None,
        kind_check: KindCheck::Enforce,
    }
}

fn events(names: &[&str], scope: Option<Scope>) -> Events {
    let mut events = Events::default();
    names.iter().for_each(|name| events.add(name, scope).unwrap());
    events
}

fn globs(patterns: &[&str]) -> Option<Globs> {
    Some(Globs::new(patterns.iter().copied()))
}

fn judge(filter: &Filter, kind: &str, body: &str) -> Verdict {
    let secret = Secret::try_new(b"secret".to_vec(), true).unwrap();
    let signature = Signature::parse(sign(&secret, body.as_bytes()).as_bytes()).unwrap();
    let verifier = Verifier::new(vec![Key::new("key".into(), &secret, None)]);
    let body = verifier.verify(Bytes::copy_from_slice(body.as_bytes()), &signature, UNIX_EPOCH).unwrap().body;
    let kind = EventKind::parse(kind.as_bytes()).unwrap();
    filter.judge(&Delivery::identify(&body, DeliveryId::parse(b"1").unwrap(), kind).unwrap())
}

fn judge_sample(filter: &Filter, event: &Event) -> Verdict {
    judge(filter, event.sample_kind(), &event.sample_body())
}

fn sample(name: &str) -> &'static Event {
    Event::find(name).unwrap()
}

#[test]
fn each_way_of_naming_an_event_wants_it() {
    for event in EVENTS {
        let mut names = vec!["*".to_owned(), event.name.to_owned(), format!("kind:{}", event.sample_kind())];
        names.extend(event.kind.map(str::to_owned));
        names.extend(event.group.map(|group| group.name().to_owned()));
        for name in names {
            assert_eq!(judge_sample(&wants(&[&name]), event), Verdict::Forward, "{} by {name}", event.name);
        }
    }
}

#[test]
fn a_filter_wants_its_own_event_and_no_other() {
    for event in EVENTS {
        // A kind of the same name wants whatever else the kind may say, which its only filter does not.
        let wanted = wants(&[event.name]);
        for other in EVENTS.iter().filter(|other| other.name != event.name) {
            let expected = match (event.name, other.name) {
                ("drift_detection_succeeded", "drift_detected") => Verdict::Forward,
                (_, PING) => Verdict::Pong,
                _ => Verdict::Ignore(Unwanted::Event),
            };
            assert_eq!(judge_sample(&wanted, other), expected, "{} for {}", other.name, event.name);
        }
    }
}

#[test]
fn a_group_wants_its_events_and_no_other() {
    for group in Group::ALL {
        let wanted = wants(&[group.name()]);
        for event in EVENTS.iter().filter(|event| event.name != PING) {
            let forwarded = judge_sample(&wanted, event) == Verdict::Forward;
            assert_eq!(forwarded, event.group == Some(group), "{} by {}", event.name, group.name());
        }
    }
}

#[test]
fn a_kind_and_its_group_want_actions_that_nobody_knows_yet() {
    let renamed = sample("environment_created").sample_body().replace("\"created\"", "\"renamed\"");
    for (name, wanted) in [
        ("environment", true),
        ("environments", true),
        ("kind:environment", true),
        ("*", true),
        ("environment_created", false),
        ("environment_revision", false),
    ] {
        let expected = if wanted { Verdict::Forward } else { Verdict::Ignore(Unwanted::Event) };
        assert_eq!(judge(&wants(&[name]), "environment", &renamed), expected, "{name}");
    }
}

#[test]
fn unknown_kinds_are_wanted_by_their_own_name_or_by_every_event() {
    for (name, wanted) in [
        ("*", true),
        ("kind:team", true),
        ("kind:teams", false),
        ("environments", false),
        ("change_requests", false),
    ] {
        let expected = if wanted { Verdict::Forward } else { Verdict::Ignore(Unwanted::Event) };
        assert_eq!(judge(&wants(&[name]), "team", "{}"), expected, "{name}");
    }
    // Every kind that begins like a change request is taken for one.
    for kind in ["change_request", "change_requests", "change_request_reopened"] {
        assert_eq!(judge(&wants(&["change_requests"]), kind, "{}"), Verdict::Forward, "{kind}");
    }
    let of_group = wants(&["change_requests"]);
    assert_eq!(judge(&of_group, "a_change_request", "{}"), Verdict::Ignore(Unwanted::Event));
}

#[test]
fn no_event_is_wanted_by_an_empty_set() {
    for event in EVENTS.iter().filter(|event| event.name != PING) {
        assert_eq!(judge_sample(&wants(&[]), event), Verdict::Ignore(Unwanted::Event));
    }
}

#[test]
fn a_ping_is_ponged_unless_it_is_asked_for() {
    for (name, verdict) in [
        ("environments", Verdict::Pong),
        ("ping", Verdict::Forward),
        ("kind:ping", Verdict::Forward),
        ("*", Verdict::Forward),
    ] {
        let mut filter = wants(&[name]);
        assert_eq!(judge_sample(&filter, sample(PING)), verdict, "{name}");
        // It has neither organization, nor environment, nor tag, and needs none.
        filter.organization = Some("acme".into());
        filter.environments = globs(&["website/prod"]);
        filter.tags = globs(&["stable"]);
        assert_eq!(judge_sample(&filter, sample(PING)), verdict, "{name}");
    }
}

#[test]
fn what_only_claims_to_be_a_ping_is_exempt_from_nothing() {
    let mut filter = wants(&["*"]);
    filter.organization = Some("acme".into());
    let body = sample("environment_created").sample_body();
    assert!(matches!(judge(&filter, PING, &body), Verdict::KindMismatch(_)));
    filter.kind_check = KindCheck::Warn;
    assert_eq!(judge(&filter, PING, &body), Verdict::WrongOrganization);
}

#[test]
fn organizations_are_compared_without_ascii_case() {
    let mut filter = wants(&["*"]);
    for (pinned, verdict) in [
        ("crazy-adventures", Verdict::Forward),
        ("Crazy-ADVENTURES", Verdict::Forward),
        ("crazy-adventure", Verdict::WrongOrganization),
        ("crazy_adventures", Verdict::WrongOrganization),
        // The name for people is not what counts.
        ("Crazy Adventures", Verdict::WrongOrganization),
    ] {
        filter.organization = Some(pinned.into());
        assert_eq!(judge_sample(&filter, sample("environment_created")), verdict, "{pinned}");
    }
    filter.organization = Some("É".into());
    assert_eq!(judge(&filter, "team", r#"{"organization":{"githubLogin":"é"}}"#), Verdict::WrongOrganization);
}

#[test]
fn a_payload_without_an_organization_is_of_the_wrong_one_where_one_is_pinned() {
    let body = r#"{"projectName":"website","environmentName":"prod","action":"created"}"#;
    let mut filter = wants(&["*"]);
    assert_eq!(judge(&filter, "environment", body), Verdict::KindMismatch(Mismatch::NoOrganization));
    assert_eq!(judge(&filter, "team", body), Verdict::Forward);
    filter.organization = Some("acme".into());
    assert_eq!(judge(&filter, "environment", body), Verdict::WrongOrganization);
    assert_eq!(judge(&filter, "team", body), Verdict::WrongOrganization);
}

#[test]
fn environments_are_project_and_name_and_what_has_none_is_filtered() {
    let mut filter = wants(&["*"]);
    for (patterns, wanted) in [
        (&["website/prod"][..], true),
        (&["shop/*", "website/*"], true),
        (&["*/prod"], true),
        (&["*"], true),
        (&["website?prod"], true),
        (&["Website/prod"], false),
        (&["website/pro"], false),
        (&["ebsite/prod"], false),
        (&["website/prod/"], false),
        (&[], false),
    ] {
        filter.environments = globs(patterns);
        let expected = if wanted { Verdict::Forward } else { Verdict::Ignore(Unwanted::Environment) };
        assert_eq!(judge_sample(&filter, sample("environment_created")), expected, "{patterns:?}");
    }
    filter.environments = globs(&["*"]);
    for name in ["stack_created", "update_failed", "deployment_started"] {
        assert_eq!(judge_sample(&filter, sample(name)), Verdict::Ignore(Unwanted::Environment), "{name}");
    }
}

#[test]
fn tags_touch_only_what_has_one() {
    let mut filter = wants(&["*"]);
    filter.tags = globs(&["release-*"]);
    for name in ["environment_tag_created", "environment_revision_tag_updated"] {
        assert_eq!(judge_sample(&filter, sample(name)), Verdict::Ignore(Unwanted::Tag), "{name}");
        let body = sample(name).sample_body().replace("stable", "release-1");
        assert_eq!(judge(&filter, sample(name).sample_kind(), &body), Verdict::Forward, "{name}");
    }
    for name in ["environment_created", "environment_revision_created", "stack_created"] {
        assert_eq!(judge_sample(&filter, sample(name)), Verdict::Forward, "{name}");
    }
}

/// Each reason stands before the next: payload, organization, event, environment, tag.
#[test]
fn the_first_reason_decides() {
    let mut filter = wants(&["stacks"]);
    filter.organization = Some("acme".into());
    filter.environments = globs(&["shop/*"]);
    filter.tags = globs(&["release-*"]);
    let event = sample("environment_tag_created");
    let misfit = event.sample_body().replace("\"created\"", "1");

    assert!(matches!(judge(&filter, "environment_tag", &misfit), Verdict::KindMismatch(_)));
    assert_eq!(judge_sample(&filter, event), Verdict::WrongOrganization);
    filter.organization = Some("crazy-adventures".into());
    assert_eq!(judge_sample(&filter, event), Verdict::Ignore(Unwanted::Event));
    filter.events = events(&["environments"], None);
    assert_eq!(judge_sample(&filter, event), Verdict::Ignore(Unwanted::Environment));
    filter.environments = globs(&["website/*"]);
    assert_eq!(judge_sample(&filter, event), Verdict::Ignore(Unwanted::Tag));
    filter.tags = globs(&["stable"]);
    assert_eq!(judge_sample(&filter, event), Verdict::Forward);
}

#[test]
fn a_misfit_goes_on_where_kinds_are_only_warned_of() {
    let mut filter = wants(&["environments"]);
    let body = sample("environment_created").sample_body();
    assert_eq!(
        judge(&filter, "environment_revision", &body),
        Verdict::KindMismatch(Mismatch::Missing("revision"))
    );
    filter.kind_check = KindCheck::Warn;
    assert_eq!(judge(&filter, "environment_revision", &body), Verdict::Forward);
    assert_eq!(judge(&filter, "stack", &body), Verdict::Ignore(Unwanted::Event));
}

#[test]
fn a_scope_narrows_groups_and_kinds_to_what_it_sends() {
    let of = |name: &str, scope: Scope| {
        let events = events(&[name], Some(scope));
        (events.filters().count(), events.kinds().len())
    };
    assert_eq!(of("environments", Scope::Organization), (11, 5));
    assert_eq!(of("environments", Scope::Environment), (9, 4));
    assert_eq!(of("stacks", Scope::Organization), (12, 3));
    assert_eq!(of("stacks", Scope::Stack), (10, 2));
    assert_eq!(of("ping", Scope::Stack), (1, 1));
    let narrowed = Filter { events: events(&["environments"], Some(Scope::Environment)), ..wants(&[]) };
    let whole = wants(&["environments"]);
    let created = sample("environment_created");
    assert_eq!(judge_sample(&narrowed, created), Verdict::Ignore(Unwanted::Event));
    assert_eq!(judge_sample(&whole, created), Verdict::Forward);
}

#[test]
fn what_a_scope_never_sends_is_an_error_that_says_who_does() {
    for event in EVENTS {
        for scope in Scope::ALL {
            let added = Events::default().add(event.name, Some(scope));
            assert_eq!(added.is_ok(), event.sent_by(scope), "{} {scope:?}", event.name);
        }
    }
    let text = |name, scope| Events::default().add(name, Some(scope)).unwrap_err().to_string();
    assert_eq!(
        text("environment_created", Scope::Environment),
        "`environment_created` is never sent by a webhook on an environment: only by one on an organization"
    );
    assert_eq!(
        text("environments", Scope::Stack),
        "`environments` is never sent by a webhook on a stack: only by one on an organization or an environment"
    );
    assert!(
        text("kind:stack", Scope::Stack).starts_with("`kind:stack` is never sent by a webhook on a stack")
    );
    assert!(Events::default().add("kind:team", Some(Scope::Stack)).is_ok());
    assert!(Events::default().add("*", Some(Scope::Stack)).is_ok());
}

#[test]
fn a_misspelt_name_is_answered_with_the_nearest() {
    for (name, meant) in [
        ("enviroments", Some("environments")),
        ("Environments", Some("environments")),
        ("environment_revison_created", Some("environment_revision_created")),
        ("environment-tag-updated", Some("environment_tag_updated")),
        ("pings", Some("ping")),
        ("stack_updates", Some("stack_update")),
        ("webhook", None),
        ("", None),
        ("zzz", None),
    ] {
        let error = Events::default().add(name, None).unwrap_err();
        assert_eq!(error, EventError::Unknown { name: name.into(), similar: meant }, "{name}");
    }
    assert_eq!(
        Events::default().add("stack_updates", None).unwrap_err().to_string(),
        "`stack_updates` is not an event, kind or group; did you mean `stack_update`?"
    );
}

#[test]
fn what_follows_kind_is_a_kind() {
    for name in ["kind:", "kind:A", "kind:a b", "kind:a-b", &format!("kind:{}", "a".repeat(65))] {
        let error = Events::default().add(name, None).unwrap_err();
        assert_eq!(error, EventError::MalformedKind { name: name.into() });
    }
    assert!(Events::default().add(&format!("kind:{}", "a".repeat(64)), None).is_ok());
}

#[test]
fn sets_overlap_where_a_delivery_can_be_in_both() {
    for (a, b, both) in [
        ("*", "ping", true),
        ("environments", "environment_created", true),
        ("environments", "stacks", false),
        ("environment_created", "environment_deleted", false),
        ("kind:environment", "environment_created", true),
        ("kind:team", "kind:team", true),
        ("kind:team", "kind:teams", false),
        ("change_requests", "kind:change_request_reopened", true),
        ("change_requests", "change_request_closed", true),
        ("change_requests", "change_requests", true),
        ("change_requests", "kind:team", false),
    ] {
        let (a, b) = (&events(&[a], None), &events(&[b], None));
        assert_eq!((a.overlap(b), b.overlap(a)), (both, both), "{a:?} {b:?}");
    }
    assert!(!Events::default().overlap(&Events::default()));
}

proptest! {
    #[test]
    fn any_run_may_be_a_star_and_any_character_a_question_mark(
        name in "[a-zA-Z0-9_/.ü🍹-]{0,40}",
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..10), 0..4),
        single in any::<prop::sample::Index>(),
    ) {
        let mut pattern: Vec<char> = name.chars().collect();
        for (at, length) in cuts {
            let at = at.index(pattern.len() + 1);
            let end = (at + length).min(pattern.len());
            pattern.splice(at..end, ['*']);
        }
        if !pattern.is_empty() {
            let at = single.index(pattern.len());
            if pattern[at] != '*' {
                pattern[at] = '?';
            }
        }
        let pattern: String = pattern.into_iter().collect();
        prop_assert!(Globs::new([&*pattern]).match_name(&name), "{} {}", pattern, name);
    }

    #[test]
    fn a_pattern_without_wildcards_fits_itself_alone(
        pattern in "[a-c/]{0,6}",
        other in "[a-cA/]{0,6}",
    ) {
        let globs = Globs::new([&*pattern]);
        prop_assert!(globs.match_name(&pattern));
        prop_assert_eq!(globs.match_name(&other), pattern == other);
    }

    #[test]
    fn a_pattern_fits_as_a_plain_matcher_says(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
        fn fits(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern.split_first(), name.split_first()) {
                (None, None) => true,
                (None, Some(_)) => false,
                (Some((b'*', rest)), _) => {
                    fits(rest, name) || name.split_first().is_some_and(|(_, name)| fits(pattern, name))
                }
                (Some(_), None) => false,
                (Some((wanted, rest)), Some((found, name))) => {
                    (*wanted == b'?' || wanted == found) && fits(rest, name)
                }
            }
        }
        let expected = fits(pattern.as_bytes(), name.as_bytes());
        prop_assert_eq!(Globs::new([&*pattern]).match_name(&name), expected);
    }

    #[test]
    fn any_name_is_an_event_or_an_error(name in any::<String>(), near in "[a-z_:*]{0,40}") {
        for name in [name, near] {
            if let Err(error) = Events::default().add(&name, None) {
                prop_assert!(error.to_string().contains(&name));
            }
        }
    }
}
