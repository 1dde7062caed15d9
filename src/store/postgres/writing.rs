use async_trait::async_trait;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;

use super::{news, rows};
use crate::domain::TenantId;
use crate::store::StoreError;
use crate::store::sql::read::one;
use crate::store::sql::{Row, Statement, Transaction};

/// Of how many changes it is kept whose they were: more than a replica misses from one look to the next, a second later.
pub(super) const CHANGES_KEPT: i64 = 4096;

/// A connection that writes.
pub(super) struct Writing(PoolConnection<Postgres>);

impl Writing {
    pub(super) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self(connection)
    }
}

#[async_trait]
impl Transaction for Writing {
    async fn begin(&mut self, tenants: &[TenantId]) -> Result<(), StoreError> {
        self.execute(Statement::new("begin")).await?;
        // The one wait for others is here, before anything was read or written: whoever changes the store changes this row first.
        let raised = "update meta set changes = changes + $1 returning changes";
        let raised = Statement::new(raised).bind(i64::from(!tenants.is_empty()));
        let number: i64 = one(self.rows(raised).await?)?.get("changes")?;
        for tenant in tenants {
            let note = Statement::new("insert into change (number, tenant) values ($1, $2)");
            self.execute(note.bind(number).bind(tenant)).await?;
        }
        if !tenants.is_empty() {
            // Sent when it is committed, once for all of the transaction.
            self.rows(Statement::new(news::TELL)).await?;
        }
        let forget = Statement::new("delete from change where number <= $1");
        self.execute(forget.bind(number - CHANGES_KEPT)).await.map(drop)
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, StoreError> {
        let done = rows::answered(rows::prepared(statement).execute(&mut *self.0)).await?;
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
