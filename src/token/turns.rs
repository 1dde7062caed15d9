//! How many workers sign at the same time.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::available_parallelism;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{locked, sharing};

/// How many calls are looked at before it is said what the token does, and how many of them must say that it is a device: a machine
/// that stood still makes one or another look so.
const CALLS: u64 = 64;
const IDLE_MIN: u64 = 48;

/// A call that leaves the processor idle for so much of its time waits for something else, a device or a network.
const IDLE_PERCENT_MIN: u32 = 75;

/// Of short calls one of so many is looked at: to ask for the processor's time is a system call, which short ones would feel.
const LOOKED_AT: u32 = 4;
const SHORT: Duration = Duration::from_millis(1);

/// When a call takes so long, and so many times what it was estimated to take, others get what waits for it.
const STALL_MIN: Duration = Duration::from_millis(50);
const STALL_FACTOR: u32 = 10;

/// How long a call may take that is estimated to take `cost`, before it stands in others' way.
pub(super) fn stall_time(cost: Duration) -> Duration {
    STALL_MIN.max(cost.saturating_mul(STALL_FACTOR))
}

/// How many workers sign at the same time. A token in software computes in the workers themselves: more of them than the machine
/// has cores only take time from each other, so the others are spare, for when one hangs or ends. A token that is a device can do
/// with as many calls as it gets. Which it is shows in what the processor did meanwhile.
pub(super) struct Turns {
    turns: Arc<Semaphore>,
    /// Turns that there are besides, for a device.
    spare: usize,
    is_device: AtomicBool,
    seen: Mutex<Seen>,
}

/// What was seen of the calls since it was last said what the token does.
#[derive(Default)]
struct Seen {
    calls: u64,
    idle: u64,
}

/// Leave to sign beside the others, until it is dropped.
pub(super) type Turn = OwnedSemaphorePermit;

/// What a worker's calls cost the processor.
#[derive(Default)]
pub(super) struct Meter(u32);

/// A call that is under way; what the processor had done for this thread when it began, if that is looked at.
pub(super) struct Metered(Option<Duration>);

/// How many of so many workers sign at the same time, as long as the token is not known to be a device.
pub(super) fn at_first(workers: usize) -> usize {
    workers.min(available_parallelism().map_or(1, NonZeroUsize::get))
}

impl Turns {
    /// For so many workers.
    pub(super) fn new(workers: usize) -> Self {
        Self::of(workers, at_first(workers))
    }

    fn of(workers: usize, turns: usize) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(turns)),
            spare: workers - turns,
            is_device: AtomicBool::new(false),
            seen: Mutex::default(),
        }
    }

    /// A turn; `None` once there are no more.
    pub(super) async fn take(&self) -> Option<Turn> {
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// There are no more turns.
    pub(super) fn close(&self) {
        self.turns.close();
    }

    /// A call that was to take `cost` took so long, and the processor was busy with it for so long. Whether this shows that the token is a
    /// device, so that all workers sign from now on.
    #[must_use]
    pub(super) fn learn(&self, cost: Duration, took: Duration, busy: Duration) -> bool {
        // It stands for those that were not looked at.
        sharing::computed(if cost >= SHORT { busy } else { busy * LOOKED_AT });
        if self.is_device.load(Ordering::Relaxed) {
            return false;
        }
        let mut seen = locked(&self.seen);
        seen.calls += 1;
        seen.idle += u64::from(took.saturating_sub(busy) * 100 >= took * IDLE_PERCENT_MIN);
        if seen.calls < CALLS {
            return false;
        }
        let Seen { idle, .. } = std::mem::take(&mut *seen);
        let is_device = idle >= IDLE_MIN && !self.is_device.swap(true, Ordering::Relaxed);
        if is_device {
            self.turns.add_permits(self.spare);
        }
        is_device
    }
}

impl Meter {
    /// A call of this thread begins that takes so long, by estimate.
    pub(super) fn begin(&mut self, cost: Duration) -> Metered {
        self.0 = (self.0 + 1) % LOOKED_AT;
        Metered((self.0 == 1 || cost >= SHORT).then(cpu_time))
    }
}

impl Metered {
    /// For how long the processor was busy with it, if that was looked at.
    pub(super) fn end(self) -> Option<Duration> {
        self.0.map(|begun| cpu_time().saturating_sub(begun))
    }
}

/// What this thread has had of a processor.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(turns: &Turns, took_us: u64, busy_us: u64) -> bool {
        turns.learn(SHORT, Duration::from_micros(took_us), Duration::from_micros(busy_us))
    }

    fn turns_after(took_us: u64, busy_us: u64, calls: u64) -> usize {
        let turns = Turns::of(8, 2);
        let told = (0..calls).filter(|_| learn(&turns, took_us, busy_us)).count();
        assert!(told <= 1, "it is told once");
        turns.turns.available_permits()
    }

    #[test]
    fn a_device_gets_all_workers_and_a_token_in_software_one_for_each_core() {
        assert_eq!(turns_after(1000, 950, 1000), 2);
        // The core is shared with one who computes, too.
        assert_eq!(turns_after(1000, 450, 1000), 2);
        let turns = Turns::of(8, 2);
        for number in 0..1000 {
            assert!(!learn(&turns, if number % 64 == 0 { 10_000_000 } else { 110 }, 100));
        }
        assert_eq!(turns.turns.available_permits(), 2, "a machine stood still now and then");
        assert_eq!(turns_after(1000, 60, CALLS - 1), 2, "a few calls say nothing");
        assert_eq!(turns_after(1000, 60, CALLS), 8);
        assert_eq!(turns_after(1000, 60, 1000), 8, "once and for all");
        assert_eq!(at_first(1), 1);
    }

    #[test]
    fn a_thread_that_sleeps_is_not_busy_and_not_every_short_call_is_looked_at() {
        let mut meter = Meter::default();
        let asleep = meter.begin(SHORT);
        std::thread::sleep(Duration::from_millis(50));
        assert!(asleep.end().expect("the first call is looked at") < Duration::from_millis(25));
        let mut looked_at = |cost| (0..100).filter(|_| meter.begin(cost).end().is_some()).count();
        assert_eq!((looked_at(SHORT / 2), looked_at(SHORT)), (25, 100));
    }
}
