//! Signing jobs that wait for a worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use event_listener::{Event, Listener as _, listener};
use tokio::sync::oneshot;

use super::{KeyRef, SignInput, TokenError};

/// Inputs that wait for a worker.
pub(super) struct SignJob {
    pub(super) key: Arc<KeyRef>,
    pub(super) inputs: Vec<SignInput>,
    pub(super) deadline: Instant,
    /// The token time that it is estimated to take.
    pub(super) cost: Duration,
    /// Whether a worker had it that could not do it.
    pub(super) given_away: bool,
    pub(super) answer: oneshot::Sender<Result<Vec<Vec<u8>>, TokenError>>,
}

impl SignJob {
    pub(super) fn new(
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
        answer: oneshot::Sender<Result<Vec<Vec<u8>>, TokenError>>,
    ) -> Self {
        Self { key: Arc::clone(key), inputs, deadline, cost: Duration::from_micros(500), given_away: false, answer }
    }
}

/// The jobs, first come first served, for workers that are threads or tasks.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// A job has come, or the queue was closed.
    changed: Event,
}

struct Waiting {
    jobs: VecDeque<SignJob>,
    depth_max: usize,
    /// Why nothing is taken on: the queue is closed, or nobody works at the moment.
    refusing: Option<TokenError>,
    closed: bool,
}

impl Queue {
    pub(super) fn new(depth_max: usize) -> Self {
        let waiting = Waiting { jobs: VecDeque::new(), depth_max, refusing: None, closed: false };
        Self { waiting: Mutex::new(waiting), changed: Event::new() }
    }

    /// Takes a job on, or says at once why not (R13).
    pub(super) fn push(&self, job: SignJob) -> Result<(), TokenError> {
        let mut waiting = self.lock();
        if let Some(reason) = &waiting.refusing {
            return Err(reason.clone());
        }
        if waiting.jobs.len() >= waiting.depth_max {
            return Err(TokenError::QueueFull);
        }
        waiting.jobs.push_back(job);
        drop(waiting);
        self.changed.notify(1);
        Ok(())
    }

    /// Gives back a job that a worker had taken and not begun: it is the next.
    pub(super) fn put_back(&self, job: SignJob) {
        let mut waiting = self.lock();
        match &waiting.refusing {
            Some(reason) => answer(job, Err(reason.clone())),
            None => waiting.jobs.push_front(job),
        }
        drop(waiting);
        self.changed.notify(1);
    }

    /// A worker has done a job in so much of the token's time.
    pub(super) fn worked(&self, _job: &SignJob, _took: Duration) {}

    /// The next job, if one waits.
    pub(super) fn try_next(&self) -> Option<SignJob> {
        self.lock().next()
    }

    /// The next job; `None` once the queue is closed. Blocks.
    pub(super) fn wait(&self) -> Option<SignJob> {
        loop {
            listener!(self.changed => changed);
            match self.poll() {
                Some(ended) => return ended,
                None => changed.wait(),
            }
        }
    }

    /// [`Queue::wait`] for tasks. Loses nothing when it is dropped.
    pub(super) async fn next(&self) -> Option<SignJob> {
        loop {
            listener!(self.changed => changed);
            match self.poll() {
                Some(ended) => return ended,
                None => changed.await,
            }
        }
    }

    /// Nobody works: what waits and what comes is answered with `reason`, until [`Queue::resume`].
    pub(super) fn refuse(&self, reason: &TokenError) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.refuse(reason);
        }
    }

    /// Somebody works again.
    pub(super) fn resume(&self) {
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.refusing = None;
        }
    }

    /// Answers what waits, and ends the workers.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.refuse(&super::gone());
        drop(waiting);
        self.changed.notify(usize::MAX);
    }

    /// A job, or the end; `None` if there is neither.
    fn poll(&self) -> Option<Option<SignJob>> {
        let mut waiting = self.lock();
        match waiting.next() {
            Some(job) => Some(Some(job)),
            None if waiting.closed => Some(None),
            None => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics while it holds the queue")
    }
}

impl Waiting {
    /// The next job whose caller is still there.
    fn next(&mut self) -> Option<SignJob> {
        loop {
            let job = self.jobs.pop_front()?;
            if !job.answer.is_closed() {
                return Some(job);
            }
        }
    }

    fn refuse(&mut self, reason: &TokenError) {
        for job in self.jobs.drain(..) {
            answer(job, Err(reason.clone()));
        }
        self.refusing = Some(reason.clone());
    }
}

/// Answers a job; a caller that has left needs no answer.
pub(super) fn answer(job: SignJob, result: Result<Vec<Vec<u8>>, TokenError>) {
    let _ = job.answer.send(result);
}
