//! Who sent a request that came through proxies, for the log and for nothing else.
//!
//! Anybody can write `X-Forwarded-For`, and each proxy adds at its end the address that it saw. So it is read from the
//! end, only where a trusted proxy has sent it, and only as far as trusted proxies have written it.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use hyper::HeaderMap;
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// `trusted_proxies`: the networks of proxies whose `X-Forwarded-For` is believed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Trusts the proxies of these networks.
    #[must_use]
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(networks.into_iter().collect())
    }

    /// The networks.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }

    /// The client's address: that of the peer, `written`, unless the peer is a trusted proxy; then the last address of
    /// `X-Forwarded-For` that is not one. Where that cannot be read, the nearest address that can.
    pub(super) fn client<'w>(
        &self,
        peer: Option<SocketAddr>,
        written: Option<&'w str>,
        headers: &HeaderMap,
    ) -> Option<Cow<'w, str>> {
        let peer = peer.filter(|peer| self.trusts(peer.ip()));
        let Some(forwarded) = peer.and_then(|_| self.forwarded(headers)) else {
            return written.map(Cow::Borrowed);
        };
        Some(forwarded.to_string().into())
    }

    fn forwarded(&self, headers: &HeaderMap) -> Option<Forwarded> {
        let mut nearest = None;
        // A list may be spread over several headers.
        for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
            for address in line.as_bytes().rsplit(|byte| *byte == b',') {
                let Some(address) = Forwarded::parse(address) else { return nearest };
                nearest = Some(address);
                if !self.trusts(address.ip) {
                    return nearest;
                }
            }
        }
        nearest
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// A member of `X-Forwarded-For`: an address, and a port where the proxy writes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forwarded {
    ip: IpAddr,
    port: Option<u16>,
}

impl Forwarded {
    /// `IP`, `IPv4:PORT`, `[IPv6]` or `[IPv6]:PORT`.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self { ip: ip.to_canonical(), port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Some(Self { ip: address.ip().to_canonical(), port: Some(address.port()) });
        }
        let ip = text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok()?;
        Some(Self { ip: ip.to_canonical(), port: None })
    }
}

impl std::fmt::Display for Forwarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn client(trusted: &[&str], peer: &str, headers: &[&[u8]]) -> String {
        let trusted = TrustedProxies::new(trusted.iter().map(|network| network.parse().unwrap()));
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(X_FORWARDED_FOR, HeaderValue::from_bytes(value).unwrap());
        }
        let peer = Some(peer.parse().unwrap());
        trusted.client(peer, Some("the peer"), &map).unwrap().into_owned()
    }

    #[test]
    fn the_last_address_that_no_trusted_proxy_has_is_the_clients() {
        const TEN: &[&str] = &["10.0.0.0/8", "fd00::/8"];
        for (peer, headers, expected) in [
            // Nothing to read, or nobody to believe.
            ("10.0.0.1:99", &[][..], "the peer"),
            ("192.0.2.1:99", &[&b"203.0.113.9"[..]], "the peer"),
            ("[2001:db8::1]:99", &[b"203.0.113.9"], "the peer"),
            // One proxy, several, in several headers.
            ("10.0.0.1:99", &[b"203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1:99", &[b"203.0.113.9, 10.2.3.4"], "203.0.113.9"),
            ("10.0.0.1:99", &[b"203.0.113.9,10.2.3.4 ,\t10.0.0.7"], "203.0.113.9"),
            ("10.0.0.1:99", &[b"203.0.113.9", b"10.2.3.4", b"10.0.0.7"], "203.0.113.9"),
            // What the client has written itself stands before that.
            ("10.0.0.1:99", &[b"8.8.8.8, 203.0.113.9, 10.2.3.4"], "203.0.113.9"),
            ("10.0.0.1:99", &[b"8.8.8.8", b"203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1:99", &[b"10.0.0.5, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1:99", &[b"\xff\xfe\", forged, 203.0.113.9"], "203.0.113.9"),
            // Only trusted ones: the farthest.
            ("10.0.0.1:99", &[b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // What is not an address ends the search.
            ("10.0.0.1:99", &[b"203.0.113.9, unknown"], "the peer"),
            ("10.0.0.1:99", &[b"203.0.113.9, _hidden, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1:99", &[b"203.0.113.9,"], "the peer"),
            ("10.0.0.1:99", &[b""], "the peer"),
            ("10.0.0.1:99", &[b"203.0.113.9:port"], "the peer"),
            ("10.0.0.1:99", &[b"203.0.113.999"], "the peer"),
            ("10.0.0.1:99", &[b"\xff"], "the peer"),
            // IPv6, and ports.
            ("10.0.0.1:99", &[b"203.0.113.9:4711"], "203.0.113.9:4711"),
            ("[fd00::1]:99", &[b"2001:db8::5"], "2001:db8::5"),
            ("[fd00::1]:99", &[b"[2001:db8::5]"], "2001:db8::5"),
            ("[fd00::1]:99", &[b"[2001:DB8::5]:4711, fd00::2"], "[2001:db8::5]:4711"),
            // An IPv4 address as a socket for both sees it.
            ("[::ffff:10.0.0.1]:99", &[b"::ffff:203.0.113.9"], "203.0.113.9"),
            ("[::ffff:10.0.0.1]:99", &[b"203.0.113.9, ::ffff:10.0.0.4"], "203.0.113.9"),
        ] {
            assert_eq!(client(TEN, peer, headers), expected, "{peer} {headers:?}");
            assert_eq!(client(&[], peer, headers), "the peer", "{peer} {headers:?}");
        }
        assert_eq!(client(&["10.0.0.1/32"], "10.0.0.1:99", &[b"10.0.0.2"]), "10.0.0.2");
    }

    proptest! {
        #[test]
        fn whatever_is_written_there_only_addresses_come_out(values in prop::collection::vec("[ -~]{0,60}", 0..4)) {
            let values: Vec<_> = values.iter().map(|value| value.as_bytes()).collect();
            let client = client(&["0.0.0.0/0"], "10.0.0.1:99", &values);
            let known = client == "the peer" || client.parse::<IpAddr>().is_ok() || client.parse::<SocketAddr>().is_ok();
            prop_assert!(known, "{}", client);
        }
    }
}
