use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at: a key that was withdrawn is believed for this long at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Largest file read, in octets: a chain of certificates or a JWKS of 32 RSA keys with certificates is far below.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What certain files say, and goes on saying: they are read again when they change, and what cannot be read or used does
/// not take the place of what could.
pub struct Watched<T> {
    key: String,
    files: Vec<PathBuf>,
    parse: fn(&[Vec<u8>]) -> Result<T, String>,
    opened: Vec<Stamp>,
    latest: watch::Sender<Arc<T>>,
}

/// What changes when somebody writes into a file or puts another in its place: inode, length, ctime.
type Stamp = Option<(u64, u64, i64, i64)>;

impl<T> Watched<T> {
    /// Reads the files. `key` is the configuration key that problems are told under.
    ///
    /// # Errors
    /// A file cannot be read, or `parse` says what they must be; the text follows the key.
    pub fn open(key: &str, files: Vec<PathBuf>, parse: fn(&[Vec<u8>]) -> Result<T, String>) -> Result<Self, String> {
        let opened = stamps(&files);
        let value = read(&files).and_then(|contents| parse(&contents))?;
        Ok(Self { key: key.to_owned(), files, parse, opened, latest: watch::Sender::new(Arc::new(value)) })
    }

    /// What the files say at any time.
    #[must_use]
    pub fn latest(&self) -> watch::Receiver<Arc<T>> {
        self.latest.subscribe()
    }

    /// Keeps [`Watched::latest`] up to date until `shutdown`.
    pub async fn keep_up(self: Arc<Self>, shutdown: CancellationToken)
    where
        T: Send + Sync + 'static,
    {
        let mut seen = self.opened.clone();
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let (this, before) = (Arc::clone(&self), seen.clone());
            // Files may lie on a file system that takes its time.
            let looked = tokio::task::spawn_blocking(move || this.look(before)).await;
            seen = looked.unwrap_or(seen);
        }
    }

    /// Reads the files again if they are not as they were, and tells how they are.
    fn look(&self, before: Vec<Stamp>) -> Vec<Stamp> {
        // Before they are read: what is written while they are is a change the next time.
        let now = stamps(&self.files);
        if now != before {
            match read(&self.files).and_then(|contents| (self.parse)(&contents)) {
                Ok(value) => {
                    self.latest.send_replace(Arc::new(value));
                    tracing::info!(key = self.key, "read again");
                }
                Err(problem) => {
                    tracing::error!(key = self.key, problem, "changed, and is not usable: the old one stays")
                }
            }
        }
        now
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("key", &self.key).field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
    };
    files.iter().map(stamp).collect()
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let read = |file: &PathBuf| {
        let unreadable = |error: std::io::Error| format!("cannot be read: {}: {error}", file.display());
        if fs::metadata(file).map_err(unreadable)?.len() > FILE_BYTES_MAX {
            return Err(format!("must name a file of at most {FILE_BYTES_MAX} octets: {}", file.display()));
        }
        fs::read(file).map_err(unreadable)
    };
    files.iter().map(read).collect()
}
