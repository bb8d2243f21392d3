//! Byte identity: the upstream gets the very bytes that were signed, however they came.

use crate::support::{Delivery, Reply, Setup, Upstream, sample};

/// Sends the delivery, and checks that its body arrives as it is, with its length.
fn assert_identical(bodies: &[(&str, Vec<u8>)], how: impl Fn(Delivery) -> Delivery) {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    for (number, (what, body)) in bodies.iter().enumerate() {
        println!("{what}");
        hookgate.send(&how(Delivery::new("brand_new", body.clone()))).assert_forwarded(200);
        let requests = upstream.requests();
        assert_eq!(requests.len(), number + 1);
        let request = &requests[number];
        assert!(request.body == *body, "{what}: {:?}", String::from_utf8_lossy(&request.body));
        assert_eq!(request.header("content-length"), Some(body.len().to_string().as_str()));
        assert_eq!(request.header("transfer-encoding"), None);
        assert_eq!(
            request.header("pulumi-webhook-signature"),
            Some(crate::support::signed(body, crate::support::SECRET.as_bytes()).as_str())
        );
    }
}

/// Bodies that do not survive a round trip through a JSON library.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("emoji", "{\"message\":\"\u{1f379} ping \u{1f379}\"}".into()),
        ("escapes of Go", "{\"message\":\"\\u003cb\\u003e\\u0026\\u2028\"}".into()),
        ("escaped surrogates", "{\"message\":\"\\ud83c\\udf79\"}".into()),
        ("escaped slashes", "{\"url\":\"https:\\/\\/x\\/y\"}".into()),
        ("odd white space", " \t\r\n{ \n\"b\" :1 ,\r\n\"a\": [ ] }\r\n\t ".into()),
        (
            "numbers as written",
            "{\"a\":1.0,\"b\":1e2,\"c\":-0,\"d\":12345678901234567890123,\"e\":1E+2}".into(),
        ),
        ("order of keys", "{\"z\":1,\"a\":2,\"M\":3}".into()),
        ("a trailing newline", "{\"a\":1}\n".into()),
        ("an empty object", "{}".into()),
        ("combining characters", "{\"a\":\"e\u{301}\u{200b}\u{feff}\"}".into()),
        ("an escaped zero", "{\"a\":\"\\u0000\"}".into()),
        ("deep, within reason", format!("{{\"a\":{}{}}}", "[".repeat(60), "]".repeat(60)).into()),
        ("ping as on the wire", sample("ping").body()),
    ]
}

#[test]
fn odd_bodies_arrive_as_they_are() {
    assert_identical(&bodies(), |delivery| delivery);
}

/// The service may read keys without regard to case, as Go's `encoding/json` does: it would take the second one.
#[test]
fn a_key_that_a_lax_parser_takes_for_one_that_is_read_is_refused() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).events(&["*"]).start();
    let good = String::from_utf8(sample("environment_tag.created").body()).unwrap();
    let first = |members: &str| good.replacen('{', &format!("{{{members},"), 1);
    let login = "\"githubLogin\": \"crazy-adventures\"";
    let within = |members: &str| {
        let place = good.find("\"organization\"").unwrap();
        let (before, behind) = good.split_at(place);
        format!("{before}{}", behind.replacen(login, &format!("{login},{members}"), 1))
    };
    let refused = [
        first("\"Organization\":{\"githubLogin\":\"evil\"}"),
        first("\"ORGANIZATION\":null"),
        first("\"EnvironmentName\":\"prod\""),
        first("\"tagname\":\"other\""),
        first("\"Action\":7"),
        first("\"\u{212a}ind\":\"update\""),
        first("\"\\u212aind\":\"update\""),
        first("\"re\u{17f}ult\":\"failed\""),
        first("\"rev\u{131}sion\":1"),
        first("\"action\\u0000\":\"deleted\""),
        good.replace("\"organization\"", "\"Organization\""),
        good.replace("\"action\"", "\"ACTION\""),
        within("\"GithubLogin\":\"evil\""),
        within("\"github\\u004cogin\":\"evil\""),
        within("\"githublogin\":\"evil\""),
    ];
    for body in refused {
        println!("{body}");
        assert_ne!(body, good);
        let delivery = Delivery::new("environment_tag", body);
        hookgate.send(&delivery).assert_refused(422, "bad_payload");
    }
    assert_eq!(upstream.requests().len(), 0);
    for body in [
        first("\"Name\":1,\"name\":2,\"GITHUBLOGIN\":3,\"user_name\":4,\"organisation\":5"),
        within("\"Organization\":1,\"Name\":2"),
    ] {
        hookgate.send(&Delivery::new("environment_tag", body)).assert_forwarded(200);
    }
}

#[test]
fn single_byte_chunks_arrive_as_one_body_with_a_length() {
    assert_identical(&bodies(), |delivery| delivery.chunked(&[1]));
}

#[test]
fn many_small_chunks_arrive_as_one_body_with_a_length() {
    let body = format!("{{\"pad\":\"{}\"}}", "\u{1f379}x".repeat(20_000));
    assert_identical(&[("100 kB", body.into_bytes())], |delivery| delivery.chunked(&[1, 2, 3, 5, 7, 11, 13]));
}

/// A good delivery whose body has exactly so many bytes.
fn of_size(size: usize) -> Delivery {
    let body = Delivery::good_with("").the_body().to_vec();
    let pad: String =
        (0..size - body.len()).map(|place| char::from(b'a' + u8::try_from(place % 26).unwrap())).collect();
    let delivery = Delivery::good_with(&pad);
    assert_eq!(delivery.the_body().len(), size);
    delivery
}

#[test]
fn a_body_of_exactly_the_limit_passes_and_one_more_byte_does_not() {
    const LIMIT: usize = 1 << 20;
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let whole = of_size(LIMIT);
    hookgate.send(&whole).assert_forwarded(200);
    hookgate.send(&of_size(LIMIT).chunked(&[65_536])).assert_forwarded(200);
    let requests = upstream.requests();
    assert!(requests.iter().all(|request| request.body == whole.the_body()));
    assert_eq!(requests.len(), 2);
    hookgate.send(&of_size(LIMIT + 1).chunked(&[65_536])).assert_refused(413, "too_large");
    of_size(LIMIT + 1).send_head_only(hookgate.address()).assert_refused(413, "too_large");
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_configured_limit_holds_to_the_byte() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).server("max_body = \"1KiB\"").start();
    hookgate.send(&of_size(1024)).assert_forwarded(200);
    hookgate.send(&of_size(1024).chunked(&[100])).assert_forwarded(200);
    hookgate.send(&of_size(1025).chunked(&[100])).assert_refused(413, "too_large");
    of_size(1025).send_head_only(hookgate.address()).assert_refused(413, "too_large");
    assert_eq!(upstream.requests().len(), 2);
}

/// A delivery may come in any number of pieces; the head too.
#[test]
fn a_request_in_single_bytes_is_the_same_request() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    let mut connection = hookgate.connect();
    for byte in delivery.bytes() {
        connection.send(&[byte]);
    }
    connection.answer().assert_forwarded(200);
    assert_eq!(upstream.only_request().body, delivery.the_body());
}

#[test]
fn pipelined_deliveries_are_answered_in_order() {
    let upstream =
        Upstream::scripted(|request| Reply::answer(200, &[], request.header("pulumi-webhook-id").unwrap()));
    let hookgate = Setup::new(&upstream).start();
    let (one, two) = (Delivery::good().id("one"), Delivery::good().id("two"));
    let mut connection = hookgate.connect();
    connection.send(&[one.bytes(), two.bytes()].concat());
    assert_eq!(connection.answer().text(), "one");
    assert_eq!(connection.answer().text(), "two");
}
