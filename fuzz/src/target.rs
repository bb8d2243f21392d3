//! URLs of destinations: the whole input as `url`.
//!
//! Promise: nothing panics; what is accepted has no credentials and no fragment, names a place to connect to, and is
//! sent as a path.

use hookgate::net::target::{Address, Target};

/// Judges one input.
pub fn run(bytes: &[u8]) {
    let Ok(url) = str::from_utf8(bytes) else { return };
    let target = match Target::parse(url) {
        Ok(target) => target,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(!url.contains('#'), "a fragment in {url:?}");
    let request = target.request.to_string();
    assert!(request.starts_with('/'), "{url:?} is sent as {request:?}");
    assert!(target.request.authority().is_none() && target.request.scheme().is_none(), "{url:?}");
    assert!(!request.bytes().any(|byte| byte <= b' ' || byte == 0x7f), "{url:?} is sent as {request:?}");
    match &target.address {
        Address::Tcp { host, port, .. } => {
            assert!(!host.is_empty() && !host.contains(['@', '/', '[', ']']), "{url:?} connects to {host:?}");
            assert_ne!(*port, 0, "{url:?}");
            let authority = target.host.to_str().expect("an authority is ASCII");
            let is = |port: &str| {
                [host.clone(), format!("[{host}]")].iter().any(|host| *authority == [host, port].concat())
            };
            // A port may have zeros before it.
            let digits = authority.rsplit(':').next().unwrap_or_default();
            let written = digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse() == Ok(*port);
            assert!(is("") || (written && is(&format!(":{digits}"))), "{url:?} has Host {authority:?}");
        }
        Address::Unix(path) => assert!(path.is_absolute(), "{url:?}"),
    }
}
