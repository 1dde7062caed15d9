//! The use cases: the only room that calls the token and the store.
//!
//! In reading order: [`snapshot`] (what replicas sign and publish from), `sign` (the hot path) and `verify`, `drive` (the one
//! loop that brings a keyring to rest) and `generate` (new keys), `rotate`, `keys`, `custom`, `tenants` and `update` (what
//! operators ask for), `saml` (signed metadata), `tend` (the timer) and `agenda` (when it looks at whom), `quarantine` (of tenants),
//! `key_quarantine`, `service_key` and `canary`, `standing` and `attended` (how a token is), `tokens`, `skew` (of clocks), `health`,
//! `reconcile` (the token against the store).

mod agenda;
mod attended;
mod canary;
mod clock;
mod custom;
mod drive;
mod error;
mod events;
mod generate;
mod health;
mod key_quarantine;
mod keys;
mod locks;
mod published;
mod quarantine;
pub mod reconcile;
mod rotate;
mod saml;
mod service_key;
mod sign;
mod skew;
pub mod snapshot;
mod standing;
mod tenants;
mod tend;
mod tokens;
mod update;
mod verify;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use attended::{Attended, TokenHealth};
pub use canary::Canary;
pub use clock::Clock;
pub use error::{Error, Part, Violation};
pub use health::Health;
pub use key_quarantine::QuarantinedKey;
pub use keys::{KeyPage, ListKeys, Listed, ListedState};
pub use rotate::{RotateKeys, Rotated};
pub use service_key::ServiceKey;
pub use sign::{BATCH_INPUTS_MAX, CLAIMS_BYTES_MAX, Choice, Input, Signed, ecdsa_curve};
pub use skew::CLOCK_SKEW_MIN;
pub use standing::TokenState;
pub use tenants::{TenantPage, TenantSpec};
pub use tend::tend;
pub use tokens::Tokens;
pub use update::TenantUpdate;
pub use verify::Verdict;

use crate::domain::{Algorithm, Event, Kid, ObjectId, TenantId};
use crate::store::{Change, EventPage, EventRow, Store, StoreError};
use published::Published;
use tokio_util::task::TaskTracker;

/// All keyrings of a service, with the tokens and the store that they live on.
pub struct Keyrings {
    tokens: Arc<Tokens>,
    store: Arc<dyn Store>,
    clock: Clock,
    settings: Settings,
    published: Published,
    quarantine: quarantine::Quarantine,
    key_quarantine: key_quarantine::KeyQuarantine,
    shared_clock: skew::SharedClock,
    /// Up to when the snapshot knows of the store's changes; `None` until every record was read once.
    known: tokio::sync::Mutex<Option<tend::Known>>,
    sampling: sign::Sampling,
    locks: locks::Locks,
    metadata_turns: locks::Locks,
    claims: Mutex<Claims>,
    changes: TaskTracker,
}

/// What an operator sets for all tenants.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the public listener is reached, without a trailing slash.
    pub base_url: String,
    /// Modulus length of new RSA keys.
    pub rsa_bits: u32,
    /// The share of signatures other than RSA that are verified before they are released (R11); RSA always is.
    pub verify_share: f64,
    /// Longest wait of a signature for the token, whatever deadline the caller gave.
    pub sign_wait_max: Duration,
    /// How old the snapshot may be that is signed from (R10).
    pub snapshot_max_age: Duration,
    /// How long a call waits for keys of a new tenant that another replica is making.
    pub others_wait_max: Duration,
    /// How often a tenant's keys may be rotated by hand in 24 hours.
    pub manual_rotations_per_day: u32,
    /// Whether no other process changes the store: interrupted work is then taken up at once, without a lease.
    pub sole: bool,
}

/// What this process knows of keys that are being generated.
#[derive(Debug, Default)]
struct Claims {
    /// Intents recorded by this process that the token was not asked for yet.
    fresh: HashSet<ObjectId>,
    /// Pending keys for which this process asked the token: what came of it is for this process to find out.
    asked: HashSet<ObjectId>,
}

impl Keyrings {
    /// The keyrings of `store`, on these tokens. Nothing is loaded yet; [`Keyrings::refresh`] does.
    #[must_use]
    pub fn new(tokens: Arc<Tokens>, store: Arc<dyn Store>, clock: Clock, settings: Settings) -> Self {
        Self {
            published: Published::new(settings.base_url.clone(), Arc::clone(&tokens)),
            quarantine: quarantine::Quarantine::default(),
            key_quarantine: key_quarantine::KeyQuarantine::default(),
            shared_clock: skew::SharedClock::unknown(),
            known: tokio::sync::Mutex::default(),
            sampling: sign::Sampling::new(settings.verify_share),
            locks: locks::Locks::default(),
            metadata_turns: locks::Locks::default(),
            claims: Mutex::default(),
            changes: TaskTracker::new(),
            tokens,
            store,
            clock,
            settings,
        }
    }

    /// The tokens, and how they stand.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The present snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<snapshot::Snapshot> {
        self.published.snapshot()
    }

    /// The time by the clock that keys rotate by.
    #[must_use]
    pub fn now(&self) -> crate::domain::Timestamp {
        self.clock.now()
    }

    /// Makes `change` in the tenant's turn and to its end, even if the caller goes away: a call that is broken off must not leave
    /// half of itself to the timer. [`Keyrings::finish`] waits for it.
    async fn in_turn<T, F>(self: &Arc<Self>, tenant: &TenantId, change: impl FnOnce(Arc<Self>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        // Waited for by the caller: a change that has not begun goes with the caller who leaves.
        let turn = self.locks.turn(tenant).await?;
        let change = change(Arc::clone(self));
        let to_its_end = self.changes.spawn(async move {
            let _turn = turn;
            change.await
        });
        let done = to_its_end.await;
        done.unwrap_or_else(|panic| Err(Error::Internal(format!("a change did not come to its end: {panic}"))))
    }

    /// Commits a change, and tells the log what was done.
    async fn commit(&self, change: &Change) -> Result<(), StoreError> {
        self.store.commit(change).await?;
        for event in &change.events {
            let Event { action, detail, .. } = event;
            let tenant = event.tenant.as_ref().map(TenantId::as_str);
            let principals: Vec<String> = event.principals.iter().map(ToString::to_string).collect();
            // With `?`, so that what an issuer lets into `sub` stays on its line.
            let by = principals.join(" ");
            let algorithm = event.algorithm.map(Algorithm::name);
            let kid = event.kid.as_ref().map(Kid::as_str);
            tracing::info!(tenant, algorithm, kid, ?by, detail, "{action}");
        }
        Ok(())
    }

    /// Records of the administration log, as their rows have them.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn administration(&self, page: &EventPage) -> Result<Vec<EventRow>, Error> {
        Ok(self.store.events(page).await?)
    }

    /// Waits for the changes under way. None is begun afterwards by whoever calls this: the doors are shut first.
    pub async fn finish(&self) {
        self.changes.close();
        self.changes.wait().await;
    }

    fn lock_claims(&self) -> std::sync::MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A new id for a key's objects, drawn at random.
///
/// # Panics
/// If the operating system gives no random octets.
#[must_use]
pub fn new_object() -> ObjectId {
    let mut octets = [0; 16];
    getrandom::fill(&mut octets).expect("the operating system gives random octets");
    ObjectId::new(octets)
}
