//! Signs with Parsec as fast as it answers, with so many calls under way, and tells what came of it as JSON.
//!
//! `keyward-parsec-client RS256|ES256 THREADS SECONDS`, with the service's socket in `PARSEC_SERVICE_ENDPOINT`. The key is made
//! at the first use. Parsec's client is blocking and makes a connection for each call: a thread is a call under way.

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use parsec_client::BasicClient;
use parsec_client::core::interface::operations::psa_algorithm::{AsymmetricSignature, Hash};
use parsec_client::core::interface::operations::psa_key_attributes::{
    Attributes, EccFamily, Lifetime, Policy, Type, UsageFlags,
};

const APP: &str = "keyward-bench";
/// A SHA-256.
const DIGEST: [u8; 32] = [7; 32];
const WARM_UP: Duration = Duration::from_millis(300);

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [algorithm, threads, seconds] = arguments.as_slice() else { return Err("RS256|ES256 THREADS SECONDS".into()) };
    let (threads, seconds) = (threads.parse::<usize>()?, Duration::from_secs_f64(seconds.parse()?));
    let (key_type, bits, signing) = match algorithm.as_str() {
        "RS256" => {
            let signing = AsymmetricSignature::RsaPkcs1v15Sign { hash_alg: Hash::Sha256.into() };
            (Type::RsaKeyPair, 2048, signing)
        }
        "ES256" => {
            let signing = AsymmetricSignature::Ecdsa { hash_alg: Hash::Sha256.into() };
            (Type::EccKeyPair { curve_family: EccFamily::SecpR1 }, 256, signing)
        }
        other => return Err(format!("no key for {other}").into()),
    };
    let client = BasicClient::new(Some(APP.into()))?;
    if client.key_attributes(algorithm).is_err() {
        let mut usage_flags = UsageFlags::default();
        usage_flags.set_sign_hash();
        let policy = Policy { usage_flags, permitted_algorithms: signing.into() };
        client.psa_generate_key(algorithm, Attributes { lifetime: Lifetime::Persistent, key_type, bits, policy })?;
    }
    // As many connections come at once as there are threads.
    let begin = Instant::now() + WARM_UP;
    let sign = || -> Result<Vec<Duration>, Failure> {
        let client = BasicClient::new(Some(APP.into()))?;
        let (mut took, end) = (Vec::new(), begin + seconds);
        loop {
            let called = Instant::now();
            if called >= end {
                return Ok(took);
            }
            client.psa_sign_hash(algorithm, &DIGEST, signing)?;
            if called >= begin {
                took.push(called.elapsed());
            }
        }
    };
    let mut took = Vec::new();
    thread::scope(|scope| -> Result<(), Failure> {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(sign)).collect();
        for thread in threads {
            took.extend(thread.join().map_err(|_| "a thread failed")??);
        }
        Ok(())
    })?;
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3);
    let per_second = took.len() as f64 / begin.elapsed().as_secs_f64();
    println!(r#"{{"calls": {}, "per_second": {per_second}, "p50_ms": {}, "p99_ms": {}}}"#, took.len(), at(50), at(99));
    Ok(())
}
