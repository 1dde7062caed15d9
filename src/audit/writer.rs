use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::call_log::Shared;
use super::queue::{Batch, Queued};
use super::segments::Segments;
use super::{OnFailure, Unwritten};
use crate::domain::{Caller, Event, Timestamp};

/// How long what nobody waits for stays away from the disk: what a machine that loses its power loses.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Octets that are not on the disk, at most: they stay in memory until they are.
const UNSYNCED_BYTES_MAX: usize = 4 << 20;

/// How long the writer sleeps when there is nothing to do: a refusal that was only counted is told of by then.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long the writer waits until it tries again after a failure: room on a disk is made by people.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// From the queue to the disk, on a thread of its own.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) segments: Segments,
    /// When everything was on the disk last.
    pub(super) synced: Instant,
    /// Last, so that the log's lock is free when its end is told.
    pub(super) _end: TellEnd,
}

impl Writer {
    /// Writes until the queue is closed.
    pub(super) fn run(mut self) {
        loop {
            let batch = self.shared.queue.take(self.due());
            if !self.write(batch) {
                return;
            }
        }
    }

    /// When there is something to do although nothing comes.
    fn due(&self) -> Instant {
        let sleeps = self.segments.unsynced_len() == 0 && !self.shared.has_untold();
        if sleeps { Instant::now() + LOOK_EVERY } else { self.synced + SYNC_EVERY }
    }

    /// Writes a batch, and says whether to go on.
    fn write(&mut self, batch: Batch) -> bool {
        let Batch { events, tips, closing } = batch;
        let mut acknowledge = Vec::new();
        for Queued { event, acknowledge: waiting } in events {
            self.segments.append(&event);
            acknowledge.extend(waiting);
        }
        let due = self.synced.elapsed() >= SYNC_EVERY;
        if due || closing {
            self.tell_what_is_missing();
        }
        self.shared.size.store(self.segments.tip().size(), Ordering::Relaxed);
        let waited_for = !acknowledge.is_empty() || !tips.is_empty() || closing;
        let sync = waited_for || due || self.segments.unsynced_len() >= UNSYNCED_BYTES_MAX;
        let mut outcome = self.put_on_disk(sync);
        if let Err(error) = &outcome {
            let unwritten = self.shared.fail(error.to_string());
            acknowledge.drain(..).for_each(|waiting| drop(waiting.send(self.in_spite_of(&unwritten))));
            if !closing {
                outcome = self.retry(&unwritten);
            }
            if outcome.is_err() {
                self.give_up(&unwritten);
            }
        }
        let go_on = outcome.is_ok() && !closing;
        if outcome.is_ok() {
            self.shared.recover();
        }
        // Whoever waits has gone if these are not received.
        acknowledge.into_iter().for_each(|waiting| drop(waiting.send(Ok(()))));
        let tip = match outcome {
            Ok(()) => Ok(self.segments.tip().clone()),
            Err(error) => Err(Unwritten::new(error.to_string())),
        };
        tips.into_iter().for_each(|tell| drop(tell.send(tip.clone())));
        go_on
    }

    fn put_on_disk(&mut self, sync: bool) -> io::Result<()> {
        if !sync {
            return self.segments.write();
        }
        self.segments.sync()?;
        self.synced = Instant::now();
        Ok(())
    }

    /// Tries until it succeeds or the log is closed. What comes meanwhile stays in the queue, as far as there is room.
    fn retry(&mut self, unwritten: &Unwritten) -> io::Result<()> {
        loop {
            let (acknowledge, tips, closing) = self.shared.queue.give_up_after(RETRY_EVERY);
            acknowledge.into_iter().for_each(|waiting| drop(waiting.send(self.in_spite_of(unwritten))));
            tips.into_iter().for_each(|tell| drop(tell.send(Err(unwritten.clone()))));
            match self.put_on_disk(true) {
                Ok(()) => return Ok(()),
                Err(error) if closing => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// What a caller is told whose event is not on the disk.
    fn in_spite_of(&self, unwritten: &Unwritten) -> Result<(), Unwritten> {
        match self.shared.on_failure {
            OnFailure::Refuse => Err(unwritten.clone()),
            OnFailure::Allow => Ok(()),
        }
    }

    /// Records for those that there are not.
    fn tell_what_is_missing(&mut self) {
        let kinds = [("refusals_not_recorded", &self.shared.suppressed), ("events_lost", &self.shared.lost)];
        for (action, count) in kinds {
            let count = count.swap(0, Ordering::Relaxed);
            if count > 0 {
                let event = Event::new(Timestamp::now(), action, &Caller::timer());
                self.segments.append(&Event { detail: count.to_string(), ..event });
            }
        }
    }

    fn give_up(&self, unwritten: &Unwritten) {
        let waiting = self.shared.queue.len();
        let octets = self.segments.unsynced_len();
        tracing::error!(%unwritten, waiting, octets, "the service stops, and the last records of the audit log are lost");
    }
}

/// Tells that the writer has ended, however it did.
pub(super) struct TellEnd(pub(super) Arc<Shared>);

impl Drop for TellEnd {
    fn drop(&mut self) {
        self.0.end();
    }
}
