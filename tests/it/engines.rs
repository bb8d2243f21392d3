//! The contract of `Queue`, held by every engine alike, and what only one of them promises.

mod contract;
mod model;
mod nats;
mod policies;
mod sqlite;
mod sqlite_rows;
