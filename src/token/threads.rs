//! The module in this process: a thread for each signing session, and one for administration.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::alone::Administration;
use super::latch::Latch;
use super::pkcs11::{Access, Module, WorkerSession, perform, sign};
use super::queue::{self, Queue, SignJob, Signatures};
use super::repeats::{Repeats, warn_seldom};
use super::sharing::Courtesy;
use super::task::Task;
use super::turns::{Meter, Turn, Turns, stall_time};
use super::{TokenConfig, TokenError, TokenIdentity, locked, tell_away};

/// Sessions open besides the workers': the anchor and the administration session.
const OTHER_SESSIONS: u64 = 2;

/// How often calls are looked at: about as soon as one may count as stalled.
const LOOK: Duration = Duration::from_millis(50);

/// The threads, and the module that they share.
///
/// C_Initialize and C_Finalize are per process, so a process has one of these for each module. A call that hangs in the
/// module takes its thread with it.
pub(super) struct Threads {
    module: Arc<Module>,
    signers: Arc<Signers>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the signing threads share.
struct Signers {
    queue: Arc<Queue>,
    turns: Turns,
    desks: Vec<Mutex<Desk>>,
    /// Whether somebody looks at the calls, or was told to.
    looked_at: AtomicBool,
    /// What was made goes here; nothing, where a call is to be looked at.
    made: mpsc::UnboundedSender<Made>,
    repeats: Repeats,
}

/// What a thread has that others get while a call of it takes long.
#[derive(Default)]
struct Desk {
    turn: Option<Turn>,
    /// When the call that it is in has taken too long.
    stalls: Option<Instant>,
    kept: Made,
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
        let (made, to_hand_out) = mpsc::unbounded_channel();
        let signers = Arc::new(Signers {
            queue: Arc::clone(queue),
            turns: Turns::new(workers),
            desks: (0..workers).map(|_| Mutex::default()).collect(),
            looked_at: AtomicBool::new(false),
            made,
            repeats: Repeats::default(),
        });
        let threads = Self { module, signers, threads: Mutex::default() };
        match threads.module.require_sessions(workers as u64 + OTHER_SESSIONS) {
            Err(away @ TokenError::Unavailable(_)) if may_come_later => tell_away(&away),
            enough => enough?,
        }
        runtime.spawn(hand_out(Arc::downgrade(&threads.signers), to_hand_out));
        for number in 0..workers {
            let (signers, runtime) = (Arc::clone(&threads.signers), runtime.clone());
            let session = WorkerSession::new(Arc::clone(&threads.module), Access::ReadOnly);
            threads.spawn(format!("token-sign-{number}"), move || signers.work(number, session, &runtime))?;
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
        self.signers.turns.close();
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

impl Signers {
    /// Signs until the queue is closed. What it made is kept while more is to be signed, for as long as each answer may be: one wake-up
    /// does for several, and the serving thread sends them together.
    fn work(&self, number: usize, mut session: WorkerSession, runtime: &Handle) {
        let desk = || locked(&self.desks[number]);
        let (mut meter, mut courtesy) = (Meter::default(), Courtesy::default());
        let mut until = Instant::now();
        loop {
            if desk().turn.is_none() {
                self.hand_over(&mut desk());
                let Some(turn) = runtime.block_on(self.turns.take()) else { return };
                desk().turn = Some(turn);
            }
            let next = self.queue.try_next().or_else(|| {
                self.hand_over(&mut desk());
                self.queue.wait()
            });
            let Some(job) = next else { return };
            // Nor is any kept for a job that takes longer, or may.
            if (Instant::now() + job.cost > until || !session.knows(&job.key)) && self.hand_over(&mut desk()) {
                courtesy.let_others_go_on();
            }
            let SignJob { key, inputs, deadline, cost, .. } = &job;
            let (metered, begun) = (meter.begin(*cost), Instant::now());
            desk().stalls = Some(begun + stall_time(*cost));
            self.tell_begun();
            let signatures = sign(&mut session, key, inputs, *deadline);
            let (took, busy) = (begun.elapsed(), metered.end());
            if signatures.is_ok() {
                self.queue.worked(key, u32::try_from(inputs.len()).unwrap_or(u32::MAX), took);
                if busy.is_some_and(|busy| self.turns.learn(job.cost, took, busy)) {
                    self.queue.all_work(self.desks.len());
                }
            }
            let keep = (begun + took + job.keep_max()).min(*deadline);
            let mut desk = desk();
            desk.stalls = None;
            if let Err(TokenError::Unavailable(_)) = &signatures {
                // Another thread's session may be well.
                desk.turn = None;
            }
            until = if desk.kept.is_empty() { keep } else { until.min(keep) };
            desk.kept.push((job, signatures));
        }
    }

    /// Whether there was anything.
    fn hand_over(&self, desk: &mut Desk) -> bool {
        let has_some = !desk.kept.is_empty();
        if has_some {
            // Nobody takes them any more where the runtime has ended.
            let _ = self.made.send(std::mem::take(&mut desk.kept));
        }
        has_some
    }

    /// Has somebody look whether it takes too long.
    fn tell_begun(&self) {
        // Each call comes here: read first, so that the cache line stays shared.
        if !self.looked_at.load(Ordering::SeqCst) && !self.looked_at.swap(true, Ordering::SeqCst) {
            let _ = self.made.send(Made::new());
        }
    }

    /// Takes from threads of which a call takes too long what others can do with: their turn, and what they made before. Whether there
    /// is any call to look at.
    fn look(&self) -> bool {
        // Before the desks: who begins after that says so again.
        self.looked_at.store(false, Ordering::SeqCst);
        let now = Instant::now();
        for desk in &self.desks {
            let mut desk = locked(desk);
            let Some(stalls) = desk.stalls else { continue };
            self.looked_at.store(true, Ordering::SeqCst);
            if now >= stalls {
                if desk.turn.take().is_some() {
                    warn_seldom!(self.repeats, "a call into the token takes long; others sign in its thread's place");
                }
                self.hand_over(&mut desk);
            }
        }
        self.looked_at.load(Ordering::SeqCst)
    }
}

/// Hands out what the threads made until they have ended, and looks after them while they are in calls. It is a task, for waking a task
/// from another one is cheap.
async fn hand_out(signers: Weak<Signers>, mut made: mpsc::UnboundedReceiver<Made>) {
    let mut looks = tokio::time::interval(LOOK);
    let mut is_looking = false;
    loop {
        tokio::select! {
            burst = made.recv() => match burst {
                Some(burst) => {
                    burst.into_iter().for_each(|(job, signatures)| queue::answer(job, signatures));
                    if !std::mem::replace(&mut is_looking, true) {
                        looks.reset();
                    }
                }
                None => return,
            },
            _ = looks.tick(), if is_looking => is_looking = signers.upgrade().is_some_and(|signers| signers.look()),
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
