use async_trait::async_trait;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;

use super::{news, random, rows};
use crate::domain::TenantId;
use crate::store::StoreError;
use crate::store::sql::read::one;
use crate::store::sql::{Row, Statement, Transaction};

/// Of how many changes it is kept whose they were: more than a replica misses from one look to the next, a second later.
pub(super) const CHANGES_KEPT: i64 = 4096;

/// The connection that writes.
pub(super) struct Writing {
    connection: PoolConnection<Postgres>,
    /// Between begin and commit or rollback. The driver does not know of it.
    is_open: bool,
}

impl Writing {
    pub(super) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self { connection, is_open: false }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.is_open {
            // With it the server ends what was begun.
            self.connection.close_on_drop();
        }
    }
}

#[async_trait]
impl Transaction for Writing {
    async fn begin(&mut self, tenants: &[TenantId]) -> Result<(), StoreError> {
        self.is_open = true;
        self.execute(Statement::new("begin")).await?;
        // The one wait for others is here, before anything was read or written: whoever changes the store changes this row first.
        if tenants.is_empty() {
            let locked = self.execute(Statement::new("update meta set changes = changes")).await?;
            return if locked == 1 { Ok(()) } else { Err(StoreError::Damaged("meta has no row".to_owned())) };
        }
        let raised = Statement::new("update meta set changes = changes + 1, change_name = $1 returning changes");
        let name = i64::from_ne_bytes(random());
        let number: i64 = one(self.rows(raised.bind(name)).await?)?.get("changes")?;
        for tenant in tenants {
            let note = Statement::new("insert into change (number, name, tenant) values ($1, $2, $3)");
            self.execute(note.bind(number).bind(name).bind(tenant)).await?;
        }
        // Sent when it is committed, once for all of the transaction.
        self.rows(Statement::new(news::TELL)).await?;
        let forget = Statement::new("delete from change where number <= $1");
        self.execute(forget.bind(number - CHANGES_KEPT)).await.map(drop)
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, StoreError> {
        let done = rows::answered(rows::prepared(statement).execute(&mut *self.connection)).await?;
        Ok(done.rows_affected())
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        rows::all(&mut *self.connection, statement).await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.execute(Statement::new("commit")).await?;
        self.is_open = false;
        Ok(())
    }

    async fn abandon(mut self: Box<Self>, because: &StoreError) {
        // After an answer that did not come nobody knows what the connection would answer next.
        let is_fit = !matches!(because, StoreError::Unavailable(_));
        self.is_open = !is_fit || self.execute(Statement::new("rollback")).await.is_err();
    }
}
