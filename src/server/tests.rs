//! Answers that are streamed, and connections between two requests: over real sockets where these are waited for.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, advance, timeout},
};

use super::{
    accept::{serve, serve_connection},
    crowd::Crowd,
    drain::Drain,
    handler::Handler,
    limits::ConnectionLimits,
    listener::{Address, Listener},
    state::{ConnectionState, Peer},
    unreadable::Unreadable,
};

/// Answers each request with the pieces of the next channel.
#[derive(Clone, Default)]
struct Streams(Arc<Mutex<VecDeque<Pieces>>>);

/// A stream of what is sent into a channel.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    connection: Option<Arc<ConnectionState>>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.pieces.poll_recv(cx) {
            Poll::Pending if self.connection.as_ref().is_some_and(|connection| connection.is_closing()) => {
                Poll::Ready(None)
            }
            piece => piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
        }
    }
}

impl Handler for Streams {
    type Body = Pieces;

    async fn handle(&self, _: Request<Incoming>, connection: &Arc<ConnectionState>) -> Response<Self::Body> {
        let mut next = self.0.lock().unwrap().pop_front().expect("a stream for each request");
        next.connection = next.connection.map(|_| Arc::clone(connection));
        Response::new(next)
    }

    fn connection(&self, _: bool) {}

    fn evicted(&self) {}

    fn unreadable(&self, _: Unreadable, _: &str, _: Peer) {}
}

impl Streams {
    /// The next answer; `ends` with the drain.
    fn next(&self, ends: bool) -> mpsc::Sender<Bytes> {
        let (sender, pieces) = mpsc::channel(1);
        let (crowd, open) = (Crowd::new(1), |crowd: &Arc<Crowd>| crowd.open().place());
        let connection = ends.then(|| Arc::new(ConnectionState::new(open(&crowd), None)));
        self.0.lock().unwrap().push_back(Pieces { pieces, connection });
        sender
    }
}

const IDLE: Duration = Duration::from_millis(400);

/// Longer than anything takes that is to come.
const LONG: Duration = Duration::from_secs(10);

/// A server, with room for so many connections, and a connection to it.
struct Served {
    streams: Streams,
    drain: Drain,
    tasks: JoinSet<()>,
    address: std::net::SocketAddr,
}

impl Served {
    fn new(max_connections: usize) -> Self {
        let listener = Listener::bind(&Address::Tcp(([127, 0, 0, 1], 0).into()), 0).unwrap();
        let Address::Tcp(address) = listener.address().unwrap() else { panic!("TCP") };
        let (streams, drain) = (Streams::default(), Drain::default());
        let limits = ConnectionLimits { idle_timeout: IDLE, max_connections, ..ConnectionLimits::default() };
        let crowd = Crowd::new(max_connections);
        let mut tasks = JoinSet::new();
        let serving = serve(listener, None, limits, crowd, streams.clone(), drain.clone());
        tasks.spawn(async move { serving.await.unwrap() });
        Self { streams, drain, tasks, address }
    }

    async fn ask(&self) -> TcpStream {
        // What the kernel takes is little, so that the server soon hears of who does not read.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(32 << 10).unwrap();
        let mut socket = socket.connect(self.address).await.unwrap();
        ask_again(&mut socket).await;
        socket
    }
}

async fn ask_again(socket: &mut TcpStream) {
    socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
}

/// Reads until what came ends like this.
async fn read_until(socket: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut came = Vec::new();
    let reading = async {
        while !came.ends_with(end) {
            assert_ne!(socket.read_buf(&mut came).await.unwrap(), 0, "{}", came.escape_ascii());
        }
    };
    timeout(LONG, reading).await.expect("it comes");
    came
}

/// Nothing comes for so long.
async fn silent_for(socket: &mut TcpStream, time: Duration) {
    assert!(timeout(time, socket.read_u8()).await.is_err(), "something came, or the end");
}

#[tokio::test]
async fn a_stream_has_time_and_the_connection_is_idle_only_behind_it() {
    let served = Served::new(8);
    let (first, second) = (served.streams.next(false), served.streams.next(false));
    let mut socket = served.ask().await;
    read_until(&mut socket, b"\r\n\r\n").await;
    for _ in 0..2 {
        silent_for(&mut socket, 2 * IDLE).await;
        first.send("one".into()).await.unwrap();
        read_until(&mut socket, b"3\r\none\r\n").await;
    }
    drop(first);
    read_until(&mut socket, b"0\r\n\r\n").await;
    // The next request has the connection's idle time, and so has the one that does not come.
    ask_again(&mut socket).await;
    read_until(&mut socket, b"\r\n\r\n").await;
    drop(second);
    read_until(&mut socket, b"0\r\n\r\n").await;
    let idle = Instant::now();
    assert_eq!(timeout(LONG, socket.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert!(idle.elapsed() >= IDLE / 2, "{:?}", idle.elapsed());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_ends() {
    let served = Served::new(8);
    let pieces = served.streams.next(false);
    let _socket = served.ask().await;
    let sending = async { while pieces.send(vec![b'x'; 64 << 10].into()).await.is_ok() {} };
    timeout(LONG, sending).await.expect("the server lets go of it");
}

/// The server's buffer is never empty, and all of it takes much longer than the time for reading a whole answer. Without
/// a socket, so that the clock can stand still.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_slowly_goes_on_and_ends_when_it_is_read_no_more() {
    let streams = Streams::default();
    let pieces = streams.next(false);
    let (mut ours, theirs) = duplex(1024);
    let limits = ConnectionLimits { idle_timeout: IDLE, ..ConnectionLimits::default() };
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_connection(theirs, limits, streams));
    tasks.spawn(async move { while pieces.send(vec![b'x'; 1024].into()).await.is_ok() {} });
    ours.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    for _ in 0..64 {
        advance(IDLE / 2).await;
        ours.read_exact(&mut [0; 2048]).await.expect("it goes on");
    }
    let began = Instant::now();
    while tasks.join_next().await.is_some() {}
    assert!(began.elapsed() >= IDLE && began.elapsed() < 2 * IDLE, "{:?}", began.elapsed());
}

/// Who waits for an answer does not give way; who does not read it does.
#[tokio::test]
async fn a_quiet_stream_keeps_its_place_and_one_that_is_not_read_loses_it() {
    let served = Served::new(1);
    let quiet = served.streams.next(false);
    let mut socket = served.ask().await;
    read_until(&mut socket, b"\r\n\r\n").await;
    let _next = served.streams.next(false);
    let mut newcomer = served.ask().await;
    silent_for(&mut newcomer, IDLE / 2).await;
    let filling = async { while quiet.send(vec![b'x'; 64 << 10].into()).await.is_ok() {} };
    let began = Instant::now();
    timeout(LONG, filling).await.expect("it gives way");
    assert!(began.elapsed() < IDLE, "by the deadline only: {:?}", began.elapsed());
    read_until(&mut newcomer, b"\r\n\r\n").await;
}

#[tokio::test]
async fn a_stream_can_end_with_the_drain_and_is_broken_off_at_the_cut() {
    let mut served = Served::new(8);
    let (_ends, _goes_on) = (served.streams.next(true), served.streams.next(false));
    let mut ends = served.ask().await;
    read_until(&mut ends, b"\r\n\r\n").await;
    let mut goes_on = served.ask().await;
    read_until(&mut goes_on, b"\r\n\r\n").await;
    served.drain.begin();
    read_until(&mut ends, b"0\r\n\r\n").await;
    assert_eq!(ends.read(&mut [0]).await.unwrap(), 0);
    served.drain.cut();
    let mut rest = Vec::new();
    // The end of the connection, and no last chunk.
    drop(timeout(LONG, goes_on.read_to_end(&mut rest)).await.expect("it is cut off"));
    assert_eq!(rest, b"");
    timeout(LONG, served.tasks.join_next()).await.unwrap().unwrap().unwrap();
}

/// Without a socket, so that the clock can stand still.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_serves_again_and_ends_in_time() {
    let streams = Streams::default();
    let (mut ours, theirs) = duplex(1024);
    let limits = ConnectionLimits { idle_timeout: Duration::from_secs(20), ..ConnectionLimits::default() };
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_connection(theirs, limits, streams.clone()));
    let mut answer = vec![0; 1024];
    for pause in [0, 300, 10_000, 19_000] {
        drop(streams.next(false));
        advance(Duration::from_millis(pause)).await;
        tokio::task::yield_now().await;
        ours.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
        tokio::task::yield_now().await;
        ours.write_all(b"st: x\r\n\r\n").await.unwrap();
        let mut came = 0;
        while !answer[..came].ends_with(b"0\r\n\r\n") {
            came += ours.read(&mut answer[came..]).await.unwrap();
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "after {pause} ms");
    }
    advance(Duration::from_secs(21)).await;
    assert_eq!(ours.read(&mut answer).await.unwrap(), 0);
    while tasks.join_next().await.is_some() {}
}
