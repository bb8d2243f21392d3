//! Values that several sections have: names, bounds of waits, paths of unix sockets.

use std::time::Duration;

use super::{names::is_label, reader::Item, report::quoted};

/// No wait is shorter than this, or it would never end in time.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
/// No wait is longer: what takes a day is stuck.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A name that labels logs and metrics, and is sent in headers.
pub(super) fn label(item: &Item<'_>) -> Option<String> {
    const WANTED: &str = "1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'";
    let text = item.text(&format!("a name: {WANTED}"))?;
    let fits = is_label(text);
    if !fits {
        item.mistake(format_args!("{} is not a name: it must be {WANTED}", quoted(text)));
    }
    fits.then(|| text.to_owned())
}

/// What is wrong with the path of a unix socket, if anything is.
pub(super) fn unix_path_mistake(path: &str) -> Option<&'static str> {
    /// What the kernel's structure has room for, without the byte that ends it.
    const MAX_SOCKET_PATH: usize = 107;
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        Some("the path of a unix socket must be absolute: write \"unix:/run/hookgate/http.sock\"")
    } else if path.len() > MAX_SOCKET_PATH {
        Some("the path of a unix socket has at most 107 bytes: choose a shorter one")
    } else {
        None
    }
}
