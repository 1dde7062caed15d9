//! The embedded store: one SQLite file, one process.
//!
//! Writes go through one connection, one transaction at a time; reads through others, which the write-ahead log keeps out of
//! the writer's way. `synchronous = FULL` puts every commit on disk before it is acknowledged.

mod error;
mod place;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqlSafeStr as _, SqliteConnection, SqlitePool, query};

use self::error::{migrate_error, store_error};
use self::place::{Anchor, Place};
use self::write::Step;
use super::record::{self, KeyringRow, TenantRow};
use super::{Change, Store, StoreError, TenantRecord, TenantRevisions, TokenBinding};
use crate::domain::{Event, TenantId};

/// How long a statement waits for a lock of another process, which can only be an operator's shell or backup: they hold it
/// for the length of a statement, and a caller with a deadline should rather hear that the store is busy.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a call waits for a connection: more than one LOCK_WAIT_MAX, so that a write queued behind a waiting one has its
/// turn, and less than the callers' deadlines.
const CONNECTION_WAIT_MAX: Duration = Duration::from_secs(5);

/// Connections for reading, one thread each. Signing reads nothing here (R9); four let a long list run beside the rest.
const READERS: u32 = 4;

/// A store in a SQLite file that this process alone has open.
///
/// A commit is carried out even if the caller's future is dropped meanwhile; all of it is made or nothing. After
/// [`StoreError::ReadOnly`] reads go on, and writes do too once the operator has acted, without opening again.
#[derive(Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    place: Arc<Place>,
    anchor: Arc<Anchor>,
}

impl SqliteStore {
    /// Makes a store at `path` for the token of `binding`, readable and writable by its owner alone, and opens it. A crash
    /// leaves no store or a whole one at `path`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if anything stands at `path` (it is left as it is) or the directory cannot be used.
    pub async fn create(path: &Path, binding: &TokenBinding) -> Result<Self, StoreError> {
        let place = Place::vacant(path)?;
        // 1. Build it where nobody looks. Not with a write-ahead log: the file alone must be the store when it is moved.
        let draft = place.draft()?;
        let options = options(draft.path()).journal_mode(SqliteJournalMode::Delete);
        let mut connection = options.connect().await.map_err(store_error)?;
        migrate(&mut connection).await?;
        query("insert into meta (only, token_serial, token_label, probes) values (1, ?1, ?2, 0)")
            .bind(&binding.serial)
            .bind(&binding.label)
            .execute(&mut connection)
            .await
            .map_err(store_error)?;
        connection.close().await.map_err(store_error)?;
        // 2. Move it where `open` looks.
        place.settle(draft)?;
        Self::connect(place).await
    }

    /// Opens the store at `path`, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if there is none, if another process has it open, or if a newer version of Keyward made it;
    /// [`StoreError::Damaged`] if the file is not a store.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::connect(Place::occupied(path)?).await
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

    async fn connect(place: Place) -> Result<Self, StoreError> {
        let options = options(place.path());
        let writing = options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let writer = pool(1).connect_with(writing).await.map_err(store_error)?;
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
        let store = Self { writer, readers, place: Arc::new(place), anchor };
        store.binding().await?;
        Ok(store)
    }

    async fn write(&self, steps: Vec<Step>) -> Result<(), StoreError> {
        // A closed store has no files left to look at.
        if self.writer.is_closed() {
            return Err(store_error(sqlx::Error::PoolClosed));
        }
        // Before a connection is asked for, because a new one would open whatever the path leads to now.
        self.anchor.check()?;
        let connection = self.writer.acquire().await.map_err(store_error)?;
        let (place, anchor) = (Arc::clone(&self.place), Arc::clone(&self.anchor));
        // A task of its own goes on when the caller's future is dropped: no transaction is left half done on the connection.
        // It keeps the lock, so that nobody else opens the file under a commit whose store was dropped.
        let task = tokio::spawn(async move {
            let outcome = write::transact(connection, &anchor, steps).await;
            drop(place);
            outcome
        });
        task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("the write was interrupted: {error}"))))
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, StoreError> {
        // One statement, and so one moment.
        let rows = query(
            "select t.id, t.revision, t.issuer, t.custom_domain, t.document, \
             k.algorithm, k.revision as keyring_revision, k.document as keyring_document \
             from tenant t left join keyring k on k.tenant = t.id where t.id = ?1",
        );
        let rows = rows.bind(tenant.as_str()).fetch_all(&self.readers).await.map_err(store_error)?;
        Ok(records(&rows)?.pop())
    }

    async fn load_all(&self) -> Result<Vec<TenantRecord>, StoreError> {
        let rows = query(
            "select t.id, t.revision, t.issuer, t.custom_domain, t.document, \
             k.algorithm, k.revision as keyring_revision, k.document as keyring_document \
             from tenant t left join keyring k on k.tenant = t.id order by t.id",
        );
        records(&rows.fetch_all(&self.readers).await.map_err(store_error)?)
    }

    async fn revisions(&self) -> Result<Vec<TenantRevisions>, StoreError> {
        let rows = query(
            "select t.id, t.revision, k.algorithm, k.revision as keyring_revision \
             from tenant t left join keyring k on k.tenant = t.id order by t.id",
        );
        let rows = rows.fetch_all(&self.readers).await.map_err(store_error)?;
        let of_one_tenant = rows.chunk_by(|one, other| tenant_of(one) == tenant_of(other));
        of_one_tenant.map(revisions).collect()
    }

    async fn commit(&self, change: &Change) -> Result<(), StoreError> {
        self.write(write::change(change)?).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.binding().await?;
        self.write(write::probe()).await
    }

    async fn binding(&self) -> Result<TokenBinding, StoreError> {
        let row = query("select token_serial, token_label from meta").fetch_one(&self.readers).await;
        let row = row.map_err(store_error)?;
        Ok(TokenBinding { serial: column(&row, "token_serial")?, label: column(&row, "token_label")? })
    }

    async fn events(&self, limit: u32) -> Result<Vec<Event>, StoreError> {
        let rows = query("select sequence, record from audit_event order by sequence desc limit ?1");
        let rows = rows.bind(limit).fetch_all(&self.readers).await.map_err(store_error)?;
        rows.iter().map(event).collect()
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
    let first = include_str!("../../../migrations/sqlite/0001_store.sql").into_sql_str();
    let migrations = vec![Migration::new(1, "store".into(), MigrationType::Simple, first, false)];
    Migrator::with_migrations(migrations).run(connection).await.map_err(migrate_error)
}

/// Rows ordered by tenant, one for each keyring and at least one for each tenant.
fn records(rows: &[SqliteRow]) -> Result<Vec<TenantRecord>, StoreError> {
    rows.chunk_by(|one, other| tenant_of(one) == tenant_of(other)).map(tenant_record).collect()
}

fn tenant_record(rows: &[SqliteRow]) -> Result<TenantRecord, StoreError> {
    let row = &rows[0];
    let tenant = TenantRow {
        id: column(row, "id")?,
        revision: column(row, "revision")?,
        issuer: column(row, "issuer")?,
        custom_domain: column(row, "custom_domain")?,
        document: column(row, "document")?,
    };
    let tenant = tenant.decode()?;
    let mut keyrings = Vec::new();
    for row in rows {
        // A tenant without keyrings has one row, without an algorithm.
        if let Some(algorithm) = column(row, "algorithm")? {
            let tenant = column(row, "id")?;
            let (revision, document) = (column(row, "keyring_revision")?, column(row, "keyring_document")?);
            keyrings.push(KeyringRow { tenant, algorithm, revision, document }.decode()?);
        }
    }
    keyrings.sort_unstable_by_key(|keyring| keyring.algorithm);
    Ok(TenantRecord { tenant, keyrings })
}

fn revisions(rows: &[SqliteRow]) -> Result<TenantRevisions, StoreError> {
    let mut keyrings = Vec::new();
    for row in rows {
        if let Some(algorithm) = column(row, "algorithm")? {
            keyrings.push((algorithm, column(row, "keyring_revision")?));
        }
    }
    let tenant: String = column(&rows[0], "id")?;
    record::revisions(&tenant, column(&rows[0], "revision")?, keyrings)
}

fn event(row: &SqliteRow) -> Result<Event, StoreError> {
    let document: String = column(row, "record")?;
    record::decode_event(column(row, "sequence")?, &document)
}

fn tenant_of(row: &SqliteRow) -> Option<String> {
    row.try_get("id").ok()
}

fn column<'r, T>(row: &'r SqliteRow, name: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(name).map_err(store_error)
}
