//! What a driver says went wrong, whatever database it is for.

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use crate::store::StoreError;

/// The only reader of the driver's errors; `database` reads those of the database itself. sqlx may add variants; an unknown one is
/// [`StoreError::Unavailable`], because that promises least.
pub(in crate::store) fn driver_error(error: sqlx::Error, database: fn(&dyn DatabaseError) -> StoreError) -> StoreError {
    use sqlx::Error;
    match error {
        Error::Database(error) => database(&*error),
        Error::PoolTimedOut => {
            StoreError::Unavailable("no connection in time: all are busy, or the database does not answer".into())
        }
        Error::PoolClosed => StoreError::Unavailable("it was closed".into()),
        // A value or a row that the schema and the code that wrote it rule out.
        Error::RowNotFound
        | Error::ColumnNotFound(_)
        | Error::ColumnIndexOutOfBounds { .. }
        | Error::TypeNotFound { .. }
        | Error::ColumnDecode { .. }
        | Error::Decode(_) => StoreError::Damaged(error.to_string()),
        Error::Migrate(error) => schema_error(*error, database),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// What kept the schema from being brought up to date.
pub(in crate::store) fn schema_error(
    error: MigrateError,
    database: fn(&dyn DatabaseError) -> StoreError,
) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => driver_error(error, database),
        MigrateError::VersionMissing(version) => StoreError::Refused(format!(
            "the store was made or migrated by a newer version of Keyward (its schema has version {version}); use that version"
        )),
        MigrateError::VersionMismatch(_) | MigrateError::Dirty(_) => StoreError::Damaged(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}
