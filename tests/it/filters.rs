//! Which deliveries are wanted: events by each way of naming them, scope, organization, environments,
//! tags, and what becomes of a ping.

use crate::support::{Delivery, ESC, Hookgate, Reply, SAMPLES, Setup, Upstream, Webhook, sample};

/// A webhook for each of the rows, at `/0`, `/1`, ….
fn webhooks<S: AsRef<str>>(upstream: &Upstream, rows: &[Vec<S>]) -> Hookgate {
    let with = |setup: Setup, (number, events): (usize, &Vec<S>)| {
        setup.with(Webhook::to(&upstream.url()).at(&format!("/{number}")).events(events))
    };
    rows.iter().enumerate().fold(Setup::bare(), with).start()
}

/// Another body under the kind and name of a sample.
fn changed(name: &str, from: &str, to: &str) -> Delivery {
    let body = String::from_utf8(sample(name).body()).unwrap();
    assert!(body.contains(from), "{name} has no {from}");
    Delivery::new(sample(name).kind, body.replace(from, to))
}

#[test]
fn every_esc_filter_by_every_way_of_naming_it() {
    let upstream = Upstream::always(Reply::ok());
    let mut rows = Vec::new();
    for sample in ESC {
        for way in [sample.group, sample.kind, sample.event, &format!("kind:{}", sample.kind), "*"] {
            rows.push((sample, vec![way.to_owned()]));
        }
    }
    let events: Vec<_> = rows.iter().map(|(_, events)| events.clone()).collect();
    let hookgate = webhooks(&upstream, &events);
    for (number, (sample, events)) in rows.iter().enumerate() {
        println!("{} by {events:?}", sample.name);
        hookgate.send(&Delivery::of(sample).to(&format!("/{number}"))).assert_forwarded(200);
        let requests = upstream.requests();
        assert_eq!(requests.len(), number + 1);
        let request = requests.last().unwrap();
        assert_eq!(request.header("hookgate-event"), Some(sample.event));
        assert_eq!(request.header("hookgate-kind-verified"), Some("true"));
        assert_eq!(request.header("pulumi-webhook-kind"), Some(sample.kind));
        assert_eq!(request.body, sample.body());
    }
    assert_eq!(rows.len(), 55);
}

#[test]
fn every_esc_filter_is_filtered_where_the_ten_others_are_wanted() {
    let upstream = Upstream::always(Reply::ok());
    let others = |but: &str| ESC.iter().map(|sample| sample.event).filter(|event| *event != but).collect();
    let rows: Vec<Vec<&str>> = ESC.iter().map(|sample| others(sample.event)).collect();
    let hookgate = webhooks(&upstream, &rows);
    for (number, sample) in ESC.iter().enumerate() {
        println!("{}", sample.name);
        assert_eq!(rows[number].len(), 10);
        hookgate.send(&Delivery::of(sample).to(&format!("/{number}"))).assert_own("filtered");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn every_esc_kind_is_filtered_where_the_other_kinds_and_groups_are_wanted() {
    let upstream = Upstream::always(Reply::ok());
    let mut kinds: Vec<_> = ESC.iter().map(|sample| sample.kind).collect();
    kinds.dedup();
    assert_eq!(kinds.len(), 5);
    let others = |but: &str| {
        let rest = kinds.iter().filter(|kind| **kind != but);
        rest.map(|kind| format!("kind:{kind}"))
            .chain(["stacks", "deployments", "policies"].map(str::to_owned))
            .collect()
    };
    let rows: Vec<Vec<String>> = ESC.iter().map(|sample| others(sample.kind)).collect();
    let hookgate = webhooks(&upstream, &rows);
    for (number, sample) in ESC.iter().enumerate() {
        hookgate.send(&Delivery::of(sample).to(&format!("/{number}"))).assert_own("filtered");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn the_other_groups_contain_what_they_should() {
    let upstream = Upstream::always(Reply::ok());
    let groups = ["environments", "stacks", "deployments"];
    let hookgate = webhooks(&upstream, &groups.map(|group| vec![group]));
    for sample in SAMPLES.iter().filter(|sample| sample.kind != "ping") {
        for (number, group) in groups.iter().enumerate() {
            println!("{} in {group}", sample.name);
            let answer = hookgate.send(&Delivery::of(sample).to(&format!("/{number}")));
            if *group == sample.group { answer.assert_forwarded(200) } else { answer.assert_own("filtered") }
        }
    }
    let events: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.header("hookgate-event").unwrap().to_owned())
        .collect();
    let wanted: Vec<_> =
        SAMPLES.iter().filter(|sample| !sample.group.is_empty()).map(|sample| sample.event).collect();
    assert_eq!(events, wanted);
}

/// Result, operation and state decide between the filters of one kind.
#[test]
fn the_filters_beyond_esc_read_the_right_fields() {
    let upstream = Upstream::always(Reply::ok());
    let cases = [
        ("stack_update.update_failed", "\"failed\"", "\"succeeded\"", "update_succeeded"),
        ("stack_update.update_failed", "\"kind\":\"update\"", "\"kind\":\"destroy\"", "destroy_failed"),
        ("stack_update.update_failed", "\"kind\":\"update\"", "\"kind\":\"import\"", "import_failed"),
        ("stack_update.refresh_succeeded", "\"succeeded\"", "\"failed\"", "refresh_failed"),
        ("stack_preview.update_failed", "\"failed\"", "\"succeeded\"", "preview_succeeded"),
        ("deployment.running", "\"running\"", "\"failed\"", "deployment_failed"),
        ("deployment.running", "\"running\"", "\"succeeded\"", "deployment_succeeded"),
        (
            "drift_detection.succeeded",
            "\"driftDetected\": true",
            "\"driftDetected\": false",
            "drift_detection_succeeded",
        ),
        ("drift_remediation.succeeded", "\"succeeded\"", "\"failed\"", "drift_remediation_failed"),
    ];
    let hookgate = webhooks(&upstream, &cases.map(|(_, _, _, filter)| vec![filter]));
    for (number, (name, from, to, filter)) in cases.iter().enumerate() {
        println!("{filter}");
        let to_path = format!("/{number}");
        hookgate.send(&changed(name, from, to).to(&to_path)).assert_forwarded(200);
        assert_eq!(upstream.requests().last().unwrap().header("hookgate-event"), Some(*filter));
        if *filter != "drift_detection_succeeded" {
            hookgate.send(&Delivery::of(sample(name)).to(&to_path)).assert_own("filtered");
        }
    }
}

/// The body fits two filters; either lets it in, and the first of the table names it.
#[test]
fn a_body_that_fits_two_filters_matches_both() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = webhooks(&upstream, &[vec!["drift_detected"], vec!["drift_detection_succeeded"]]);
    for path in ["/0", "/1"] {
        hookgate.send(&Delivery::of(sample("drift_detection.succeeded")).to(path)).assert_forwarded(200);
    }
    for request in upstream.requests() {
        assert_eq!(request.header("hookgate-event"), Some("drift_detected"));
    }
}

#[test]
fn an_unknown_action_matches_kind_and_group_and_no_filter() {
    let upstream = Upstream::always(Reply::ok());
    let filters = ["environment_tag_created", "environment_tag_deleted", "environment_tag_updated"];
    let rows = [
        vec!["environments"],
        vec!["environment_tag"],
        vec!["kind:environment_tag"],
        vec!["*"],
        filters.to_vec(),
    ];
    let hookgate = webhooks(&upstream, &rows);
    let delivery = || changed("environment_tag.created", "\"created\"", "\"renamed\"");
    for path in ["/0", "/1", "/2", "/3"] {
        hookgate.send(&delivery().to(path)).assert_forwarded(200);
    }
    hookgate.send(&delivery().to("/4")).assert_own("filtered");
    for request in upstream.requests() {
        assert_eq!(request.header("hookgate-event"), Some("environment_tag"));
        assert_eq!(request.header("hookgate-kind-verified"), Some("true"));
    }
}

/// Kinds that are not published are recognised by their name, or by its beginning and a field's ending.
#[test]
fn unpublished_names_match_by_kind_or_by_kind_and_ending() {
    let upstream = Upstream::always(Reply::ok());
    let rows = [
        vec!["environment_rotation_succeeded"],
        vec!["change_request_approved"],
        vec!["change_requests"],
        vec!["deployment_file_ingestion_failed"],
    ];
    let hookgate = webhooks(&upstream, &rows);
    let cases = [
        ("/0", "environment_rotation_succeeded", "{}", true),
        ("/0", "environment_rotation", r#"{"action":"succeeded"}"#, true),
        ("/0", "environment_rotation", r#"{"result":"succeeded"}"#, true),
        ("/0", "environment_rotation", r#"{"status":"succeeded"}"#, true),
        ("/0", "environment_rotation", r#"{"status":"failed"}"#, false),
        ("/0", "environment_rotation", r#"{"state":"succeeded"}"#, false),
        ("/0", "environment_rotation", "{}", false),
        ("/0", "environment_rotation_failed", "{}", false),
        ("/0", "environment_rotator", r#"{"action":"succeeded"}"#, false),
        ("/1", "change_request_approved", "{}", true),
        ("/1", "change_request", r#"{"action":"approved"}"#, true),
        ("/1", "change_request", r#"{"action":"unapproved"}"#, false),
        ("/1", "change_request_closed", "{}", false),
        ("/2", "change_request_approved", "{}", true),
        ("/2", "change_request", r#"{"action":"anything"}"#, true),
        ("/2", "change_request_brand_new", "{}", true),
        ("/2", "environment_change", "{}", false),
        ("/3", "deployment_file_ingestion_failed", "{}", true),
        ("/3", "deployment_file_ingestion", r#"{"status":"failed"}"#, true),
    ];
    for (path, kind, body, wanted) in cases {
        println!("{path} {kind} {body}");
        let answer = hookgate.send(&Delivery::new(kind, body).to(path));
        if wanted { answer.assert_forwarded(200) } else { answer.assert_own("filtered") }
    }
    for request in upstream.requests() {
        assert_eq!(request.header("hookgate-kind-verified"), Some("false"));
    }
}

#[test]
fn an_environment_scope_leaves_out_what_only_an_organization_sends() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let hookgate = Setup::bare()
        .with(Webhook::to(&url).at("/environment").line("scope = \"environment\""))
        .with(Webhook::to(&url).at("/organization").line("scope = \"organization\""))
        .with(Webhook::to(&url).at("/any"))
        .start();
    for sample in ESC {
        println!("{}", sample.name);
        for path in ["/organization", "/any"] {
            hookgate.send(&Delivery::of(sample).to(path)).assert_forwarded(200);
        }
        let answer = hookgate.send(&Delivery::of(sample).to("/environment"));
        if sample.kind == "environment" {
            answer.assert_own("filtered");
        } else {
            answer.assert_forwarded(200);
        }
    }
}

#[test]
fn a_stack_scope_has_no_stacks_made_or_deleted() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["stacks"]).webhook("scope = \"stack\"").start();
    for sample in SAMPLES.iter().filter(|sample| sample.group == "stacks") {
        println!("{}", sample.name);
        let answer = hookgate.send(&Delivery::of(sample));
        if sample.kind == "stack" { answer.assert_own("filtered") } else { answer.assert_forwarded(200) }
    }
}

#[test]
fn the_pinned_organization_is_compared_without_case() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let webhook = |path: &str, pin: &str| {
        Webhook::to(&url)
            .at(path)
            .line(&format!("organization = {pin:?}"))
            .events(&["environments", "kind:brand_new"])
    };
    let hookgate = Setup::bare()
        .with(webhook("/same", "crazy-adventures"))
        .with(webhook("/case", "Crazy-Adventures"))
        .with(webhook("/name", "CrazyAdventures"))
        .with(webhook("/part", "crazy-adventure"))
        .start();
    for path in ["/same", "/case"] {
        hookgate.send(&Delivery::good().to(path)).assert_forwarded(200);
        hookgate
            .send(&changed("environment.created", "\"crazy-adventures\"", "\"CRAZY-adventures\"").to(path))
            .assert_forwarded(200);
    }
    for path in ["/name", "/part"] {
        hookgate.send(&Delivery::good().to(path)).assert_refused(403, "wrong_organization");
    }
    let refused = [
        ("none", "{}"),
        ("not an object", r#"{"organization":"crazy-adventures"}"#),
        ("no login", r#"{"organization":{"name":"crazy-adventures"}}"#),
        ("null", r#"{"organization":null}"#),
    ];
    for (what, body) in refused {
        println!("{what}");
        hookgate
            .send(&Delivery::new("brand_new", body).to("/same"))
            .assert_refused(403, "wrong_organization");
    }
    let body = r#"{"organization":{"githubLogin":"crazy-adventures"}}"#;
    hookgate.send(&Delivery::new("brand_new", body).to("/same")).assert_forwarded(200);
    // A known kind without one.
    let mut body: serde_json::Value = serde_json::from_slice(&sample("environment.created").body()).unwrap();
    body.as_object_mut().unwrap().remove("organization");
    let orphan = Delivery::new("environment", body.to_string());
    hookgate.send(&orphan.to("/same")).assert_refused(403, "wrong_organization");
    // A ping has none and needs none.
    hookgate.send(&Delivery::of(sample("ping")).to("/same")).assert_own("pong");
}

#[test]
fn the_organization_is_that_of_the_envelope_not_of_the_user() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).webhook("organization = \"morty\"").start();
    hookgate.send(&Delivery::good()).assert_refused(403, "wrong_organization");
}

#[test]
fn environments_are_globs_over_project_and_environment() {
    let upstream = Upstream::always(Reply::ok());
    let cases = [
        (r#"["website/prod"]"#, true),
        (r#"["other/*", "website/prod"]"#, true),
        (r#"["website/*"]"#, true),
        (r#"["*/prod"]"#, true),
        (r#"["*"]"#, true),
        (r#"["web*od"]"#, true),
        (r#"["website/pr?d"]"#, true),
        (r#"["website/prod?"]"#, false),
        (r#"["website/pro"]"#, false),
        (r#"["ebsite/prod"]"#, false),
        (r#"["Website/prod"]"#, false),
        (r#"["website/Prod"]"#, false),
        (r#"["website/base"]"#, false),
    ];
    let with = |setup: Setup, (number, (globs, _)): (usize, &(&str, bool))| {
        let webhook = Webhook::to(&upstream.url()).at(&format!("/{number}"));
        setup.with(webhook.line(&format!("environments = {globs}")).events(&[
            "environments",
            "stacks",
            "kind:brand_new",
        ]))
    };
    let hookgate = cases.iter().enumerate().fold(Setup::bare(), with).start();
    for (number, (globs, wanted)) in cases.iter().enumerate() {
        println!("{globs}");
        let path = format!("/{number}");
        // The last names another environment too, the imported one, which does not count.
        for name in ["environment_revision.created", "environment.created", "imported_environment_changed"] {
            let answer = hookgate.send(&Delivery::of(sample(name)).to(&path));
            if *wanted { answer.assert_forwarded(200) } else { answer.assert_own("filtered") }
        }
        // No environment, not wanted.
        hookgate.send(&Delivery::of(sample("stack.created")).to(&path)).assert_own("filtered");
        hookgate.send(&Delivery::new("brand_new", "{}").to(&path)).assert_own("filtered");
        hookgate.send(&Delivery::of(sample("ping")).to(&path)).assert_own("pong");
    }
}

#[test]
fn tags_are_globs_over_the_tag_and_touch_nothing_else() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .webhook("tags = [\"release-*\", \"canary\"]")
        .events(&["environments", "stacks"])
        .start();
    for name in ["environment_tag.created", "environment_revision_tag.updated"] {
        for (tag, wanted) in [
            ("release-7", true),
            ("release-", true),
            ("canary", true),
            ("Canary", false),
            ("stable", false),
            ("x-release-1", false),
        ] {
            println!("{name} {tag}");
            let answer = hookgate.send(&changed(name, "\"stable\"", &format!("\"{tag}\"")));
            if wanted { answer.assert_forwarded(200) } else { answer.assert_own("filtered") }
        }
    }
    for name in [
        "environment.created",
        "environment_revision.created",
        "imported_environment_changed",
        "stack.created",
    ] {
        hookgate.send(&Delivery::of(sample(name))).assert_forwarded(200);
    }
}

/// Whatever `kind_check` says: a name that is not text matches no pattern, and does not count as no tag either.
#[test]
fn members_of_the_wrong_type_pass_no_filter() {
    let upstream = Upstream::always(Reply::ok());
    let strict = |path: &str, kind_check: &str| {
        Webhook::to(&upstream.url())
            .at(path)
            .events(&["environments", "kind:brand_new"])
            .line(&format!("kind_check = {kind_check:?}"))
            .line("organization = \"crazy-adventures\"")
            .line("environments = [\"*\"]")
            .line("tags = [\"*\"]")
    };
    let hookgate = Setup::bare().with(strict("/warn", "warn")).with(strict("/enforce", "enforce")).start();
    let whole: serde_json::Value = serde_json::from_slice(&sample("environment_tag.created").body()).unwrap();
    for wrong in ["5", "[\"dev\"]", "null", "{\"a\":\"b\"}", "true", "\"\"", "\"a\\u0000\""] {
        for member in ["tagName", "projectName", "environmentName", "organization"] {
            let mut body = whole.clone();
            body[member] = serde_json::from_str(wrong).unwrap();
            for (path, kind) in
                [("/warn", "environment_tag"), ("/warn", "brand_new"), ("/enforce", "brand_new")]
            {
                println!("{path} {kind} {member} {wrong}");
                let answer = hookgate.send(&Delivery::new(kind, body.to_string()).to(path));
                if member == "organization" {
                    answer.assert_refused(403, "wrong_organization");
                } else {
                    answer.assert_own("filtered");
                }
            }
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    hookgate.send(&Delivery::new("environment_tag", whole.to_string()).to("/warn")).assert_forwarded(200);
}

#[test]
fn patterns_fit_no_name_that_pulumi_would_not_take() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).webhook("environments = [\"website/*\", \"*/prod\", \"*\"]").start();
    let named = |project: &str, name: &str| {
        let mut body: serde_json::Value =
            serde_json::from_slice(&sample("environment.created").body()).unwrap();
        body["projectName"] = project.into();
        body["environmentName"] = name.into();
        Delivery::new("environment", body.to_string())
    };
    for (project, name) in [
        ("website/x", "prod"),
        ("website", "x/prod"),
        ("website", "../prod"),
        ("website", ".."),
        ("website", ""),
        ("", "prod"),
        ("website", "prod\n"),
        ("website", "prod\0"),
        ("website", "pr\u{f6}d"),
        ("web site", "prod"),
    ] {
        println!("{project:?} {name:?}");
        hookgate.send(&named(project, name)).assert_own("filtered");
    }
    hookgate.send(&named("website", "A.b-c_9")).assert_forwarded(200);
}

#[test]
fn a_ping_is_answered_or_forwarded_where_it_is_wanted() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let strict = |path: &str, events: &[&str]| {
        Webhook::to(&url)
            .at(path)
            .events(events)
            .line("organization = \"acme\"")
            .line("environments = [\"x/y\"]")
            .line("tags = [\"t\"]")
    };
    let hookgate = Setup::bare()
        .with(Webhook::to(&url).at("/plain"))
        .with(Webhook::to(&url).at("/scoped").line("scope = \"environment\""))
        .with(strict("/strict", &["environments"]))
        .with(strict("/ping", &["ping"]))
        .with(strict("/both", &["environments", "ping"]))
        .with(strict("/all", &["*"]))
        .with(strict("/kind", &["kind:ping"]))
        .start();
    let ping = || Delivery::of(sample("ping"));
    for path in ["/plain", "/scoped", "/strict"] {
        println!("{path}");
        hookgate.send(&ping().to(path)).assert_own("pong");
    }
    assert_eq!(upstream.requests().len(), 0);
    for path in ["/ping", "/both", "/all", "/kind"] {
        println!("{path}");
        hookgate.send(&ping().to(path)).assert_forwarded(200);
    }
    for request in upstream.requests() {
        assert_eq!(request.header("hookgate-event"), Some("ping"));
        assert_eq!(request.header("hookgate-kind-verified"), Some("true"));
        assert_eq!(request.body, sample("ping").body());
    }
    // A ping does not get around the checks.
    hookgate.send(&ping().to("/plain").unsigned()).assert_refused(401, "missing_signature");
    hookgate.send(&ping().to("/plain").forged()).assert_refused(401, "bad_signature");
    hookgate.send(&Delivery::good().kind("ping").to("/plain")).assert_refused(422, "kind_mismatch");
    assert_eq!(upstream.requests().len(), 4);
}

#[test]
fn a_destination_narrows_its_webhook() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).destination("events = [\"environment_revision\"]").start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    hookgate.send(&Delivery::of(sample("environment.created"))).assert_own("filtered");
    assert_eq!(upstream.requests().len(), 1);
}
