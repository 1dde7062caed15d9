//! One cell of the table: a return value, how long, in which function, and what comes of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tonic::{Code, Status};

use super::stand::{PATIENCE, POLL, Stand};

/// A caller that is refused tries again after so long.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a fault lasts that is for good: all that the service does by itself has been tried by then.
const FOR_GOOD: Duration = Duration::from_secs(2);
/// A fault comes alone: so long after the one before, as the module is not initialised twice in a second, and as the token is not
/// suspected again within two seconds after its canary signed.
const APART: Duration = Duration::from_millis(2200);
/// A return that takes longer is a failure on any machine; printed is how long it took.
const RETURN_MAX: Duration = Duration::from_secs(20);
/// How many calls follow one fault, so that one that comes a call later is seen, too.
const CALLS_AFTER_ONE: usize = 3;
/// What a rotation is told for which there is no next key yet.
const MISSING_KEY: &str = "FAILED_PRECONDITION";

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasting {
    Once,
    ASecond,
    ForGood,
}

/// Where a fault is, and what makes the service call the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) function: &'static str,
    /// A rule without which the service would not come to it.
    pub(crate) trigger: &'static str,
    pub(crate) call: Call,
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    SignJwt,
    RotateSigningKey,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    call: Call,
    lasting: Lasting,
    /// What the first caller was told; `None`: all is well.
    first: Option<&'static str>,
    /// What any caller was told while the fault lasted.
    refusals: BTreeSet<&'static str>,
    new_worker: bool,
}

impl Outcome {
    pub(crate) fn is_noticed(&self) -> bool {
        !self.refusals.is_empty()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let refusals = self.refusals.iter().copied().collect::<Vec<_>>().join(" or ");
        match (self.call, self.first) {
            // How far the ladder is climbed by the end of the second is the machine's speed.
            (Call::RotateSigningKey, None) if self.lasting == Lasting::ASecond => {
                write!(f, "rotated; the next one may be {refusals}")?;
            }
            _ if !self.is_noticed() => write!(f, "not noticed")?,
            // A rotation makes the key that comes next when it is done itself.
            (Call::RotateSigningKey, None) => write!(f, "rotated; the next one {refusals}")?,
            _ => write!(f, "{refusals}")?,
        }
        if self.new_worker { write!(f, ", new worker") } else { Ok(()) }
    }
}

impl Stand {
    /// Makes the fault, has callers call, and waits until all is well again. What came of it, and how long after the fault had
    /// ended all was well.
    pub(crate) async fn suffer(&mut self, place: Place, value: &str, lasting: Lasting) -> (Outcome, Duration) {
        tokio::time::sleep(APART).await;
        let workers = self.workers_replaced();
        let when = match lasting {
            Lasting::Once => "once",
            Lasting::ASecond => "for 1s",
            Lasting::ForGood => "",
        };
        self.faults.set(&format!("{} answer {value} {when}\n{}", place.function, place.trigger));
        let begun = Instant::now();
        let mut told = Vec::new();
        while match lasting {
            Lasting::Once => told.len() < CALLS_AFTER_ONE,
            Lasting::ASecond => begun.elapsed() < Duration::from_secs(1),
            Lasting::ForGood => begun.elapsed() < FOR_GOOD,
        } {
            let refusal = self.call(place.call).await.err().map(|status| code(&status));
            if refusal.is_some() {
                tokio::time::sleep(PAUSE).await;
            }
            told.push(refusal);
        }
        if lasting == Lasting::ForGood {
            assert!(self.faults.fired(0) > 0, "{place:?} was not reached");
            self.faults.clear();
        }
        let returned = self.until_back(place.call).await;
        assert!(returned < RETURN_MAX, "{} {value} {lasting:?}: back after {returned:?}", place.function);
        self.until_calm().await;
        let new_worker = self.workers_replaced() > workers;
        let mut refusals: BTreeSet<_> = told.iter().flatten().copied().collect();
        if place.call == Call::RotateSigningKey && lasting == Lasting::ASecond && told[0].is_none() {
            refusals.insert(MISSING_KEY);
        }
        (Outcome { call: place.call, lasting, first: told[0], refusals, new_worker }, returned)
    }

    async fn call(&mut self, call: Call) -> Result<(), Status> {
        match call {
            Call::SignJwt => self.sign("ES256").await.map(drop),
            Call::RotateSigningKey => {
                let rotated = self.rotate("ES256").await;
                self.sign("ES256").await.expect("signing goes on without new keys");
                rotated
            }
        }
    }

    /// Waits until a call succeeds; how long that was.
    async fn until_back(&mut self, call: Call) -> Duration {
        let begun = Instant::now();
        while let Err(status) = self.call(call).await {
            assert!(begun.elapsed() < PATIENCE, "not back: {status:?}");
            tokio::time::sleep(POLL).await;
        }
        begun.elapsed()
    }

    fn workers_replaced(&self) -> f64 {
        ["crashed", "hung", "spent"].map(|how| self.replaced(how)).iter().sum()
    }
}

/// The code, as gRPC writes it.
fn code(status: &Status) -> &'static str {
    match status.code() {
        Code::Unavailable => "UNAVAILABLE",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Internal => "INTERNAL",
        Code::FailedPrecondition => MISSING_KEY,
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        other => panic!("a caller is told {other:?}: {status:?}"),
    }
}
