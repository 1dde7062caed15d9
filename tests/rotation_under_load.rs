//! R3 and R4 under load: signing at full speed goes on through many rotations without one failed call, and a verifier that
//! caches the JWKS for its max-age always has the key of a JWT, from its arrival to its `exp`.

mod common;

use std::time::Duration;

use common::Installation;
use common::under_load::{policy, through_rotations};

const ROTATIONS: usize = 20;
/// Half of all calls are quicker, or this is not full speed: a client that delays its ACKs does so for 40 ms. Without that wait
/// two busy cores and a debug build take 3 ms.
const MEDIAN_CALL_MAX_MILLIS: u64 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caching_verifier_knows_every_key_through_twenty_rotations_at_full_speed() {
    let installation = Installation::prepare().set("limits.manual_rotations_per_day", "1000");
    let median = through_rotations(&[installation.serve()], policy(), ROTATIONS).await;
    assert!(median < Duration::from_millis(MEDIAN_CALL_MAX_MILLIS), "{median:?} is not full speed");
}
