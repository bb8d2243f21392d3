//! Other people's servers, started by a test and ended with it.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use serde_json::Value;

use super::{Journal, hookgate::journal_of};

/// A running program that says one JSON object a line, or nothing.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    said: Arc<Journal<String>>,
}

impl Peer {
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} does not start: {error}"));
        let said = journal_of(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Waits until it has said so many lines.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Value> {
        let lines = self.said.wait(|lines| (lines.len() >= count).then(|| lines.to_vec()));
        let lines = lines.unwrap_or_else(|| panic!("said {:?}", self.said.all()));
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Ends it, and returns everything that it said.
    pub(crate) fn end(mut self) -> Vec<Value> {
        drop(self.child.kill());
        drop(self.child.wait());
        assert!(self.said.wait_closed());
        self.wait_for(0)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
