//! What SQLite and its driver say went wrong, in the words of the store.

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use crate::store::StoreError;
use crate::store::sql::error::{driver_error, schema_error};

pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    driver_error(error, sqlite_error)
}

pub(super) fn migrate_error(error: MigrateError) -> StoreError {
    schema_error(error, sqlite_error)
}

/// Result codes (sqlite.org/rescode.html). The low eight bits are the primary code, the whole number the extended one.
fn sqlite_error(error: &dyn DatabaseError) -> StoreError {
    let code: i32 = error.code().as_deref().and_then(|code| code.parse().ok()).unwrap_or(0);
    let text = error.to_string();
    match (code & 0xff, code) {
        (CONSTRAINT, CONSTRAINT_PRIMARYKEY | CONSTRAINT_UNIQUE) => not_unique(error.message()),
        // A keyring of a tenant that is gone: removed by the change that came first.
        (CONSTRAINT, CONSTRAINT_FOREIGNKEY) => StoreError::Conflict,
        // Nothing that was parsed at the door breaks the other constraints, so the schema is not ours.
        (CONSTRAINT, _) => StoreError::Damaged(text),
        // Every kind, among them 1032: the file was moved away.
        (READONLY, _) => StoreError::ReadOnly(text),
        (CORRUPT | NOTADB | FORMAT | MISMATCH, _) | (IOERR, IOERR_CORRUPTFS | IOERR_DATA) => StoreError::Damaged(text),
        // SQL that fits the schema was not understood.
        (ERROR | SCHEMA, _) => StoreError::Damaged(text),
        // BUSY, LOCKED, NOMEM, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL and whatever else passes or is made to pass.
        _ => StoreError::Unavailable(text),
    }
}

/// SQLite names the columns in the message alone: "UNIQUE constraint failed: tenant.issuer".
fn not_unique(message: &str) -> StoreError {
    match message.rsplit(": ").next() {
        Some("tenant.id") => StoreError::Taken { field: "id" },
        Some("tenant.issuer") => StoreError::Taken { field: "issuer" },
        Some("tenant.custom_domain") => StoreError::Taken { field: "custom_domain" },
        _ => StoreError::Conflict,
    }
}

const ERROR: i32 = 1;
const READONLY: i32 = 8;
const IOERR: i32 = 10;
const CORRUPT: i32 = 11;
const SCHEMA: i32 = 17;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const FORMAT: i32 = 24;
const NOTADB: i32 = 26;
const CONSTRAINT_FOREIGNKEY: i32 = CONSTRAINT | (3 << 8);
const CONSTRAINT_PRIMARYKEY: i32 = CONSTRAINT | (6 << 8);
const CONSTRAINT_UNIQUE: i32 = CONSTRAINT | (8 << 8);
const IOERR_DATA: i32 = IOERR | (32 << 8);
const IOERR_CORRUPTFS: i32 = IOERR | (33 << 8);

#[cfg(test)]
mod tests {
    use super::*;

    /// An error as the driver makes it, with a code that is hard to bring about.
    #[derive(Debug)]
    struct Reported(i32);

    impl std::fmt::Display for Reported {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "(code: {})", self.0)
        }
    }

    impl std::error::Error for Reported {}

    impl DatabaseError for Reported {
        fn message(&self) -> &str {
            ""
        }

        fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
            Some(self.0.to_string().into())
        }

        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    #[test]
    fn codes_say_who_must_act() {
        let read_only = [8, 264, 520, 776, 1032, 1288, 1544];
        let damaged = [1, 11, 17, 20, 24, 26, 267, 523, 8202, 8458, 275, 1299, 3091];
        let unavailable = [0, 2, 3, 4, 5, 6, 7, 9, 10, 13, 14, 15, 21, 22, 23, 261, 266, 517, 778, 1034, 1550];
        for code in read_only {
            assert!(matches!(sqlite_error(&Reported(code)), StoreError::ReadOnly(_)), "{code}");
        }
        for code in damaged {
            assert!(matches!(sqlite_error(&Reported(code)), StoreError::Damaged(_)), "{code}");
        }
        for code in unavailable {
            assert!(matches!(sqlite_error(&Reported(code)), StoreError::Unavailable(_)), "{code}");
        }
        assert!(matches!(sqlite_error(&Reported(787)), StoreError::Conflict));
    }
}
