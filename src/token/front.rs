use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::latch::Latch;
use super::process::Processes;
use super::queue::{Limits, Queue, Signatures};
use super::task::{Ask, Task, Told};
use super::threads::Threads;
use super::turns;
use super::{
    Found, KeyRef, KeySpec, SignInput, Support, Token, TokenError, TokenIdentity, TokenKey, TokenObject, gone,
};
use crate::domain::{Algorithm, ObjectId, TokenName};

/// Most administrative tasks that wait: what every replica's loops can ask for at once, and few enough that the last of
/// them, behind as many RSA key pairs, is still done within minutes.
const ADMINISTRATION_QUEUE_MAX: usize = 64;

/// When to ask again for administration where too much of it waits: about what an RSA key pair takes.
const ADMINISTRATION_PAUSE: Duration = Duration::from_secs(1);

/// Where the token is and how it is used.
#[derive(Clone, Debug)]
pub struct TokenConfig {
    /// What it is called in the configuration.
    pub name: TokenName,
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// CK_TOKEN_INFO.label of the token.
    pub label: String,
    /// CK_TOKEN_INFO.serialNumber, without which the label must be unique.
    pub serial: Option<String>,
    /// The user PIN. It is tried once each time that a login is needed, and never again once it was refused (R14).
    pub pin: SecretString,
    /// Where a refusal of the PIN is remembered from one start to the next (R14).
    pub pin_refused_file: PathBuf,
    /// Where the module runs.
    pub isolation: Isolation,
    /// What is started as a worker process, with the argument `token-worker`: Keyward itself.
    pub program: PathBuf,
    /// Signing threads or processes, each with a session of its own; at least one.
    pub workers: usize,
    /// Most requests for signatures that wait for a worker; at least one.
    pub queue_depth_max: usize,
    /// How long what waits may take the workers, by estimate.
    pub queue_wait_max: Duration,
    /// How long a call into the module may take before its process counts as hung. Without effect on threads, which
    /// nobody can end.
    pub call_timeout: Duration,
}

impl TokenConfig {
    /// Which token is expected, as far as the configuration says.
    pub(super) fn expected(&self) -> TokenIdentity {
        let (label, serial) = (self.label.clone(), self.serial.clone().unwrap_or_default());
        TokenIdentity { label, serial, manufacturer: String::new(), model: String::new() }
    }
}

/// Where the module runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// On threads of this process: a module that crashes takes the process with it.
    Thread,
    /// In processes of its own, which are replaced when they crash or hang.
    Process,
}

/// A token behind a PKCS#11 module.
///
/// It recovers by itself when the token fails and comes back: with a new session, a new login, a new initialisation of
/// the module. What fails in the meantime is answered `Unavailable`. Once the PIN was refused, everything is answered
/// `PinRefused` without asking the token, until the configuration has another PIN and the process starts anew.
pub struct Pkcs11Token {
    queue: Arc<Queue>,
    tasks: RwLock<Option<mpsc::Sender<Task>>>,
    workers: Workers,
}

/// Where the module runs.
enum Workers {
    Threads(Threads),
    Processes(Processes),
}

impl Pkcs11Token {
    /// Loads the module, finds the token, logs in and starts the workers, on the tokio runtime of the caller. Blocks on the module.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the module or the token is not there (the text lists the labels that are), `Mismatch` if the label
    /// is not unique and no serial number is given (the text lists them), `PinRefused`, and `Unsupported` if the token
    /// allows one process too few sessions for its threads.
    pub fn open(config: TokenConfig) -> Result<Self, TokenError> {
        Self::start(config, false)
    }

    /// Opens a token of which the serial number is known and that may be away: it is looked for until it is there, and until
    /// then everything is answered `Unavailable`. Blocks on the module.
    ///
    /// # Errors
    ///
    /// As [`Pkcs11Token::open`], but for a token that is away; `Mismatch` if `config` names no serial number.
    pub fn attach(config: TokenConfig) -> Result<Self, TokenError> {
        if config.serial.is_none() {
            return Err(TokenError::Mismatch("a token that may be away must be known by its serial number".to_owned()));
        }
        Self::start(config, true)
    }

    fn start(config: TokenConfig, may_come_later: bool) -> Result<Self, TokenError> {
        let queue = Arc::new(Queue::new(
            &config.name,
            Limits {
                depth_max: config.queue_depth_max.max(1),
                wait_max: config.queue_wait_max,
                workers: turns::at_first(config.workers.max(1)),
            },
        ));
        let (tasks, waiting) = mpsc::channel(ADMINISTRATION_QUEUE_MAX);
        let latch = Arc::new(Latch::open(&config)?);
        let runtime = Handle::try_current()
            .map_err(|_| TokenError::Unavailable("a token is opened on a tokio runtime".into()))?;
        let workers = match config.isolation {
            Isolation::Thread => {
                Workers::Threads(Threads::start(&config, latch, &queue, waiting, &runtime, may_come_later)?)
            }
            Isolation::Process => {
                Workers::Processes(Processes::start(config, latch, &queue, waiting, &runtime, may_come_later)?)
            }
        };
        Ok(Self { queue, tasks: RwLock::new(Some(tasks)), workers })
    }

    /// Which token was found; until one that was away is there, label and serial number of the one that is expected.
    #[must_use]
    pub fn identity(&self) -> &TokenIdentity {
        match &self.workers {
            Workers::Threads(threads) => threads.identity(),
            Workers::Processes(processes) => processes.identity(),
        }
    }

    /// Answers what waits with `Unavailable`, ends the workers and finalises the module; never C_Logout, which would log
    /// out others in the same process. Blocks until calls under way return, or for some seconds if one hangs. Done by
    /// dropping, too.
    pub fn close(&self) {
        self.queue.close();
        *self.tasks.write().expect(NO_PANIC) = None;
        match &self.workers {
            Workers::Threads(threads) => threads.close(),
            Workers::Processes(processes) => processes.close(),
        }
    }

    /// Has a task done, or says at once that too many wait (R13).
    async fn administer(&self, ask: Ask) -> Result<Told, TokenError> {
        let (answer, answered) = oneshot::channel();
        let tasks = self.tasks.read().expect(NO_PANIC).clone();
        match tasks.map(|tasks| tasks.try_send(Task { ask, answer })) {
            Some(Ok(())) => {}
            Some(Err(mpsc::error::TrySendError::Full(_))) => {
                return Err(TokenError::QueueFull { retry_after: ADMINISTRATION_PAUSE });
            }
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => return Err(gone()),
        }
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

#[async_trait]
impl Token for Pkcs11Token {
    async fn generate(&self, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError> {
        match self.administer(Ask::Generate(object, spec)).await? {
            Told::Generated(key) => Ok(key),
            other => Err(confused(&other)),
        }
    }

    async fn find(&self, object: ObjectId, algorithm: Algorithm) -> Result<Found, TokenError> {
        match self.administer(Ask::Find(object, algorithm)).await? {
            Told::Found(found) => Ok(found),
            other => Err(confused(&other)),
        }
    }

    async fn sign(
        &self,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, TokenError> {
        let count = inputs.len();
        let mut answers = self.queue.push(key, inputs, deadline)?;
        // Whoever else is ready gets their jobs in before a worker is woken for all of them; and a caller that leaves meanwhile has
        // the others' workers called.
        let call = CallOnDrop(&self.queue);
        tokio::task::yield_now().await;
        drop(call);
        if answers.len() == 1 {
            return signed(answers.remove(0)).await;
        }
        // Whoever is no longer waited for is not signed for: the rest, when one fails, and all when the caller leaves.
        let mut signatures = Vec::with_capacity(count);
        for answer in answers {
            signatures.extend(signed(answer).await?);
        }
        Ok(signatures)
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        match self.administer(Ask::Destroy(object)).await? {
            Told::Destroyed => Ok(()),
            other => Err(confused(&other)),
        }
    }

    async fn list(&self) -> Result<Vec<TokenObject>, TokenError> {
        match self.administer(Ask::List).await? {
            Told::Objects(objects) => Ok(objects),
            other => Err(confused(&other)),
        }
    }

    async fn mechanisms(&self) -> Result<Vec<Support>, TokenError> {
        match self.administer(Ask::Mechanisms).await? {
            Told::Mechanisms(mechanisms) => Ok(mechanisms),
            other => Err(confused(&other)),
        }
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        match self.administer(Ask::Probe).await? {
            Told::Identity(identity) => Ok(identity),
            other => Err(confused(&other)),
        }
    }
}

impl Drop for Pkcs11Token {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Pkcs11Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pkcs11Token").field("identity", self.identity()).finish_non_exhaustive()
    }
}

/// Calls the workers, whatever becomes of who was to call them.
struct CallOnDrop<'a>(&'a Queue);

impl Drop for CallOnDrop<'_> {
    fn drop(&mut self) {
        self.0.call();
    }
}

const NO_PANIC: &str = "nothing panics while it holds the tasks";

async fn signed(answer: oneshot::Receiver<Signatures>) -> Signatures {
    answer.await.unwrap_or_else(|_| Err(gone()))
}

/// An answer to another question: a bug, or a worker that cannot be believed.
fn confused(told: &Told) -> TokenError {
    TokenError::Unavailable(format!("the administration session answered something else: {told:?}"))
}
