use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::Unwritten;
use crate::domain::Event;
use crate::tlog::Tip;

/// Events that may wait for the writer: nearly a second of signatures at the fastest token known, and some 8 MB.
const EVENTS_MAX: usize = 16_384;

/// Events that are written together, at most: some 500 kB.
const BATCH_MAX: usize = 1024;

/// How long events that nobody waits for are gathered, so that the writer does not wake for each signature: the core that it would
/// take is the one that signs.
const GATHER: Duration = Duration::from_millis(20);

/// With so many it does not wait for more: to write them takes 0.2 ms, the time of some of the shortest signatures, and what is signed
/// meanwhile waits for no longer, unless the writer was held up.
const GATHERED: usize = 128;

/// Told when the event is on the disk, or cannot get there.
pub(super) type Acknowledge = oneshot::Sender<Result<(), Unwritten>>;

/// Told where the log ends, once all of it is on the disk.
pub(super) type TellTip = oneshot::Sender<Result<Tip, Unwritten>>;

/// From the calls to the writer: bounded, in order.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    room: Notify,
    /// [`GATHER`], but in tests, which would else have to watch the clock.
    gather: Duration,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Queued>,
    tips: Vec<TellTip>,
    /// Somebody waits for what is in here.
    urgent: bool,
    /// The writer sleeps, and does not just gather.
    idle: bool,
    /// It had much to write the last time.
    busy: bool,
    closing: bool,
}

/// An event on its way.
pub(super) struct Queued {
    pub(super) event: Event,
    pub(super) acknowledge: Option<Acknowledge>,
}

/// What the writer does next.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) events: Vec<Queued>,
    pub(super) tips: Vec<TellTip>,
    /// There is nothing after this.
    pub(super) closing: bool,
}

impl Default for Queue {
    fn default() -> Self {
        Self { waiting: Mutex::default(), wake: Condvar::new(), room: Notify::new(), gather: GATHER }
    }
}

impl Queue {
    /// Puts an event into the queue, or gives it back if there is no room.
    pub(super) fn push(&self, queued: Queued) -> Result<(), Box<Queued>> {
        let mut waiting = self.lock();
        if waiting.events.len() >= EVENTS_MAX || waiting.closing {
            return Err(Box::new(queued));
        }
        let urgent = queued.acknowledge.is_some();
        waiting.urgent |= urgent;
        waiting.events.push_back(queued);
        let wake = urgent || waiting.idle || waiting.events.len() == GATHERED;
        waiting.idle &= !wake;
        drop(waiting);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Waits until the writer has taken some.
    pub(super) async fn room(&self) {
        self.room.notified().await;
    }

    /// Asks where the log ends, after all that is in the queue.
    pub(super) fn ask_tip(&self, tell: TellTip) {
        let mut waiting = self.lock();
        waiting.tips.push(tell);
        waiting.urgent = true;
        drop(waiting);
        self.wake.notify_one();
    }

    /// Takes no more events; the writer ends once it has written all.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closing = true;
        waiting.urgent = true;
        drop(waiting);
        self.wake.notify_one();
    }

    /// For the writer: the next events, waited for until `due`; none where those that it expected do not come.
    pub(super) fn take(&self, due: Instant) -> Batch {
        let mut waiting = self.lock();
        // One who has much to write gathers at once: to be woken for the first event, and again for all, would be twice.
        if waiting.events.is_empty() && !waiting.urgent && !waiting.busy {
            waiting.idle = true;
            let wait = due.saturating_duration_since(Instant::now());
            let asleep = |waiting: &mut Waiting| waiting.events.is_empty() && !waiting.urgent;
            waiting = self.wake.wait_timeout_while(waiting, wait, asleep).unwrap_or_else(PoisonError::into_inner).0;
            waiting.idle = false;
        }
        // Also after a sleep: else a caller with one call at a time would wake the writer for each.
        if !waiting.urgent && (waiting.busy || !waiting.events.is_empty()) {
            let few = |waiting: &mut Waiting| !waiting.urgent && waiting.events.len() < GATHERED;
            waiting = self.wake.wait_timeout_while(waiting, self.gather, few).unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = waiting.events.len().min(BATCH_MAX);
        waiting.busy = count >= GATHERED;
        let mut batch = Batch { events: waiting.events.drain(..count).collect(), ..Batch::default() };
        // Who asks where the log ends is answered after the events that were there before.
        if waiting.events.is_empty() {
            batch.tips = std::mem::take(&mut waiting.tips);
            batch.closing = waiting.closing;
            waiting.urgent = false;
        }
        drop(waiting);
        self.room.notify_waiters();
        batch
    }

    /// For a writer that cannot write: those who wait for an answer, whose events stay; and whether it is to end. Waits `pause`
    /// first.
    pub(super) fn give_up_after(&self, pause: Duration) -> (Vec<Acknowledge>, Vec<TellTip>, bool) {
        let waiting = self.lock();
        let going_on = |waiting: &mut Waiting| !waiting.closing;
        let mut waiting =
            self.wake.wait_timeout_while(waiting, pause, going_on).unwrap_or_else(PoisonError::into_inner).0;
        let acknowledge = waiting.events.iter_mut().filter_map(|queued| queued.acknowledge.take()).collect();
        (acknowledge, std::mem::take(&mut waiting.tips), waiting.closing)
    }

    /// How many events wait.
    pub(super) fn len(&self) -> usize {
        self.lock().events.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;
    use crate::domain::{Caller, Timestamp};

    const LONG: Duration = Duration::from_secs(3600);

    fn push(queue: &Queue, count: usize) {
        for _ in 0..count {
            let event = Event::new(Timestamp::now(), "sign", &Caller::timer());
            assert!(queue.push(Queued { event, acknowledge: None }).is_ok(), "there is room");
        }
    }

    #[test]
    fn who_gathers_takes_what_is_there_once_it_is_enough() {
        let queue = Arc::new(Queue { gather: LONG, ..Queue::default() });
        let (tell, taken) = mpsc::channel();
        let writer = Arc::clone(&queue);
        thread::spawn(move || {
            loop {
                let batch = writer.take(Instant::now() + LONG);
                if tell.send(batch.events.len()).is_err() || batch.closing {
                    break;
                }
            }
        });
        let next = || taken.recv_timeout(Duration::from_secs(20));
        for from in ["sleep", "gathering"] {
            push(&queue, GATHERED);
            assert_eq!(next(), Ok(GATHERED), "from {from}");
        }
        push(&queue, 1);
        queue.close();
        assert_eq!(next(), Ok(1), "nobody waits for more than there will be");
    }

    #[test]
    fn who_expects_more_than_comes_goes_on() {
        let queue = Queue { gather: Duration::ZERO, ..Queue::default() };
        push(&queue, GATHERED);
        let lengths = [(); 2].map(|()| queue.take(Instant::now() + LONG).events.len());
        assert_eq!(lengths, [GATHERED, 0]);
    }
}
