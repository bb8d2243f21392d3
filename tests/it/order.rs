//! The order of the checks: whoever fails at two gets the label of the earlier one.

use crate::support::{Delivery, Gate, Reply, SECRET, Setup, Upstream, sample, signed};

/// A step of the path, and how to make a delivery fail at it.
struct Fault {
    label: &'static str,
    status: u16,
    spoil: fn(Delivery) -> Delivery,
}

const fn fault(label: &'static str, status: u16, spoil: fn(Delivery) -> Delivery) -> Fault {
    Fault { label, status, spoil }
}

/// Signs whatever the body is now.
fn signed_again(delivery: Delivery) -> Delivery {
    let body = delivery.the_body().to_vec();
    delivery.body(body)
}

/// The order of product.md. Any two can be combined, save where the second undoes the first.
const FAULTS: [Fault; 12] = [
    fault("not_found", 404, |delivery| delivery.to("/other")),
    fault("method_not_allowed", 405, |delivery| delivery.method("PUT")),
    fault("bad_request", 400, |delivery| delivery.and("Host", "second.test")),
    fault("unsupported_media_type", 415, |delivery| delivery.with("Content-Type", "text/plain")),
    fault("missing_signature", 401, Delivery::unsigned),
    fault("too_large", 413, |delivery| delivery.tampered("x".repeat(5000))),
    fault("bad_signature", 401, Delivery::forged),
    fault("missing_header", 400, |delivery| delivery.without("Pulumi-Webhook-Id")),
    fault("bad_payload", 422, |delivery| signed_again(delivery.tampered("[]"))),
    fault("wrong_organization", 403, |delivery| {
        let body =
            String::from_utf8(delivery.the_body().to_vec()).unwrap().replace("crazy-adventures\"", "other\"");
        signed_again(delivery.tampered(body))
    }),
    fault("filtered", 200, |delivery| delivery.unwanted()),
    fault("forwarded", 200, |delivery| delivery),
];

impl Delivery {
    /// Another sample, whose environment is not wanted; its organization stays what it is.
    fn unwanted(self) -> Self {
        let body = String::from_utf8(self.the_body().to_vec()).unwrap();
        let body = body.replace("\"prod\"", "\"unwanted\"");
        signed_again(self.tampered(body))
    }
}

fn place(label: &str) -> usize {
    FAULTS.iter().position(|fault| fault.label == label).unwrap()
}

#[test]
fn the_earlier_check_decides() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("max_body = \"4KiB\"")
        .webhook("organization = \"crazy-adventures\"")
        .webhook("environments = [\"website/prod\"]")
        .start();
    let mut pairs = 0;
    for (first, earlier) in FAULTS.iter().enumerate() {
        for later in FAULTS.iter().skip(first + 1) {
            // One body cannot be two, and what is not signed cannot be signed wrongly.
            let bodies = place("bad_payload")..=place("filtered");
            let both_are_bodies = bodies.contains(&first) && place(later.label) <= place("filtered");
            let organization_and_filter = earlier.label == "wrong_organization" && later.label == "filtered";
            let same_header = earlier.label == "missing_signature" && later.label == "bad_signature";
            if (both_are_bodies && !organization_and_filter) || same_header {
                continue;
            }
            println!("{} before {}", earlier.label, later.label);
            let base = Delivery::of(sample("environment.created"));
            // The later fault first: spoiling the body signs it anew, which must not undo the earlier one.
            let delivery = (earlier.spoil)((later.spoil)(base));
            let answer = if earlier.label == "too_large" || first <= place("missing_signature") {
                let mut connection = hookgate.connect();
                connection.send(&delivery.head_bytes());
                connection.answer()
            } else {
                hookgate.send(&delivery)
            };
            assert_eq!(answer.said(), (earlier.status, earlier.label), "against {}", later.label);
            pairs += 1;
        }
    }
    assert!(pairs > 50, "{pairs}");
    assert_eq!(upstream.requests().len(), 0);
}

/// The steps that the table above cannot combine.
#[test]
fn the_finer_order_holds_too() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("max_body = \"4KiB\"")
        .webhook("organization = \"crazy-adventures\"")
        .start();
    let good = Delivery::good;
    let long = "x".repeat(5000);
    let other =
        String::from_utf8(good().the_body().to_vec()).unwrap().replace("crazy-adventures\"", "other\"");
    let cases: Vec<(&str, Delivery, u16, &str)> = vec![
        (
            "malformed signature, large body",
            good().tampered(long.as_str()).signature("xyz"),
            401,
            "bad_signature",
        ),
        (
            "repeated signature, large body",
            good().tampered(long.as_str()).and("Pulumi-Webhook-Signature", "x"),
            400,
            "bad_header",
        ),
        ("large body, no ID", good().tampered(long.as_str()).without("Pulumi-Webhook-Id"), 413, "too_large"),
        ("forged, empty kind", good().kind("").forged(), 401, "bad_signature"),
        ("forged, two IDs", good().and("Pulumi-Webhook-Id", "a").forged(), 401, "bad_signature"),
        ("no ID, no JSON", good().body("x").without("Pulumi-Webhook-Id"), 400, "missing_header"),
        ("bad kind, no JSON", good().body("x").kind("-"), 400, "bad_header"),
        ("no JSON, unknown kind", good().body("x").kind("brand_new"), 422, "bad_payload"),
        ("kind and organization", good().body(other.as_str()).kind("environment_tag"), 422, "kind_mismatch"),
        ("organization, not wanted", Delivery::new("brand_new", other.as_str()), 403, "wrong_organization"),
    ];
    for (what, delivery, status, label) in cases {
        println!("{what}");
        hookgate.send(&delivery).assert_refused(status, label);
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// What is not wanted is not compared with what came before under its ID.
#[test]
fn filtering_comes_before_duplicates() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good().id("one")).assert_forwarded(200);
    hookgate.send(&Delivery::of(sample("stack.created")).id("one")).assert_own("filtered");
    hookgate.send(&Delivery::of(sample("ping")).id("one")).assert_own("pong");
    hookgate.send(&Delivery::good_with("other").id("one")).assert_refused(409, "id_conflict");
}

/// A sender that never sends the body learns of the head's faults at once, while another is held upstream.
#[test]
fn refusals_do_not_wait_for_others() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).start();
    let mut held = hookgate.connect();
    held.send(&Delivery::good().bytes());
    upstream.wait_for(1);
    Delivery::good().unsigned().send_head_only(hookgate.address()).assert_refused(401, "missing_signature");
    gate.open();
    held.answer().assert_forwarded(200);
}

#[test]
fn the_signature_helper_signs_with_the_usual_secret() {
    let good = Delivery::good();
    assert_eq!(good.header_value("pulumi-webhook-signature"), signed(good.the_body(), SECRET.as_bytes()));
}
