//! The client side: one send to an upstream, under one deadline, its answer capped.
//!
//! It knows addresses, connections and HTTP, and nothing of webhooks. Names are resolved anew for each new
//! connection. Redirects are not followed: a 3xx is no usable answer.

pub mod target;
