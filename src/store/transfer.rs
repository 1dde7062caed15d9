//! The move of a store out of a SQLite file into a PostgreSQL database: the token stays, and so does this installation's memory of
//! the store, which from then on says that the file is the past.

use std::path::Path;

use super::postgres::{Founding, Settings, is_same_database};
use super::sql::{Guard, Moved, SqlStore};
use super::witness::Witness;
use super::{Store as _, StoreError, sqlite};
use crate::domain::Event;

/// A store that is about to be moved. Nobody else uses it, nor the memory of it, until this is closed or dropped.
pub struct Transfer<'a> {
    source: SqlStore,
    target: &'a Settings,
}

/// Whether a move to this database has come so far that the store of this memory may be there.
///
/// # Errors
/// [`StoreError::Refused`] if there is no such memory, or if the move was to another database: the store would be in two places.
pub fn may_have_moved(witness: &Path, target: &Settings) -> Result<bool, StoreError> {
    let Some(to) = Witness::moved_to(witness)? else { return Ok(false) };
    if is_same_database(&to, &target.url) {
        return Ok(true);
    }
    Err(StoreError::Refused(format!(
        "the store was moved to {to}, or was about to be: name that database in store.url again. If it is gone for good, go back to a \
         backup first (docs/operations.md, From SQLite to PostgreSQL)"
    )))
}

impl<'a> Transfer<'a> {
    /// Opens the store at `from`, to be moved to `target`.
    ///
    /// # Errors
    /// As [`sqlite::open`], and [`StoreError::Refused`] if another process uses the memory.
    pub async fn open(from: &Path, target: &'a Settings, guard: Guard) -> Result<Self, StoreError> {
        Ok(Self { source: sqlite::open_to_move(from, guard).await?, target })
    }

    /// The store as it is in its file.
    #[must_use]
    pub fn source(&self) -> &SqlStore {
        &self.source
    }

    /// Copies the store into the database, which must be empty, reads the copy back, and moves there, with `event` as the next
    /// record of the administration log. A crash leaves no store in the database or a whole one.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the database is not empty, or if something in the store is not believed. The store stays in its file
    /// and the database empty; only after [`StoreError::Unavailable`] it may have been moved, and the text says so.
    pub async fn carry_out(&self, event: Event) -> Result<Moved, StoreError> {
        let target = Founding::new(self.target, self.source.binding().await?).await?;
        self.source.copy_into(Box::new(target), &self.target.url, event).await
    }

    /// Lets go of the file.
    pub async fn close(self) {
        self.source.close().await;
    }
}
