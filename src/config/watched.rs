use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Warnings;

/// How often the files are looked at: a key that was withdrawn is believed for this long at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How many looks there are between two attempts at what was refused: what is not valid yet is, some time later.
const LOOKS_PER_ATTEMPT: u32 = 30;

/// Largest file read, in octets: a revocation list of 200,000 certificates; all others are far below.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// What certain files say together, and go on saying: they are read again when one of them changes, and what cannot be read
/// or used does not take the place of what could.
pub struct Watched<T> {
    files: Vec<WatchedFile>,
    parse: Box<Parse<T>>,
    run_out: Box<RunOut<T>>,
    opened: Vec<Stamp>,
    /// The contents that are in use.
    in_use: Mutex<Vec<Vec<u8>>>,
    latest: watch::Sender<Arc<T>>,
}

/// A file, and the configuration key that names it.
#[derive(Clone, Debug)]
pub(super) struct WatchedFile {
    pub(super) key: String,
    pub(super) path: PathBuf,
    /// Whether it must be closed to everybody but its owner and group.
    pub(super) private: bool,
    /// Files of one number change together, as a certificate and its key: where one of them cannot be used, the others' new
    /// contents are not either. All others are taken up alone: what revokes a client must not wait for a certificate.
    pub(super) together: u8,
}

/// Makes of the contents of the files what they say, where this is what they say so far.
type Parse<T> = dyn Fn(&[Vec<u8>], Option<&T>) -> Result<T, Fault> + Send + Sync;

/// Which of the files that are in use have run out by now.
type RunOut<T> = dyn Fn(&T) -> Vec<Fault> + Send + Sync;

/// Which of the files is at fault, and what it must be; the text follows the file's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) index: usize,
    pub(super) problem: String,
}

/// What changes when somebody writes into a file or puts another in its place: inode, length, ctime.
type Stamp = Option<(u64, u64, i64, i64)>;

/// How the files were at the latest look.
#[derive(Clone, Default)]
struct Seen {
    stamps: Vec<Stamp>,
    /// Why what is there was not taken up.
    refused: Vec<Fault>,
    run_out: Vec<Fault>,
    looks: u32,
}

impl<T> Watched<T> {
    /// Reads the files.
    ///
    /// # Errors
    /// The key of the file that cannot be read or used, and what it must be.
    pub(super) fn open(
        files: Vec<WatchedFile>,
        parse: impl Fn(&[Vec<u8>], Option<&T>) -> Result<T, Fault> + Send + Sync + 'static,
        run_out: impl Fn(&T) -> Vec<Fault> + Send + Sync + 'static,
    ) -> Result<Self, (String, String)> {
        let opened = stamps(&files);
        let told = |fault: Fault| (files[fault.index].key.clone(), fault.problem);
        let contents = read(&files).map_err(told)?;
        let value = parse(&contents, None).map_err(told)?;
        let latest = watch::Sender::new(Arc::new(value));
        let in_use = Mutex::new(contents);
        Ok(Self { files, parse: Box::new(parse), run_out: Box::new(run_out), opened, in_use, latest })
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
        let mut seen = Seen { stamps: self.opened.clone(), ..Seen::default() };
        self.tell(&warnings, &seen);
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let (this, before, warnings) = (Arc::clone(&self), seen.clone(), warnings.clone());
            // Files may lie on a file system that takes its time.
            let looked = tokio::task::spawn_blocking(move || this.look(before, &warnings)).await;
            seen = looked.unwrap_or(seen);
        }
    }

    /// Reads the files again if they are not as they were, and tells how they are.
    fn look(&self, before: Seen, warnings: &Warnings) -> Seen {
        // Before they are read: what is written while they are is a change the next time.
        let mut now = Seen { stamps: stamps(&self.files), looks: before.looks.wrapping_add(1), ..before.clone() };
        let in_use = Arc::clone(&self.latest.borrow());
        let again = !before.refused.is_empty() && now.looks.is_multiple_of(LOOKS_PER_ATTEMPT);
        let changed = now.stamps != before.stamps;
        if changed || again {
            now.refused = self.take_up(&in_use);
            // Who has just put a file there is told, and not told again of what is tried again.
            for Fault { index, problem } in
                now.refused.iter().filter(|fault| changed || !before.refused.contains(fault))
            {
                let key = &self.files[*index].key;
                tracing::error!(key, problem, "changed, and is not usable: the old one stays");
            }
        }
        now.run_out = (self.run_out)(&self.latest.borrow());
        for fault in now.run_out.iter().filter(|fault| !before.run_out.contains(fault)) {
            tracing::error!(key = self.files[fault.index].key, "{}", fault.problem);
        }
        if (&now.refused, &now.run_out) != (&before.refused, &before.run_out) {
            self.tell(warnings, &now);
        }
        now
    }

    /// Takes up what can be used of the files; what cannot.
    fn take_up(&self, in_use: &T) -> Vec<Fault> {
        let mut good = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut contents, mut faults) = (Vec::new(), Vec::new());
        for (index, file) in self.files.iter().enumerate() {
            contents.push(read_one(file).unwrap_or_else(|problem| {
                faults.push(Fault { index, problem });
                good[index].clone()
            }));
        }
        let keep_old = |contents: &mut Vec<Vec<u8>>, at_fault: usize| {
            for (index, file) in self.files.iter().enumerate() {
                if file.together == self.files[at_fault].together {
                    contents[index].clone_from(&good[index]);
                }
            }
        };
        faults.iter().for_each(|fault: &Fault| keep_old(&mut contents, fault.index));
        let value = loop {
            if contents == *good {
                return faults;
            }
            match (self.parse)(&contents, Some(in_use)) {
                Ok(value) => break value,
                Err(fault) => {
                    let known = |other: &Fault| self.files[other.index].together == self.files[fault.index].together;
                    // Its old contents do not fit the others' new ones either.
                    if faults.iter().any(known) {
                        return faults;
                    }
                    keep_old(&mut contents, fault.index);
                    faults.push(fault);
                }
            }
        };
        for (file, _) in self.files.iter().zip(contents.iter().zip(good.iter())).filter(|(_, (new, old))| new != old) {
            tracing::info!(key = file.key, "read again");
        }
        *good = contents;
        self.latest.send_replace(Arc::new(value));
        faults
    }

    fn tell(&self, warnings: &Warnings, seen: &Seen) {
        for (index, file) in self.files.iter().enumerate() {
            let refused = seen.refused.iter().any(|fault| fault.index == index);
            metrics::gauge!("keyward_file_usable", "key" => file.key.clone()).set(if refused { 0.0 } else { 1.0 });
            // The path in the problem of a file that was refused is for the log.
            let refused = refused.then_some("changed, and is not usable: the old one stays");
            let run_out = seen.run_out.iter().filter(|fault| fault.index == index).map(|fault| fault.problem.as_str());
            let problems: Vec<&str> = refused.into_iter().chain(run_out).collect();
            if problems.is_empty() {
                warnings.clear(&file.key);
            } else {
                warnings.set(&file.key, &problems.join("; "));
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
    let one = |(index, file)| read_one(file).map_err(|problem| Fault { index, problem });
    files.iter().enumerate().map(one).collect()
}

fn read_one(file: &WatchedFile) -> Result<Vec<u8>, String> {
    let path = file.path.display();
    let unreadable = |error: std::io::Error| format!("cannot be read: {path}: {error}");
    // A pipe would be waited at until somebody writes into it.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut opened = OpenOptions::new().read(true).custom_flags(flags).open(&file.path).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(format!("must name a file of at most {FILE_BYTES_MAX} octets: {path}"));
    }
    // A group may read it, as Debian's ssl-cert does.
    if file.private && metadata.mode() & 0o007 != 0 {
        return Err(format!("must not be open to everybody: chmod 640 {path}"));
    }
    let mut octets = Vec::new();
    // It may grow meanwhile, and then it changed.
    (&mut opened).take(FILE_BYTES_MAX).read_to_end(&mut octets).map_err(unreadable)?;
    Ok(octets)
}
