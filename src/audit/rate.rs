use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Records of one kind a second, over time: enough to tell who knocks and how, and 20 MB an hour of the disk at most.
const RECORDS_PER_SEC: u32 = 100;
/// Records that may come at once: what a client with a wrong certificate makes in its first moments.
const BURST_MAX: u32 = 500;

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
        let one = Duration::from_secs(1) / RECORDS_PER_SEC;
        let due = now.saturating_duration_since(bucket.filled).as_nanos() / one.as_nanos();
        let due = u32::try_from(due).unwrap_or(BURST_MAX).min(BURST_MAX);
        if due > 0 {
            bucket.left = (bucket.left + due).min(BURST_MAX);
            // What is left of a step counts for the next one, unless the bucket is full.
            bucket.filled = if bucket.left == BURST_MAX { now } else { bucket.filled + one * due };
        }
        let admits = bucket.left > 0;
        bucket.left -= u32::from(admits);
        admits
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
}
