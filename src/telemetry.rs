//! What operators see besides the log: warnings.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is not as it should be and yet no reason to take the service out of use, by the configuration key that it is about.
/// Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<BTreeMap<String, String>>>);

impl Warnings {
    /// Says what is wrong, in words for people who may not see paths and contents.
    pub fn set(&self, key: &str, problem: &str) {
        self.kept().insert(key.to_owned(), problem.to_owned());
    }

    /// Says that all is well again.
    pub fn clear(&self, key: &str) {
        self.kept().remove(key);
    }

    /// All that is wrong at this moment.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, String> {
        self.kept().clone()
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // A map is never left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
