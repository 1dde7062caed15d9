use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::calls::Shared;

/// What calls hold whose bodies have not come to their end, of all connections of a listener, in octets. The clients decide
/// how long it is held, so the sum is what must be bounded. Where it is over, the connection that has held most for longest
/// is cut: an honest one holds little, and for moments.
#[derive(Clone)]
pub(super) struct Budget(Arc<Spending>);

struct Spending {
    listener: &'static str,
    bytes_max: usize,
    bytes: AtomicUsize,
    next: AtomicU64,
    connections: Mutex<HashMap<u64, Weak<Shared>>>,
}

impl Budget {
    pub(super) fn new(listener: &'static str, bytes_max: usize) -> Self {
        let connections = Mutex::default();
        Self(Arc::new(Spending {
            listener,
            bytes_max,
            bytes: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            connections,
        }))
    }

    /// A number for a new connection, which makes itself known and takes itself out again.
    pub(super) fn number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn enter(&self, number: u64, connection: Weak<Shared>) {
        self.connections().insert(number, connection);
    }

    pub(super) fn leave(&self, number: u64) {
        self.connections().remove(&number);
    }

    /// Takes so much, which is to be given back, and says whether it was there.
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.0.bytes_max
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Cuts connections until what is taken is there. Nobody may have the state of one in hand who calls this.
    pub(super) fn make_room(&self) {
        // Taken out first: whoever is the last to hold one takes it out of the map.
        let connections: Vec<_> = self.connections().values().filter_map(Weak::upgrade).collect();
        while self.0.bytes.load(Ordering::Relaxed) > self.0.bytes_max {
            let most =
                connections.iter().map(|connection| (connection.held_for(), connection)).max_by_key(|most| most.0);
            let Some((1.., connection)) = most else { return };
            connection.cut();
        }
    }

    /// Counts calls that were refused, or a connection that was cut, for what they held.
    pub(super) fn count(&self, reason: &'static str) {
        let labels = [("listener", self.0.listener), ("reason", reason)];
        metrics::counter!("keyward_unfinished_calls_refused_total", &labels).increment(1);
    }

    pub(super) fn listener(&self) -> &'static str {
        self.0.listener
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Weak<Shared>>> {
        // A map is never left half changed.
        self.0.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
