//! What passes without proof, or with odd names, is never taken for more than it is.

use super::*;

/// A filter stands for what the payload shows, and a misfit shows nothing that can be believed.
#[test]
fn a_misfit_matches_kinds_and_groups_and_no_filter() {
    let body = sample("environment_tag_deleted").sample_body();
    for (name, verdict) in [
        ("environments", Verdict::Forward),
        ("environment", Verdict::Forward),
        ("kind:environment", Verdict::Forward),
        ("*", Verdict::Forward),
        ("environment_deleted", Verdict::Ignore(Unwanted::Misfit)),
        ("environment_tag_deleted", Verdict::Ignore(Unwanted::Event)),
    ] {
        let filter = Filter { kind_check: KindCheck::Warn, ..wants(&[name]) };
        assert_eq!(judge(&filter, "environment", &body), verdict, "{name}");
    }
}

#[test]
fn a_filter_is_never_a_kind() {
    for kind_check in [KindCheck::Enforce, KindCheck::Warn] {
        let filter = Filter { kind_check, ..wants(&["*"]) };
        let body = sample("environment_created").sample_body();
        let expected = Verdict::KindMismatch(Mismatch::FilterName);
        assert_eq!(judge(&filter, "environment_deleted", &body), expected);
        assert_eq!(judge(&filter, "drift_detected", "{}"), expected);
        // These are kinds as well, or may be: nothing is published about them.
        for kind in ["environment_rotation_failed", "change_request_closed", "brand_new"] {
            assert_eq!(judge(&filter, kind, "{}"), Verdict::Forward, "{kind}");
        }
    }
    assert_eq!(
        Events::default().add("kind:environment_deleted", None).unwrap_err().to_string(),
        "`kind:environment_deleted` matches nothing: `environment_deleted` is the name of a filter, not of a kind; \
         write `environment_deleted`"
    );
    for name in ["kind:ping", "kind:imported_environment_changed", "kind:change_request_closed"] {
        assert!(Events::default().add(name, None).is_ok(), "{name}");
    }
}

/// Whatever `kind_check` says, and under a kind whose payload is not checked at all.
#[test]
fn a_member_of_the_wrong_type_passes_no_filter() {
    let wrong = ["5", "1.5", "true", "null", "[\"stable\"]", "{\"stable\":1}", "{\"githubLogin\":[]}"];
    let strict = Filter {
        organization: Some("acme".into()),
        environments: globs(&["*"]),
        tags: globs(&["*"]),
        kind_check: KindCheck::Warn,
        ..wants(&["*"])
    };
    let body = |organization: &str, project: &str, environment: &str, tag: &str| {
        format!(
            r#"{{"organization":{organization},"projectName":{project},"environmentName":{environment},"tagName":{tag},"action":"created"}}"#
        )
    };
    let acme = r#"{"githubLogin":"acme"}"#;
    for kind in ["environment_tag", "environment_revision", "brand_new"] {
        let judged = |body: &str| judge(&strict, kind, body);
        assert_eq!(judged(&body(acme, "\"p\"", "\"e\"", "\"t\"")), Verdict::Forward, "{kind}");
        for wrong in wrong {
            let other = format!(r#"{{"githubLogin":{wrong}}}"#);
            for organization in [wrong, &other] {
                assert_eq!(
                    judged(&body(organization, "\"p\"", "\"e\"", "\"t\"")),
                    Verdict::WrongOrganization,
                    "{kind} {organization}"
                );
            }
            for body in [body(acme, wrong, "\"e\"", "\"t\""), body(acme, "\"p\"", wrong, "\"t\"")] {
                assert_eq!(judged(&body), Verdict::Ignore(Unwanted::Environment), "{kind} {body}");
            }
            let body = body(acme, "\"p\"", "\"e\"", wrong);
            assert_eq!(judged(&body), Verdict::Ignore(Unwanted::Tag), "{kind} {body}");
        }
    }
    // Members that tell filters: as text or flag they are told by, and as nothing else.
    for (kind, member, right, filter) in [
        ("change_request", "action", "\"closed\"", "change_request_closed"),
        ("environment_rotation", "result", "\"failed\"", "environment_rotation_failed"),
        ("deployment_file_ingestion", "status", "\"failed\"", "deployment_file_ingestion_failed"),
    ] {
        let filter = Filter { kind_check: KindCheck::Warn, ..wants(&[filter]) };
        assert_eq!(judge(&filter, kind, &format!("{{\"{member}\":{right}}}")), Verdict::Forward);
        let list = format!("[{right}]");
        for wrong in wrong.into_iter().chain([&*list]) {
            let body = format!("{{\"{member}\":{wrong}}}");
            assert_eq!(judge(&filter, kind, &body), Verdict::Ignore(Unwanted::Event), "{kind} {body}");
        }
    }
    let drift = sample("drift_detected").sample_body();
    let filter = Filter { kind_check: KindCheck::Warn, ..wants(&["drift_detected"]) };
    assert_eq!(judge(&filter, "drift_detection", &drift), Verdict::Forward);
    for wrong in ["1", "\"true\"", "[true]", "null"] {
        let wrong = drift.replace("\"driftDetected\":true", &format!("\"driftDetected\":{wrong}"));
        assert_ne!(wrong, drift);
        assert_eq!(judge(&filter, "drift_detection", &wrong), Verdict::Ignore(Unwanted::Misfit), "{wrong}");
    }
}

#[test]
fn no_pattern_fits_a_name_that_pulumi_would_not_take() {
    let filter = Filter { environments: globs(&["website/*", "*", "?*/?*", "*/*"]), ..wants(&["*"]) };
    let judged = |project: &str, name: &str| {
        let body = serde_json::json!({"projectName": project, "environmentName": name}).to_string();
        judge(&filter, "brand_new", &body)
    };
    for (project, name) in [("website", "prod"), ("a", "b"), ("A-1_.x", "..."), (".x", "0")] {
        assert_eq!(judged(project, name), Verdict::Forward, "{project} {name}");
    }
    for (project, name) in [
        ("website", ""),
        ("", "prod"),
        ("", ""),
        ("website/x", "prod"),
        ("website", "x/prod"),
        ("website", "/"),
        ("website", "../prod"),
        ("website", ".."),
        ("website", "."),
        ("..", "prod"),
        ("website", "prod\0"),
        ("website", "prod\n"),
        ("website", "pr od"),
        ("website", "prod "),
        ("website", "pr\u{f6}d"),
        ("website", "prod\u{200b}"),
        ("website", "prod@stable"),
        ("website", "%2e%2e"),
        ("website\\", "prod"),
    ] {
        assert_eq!(judged(project, name), Verdict::Ignore(Unwanted::Environment), "{project} {name}");
    }
}

#[test]
fn no_pattern_fits_a_tag_without_a_name_or_with_control_characters() {
    let filter = Filter { tags: globs(&["*"]), ..wants(&["*"]) };
    let judged = |tag: &str| judge(&filter, "brand_new", &serde_json::json!({"tagName": tag}).to_string());
    for tag in ["stable", "release-1.2", "a b", "\u{1f379}"] {
        assert_eq!(judged(tag), Verdict::Forward, "{tag}");
    }
    for tag in ["", "\0", "stable\0", "a\nb", "\u{85}"] {
        assert_eq!(judged(tag), Verdict::Ignore(Unwanted::Tag), "{tag:?}");
    }
}
