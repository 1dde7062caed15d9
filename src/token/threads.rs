//! The module in this process: a thread for each signing session, and one for administration.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::alone::Administration;
use super::latch::Latch;
use super::pkcs11::{Access, Module, WorkerSession, perform, sign};
use super::queue::{self, Queue, SignJob, Signatures};
use super::repeats::Repeats;
use super::task::Task;
use super::{TokenConfig, TokenError, TokenIdentity, tell_away};

/// Sessions open besides the workers': the anchor and the administration session.
const OTHER_SESSIONS: u64 = 2;

/// The threads, and the module that they share.
///
/// C_Initialize and C_Finalize are per process, so a process has one of these for each module. A call that hangs in the
/// module takes its thread with it.
pub(super) struct Threads {
    module: Arc<Module>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Loads the module, finds the token, logs in and starts the threads. Blocks on the module. Where it is known which token
    /// it must be, one that is away may come later.
    pub(super) fn start(
        config: &TokenConfig,
        latch: Arc<Latch>,
        queue: &Arc<Queue>,
        tasks: mpsc::Receiver<Task>,
        runtime: &Handle,
        may_come_later: bool,
    ) -> Result<Self, TokenError> {
        let workers = config.workers.max(1);
        let module = Arc::new(Module::open(config, latch, Repeats::default(), may_come_later)?);
        let threads = Self { module, threads: Mutex::default() };
        match threads.module.require_sessions(workers as u64 + OTHER_SESSIONS) {
            Err(away @ TokenError::Unavailable(_)) if may_come_later => tell_away(&away),
            enough => enough?,
        }
        let (made, to_hand_out) = mpsc::unbounded_channel();
        runtime.spawn(hand_out(to_hand_out));
        for number in 0..workers {
            let (queue, made) = (Arc::clone(queue), made.clone());
            let session = WorkerSession::new(Arc::clone(&threads.module), Access::ReadOnly);
            threads.spawn(format!("token-sign-{number}"), move || work(&queue, session, &made))?;
        }
        let session = WorkerSession::new(Arc::clone(&threads.module), Access::ReadWrite);
        let administration = Administration::of(config);
        threads.spawn("token-admin".into(), move || administer(tasks, session, &administration))?;
        Ok(threads)
    }

    pub(super) fn identity(&self) -> &TokenIdentity {
        self.module.identity()
    }

    /// Finalises the module and ends the threads; the queues are closed. Blocks until calls under way return, or for some
    /// seconds if one hangs: then the module is left as it is.
    pub(super) fn close(&self) {
        // Taken in any case: who closes once more must not wait for a thread that was left behind.
        let threads = std::mem::take(&mut *self.threads.lock().expect(NO_PANIC));
        // A thread that hangs in the module is left behind: it would not be joined before the call returns.
        if !self.module.close() {
            return;
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a token thread had panicked");
            }
        }
    }

    fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> Result<(), TokenError> {
        let thread = thread::Builder::new()
            .name(name)
            .spawn(work)
            .map_err(|error| TokenError::Unavailable(format!("no thread for the token: {error}")))?;
        self.threads.lock().expect(NO_PANIC).push(thread);
        Ok(())
    }
}

/// What was made of jobs, some together.
type Made = Vec<(SignJob, Signatures)>;

/// Signs until the queue is closed. What it made is kept while more is to be signed, for as long as each answer may be: one wake-up does
/// for several, and the serving thread sends them together.
fn work(queue: &Queue, mut session: WorkerSession, made: &mpsc::UnboundedSender<Made>) {
    let mut kept = Made::new();
    let mut until = Instant::now();
    let hand_over = |kept: &mut Made| {
        if !kept.is_empty() {
            // Nobody takes them any more where the runtime has ended.
            let _ = made.send(std::mem::take(kept));
        }
    };
    loop {
        let next = queue.try_next().or_else(|| {
            hand_over(&mut kept);
            queue.wait()
        });
        let Some(job) = next else { return };
        // Nor is any kept for a job that takes longer, or may.
        if Instant::now() + job.cost > until || !session.knows(&job.key) {
            hand_over(&mut kept);
        }
        let SignJob { key, inputs, deadline, .. } = &job;
        let begun = Instant::now();
        let signatures = sign(&mut session, key, inputs, *deadline);
        let ended = Instant::now();
        if signatures.is_ok() {
            queue.worked(key, u32::try_from(inputs.len()).unwrap_or(u32::MAX), ended - begun);
        }
        let keep = (ended + job.keep_max()).min(*deadline);
        until = if kept.is_empty() { keep } else { until.min(keep) };
        kept.push((job, signatures));
    }
}

/// Hands out what the threads made until they have ended. It is a task, for waking a task from another one is cheap.
async fn hand_out(mut made: mpsc::UnboundedReceiver<Made>) {
    while let Some(made) = made.recv().await {
        for (job, signatures) in made {
            queue::answer(job, signatures);
        }
    }
}

/// Does tasks until nobody can ask for any more.
fn administer(mut tasks: mpsc::Receiver<Task>, mut session: WorkerSession, administration: &Administration) {
    while let Some(Task { ask, answer }) = tasks.blocking_recv() {
        let alone = administration.alone(&ask);
        // A caller that left while the task was waiting has seen no effect, and shall not.
        if !answer.is_closed() {
            let _ = answer.send(alone.and_then(|_alone| perform(&mut session, &ask)));
        }
    }
}

const NO_PANIC: &str = "nothing panics while it holds the threads";
