//! One process at a time makes, looks for and destroys keys.
//!
//! A worker process that is generating when its service is killed makes the key all the same. The service that is started next
//! must not look for it before, find nothing and give the id up: the key would have no account (R6).

use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::task::Ask;
use super::{TokenConfig, TokenError};

/// Beside the file that remembers a refused PIN. Only its lock means anything.
const FILE: &str = "token-administration.lock";

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
        Self(config.pin_refused_file.with_file_name(FILE))
    }

    /// Waits until no other process is at a task that this one must not meet.
    pub(super) fn alone(&self, ask: &Ask) -> Result<Alone, TokenError> {
        match ask {
            Ask::Generate(..) | Ask::Find(..) | Ask::Destroy(_) => self.lock().map(|lock| Alone { _lock: Some(lock) }),
            Ask::List | Ask::Probe | Ask::Mechanisms => Ok(Alone { _lock: None }),
        }
    }

    fn lock(&self) -> Result<File, TokenError> {
        let file = File::options().create(true).truncate(false).write(true).open(&self.0);
        match file.and_then(|file| lock(file, WAIT_MAX)) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(TokenError::Unavailable(
                "another process has been making or destroying keys for too long".to_owned(),
            )),
            Err(error) => Err(TokenError::Unavailable(format!("{}: {error}", self.0.display()))),
        }
    }
}

/// Waits for the lock of a file or a directory. `None`: another process had it all the time.
pub(super) fn lock(file: File, wait_max: Duration) -> io::Result<Option<File>> {
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
