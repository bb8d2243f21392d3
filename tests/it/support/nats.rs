//! A NATS server of the test's own.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
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
        let address = free();
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
        self.launch();
        self.wait();
    }

    fn launch(&mut self) {
        self.kill();
        let config =
            format!("jetstream {{ store_dir: {:?} }}\n{}\n", self.dir.path().join("js"), self.config);
        let config = self.dir.write("nats.conf", config);
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(config).args(["-a", "127.0.0.1", "-p", &self.address.port().to_string()]);
        command.arg("-l").arg(self.log()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("nats-server is installed"));
    }

    /// Where it keeps a stream.
    pub(crate) fn folder_of(&self, stream: &str) -> PathBuf {
        self.dir.path().join("js/jetstream/$G/streams").join(stream)
    }

    /// Where it keeps everything.
    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().join("js")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("nats.log")
    }

    fn wait(&self) {
        eventually("nats-server is ready", || {
            let ready = std::fs::read_to_string(self.log()).unwrap_or_default();
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

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Three servers that keep everything together, each on ports of its own.
#[derive(Debug)]
pub(crate) struct NatsCluster {
    servers: Vec<NatsServer>,
}

impl NatsCluster {
    const SIZE: usize = 3;

    pub(crate) fn start() -> Self {
        let ports: Vec<_> = (0..Self::SIZE).map(|_| free()).collect();
        let routes: Vec<_> = ports.iter().map(|address| format!("\"nats://{address}\"")).collect();
        let server = |number: usize| {
            let config = format!(
                "server_name: {}\ncluster {{ name: test, listen: \"{}\", routes: [ {} ] }}",
                Self::name(number),
                ports[number],
                routes.join(", "),
            );
            NatsServer::stopped(TempDir::new(), &config)
        };
        let mut servers: Vec<_> = (0..Self::SIZE).map(server).collect();
        servers.iter_mut().for_each(NatsServer::launch);
        servers.iter().for_each(NatsServer::wait);
        Self { servers }
    }

    /// What a server calls itself.
    pub(crate) fn name(number: usize) -> String {
        format!("server-{number}")
    }

    /// The server that calls itself so.
    pub(crate) fn server(&mut self, name: &str) -> &mut NatsServer {
        let number = (0..Self::SIZE).find(|number| Self::name(*number) == name);
        &mut self.servers[number.unwrap()]
    }

    /// All servers.
    pub(crate) fn url(&self) -> String {
        self.servers.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }
}
