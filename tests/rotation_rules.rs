//! The rules of rotation, revocation and the ends of keys and tenants, as operators meet them (docs/rotation.md).

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::http::get;
use common::{Clients, Server, claims, short_policy};
use keyward::grpc::proto::{
    DeleteTenantRequest, GetCurrentKeyRequest, GetSigningKeyRequest, GetTenantRequest, KeyState,
    ListSigningKeysRequest, RevokeSigningKeyRequest, RotateSigningKeyRequest, RotateSigningKeyResponse, RotationPolicy,
    SigningKey, Tenant, UpdateTenantRequest, VerifyJwtRequest,
};
use prost_types::{FieldMask, Timestamp};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Row as _, query};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How long something may take that happens by itself, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// Callers at once.
const CROWD: usize = 100;

const TENANT: &str = "acme";
const ALGORITHM: &str = "ES256";

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_before_publish_lead_is_refused_with_the_time_and_force_is_marked() {
    let (server, mut clients) = with_tenant(long_lead()).await;
    let next = only(&mut clients, KeyState::Next).await;
    let status = rotate(&mut clients, plain()).await.expect_err("the next key is new");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    let ready = time(next.publish_time) + Duration::from_secs(3600);
    let left = ready.duration_since(SystemTime::now()).expect("in the future");
    assert_close(retry_delay(&status), left);
    let in_words = jiff::Timestamp::try_from(ready).expect("a time of today").to_string();
    assert!(status.message().contains(&in_words), "{status:?} does not say {in_words}");
    assert!(status.message().contains("force"), "{status:?} does not say the way out");
    assert!(status.get_details_precondition_failure().is_some(), "{status:?}");
    assert_eq!(status.get_details_error_info().map(|info| info.domain).as_deref(), Some("keyward"));
    assert!(rotations(&server).await.is_empty(), "a refused rotation left an event");

    let rotated = rotate(&mut clients, forced()).await.expect("force is force");
    assert_eq!(rotated.current.expect("a current key").kid, next.kid);
    let events = rotations(&server).await;
    assert!(matches!(&events[..], [detail] if detail.contains("forced")), "{events:?}");
    let log = server.log();
    let line = log.iter().find(|line| line.contains("forced rotation")).expect("a log line on the forced rotation");
    assert!(line.contains(TENANT) && line.contains(ALGORITHM) && line.contains("WARN"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_in_its_time_is_not_marked_as_forced() {
    let (server, mut clients) = with_tenant(short_policy()).await;
    let before = only(&mut clients, KeyState::Next).await;
    let rotated = clients.rotate_when_allowed(TENANT, ALGORITHM).await;
    let current = rotated.current.expect("a current key");
    assert_eq!(current.kid, before.kid);
    assert!(time(current.activate_time) >= time(before.publish_time) + Duration::from_secs(1), "before publish_lead");
    let events = rotations(&server).await;
    assert!(matches!(&events[..], [detail] if !detail.contains("forced")), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sixth_rotation_by_hand_in_a_day_is_refused() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant(TENANT, &["ES256", "EdDSA"], short_policy()).await;
    let first = SystemTime::now();
    for algorithm in ["ES256", "EdDSA", "ES256", "EdDSA", "ES256"] {
        let request = RotateSigningKeyRequest { algorithm: algorithm.into(), ..forced() };
        rotate(&mut clients, request).await.expect("five are allowed");
    }
    let kids = kids(&mut clients).await;
    for algorithm in ["ES256", "EdDSA"] {
        let request = RotateSigningKeyRequest { algorithm: algorithm.into(), ..forced() };
        let status = rotate(&mut clients, request).await.expect_err("the sixth in a day");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let free = first + Duration::from_secs(86_400);
        assert_close(retry_delay(&status), free.duration_since(SystemTime::now()).expect("tomorrow"));
        assert!(status.message().contains("5 times in 24 hours"), "{status:?}");
        assert!(status.get_details_quota_failure().is_some(), "{status:?}");
    }
    assert_eq!(self::kids(&mut clients).await, kids, "a refused rotation changed keys");
    let request = RotateSigningKeyRequest { tenant: "demo".into(), ..forced() };
    rotate(&mut clients, request).await.expect("the limit is one tenant's");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_id_twice_rotates_once() {
    let (server, mut clients) = with_tenant(long_lead()).await;
    let request = RotateSigningKeyRequest { request_id: "3f1c".into(), ..forced() };
    let first = rotate(&mut clients, request.clone()).await.expect("rotated");
    let again = rotate(&mut clients, request.clone()).await.expect("no error");
    assert_eq!(again, first);
    // The time has not come for another one, and the repetition is still no error.
    let unforced = RotateSigningKeyRequest { force: false, ..request.clone() };
    assert_eq!(rotate(&mut clients, unforced).await.expect("no error"), first);
    assert_eq!(rotations(&server).await.len(), 1);

    let outcomes = crowd(&clients, &RotateSigningKeyRequest { request_id: "77aa".into(), ..forced() }).await;
    let second = outcomes[0].as_ref().expect("rotated").current.clone();
    assert_ne!(second, first.current);
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_ok_and(|rotated| rotated.current == second)));
    assert_eq!(rotations(&server).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_expected_current_kid_is_aborted() {
    let (server, mut clients) = with_tenant(long_lead()).await;
    let current = only(&mut clients, KeyState::Current).await.kid;
    let request = RotateSigningKeyRequest { expected_current_kid: current.clone(), ..forced() };
    let rotated = rotate(&mut clients, request.clone()).await.expect("it is the current one");
    let status = rotate(&mut clients, request).await.expect_err("it is no more");
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    let now_current = rotated.current.expect("a current key").kid;
    assert!(status.message().contains(&now_current), "{status:?} does not say which is current");
    assert_eq!(rotations(&server).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_expects_the_same_current_key_rotates_once() {
    let (server, mut clients) = with_tenant(long_lead()).await;
    let expected_current_kid = only(&mut clients, KeyState::Current).await.kid;
    let outcomes = crowd(&clients, &RotateSigningKeyRequest { expected_current_kid, ..forced() }).await;
    assert_eq!(codes(&outcomes), (1, vec![Code::Aborted; CROWD - 1]));
    settled(&mut clients).await;
    assert_eq!(rotations(&server).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_without_guards_rotates_once() {
    // A lead that a crowd cannot outlast: the new next key is too young for each that comes second.
    let (server, mut clients) = with_tenant(RotationPolicy { publish_lead: secs(8), ..short_policy() }).await;
    let ready = time(only(&mut clients, KeyState::Next).await.publish_time) + Duration::from_secs(8);
    while SystemTime::now() < ready {
        tokio::time::sleep(POLL).await;
    }
    let outcomes = crowd(&clients, &plain()).await;
    assert_eq!(codes(&outcomes), (1, vec![Code::FailedPrecondition; CROWD - 1]));
    settled(&mut clients).await;
    assert_eq!(rotations(&server).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedule_rotates_by_itself_and_never_before_publish_lead() {
    let (server, mut clients) = with_tenant(RotationPolicy { rotation_period: secs(2), ..short_policy() }).await;
    eventually("three scheduled rotations", async || rotations(&server).await.len() >= 3).await;
    let keys = list(&mut clients, &[]).await;
    let mut activated: Vec<&SigningKey> = keys.iter().filter(|key| key.activate_time.is_some()).collect();
    activated.sort_by_key(|key| time(key.activate_time));
    assert!(activated.len() >= 4);
    for pair in activated.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        assert!(time(after.activate_time) >= time(after.publish_time) + Duration::from_secs(1), "R3: {after:?}");
        assert!(time(after.activate_time) >= time(before.activate_time) + Duration::from_secs(2), "{after:?}");
        assert_eq!(before.retire_time, after.activate_time);
    }
    for detail in rotations(&server).await {
        assert_eq!(detail, "by schedule");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_previous_key_is_revoked_when_its_retention_ends_and_destroyed_after_the_delay() {
    let policy = RotationPolicy { max_token_ttl: secs(2), destroy_delay: secs(1), ..short_policy() };
    let (server, mut clients) = with_tenant(policy).await;
    clients.create_tenant("keeper", &[ALGORITHM], RotationPolicy { auto_revoke: Some(false), ..policy }).await;
    let kept = rotate(&mut clients, RotateSigningKeyRequest { tenant: "keeper".into(), ..forced() }).await;
    let kept = kept.expect("rotated").previous.expect("a previous key");
    assert_eq!(kept.revoke_scheduled_time, None);
    // Each key is two objects: its private and its public half.
    let objects = token_objects(&server);

    let rotated = rotate(&mut clients, forced()).await.expect("rotated");
    let previous = rotated.previous.expect("a previous key");
    assert_eq!(previous.state(), KeyState::Previous);
    let retained = Duration::from_secs(3);
    assert_eq!(time(previous.revoke_scheduled_time), time(previous.retire_time) + retained);
    assert_eq!(token_objects(&server), objects + 2);
    let kid = previous.kid;
    assert!(published(&server, TENANT).contains(&kid));

    eventually("the end of the key", async || {
        find(&mut key_clients(&server).await, TENANT, &kid).await.state() == KeyState::Destroyed
    })
    .await;
    let key = find(&mut clients, TENANT, &kid).await;
    assert!(time(key.revoke_time) >= time(key.retire_time) + retained, "R4: {key:?}");
    assert!(time(key.destroy_time) >= time(key.revoke_time) + Duration::from_secs(1), "{key:?}");
    assert_eq!(token_objects(&server), objects, "the private key is still on the token");
    assert!(!published(&server, TENANT).contains(&kid));
    assert!(!key.public_key_pem.is_empty() && key.protection.is_some(), "the history stays");

    let kept = find(&mut clients, "keeper", &kept.kid).await;
    assert_eq!(kept.state(), KeyState::Previous, "auto_revoke is off");
    assert!(published(&server, "keeper").contains(&kept.kid));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_previous_key_can_be_revoked() {
    let (server, mut clients) = with_tenant(RotationPolicy { destroy_delay: secs(3600), ..long_lead() }).await;
    for (state, way_out) in [(KeyState::Current, "rotate first"), (KeyState::Next, "rotate twice first")] {
        let kid = only(&mut clients, state).await.kid;
        let status = revoke(&mut clients, &kid).await.expect_err("in use");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains(way_out), "{status:?}");
        assert!(published(&server, TENANT).contains(&kid));
    }
    let issued = clients.sign_jwt(TENANT, ALGORITHM, claims(&issuer(&server), 600)).await.expect("signed");
    let previous = rotate(&mut clients, forced()).await.expect("rotated").previous.expect("a previous key").kid;
    assert_eq!(issued.kid, previous);
    assert_eq!(verdict(&mut clients, &issued.jwt).await, (true, String::new()));

    let revoked = revoke(&mut clients, &previous).await.expect("a previous key");
    assert_eq!(revoked.state(), KeyState::Revoked);
    assert!(!published(&server, TENANT).contains(&previous));
    let (valid, reason) = verdict(&mut clients, &issued.jwt).await;
    assert!(!valid && reason.contains("revoked"), "{reason}");
    let again = revoke(&mut clients, &previous).await.expect("revoked already is no error");
    assert_eq!(again, revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotate_and_revoke_ends_the_replaced_key_at_once() {
    let (server, mut clients) = with_tenant(RotationPolicy { destroy_delay: secs(3600), ..long_lead() }).await;
    let issued = clients.sign_jwt(TENANT, ALGORITHM, claims(&issuer(&server), 600)).await.expect("signed");
    let rotated = rotate(&mut clients, RotateSigningKeyRequest { revoke_replaced: true, ..forced() }).await;
    let rotated = rotated.expect("rotated");
    let replaced = rotated.previous.expect("the replaced key");
    assert_eq!((replaced.kid.as_str(), replaced.state()), (issued.kid.as_str(), KeyState::Revoked));
    assert!(!published(&server, TENANT).contains(&issued.kid));
    let (valid, reason) = verdict(&mut clients, &issued.jwt).await;
    assert!(!valid && reason.contains("revoked"), "{reason}");
    let signed = clients.sign_jwt(TENANT, ALGORITHM, claims(&issuer(&server), 600)).await.expect("signed");
    assert_eq!(signed.kid, rotated.current.expect("a current key").kid);
    let events = rotations(&server).await;
    assert!(matches!(&events[..], [detail] if detail.contains("revoked") && detail.contains("forced")), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_that_adds_revoke_replaced_revokes_what_the_first_call_replaced() {
    let (_server, mut clients) = with_tenant(short_policy()).await;
    let request = RotateSigningKeyRequest { request_id: "deploy-7".into(), ..forced() };
    let first = rotate(&mut clients, request.clone()).await.expect("rotated");
    let replaced = first.previous.expect("the replaced key");
    assert_eq!(replaced.state(), KeyState::Previous);
    let request = RotateSigningKeyRequest { revoke_replaced: true, ..request };
    for _ in 0..2 {
        let again = rotate(&mut clients, request.clone()).await.expect("a repetition is no error");
        assert_eq!(again.current.expect("current").kid, first.current.clone().expect("current").kid, "rotated once");
        let previous = again.previous.expect("the replaced key");
        assert_eq!((&previous.kid, previous.state()), (&replaced.kid, KeyState::Revoked));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shortened_policy_keeps_what_the_old_one_promised() {
    let (server, mut clients) = with_tenant(long_lead()).await;
    clients.sign_jwt(TENANT, ALGORITHM, claims(&issuer(&server), 3000)).await.expect("within the old limit");
    let rotation_policy = Some(short_policy_of(1));
    let tenant = Some(Tenant { id: TENANT.into(), rotation_policy, ..Tenant::default() });
    let update_mask = Some(FieldMask { paths: vec!["rotation_policy".into()] });
    let updated = clients.tenants.update_tenant(UpdateTenantRequest { tenant, update_mask }).await.expect("updated");
    let policy = updated.into_inner().rotation_policy.expect("a policy");
    assert_eq!((policy.max_token_ttl, policy.publish_lead), (secs(1), secs(1)));

    let status =
        clients.sign_jwt(TENANT, ALGORITHM, claims(&issuer(&server), 3000)).await.expect_err("over the new limit");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    // R3: a cache may have been told to keep the set for as long as the old policy said.
    let status = rotate(&mut clients, plain()).await.expect_err("the old publish_lead still binds");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(retry_delay(&status) > Duration::from_secs(3000), "{status:?}");
    // R4: the JWT from before lives on.
    let previous = rotate(&mut clients, forced()).await.expect("rotated").previous.expect("a previous key");
    let kept = time(previous.revoke_scheduled_time).duration_since(time(previous.retire_time)).expect("after it");
    assert!(kept >= Duration::from_secs(3600), "kept for {kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tenant_is_gone_and_only_with_its_id_confirmed() {
    let server = Server::dev();
    let objects = token_objects(&server);
    let mut clients = Clients::connect(&server).await;
    let policy = RotationPolicy { destroy_delay: secs(0), ..short_policy() };
    clients.create_tenant(TENANT, &[ALGORITHM, "EdDSA"], policy).await;
    for confirm_id in ["", "demo"] {
        let request = DeleteTenantRequest { id: TENANT.into(), confirm_id: confirm_id.into() };
        let status = clients.tenants.delete_tenant(request).await.expect_err("not confirmed");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("confirm_id"), "{status:?}");
    }
    assert_eq!(published(&server, TENANT).len(), 4);

    let request = DeleteTenantRequest { id: TENANT.into(), confirm_id: TENANT.into() };
    clients.tenants.delete_tenant(request).await.expect("confirmed");
    assert_eq!(get(&server.jwks_uri(TENANT)).status, 404);
    let status = clients.sign_jwt(TENANT, "", claims("https://a.example", 60)).await.expect_err("gone");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    let status = clients.tenants.get_tenant(GetTenantRequest { id: TENANT.into() }).await.expect_err("gone");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    eventually("no object is left of it", async || token_objects(&server) == objects).await;
    clients.create_tenant(TENANT, &[ALGORITHM], short_policy()).await;
    assert_eq!(published(&server, TENANT).len(), 2, "the id is free again");
}

async fn with_tenant(policy: RotationPolicy) -> (Server, Clients) {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant(TENANT, &[ALGORITHM], policy).await;
    (server, clients)
}

async fn key_clients(server: &Server) -> Clients {
    Clients::connect(server).await
}

fn secs(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Nobody who waits for this is in time.
fn long_lead() -> RotationPolicy {
    RotationPolicy { publish_lead: secs(3600), ..short_policy() }
}

fn short_policy_of(max_token_ttl_secs: i64) -> RotationPolicy {
    RotationPolicy { max_token_ttl: secs(max_token_ttl_secs), ..short_policy() }
}

fn plain() -> RotateSigningKeyRequest {
    RotateSigningKeyRequest { tenant: TENANT.into(), ..RotateSigningKeyRequest::default() }
}

fn forced() -> RotateSigningKeyRequest {
    RotateSigningKeyRequest { force: true, ..plain() }
}

async fn rotate(clients: &mut Clients, request: RotateSigningKeyRequest) -> Result<RotateSigningKeyResponse, Status> {
    Ok(clients.keys.rotate_signing_key(request).await?.into_inner())
}

async fn revoke(clients: &mut Clients, kid: &str) -> Result<SigningKey, Status> {
    let request = RevokeSigningKeyRequest { tenant: TENANT.into(), kid: kid.into() };
    Ok(clients.keys.revoke_signing_key(request).await?.into_inner())
}

/// The same request from many callers at once.
async fn crowd(clients: &Clients, request: &RotateSigningKeyRequest) -> Vec<Result<RotateSigningKeyResponse, Status>> {
    let mut calls = JoinSet::new();
    for _ in 0..CROWD {
        let (mut clients, request) = (clients.clone(), request.clone());
        calls.spawn(async move { rotate(&mut clients, request).await });
    }
    calls.join_all().await
}

/// How many were granted, and the codes of the others.
fn codes(outcomes: &[Result<RotateSigningKeyResponse, Status>]) -> (usize, Vec<Code>) {
    let refused: Vec<Code> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).map(Status::code).collect();
    (outcomes.len() - refused.len(), refused)
}

async fn list(clients: &mut Clients, states: &[KeyState]) -> Vec<SigningKey> {
    let states = states.iter().map(|state| (*state).into()).collect();
    let request = ListSigningKeysRequest { tenant: TENANT.into(), states, ..ListSigningKeysRequest::default() };
    clients.keys.list_signing_keys(request).await.expect("a list").into_inner().keys
}

async fn kids(clients: &mut Clients) -> Vec<(String, i32)> {
    list(clients, &[]).await.into_iter().map(|key| (key.kid, key.state)).collect()
}

/// The one key in this state (R2).
async fn only(clients: &mut Clients, state: KeyState) -> SigningKey {
    let mut keys = list(clients, &[state]).await;
    assert_eq!(keys.len(), 1, "{state:?}: {keys:?}");
    keys.remove(0)
}

/// After one rotation: one current key, one next key, one previous key, and the current one signs.
async fn settled(clients: &mut Clients) {
    let request = GetCurrentKeyRequest { tenant: TENANT.into(), algorithm: String::new() };
    let signer = clients.signing.get_current_key(request).await.expect("a key").into_inner().key.expect("a key");
    assert_eq!(only(clients, KeyState::Current).await.kid, signer.kid);
    only(clients, KeyState::Next).await;
    only(clients, KeyState::Previous).await;
}

async fn find(clients: &mut Clients, tenant: &str, kid: &str) -> SigningKey {
    let request = GetSigningKeyRequest { tenant: tenant.into(), kid: kid.into() };
    clients.keys.get_signing_key(request).await.expect("the key").into_inner()
}

async fn verdict(clients: &mut Clients, jwt: &str) -> (bool, String) {
    let request = VerifyJwtRequest { tenant: TENANT.into(), jwt: jwt.into() };
    let answer = clients.signing.verify_jwt(request).await.expect("an answer").into_inner();
    (answer.valid, answer.reason)
}

fn issuer(server: &Server) -> String {
    format!("{}/{TENANT}", server.public())
}

/// The kids in the tenant's JWKS.
fn published(server: &Server, tenant: &str) -> Vec<String> {
    let jwks: Value = get(&server.jwks_uri(tenant)).json();
    let keys = jwks["keys"].as_array().expect("keys");
    keys.iter().map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

/// What the audit log tells of each rotation of the tenant's, oldest first.
async fn rotations(server: &Server) -> Vec<String> {
    let path = Path::new(server.state_dir()).join("store.sqlite");
    let mut store = SqliteConnectOptions::new().filename(path).read_only(true).connect().await.expect("the store");
    let rows = "select record ->> 'detail' as detail from audit_event \
                where record ->> 'action' = 'rotate' and tenant = ?1 order by position";
    let rows = query(rows).bind(TENANT).fetch_all(&mut store).await.expect("the store can be read");
    rows.iter().map(|row| row.get("detail")).collect()
}

/// SoftHSM keeps each object in a file of its own.
fn token_objects(server: &Server) -> usize {
    let tokens = fs::read_dir(Path::new(server.state_dir()).join("tokens")).expect("the tokens' directory");
    let objects = tokens.flat_map(|token| fs::read_dir(token.expect("a token").path()).expect("the token's directory"));
    let names = objects.map(|object| object.expect("an object").file_name().into_string().expect("an ASCII name"));
    names.filter(|name| name.ends_with(".object") && name != "token.object").count()
}

fn time(time: Option<Timestamp>) -> SystemTime {
    SystemTime::try_from(time.expect("the time is set")).expect("a time after 1970")
}

fn retry_delay(status: &Status) -> Duration {
    let retry = status.get_details_retry_info().unwrap_or_else(|| panic!("no RetryInfo: {status:?}"));
    retry.retry_delay.unwrap_or_else(|| panic!("no delay: {status:?}"))
}

/// As far apart as an answer's way may take.
fn assert_close(told: Duration, expected: Duration) {
    assert!(told.abs_diff(expected) < Duration::from_secs(30), "told {told:?}, expected {expected:?}");
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {WAIT_MAX:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}
