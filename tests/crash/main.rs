//! The real binary killed with -9, again and again, in the middle of everything that it does to keys.
//!
//! Each round lets one operation run (create, rotate, revoke and destroy, delete, or the recovery of the round before),
//! kills the process at a random moment of it, starts it again, waits until the keyrings rest, and holds the result against
//! the rules: R2, R4 and R6 of `docs/rotation.md`. What each kill left in the store is counted and printed.

#[path = "../common/mod.rs"]
mod common;
mod inspect;
mod story;

use common::Installation;
use proptest::test_runner::{RngAlgorithm, TestRng};
use story::Story;

/// Kills of each test; four run side by side.
const KILLS: usize = 55;

/// Kills `KILLS` times. The seed decides operations and moments; where in an operation a moment falls is up to the machine.
fn survive(name: &str, seed: u8, algorithms: &'static [&'static str]) {
    let installation = Installation::prepare().set("limits.manual_rotations_per_day", "10000");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut story = Story::new(installation, random, algorithms);
    for _ in 0..KILLS {
        runtime.block_on(story.round());
    }
    let left = story.end(&runtime);
    println!("{name}: {KILLS} kills left {left:?}");
}

#[test]
fn kills_while_keys_on_curves_are_made_rotated_and_destroyed() {
    survive("ES256", 1, &["ES256"]);
}

#[test]
fn kills_while_edwards_keys_are_made_rotated_and_destroyed() {
    survive("EdDSA", 2, &["EdDSA"]);
}

#[test]
fn kills_while_two_keyrings_are_made_rotated_and_destroyed() {
    survive("HS256 and EdDSA", 3, &["HS256", "EdDSA"]);
}

#[test]
fn kills_while_rsa_keys_are_made_rotated_and_destroyed() {
    survive("RS256", 4, &["RS256"]);
}

/// Looks at token and store from a process of its own; PKCS#11 allows one initialisation a process.
#[test]
fn every_object_on_the_token_has_its_account_in_the_store() {
    if let Some(directory) = std::env::var_os(inspect::DIRECTORY_VARIABLE) {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(inspect::inspect(directory.as_ref()));
        return;
    }
    let installation = Installation::prepare();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let server = installation.serve();
        let mut clients = common::Clients::connect(&server).await;
        clients.create_tenant("acme", &["ES256", "RS256"], common::short_policy()).await;
        assert!(server.terminate().success());
    });
    inspect::in_a_child(&installation);
}
