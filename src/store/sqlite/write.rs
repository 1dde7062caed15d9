//! How a change is written: as a list of statements, decided and sealed first, then carried out in one transaction.

use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Connection as _, Sqlite, SqliteConnection, query};

use super::error::store_error;
use super::place::Anchor;
use super::read::column;
use crate::domain::{Event, Revision, TenantId, Timestamp};
use crate::store::record::{self, KeyringRow, TenantRow, TokenRow};
use crate::store::witness::{IF_ON_PURPOSE, Sight, Witness};
use crate::store::{Change, Seals, StoreError, seal};
use crate::tlog::Tip;

/// One statement of a transaction.
struct Step {
    statement: Query<'static, Sqlite, SqliteArguments>,
    /// What it means if no row is met or made. For a compare-and-swap: that it was lost (R7).
    missed: Option<StoreError>,
}

/// A change as it will be written.
#[derive(Default)]
pub(super) struct Work {
    tenant: Option<(TenantRow, Revision)>,
    /// Each with the time at which its tenant was made.
    keyrings: Vec<(KeyringRow, Timestamp)>,
    remove: Option<(TenantId, i64)>,
    /// With whether it was seen before.
    token: Option<(TokenRow, bool)>,
    events: Vec<Event>,
    /// What is to be remembered of it.
    sights: Vec<Sight>,
    probe: bool,
}

impl Work {
    /// How `change` is written; its records are not sealed yet.
    pub(super) fn of(change: &Change, witness: &Witness) -> Result<Self, StoreError> {
        let mut work = Self { events: change.events.clone(), ..Self::default() };
        if let Some((tenant, revision)) = &change.remove {
            work.remove = Some((tenant.clone(), record::number(*revision)?));
            let removed = |create_time| Sight::Removed { tenant: tenant.clone(), create_time };
            work.sights.extend(witness.create_time(tenant).map(removed));
        }
        if let Some(tenant) = &change.tenant {
            let row = TenantRow::encode(tenant)?;
            if tenant.revision == Revision::FIRST && witness.outlives(&tenant.id, tenant.create_time) {
                return Err(StoreError::Refused(format!(
                    "a tenant {} was removed that was made later than {}, by the clock; is the clock right?",
                    tenant.id, tenant.create_time
                )));
            }
            work.sights.push(Sight::of_tenant(tenant, &row.document));
            work.tenant = Some((row, tenant.revision));
        }
        if let Some(token) = &change.token {
            work.token = Some((TokenRow::encode(token)?, token.public.is_some()));
        }
        for keyring in &change.keyrings {
            let row = KeyringRow::encode(keyring)?;
            let made_now = change.tenant.as_ref().filter(|tenant| tenant.id == keyring.tenant);
            let created = made_now.map(|tenant| tenant.create_time).or_else(|| witness.create_time(&keyring.tenant));
            work.sights.push(Sight::of_keyring(keyring, &row.document));
            // A keyring of a tenant that is gone: removed by the change that came first.
            work.keyrings.push((row, created.ok_or(StoreError::Conflict)?));
        }
        Ok(work)
    }

    /// A write that changes nothing that matters.
    pub(super) fn probe() -> Self {
        Self { probe: true, ..Self::default() }
    }

    /// The tenants whose records it writes.
    pub(super) fn tenants(&self) -> impl Iterator<Item = TenantId> {
        let of_record = |sight: &Sight| sight.tenant().cloned();
        let removed = self.remove.iter().map(|(tenant, _)| tenant.clone());
        self.sights.iter().filter_map(of_record).chain(removed)
    }

    /// Seals its records.
    pub(super) async fn seal(&mut self, seals: &dyn Seals) -> Result<(), StoreError> {
        let tenant = self.tenant.iter_mut().map(|(row, _)| (row.message(), &mut row.seal));
        let keyrings = self.keyrings.iter_mut().map(|(row, created)| (row.message(*created), &mut row.seal));
        let token = self.token.iter_mut().map(|(row, _)| (row.message(), &mut row.seal));
        seal::put(seals, tenant.chain(keyrings).chain(token).collect()).await
    }

    /// Its statements. A removal comes first, so that what it frees may be taken in the same change.
    fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.probe {
            steps.push(Step { statement: query("update meta set probes = (probes & 65535) + 1"), missed: None });
        }
        if let Some((tenant, revision)) = self.remove.take() {
            let remove_keyrings = query("delete from keyring where tenant = ?1").bind(tenant.to_string());
            let remove_tenant = query("delete from tenant where id = ?1 and revision = ?2").bind(tenant.to_string());
            steps.push(Step { statement: remove_keyrings, missed: None });
            steps.push(Step { statement: remove_tenant.bind(revision), missed: Some(StoreError::Conflict) });
        }
        if let Some((row, new_revision)) = self.tenant.take() {
            steps.extend(tenant_steps(row, new_revision));
        }
        if let Some((TokenRow { name, document, seal }, seen)) = self.token.take() {
            let statement = query(if seen {
                "update token set document = ?2, seal = ?3 where name = ?1"
            } else {
                "insert into token (name, document, seal) values (?1, ?2, ?3)"
            });
            let statement = statement.bind(name).bind(document).bind(seal);
            steps.push(Step { statement, missed: Some(StoreError::Conflict) });
        }
        for (KeyringRow { tenant, algorithm, revision, document, seal }, _) in self.keyrings.drain(..) {
            let statement = query(if revision == FIRST {
                "insert into keyring (tenant, algorithm, revision, document, seal) values (?1, ?2, ?3, ?4, ?5)"
            } else {
                "update keyring set revision = ?3, document = ?4, seal = ?5 \
                 where tenant = ?1 and algorithm = ?2 and revision = ?3 - 1"
            });
            let statement = statement.bind(tenant).bind(algorithm).bind(revision).bind(document).bind(seal);
            steps.push(Step { statement, missed: Some(StoreError::Conflict) });
        }
        steps
    }
}

/// [`Revision::FIRST`], as databases count.
const FIRST: i64 = 1;

fn tenant_steps(row: TenantRow, new_revision: Revision) -> Vec<Step> {
    let TenantRow { id, revision, issuer, custom_domain, document, seal } = row;
    let (statement, missed) = if new_revision == Revision::FIRST {
        // Without the condition, a tenant that is created again could as well be told that its issuer is taken.
        let insert = query(
            "insert into tenant (id, revision, issuer, custom_domain, document, seal) \
             select ?1, ?2, ?3, ?4, ?5, ?6 where not exists (select 1 from tenant where id = ?1)",
        );
        (insert, StoreError::Taken { field: "id" })
    } else {
        let update = query(
            "update tenant set revision = ?2, issuer = ?3, custom_domain = ?4, document = ?5, seal = ?6 \
             where id = ?1 and revision = ?2 - 1",
        );
        (update, StoreError::Conflict)
    };
    let own = |text: &str| (id.clone(), text.to_owned());
    let mut steps = Vec::new();
    if let Some(domain) = &custom_domain {
        steps.push(free("custom_domain", FREE_AS_ISSUER, own(&format!("https://{domain}"))));
    }
    steps.push(free("issuer", FREE_AS_DOMAIN, own(&issuer)));
    let statement = statement.bind(id).bind(revision).bind(issuer).bind(custom_domain).bind(document).bind(seal);
    steps.push(Step { statement, missed: Some(missed) });
    steps
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

/// Carries the work out, all of it or nothing, remembers it, and gives the connection back if it is fit for the next
/// transaction.
pub(super) async fn transact(
    mut connection: PoolConnection<Sqlite>,
    anchor: &Anchor,
    witness: &mut Witness,
    work: Work,
) -> Result<(), StoreError> {
    let outcome = transaction(&mut connection, anchor, witness, work).await;
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
    witness: &mut Witness,
    mut work: Work,
) -> Result<(), StoreError> {
    // A change that could not be remembered must not be made.
    witness.reserve().map_err(not_remembered)?;
    let mut sights = std::mem::take(&mut work.sights);
    // What is not there any more tells nothing of itself: a crash between the commit and its note must not look like a theft.
    let leaving = sights.iter().filter_map(|sight| match sight {
        Sight::Removed { tenant, create_time } => {
            Some(Sight::Leaving { tenant: tenant.clone(), create_time: *create_time })
        }
        _ => None,
    });
    let leaving: Vec<Sight> = leaving.collect();
    witness.note(&leaving).map_err(not_remembered)?;
    // Immediate: the one wait for a lock is here, before anything was read or written.
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(store_error)?;
    for Step { statement, missed } in work.steps() {
        let done = statement.execute(&mut *transaction).await.map_err(store_error)?;
        if let (0, Some(missed)) = (done.rows_affected(), missed) {
            return Err(missed);
        }
    }
    if !work.events.is_empty() {
        let tip = append(&mut transaction, &work.events, witness.log_end()).await?;
        sights.push(Sight::Administration { tip });
    }
    // Last, so that as little as possible can happen between this look and the commit.
    anchor.check()?;
    // A crash before this leaves nothing of the change; once it returns, the log is on disk with all of it.
    transaction.commit().await.map_err(store_error)?;
    // A crash before this leaves a store that is newer than what is remembered of it, which is believed.
    witness
        .note(&sights)
        .map_err(|error| StoreError::Unavailable(format!("the change was made, and could not be remembered: {error}")))
}

fn not_remembered(error: std::io::Error) -> StoreError {
    StoreError::ReadOnly(format!("the file that remembers the store's state cannot be written: {error}"))
}

/// Appends to the administration log, which must end where it ended before, or later; where it ends now.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    events: &[Event],
    seen: Option<&Tip>,
) -> Result<Tip, StoreError> {
    let row = query("select log_tip from meta").fetch_one(&mut *connection).await.map_err(store_error)?;
    let mut tip = parse_tip(&column::<String>(&row, "log_tip")?)?;
    goes_on(connection, &tip, seen).await?;
    for event in events {
        let position = i64::try_from(tip.size()).map_err(|_| StoreError::Damaged("the log is full".to_owned()))?;
        let record = String::from_utf8(tip.append(event)).expect("JSON is UTF-8");
        query("insert into audit_event (position, tenant, record) values (?1, ?2, ?3)")
            .bind(position)
            .bind(event.tenant.as_ref().map(ToString::to_string))
            .bind(record)
            .execute(&mut *connection)
            .await
            .map_err(store_error)?;
    }
    let changed = query("update meta set log_tip = ?1").bind(tip_text(&tip));
    changed.execute(&mut *connection).await.map_err(store_error)?;
    Ok(tip)
}

/// Sees that the log ends where it ended when it was last looked at, or that it has grown from there.
pub(super) async fn goes_on(
    connection: &mut SqliteConnection,
    tip: &Tip,
    seen: Option<&Tip>,
) -> Result<(), StoreError> {
    let Some(seen) = seen.filter(|seen| *seen != tip) else { return Ok(()) };
    let mut followed = seen.clone();
    if tip.size() > seen.size() {
        // Only after a crash, or behind another replica.
        let rows = query(
            "select cast(record as blob) as record from audit_event where position >= ?1 order by position limit ?2",
        );
        let position = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let rows = rows.bind(position(seen.size())).bind(position(tip.size() - seen.size()));
        for row in rows.fetch_all(connection).await.map_err(store_error)? {
            if followed.follow(&column::<Vec<u8>>(&row, "record")?).is_err() {
                break;
            }
        }
    }
    if followed == *tip {
        return Ok(());
    }
    Err(StoreError::Damaged(format!(
        "the administration log was put back or rewritten: it has {} records that do not go on from the {} that were \
         seen; {IF_ON_PURPOSE}",
        tip.size(),
        seen.size()
    )))
}

/// The end of a log as its column holds it.
pub(super) fn tip_text(tip: &Tip) -> String {
    serde_json::to_string(tip).expect("hashes and numbers have a form in JSON")
}

pub(super) fn parse_tip(text: &str) -> Result<Tip, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged(format!("meta: log_tip: {error}")))
}
