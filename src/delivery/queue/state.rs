//! Where a job stands, and why one is dead: the words for it, the same in every store and for users.

use std::{fmt, str::FromStr};

listed! {
    /// Why a job is among the dead letters.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Death {
        /// The upstream's answer says that trying again will not help.
        Refused,
        /// `max_attempts`.
        #[serde(rename = "max_attempts")]
        Attempts,
        /// `max_age`.
        #[serde(rename = "max_age")]
        Age,
        /// The destination's format cannot show it.
        #[serde(rename = "render_error")]
        Render,
        /// What the store has of it cannot be read.
        Damaged,
    }
}

impl Death {
    /// Its name in the store and for users.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Attempts => "max_attempts",
            Self::Age => "max_age",
            Self::Render => "render_error",
            Self::Damaged => "damaged",
        }
    }
}

listed! {
    /// Where a job stands.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum State {
        /// It waits for its first or its next attempt, or an attempt is under way.
        Waiting,
        /// The upstream accepted it.
        Delivered,
        /// It was given up.
        Dead,
        /// A newer one went in its place.
        Coalesced,
    }
}

impl State {
    /// Its name in the store and for users.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Coalesced => "coalesced",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no [`State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a state: write waiting, delivered, dead or coalesced")]
pub struct NoState;

impl FromStr for State {
    type Err = NoState;

    fn from_str(name: &str) -> Result<Self, NoState> {
        Self::ALL.into_iter().find(|state| state.name() == name).ok_or(NoState)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both engines keep the words of `name`: one by itself, the other by serde.
    #[test]
    fn a_word_is_the_same_in_every_store() {
        for death in Death::ALL {
            assert_eq!(serde_json::to_value(death).unwrap(), death.name());
        }
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
            assert_eq!(state.name().parse(), Ok(state));
        }
    }
}
