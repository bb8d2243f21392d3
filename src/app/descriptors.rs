//! File descriptors: as many as the system allows, and a warning where that is fewer than the connections may need.
//!
//! Without any left the service pauses accepting, so too few of them are not a mistake.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, Mistake};

/// For what is not a connection of a sender or towards the service: listeners, the ops listener's connections, idle
/// connections to services, files being read.
const BESIDE_CONNECTIONS: u64 = 256;

/// Raises the soft limit on open files to the hard one, from now on.
///
/// # Errors
///
/// What the kernel says.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// A warning, if the connections that the configuration allows may need more descriptors than the hard limit.
pub(super) fn doubt_descriptors(config: &Config) -> Option<Mistake> {
    doubt(config, getrlimit(Resource::Nofile).maximum?)
}

fn doubt(config: &Config, allowed: u64) -> Option<Mistake> {
    let connections = config.server.connections.max_connections;
    // One for the sender and one for the service, each.
    let needed = u64::try_from(connections).ok()?.checked_mul(2)?.checked_add(BESIDE_CONNECTIONS)?;
    (needed > allowed).then(|| Mistake {
        file: config.path.clone(),
        place: None,
        key: "server.max_connections".to_owned(),
        text: format!(
            "{connections} connections may need {needed} open files, and the system allows {allowed}: raise its hard \
             limit (`LimitNOFILE=`, `ulimit -Hn`) or lower `max_connections`; when none are left, connections must wait"
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn everything_that_may_be_had_is_taken() {
        raise_descriptor_limit().unwrap();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
    }

    #[test]
    fn more_connections_than_there_may_be_files_are_doubtful() {
        let text = "[[webhook]]\npath = \"/hook\"\nevents = [\"*\"]\n\
                    secret = { file = \"tests/data/config/files/secret\" }\n\
                    [[webhook.destination]]\nurl = \"http://127.0.0.1:1/\"\n";
        let config =
            Config::parse(Path::new("hookgate.toml"), text).unwrap_or_else(|report| panic!("{report}"));
        // The default, 1024 connections, twice, and what stands beside them.
        assert_eq!(doubt(&config, 2304), None);
        let warning = doubt(&config, 2303).unwrap().to_string();
        assert!(warning.contains("1024 connections may need 2304 open files"), "{warning}");
    }
}
