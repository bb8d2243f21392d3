//! `hookgate healthcheck`: asks a running hookgate whether it is ready, for containers without a shell.
//!
//! Of the configuration it reads the one line that it needs. A mistake elsewhere in a file that was changed under a
//! running service is not to make that service look ill: it goes on with its old settings.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use tokio::time::Instant;

use super::{
    Ended, Failure,
    ask::ask,
    block_on,
    input::ConfigArgs,
    output::{Out, printable},
};
use crate::{config, files::Patience, net::target::Target};

const EXAMPLES: &str = "\
Examples:
  hookgate healthcheck
  hookgate healthcheck --url http://127.0.0.1:9090/readyz

Without --url it asks /readyz at the address of `listen` under [ops] in the
configuration. Exit status: 0 ready, 1 not ready or no answer within 3 seconds,
2 wrong usage or configuration.";

/// How long reading the configuration and the answer may take together.
const LIMIT: Duration = Duration::from_secs(3);

/// How much of it reading the configuration may take.
const FILE_LIMIT: Duration = Duration::from_millis(1500);

/// Arguments of `healthcheck`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// What to ask instead; without a path it is /readyz
    #[arg(long, value_name = "URL", value_parser = Target::parse, conflicts_with = "config")]
    url: Option<Target>,
}

/// Asks.
pub(super) fn run(args: &Args, out: &mut Out<impl Write>) -> Result<Ended, Failure> {
    let started = Instant::now();
    let mut target = match &args.url {
        Some(url) => url.clone(),
        None => configured(&args.config.path())?,
    };
    if target.request == Uri::from_static("/") {
        target.request = Uri::from_static("/readyz");
    }
    let left = LIMIT.saturating_sub(started.elapsed());
    let answer = block_on(async {
        let answer = ask(&target, Request::new(Full::new(Bytes::new())), left, None).await;
        answer.map_err(|error| Failure::Failed(format!("not ready: {error}")))
    })?;
    let said = printable(&answer.body, true);
    let said = said.trim();
    if answer.status == StatusCode::OK {
        writeln!(out, "{}", if said.is_empty() { "ready" } else { said })?;
        return Ok(Ended::Well);
    }
    let status = answer.status;
    Err(Failure::Failed(if said.is_empty() {
        format!("not ready: {status}")
    } else {
        format!("{said} ({status})")
    }))
}

fn configured(path: &Path) -> Result<Target, Failure> {
    let listen = config::ops_listen(path, &Patience::of(FILE_LIMIT)).map_err(Failure::Configuration)?;
    let url = url(listen).map_err(|why| Failure::Usage(format!("{}: {why}", path.display())))?;
    Target::parse(&url).map_err(|error| Failure::Usage(format!("{url}: {error}")))
}

/// Where the service that listens there can be asked from the same machine.
fn url(mut address: SocketAddr) -> Result<String, String> {
    if address.port() == 0 {
        return Err(
            "`ops.listen` has port 0, so the kernel chose the port: give --url URL with the one that \
                    the log's `listening` line shows"
                .into(),
        );
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(format!("http://{address}/readyz"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_one_that_can_be_asked() {
        for (listen, expected) in [
            ("0.0.0.0:9090", "http://127.0.0.1:9090/readyz"),
            ("[::]:9091", "http://[::1]:9091/readyz"),
            ("127.0.0.1:80", "http://127.0.0.1:80/readyz"),
            ("10.1.2.3:9090", "http://10.1.2.3:9090/readyz"),
        ] {
            assert_eq!(url(listen.parse().unwrap()).unwrap(), expected);
        }
        assert!(url("127.0.0.1:0".parse().unwrap()).unwrap_err().contains("port 0"));
    }
}
