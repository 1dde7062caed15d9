//! How a change is written: as a list of statements, decided first, then carried out in one transaction.

use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Connection as _, Sqlite, query};

use super::error::store_error;
use super::place::Anchor;
use crate::domain::Revision;
use crate::store::record::{self, KeyringRow, TenantRow};
use crate::store::{Change, StoreError};

/// One statement of a transaction.
pub(super) struct Step {
    statement: Query<'static, Sqlite, SqliteArguments>,
    /// What it means if no row is met or made. For a compare-and-swap: that it was lost (R7).
    missed: Option<StoreError>,
}

/// The statements that make `change`. A removal comes first, so that what it frees may be taken in the same change.
pub(super) fn change(change: &Change) -> Result<Vec<Step>, StoreError> {
    let mut steps = Vec::new();
    if let Some((tenant, revision)) = &change.remove {
        let remove_keyrings = query("delete from keyring where tenant = ?1").bind(tenant.to_string());
        let remove_tenant = query("delete from tenant where id = ?1 and revision = ?2").bind(tenant.to_string());
        steps.push(Step { statement: remove_keyrings, missed: None });
        let remove_tenant = remove_tenant.bind(record::number(*revision)?);
        steps.push(Step { statement: remove_tenant, missed: Some(StoreError::Conflict) });
    }
    if let Some(tenant) = &change.tenant {
        let TenantRow { id, revision, issuer, custom_domain, document } = TenantRow::encode(tenant)?;
        let (statement, missed) = if tenant.revision == Revision::FIRST {
            // Without the condition, a tenant that is created again could as well be told that its issuer is taken.
            let insert = query(
                "insert into tenant (id, revision, issuer, custom_domain, document) \
                 select ?1, ?2, ?3, ?4, ?5 where not exists (select 1 from tenant where id = ?1)",
            );
            (insert, StoreError::Taken { field: "id" })
        } else {
            let update = query(
                "update tenant set revision = ?2, issuer = ?3, custom_domain = ?4, document = ?5 \
                 where id = ?1 and revision = ?2 - 1",
            );
            (update, StoreError::Conflict)
        };
        let own = |text: &str| (id.clone(), text.to_owned());
        if let Some(domain) = &custom_domain {
            steps.push(free("custom_domain", FREE_AS_ISSUER, own(&format!("https://{domain}"))));
        }
        steps.push(free("issuer", FREE_AS_DOMAIN, own(&issuer)));
        let statement = statement.bind(id).bind(revision).bind(issuer).bind(custom_domain).bind(document);
        steps.push(Step { statement, missed: Some(missed) });
    }
    for keyring in &change.keyrings {
        let KeyringRow { tenant, algorithm, revision, document } = KeyringRow::encode(keyring)?;
        let statement = query(if keyring.revision == Revision::FIRST {
            "insert into keyring (tenant, algorithm, revision, document) values (?1, ?2, ?3, ?4)"
        } else {
            "update keyring set revision = ?3, document = ?4 \
             where tenant = ?1 and algorithm = ?2 and revision = ?3 - 1"
        });
        let statement = statement.bind(tenant).bind(algorithm).bind(revision).bind(document);
        steps.push(Step { statement, missed: Some(StoreError::Conflict) });
    }
    for event in &change.events {
        let statement = query("insert into audit_event (record) values (?1)").bind(record::encode_event(event)?);
        steps.push(Step { statement, missed: None });
    }
    Ok(steps)
}

// A custom domain makes an issuer too, and two tenants of one issuer could sign for each other. What the columns' own
// constraints do not see is looked at in the same transaction, by a statement that changes the one row of `meta` to what it is.
// What a tenant has already it keeps, and the issuer of a tenant that is being deleted keeps no domain from anybody.
const FREE_AS_ISSUER: &str = "update meta set probes = probes \
     where exists (select 1 from tenant where id = ?1 and 'https://' || custom_domain = ?2) \
     or not exists (select 1 from tenant where id <> ?1 and issuer = ?2 and document ->> 'delete_time' is null)";
const FREE_AS_DOMAIN: &str = "update meta set probes = probes \
     where exists (select 1 from tenant where id = ?1 and issuer = ?2) \
     or not exists (select 1 from tenant where id <> ?1 and 'https://' || custom_domain = ?2)";

/// Sees that no other tenant than `own` has the issuer that is named with it.
fn free(field: &'static str, statement: &'static str, own: (String, String)) -> Step {
    Step { statement: query(statement).bind(own.0).bind(own.1), missed: Some(StoreError::Taken { field }) }
}

/// A write that changes nothing that matters.
pub(super) fn probe() -> Vec<Step> {
    vec![Step { statement: query("update meta set probes = probes + 1"), missed: None }]
}

/// Carries the steps out, all or none, and gives the connection back if it is fit for the next transaction.
pub(super) async fn transact(
    mut connection: PoolConnection<Sqlite>,
    anchor: &Anchor,
    steps: Vec<Step>,
) -> Result<(), StoreError> {
    let outcome = transaction(&mut connection, anchor, steps).await;
    if let Err(StoreError::Unavailable(_) | StoreError::ReadOnly(_) | StoreError::Damaged(_)) = &outcome {
        // SQLite ends a transaction by itself after some of these errors, and the driver does not learn of it: it would
        // count one open for ever, and refuse to begin. A new connection knows nothing of that. What closing says is of no
        // interest: whatever the transaction left is rolled back by whoever reads the file next.
        connection.close().await.ok();
    }
    outcome
}

async fn transaction(
    connection: &mut PoolConnection<Sqlite>,
    anchor: &Anchor,
    steps: Vec<Step>,
) -> Result<(), StoreError> {
    // Immediate: the one wait for a lock is here, before anything was read or written.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(store_error)?;
    for Step { statement, missed } in steps {
        let done = statement.execute(&mut *transaction).await.map_err(store_error)?;
        if let (0, Some(missed)) = (done.rows_affected(), missed) {
            return Err(missed);
        }
    }
    // Last, so that as little as possible can happen between this look and the commit.
    anchor.check()?;
    // A crash before this leaves nothing of the change; once it returns, the log is on disk with all of it.
    transaction.commit().await.map_err(store_error)
}
