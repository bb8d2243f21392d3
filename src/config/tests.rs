//! Whole files, good and bad. Each of `tests/data/config/invalid/*.toml` has its report beside it; what the valid
//! ones mean is tested where it is told, in `cli::check`.

mod example;
mod expiry;
mod odd;
mod places;
mod queue;

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use hyper::header::HeaderValue;
use proptest::prelude::*;
use tracing_subscriber::EnvFilter;

use super::*;
use crate::{
    files::ReadError,
    ingress::{TrustedProxies, settings as server},
    server::{limits::ConnectionLimits, listener},
    webhook::{
        event::{EVENTS, Group, KINDS},
        filter::KindCheck,
    },
};

const FOLDER: &str = "tests/data/config";

/// Texts that no report and no description may repeat.
const SECRETS: [&str; 6] = [
    "pulumi-webhook-test-secret",
    "another-webhook-test-secret",
    "fifteen-bytes-!",
    "upstream-token",
    "the-secret-itself-must-not-be-repeated",
    "hidden",
];

/// The environment of the files under test.
fn test_variable(name: &str) -> Option<OsString> {
    let value = match name {
        "GOOD_SECRET" => "pulumi-webhook-test-secret",
        "SHORT_SECRET" => "fifteen-bytes-!",
        "EMPTY" => "",
        "TOKEN" => "upstream-token",
        "BROKEN" => "a\nb",
        _ => return None,
    };
    Some(value.into())
}

/// 2026-06-01T00:00:00Z.
fn test_now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_272_000)
}

fn parse(text: &str) -> Result<Config, Report> {
    Config::parse_in(Path::new("hookgate.toml"), text, test_now(), &test_variable)
}

/// The report about an invalid file.
fn report(path: &Path) -> String {
    let parsed = match str::from_utf8(&fs::read(path).unwrap()) {
        Ok(text) => Config::parse_in(path, text, test_now(), &test_variable),
        Err(_) => Config::load(path),
    };
    format!("{}\n", parsed.expect_err(&path.display().to_string()))
}

fn invalid_files() -> Vec<PathBuf> {
    let paths = fs::read_dir(Path::new(FOLDER).join("invalid")).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

#[test]
fn every_invalid_file_is_reported_as_stands_beside_it() {
    let files = invalid_files();
    for path in &files {
        let report = report(path);
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap();
        assert_eq!(report, expected, "{}", path.display());
        assert!(!SECRETS.iter().any(|secret| report.contains(secret)), "{report}");
    }
    assert_eq!(files.len(), 29);
}

#[test]
#[ignore = "writes the expected reports anew: for a change of wording, with a look at the difference"]
fn write_expected_reports() {
    for path in invalid_files() {
        fs::write(path.with_extension("txt"), report(&path)).unwrap();
    }
}

/// `KEY: TEXT` of each mistake in a text.
fn mistakes(text: &str) -> Vec<String> {
    let told = |mistake: &Mistake| format!("{}: {}", mistake.key, mistake.text);
    parse(text).err().map(|report| report.mistakes().iter().map(told).collect()).unwrap_or_default()
}

/// A good file with something before its first webhook.
fn with(head: &str) -> String {
    head.to_owned()
        + r#"
[[webhook]]
path = "/webhooks/pulumi"
secret = { env = "GOOD_SECRET" }
events = ["environments"]
[[webhook.destination]]
url = "http://127.0.0.1:3000/"
"#
}

#[test]
fn absent_keys_have_the_defaults_of_their_settings() {
    let config = parse(&with("")).unwrap();
    assert_eq!(config.server, server::Settings::default());
    assert_eq!(config.ops, ops::Settings::default());
    assert_eq!(config.log, log::Settings::default());
    assert_eq!(config.dedupe, dedupe::Settings::default());
    let [webhook] = &config.webhooks[..] else { panic!("one webhook") };
    assert_eq!(webhook.settings.name, "webhooks-pulumi");
    assert_eq!(webhook.secrets[0].name, "GOOD_SECRET");
    assert_eq!(webhook.settings.filter.kind_check, KindCheck::Enforce);
    assert!(webhook.scope.is_none() && webhook.settings.filter.organization.is_none());
    let [destination] = &webhook.settings.destinations[..] else { panic!("one destination") };
    assert_eq!((destination.name.as_str(), destination.timeout), ("default", Duration::from_secs(10)));
    assert!(destination.headers.is_empty() && destination.ca.is_none() && destination.events.is_none());
    assert_eq!(config.files, [Path::new("hookgate.toml")]);
}

#[test]
fn every_key_is_read() {
    let path = Path::new(FOLDER).join("valid/everything.toml");
    let text = fs::read_to_string(&path).unwrap();
    let config = Config::parse_in(&path, &text, test_now(), &test_variable).unwrap();
    let server = server::Settings {
        listen: listener::Address::Tcp("127.0.0.1:1".parse().unwrap()),
        listen_mode: 0o600,
        trusted_proxies: TrustedProxies::new(
            ["10.0.0.0/8", "fd00::1/128"].map(|network| network.parse().unwrap()),
        ),
        connections: ConnectionLimits {
            max_header: 32 << 10,
            max_connections: 7,
            header_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(120),
        },
        max_body: 2 << 20,
        max_inflight_bytes: 128_000_000,
        body_timeout: Duration::from_secs(90),
        drain_timeout: Duration::ZERO,
    };
    assert_eq!(config.server, server);
    assert_eq!(config.ops.listen, "[::1]:2".parse().unwrap());
    assert_eq!(config.log, log::Settings { format: log::Format::Text, level: "warn,hookgate=debug".into() });
    assert_eq!(config.dedupe.window, Duration::from_secs(3600));

    let webhook = &config.webhooks[0];
    let filter = &webhook.settings.filter;
    assert_eq!((webhook.settings.name.as_str(), webhook.settings.path.as_str()), ("esc", "/hooks/%C3%BC"));
    assert_eq!(filter.organization.as_deref(), Some("acme"));
    assert_eq!(filter.kind_check, KindCheck::Warn);
    assert!(filter.environments.as_ref().unwrap().match_name("website/dev"));
    assert!(filter.tags.as_ref().unwrap().match_name("release-7"));
    assert_eq!(filter.events.kinds(), ["environment"]);
    let key = &webhook.settings.verifier.keys()[0];
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_801_353_600);
    assert_eq!((key.name(), key.expires()), ("main", Some(end)));

    let destination = &webhook.settings.destinations[0];
    assert_eq!(destination.name, "app");
    assert_eq!(destination.timeout, Duration::from_millis(250));
    assert_eq!(destination.target.request.to_string(), "/in?token=hidden");
    assert_eq!(destination.headers.len(), 3);
    for (name, value) in
        [("authorization", "Bearer upstream-token"), ("x-tenant", "acme"), ("x-api-key", "upstream-token")]
    {
        let found = &destination.headers[name];
        assert_eq!(found, HeaderValue::from_static(value));
        assert!(found.is_sensitive(), "{name}");
    }
    assert!(destination.ca.is_some() && destination.identity.is_some() && config.tls.is_some());
    assert_eq!(destination.events.as_ref().unwrap().filters().count(), 1);

    let named = ["server.crt", "server.key", "secret", "authorization", "ca.pem"]
        .map(|name| Path::new(FOLDER).join("files").join(name));
    assert_eq!(config.files, [&[path][..], &named].concat());
    // Nothing that a debugger or a log prints repeats a secret.
    let printed = format!("{config:?}");
    assert!(
        !printed.contains("pulumi-webhook-test-secret") && !printed.contains("upstream-token"),
        "{printed}"
    );
}

#[test]
fn networks_of_proxies() {
    for (list, what) in [
        ("[\"10.0.0.1/8\"]", Some("`10.0.0.1/8` has more digits than its prefix: write \"10.0.0.0/8\"")),
        (
            "[\"10.0.0.0/33\"]",
            Some(
                "`10.0.0.0/33` is not a network: write an address, or one with the length of its prefix such as \"10.0.0.0/8\"",
            ),
        ),
        (
            "[\"ingress\"]",
            Some(
                "`ingress` is not a network: write an address, or one with the length of its prefix such as \"10.0.0.0/8\"",
            ),
        ),
        ("\"10.0.0.0/8\"", Some("must be a list: write [\"10.0.0.0/8\"]")),
        ("[\"10.0.0.0/8\", \"192.0.2.1\", \"2001:db8::/32\", \"::1\"]", None),
        ("[]", None),
    ] {
        let found = mistakes(&with(&format!("server.trusted_proxies = {list}")));
        assert_eq!(found.len(), usize::from(what.is_some()), "{found:?}");
        for (found, what) in found.iter().zip(what) {
            assert!(found.contains(what), "{found}");
        }
    }
}

#[test]
fn addresses_to_listen_on() {
    for (text, what) in [
        (":8080", r#"`:8080` has no IP address: write "0.0.0.0:8080", or "[::]:8080" for IPv6 as well"#),
        ("localhost:1", r#"must be an IP address, not a name: write "127.0.0.1:1""#),
        ("::1:8080", r#"an IPv6 address needs brackets: write "[::1]:8080""#),
        ("[::1]", r#"has no port: write "[::1]:8080""#),
        (
            "*:8080",
            r#"must have an IP address instead of `*`: write "0.0.0.0:8080", or "[::]:8080" for IPv6 as well"#,
        ),
        ("127.0.0.1", r#"has no port: write "127.0.0.1:8080""#),
        (
            "app:80",
            r#"`app:80` is not an address to listen on: write "IP:PORT" such as "0.0.0.0:8080", or "unix:/PATH""#,
        ),
        (
            "0.0.0.0:65536",
            r#"`0.0.0.0:65536` is not an address to listen on: write "IP:PORT" such as "0.0.0.0:8080", or "unix:/PATH""#,
        ),
        (
            "unix:http.sock",
            r#"the path of a unix socket must be absolute: write "unix:/run/hookgate/http.sock""#,
        ),
    ] {
        let found = mistakes(&with(&format!("server.listen = \"{text}\"")));
        assert_eq!(found, [format!("server.listen: {what}")], "{text}");
    }
    for text in ["127.0.0.1:0", "[::]:8080", "unix:/run/x.sock"] {
        let config = parse(&with(&format!("server.listen = \"{text}\""))).unwrap();
        assert_eq!(config.server.listen.to_string(), text);
    }
    let long = format!("server.listen = \"unix:/{}\"", "x".repeat(107));
    assert_eq!(mistakes(&with(&long)).len(), 1);
    assert_eq!(mistakes(&with("ops.listen = \"unix:/run/x.sock\"")).len(), 1);
    // The other listener's default counts too; a port that the kernel chooses does not.
    assert_eq!(
        mistakes(&with("server.listen = \"0.0.0.0:9090\"")),
        ["server.listen: is also the address of `ops.listen`: choose another port for one of them"]
    );
    assert!(parse(&with("server.listen = \"0.0.0.0:0\"\nops.listen = \"0.0.0.0:0\"")).is_ok());
    assert!(parse(&with("server.listen = \"127.0.0.1:80\"\nops.listen = \"127.0.0.2:80\"")).is_ok());
}

#[test]
fn a_log_level_is_a_filter_that_logs_something() {
    for level in ["info", "WARN", "off", "hookgate=debug", "warn,hookgate=trace", "info,hyper::proto=debug"] {
        assert!(parse(&with(&format!("log.level = \"{level}\""))).is_ok(), "{level}");
        assert!(EnvFilter::builder().parse(level).is_ok());
    }
    for level in ["", "infoo", "verbose", "info,debgu", "hookgate=loud", "=[", "hyper"] {
        assert_eq!(mistakes(&with(&format!("log.level = \"{level}\""))).len(), 1, "{level}");
    }
}

#[test]
fn every_name_of_the_vocabulary_can_be_configured() {
    let groups = Group::ALL.into_iter().map(Group::name);
    let names: BTreeSet<_> = groups
        .chain(KINDS.iter().map(|kind| kind.name))
        .chain(EVENTS.iter().map(|event| event.name))
        .collect();
    for name in &names {
        let text = with("").replace("environments", name);
        assert!(parse(&text).is_ok(), "{name}");
    }
    assert!(names.len() > 50);
}

#[test]
fn two_listed_mistakes_in_one_list_are_two_mistakes() {
    let text = with("").replace(r#"["environments"]"#, r#"["a", 1, "b"]"#);
    assert_eq!(mistakes(&text).len(), 1, "a member of another type hides what the names are");
    let text = with("").replace(r#"["environments"]"#, r#"["a", "b"]"#);
    assert_eq!(mistakes(&text).len(), 2);
}

/// A folder of this test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hookgate-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn secrets_are_read_as_they_are() {
    let folder = Folder::new("secrets");
    let path = folder.write("s", b" \xff0123456789abcdef \r\n", 0o600);
    assert_eq!(secret_from_file(&path, false).unwrap().as_key(), b" \xff0123456789abcdef ");
    let long = folder.write("long", &[b'x'; (64 << 10) + 1], 0o600);
    assert!(matches!(
        secret_from_file(&long, false),
        Err(SecretSourceError::File(ReadError { why: Why::TooLong(_), .. }))
    ));
    assert!(matches!(
        secret_from_file(&folder.0, false),
        Err(SecretSourceError::File(ReadError { why: Why::Folder, .. }))
    ));
    let unset = bytes_from_env("HOOKGATE_TEST_THAT_IS_NEVER_SET").unwrap_err();
    assert_eq!(unset.to_string(), "the environment variable HOOKGATE_TEST_THAT_IS_NEVER_SET is not set");
}

#[test]
fn a_file_that_cannot_be_read_is_one_mistake() {
    let report = Config::load(Path::new("tests/data/config/no-such.toml")).unwrap_err();
    assert_eq!(
        report.to_string(),
        "tests/data/config/no-such.toml: the configuration cannot be read: No such file or directory (os error 2); \
         write one there, or name another with --config FILE or HOOKGATE_CONFIG"
    );
    assert!(Config::load(Path::new("tests")).is_err());
}

#[test]
fn the_flag_names_the_file_before_anything_else() {
    assert_eq!(find(Some("a.toml".into())), Path::new("a.toml"));
}

/// Replaces the value of each key in turn by values of every type: nothing may be taken for what it is not.
#[test]
fn no_key_takes_a_value_of_another_type() {
    let keys = ["everything", "queue", "nats"].map(|name| {
        keys_that_take_no_other_type(&Path::new(FOLDER).join("valid").join(name).with_extension("toml"))
    });
    assert_eq!(keys, [33, 20, 10]);
}

/// How many they are.
fn keys_that_take_no_other_type(path: &Path) -> usize {
    let good = fs::read_to_string(path).unwrap();
    let mut keys = 0;
    for (number, line) in good.lines().enumerate() {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        keys += 1;
        for value in ["{}", "[]", "1.5", "-1", "07:32:00", "\"\"", "true", "[[{}]]", "{ x = 1 }"] {
            // An empty table of headers adds none, and one of backoffs leaves the defaults.
            if ["headers", "backoff"].contains(&key) && value == "{}" {
                continue;
            }
            // An empty list of proxies is the default.
            if key == "trusted_proxies" && value == "[]" {
                continue;
            }
            let changed: Vec<_> = good
                .lines()
                .enumerate()
                .map(|(n, old)| if n == number { format!("{key} = {value}") } else { old.to_owned() })
                .collect();
            let Err(report) = parse(&changed.join("\n")) else { panic!("{key} = {value} is taken") };
            let place = |mistake: &Mistake| mistake.place.is_some_and(|place| place.line == number + 1);
            assert!(report.mistakes().iter().any(place), "{key} = {value}: {report}");
        }
    }
    keys
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_a_report(text in any::<String>()) {
        if let Err(report) = parse(&text) {
            prop_assert!(!report.mistakes().is_empty());
            prop_assert_eq!(report.to_string().lines().count(), report.mistakes().len());
        }
    }

    #[test]
    fn any_damage_to_a_file_is_survived(
        start in any::<prop::sample::Index>(),
        length in 0_usize..30,
        put in prop_oneof!["[a-z_.=\\[\\]{}\"', \n]{0,12}", ".{0,6}"],
    ) {
        let good = include_str!("../../tests/data/config/valid/everything.toml");
        let bounds: Vec<_> = good.char_indices().map(|(at, _)| at).collect();
        let at = start.index(bounds.len());
        let end = bounds.get(at + length).copied().unwrap_or(good.len());
        let text = [good.get(..bounds[at]).unwrap(), &put, good.get(end..).unwrap()].concat();
        if let Err(report) = parse(&text) {
            let lines = text.split('\n').count();
            for mistake in report.mistakes() {
                prop_assert!(mistake.place.is_some_and(|place| (1..=lines).contains(&place.line)), "{}", mistake);
            }
        }
    }
}
