//! What a signature takes of the token's time, learned from those who work.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{Algorithm, Family, PublicKey};
use crate::token::KeyRef;

/// RSA keys of up to 2048, of up to 3072 and of more bits; of other types each algorithm has one size.
const SIZES: usize = 3;

/// How much of a report is believed: a token that has changed its pace is known after some twenty jobs, and one job that was
/// interrupted is forgotten after as many.
const LEARNED: f64 = 1.0 / 16.0;

/// A report beyond so many times the estimate counts for as much: a job that hung for seconds says nothing about the next.
const SURPRISE_MAX: f64 = 4.0;

/// Estimates for each algorithm and key size, in nanoseconds.
#[derive(Debug)]
pub(super) struct Costs([AtomicU64; Algorithm::ALL.len() * SIZES]);

impl Costs {
    /// What software takes on a server, until somebody reports. A token that takes longer is known after some jobs.
    pub(super) fn new() -> Self {
        Self(array::from_fn(|place| {
            let first = first(Algorithm::ALL[place / SIZES].family(), place % SIZES);
            AtomicU64::new(nanos(first))
        }))
    }

    /// One signature with this key.
    pub(super) fn of(&self, key: &KeyRef) -> Duration {
        Duration::from_nanos(self.0[place(key)].load(Ordering::Relaxed))
    }

    /// A job of so many inputs took so long. Of two reports at the same time one may be lost.
    pub(super) fn learn(&self, key: &KeyRef, inputs: u32, elapsed: Duration) {
        if inputs == 0 {
            return;
        }
        let estimate = &self.0[place(key)];
        let known = Duration::from_nanos(estimate.load(Ordering::Relaxed));
        let seen = (elapsed / inputs).min(known.mul_f64(SURPRISE_MAX));
        let learned = known.mul_f64(1.0 - LEARNED) + seen.mul_f64(LEARNED);
        estimate.store(nanos(learned), Ordering::Relaxed);
    }
}

fn first(family: Family, size: usize) -> Duration {
    match family {
        Family::RsaPkcs1 | Family::RsaPss => Duration::from_millis([1, 3, 6][size]),
        Family::Ecdsa(_) | Family::Ed25519 => Duration::from_micros(200),
        Family::MlDsa(_) => Duration::from_millis(1),
        Family::Hmac => Duration::from_micros(50),
    }
}

fn place(key: &KeyRef) -> usize {
    let size = match &key.public {
        Some(PublicKey::Rsa { n, .. }) => match n.0.len() * 8 {
            ..=2048 => 0,
            2049..=3072 => 1,
            3073.. => 2,
        },
        _ => 0,
    };
    // Its place in ALL, for they are declared in that order.
    key.algorithm as usize * SIZES + size
}

/// Never nothing, or what waits would not be seen.
fn nanos(cost: Duration) -> u64 {
    u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ObjectId, Octets};

    fn key(algorithm: Algorithm, rsa_bits: usize) -> KeyRef {
        let public =
            algorithm.is_rsa().then(|| PublicKey::Rsa { n: Octets(vec![255; rsa_bits / 8]), e: Octets(vec![3]) });
        KeyRef { object: ObjectId::new([0; 16]), algorithm, public, tenant: None }
    }

    #[test]
    fn each_algorithm_and_size_has_a_place_of_its_own() {
        let sizes = |algorithm: Algorithm| if algorithm.is_rsa() { vec![2048, 3072, 4096] } else { vec![0] };
        let keys =
            Algorithm::ALL.iter().flat_map(|algorithm| sizes(*algorithm).into_iter().map(|bits| key(*algorithm, bits)));
        let mut places: Vec<usize> = keys.map(|key| place(&key)).collect();
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), count);
        assert!(places.last().unwrap() < &Costs::new().0.len());
    }

    #[test]
    fn a_token_ten_times_as_slow_is_known_after_some_jobs_and_one_that_hung_is_not_believed() {
        let (costs, slow, other) = (Costs::new(), key(Algorithm::ES256, 0), key(Algorithm::ES384, 0));
        let before = costs.of(&slow);
        costs.learn(&slow, 1, Duration::from_secs(3600));
        assert!(costs.of(&slow) < before.mul_f64(1.2));
        for _ in 0..40 {
            costs.learn(&slow, 4, before * 40);
        }
        assert!((before * 9..before * 11).contains(&costs.of(&slow)), "{:?}", costs.of(&slow));
        assert_eq!(costs.of(&other), before);
        for _ in 0..200 {
            costs.learn(&slow, 1, before);
        }
        assert!((before..before.mul_f64(1.1)).contains(&costs.of(&slow)), "{:?}", costs.of(&slow));
    }
}
