//! Issuers that sign at full speed and verifiers that cache, while keys rotate (R3, R4).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use keyward::grpc::proto::RotationPolicy;

use super::{Clients, Server, claims, http, short_policy};

const TENANT: &str = "busy";
/// Whole seconds, as `exp` has. Short, so that keys retire, are revoked and destroyed while others sign.
const JWT_LIFE_SECS: u64 = 2;
/// Caches with the same max-age, fetching at different moments of it.
const CACHES: u32 = 4;
const MAX_AGE_SECS: u64 = 1;

/// The quickest rotation of keys whose JWTs live for a moment.
pub(crate) fn policy() -> RotationPolicy {
    let ttl = prost_types::Duration { seconds: JWT_LIFE_SECS.cast_signed(), nanos: 0 };
    RotationPolicy { max_token_ttl: Some(ttl), ..short_policy() }
}

/// Rotates so many times, each time by another of these replicas, while issuers sign by each of them as fast as they can, and caches
/// read of each of them. No call may fail, and each cache must know each key from a JWT's arrival to its `exp`. How long half of the
/// calls took at most.
pub(crate) async fn through_rotations(servers: &[Server], policy: RotationPolicy, rotations: usize) -> Duration {
    let mut keyward = Vec::new();
    for server in servers {
        keyward.push(Clients::connect(server).await);
    }
    let tenant = keyward[0].create_tenant(TENANT, &["RS256", "ES256"], policy).await;
    let begun = Instant::now();
    for server in servers {
        while http::get(&server.jwks_uri(TENANT)).status != 200 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the tenant does not reach {}", server.public());
            tokio::task::yield_now().await;
        }
    }

    let mut caches = Vec::new();
    for number in 0..CACHES {
        caches.push(Cache::start(servers[number as usize % servers.len()].jwks_uri(TENANT)));
        tokio::time::sleep(Duration::from_secs(MAX_AGE_SECS) / CACHES).await;
    }

    let stop = Arc::new(AtomicBool::new(false));
    let mut signers = Vec::new();
    for server in servers {
        for algorithm in [Algorithm::RS256, Algorithm::ES256] {
            // A connection each, as two issuers have.
            let clients = Clients::connect(server).await;
            signers.push(tokio::spawn(sign_at_full_speed(
                clients,
                tenant.issuer.clone(),
                algorithm,
                Arc::clone(&stop),
            )));
        }
    }

    let mut kids = BTreeSet::new();
    for rotation in 0..rotations {
        let keyward = &keyward[rotation % servers.len()];
        let (mut for_rs256, mut for_es256) = (keyward.clone(), keyward.clone());
        let rotated = tokio::join!(
            for_rs256.rotate_when_allowed(TENANT, "RS256"),
            for_es256.rotate_when_allowed(TENANT, "ES256")
        );
        for rotated in [rotated.0, rotated.1] {
            kids.insert(rotated.previous.expect("the replaced key").kid);
            kids.insert(rotated.current.expect("the new current key").kid);
        }
        assert!(signers.iter().all(|signer| !signer.is_finished()), "a signer failed before rotation {}", rotation + 1);
    }
    stop.store(true, Ordering::Relaxed);
    let mut issued = Vec::new();
    for signer in signers {
        issued.extend(signer.await.expect("no call failed"));
    }

    // The caches go on until the last JWT has expired.
    tokio::time::sleep(Duration::from_secs(JWT_LIFE_SECS)).await;
    let caches: Vec<Vec<CachedSet>> = caches.into_iter().map(Cache::stop).collect();

    let signed_with: BTreeSet<String> = issued.iter().map(|jwt| jwt.kid.clone()).collect();
    assert_eq!(signed_with, kids, "every key that was current has signed, and no other");
    assert_eq!(kids.len(), 2 * (rotations + 1));
    for jwt in &issued {
        for cache in &caches {
            jwt.assert_known(CachedSet::in_force_at(cache, jwt.received_at), "when it arrived");
            jwt.assert_known(CachedSet::in_force_at(cache, jwt.expires_at), "when it expired");
        }
        jwt.assert_verifies(CachedSet::in_force_at(&caches[0], jwt.received_at));
    }
    let median = median_call(&issued);
    println!("{} JWTs by {} keys, median call {median:?}", issued.len(), kids.len());
    median
}

fn median_call(issued: &[IssuedJwt]) -> Duration {
    let mut calls: Vec<Duration> = issued.iter().map(|jwt| jwt.received_at - jwt.requested_at).collect();
    calls.sort_unstable();
    calls[calls.len() / 2]
}

/// A JWT as its verifier has it.
struct IssuedJwt {
    jwt: String,
    kid: String,
    algorithm: Algorithm,
    requested_at: Instant,
    received_at: Instant,
    expires_at: Instant,
}

/// One call after the other until told to stop. The first failed call ends it with a panic.
async fn sign_at_full_speed(
    mut clients: Clients,
    issuer: String,
    algorithm: Algorithm,
    stop: Arc<AtomicBool>,
) -> Vec<IssuedJwt> {
    let name = format!("{algorithm:?}");
    let mut issued = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // `exp` is a whole second; the monotonic clock is read first, so that the JWT's end is not taken for later than it is.
        let requested_at = Instant::now();
        let since_second = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
        let expires_at = requested_at + Duration::from_secs(JWT_LIFE_SECS) - Duration::from_nanos(since_second.into());
        let answer = clients.sign_jwt(TENANT, &name, claims(&issuer, JWT_LIFE_SECS)).await;
        let answer = answer.unwrap_or_else(|status| panic!("{name}, JWT {}: {status:?}", issued.len() + 1));
        let received_at = Instant::now();
        issued.push(IssuedJwt { jwt: answer.jwt, kid: answer.kid, algorithm, requested_at, received_at, expires_at });
    }
    issued
}

impl IssuedJwt {
    fn assert_known(&self, set: &CachedSet, when: &str) {
        let (kid, age) = (&self.kid, self.received_at.saturating_duration_since(set.requested_at));
        assert!(set.keys.contains_key(kid), "{kid} is not in the JWKS that a cache had {when}, {age:?} old on arrival");
    }

    /// The signature, by another library. Times are not its business here: the JWT is looked at after the fact.
    fn assert_verifies(&self, set: &CachedSet) {
        let mut validation = Validation::new(self.algorithm);
        validation.validate_exp = false;
        let header = jsonwebtoken::decode_header(&self.jwt).expect("a JWT");
        assert_eq!(header.kid.as_deref(), Some(self.kid.as_str()));
        let decoded = jsonwebtoken::decode::<serde_json::Value>(&self.jwt, &set.keys[&self.kid], &validation);
        decoded.unwrap_or_else(|error| panic!("{}: {error}", self.jwt));
    }
}

/// A verifier's cache: fetches the JWKS, holds it for its max-age, and fetches again at that moment and no sooner.
struct Cache {
    stop: Arc<AtomicBool>,
    polling: JoinHandle<Vec<CachedSet>>,
}

/// One JWKS that a cache held, and when.
struct CachedSet {
    requested_at: Instant,
    expires_at: Instant,
    keys: HashMap<String, DecodingKey>,
}

impl Cache {
    /// Returns once the first JWKS is there.
    fn start(jwks_uri: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut sets = vec![CachedSet::fetch(&jwks_uri)];
        let polling = thread::spawn(move || {
            while let Some(last) = sets.last().filter(|_| !stopped.load(Ordering::Relaxed)) {
                thread::sleep(last.expires_at.saturating_duration_since(Instant::now()));
                sets.push(CachedSet::fetch(&jwks_uri));
            }
            sets
        });
        Self { stop, polling }
    }

    /// All that it held; the last of it fetched after this call.
    fn stop(self) -> Vec<CachedSet> {
        self.stop.store(true, Ordering::Relaxed);
        self.polling.join().expect("every fetch was answered")
    }
}

impl CachedSet {
    fn fetch(jwks_uri: &str) -> Self {
        // An age counts from the request (RFC 9111 section 4.2.3), when the answer may have been made.
        let requested_at = Instant::now();
        let answer = http::get(jwks_uri);
        let max_age_secs = answer.header("cache-control").split(", ").find_map(|part| part.strip_prefix("max-age="));
        let max_age_secs = max_age_secs.expect("a max-age").parse().expect("whole seconds");
        assert_eq!(max_age_secs, MAX_AGE_SECS, "the tenant's jwks_max_age");
        let jwks: JwkSet = answer.json();
        let keys = jwks.keys.iter().map(|jwk| {
            let kid = jwk.common.key_id.clone().expect("a kid");
            (kid, DecodingKey::from_jwk(jwk).expect("a key that the library knows"))
        });
        Self { requested_at, expires_at: requested_at + Duration::from_secs(max_age_secs), keys: keys.collect() }
    }

    /// The set that the cache had at this moment: the first that was not stale by then.
    fn in_force_at(sets: &[Self], moment: Instant) -> &Self {
        sets.iter().find(|set| set.expires_at > moment).expect("the cache went on for long enough")
    }
}
