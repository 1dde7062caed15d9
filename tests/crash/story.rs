//! One installation's life of operations, kills and restarts, and what must hold after each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keyward::grpc::proto::{
    DeleteTenantRequest, KeyState, ListSigningKeysRequest, ListTenantsRequest, RevokeSigningKeyRequest,
    RotateSigningKeyRequest, RotationPolicy, SigningKey, VerifyJwtRequest,
};
use keyward::store::{Guard, Seals, Store as _, sqlite};
use proptest::prelude::Rng as _;
use proptest::test_runner::TestRng;
use serde_json::Value;

use crate::common::{Clients, Installation, Server, claims, http, short_policy};
use crate::inspect;

/// How long the keyrings may take to come to rest after a restart: several RSA keys on two busy cores.
const REST_WAIT_MAX: Duration = Duration::from_secs(60);
const REST_POLL: Duration = Duration::from_millis(20);

/// Tenants at one time; with more, one is deleted.
const TENANTS_MAX: usize = 3;

/// Rounds from one look at the token to the next: a look takes as long as a round.
const INSPECTED_ONE_IN: usize = 5;

/// No operation is shorter: a commit and a key on a curve.
const OPERATION_MIN: Duration = Duration::from_millis(20);

/// Rounds whose recovery is killed, too.
const RECOVERIES_KILLED_ONE_IN: u32 = 5;

/// Longer than any JWT's test.
const JWT_LIFE_SECS: u64 = 3000;

pub(crate) struct Story {
    installation: Installation,
    random: TestRng,
    algorithms: &'static [&'static str],
    made: usize,
    rounds: usize,
    /// JWTs by tenant and key; none of a key whose revocation was asked for.
    jwts: BTreeMap<(String, String), String>,
    /// The key that an acknowledged rotation made current, until the next operation on the keyring.
    acknowledged: Option<(String, String, RotateSigningKeyRequest)>,
    left: BTreeMap<String, usize>,
    longest_operation: Duration,
}

enum Operation {
    Create(String),
    Rotate(RotateSigningKeyRequest),
    Revoke(RevokeSigningKeyRequest),
    Delete(String),
}

impl Story {
    pub(crate) fn new(installation: Installation, random: TestRng, algorithms: &'static [&'static str]) -> Self {
        Self {
            installation,
            random,
            algorithms,
            made: 0,
            rounds: 0,
            jwts: BTreeMap::new(),
            acknowledged: None,
            left: BTreeMap::new(),
            longest_operation: Duration::from_millis(100),
        }
    }

    /// One operation, one kill, one recovery.
    pub(crate) async fn round(&mut self) {
        if self.rounds.is_multiple_of(INSPECTED_ONE_IN) {
            self.recover_and_inspect().await;
        }
        self.rounds += 1;
        if self.random.next_u32().is_multiple_of(RECOVERIES_KILLED_ONE_IN) {
            // Not earlier than the announcement: SoftHSM writes its token object anew at each login, in place, and a kill
            // within that loses the token, whatever Keyward does (docs/operations.md).
            let server = self.installation.serve();
            tokio::time::sleep(self.moment(self.longest_operation)).await;
            server.kill();
            self.count_what_is_left().await;
        }
        let server = self.installation.serve();
        let mut clients = Clients::connect(&server).await;
        let keys = self.rest(&mut clients).await;
        self.check(&server, &mut clients, &keys).await;
        let operation = self.choose(&keys);
        let running = tokio::spawn(run(operation, clients, self.algorithms));
        tokio::time::sleep(self.moment(self.longest_operation)).await;
        // Follows how long operations take here, so that most kills fall into one.
        let factor = if running.is_finished() { 0.9 } else { 1.1 };
        self.longest_operation = self.longest_operation.mul_f64(factor).max(OPERATION_MIN);
        server.kill();
        self.acknowledged = running.await.expect("the operation does not panic");
        self.count_what_is_left().await;
    }

    /// The last recovery; then nothing is killed any more. What the kills left in the store, by kind.
    pub(crate) fn end(mut self, runtime: &tokio::runtime::Runtime) -> BTreeMap<String, usize> {
        runtime.block_on(self.recover_and_inspect());
        self.left
    }

    /// A recovery that nothing interrupts, and a look at token and store while nobody has them open.
    async fn recover_and_inspect(&mut self) {
        let server = self.installation.serve();
        let mut clients = Clients::connect(&server).await;
        let keys = self.rest(&mut clients).await;
        self.check(&server, &mut clients, &keys).await;
        drop(clients);
        assert!(server.terminate().success());
        inspect::in_a_child(&self.installation);
    }

    fn moment(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(f64::from(self.random.next_u32()) / f64::from(u32::MAX))
    }

    fn choose(&mut self, keys: &[SigningKey]) -> Operation {
        let pick = |random: &mut TestRng, count: usize| random.next_u32() as usize % count;
        let current: Vec<&SigningKey> = keys.iter().filter(|key| key.state() == KeyState::Current).collect();
        let previous: Vec<&SigningKey> = keys.iter().filter(|key| key.state() == KeyState::Previous).collect();
        let tenants = current.len() / self.algorithms.len();
        self.acknowledged = None;
        match self.random.next_u32() % 7 {
            _ if current.is_empty() => self.create(),
            0 | 1 if tenants >= TENANTS_MAX => {
                let tenant = current[pick(&mut self.random, current.len())].tenant.clone();
                self.jwts.retain(|(owner, _), _| *owner != tenant);
                Operation::Delete(tenant)
            }
            0 | 1 => self.create(),
            2 | 3 if !previous.is_empty() => {
                let key = previous[pick(&mut self.random, previous.len())];
                self.jwts.remove(&(key.tenant.clone(), key.kid.clone()));
                Operation::Revoke(RevokeSigningKeyRequest { tenant: key.tenant.clone(), kid: key.kid.clone() })
            }
            _ => {
                let key = current[pick(&mut self.random, current.len())];
                Operation::Rotate(RotateSigningKeyRequest {
                    tenant: key.tenant.clone(),
                    algorithm: key.algorithm.clone(),
                    force: true,
                    request_id: format!("request-{}", self.random.next_u64()),
                    ..RotateSigningKeyRequest::default()
                })
            }
        }
    }

    fn create(&mut self) -> Operation {
        self.made += 1;
        Operation::Create(format!("tenant-{}", self.made))
    }

    /// Waits until every keyring has come to rest, and gives all keys.
    async fn rest(&self, clients: &mut Clients) -> Vec<SigningKey> {
        let deadline = Instant::now() + REST_WAIT_MAX;
        loop {
            let mut keys = Vec::new();
            let tenants =
                clients.tenants.list_tenants(ListTenantsRequest::default()).await.expect("listed").into_inner();
            for tenant in tenants.tenants {
                let request =
                    ListSigningKeysRequest { tenant: tenant.id, page_size: 1000, ..ListSigningKeysRequest::default() };
                // A tenant whose deletion was under way may be gone by now.
                if let Ok(list) = clients.keys.list_signing_keys(request).await {
                    keys.extend(list.into_inner().keys);
                }
            }
            let keyrings: std::collections::BTreeSet<_> =
                keys.iter().map(|key| (&key.tenant, &key.algorithm)).collect();
            let count = |state| keys.iter().filter(|key| key.state() == state).count();
            let rests = count(KeyState::Pending) + count(KeyState::Revoked) == 0
                && [KeyState::Current, KeyState::Next].map(count) == [keyrings.len(); 2];
            if rests {
                return keys;
            }
            assert!(Instant::now() < deadline, "the keyrings do not come to rest: {keys:#?}");
            tokio::time::sleep(REST_POLL).await;
        }
    }

    /// What must hold after every recovery. That every key signs and every object has its account is for [`inspect`].
    async fn check(&mut self, server: &Server, clients: &mut Clients, keys: &[SigningKey]) {
        // R2: exactly one current and one next key in each keyring.
        for key in keys.iter().filter(|key| key.state() == KeyState::Current) {
            let of = |state| {
                let same = |other: &&SigningKey| other.tenant == key.tenant && other.algorithm == key.algorithm;
                keys.iter().filter(same).filter(|other| other.state() == state).count()
            };
            assert_eq!((of(KeyState::Current), of(KeyState::Next)), (1, 1), "{} {}", key.tenant, key.algorithm);
        }
        // What was acknowledged is there, and the same request rotates no second time.
        if let Some((tenant, kid, request)) = self.acknowledged.take() {
            let again = clients.keys.rotate_signing_key(request).await.expect("a repetition is no error").into_inner();
            assert_eq!(again.current.expect("a current key").kid, kid, "an acknowledged rotation of {tenant} was lost");
        }
        // R4: every JWT that may be alive finds its key in the JWKS, and verifies.
        for ((tenant, kid), jwt) in &self.jwts {
            let jwks: Value = serde_json::from_slice(&http::get(&server.jwks_uri(tenant)).body).expect("a JWKS");
            let published = jwks["keys"].as_array().expect("keys").iter().any(|key| key["kid"] == kid.as_str());
            // HS256 is never in it.
            assert_eq!(published, !is_mac(jwt), "the JWKS of {tenant} lost {kid}");
            let request = VerifyJwtRequest { tenant: tenant.clone(), jwt: jwt.clone() };
            let verdict = clients.signing.verify_jwt(request).await.expect("verified").into_inner();
            assert!(verdict.valid, "{tenant} {kid}: {}", verdict.reason);
        }
        // Every current key signs.
        for key in keys.iter().filter(|key| key.state() == KeyState::Current) {
            let issuer = clients
                .tenants
                .get_tenant(keyward::grpc::proto::GetTenantRequest { id: key.tenant.clone() })
                .await
                .expect("the tenant is there")
                .into_inner()
                .issuer;
            let signed = clients.sign_jwt(&key.tenant, &key.algorithm, claims(&issuer, JWT_LIFE_SECS)).await;
            let signed = signed.expect("a current key signs");
            assert_eq!(signed.kid, key.kid);
            self.jwts.insert((key.tenant.clone(), key.kid.clone()), signed.jwt);
        }
    }

    /// In which state the kill left each keyring; and that this state can be read at all.
    async fn count_what_is_left(&mut self) {
        let path = self.installation.dir().join("store.sqlite");
        // Whether its seals hold, the next server sees.
        let guard = Guard { seals: Arc::new(Anything), witness: self.installation.dir().join("store-witness.jsonl") };
        let store = sqlite::open(&path, guard).await.expect("a killed process leaves a store that opens");
        let mut left = Vec::new();
        let loaded = store.load_all().await.expect("a killed process leaves records that can be read");
        assert_eq!(loaded.damaged, [], "a killed process leaves records that are believed");
        for record in loaded.records {
            if record.tenant.delete_time.is_some() {
                left.push("tenant being deleted");
            }
            for keyring in &record.keyrings {
                if keyring.pending.is_some() {
                    left.push(if keyring.current().is_some() { "next key pending" } else { "first key pending" });
                }
                if keyring.current().is_none() && keyring.next().is_some() {
                    left.push("first key published, not active");
                }
                if keyring.abandoned.iter().any(|abandoned| !abandoned.swept) {
                    left.push("abandoned, not swept");
                }
                if let Some(key) = keyring.in_state(keyward::domain::KeyState::Revoked).next() {
                    let begun = key.destroy_begin_time.is_some();
                    left.push(if begun { "destruction begun" } else { "revoked" });
                }
            }
        }
        if left.is_empty() {
            left.push("at rest");
        }
        left.into_iter().for_each(|kind| *self.left.entry(kind.to_owned()).or_default() += 1);
        store.close().await;
    }
}

/// Carries the operation out as far as the server lives; a rotation that was answered gives what it acknowledged.
async fn run(
    operation: Operation,
    mut clients: Clients,
    algorithms: &[&str],
) -> Option<(String, String, RotateSigningKeyRequest)> {
    let policy =
        || RotationPolicy { destroy_delay: Some(prost_types::Duration { seconds: 0, nanos: 0 }), ..short_policy() };
    match operation {
        Operation::Create(id) => {
            let tenant = keyward::grpc::proto::Tenant {
                id,
                algorithms: algorithms.iter().map(ToString::to_string).collect(),
                rotation_policy: Some(policy()),
                ..Default::default()
            };
            let request = keyward::grpc::proto::CreateTenantRequest { tenant: Some(tenant) };
            let _ = clients.tenants.create_tenant(request).await;
        }
        Operation::Rotate(request) => {
            let answer = clients.keys.rotate_signing_key(request.clone()).await.ok()?.into_inner();
            return Some((request.tenant.clone(), answer.current?.kid, request));
        }
        Operation::Revoke(request) => {
            let _ = clients.keys.revoke_signing_key(request).await;
        }
        Operation::Delete(id) => {
            let request = DeleteTenantRequest { confirm_id: id.clone(), id };
            let _ = clients.tenants.delete_tenant(request).await;
        }
    }
    None
}

fn is_mac(jwt: &str) -> bool {
    let header = jwt.split('.').next().and_then(|header| URL_SAFE_NO_PAD.decode(header).ok());
    header.is_some_and(|header| String::from_utf8_lossy(&header).contains("HS256"))
}

/// Takes every seal for good.
struct Anything;

#[async_trait::async_trait]
impl Seals for Anything {
    async fn seal(&self, _: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, String> {
        Err("nothing is changed here".to_owned())
    }

    fn holds(&self, _: &[u8], _: &[u8]) -> bool {
        true
    }
}
