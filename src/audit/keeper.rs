use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::checkpoints::{CheckpointFile, Signed, file_of, give_up};
use super::directory::{Directory, OpenError};
use super::{CallLog, Checkpoints, Logs, Settings};
use crate::domain::{PublicKey, Timestamp};
use crate::telemetry::Warnings;
use crate::tlog::{Checkpoint, Log, LogKey, Tip, leaf_hash};

/// Records after which a checkpoint is made before its time: what can be rewritten unseen is bounded in number, too.
const NEW_RECORDS_MAX: u64 = 10_000;

/// How often it is looked whether a checkpoint is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long the token may take for a checkpoint's signature.
const SIGN_WAIT_MAX: Duration = Duration::from_secs(10);

/// Administration records read at once.
const PAGE: u32 = 1000;

/// The configuration keys under which operators are warned.
const CHECKPOINTS: &str = "audit.checkpoint_secs";
const CALLS: &str = "audit.directory";

/// Signs with the key of the checkpoints.
#[async_trait]
pub trait Sign: Send + Sync {
    /// ES256 over `message`, r || s.
    ///
    /// # Errors
    /// Why not, for the log.
    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String>;
}

/// The administration log, as the store keeps it.
#[async_trait]
pub trait Administration: Send + Sync {
    /// The octets of the records from this index on, in order, at most `limit`.
    ///
    /// # Errors
    /// Why they cannot be read, for the log.
    async fn records(&self, from: u64, limit: u32) -> Result<Vec<Vec<u8>>, String>;
}

/// Makes the checkpoints of both logs, one consistent with the other.
///
/// The log of calls was followed from its latest checkpoint when it was opened, and only grows since. The administration log,
/// which the store could lose or change, is followed from its latest checkpoint to its end each time.
pub struct Keeper {
    key: LogKey,
    logs: Logs,
    files: [Arc<Mutex<CheckpointFile>>; 2],
    every: Duration,
    /// What keeps checkpoints of each log from being made.
    troubles: [Option<String>; 2],
    warnings: Warnings,
}

impl Keeper {
    /// Opens the logs of a directory, or begins them, for the service key with this public half.
    ///
    /// # Errors
    /// Another process writes them, what is there is not what was written, or the directory cannot be used.
    pub fn open(settings: &Settings, public: &PublicKey, every: Duration) -> Result<Self, OpenError> {
        let directory = Directory::open(&settings.directory)?;
        let key = LogKey::new(public).map_err(|error| directory.damaged(format!("the service key: {error}")))?;
        let published = Checkpoints::default();
        let file = |log| CheckpointFile::open(&directory, log, &key, published.clone());
        let files = [file(Log::Administration)?, file(Log::Calls)?];
        let known = files[Log::Calls as usize].tip().cloned();
        let files = files.map(|file| Arc::new(Mutex::new(file)));
        let path = directory.path().to_owned();
        let calls = CallLog::begin(directory, settings, key.origin(Log::Calls), known.as_ref())?;
        Ok(Self {
            key,
            logs: Logs::new(path, calls, published),
            files,
            every,
            troubles: [None, None],
            warnings: Warnings::default(),
        })
    }

    /// Tells what is wrong with the logs in these warnings, too.
    #[must_use]
    pub fn warning(self, warnings: Warnings) -> Self {
        Self { warnings, ..self }
    }

    /// The logs, for the faces.
    #[must_use]
    pub fn logs(&self) -> Logs {
        self.logs.clone()
    }

    /// Makes checkpoints until `end`, and the last ones then; closes the log of calls.
    pub async fn run(mut self, sign: Arc<dyn Sign>, administration: Arc<dyn Administration>, end: CancellationToken) {
        self.all(&*sign, &*administration).await;
        let mut made = Instant::now();
        while end.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            self.warn();
            let size = self.signed_tip(Log::Calls).size();
            if made.elapsed() >= self.every || self.logs.calls().size() >= size.saturating_add(NEW_RECORDS_MAX) {
                self.all(&*sign, &*administration).await;
                made = Instant::now();
            }
        }
        self.all(&*sign, &*administration).await;
        self.logs.calls().close().await;
    }

    async fn all(&mut self, sign: &dyn Sign, administration: &dyn Administration) {
        for log in Log::ALL {
            let problem = self.make(log, sign, administration).await.err();
            if let Some(problem) = &problem {
                metrics::counter!("keyward_audit_checkpoint_failures_total", "log" => log.name()).increment(1);
                // Once for each problem, however often it is met.
                if self.troubles[log as usize].as_ref() != Some(problem) {
                    tracing::error!(%log, problem, "no checkpoint of the audit log was made");
                }
            }
            self.troubles[log as usize] = problem;
        }
        self.warn();
    }

    /// Tells operators what is wrong with the logs at this moment.
    fn warn(&self) {
        let troubled = |log: &Log| self.troubles[*log as usize].is_some();
        let names: Vec<_> = Log::ALL.into_iter().filter(troubled).map(Log::name).collect();
        if names.is_empty() {
            self.warnings.clear(CHECKPOINTS);
        } else {
            let text = format!("no checkpoint can be made of the log of {}; the log says why", names.join(" and "));
            self.warnings.set(CHECKPOINTS, &text);
        }
        if self.logs.calls().is_writable() {
            self.warnings.clear(CALLS);
        } else {
            self.warnings.set(CALLS, "the log of calls cannot be written; the log says why");
        }
    }

    /// Makes a checkpoint of a log, if it has grown.
    async fn make(&mut self, log: Log, sign: &dyn Sign, administration: &dyn Administration) -> Result<(), String> {
        let former = self.signed_tip(log);
        let tip = match log {
            Log::Calls => self.logs.calls().tip().await.map_err(|unwritten| unwritten.to_string())?,
            Log::Administration => follow(former.clone(), administration).await?,
        };
        if tip == former {
            return Ok(());
        }
        let checkpoint = Checkpoint::new(self.key.origin(log), &tip);
        let text = checkpoint.text();
        let signature = tokio::time::timeout(SIGN_WAIT_MAX, sign.sign(text.as_bytes())).await;
        let signature = signature.map_err(|_| "the token did not sign in time".to_owned())??;
        let note = checkpoint.note(&self.key, &signature).ok_or("the signature does not verify")?;
        let (file, signed) = (Arc::clone(&self.files[log as usize]), Signed { checkpoint, note });
        let keep = move || file.lock().unwrap_or_else(PoisonError::into_inner).keep(signed, tip);
        let kept = tokio::task::spawn_blocking(keep).await.map_err(|panic| panic.to_string())?;
        kept.map_err(|error| error.to_string())
    }

    /// Where a log ended at its latest checkpoint.
    fn signed_tip(&self, log: Log) -> Tip {
        let file = self.files[log as usize].lock().unwrap_or_else(PoisonError::into_inner);
        file.tip().cloned().unwrap_or_default()
    }
}

/// The end of the administration log, reached from where it ended at its latest checkpoint.
async fn follow(mut tip: Tip, administration: &dyn Administration) -> Result<Tip, String> {
    if !goes_on(&tip, administration).await? {
        // A store that was put back to an older state, or was changed and made whole again.
        return Err(format!(
            "record {} is not the one of which a checkpoint was signed; after a backup was put back on purpose, `keyward \
             accept-store --confirm` lets the log go on",
            tip.size().saturating_sub(1)
        ));
    }
    loop {
        let records = administration.records(tip.size(), PAGE).await?;
        for record in &records {
            tip.follow(record).map_err(|broken| format!("record {}: {broken}", tip.size()))?;
        }
        if records.len() < PAGE as usize {
            return Ok(tip);
        }
    }
}

/// Whether the administration log has the record with which it ended at `tip`, and by the hashes in it all that came before.
async fn goes_on(tip: &Tip, administration: &dyn Administration) -> Result<bool, String> {
    let Some(last) = tip.last() else { return Ok(true) };
    let record = administration.records(tip.size() - 1, 1).await?;
    Ok(record.first().map(|record| leaf_hash(record)) == Some(*last))
}

/// Puts the checkpoints of the administration log aside if the log does not go on from the latest of them: a store that was
/// accepted as it is has given up what came after. They stay beside the new ones, in the file that is answered, and
/// `keyward audit verify` tells of them.
///
/// # Errors
/// A service runs on the directory, or it cannot be used; the records cannot be read.
pub async fn retire_administration(
    directory: &Path,
    public: &PublicKey,
    administration: &dyn Administration,
) -> Result<Option<PathBuf>, String> {
    let text = |error: OpenError| error.to_string();
    if !file_of(directory, Log::Administration).exists() {
        return Ok(None);
    }
    let directory = Directory::open(directory).map_err(text)?;
    let key = LogKey::new(public).map_err(|error| error.to_string())?;
    let file = CheckpointFile::open(&directory, Log::Administration, &key, Checkpoints::default()).map_err(text)?;
    let Some(tip) = file.tip() else { return Ok(None) };
    if goes_on(tip, administration).await? {
        return Ok(None);
    }
    give_up(&directory, Log::Administration, Timestamp::now()).map(Some).map_err(|error| error.to_string())
}
