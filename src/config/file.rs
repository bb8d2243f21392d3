//! What the file may say, from its top to its bottom: sections, keys, bounds. The webhooks are in
//! [`webhook`](super::webhook).
//!
//! Defaults are those of the settings that a section becomes, and stand nowhere else.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::{
    certificates::{IdentityFiles, identity},
    own::Own,
    queue::{Queue, queue},
    reader::{Item, Table, nearest},
    report::{quoted, short},
    tables::{Around, Queued},
    values::{LONGEST, SHORTEST, unix_path_mistake},
    webhook::{Webhook, webhooks},
};
use crate::{
    delivery::{dedupe, worker},
    ingress::{TrustedProxies, settings as server},
    net::tls::Identity,
    ops::{self, log},
    server::{limits::ConnectionLimits, listener::Address},
};

/// The certificate that senders see.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Certificate and key.
    pub identity: Identity,
    /// Where they come from.
    pub files: IdentityFiles,
}

/// Everything that a file says.
pub(super) struct Settings {
    pub(super) server: server::Settings,
    pub(super) tls: Option<ServerTls>,
    pub(super) ops: ops::Settings,
    pub(super) log: log::Settings,
    pub(super) dedupe: dedupe::Settings,
    pub(super) queue: Option<Queue>,
    pub(super) webhooks: Vec<Webhook>,
}

impl Settings {
    /// Reads the whole file. What is wrong is noted, and the default stands in for it.
    pub(super) fn read(mut root: Table<'_>) -> Self {
        let before = root.context.mistakes();
        let (server, tls) = section(&mut root, "server").map(server).unwrap_or_default();
        let ops = section(&mut root, "ops").map(ops).unwrap_or_default();
        let mut own = Own::default();
        if root.context.mistakes() == before {
            check_listeners(&root, &server.listen, ops.listen);
            own.listeners =
                vec![("server.listen", server.listen.clone()), ("ops.listen", Address::Tcp(ops.listen))];
        }
        let log = section(&mut root, "log").map(log).unwrap_or_default();
        let dedupe = section(&mut root, "dedupe").map(dedupe).unwrap_or_default();
        root.refuse(
            "console",
            "is not built yet: remove it; until then, /metrics and the log show what happened to a delivery",
        );
        root.refuse(
            "destination",
            "belongs to a webhook: write [[webhook.destination]] below its [[webhook]]",
        );
        // Also a queue that is wrong lets webhooks be as they are with one.
        let queued = root.find("queue").is_some();
        let queue = queue_in(&mut root, Some(dedupe.window));
        let known = queue.as_ref().map_or((worker::Settings::default().max_age, true), |queue| {
            (queue.worker.max_age, queue.is_ordered())
        });
        let around = Around { queue: queued.then_some(Queued { max_age: known.0, ordered: known.1 }), own };
        let webhooks = webhooks(&mut root, &around);
        root.finish();
        Self { server, tls, ops, log, dedupe, queue, webhooks }
    }
}

/// `[queue]`. `window` is that of `[dedupe]`, where it is read too.
pub(super) fn queue_in(root: &mut Table<'_>, window: Option<Duration>) -> Option<Queue> {
    section(root, "queue").map(|table| queue(table, window))
}

/// `ops.listen`, whatever else is in its section.
pub(super) fn ops_listen_in(root: &mut Table<'_>) -> SocketAddr {
    let default = ops::Settings::default().listen;
    section(root, "ops").map_or(default, |mut table| table.read("listen", default, ops_listen))
}

fn section<'c>(root: &mut Table<'c>, name: &'static str) -> Option<Table<'c>> {
    root.take(name)?.table(&format!("a table: write [{name}]"))
}

fn server(mut table: Table<'_>) -> (server::Settings, Option<ServerTls>) {
    const MAX_BODY: usize = 1 << 30;
    // The arithmetic of permits needs room above it, also where a word has 32 bits.
    const MAX_INFLIGHT: usize = usize::MAX >> 4;

    let default = server::Settings::default();
    let before = table.context.mistakes();
    let timeout = |item: &Item<'_>| item.duration(SHORTEST..=LONGEST);
    // In this order a report lists the keys that there are.
    let listen = table.read("listen", default.listen, listen);
    let listen_mode = table.read("listen_mode", default.listen_mode, listen_mode);
    let trusted_proxies = table.read("trusted_proxies", default.trusted_proxies, networks);
    let max_body = table.read("max_body", default.max_body, |item| item.size(1..=MAX_BODY));
    let connections = default.connections;
    let max_header = table.read("max_header", connections.max_header, |item| item.size(1 << 10..=1 << 20));
    let max_connections =
        table.read("max_connections", connections.max_connections, |item| item.count(1..=1_000_000));
    let max_inflight_bytes = table.read("max_inflight_bytes", default.max_inflight_bytes, |item| {
        item.size(1..=MAX_INFLIGHT.min(1 << 40))
    });
    let header_timeout = table.read("header_timeout", connections.header_timeout, timeout);
    let body_timeout = table.read("body_timeout", default.body_timeout, timeout);
    let idle_timeout = table.read("idle_timeout", connections.idle_timeout, timeout);
    let drain_timeout =
        table.read("drain_timeout", default.drain_timeout, |item| item.duration(Duration::ZERO..=LONGEST));
    let settings = server::Settings {
        listen,
        listen_mode,
        trusted_proxies,
        connections: ConnectionLimits { max_header, max_connections, header_timeout, idle_timeout },
        max_body,
        max_inflight_bytes,
        body_timeout,
        drain_timeout,
    };
    if table.context.mistakes() == before && settings.max_inflight_bytes < settings.max_body {
        let text = "is below `max_body`, so that the longest body could never be accepted: raise it, or lower `max_body`";
        match table.find("max_inflight_bytes").or_else(|| table.find("max_body")) {
            Some(item) => table.context.mistake(item.at, &table.path("max_inflight_bytes"), text),
            None => table.mistake(text),
        }
    }
    let tls = table.take("tls").and_then(identity).map(|(identity, files)| ServerTls { identity, files });
    table.finish();
    (settings, tls)
}

fn ops(mut table: Table<'_>) -> ops::Settings {
    let listen = table.read("listen", ops::Settings::default().listen, ops_listen);
    table.finish();
    ops::Settings { listen }
}

fn ops_listen(item: &Item<'_>) -> Option<SocketAddr> {
    match listen(item)? {
        Address::Tcp(address) => Some(address),
        Address::Unix(_) => {
            item.mistake("this listener has an IP address and a port only: write e.g. \"127.0.0.1:9090\"");
            None
        }
    }
}

/// Both listeners cannot have one address, whichever of the two is written.
fn check_listeners(root: &Table<'_>, server: &Address, ops: SocketAddr) {
    let Address::Tcp(server) = server else { return };
    if !overlap(*server, ops) {
        return;
    }
    for (section, other) in [("ops", "server.listen"), ("server", "ops.listen")] {
        let table = root.find(section).and_then(|item| item.table(""));
        if let Some(item) = table.and_then(|table| table.find("listen")) {
            item.mistake(format_args!(
                "is also the address of `{other}`: choose another port for one of them"
            ));
            return;
        }
    }
}

/// Whether the kernel refuses the second of two listeners.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let whole = |address: IpAddr| address.is_unspecified();
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || whole(a.ip()) || whole(b.ip()))
}

/// The networks of proxies. An empty list means none.
fn networks(item: &Item<'_>) -> Option<TrustedProxies> {
    const EXAMPLE: &str = "[\"10.0.0.0/8\"]";
    if item.value.as_array().is_some_and(|list| list.is_empty()) {
        return Some(TrustedProxies::default());
    }
    let networks = item.texts(EXAMPLE)?.into_iter().map(|(item, text)| {
        let host = text.parse::<IpAddr>().map(IpNet::from);
        let Ok(network) = host.or_else(|_| text.parse::<IpNet>()) else {
            item.mistake(format_args!(
                "`{text}` is not a network: write an address, or one with the length of its prefix such as \"10.0.0.0/8\""
            ));
            return None;
        };
        if network.trunc() != network {
            item.mistake(format_args!("`{text}` has more digits than its prefix: write \"{}\"", network.trunc()));
            return None;
        }
        Some(network)
    });
    networks.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().map(TrustedProxies::new)
}

/// An address to listen on: `IP:PORT` or `unix:/PATH`.
fn listen(item: &Item<'_>) -> Option<Address> {
    const WANTED: &str = "\"IP:PORT\" such as \"0.0.0.0:8080\", or \"unix:/PATH\"";
    if let Some(port) = item.value.as_integer() {
        match short(port.as_str()) {
            Some(port) => item.mistake(format_args!(
                "must be {WANTED}: write \"0.0.0.0:{port}\" for every address of this machine"
            )),
            None => item.mistake(format_args!("must be {WANTED}")),
        }
        return None;
    }
    let text = item.text(WANTED)?;
    if let Some(path) = text.strip_prefix("unix:") {
        return match unix_path_mistake(path) {
            Some(what) => {
                item.mistake(what);
                None
            }
            None => Some(Address::Unix(PathBuf::from(path))),
        };
    }
    if let Ok(address) = text.parse() {
        return Some(Address::Tcp(address));
    }
    let port = |port: &str| port.len() <= 5 && port.parse::<u16>().is_ok();
    match text.rsplit_once(':') {
        Some(("", number)) if port(number) => item.mistake(format_args!(
            "`{text}` has no IP address: write \"0.0.0.0:{number}\", or \"[::]:{number}\" for IPv6 as well"
        )),
        Some(("*", number)) if port(number) => item.mistake(format_args!(
            "must have an IP address instead of `*`: write \"0.0.0.0:{number}\", or \"[::]:{number}\" for IPv6 as well"
        )),
        Some(("localhost", number)) if port(number) => {
            item.mistake(format_args!("must be an IP address, not a name: write \"127.0.0.1:{number}\""));
        }
        Some((ip, number)) if port(number) && ip.parse::<Ipv6Addr>().is_ok() => {
            item.mistake(format_args!("an IPv6 address needs brackets: write \"[{ip}]:{number}\""));
        }
        _ => {
            if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
                item.mistake(format_args!("has no port: write \"{}\"", SocketAddr::new(ip, 8080)));
            } else {
                item.mistake(format_args!("{} is not an address to listen on: write {WANTED}", quoted(text)));
            }
        }
    }
    None
}

/// `listen_mode`: the permissions of the unix socket, as chmod takes them.
fn listen_mode(item: &Item<'_>) -> Option<u32> {
    const WANTED: &str = "the mode of the unix socket in quotes, such as \"0660\"";
    if let Some(number) = item.value.as_integer() {
        match short(number.as_str()) {
            Some(number) => item.mistake(format_args!("must be in quotes: write \"{number:0>4}\"")),
            None => item.mistake(format_args!("must be {WANTED}")),
        }
        return None;
    }
    let text = item.text(WANTED)?;
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let mode = mode.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|mode| *mode <= 0o777);
    match mode {
        None => item.mistake(format_args!("{} is not a mode: write {WANTED}", quoted(text))),
        Some(mode) if mode & 0o222 == 0 => item.mistake(format_args!(
            "lets nobody connect, because connecting needs write permission: write \"0660\", or \"0666\" for everybody"
        )),
        Some(_) => return mode,
    }
    None
}

fn log(mut table: Table<'_>) -> log::Settings {
    let default = log::Settings::default();
    let settings = log::Settings {
        format: table.read("format", default.format, |item| {
            item.word(&[("json", log::Format::Json), ("text", log::Format::Text)])
        }),
        level: table.read("level", default.level, level),
    };
    table.finish();
    settings
}

/// A tracing filter directive.
fn level(item: &Item<'_>) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = item.text("a level such as \"info\" or a filter directive such as \"hookgate=debug\"")?;
    // A word that is not a level is the name of a target, of which everything is then logged and of all else nothing.
    for word in text.split(',').map(str::trim).filter(|word| !word.contains(['=', '[', ':'])) {
        let known = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word)) || word == "hookgate";
        if !known {
            let similar = nearest(word, LEVELS.into_iter()).unwrap_or("info");
            let word = quoted(word);
            item.mistake(format_args!(
                "{word} is not a level: did you mean \"{similar}\"? A target is written with its level, as in \"hookgate=debug\""
            ));
            return None;
        }
    }
    if EnvFilter::builder().parse(text).is_err() {
        let text = quoted(text);
        item.mistake(format_args!(
            "{text} is not a filter directive: write a level such as \"info\", or TARGET=LEVEL pairs such as \"info,hookgate=debug\""
        ));
        return None;
    }
    Some(text.to_owned())
}

fn dedupe(mut table: Table<'_>) -> dedupe::Settings {
    let default = dedupe::Settings::default();
    let longest = Duration::from_secs(30 * 24 * 60 * 60);
    let window = table.read("window", default.window, |item| item.duration(Duration::ZERO..=longest));
    table.finish();
    dedupe::Settings { window }
}
