use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Warnings;

/// How often the files are looked at: a key that was withdrawn is believed for this long at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Largest file read, in octets: a revocation list of 200,000 certificates; all others are far below.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// What certain files say together, and go on saying: they are read again when one of them changes, and what cannot be read
/// or used does not take the place of what could.
pub struct Watched<T> {
    files: Vec<WatchedFile>,
    parse: Box<Parse<T>>,
    opened: Vec<Stamp>,
    latest: watch::Sender<Arc<T>>,
}

/// A file, and the configuration key that names it.
#[derive(Clone, Debug)]
pub(super) struct WatchedFile {
    pub(super) key: String,
    pub(super) path: PathBuf,
}

/// Makes of the contents of the files what they say.
type Parse<T> = dyn Fn(&[Vec<u8>]) -> Result<T, Fault> + Send + Sync;

/// Which of the files is at fault, and what it must be; the text follows the file's key.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) index: usize,
    pub(super) problem: String,
}

/// What changes when somebody writes into a file or puts another in its place: inode, length, ctime.
type Stamp = Option<(u64, u64, i64, i64)>;

impl<T> Watched<T> {
    /// Reads the files.
    ///
    /// # Errors
    /// The key of the file that cannot be read or used, and what it must be.
    pub(super) fn open(
        files: Vec<WatchedFile>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, Fault> + Send + Sync + 'static,
    ) -> Result<Self, (String, String)> {
        let opened = stamps(&files);
        let told = |fault: Fault| (files[fault.index].key.clone(), fault.problem);
        let value = read(&files).and_then(|contents| parse(&contents)).map_err(told)?;
        Ok(Self { files, parse: Box::new(parse), opened, latest: watch::Sender::new(Arc::new(value)) })
    }

    /// What the files say at any time.
    #[must_use]
    pub fn latest(&self) -> watch::Receiver<Arc<T>> {
        self.latest.subscribe()
    }

    /// Keeps [`Watched::latest`] up to date until `shutdown`; `warnings` tell of files that changed and are not usable.
    pub async fn keep_up(self: Arc<Self>, warnings: Warnings, shutdown: CancellationToken)
    where
        T: Send + Sync + 'static,
    {
        self.tell(&warnings, None);
        let mut seen = self.opened.clone();
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let (this, before, warnings) = (Arc::clone(&self), seen.clone(), warnings.clone());
            // Files may lie on a file system that takes its time.
            let looked = tokio::task::spawn_blocking(move || this.look(before, &warnings)).await;
            seen = looked.unwrap_or(seen);
        }
    }

    /// Reads the files again if they are not as they were, and tells how they are.
    fn look(&self, before: Vec<Stamp>, warnings: &Warnings) -> Vec<Stamp> {
        // Before they are read: what is written while they are is a change the next time.
        let now = stamps(&self.files);
        if now != before {
            match read(&self.files).and_then(|contents| (self.parse)(&contents)) {
                Ok(value) => {
                    self.latest.send_replace(Arc::new(value));
                    tracing::info!(key = self.files[0].key, "read again");
                    self.tell(warnings, None);
                }
                Err(fault) => {
                    let (key, problem) = (&self.files[fault.index].key, &fault.problem);
                    tracing::error!(key, problem, "changed, and is not usable: the old one stays");
                    self.tell(warnings, Some(&fault));
                }
            }
        }
        now
    }

    fn tell(&self, warnings: &Warnings, fault: Option<&Fault>) {
        for (index, file) in self.files.iter().enumerate() {
            let at_fault = fault.is_some_and(|fault| fault.index == index);
            metrics::gauge!("keyward_file_usable", "key" => file.key.clone()).set(if at_fault { 0.0 } else { 1.0 });
            if at_fault {
                // The path in the problem is for the log.
                warnings.set(&file.key, "changed, and is not usable: the old one stays");
            } else {
                warnings.clear(&file.key);
            }
        }
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[WatchedFile]) -> Vec<Stamp> {
    let stamp = |file: &WatchedFile| {
        let metadata = fs::metadata(&file.path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
    };
    files.iter().map(stamp).collect()
}

fn read(files: &[WatchedFile]) -> Result<Vec<Vec<u8>>, Fault> {
    let read = |(index, file): (usize, &WatchedFile)| {
        let path = file.path.display();
        let unreadable = |error: std::io::Error| Fault { index, problem: format!("cannot be read: {path}: {error}") };
        if fs::metadata(&file.path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
            return Err(Fault {
                index,
                problem: format!("must name a file of at most {FILE_BYTES_MAX} octets: {path}"),
            });
        }
        fs::read(&file.path).map_err(unreadable)
    };
    files.iter().enumerate().map(read).collect()
}
