//! Where a store is: its file, the lock beside it, and whether the file is still there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::files::{directory_of, sync_directory};
use crate::store::StoreError;
use crate::store::beside::{self, FILE_MODE, beside, lock_memory, unusable};

/// What stands beside the file. A log that outlived its store would be replayed into a new one of the same name.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A path that this process alone uses for a store, by an advisory lock on `<path>.lock`.
///
/// The lock is on a file of its own, because SQLite's locks on the store itself must let an operator read it with the sqlite3
/// shell.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    lock: File,
    /// On the memory of the store, which may be another store's by now.
    memory: Option<File>,
}

impl Place {
    /// The place of the store at `path`. The path is resolved, so that two names of one file meet at one lock.
    pub(super) fn occupied(path: &Path, witness: &Path) -> Result<Self, StoreError> {
        let path = fs::canonicalize(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                StoreError::Refused(format!("there is no store at {}; make one with `keyward init`", path.display()))
            }
            _ => unusable(path, &error),
        })?;
        let place = Self { lock: lock(&path)?, path, memory: Some(lock_memory(witness)?) };
        if !is_store(&place.path).map_err(|error| unusable(&place.path, &error))? {
            return Err(StoreError::Damaged(format!(
                "{} is not a file that `keyward init` made; correct the path, or restore the file",
                place.path.display()
            )));
        }
        Ok(place)
    }

    /// The place for a new store at `path`, where nothing may stand, nor anything left of an earlier store.
    pub(super) fn vacant(path: &Path) -> Result<Self, StoreError> {
        let parent = directory_of(path);
        let name = path.file_name().ok_or_else(|| StoreError::Refused(format!("{} names no file", path.display())))?;
        let path = fs::canonicalize(parent).map_err(|error| unusable(parent, &error))?.join(name);
        let place = Self { lock: lock(&path)?, path, memory: None };
        let companions = COMPANIONS.map(|suffix| beside(&place.path, suffix));
        for file in std::iter::once(&place.path).chain(&companions) {
            match fs::symlink_metadata(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(file, &error)),
                Ok(_) => return Err(exists(file)),
            }
        }
        Ok(place)
    }

    /// The resolved path of the store's file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty file for a new store in a directory of its own beside the place, on the same file system.
    pub(super) fn draft(&self) -> Result<Draft, StoreError> {
        let draft = || -> io::Result<Draft> {
            let directory = tempfile::Builder::new().prefix(".keyward-init-").tempdir_in(directory_of(&self.path))?;
            let path = directory.path().join("store");
            OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path)?;
            Ok(Draft { path, directory })
        };
        draft().map_err(|error| unusable(&self.path, &error))
    }

    /// Moves a finished draft to the place, durably and without replacing anything. Before the move there is no store;
    /// after it, a whole one.
    pub(super) fn settle(&self, draft: Draft) -> Result<(), StoreError> {
        let settle = || -> io::Result<()> {
            File::open(&draft.path)?.sync_all()?;
            tempfile::TempPath::try_from_path(&draft.path)?.persist_noclobber(&self.path).map_err(io::Error::from)?;
            sync_directory(directory_of(&self.path))?;
            draft.directory.close()
        };
        settle().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(&self.path),
            _ => unusable(&self.path, &error),
        })
    }

    /// Lets another process have the place.
    pub(super) fn release(&self) -> io::Result<()> {
        self.memory.as_ref().map_or(Ok(()), File::unlock)?;
        self.lock.unlock()
    }
}

/// A store that is being made. Dropped, it leaves nothing; a crash leaves a directory that nothing looks at.
pub(super) struct Draft {
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Draft {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The files that an open store writes to, to notice when the path stops leading to them.
///
/// With a write-ahead log SQLite does not notice by itself: it goes on appending to a log beside a path where no store is
/// any more, and whoever opens the moved file sees none of that.
#[derive(Debug)]
pub(super) struct Anchor {
    files: Vec<(PathBuf, (u64, u64))>,
}

impl Anchor {
    /// The files of the store at `path`, which is open.
    pub(super) fn new(path: &Path) -> Result<Self, StoreError> {
        let files = [path.to_owned(), beside(path, "-wal")].map(|file| {
            let identity = identity(&file).map_err(|error| unusable(&file, &error))?;
            Ok((file, identity))
        });
        Ok(Self { files: files.into_iter().collect::<Result<_, StoreError>>()? })
    }

    /// Shows that the paths still lead to the files that are written.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.files.iter().find(|(file, opened)| identity(file).ok() != Some(*opened)) {
            None => Ok(()),
            Some((file, _)) => Err(StoreError::ReadOnly(format!(
                "{} was moved, removed or replaced while the store was open; put it back, or stop and restore",
                file.display()
            ))),
        }
    }
}

fn identity(file: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(file).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn lock(path: &Path) -> Result<File, StoreError> {
    beside::lock(path, || {
        format!(
            "the store {} is in use by another Keyward process; stop that one first: a SQLite store has one process",
            path.display()
        )
    })
}

/// Whether the file's header is that of a Keyward store (sqlite.org/fileformat.html section 1.3).
fn is_store(path: &Path) -> io::Result<bool> {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    const APPLICATION_ID: &[u8] = b"Keyw"; // As in migrations/sqlite/0001_store.sql.
    let mut header = Vec::new();
    File::open(path)?.take(100).read_to_end(&mut header)?;
    Ok(header.starts_with(MAGIC) && header.get(68..72) == Some(APPLICATION_ID))
}

fn exists(file: &Path) -> StoreError {
    StoreError::Refused(format!(
        "{} exists already and is left as it is; name another path, or move it away if it is not needed",
        file.display()
    ))
}
