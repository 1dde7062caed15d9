use async_trait::async_trait;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;

use super::{news, random, rows};
use crate::domain::TenantId;
use crate::store::StoreError;
use crate::store::sql::read::one;
use crate::store::sql::{Held, Row, Statement, Transaction};

/// Of how many changes it is kept whose they were: more than a replica misses from one look to the next, a second later.
pub(super) const CHANGES_KEPT: i64 = 4096;

/// The connection that writes.
pub(super) struct Writing(pub(super) Held<Postgres>);

impl Writing {
    pub(super) fn new(connection: PoolConnection<Postgres>) -> Self {
        Self(Held::new(connection))
    }
}

#[async_trait]
impl Transaction for Writing {
    async fn begin(&mut self, tenants: &[TenantId]) -> Result<(), StoreError> {
        self.0.opens();
        self.execute(Statement::new("begin")).await?;
        // The one wait for others is here, before anything was read or written: whoever changes the store locks this row first.
        if tenants.is_empty() {
            return one(self.rows(Statement::new("select changes from meta for update")).await?).map(drop);
        }
        let raised = Statement::new("update meta set changes = changes + 1, change_name = $1 returning changes");
        let name = i64::from_ne_bytes(random());
        let number: i64 = one(self.rows(raised.bind(name)).await?)?.get("changes")?;
        for tenant in tenants {
            let note = Statement::new("insert into change (number, name, tenant) values ($1, $2, $3)");
            self.execute(note.bind(number).bind(name).bind(tenant)).await?;
        }
        self.rows(news::tell()).await?;
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
        self.execute(Statement::new("commit")).await?;
        self.0.has_closed();
        Ok(())
    }

    async fn abandon(mut self: Box<Self>, because: &StoreError) {
        // After an answer that did not come nobody knows what the connection would answer next.
        let is_fit = !matches!(because, StoreError::Unavailable(_));
        if is_fit && self.execute(Statement::new("rollback")).await.is_ok() {
            self.0.has_closed();
        }
    }
}
