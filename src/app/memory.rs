//! Memory: a warning where the container may have less than the service may need.
//!
//! How much it may need without anybody knowing a secret is promised in SECURITY.md and held by a test. Beyond its
//! container's limit the kernel ends it.

use std::path::{Component, Path};

use crate::{
    config::{Config, Mistake, show_size},
    files::{PATIENCE, read},
};

/// For a connection beside its body.
const PER_CONNECTION: u64 = 80 << 10;
/// The same with TLS.
const PER_TLS_CONNECTION: u64 = 160 << 10;
/// The longest head for which the two above hold.
const HEADER: u64 = 16 << 10;
/// For everything else.
const BESIDE: u64 = 32 << 20;

/// A warning, if the service may need more memory than its container has.
pub(super) fn doubt_memory(config: &Config) -> Option<Mistake> {
    doubt(config, limit_below(Path::new("/"))?)
}

/// The most memory that the service may take.
fn bound(config: &Config) -> u64 {
    let connection = if config.tls.is_some() { PER_TLS_CONNECTION } else { PER_CONNECTION };
    let many = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let connection =
        connection.saturating_add(many(config.server.connections.max_header).saturating_sub(HEADER));
    many(config.server.connections.max_connections)
        .saturating_mul(connection)
        .saturating_add(many(config.server.max_inflight_bytes))
        .saturating_add(BESIDE)
}

fn doubt(config: &Config, limit: u64) -> Option<Mistake> {
    let bound = bound(config);
    let mebi = |bytes: u64| show_size(bytes.div_ceil(1 << 20) << 20);
    (bound > limit).then(|| Mistake {
        file: config.path.clone(),
        place: None,
        key: "server.max_inflight_bytes".to_owned(),
        text: format!(
            "the service may need {} of memory, but its container has {}, and beyond that the kernel kills it: give it more, or lower `max_inflight_bytes` or `max_connections`",
            mebi(bound),
            show_size(limit),
        ),
    })
}

/// The memory that this process' control groups, and all above them, let it have: the least of them. `root` is `/`.
fn limit_below(root: &Path) -> Option<u64> {
    let groups = text(&root.join("proc/self/cgroup"))?;
    groups.lines().filter_map(|line| limit_of(root, line)).min()
}

/// The limit of one line of `/proc/self/cgroup`: version 2 is `0::/PATH`, version 1 `N:CONTROLLERS:/PATH`.
fn limit_of(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (mount, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    // Seen from inside a container the path may be that of the host, or lead out: the mount's own limit counts always.
    let parts = Path::new(path).components().filter_map(|part| match part {
        Component::Normal(part) => Some(part),
        _ => None,
    });
    let mut group = root.join(mount);
    let mut groups = vec![group.clone()];
    for part in parts {
        group.push(part);
        groups.push(group.clone());
    }
    groups.into_iter().filter_map(|group| number_in(&group.join(file))).min()
}

/// The number in a file; a value larger than any machine's memory is not a limit.
fn number_in(file: &Path) -> Option<u64> {
    const NONE: u64 = 1 << 60;
    text(file)?.trim().parse().ok().filter(|number| *number < NONE)
}

fn text(file: &Path) -> Option<String> {
    let content = read(file, 64 << 10, PATIENCE).ok()?;
    String::from_utf8(content.bytes.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path = std::env::temp_dir().join(format!("hookgate-memory-{}-{name}", std::process::id()));
            for (file, content) in files {
                let file = path.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, content).unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn limit(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        limit_below(&Root::new(name, files).0)
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let own = ("proc/self/cgroup", "0::/kube/pod/one\n");
        let unlimited = ("sys/fs/cgroup/kube/pod/one/memory.max", "max\n");
        assert_eq!(
            limit("v2", &[own, unlimited, ("sys/fs/cgroup/kube/memory.max", "67108864\n")]),
            Some(64 << 20)
        );
        assert_eq!(limit("v2-none", &[own, unlimited]), None);
        // Inside a container, where the root of the mount is the group itself.
        let inside = ("proc/self/cgroup", "0::/\n");
        assert_eq!(limit("v2-in", &[inside, ("sys/fs/cgroup/memory.max", "1000\n")]), Some(1000));
        let out = ("proc/self/cgroup", "0::/../../x\n");
        assert_eq!(limit("v2-out", &[out, ("sys/fs/cgroup/memory.max", "1000\n")]), Some(1000));
        let old = ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a/b\n");
        let unlimited = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(
            limit("v1", &[old, unlimited, ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "2000\n")]),
            Some(2000)
        );
        assert_eq!(limit("v1-none", &[old, unlimited]), None);
        assert_eq!(limit("nothing", &[("proc/self/x", "")]), None);
    }

    #[test]
    fn a_container_with_less_than_the_bound_is_warned_of() {
        let text = "[[webhook]]\npath = \"/hook\"\nevents = [\"*\"]\n\
                    secret = { file = \"tests/data/config/files/secret\" }\n\
                    [[webhook.destination]]\nurl = \"http://127.0.0.1:1/\"\n";
        let parse = |text: &str| {
            Config::parse(Path::new("hookgate.toml"), text).unwrap_or_else(|report| panic!("{report}"))
        };
        let config = parse(text);
        assert_eq!(doubt(&config, 176 << 20), None);
        let warning = doubt(&config, (176 << 20) - 1).unwrap().to_string();
        assert!(warning.contains("may need 176MiB of memory"), "{warning}");
        assert!(doubt(&parse(&format!("server.max_header = \"17KiB\"\n{text}")), 176 << 20).is_some());
        let files = "tests/data/config/files";
        let tls =
            format!("server.tls = {{ cert = \"{files}/server.crt\", key = \"{files}/server.key\" }}\n{text}");
        assert_eq!(doubt(&parse(&tls), 256 << 20), None);
        assert!(doubt(&parse(&tls), 192 << 20).is_some());
    }
}
