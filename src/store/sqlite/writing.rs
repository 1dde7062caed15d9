use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use sqlx::Sqlite;
use sqlx::pool::PoolConnection;

use super::error::store_error;
use super::ledger::Ledger;
use super::place::{Anchor, Place};
use super::rows;
use crate::domain::TenantId;
use crate::store::StoreError;
use crate::store::sql::{Held, Row, Statement, Transaction};

/// The connection that writes.
pub(super) struct Writing {
    connection: Held<Sqlite>,
    anchor: Arc<Anchor>,
    ledger: Arc<Mutex<Ledger>>,
    /// Keeps the lock, so that nobody else opens the file under a commit whose store was dropped.
    _place: Arc<Place>,
}

impl Writing {
    pub(super) fn new(
        connection: PoolConnection<Sqlite>,
        anchor: Arc<Anchor>,
        ledger: Arc<Mutex<Ledger>>,
        place: Arc<Place>,
    ) -> Self {
        Self { connection: Held::new(connection), anchor, ledger, _place: place }
    }
}

#[async_trait]
impl Transaction for Writing {
    async fn begin(&mut self, tenants: &[TenantId]) -> Result<(), StoreError> {
        // While it has the connection: whoever asks what changed waits for it, and finds the write and its note or neither.
        {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            tenants.iter().for_each(|tenant| ledger.note(tenant.clone()));
        }
        // Immediate: the one wait for a lock is here, before anything was read or written.
        self.connection.opens();
        self.execute(Statement::new("begin immediate")).await.map(drop)
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, StoreError> {
        let done = rows::prepared(statement).execute(&mut *self.connection).await.map_err(store_error)?;
        Ok(done.rows_affected())
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        rows::all(&mut *self.connection, statement).await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        // Last, so that as little as possible can happen between this look and the commit.
        self.anchor.check()?;
        self.execute(Statement::new("commit")).await?;
        self.connection.has_closed();
        Ok(())
    }

    async fn abandon(mut self: Box<Self>, because: &StoreError) {
        let is_fit = !matches!(because, StoreError::Unavailable(_) | StoreError::ReadOnly(_) | StoreError::Damaged(_));
        // SQLite ends a transaction by itself after some errors, and then has none to end here. What is closed with one open is rolled
        // back by whoever reads the file next.
        if is_fit && self.execute(Statement::new("rollback")).await.is_ok() {
            self.connection.has_closed();
        }
    }
}
