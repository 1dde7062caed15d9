use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use async_trait::async_trait;
use crossbeam_channel::{Sender, TrySendError};
use secrecy::SecretString;
use tokio::sync::oneshot;

use super::administration::{self, Task};
use super::module::Module;
use super::session::{Access, WorkerSession};
use super::sign::{self, SignJob};
use super::{Found, KeyRef, KeySpec, SignInput, Support, Token, TokenError, TokenIdentity, TokenKey};
use crate::domain::{Algorithm, ObjectId};

/// Most administrative tasks that wait: what every replica's loops can ask for at once, and few enough that the last of
/// them, behind as many RSA key pairs, is still done within minutes.
const ADMINISTRATION_QUEUE_MAX: usize = 64;

/// Sessions open besides the workers': the anchor and the administration session.
const OTHER_SESSIONS: u64 = 2;

/// Where the token is and how it is used.
#[derive(Debug)]
pub struct TokenConfig {
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// CK_TOKEN_INFO.label of the token.
    pub label: String,
    /// CK_TOKEN_INFO.serialNumber, without which the label must be unique.
    pub serial: Option<String>,
    /// The user PIN. It is tried once each time that a login is needed, and never again once it was refused (R14).
    pub pin: SecretString,
    /// Signing threads, each with a session of its own; at least one.
    pub workers: usize,
    /// Most signing jobs that wait for a worker; at least one.
    pub queue_depth_max: usize,
}

/// A token behind a PKCS#11 module.
///
/// It recovers by itself when the token fails and comes back: with a new session, a new login, a new initialisation of
/// the module. What fails in the meantime is answered `Unavailable`. Once the PIN was refused, everything is answered
/// `PinRefused` without asking the token, until the process starts anew.
///
/// C_Initialize and C_Finalize are per process, so a process opens one of these for each module.
pub struct Pkcs11Token {
    module: Arc<Module>,
    queues: RwLock<Option<Queues>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Queues {
    signing: Sender<SignJob>,
    administration: Sender<Task>,
}

impl Pkcs11Token {
    /// Loads the module, finds the token, logs in and starts the threads. Blocks on the module.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the module or the token is not there (the text lists the labels that are), `Mismatch` if the label
    /// is not unique and no serial number is given (the text lists them), `PinRefused`, and `Unsupported` if the token
    /// allows too few sessions for the workers.
    pub fn open(config: TokenConfig) -> Result<Self, TokenError> {
        let TokenConfig { module, label, serial, pin, workers, queue_depth_max } = config;
        let module = Arc::new(Module::open(&module, &label, serial.as_deref(), pin)?);
        let mut token = Self { module, queues: RwLock::new(None), threads: Mutex::default() };
        token.module.require_sessions(workers.max(1) as u64 + OTHER_SESSIONS)?;
        token.start(workers.max(1), queue_depth_max.max(1))?;
        Ok(token)
    }

    /// Which token was found.
    #[must_use]
    pub fn identity(&self) -> &TokenIdentity {
        self.module.identity()
    }

    /// For each algorithm whether the token has the mechanisms to generate keys and to sign with them, or in words which
    /// it lacks. Blocks on the module.
    ///
    /// # Errors
    ///
    /// If the token does not answer.
    pub fn mechanisms(&self) -> Result<Vec<Support>, TokenError> {
        administration::mechanisms(&self.module)
    }

    /// Answers what waits with `Unavailable`, ends the threads and finalises the module; never C_Logout, which would log
    /// out others in this process. Blocks until calls under way return, or for some seconds if one hangs: then the module
    /// is left as it is. Done by dropping, too.
    pub fn close(&self) {
        let returned = self.module.close();
        *self.queues.write().expect(NO_PANIC) = None;
        let threads = std::mem::take(&mut *self.threads.lock().expect(NO_PANIC));
        // A thread that hangs in the module is left behind: it would not be joined before the call returns.
        if returned {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a token thread had panicked");
                }
            }
        }
    }

    fn start(&mut self, workers: usize, queue_depth_max: usize) -> Result<(), TokenError> {
        let (signing, jobs) = crossbeam_channel::bounded(queue_depth_max);
        let (administration, tasks) = crossbeam_channel::bounded(ADMINISTRATION_QUEUE_MAX);
        *self.queues.get_mut().expect(NO_PANIC) = Some(Queues { signing, administration });
        for number in 0..workers {
            let jobs = jobs.clone();
            let mut session = WorkerSession::new(Arc::clone(&self.module), Access::ReadOnly);
            self.spawn(format!("token-sign-{number}"), move || sign::work(&jobs, &mut session))?;
        }
        let mut session = WorkerSession::new(Arc::clone(&self.module), Access::ReadWrite);
        self.spawn("token-admin".into(), move || administration::work(&tasks, &mut session))
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> Result<(), TokenError> {
        let thread = thread::Builder::new()
            .name(name)
            .spawn(work)
            .map_err(|error| TokenError::Unavailable(format!("no thread for the token: {error}")))?;
        self.threads.get_mut().expect(NO_PANIC).push(thread);
        Ok(())
    }

    /// Puts something in one of the queues, or says at once that it is full (R13).
    fn submit<T>(&self, queue: impl FnOnce(&Queues) -> Result<(), TrySendError<T>>) -> Result<(), TokenError> {
        let queues = self.queues.read().expect(NO_PANIC);
        match queues.as_ref().map(queue) {
            Some(Ok(())) => Ok(()),
            Some(Err(TrySendError::Full(_))) => Err(TokenError::QueueFull),
            Some(Err(TrySendError::Disconnected(_))) | None => Err(gone()),
        }
    }

    async fn administer<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut WorkerSession) -> Result<T, TokenError> + Send + 'static,
    ) -> Result<T, TokenError> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |session| {
            // A caller that left while the task was waiting has seen no effect, and shall not.
            if !answer.is_closed() {
                let _ = answer.send(task(session));
            }
        });
        self.submit(|queues| queues.administration.try_send(task))?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

#[async_trait]
impl Token for Pkcs11Token {
    async fn generate(&self, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError> {
        self.administer(move |session| administration::generate(session, object, spec)).await
    }

    async fn find(&self, object: ObjectId, algorithm: Algorithm) -> Result<Found, TokenError> {
        self.administer(move |session| administration::find(session, object, algorithm)).await
    }

    async fn sign(
        &self,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, TokenError> {
        let (answer, answered) = oneshot::channel();
        let job = SignJob { key: Arc::clone(key), inputs, deadline, answer };
        self.submit(|queues| queues.signing.try_send(job))?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        self.administer(move |session| administration::destroy(session, object)).await
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        self.administer(administration::probe).await
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

const NO_PANIC: &str = "nothing panics while it holds the queues or the threads";

fn gone() -> TokenError {
    TokenError::Unavailable("the token's threads have ended".into())
}
