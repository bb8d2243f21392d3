//! TLS on either side: towards senders, towards upstreams, and certificates that are exchanged while serving.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::Arc,
};

use rustls::{
    ALL_VERSIONS, ProtocolVersion, ServerConfig,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};

use crate::support::{
    Answer, Connection, Delivery, Hookgate, Instant, Reply, SECRET, Setup, TempDir, Upstream, Webhook,
    eventually, faketime, program, run,
    tls::{self, Authority, Hello, Pair},
};

const SERVER_TLS: &str = "tls = { cert = \"{dir}/tls.crt\", key = \"{dir}/tls.key\" }";

/// A hookgate that speaks TLS towards senders.
fn setup(upstream: &Upstream, pair: &Pair) -> Setup {
    Setup::new(upstream).file("tls.crt", &pair.cert).file("tls.key", &pair.key).server(SERVER_TLS)
}

fn deliver(connection: &mut Connection, delivery: &Delivery) -> Answer {
    connection.send(&delivery.bytes());
    connection.answer()
}

/// Opens a connection and sends a good delivery.
#[track_caller]
fn open(hookgate: &Hookgate, authority: &Authority) -> (Connection, Hello) {
    let (mut connection, hello) = authority.open(hookgate.address()).unwrap();
    deliver(&mut connection, &Delivery::good()).assert_forwarded(200);
    (connection, hello)
}

#[test]
fn deliveries_come_in_over_tls_1_2_and_1_3() {
    let authority = Authority::new("a");
    let pair = authority.issue(&["localhost"]);
    let upstream = Upstream::always(Reply::ok());
    let hookgate = setup(&upstream, &pair).start();
    for (version, number) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        for alpn in [&["http/1.1"][..], &["h2", "http/1.1"], &[]] {
            let config = authority.client(&[version], alpn);
            let (mut connection, hello) = tls::open(hookgate.address(), config).unwrap();
            assert_eq!(hello.version, number);
            assert_eq!(hello.alpn, alpn.last().map(|name| name.as_bytes().to_vec()));
            assert_eq!(hello.certificate, pair.der());
            // Twice: the connection is kept.
            for _ in 0..2 {
                deliver(&mut connection, &Delivery::good()).assert_forwarded(200);
            }
            deliver(&mut connection, &Delivery::good().unsigned()).assert_refused(401, "missing_signature");
            deliver(&mut connection, &Delivery::good().method("PUT"))
                .assert_refused(405, "method_not_allowed");
            connection.assert_closed();
        }
    }
    assert_eq!(upstream.requests().len(), 12);
}

#[test]
fn openssl_gets_through() {
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let hookgate = setup(&upstream, &authority.issue(&["localhost"])).file("ca.pem", authority.pem()).start();
    for version in ["-tls1_2", "-tls1_3"] {
        let crate::support::Address::Tcp(address) = hookgate.address() else { panic!("TCP") };
        let ca = hookgate.dir().join("ca.pem");
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "localhost", version])
            .args(["-CAfile", ca.to_str().unwrap(), "-connect", &address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let delivery = Delivery::good().and("Connection", "close");
        client.stdin.take().unwrap().write_all(&delivery.bytes()).unwrap();
        let output = client.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.starts_with("HTTP/1.1 200 "), "{version}: {output:?}");
        assert!(said.contains("Hookgate-Outcome: forwarded"), "{version}: {said}");
    }
}

#[test]
fn a_client_that_wants_http_2_only_is_refused_in_the_handshake() {
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let hookgate = setup(&upstream, &authority.issue(&["localhost"])).start();
    let refused = tls::open(hookgate.address(), authority.client(ALL_VERSIONS, &["h2"])).unwrap_err();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    open(&hookgate, &authority);
}

#[test]
fn plain_http_on_the_tls_port_gets_no_answer_and_the_connection_is_closed() {
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let hookgate = setup(&upstream, &authority.issue(&["localhost"])).start();
    for bytes in
        [Delivery::good().bytes(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 100], vec![0xff; 100_000]]
    {
        let mut connection = hookgate.connect();
        connection.send(&bytes);
        let mut said = String::new();
        connection.read_all(&mut said);
        assert!(!said.contains("HTTP"), "{said:?}");
    }
    open(&hookgate, &authority);
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_handshake_that_does_not_end_is_ended_by_header_timeout() {
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let hookgate =
        setup(&upstream, &authority.issue(&["localhost"])).server("header_timeout = \"300ms\"").start();
    // Nothing at all; the beginning of a record; the beginning of a ClientHello.
    for begun in [&b""[..], b"\x16\x03", b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03"] {
        let start = Instant::now();
        let mut connection = hookgate.connect();
        connection.send(begun);
        connection.assert_closed();
        assert!(start.elapsed().as_millis() >= 300, "{begun:?} {:?}", start.elapsed());
    }
    // Once the handshake is over, the time for the head begins.
    let (mut connection, _) = authority.open(hookgate.address()).unwrap();
    connection.send(b"POST /hook HTTP/1.1\r\n");
    connection.assert_closed();
    open(&hookgate, &authority);
}

#[test]
fn a_handshake_that_does_not_end_does_not_hold_up_the_drain() {
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate =
        setup(&upstream, &authority.issue(&["localhost"])).server("header_timeout = \"1h\"").start();
    let mut waiting = hookgate.connect();
    waiting.send(b"\x16\x03\x01");
    hookgate.wait_for_metric("hookgate_connections", &[], 1.0);
    hookgate.signal("TERM");
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    waiting.assert_closed();
}

#[test]
fn the_certificate_is_exchanged_while_connections_live_on() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let upstream = Upstream::always(Reply::ok());
    let first = old.issue(&["localhost"]);
    let hookgate = setup(&upstream, &first).start();
    let write = |name: &str, content: &str| fs::write(hookgate.dir().join(name), content).unwrap();
    let (mut kept, hello) = open(&hookgate, &old);
    assert_eq!(hello.certificate, first.der());

    // A key of another certificate: nothing changes, for whoever comes.
    let second = new.issue(&["localhost"]);
    write("tls.key", &second.key);
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    let line = hookgate.wait_for_log(|line| line["mistake"].is_string());
    assert!(line["mistake"].as_str().unwrap().contains("server.tls: the key in "), "{line}");
    deliver(&mut kept, &Delivery::good()).assert_forwarded(200);
    assert_eq!(open(&hookgate, &old).1.certificate, first.der());

    // Its certificate too: new connections get it, the old one goes on.
    write("tls.crt", &second.cert);
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
    assert_eq!(open(&hookgate, &new).1.certificate, second.der());
    assert!(old.open(hookgate.address()).is_err());
    deliver(&mut kept, &Delivery::good()).assert_forwarded(200);

    // Half a file, and none.
    write("tls.crt", second.cert.split_at(second.cert.len() / 2).0);
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    assert_eq!(open(&hookgate, &new).1.certificate, second.der());
    write("tls.crt", &second.cert);
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
    fs::remove_file(hookgate.dir().join("tls.key")).unwrap();
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    assert_eq!(open(&hookgate, &new).1.certificate, second.der());
    deliver(&mut kept, &Delivery::good()).assert_forwarded(200);
}

/// Each file by its path as configured, as long as it is named.
#[test]
fn the_metrics_tell_when_the_certificates_in_force_end() {
    const NAME: &str = "hookgate_certificate_expiry_timestamp_seconds";
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let first = authority.issue_in(&["localhost"], 2020..2090);
    let destination = Webhook::to("https://localhost:1/").destination("ca = \"{dir}/ca.pem\"");
    // A year before the authority itself ends.
    let trusted = format!("{}{}", authority.pem(), authority.issue_in(&["b"], 2020..2095).cert);
    let setup = setup(&upstream, &first).with(destination.at("/other").line("name = \"other\""));
    let hookgate = setup.file("ca.pem", trusted).start();
    let [cert, ca] = ["tls.crt", "ca.pem"].map(|name| hookgate.dir().join(name).display().to_string());
    let (year_2090, year_2091, year_2095) = (3_786_912_000.0, 3_818_448_000.0, 3_944_678_400.0);
    hookgate.wait_for_metric(NAME, &[("file", &cert)], year_2090);
    hookgate.wait_for_metric(NAME, &[("file", &ca)], year_2095);
    assert_eq!(hookgate.metrics().labels(NAME).len(), 2);
    let open = hookgate.scrape("application/openmetrics-text").text();
    for line in [format!("# TYPE {NAME} gauge"), format!("{NAME}{{file=\"{cert}\"}} {year_2090:?}")] {
        assert!(open.lines().any(|seen| seen == line), "{line}: {open}");
    }

    // Another pair in its place: until both files are there, the old one is in force.
    let second = authority.issue_in(&["localhost"], 2020..2091);
    fs::write(hookgate.dir().join("tls.key"), &second.key).unwrap();
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    assert_eq!(hookgate.metrics().value(NAME, &[("file", &cert)]), Some(year_2090));
    fs::write(hookgate.dir().join("tls.crt"), &second.cert).unwrap();
    hookgate.wait_for_metric(NAME, &[("file", &cert)], year_2091);

    // A file that is not named any more.
    let config = fs::read_to_string(hookgate.config()).unwrap();
    let without: Vec<_> = config.lines().filter(|line| !line.starts_with("ca = ")).collect();
    fs::write(hookgate.config(), without.join("\n")).unwrap();
    hookgate.signal("HUP");
    eventually("the file is forgotten", || (hookgate.metrics().labels(NAME).len() == 1).then_some(()));
    hookgate.wait_for_metric(NAME, &[("file", &cert)], year_2091);
}

#[test]
fn switching_tls_on_or_off_needs_a_restart_and_is_said_so() {
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let hookgate = setup(&upstream, &authority.issue(&["localhost"])).start();
    let config = fs::read_to_string(hookgate.config()).unwrap();
    let without: String =
        config.lines().filter(|line| !line.starts_with("tls")).map(|l| format!("{l}\n")).collect();
    fs::write(hookgate.config(), without).unwrap();
    hookgate.signal("HUP");
    hookgate.wait_for_log(|line| line["level"] == "WARN" && line["keys"] == "server.tls");
    open(&hookgate, &authority);
}

/// An upstream with a certificate, and a hookgate in front that trusts `trusted`.
fn towards(config: Arc<ServerConfig>, host: &str, trusted: &Authority) -> (Upstream, Setup) {
    let upstream = Upstream::over_tls(config, Reply::ok());
    let setup = Setup::bare()
        .with(Webhook::to(&upstream.https(host)).destination("ca = \"{dir}/ca.pem\""))
        .file("ca.pem", trusted.pem());
    (upstream, setup)
}

/// Sends a delivery that does not get through, and returns the reason in the log.
#[track_caller]
fn refused(hookgate: &Hookgate, upstream: &Upstream) -> String {
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_refused(502, "upstream_unreachable");
    assert_eq!(upstream.requests().len(), 0);
    let line = hookgate.line_of(delivery.header_value("pulumi-webhook-id"));
    line["reason"].as_str().unwrap().to_owned()
}

#[test]
fn upstreams_are_reached_by_name_and_by_address() {
    let authority = Authority::new("a");
    for (host, name) in [("localhost", "localhost"), ("127.0.0.1", "127.0.0.1")] {
        for version in [&TLS12, &TLS13] {
            let config = authority.issue(&[name]).server(&[version], None);
            let (upstream, setup) = towards(config, host, &authority);
            let hookgate = setup.start();
            let delivery = Delivery::good();
            hookgate.send(&delivery).assert_forwarded(200);
            let request = upstream.only_request();
            assert_eq!(request.body, delivery.the_body());
            assert!(request.header("host").is_some_and(|value| value.starts_with(host)), "{request:?}");
        }
    }
}

#[test]
fn upstreams_that_cannot_prove_who_they_are_are_refused_and_the_log_says_why() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    for (pair, host, words) in [
        (
            ours.issue(&["elsewhere.example"]),
            "localhost",
            "for another name than localhost: it names elsewhere.example. ",
        ),
        (ours.issue(&["localhost"]), "127.0.0.1", "for another name than 127.0.0.1: it names localhost. "),
        (ours.issue(&["127.0.0.1"]), "localhost", "for another name than localhost: it names 127.0.0.1. "),
        (ours.issue_in(&["localhost"], 2020..2021), "localhost", "has expired"),
        (ours.issue_in(&["localhost"], 2110..2120), "localhost", "not valid yet"),
        (other.issue(&["localhost"]), "localhost", "unknown issuer"),
    ] {
        for version in [&TLS12, &TLS13] {
            let (upstream, setup) = towards(pair.server(&[version], None), host, &ours);
            let reason = refused(&setup.start(), &upstream);
            assert!(reason.contains(words), "{words}: {reason}");
            assert_in_words(&reason);
        }
    }
}

/// A certificate as `openssl req -x509` makes it: it signed itself, and is an authority's (CA:TRUE).
fn by_openssl(name: &str, extensions: &[&str], now: Option<&str>) -> Pair {
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-keyout", &path("key"), "-out", &path("cert"), "-subj", "/CN=app"]);
    openssl.args(["-addext", &format!("subjectAltName={name}")]);
    for extension in extensions {
        openssl.args(["-addext", extension]);
    }
    if let Some(now) = now {
        openssl.env("LD_PRELOAD", faketime()).env("FAKETIME", now);
    }
    let output = openssl.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| fs::read_to_string(path(name)).unwrap();
    Pair { cert: read("cert"), key: read("key") }
}

/// Whoever names a certificate as `ca` trusts it to be the service's, even if it is an authority's: this one, under its
/// name and in its time, and no other.
#[test]
fn a_certificate_that_signed_itself_is_trusted_where_it_is_named() {
    let pair = by_openssl("DNS:localhost", &[], None);
    let same_name = by_openssl("DNS:localhost", &[], None);
    let server = by_openssl("DNS:localhost", &["basicConstraints=critical,CA:FALSE"], None);
    let elsewhere = by_openssl("DNS:elsewhere.example", &[], None);
    let nameless = by_openssl("email:app@example.com", &[], None);
    let expired = by_openssl("DNS:localhost", &[], Some("2024-01-01 00:00:00"));
    let early = by_openssl("DNS:localhost", &[], Some("2090-01-01 00:00:00"));
    let start = |pair: &Pair, version, ca: Option<&Pair>| {
        let upstream = Upstream::over_tls(pair.server(&[version], None), Reply::ok());
        let line = ca.map_or("", |_| "ca = \"{dir}/ca.pem\"");
        let setup = Setup::bare().with(Webhook::to(&upstream.https("localhost")).destination(line));
        let hookgate = setup.file("ca.pem", ca.map_or("", |ca| &ca.cert)).start();
        (upstream, hookgate)
    };
    let both = Pair { cert: format!("{}{}", same_name.cert, pair.cert), key: String::new() };
    for version in [&TLS12, &TLS13] {
        for (pair, ca) in [(&pair, &pair), (&pair, &both), (&server, &server)] {
            let (upstream, hookgate) = start(pair, version, Some(ca));
            for _ in 0..2 {
                hookgate.send(&Delivery::good()).assert_forwarded(200);
            }
            assert_eq!(upstream.requests().len(), 2);
        }
        for (pair, ca, words) in [
            (&pair, Some(&same_name), "is an authority's (CA:TRUE)"),
            (&pair, Some(&server), "is an authority's (CA:TRUE)"),
            (&pair, None, "set `ca` to that very file, or make another one with `openssl req -x509"),
            (&server, None, "unknown issuer"),
            (&elsewhere, Some(&elsewhere), "for another name than localhost: it names elsewhere.example"),
            (&nameless, Some(&nameless), "for another name than localhost: it names no host"),
            (&expired, Some(&expired), "has expired, "),
            (&early, Some(&early), "is not valid yet, for "),
        ] {
            let (upstream, hookgate) = start(pair, version, ca);
            let reason = refused(&hookgate, &upstream);
            assert!(reason.contains(words), "{words}: {reason}");
            assert_in_words(&reason);
        }
        // It is not enough to show the certificate: the key belongs to it.
        let config = impostor(&pair, &same_name, version);
        let upstream = Upstream::over_tls(config, Reply::ok());
        let webhook = Webhook::to(&upstream.https("localhost")).destination("ca = \"{dir}/ca.pem\"");
        let hookgate = Setup::bare().with(webhook).file("ca.pem", &pair.cert).start();
        let reason = refused(&hookgate, &upstream);
        assert!(reason.contains("a signature is wrong"), "{reason}");
    }
}

/// A server that shows one certificate and has the key of another.
fn impostor(
    shown: &Pair,
    held: &Pair,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    let provider = rustls::crypto::ring::default_provider();
    let key = PrivateKeyDer::from_pem_slice(held.key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let certified = rustls::sign::CertifiedKey::new(vec![shown.der().into()], key);
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
    Arc::new(builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified))))
}

/// No debug output of a library, no names of its types.
#[track_caller]
fn assert_in_words(reason: &str) {
    const WORDS: [&str; 4] = ["subjectAltName", "basicConstraints", "extendedKeyUsage", "serverAuth"];
    for word in reason.split(|c: char| !c.is_alphanumeric()) {
        let inside = |pair: (char, char)| pair.0.is_lowercase() && pair.1.is_uppercase();
        let is_type = word.chars().zip(word.chars().skip(1)).any(inside);
        assert!(!is_type || WORDS.contains(&word), "{word} in {reason}");
    }
}

/// What else can go wrong in a handshake is said in words, with what to do.
#[test]
fn handshakes_that_fail_are_explained() {
    let ours = Authority::new("ours");
    // What a server answers to a ClientHello, byte for byte.
    let raw = |bytes: &[u8]| Upstream::at_first_byte(bytes);
    let alert = |number: u8| [0x15, 3, 3, 0, 2, 2, number];
    let cases = [
        (raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "is it plain HTTP? Then `url` must begin with http://"),
        (raw(&alert(40)), "no ciphers in common with hookgate, or it demands a client certificate"),
        (raw(&alert(70)), "neither TLS 1.2 nor 1.3"),
        (raw(&alert(80)), "its log may say more"),
        (raw(&alert(112)), "does not serve the name in `url`"),
        (raw(&alert(120)), "does not speak HTTP/1.1"),
        (raw(&alert(47)), "it ended the handshake (TLS alert illegal_parameter)"),
        (raw(b""), "does it speak TLS 1.2 or 1.3?"),
    ];
    for (upstream, words) in &cases {
        let webhook = Webhook::to(&upstream.https("localhost")).destination("ca = \"{dir}/ca.pem\"");
        let hookgate = Setup::bare().with(webhook).file("ca.pem", ours.pem()).start();
        let reason = refused(&hookgate, upstream);
        assert!(reason.contains(words), "{words}: {reason}");
        assert!(reason.contains("at https://localhost:") && reason.contains(" (127.0.0.1:"), "{reason}");
        assert!(reason.contains("the TLS handshake failed: "), "{reason}");
        assert_in_words(&reason);
    }
    // Plain HTTP to a port that speaks TLS, as OpenSSL and rustls answer it.
    let pair = ours.issue(&["localhost"]);
    let upstream = Upstream::over_tls(pair.server(ALL_VERSIONS, None), Reply::ok());
    let url = upstream.https("localhost").replace("https:", "http:");
    let hookgate = Setup::bare().with(Webhook::to(&url)).start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_refused(502, "upstream_bad_answer");
    let line = hookgate.line_of(delivery.header_value("pulumi-webhook-id"));
    assert!(line["reason"].as_str().unwrap().contains("`url` must begin with https://"), "{line}");
}

/// The same from the other side: what is wrong between a sender and the certificate of `server.tls`.
#[test]
fn a_senders_handshake_that_fails_is_explained() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let upstream = Upstream::always(Reply::ok());
    let hookgate = setup(&upstream, &ours.issue(&["localhost"])).start();
    let explained = |words: &str| {
        let line =
            hookgate.wait_for_log(|line| line["reason"].as_str().is_some_and(|text| text.contains(words)));
        assert_in_words(line["reason"].as_str().unwrap());
    };
    assert!(other.open(hookgate.address()).is_err());
    explained("the sender does not trust the certificate of `server.tls`");
    assert!(tls::open(hookgate.address(), ours.client(ALL_VERSIONS, &["h2"])).is_err());
    explained("the sender wants another protocol than HTTP/1.1");
    let mut plain = hookgate.connect();
    plain.send(&Delivery::good().bytes());
    plain.read_all(&mut String::new());
    explained("it does not speak TLS: is it plain HTTP");
    let mut begun = hookgate.connect();
    begun.send(b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03");
    drop(begun);
    explained("the sender hung up in the middle of the handshake");
    open(&hookgate, &ours);
}

#[test]
fn an_upstream_that_demands_a_certificate_gets_the_configured_one() {
    let (ours, clients, other) = (Authority::new("ours"), Authority::new("clients"), Authority::new("other"));
    let with = |setup: Setup, pair: &Pair| {
        setup
            .file("client.crt", &pair.cert)
            .file("client.key", &pair.key)
            .destination("identity = { cert = \"{dir}/client.crt\", key = \"{dir}/client.key\" }")
    };
    for version in [&TLS12, &TLS13] {
        let start =
            || towards(ours.issue(&["localhost"]).server(&[version], Some(&clients)), "localhost", &ours);

        let (upstream, setup) = start();
        let hookgate = with(setup, &clients.issue(&["hookgate"])).start();
        for _ in 0..2 {
            hookgate.send(&Delivery::good()).assert_forwarded(200);
        }
        assert_eq!(upstream.requests().len(), 2);

        let (upstream, setup) = start();
        let reason = refused(&setup.start(), &upstream);
        assert!(reason.contains("client certificate"), "{reason}");

        let (upstream, setup) = start();
        let reason = refused(&with(setup, &other.issue(&["hookgate"])).start(), &upstream);
        assert!(reason.contains("it refuses"), "{reason}");
    }
    // One that does not ask is not told.
    let (upstream, setup) =
        towards(ours.issue(&["localhost"]).server(ALL_VERSIONS, None), "localhost", &ours);
    with(setup, &clients.issue(&["hookgate"])).start().send(&Delivery::good()).assert_forwarded(200);
    upstream.only_request();
}

#[test]
fn a_new_authority_and_a_new_identity_come_into_force() {
    let (ours, clients, other) = (Authority::new("ours"), Authority::new("clients"), Authority::new("other"));
    let config = ours.issue(&["localhost"]).server(ALL_VERSIONS, Some(&clients));
    let (upstream, setup) = towards(config, "localhost", &other);
    let wrong = other.issue(&["hookgate"]);
    let hookgate = setup
        .file("client.crt", &wrong.cert)
        .file("client.key", &wrong.key)
        .destination("identity = { cert = \"{dir}/client.crt\", key = \"{dir}/client.key\" }")
        .start();
    let write = |name: &str, content: &str| fs::write(hookgate.dir().join(name), content).unwrap();
    assert!(refused(&hookgate, &upstream).contains("unknown issuer"));

    write("ca.pem", &ours.pem());
    eventually("the new authority is in force", || {
        refused(&hookgate, &upstream).contains("it refuses").then_some(())
    });

    let right = clients.issue(&["hookgate"]);
    write("client.crt", &right.cert);
    write("client.key", &right.key);
    eventually("the new identity is in force", || {
        (hookgate.send(&Delivery::good()).status == 200).then_some(())
    });

    // What is broken changes nothing.
    write("ca.pem", "-----BEGIN CERTIFICATE-----\n");
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}

#[test]
fn the_platforms_authorities_are_trusted_and_can_be_pointed_to() {
    let authority = Authority::new("a");
    let config = authority.issue(&["localhost"]).server(ALL_VERSIONS, None);
    let upstream = Upstream::over_tls(config, Reply::ok());
    let setup = || {
        let setup = Setup::bare().with(Webhook::to(&upstream.https("localhost")));
        setup.file("roots.pem", authority.pem()).file("none.pem", "")
    };
    let with = setup();
    let roots = with.dir().join("roots.pem");
    let hookgate = with.environment("SSL_CERT_FILE", roots.to_str().unwrap()).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);

    // Those of this machine do not know our authority.
    let hookgate = setup().start();
    hookgate.send(&Delivery::good()).assert_refused(502, "upstream_unreachable");

    let without = setup();
    let output = program()
        .args(["run", "--config", without.write().to_str().unwrap()])
        .env("SSL_CERT_FILE", without.dir().join("none.pem"))
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no root certificates") && said.contains("SSL_CERT_FILE"), "{said}");
}

#[test]
fn send_trusts_the_authorities_that_it_is_told() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let upstream = Upstream::always(Reply::ok());
    let hookgate = setup(&upstream, &ours.issue(&["localhost"]))
        .file("ca.pem", ours.pem())
        .file("other.pem", other.pem())
        .start();
    let crate::support::Address::Tcp(address) = hookgate.address() else { panic!("TCP") };
    let path = |name: &str| hookgate.dir().join(name).to_str().unwrap().to_owned();
    let secret = path("secret");
    let send = |url: &str, ca: &str| {
        let event = "environment_revision_created";
        let output =
            run(&["send", "--event", event, "--secret-file", &secret, "--url", url, "--ca", &path(ca)], b"");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!said.contains(SECRET), "{said}");
        (output.status.code(), said)
    };
    let url = |host: &str| format!("https://{host}:{}/hook", address.port());
    for (url, ca, code, words) in [
        (url("localhost"), "ca.pem", 0, "Hookgate-Outcome: forwarded"),
        (url("localhost"), "other.pem", 1, "unknown issuer"),
        (url("127.0.0.1"), "ca.pem", 1, "another name"),
        (format!("http://{address}/hook"), "ca.pem", 2, "--ca only applies to https URLs"),
        (url("localhost"), "secret", 2, "no PEM certificate"),
        (url("localhost"), "missing", 2, "No such file"),
    ] {
        let (status, said) = send(&url, ca);
        assert_eq!(status, Some(code), "{url} {ca}: {said}");
        assert!(said.contains(words), "{url} {ca}: {said}");
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_certificate_that_cannot_be_used_keeps_the_service_from_starting() {
    let authority = Authority::new("a");
    let upstream = Upstream::always(Reply::ok());
    let pair = authority.issue(&["localhost"]);
    for (cert, key, words) in [
        ("", pair.key.as_str(), "holds no certificate"),
        (&pair.cert, "", "holds no private key"),
        (&pair.cert, &authority.issue(&["localhost"]).key, "does not belong to the first certificate"),
    ] {
        let setup = setup(&upstream, &Pair { cert: cert.to_owned(), key: key.to_owned() });
        for command in ["check", "run"] {
            let output = run(&[command, "--config", setup.write().to_str().unwrap()], b"");
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("server.tls") && said.contains(words), "{said}");
        }
    }
}
