//! Statements as PostgreSQL's driver takes them, and rows as it gives them.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Column as _, PgExecutor, PgPool, Postgres, Row as _, TypeInfo as _, ValueRef as _, query};

use super::error::store_error;
use crate::store::StoreError;
use crate::store::sql::{Row, Statement, Value};

/// How long a statement may take, the wait for a connection included: somewhat longer than the server itself gives it, for the way
/// to a server that does not answer any more.
const ANSWER_MAX: Duration = Duration::from_secs(12);

/// What the server answers, if it does.
pub(super) async fn answered<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    answered_within(ANSWER_MAX, asked).await
}

pub(super) async fn answered_within<T>(
    wait_max: Duration,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(wait_max, asked).await {
        Ok(answer) => answer.map_err(store_error),
        Err(_) => Err(StoreError::Unavailable(format!("the database did not answer in {} s", wait_max.as_secs()))),
    }
}

/// Rows, as of one moment, on a connection of the pool. One that does not answer does not go back: whoever had it next would wait, too.
pub(super) async fn all_of(pool: &PgPool, statement: Statement) -> Result<Vec<Row>, StoreError> {
    let mut connection = pool.acquire().await.map_err(store_error)?;
    let rows = all(&mut *connection, statement).await;
    if let Err(StoreError::Unavailable(_)) = &rows {
        connection.close_on_drop();
    }
    rows
}

/// Rows, as of one moment.
pub(super) async fn all(executor: impl PgExecutor<'_>, statement: Statement) -> Result<Vec<Row>, StoreError> {
    all_within(ANSWER_MAX, executor, statement).await
}

pub(super) async fn all_within(
    wait_max: Duration,
    executor: impl PgExecutor<'_>,
    statement: Statement,
) -> Result<Vec<Row>, StoreError> {
    let rows = answered_within(wait_max, prepared(statement).fetch_all(executor)).await?;
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    let names: Arc<[String]> = first.columns().iter().map(|column| column.name().to_owned()).collect();
    let read = |row: &PgRow| {
        let values = (0..names.len()).map(|place| value(row, place)).collect::<Result<_, _>>()?;
        Ok(Row::new(Arc::clone(&names), values))
    };
    rows.iter().map(read).collect()
}

pub(super) fn prepared(statement: Statement) -> Query<'static, Postgres, PgArguments> {
    statement.values.into_iter().fold(query(statement.text), |query, value| match value {
        Value::None => query.bind(None::<String>),
        Value::Number(number) => query.bind(number),
        Value::Text(text) => query.bind(text),
        Value::Octets(octets) => query.bind(octets),
    })
}

fn value(row: &PgRow, place: usize) -> Result<Value, StoreError> {
    let raw = row.try_get_raw(place).map_err(store_error)?;
    if raw.is_null() {
        return Ok(Value::None);
    }
    match raw.type_info().name() {
        "INT8" => row.try_get(place).map(Value::Number).map_err(store_error),
        "TEXT" => row.try_get(place).map(Value::Text).map_err(store_error),
        "BYTEA" => row.try_get(place).map(Value::Octets).map_err(store_error),
        kind => Err(StoreError::Damaged(format!("a column holds a value of the kind {kind}"))),
    }
}
