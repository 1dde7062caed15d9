//! The module in processes of its own: `keyward token-worker`, one for each signing session and one for administration.
//!
//! A module that crashes takes one process and the call in it; one that hangs is killed. Each is replaced, after a pause that
//! grows to [`PAUSE_MAX`]. Processes start one after another: several that log in to one SoftHSM directory at once may not
//! find the token. Each has a latch of its own over the same file, which keeps their logins apart (R14).
//!
//! To read: `wire`, `names` and `progress` (what is said), `worker` (who does it), `child` (how it starts and ends), `signer` and `errands` (the
//! service's end of a worker's life), `stream` (a signer's socket).

mod child;
mod errands;
mod names;
mod progress;
mod signer;
mod stream;
mod wire;
mod worker;

use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::latch::Latch;
use super::queue::Queue;
use super::repeats::{Repeats, warn_seldom};
use super::task::Task;
use super::turns::Turns;
use super::{TokenConfig, TokenError, TokenIdentity, gone, locked, tell_away};
use child::Worker;
use wire::Role;
pub use worker::work_as_process;

/// Pauses before the first process is started again, until the token counts as away: other services may be starting over the same
/// SoftHSM directory.
const FIRST_PAUSES: [Duration; 2] = [PAUSE_MIN, PAUSE_MIN.saturating_mul(2)];

/// A first start that took longer is not tried again: a module that hangs would hold up what needs no token.
const FIRST_START_MAX: Duration = Duration::from_secs(2);

/// First and longest pause before a process is replaced that did not live for [`LIFE_MIN`]: the longest is what a token that
/// has come back waits for.
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A process that lived for so long is replaced at once.
const LIFE_MIN: Duration = Duration::from_secs(10);

/// How long processes may take to finalise the module when the service ends, before they are killed.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// The processes of one token.
pub(super) struct Processes {
    office: Arc<Office>,
    expected: TokenIdentity,
}

/// What those who look after the processes share.
struct Office {
    config: TokenConfig,
    latch: Arc<Latch>,
    queue: Arc<Queue>,
    /// Which token the first process found; the others must find the same.
    found: OnceLock<TokenIdentity>,
    /// Whose turn it is to start a process.
    starting: Mutex<Starting>,
    seats: Vec<Mutex<Option<Seat>>>,
    turns: Turns,
    /// Locked while the queue is told of it, so that what it is told last is true.
    signers: Mutex<Signers>,
    closing: CancellationToken,
    repeats: Repeats,
}

/// What the last starts came to. While none succeeds one seat tries for all: 256 workers would keep a processor busy with it.
#[derive(Default)]
struct Starting {
    pause: Pause,
    failed: Option<(Instant, TokenError)>,
}

/// How many processes are there that sign.
#[derive(Default)]
struct Signers {
    ready: usize,
    /// Those among them whose token failed them the last time.
    unwell: usize,
}

/// A process that lives, and a second handle of its socket, to end it by.
struct Seat {
    child: Child,
    stream: UnixStream,
}

impl Processes {
    /// Starts the first process, which finds the token and logs in; the others follow by themselves, on `runtime`. Blocks on
    /// the first. Where it is known which token it must be, one that is away may come later.
    pub(super) fn start(
        config: TokenConfig,
        latch: Arc<Latch>,
        queue: &Arc<Queue>,
        tasks: mpsc::Receiver<Task>,
        runtime: &Handle,
        may_come_later: bool,
    ) -> Result<Self, TokenError> {
        let signers = config.workers.max(1);
        let expected = config.expected();
        let office = Arc::new(Office {
            config,
            latch,
            queue: Arc::clone(queue),
            found: OnceLock::new(),
            starting: Mutex::default(),
            // The last one is the administration's.
            seats: (0..=signers).map(|_| Mutex::default()).collect(),
            turns: Turns::new(signers),
            signers: Mutex::default(),
            closing: CancellationToken::new(),
            repeats: Repeats::default(),
        });
        let mut first = match office.start_first() {
            Err(away @ TokenError::Unavailable(_)) if may_come_later => {
                tell_away(&away);
                None
            }
            started => Some(started?),
        };
        // Keys are waited for sooner than a second signing process.
        runtime.spawn(errands::keep(Arc::clone(&office), signers, tasks));
        for seat in 0..signers {
            runtime.spawn(signer::keep(Arc::clone(&office), seat, first.take()));
        }
        Ok(Self { office, expected })
    }

    /// Which token was found; as long as none was, which one is expected.
    pub(super) fn identity(&self) -> &TokenIdentity {
        self.office.found.get().unwrap_or(&self.expected)
    }

    /// Ends the processes. Blocks until they have finalised the module, or for some seconds if one hangs: it is killed.
    pub(super) fn close(&self) {
        self.office.closing.cancel();
        let until = Instant::now() + FAREWELL_MAX;
        let leaving: Vec<Seat> = self.office.seats.iter().filter_map(|seat| locked(seat).take()).collect();
        for seat in &leaving {
            // It may have gone by itself.
            let _ = seat.stream.shutdown(std::net::Shutdown::Both);
        }
        for seat in leaving {
            child::see_off(seat.child, until);
        }
    }
}

impl Office {
    fn start_first(&self) -> Result<Worker, TokenError> {
        for pause in FIRST_PAUSES {
            let begun = Instant::now();
            match self.start_now(0, Role::Sign) {
                Err(TokenError::Unavailable(reason)) if begun.elapsed() < FIRST_START_MAX => {
                    tracing::debug!(reason, "a token worker did not start");
                }
                started => return started,
            }
            std::thread::sleep(pause);
        }
        self.start_now(0, Role::Sign)
    }

    /// Starts a process on a seat, in its turn. Does not block the runtime.
    async fn start(self: &Arc<Self>, seat: usize, role: Role) -> Result<Worker, TokenError> {
        let office = Arc::clone(self);
        let started = tokio::task::spawn_blocking(move || office.start_now(seat, role)).await;
        started.unwrap_or_else(|_| Err(gone()))
    }

    fn start_now(&self, seat: usize, role: Role) -> Result<Worker, TokenError> {
        let mut starting = locked(&self.starting);
        // Those who waited for their turn may have waited for long.
        if self.closing.is_cancelled() {
            return Err(gone());
        }
        self.latch.check()?;
        if let Some((until, error)) = &starting.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let started = self.start_in_turn(seat, role);
        match &started {
            Err(error @ TokenError::Unavailable(_)) => {
                let until = Instant::now() + starting.pause.after(Duration::ZERO);
                starting.failed = Some((until, error.clone()));
            }
            Err(TokenError::PinRefused) => self.latch.keep_in_mind(),
            _ => *starting = Starting::default(),
        }
        started
    }

    fn start_in_turn(&self, seat: usize, role: Role) -> Result<Worker, TokenError> {
        let failed = |error: std::io::Error| {
            let program = self.config.program.display();
            TokenError::Unavailable(format!("no worker process can be started from {program}: {error}"))
        };
        let (living, worker) = child::spawn(&self.config).map_err(failed)?;
        *locked(&self.seats[seat]) = Some(living);
        let serial = self.found.get().map(|found| found.serial.clone()).or_else(|| self.config.serial.clone());
        // Whoever closes has not seen this seat taken, or ends it.
        let started =
            if self.closing.is_cancelled() { Err(gone()) } else { child::greet(worker, &self.config, serial, role) };
        match started {
            Ok(started) => {
                self.found.get_or_init(|| started.identity);
                Ok(started.worker)
            }
            Err(error) => {
                self.end(seat);
                Err(error)
            }
        }
    }

    /// Ends a process that is of no more use, and tells why. The reason.
    async fn replace(self: &Arc<Self>, seat: usize, end: &End) -> String {
        let ending = Arc::clone(self);
        let ended = tokio::task::spawn_blocking(move || ending.end(seat)).await.unwrap_or_default();
        let (how, reason) = match end {
            End::Spent(reason) => ("spent", reason.clone()),
            End::Refused => ("refused", TokenError::PinRefused.to_string()),
            End::Hung(what) => ("hung", (*what).to_owned()),
            End::Crashed | End::Closed => ("crashed", format!("the module's process ended by itself: {ended}")),
        };
        self.tell_replaced(seat, how, &reason);
        reason
    }

    /// Ends what lives on a seat, and says how it ended.
    fn end(&self, seat: usize) -> String {
        let leaving = locked(&self.seats[seat]).take();
        leaving.map_or_else(|| "it was ended".to_owned(), |seat| child::end(seat.child))
    }
}

/// How a process's life ends.
enum End {
    /// Its service ends, too, and sees it off.
    Closed,
    Crashed,
    /// What it was at has not ended in time, in words.
    Hung(&'static str),
    /// Nothing that it tried helped.
    Spent(String),
    /// The token refused the PIN.
    Refused,
}

/// The pause before a process is replaced.
#[derive(Default)]
struct Pause(Duration);

impl Pause {
    /// What to wait after a life of this length.
    fn after(&mut self, life: Duration) -> Duration {
        self.0 = if life >= LIFE_MIN { Duration::ZERO } else { (self.0 * 2).clamp(PAUSE_MIN, PAUSE_MAX) };
        self.0
    }
}

impl Office {
    /// Counts and tells that a process is to be replaced.
    fn tell_replaced(&self, seat: usize, how: &'static str, reason: &str) {
        if self.closing.is_cancelled() {
            return;
        }
        let labels = [("token", self.config.name.to_string()), ("how", how.to_owned())];
        metrics::counter!("keyward_token_workers_replaced_total", &labels).increment(1);
        // How is the news: a hang says nothing of the crashes that follow it.
        warn_seldom!(self.repeats, how => "a token worker is replaced", worker = seat, how = how, reason = reason);
    }

    fn signer_is_ready(&self) {
        let mut signers = locked(&self.signers);
        signers.ready += 1;
        self.tell_ready(signers.ready);
        self.queue.resume();
    }

    fn signer_has_gone(&self) {
        let mut signers = locked(&self.signers);
        signers.ready -= 1;
        self.tell_ready(signers.ready);
    }

    fn signer_is_unwell(&self) {
        locked(&self.signers).unwell += 1;
    }

    fn signer_is_well(&self) {
        locked(&self.signers).unwell -= 1;
    }

    fn is_anybody_well(&self) -> bool {
        let signers = locked(&self.signers);
        signers.ready > signers.unwell
    }

    /// A signing process could not be started: if none is there, nobody need wait.
    fn signer_is_missing(&self, error: &TokenError) {
        let signers = locked(&self.signers);
        if signers.ready == 0 {
            self.queue.refuse(error);
        }
    }

    fn tell_ready(&self, signers: usize) {
        // A few.
        metrics::gauge!("keyward_token_workers_ready", "token" => self.config.name.to_string()).set(signers as f64);
    }
}
