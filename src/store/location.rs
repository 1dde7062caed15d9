use std::fmt;
use std::path::{Path, PathBuf};

use super::sql::{LogReader, Restored, SqlStore};
use super::{Guard, StoreError, TokenBinding, postgres, sqlite};
use crate::domain::Event;

/// Where a store is.
#[derive(Clone, Debug)]
pub enum Location {
    /// A file of SQLite's: the embedded store of one process.
    Sqlite(PathBuf),
    /// A database that replicas share.
    Postgres(postgres::Settings),
}

impl Location {
    /// Whether other processes may have it open, too.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Whether anything is there that a store could be, or that one could not be made beside.
    ///
    /// # Errors
    /// The database does not answer, or refuses us.
    pub async fn is_taken(&self) -> Result<bool, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(self.may_be_there()),
            Self::Postgres(settings) => postgres::is_taken(settings).await,
        }
    }

    /// Whether a store may be there: of a file that can be told without opening it, of a database it cannot.
    #[must_use]
    pub fn may_be_there(&self) -> bool {
        match self {
            Self::Sqlite(path) => path.exists(),
            Self::Postgres(_) => true,
        }
    }

    /// Makes a store for the token of `binding`, and an empty memory of it at `witness`. A crash leaves no store or a whole one.
    ///
    /// # Errors
    /// As [`sqlite::create`] and [`postgres::create`].
    pub async fn create(&self, binding: &TokenBinding, witness: &Path) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(path) => sqlite::create(path, binding, witness).await,
            Self::Postgres(settings) => postgres::create(settings, binding, witness).await,
        }
    }

    /// Opens the store, and brings its schema up to date.
    ///
    /// # Errors
    /// As [`sqlite::open`] and [`postgres::open`].
    pub async fn open(&self, guard: Guard) -> Result<SqlStore, StoreError> {
        match self {
            Self::Sqlite(path) => sqlite::open(path, guard).await,
            Self::Postgres(settings) => postgres::open(settings, guard).await,
        }
    }

    /// Compares the store with what was seen of it; with `accept`, also makes it hold as it is, and appends that event.
    ///
    /// # Errors
    /// As [`sqlite::restore`] and [`postgres::restore`].
    pub async fn restore(&self, guard: Guard, accept: Option<Event>) -> Result<Restored, StoreError> {
        match self {
            Self::Sqlite(path) => sqlite::restore(path, guard, accept).await,
            Self::Postgres(settings) => postgres::restore(settings, guard, accept).await,
        }
    }

    /// The administration log of a store that may be in use, or may be a copy.
    ///
    /// # Errors
    /// As [`sqlite::read_log`] and [`postgres::read_log`].
    pub async fn read_log(&self) -> Result<LogReader, StoreError> {
        match self {
            Self::Sqlite(path) => sqlite::read_log(path).await,
            Self::Postgres(settings) => postgres::read_log(settings).await,
        }
    }
}

/// For operators: nothing secret.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(settings) => write!(f, "the store in {}", settings.url),
        }
    }
}
