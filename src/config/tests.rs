//! Whole files, good and bad.
