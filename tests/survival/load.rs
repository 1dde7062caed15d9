use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keyward::grpc::proto::SignJwtRequest;
use tokio::task::JoinHandle;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use super::stand::{PATIENCE, POLL, Stand, TENANT};
use crate::common::{Clients, claims};

/// A caller that is refused waits so long, as one does who is told to try again.
const PAUSE: Duration = Duration::from_millis(10);

/// Callers that sign without end, each on a connection of its own.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answer>>>,
    callers: Vec<JoinHandle<()>>,
}

/// What a caller was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) begun: Instant,
    pub(crate) took: Duration,
    pub(crate) result: Result<String, Refusal>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) retry: bool,
}

impl Load {
    /// Begins, each call with this deadline.
    pub(crate) async fn start(stand: &Stand, algorithm: &str, callers: usize, deadline: Duration) -> Self {
        Self::start_for(stand, TENANT, &stand.issuer, algorithm, callers, deadline).await
    }

    /// The same for another tenant.
    pub(crate) async fn start_for(
        stand: &Stand,
        tenant: &str,
        issuer: &str,
        algorithm: &str,
        callers: usize,
        deadline: Duration,
    ) -> Self {
        let mut load = Self { stop: Arc::default(), answers: Arc::default(), callers: Vec::new() };
        for _ in 0..callers {
            let clients = Clients::connect(&stand.server).await;
            let (stop, answers) = (Arc::clone(&load.stop), Arc::clone(&load.answers));
            let (tenant, issuer, algorithm) = (tenant.to_owned(), issuer.to_owned(), algorithm.to_owned());
            load.callers.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = call(clients.clone(), &tenant, &algorithm, &issuer, deadline).await;
                    let pause = answer.result.is_err();
                    answers.lock().expect("no panic").push(answer);
                    if pause {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }));
        }
        load
    }

    /// The answers to the calls that were begun since then.
    pub(crate) fn since(&self, moment: Instant) -> Vec<Answer> {
        let answers = self.answers.lock().expect("no panic");
        answers.iter().filter(|answer| answer.begun >= moment).cloned().collect()
    }

    /// Waits for so many signatures of calls that were begun since then; when the last of them came.
    pub(crate) async fn signed(&self, moment: Instant, count: usize) -> Instant {
        let limit = Instant::now() + PATIENCE;
        loop {
            let answers = self.since(moment);
            let mut ends: Vec<_> =
                answers.iter().filter(|answer| answer.result.is_ok()).map(|a| a.begun + a.took).collect();
            ends.sort();
            if let Some(end) = ends.get(count - 1) {
                return *end;
            }
            assert!(Instant::now() < limit, "no signatures in {PATIENCE:?}, but {:?}", answers.last());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends, with every answer.
    pub(crate) async fn end(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("no caller panics");
        }
        self.answers.lock().expect("no panic").clone()
    }
}

async fn call(mut clients: Clients, tenant: &str, algorithm: &str, issuer: &str, deadline: Duration) -> Answer {
    let mut request = Request::new(SignJwtRequest {
        tenant: tenant.into(),
        algorithm: algorithm.into(),
        claims_json: claims(issuer, 600),
        r#type: String::new(),
    });
    request.set_timeout(deadline);
    let begun = Instant::now();
    let result = clients.signing.sign_jwt(request).await;
    let took = begun.elapsed();
    let result = result.map(|answer| answer.into_inner().kid).map_err(|status| Refusal::of(&status));
    Answer { begun, took, result }
}

impl Refusal {
    pub(crate) fn of(status: &tonic::Status) -> Self {
        let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
        Self { code: status.code() as i32, reason, retry: status.get_details_retry_info().is_some() }
    }

    /// UNAVAILABLE, because of the token, with a time to try again.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.code == Code::Unavailable as i32 && self.reason == "TOKEN_UNAVAILABLE" && self.retry
    }
}

/// The duration that this part of all is not longer than.
pub(crate) fn quantile(mut times: Vec<Duration>, part: f64) -> Duration {
    times.sort();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a rank")]
    let rank = (times.len() as f64 * part) as usize;
    times[rank.min(times.len() - 1)]
}
