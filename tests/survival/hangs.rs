//! A call of C_Sign hangs in the module.

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use super::load::{Answer, Load, quantile};
use super::stand::{Isolation, PATIENCE, POLL, Stand, until};
use crate::common::Installation;

const CALLERS: usize = 4;
const HANGS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(1);
/// How long the others are measured before the first hang.
const MEASURED: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_costs_one_call_until_its_deadline_and_others_little() {
    // The caller's own deadline would be kept by its client, whatever the server does; this one is the server's to keep.
    let wait_max = DEADLINE.as_millis().to_string();
    let stand = Stand::with(Isolation::Process, &["ES256"], |it| it.set("signing.wait_max_ms", &wait_max)).await;
    let load = Load::start(&stand, "ES256", CALLERS, PATIENCE).await;
    let begun = Instant::now();
    tokio::time::sleep(MEASURED).await;
    let hanging = Instant::now();
    let limit = hanging + PATIENCE;
    for hang in 1..=HANGS {
        stand.faults.set("C_Sign hang once");
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let counted = hang as f64;
        while stand.replaced("hung") < counted {
            assert!(Instant::now() < limit, "worker {hang} was not replaced");
            tokio::time::sleep(POLL).await;
        }
    }
    load.signed(Instant::now(), 50).await;
    let answers = load.end().await;

    let (before, after): (Vec<Answer>, Vec<Answer>) =
        answers.into_iter().filter(|answer| answer.begun >= begun).partition(|answer| answer.begun < hanging);
    let (signed, refused): (Vec<_>, Vec<_>) = after.into_iter().partition(|answer| answer.result.is_ok());
    let times = |answers: &[Answer]| answers.iter().map(|answer| answer.took).collect::<Vec<_>>();
    let (p99_before, p99_after) = (quantile(times(&before), 0.99), quantile(times(&signed), 0.99));
    let overshoot = refused.iter().map(|answer| answer.took.saturating_sub(DEADLINE)).max().unwrap_or_default();
    println!(
        "{HANGS} hangs: {} calls at their deadline, the latest {overshoot:?} after it; p99 of the others {p99_before:?} before, \
         {p99_after:?} with hangs ({} and {} calls)",
        refused.len(),
        before.len(),
        signed.len()
    );
    // The canary's call may be the one that hangs.
    assert!(refused.len() <= HANGS, "{refused:?}");
    for answer in &refused {
        assert_eq!(answer.result.as_ref().expect_err("refused").code, Code::DeadlineExceeded as i32, "{answer:?}");
    }
    // Promised are 50 ms and twice the p99. A machine that stops this process for a while breaks both, and a service that waits
    // for the hung call breaks these.
    assert!(overshoot < Duration::from_millis(500), "answered {overshoot:?} after the deadline");
    assert!(p99_after < 2 * p99_before + Duration::from_millis(200), "{p99_before:?} before, {p99_after:?} after");
}

/// A thread cannot be ended, and as many sign at a time as there are cores: those that hang have others sign in their place.
#[tokio::test(flavor = "multi_thread")]
async fn threads_that_hang_cost_a_call_each_and_leave_their_turns_to_others() {
    let cores = available_parallelism().expect("a number of cores").get();
    let (workers, wait_max) = ((cores + 2).to_string(), DEADLINE.as_millis().to_string());
    let configure = |it: Installation| it.set("token.workers", &workers).set("signing.wait_max_ms", &wait_max);
    let stand = Stand::with(Isolation::Thread, &["ES256"], configure).await;
    let load = Load::start(&stand, "ES256", cores + CALLERS, PATIENCE).await;
    load.signed(Instant::now(), 20).await;
    stand.faults.set(&format!("C_Sign hang {cores} times"));
    let limit = Instant::now() + PATIENCE;
    while stand.faults.fired(0) < u64::try_from(cores).expect("a few") {
        assert!(Instant::now() < limit, "not all hang: {}", stand.faults.fired(0));
        tokio::time::sleep(POLL).await;
    }
    // All hang until the file changes.
    let last = load.signed(Instant::now(), 100).await;
    stand.faults.clear();
    load.signed(last, 20).await;
    let refused: Vec<_> = load.end().await.into_iter().filter(|answer| answer.result.is_err()).collect();
    // The canary's call may be one of those that hang.
    assert!(refused.len() <= cores, "{refused:?}");
    for answer in &refused {
        assert_eq!(answer.result.as_ref().expect_err("refused").code, Code::DeadlineExceeded as i32, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_token_hangs_ends_when_it_is_told_to() {
    for isolation in [Isolation::Process, Isolation::Thread] {
        let stand = Stand::new(isolation, &["ES256"]).await;
        stand.faults.set("C_Sign hang");
        until("C_Sign is called", || stand.faults.fired(0) > 0).await;
        assert!(stand.server.terminate().success(), "{isolation:?}");
    }
}

#[test]
fn a_start_that_hangs_ends_when_it_is_told_to() {
    for isolation in ["process", "thread"] {
        let (installation, faults) = Installation::bare().with_faults();
        let installation = installation.set("token.isolation", &format!("{isolation:?}")).init();
        faults.set("C_Login hang");
        let mut service = installation.command("serve").spawn().expect("a service");
        let limit = Instant::now() + PATIENCE;
        while faults.fired(0) == 0 {
            assert!(Instant::now() < limit, "{isolation}: C_Login is not called");
            std::thread::sleep(POLL);
        }
        kill_process(Pid::from_child(&service), Signal::TERM).expect("it lives");
        while service.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < limit, "{isolation}: it does not end");
            std::thread::sleep(POLL);
        }
    }
}
