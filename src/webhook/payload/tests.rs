mod trust;

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

pub(super) fn verified(body: impl AsRef<[u8]>) -> VerifiedBody {
    let body = Bytes::copy_from_slice(body.as_ref());
    let secret = Secret::try_new(b"secret".to_vec(), true).unwrap();
    let signature = Signature::parse(sign(&secret, &body).as_bytes()).unwrap();
    let verifier = Verifier::new(vec![Key::new("key".into(), &secret, None)]);
    verifier.verify(body, &signature, UNIX_EPOCH).unwrap().body
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
        for (revision, number) in [(json!(7), Some(7)), (json!(u64::MAX), Some(u64::MAX)), (json!(-1), None)]
        {
            body["revision"] = revision;
            let text = body.to_string();
            let verified = verified(text.as_bytes());
            let id = DeliveryId::parse(b"id").unwrap();
            let delivery =
                Delivery::identify(&verified, id, EventKind::parse(kind.name.as_bytes()).unwrap()).unwrap();
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
    assert_eq!(delivery.tag(), Tag::Named("stable"));
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
        // Of a kind whose body is published, only what fits shows anything.
        ("environment", json!({"result": "rotation_failed"}), vec![]),
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
        ("deployment_file_ingestion", json!({"status": "failed"}), vec!["deployment_file_ingestion_failed"]),
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
    for body in [&b"\xff"[..], b"{\"a\":\"\xff\"}", b"{\"user\":{\"name\":\"\xc3\x28\"}}", b"\xff\xfe{\0}\0"]
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
fn an_error_says_what_is_wrong_and_where() {
    for (body, what) in [
        (r#"{"action":"created",}"#, "a comma before a closing brace at line 1, column 21"),
        (r#"{"action":"crea"#, "an early end at line 1, column 15"),
        ("{\n'a':1}", "wrong syntax at line 2, column 1"),
        (r#"{"action":1,"action":2}"#, "a key given twice at line 1, column 20"),
        (r#"{"Action":1}"#, "a key that differs only in case from one that is read at line 1, column 9"),
    ] {
        let error = identify(body, "team").unwrap_err().to_string();
        assert_eq!(error, format!("the body is not one JSON object: {what}"), "{body}");
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
        assert!(!error.to_string().contains("hidden") && !error.to_string().contains("action"), "{error}");
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
        prop_assert_eq!(delivery.tag(), Tag::Named(&tag));
    }
}
