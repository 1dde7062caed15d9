//! Tenants whose records are not to be believed (R15): nothing is signed, published or done for them until their records are
//! good again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a record that was not believed is read again: an operator who has restored it sees it within seconds.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// Who is kept out, and why.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Mutex<BTreeMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    problem: String,
    looked: Instant,
}

impl Quarantine {
    /// Keeps a tenant out.
    pub(super) fn put(&self, tenant: &str, problem: &str) {
        let mut entries = self.entries();
        let known = entries.get(tenant).is_some_and(|entry| entry.problem == problem);
        if !known {
            tracing::error!(tenant, problem, "quarantined: nothing is signed or published for this tenant");
        }
        entries.insert(tenant.to_owned(), Entry { problem: problem.to_owned(), looked: Instant::now() });
    }

    /// Lets a tenant in again.
    pub(super) fn release(&self, tenant: &str) {
        if self.entries().remove(tenant).is_some() {
            tracing::warn!(tenant, "out of quarantine: its record is good again");
        }
    }

    /// Whether a tenant is kept out and was looked at a short while ago.
    pub(super) fn rests(&self, tenant: &str) -> bool {
        self.entries().get(tenant).is_some_and(|entry| entry.looked.elapsed() < RETRY_EVERY)
    }

    /// Whether nobody is kept out.
    pub(super) fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// Those of whom nothing is in the store, believed or not, any more.
    pub(super) fn gone(&self, is_there: impl Fn(&str) -> bool) -> Vec<String> {
        self.entries().keys().filter(|tenant| !is_there(tenant)).cloned().collect()
    }

    /// Everybody who is kept out, and why.
    pub(super) fn list(&self) -> BTreeMap<String, String> {
        self.entries().iter().map(|(tenant, entry)| (tenant.clone(), entry.problem.clone())).collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
