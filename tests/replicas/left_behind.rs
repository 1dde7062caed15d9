//! What a replica leaves that dies while it makes a key.

use std::time::Instant;

use keyward::grpc::proto::{CreateTenantRequest, KeyState, ListSigningKeysRequest, RotateSigningKeyRequest, Tenant};
use tempfile::TempDir;

use crate::common::postgresql::{self, Database};
use crate::common::{Clients, Faults, Installation, Server, claims, said};
use crate::stand::{POLL, REACHES_ALL_MAX, TENANT, policy, published, until};
use crate::wrong_clock::WrongClock;

/// The default is an address of the replica that is asked.
const ISSUER: &str = "https://issuer.example";

/// How long an intent is its owner's (docs/decisions/0004).
const LEASE_SECS: i64 = 120;

/// Two replicas by one clock, so that two minutes pass in a moment, for the database too. The token of the first can be made to fail.
struct Pair {
    first: Server,
    at_first: Clients,
    faults: Faults,
    second: Server,
    at_second: Clients,
    clock: WrongClock,
    installations: [Installation; 2],
    _database: Database,
    _folder: TempDir,
}

impl Pair {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = WrongClock::in_folder(folder.path());
        postgresql::let_in(folder.path());
        let environment = clock.environment().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let database = postgresql::Server::start_with(environment.to_vec()).database();
        let (first, faults) = Installation::bare().with_database(&database.url()).with_faults();
        let first = first.init();
        let second = first.replica().without_faults().join();
        let installations = [first, second];
        let [first, second] = installations.each_ref().map(|installation| clock.serve(installation));
        let (at_first, at_second) = (Clients::connect(&first).await, Clients::connect(&second).await);
        Self { first, at_first, faults, second, at_second, clock, installations, _database: database, _folder: folder }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_not_made_is_given_up_and_another_made() {
    left_in_the_middle("C_GenerateKeyPair hang", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_made_is_taken_up() {
    left_in_the_middle("C_GenerateKeyPair after hang", 0).await;
}

fn wish() -> CreateTenantRequest {
    CreateTenantRequest {
        tenant: Some(Tenant {
            id: TENANT.to_owned(),
            issuer: ISSUER.to_owned(),
            algorithms: vec!["ES256".to_owned()],
            rotation_policy: Some(policy()),
            ..Tenant::default()
        }),
    }
}

/// Two replicas are asked for one tenant: the second waits for the keys that the first is making, and then signs with them at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_another_replica_waits_for_the_keys_of_the_first() {
    let pair = Pair::start().await;
    let Pair { mut at_first, faults, second: waits, mut at_second, .. } = pair;
    faults.set("C_GenerateKeyPair delay 1s");
    let creating = tokio::spawn(async move { at_first.tenants.create_tenant(wish()).await });
    until("a key is being made", || faults.fired(0) > 0);
    let made = at_second.tenants.create_tenant(wish()).await.expect("the same tenant").into_inner();
    at_second.sign_jwt(TENANT, "ES256", claims(ISSUER, 60)).await.expect("signed");
    assert_eq!(published(&waits).len(), 2, "current and next");
    assert_eq!(creating.await.expect("it ends").expect("it is made").into_inner(), made);
}

/// A tenant whose first key is being made when its replica dies: the same call at another one says so and does not pretend that it can
/// sign; once the lease has ended the other one makes the keys by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_was_not_finished_is_not_said_to_be() {
    let pair = Pair::start().await;
    let Pair { first: dies, mut at_first, faults, second: stays, mut at_second, clock, .. } = pair;
    faults.set("C_GenerateKeyPair hang");
    let creating = tokio::spawn(async move { at_first.tenants.create_tenant(wish()).await });
    until("a key is being made", || faults.fired(0) > 0);
    dies.kill();
    creating.await.expect("it ends").expect_err("nobody answers any more");

    let refused = at_second.tenants.create_tenant(wish()).await.expect_err("it is not complete");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("keys of tenant shared are being made by another replica"), "{refused:?}");
    clock.set(LEASE_SECS + 1);
    until("current and next are there", || published(&stays).len() == 2);
    let refused = at_second.tenants.create_tenant(wish()).await.expect_err("it is there");
    assert_eq!(refused.code(), tonic::Code::AlreadyExists, "{refused:?}");
    at_second.sign_jwt(TENANT, "ES256", claims(ISSUER, LEASE_SECS.cast_unsigned() + 60)).await.expect("signed");
}

/// The first replica is killed in the middle of a rotation, where `fault` holds it up. Once its lease has ended another finishes what
/// it began, with so many ids given up; until then nothing is missed but the next key. No object on the token is without an account.
async fn left_in_the_middle(fault: &str, given_up: usize) {
    let pair = Pair::start().await;
    let Pair { first: dies, mut at_first, faults, second: stays, mut at_second, clock, installations, .. } = pair;
    let tenant = at_first.create_tenant(TENANT, &["ES256"], policy()).await;

    faults.set(fault);
    let rotation = RotateSigningKeyRequest { tenant: TENANT.to_owned(), force: true, ..Default::default() };
    let rotating = tokio::spawn(async move { at_first.keys.rotate_signing_key(rotation).await });
    until("a key is being made", || faults.fired(0) > 0);
    dies.kill();
    rotating.await.expect("it ends").expect_err("nobody answers any more");

    // The rotation holds; the other one signs with the new key, and leaves the one that is being made alone.
    let keys = async |clients: &mut Clients| {
        let request = ListSigningKeysRequest { tenant: TENANT.to_owned(), ..ListSigningKeysRequest::default() };
        clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys
    };
    let begun = Instant::now();
    let states = loop {
        let states: Vec<_> = keys(&mut at_second).await.iter().map(|key| key.state()).collect();
        if states.contains(&KeyState::Pending) {
            break states;
        }
        assert!(begun.elapsed() < REACHES_ALL_MAX, "{states:?}");
        tokio::time::sleep(POLL).await;
    };
    assert!(states.contains(&KeyState::Current) && !states.contains(&KeyState::Next), "{states:?}");
    let jwt = at_second.sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect("signed");
    assert_eq!(published(&stays).len(), 2, "current and previous");

    clock.set(LEASE_SECS + 1);
    let begun = Instant::now();
    while published(&stays).len() < 3 {
        assert!(begun.elapsed() < REACHES_ALL_MAX, "nobody takes it up: {:?}", keys(&mut at_second).await);
        tokio::time::sleep(POLL).await;
    }
    let now = keys(&mut at_second).await;
    let count = |state| now.iter().filter(|key| key.state() == state).count();
    let counts = [KeyState::Pending, KeyState::Next, KeyState::Current, KeyState::Abandoned].map(count);
    assert_eq!(counts, [0, 1, 1, given_up], "{now:?}");
    assert!(now.iter().any(|key| key.kid == jwt.kid && key.state() == KeyState::Current), "{now:?}");
    assert!(stays.terminate().success());
    let mut reconcile = installations[1].command("reconcile");
    reconcile.envs(clock.environment());
    let (agrees, text) = said(reconcile);
    assert!(agrees, "{text}");
}
