//! Kind and payload: the header is only a claim, the signed payload must fit it.

use serde_json::{Value, json};

use crate::support::{Delivery, PUBLISHED_KINDS, Reply, SAMPLES, Setup, Upstream, Webhook, sample};

#[test]
fn every_sample_fits_its_own_kind_and_no_other() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    let mut connection = hookgate.connect();
    let mut passed = 0;
    for sample in &SAMPLES {
        for kind in PUBLISHED_KINDS {
            connection.send(&Delivery::of(sample).kind(kind).bytes());
            let answer = connection.answer();
            println!("{} as {kind}: {}", sample.name, answer.status);
            if kind == sample.kind {
                answer.assert_forwarded(200);
                passed += 1;
            } else {
                answer.assert_refused(422, "kind_mismatch");
            }
        }
    }
    assert_eq!(passed, 20);
    assert_eq!(upstream.requests().len(), passed);
}

/// Every field of every published kind, taken out and given another type.
#[test]
fn every_field_must_be_there_with_its_type() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    let mut connection = hookgate.connect();
    let fields: [(&str, &[&str]); 12] = [
        ("environment.created", &["projectName", "environmentName", "action"]),
        ("environment_revision.created", &["projectName", "environmentName", "action", "revision"]),
        (
            "environment_revision_tag.created",
            &["projectName", "environmentName", "action", "revision", "tagName"],
        ),
        ("environment_tag.created", &["projectName", "environmentName", "action", "tagName"]),
        (
            "imported_environment_changed",
            &["projectName", "environmentName", "affectedRevisions", "importedEnvironmentReference"],
        ),
        ("stack.created", &["projectName", "stackName", "action"]),
        ("stack_preview.update_failed", &["projectName", "stackName", "kind", "result", "isPreview"]),
        ("stack_update.update_failed", &["projectName", "stackName", "kind", "result", "isPreview"]),
        ("deployment.running", &["projectName", "stackName", "status", "operation"]),
        ("drift_detection.succeeded", &["projectName", "stackName", "status", "driftDetected"]),
        ("drift_remediation.succeeded", &["projectName", "stackName", "status"]),
        ("ping", &["timestamp", "message"]),
    ];
    let mut tried = 0;
    for (name, fields) in fields {
        let whole: Value = serde_json::from_slice(&sample(name).body()).unwrap();
        for field in fields.iter().chain(if name == "ping" { &[][..] } else { &["organization"][..] }) {
            let mut without = whole.clone();
            without.as_object_mut().unwrap().remove(*field).unwrap();
            let retyped = |value: Value| {
                let mut whole = whole.clone();
                whole[*field] = value;
                whole
            };
            for body in [without, retyped(Value::Null), retyped(json!([{"odd": 1.5}]))] {
                println!("{name} {field}: {}", body[*field]);
                connection.send(&Delivery::new(sample(name).kind, body.to_string()).bytes());
                connection.answer().assert_refused(422, "kind_mismatch");
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn unknown_fields_and_a_missing_user_are_fine() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    for sample in SAMPLES.iter().filter(|sample| sample.kind != "ping") {
        println!("{}", sample.name);
        let mut body: Value = serde_json::from_slice(&sample.body()).unwrap();
        body.as_object_mut().unwrap().remove("user").unwrap();
        body["brandNew"] = json!({"nested": [1, 2, {"action": "x", "action2": null}]});
        hookgate.send(&Delivery::new(sample.kind, body.to_string())).assert_forwarded(200);
    }
}

#[test]
fn the_marks_of_another_kind_do_not_pass() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    let cases = [
        ("environment.created", "revision", json!(5)),
        ("environment.created", "tagName", json!("stable")),
        ("environment_tag.created", "revision", json!(5)),
        ("environment_revision.created", "tagName", json!("stable")),
        ("environment.created", "stackName", json!("website-prod")),
        ("stack.created", "environmentName", json!("prod")),
        ("drift_remediation.succeeded", "driftDetected", json!(true)),
        (
            "environment.created",
            "importedEnvironmentReference",
            json!({"projectName": "a", "environmentName": "b", "revision": 1}),
        ),
    ];
    for (name, field, value) in cases {
        println!("{name} with {field}");
        let mut body: Value = serde_json::from_slice(&sample(name).body()).unwrap();
        body[field] = value;
        let delivery = Delivery::new(sample(name).kind, body.to_string());
        hookgate.send(&delivery).assert_refused(422, "kind_mismatch");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn a_revision_is_an_integer() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let with = |revision: &str| {
        let body = String::from_utf8(sample("environment_revision.created").body()).unwrap();
        Delivery::new(
            "environment_revision",
            body.replace("\"revision\": 5", &format!("\"revision\": {revision}")),
        )
    };
    for good in ["0", "9007199254740993", "2147483648"] {
        hookgate.send(&with(good)).assert_forwarded(200);
    }
    for bad in ["\"5\"", "5.5", "true", "null", "[5]"] {
        println!("{bad}");
        hookgate.send(&with(bad)).assert_refused(422, "kind_mismatch");
    }
}

#[test]
fn kind_check_warn_logs_and_goes_on() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).webhook("kind_check = \"warn\"").start();
    let swapped = Delivery::good().kind("environment_tag");
    hookgate.send(&swapped).assert_forwarded(200);
    let request = upstream.only_request();
    assert_eq!(request.header("pulumi-webhook-kind"), Some("environment_tag"));
    assert_eq!(request.header("hookgate-kind-verified"), Some("false"));
    // A payload of another kind names no filter.
    assert_eq!(request.header("hookgate-event"), Some("environment_tag"));
    let id = swapped.header_value("pulumi-webhook-id");
    hookgate.wait_for_log(|line| line["level"] == "WARN" && line["delivery.id"] == id);
    // What agrees is still verified, and what is not an object is still refused.
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(upstream.wait_for(2)[1].header("hookgate-kind-verified"), Some("true"));
    hookgate.send(&Delivery::good().body("[]")).assert_refused(422, "bad_payload");
}

#[test]
fn unknown_kinds_are_forwarded_by_name_and_star_only_and_marked() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let hookgate = Setup::bare()
        .with(Webhook::to(&url).at("/name").events(&["kind:brand_new"]))
        .with(Webhook::to(&url).at("/star").events(&["*"]))
        .with(Webhook::to(&url).at("/other").events(&["kind:brand_newer"]))
        .with(Webhook::to(&url).at("/groups").events(&[
            "environments",
            "stacks",
            "deployments",
            "policies",
            "change_requests",
        ]))
        .start();
    for path in ["/name", "/star"] {
        hookgate.send(&Delivery::new("brand_new", "{\"any\":\"thing\"}").to(path)).assert_forwarded(200);
    }
    for path in ["/other", "/groups"] {
        hookgate.send(&Delivery::new("brand_new", "{}").to(path)).assert_own("filtered");
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        assert_eq!(request.header("hookgate-kind-verified"), Some("false"));
        assert_eq!(request.header("hookgate-event"), Some("brand_new"));
        assert_eq!(request.header("pulumi-webhook-kind"), Some("brand_new"));
    }
}

/// `Hookgate-Event` would say `environment_deleted` of a body that says nothing of the kind.
#[test]
fn the_name_of_a_filter_is_refused_as_a_kind() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let hookgate = Setup::bare()
        .with(Webhook::to(&url).at("/enforce").events(&["*"]))
        .with(Webhook::to(&url).at("/warn").events(&["*"]).line("kind_check = \"warn\""))
        .start();
    for path in ["/enforce", "/warn"] {
        for filter in
            ["environment_deleted", "environment_revision_created", "update_failed", "drift_detected"]
        {
            println!("{path} {filter}");
            hookgate.send(&Delivery::good().kind(filter).to(path)).assert_refused(422, "kind_mismatch");
        }
        // Nothing is published about this one, so it may be a kind. It proves nothing.
        hookgate.send(&Delivery::good().kind("environment_rotation_failed").to(path)).assert_forwarded(200);
    }
    for request in upstream.requests() {
        assert_eq!(request.header("hookgate-kind-verified"), Some("false"));
    }
}

/// A deleted tag, sent as a deleted environment: neither the webhook nor the destination that wants those gets it.
#[test]
fn with_kind_check_warn_a_misfit_matches_no_filter() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let warn = |path: &str| Webhook::to(&url).at(path).line("kind_check = \"warn\"");
    let hookgate = Setup::bare()
        .with(warn("/group"))
        .with(warn("/kind").events(&["environment"]))
        .with(warn("/filter").events(&["environment_deleted"]))
        .with(warn("/narrowed").destination("events = [\"environment_deleted\"]"))
        .start();
    let misfit = || Delivery::of(sample("environment_tag.deleted")).kind("environment");
    for path in ["/group", "/kind"] {
        hookgate.send(&misfit().to(path)).assert_forwarded(200);
    }
    for path in ["/filter", "/narrowed"] {
        hookgate.send(&misfit().to(path)).assert_own("filtered");
        hookgate.send(&Delivery::of(sample("environment.deleted")).to(path)).assert_forwarded(200);
    }
    let seen: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| {
            ["hookgate-event", "hookgate-kind-verified"].map(|name| request.header(name).unwrap().to_owned())
        })
        .collect();
    let proven = ["environment_deleted", "true"].map(str::to_owned);
    let claimed = ["environment", "false"].map(str::to_owned);
    assert_eq!(seen, [claimed.clone(), claimed, proven.clone(), proven]);
}

/// With `coalesce` the newest delivery of an environment and event takes the place of those that wait.
#[test]
fn what_is_not_proven_takes_no_place_of_what_is() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .section("[queue]\npath = \"{dir}/queue.db\"")
        .webhook("kind_check = \"warn\"")
        .destination("coalesce = \"1s\"")
        .start();
    let genuine = Delivery::of(sample("imported_environment_changed"));
    let claimed = Delivery::good().kind("imported_environment_changed");
    for delivery in [&genuine, &claimed] {
        assert_eq!(hookgate.send(delivery).outcome(), "queued");
    }
    let mut seen: Vec<_> = upstream
        .wait_for(2)
        .iter()
        .map(|request| {
            ["hookgate-event", "hookgate-kind-verified"].map(|name| request.header(name).unwrap().to_owned())
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        ["false", "true"].map(|verified| ["imported_environment_changed", verified].map(str::to_owned))
    );
}

/// A holder of one signed body must not turn it into another event by choosing an unknown kind.
#[test]
fn a_known_body_under_an_unknown_kind_is_not_verified() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    hookgate.send(&Delivery::good().kind("brand_new")).assert_forwarded(200);
    assert_eq!(upstream.only_request().header("hookgate-kind-verified"), Some("false"));
}

#[test]
fn policy_violations_are_known_and_unchecked() {
    let upstream = Upstream::always(Reply::ok());
    let url = upstream.url();
    let hookgate = Setup::bare()
        .with(Webhook::to(&url).at("/group").events(&["policies"]))
        .with(Webhook::to(&url).at("/kind").events(&["policy_violation"]))
        .start();
    for path in ["/group", "/kind"] {
        hookgate.send(&Delivery::new("policy_violation", "{\"any\":1}").to(path)).assert_forwarded(200);
    }
    for request in upstream.requests() {
        assert_eq!(request.header("hookgate-kind-verified"), Some("false"));
    }
}
