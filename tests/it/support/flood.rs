//! Many connections that say little and come back as soon as they are closed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{JoinHandle, spawn},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
    task::JoinSet,
    time::sleep,
};

use super::wire::Address;

/// A flood that goes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Flood {
    over: Arc<AtomicBool>,
    came_back: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// So many connections that send `bytes`, wait until they are closed, and come back.
    pub(crate) fn start(to: &Address, connections: usize, bytes: &[u8]) -> Self {
        let Address::Tcp(address) = *to else { panic!("a flood of {to:?}") };
        let (over, came_back) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (ended, back) = (Arc::clone(&over), Arc::clone(&came_back));
        let bytes: Arc<[u8]> = bytes.into();
        let thread = spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for _ in 0..connections {
                    let (back, bytes) = (Arc::clone(&back), Arc::clone(&bytes));
                    tasks.spawn(async move {
                        loop {
                            let Ok(mut socket) = TcpStream::connect(address).await else { continue };
                            drop(socket.write_all(&bytes).await);
                            while socket.read(&mut [0; 512]).await.is_ok_and(|length| length > 0) {}
                            back.fetch_add(1, Relaxed);
                        }
                    });
                }
                while !ended.load(Relaxed) {
                    sleep(Duration::from_millis(5)).await;
                }
                tasks.shutdown().await;
            });
        });
        Self { over, came_back, thread: Some(thread) }
    }

    /// How often a connection was closed so far.
    pub(crate) fn came_back(&self) -> usize {
        self.came_back.load(Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
