//! How records are read: as rows, then as what their seals and the witness let stand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::yield_now;

use super::{Reads, Row, Statement};
use crate::domain::{Algorithm, TenantId, Timestamp};
use crate::store::record::{self, KeyringRow, RemovalRow, TenantRow, TokenRow};
use crate::store::witness::{self, Shown, Sight, Witness};
use crate::store::{
    Damage, EventPage, EventRow, Loaded, Revisions, Seals, Start, StoreError, TenantRecord, TenantRevisions,
    TokenBinding, TokenRecord,
};
use crate::tlog::{Hash, leaf_hash};

/// What was read, and what of it this replica had not seen.
pub(super) struct Read<T> {
    pub(super) record: T,
    pub(super) news: Vec<Sight>,
}

/// To look at a seal takes a tenth of a millisecond, a tenant has some of them, and there may be ten thousand tenants: calls have their
/// turns in between. Not after each of those that are known already, for who waits for the witness waits for all of this.
pub(super) struct Pace(Instant);

const TURN: Duration = Duration::from_micros(50);

impl Pace {
    pub(super) fn begin() -> Self {
        Self(Instant::now())
    }

    async fn keep(&mut self) {
        if self.0.elapsed() >= TURN {
            yield_now().await;
            self.0 = Instant::now();
        }
    }
}

/// A tenant's rows, as they stand there.
pub(super) struct Rows {
    pub(super) tenant: TenantRow,
    pub(super) keyrings: Vec<KeyringRow>,
}

/// The token that the store says it belongs to.
pub(in crate::store) async fn binding(database: &dyn Reads) -> Result<TokenBinding, StoreError> {
    let row = one(database.rows(Statement::new("select token_serial, token_label from meta")).await?)?;
    Ok(TokenBinding { serial: row.get("token_serial")?, label: row.get("token_label")? })
}

/// CKA_ID of the service key that the store was made with, if it was noted.
pub(super) async fn service_key(database: &dyn Reads) -> Result<Option<String>, StoreError> {
    one(database.rows(Statement::new("select service_key from meta")).await?)?.get("service_key")
}

/// The tokens that were seen beside that one.
pub(super) async fn tokens(
    database: &dyn Reads,
    seals: &dyn Seals,
) -> Result<BTreeMap<String, Result<TokenRecord, String>>, StoreError> {
    let rows = database.rows(Statement::new("select name, document, seal from token")).await?;
    let read = |row: &Row| {
        let (document, seal) = (row.get("document")?, row.get("seal")?);
        let row = TokenRow { name: row.get("name")?, document, seal };
        let believed = row.decode(seals).map_err(|error| error.to_string());
        Ok((row.name, believed))
    };
    rows.iter().map(read).collect()
}

/// One tenant; `None` if there is none and need not be.
pub(super) async fn tenant(
    database: &dyn Reads,
    tenant: &TenantId,
    seals: &dyn Seals,
    witness: &Witness,
) -> Result<Read<Option<TenantRecord>>, StoreError> {
    // One statement, and so one moment.
    let rows = Statement::new(
        "select t.id, t.revision, t.issuer, t.custom_domain, t.document, t.seal, \
         k.algorithm, k.revision as keyring_revision, k.document as keyring_document, k.seal as keyring_seal \
         from tenant t left join keyring k on k.tenant = t.id where t.id = $1",
    );
    let rows = database.rows(rows.bind(tenant)).await?;
    if rows.is_empty() {
        if !witness.awaits(tenant) {
            return Ok(Read { record: None, news: Vec::new() });
        }
        let removals = removals(database, Some(tenant), seals).await?;
        let removed = removed(tenant, &removals, witness).map_err(StoreError::Untrusted)?;
        return Ok(Read { record: None, news: removed.into_iter().collect() });
    }
    let rows = Rows::read(&rows).map_err(|error| of_tenant(tenant.as_str(), error))?;
    let is_known = witness.knows(tenant);
    let removals = if is_known { Removals::new() } else { removals(database, Some(tenant), seals).await? };
    let (record, news) = believe(rows, seals, witness, &removals, &mut Pace::begin()).await?;
    Ok(Read { record: Some(record), news })
}

/// By id, when the tenant was made that had it last and was removed.
pub(super) type Removals = BTreeMap<String, Timestamp>;

/// The removals of this tenant or of all, as far as they are sealed.
pub(super) async fn removals(
    database: &dyn Reads,
    tenant: Option<&TenantId>,
    seals: &dyn Seals,
) -> Result<Removals, StoreError> {
    let rows = Statement::new("select tenant, create_time, seal from removal where $1 is null or tenant = $1");
    let mut removals = Removals::new();
    let rows = database.rows(rows.bind(tenant)).await?;
    let mut pace = Pace::begin();
    for row in rows {
        pace.keep().await;
        let row =
            RemovalRow { tenant: row.get("tenant")?, create_time: row.get("create_time")?, seal: row.get("seal")? };
        if let Ok(create_time) = row.decode(seals) {
            removals.insert(row.tenant, create_time);
        }
    }
    Ok(removals)
}

/// That a tenant was removed whose record was there; else it is gone, unless this process itself may have removed it.
fn removed(tenant: &TenantId, removals: &Removals, witness: &Witness) -> Result<Option<Sight>, String> {
    let create_time = removals.get(tenant.as_str()).ok_or_else(|| witness::gone(tenant));
    match create_time.and_then(|create_time| witness.compare_removal(tenant, *create_time)) {
        Ok(removed) => Ok(Some(removed)),
        Err(problem) if witness.expects(tenant) => Err(problem),
        Err(_) => Ok(None),
    }
}

/// Of tenants that were there and are not: whose records are gone, and who was removed.
fn missing(tenants: &[TenantId], removals: &Removals, witness: &Witness) -> (Vec<Damage>, Vec<Sight>) {
    let (mut damaged, mut news) = (Vec::new(), Vec::new());
    for tenant in tenants {
        match removed(tenant, removals, witness) {
            Ok(removed) => news.extend(removed),
            Err(problem) => damaged.push(Damage { tenant: tenant.to_string(), problem }),
        }
    }
    (damaged, news)
}

/// Every tenant.
pub(super) async fn all(
    database: &dyn Reads,
    seals: &dyn Seals,
    witness: &Witness,
) -> Result<Read<Loaded>, StoreError> {
    let (mut loaded, mut news) = (Loaded::default(), Vec::new());
    let mut present = Vec::new();
    let removals = removals(database, None, seals).await?;
    let every = every(database).await?;
    let mut pace = Pace::begin();
    for (id, rows) in every {
        pace.keep().await;
        let believed = match rows {
            Ok(rows) => believe(rows, seals, witness, &removals, &mut pace).await,
            Err(error) => Err(error),
        };
        match believed {
            Ok((record, new)) => {
                loaded.records.push(record);
                news.extend(new);
            }
            Err(StoreError::Untrusted(problem)) => loaded.damaged.push(Damage { tenant: id.clone(), problem }),
            Err(other) => return Err(other),
        }
        present.push(id);
    }
    let (damaged, removed) = missing(&witness.absent(present), &removals, witness);
    loaded.damaged.extend(damaged);
    news.extend(removed);
    Ok(Read { record: loaded, news })
}

/// Every tenant's rows, by id, or why they cannot be read as rows.
pub(super) async fn every(database: &dyn Reads) -> Result<Vec<(String, Result<Rows, StoreError>)>, StoreError> {
    let rows = Statement::new(
        "select t.id, t.revision, t.issuer, t.custom_domain, t.document, t.seal, \
         k.algorithm, k.revision as keyring_revision, k.document as keyring_document, k.seal as keyring_seal \
         from tenant t left join keyring k on k.tenant = t.id order by t.id",
    );
    let rows = database.rows(rows).await?;
    let read = of_tenants(&rows).map(|(id, rows)| {
        let read = Rows::read(rows).map_err(|error| of_tenant(&id, error));
        (id, read)
    });
    Ok(read.collect())
}

/// What cannot be read of one tenant's rows is that tenant's trouble.
fn of_tenant(id: &str, error: StoreError) -> StoreError {
    match error {
        StoreError::Damaged(text) => StoreError::Untrusted(format!("tenant {id}: {text}")),
        other => other,
    }
}

pub(super) async fn revisions(
    database: &dyn Reads,
    seals: &dyn Seals,
    witness: &Witness,
) -> Result<Read<Revisions>, StoreError> {
    let rows = Statement::new(
        "select t.id, t.revision, k.algorithm, k.revision as keyring_revision \
         from tenant t left join keyring k on k.tenant = t.id order by t.id",
    );
    let rows = database.rows(rows).await?;
    let mut read = Revisions::default();
    let mut present = Vec::new();
    let mut pace = Pace::begin();
    for (id, rows) in of_tenants(&rows) {
        pace.keep().await;
        match read_revisions(&id, rows).map_err(|error| of_tenant(&id, error)) {
            Ok(revisions) => read.tenants.push(revisions),
            Err(StoreError::Untrusted(problem)) => read.damaged.push(Damage { tenant: id.clone(), problem }),
            Err(other) => return Err(other),
        }
        present.push(id);
    }
    let absent = witness.absent(present);
    let removals = if absent.is_empty() { Removals::new() } else { removals(database, None, seals).await? };
    let (damaged, news) = missing(&absent, &removals, witness);
    read.damaged.extend(damaged);
    read.tenants.sort_unstable_by(|one, other| one.tenant.cmp(&other.tenant));
    Ok(Read { record: read, news })
}

fn read_revisions(id: &str, rows: &[Row]) -> Result<TenantRevisions, StoreError> {
    let mut keyrings = Vec::new();
    for row in rows {
        if let Some(algorithm) = row.get("algorithm")? {
            keyrings.push((algorithm, row.get("keyring_revision")?));
        }
    }
    record::revisions(id, rows[0].get("revision")?, keyrings)
}

pub(in crate::store) async fn events(database: &dyn Reads, page: &EventPage) -> Result<Vec<EventRow>, StoreError> {
    database.check_log().await?;
    let (statement, place) = match page.start {
        Start::Newest(before) => (
            "select position, tenant, record from audit_event where position < $1 and ($2 is null or tenant = $2) \
             order by position desc limit $3",
            before.unwrap_or(u64::MAX),
        ),
        Start::Oldest(from) => (
            "select position, tenant, record from audit_event where position >= $1 and ($2 is null or tenant = $2) \
             order by position limit $3",
            from,
        ),
    };
    let statement = Statement::new(statement)
        .bind(i64::try_from(place).unwrap_or(i64::MAX))
        .bind(page.tenant.as_ref())
        .bind(i64::from(page.limit));
    let rows = database.rows(statement).await?;
    rows.iter().map(event).collect()
}

pub(super) fn event(row: &Row) -> Result<EventRow, StoreError> {
    Ok(EventRow { position: row.get("position")?, tenant: row.get("tenant")?, record: row.get("record")? })
}

impl Rows {
    /// The rows of one tenant: one for each keyring, and at least one.
    fn read(rows: &[Row]) -> Result<Self, StoreError> {
        let row = &rows[0];
        let id: String = row.get("id")?;
        let tenant = TenantRow {
            id: id.clone(),
            revision: row.get("revision")?,
            issuer: row.get("issuer")?,
            custom_domain: row.get("custom_domain")?,
            document: row.get("document")?,
            seal: row.get("seal")?,
        };
        let mut keyrings = Vec::new();
        for row in rows {
            // A tenant without keyrings has one row, without an algorithm.
            if let Some(algorithm) = row.get("algorithm")? {
                keyrings.push(KeyringRow {
                    tenant: id.clone(),
                    algorithm,
                    revision: row.get("keyring_revision")?,
                    document: row.get("keyring_document")?,
                    seal: row.get("keyring_seal")?,
                });
            }
        }
        Ok(Self { tenant, keyrings })
    }

    /// What the rows say, if their seals hold, and the hash of each document.
    pub(super) async fn decode(
        self,
        seals: &dyn Seals,
        pace: &mut Pace,
    ) -> Result<(TenantRecord, Hash, Vec<Hash>), StoreError> {
        let hash = leaf_hash(self.tenant.document.as_bytes());
        let tenant = self.tenant.decode(seals)?;
        let mut keyrings = Vec::new();
        for row in self.keyrings {
            pace.keep().await;
            let hash = leaf_hash(row.document.as_bytes());
            keyrings.push((row.decode(tenant.create_time, seals)?, hash));
        }
        pace.keep().await;
        keyrings.sort_unstable_by_key(|(keyring, _)| keyring.algorithm);
        let (keyrings, hashes) = keyrings.into_iter().unzip();
        Ok((TenantRecord { tenant, keyrings }, hash, hashes))
    }
}

/// What the rows say, if their seals hold and nothing older was put back; and what of it is new. A replica may have seen neither a
/// tenant nor its removal.
async fn believe(
    rows: Rows,
    seals: &dyn Seals,
    witness: &Witness,
    removals: &Removals,
    pace: &mut Pace,
) -> Result<(TenantRecord, Vec<Sight>), StoreError> {
    let (record, hash, hashes) = rows.decode(seals, pace).await?;
    let removed = removals.get(record.tenant.id.as_str());
    if removed.is_some_and(|create_time| *create_time >= record.tenant.create_time) {
        return Err(StoreError::Untrusted(witness::put_back(&record.tenant.id)));
    }
    let news = witness.compare(&shown(&record, hash, &hashes)).map_err(StoreError::Untrusted)?;
    Ok((record, news))
}

/// A record, as the witness compares it.
pub(super) fn shown<'a>(record: &'a TenantRecord, hash: Hash, hashes: &[Hash]) -> Shown<'a> {
    let of_keyring = |(keyring, hash): (&crate::domain::Keyring, &Hash)| (keyring.algorithm, keyring.revision, *hash);
    let keyrings: Vec<(Algorithm, _, _)> = record.keyrings.iter().zip(hashes).map(of_keyring).collect();
    let tenant = &record.tenant;
    Shown { tenant: &tenant.id, create_time: tenant.create_time, revision: tenant.revision, hash, keyrings }
}

/// Rows ordered by tenant, as one slice a tenant.
fn of_tenants(rows: &[Row]) -> impl Iterator<Item = (String, &[Row])> {
    let id = |row: &Row| row.get::<String>("id").unwrap_or_default();
    rows.chunk_by(move |one, other| id(one) == id(other)).map(move |rows| (id(&rows[0]), rows))
}

/// The one row of `meta`.
pub(in crate::store) fn one(mut rows: Vec<Row>) -> Result<Row, StoreError> {
    rows.pop().ok_or_else(|| StoreError::Damaged("meta has no row".to_owned()))
}
