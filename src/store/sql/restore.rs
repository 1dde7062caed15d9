//! Accepting a store that is older than what this replica has seen: a backup that was put back on purpose.

use super::read::{self, Pace, shown};
use super::{Database, Guard, SqlStore, Statement, Transaction, write};
use crate::domain::{Event, TenantId, Timestamp};
use crate::store::record::{KeyringRow, RemovalRow, TenantRow};
use crate::store::witness::{Sight, Witness};
use crate::store::{Damage, Seals, StoreError, TenantRecord, seal};
use crate::tlog::Tip;

/// What a store that is put back differs in from what was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Tenants whose records are older than what was seen, or of which nothing is known any more; they hold from now on.
    pub older: Vec<TenantId>,
    /// Tenants that were deleted since, and are removed again.
    pub deleted: Vec<TenantId>,
    /// Tenants that were seen and are not in the store.
    pub missing: Vec<TenantId>,
    /// Records that nobody can believe; they stay out.
    pub damaged: Vec<Damage>,
    /// Records in the administration log, and how many were seen.
    pub log: (u64, u64),
}

/// A tenant's record that is to hold from now on.
struct Renewed {
    tenant: TenantRow,
    keyrings: Vec<KeyringRow>,
    sights: Vec<Sight>,
}

impl SqlStore {
    /// Compares the store in `database` with what was seen of it; with `accept`, also makes it hold as it is, and appends that
    /// event.
    ///
    /// What becomes valid again gets a tenant's time of making that is new, which all of its seals are over: rows of the state
    /// that was given up cannot be put back in their turn.
    pub(in crate::store) async fn restore(
        database: impl Database,
        guard: Guard,
        accept: Option<Event>,
    ) -> Result<Restored, StoreError> {
        let (witness, forgotten) = match Witness::open(&guard.witness) {
            Ok(witness) => (witness, false),
            // What the store was like is not known any more: all of it is taken anew.
            Err(StoreError::Refused(_)) if accept.is_some() => (Witness::lost(&guard.witness)?, true),
            Err(error) => return Err(error),
        };
        let store = Self::new(database, guard.seals, witness).await?;
        let outcome = store.accept(accept, forgotten).await;
        store.close().await;
        outcome
    }

    async fn accept(&self, accept: Option<Event>, forgotten: bool) -> Result<Restored, StoreError> {
        let mut witness = self.witness.write().await;
        let tip = write::tip(self.database.rows(write::read_tip()).await?)?;
        let mut restored =
            Restored { log: (tip.size(), witness.log_end().map_or(0, Tip::size)), ..Restored::default() };
        let (mut older, mut sights, mut removals) = (Vec::new(), Vec::new(), Vec::new());
        let mut present = Vec::new();
        let every = read::every(&*self.database).await?;
        let mut pace = Pace::begin();
        for (id, rows) in every {
            let decoded = match rows {
                Ok(rows) => rows.decode(&*self.seals, &mut pace).await,
                Err(error) => Err(error),
            };
            match decoded {
                Ok((record, hash, hashes)) => match witness.compare(&shown(&record, hash, &hashes)) {
                    Ok(news) if !forgotten => sights.extend(news),
                    Err(_) if let Some(create_time) = witness.removed(&record.tenant.id) => {
                        removals.push(RemovalRow::encode(&record.tenant.id, create_time));
                        restored.deleted.push(record.tenant.id);
                    }
                    _ => {
                        restored.older.push(record.tenant.id.clone());
                        older.push(record);
                    }
                },
                Err(StoreError::Untrusted(problem)) => restored.damaged.push(Damage { tenant: id.clone(), problem }),
                Err(other) => return Err(other),
            }
            present.push(id);
        }
        for tenant in witness.absent(present) {
            if let Some(create_time) = witness.create_time(&tenant) {
                removals.push(RemovalRow::encode(&tenant, create_time));
                sights.push(Sight::Removed { tenant: tenant.clone(), create_time });
            }
            if witness.expects(&tenant) {
                restored.missing.push(tenant);
            }
        }
        let Some(event) = accept else { return Ok(restored) };
        let mut renewed = Vec::new();
        for record in older {
            let since = witness.create_time(&record.tenant.id);
            renewed.push(renew(record, since, &*self.seals).await?);
        }
        let to_seal = removals.iter_mut().map(|row| (row.message(), &mut row.seal));
        seal::put(&*self.seals, to_seal.collect()).await?;
        let mut transaction = self.database.transaction().await?;
        let event = Event { detail: restored.to_string(), ..event };
        match put_back(&mut *transaction, &restored.deleted, removals, renewed, event).await {
            Ok(made) => sights.extend(made),
            Err(because) => {
                transaction.abandon(&because).await;
                return Err(because);
            }
        }
        witness.replace_with(&sights)?;
        Ok(restored)
    }
}

/// Makes the store hold as it is, in one transaction; what is to be remembered of it.
async fn put_back(
    transaction: &mut dyn Transaction,
    deleted: &[TenantId],
    removals: Vec<RemovalRow>,
    renewed: Vec<Renewed>,
    event: Event,
) -> Result<Vec<Sight>, StoreError> {
    let of_removals = removals.iter().filter_map(|row| row.tenant.parse().ok());
    let of_renewed = renewed.iter().filter_map(|renewed| renewed.tenant.id.parse().ok());
    let tenants: Vec<TenantId> = of_removals.chain(of_renewed).collect();
    transaction.begin(&tenants).await?;
    for tenant in deleted {
        for statement in ["delete from keyring where tenant = $1", "delete from tenant where id = $1"] {
            transaction.execute(Statement::new(statement).bind(tenant)).await?;
        }
    }
    for row in removals {
        transaction.execute(write::removal(row)).await?;
    }
    let mut sights = Vec::new();
    for Renewed { tenant, keyrings, sights: new } in renewed {
        let update = Statement::new("update tenant set document = $2, seal = $3 where id = $1");
        transaction.execute(update.bind(tenant.id).bind(tenant.document).bind(tenant.seal)).await?;
        for keyring in keyrings {
            let update = Statement::new("update keyring set seal = $3 where tenant = $1 and algorithm = $2");
            transaction.execute(update.bind(keyring.tenant).bind(keyring.algorithm).bind(keyring.seal)).await?;
        }
        sights.extend(new);
    }
    let tip = write::append(transaction, &[event], None).await?;
    sights.push(Sight::Administration { tip });
    transaction.commit().await?;
    Ok(sights)
}

impl std::fmt::Display for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |tenants: &[TenantId]| tenants.iter().map(TenantId::as_str).collect::<Vec<_>>().join(" ");
        let (log, seen) = self.log;
        let (older, deleted, missing) = (names(&self.older), names(&self.deleted), names(&self.missing));
        write!(f, "older: [{older}]; deleted since: [{deleted}]; missing: [{missing}]; log: {log} of {seen} records")
    }
}

/// The record under a time of making that is later than any seen, sealed anew.
async fn renew(mut record: TenantRecord, since: Option<Timestamp>, seals: &dyn Seals) -> Result<Renewed, StoreError> {
    let latest = since.map_or(record.tenant.create_time, |since| since.max(record.tenant.create_time));
    record.tenant.create_time = crate::domain::after(latest, std::time::Duration::from_nanos(1));
    let created = record.tenant.create_time;
    let mut tenant = TenantRow::encode(&record.tenant)?;
    let mut keyrings = record.keyrings.iter().map(KeyringRow::encode).collect::<Result<Vec<_>, _>>()?;
    let of_keyrings = keyrings.iter_mut().map(|row| (row.message(created), &mut row.seal));
    let of_tenant = std::iter::once((tenant.message(), &mut tenant.seal));
    seal::put(seals, of_tenant.chain(of_keyrings).collect()).await?;
    let mut sights = vec![Sight::of_tenant(&record.tenant, &tenant.document)];
    let of_keyrings = record.keyrings.iter().zip(&keyrings);
    sights.extend(of_keyrings.map(|(keyring, row)| Sight::of_keyring(keyring, &row.document)));
    Ok(Renewed { tenant, keyrings, sights })
}
