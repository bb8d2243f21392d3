//! Stands between the service and a server, and can be cut in the ways in which networks are.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
};

/// How the two are cut off from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Connections are reset, and new ones refused.
    Refused,
    /// Whatever is sent disappears, on new connections, too.
    Swallowed,
    /// Whatever is sent arrives once the cut is over.
    Held,
}

/// Passes on what comes, to one address.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cut: Option<Cut>,
    sockets: Vec<TcpStream>,
    /// Somebody listens.
    listens: bool,
}

impl Proxy {
    pub(crate) fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let this = Self {
            address,
            shared: Arc::new(Shared { to, state: Mutex::default(), changed: Condvar::new() }),
        };
        this.listen(listener);
        this
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    fn listen(&self, listener: TcpListener) {
        self.shared.lock().listens = true;
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if shared.lock().cut == Some(Cut::Refused) {
                    break;
                }
                let Ok(far) = TcpStream::connect(shared.to) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    shared.lock().sockets.push(from.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || drop(shared.pass(from, to)));
                }
            }
            drop(listener);
            shared.lock().listens = false;
            shared.changed.notify_all();
        });
    }

    pub(crate) fn cut(&self, how: Cut) {
        let mut state = self.shared.lock();
        state.cut = Some(how);
        if how == Cut::Refused {
            state.close();
            drop(state);
            // Whoever listens looks up, and stops.
            drop(TcpStream::connect(self.address));
            drop(self.shared.wait_while(|state| state.listens));
        }
    }

    /// It is as before; connections whose bytes were lost are gone.
    pub(crate) fn mend(&self) {
        let mut state = self.shared.lock();
        let cut = state.cut.take();
        if cut == Some(Cut::Swallowed) {
            state.close();
        }
        drop(state);
        self.shared.changed.notify_all();
        if cut == Some(Cut::Refused) {
            self.listen(TcpListener::bind(self.address).unwrap());
        }
    }
}

impl State {
    fn close(&mut self) {
        for socket in self.sockets.drain(..) {
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool + Copy) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.lock(), condition).unwrap()
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        loop {
            let length = from.read(&mut buffer).unwrap_or(0);
            let cut = self.wait_while(|state| state.cut == Some(Cut::Held)).cut;
            if length == 0 {
                return to.shutdown(Shutdown::Both);
            }
            if cut.is_none() {
                to.write_all(&buffer[..length])?;
            }
        }
    }
}
