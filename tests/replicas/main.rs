//! Several replicas on one PostgreSQL database and one token.

#[path = "../common/mod.rs"]
mod common;

mod clock;
mod cut_off;
mod database;
mod left_behind;
mod restored;
mod stand;
mod upgrade;
mod wrong_clock;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::http::get;
use common::postgresql::Database;
use common::{Installation, claims, postgresql, said, under_load, verify};
use keyward::domain::Timestamp;
use keyward::grpc::proto::{
    DeleteTenantRequest, KeyState, ListSigningKeysRequest, RotateSigningKeyRequest, RotationPolicy,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use stand::{POLL, REACHES_ALL_MAX, Stand, TENANT, policy, published, secs};

/// A tenant that is made, rotated and deleted on any of them is signed for, published and gone on all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_does_all_do() {
    let stand = Stand::of(3);
    let mut clients = stand.clients().await;
    let tenant = clients[0].create_tenant(TENANT, &["ES256"], policy()).await;
    let mut kids = published(&stand.servers[0]);
    assert_eq!(kids.len(), 2, "current and next");
    for turn in 0..3 {
        stand.wait_for(&kids);
        let mut signed_with = BTreeSet::new();
        for client in &mut clients {
            let answer = client.sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect("each signs");
            signed_with.insert(answer.kid);
            stand.servers.iter().for_each(|server| verify(&answer.jwt, &get(&server.jwks_uri(TENANT)).json()));
        }
        assert_eq!(signed_with.len(), 1, "all sign with the one current key");
        // Another one each time.
        let rotated = clients[(turn + 1) % 3].rotate_when_allowed(TENANT, "ES256").await;
        let made = [rotated.current, rotated.next, rotated.previous].map(|key| key.expect("a key").kid);
        assert!(signed_with.contains(&made[2]));
        kids.extend(made);
    }
    stand.wait_for(&kids);

    let confirmed = DeleteTenantRequest { id: TENANT.to_owned(), confirm_id: TENANT.to_owned() };
    clients[2].tenants.delete_tenant(confirmed).await.expect("it is deleted");
    stand.wait_for(&BTreeSet::new());
    assert!(stand.servers.iter().all(|server| get(&format!("{}/readyz", server.ops())).status == 200));
    // Nobody else writes what a replica that serves remembers.
    let (looked, text) = said(stand.installations[1].command("accept-store"));
    assert!(!looked && text.contains("in use by another Keyward process"), "{text}");
    stand.servers.into_iter().for_each(|server| assert!(server.terminate().success()));
    for installation in &stand.installations {
        // Not a theft: its removal is sealed.
        let (good, text) = said(installation.command("accept-store"));
        assert!(good && !text.contains(TENANT), "{text}");
    }
}

#[test]
fn a_replica_joins_once_a_store_that_is_there_with_the_key_that_made_it() {
    let database = Database::fresh();
    let bare = Installation::bare().with_database(&database.url());
    let (served, text) = said(bare.command("serve"));
    assert!(!served && text.contains("keyward init"), "{text}");
    let first = bare.init();

    let (made, text) = said(first.command("init"));
    assert!(!made && text.contains("exists already"), "{text}");
    let (joined, text) = said(first.command("join"));
    assert!(!joined && text.contains("store-witness.jsonl"), "the first has a memory of it already: {text}");

    let replica = first.replica();
    let (served, text) = said(replica.command("serve"));
    assert!(!served && text.contains("keyward join"), "{text}");
    drop(replica.join().serve());

    // Somebody else's token, and somebody else's key: nothing of the store would be theirs.
    let stranger = Installation::bare().with_database(&database.url());
    let (joined, text) = said(stranger.command("join"));
    assert!(!joined && text.contains("service-key.json"), "{text}");
    stranger.put("service-key.json", &first.dir().join("service-key.json"));
    let (joined, text) = said(stranger.command("join"));
    assert!(!joined && text.contains("serial"), "{text}");

    let alone = Installation::prepare();
    let (joined, text) = said(alone.command("join"));
    assert!(!joined && text.contains("one process"), "{text}");
}

#[test]
fn a_configuration_names_one_store_and_no_password() {
    let installation = Installation::bare();
    let of = |installation: &Installation| said(installation.command("check")).1;
    let both = installation.set("store.url", r#""postgres://keyward@db/keyward""#);
    assert!(of(&both).contains("store.path must not be set together with store.url"), "{}", of(&both));
    let with_password = both.without("store.path").set("store.url", r#""postgres://keyward:s3cret@db/keyward""#);
    let text = of(&with_password);
    assert!(text.contains("store.url must not hold the password") && !text.contains("s3cret"), "{text}");
    let unknown = with_password.set("store.url", r#""postgres://keyward@db/keyward?passwd=s3cret""#);
    let text = of(&unknown);
    assert!(text.contains("store.url must have no other parameters") && !text.contains("s3cret"), "{text}");
    let other = unknown.set("store.url", r#""mysql://keyward@db/keyward""#);
    assert!(of(&other).contains("store.url must be of the form postgres://"), "{}", of(&other));
    let file = other.without("store.url").set("store.path", r#""store.sqlite""#).set("store.password_file", r#""pin""#);
    assert!(of(&file).contains("store.password_file must stand beside store.url"), "{}", of(&file));
}

/// The logs of administration are one, and each replica's commands tell it whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_administration_is_one() {
    let stand = Stand::of(2);
    let mut clients = stand.clients().await;
    for (number, client) in clients.iter_mut().enumerate() {
        client.create_tenant(&format!("of-{number}"), &["ES256"], policy()).await;
    }
    let events = stand.database.psql("select count(*) from audit_event");
    for installation in &stand.installations {
        let output = installation.verify_audit().output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        assert!(text.contains(&format!("administration: {events} records")), "{text}");
    }
}

/// Two operators make the store at the same time: one service key is its, and the other operator is told how to go on.
#[test]
fn of_two_who_make_the_store_one_has_made_it() {
    for _ in 0..4 {
        let database = Database::fresh();
        let one = Installation::bare().with_database(&database.url());
        let other = one.replica();
        let begun = [&one, &other].map(|installation| {
            let mut init = installation.command("init");
            init.stderr(std::process::Stdio::piped()).spawn().expect("it starts")
        });
        let ended = begun.map(|init| init.wait_with_output().expect("it ends"));
        let (made, lost) = match ended.each_ref().map(|output| output.status.success()) {
            [true, false] => (&one, &other),
            [false, true] => (&other, &one),
            _ => panic!("{ended:?}"),
        };
        // Whoever tries again must not end up with a key that the store does not know.
        let (succeeds, text) = said(lost.command("init"));
        assert!(!succeeds && text.contains("copy service-key.json from there, and run `keyward join`"), "{text}");
        std::fs::remove_file(lost.dir().join("service-key.begun")).expect("the text names it");
        let _ = std::fs::remove_file(lost.dir().join("store-witness.jsonl"));
        std::fs::copy(made.dir().join("service-key.json"), lost.dir().join("service-key.json")).expect("copied");
        let (succeeds, text) = said(lost.command("join"));
        assert!(succeeds, "{text}");
        assert!(lost.serve().terminate().success());
        // With a file of another store nothing is believed, and that is told before anything is done.
        let pinned = std::fs::read_to_string(made.dir().join("service-key.json")).expect("it is there");
        let mut pinned: Value = serde_json::from_str(&pinned).expect("JSON");
        pinned["cka_id"] = "00112233445566778899aabbccddeeff".into();
        std::fs::write(lost.dir().join("service-key.json"), pinned.to_string()).expect("written");
        let (succeeds, text) = said(lost.command("serve"));
        assert!(!succeeds && text.contains("service_key.file names 00112233445566778899aabbccddeeff"), "{text}");
    }
}

/// R10 over replicas: the answer to a rotation that revokes comes when none of them can sign with the revoked key any more, and one
/// that stands still meanwhile does not when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stands_still_holds_a_revocation_up_and_signs_no_more_with_the_key() {
    let stand = Stand::with(3, |installation| installation.set("signing.snapshot_max_age_ms", "3000"));
    let mut clients = stand.clients().await;
    let tenant = clients[0].create_tenant(TENANT, &["ES256"], policy()).await;
    stand.wait_for(&published(&stand.servers[0]));
    let revoked = clients[0].sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.expect("it signs").kid;

    // Each signs all the time, and notes when a call was answered and with which key.
    let (stop, mut signers) = (Arc::new(AtomicBool::new(false)), Vec::new());
    for client in &clients {
        let (mut client, issuer, stop) = (client.clone(), tenant.issuer.clone(), Arc::clone(&stop));
        signers.push(tokio::spawn(async move {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match client.sign_jwt(TENANT, "ES256", claims(&issuer, 60)).await {
                    Ok(answer) => answers.push((Instant::now(), answer.kid)),
                    Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}"),
                }
            }
            answers
        }));
    }
    let stopped = Pid::from_raw(stand.servers[2].pid().cast_signed()).expect("a process");
    kill_process(stopped, Signal::STOP).expect("it is stopped");
    let request = RotateSigningKeyRequest {
        tenant: TENANT.to_owned(),
        algorithm: "ES256".to_owned(),
        force: true,
        revoke_replaced: true,
        ..RotateSigningKeyRequest::default()
    };
    let rotated = clients[0].keys.rotate_signing_key(request).await.expect("it is rotated").into_inner();
    let acknowledged = Instant::now();
    kill_process(stopped, Signal::CONT).expect("it goes on");
    let current = rotated.current.expect("a key").kid;
    // It comes back with the new key.
    let back = Instant::now();
    while clients[2].sign_jwt(TENANT, "ES256", claims(&tenant.issuer, 60)).await.ok().map(|answer| answer.kid)
        != Some(current.clone())
    {
        assert!(back.elapsed() < REACHES_ALL_MAX);
        tokio::time::sleep(POLL).await;
    }
    stop.store(true, Ordering::Relaxed);
    for (number, signer) in signers.into_iter().enumerate() {
        let answers = signer.await.expect("no call failed but for a while");
        let late = answers.iter().filter(|(answered, kid)| *answered > acknowledged && *kid == revoked).count();
        assert_eq!(late, 0, "replica {number} signed with the revoked key");
        let new = answers.iter().filter(|(answered, kid)| *answered > acknowledged && *kid == current).count();
        assert!(new > 0, "replica {number} signs with the new one");
    }
}

/// R3 and R4 under load, with issuers and caches that come to any of three replicas, and rotations by each in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caching_verifier_knows_every_key_whichever_replica_it_asks() {
    let stand = Stand::with(3, |installation| installation.set("limits.manual_rotations_per_day", "1000"));
    let policy = RotationPolicy { max_token_ttl: under_load::policy().max_token_ttl, ..policy() };
    under_load::through_rotations(&stand.servers, policy, 6).await;
}

/// Whichever replica comes first, a scheduled rotation is done once: fifty keyrings, three replicas with the same schedule.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_with_the_same_schedule_rotate_once_in_each_period() {
    const PERIOD_SECS: i64 = 30;
    let stand = Stand::of(3);
    let mut clients = stand.clients().await;
    let tenants: Vec<String> = (0..50).map(|number| format!("scheduled-{number}")).collect();
    for (tenant, client) in tenants.iter().zip((0..3).cycle()) {
        let policy = RotationPolicy { rotation_period: secs(PERIOD_SECS), ..policy() };
        clients[client].create_tenant(tenant, &["ES256"], policy).await;
    }
    let begun = Instant::now();
    let rotations = || {
        let records = stand.database.psql("select record from audit_event order by position");
        let records = records.lines().map(|record| serde_json::from_str::<Value>(record).expect("a record"));
        let mut rotations: BTreeMap<String, Vec<Timestamp>> = BTreeMap::new();
        for record in records.filter(|record| record["action"] == "rotate") {
            let text = |member: &str| record[member].as_str().expect("it is there");
            rotations.entry(text("tenant").to_owned()).or_default().push(text("time").parse().expect("a time"));
        }
        rotations
    };
    let rotations = loop {
        let rotations = rotations();
        if rotations.len() == tenants.len() && rotations.values().all(|times| times.len() >= 3) {
            break rotations;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "not all are rotated: {rotations:?}");
        tokio::time::sleep(10 * POLL).await;
    };
    for (tenant, times) in &rotations {
        for (earlier, later) in times.iter().zip(&times[1..]) {
            let between = later.duration_since(*earlier).as_secs();
            assert!(
                (PERIOD_SECS..2 * PERIOD_SECS).contains(&between),
                "{tenant} is not rotated once a period: {times:?}"
            );
        }
    }
    // Each rotation has left its key: none was made twice, and none is without an account.
    for tenant in &tenants {
        let request = ListSigningKeysRequest { tenant: tenant.clone(), ..ListSigningKeysRequest::default() };
        let keys = clients[0].keys.list_signing_keys(request).await.expect("they are listed").into_inner().keys;
        let count = |state| keys.iter().filter(|key| key.state() == state).count();
        assert_eq!((count(KeyState::Current), count(KeyState::Abandoned)), (1, 0), "{keys:?}");
    }
}

/// A database that is killed and comes back costs no signature, and what was acknowledged is there on all replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_costs_no_signature_and_no_change() {
    let server = postgresql::Server::start();
    let stand = Stand::on(server.database(), 3, |installation| installation);
    let mut clients = stand.clients().await;
    let tenant = clients[0].create_tenant(TENANT, &["ES256"], policy()).await;
    stand.wait_for(&published(&stand.servers[0]));
    let (stop, mut signers) = (Arc::new(AtomicBool::new(false)), Vec::new());
    for client in &clients {
        let (mut client, issuer, stop) = (client.clone(), tenant.issuer.clone(), Arc::clone(&stop));
        signers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.sign_jwt(TENANT, "ES256", claims(&issuer, 60)).await.expect("signing asks no store");
            }
        }));
    }
    let mut replaced = BTreeSet::new();
    for turn in 0..4 {
        let mut rotating = clients[turn % 3].clone();
        // It is under way, or just acknowledged, when the database dies; whatever came of it, it is done in the end, once.
        let rotation = RotateSigningKeyRequest {
            tenant: TENANT.to_owned(),
            algorithm: "ES256".to_owned(),
            request_id: format!("turn-{turn}"),
            force: true,
            ..RotateSigningKeyRequest::default()
        };
        let (begun, request) = (Instant::now(), rotation.clone());
        let asked = tokio::spawn(async move { rotating.keys.rotate_signing_key(request).await });
        server.kill_and_start_again();
        let _ = asked.await.expect("it is answered");
        let done = loop {
            match clients[(turn + 1) % 3].keys.rotate_signing_key(rotation.clone()).await {
                Ok(done) => break done.into_inner(),
                Err(status) => assert!(begun.elapsed() < REACHES_ALL_MAX, "{status:?}"),
            }
            tokio::time::sleep(POLL).await;
        };
        assert!(replaced.insert(done.previous.expect("the replaced key").kid), "one rotation for each turn");
    }
    stop.store(true, Ordering::Relaxed);
    for signer in signers {
        signer.await.expect("no call failed");
    }
    // Current, next and four that were replaced, on all of them.
    let (begun, mut kids) = (Instant::now(), published(&stand.servers[0]));
    while kids.len() < 6 {
        assert!(begun.elapsed() < REACHES_ALL_MAX, "{kids:?}");
        tokio::time::sleep(POLL).await;
        kids = published(&stand.servers[0]);
    }
    stand.wait_for(&kids);
    assert!(kids.len() == 6 && kids.is_superset(&replaced), "{kids:?}");
}
