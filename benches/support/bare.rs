//! What hyper costs alone: a proxy that checks nothing and counts nothing, and hands on what comes.

use std::{convert::Infallible, net::SocketAddr, sync::Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, Uri, body::Incoming, client::conn::http1 as client, header::HOST, header::HeaderValue,
    server::conn::http1 as server, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    task::JoinSet,
};

/// A connection to the upstream.
type Sender = client::SendRequest<Incoming>;

/// Serves until it is killed.
pub(crate) fn serve(port: u16, upstream: SocketAddr) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let pool: &Mutex<Vec<Sender>> = Box::leak(Box::default());
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            let service =
                service_fn(
                    move |request| async move { Ok::<_, Infallible>(pass(request, pool, upstream).await) },
                );
            let serving = server::Builder::new().serve_connection(TokioIo::new(socket), service);
            connections.spawn(async move { drop(serving.await) });
        }
    });
}

async fn pass(
    mut request: Request<Incoming>,
    pool: &Mutex<Vec<Sender>>,
    upstream: SocketAddr,
) -> Response<Full<Bytes>> {
    *request.uri_mut() = Uri::from_static("/hook");
    request.headers_mut().insert(HOST, HeaderValue::from_static("upstream"));
    let idle = pool.lock().unwrap().pop().filter(Sender::is_ready);
    let mut sender = match idle {
        Some(sender) => sender,
        None => connect(upstream).await,
    };
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    // The connection is free again once its answer has been read.
    let body = body.collect().await.unwrap().to_bytes();
    pool.lock().unwrap().push(sender);
    Response::from_parts(head, Full::new(body))
}

async fn connect(upstream: SocketAddr) -> Sender {
    let socket = TcpStream::connect(upstream).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (sender, connection) = client::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    sender
}
