//! Statements as SQLite's driver takes them, and rows as it gives them.

use std::sync::Arc;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Column as _, Row as _, Sqlite, SqliteExecutor, TypeInfo as _, ValueRef as _, query};

use super::error::store_error;
use crate::store::StoreError;
use crate::store::sql::{Row, Statement, Value};

/// Rows, as of one moment.
pub(super) async fn all(executor: impl SqliteExecutor<'_>, statement: Statement) -> Result<Vec<Row>, StoreError> {
    let rows = prepared(statement).fetch_all(executor).await.map_err(store_error)?;
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    let names: Arc<[String]> = first.columns().iter().map(|column| column.name().to_owned()).collect();
    let read = |row: &SqliteRow| {
        let values = (0..names.len()).map(|place| value(row, place)).collect::<Result<_, _>>()?;
        Ok(Row::new(Arc::clone(&names), values))
    };
    rows.iter().map(read).collect()
}

pub(super) fn prepared(statement: Statement) -> Query<'static, Sqlite, SqliteArguments> {
    statement.values.into_iter().fold(query(statement.text), |query, value| match value {
        Value::None => query.bind(None::<String>),
        Value::Number(number) => query.bind(number),
        Value::Text(text) => query.bind(text),
        Value::Octets(octets) => query.bind(octets),
    })
}

/// What stands in a column, whatever the schema says of it.
fn value(row: &SqliteRow, place: usize) -> Result<Value, StoreError> {
    let raw = row.try_get_raw(place).map_err(store_error)?;
    if raw.is_null() {
        return Ok(Value::None);
    }
    let kind = raw.type_info().name().to_owned();
    match kind.as_str() {
        "INTEGER" => row.try_get(place).map(Value::Number).map_err(store_error),
        "BLOB" => row.try_get(place).map(Value::Octets).map_err(store_error),
        "TEXT" => {
            let octets: Vec<u8> = row.try_get_unchecked(place).map_err(store_error)?;
            Ok(String::from_utf8(octets).map_or_else(|error| Value::Octets(error.into_bytes()), Value::Text))
        }
        _ => Err(StoreError::Damaged(format!("a column holds a value of the kind {kind}"))),
    }
}
