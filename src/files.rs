//! Files that somebody else keeps, read without trust: bounded in size and in time.
//!
//! A named pipe, a device or a hung network file system can keep a reader for ever. So every read happens on a thread
//! of its own, which is left alone when its time is over; how many of these there may be is bounded too. What was
//! read is cleared from memory.
//!
//! A path that does not lead anywhere may be something else that was put into its place, a secret for instance. Errors
//! repeat a path only if it is surely one, see [`is_repeatable`].

use std::{
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Component, Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use zeroize::Zeroizing;

/// How long a file may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long each further file may take once one has taken too long: what hangs, hangs as a whole.
const IMPATIENCE: Duration = Duration::from_millis(100);

/// How many threads may be waiting for files, forgotten ones included.
const MOST_READERS: usize = 32;

/// What is set aside at least for the content of a file, in bytes.
const LEAST_ROOM: usize = 4 << 10;

/// What stands in a file.
#[derive(Debug)]
pub struct Content {
    /// All of it.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The permissions of a regular file: the last nine bits of its mode.
    pub mode: Option<u32>,
}

/// Why a file was not read. Its text says what to do where that does not depend on the file's purpose.
#[derive(Debug)]
pub struct ReadError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub why: Why,
    /// Whether its path may be repeated.
    repeatable: bool,
}

/// Why a file was not read.
#[derive(Debug)]
pub enum Why {
    /// The system's error.
    Unreadable(io::Error),
    /// It is a folder.
    Folder,
    /// It has more bytes than this.
    TooLong(usize),
    /// It took longer than this.
    TooSlow(Duration, Kind),
    /// Too many files that were read before still hang.
    Hung,
}

/// What kind of file takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A named pipe.
    Pipe,
    /// A device.
    Device,
    /// A regular file, or nothing could be learned about it.
    Other,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.repeatable {
            write!(f, "{} ", self.path.display())?;
        } else {
            f.write_str("the file that is named here ")?;
        }
        self.why.fmt(f)
    }
}

/// Follows the words "the file".
impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(reason) => write!(f, "cannot be read: {reason}"),
            Self::Folder => f.write_str("is a folder: was the file missing when the container was made?"),
            Self::TooLong(limit) => write!(f, "has more than {limit} bytes: is it the right file?"),
            Self::TooSlow(limit, kind) => {
                let told = match kind {
                    Kind::Pipe => "it is a named pipe that nobody writes to, put a regular file there",
                    Kind::Device => "it is a device, put a regular file there",
                    Kind::Other => "does its file system hang?",
                };
                write!(f, "could not be read within {} ms: {told}", limit.as_millis())
            }
            Self::Hung => f.write_str("was not read: files that were read before it still hang"),
        }
    }
}

impl std::error::Error for ReadError {}

/// The patience for several files, all together. One that takes too long leaves little for the others.
#[derive(Debug)]
pub struct Patience(std::cell::Cell<Duration>);

impl Default for Patience {
    fn default() -> Self {
        Self::of(PATIENCE)
    }
}

impl Patience {
    /// This long for the first file that takes too long.
    #[must_use]
    pub const fn of(limit: Duration) -> Self {
        Self(std::cell::Cell::new(limit))
    }

    /// As [`read`].
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn read(&self, path: &Path, limit: usize) -> Result<Content, ReadError> {
        let result = read(path, limit, self.0.get());
        if matches!(&result, Err(ReadError { why: Why::TooSlow(..), .. })) {
            self.0.set(IMPATIENCE.min(self.0.get()));
        }
        result
    }

    /// As [`within`].
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let result = within(self.0.get(), work);
        if result.is_none() {
            self.0.set(IMPATIENCE.min(self.0.get()));
        }
        result
    }
}

/// The content of a file of at most `limit` bytes, if it can be had within `patience`.
///
/// # Errors
///
/// [`ReadError`].
pub fn read(path: &Path, limit: usize, patience: Duration) -> Result<Content, ReadError> {
    let owned = path.to_owned();
    let error = |why, repeatable| ReadError { path: path.to_owned(), why, repeatable };
    match on_a_thread(patience, move || read_now(&owned, limit).map_err(|why| (why, is_repeatable(&owned)))) {
        Ok(result) => result.map_err(|(why, repeatable)| error(why, repeatable)),
        Err(NoResult::Hung) => Err(error(Why::Hung, looks_like_a_path(path))),
        Err(NoResult::NoThread(reason)) => Err(error(Why::Unreadable(reason), looks_like_a_path(path))),
        Err(NoResult::TooLate) => {
            // Only its kind is looked up, which for a pipe and a device is done at once.
            let owned = path.to_owned();
            let kind = on_a_thread(IMPATIENCE, move || fs::metadata(owned).ok().map(|meta| kind(&meta)));
            let known = matches!(kind, Ok(Some(_)));
            let kind = kind.ok().flatten().unwrap_or(Kind::Other);
            Err(error(Why::TooSlow(patience, kind), known || looks_like_a_path(path)))
        }
    }
}

fn kind(meta: &Metadata) -> Kind {
    let kind = meta.file_type();
    if kind.is_fifo() {
        Kind::Pipe
    } else if kind.is_char_device() || kind.is_block_device() {
        Kind::Device
    } else {
        Kind::Other
    }
}

fn read_now(path: &Path, limit: usize) -> Result<Content, Why> {
    let file = File::open(path).map_err(Why::Unreadable)?;
    // A vector that grows leaves what it held behind. Special files do not say how long they are.
    let known = file.metadata().ok();
    if known.as_ref().is_some_and(Metadata::is_dir) {
        return Err(Why::Folder);
    }
    let length = known.as_ref().map_or(0, Metadata::len);
    let room = usize::try_from(length).unwrap_or(limit).clamp(LEAST_ROOM.min(limit), limit) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let most = u64::try_from(limit + 1).unwrap_or(u64::MAX);
    file.take(most).read_to_end(&mut bytes).map_err(Why::Unreadable)?;
    if bytes.len() > limit {
        return Err(Why::TooLong(limit));
    }
    let mode = known.filter(Metadata::is_file).map(|meta| meta.permissions().mode() & 0o777);
    Ok(Content { bytes, mode })
}

/// What `work` comes to, if that is within `patience`. It is for questions to the file system, each of which may hang:
/// it recovers on its own where it does.
pub fn within<T: Send + 'static>(patience: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    on_a_thread(patience, work).ok()
}

enum NoResult {
    TooLate,
    Hung,
    NoThread(io::Error),
}

fn on_a_thread<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoResult> {
    /// The threads that are at it.
    static READERS: AtomicUsize = AtomicUsize::new(0);
    struct Reader;
    impl Drop for Reader {
        fn drop(&mut self) {
            READERS.fetch_sub(1, Ordering::Relaxed);
        }
    }

    let before = READERS.fetch_add(1, Ordering::Relaxed);
    let reader = Reader;
    if before >= MOST_READERS {
        return Err(NoResult::Hung);
    }
    let (done, result) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("file".into()).spawn(move || {
        let done_with = work();
        // It has ended for whoever waits before they hear of it.
        drop(reader);
        drop(done.send(done_with));
    });
    // The thread is nobody's: it ends by itself, or hangs.
    drop(thread.map_err(NoResult::NoThread)?);
    result.recv_timeout(patience).or(Err(NoResult::TooLate))
}

/// Whether a path may be repeated in a text that others read. A secret that was put into the place of its path may not.
///
/// It may if something is there, or its folder is, or if it [looks like a path](looks_like_a_path). Asks the file system.
#[must_use]
pub fn is_repeatable(path: &Path) -> bool {
    let folder = || path.parent().filter(|folder| folder.components().next().is_some());
    looks_like_a_path(path)
        || fs::symlink_metadata(path).is_ok()
        || folder().is_some_and(|folder| folder != Path::new("/") && folder.is_dir())
}

/// Whether a text is surely a path and nothing else: it begins with `/`, `./` or `../`, and none of its parts could be
/// a key or a token, which mix small letters, capitals and digits, or are long. Base64 has slashes too.
#[must_use]
pub fn looks_like_a_path(path: &Path) -> bool {
    let begins = matches!(
        path.components().next(),
        Some(Component::RootDir | Component::CurDir | Component::ParentDir)
    );
    let plain = |part: Component<'_>| {
        let Some(part) = part.as_os_str().to_str() else { return false };
        let has = |test: fn(&u8) -> bool| part.as_bytes().iter().any(test);
        part == "/"
            || part.len() <= 64
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._- @".contains(&byte))
                && !(has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit))
    };
    begins && path.components().all(plain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hookgate-files-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    const SHORT: Duration = Duration::from_millis(50);

    fn pipe(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    /// What is set aside is overwritten when it is given back, so that room for the longest file would be paid for.
    #[test]
    fn a_file_takes_the_room_of_its_length() {
        let folder = Folder::new("room");
        let path = folder.0.join("file");
        for length in [0, 1, LEAST_ROOM, LEAST_ROOM + 1, 100_000] {
            fs::write(&path, vec![b'x'; length]).unwrap();
            let Content { bytes, .. } = read(&path, 1 << 20, PATIENCE).unwrap();
            assert_eq!(bytes.len(), length);
            assert_eq!(bytes.capacity(), length.max(LEAST_ROOM) + 1);
        }
        assert!(matches!(read(&path, 99_999, PATIENCE), Err(ReadError { why: Why::TooLong(99_999), .. })));
        assert_eq!(read(&path, 100_000, PATIENCE).unwrap().bytes.len(), 100_000);
    }

    #[test]
    fn what_never_ends_is_too_long() {
        let error = read(Path::new("/dev/zero"), 1 << 20, PATIENCE).unwrap_err();
        assert!(matches!(error.why, Why::TooLong(_)), "{error}");
    }

    #[test]
    fn a_pipe_without_a_writer_is_given_up_and_named() {
        let folder = Folder::new("pipe");
        let path = folder.0.join("secret");
        pipe(&path);
        let error = read(&path, 1 << 10, SHORT).unwrap_err();
        assert!(matches!(error.why, Why::TooSlow(_, Kind::Pipe)), "{error}");
        assert!(error.to_string().contains("named pipe"), "{error}");
        // With a writer it is a file like any other.
        let path = folder.0.join("written");
        pipe(&path);
        let writer = {
            let path = path.clone();
            thread::spawn(move || fs::write(path, "written"))
        };
        assert_eq!(read(&path, 1 << 10, PATIENCE).unwrap().bytes.as_slice(), b"written");
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn several_that_hang_take_little_more_time_than_one() {
        let folder = Folder::new("pipes");
        let patience = Patience::of(SHORT);
        for name in ["1", "2", "3"] {
            let path = folder.0.join(name);
            pipe(&path);
            assert!(patience.read(&path, 1 << 10).is_err());
        }
        assert!(patience.0.get() <= IMPATIENCE);
        let first = Patience::of(PATIENCE);
        assert!(first.within(|| ()).is_some());
        assert_eq!(first.0.get(), PATIENCE, "nothing hung");
    }

    #[test]
    fn a_folder_is_called_one() {
        let error = read(Path::new("/tmp"), 1 << 10, PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "/tmp is a folder: was the file missing when the container was made?");
    }

    #[test]
    fn the_mode_is_that_of_the_file_behind_a_link() {
        let folder = Folder::new("mode");
        let (file, link) = (folder.0.join("file"), folder.0.join("link"));
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read(&link, 10, PATIENCE).unwrap().mode, Some(0o640));
        assert_eq!(read(Path::new("/dev/null"), 10, PATIENCE).unwrap().mode, None);
    }

    #[test]
    fn only_what_is_surely_a_path_is_repeated() {
        for path in [
            "/run/secrets/pulumi-webhook",
            "/nowhere",
            "./secret",
            "../secrets/pulumi webhook_2.txt",
            "/var/lib/kubelet/pods/5f1c09e2-b7a8-4d36-9a51-0c7f5e1d2b3a/token",
            "src/no-such-file",
            "Cargo.toml",
        ] {
            assert!(is_repeatable(Path::new(path)), "{path}");
        }
        for secret in [
            "sec2-known-secret-0123456789abcdef",
            "secret",
            "abcdefghijklmnop",
            "kJ8s/dh3Kd83jdKDj38dKD83jdkf9",
            "/kJ8sdh3Kd83jdKDj38dKD83jdkf9=",
            "/kJ8sdh3Kd83jdKDj38dKD83jdkf9",
            "the/secret",
            "",
            "a\nb",
        ] {
            assert!(!is_repeatable(Path::new(secret)), "{secret}");
            let error = read(Path::new(secret), 10, PATIENCE).unwrap_err().to_string();
            assert!(secret.is_empty() || !error.contains(secret), "{error}");
        }
    }
}
