//! The embedded engine keeps the contract. What is its own is tested beside it.

use std::{sync::Arc, time::Duration};

use hookgate::delivery::queue::{Queue, Retention, sqlite::Sqlite};

use super::contract::Engine;
use crate::support::{TempDir, eventually};

mod contract {
    crate::engines::contract::hold!(crate::support::TempDir::new());
}

mod policies {
    crate::engines::policies::hold!(crate::support::TempDir::new());
}

impl Engine for TempDir {
    fn open(&self, retention: Retention, window: Duration) -> Arc<dyn Queue> {
        let path = self.path().join("queue.db");
        // The threads of one that was dropped let go of the file somewhat later.
        Arc::new(eventually("the file is free", || Sqlite::open(&path, retention, window).ok()))
    }
}
