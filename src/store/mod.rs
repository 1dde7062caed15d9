//! The store: the only room that knows SQL.
//!
//! It keeps tenants, keyrings and the administration log. A [`Store`] reads, and commits a [`Change`]: one verb for
//! every write, because whatever changes together (a tenant, its keyrings, the event that tells of it) commits together or
//! not at all, each record by compare-and-swap on its revision (R7).

mod beside;
mod location;
pub mod postgres;
mod record;
mod seal;
mod sql;
pub mod sqlite;
mod transfer;
mod witness;

pub use self::location::Location;
pub use self::seal::Seals;
pub use self::sql::{Guard, LogReader, Moved, Restored, SqlStore};
pub use self::transfer::{Transfer, may_have_moved};
use crate::domain::{Algorithm, Event, Keyring, ObjectId, PublicKey, Revision, Tenant, TenantId, Timestamp, TokenName};
use crate::tlog::{Entry, Tip};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Where tenants and keyrings are kept.
///
/// A record is believed if the service key sealed it and if it is not older than what this replica has seen (R15); any other is
/// [`StoreError::Untrusted`], or a [`Damage`] where several are read, and takes nothing away from the others.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One tenant with its keyrings, as of one moment.
    async fn load(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, StoreError>;

    /// Every tenant with its keyrings.
    async fn load_all(&self) -> Result<Loaded, StoreError>;

    /// The revisions of all tenants: what a snapshot compares itself with. They are as the rows say them: whoever finds another
    /// revision than his own loads the record, and so has it checked.
    async fn revisions(&self) -> Result<Revisions, StoreError>;

    /// Which tenants' records may be others than they were at `since`, a moment that this store told this process before. What
    /// that costs does not grow with the number of tenants. A store that cannot tell says that any may be.
    async fn changes(&self, since: Option<Moment>) -> Result<Changes, StoreError> {
        Ok(Changes { until: since.unwrap_or_default(), tenants: None })
    }

    /// Returns when somebody else may have changed something: sooner than a look once a second would find it. It may be told of
    /// nothing, and of what is lost on the way it is not told.
    async fn changed(&self) {
        std::future::pending().await
    }

    /// What the clock shows that all replicas of this store share, if they do.
    async fn clock(&self) -> Result<Option<Timestamp>, StoreError> {
        Ok(None)
    }

    /// Says that this replica has taken up every change up to a moment, that nothing it releases is from before, and that it may
    /// sign from that for `life` unless it says so again (R10). Whether it was known until now that it may sign: if not, others
    /// did not wait for it, and it must not sign from what was read before this. A store of one process has nobody to say it to.
    async fn lease(&self, taken_up: Moment, life: Duration) -> Result<bool, StoreError> {
        let _ = (taken_up, life);
        Ok(true)
    }

    /// Whether no other replica may sign any more from what was there before this moment.
    async fn all_have_taken_up(&self, moment: Moment) -> Result<bool, StoreError> {
        let _ = moment;
        Ok(true)
    }

    /// Seals the records in `change` and commits everything in it, or nothing. Once it answers Ok the change survives a crash;
    /// after [`StoreError::Unavailable`] it may or may not have been made.
    async fn commit(&self, change: &Change) -> Result<(), StoreError>;

    /// Shows that the store can be read and written.
    async fn probe(&self) -> Result<(), StoreError>;

    /// The token that the store was made with.
    async fn binding(&self) -> Result<TokenBinding, StoreError>;

    /// The other tokens that were seen, each under its name; or why its record is not believed.
    async fn tokens(&self) -> Result<BTreeMap<String, Result<TokenRecord, String>>, StoreError>;

    /// Records of the administration log, as their rows have them. They are not checked here: [`crate::tlog::Tip::follow`] does,
    /// from the first one on, and [`EventRow::entry`] what stands beside each.
    async fn events(&self, page: &EventPage) -> Result<Vec<EventRow>, StoreError>;

    /// Where the administration log ends.
    async fn log_tip(&self) -> Result<Tip, StoreError>;
}

/// Which records of the administration log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// Those that tell of this tenant alone.
    pub tenant: Option<TenantId>,
    /// From where, and in which direction.
    pub start: Start,
    /// At most so many.
    pub limit: u32,
}

/// A record of the administration log, with the copies of its members by which it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// A copy of its index.
    pub position: i64,
    /// A copy of the tenant that it tells of.
    pub tenant: Option<String>,
    /// Its octets.
    pub record: Vec<u8>,
}

impl EventRow {
    /// What the row says, and whether the copies are those of the record: it is hidden from some readers if they are not.
    #[must_use]
    pub fn entry(&self) -> Entry {
        let mut entry = Entry::read(u64::try_from(self.position).unwrap_or_default(), &self.record);
        let of_record = entry.record.as_ref().and_then(|record| record.event.tenant.as_ref()).map(TenantId::as_str);
        if entry.record.is_some() && self.tenant.as_deref() != of_record {
            entry.problem.get_or_insert_with(|| "its row is filed under another tenant than it tells of".to_owned());
        }
        entry
    }
}

/// A place in a log, and a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The newest first; with an index, those before that one.
    Newest(Option<u64>),
    /// The oldest first, from this index on.
    Oldest(u64),
}

/// What was read of all tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Those that are believed, ordered by id.
    pub records: Vec<TenantRecord>,
    /// The others.
    pub damaged: Vec<Damage>,
}

/// The revisions of all tenants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Ordered by id.
    pub tenants: Vec<TenantRevisions>,
    /// Tenants whose rows say nothing that could be a revision, or that have none although they should.
    pub damaged: Vec<Damage>,
}

/// A moment of a store, in its own counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Which counting it is: of a connection to SQLite, or of a history in PostgreSQL, that of the change with this name. The numbers
    /// mean nothing in another.
    counting: u64,
    /// Counts the commits of others; with PostgreSQL those of all.
    others: i64,
    /// Counts the records that this process wrote, where others' are counted apart.
    own: u64,
}

/// What may have changed since a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The moment up to which this tells of changes.
    pub until: Moment,
    /// Those tenants and no other; `None`: any.
    pub tenants: Option<BTreeSet<TenantId>>,
}

/// A tenant whose record is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its id, as the row says it.
    pub tenant: String,
    /// What is wrong, for the log and the operator.
    pub problem: String,
}

/// A tenant and all its keyrings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRecord {
    /// The tenant.
    pub tenant: Tenant,
    /// Its keyrings, ordered by algorithm.
    pub keyrings: Vec<Keyring>,
}

/// The revisions of a tenant and its keyrings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRevisions {
    /// The tenant's id.
    pub tenant: TenantId,
    /// The revision of its record.
    pub revision: Revision,
    /// The revisions of its keyrings, ordered by algorithm.
    pub keyrings: Vec<(Algorithm, Revision)>,
}

/// What to commit together. A record of revision 1 is created and must not exist; a record of revision n + 1 replaces
/// revision n and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The tenant record to create or replace.
    pub tenant: Option<Tenant>,
    /// Keyrings to create or replace.
    pub keyrings: Vec<Keyring>,
    /// A tenant to remove with all its keyrings, if its record still has this revision.
    pub remove: Option<(TenantId, Revision)>,
    /// What was seen of a token beside the home token: that it is there, or, once its canary was made, all of it.
    pub token: Option<TokenRecord>,
    /// Events of the administrative audit log.
    pub events: Vec<Event>,
}

/// A token beside the home token, as the service saw it first. Its name means no other from then on.
///
/// No revision tells an older record from a newer: the older one has no public half, and is completed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it is called in the configuration.
    pub name: TokenName,
    /// Which one it is.
    #[serde(flatten)]
    pub binding: TokenBinding,
    /// CKA_ID of the key on it that shows that it signs.
    pub canary: ObjectId,
    /// That key's public half; `None` while it is being made.
    pub public: Option<PublicKey>,
}

/// The token that a store belongs to: keys named by the store are on this token and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBinding {
    /// CK_TOKEN_INFO.serialNumber.
    pub serial: String,
    /// CK_TOKEN_INFO.label.
    pub label: String,
}

/// Why the store did not do it. The texts are for the log and the operator.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A record has another revision than the one to replace, or exists already: reload and decide again (R7).
    #[error("another change came first")]
    Conflict,
    /// Another tenant has this value already.
    #[error("{field} is taken by another tenant")]
    Taken {
        /// The field, as the proto names it: `id`, `issuer` or `custom_domain`.
        field: &'static str,
    },
    /// The store can be read but not written, for the reason given: an operator must act.
    #[error("the store is read-only: {0}")]
    ReadOnly(String),
    /// The store does not answer, for the reason given: retry later.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store as a whole holds something that no version of Keyward wrote: an operator must act.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// One tenant's record is not to be believed, for the reason given (R15): an operator must act.
    #[error("not to be believed: {0}")]
    Untrusted(String),
    /// The service key could not seal the change, for the reason given; nothing was changed: retry later.
    #[error("the change could not be sealed: {0}")]
    Unsealed(String),
    /// The store cannot be opened in this way: it is missing, exists already, or is in use. The text says what to do.
    #[error("{0}")]
    Refused(String),
}
