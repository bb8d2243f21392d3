//! A scripted upstream: records each request as it came over the wire and answers as it is told.

use std::{
    io::{self, BufReader, Read, Write},
    net::{Shutdown, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustls::ServerConfig;

use super::{
    Gate, Journal, tls,
    wire::{Address, Head, Socket, read_body, read_head},
};

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
    /// Which connection it came on, from 1.
    pub(crate) connection: usize,
    /// Its place on that connection, from 1.
    pub(crate) turn: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    Hold(Gate),
    Close,
    CloseAtNextByte,
}

/// What the upstream does with a request: steps one after another, then the next request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply(Vec<Step>);

impl Reply {
    /// A whole answer with a length, the connection kept.
    pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut bytes = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        Self::raw([bytes.as_bytes(), body].concat())
    }

    pub(crate) fn ok() -> Self {
        Self::answer(200, &[("content-type", "text/plain")], "done")
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::answer(status, &[("content-type", "text/plain")], format!("status {status}"))
    }

    /// Any bytes.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self(vec![Step::Send(bytes.into())])
    }

    /// Nothing, until the gate opens; then what `then` says.
    pub(crate) fn held(gate: &Gate, then: Self) -> Self {
        Self([vec![Step::Hold(gate.clone())], then.0].concat())
    }

    /// No answer at all, the connection open.
    pub(crate) fn silence() -> Self {
        Self(vec![Step::Hold(Gate::new())])
    }

    /// The connection closed without an answer.
    pub(crate) fn hang_up() -> Self {
        Self(vec![Step::Close])
    }

    /// These steps, then those.
    pub(crate) fn then(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// And the connection closed.
    pub(crate) fn and_close(self) -> Self {
        self.then(Self(vec![Step::Close]))
    }

    /// And the connection left open until the next request begins, then closed in its face.
    pub(crate) fn and_close_at_next_byte(self) -> Self {
        self.then(Self(vec![Step::CloseAtNextByte]))
    }
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// The running upstream. Its threads end with the connections.
pub(crate) struct Upstream {
    address: Address,
    shared: Arc<Shared>,
}

struct Shared {
    requests: Journal<Request>,
    connections: AtomicUsize,
    closed: Journal<usize>,
    script: Mutex<Arc<Script>>,
}

impl Upstream {
    /// Answers every request alike.
    pub(crate) fn always(reply: Reply) -> Self {
        Self::scripted(move |_| reply.clone())
    }

    /// Answers each request with the next of the list, counted over all connections, and whatever comes
    /// later with the last.
    pub(crate) fn listed(replies: impl IntoIterator<Item = Reply>) -> Self {
        let replies: Vec<_> = replies.into_iter().collect();
        let next = AtomicUsize::new(0);
        Self::scripted(move |_| {
            let turn = next.fetch_add(1, Ordering::SeqCst).min(replies.len() - 1);
            replies[turn].clone()
        })
    }

    /// Answers as the script says.
    pub(crate) fn scripted(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// Answers every request alike, at this address.
    pub(crate) fn at(address: &str, reply: Reply) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::listening(listener, move |_| reply.clone())
    }

    fn listening(listener: TcpListener, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let address = Address::Tcp(listener.local_addr().unwrap());
        Self::serve(address, script, move || Some(Socket::Tcp(listener.accept().ok()?.0)))
    }

    /// Answers every request alike, over TLS.
    pub(crate) fn over_tls(config: Arc<ServerConfig>, reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let script = move |_: &Request| reply.clone();
        Self::serve(address, script, move || tls::accept(listener.accept().ok()?.0, Arc::clone(&config)).ok())
    }

    /// Says these bytes as soon as anything comes, and closes.
    pub(crate) fn at_first_byte(bytes: &[u8]) -> Self {
        let (listener, bytes) = (TcpListener::bind("127.0.0.1:0").unwrap(), bytes.to_vec());
        let address = Address::Tcp(listener.local_addr().unwrap());
        let accept = move || {
            let (mut stream, _) = listener.accept().ok()?;
            drop(stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(&bytes)));
            // It is not torn down before it is read.
            drop(stream.shutdown(Shutdown::Write));
            drop(io::copy(&mut stream, &mut io::sink()));
            Some(Socket::Tcp(stream))
        };
        Self::serve(address, |_| Reply::hang_up(), accept)
    }

    /// The URL of the path that the tests use, over TLS, with this name in it.
    pub(crate) fn https(&self, host: &str) -> String {
        let Address::Tcp(address) = &self.address else { panic!("TLS over TCP only") };
        format!("https://{host}:{}/upstream", address.port())
    }

    /// Answers every request alike, on a unix socket.
    pub(crate) fn on_unix_socket(path: &Path, reply: Reply) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let address = Address::Unix(path.to_owned());
        let script = move |_: &Request| reply.clone();
        Self::serve(address, script, move || Some(Socket::Unix(listener.accept().ok()?.0)))
    }

    fn serve(
        address: Address,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        accept: impl Fn() -> Option<Socket> + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            requests: Journal::default(),
            connections: AtomicUsize::new(0),
            closed: Journal::default(),
            script: Mutex::new(Arc::new(script)),
        });
        let for_threads = Arc::clone(&shared);
        thread::spawn(move || {
            while let Some(socket) = accept() {
                let shared = Arc::clone(&for_threads);
                let connection = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
                thread::spawn(move || {
                    shared.converse(socket, connection);
                    shared.closed.push(connection);
                });
            }
        });
        Self { address, shared }
    }

    /// From now on, answers as this script says.
    pub(crate) fn now(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The URL of the path that the tests use.
    pub(crate) fn url(&self) -> String {
        self.address.url("/upstream")
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.all()
    }

    /// Waits until so many connections are closed.
    pub(crate) fn wait_for_closed(&self, count: usize) {
        let closed = self.shared.closed.wait(|closed| (closed.len() >= count).then_some(()));
        closed.unwrap_or_else(|| panic!("fewer than {count} connections were closed"));
    }

    /// Waits until at least so many requests have come.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Request> {
        self.shared
            .requests
            .wait(|requests| (requests.len() >= count).then(|| requests.to_vec()))
            .unwrap_or_else(|| panic!("the upstream saw {} of {count} requests", self.requests().len()))
    }

    /// The one request that came.
    pub(crate) fn only_request(&self) -> Request {
        let mut requests = self.wait_for(1);
        assert_eq!(requests.len(), 1, "the upstream saw more than one request: {requests:?}");
        requests.remove(0)
    }
}

impl Shared {
    fn converse(&self, socket: Socket, connection: usize) {
        socket.prepare().unwrap();
        let mut stream = BufReader::new(socket);
        for turn in 1.. {
            let Ok(Some(head)) = read_head(&mut stream) else { return };
            let Ok(body) = read_body(&mut stream, &head, false) else { return };
            let request = Request { head, body: body.bytes, trailers: body.trailers, connection, turn };
            let script = Arc::clone(&*self.script.lock().unwrap());
            let reply = script(&request);
            self.requests.push(request);
            for step in reply.0 {
                match step {
                    Step::Send(bytes) => {
                        if stream.get_mut().write_all(&bytes).is_err() {
                            return;
                        }
                    }
                    Step::Hold(gate) => drop(gate.wait()),
                    Step::Close => return,
                    Step::CloseAtNextByte => {
                        drop(stream.read(&mut [0]));
                        return;
                    }
                }
            }
        }
    }
}
