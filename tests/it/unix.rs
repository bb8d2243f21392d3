//! Unix sockets on either side.

use std::os::unix::fs::FileTypeExt;

use crate::support::{Address, Delivery, Reply, Setup, TempDir, Upstream, Webhook};

#[test]
fn an_upstream_on_a_unix_socket() {
    let dir = TempDir::new();
    let upstream = Upstream::on_unix_socket(&dir.path().join("up.sock"), Reply::ok());
    let hookgate = Setup::bare().with(Webhook::to(&upstream.address().url("/hooks/pulumi"))).start();
    let delivery = Delivery::good();
    let mut sender = hookgate.connect();
    for _ in 0..3 {
        sender.send(&Delivery::good().bytes());
        sender.answer().assert_forwarded(200);
    }
    sender.send(&delivery.bytes());
    sender.answer().assert_forwarded(200);
    let requests = upstream.requests();
    assert_eq!(requests.len(), 4);
    assert_eq!(upstream.connections(), 1);
    for request in &requests {
        assert_eq!(request.head.first_line, "POST /hooks/pulumi HTTP/1.1");
        assert_eq!(request.body, delivery.the_body());
        assert!(request.header("host").is_some());
    }
}

#[test]
fn a_unix_socket_that_is_not_there_is_unreachable() {
    let dir = TempDir::new();
    let nobody = Address::Unix(dir.path().join("missing.sock"));
    let hookgate = Setup::bare().with(Webhook::to(&nobody.url("/"))).start();
    let delivery = Delivery::good();
    hookgate.send(&delivery).assert_refused(502, "upstream_unreachable");
    let line = hookgate.line_of(delivery.header_value("pulumi-webhook-id"));
    let place = format!("at unix:{} cannot be reached", dir.path().join("missing.sock").display());
    assert!(line["reason"].as_str().unwrap().contains(&place), "{line}");
}

#[test]
fn a_listener_on_a_unix_socket() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream);
    let socket = setup.dir().join("in.sock");
    let listen = format!("unix:{}", socket.display());
    let mut hookgate = setup.listen(&listen).start();
    assert_eq!(hookgate.address(), &Address::Unix(socket.clone()));
    assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket());
    let mut connection = hookgate.connect();
    connection.send(&Delivery::good().bytes());
    connection.answer().assert_forwarded(200);
    connection.send(&Delivery::good().forged().bytes());
    connection.answer().assert_refused(401, "bad_signature");
    Delivery::good().unsigned().send_head_only(hookgate.address()).assert_refused(401, "missing_signature");
    assert_eq!(upstream.requests().len(), 1);
    drop(connection);
    hookgate.signal("TERM");
    assert_eq!(hookgate.wait_exit().code(), Some(0));
}

/// A process that was killed leaves its socket file behind; the next one must still start.
#[test]
fn a_socket_file_left_behind_is_replaced() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream);
    let socket = setup.dir().join("in.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let hookgate = setup.listen(&format!("unix:{}", socket.display())).start();
    hookgate.send(&Delivery::good()).assert_forwarded(200);
}

/// Whatever the umask is, and before anybody can connect.
#[test]
fn the_socket_has_the_configured_mode() {
    use std::os::unix::fs::PermissionsExt;
    let upstream = Upstream::always(Reply::ok());
    for (line, mode) in [("", 0o660), ("listen_mode = \"0600\"", 0o600), ("listen_mode = \"0666\"", 0o666)] {
        let setup = Setup::new(&upstream).server(line);
        let socket = setup.dir().join("in.sock");
        let hookgate = setup.listen(&format!("unix:{}", socket.display())).start();
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, mode);
        hookgate.send(&Delivery::good()).assert_forwarded(200);
    }
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone_and_named() {
    let upstream = Upstream::always(Reply::ok());
    let setup = Setup::new(&upstream).file("in.sock", "content");
    let socket = setup.dir().join("in.sock");
    let setup = setup.listen(&format!("unix:{}", socket.display()));
    let output = crate::support::run(&["run", "--config", setup.write().to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("not a socket") && said.contains("in.sock"), "{said}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "content");
}
