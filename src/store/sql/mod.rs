//! What is the same in every SQL database: how a change is written, how rows are read, and what of them is believed. A database
//! brings its connections, its transactions and the meaning of its errors ([`Database`]).

mod copy;
pub(super) mod error;
mod held;
mod log;
pub(super) mod read;
mod restore;
mod statement;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::RwLock;

pub use self::copy::Moved;
pub(super) use self::held::Held;
pub use self::log::LogReader;
use self::read::Read;
pub use self::restore::Restored;
pub(super) use self::statement::{Row, Statement, Value};
pub(super) use self::write::tip_text;
use super::witness::{Sight, Witness};
use super::{
    Change, Changes, EventPage, EventRow, Loaded, Moment, Revisions, Seals, Store, StoreError, TenantRecord,
    TokenBinding, TokenRecord,
};
use crate::domain::{ObjectId, TenantId, Timestamp};
use crate::tlog::Tip;

/// What a store needs to tell which records are to be believed (R15).
#[derive(Clone)]
pub struct Guard {
    /// Seals, with the service key.
    pub seals: Arc<dyn Seals>,
    /// The file in which this replica remembers what it has seen.
    pub witness: PathBuf,
}

/// What can be read of a database with the schema of `migrations/`.
#[async_trait]
pub(super) trait Reads: Send + Sync {
    /// Rows, as of one moment.
    async fn rows(&self, statement: Statement) -> Result<Vec<Row>, StoreError>;

    /// Sees that the administration log is a table with columns that are kept: what is computed, such as a view, can be without
    /// an end.
    async fn check_log(&self) -> Result<(), StoreError>;
}

/// A database in which a store is kept.
#[async_trait]
pub(super) trait Database: Reads + std::fmt::Debug + 'static {
    /// A connection for a change.
    async fn transaction(&self) -> Result<Box<dyn Transaction>, StoreError>;

    /// As [`Store::changes`].
    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError>;

    /// How replicas know of each other, if there can be several.
    fn replicas(&self) -> Option<&dyn Replicas> {
        None
    }

    /// Waits for the calls under way, and lets go of the database.
    async fn close(&self);
}

/// What replicas on one database tell each other, as [`Store`] has it.
#[async_trait]
pub(super) trait Replicas: Send + Sync {
    /// As [`Store::changed`].
    async fn changed(&self);

    /// As [`Store::clock`].
    async fn clock(&self) -> Result<Timestamp, StoreError>;

    /// As [`Store::lease`].
    async fn lease(&self, taken_up: Moment, life: Duration) -> Result<bool, StoreError>;

    /// As [`Store::all_have_taken_up`].
    async fn all_have_taken_up(&self, moment: Moment) -> Result<bool, StoreError>;
}

/// A connection, and the one transaction that it is taken for. Dropped before it was committed, nothing was changed.
#[async_trait]
pub(super) trait Transaction: Send {
    /// Begins, alone among all who change this store; the records of these tenants are to be written.
    async fn begin(&mut self, tenants: &[TenantId]) -> Result<(), StoreError>;

    /// How many rows were met or made.
    async fn execute(&mut self, statement: Statement) -> Result<u64, StoreError>;

    /// Rows, as of this transaction.
    async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, StoreError>;

    /// Once this returns Ok, all of it survives a crash.
    async fn commit(&mut self) -> Result<(), StoreError>;

    /// Ends it without a change, and gives the connection back if it is fit for the next one.
    async fn abandon(self: Box<Self>, because: &StoreError);
}

/// A store in a SQL database.
///
/// A commit is carried out even if the caller's future is dropped meanwhile; all of it is made or nothing.
pub struct SqlStore {
    database: Arc<dyn Database>,
    seals: Arc<dyn Seals>,
    /// Reads share it and a commit has it alone, so that what is read is compared with what had been seen at that moment.
    witness: Arc<RwLock<Witness>>,
}

impl SqlStore {
    /// Waits for the calls under way, and closes the database. Calls that come later answer [`StoreError::Unavailable`].
    ///
    /// A store that is dropped instead loses nothing; its connections are closed a little later.
    pub async fn close(&self) {
        self.database.close().await;
    }

    pub(super) async fn new(
        database: impl Database,
        seals: Arc<dyn Seals>,
        witness: Witness,
    ) -> Result<Self, StoreError> {
        // What a file without replicas holds is the past once it was moved into a database.
        if database.replicas().is_none() {
            witness.stays()?;
        }
        Self::to_move(database, seals, witness).await
    }

    /// As [`SqlStore::new`], for whoever moves the store or finishes that: it may have moved already.
    pub(super) async fn to_move(
        database: impl Database,
        seals: Arc<dyn Seals>,
        witness: Witness,
    ) -> Result<Self, StoreError> {
        let store = Self { database: Arc::new(database), seals, witness: Arc::new(RwLock::new(witness)) };
        store.binding().await?;
        Ok(store)
    }

    /// Notes the service key that the store is made with.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if another one was noted.
    pub async fn make_with(&self, service_key: ObjectId) -> Result<(), StoreError> {
        self.write(write::Work::service_key(service_key)).await
    }

    /// CKA_ID of the service key that the store was made with, if it was noted.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn service_key(&self) -> Result<Option<String>, StoreError> {
        read::service_key(&*self.database).await
    }

    /// Carries out the work, and remembers what that made of the store.
    async fn write(&self, work: write::Work) -> Result<(), StoreError> {
        let transaction = self.database.transaction().await?;
        let witness = Arc::clone(&self.witness);
        // A task of its own goes on when the caller's future is dropped: no transaction is left half done on the connection.
        let task =
            tokio::spawn(async move { write::transact(transaction, &mut *witness.write_owned().await, work).await });
        task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(format!("the write was interrupted: {error}"))))
    }

    /// Follows the administration log from where it was seen to end to where it ends now, some records at a time.
    async fn follow_log(&self) -> Result<(), StoreError> {
        loop {
            let followed = {
                // A commit of this process has the witness alone: what it has seen is not newer than what is read.
                let witness = self.witness.read().await;
                let (tip, seen) = (self.log_tip().await?, witness.log_end());
                let Some(since) = write::records_since(&tip, seen) else { return Ok(()) };
                write::followed(&tip, seen, &self.database.rows(since).await?)?
            };
            self.remembered(Read { record: (), news: vec![Sight::Administration { tip: followed }] }).await;
        }
    }

    /// What was read, once it is remembered what of it was not known yet: another replica's change, or one that a crash kept this
    /// one from noting.
    async fn remembered<T>(&self, Read { record, news }: Read<T>) -> T {
        if !news.is_empty()
            && let Err(error) = self.witness.write().await.note(&news)
        {
            tracing::warn!(%error, "what was read of the store is remembered by this process alone");
        }
        record
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn load(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, StoreError> {
        let read = {
            let witness = self.witness.read().await;
            read::tenant(&*self.database, tenant, &*self.seals, &witness).await?
        };
        Ok(self.remembered(read).await)
    }

    async fn load_all(&self) -> Result<Loaded, StoreError> {
        let read = {
            let witness = self.witness.read().await;
            read::all(&*self.database, &*self.seals, &witness).await?
        };
        Ok(self.remembered(read).await)
    }

    async fn revisions(&self) -> Result<Revisions, StoreError> {
        let read = {
            let witness = self.witness.read().await;
            read::revisions(&*self.database, &*self.seals, &witness).await?
        };
        Ok(self.remembered(read).await)
    }

    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError> {
        self.database.changes(since).await
    }

    async fn changed(&self) {
        match self.database.replicas() {
            Some(replicas) => replicas.changed().await,
            None => std::future::pending().await,
        }
    }

    async fn clock(&self) -> Result<Option<Timestamp>, StoreError> {
        let Some(replicas) = self.database.replicas() else { return Ok(None) };
        replicas.clock().await.map(Some)
    }

    async fn lease(&self, taken_up: Moment, life: Duration) -> Result<bool, StoreError> {
        let Some(replicas) = self.database.replicas() else { return Ok(true) };
        replicas.lease(taken_up, life).await
    }

    async fn all_have_taken_up(&self, moment: Moment) -> Result<bool, StoreError> {
        let Some(replicas) = self.database.replicas() else { return Ok(true) };
        replicas.all_have_taken_up(moment).await
    }

    async fn commit(&self, change: &Change) -> Result<(), StoreError> {
        let mut work = {
            let witness = self.witness.read().await;
            write::Work::of(change, &witness)?
        };
        work.seal(&*self.seals).await?;
        // What others appended since, so that as little as possible is read while they wait.
        self.follow_log().await?;
        self.write(work).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.binding().await?;
        self.follow_log().await?;
        self.write(write::Work::probe()).await
    }

    async fn binding(&self) -> Result<TokenBinding, StoreError> {
        read::binding(&*self.database).await
    }

    async fn tokens(&self) -> Result<BTreeMap<String, Result<TokenRecord, String>>, StoreError> {
        read::tokens(&*self.database, &*self.seals).await
    }

    async fn events(&self, page: &EventPage) -> Result<Vec<EventRow>, StoreError> {
        read::events(&*self.database, page).await
    }

    async fn log_tip(&self) -> Result<Tip, StoreError> {
        write::tip(self.database.rows(write::read_tip()).await?)
    }
}

impl std::fmt::Debug for SqlStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlStore").field("database", &self.database).finish_non_exhaustive()
    }
}
