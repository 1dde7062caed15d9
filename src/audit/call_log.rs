use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::directory::{Directory, OpenError};
use super::queue::{Queue, Queued};
use super::rate::Rates;
use super::segments::Segments;
use super::writer::{TellEnd, Writer};
use super::{OnFailure, Settings, Signing};
use crate::domain::Event;
use crate::tlog::Tip;

/// How long a call waits for room in the queue: several times what the writer needs for all of it on a disk that works.
const ROOM_WAIT_MAX: Duration = Duration::from_millis(100);

/// How long a call waits for the disk. A disk that works takes some milliseconds; one that needs longer than this is as good as
/// none.
const DISK_WAIT_MAX: Duration = Duration::from_secs(2);

/// The replica's own log: what every call was, but for the changes that the store tells of. Cheap to clone.
#[derive(Clone)]
pub struct CallLog {
    shared: Arc<Shared>,
}

/// The log cannot be written, for the reason given, which is for this service's own log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit log cannot be written: {0}")]
pub struct Unwritten(Arc<str>);

impl Unwritten {
    pub(super) fn new(cause: String) -> Self {
        Self(cause.into())
    }
}

/// What calls and writer share.
pub(super) struct Shared {
    pub(super) queue: Queue,
    pub(super) on_failure: OnFailure,
    signing: Signing,
    refusals: Rates,
    failures: Rates,
    /// Whether the last try to write succeeded.
    writable: AtomicBool,
    cause: Mutex<Unwritten>,
    /// Refusals and failures that came too fast, and what found no room: a later record tells how many.
    pub(super) suppressed: AtomicU64,
    pub(super) lost: AtomicU64,
    /// Records that there are, on the disk or on their way.
    pub(super) size: AtomicU64,
    ended: tokio::sync::watch::Sender<bool>,
}

impl CallLog {
    /// Opens the log, or begins one, of this `origin`. `known` is where it stood when its last checkpoint was signed.
    ///
    /// # Errors
    /// Another process writes it, what is there is not what was written, or the directory cannot be used.
    pub fn open(settings: &Settings, origin: String, known: Option<&Tip>) -> Result<Self, OpenError> {
        Self::begin(Directory::open(&settings.directory)?, settings, origin, known)
    }

    /// The same in a directory that was opened.
    pub(super) fn begin(
        directory: Directory,
        settings: &Settings,
        origin: String,
        known: Option<&Tip>,
    ) -> Result<Self, OpenError> {
        let path = directory.path().to_owned();
        let (segments, torn) = Segments::open(directory, origin, known)?;
        if let Some(torn) = torn {
            // It was never acknowledged: an event is on the disk with its newline when a caller hears of it.
            tracing::warn!(octets = torn.octets, "the last record of the audit log had no end, and was cut off");
        }
        metrics::gauge!("keyward_audit_writable").set(1.0);
        let now = Instant::now();
        let shared = Arc::new(Shared {
            queue: Queue::default(),
            on_failure: settings.on_failure,
            signing: settings.signing,
            refusals: Rates::new(now),
            failures: Rates::new(now),
            writable: AtomicBool::new(true),
            cause: Mutex::new(Unwritten::new(String::new())),
            suppressed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            size: AtomicU64::new(segments.tip().size()),
            ended: tokio::sync::watch::Sender::new(false),
        });
        let end = TellEnd(Arc::clone(&shared));
        let writer = Writer { shared: Arc::clone(&shared), segments, synced: now, _end: end };
        let spawned = thread::Builder::new().name("audit-writer".to_owned()).spawn(move || writer.run());
        spawned.map_err(|error| OpenError::File { path, error })?;
        Ok(Self { shared })
    }

    /// Whether work may begin that has to be recorded: asked before the token is.
    ///
    /// # Errors
    /// The log cannot be written, and the policy is to refuse.
    pub fn ready(&self) -> Result<(), Unwritten> {
        let refuses = self.shared.on_failure == OnFailure::Refuse && self.shared.signing != Signing::Off;
        if refuses && !self.is_writable() { Err(self.shared.cause()) } else { Ok(()) }
    }

    /// Whether the last try to write the log succeeded.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.shared.writable.load(Ordering::Relaxed)
    }

    /// Records what came of a call; with [`Signing::Durable`] this is back when it is on the disk.
    ///
    /// Refusals and failures that come faster than anybody reads are counted, and a later record tells how many.
    ///
    /// # Errors
    /// The log cannot be written, and the policy is to refuse: the caller must not have the answer.
    pub async fn record(&self, event: Event) -> Result<(), Unwritten> {
        if !self.shared.wants(&event) {
            return Ok(());
        }
        let writable = self.is_writable();
        let refuse = self.shared.on_failure == OnFailure::Refuse;
        if refuse && !writable {
            return self.shared.lose();
        }
        // While the disk is away nobody waits for it.
        let (acknowledge, answer) =
            (self.shared.signing == Signing::Durable && writable).then(oneshot::channel).unzip();
        if let Err(queued) = self.shared.queue.push(Queued { event, acknowledge })
            && !(writable && self.push_when_there_is_room(*queued).await)
        {
            return self.shared.lose();
        }
        let Some(answer) = answer else { return Ok(()) };
        match tokio::time::timeout(DISK_WAIT_MAX, answer).await {
            Ok(Ok(answer)) => answer,
            // No answer in time, or no writer any more. The event may yet be written; that is no harm.
            Ok(Err(_)) | Err(_) => {
                let unwritten = self.shared.fail(format!("the disk did not answer in {} s", DISK_WAIT_MAX.as_secs()));
                if refuse { Err(unwritten) } else { Ok(()) }
            }
        }
    }

    /// Records what nobody waits for, such as a TLS handshake that was refused.
    pub fn record_soon(&self, event: Event) {
        if self.shared.wants(&event) && self.shared.queue.push(Queued { event, acknowledge: None }).is_err() {
            let _ = self.shared.lose();
        }
    }

    /// Where the log ends, once all that was recorded so far is on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn tip(&self) -> Result<Tip, Unwritten> {
        let (tell, answer) = oneshot::channel();
        self.shared.queue.ask_tip(tell);
        let answer = tokio::time::timeout(DISK_WAIT_MAX, answer).await;
        answer.ok().and_then(Result::ok).unwrap_or_else(|| Err(Unwritten::new("the writer did not answer".to_owned())))
    }

    /// How many records there are by now.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.size.load(Ordering::Relaxed)
    }

    /// Writes what was recorded, and ends. What is recorded later is lost.
    pub async fn close(&self) {
        self.shared.queue.close();
        let mut ended = self.shared.ended.subscribe();
        if tokio::time::timeout(DISK_WAIT_MAX, ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::error!("the disk of the audit log does not answer; the last records may be lost");
        }
    }

    async fn push_when_there_is_room(&self, mut queued: Queued) -> bool {
        let pushed = tokio::time::timeout(ROOM_WAIT_MAX, async {
            loop {
                self.shared.queue.room().await;
                match self.shared.queue.push(queued) {
                    Ok(()) => return,
                    Err(back) => queued = *back,
                }
            }
        });
        let pushed = pushed.await.is_ok();
        if !pushed {
            self.shared.fail("it is slower than the calls that it is to record".to_owned());
        }
        pushed
    }
}

impl Shared {
    /// Whether this event is to be recorded. One that comes too fast is counted instead.
    fn wants(&self, event: &Event) -> bool {
        let now = Instant::now();
        let wanted = match &*event.result {
            // All that succeeds and changes nothing is a signature.
            "OK" => return self.signing != Signing::Off,
            // What a token or a store that is away makes of calls must not hide who was refused, nor the other way round.
            "INTERNAL" | "UNAVAILABLE" | "DEADLINE_EXCEEDED" | "ABORTED" | "UNKNOWN" | "DATA_LOSS" => {
                self.failures.admits(&event.principals, now)
            }
            _ => self.refusals.admits(&event.principals, now),
        };
        if !wanted {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("keyward_audit_refusals_not_recorded_total").increment(1);
        }
        wanted
    }

    /// Whether there are events that no record tells of yet.
    pub(super) fn has_untold(&self) -> bool {
        self.suppressed.load(Ordering::Relaxed) + self.lost.load(Ordering::Relaxed) > 0
    }

    /// An event that is not recorded.
    fn lose(&self) -> Result<(), Unwritten> {
        self.lost.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("keyward_audit_events_lost_total").increment(1);
        match self.on_failure {
            OnFailure::Refuse => Err(self.cause()),
            OnFailure::Allow => Ok(()),
        }
    }

    /// The log cannot be written; told once.
    pub(super) fn fail(&self, cause: String) -> Unwritten {
        let unwritten = Unwritten::new(cause);
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = unwritten.clone();
        if self.writable.swap(false, Ordering::Relaxed) {
            metrics::gauge!("keyward_audit_writable").set(0.0);
            match self.on_failure {
                OnFailure::Refuse => tracing::error!(%unwritten, "signing stops until it can"),
                OnFailure::Allow => tracing::error!(%unwritten, "signing goes on without a record"),
            }
        }
        unwritten
    }

    /// The log can be written.
    pub(super) fn recover(&self) {
        if !self.writable.swap(true, Ordering::Relaxed) {
            metrics::gauge!("keyward_audit_writable").set(1.0);
            let lost = self.lost.load(Ordering::Relaxed);
            tracing::warn!(events_lost = lost, "the audit log can be written again");
        }
    }

    pub(super) fn end(&self) {
        self.queue.close();
        self.fail_silently();
        self.ended.send_replace(true);
    }

    fn fail_silently(&self) {
        self.writable.store(false, Ordering::Relaxed);
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Unwritten::new("it was closed".to_owned());
    }

    fn cause(&self) -> Unwritten {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
