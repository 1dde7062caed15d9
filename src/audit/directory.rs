use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Owner only: the records name callers.
pub(super) const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// How the segments of the log of calls are named: by the index of their first record, so that they sort.
const PREFIX: &str = "calls-";
const SUFFIX: &str = ".jsonl";
const DIGITS: usize = 20;

/// Why a log cannot be opened. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory cannot be used.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// Another process writes this log.
    #[error("{0} is in use by another Keyward process; stop that one first, or set another audit.directory")]
    InUse(PathBuf),
    /// What is there is not what was written.
    #[error(
        "the audit log in {directory} is not as it was written: {problem}. `keyward audit verify` says more; restore the \
         directory, or move it away as it is for those who must look at it, and a new log begins"
    )]
    Damaged {
        /// Where.
        directory: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A directory of audit logs that this process alone writes to, by an advisory lock that ends with the process.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::File { path, error }
        };
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(unusable(path))?;
        // Two names of one directory must meet at one lock.
        let path = fs::canonicalize(path).map_err(unusable(path))?;
        let name = path.join("lock");
        let lock = open_regular(&name, OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE));
        let lock = lock.map_err(unusable(&name))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path)),
            Err(TryLockError::Error(error)) => Err(OpenError::File { path: name, error }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn damaged(&self, problem: impl Into<String>) -> OpenError {
        OpenError::Damaged { directory: self.path.clone(), problem: problem.into() }
    }
}

/// A segment: a file, and the index of its first record, as its name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentFile {
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

impl SegmentFile {
    /// The segment that begins with record `first`.
    pub(super) fn new(directory: &Path, first: u64) -> Self {
        Self { first, path: directory.join(format!("{PREFIX}{first:0DIGITS$}{SUFFIX}")) }
    }

    /// All segments in a directory, in order.
    pub(super) fn all(directory: &Path) -> io::Result<Vec<Self>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX));
            let number = number.filter(|number| number.len() == DIGITS).and_then(|number| number.parse().ok());
            segments.extend(number.map(|first| Self { first, path }));
        }
        segments.sort();
        Ok(segments)
    }
}

/// Opens a file, as these options say: a regular one. A pipe of its name would be waited for, and a device has no end.
pub(super) fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = options.custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file"))
}
