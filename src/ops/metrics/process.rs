//! What every program on Prometheus says about its process. Read from the system at each scrape; where that says nothing,
//! nothing is written.

use std::{fmt::Write as _, fs, time::SystemTime};

use rustix::{
    param::page_size,
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// Writes the families of the process, in OpenMetrics.
pub(super) fn write(text: &mut String, started: SystemTime) {
    let mut family = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        let ending = if kind == "counter" { "_total" } else { "" };
        writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name}{ending} {value}")
            .expect("writing to a String does not fail");
    };
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let nanoseconds = u32::try_from(used.tv_nsec).unwrap_or_default();
    let seconds = u32::try_from(used.tv_sec).map_or(f64::MAX, f64::from);
    family("process_cpu_seconds", "counter", "Processor time", Some(seconds + f64::from(nanoseconds) / 1e9));
    family("process_resident_memory_bytes", "gauge", "Memory that is in use", resident());
    family("process_open_fds", "gauge", "Open file descriptors", open_descriptors());
    let most = getrlimit(Resource::Nofile).current.map(number);
    family("process_max_fds", "gauge", "The most file descriptors that may be open", most);
    let started = started.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
    family("process_start_time_seconds", "gauge", "When the process started", started);
}

fn resident() -> Option<f64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(number(pages.saturating_mul(u64::try_from(page_size()).ok()?)))
}

/// Without the one that counts them.
fn open_descriptors() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(number(u64::try_from(count.saturating_sub(1)).ok()?))
}

#[expect(clippy::as_conversions, reason = "what is beyond 2^53 loses its last digits, and nothing else")]
fn number(count: u64) -> f64 {
    count as f64
}
