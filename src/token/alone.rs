//! One process at a time makes, looks for and destroys keys.
//!
//! A worker process that is generating when its service is killed makes the key all the same. The service that is started next
//! must not look for it before, find nothing and give the id up: the key would have no account (R6).

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::task::Ask;
use super::{TokenConfig, TokenError};

/// What the name of the lock's file ends with.
const ADMINISTRATION: &str = "administration.lock";

/// How long a task waits for another process: longer than a worker lives whose service is gone.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// How often a lock is tried that another process has.
const PAUSE: Duration = Duration::from_millis(20);

/// Where the processes of an installation meet.
pub(super) struct Administration(PathBuf);

/// Held while a task is under way.
pub(super) struct Alone {
    _lock: Option<File>,
}

impl Administration {
    pub(super) fn of(config: &TokenConfig) -> Self {
        Self(lock_file(&config.pin_refused_file, ADMINISTRATION))
    }

    /// Waits until no other process is at a task that this one must not meet.
    pub(super) fn alone(&self, ask: &Ask) -> Result<Alone, TokenError> {
        match ask {
            Ask::Generate(..) | Ask::Find(..) | Ask::Destroy(_) => self.lock().map(|lock| Alone { _lock: Some(lock) }),
            Ask::List | Ask::Probe | Ask::Mechanisms => Ok(Alone { _lock: None }),
        }
    }

    fn lock(&self) -> Result<File, TokenError> {
        match lock(&self.0, WAIT_MAX) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(TokenError::Unavailable(
                "another process has been making or destroying keys for too long".to_owned(),
            )),
            Err(error) => Err(TokenError::Unavailable(format!("{}: {error}", self.0.display()))),
        }
    }
}

/// A file beside the one that remembers a refused PIN: like that one, it is of one token, so that none waits for another. Only its
/// lock means anything.
pub(super) fn lock_file(pin_refused_file: &Path, purpose: &str) -> PathBuf {
    let mut name = pin_refused_file.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(purpose);
    pin_refused_file.with_file_name(name)
}

/// Waits for the lock of a file, which is made if it is not there. `None`: another process had it all the time.
pub(super) fn lock(path: &Path, wait_max: Duration) -> io::Result<Option<File>> {
    // One that another user's command made is good enough: to lock a file, it need not be written.
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            File::options().create(true).truncate(false).write(true).open(path)?
        }
        opened => opened?,
    };
    let give_up = Instant::now() + wait_max;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Ok(None),
        }
    }
}
