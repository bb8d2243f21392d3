//! `hookgate healthcheck`: asks a running hookgate whether it is ready, for containers without a shell.
//!
//! Of the configuration it reads the one line that it needs. A mistake elsewhere in a file that was changed under a
//! running service is not to make that service look ill: it goes on with its old settings.

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;

use super::{
    Ended, Failure, block_on, client,
    input::ConfigArgs,
    output::{Out, printable},
};
use crate::{ops, upstream::target::Target};

const EXAMPLES: &str = "\
Examples:
  hookgate healthcheck
  hookgate healthcheck --url http://127.0.0.1:9090/readyz

Without --url it asks /readyz at the address of `listen` under [ops] in the
configuration. Exit status: 0 ready, 1 not ready or no answer within 3 seconds,
2 wrong usage or configuration.";

/// How long the answer may take.
const LIMIT: Duration = Duration::from_secs(3);

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
    let mut target = match &args.url {
        Some(url) => url.clone(),
        None => configured(&args.config.path())?,
    };
    if target.request == Uri::from_static("/") {
        target.request = Uri::from_static("/readyz");
    }
    let answer = block_on(async {
        let answer = client::exchange(&target, Request::new(Full::new(Bytes::new())), LIMIT, None).await;
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

/// What is read of the configuration.
#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    ops: Ops,
}

#[derive(Debug, Default, Deserialize)]
struct Ops {
    listen: Option<String>,
}

fn configured(path: &Path) -> Result<Target, Failure> {
    let path_shown = path.display();
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::Usage(format!(
            "cannot read the configuration {path_shown}: {error}; give --config FILE or --url URL"
        ))
    })?;
    let url = url(&text).map_err(|why| Failure::Usage(format!("{path_shown}: {why}")))?;
    Target::parse(&url).map_err(|error| Failure::Usage(format!("{url}: {error}")))
}

/// Where the service of this configuration can be asked from the same machine.
fn url(text: &str) -> Result<String, String> {
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut address = match file.ops.listen {
        None => ops::Settings::default().listen,
        Some(listen) => listen
            .parse::<SocketAddr>()
            .or(Err(format!("`ops.listen` is `{listen}`, which is no IP address with a port")))?,
    };
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
            assert_eq!(url(&format!("[ops]\nlisten = \"{listen}\"\n")).unwrap(), expected);
        }
        assert_eq!(url("").unwrap(), "http://127.0.0.1:9090/readyz");
        assert_eq!(url("[ops]\n").unwrap(), "http://127.0.0.1:9090/readyz");
    }

    #[test]
    fn mistakes_elsewhere_do_not_matter() {
        assert!(url("unknown = 1\n[[webhook]]\nevents = 7\n").is_ok());
    }

    #[test]
    fn what_cannot_be_asked_is_said() {
        assert!(url("[ops]\nlisten = \"127.0.0.1:0\"").unwrap_err().contains("port 0"));
        assert!(url("[ops]\nlisten = \"here\"").unwrap_err().contains("`here`"));
        assert!(url("[ops").is_err());
    }
}
