//! A store's way into another database: copied, read back and compared, in one transaction there.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::read::{self, Read, Removals};
use super::{Reads, Row, SqlStore, Statement, Transaction, write};
use crate::domain::Event;
use crate::store::witness::{IF_ON_PURPOSE, Sight, Witness};
use crate::store::{Seals, StoreError, TenantRecord, TokenBinding, TokenRecord};
use crate::tlog::Tip;

/// Rows that are written at once: some hundred KiB, and fewer parameters than a statement may have.
const ROWS_MAX: usize = 512;

/// Records of the log that are read at once.
const RECORDS_MAX: i64 = 512;

/// Of how many that are not believed the names are told.
const TOLD_MAX: usize = 20;

/// How tables are read and written, each after those that it refers to. The administration log goes in pages, because it has no
/// bound.
const TABLES: [(&str, &str); 4] = [
    (
        "select id, revision, issuer, custom_domain, document, seal from tenant",
        "insert into tenant (id, revision, issuer, custom_domain, document, seal)",
    ),
    (
        "select tenant, algorithm, revision, document, seal from keyring",
        "insert into keyring (tenant, algorithm, revision, document, seal)",
    ),
    ("select name, document, seal from token", "insert into token (name, document, seal)"),
    ("select tenant, create_time, seal from removal", "insert into removal (tenant, create_time, seal)"),
];

/// What was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// How many tenants.
    pub tenants: usize,
    /// How many records of the administration log.
    pub events: u64,
}

/// All that a store tells, and all of it believed.
#[derive(PartialEq, Eq)]
struct Whole {
    binding: TokenBinding,
    service_key: Option<String>,
    records: Vec<TenantRecord>,
    tokens: BTreeMap<String, TokenRecord>,
    removals: Removals,
    log_end: Tip,
}

impl SqlStore {
    /// Copies the store into a database that is empty, whose name is `to`; with `event` it goes on there.
    pub(in crate::store) async fn copy_into(
        &self,
        mut target: Box<dyn Transaction>,
        to: &str,
        event: Event,
    ) -> Result<Moved, StoreError> {
        let outcome = self.copy(&mut *target, to, event).await;
        if let Err(because) = &outcome {
            target.abandon(because).await;
        }
        outcome
    }

    async fn copy(&self, target: &mut dyn Transaction, to: &str, event: Event) -> Result<Moved, StoreError> {
        let mut witness = self.witness.write().await;
        target.begin(&[]).await?;
        let Read { record: source, mut news } = Whole::read(&*self.database, &*self.seals, &witness).await?;
        self.copy_rows(target, &source).await?;
        // Looked at as if somebody else had made it.
        let copy = Whole::read(&Within(Mutex::new(&mut *target)), &*self.seals, &witness).await?.record;
        if copy != source {
            return Err(StoreError::Damaged("the copy is not what was copied, and was given up".to_owned()));
        }
        let tip = write::append(target, &[event], Some(&source.log_end)).await?;
        // Before the commit, of which nobody may learn: what could be in two places is used in neither until that is known. A crash
        // from here on is mended by the same command again.
        news.push(Sight::Moved { to: Some(to.to_owned()) });
        witness.reserve().and_then(|()| witness.note(&news)).map_err(write::not_remembered)?;
        match target.commit().await {
            Ok(()) => {}
            Err(StoreError::Unavailable(text)) => return Err(StoreError::Unavailable(format!("{text}; {IN_DOUBT}"))),
            Err(refused) => {
                witness.note(&[Sight::Moved { to: None }]).map_err(write::not_remembered)?;
                return Err(refused);
            }
        }
        drop(witness);
        let moved = Moved { tenants: source.records.len(), events: tip.size() };
        Ok(self.remembered(Read { record: moved, news: vec![Sight::Administration { tip }] }).await)
    }

    async fn copy_rows(&self, target: &mut dyn Transaction, source: &Whole) -> Result<(), StoreError> {
        let log_end = &source.log_end;
        for (select, into) in TABLES {
            let mut rows = self.database.rows(Statement::new(select)).await?.into_iter().peekable();
            while rows.peek().is_some() {
                target.execute(Statement::insert(into, rows.by_ref().take(ROWS_MAX))).await?;
            }
        }
        let mut copied = 0;
        while copied < log_end.size() {
            let page = records(&*self.database, copied, log_end).await?;
            copied += page.len() as u64;
            let insert = "insert into audit_event (position, tenant, record)";
            target.execute(Statement::insert(insert, page)).await?;
        }
        let meta = Statement::new("update meta set log_tip = $1, service_key = $2");
        let meta = meta.bind(write::tip_text(log_end)).bind(source.service_key.as_deref());
        target.execute(meta).await.map(drop)
    }
}

/// What to say where nobody knows.
const IN_DOUBT: &str =
    "whether the store was moved is not known: run `keyward migrate` again, which moves it or says that it is done";

impl Whole {
    /// Reads a store, unless something in it is not believed.
    async fn read(database: &dyn Reads, seals: &dyn Seals, witness: &Witness) -> Result<Read<Self>, StoreError> {
        let Read { record: loaded, news } = read::all(database, seals, witness).await?;
        let mut doubts: Vec<_> = loaded.damaged.into_iter().map(|damage| (damage.tenant, damage.problem)).collect();
        let mut tokens = BTreeMap::new();
        for (name, token) in read::tokens(database, seals).await? {
            match token {
                Ok(token) => drop(tokens.insert(name, token)),
                Err(problem) => doubts.push((format!("token {name}"), problem)),
            }
        }
        if !doubts.is_empty() {
            return Err(not_believed(&doubts));
        }
        let removals = read::removals(database, None, seals).await?;
        let (binding, log_end) = (read::binding(database).await?, follow(database, witness.log_end()).await?);
        let service_key = read::service_key(database).await?;
        Ok(Read { record: Self { binding, service_key, records: loaded.records, tokens, removals, log_end }, news })
    }
}

fn not_believed(doubts: &[(String, String)]) -> StoreError {
    let told: Vec<_> = doubts.iter().take(TOLD_MAX).map(|(name, problem)| format!("\n  {name}: {problem}")).collect();
    let more = match doubts.len() - told.len() {
        0 => String::new(),
        untold => format!("\n  and {untold} more"),
    };
    StoreError::Refused(format!(
        "nothing was moved, because not everything is believed:{}{more}\nPut these records back from a backup first, as for a tenant in \
         quarantine",
        told.concat()
    ))
}

/// Where the administration log ends, if it is one chain from its first record to there, and goes on from where it was seen to end.
async fn follow(database: &dyn Reads, seen: Option<&Tip>) -> Result<Tip, StoreError> {
    database.check_log().await?;
    let end = write::tip(database.rows(write::read_tip()).await?)?;
    let (mut tip, mut passed) = (Tip::default(), false);
    loop {
        passed |= seen.is_none_or(|seen| *seen == tip);
        if tip.size() >= end.size() {
            break;
        }
        for row in records(database, tip.size(), &end).await? {
            let row = read::event(&row)?;
            let broken = |problem| not_whole(&format!("record {}: {problem}", row.position));
            if let Some(problem) = row.entry().problem {
                return Err(broken(problem));
            }
            tip.follow(&row.record).map_err(|problem| broken(problem.to_string()))?;
            passed |= seen == Some(&tip);
        }
    }
    if tip != end {
        return Err(not_whole("its end is not that of its records"));
    }
    if !passed {
        return Err(not_whole(&format!("it does not go on from where it was seen to end; {IF_ON_PURPOSE}")));
    }
    Ok(tip)
}

fn not_whole(problem: &str) -> StoreError {
    StoreError::Refused(format!(
        "nothing was moved, because the administration log is not as it was written: {problem}. Put it back from a backup first; \
         `keyward audit verify` says whether it is whole"
    ))
}

/// The next records before `end`.
async fn records(database: &dyn Reads, from: u64, end: &Tip) -> Result<Vec<Row>, StoreError> {
    let place = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let rows = Statement::new(
        "select position, tenant, record from audit_event where position >= $1 and position < $2 order by position limit $3",
    );
    let rows = rows.bind(place(from)).bind(place(end.size())).bind(RECORDS_MAX);
    match database.rows(rows).await? {
        rows if rows.is_empty() => Err(not_whole(&format!("record {from} is missing"))),
        rows => Ok(rows),
    }
}

/// What a transaction has made so far.
struct Within<'a>(Mutex<&'a mut dyn Transaction>);

#[async_trait]
impl Reads for Within<'_> {
    async fn rows(&self, statement: Statement) -> Result<Vec<Row>, StoreError> {
        self.0.lock().await.rows(statement).await
    }

    async fn check_log(&self) -> Result<(), StoreError> {
        // The transaction made the table.
        Ok(())
    }
}
