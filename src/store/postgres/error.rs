//! What PostgreSQL and its driver say went wrong, in the words of the store.

use sqlx::error::DatabaseError;
use sqlx::migrate::MigrateError;

use crate::store::StoreError;
use crate::store::sql::error::{driver_error, schema_error};

/// The only reader of SQLSTATEs.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    driver_error(error, postgres_error)
}

pub(super) fn migrate_error(error: MigrateError) -> StoreError {
    schema_error(error, postgres_error)
}

/// By SQLSTATE (PostgreSQL's manual, appendix A): the first two characters are the class.
fn postgres_error(error: &dyn DatabaseError) -> StoreError {
    let code = error.code().unwrap_or_default().into_owned();
    // The detail could quote a row.
    let text = format!("{} (SQLSTATE {code})", error.message());
    let class = code.get(..2).unwrap_or_default();
    match (class, code.as_str()) {
        (_, "23505") => not_unique(error.constraint()),
        // A keyring of a tenant that is gone: removed by the change that came first.
        (_, "23503") => StoreError::Conflict,
        // A standby, a database that was made read-only, or a role that may not write.
        (_, "25006" | "42501") => StoreError::ReadOnly(text),
        // Who we are, and which database it is: somebody must correct the configuration.
        ("28" | "3D", _) => StoreError::Refused(format!("the database refuses us: {text}")),
        // SQL or values that fit the schema were not understood, another constraint, or damaged pages.
        ("22" | "23" | "42" | "XX", _) => StoreError::Damaged(text),
        // Connections, resources, locks, an operator's intervention, and whatever else passes or is made to pass.
        _ => StoreError::Unavailable(text),
    }
}

fn not_unique(constraint: Option<&str>) -> StoreError {
    match constraint {
        Some("tenant_pkey") => StoreError::Taken { field: "id" },
        Some("tenant_issuer") => StoreError::Taken { field: "issuer" },
        Some("tenant_custom_domain") => StoreError::Taken { field: "custom_domain" },
        _ => StoreError::Conflict,
    }
}
