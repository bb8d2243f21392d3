//! Reloading: new settings without a dropped request, and the old ones where the new are bad.

use crate::support::{Delivery, Gate, Hookgate, Reply, Setup, Upstream, eventually};

fn edit(hookgate: &Hookgate, from: &str, to: &str) {
    let config = std::fs::read_to_string(hookgate.config()).unwrap();
    assert!(config.contains(from), "{from} in {config}");
    std::fs::write(hookgate.config(), config.replace(from, to)).unwrap();
}

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

#[test]
fn a_changed_secret_file_is_noticed() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    std::fs::write(hookgate.dir().join("secret"), "the new secret of this webhook").unwrap();
    eventually("the new secret is in force", || {
        let answer = hookgate.send(&Delivery::good().signed_with(b"the new secret of this webhook"));
        (answer.status == 200).then_some(())
    });
    hookgate.send(&Delivery::good()).assert_refused(401, "bad_signature");
}

#[test]
fn a_bad_new_file_leaves_the_old_settings_in_force() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = Setup::new(&upstream).start();
    edit(&hookgate, "\"environments\"", "\"enviroments\"");
    hookgate.signal("HUP");
    hookgate.wait_for_metric("hookgate_config_last_reload_success", &[], 0.0);
    hookgate.send(&Delivery::good()).assert_forwarded(200);
    assert_eq!(hookgate.ops("/healthz").status, 200);
    hookgate.wait_for_log(|line| line["level"] == "ERROR" || line["level"] == "WARN");
}
