use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::Tokens;
use super::snapshot::{Signer, Snapshot, TenantView};
use crate::domain::{Kid, TenantId};
use crate::jose::BadPublicKey;
use crate::store::TenantRecord;

/// The snapshot that this replica signs and publishes from, and how old it is.
pub(super) struct Published {
    base_url: String,
    tokens: Arc<Tokens>,
    snapshot: ArcSwap<Snapshot>,
    /// Writers take turns, so that none undoes another's change; readers never wait.
    writing: Mutex<()>,
    /// Signers that the snapshot has let go and a request may still hold (R10).
    let_go: Mutex<Vec<Weak<Signer>>>,
    /// Tenants of which something changed since the timer asked.
    touched: Mutex<BTreeSet<TenantId>>,
    started: Instant,
    /// When the store last confirmed the snapshot: milliseconds after `started`, plus one; 0: never.
    confirmed_ms: AtomicU64,
}

impl Published {
    pub(super) fn new(base_url: String, tokens: Arc<Tokens>) -> Self {
        Self {
            base_url,
            tokens,
            snapshot: ArcSwap::default(),
            writing: Mutex::new(()),
            let_go: Mutex::default(),
            touched: Mutex::default(),
            started: Instant::now(),
            confirmed_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// How long ago the store confirmed the snapshot.
    pub(super) fn age(&self) -> Duration {
        match self.confirmed_ms.load(Ordering::Acquire) {
            0 => Duration::MAX,
            confirmed => self.started.elapsed().saturating_sub(Duration::from_millis(confirmed - 1)),
        }
    }

    /// The snapshot agreed with the store at `asked`, the moment before the store was read.
    pub(super) fn confirm(&self, asked: Instant) {
        let since = asked.saturating_duration_since(self.started).as_millis();
        self.confirmed_ms.fetch_max(u64::try_from(since).unwrap_or(u64::MAX - 1) + 1, Ordering::AcqRel);
    }

    /// Publishes `record`, unless something later of the tenant is published already.
    pub(super) fn publish(&self, record: &TenantRecord) -> Result<(), BadPublicKey> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        let earlier = snapshot.view(&record.tenant.id);
        // Or the same: who reads a record again does not make its documents again.
        if earlier.is_some_and(|view| view.record == *record || is_later(&view.record, record)) {
            return Ok(());
        }
        let token = self.tokens.of(&record.tenant);
        let view = TenantView::new(record.clone(), token, &self.base_url, earlier.map(AsRef::as_ref))?;
        let kept = |old: &&Arc<Signer>| view.signers.iter().any(|signer| Arc::ptr_eq(signer, old));
        let let_go = earlier.iter().flat_map(|view| &view.signers).filter(|old| !kept(old)).map(Arc::downgrade);
        self.lock_let_go().extend(let_go);
        self.put(snapshot.with(view), &record.tenant.id);
        Ok(())
    }

    /// The tenants of which something changed since this was asked last.
    pub(super) fn take_touched(&self) -> BTreeSet<TenantId> {
        std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes a snapshot that differs from the one before in this tenant. In the writer's turn.
    fn put(&self, snapshot: Snapshot, changed: &TenantId) {
        self.snapshot.store(Arc::new(snapshot));
        // Afterwards, so that whoever takes it up finds the new snapshot.
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(changed.clone());
    }

    /// Whether a request may still sign with this key, although the snapshot has let it go.
    pub(super) fn is_held(&self, kid: &Kid) -> bool {
        self.lock_let_go().iter().any(|signer| signer.upgrade().is_some_and(|signer| signer.kid == *kid))
    }

    /// Whether a request may still sign with any key that the snapshot has let go.
    pub(super) fn holds_any(&self) -> bool {
        !self.lock_let_go().is_empty()
    }

    fn lock_let_go(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Signer>>> {
        let mut let_go = self.let_go.lock().unwrap_or_else(PoisonError::into_inner);
        let_go.retain(|signer| signer.strong_count() > 0);
        let_go
    }

    /// Publishes no tenant of this id any more, and says so to whoever asks for it.
    pub(super) fn quarantine(&self, tenant: &TenantId) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        if !snapshot.is_quarantined(tenant) {
            if let Some(view) = snapshot.view(tenant) {
                self.lock_let_go().extend(view.signers.iter().map(Arc::downgrade));
            }
            self.put(snapshot.quarantining(tenant), tenant);
        }
    }

    /// Publishes no tenant of this id any more.
    pub(super) fn withdraw(&self, tenant: &TenantId) {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        if snapshot.view(tenant).is_some() || snapshot.is_quarantined(tenant) {
            if let Some(view) = snapshot.view(tenant) {
                self.lock_let_go().extend(view.signers.iter().map(Arc::downgrade));
            }
            self.put(snapshot.without(tenant), tenant);
        }
    }
}

/// Whether `shown` holds a change that `offered` does not: revisions only grow while a tenant exists. A tenant made anew
/// under an old id has a later create_time.
fn is_later(shown: &TenantRecord, offered: &TenantRecord) -> bool {
    if shown.tenant.create_time != offered.tenant.create_time {
        return shown.tenant.create_time > offered.tenant.create_time;
    }
    let newer = |keyring: &crate::domain::Keyring| {
        let same = offered.keyrings.iter().find(|other| other.algorithm == keyring.algorithm);
        same.is_none_or(|other| other.revision < keyring.revision)
    };
    shown.tenant.revision > offered.tenant.revision || shown.keyrings.iter().any(newer)
}
