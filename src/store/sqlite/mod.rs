//! The embedded store: one SQLite file, one process.
//!
//! Writes go through one connection, one transaction at a time; reads through others, which the write-ahead log keeps out of
//! the writer's way. `synchronous = FULL` puts every commit on disk before it is acknowledged.

mod error;
mod ledger;
mod offline;
mod place;
mod read;
mod restore;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqlSafeStr as _, SqliteConnection, SqlitePool, query};
use tokio::sync::RwLock;

use self::error::{migrate_error, store_error};
use self::ledger::Ledger;
pub use self::offline::LogReader;
use self::place::{Anchor, Place};
use self::read::column;
pub use self::restore::Restored;
use super::witness::{Sight, Witness};
use super::{
    Change, Changes, EventPage, EventRow, Loaded, Moment, Revisions, Seals, Store, StoreError, TenantRecord,
    TokenBinding, TokenRecord,
};
use crate::domain::TenantId;
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

/// What a store needs to tell which records are to be believed (R15).
#[derive(Clone)]
pub struct Guard {
    /// Seals, with the service key.
    pub seals: Arc<dyn Seals>,
    /// The file in which this replica remembers what it has seen.
    pub witness: PathBuf,
}

/// A store in a SQLite file that this process alone has open.
///
/// A commit is carried out even if the caller's future is dropped meanwhile; all of it is made or nothing. After
/// [`StoreError::ReadOnly`] reads go on, and writes do too once the operator has acted, without opening again.
pub struct SqliteStore {
    /// One connection, which counts the commits of all others (`pragma data_version`).
    writer: SqlitePool,
    /// How many such connections there were so far.
    connections: Arc<AtomicU64>,
    ledger: Arc<Mutex<Ledger>>,
    readers: SqlitePool,
    place: Arc<Place>,
    anchor: Arc<Anchor>,
    seals: Arc<dyn Seals>,
    /// Reads share it and a commit has it alone, so that what is read is compared with what had been seen at that moment.
    witness: Arc<RwLock<Witness>>,
}

impl SqliteStore {
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
        query("insert into meta (only, token_serial, token_label, log_tip, probes) values (1, ?1, ?2, ?3, 0)")
            .bind(&binding.serial)
            .bind(&binding.label)
            .bind(write::tip_text(&Tip::default()))
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
    /// [`StoreError::Refused`] if there is none or no memory of it, if another process has it open, or if a newer version of
    /// Keyward made it; [`StoreError::Damaged`] if the file is not a store.
    pub async fn open(path: &Path, guard: Guard) -> Result<Self, StoreError> {
        let place = Place::occupied(path)?;
        let witness = Witness::open(&guard.witness)?;
        Self::connect(place, guard.seals, witness).await
    }

    /// Waits for the calls under way, closes the file and lets another process open it. Calls that come later answer
    /// [`StoreError::Unavailable`].
    ///
    /// A store that is dropped instead loses nothing; its connections are closed a little later.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        if let Err(error) = self.place.release() {
            tracing::warn!(%error, "the lock of the store was not released; it ends with this process");
        }
    }

    async fn connect(place: Place, seals: Arc<dyn Seals>, witness: Witness) -> Result<Self, StoreError> {
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
        let witness = Arc::new(RwLock::new(witness));
        let ledger = Arc::default();
        let store = Self { writer, connections, ledger, readers, place: Arc::new(place), anchor, seals, witness };
        store.binding().await?;
        Ok(store)
    }

    /// Carries out the steps and appends the records, and remembers what that made of the store.
    async fn write(&self, work: write::Work) -> Result<(), StoreError> {
        // A closed store has no files left to look at.
        if self.writer.is_closed() {
            return Err(store_error(sqlx::Error::PoolClosed));
        }
        // Before a connection is asked for, because a new one would open whatever the path leads to now.
        self.anchor.check()?;
        let connection = self.writer.acquire().await.map_err(store_error)?;
        let (place, anchor, witness) = (Arc::clone(&self.place), Arc::clone(&self.anchor), Arc::clone(&self.witness));
        let ledger = Arc::clone(&self.ledger);
        // A task of its own goes on when the caller's future is dropped: no transaction is left half done on the connection.
        // It keeps the lock, so that nobody else opens the file under a commit whose store was dropped.
        let task = tokio::spawn(async move {
            let mut witness = witness.write_owned().await;
            // While it has the connection: whoever asks what changed waits for it, and finds the write and its note or neither.
            {
                let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
                work.tenants().for_each(|tenant| ledger.note(tenant));
            }
            let outcome = write::transact(connection, &anchor, &mut witness, work).await;
            drop(place);
            outcome
        });
        task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("the write was interrupted: {error}"))))
    }

    /// The moment now: which connection counts, and what it has counted. `None` if it cannot be asked at once.
    async fn moment(&self) -> Option<Moment> {
        // A new connection would open whatever the path leads to now.
        if self.writer.is_closed() || self.anchor.check().is_err() {
            return None;
        }
        let mut connection = tokio::time::timeout(COUNTER_WAIT_MAX, self.writer.acquire()).await.ok()?.ok()?;
        let row = query("pragma data_version").fetch_one(&mut *connection).await.ok()?;
        let others = column(&row, "data_version").ok()?;
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ledger.moment(self.connections.load(Ordering::Relaxed), others))
    }

    async fn read_tip(&self) -> Result<Tip, StoreError> {
        let row = query("select log_tip from meta").fetch_one(&self.readers).await.map_err(store_error)?;
        write::parse_tip(&column::<String>(&row, "log_tip")?)
    }

    /// Remembers what was read and not known yet: another replica's change, or one that a crash kept this one from noting.
    async fn remember(&self, news: Vec<Sight>) {
        if news.is_empty() {
            return;
        }
        if let Err(error) = self.witness.write().await.note(&news) {
            tracing::warn!(%error, "what was read of the store is remembered by this process alone");
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, StoreError> {
        let read = {
            let witness = self.witness.read().await;
            read::tenant(&self.readers, tenant, &*self.seals, &witness).await?
        };
        let Some((record, news)) = read else { return Ok(None) };
        self.remember(news).await;
        Ok(Some(record))
    }

    async fn load_all(&self) -> Result<Loaded, StoreError> {
        let (loaded, news) = {
            let witness = self.witness.read().await;
            read::all(&self.readers, &*self.seals, &witness).await?
        };
        self.remember(news).await;
        Ok(loaded)
    }

    async fn revisions(&self) -> Result<Revisions, StoreError> {
        let witness = self.witness.read().await;
        read::revisions(&self.readers, &witness).await
    }

    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError> {
        // Whoever cannot be told reads the revisions, and learns there what is wrong.
        let Some(until) = self.moment().await else { return Ok(Changes { until: Moment::default(), tenants: None }) };
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Changes { until, tenants: since.and_then(|since| ledger.between(since, until)) })
    }

    async fn commit(&self, change: &Change) -> Result<(), StoreError> {
        let mut work = {
            let witness = self.witness.read().await;
            write::Work::of(change, &witness)?
        };
        work.seal(&*self.seals).await?;
        self.write(work).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.binding().await?;
        {
            let witness = self.witness.read().await;
            let mut connection = self.readers.acquire().await.map_err(store_error)?;
            write::goes_on(&mut connection, &self.read_tip().await?, witness.log_end()).await?;
        }
        self.write(write::Work::probe()).await
    }

    async fn binding(&self) -> Result<TokenBinding, StoreError> {
        read::binding(&self.readers).await
    }

    async fn tokens(&self) -> Result<BTreeMap<String, Result<TokenRecord, String>>, StoreError> {
        read::tokens(&self.readers, &*self.seals).await
    }

    async fn events(&self, page: &EventPage) -> Result<Vec<EventRow>, StoreError> {
        read::events(&self.readers, page).await
    }

    async fn log_tip(&self) -> Result<Tip, StoreError> {
        self.read_tip().await
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("place", &self.place).finish_non_exhaustive()
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
    ];
    let migrations: Vec<Migration> = migrations.map(migration).into();
    Migrator::with_migrations(migrations).run(connection).await.map_err(migrate_error)
}
