//! A NATS server of the test's own.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use super::{TempDir, eventually};

/// A server with JetStream, on a port of its own. It can be killed and started again with what it stored.
#[derive(Debug)]
pub(crate) struct NatsServer {
    dir: TempDir,
    address: SocketAddr,
    config: String,
    child: Option<Child>,
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        Self::with(TempDir::new(), "")
    }

    /// One whose folder has files already, with more lines of configuration. `{dir}` in them is the folder.
    pub(crate) fn with(dir: TempDir, config: &str) -> Self {
        let mut this = Self::stopped(dir, config);
        this.restart();
        this
    }

    /// One that is not there yet.
    pub(crate) fn stopped(dir: TempDir, config: &str) -> Self {
        // A port that was free a moment ago.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let config = config.replace("{dir}", dir.path().to_str().unwrap());
        Self { dir, address, config, child: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it, on the same port and with what it stored.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let config =
            format!("jetstream {{ store_dir: {:?} }}\n{}\n", self.dir.path().join("js"), self.config);
        let config = self.dir.write("nats.conf", config);
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(config).args(["-a", "127.0.0.1", "-p", &self.address.port().to_string()]);
        let log = self.dir.path().join("nats.log");
        command.arg("-l").arg(&log).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("nats-server is installed"));
        eventually("nats-server is ready", || {
            let ready = std::fs::read_to_string(&log).unwrap_or_default();
            let ready = ready.matches("Server is ready").count();
            (ready > 0).then(|| TcpStream::connect(self.address).ok()).flatten()
        });
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
