//! What happens to the queue's disk: full, read-only, at its limit, stalled, gone. What was accepted stays, what cannot be committed is
//! refused, and when the disk is there again the service goes on by itself.

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use crate::support::{
    Delivery, Gate, Hookgate, Instant, Reply, Setup, TempDir, Upstream, Webhook, cannot, eventually,
    faketime, program,
};

const APP: [(&str, &str); 2] = [("webhook", "hook"), ("destination", "default")];

/// A service whose queue lies on a file system of 4 MiB that nobody else sees.
fn on_a_small_disk(upstream: &Upstream) -> Hookgate {
    queued("/mnt/queue.db", upstream)
        .launched_by(&[
            "bwrap",
            "--die-with-parent",
            "--dev-bind",
            "/",
            "/",
            "--size",
            "4194304",
            "--tmpfs",
            "/mnt",
        ])
        .start()
}

fn queued(path: &str, upstream: &Upstream) -> Setup {
    let queue = format!("[queue]\npath = {path:?}\nbackoff = {{ initial = \"10ms\", max = \"100ms\" }}");
    Setup::bare().section(&queue).with(Webhook::to(&upstream.url()))
}

/// The process of the service, which the launcher has started.
fn service(hookgate: &Hookgate) -> u32 {
    let mut id = hookgate.id();
    loop {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        match children.split_whitespace().next() {
            Some(child) => id = child.parse().unwrap(),
            None => return id,
        }
    }
}

fn disk(hookgate: &Hookgate) -> PathBuf {
    format!("/proc/{}/root/mnt", service(hookgate)).into()
}

/// Sends until it is refused because of the queue; what was accepted before.
#[track_caller]
fn fill(hookgate: &Hookgate) -> Vec<String> {
    let mut accepted = Vec::new();
    loop {
        let delivery = Delivery::good_with(&"x".repeat(50_000));
        let answer = hookgate.send(&delivery);
        if answer.status != 202 {
            answer.assert_refused(503, "queue_unavailable");
            assert!(answer.header("retry-after").is_some());
            return accepted;
        }
        accepted.push(delivery.header_value("pulumi-webhook-id").to_owned());
        assert!(accepted.len() < 1000, "it is never full");
    }
}

#[track_caller]
fn assert_all_arrive(upstream: &Upstream, accepted: &[String]) {
    eventually("every accepted delivery arrives", || {
        let seen = upstream.requests();
        let arrived =
            |id: &String| seen.iter().any(|request| request.header("pulumi-webhook-id") == Some(id));
        accepted.iter().all(arrived).then_some(())
    });
}

#[track_caller]
fn assert_ready(hookgate: &Hookgate, ready: bool) {
    let what = format!("ready: {ready}");
    let text = eventually(&what, || {
        let answer = hookgate.ops("/readyz");
        ((answer.status == 200) == ready).then(|| answer.text())
    });
    if !ready {
        assert!(text.contains("queue"), "{text}");
    }
    assert_eq!(hookgate.ops("/livez").status, 200);
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    if cannot("mount") {
        return;
    }
    let upstream = Upstream::always(Reply::status(503));
    let hookgate = on_a_small_disk(&upstream);
    let accepted = fill(&hookgate);
    assert!(accepted.len() > 5, "{}", accepted.len());
    assert_ready(&hookgate, false);
    // What makes attempts cannot record them now, and makes no more of them than there are places.
    upstream.now(|_| Reply::ok());
    let all: usize = fs::read_dir(disk(&hookgate))
        .unwrap()
        .map(|file| usize::try_from(file.unwrap().metadata().unwrap().len()).unwrap())
        .sum();
    assert!(all <= 4 << 20, "{all}");
    let mount = Command::new("nsenter")
        .args(["-t", &service(&hookgate).to_string(), "-m", "mount", "-o", "remount,size=64m", "/mnt"])
        .output()
        .unwrap();
    assert!(mount.status.success(), "{mount:?}");
    assert_ready(&hookgate, true);
    let late = Delivery::good();
    assert_eq!(hookgate.send(&late).said(), (202, "queued"));
    assert_all_arrive(&upstream, &accepted);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
}

/// A file system of its own, on a file.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(TempDir::new());
        let image = disk.0.path().join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        done(Command::new("mkfs.ext4").arg("-q").arg(&image));
        fs::create_dir(disk.at()).unwrap();
        disk.mount();
        disk
    }

    fn at(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    fn mount(&self) {
        done(Command::new("mount").args(["-o", "loop"]).arg(self.0.path().join("image")).arg(self.at()));
    }

    fn unmount(&self) {
        done(Command::new("umount").arg(self.at()));
        // The device lets go of the file somewhat later.
        eventually("the file is free", || {
            let devices =
                Command::new("losetup").arg("-j").arg(self.0.path().join("image")).output().unwrap();
            (devices.status.success() && devices.stdout.is_empty()).then_some(())
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["-l", "-q"]).arg(self.at()).status());
    }
}

#[track_caller]
fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// What a kernel does when a disk fails: the file system takes no more writes.
#[test]
fn a_disk_that_turns_read_only_refuses_and_what_was_accepted_is_still_there() {
    if cannot("mount") {
        return;
    }
    let disk = Disk::new();
    let upstream = Upstream::always(Reply::status(503));
    let path = disk.at().join("queue.db");
    let hookgate = queued(path.to_str().unwrap(), &upstream).start();
    let waiting = Delivery::good();
    assert_eq!(hookgate.send(&waiting).said(), (202, "queued"));
    done(Command::new("mount").args(["-o", "remount,abort"]).arg(disk.at()));
    assert_eq!(fill(&hookgate), Vec::<String>::new());
    assert_ready(&hookgate, false);
    drop(hookgate);
    disk.unmount();
    // 1: it was repaired.
    let check = Command::new("e2fsck").arg("-fy").arg(disk.0.path().join("image")).output().unwrap();
    assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
    disk.mount();
    upstream.now(|_| Reply::ok());
    let hookgate = queued(path.to_str().unwrap(), &upstream).start();
    hookgate.wait_for_metric("hookgate_attempts_total", &[APP[0], APP[1], ("result", "delivered")], 1.0);
    assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
}

/// A disk that takes its time: nobody waits for ever, and what was promised is what is there.
#[test]
fn a_slow_disk_refuses_in_time_and_recovers() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = queued("{dir}/queue.db", &upstream)
        .environment("FAILPOINTS", "commit=2*off->1*sleep(9000)->off")
        .start();
    let mut refused = 0;
    while refused == 0 {
        let answer = hookgate.send(&Delivery::good());
        if answer.status != 202 {
            answer.assert_refused(503, "queue_unavailable");
            refused += 1;
        }
    }
    assert_ready(&hookgate, false);
    assert_ready(&hookgate, true);
    assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
}

#[test]
fn a_limit_on_the_size_of_files_refuses_and_kills_nobody() {
    let upstream = Upstream::always(Reply::status(503));
    let hookgate =
        queued("{dir}/queue.db", &upstream).launched_by(&["prlimit", "--fsize=3000000:unlimited"]).start();
    let accepted = fill(&hookgate);
    assert!(accepted.len() > 5, "{}", accepted.len());
    assert_ready(&hookgate, false);
    let raised = Command::new("prlimit")
        .args(["--pid", &hookgate.id().to_string(), "--fsize=unlimited:unlimited"])
        .status()
        .unwrap();
    assert!(raised.success());
    upstream.now(|_| Reply::ok());
    assert_ready(&hookgate, true);
    assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
    assert_all_arrive(&upstream, &accepted);
}

#[test]
fn a_removed_file_is_put_back_and_its_deliveries_survive_a_kill() {
    let upstream = Upstream::always(Reply::status(503));
    let mut hookgate = queued("{dir}/queue.db", &upstream).start();
    let waiting = Delivery::good();
    assert_eq!(hookgate.send(&waiting).said(), (202, "queued"));
    for name in ["queue.db", "queue.db-wal", "queue.db-shm"] {
        fs::remove_file(hookgate.dir().join(name)).unwrap();
    }
    hookgate.wait_for_line(|line| line.contains("put back"));
    assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
    hookgate.restart("KILL");
    upstream.now(|_| Reply::ok());
    assert_all_arrive(&upstream, &[waiting.header_value("pulumi-webhook-id").to_owned()]);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
}

#[test]
fn a_file_that_cannot_be_used_is_a_mistake_of_the_configuration() {
    let upstream = Upstream::always(Reply::ok());
    let setup = queued("{dir}/queue.db", &upstream)
        .file("queue.db", "no database at all, and long enough to be read");
    let config = setup.write();
    let output = program().arg("run").arg("--config").arg(&config).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("queue.db is damaged"), "{errors}");
    assert_eq!(
        fs::read_to_string(setup.dir().join("queue.db")).unwrap(),
        "no database at all, and long enough to be read"
    );
}

/// A `fdatasync` that waits as long as there is a certain file.
const STALLING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
int fdatasync(int file) {
    while (access(getenv("STALLED"), F_OK) == 0) usleep(10000);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}
"#;

/// How long the disk stalls: long enough for a leak to be seen, and as long as one likes by `HOOKGATE_STALL_SECONDS`.
fn stall_length() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "the length of a test is nobody's configuration")]
    let seconds = std::env::var("HOOKGATE_STALL_SECONDS").map_or(14, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// However many come and are refused meanwhile: memory stays within its bound, and no verdict, no lease and no promise is lost.
#[test]
fn a_disk_that_stalls_holds_no_more_than_the_budget_and_leaks_no_lease() {
    const SENDERS: usize = 40;
    let folder = TempDir::new();
    let library = folder.path().join("stalling.so");
    let source = folder.write("stalling.c", STALLING);
    done(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl"));
    let stalled = folder.path().join("stalled");
    let gate = Gate::new();
    let upstream = Upstream::always(Reply::held(&gate, Reply::status(503)));
    let hookgate = queued("{dir}/queue.db", &upstream)
        .server("max_inflight_bytes = \"8MiB\"")
        .environment("LD_PRELOAD", library.to_str().unwrap())
        .environment("STALLED", stalled.to_str().unwrap())
        .start();
    // Under way when the disk stops.
    let mut accepted = Vec::new();
    for _ in 0..8 {
        let delivery = Delivery::good();
        assert_eq!(hookgate.send(&delivery).said(), (202, "queued"));
        accepted.push(delivery);
    }
    upstream.wait_for(8);
    fs::write(&stalled, "").unwrap();
    let began = Instant::now();
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let address = hookgate.address().clone();
            thread::spawn(move || {
                let mut promised = Vec::new();
                let mut refused = 0_usize;
                while began.elapsed() < stall_length() {
                    let delivery = Delivery::good_with(&"x".repeat(900_000));
                    let began = Instant::now();
                    match delivery.send(&address).status {
                        202 => promised.push(delivery),
                        503 => refused += 1,
                        status => panic!("{status}"),
                    }
                    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
                    thread::park_timeout(Duration::from_millis(100));
                }
                (promised, refused)
            })
        })
        .collect();
    // The outcomes of what is under way come while nothing can be written.
    gate.open();
    upstream.now(|_| Reply::ok());
    eventually("it is not ready", || (hookgate.ops("/readyz").status == 503).then_some(()));
    thread::park_timeout(stall_length().saturating_sub(began.elapsed()));
    let most = hookgate.memory("VmHWM");
    fs::remove_file(&stalled).unwrap();
    let mut refused = 0;
    for sender in senders {
        let (promised, not) = sender.join().unwrap();
        accepted.extend(promised);
        refused += not;
    }
    println!("{} accepted, {refused} refused, {most} KiB at most", accepted.len());
    assert!(refused > SENDERS, "{refused}");
    assert!(most < 80 << 10, "{most} KiB");
    let ids: Vec<_> = accepted.iter().map(|it| it.header_value("pulumi-webhook-id").to_owned()).collect();
    assert_all_arrive(&upstream, &ids);
    hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    assert_ready(&hookgate, true);
    for delivery in &accepted[..8] {
        hookgate.send(delivery).assert_own("duplicate");
    }
    // Each of the first was tried again once: what became of it was recorded.
    for id in &ids[..8] {
        let tries: Vec<_> = upstream
            .requests()
            .iter()
            .filter(|request| request.header("pulumi-webhook-id") == Some(id))
            .map(|request| request.header("hookgate-attempt").unwrap().to_owned())
            .collect();
        assert_eq!(tries, ["1", "2"], "{id}");
    }
}

/// A rolling update on one volume: the new one starts before the old one is gone.
#[test]
fn a_second_service_has_the_queue_when_the_first_is_gone() {
    let upstream = Upstream::always(Reply::status(503));
    let shared = TempDir::new();
    let path = shared.path().join("queue.db");
    let path = path.to_str().unwrap();
    let mut first = queued(path, &upstream).start();
    let delivery = Delivery::good();
    assert_eq!(first.send(&delivery).said(), (202, "queued"));
    let end = thread::spawn(move || {
        thread::park_timeout(Duration::from_millis(1500));
        first.signal("TERM");
        assert_eq!(first.wait_exit().code(), Some(0));
    });
    let second = queued(path, &upstream).start();
    second.wait_for_line(|line| line.contains("waiting for its end"));
    end.join().unwrap();
    upstream.now(|_| Reply::ok());
    second.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
    second.send(&delivery).assert_own("duplicate");
}

#[test]
fn who_has_the_file_open_at_the_end_is_said() {
    let upstream = Upstream::always(Reply::ok());
    let mut hookgate = queued("{dir}/queue.db", &upstream).start();
    assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
    let reader = rusqlite::Connection::open(hookgate.dir().join("queue.db")).unwrap();
    let count = |reader: &rusqlite::Connection| -> i64 {
        reader.query_row("SELECT count(*) FROM job", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&reader), 1);
    hookgate.signal("TERM");
    assert_eq!(hookgate.wait_exit().code(), Some(0));
    hookgate.wait_for_line(|line| line.contains("another program has the queue's file open"));
    assert_eq!(count(&reader), 1);
}

/// A `sqlite3` with an open transaction, and more than 256 MiB that come meanwhile.
#[test]
fn a_log_that_cannot_be_written_back_is_said() {
    let upstream = Upstream::always(Reply::ok());
    let hookgate = queued("{dir}/queue.db", &upstream).start();
    assert_eq!(hookgate.send(&Delivery::good()).said(), (202, "queued"));
    let reader = rusqlite::Connection::open(hookgate.dir().join("queue.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM job").unwrap();
    let log = hookgate.dir().join("queue.db-wal");
    let mut number = 0;
    while fs::metadata(&log).unwrap().len() <= 256 << 20 {
        let body = format!("{number}{}", "-".repeat(1_000_000));
        assert_eq!(hookgate.send(&Delivery::good_with(&body)).said(), (202, "queued"));
        number += 1;
    }
    hookgate.wait_for_line(|line| line.contains("write-ahead log is long"));
    drop(reader);
    // It is written back, and given back to the file system, with one of the next commits.
    eventually("the log is short again", || {
        hookgate.send(&Delivery::good_with(&format!("late {number}")));
        number += 1;
        (fs::metadata(&log).unwrap().len() <= 64 << 20).then_some(())
    });
}

/// The system's clock is set back by two hours, and on by 25, while a delivery waits for its next attempt.
#[test]
fn a_clock_that_steps_delays_and_kills_nothing() {
    for step in ["-2h", "+25h"] {
        let upstream = Upstream::always(Reply::status(503));
        let folder = TempDir::new();
        let time = folder.write("time", "+0");
        let hookgate = queued("{dir}/queue.db", &upstream)
            .environment("LD_PRELOAD", faketime().to_str().unwrap())
            .environment("FAKETIME_TIMESTAMP_FILE", time.to_str().unwrap())
            .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .environment("FAKETIME_NO_CACHE", "1")
            .start();
        let delivery = Delivery::good();
        assert_eq!(hookgate.send(&delivery).said(), (202, "queued"));
        upstream.wait_for(2);
        folder.write("time", step);
        // It goes on as before, and is not dead of an age that it does not have.
        let tries = upstream.requests().len();
        upstream.wait_for(tries + 5);
        upstream.now(|_| Reply::ok());
        hookgate.wait_for_metric("hookgate_queue_depth", &APP, 0.0);
        hookgate.wait_for_metric("hookgate_dead_letters", &APP, 0.0);
        hookgate.send(&delivery).assert_own("duplicate");
    }
}
