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
//! 6. No files import each other in a circle, besides a file and the rooms behind it.
//!
//! `tests/house.rs` holds all but rule 3, over everything that a file reaches.
//!
//! # Glossary
//!
//! Pulumi's words are used for Pulumi's things (delivery, kind, action, filter, group), and the field's words for the
//! rest (upstream, destination, route, lease, dead letter, backoff, drain). These are our own:
//!
//! | word | meaning |
//! | --- | --- |
//! | attempt | one request to a destination, for one job |
//! | circuit | whether a destination is served or, after failures in a row, only probed |
//! | claim | what a request says without proof; in [`delivery::dedupe`], the right to deliver an ID first |
//! | coalesced | replaced by a newer delivery of the same environment and event, and not delivered |
//! | crowd | the connections of a listener: how many may be open, and which one gives way to a newcomer |
//! | direct | delivered while the sender waits; the opposite is queued |
//! | doubt | a warning about a configuration that loads |
//! | gate | the request path: [`ingress::receive::Gate`] |
//! | job | the way of one delivery to one recipient in the queue |
//! | joint | one of the three places that join the rooms: receive, dispatch, worker |
//! | lane | one of the threads that serve requests, with its own runtime |
//! | lease | the right to make a job's next attempt; dropped without a verdict, the job is due again |
//! | line | with `order`: the jobs of one environment, of which only the first is tried |
//! | look | how a file looks from outside (size, times, inode), to notice a change |
//! | mark | what hookgate writes into `traceparent` to recognise its own requests |
//! | misfit | a delivery whose kind its body does not prove |
//! | orphaned | said of a job whose webhook or destination is not in the configuration any more |
//! | parcel | what is forwarded: the verified body with its headers and its name |
//! | place | a permit for one connection of a crowd |
//! | recipient | a destination of a webhook, by both names; waiting jobs belong to it |
//! | strangers | senders without a verified signature; their lines in the log are limited |
//! | trail | what is known of a request so far, for its line in the log |
//! | verdict | how an attempt ends a lease: done, again later, or dead; in [`webhook::filter`], whether a delivery is wanted |

#[macro_use]
mod variants;

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
