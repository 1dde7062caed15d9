//! Files beside the one that a store, or the memory of one, is kept in.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::StoreError;

/// Owner only: who can edit the store can deny service (R15).
pub(super) const FILE_MODE: u32 = 0o600;

/// The file of the same name with this at its end.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// An advisory lock on `<path>.lock`, which ends with the process, whatever ends it. The empty file stays: removing it could hand the
/// same lock to two. `in_use` is what to say where another process has it.
pub(super) fn lock(path: &Path, in_use: impl FnOnce() -> String) -> Result<File, StoreError> {
    let name = beside(path, ".lock");
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&name);
    let file = open.map_err(|error| unusable(&name, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Refused(in_use())),
        Err(TryLockError::Error(error)) => Err(unusable(&name, &error)),
    }
}

/// Keeps other processes from this installation's memory of the store, wherever that is: they would write another file in its place.
pub(super) fn lock_memory(witness: &Path) -> Result<File, StoreError> {
    lock(witness, || format!("{} is in use by another Keyward process; stop that one first", witness.display()))
}

pub(super) fn unusable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Refused(format!("{} cannot be used for a store: {error}", path.display()))
}
