use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{TrustedKeys, fetch};
use crate::domain::WebUrl;
use crate::telemetry::Warnings;
use crate::tls::Roots;

/// How long a caller whose key is unknown waits for the answer of the issuer: a little longer than it may take.
const LOOK_AGAIN_MAX: Duration = fetch::FETCH_MAX.saturating_add(Duration::from_secs(1));

/// The keys of an issuer as they stand at its URL. One fetch is made at a time, and all callers share it.
pub struct Fetched {
    url: WebUrl,
    roots: watch::Receiver<Arc<Roots>>,
    times: FetchTimes,
    state: watch::Sender<State>,
    wanted: Notify,
}

/// When the URL is asked, and how long an answer counts.
#[derive(Clone, Copy, Debug)]
pub struct FetchTimes {
    /// How often it is asked anyway.
    pub refresh: Duration,
    /// How long it is left alone after each time, whatever callers send and however it failed.
    pub cooldown: Duration,
    /// How old an answer may become while no other is to be had; the keys in it are then trusted no more.
    pub age_max: Duration,
}

/// What came of asking again.
pub(super) enum Looked {
    /// The keys are as the issuer has them now.
    Anew,
    /// The issuer is left alone for so long, or did not answer.
    NotYet(Duration),
}

/// Keys that were passed over and are told of in one line of the log.
const PASSED_OVER_TOLD_MAX: usize = 8;

#[derive(Default)]
struct State {
    keys: Option<(Arc<TrustedKeys>, Instant)>,
    /// When the last fetch began.
    began: Option<Instant>,
    under_way: bool,
    ended: u64,
    failing: bool,
    /// What is wrong with keys of the last answer.
    passed_over: Vec<String>,
}

impl Fetched {
    /// The keys at `url`, whose host must show a certificate of one of `roots` where it is https. Nothing is fetched yet:
    /// [`Fetched::keep_up`] does.
    #[must_use]
    pub fn new(url: WebUrl, roots: watch::Receiver<Arc<Roots>>, times: FetchTimes) -> Self {
        Self { url, roots, times, state: watch::Sender::new(State::default()), wanted: Notify::new() }
    }

    /// The keys of the last good answer, unless it is too old.
    #[must_use]
    pub fn latest(&self) -> Option<Arc<TrustedKeys>> {
        let state = self.state.borrow();
        let young = state.keys.as_ref().filter(|(_, since)| since.elapsed() <= self.times.age_max);
        young.map(|(keys, _)| Arc::clone(keys))
    }

    /// Has the URL asked again, unless it was a moment ago, and waits for the answer.
    pub(super) async fn look_again(&self) -> Looked {
        let mut told = self.state.subscribe();
        let before = {
            let state = told.borrow();
            if !state.under_way {
                let left = self.left_alone(&state);
                if !left.is_zero() {
                    return Looked::NotYet(left);
                }
                self.wanted.notify_one();
            }
            state.ended
        };
        match timeout(LOOK_AGAIN_MAX, told.wait_for(|state| state.ended > before)).await {
            Ok(Ok(state)) if !state.failing => Looked::Anew,
            Ok(Ok(state)) => Looked::NotYet(self.left_alone(&state)),
            Ok(Err(_)) | Err(_) => Looked::NotYet(self.times.cooldown),
        }
    }

    /// How long it is before the URL may be asked again.
    fn left_alone(&self, state: &State) -> Duration {
        state.began.map_or(Duration::ZERO, |began| self.times.cooldown.saturating_sub(began.elapsed()))
    }

    /// Keeps [`Fetched::latest`] up to date until `shutdown`; `warnings` tell, under this configuration key, of a URL that
    /// does not give what it should.
    pub async fn keep_up(self: Arc<Self>, key: &'static str, warnings: Warnings, shutdown: CancellationToken) {
        let begun_and_ended = async {
            loop {
                let began = Instant::now();
                let came = self.fetch(began).await;
                metrics::gauge!("keyward_jwks_usable", "key" => key).set(if came { 1.0 } else { 0.0 });
                if came {
                    warnings.clear(key);
                } else {
                    warnings.set(key, "gives no keys at the moment; the log says why");
                }
                // What failed is asked for again soon; what callers want, when the URL was left alone for long enough.
                let pause = if came { self.times.refresh } else { self.times.cooldown };
                tokio::select! {
                    () = sleep(pause) => {}
                    () = async {
                        self.wanted.notified().await;
                        sleep_until(began + self.times.cooldown).await;
                    } => {}
                }
            }
        };
        shutdown.run_until_cancelled(begun_and_ended).await;
    }

    async fn fetch(&self, began: Instant) -> bool {
        self.state.send_modify(|state| {
            state.began = Some(began);
            state.under_way = true;
        });
        let roots = Arc::clone(&self.roots.borrow());
        let fetched = fetch::get(self.url.as_str(), &roots).await;
        let keys = fetched.and_then(|json| {
            TrustedKeys::parse_fetched(&json).map_err(|problem| format!("answers with what {problem}"))
        });
        let came = keys.is_ok();
        self.state.send_modify(|state| {
            state.under_way = false;
            state.ended += 1;
            match keys {
                Ok((keys, mut passed_over)) => {
                    let more = passed_over.len().saturating_sub(PASSED_OVER_TOLD_MAX);
                    passed_over.truncate(PASSED_OVER_TOLD_MAX);
                    if state.passed_over != passed_over && !passed_over.is_empty() {
                        let url = self.url.as_str();
                        tracing::warn!(url, keys = ?passed_over, more, "keys of the issuer cannot be used: the others are");
                    }
                    state.passed_over = passed_over;
                    if std::mem::take(&mut state.failing) || state.keys.is_none() {
                        tracing::info!(url = self.url.as_str(), "the issuer's keys were fetched");
                    }
                    // The same keys stay the same value, so that what was verified with them need not be again.
                    let keys = match state.keys.take() {
                        Some((old, _)) if *old == keys => old,
                        _ => Arc::new(keys),
                    };
                    state.keys = Some((keys, Instant::now()));
                }
                Err(problem) => {
                    tracing::error!(
                        url = self.url.as_str(),
                        problem,
                        "the issuer's keys cannot be fetched: the old ones stay for a time"
                    );
                    state.failing = true;
                }
            }
        });
        came
    }
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("url", &self.url).field("times", &self.times).finish_non_exhaustive()
    }
}
