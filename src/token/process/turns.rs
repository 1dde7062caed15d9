use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::available_parallelism;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many receipts are looked at before it is said what the token does, and how many of them must say that it is a device: a machine
/// that stood still makes one or another look so.
const RECEIPTS: u64 = 64;
const IDLE_MIN: u64 = 48;

/// A call that leaves the processor idle for so much of its time waits for something else, a device or a network.
const IDLE_PERCENT_MIN: u64 = 75;

/// How many processes sign at the same time. A token in software computes in the processes themselves: more of them than the machine
/// has cores only take time from each other, so the others are spare, for when one hangs or ends. A token that is a device can do
/// with as many calls as it gets. Which it is shows in what the processor did meanwhile.
pub(super) struct Turns {
    turns: Arc<Semaphore>,
    /// Turns that there are besides, for a device.
    spare: usize,
    is_device: AtomicBool,
    receipts: AtomicU64,
    idle: AtomicU64,
}

impl Turns {
    /// For so many processes.
    pub(super) fn new(processes: usize) -> Self {
        Self::on(processes, available_parallelism().map_or(1, NonZeroUsize::get))
    }

    fn on(processes: usize, cores: usize) -> Self {
        let turns = processes.min(cores);
        Self {
            turns: Arc::new(Semaphore::new(turns)),
            spare: processes - turns,
            is_device: AtomicBool::new(false),
            receipts: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        }
    }

    /// A turn, for as long as it is kept.
    pub(super) async fn take(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.turns).acquire_owned().await.expect("nobody closes it")
    }

    /// A call took so long, of which the processor was busy for so long.
    pub(super) fn learn(&self, took_us: u64, cpu_us: u64) {
        if self.is_device.load(Ordering::Relaxed) {
            return;
        }
        if took_us.saturating_sub(cpu_us) * 100 >= took_us * IDLE_PERCENT_MIN {
            self.idle.fetch_add(1, Ordering::Relaxed);
        }
        if self.receipts.fetch_add(1, Ordering::Relaxed) + 1 < RECEIPTS {
            return;
        }
        self.receipts.store(0, Ordering::Relaxed);
        if self.idle.swap(0, Ordering::Relaxed) >= IDLE_MIN && !self.is_device.swap(true, Ordering::Relaxed) {
            self.turns.add_permits(self.spare);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns_after(took_us: u64, cpu_us: u64, receipts: u64) -> usize {
        let turns = Turns::on(8, 2);
        (0..receipts).for_each(|_| turns.learn(took_us, cpu_us));
        turns.turns.available_permits()
    }

    #[test]
    fn a_device_gets_all_processes_and_a_token_in_software_one_for_each_core() {
        assert_eq!(turns_after(1000, 950, 1000), 2);
        // The core is shared with one who computes, too.
        assert_eq!(turns_after(1000, 450, 1000), 2);
        let turns = Turns::on(8, 2);
        (0..1000).for_each(|number| turns.learn(if number % 64 == 0 { 10_000_000 } else { 110 }, 100));
        assert_eq!(turns.turns.available_permits(), 2, "a machine stood still now and then");
        assert_eq!(turns_after(1000, 60, RECEIPTS - 1), 2, "a few calls say nothing");
        assert_eq!(turns_after(1000, 60, RECEIPTS), 8);
        assert_eq!(turns_after(1000, 60, 1000), 8, "once and for all");
        assert_eq!(Turns::on(1, 16).turns.available_permits(), 1);
    }
}
