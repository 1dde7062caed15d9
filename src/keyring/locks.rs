use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::Error;
use crate::domain::TenantId;

/// One lock a tenant: changes of its keyrings take turns in this process, and so do requests for a signature that one of them
/// makes for all. Between processes, compare-and-swap decides; the locks only spare this process from racing itself.
#[derive(Debug, Default)]
pub(super) struct Locks {
    tenants: Mutex<HashMap<TenantId, Arc<tokio::sync::Mutex<()>>>>,
}

/// Most calls that wait for one tenant: people and schedules make a handful, a flood is turned away at once (R13).
const WAITING_MAX: usize = 256;

impl Locks {
    /// Waits for the tenant's turn.
    ///
    /// # Errors
    /// [`Error::Limit`] when too many wait already.
    pub(super) async fn turn(&self, tenant: &TenantId) -> Result<OwnedMutexGuard<()>, Error> {
        let lock = {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            // Locks that nobody holds or waits for are forgotten, so that the map is no larger than the work under way.
            tenants.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(tenants.entry(tenant.clone()).or_default())
        };
        if Arc::strong_count(&lock) > WAITING_MAX {
            return Err(Error::Limit {
                reason: "TENANT_CALLS_WAITING",
                message: format!("more than {WAITING_MAX} such calls for this tenant are waiting; retry with a pause"),
                limit: None,
                retry_time: None,
            });
        }
        Ok(lock.lock_owned().await)
    }
}
