use async_trait::async_trait;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;

use super::error::store_error;
use super::rows;
use crate::domain::TenantId;
use crate::store::StoreError;
use crate::store::sql::{Row, Statement, Transaction};

/// A connection that writes.
pub(super) struct Writing(PoolConnection<Postgres>);

impl Writing {
    pub(super) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self(connection)
    }
}

#[async_trait]
impl Transaction for Writing {
    async fn begin(&mut self, _tenants: &[TenantId]) -> Result<(), StoreError> {
        self.execute(Statement::new("begin")).await?;
        // The one wait for others is here, before anything was read or written.
        let met = self.execute(Statement::new("select single from meta for update")).await?;
        if met == 1 { Ok(()) } else { Err(StoreError::Damaged("meta has no row".to_owned())) }
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, StoreError> {
        let done = rows::prepared(statement).execute(&mut *self.0).await.map_err(store_error)?;
        Ok(done.rows_affected())
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        rows::all(&mut *self.0, statement).await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.execute(Statement::new("commit")).await.map(drop)
    }

    async fn abandon(mut self: Box<Self>, because: &StoreError) {
        // After an answer that did not come nobody knows what the connection would answer next.
        let is_fit = !matches!(because, StoreError::Unavailable(_));
        if !is_fit || self.execute(Statement::new("rollback")).await.is_err() {
            self.0.close_on_drop();
        }
    }
}
