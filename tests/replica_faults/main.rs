//! Three replicas on one database and one token, while all of them and the way between them fail again and again.
//!
//! Callers sign, rotate, revoke, make and delete tenants by whichever replica answers, and write down what they asked and were told
//! (`load`); verifiers fetch the JWKS and keep it for as long as they may. Meanwhile `cluster` kills, stops and cuts off. Then everything
//! heals, and `history` holds what was told against the rules.

#[path = "../common/mod.rs"]
mod common;

mod cluster;
mod history;
mod load;

use std::time::Instant;

use cluster::{Cluster, Dice};
use load::Load;

/// How many faults: enough that each kind comes several times. `KEYWARD_TEST_FAULTS=500` has been the longer run.
const FAULTS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_rule_is_broken_and_nothing_acknowledged_is_lost_whatever_fails() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let faults = number("KEYWARD_TEST_FAULTS").map_or(FAULTS, |faults| usize::try_from(faults).expect("fewer"));
    let seed = number("KEYWARD_TEST_SEED").unwrap_or_else(Dice::any_seed);
    println!("KEYWARD_TEST_SEED={seed}");
    let mut dice = Dice::of(seed);

    let mut cluster = Cluster::start(3).await;
    let load = Load::begin(&cluster, dice.next()).await;
    let begun = Instant::now();
    for _ in 0..faults {
        cluster.fault(&mut dice).await;
        load.is_going_on().await;
    }
    println!("{faults} faults in {:?}: {}", begun.elapsed(), cluster.counts());
    let told = load.end().await;
    let end = cluster.end(&told).await;
    let broken = history::broken(&told, &end);
    println!("{}", history::summary(&told, &end));
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
