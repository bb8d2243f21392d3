//! Where requests go: the URL of a destination, taken apart once.

use std::{fmt, net::Ipv6Addr, path::PathBuf};

use hyper::{
    Uri,
    header::HeaderValue,
    http::uri::{Authority, PathAndQuery, Scheme},
};

/// A destination's URL: `http://`, `https://`, or `unix:/path.sock:/request/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where to connect.
    pub address: Address,
    /// The request line's target: path and query.
    pub request: Uri,
    /// The `Host` header.
    pub host: HeaderValue,
}

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP connection to a host by name or IP address (IPv6 without brackets).
    Tcp {
        /// Name or IP address.
        host: String,
        /// Port, the scheme's own where the URL has none.
        port: u16,
        /// Whether it speaks TLS (`https`).
        tls: bool,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// For people: scheme, host and port, or the socket.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a text is not a destination URL. Says what would be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It cannot be read as a URL.
    #[error("not a URL: write http://HOST:PORT/PATH, https://HOST/PATH or unix:/SOCKET:/PATH")]
    Malformed,
    /// An IPv6 address without brackets, whose end looks like a port.
    #[error("an IPv6 address in a URL needs brackets: write http://[::1]:3000/")]
    Brackets,
    /// Another scheme than the three.
    #[error("the scheme must be http, https or unix")]
    Scheme,
    /// User or password stand in it, where logs and `check` would show them.
    #[error("a URL with credentials in it: put them into `headers`, e.g. Authorization = {{ file = \"…\" }}")]
    Credentials,
    /// A fragment is never sent.
    #[error("a URL with a fragment (#…), which is never sent")]
    Fragment,
    /// The unix form lacks one of its two paths.
    #[error("a unix destination is written unix:/SOCKET:/PATH, both paths absolute")]
    Unix,
}

impl Target {
    /// Reads a destination's URL.
    ///
    /// # Errors
    ///
    /// [`TargetError`].
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        if url.contains('#') {
            return Err(TargetError::Fragment);
        }
        if let Some(rest) = url.strip_prefix("unix:") {
            return Self::parse_unix(rest);
        }
        if lacks_brackets(url) {
            return Err(TargetError::Brackets);
        }
        let uri: Uri = url.parse().or(Err(TargetError::Malformed))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(_) => return Err(TargetError::Scheme),
            None => return Err(TargetError::Malformed),
        };
        let authority = uri.authority().ok_or(TargetError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(TargetError::Credentials);
        }
        // `Authority` takes an invalid port for a missing one, and leaves out what stands around brackets: it is read here.
        let (host, port) = (authority.host(), authority.as_str().strip_prefix(authority.host()));
        let port = match port.ok_or(TargetError::Malformed)?.strip_prefix(':') {
            // A number may be written with a plus, a port may not.
            Some(port) if !port.bytes().all(|b| b.is_ascii_digit()) => return Err(TargetError::Malformed),
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(TargetError::Malformed)?,
            None if authority.as_str() != host => return Err(TargetError::Malformed),
            None if tls => 443,
            None => 80,
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) if address.parse::<Ipv6Addr>().is_err() => return Err(TargetError::Malformed),
            Some(address) => address,
            None if host.is_empty() || host.contains(['[', ']']) => return Err(TargetError::Malformed),
            None => host,
        };
        Ok(Self {
            address: Address::Tcp { host: host.to_owned(), port, tls },
            request: origin_form(uri.path_and_query().cloned()),
            host: host_header(authority)?,
        })
    }

    /// `rest` is what follows `unix:`: the socket's path, a colon, the request's path.
    fn parse_unix(rest: &str) -> Result<Self, TargetError> {
        let (socket, path) = rest.split_once(":/").ok_or(TargetError::Unix)?;
        if !socket.starts_with('/') || socket.len() < 2 {
            return Err(TargetError::Unix);
        }
        let path = PathAndQuery::try_from(format!("/{path}")).or(Err(TargetError::Malformed))?;
        Ok(Self {
            address: Address::Unix(socket.into()),
            request: origin_form(Some(path)),
            host: HeaderValue::from_static("localhost"),
        })
    }
}

/// Whether the host is an IPv6 address, with or without a port, and stands without brackets.
fn lacks_brackets(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let without_port = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    [authority, without_port].iter().any(|host| host.parse::<Ipv6Addr>().is_ok())
}

fn origin_form(path: Option<PathAndQuery>) -> Uri {
    Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
}

fn host_header(authority: &Authority) -> Result<HeaderValue, TargetError> {
    HeaderValue::from_str(authority.as_str()).or(Err(TargetError::Malformed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, tls: bool) -> Address {
        Address::Tcp { host: host.into(), port, tls }
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, address, request, host) in [
            (
                "http://127.0.0.1:3000/hooks/pulumi",
                tcp("127.0.0.1", 3000, false),
                "/hooks/pulumi",
                "127.0.0.1:3000",
            ),
            ("http://app", tcp("app", 80, false), "/", "app"),
            ("https://app.example/a?b=c", tcp("app.example", 443, true), "/a?b=c", "app.example"),
            ("HTTPS://[::1]:8443/x", tcp("::1", 8443, true), "/x", "[::1]:8443"),
            ("unix:/run/app.sock:/in?x=1", Address::Unix("/run/app.sock".into()), "/in?x=1", "localhost"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.address, target.request.to_string().as_str()), (address, request), "{url}");
            assert_eq!(target.host, host, "{url}");
        }
    }

    #[test]
    fn wrong_urls_say_what_is_wrong() {
        for (url, error) in [
            ("", TargetError::Malformed),
            ("/path", TargetError::Malformed),
            ("127.0.0.1:3000", TargetError::Malformed),
            ("http://", TargetError::Malformed),
            ("http://host:0/", TargetError::Malformed),
            ("http://host:/", TargetError::Malformed),
            ("http://host:99999/", TargetError::Malformed),
            ("http://a[::1]b:80/", TargetError::Malformed),
            ("http://[::1]b:80/", TargetError::Malformed),
            ("http://[::1]b/", TargetError::Malformed),
            ("http://[app]/", TargetError::Malformed),
            ("http://[[::1]]/", TargetError::Malformed),
            ("http://[]/", TargetError::Malformed),
            ("http://host:+80/", TargetError::Malformed),
            ("http://::1:3000/", TargetError::Brackets),
            ("https://fe80::1/x", TargetError::Brackets),
            ("ftp://host/", TargetError::Scheme),
            ("http://user:pw@host/", TargetError::Credentials),
            ("http://host/a#b", TargetError::Fragment),
            ("unix:/run/app.sock", TargetError::Unix),
            ("unix:app.sock:/x", TargetError::Unix),
        ] {
            assert_eq!(Target::parse(url), Err(error), "{url}");
        }
    }
}
