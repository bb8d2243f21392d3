//! Destinations that are hookgate itself: what is sent there comes back, and never arrives anywhere.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use crate::{files::Patience, net::target, server::listener};

/// Where hookgate itself listens.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Each listener by its key.
    pub(super) listeners: Vec<(&'static str, listener::Address)>,
}

impl Own {
    /// The key of the listener that a destination is, if it is one. Whatever the path: what does not come back as a
    /// delivery is refused.
    pub(super) fn listener_at(&self, target: &target::Address, patience: &Patience) -> Option<&'static str> {
        let is = |own: &listener::Address| match (own, target) {
            (listener::Address::Tcp(own), target::Address::Tcp { host, port, .. }) => {
                own.port() == *port && *port != 0 && is_this_host(*own, host, patience)
            }
            (listener::Address::Unix(own), target::Address::Unix(path)) => {
                own == path || real(own, patience).is_some_and(|own| Some(own) == real(path, patience))
            }
            _ => false,
        };
        self.listeners.iter().find(|(_, own)| is(own)).map(|(key, _)| *key)
    }
}

/// Whether a host, at the listener's port, is the listener.
fn is_this_host(own: SocketAddr, host: &str, patience: &Patience) -> bool {
    let own = own.ip().to_canonical();
    let reaches = |ip: IpAddr| {
        let ip = ip.to_canonical();
        // Connecting to no address in particular connects to this machine.
        let local = is_loopback(ip) || ip.is_unspecified();
        if own.is_unspecified() {
            local || own_addresses(patience).contains(&ip)
        } else if is_loopback(own) {
            local
        } else {
            ip == own
        }
    };
    match host.parse() {
        Ok(ip) => reaches(ip),
        Err(_) => addresses_of(host, patience).into_iter().any(reaches),
    }
}

/// What a name means on this machine without asking anybody else.
fn addresses_of(host: &str, patience: &Patience) -> Vec<IpAddr> {
    /// The longest list of names that is read.
    const MAX: usize = 1 << 20;

    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    let hosts = patience.read(Path::new("/etc/hosts"), MAX);
    let hosts = hosts.map(|content| String::from_utf8_lossy(&content.bytes).into_owned()).unwrap_or_default();
    listed(&hosts, &host)
}

/// The addresses of a name in the text of `/etc/hosts`.
fn listed(hosts: &str, host: &str) -> Vec<IpAddr> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(ip)
    };
    hosts.lines().filter_map(of_line).collect()
}

/// Whether a host is this machine, as far as that can be told without asking anybody.
pub(super) fn is_this_machine(host: &str, patience: &Patience) -> bool {
    let is_own = |ip: IpAddr| {
        let ip = ip.to_canonical();
        is_loopback(ip) || ip.is_unspecified() || own_addresses(patience).contains(&ip)
    };
    match host.parse() {
        Ok(ip) => is_own(ip),
        Err(_) => addresses_of(host, patience).into_iter().any(is_own),
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback()
}

/// The addresses of this machine, as the kernel lists them.
fn own_addresses(patience: &Patience) -> Vec<IpAddr> {
    const MAX: usize = 4 << 20;

    let text = |path: &str| {
        let content = patience.read(Path::new(path), MAX);
        content.map(|content| String::from_utf8_lossy(&content.bytes).into_owned()).unwrap_or_default()
    };
    in_routes(&text("/proc/net/fib_trie")).chain(in_list(&text("/proc/net/if_inet6"))).collect()
}

/// Those of IPv4: a line with the address, followed by one that says that it is of this host.
fn in_routes(trie: &str) -> impl Iterator<Item = IpAddr> {
    let mut found = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in trie.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line.ends_with("host LOCAL") {
            found.extend(last.map(IpAddr::from));
        }
    }
    found.into_iter()
}

/// Those of IPv6: the first word of each line, without colons.
fn in_list(list: &str) -> impl Iterator<Item = IpAddr> {
    list.lines().filter_map(|line| {
        let digits = line.split_ascii_whitespace().next()?;
        let address = (digits.len() == 32).then(|| u128::from_str_radix(digits, 16).ok())??;
        Some(Ipv6Addr::from_bits(address).into())
    })
}

/// The path of a socket without links in its folder.
fn real(path: &Path, patience: &Patience) -> Option<PathBuf> {
    let (folder, name) = (path.parent()?.to_owned(), path.file_name()?.to_owned());
    patience.within(move || fs::canonicalize(folder).ok()).flatten().map(|folder| folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(listen: &str, url: &str) -> bool {
        let own = match listen.strip_prefix("unix:") {
            Some(path) => listener::Address::Unix(path.into()),
            None => listener::Address::Tcp(listen.parse().unwrap()),
        };
        let own = Own { listeners: vec![("server.listen", own)] };
        let target = target::Target::parse(url).unwrap();
        own.listener_at(&target.address, &Patience::default()).is_some()
    }

    #[test]
    fn hookgate_itself_is_known_by_every_name() {
        for (listen, url) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8080/other"),
            ("0.0.0.0:8080", "http://0.0.0.0:8080/"),
            ("0.0.0.0:8080", "http://localhost:8080/"),
            ("0.0.0.0:8080", "https://LocalHost.:8080/"),
            ("0.0.0.0:8080", "http://app.localhost:8080/"),
            ("0.0.0.0:8080", "http://[::1]:8080/"),
            ("0.0.0.0:8080", "http://[::]:8080/"),
            ("0.0.0.0:8080", "http://127.9.9.9:8080/"),
            ("0.0.0.0:8080", "http://[::ffff:127.0.0.1]:8080/"),
            ("[::]:8080", "http://127.0.0.1:8080/"),
            ("127.0.0.1:8080", "http://localhost:8080/"),
            ("127.0.0.1:8080", "http://[::1]:8080/"),
            ("127.0.0.1:80", "http://127.0.0.1/"),
            ("10.1.2.3:8080", "http://10.1.2.3:8080/"),
            ("unix:/run/x.sock", "unix:/run/x.sock:/"),
            ("unix:/run/../run/x.sock", "unix:/run/x.sock:/"),
        ] {
            assert!(found(listen, url), "{listen} {url}");
        }
    }

    #[test]
    fn others_are_not_hookgate() {
        for (listen, url) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8081/"),
            ("0.0.0.0:8080", "http://192.0.2.1:8080/"),
            ("0.0.0.0:8080", "http://app:8080/"),
            // A service on the loopback interface, behind hookgate on the one to the world.
            ("10.1.2.3:8080", "http://127.0.0.1:8080/"),
            ("0.0.0.0:0", "http://127.0.0.1:1/"),
            ("unix:/run/x.sock", "unix:/run/y.sock:/"),
            ("unix:/run/x.sock", "http://127.0.0.1:8080/"),
        ] {
            assert!(!found(listen, url), "{listen} {url}");
        }
    }

    #[test]
    fn the_machines_own_addresses_are_read_from_the_kernel() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.2.0.0\n        /16 link UNICAST\n     |-- 10.2.3.4\n        /32 host LOCAL\n";
        assert_eq!(in_routes(trie).collect::<Vec<_>>(), ["10.2.3.4".parse::<IpAddr>().unwrap()]);
        let list = "00000000000000000000000000000001 01 80 10 80       lo\nfe80000000000000004215fffe8d6b8a 02 40 20 80     eth0\nxx\n";
        let expected = ["::1", "fe80::42:15ff:fe8d:6b8a"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(in_list(list).collect::<Vec<_>>(), expected);
        let own = own_addresses(&Patience::default());
        assert!(own.contains(&Ipv4Addr::LOCALHOST.into()), "{own:?}");
    }

    #[test]
    fn names_are_looked_up_in_the_machines_own_list() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.9 app\n10.2.3.4\tc0ffee App # x\n";
        assert_eq!(listed(hosts, "app"), ["10.2.3.4".parse::<IpAddr>().unwrap()]);
        assert_eq!(listed(hosts, "x"), Vec::<IpAddr>::new());
    }
}
