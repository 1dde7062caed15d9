use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::page::{Page, Place, page};
use super::{CallLog, Checkpoints};
use crate::domain::TenantId;

/// Pages that are read at once: each takes a thread and some megabytes for a moment.
const READS_MAX: usize = 4;

/// What the faces have of the audit logs: the log of calls to write to, and what auditors read. Cheap to clone.
#[derive(Clone)]
pub struct Logs {
    directory: PathBuf,
    calls: CallLog,
    checkpoints: Checkpoints,
    reads: Arc<Semaphore>,
}

/// Why a page of the log of calls is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It begins nowhere in this log.
    #[error("there is no such place in the log")]
    NoSuchPlace,
    /// As many pages are being read as may be.
    #[error("too many pages are read at once")]
    Busy,
    /// The files cannot be read, for the reason given.
    #[error("the audit log cannot be read: {0}")]
    Unreadable(String),
}

impl Logs {
    pub(super) fn new(directory: PathBuf, calls: CallLog, checkpoints: Checkpoints) -> Self {
        Self { directory, calls, checkpoints, reads: Arc::new(Semaphore::new(READS_MAX)) }
    }

    /// The log of calls.
    #[must_use]
    pub fn calls(&self) -> &CallLog {
        &self.calls
    }

    /// The latest checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Events of the log of calls, newest first: those before `before`, at most `size`.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn page(&self, tenant: Option<TenantId>, size: usize, before: Option<Place>) -> Result<Page, ReadError> {
        let permit = Arc::clone(&self.reads).try_acquire_owned().map_err(|_| ReadError::Busy)?;
        let directory = self.directory.clone();
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            page(&directory, tenant.as_ref(), size, before)
        });
        let page = read.await.map_err(|panic| ReadError::Unreadable(panic.to_string()))?;
        // Only a place that somebody made up leads into the middle of a line.
        page.map_err(|error| match (error.kind(), before) {
            (std::io::ErrorKind::InvalidInput, Some(_)) => ReadError::NoSuchPlace,
            _ => ReadError::Unreadable(error.to_string()),
        })
    }
}
