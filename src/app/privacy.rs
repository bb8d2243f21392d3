//! Keeps the memory of the process, and with it the secrets, from others.
//!
//! The kernel then writes no core dump, lets no process of the same user trace this one or read its memory, and
//! gives its environment to root only. Root can still do all of that.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Forbids core dumps, and tracing by whoever is not root, from now on.
///
/// # Errors
///
/// What the kernel says.
pub fn forbid_dumps() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn the_kernel_has_taken_note() {
        forbid_dumps().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
