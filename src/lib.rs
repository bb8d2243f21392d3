//! hookgate, the verifying sidecar for Pulumi webhooks.
//!
//! It stands in front of a service, lets in only deliveries that Pulumi signed, only of the events that are
//! wanted, and hands them on byte for byte.
//!
//! # The path of a delivery
//!
//! ```text
//! socket ▶ server ▶ ingress::receive ▶ webhook::{signature ▶ headers ▶ payload ▶ filter}
//!        ▶ delivery::dispatch ▶ delivery::attempt ▶ delivery::destination ▶ upstream ▶ world
//!             └▶ delivery::queue ▶ delivery::worker ▶┘
//! ```
//!
//! Start reading at [`ingress::receive::Gate`]: its `admit` is the whole path as one function.
//!
//! # The house
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`webhook`] | what Pulumi says, and what can be believed of it; pure |
//! | [`server`] | accepting, connections, their limits and deadlines, drain; for any handler |
//! | [`ingress`] | the request path, refusals |
//! | [`delivery`] | dispatch, attempt, duplicates, destinations, the queue and its worker |
//! | [`upstream`] | the HTTP client that hands deliveries on |
//! | [`net`] | targets, connecting, TLS, deadlines, and a client for single requests |
//! | [`files`] | reading files within bounds of size and time |
//! | [`ops`] | health, metrics, log |
//! | [`config`] | the file becomes settings, or a report of its mistakes |
//! | [`app`] | the service: built, bound, run, drained |
//! | [`cli`] | one file a command; the only place that prints |
//!
//! # Who may import whom
//!
//! 1. [`webhook`] imports nothing of ours. Inside it a file imports only files before it on the path.
//! 2. [`server`], [`upstream`] and [`delivery`]'s stores do I/O and do not import each other. What they share
//!    is in [`net`] and [`files`], which import nothing of ours.
//! 3. `ingress::receive`, `delivery::dispatch` and `delivery::worker` join them.
//! 4. Metrics and log are fed by those joints and unknown to [`webhook`].
//! 5. Settings live with what they set; [`config`] imports those, and only [`app`] and [`cli`] import [`config`].
//!
//! `tests/house.rs` holds rules 1, 2 and 5.

pub mod app;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod files;
pub mod ingress;
pub mod net;
pub mod ops;
pub mod server;
pub mod upstream;
pub mod webhook;
