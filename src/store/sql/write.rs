//! How a change is written: as a list of statements, decided and sealed first, then carried out in one transaction.

use std::collections::BTreeSet;

use super::read::one;
use super::{Row, Statement, Transaction};
use crate::domain::{Event, ObjectId, Revision, TenantId, Timestamp};
use crate::store::record::{self, KeyringRow, RemovalRow, TenantRow, TokenRow};
use crate::store::witness::{IF_ON_PURPOSE, Sight, Witness};
use crate::store::{Change, Seals, StoreError, seal};
use crate::tlog::Tip;

/// One statement of a transaction.
struct Step {
    statement: Statement,
    /// What it means if no row is met or made. For a compare-and-swap: that it was lost (R7).
    missed: Option<StoreError>,
}

/// A change as it will be written.
#[derive(Default)]
pub(super) struct Work {
    tenant: Option<(TenantRow, Revision)>,
    /// Each with the time at which its tenant was made.
    keyrings: Vec<(KeyringRow, Timestamp)>,
    remove: Option<(RemovalRow, i64)>,
    /// With whether it was seen before.
    token: Option<(TokenRow, bool)>,
    events: Vec<Event>,
    /// What is to be remembered of it.
    sights: Vec<Sight>,
    probe: bool,
    service_key: Option<ObjectId>,
}

impl Work {
    /// How `change` is written; its records are not sealed yet.
    pub(super) fn of(change: &Change, witness: &Witness) -> Result<Self, StoreError> {
        let mut work = Self { events: change.events.clone(), ..Self::default() };
        if let Some((tenant, revision)) = &change.remove {
            // Whoever removes a tenant has seen it: unless another change came first.
            let create_time = witness.create_time(tenant).ok_or(StoreError::Conflict)?;
            work.remove = Some((RemovalRow::encode(tenant, create_time), record::number(*revision)?));
            work.sights.push(Sight::Removed { tenant: tenant.clone(), create_time });
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

    /// Notes the service key that the store was made with, unless another one is noted.
    pub(super) fn service_key(object: ObjectId) -> Self {
        Self { service_key: Some(object), ..Self::default() }
    }

    /// The tenants whose records it writes.
    pub(super) fn tenants(&self) -> impl Iterator<Item = TenantId> {
        self.sights.iter().filter_map(|sight| sight.tenant().cloned())
    }

    /// Seals its records.
    pub(super) async fn seal(&mut self, seals: &dyn Seals) -> Result<(), StoreError> {
        let tenant = self.tenant.iter_mut().map(|(row, _)| (row.message(), &mut row.seal));
        let keyrings = self.keyrings.iter_mut().map(|(row, created)| (row.message(*created), &mut row.seal));
        let token = self.token.iter_mut().map(|(row, _)| (row.message(), &mut row.seal));
        let removal = self.remove.iter_mut().map(|(row, _)| (row.message(), &mut row.seal));
        seal::put(seals, tenant.chain(keyrings).chain(token).chain(removal).collect()).await
    }

    /// Its statements. A removal comes first, so that what it frees may be taken in the same change.
    fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.probe {
            steps.push(Step {
                statement: Statement::new("update meta set probes = (probes & 65535) + 1"),
                missed: None,
            });
        }
        if let Some(object) = self.service_key {
            let note = "update meta set service_key = $1 where service_key is null or service_key = $1";
            let statement = Statement::new(note).bind(object.to_string());
            steps.push(Step { statement, missed: Some(StoreError::Conflict) });
        }
        if let Some((row, revision)) = self.remove.take() {
            let tenant = || row.tenant.clone();
            let remove_keyrings = Statement::new("delete from keyring where tenant = $1").bind(tenant());
            let remove_tenant = Statement::new("delete from tenant where id = $1 and revision = $2").bind(tenant());
            steps.push(Step { statement: remove_keyrings, missed: None });
            steps.push(Step { statement: remove_tenant.bind(revision), missed: Some(StoreError::Conflict) });
            steps.push(Step { statement: removal(row), missed: None });
        }
        if let Some((row, new_revision)) = self.tenant.take() {
            steps.extend(tenant_steps(row, new_revision));
        }
        if let Some((TokenRow { name, document, seal }, seen)) = self.token.take() {
            let statement = Statement::new(if seen {
                "update token set document = $2, seal = $3 where name = $1"
            } else {
                "insert into token (name, document, seal) values ($1, $2, $3)"
            });
            let statement = statement.bind(name).bind(document).bind(seal);
            steps.push(Step { statement, missed: Some(StoreError::Conflict) });
        }
        for (KeyringRow { tenant, algorithm, revision, document, seal }, _) in self.keyrings.drain(..) {
            let statement = Statement::new(if revision == FIRST {
                "insert into keyring (tenant, algorithm, revision, document, seal) values ($1, $2, $3, $4, $5)"
            } else {
                "update keyring set revision = $3, document = $4, seal = $5 \
                 where tenant = $1 and algorithm = $2 and revision = $3 - 1"
            });
            let statement = statement.bind(tenant).bind(algorithm).bind(revision).bind(document).bind(seal);
            steps.push(Step { statement, missed: Some(StoreError::Conflict) });
        }
        steps
    }
}

/// Tells those who miss the tenant that it was removed.
pub(super) fn removal(RemovalRow { tenant, create_time, seal }: RemovalRow) -> Statement {
    let statement = Statement::new(
        "insert into removal (tenant, create_time, seal) values ($1, $2, $3) \
         on conflict (tenant) do update set create_time = excluded.create_time, seal = excluded.seal",
    );
    statement.bind(tenant).bind(create_time).bind(seal)
}

/// [`Revision::FIRST`], as databases count.
const FIRST: i64 = 1;

fn tenant_steps(row: TenantRow, new_revision: Revision) -> Vec<Step> {
    let TenantRow { id, revision, issuer, custom_domain, document, seal } = row;
    let (statement, missed) = if new_revision == Revision::FIRST {
        // Without the condition, a tenant that is created again could as well be told that its issuer is taken.
        let insert = Statement::new(
            "insert into tenant (id, revision, issuer, custom_domain, document, seal) \
             select $1, $2, $3, $4, $5, $6 where not exists (select 1 from tenant where id = $1)",
        );
        (insert, StoreError::Taken { field: "id" })
    } else {
        let update = Statement::new(
            "update tenant set revision = $2, issuer = $3, custom_domain = $4, document = $5, seal = $6 \
             where id = $1 and revision = $2 - 1",
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
// What a tenant has already it keeps, and the issuer of a tenant that is being deleted keeps no domain from anybody: its document
// has a member of that name, which no text in a document can pass for, because the quotes in it are escaped.
const FREE_AS_ISSUER: &str = "update meta set probes = probes \
     where exists (select 1 from tenant where id = $1 and 'https://' || custom_domain = $2) \
     or not exists (select 1 from tenant where id <> $1 and issuer = $2 and replace(document, '\"delete_time\":\"', '') = document)";
const FREE_AS_DOMAIN: &str = "update meta set probes = probes \
     where exists (select 1 from tenant where id = $1 and issuer = $2) \
     or not exists (select 1 from tenant where id <> $1 and 'https://' || custom_domain = $2)";

/// Sees that no other tenant than `own` has the issuer that is named with it.
fn free(field: &'static str, statement: &'static str, own: (String, String)) -> Step {
    Step { statement: Statement::new(statement).bind(own.0).bind(own.1), missed: Some(StoreError::Taken { field }) }
}

/// Carries the work out, all of it or nothing, and remembers it.
pub(super) async fn transact(
    mut transaction: Box<dyn Transaction>,
    witness: &mut Witness,
    work: Work,
) -> Result<(), StoreError> {
    let outcome = carry_out(&mut *transaction, witness, work).await;
    if let Err(because) = &outcome {
        transaction.abandon(because).await;
    }
    outcome
}

async fn carry_out(transaction: &mut dyn Transaction, witness: &mut Witness, mut work: Work) -> Result<(), StoreError> {
    // A change that could not be remembered must not be made.
    witness.reserve().map_err(not_remembered)?;
    let tenants: BTreeSet<TenantId> = work.tenants().collect();
    let tenants: Vec<TenantId> = tenants.into_iter().collect();
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
    transaction.begin(&tenants).await?;
    for Step { statement, missed } in work.steps() {
        let done = transaction.execute(statement).await?;
        if let (0, Some(missed)) = (done, missed) {
            return Err(missed);
        }
    }
    if !work.events.is_empty() {
        let tip = append(transaction, &work.events, witness.log_end()).await?;
        sights.push(Sight::Administration { tip });
    }
    // A crash before this leaves nothing of the change; once it returns, the log is on disk with all of it.
    transaction.commit().await?;
    // A crash before this leaves a store that is newer than what is remembered of it, which is believed.
    witness
        .note(&sights)
        .map_err(|error| StoreError::Unavailable(format!("the change was made, and could not be remembered: {error}")))
}

pub(super) fn not_remembered(error: std::io::Error) -> StoreError {
    StoreError::ReadOnly(format!("the file that remembers the store's state cannot be written: {error}"))
}

/// Appends to the administration log, which must end where it ended before, or later; where it ends now.
pub(super) async fn append(
    transaction: &mut dyn Transaction,
    events: &[Event],
    seen: Option<&Tip>,
) -> Result<Tip, StoreError> {
    let mut tip = tip(transaction.rows(read_tip()).await?)?;
    let mut seen = seen.cloned();
    while let Some(since) = records_since(&tip, seen.as_ref()) {
        let records = transaction.rows(since).await?;
        seen = Some(followed(&tip, seen.as_ref(), &records)?);
    }
    for event in events {
        let position = i64::try_from(tip.size()).map_err(|_| StoreError::Damaged("the log is full".to_owned()))?;
        let record = String::from_utf8(tip.append(event)).expect("JSON is UTF-8");
        let insert = Statement::new("insert into audit_event (position, tenant, record) values ($1, $2, $3)");
        transaction.execute(insert.bind(position).bind(event.tenant.as_ref()).bind(record)).await?;
    }
    transaction.execute(Statement::new("update meta set log_tip = $1").bind(tip_text(&tip))).await?;
    Ok(tip)
}

/// Asks where the log ends; [`tip`] reads the answer.
pub(super) const fn read_tip() -> Statement {
    Statement::new("select log_tip from meta")
}

/// Where the log ends, as its column says it.
pub(super) fn tip(rows: Vec<Row>) -> Result<Tip, StoreError> {
    let text: String = one(rows)?.get("log_tip")?;
    serde_json::from_str(&text).map_err(|error| StoreError::Damaged(format!("meta: log_tip: {error}")))
}

/// Records that are read of the log at once.
const RECORDS_MAX: u64 = 1024;

/// Asks for the next records between where the log was seen to end and where it ends now; [`followed`] looks at them. `None` if it ends
/// where it did.
pub(super) fn records_since(tip: &Tip, seen: Option<&Tip>) -> Option<Statement> {
    let seen = seen.filter(|seen| *seen != tip)?;
    let place = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    // Some only after a crash, or behind another replica.
    let count = tip.size().saturating_sub(seen.size()).min(RECORDS_MAX);
    let statement = Statement::new("select record from audit_event where position >= $1 order by position limit $2");
    Some(statement.bind(place(seen.size())).bind(place(count)))
}

/// Where the log was seen to end once it has grown by these records, on the way to where it ends now.
pub(super) fn followed(tip: &Tip, seen: Option<&Tip>, records: &[Row]) -> Result<Tip, StoreError> {
    let Some(seen) = seen else { return Ok(tip.clone()) };
    let mut followed = seen.clone();
    for record in records {
        if followed.follow(&record.get::<Vec<u8>>("record")?).is_err() {
            break;
        }
    }
    if followed == *tip || (followed.size() > seen.size() && followed.size() < tip.size()) {
        return Ok(followed);
    }
    Err(StoreError::Damaged(format!(
        "the administration log was put back or rewritten: it has {} records that do not go on from the {} that were \
         seen; {IF_ON_PURPOSE}",
        tip.size(),
        seen.size()
    )))
}

/// The end of a log as its column holds it.
pub(in crate::store) fn tip_text(tip: &Tip) -> String {
    serde_json::to_string(tip).expect("hashes and numbers have a form in JSON")
}
