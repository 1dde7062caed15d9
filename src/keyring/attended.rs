//! A token that is attended: what every call and the canary show of it decides whether it is asked at all.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Canary;
use super::standing::{Seen, Standing, TokenState};
use crate::domain::{Algorithm, ObjectId, Timestamp, TokenName};
use crate::token::{
    Found, KeyRef, KeySpec, SignInput, Support, Token, TokenError, TokenIdentity, TokenKey, TokenObject,
};

/// How long the canary may take before the token counts as away, unless it answers others: far beyond a healthy answer, short
/// enough to be of use.
const CANARY_WAIT_MAX: Duration = Duration::from_secs(2);

/// A call that waited less than this says nothing of the token: its caller was in a hurry.
const OVERDUE_MIN: Duration = Duration::from_millis(250);

/// A token, and how it stands.
///
/// While it is down, every verb is answered at once, [`TokenError::Down`], without it. Signatures are answered at their
/// deadline, whatever the token does.
pub struct Attended {
    name: TokenName,
    token: Arc<dyn Token>,
    standing: Mutex<Standing>,
    /// Whether the state is down; beside the lock, because each signature asks.
    is_down: AtomicBool,
    told: watch::Sender<Option<TokenHealth>>,
    /// For whoever looks at several tokens.
    news: watch::Sender<()>,
    /// There is a reason to ask the canary sooner.
    suspected: Notify,
    started: Instant,
    /// When the token last gave signatures: milliseconds after `started`, plus one; 0: never.
    signed_ms: AtomicU64,
}

/// How a token stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHealth {
    /// Its state.
    pub state: TokenState,
    /// Since when.
    pub since: Timestamp,
    /// What is wrong, in words for the operator; empty while it is up.
    pub problem: String,
}

impl Attended {
    /// The token, of which nothing is known yet: calls go to it until the canary says otherwise. What becomes known is `news`, too.
    #[must_use]
    pub(super) fn new(name: TokenName, token: Arc<dyn Token>, news: watch::Sender<()>) -> Self {
        Self {
            name,
            token,
            news,
            standing: Mutex::new(Standing::new()),
            is_down: AtomicBool::new(false),
            told: watch::Sender::new(None),
            suspected: Notify::new(),
            started: Instant::now(),
            signed_ms: AtomicU64::new(0),
        }
    }

    /// What it is called in the configuration.
    #[must_use]
    pub fn name(&self) -> &TokenName {
        &self.name
    }

    /// The token itself, which is asked whatever is known of it.
    pub(super) fn unattended(&self) -> &dyn Token {
        &*self.token
    }

    /// Signs with the canary until `shutdown`: seldom while all is well, at once when something is not, and with growing pauses
    /// while the token is down. It alone asks a token that is down, and so sets its recovery going.
    pub async fn attend(&self, canary: &Canary, shutdown: CancellationToken) {
        loop {
            let asked = Instant::now();
            let Some(signed) = shutdown.run_until_cancelled(canary.probe(&*self.token, CANARY_WAIT_MAX)).await else {
                return;
            };
            self.see_canary(signed, asked);
            if shutdown.run_until_cancelled(self.pause(asked)).await.is_none() {
                return;
            }
        }
    }

    /// How it stands, at any time; `None` before the canary has signed or failed for the first time.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<TokenHealth>> {
        self.told.subscribe()
    }

    /// How it stands now.
    #[must_use]
    pub fn health(&self) -> Option<TokenHealth> {
        self.told.borrow().clone()
    }

    /// Whether it is not asked at the moment.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire)
    }

    /// Something is not as it should be: the canary is asked at once.
    pub(super) fn suspect(&self, problem: String) {
        self.see(Seen::CallFailed(problem));
    }

    /// Until the next canary is due, which may become sooner in between.
    async fn pause(&self, asked: Instant) {
        loop {
            let pause = self.lock().pause();
            let due = async {
                match pause {
                    Some(pause) => tokio::time::sleep_until((asked + pause).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                () = self.suspected.notified() => {}
            }
        }
    }

    /// It has no canary yet, and this is why.
    pub(super) fn see_failure(&self, error: &TokenError) {
        self.see(match error {
            TokenError::PinRefused => Seen::PinRefused(error.to_string()),
            error => Seen::CanaryFailed(error.to_string()),
        });
    }

    fn see_canary(&self, signed: Result<(), TokenError>, asked: Instant) {
        let before = asked.checked_sub(CANARY_WAIT_MAX).unwrap_or(asked);
        match signed {
            Ok(()) => self.see(Seen::CanarySigned),
            // So busy with others that the canary waits, or has no place to: a token at work.
            Err(TokenError::Late) if self.has_signed_since(asked) => {}
            Err(TokenError::QueueFull { .. }) if self.has_signed_since(before) => {}
            Err(TokenError::QueueFull { .. } | TokenError::Late) => {
                self.see(Seen::CanaryFailed(format!("no answer within {} s", CANARY_WAIT_MAX.as_secs())));
            }
            Err(
                error @ (TokenError::PinRefused
                | TokenError::Unavailable(_)
                | TokenError::Down { .. }
                | TokenError::Unsupported(_)
                | TokenError::Mismatch(_)),
            ) => self.see_failure(&error),
        }
    }

    /// What the answer to a call says of the token.
    fn see_answer<T>(&self, answer: &Result<T, TokenError>) {
        match answer {
            Ok(_)
            // Of a queue and of the request, not of the token.
            | Err(TokenError::QueueFull { .. } | TokenError::Late | TokenError::Down { .. } | TokenError::Unsupported(_)) => {}
            // Refused to one session, the PIN takes nothing from those that are logged in: the canary tells.
            Err(error @ (TokenError::Unavailable(_) | TokenError::Mismatch(_) | TokenError::PinRefused)) => {
                self.suspect(error.to_string());
            }
        }
    }

    /// The same of a signature, which tells more: that the token signs, or that it does not answer anybody.
    fn see_signature(&self, answer: &Result<Vec<Vec<u8>>, TokenError>, asked: Instant) {
        match answer {
            Ok(_) => self.note_signed(),
            Err(TokenError::Late) if asked.elapsed() >= OVERDUE_MIN && !self.has_signed_since(asked) => {
                self.suspect("it does not answer".to_owned());
            }
            _ => self.see_answer(answer),
        }
    }

    fn see(&self, seen: Seen) {
        let mut standing = self.lock();
        let before = standing.state();
        let changed = standing.see(seen, Instant::now());
        let (state, problem) = (standing.state(), standing.problem());
        self.is_down.store(state == TokenState::Down, Ordering::Release);
        let modified = self.told.send_if_modified(|told| {
            let since = told.as_ref().filter(|_| !changed).map(|told| told.since);
            // Nothing is told before the canary was asked.
            let known = changed || told.is_some();
            let health = known.then(|| TokenHealth {
                state,
                since: since.unwrap_or_else(Timestamp::now),
                problem: problem.to_owned(),
            });
            let modified = *told != health;
            *told = health;
            modified
        });
        if modified {
            self.news.send_replace(());
        }
        if changed {
            tell_change(&self.name, before, state, problem);
            self.suspected.notify_one();
        }
    }

    /// Leave to ask the token, unless it is down.
    pub(super) fn admit(&self) -> Result<(), TokenError> {
        if !self.is_down() {
            return Ok(());
        }
        let standing = self.lock();
        if standing.is_pin_refused() {
            return Err(TokenError::PinRefused);
        }
        // The state may be another by now: then the next attempt is let through.
        let retry_after = standing.pause().unwrap_or_default();
        Err(TokenError::Down { problem: standing.problem().to_owned(), retry_after })
    }

    async fn ask<T>(&self, call: impl Future<Output = Result<T, TokenError>>) -> Result<T, TokenError> {
        self.admit()?;
        let answer = call.await;
        self.see_answer(&answer);
        answer
    }

    fn note_signed(&self) {
        let now = self.millis(Instant::now());
        // Each signature comes here: read first, so that the cache line stays shared.
        if self.signed_ms.load(Ordering::Relaxed) < now {
            self.signed_ms.store(now, Ordering::Relaxed);
        }
    }

    fn has_signed_since(&self, asked: Instant) -> bool {
        self.signed_ms.load(Ordering::Relaxed) > self.millis(asked)
    }

    fn millis(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.started).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX - 1) + 1
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_change(token: &TokenName, before: TokenState, state: TokenState, problem: &str) {
    let labels = [("state", state.word().to_owned()), ("token", token.to_string())];
    metrics::counter!("keyward_token_state_changes_total", &labels).increment(1);
    match state {
        TokenState::Up if before == TokenState::Suspect => tracing::info!(%token, "the token is up"),
        TokenState::Up => tracing::info!(%token, "the token is up again"),
        TokenState::Suspect => tracing::warn!(%token, problem, "the token is suspect: it is asked to sign at once"),
        TokenState::Down => {
            tracing::error!(%token, problem, "the token is down: calls that need it are refused at once")
        }
        TokenState::Recovering => tracing::warn!(%token, "the token is recovering: calls go to it again"),
    }
}

#[async_trait]
impl Token for Attended {
    async fn generate(&self, object: ObjectId, spec: KeySpec) -> Result<TokenKey, TokenError> {
        self.ask(self.token.generate(object, spec)).await
    }

    async fn find(&self, object: ObjectId, algorithm: Algorithm) -> Result<Found, TokenError> {
        self.ask(self.token.find(object, algorithm)).await
    }

    async fn sign(
        &self,
        key: &Arc<KeyRef>,
        inputs: Vec<SignInput>,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, TokenError> {
        self.admit()?;
        let asked = Instant::now();
        // A token that hangs holds no caller: what it answers later is dropped, and the caller's signer with it (R10).
        let answer = tokio::time::timeout_at(deadline.into(), self.token.sign(key, inputs, deadline)).await;
        let answer = answer.unwrap_or(Err(TokenError::Late));
        self.see_signature(&answer, asked);
        answer
    }

    async fn destroy(&self, object: ObjectId) -> Result<(), TokenError> {
        self.ask(self.token.destroy(object)).await
    }

    async fn list(&self) -> Result<Vec<TokenObject>, TokenError> {
        self.ask(self.token.list()).await
    }

    async fn mechanisms(&self) -> Result<Vec<Support>, TokenError> {
        self.ask(self.token.mechanisms()).await
    }

    async fn probe(&self) -> Result<TokenIdentity, TokenError> {
        self.ask(self.token.probe()).await
    }
}

impl std::fmt::Debug for Attended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attended").field("name", &self.name).finish_non_exhaustive()
    }
}
