//! What passes without proof is never taken for more than it is, and no other parser reads something else.

use super::*;

#[test]
fn what_is_read_stands_there_once() {
    let twice = |error: PayloadError| matches!(error, PayloadError::Syntax { what: "a key given twice", .. });
    let mut names: Vec<_> = MARKERS.into_iter().map(Field::name).collect();
    names.extend(["projectName", "organization"]);
    for name in names {
        // Written plainly, and with its first letter as an escape.
        let escaped = format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), name.get(1..).unwrap());
        for second in [name, &escaped] {
            let body = format!("{{\"{name}\":1,\"{second}\":null}}");
            assert!(identify(&body, "team").is_err_and(twice), "{body}");
        }
    }
    for body in [
        r#"{"organization":{"githubLogin":"a","githubLogin":"b"}}"#,
        r#"{"importedEnvironmentReference":{"revision":1,"revision":2}}"#,
    ] {
        assert!(identify(body, "team").is_err_and(twice), "{body}");
    }
    // The first one counts too where it is null.
    assert!(identify(r#"{"tagName":null,"tagName":"x"}"#, "team").is_err_and(twice));
    for body in [
        r#"{"user":1,"user":2}"#,
        r#"{"organization":{"name":1,"name":2}}"#,
        r#"{"a":{"action":1,"action":2}}"#,
    ] {
        assert!(identify(body, "team").is_ok(), "{body}");
    }
}

/// What a parser that ignores case takes for a member that is read, as Go's does by default.
#[test]
fn what_is_read_stands_there_in_its_own_letters() {
    let folded = |error: PayloadError| {
        matches!(
            error,
            PayloadError::Syntax { what: "a key that differs only in case from one that is read", .. }
        )
    };
    let mut names: Vec<_> = MARKERS.into_iter().map(Field::name).collect();
    names.extend(["projectName", "organization"]);
    for name in names {
        let others = [
            name.to_uppercase(),
            name.replace('s', "\u{17f}"),
            name.replace('k', "\u{212a}"),
            name.replace('i', "\u{131}"),
            format!("{name}\\u0000"),
            format!("{name}\\u0000.x"),
        ];
        for other in others.iter().filter(|other| *other != name) {
            for body in [
                format!(r#"{{"{other}":1}}"#),
                format!(r#"{{"{name}":null,"{other}":1}}"#),
                format!(r#"{{"{other}":1,"{name}":null}}"#),
            ] {
                assert!(identify(&body, "team").is_err_and(folded), "{body}");
            }
        }
    }
    for body in [
        r#"{"organization":{"githublogin":"a"}}"#,
        r#"{"organization":{"githubLogin":"a","GitHubLogin":"b"}}"#,
        r#"{"importedEnvironmentReference":{"Revision":2}}"#,
        r#"{"\u004frganization":{"githubLogin":"a"}}"#,
    ] {
        assert!(identify(body, "team").is_err_and(folded), "{body}");
    }
    // Elsewhere they are nobody's.
    for body in [
        r#"{"User":{"GithubLogin":"a"},"githublogin":"a"}"#,
        r#"{"organization":{"Organization":1,"Revision":2}}"#,
        r#"{"x":{"Organization":1},"git_hub":1,"project_name":"a","project-name":"b","projectname ":"c"}"#,
    ] {
        assert!(identify(body, "team").is_ok(), "{body}");
    }
}

/// The service would take it for the event of that name: `Hookgate-Event` is the kind where no filter is shown.
#[test]
fn the_name_of_a_filter_is_no_kind() {
    let mut seen = 0;
    for event in EVENTS.iter().filter(|event| event.is_published() && Kind::find(event.name).is_none()) {
        let (agreement, shown) = identify(event.sample_body(), event.name).unwrap();
        assert_eq!((agreement, shown), (Agreement::Differs(Mismatch::FilterName), vec![]), "{}", event.name);
        seen += 1;
    }
    assert_eq!(seen, 31);
}

/// A body of another kind shows nothing, whatever its `action` says.
#[test]
fn what_does_not_fit_its_kind_shows_no_filter() {
    for (kind, mut body) in samples() {
        body["organization"] = json!(null);
        body["isPreview"] = json!(1);
        let (agreement, shown) = identify(body.to_string(), kind.name).unwrap();
        assert!(matches!(agreement, Agreement::Differs(_)) && shown.is_empty(), "{}: {shown:?}", kind.name);
    }
    let tag = Event::find("environment_tag_deleted").unwrap().sample_body();
    assert_eq!(identify(tag, "environment").unwrap().1, Vec::<&str>::new());
    let revision = verified(Event::find("environment_revision_tag_created").unwrap().sample_body());
    let kind = EventKind::parse(b"environment_revision").unwrap();
    let delivery = Delivery::identify(&revision, DeliveryId::parse(b"1").unwrap(), kind).unwrap();
    assert_eq!((delivery.event().map(|event| event.name), delivery.revision()), (None, None));
}

#[test]
fn a_tag_is_named_or_absent_or_unreadable() {
    let tag = |kind: &str, body: &Value| {
        let body = verified(body.to_string());
        let kind = EventKind::parse(kind.as_bytes()).unwrap();
        let delivery = Delivery::identify(&body, DeliveryId::parse(b"1").unwrap(), kind).unwrap();
        match delivery.tag() {
            Tag::None => "none".to_owned(),
            Tag::Named(name) => format!("named {name}"),
            Tag::Unreadable => "unreadable".to_owned(),
        }
    };
    let (_, mut environment) = samples().swap_remove(0);
    assert_eq!(tag("environment", &environment), "none");
    environment["tagName"] = Value::Null;
    assert_eq!(tag("environment", &environment), "none");
    assert_eq!(tag("team", &environment), "unreadable");
    assert_eq!(tag("team", &json!({})), "none");
    assert_eq!(tag("environment_tag", &json!({"action": "created"})), "unreadable");
    assert_eq!(tag("environment_tag", &json!({"tagName": "stable"})), "named stable");
    for wrong in [json!(5), json!(["dev"]), json!({"a": "b"}), json!(true), json!(1.5), Value::Null] {
        for kind in ["environment_tag", "environment_revision_tag", "team"] {
            assert_eq!(tag(kind, &json!({"tagName": wrong})), "unreadable", "{kind} {wrong}");
        }
    }
}
