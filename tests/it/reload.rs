//! Reloading: new settings without a dropped request, and the old ones where the new are bad.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::support::{
    Connection, Delivery, Gate, Hookgate, Reply, SECRET, Setup, Upstream, Webhook, eventually,
};

const NEW: &str = "the new secret of this webhook";

/// Writes a file as a whole: whoever looks sees the old one or the new one.
fn replace(path: &std::path::Path, content: &str) {
    let new = path.with_extension("being-written");
    fs::write(&new, content).unwrap();
    fs::rename(&new, path).unwrap();
}

fn edit(hookgate: &Hookgate, from: &str, to: &str) {
    let config = fs::read_to_string(hookgate.config()).unwrap();
    assert!(config.contains(from), "{from} in {config}");
    replace(hookgate.config(), &config.replace(from, to));
}

fn reloads(hookgate: &Hookgate, result: &str) -> f64 {
    hookgate.metrics().value("hookgate_config_reloads_total", &[("result", result)]).unwrap()
}

/// Sends SIGHUP and waits until a reload with this result is counted.
fn reload(hookgate: &Hookgate, result: &str) {
    let before = reloads(hookgate, result);
    hookgate.signal("HUP");
    eventually(&format!("a reload is a {result}"), || (reloads(hookgate, result) > before).then_some(()));
}

fn is_in_force(hookgate: &Hookgate, secret: &str) -> bool {
    match hookgate.send(&Delivery::good().signed_with(secret.as_bytes())).said() {
        (200, "forwarded") => true,
        (401, "bad_signature") => false,
        other => panic!("{other:?}"),
    }
}

fn wait_for_secret(hookgate: &Hookgate, secret: &str) {
    eventually(&format!("{secret} is in force"), || is_in_force(hookgate, secret).then_some(()));
}

fn lines_with(hookgate: &Hookgate, text: &str) -> usize {
    hookgate.log_lines().iter().filter(|line| line.contains(text)).count()
}

/// How many lines have this text once so many reloads have been logged.
fn lines_after(hookgate: &Hookgate, reloads: usize, text: &str) -> usize {
    let logged = || lines_with(hookgate, "the configuration was reloaded") >= reloads;
    eventually("the reloads are logged", || logged().then_some(()));
    lines_with(hookgate, text)
}

/// The part of a configuration with its webhooks.
fn webhooks_of(config: &str) -> &str {
    config.get(config.find("[[webhook]]").unwrap()..).unwrap()
}

fn last_used(hookgate: &Hookgate, secret: &str) -> f64 {
    let labels = [("webhook", "hook"), ("secret", secret)];
    hookgate.metrics().value("hookgate_secret_last_used_timestamp_seconds", &labels).unwrap()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

const BOTH: &str = "[{ name = \"new\", file = \"{dir}/new\" }, { name = \"old\", file = \"{dir}/secret\" }]";

#[test]
fn a_signal_brings_new_events_and_paths_into_force() {
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::ok()));
    let hookgate = Setup::new(&upstream).start();
    let mut held = hookgate.connect();
    held.send(&Delivery::good().bytes());
    upstream.wait_for(1);
    edit(&hookgate, "\"/hook\"", "\"/moved\"");
    hookgate.signal("HUP");
    eventually("the new path is served", || {
        (hookgate.send(&Delivery::good().unsigned().to("/moved")).status == 401).then_some(())
    });
    hookgate.send(&Delivery::good()).assert_refused(404, "not_found");
    assert_eq!(hookgate.metrics().value("hookgate_config_last_reload_success", &[]), Some(1.0));
    // What was under way is finished, on a connection that goes on.
    gate.open();
    held.answer().assert_forwarded(200);
    held.send(&Delivery::good().to("/moved").bytes());
    held.answer().assert_forwarded(200);
}

/// A signal may come as soon as the service says that it is there.
#[test]
fn a_signal_right_after_the_start_is_a_reload_too() {
    let upstream = Upstream::always(Reply::ok());
    for _ in 0..10 {
        let hookgate = Setup::new(&upstream).start();
        hookgate.signal("HUP");
        hookgate.wait_for_metric("hookgate_config_reloads_total", &[("result", "success")], 1.0);
    }
}

#[test]
fn a_changed_configuration_is_noticed() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    edit(&hookgate, "\"/hook\"", "\"/moved\"");
    eventually("the new path is served", || {
        (hookgate.send(&Delivery::good().unsigned().to("/moved")).status == 401).then_some(())
    });
    hookgate.wait_for_metric("hookgate_config_reloads_total", &[("result", "success")], 1.0);
}

#[test]
fn a_changed_secret_file_is_noticed() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    assert!(is_in_force(&hookgate, SECRET));
    fs::write(hookgate.dir().join("secret"), NEW).unwrap();
    wait_for_secret(&hookgate, NEW);
    assert!(!is_in_force(&hookgate, SECRET));
}

/// The layout of a mounted Secret: the names are links to `..data/NAME`, and `..data` is a link to a folder that is
/// never changed. An update makes a new folder and renames a new link over `..data`.
#[test]
fn a_swap_as_kubernetes_makes_it_is_noticed() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream)
        .secret("{ file = \"{dir}/mounted/secret\" }")
        .destination("headers = { Authorization = { file = \"{dir}/mounted/token\" } }");
    let mounted = setup.dir().join("mounted");
    let fill = |version: &str, secret: &str, token: &str| {
        let folder = mounted.join(version);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("secret"), secret).unwrap();
        fs::write(folder.join("token"), token).unwrap();
    };
    fill("..2026_11_23_20_00_00.1", SECRET, "token 1");
    symlink("..2026_11_23_20_00_00.1", mounted.join("..data")).unwrap();
    symlink("..data/secret", mounted.join("secret")).unwrap();
    symlink("..data/token", mounted.join("token")).unwrap();
    let hookgate = setup.start();
    assert!(is_in_force(&hookgate, SECRET));

    fill("..2026_11_23_21_00_00.2", NEW, "token 2");
    symlink("..2026_11_23_21_00_00.2", mounted.join("..data_tmp")).unwrap();
    fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
    fs::remove_dir_all(mounted.join("..2026_11_23_20_00_00.1")).unwrap();
    wait_for_secret(&hookgate, NEW);
    assert!(!is_in_force(&hookgate, SECRET));
    let requests = upstream.requests();
    let tokens: Vec<_> = requests.iter().map(|request| request.header("authorization").unwrap()).collect();
    assert_eq!(tokens, ["token 1", "token 2"]);
    assert_eq!(reloads(&hookgate, "failure"), 0.0);
}

/// Written in place, in two halves: the first half of a secret is long enough to be one.
#[test]
fn half_a_secret_is_never_in_force() {
    use std::io::Write;

    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let (first, second) = NEW.split_at(17);
    let mut file = fs::File::create(hookgate.dir().join("secret")).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    assert!(!is_in_force(&hookgate, first));
    assert!(is_in_force(&hookgate, SECRET));
    file.write_all(second.as_bytes()).unwrap();
    eventually("the whole secret is in force", || {
        assert!(!is_in_force(&hookgate, first));
        is_in_force(&hookgate, NEW).then_some(())
    });
    assert_eq!(reloads(&hookgate, "failure"), 0.0);
}

/// A file that rests half written is a mistake as far as hookgate can recognise it; the old settings stay.
#[test]
fn half_a_configuration_changes_nothing() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let config = fs::read_to_string(hookgate.config()).unwrap().replace("\"/hook\"", "\"/moved\"");
    // In the middle of a list, in the middle of the last section, and nothing at all.
    let cuts = [config.find("\"environments\"").unwrap() + 3, config.find("url =").unwrap(), 0];
    for (round, cut) in (1_u8..).zip(cuts) {
        fs::write(hookgate.config(), config.get(..cut).unwrap()).unwrap();
        hookgate.wait_for_metric("hookgate_config_reloads_total", &[("result", "failure")], f64::from(round));
        assert_eq!(hookgate.metrics().value("hookgate_config_last_reload_success", &[]), Some(0.0));
        hookgate.send(&Delivery::good()).assert_forwarded(200);
    }
    fs::write(hookgate.config(), &config).unwrap();
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
    hookgate.send(&Delivery::good()).assert_refused(404, "not_found");
    hookgate.send(&Delivery::good().to("/moved")).assert_forwarded(200);
}

#[test]
fn deleted_files_change_nothing_and_are_noticed_when_they_come_back() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    for (round, name) in (1_u8..).zip(["secret", "hookgate.toml"]) {
        let path = hookgate.dir().join(name);
        let content = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        hookgate.wait_for_metric("hookgate_config_reloads_total", &[("result", "failure")], f64::from(round));
        assert_eq!(hookgate.metrics().value("hookgate_config_last_reload_success", &[]), Some(0.0));
        let line = hookgate.wait_for_log(|line| {
            line["level"] == "ERROR"
                && line["mistake"].as_str().is_some_and(|mistake| {
                    mistake.contains(path.to_str().unwrap()) && mistake.contains("cannot be read")
                })
        });
        assert!(line["mistake"].as_str().unwrap().contains("No such file"), "{line}");
        assert!(is_in_force(&hookgate, SECRET));
        fs::write(&path, content).unwrap();
        hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
        assert!(is_in_force(&hookgate, SECRET));
    }
}

/// The configuration is changed first, and the secret that it names is written later.
#[test]
fn a_file_that_a_wrong_configuration_names_is_waited_for() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    edit(&hookgate, "/secret\"", "/new\"");
    hookgate.wait_for_metric("hookgate_config_reloads_total", &[("result", "failure")], 1.0);
    assert!(is_in_force(&hookgate, SECRET));
    fs::write(hookgate.dir().join("new"), NEW).unwrap();
    wait_for_secret(&hookgate, NEW);
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
}

/// A destination with a header whose value comes from a pipe, so that the test sees and decides when it is read.
fn with_a_pipe(upstream: &Upstream) -> (Hookgate, std::path::PathBuf) {
    let hookgate = Setup::new(upstream).start();
    let pipe = hookgate.dir().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let header = format!("headers = {{ Authorization = {{ file = {pipe:?} }} }}\nurl = ");
    edit(&hookgate, "url = ", &header);
    hookgate.signal("HUP");
    (hookgate, pipe)
}

/// Waits until the program reads from the pipe.
fn writer(pipe: &std::path::Path) -> fs::File {
    fs::File::options().write(true).open(pipe).unwrap()
}

#[test]
fn what_changes_while_it_is_read_is_read_again() {
    use std::io::Write;

    let upstream = Upstream::always(Reply::ok());
    let (hookgate, pipe) = with_a_pipe(&upstream);
    let mut first = writer(&pipe);
    // The secret has been read before the header.
    replace(&hookgate.dir().join("secret"), NEW);
    first.write_all(b"token 1").unwrap();
    // From now on it is a file, which is read as often as it takes.
    replace(&pipe, "token 2");
    drop(first);
    hookgate.wait_for_metric("hookgate_config_reloads_total", &[("result", "success")], 1.0);
    assert!(is_in_force(&hookgate, NEW));
    assert!(!is_in_force(&hookgate, SECRET));
}

/// What changes while the service starts, after it was read, is noticed too.
#[test]
fn what_changes_during_the_start_is_read_again() {
    use std::io::Write;

    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream).destination("headers = { Authorization = { file = \"{dir}/pipe\" } }");
    let pipe = setup.dir().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let secret = setup.dir().join("secret");
    let starting = thread::spawn(move || setup.start());
    let mut token = writer(&pipe);
    // The secret has been read before the header.
    replace(&secret, NEW);
    token.write_all(b"token").unwrap();
    // From now on it is a file, which is read as often as it takes.
    replace(&pipe, "token");
    drop(token);
    let hookgate = starting.join().unwrap();
    wait_for_secret(&hookgate, NEW);
    assert!(!is_in_force(&hookgate, SECRET));
}

#[test]
fn a_reload_that_hangs_holds_up_neither_requests_nor_the_end() {
    let upstream = Upstream::always(Reply::ok());
    let (mut hookgate, pipe) = with_a_pipe(&upstream);
    let _held = writer(&pipe);
    for _ in 0..20 {
        assert!(is_in_force(&hookgate, SECRET));
    }
    assert_eq!(hookgate.ops("/readyz").status, 200);
    hookgate.signal("TERM");
    assert_eq!(hookgate.wait_exit().code(), Some(0));
}

/// A secret that was withdrawn must not stay in force because what took its place for a moment cannot be read.
#[test]
fn a_reload_that_hangs_is_reported_and_the_next_one_happens() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let secret = hookgate.dir().join("secret");
    for (round, name) in (1_u8..).zip([NEW, "another secret, newer still"]) {
        // Nobody ever writes to this one, nor opens it again once it is replaced.
        let pipe = secret.with_extension("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        fs::rename(&pipe, &secret).unwrap();
        hookgate.signal("HUP");
        hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
        assert!(reloads(&hookgate, "failure") >= f64::from(round));
        let line = hookgate.wait_for_log(|line| {
            line["level"] == "ERROR"
                && line["mistake"].as_str().is_some_and(|mistake| mistake.contains(secret.to_str().unwrap()))
        });
        assert!(line["mistake"].as_str().unwrap().contains("named pipe"), "{line}");
        assert_eq!(hookgate.ops("/readyz").status, 200);
        replace(&secret, name);
        hookgate.signal("HUP");
        hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
        assert!(is_in_force(&hookgate, name));
        assert!(!is_in_force(&hookgate, SECRET));
    }
}

/// Nobody says anything: the file has changed, and then it can be read again.
#[test]
fn what_hung_is_read_again_by_itself() {
    let upstream = Upstream::always(Reply::ok());
    let (hookgate, pipe) = with_a_pipe(&upstream);
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    // The thread that hangs comes back, and what it has read is thrown away.
    drop(writer(&pipe));
    fs::remove_file(&pipe).unwrap();
    fs::write(&pipe, "token").unwrap();
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 1.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(upstream.requests().last().unwrap().header("authorization"), Some("token"));
}

/// A request is judged by the secrets that were in force when its head was complete.
#[test]
fn a_request_keeps_the_secrets_it_began_with() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let (old, new) = (Delivery::good(), Delivery::good().signed_with(NEW.as_bytes()));
    let begun: Vec<_> = [&old, &new]
        .into_iter()
        .map(|delivery| {
            let mut connection = hookgate.connect();
            let body = delivery.body_bytes();
            connection.send(&delivery.head_bytes());
            connection.send(&body[..body.len() / 2]);
            connection
        })
        .collect();
    hookgate.wait_for_metric("hookgate_inflight_requests", &[], 2.0);
    replace(&hookgate.dir().join("secret"), NEW);
    reload(&hookgate, "success");
    assert!(is_in_force(&hookgate, NEW));
    assert!(!is_in_force(&hookgate, SECRET));
    let answers: Vec<_> = begun
        .into_iter()
        .zip([&old, &new])
        .map(|(mut connection, delivery)| {
            let body = delivery.body_bytes();
            connection.send(&body[body.len() / 2..]);
            connection.answer()
        })
        .collect();
    answers[0].assert_forwarded(200);
    answers[1].assert_refused(401, "bad_signature");
}

#[test]
fn a_bad_new_file_leaves_the_old_settings_in_force() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    edit(&hookgate, "\"environments\"", "\"enviroments\"");
    edit(&hookgate, "path = ", "pfad = 1\npath = ");
    edit(&hookgate, "[ops]", "max_body = \"much\"\n[ops]");
    reload(&hookgate, "failure");
    let metrics = hookgate.metrics();
    assert_eq!(metrics.value("hookgate_config_last_reload_success", &[]), Some(0.0));
    assert_eq!(reloads(&hookgate, "success"), 0.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(hookgate.ops("/healthz").status, 200);
    assert_eq!(hookgate.ops("/readyz").status, 200);
    // Every mistake is named with its file, line and key.
    let config = fs::read_to_string(hookgate.config()).unwrap();
    for (key, text) in
        [("server.max_body", "much"), ("webhook.hook.pfad", "pfad"), ("webhook.hook.events", "enviroments")]
    {
        let line = config.lines().position(|line| line.contains(text)).unwrap() + 1;
        let place = format!("{}:{line}:", hookgate.config().display());
        hookgate.wait_for_log(|line| {
            line["level"] == "ERROR"
                && line["mistake"]
                    .as_str()
                    .is_some_and(|mistake| mistake.starts_with(&place) && mistake.contains(key))
        });
    }
    hookgate.wait_for_log(|line| {
        line["level"] == "ERROR"
            && line["message"].as_str().is_some_and(|text| text.contains("stays in force"))
    });
    // A good one heals it.
    edit(&hookgate, "\"enviroments\"", "\"environments\"");
    edit(&hookgate, "pfad = 1\n", "");
    edit(&hookgate, "max_body = \"much\"\n", "");
    reload(&hookgate, "success");
    assert_eq!(hookgate.metrics().value("hookgate_config_last_reload_success", &[]), Some(1.0));
}

/// The rotation as docs/operations.md tells it: the old secret is safe to remove when its time stands still.
#[test]
fn the_metric_says_which_secret_is_still_in_use() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .file("new", NEW)
        .secret("[{ name = \"old\", file = \"{dir}/secret\" }]")
        .start();
    let start = now().as_secs_f64();
    assert_eq!(last_used(&hookgate, "old"), 0.0);
    assert!(is_in_force(&hookgate, SECRET));
    let first = last_used(&hookgate, "old");
    assert!(first >= start && first <= now().as_secs_f64(), "{first}");
    // Both are in force. What the old one has said stays.
    let both = BOTH.replace("{dir}", hookgate.dir().to_str().unwrap());
    let only = format!("[{{ name = \"old\", file = \"{}/secret\" }}]", hookgate.dir().display());
    edit(&hookgate, &only, &both);
    reload(&hookgate, "success");
    assert_eq!(last_used(&hookgate, "new"), 0.0);
    assert_eq!(last_used(&hookgate, "old"), first);
    assert!(is_in_force(&hookgate, SECRET));
    let second = last_used(&hookgate, "old");
    assert!(second > first, "{second}");
    // Pulumi has the new one. A redelivery with the old one is let in, and moves its time.
    assert!(is_in_force(&hookgate, NEW));
    assert!(last_used(&hookgate, "new") > second);
    assert_eq!(last_used(&hookgate, "old"), second);
    assert!(is_in_force(&hookgate, SECRET));
    let third = last_used(&hookgate, "old");
    assert!(third > second, "{third}");
    // A forgery moves nothing.
    let new = last_used(&hookgate, "new");
    hookgate.send(&Delivery::good().forged()).assert_refused(401, "bad_signature");
    assert_eq!((last_used(&hookgate, "old"), last_used(&hookgate, "new")), (third, new));
    // It stands still: removed.
    edit(&hookgate, &format!(", {}", only.trim_matches(['[', ']'])), "");
    reload(&hookgate, "success");
    assert!(is_in_force(&hookgate, NEW));
    assert!(!is_in_force(&hookgate, SECRET));
}

/// Time itself is under test here.
#[test]
fn an_expired_secret_stops_at_its_time_without_a_reload() {
    let upstream = Upstream::always(Reply::ok());
    let end = now().as_secs() + 4;
    let secret = BOTH.replace("/secret\"", &format!("/secret\", expires = \"{}\"", rfc3339(end)));
    let hookgate = Setup::new(&upstream).file("new", NEW).secret(&secret).start();
    assert!(is_in_force(&hookgate, SECRET));
    eventually("the old secret is expired", || {
        let before = now();
        let in_force = is_in_force(&hookgate, SECRET);
        let after = now();
        assert!(in_force || after.as_secs() >= end, "it ended too early");
        assert!(!in_force || before.as_secs() < end, "it ended too late");
        (!in_force).then_some(())
    });
    assert!(is_in_force(&hookgate, NEW));
    assert_eq!((reloads(&hookgate, "success"), reloads(&hookgate, "failure")), (0.0, 0.0));
}

/// Seconds since 1970 as a date and time, by the civil calendar.
fn rfc3339(seconds: u64) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days since the first of March of the year 0, in eras of 400 years.
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[test]
fn dates_are_written_as_they_are() {
    assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
    assert_eq!(rfc3339(951_782_399), "2000-02-28T23:59:59Z");
    assert_eq!(rfc3339(1_795_464_000), "2026-11-23T20:00:00Z");
}

#[test]
fn the_log_level_changes_by_a_reload() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).section("[log]\nlevel = \"info\"").start();
    let id_of = |delivery: &Delivery| delivery.header_value("pulumi-webhook-id").to_owned();
    let logged = Delivery::good();
    hookgate.send(&logged).assert_forwarded(200);
    hookgate.line_of(&id_of(&logged));
    edit(&hookgate, "level = \"info\"", "level = \"warn\"");
    reload(&hookgate, "success");
    let silent = Delivery::good();
    hookgate.send(&silent).assert_forwarded(200);
    hookgate.send(&Delivery::good().body("[]")).assert_refused(422, "bad_payload");
    // The later line is there, so the earlier one is not coming.
    hookgate.wait_for_log(|line| line["outcome"] == "bad_payload");
    assert_eq!(lines_with(&hookgate, &id_of(&silent)), 0);
    edit(&hookgate, "level = \"warn\"", "level = \"info\"");
    reload(&hookgate, "success");
    let again = Delivery::good();
    hookgate.send(&again).assert_forwarded(200);
    hookgate.line_of(&id_of(&again));
}

#[test]
fn webhooks_and_destinations_come_and_go() {
    let (first, second) = (Upstream::always(Reply::ok()), Upstream::always(Reply::ok()));
    let hookgate = Setup::new(&first).start();
    hookgate.send(&Delivery::good().to("/second")).assert_refused(404, "not_found");
    let config = fs::read_to_string(hookgate.config()).unwrap();
    let webhook = webhooks_of(&config).to_owned();
    let other = webhook.replace("\"/hook\"", "\"/second\"").replace(&first.url(), &second.url());
    replace(hookgate.config(), &format!("{config}\n{other}"));
    reload(&hookgate, "success");
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    hookgate.send(&Delivery::good().to("/second")).assert_forwarded(200);
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
    // The first one is gone.
    replace(hookgate.config(), &config.replace(&webhook, &other));
    reload(&hookgate, "success");
    hookgate.send(&Delivery::good()).assert_refused(404, "not_found");
    hookgate.send(&Delivery::good().to("/second")).assert_forwarded(200);
    // The destination of the second one moves.
    edit(&hookgate, &second.url(), &first.url());
    reload(&hookgate, "success");
    hookgate.send(&Delivery::good().to("/second")).assert_forwarded(200);
    assert_eq!((first.requests().len(), second.requests().len()), (2, 2));
}

/// Such keys keep their old values, and the log names them, once.
#[test]
fn keys_that_need_a_restart_are_named() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .server("max_body = \"4KiB\"")
        .section("[dedupe]\nwindow = \"1m\"")
        .section("[log]\nformat = \"json\"")
        .start();
    edit(&hookgate, "\"4KiB\"", "\"64KiB\"");
    edit(&hookgate, "window = \"1m\"", "window = \"2m\"");
    edit(&hookgate, "\"json\"", "\"text\"");
    edit(&hookgate, "[ops]\nlisten = \"127.0.0.1:0\"", "[ops]\nlisten = \"127.0.0.2:0\"");
    reload(&hookgate, "success");
    let line = hookgate.wait_for_log(|line| line["level"] == "WARN" && line["keys"].is_string());
    assert_eq!(line["keys"], "server.max_body, ops.listen, dedupe.window, log.format");
    let large = Delivery::good_with(&"x".repeat(8 << 10));
    hookgate.send(&large).assert_refused(413, "too_large");
    // Nothing new: nothing is said.
    reload(&hookgate, "success");
    edit(&hookgate, "\"/hook\"", "\"/moved\"");
    reload(&hookgate, "success");
    assert_eq!(lines_after(&hookgate, 3, "\"keys\""), 1);
    edit(&hookgate, "max_body", "drain_timeout = \"3s\"\nmax_body");
    reload(&hookgate, "success");
    hookgate.wait_for_log(|line| {
        line["keys"] == "server.max_body, server.drain_timeout, ops.listen, dedupe.window, log.format"
    });
}

#[test]
fn warnings_are_said_once() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream);
    fs::set_permissions(setup.dir().join("secret"), fs::Permissions::from_mode(0o622)).unwrap();
    let hookgate = setup.start();
    reload(&hookgate, "success");
    // It stands elsewhere, and says the same.
    edit(&hookgate, "[[webhook]]", "\n\n[[webhook]]");
    reload(&hookgate, "success");
    assert_eq!(lines_after(&hookgate, 2, "configuration warning"), 1);
    edit(&hookgate, "\"environments\"", "\"environments\", \"change_requests\"");
    reload(&hookgate, "success");
    assert_eq!(lines_after(&hookgate, 3, "configuration warning"), 2);
    // What was mended and is wrong again is said again.
    edit(&hookgate, ", \"change_requests\"", "");
    reload(&hookgate, "success");
    edit(&hookgate, "\"environments\"", "\"environments\", \"change_requests\"");
    reload(&hookgate, "success");
    assert_eq!(lines_after(&hookgate, 5, "configuration warning"), 3);
}

#[test]
fn what_was_delivered_is_remembered_across_a_reload() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_forwarded(200);
    edit(&hookgate, "url = ", "timeout = \"7s\"\nurl = ");
    reload(&hookgate, "success");
    hookgate.send(&delivery).assert_own("duplicate");
    upstream.only_request();
}

/// An unchanged destination keeps its connections; a changed one gets new ones.
#[test]
fn connections_to_an_unchanged_destination_are_kept() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    edit(&hookgate, "\"environments\"", "\"*\"");
    edit(&hookgate, "url = ", "headers = { Authorization = \"other\" }\nurl = ");
    reload(&hookgate, "success");
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(upstream.connections(), 1);
    assert_eq!(upstream.requests()[1].header("authorization"), Some("other"));
    edit(&hookgate, "url = ", "timeout = \"7s\"\nurl = ");
    reload(&hookgate, "success");
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(upstream.connections(), 2);
}

/// 1,000 reloads under load: every answer is counted, none is missing and none is wrong.
#[test]
fn a_thousand_reloads_lose_and_misjudge_nothing() {
    const RELOADS: u32 = 1_000;
    /// Growth of memory from the first hundred reloads to the last.
    const MAX_GROWTH: u64 = 16 << 10;

    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::bare()
        .file("new", NEW)
        .section("[dedupe]\nwindow = \"0s\"")
        .section("[log]\nlevel = \"error,hookgate::app=info\"")
        .with(Webhook::to(&upstream.url()).secret(BOTH).destination("timeout = \"10s\""))
        .start();
    let config = fs::read_to_string(hookgate.config()).unwrap();
    let dir = hookgate.dir().to_str().unwrap();
    let both = BOTH.replace("{dir}", dir);
    let (new, old) = both.trim_matches(['[', ']']).split_once("}, ").unwrap();
    let turned = config.replace(&both, &format!("[{old}, {new}}}]"));
    assert_ne!(config, turned);
    let renewed = config.replace("timeout = \"10s\"", "timeout = \"11s\"");
    // The same webhook with its secrets in either order, with other connections to the service, with a neighbour.
    let neighbour = webhooks_of(&config).replace("\"/hook\"", "\"/other\"");
    let versions = [config.clone(), turned, renewed, format!("{config}\n{neighbour}")];
    let before = hookgate.descriptors();
    let over = AtomicBool::new(false);
    let (good, bad, growth) = thread::scope(|scope| {
        let load = |secret: &'static str, expected: (u16, &'static str), keep: bool| {
            let (hookgate, over) = (&hookgate, &over);
            move || {
                let mut sent = 0_u32;
                let mut kept = None;
                while !over.load(Relaxed) {
                    let connection: &mut Connection = kept.get_or_insert_with(|| hookgate.connect());
                    connection.send(&Delivery::good().signed_with(secret.as_bytes()).bytes());
                    assert_eq!(connection.answer().said(), expected);
                    sent += 1;
                    if !keep {
                        kept = None;
                    }
                }
                sent
            }
        };
        let good: Vec<_> = [(SECRET, true), (SECRET, false), (NEW, true), (NEW, false)]
            .map(|(secret, keep)| scope.spawn(load(secret, (200, "forwarded"), keep)))
            .into_iter()
            .collect();
        let bad: Vec<_> = [true, false]
            .map(|keep| scope.spawn(load("the secret of somebody else", (401, "bad_signature"), keep)))
            .into_iter()
            .collect();
        let mut settled = 0;
        for (round, version) in (1..=RELOADS).zip(versions.iter().cycle()) {
            // The watch may notice the change by itself and count a reload more.
            replace(hookgate.config(), version);
            reload(&hookgate, "success");
            if round == RELOADS / 10 {
                settled = hookgate.memory("VmRSS");
            }
        }
        let growth = hookgate.memory("VmRSS").saturating_sub(settled);
        over.store(true, Relaxed);
        let sum = |threads: Vec<thread::ScopedJoinHandle<'_, u32>>| {
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
        };
        (sum(good), sum(bad), growth)
    });
    println!("{good} good and {bad} forged deliveries, {growth} KiB more after {RELOADS} reloads");
    let counted = |outcome| [("webhook", "hook"), ("outcome", outcome)];
    hookgate.wait_for_metric("hookgate_requests_total", &counted("forwarded"), f64::from(good));
    hookgate.wait_for_metric("hookgate_requests_total", &counted("bad_signature"), f64::from(bad));
    assert_eq!(u32::try_from(upstream.requests().len()), Ok(good));
    assert!(reloads(&hookgate, "success") >= f64::from(RELOADS));
    assert_eq!(reloads(&hookgate, "failure"), 0.0);
    assert!(growth < MAX_GROWTH, "{growth} KiB more");
    // The connections that are kept to the service, one for each of those that sent at a time, and no others.
    hookgate.wait_for_metric("hookgate_connections", &[], 0.0);
    eventually("descriptors are given back", || (hookgate.descriptors() <= before + 8).then_some(()));
}

/// The names of the keys are enough to find what somebody did, and no value is among them.
#[test]
fn a_reload_says_which_keys_have_changed() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream)
        .webhook("name = \"esc\"")
        .file("token", "mark-of-the-old-token")
        .destination("name = \"app\"\nheaders = { Authorization = { file = \"{dir}/token\" } }")
        .section("[log]\nlevel = \"info\"")
        .start();
    let mut reloads = 0;
    let mut says = |changed: &str| {
        hookgate.signal("HUP");
        reloads += 1;
        lines_after(&hookgate, reloads, "the configuration was reloaded");
        let all = hookgate.log_lines();
        let line = all.iter().rfind(|line| line.contains("the configuration was reloaded")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["changed"], &line["level"]), (&changed.into(), &"INFO".into()), "{line}");
        assert!(line["config.digest"].is_string(), "{line}");
    };
    says("nothing");
    edit(&hookgate, "\"environments\"", "\"environments\", \"stacks\"");
    edit(&hookgate, "level = \"info\"", "# A comment.\nlevel = \"debug\"");
    says("log.level, webhook.esc.events");
    replace(&hookgate.dir().join("secret"), NEW);
    says("webhook.esc.secret");
    replace(&hookgate.dir().join("token"), "mark-of-the-new-token");
    says("webhook.esc.destination.app.headers");
    edit(&hookgate, "name = \"esc\"", "name = \"other\"");
    says("webhook.esc, webhook.other");
    let log = hookgate.log_lines().join("\n");
    for secret in [NEW, "mark-of-the"] {
        assert!(!log.contains(secret), "{secret} in the log");
    }
}
