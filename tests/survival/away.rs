//! The token's directory is renamed away under load, and put back.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::load::Load;
use super::stand::{Isolation, Stand};
use crate::common::http::get;

const CALLERS: usize = 8;
/// Callers would wait longer than they are to.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the token is away: the service has time to try everything that it knows.
const AWAY: Duration = Duration::from_secs(4);
const REFUSAL_MAX: Duration = Duration::from_secs(1);
const RETURN_MAX: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn processes_outlive_a_token_that_goes_away_under_load() {
    goes_away(Isolation::Process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_outlive_a_token_that_goes_away_under_load() {
    goes_away(Isolation::Thread).await;
}

async fn goes_away(isolation: Isolation) {
    let stand = Stand::new(isolation, &["ES256"]).await;
    let (jwks, rows, pid) = (stand.jwks(), stand.rows().await, stand.server.pid());
    let verifier = Verifier::start(stand.server.jwks_uri(super::stand::TENANT), jwks);
    let load = Load::start(&stand, "ES256", CALLERS, DEADLINE).await;
    let begun = Instant::now();
    load.signed(begun, 100).await;

    let (here, elsewhere) = (stand.installation.token_dir(), stand.installation.dir().join("elsewhere"));
    let gone = Instant::now();
    fs::rename(&here, &elsewhere).expect("renamed away");
    tokio::time::sleep(AWAY).await;
    assert_eq!(stand.rows().await, rows, "a row was changed while the token was away");
    fs::rename(&elsewhere, &here).expect("put back");
    let back = Instant::now();
    let returned = load.signed(back, 1).await - back;
    load.signed(back, 100).await;

    let answers = load.end().await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.result.is_err()).collect();
    let slowest = refused.iter().map(|answer| answer.took).max().expect("some were refused");
    println!(
        "{isolation:?}: {} refused while the token was away, the slowest after {slowest:?}; signing {returned:?} after its return",
        refused.len()
    );
    for answer in &refused {
        let refusal = answer.result.as_ref().expect_err("refused");
        assert!(refusal.is_unavailable(), "{answer:?}");
        assert!(answer.took < REFUSAL_MAX, "{answer:?}");
    }
    let signed_without = answers.iter().filter(|a| a.result.is_ok() && a.begun > gone + REFUSAL_MAX && a.begun < back);
    // One that was begun just before the token was put back may have been signed just after.
    assert!(signed_without.filter(|answer| answer.begun + answer.took < back).count() == 0, "without its token");
    assert!(returned < RETURN_MAX, "signing came back after {returned:?}");
    let kids: BTreeSet<_> = answers.iter().filter_map(|answer| answer.result.as_ref().ok()).collect();
    assert_eq!(kids.len(), 1, "the kid is the same all along");
    assert_eq!(stand.rows().await, rows, "a row was changed");
    assert!(verifier.end() > 50, "the JWKS was served all along");
    assert_eq!(stand.server.pid(), pid);
    assert!(get(&format!("{}/healthz", stand.server.ops())).status == 200, "no restart");
}

/// Fetches the JWKS all the time, and expects the same octets each time.
struct Verifier {
    ending: Arc<AtomicBool>,
    fetching: thread::JoinHandle<usize>,
}

impl Verifier {
    fn start(url: String, expected: Vec<u8>) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&ending);
        let fetching = thread::spawn(move || {
            let mut fetched = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = get(&url);
                assert_eq!(answer.status, 200);
                assert_eq!(answer.body, expected, "another JWKS");
                fetched += 1;
                thread::sleep(Duration::from_millis(20));
            }
            fetched
        });
        Self { ending, fetching }
    }

    /// How often it was fetched.
    fn end(self) -> usize {
        self.ending.store(true, Ordering::Relaxed);
        self.fetching.join().expect("the JWKS was as it was all along")
    }
}
