//! The log: one line an event, JSON or text, on standard output.

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How lines are written.
    pub format: Format,
    /// A tracing filter directive such as `info` or `hookgate=debug`. `RUST_LOG` wins over it.
    pub level: String,
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::default(), level: "info".into() }
    }
}
