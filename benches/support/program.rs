//! The program, running beside a bench.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

/// No wait is longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// One that was started. Killed on drop.
pub(crate) struct Program {
    pub(crate) child: Child,
    /// Where deliveries go.
    pub(crate) webhook: SocketAddr,
    pub(crate) ops: SocketAddr,
}

impl Program {
    /// Starts a service with this configuration, whose log must be JSON and have its `info` lines at the start.
    pub(crate) fn start(program: &Path, config: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program)
            .args(["run", "--config"])
            .arg(config)
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut listening = |listener: &str| loop {
            let line = lines.next().unwrap().unwrap();
            let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
            if entry["message"] == "listening" && entry["listener"] == listener {
                return entry["address"].as_str().unwrap().parse().unwrap();
            }
        };
        let (webhook, ops) = (listening("webhook"), listening("ops"));
        // The log must be read on, or it would fill its pipe.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, webhook, ops }
    }

    /// What the ops listener answers.
    pub(crate) fn ops(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(self.ops).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }

    /// Tells it to drain, and waits for its end.
    pub(crate) fn end(mut self) -> ExitStatus {
        signal(self.child.id(), "TERM");
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a signal by the program that every system has for that.
pub(crate) fn signal(pid: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
}
