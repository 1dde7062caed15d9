//! The PKCS#11 module: initialised, logged in to one token, and brought back when it fails.
//!
//! C_Finalize is undefined while another thread is inside the module (PKCS#11 v3.1 section 5.4.2), so whoever calls it
//! holds a [`Visit`], and initialising it again waits until all visits have ended. Each initialisation is a new
//! generation; sessions and handles of an older one denote nothing any more, or something else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::session::Session;
use cryptoki::slot::{Limit, Slot};
use secrecy::SecretString;

use super::connect::{
    UNREADABLE_PAUSES, finalise, find_token, initialise, is_logged_in, load, log_in, shows_keys, token_info,
};
use super::failure::Failure;
use super::index::Index;
use crate::token::latch::Latch;
use crate::token::repeats::{Repeats, warn_seldom};
use crate::token::{TokenConfig, TokenError, TokenIdentity};

/// Shortest time between two initialisations, in seconds. All signing stands still during one, and the client of a
/// network HSM takes up to a second for it: more often would leave a token that half works no time to sign.
const REINITIALISE_INTERVAL_SECS: u64 = 1;

/// Longest wait, in seconds, for calls inside the module to return before it is finalised, and for an initialisation to
/// end: several times what either takes, far less than the minutes that a hung HSM client takes.
const DRAIN_TIMEOUT_SECS: u64 = 5;

/// How long nothing may work, in seconds, before a process that has the module to itself is better replaced: after some
/// initialisations have not helped.
const SPENT_AFTER_SECS: u64 = 5;

/// The module, shared by all threads that call it.
pub(in crate::token) struct Module {
    pkcs11: Pkcs11,
    pin: SecretString,
    latch: Arc<Latch>,
    /// Which token was found, and until one was, which one it must be.
    found: OnceLock<TokenIdentity>,
    expected: TokenIdentity,
    state: Mutex<State>,
    changed: Condvar,
    /// Holds the login: a token logs out when its last session closes.
    anchor: Mutex<Option<Session>>,
    /// Whether the token has shown a private key since it was initialised.
    holds_keys: AtomicBool,
    /// Whether a new session did not help the last time that one was tried.
    doubted: AtomicBool,
    /// Whether nothing has worked since a time, and which.
    failing: AtomicBool,
    failing_since: Mutex<Option<Instant>>,
    /// What the token's sessions have found, all of one initialisation.
    index: Mutex<Index>,
    repeats: Repeats,
}

struct State {
    phase: Phase,
    generation: u64,
    visits: usize,
    /// Someone initialises or finalises, or waits for the visits to end in order to.
    exclusive: bool,
    last_initialised: Instant,
}

enum Phase {
    Up(Slot),
    Down(String),
    PinRefused,
    Closed,
}

/// Leave to call the module. While it lives the module is not finalised.
pub(super) struct Visit<'a> {
    module: &'a Module,
    pub(super) generation: u64,
    pub(super) slot: Slot,
}

/// How long a token is looked for again that was not seen: SoftHSM's is there again in milliseconds.
const LOOKING_MAX: Duration = Duration::from_secs(1);

impl Module {
    /// Loads and initialises the module, finds the token and logs in; each login asks the latch. A token that is away may come
    /// later, if its serial number is given.
    pub(in crate::token) fn open(
        config: &TokenConfig,
        latch: Arc<Latch>,
        repeats: Repeats,
        may_come_later: bool,
    ) -> Result<Self, TokenError> {
        let pkcs11 = load(&config.module)?;
        let expected = config.expected();
        let module = Self {
            pkcs11,
            pin: config.pin.clone(),
            latch,
            found: OnceLock::new(),
            expected,
            state: Mutex::new(State {
                phase: Phase::Closed,
                generation: 1,
                visits: 0,
                exclusive: false,
                last_initialised: Instant::now(),
            }),
            changed: Condvar::new(),
            anchor: Mutex::default(),
            holds_keys: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            failing_since: Mutex::default(),
            index: Mutex::default(),
            repeats,
        };
        let serial = config.serial.as_deref();
        let phase = match module.find_and_enter(serial) {
            Ok(slot) => Phase::Up(slot),
            Err(Failure::Away(reason)) if may_come_later && serial.is_some() => Phase::Down(reason),
            Err(failure) => {
                finalise(&module.pkcs11);
                return Err(failure.into());
            }
        };
        module.state().phase = phase;
        Ok(module)
    }

    pub(super) fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    pub(in crate::token) fn identity(&self) -> &TokenIdentity {
        self.found.get().unwrap_or(&self.expected)
    }

    /// Refuses a token that cannot have so many sessions open at once, before a caller finds out.
    pub(in crate::token) fn require_sessions(&self, wanted: u64) -> Result<(), TokenError> {
        let visit = self.visit()?;
        match token_info(&self.pkcs11, visit.slot)?.max_session_count() {
            Limit::Max(allowed) if allowed < wanted => {
                let text = format!("it allows {allowed} sessions, and {wanted} are wanted: lower token.workers");
                Err(TokenError::Unsupported(text))
            }
            Limit::Max(_) | Limit::Infinite | Limit::Unavailable => Ok(()),
        }
    }

    /// Waits out an initialisation under way, then lets the caller in.
    pub(super) fn visit(&self) -> Result<Visit<'_>, Failure> {
        let (mut state, timeout) =
            self.changed.wait_timeout_while(self.state(), DRAIN_TIMEOUT, |state| state.exclusive).expect(NO_PANIC);
        if timeout.timed_out() {
            return Err(Failure::Away("the module is still being initialised".into()));
        }
        let slot = match &state.phase {
            Phase::Up(slot) => *slot,
            Phase::Down(reason) => return Err(Failure::Away(reason.clone())),
            Phase::PinRefused => return Err(Failure::Answer(TokenError::PinRefused)),
            Phase::Closed => return Err(Failure::Answer(closed())),
        };
        state.visits += 1;
        Ok(Visit { module: self, generation: state.generation, slot })
    }

    /// Whether the token behind a session is there. A live session does not say so: SoftHSM whose token directory is
    /// gone answers OK and shows no objects. So a token that has ever shown a private key must show one; until its
    /// last key was destroyed here.
    ///
    /// Costs one search; SoftHSM's are linear in the number of objects.
    pub(super) fn check(&self, session: &Session) -> Result<(), Failure> {
        if self.shows_keys(session)? || !self.holds_keys.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Failure::Away(SHOWS_NONE.into()))
    }

    /// [`Module::check`] for a caller who knows of a key: a token that shows none at all is not the one he knows.
    pub(super) fn check_for_keys(&self, session: &Session) -> Result<(), Failure> {
        if self.shows_keys(session)? { Ok(()) } else { Err(Failure::Away(SHOWS_NONE.into())) }
    }

    /// A private key was destroyed with success, so the token was there: if it was the last, it shows none from now on.
    /// Should the token have gone away in between, [`Module::check_for_keys`] still finds out.
    pub(super) fn destroyed_key(&self, session: &Session) -> Result<(), Failure> {
        let shown = self.shows_keys(session)?;
        self.holds_keys.store(shown, Ordering::Relaxed);
        Ok(())
    }

    fn shows_keys(&self, session: &Session) -> Result<bool, Failure> {
        if !is_logged_in(session)? {
            return Err(Failure::Away("the login does not hold".into()));
        }
        let shown = shows_keys(session)?;
        if shown {
            self.saw_key();
        }
        Ok(shown)
    }

    /// The token showed a private key: see [`Module::check`].
    pub(super) fn saw_key(&self) {
        self.holds_keys.store(true, Ordering::Relaxed);
    }

    /// What is known of the token's objects. A session that waits for it waits for a listing that serves it too.
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect(NO_PANIC)
    }

    /// Second rung of the ladder: logs in on a new anchor.
    pub(super) fn log_in_again(&self, visit: &Visit<'_>) -> Result<(), Failure> {
        let mut anchor = self.anchor.lock().expect(NO_PANIC);
        if matches!(self.state().phase, Phase::PinRefused) {
            return Err(Failure::Answer(TokenError::PinRefused));
        }
        let new = log_in(&self.pkcs11, visit.slot, &self.pin, &self.latch).inspect_err(|failure| {
            if matches!(failure, Failure::Refused(TokenError::PinRefused)) {
                self.state().phase = Phase::PinRefused;
            }
        })?;
        if let Some(old) = anchor.replace(new) {
            // It was of no use, so that it cannot be closed is nothing new.
            let _ = old.close();
        }
        warn_seldom!(self.repeats, "logged in to the token again");
        Ok(())
    }

    /// Whether nothing has helped for so long that only another process can: last rung of the ladder.
    pub(in crate::token) fn is_spent(&self) -> bool {
        self.is_failing()
            && self.failing_since.lock().expect(NO_PANIC).is_some_and(|since| since.elapsed() >= SPENT_AFTER)
    }

    /// Says that a call failed, for those who look at the token: what is recovered from nobody else is told of.
    pub(super) fn tell_failure(&self, reason: &str) {
        warn_seldom!(self.repeats, "the token failed; recovering", reason = reason);
    }

    /// Whether the token has failed this process, and nothing has worked since.
    pub(in crate::token) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// The token failed, and the ladder has not helped.
    pub(super) fn fails(&self) {
        self.failing_since.lock().expect(NO_PANIC).get_or_insert_with(Instant::now);
        self.failing.store(true, Ordering::Relaxed);
    }

    /// A new session did not help: the next recovery starts with the module itself.
    pub(super) fn doubt(&self) {
        self.fails();
        self.doubted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }

    /// Something worked.
    pub(super) fn trust(&self) {
        // Signing comes here each time: read first, so that the cache line stays shared.
        if self.is_failing() {
            *self.failing_since.lock().expect(NO_PANIC) = None;
            self.failing.store(false, Ordering::Relaxed);
            self.doubted.store(false, Ordering::Relaxed);
        }
    }

    /// Third rung of the ladder: initialises the module again, unless another thread did since generation `seen`. The
    /// caller must not hold a visit.
    pub(super) fn reinitialise(&self, seen: u64) -> Result<(), TokenError> {
        let needed = self.exclusive(|state| match &state.phase {
            Phase::PinRefused => Err(TokenError::PinRefused),
            Phase::Closed => Err(closed()),
            Phase::Up(_) if state.generation != seen => Ok(false),
            Phase::Up(_) | Phase::Down(_) if state.last_initialised.elapsed() < REINITIALISE_INTERVAL => {
                let reason = match &state.phase {
                    Phase::Down(reason) => reason,
                    _ => "the module was initialised a moment ago",
                };
                Err(TokenError::Unavailable(reason.to_owned()))
            }
            Phase::Up(_) | Phase::Down(_) => Ok(true),
        })?;
        if !needed {
            return Ok(());
        }
        let started = self.start();
        let mut state = self.state();
        state.generation += 1;
        state.last_initialised = Instant::now();
        state.exclusive = false;
        let outcome = match started {
            Ok(slot) => {
                state.phase = Phase::Up(slot);
                warn_seldom!(self.repeats, "initialised the PKCS#11 module again", generation = state.generation);
                Ok(())
            }
            Err(Failure::Refused(TokenError::PinRefused)) => {
                state.phase = Phase::PinRefused;
                Err(TokenError::PinRefused)
            }
            Err(failure) => {
                let error = TokenError::from(failure);
                let reason = match &error {
                    TokenError::Unavailable(reason) => reason.clone(),
                    other => other.to_string(),
                };
                warn_seldom!(self.repeats, "the token did not come back with a new initialisation", reason = reason);
                state.phase = Phase::Down(reason);
                self.fails();
                Err(error)
            }
        };
        self.changed.notify_all();
        outcome
    }

    /// Finalises the module, once. Whether all calls into it had returned, so that its threads can end.
    pub(in crate::token) fn close(&self) -> bool {
        match self.exclusive(|state| Ok(!matches!(state.phase, Phase::Closed))) {
            Ok(true) => {}
            Ok(false) => return true,
            Err(_) => {
                // A call hangs in the module: leave it there rather than pull the module away under it.
                self.state().phase = Phase::Closed;
                tracing::warn!("a call into the PKCS#11 module has not returned; leaving without C_Finalize");
                return false;
            }
        }
        *self.anchor.lock().expect(NO_PANIC) = None;
        finalise(&self.pkcs11);
        let mut state = self.state();
        state.phase = Phase::Closed;
        state.generation += 1;
        state.exclusive = false;
        self.changed.notify_all();
        true
    }

    /// If `wanted`, keeps visitors out and waits until the last has left. After `true` the caller has the module to itself
    /// and takes `exclusive` back when it is done.
    fn exclusive(&self, wanted: impl Fn(&State) -> Result<bool, TokenError>) -> Result<bool, TokenError> {
        let stuck = || TokenError::Unavailable("a call into the module has not returned".into());
        let (mut state, timeout) =
            self.changed.wait_timeout_while(self.state(), DRAIN_TIMEOUT, |state| state.exclusive).expect(NO_PANIC);
        if timeout.timed_out() {
            return Err(stuck());
        }
        if !wanted(&state)? {
            return Ok(false);
        }
        state.exclusive = true;
        let (mut state, timeout) =
            self.changed.wait_timeout_while(state, DRAIN_TIMEOUT, |state| state.visits > 0).expect(NO_PANIC);
        if timeout.timed_out() {
            state.exclusive = false;
            // The hung call is no reason to stop the others every time that one of them fails.
            state.last_initialised = Instant::now();
            self.changed.notify_all();
            return Err(stuck());
        }
        Ok(true)
    }

    /// Finalises and initialises. Only with `exclusive` set and nobody inside.
    fn start(&self) -> Result<Slot, Failure> {
        // C_Finalize closes it; its handle must not be closed after that.
        *self.anchor.lock().expect(NO_PANIC) = None;
        *self.index() = Index::default();
        finalise(&self.pkcs11);
        initialise(&self.pkcs11)?;
        let slot = self.enter(self.find(Some(&self.identity().serial))?)?;
        self.doubted.store(false, Ordering::Relaxed);
        Ok(slot)
    }

    /// [`Module::start`] for the first time, when nobody would come back to a token that was not seen for a moment.
    fn find_and_enter(&self, serial: Option<&str>) -> Result<Slot, Failure> {
        let begun = Instant::now();
        for pause in UNREADABLE_PAUSES {
            initialise(&self.pkcs11)?;
            match self.find(serial) {
                // A device that takes its time to say so is away.
                Err(Failure::Away(_)) if begun.elapsed() < LOOKING_MAX => {
                    finalise(&self.pkcs11);
                    thread::sleep(pause);
                }
                found => return self.enter(found?),
            }
        }
        initialise(&self.pkcs11)?;
        self.enter(self.find(serial)?)
    }

    fn find(&self, serial: Option<&str>) -> Result<(Slot, TokenIdentity), Failure> {
        find_token(&self.pkcs11, &self.expected.label, serial)
    }

    /// Logs in on a new anchor.
    fn enter(&self, (slot, found): (Slot, TokenIdentity)) -> Result<Slot, Failure> {
        let anchor = log_in(&self.pkcs11, slot, &self.pin, &self.latch)?;
        let asked = Instant::now();
        // Never the other way: a token that comes back empty is not the one that went away (R8).
        if shows_keys(&anchor)? {
            self.holds_keys.store(true, Ordering::Relaxed);
        }
        let search = asked.elapsed();
        // Without one, keys are searched for.
        *self.index() = Index::begin(&anchor, search).unwrap_or_default();
        self.found.get_or_init(|| found);
        *self.anchor.lock().expect(NO_PANIC) = Some(anchor);
        Ok(slot)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut state = self.module.state();
        state.visits -= 1;
        if state.visits == 0 && state.exclusive {
            self.module.changed.notify_all();
        }
    }
}

const REINITIALISE_INTERVAL: Duration = Duration::from_secs(REINITIALISE_INTERVAL_SECS);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(DRAIN_TIMEOUT_SECS);
const SPENT_AFTER: Duration = Duration::from_secs(SPENT_AFTER_SECS);
const SHOWS_NONE: &str = "the token shows none of its keys";
const NO_PANIC: &str = "nothing panics while it holds the module's state";

fn closed() -> TokenError {
    TokenError::Unavailable("the token is closed".into())
}
