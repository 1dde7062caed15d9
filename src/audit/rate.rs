use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::Principal;

/// Records of one kind a second, over time: enough to tell who knocks and how. Those who prove nothing fill 200 MB an hour of
/// the disk at most.
const RECORDS_PER_SEC: u32 = 100;
/// Records that may come at once: what a client with a wrong certificate makes in its first moments.
const BURST_MAX: u32 = 500;

/// Callers with a bucket of their own, by the names that they proved to have. More than these are not refused in one second
/// in any house; those who come when all buckets are in use share one.
const CALLERS_MAX: usize = 256;

/// A rate for each caller: who is refused a thousand times a second must not hide anybody else. Who has proven nothing shares
/// one bucket with everybody like that, and takes nothing from those who have.
#[derive(Debug)]
pub(super) struct Rates {
    unproven: Rate,
    proven: Mutex<HashMap<Vec<Principal>, Rate>>,
    rest: Rate,
}

impl Rates {
    pub(super) fn new(now: Instant) -> Self {
        Self { unproven: Rate::new(now), proven: Mutex::default(), rest: Rate::new(now) }
    }

    /// Whether there is room for one more of this caller's now.
    pub(super) fn admits(&self, caller: &[Principal], now: Instant) -> bool {
        if caller.iter().all(|principal| *principal == Principal::Anonymous) {
            return self.unproven.admits(now);
        }
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = proven.get(caller) {
            return rate.admits(now);
        }
        if proven.len() >= CALLERS_MAX {
            // A bucket that has filled up again is as good as a new one.
            proven.retain(|_, rate| !rate.is_full(now));
            if proven.len() >= CALLERS_MAX {
                return self.rest.admits(now);
            }
        }
        proven.entry(caller.to_vec()).or_insert_with(|| Rate::new(now)).admits(now)
    }
}

/// A bucket that fills at a steady rate: whoever can be refused without proof must not be able to fill the disk.
#[derive(Debug)]
pub(super) struct Rate {
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    filled: Instant,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { bucket: Mutex::new(Bucket { left: BURST_MAX, filled: now }) }
    }

    /// Whether there is room for one more now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.fill(now);
        let admits = bucket.left > 0;
        bucket.left -= u32::from(admits);
        admits
    }

    fn is_full(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.fill(now);
        bucket.left == BURST_MAX
    }
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let one = Duration::from_secs(1) / RECORDS_PER_SEC;
        let due = now.saturating_duration_since(self.filled).as_nanos() / one.as_nanos();
        let due = u32::try_from(due).unwrap_or(BURST_MAX).min(BURST_MAX);
        if due > 0 {
            self.left = (self.left + due).min(BURST_MAX);
            // What is left of a step counts for the next one, unless the bucket is full.
            self.filled = if self.left == BURST_MAX { now } else { self.filled + one * due };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let rate = Rate::new(start);
        let admitted = |at: Duration| (0..1000).filter(|_| rate.admits(start + at)).count();
        assert_eq!(admitted(Duration::ZERO), 500);
        assert_eq!(admitted(Duration::from_millis(5)), 0);
        assert_eq!(admitted(Duration::from_millis(15)), 1);
        assert_eq!(admitted(Duration::from_millis(20)), 1);
        assert_eq!(admitted(Duration::from_millis(1020)), 100);
        assert_eq!(admitted(Duration::from_secs(3600)), 500);
    }

    #[test]
    fn nobody_takes_the_room_of_somebody_else() {
        let start = Instant::now();
        let rates = Rates::new(start);
        let caller = |name: usize| [Principal::Uri(format!("spiffe://a/{name}"))];
        let admitted = |who: &[Principal], at: Instant| (0..1000).filter(|_| rates.admits(who, at)).count();
        assert_eq!(admitted(&[], start), 500);
        assert_eq!(admitted(&[Principal::Anonymous], start), 0);
        for name in 0..CALLERS_MAX {
            assert_eq!(admitted(&caller(name), start), 500, "{name}");
        }
        // All buckets are in use: two more share one, and the first keeps its own.
        assert_eq!(admitted(&caller(1000), start), 500);
        assert_eq!(admitted(&caller(1001), start), 0);
        assert_eq!(admitted(&caller(0), start), 0);
        let later = start + Duration::from_secs(60);
        assert_eq!(admitted(&caller(1001), later), 500);
        assert_eq!(rates.proven.lock().unwrap().len(), 1);
    }
}
