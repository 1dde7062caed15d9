use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::auth::Ours;
use crate::domain::Kid;
use crate::keyring::snapshot::Snapshot;

/// Whether Keyward itself has a key, remembered for as long as the snapshot is the same: there may be thousands of tenants,
/// and each call with a JWT asks.
#[derive(Default)]
pub(super) struct Served(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Weak, because who holds a snapshot holds its signers, and a revoked one must come to its end (R10).
    snapshot: Weak<Snapshot>,
    /// As many as the issuer has keys.
    keys: HashMap<Kid, Ours>,
}

impl Served {
    /// Whether some tenant has or had the key with this thumbprint, whatever its state and the tenant's.
    pub(super) fn whose(&self, thumbprint: &Kid, snapshot: &Arc<Snapshot>) -> Ours {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(known.snapshot.as_ptr(), Arc::as_ptr(snapshot)) {
            *known = Known { snapshot: Arc::downgrade(snapshot), keys: HashMap::new() };
        }
        if let Some(whose) = known.keys.get(thumbprint) {
            return *whose;
        }
        let whose = Ours::as_seen(snapshot.has_served(thumbprint), snapshot.has_unseen());
        known.keys.insert(thumbprint.clone(), whose);
        whose
    }
}
