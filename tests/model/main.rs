//! The keyring loop under random histories: two replicas, faults, crashes and clocks that jump.
//!
//! The loop is the real one. What it runs on is a world in memory (`world`), where each call of the token or the store
//! waits until the history lets it happen, fail, or fail although it happened; `history` says what a history may do, and
//! `rules` holds R2 to R8 against every commit. A history that breaks a rule is shrunk and printed.
//!
//! `KEYWARD_MODEL_SEED` and `KEYWARD_MODEL_CASES` try other histories, and more of them.

mod history;
mod rules;
mod world;

use std::fmt::Debug;
use std::str::FromStr;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use history::{Op, Start, run};
use world::Clocks;

fn check(clocks: Clocks, replicas: usize, cases: u32) {
    let cases = variable("KEYWARD_MODEL_CASES").unwrap_or(cases);
    let seed: u64 = variable("KEYWARD_MODEL_SEED").unwrap_or(7);
    // ChaCha takes half the time in a build that is not optimised, and nothing here is secret.
    let mut octets = [1; 16];
    octets[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &octets);
    let histories = (prop::sample::select(&Start::ALL[..]), prop::collection::vec(Op::any(replicas), 4..44));
    let outcome = TestRunner::new_with_rng(config, rng)
        .run(&histories, |(start, ops)| run(clocks, replicas, start, &ops).map_err(TestCaseError::fail));
    if let Err(failure) = outcome {
        panic!("seed {seed}: {failure}");
    }
}

fn variable<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|text| text.parse().expect("the variable holds a number"))
}

#[test]
fn two_replicas_with_clocks_within_the_skew_keep_every_promise_to_verifiers() {
    check(Clocks::Skewed, 2, 6_000);
}

#[test]
fn two_replicas_with_clocks_that_jump_keep_the_rules_by_what_their_clocks_say() {
    check(Clocks::Wild, 2, 6_000);
}

#[test]
fn a_process_alone_takes_up_what_its_crashes_left() {
    check(Clocks::Wild, 1, 4_000);
}
