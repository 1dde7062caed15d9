use std::time::Duration;

use async_trait::async_trait;
use sqlx::Postgres;
use sqlx::pool::PoolOptions;

use super::error::store_error;
use super::writing::Writing;
use super::{CONNECTION_WAIT_MAX, Settings, Within, made_here, migrate, of_token, patient, rows};
use crate::domain::TenantId;
use crate::store::sql::{Row, Statement, Transaction};
use crate::store::{StoreError, TokenBinding};

/// How long the transaction may stand still: what was copied is read back and believed, which takes ten thousand tenants some
/// seconds. A client that went away without a word leaves nothing behind after that.
const STANDS_STILL_MAX: (&str, &str) = ("idle_in_transaction_session_timeout", "10min");

/// How long one statement may take: whole tables are read back by one, over whatever way there is to the database.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// A transaction that makes a store in an empty database, its tables included: until it is committed, nothing is there.
pub(in crate::store) struct Founding {
    writing: Writing,
    binding: TokenBinding,
    url: String,
}

impl Founding {
    /// Of a store for the token of `binding`.
    pub(in crate::store) async fn new(settings: &Settings, binding: TokenBinding) -> Result<Self, StoreError> {
        let pool = PoolOptions::<Postgres>::new().max_connections(1).acquire_timeout(CONNECTION_WAIT_MAX);
        let pool = pool.connect_with(patient(settings)?.options([STANDS_STILL_MAX])).await.map_err(store_error)?;
        let writing = Writing::new(pool.acquire().await.map_err(store_error)?);
        Ok(Self { writing, binding, url: settings.url.clone() })
    }

    /// Sees that nothing is in the way of the tables.
    async fn is_empty(&mut self) -> Result<(), StoreError> {
        let schema = Statement::new("select coalesce(current_schema(), '')::text as name");
        if self.rows(schema).await?.iter().any(|row| row.get::<String>("name").is_ok_and(|name| name.is_empty())) {
            return Err(StoreError::Refused(format!(
                "the database of store.url, {}, has no schema for new tables: see the role's search_path",
                self.url
            )));
        }
        let tables = Statement::new(
            "select relname::text as name from pg_class \
             where relnamespace = current_schema()::regnamespace and relkind in ('r', 'p') order by 1",
        );
        let tables = self.rows(tables).await?;
        let names = tables.iter().map(|table| table.get("name")).collect::<Result<Vec<String>, _>>()?;
        let what = match &names[..] {
            [] => return Ok(()),
            names if ["keyring", "meta"].iter().all(|table| names.iter().any(|name| name == table)) => {
                "holds a store already".to_owned()
            }
            [first, ..] => format!("is not empty: it has {} tables, such as {first}", names.len()),
        };
        Err(StoreError::Refused(format!(
            "the database of store.url, {}, {what}; it is left as it is. Name an empty database there, or, if nobody needs what is in \
             this one, drop it and create it again",
            self.url
        )))
    }
}

#[async_trait]
impl Transaction for Founding {
    async fn begin(&mut self, _: &[TenantId]) -> Result<(), StoreError> {
        self.writing.0.opens();
        self.execute(Statement::new("begin")).await?;
        self.is_empty().await?;
        migrate(&mut self.writing.0, Within::OpenTransaction).await?;
        let made = self.execute(of_token(&self.binding)).await?;
        made_here(made)
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, StoreError> {
        let asked = rows::prepared(statement).execute(&mut *self.writing.0);
        Ok(rows::answered_within(ANSWER_MAX, asked).await?.rows_affected())
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        rows::all_within(ANSWER_MAX, &mut *self.writing.0, statement).await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.writing.commit().await
    }

    async fn abandon(self: Box<Self>, because: &StoreError) {
        Box::new(self.writing).abandon(because).await;
    }
}
