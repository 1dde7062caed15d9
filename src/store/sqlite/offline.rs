use std::path::{Path, PathBuf};

use super::error::store_error;
use super::{Readers, options, pool};
use crate::store::sql::read;
use crate::store::{EventPage, EventRow, StoreError, TokenBinding};

/// The administration log of a store that may be in use, or may be a copy: it is read, and of the rest nothing is looked at but
/// the name of the token, and nothing believed.
pub struct LogReader {
    readers: Readers,
}

impl LogReader {
    /// Opens the store at `path` for reading.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if there is none; [`StoreError::Damaged`] if the file is no store.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // Opening a pipe could wait for ever.
        if !path.is_file() {
            return Err(StoreError::Refused(format!("there is no store at {}", path.display())));
        }
        // A store in use has a write-ahead log beside it. Without one nobody writes, and reading needs no files beside it either.
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let options = options(path).read_only(true).immutable(!PathBuf::from(log).exists());
        Ok(Self { readers: Readers(pool(1).connect_with(options).await.map_err(store_error)?) })
    }

    /// The token that the store says it belongs to; nobody sealed that.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn binding(&self) -> Result<TokenBinding, StoreError> {
        read::binding(&self.readers).await
    }

    /// Records, as [`crate::store::Store::events`] has them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn events(&self, page: &EventPage) -> Result<Vec<EventRow>, StoreError> {
        read::events(&self.readers, page).await
    }
}
