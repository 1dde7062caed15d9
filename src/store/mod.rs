//! The store: the only room that knows SQL.
//!
//! It keeps tenants, keyrings and the administrative audit log. A [`Store`] reads, and commits a [`Change`]: one verb for
//! every write, because whatever changes together (a tenant, its keyrings, the event that tells of it) commits together or
//! not at all, each record by compare-and-swap on its revision (R7).

mod record;
mod sqlite;

pub use self::sqlite::SqliteStore;
use crate::domain::{Algorithm, Event, Keyring, Revision, Tenant, TenantId};
use async_trait::async_trait;

/// Where tenants and keyrings are kept.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One tenant with its keyrings, as of one moment.
    async fn load(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, StoreError>;

    /// Every tenant with its keyrings, ordered by id.
    async fn load_all(&self) -> Result<Vec<TenantRecord>, StoreError>;

    /// The revisions of all tenants, ordered by id: what a snapshot compares itself with.
    async fn revisions(&self) -> Result<Vec<TenantRevisions>, StoreError>;

    /// Commits everything in `change`, or nothing. Once it answers Ok the change survives a crash; after
    /// [`StoreError::Unavailable`] it may or may not have been made.
    async fn commit(&self, change: &Change) -> Result<(), StoreError>;

    /// Shows that the store can be read and written.
    async fn probe(&self) -> Result<(), StoreError>;

    /// The token that the store was made with.
    async fn binding(&self) -> Result<TokenBinding, StoreError>;

    /// The latest events of the administrative audit log, newest first, at most `limit`.
    async fn events(&self, limit: u32) -> Result<Vec<Event>, StoreError>;
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
    /// Events of the administrative audit log.
    pub events: Vec<Event>,
}

/// The token that a store belongs to: keys named by the store are on this token and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The store holds something that no version of Keyward wrote: an operator must act.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The store cannot be opened in this way: it is missing, exists already, or is in use. The text says what to do.
    #[error("{0}")]
    Refused(String),
}
