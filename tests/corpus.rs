//! Hands every committed input of the fuzz targets to the targets' own functions: see `fuzz/README.md`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test may fail by a panic, in its helpers too"
)]

#[expect(unreachable_pub, reason = "it is a crate of its own elsewhere")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::{
    fs,
    path::{Path, PathBuf},
};

use fuzz::{TARGETS, path::SIGN_HERE};
use hookgate::webhook::event::EVENTS;

/// An input with its file's name.
type Input = (String, Vec<u8>);

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// The committed inputs of a target by name. What else libFuzzer has put there is its own.
fn inputs(target: &str) -> Vec<Input> {
    let mut inputs: Vec<_> = fs::read_dir(corpus(target))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .filter(|(name, _)| ["event-", "found-", "seed-"].iter().any(|kept| name.starts_with(kept)))
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_keeps_the_promises() {
    let folders = fs::read_dir(corpus("")).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a folder of inputs for each target");
    let mut bytes = 0;
    for (target, run) in TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() >= 10, "{target} has {} inputs only", inputs.len());
        for (name, input) in inputs {
            println!("{target}/{name}");
            run(&input);
            bytes += input.len();
        }
    }
    // Small enough to be kept in the repository.
    assert!((10_000..256 << 10).contains(&bytes), "{bytes} bytes");
}

#[test]
fn every_event_is_among_the_seeds() {
    for (target, inputs) in seeds() {
        for (name, input) in inputs {
            let there = fs::read(corpus(target).join(&name));
            assert!(
                there.is_ok_and(|there| there == input),
                "{target}/{name} is not as `write_the_seeds` has it"
            );
        }
    }
}

#[test]
fn the_path_is_not_refused_at_its_door() {
    let mut seen = 0;
    for (name, input) in inputs("path") {
        let expected = match &*name {
            "seed-two" => 2,
            // Behind chunks the connection ends.
            "seed-chunked" | "seed-narrow" | "seed-copy" | "seed-conflict" | "seed-query"
            | "seed-charset" | "seed-trace" => 1,
            "seed-unsigned" | "seed-no-signature" | "seed-length-twice" | "seed-bare-lf" => 0,
            name if name.starts_with("event-") => 1,
            _ => continue,
        };
        assert_eq!(fuzz::path::forwarded(&input), expected, "{name}");
        seen += 1;
    }
    assert_eq!(seen, EVENTS.len() + 12);
}

#[test]
#[ignore = "it writes the seeds; for when an event is added"]
fn write_the_seeds() {
    for (target, inputs) in seeds() {
        fs::create_dir_all(corpus(target)).unwrap();
        for (name, input) in inputs {
            fs::write(corpus(target).join(name), input).unwrap();
        }
    }
}

/// The inputs that fuzzing begins with, by target, with their names.
fn seeds() -> Vec<(&'static str, Vec<Input>)> {
    let mut payloads = Vec::new();
    let mut requests = Vec::new();
    for event in EVENTS {
        let (kind, body) = (event.sample_kind(), event.sample_body());
        payloads.push((format!("event-{}", event.name), format!("{kind}\n{body}").into_bytes()));
        requests.push((format!("event-{}", event.name), request("/open", event.name, kind, &body)));
    }
    requests.extend(connections());
    let named = |texts: &[&str]| -> Vec<Input> {
        (1..).zip(texts).map(|(number, text)| (format!("seed-{number:02}"), (*text).into())).collect()
    };
    vec![
        ("config", named(CONFIGS)),
        ("framing", connections()),
        ("globs", named(GLOBS)),
        ("headers", named(HEADERS)),
        ("path", requests),
        ("payload", payloads),
        ("signature", signatures()),
        ("target", named(URLS)),
    ]
}

fn request(path: &str, id: &str, kind: &str, body: &str) -> Vec<u8> {
    let (sign_here, length) = (str::from_utf8(SIGN_HERE).unwrap(), body.len());
    format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nPulumi-Webhook-Id: {id}\r\n\
         Pulumi-Webhook-Kind: {kind}\r\nPulumi-Webhook-Signature: {sign_here}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Connections that are odd in one way each.
fn connections() -> Vec<Input> {
    let body = EVENTS[0].sample_body();
    let good = |path: &str, id: &str| request(path, id, EVENTS[0].sample_kind(), &body);
    let plain = String::from_utf8(good("/open", "a")).unwrap();
    let length = format!("Content-Length: {}", body.len());
    let swap = |what: &str, with: &str| {
        assert!(plain.contains(what), "{what}");
        plain.replacen(what, with, 1).into_bytes()
    };
    let chunked = {
        let (first, second) = body.split_at(10);
        let chunks =
            format!("a\r\n{first}\r\n{:x};x=y\r\n{second}\r\n0\r\nX-Trailer: z\r\n\r\n", second.len());
        plain.replace(&length, "Transfer-Encoding: chunked").replace(&body, &chunks).into_bytes()
    };
    let unsigned = plain.replace(str::from_utf8(SIGN_HERE).unwrap(), &"0".repeat(64)).into_bytes();
    [
        ("two", [good("/open", "a"), good("/open", "b")].concat()),
        ("copy", [good("/open", "a"), good("/open", "a")].concat()),
        (
            "conflict",
            [good("/open", "a"), request("/open", "a", "ping", &EVENTS.last().unwrap().sample_body())]
                .concat(),
        ),
        ("narrow", good("/narrow", "a")),
        ("chunked", [chunked, good("/open", "b")].concat()),
        ("unsigned", unsigned),
        ("no-signature", swap("Pulumi-Webhook-Signature", "X-Nothing")),
        ("no-id", swap("Pulumi-Webhook-Id", "X-Nothing")),
        ("no-kind", swap("Pulumi-Webhook-Kind", "X-Nothing")),
        ("two-ids", swap("Host: h", "Host: h\r\nPulumi-Webhook-Id: b")),
        ("not-found", swap("/open", "/closed")),
        ("get", swap("POST", "GET")),
        ("head", swap("POST", "HEAD")),
        ("query", swap("/open", "/open?a=b")),
        ("absolute", swap("/open", "http://h/open")),
        ("connect", swap("POST /open", "CONNECT h:80")),
        ("http-1-0", swap("HTTP/1.1", "HTTP/1.0")),
        ("http-2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("no-host", swap("Host: h\r\n", "")),
        ("two-hosts", swap("Host: h", "Host: h\r\nHost: i")),
        ("expect", swap("Host: h", "Host: h\r\nExpect: 100-continue")),
        ("upgrade", swap("Host: h", "Host: h\r\nConnection: upgrade\r\nUpgrade: websocket")),
        ("close", [swap("Host: h", "Host: h\r\nConnection: close"), good("/open", "b")].concat()),
        ("gzip", swap("Host: h", "Host: h\r\nContent-Encoding: gzip")),
        ("text", swap("application/json", "text/plain")),
        ("charset", swap("application/json", "Application/JSON; charset=utf-8")),
        (
            "trace",
            swap(
                "Host: h",
                "Host: h\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ),
        ("length-twice", swap(&length, &format!("{length}\r\n{length}"))),
        ("length-and-chunked", swap(&length, &format!("{length}\r\nTransfer-Encoding: chunked"))),
        ("length-odd", swap("Content-Length: ", "Content-Length: +")),
        ("length-short", swap(&length, "Content-Length: 5")),
        ("length-long", swap(&length, "Content-Length: 70000")),
        ("length-late", swap(&length, "Content-Length: 2000")),
        ("chunked-twice", swap(&length, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity")),
        ("bare-lf", swap("Host: h\r\n", "Host: h\n")),
        ("folded", swap("Host: h", "Host: h\r\n folded")),
        ("nul", swap("Host: h", "Host: h\0")),
        ("length-padded", {
            let inner = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 1 << 20);
            let padded = format!("Content-Length: {:0>120}", inner.len());
            let outer = format!("POST / HTTP/1.1\r\nHost: h\r\n{padded}\r\n\r\n{inner}");
            [outer.into_bytes(), swap(&length, &format!("{length}\r\nTransfer-Encoding: chunked"))].concat()
        }),
        ("empty-lines", [b"\r\n\r\n".to_vec(), good("/open", "a")].concat()),
        ("cut", plain.as_bytes()[..plain.len() - 7].to_vec()),
        ("tls", vec![0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x03]),
    ]
    .map(|(name, bytes)| (format!("seed-{name}"), bytes))
    .into()
}

/// The right signatures, and what is near them.
fn signatures() -> Vec<Input> {
    use fuzz::signature::{BODY, SECRETS};
    use hookgate::webhook::{secret::Secret, signature::sign};

    let mut made = Vec::new();
    for (number, text) in SECRETS.iter().enumerate() {
        let right = sign(&Secret::try_new((*text).into(), false).unwrap(), BODY);
        for (name, value) in [
            ("right", right.clone()),
            ("upper", right.to_uppercase()),
            ("prefix", format!("sha256={right}")),
            ("short", right.chars().skip(1).collect()),
            ("long", format!("{right}0")),
        ] {
            made.push((format!("seed-{name}-{number}"), value.into_bytes()));
        }
    }
    made
}

const GLOBS: &[&str] = &[
    "website/prod\nwebsite/prod",
    "website/*\nwebsite/prod",
    "*/prod\nwebsite/prod",
    "*\n",
    "\n",
    "?\nä",
    "a*b*c\naxxbxxbc",
    "**a?\naab",
    "*a*a*a*b\naaaaaaaaaaaaaaaa",
    "release-*\nrelease-1\n2",
    "a\\*\na*",
    "[ab]\na",
];

const HEADERS: &[&str] = &[
    "",
    "8d001000-1c0e-4d6b-8f5e-0e2f4c1f9a11",
    "environment_revision_tag",
    "ping",
    "a.b_c:d-E",
    "with space",
    "umläut",
    "tab\t",
    "0",
    "application/json",
    "Application/JSON ;\tcharset=\"UTF-8\"",
    "application/json; charset=utf-7",
    "application/json;",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

const URLS: &[&str] = &[
    "http://127.0.0.1:3000/hooks/pulumi",
    "https://app.example/a?b=c",
    "HTTPS://[::1]:8443/x",
    "unix:/run/app.sock:/in?x=1",
    "http://app",
    "http://user:pw@host/",
    "http://user@host/",
    "http://host/a#b",
    "ftp://host/",
    "http://host:99999/",
    "http://host:0/",
    "unix:app.sock:/x",
    "http://a[::1]b:80/",
    "http://[::1]b/",
    "http://host:+80/",
    "/path",
    "",
];

/// `PATH` is a variable that is long enough for a secret and set everywhere.
const CONFIGS: &[&str] = &[
    "[[webhook]]\npath = \"/p\"\nsecret = { env = \"PATH\" }\nevents = [\"environments\"]\n\
     [[webhook.destination]]\nurl = \"http://127.0.0.1:1/x\"\n",
    "[[webhook]]\nname = \"esc\"\npath = \"/p\"\nsecret = [{ name = \"new\", env = \"PATH\" }, { name = \"old\", \
     env = \"PATH\", expires = \"2999-01-31T00:00:00Z\", allow_short = true }]\nevents = [\"*\"]\nscope = \
     \"environment\"\norganization = \"acme\"\nenvironments = [\"website/*\"]\ntags = [\"stable\"]\nkind_check = \
     \"warn\"\n[[webhook.destination]]\nname = \"app\"\nurl = \"unix:/a.sock:/b\"\nformat = \"raw\"\ntimeout = \
     \"10s\"\nheaders = { X-A = \"b\", X-B = { env = \"PATH\" } }\nevents = [\"environment_revision\"]\n",
    "[server]\nlisten = \"0.0.0.0:8080\"\nmax_body = \"1MiB\"\nmax_header = \"16KiB\"\nmax_connections = 1024\n\
     max_inflight_bytes = \"64MiB\"\nheader_timeout = \"5s\"\nbody_timeout = \"10s\"\nidle_timeout = \"1m30s\"\n\
     drain_timeout = \"250ms\"\n[ops]\nlisten = \"[::]:9090\"\n[log]\nformat = \"text\"\nlevel = \
     \"info,hookgate=debug\"\n[dedupe]\nwindow = \"0s\"\n",
    "[server]\nlisten = \"unix:/run/h.sock\"\nmax_body = \"2GiB\"\nunknown = 1\ntls = { cert = \"a\", key = \"b\" }\n",
    "[queue]\nstore = \"sqlite\"\n[console]\nlisten = \"127.0.0.1:9091\"\n",
    "webhook = 1\n",
    "[[webhook]]\n[[webhook]]\nname = \"a\\nb\"\nevents = [\"enviroments\", \"kind:X\", 7]\n",
    "a = \n",
    "\"\\u0000\" = 1\nä = 'b'\n",
    "",
    "[[webhook]]\npath = \"/p\"\nsecret = { env = \"HOOKGATE_NO_SUCH_VARIABLE\" }\nevents = []\n\
     [[webhook.destination]]\nurl = \"http://user:pw@h/\"\nheaders = { Host = \"x\" }\n",
];
