//! The configuration: a file becomes settings, or a report of everything that is wrong with it.
