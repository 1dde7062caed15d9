//! The embedded store: one SQLite file, one process.
//!
//! Writes go through one connection, one transaction at a time; reads through others, which the write-ahead log keeps out of
//! the writer's way. `synchronous = FULL` puts every commit on disk before it is acknowledged.

mod error;
mod ledger;
mod place;
mod rows;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqlSafeStr as _, SqliteConnection, SqlitePool, query};

use self::error::{migrate_error, store_error};
use self::ledger::Ledger;
use self::place::{Anchor, Place};
use self::writing::Writing;
use super::sql::{Database, Guard, LogReader, Reads, Restored, Row, SqlStore, Statement, Transaction, tip_text};
use super::witness::Witness;
use super::{Changes, Moment, StoreError, TokenBinding};
use crate::domain::Event;
use crate::tlog::Tip;

/// How long a statement waits for a lock of another process, which can only be an operator's shell or backup: they hold it
/// for the length of a statement, and a caller with a deadline should rather hear that the store is busy.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a call waits for a connection: more than one LOCK_WAIT_MAX, so that a write queued behind a waiting one has its
/// turn, and less than the callers' deadlines.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long the look at what changed waits for the connection that writes; after that all revisions are read, by another one.
const COUNTER_WAIT_MAX: Duration = Duration::from_millis(200);

/// Connections for reading, one thread each. Signing reads nothing here (R9); four let a long list run beside the rest.
const READERS: u32 = 4;

/// The file, open.
struct Sqlite {
    /// One connection, which counts the commits of all others (`pragma data_version`).
    writer: SqlitePool,
    /// How many such connections there were so far.
    connections: Arc<AtomicU64>,
    ledger: Arc<Mutex<Ledger>>,
    readers: Readers,
    place: Arc<Place>,
    anchor: Arc<Anchor>,
}

/// Connections that read alone.
struct Readers(SqlitePool);

/// Makes a store at `path` for the token of `binding`, readable and writable by its owner alone, and an empty memory of it at
/// `witness`. A crash leaves no store or a whole one at `path`.
///
/// # Errors
/// [`StoreError::Refused`] if anything stands at `path` (it is left as it is) or the directory cannot be used.
pub async fn create(path: &Path, binding: &TokenBinding, witness: &Path) -> Result<(), StoreError> {
    let place = Place::vacant(path)?;
    Witness::create(witness)?;
    // 1. Build it where nobody looks. Not with a write-ahead log: the file alone must be the store when it is moved.
    let draft = place.draft()?;
    let options = options(draft.path()).journal_mode(SqliteJournalMode::Delete);
    let mut connection = options.connect().await.map_err(store_error)?;
    migrate(&mut connection).await?;
    query("insert into meta (only, token_serial, token_label, log_tip, probes) values (1, $1, $2, $3, 0)")
        .bind(&binding.serial)
        .bind(&binding.label)
        .bind(tip_text(&Tip::default()))
        .execute(&mut connection)
        .await
        .map_err(store_error)?;
    connection.close().await.map_err(store_error)?;
    // 2. Move it where `open` looks.
    place.settle(draft)
}

/// Opens the store at `path`, and brings its schema up to date.
///
/// # Errors
/// [`StoreError::Refused`] if there is none or no memory of it, if it was moved into a database, if another process has it open, or
/// if a newer version of Keyward made it; [`StoreError::Damaged`] if the file is not a store.
pub async fn open(path: &Path, guard: Guard) -> Result<SqlStore, StoreError> {
    let place = Place::occupied(path, &guard.witness)?;
    let witness = Witness::open(&guard.witness)?;
    SqlStore::new(Sqlite::connect(place).await?, guard.seals, witness).await
}

/// As [`open`], for whoever moves the store into a database: that may have begun already.
pub(super) async fn open_to_move(path: &Path, guard: Guard) -> Result<SqlStore, StoreError> {
    let place = Place::occupied(path, &guard.witness)?;
    let witness = Witness::open(&guard.witness)?;
    SqlStore::to_move(Sqlite::connect(place).await?, guard.seals, witness).await
}

/// Compares the store at `path` with what was seen of it; with `accept`, also makes it hold as it is, and appends that event.
///
/// # Errors
/// As [`open`], and [`StoreError::Unsealed`]. A crash leaves the store as it was or as it is to be; the same call again finishes
/// the memory of it.
pub async fn restore(path: &Path, guard: Guard, accept: Option<Event>) -> Result<Restored, StoreError> {
    let place = Place::occupied(path, &guard.witness)?;
    SqlStore::restore(Sqlite::connect(place).await?, guard, accept).await
}

/// The administration log of the store at `path`, which may be in use.
///
/// # Errors
/// [`StoreError::Refused`] if there is none; [`StoreError::Damaged`] if the file is no store.
pub async fn read_log(path: &Path) -> Result<LogReader, StoreError> {
    // Opening a pipe could wait for ever.
    if !path.is_file() {
        return Err(StoreError::Refused(format!("there is no store at {}", path.display())));
    }
    // A store in use has a write-ahead log beside it. Without one nobody writes, and reading needs no files beside it either.
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let options = options(path).read_only(true).immutable(!PathBuf::from(log).exists());
    Ok(LogReader::new(Readers(pool(1).connect_with(options).await.map_err(store_error)?)))
}

impl Sqlite {
    async fn connect(place: Place) -> Result<Self, StoreError> {
        let options = options(place.path());
        let writing = options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        let writer = pool(1).after_connect(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::ready(Ok(())))
        });
        let writer = writer.connect_with(writing).await.map_err(store_error)?;
        migrate(&mut *writer.acquire().await.map_err(store_error)?).await?;
        let readers = pool(READERS).connect_with(options.pragma("query_only", "ON")).await.map_err(store_error)?;
        // All of them now, and each to its first read, where SQLite opens the log: later, the path could lead elsewhere.
        let mut opened = Vec::new();
        for _ in 0..READERS {
            let mut reader = readers.acquire().await.map_err(store_error)?;
            query("select only from meta").execute(&mut *reader).await.map_err(store_error)?;
            opened.push(reader);
        }
        drop(opened);
        let anchor = Arc::new(Anchor::new(place.path())?);
        Ok(Self {
            writer,
            connections,
            ledger: Arc::default(),
            readers: Readers(readers),
            place: Arc::new(place),
            anchor,
        })
    }

    /// The moment now: which connection counts, and what it has counted. `None` if it cannot be asked at once.
    async fn moment(&self) -> Option<Moment> {
        // A new connection would open whatever the path leads to now.
        if self.writer.is_closed() || self.anchor.check().is_err() {
            return None;
        }
        let mut connection = tokio::time::timeout(COUNTER_WAIT_MAX, self.writer.acquire()).await.ok()?.ok()?;
        let row = query("pragma data_version").fetch_one(&mut *connection).await.ok()?;
        let others = row.try_get("data_version").ok()?;
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ledger.moment(self.connections.load(Ordering::Relaxed), others))
    }
}

#[async_trait]
impl Reads for Readers {
    async fn rows(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        rows::all(&self.0, statement).await
    }

    async fn check_log(&self) -> Result<(), StoreError> {
        let tables = query(
            "select 1 from pragma_table_list where schema = 'main' and name = 'audit_event' and type = 'table' and strict = 1 \
             and not exists (select 1 from pragma_table_xinfo('audit_event') where hidden <> 0)",
        );
        match tables.fetch_optional(&self.0).await.map_err(store_error)? {
            Some(_) => Ok(()),
            None => Err(StoreError::Damaged("audit_event is not the table that Keyward makes".to_owned())),
        }
    }
}

#[async_trait]
impl Reads for Sqlite {
    async fn rows(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        self.readers.rows(statement).await
    }

    async fn check_log(&self) -> Result<(), StoreError> {
        self.readers.check_log().await
    }
}

#[async_trait]
impl Database for Sqlite {
    async fn transaction(&self) -> Result<Box<dyn Transaction>, StoreError> {
        // A closed store has no files left to look at.
        if self.writer.is_closed() {
            return Err(store_error(sqlx::Error::PoolClosed));
        }
        // Before a connection is asked for, because a new one would open whatever the path leads to now.
        self.anchor.check()?;
        let connection = self.writer.acquire().await.map_err(store_error)?;
        let (place, anchor) = (Arc::clone(&self.place), Arc::clone(&self.anchor));
        Ok(Box::new(Writing::new(connection, anchor, Arc::clone(&self.ledger), place)))
    }

    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError> {
        // Whoever cannot be told reads the revisions, and learns there what is wrong.
        let Some(until) = self.moment().await else { return Ok(Changes { until: Moment::default(), tenants: None }) };
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Changes { until, tenants: since.and_then(|since| ledger.between(since, until)) })
    }

    async fn close(&self) {
        self.readers.0.close().await;
        self.writer.close().await;
        if let Err(error) = self.place.release() {
            tracing::warn!(%error, "the lock of the store was not released; it ends with this process");
        }
    }
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sqlite").field("place", &self.place).finish_non_exhaustive()
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    // The driver would log every statement; what goes wrong is logged where it is handled.
    SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(LOCK_WAIT_MAX)
        .disable_statement_logging()
}

/// A pool that opens its connections once and keeps them.
fn pool(connections: u32) -> PoolOptions<sqlx::Sqlite> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECTION_WAIT_MAX)
        .idle_timeout(None)
        .max_lifetime(None)
}

async fn migrate(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let migration = |(version, name, statements): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, statements.into_sql_str(), false)
    };
    let migrations = [
        (1, "store", include_str!("../../../migrations/sqlite/0001_store.sql")),
        (2, "tokens", include_str!("../../../migrations/sqlite/0002_tokens.sql")),
        (3, "removals", include_str!("../../../migrations/sqlite/0003_removals.sql")),
        (4, "service key", include_str!("../../../migrations/sqlite/0004_service_key.sql")),
    ];
    let migrations: Vec<Migration> = migrations.map(migration).into();
    Migrator::with_migrations(migrations).run(connection).await.map_err(migrate_error)
}
