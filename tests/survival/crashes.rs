//! The module crashes in the middle of C_Sign, a hundred times.

use std::time::{Duration, Instant};

use super::load::Load;
use super::stand::{Isolation, Stand, until};

/// Side by side, so that the pauses before a new worker pass at the same time.
const STANDS: usize = 4;
const CRASHES: usize = 25;
const CALLERS: usize = 4;
/// Two that sign and one for administration; each logs in once, when it starts.
const WORKERS: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(10);
/// Promised are 2 s; four servers and their load on two busy cores get more.
const RETURN_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_crashes_cost_the_calls_that_were_in_the_module_and_no_others() {
    let stands: Vec<_> = (0..STANDS).map(|_| tokio::spawn(crash_again_and_again())).collect();
    let (mut returns, mut refused) = (Vec::new(), 0);
    for stand in stands {
        let (stand_returns, stand_refused) = stand.await.expect("no stand fails");
        returns.extend(stand_returns);
        refused += stand_refused;
    }
    returns.sort();
    println!(
        "{} crashes: {refused} calls failed; all workers back after {:?} in the middle, {:?} at the most",
        returns.len(),
        returns[returns.len() / 2],
        returns[returns.len() - 1]
    );
    assert_eq!(returns.len(), STANDS * CRASHES);
    assert!(returns[returns.len() - 1] < RETURN_MAX, "{returns:?}");
}

/// How long each crash left the service without all its workers, and how many calls failed.
async fn crash_again_and_again() -> (Vec<Duration>, usize) {
    let stand = Stand::new(Isolation::Process, &["ES256"]).await;
    stand.logged_in(WORKERS).await;
    let load = Load::start(&stand, "ES256", CALLERS, DEADLINE).await;
    let mut returns = Vec::new();
    for crash in 1..=CRASHES as u64 {
        stand.faults.set("C_Sign crash once");
        until("C_Sign is called", || stand.faults.fired(0) > 0).await;
        let crashed = Instant::now();
        let signed = load.signed(crashed, 1).await - crashed;
        assert!(signed < RETURN_MAX, "signing stood still for {signed:?}");
        // Only then the next one: two at once would leave nobody to sign.
        stand.logged_in(WORKERS + crash).await;
        returns.push(crashed.elapsed());
    }
    let answers = load.end().await;
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let crashes = CRASHES as f64;
    assert_eq!(stand.replaced("crashed"), crashes);
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.result.as_ref().err()).collect();
    assert!(refused.iter().all(|refusal| refusal.is_unavailable()), "{refused:?}");
    assert!(refused.len() <= CRASHES, "{} calls failed in {CRASHES} crashes", refused.len());
    (returns, refused.len())
}
