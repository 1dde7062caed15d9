//! Signing jobs that wait for a worker: fair between tenants, bounded, and refused early.

mod costs;
mod line;
mod lines;
#[cfg(test)]
mod properties;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use event_listener::{Event, Listener as _, listener};
use metrics::{Gauge, Histogram, counter, gauge, histogram};
use tokio::sync::oneshot;

use super::{KeyRef, SignInput, TokenError};
use crate::domain::{Algorithm, TokenName};
use costs::Costs;
use lines::{Because, Lines, Refused, Taken};

/// How long one job may hold a worker, by estimate: a batch is cut into such jobs, and between them others have their turns. Some
/// hundred times what handing over costs, and not much more than one signature of a large RSA key.
const JOB_COST_MAX: Duration = Duration::from_millis(5);

/// How long any answer may be kept where more is to be signed at once: a fraction of what a caller notices, and several of the
/// shortest signatures, each of which would else wake the serving thread for itself.
const KEPT_MIN: Duration = Duration::from_micros(500);

/// Least pause that a caller is asked for: shorter is not told apart from at once.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(1);

/// Inputs that wait for a worker.
#[derive(Debug)]
pub(super) struct SignJob {
    pub(super) key: Arc<KeyRef>,
    pub(super) inputs: Vec<SignInput>,
    pub(super) deadline: Instant,
    /// The token time that it will take, by estimate.
    pub(super) cost: Duration,
    /// When it came.
    pub(super) pushed: Instant,
    /// The token time of what its tenant waited for beside it when a worker took it: what was behind it in its line, and what a
    /// process had of the same tenant already.
    pub(super) beside: Duration,
    /// Whether a worker had it that could not do it.
    pub(super) given_away: bool,
    pub(super) answer: Answer,
}

impl SignJob {
    /// How long its answer may be kept for others to travel with it: three quarters of what its tenant waits for with it, so that a
    /// flood's answers travel together, while they travel there is still something to sign, and a single one is not held up by others.
    pub(super) fn keep_max(&self) -> Duration {
        (self.beside * 3 / 4).clamp(KEPT_MIN, JOB_COST_MAX)
    }
}

/// Where the signatures of a job's inputs go, in order.
pub(super) type Answer = oneshot::Sender<Signatures>;

/// What became of a job.
pub(super) type Signatures = Result<Vec<Vec<u8>>, TokenError>;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Most requests of tenants, and as many of the service's own.
    pub(super) depth_max: usize,
    /// How long what waits may take, by estimate.
    pub(super) wait_max: Duration,
    /// How many work at the same time.
    pub(super) workers: usize,
}

/// The jobs, for workers that are threads or tasks.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    costs: Costs,
    meters: Arc<Meters>,
    wait_max: Duration,
    /// A job has come, or the queue was closed.
    changed: Event,
    /// Jobs that have come and for which nobody was called yet.
    uncalled: AtomicUsize,
}

struct Waiting {
    lines: Lines,
    meters: Arc<Meters>,
    /// Why nothing is taken on: the queue is closed, or nobody works at the moment.
    refusing: Option<TokenError>,
    closed: bool,
}

/// What is told of the queue. Kept: no name is looked up while jobs come and go.
struct Meters {
    token: String,
    requests: Gauge,
    seconds: Gauge,
    waited: Histogram,
    /// By an algorithm's place in ALL. Made at its first job: a token signs with few.
    took: [OnceLock<Histogram>; Algorithm::ALL.len()],
}

impl Meters {
    fn new(token: &TokenName) -> Self {
        let token = token.to_string();
        Self {
            requests: gauge!("keyward_token_queue_requests", "token" => token.clone()),
            seconds: gauge!("keyward_token_queue_seconds", "token" => token.clone()),
            waited: histogram!("keyward_token_queue_duration_seconds", "token" => token.clone()),
            took: [const { OnceLock::new() }; Algorithm::ALL.len()],
            token,
        }
    }

    fn worked(&self, algorithm: Algorithm, took: Duration) {
        let make = || {
            let labels = [("token", self.token.clone()), ("algorithm", algorithm.name().to_owned())];
            histogram!("keyward_token_work_duration_seconds", &labels)
        };
        // Declared in the order of ALL.
        self.took[algorithm as usize].get_or_init(make).record(took.as_secs_f64());
    }

    /// Counts a refusal, and says when to come again.
    fn refused(&self, because: Because, retry_after: Duration) -> TokenError {
        let labels = [("token", self.token.clone()), ("reason", because.name().to_owned())];
        counter!("keyward_token_refused_total", &labels).increment(1);
        TokenError::QueueFull { retry_after: retry_after.max(RETRY_AFTER_MIN) }
    }
}

impl Queue {
    /// The queue of the token of this name.
    pub(super) fn new(token: &TokenName, limits: Limits) -> Self {
        let meters = Arc::new(Meters::new(token));
        let waiting = Waiting { lines: Lines::new(limits), meters: Arc::clone(&meters), refusing: None, closed: false };
        Self {
            waiting: Mutex::new(waiting),
            costs: Costs::new(),
            meters,
            wait_max: limits.wait_max,
            changed: Event::new(),
            uncalled: AtomicUsize::new(0),
        }
    }

    /// Takes a request on, or says at once why not (R13). It is cut into jobs; each is answered for itself, in order. Workers are
    /// called by [`Queue::call`], so that one call does for all that came with it.
    pub(super) fn push(
        &self,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<oneshot::Receiver<Signatures>>, TokenError> {
        let now = Instant::now();
        let (jobs, answers) = self.cut(key, inputs, deadline, now);
        let displaced = self.lock().admit(jobs, now)?;
        self.uncalled.fetch_add(answers.len(), Ordering::Release);
        for job in displaced {
            answer(job, Err(self.meters.refused(Because::Displaced, self.wait_max)));
        }
        Ok(answers)
    }

    /// Calls as many workers as jobs have come since the last time.
    pub(super) fn call(&self) {
        let jobs = self.uncalled.swap(0, Ordering::AcqRel);
        if jobs > 0 {
            // Additional: one who was called for the job before is not enough for this one, too.
            self.changed.notify_additional(jobs);
        }
    }

    /// Gives back a job that a worker had taken and not begun: it is the next of its line.
    pub(super) fn put_back(&self, job: SignJob) {
        let mut waiting = self.lock();
        match waiting.refusing.clone() {
            Some(reason) => {
                drop(waiting);
                answer(job, Err(reason));
            }
            None => {
                waiting.lines.put_back(job);
                drop(waiting);
                self.changed.notify_additional(1);
            }
        }
    }

    /// The next job, if one waits.
    pub(super) fn try_next(&self) -> Option<SignJob> {
        let now = Instant::now();
        let Taken { job, late } = self.lock().take(now);
        for late in late {
            answer(late, Err(TokenError::Late));
        }
        if let Some(job) = &job {
            let waited = now.saturating_duration_since(job.pushed);
            self.meters.waited.record(waited.as_secs_f64());
        }
        job
    }

    /// The next job; `None` once the queue is closed. Blocks.
    pub(super) fn wait(&self) -> Option<SignJob> {
        loop {
            // Whoever finds work need not be called.
            if let Some(ended) = self.poll() {
                return ended;
            }
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
            if let Some(ended) = self.poll() {
                return ended;
            }
            listener!(self.changed => changed);
            match self.poll() {
                Some(ended) => return ended,
                None => changed.await,
            }
        }
    }

    /// A worker has signed so many inputs in so much of the token's time: what others will take is estimated by it.
    pub(super) fn worked(&self, key: &KeyRef, inputs: u32, took: Duration) {
        self.costs.learn(key, inputs, took);
        self.meters.worked(key.algorithm, took);
    }

    /// All of so many workers sign at the same time.
    pub(super) fn all_work(&self, workers: usize) {
        tracing::info!(token = self.meters.token, workers, "the token is a device: all workers sign at the same time");
        self.lock().lines.all_work(workers);
    }

    /// Nobody works: what waits and what comes is answered with `reason`, until [`Queue::resume`].
    pub(super) fn refuse(&self, reason: &TokenError) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        let jobs = waiting.refuse(reason);
        drop(waiting);
        answer_all(jobs, reason);
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
        let jobs = waiting.refuse(&super::gone());
        drop(waiting);
        answer_all(jobs, &super::gone());
        self.changed.notify(usize::MAX);
    }

    /// A job, or the end; `None` if there is neither.
    fn poll(&self) -> Option<Option<SignJob>> {
        match self.try_next() {
            Some(job) => Some(Some(job)),
            None if self.lock().closed => Some(None),
            None => None,
        }
    }

    /// Jobs of at most [`JOB_COST_MAX`], and where they are answered.
    fn cut(
        &self,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
        pushed: Instant,
    ) -> (Vec<SignJob>, Vec<oneshot::Receiver<Signatures>>) {
        let each = self.costs.of(key);
        let at_once = usize::try_from(JOB_COST_MAX.as_nanos() / each.as_nanos()).unwrap_or(usize::MAX).max(1);
        let mut inputs = inputs.into_iter();
        let job = || {
            let inputs: Vec<_> = inputs.by_ref().take(at_once).collect();
            let cost = each.saturating_mul(u32::try_from(inputs.len()).unwrap_or(u32::MAX));
            let (answer, answered) = oneshot::channel();
            let key = Arc::clone(key);
            let job =
                SignJob { key, inputs, deadline, cost, pushed, beside: Duration::ZERO, given_away: false, answer };
            (!job.inputs.is_empty()).then_some((job, answered))
        };
        std::iter::from_fn(job).unzip()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics while it holds the queue")
    }
}

impl Waiting {
    fn admit(&mut self, jobs: Vec<SignJob>, now: Instant) -> Result<Vec<SignJob>, TokenError> {
        if let Some(reason) = &self.refusing {
            return Err(reason.clone());
        }
        let displaced = self
            .lines
            .admit(jobs, now)
            .map_err(|Refused { because, retry_after }| self.meters.refused(because, retry_after))?;
        self.tell();
        Ok(displaced)
    }

    fn take(&mut self, now: Instant) -> Taken {
        let taken = self.lines.take(now);
        self.tell();
        taken
    }

    #[must_use]
    fn refuse(&mut self, reason: &TokenError) -> Vec<SignJob> {
        self.refusing = Some(reason.clone());
        let jobs = self.lines.drain();
        self.tell();
        jobs
    }

    /// Under the lock, so that the latest is told last.
    fn tell(&self) {
        let (requests, time) = self.lines.waiting();
        #[expect(clippy::cast_precision_loss, reason = "the bounds are far below 2^52")]
        self.meters.requests.set(requests as f64);
        self.meters.seconds.set(time.as_secs_f64());
    }
}

/// Answers a job; a caller that has left needs no answer.
pub(super) fn answer(job: SignJob, signatures: Signatures) {
    let _ = job.answer.send(signatures);
}

fn answer_all(jobs: Vec<SignJob>, reason: &TokenError) {
    for job in jobs {
        answer(job, Err(reason.clone()));
    }
}
