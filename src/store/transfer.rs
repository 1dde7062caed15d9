//! The move of a store out of a SQLite file into a PostgreSQL database: the token stays, and so does this installation's memory of
//! the store, which from then on says that the file is the past.

use std::fs::File;
use std::path::Path;

use super::postgres::{self, Founding, Settings};
use super::sql::{Guard, Moved, SqlStore};
use super::witness::Witness;
use super::{Store as _, StoreError, sqlite};
use crate::domain::Event;

/// A store that is about to be moved. Nobody else uses it, nor the memory of it, until this is closed or dropped.
pub struct Transfer<'a> {
    source: SqlStore,
    target: &'a Settings,
    _memory: File,
}

/// Whether a move has come so far that the store of this memory may be in its database.
///
/// # Errors
/// [`StoreError::Refused`] if there is no such memory.
pub fn may_have_moved(witness: &Path) -> Result<bool, StoreError> {
    Ok(Witness::moved_to(witness)?.is_some())
}

impl<'a> Transfer<'a> {
    /// Opens the store at `from`, to be moved to `target`.
    ///
    /// # Errors
    /// As [`sqlite::open`], and [`StoreError::Refused`] if another process uses the memory.
    pub async fn open(from: &Path, target: &'a Settings, guard: Guard) -> Result<Self, StoreError> {
        let memory = postgres::lock(&guard.witness)?;
        Ok(Self { source: sqlite::open_to_move(from, guard).await?, target, _memory: memory })
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
