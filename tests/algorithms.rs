//! Algorithms that come and go, and HS256, whose secret nobody but the token has.

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::http::get;
use common::{Clients, Installation, Server, claims, short_policy};
use keyward::grpc::proto::{
    GetCurrentKeyRequest, GetTenantRequest, KeyState, ListSigningKeysRequest, RevokeSigningKeyRequest,
    RotateSigningKeyRequest, SignRequest, SigningKey, Tenant, UpdateTenantRequest, VerifyJwtRequest, VerifyJwtResponse,
    sign_request,
};
use prost_types::FieldMask;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How long a key that is published 1 s before it signs may take on a busy machine.
const READY_WAIT_MAX: Duration = Duration::from_secs(60);

async fn update(clients: &mut Clients, paths: &[&str], tenant: Tenant) -> Result<Tenant, Status> {
    let update_mask = Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
    let tenant = Some(Tenant { id: "acme".into(), ..tenant });
    Ok(clients.tenants.update_tenant(UpdateTenantRequest { tenant, update_mask }).await?.into_inner())
}

async fn set_algorithms(clients: &mut Clients, algorithms: &[&str]) -> Result<Tenant, Status> {
    let algorithms = algorithms.iter().map(ToString::to_string).collect();
    update(clients, &["algorithms"], Tenant { algorithms, ..Tenant::default() }).await
}

async fn set_default(clients: &mut Clients, algorithm: &str) -> Result<Tenant, Status> {
    let tenant = Tenant { default_algorithm: algorithm.into(), ..Tenant::default() };
    update(clients, &["default_algorithm"], tenant).await
}

async fn verify(clients: &mut Clients, jwt: &str) -> VerifyJwtResponse {
    let request = VerifyJwtRequest { tenant: "acme".into(), jwt: jwt.into() };
    clients.signing.verify_jwt(request).await.expect("an answer").into_inner()
}

/// alg, kid and state of each published key.
fn published(server: &Server) -> Vec<(String, String, String)> {
    let set: Value = get(&server.jwks_uri("acme")).json();
    let text = |key: &Value, member: &str| key[member].as_str().expect(member).to_owned();
    let keys = set["keys"].as_array().expect("keys");
    keys.iter().map(|key| (text(key, "alg"), text(key, "kid"), text(key, "state"))).collect()
}

fn discovered(server: &Server) -> Value {
    let url = format!("{}/acme/.well-known/openid-configuration", server.public());
    get(&url).json::<Value>()["id_token_signing_alg_values_supported"].clone()
}

fn retry_delay(status: &Status) -> Duration {
    let retry = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    retry.unwrap_or_else(|| panic!("no time to try again: {status:?}"))
}

/// Signs once the algorithm can; before that, every refusal names a time.
async fn sign_when_ready(clients: &mut Clients, issuer: &str, algorithm: &str) -> String {
    let deadline = std::time::Instant::now() + READY_WAIT_MAX;
    loop {
        match clients.sign_jwt("acme", algorithm, claims(issuer, 60)).await {
            Ok(answer) => return answer.jwt,
            Err(status) => {
                assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                // What is due is done within a second of its time.
                let delay = retry_delay(&status).max(Duration::from_millis(20));
                assert!(std::time::Instant::now() + delay < deadline, "{status:?}");
                tokio::time::sleep(delay).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_algorithm_is_added_made_the_default_and_another_retired() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    let issuer = clients.create_tenant("acme", &["RS256"], short_policy()).await.issuer;
    let old = clients.sign_jwt("acme", "", claims(&issuer, 3000)).await.expect("signed");

    // 1. Added: its keys are published at once, and sign only when verifiers know them (R3).
    let tenant = set_algorithms(&mut clients, &["RS256", "ES256"]).await.expect("added");
    assert_eq!(tenant.algorithms, ["RS256", "ES256"]);
    let keys = published(&server);
    assert_eq!(
        keys.iter().map(|(alg, _, state)| (alg.as_str(), state.as_str())).collect::<Vec<_>>(),
        [("RS256", "current"), ("RS256", "next"), ("ES256", "next")]
    );
    assert_eq!(discovered(&server), json!(["RS256", "ES256"]));
    let early = clients.sign_jwt("acme", "ES256", claims(&issuer, 60)).await.expect_err("too early");
    assert_eq!(early.code(), Code::FailedPrecondition, "{early:?}");
    assert!(
        early.message().contains("known to verifiers for publish_lead")
            && retry_delay(&early) <= Duration::from_secs(1)
    );
    let early = set_default(&mut clients, "ES256").await.expect_err("not the default yet");
    assert_eq!(early.code(), Code::FailedPrecondition, "{early:?}");
    assert!(early.message().contains("default_algorithm ES256") && retry_delay(&early) <= Duration::from_secs(1));
    let request =
        RotateSigningKeyRequest { tenant: "acme".into(), algorithm: "ES256".into(), force: true, ..Default::default() };
    let early = clients.keys.rotate_signing_key(request).await.expect_err("nothing to rotate");
    assert_eq!(early.code(), Code::FailedPrecondition, "{early:?}");
    assert_eq!(clients.sign_jwt("acme", "", claims(&issuer, 60)).await.expect("as before").algorithm, "RS256");

    // 2. It signs with the key that was published first, and can be the default.
    let jwt = sign_when_ready(&mut clients, &issuer, "ES256").await;
    let verified = verify(&mut clients, &jwt).await;
    assert!(verified.valid, "{verified:?}");
    assert_eq!(verified.kid, keys[2].1, "the key that was published first");
    assert_eq!(set_default(&mut clients, "ES256").await.expect("the default").default_algorithm, "ES256");
    assert_eq!(clients.sign_jwt("acme", "", claims(&issuer, 60)).await.expect("signed").algorithm, "ES256");

    // 3. The old one is retired: it signs no more, and what it signed goes on verifying (R4). Its next key is revoked.
    let tenant = set_algorithms(&mut clients, &["ES256"]).await.expect("retired");
    assert_eq!(tenant.algorithms, ["ES256"]);
    let refused = clients.sign_jwt("acme", "RS256", claims(&issuer, 60)).await.expect_err("retired");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let request = RotateSigningKeyRequest { tenant: "acme".into(), algorithm: "RS256".into(), ..Default::default() };
    let refused = clients.keys.rotate_signing_key(request).await.expect_err("retired");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(published(&server).contains(&("RS256".into(), old.kid.clone(), "previous".into())));
    assert_eq!(published(&server).iter().filter(|(alg, ..)| alg == "RS256").count(), 1);
    assert_eq!(discovered(&server), json!(["RS256", "ES256"]), "for as long as its key is published");
    assert!(verify(&mut clients, &old.jwt).await.valid);
    let request = ListSigningKeysRequest { tenant: "acme".into(), algorithm: "RS256".into(), ..Default::default() };
    let listed = clients.keys.list_signing_keys(request).await.expect("shown").into_inner().keys;
    let states: Vec<KeyState> = listed.iter().map(SigningKey::state).collect();
    assert_eq!(states, [KeyState::Previous, KeyState::Revoked]);

    // 4. It comes back with new keys, which wait as those of any other do; the old key stays previous.
    set_algorithms(&mut clients, &["ES256", "RS256"]).await.expect("taken up again");
    let jwt = sign_when_ready(&mut clients, &issuer, "RS256").await;
    let verified = verify(&mut clients, &jwt).await;
    assert!(verified.valid && verified.kid != old.kid, "{verified:?}");
    assert!(verify(&mut clients, &old.jwt).await.valid);

    // 5. By hand the retired key goes at once.
    let request = RevokeSigningKeyRequest { tenant: "acme".into(), kid: old.kid.clone() };
    clients.keys.revoke_signing_key(request).await.expect("revoked");
    assert!(!verify(&mut clients, &old.jwt).await.valid);
    assert!(!published(&server).iter().any(|(_, kid, _)| *kid == old.kid));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_algorithms_that_cannot_be_are_refused_with_nothing_changed() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["RS256", "ES256"], short_policy()).await;
    let before = published(&server);
    for (algorithms, words) in [
        (&["ES256"][..], "must keep RS256, the default"),
        (&[], "at least one"),
        (&["RS256", "RS256"], "each algorithm once"),
        (&["RS256", "none"], "must be one of RS256, RS384"),
    ] {
        let refused = set_algorithms(&mut clients, algorithms).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(words), "{:?} does not say {words:?}", refused.message());
    }
    // New and the default in one step: nobody could sign until its keys are known.
    let tenant = Tenant {
        algorithms: vec!["RS256".into(), "EdDSA".into()],
        default_algorithm: "EdDSA".into(),
        ..Tenant::default()
    };
    let refused = update(&mut clients, &["algorithms", "default_algorithm"], tenant).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("add it to algorithms first"), "{refused:?}");
    // The default and the retirement of the old one in one step is fine.
    assert_eq!(published(&server), before);
    let tenant = Tenant { algorithms: vec!["ES256".into()], default_algorithm: "ES256".into(), ..Tenant::default() };
    update(&mut clients, &["algorithms", "default_algorithm"], tenant).await.expect("changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_rotation_means_the_keyring_of_the_first_call() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["ES256", "EdDSA"], short_policy()).await;
    let request = RotateSigningKeyRequest {
        tenant: "acme".into(),
        request_id: "deploy-7".into(),
        force: true,
        revoke_replaced: true,
        ..Default::default()
    };
    let first = clients.keys.rotate_signing_key(request.clone()).await.expect("rotated").into_inner();
    assert_eq!(first.current.as_ref().expect("current").algorithm, "ES256");

    // 1. Another default in between: the repetition is still of ES256, and nothing of EdDSA is revoked.
    set_default(&mut clients, "EdDSA").await.expect("the default");
    let eddsa = |server: &Server| {
        let keys = published(server).into_iter().filter(|(alg, ..)| alg == "EdDSA");
        keys.collect::<Vec<_>>()
    };
    let before = eddsa(&server);
    let again = clients.keys.rotate_signing_key(request.clone()).await.expect("repeated").into_inner();
    assert_eq!(again.current.expect("current").kid, first.current.expect("current").kid);
    assert_eq!(eddsa(&server), before);

    // With the algorithm named it is another request, of that keyring.
    let named = RotateSigningKeyRequest { algorithm: "EdDSA".into(), revoke_replaced: false, ..request.clone() };
    clients.keys.rotate_signing_key(named.clone()).await.expect("rotated");
    assert_ne!(eddsa(&server), before);
    let after = eddsa(&server);
    clients.keys.rotate_signing_key(named).await.expect("repeated");
    assert_eq!(eddsa(&server), after);

    // 2. Retired and taken up again: there is no current key to answer with, and the caller is told from when on.
    set_algorithms(&mut clients, &["EdDSA"]).await.expect("retired");
    let refused = clients.keys.rotate_signing_key(request.clone()).await.expect_err("retired");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("retired after this rotation"), "{refused:?}");
    set_algorithms(&mut clients, &["EdDSA", "ES256"]).await.expect("taken up again");
    match clients.keys.rotate_signing_key(request).await {
        Err(refused) => {
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
            retry_delay(&refused);
        }
        // A busy machine: the first key signs by now.
        Ok(answer) => assert_eq!(answer.into_inner().current.expect("current").algorithm, "ES256"),
    }

    // 3. The tenant is complete, whatever was retired: the same wish again finds it there.
    set_algorithms(&mut clients, &["EdDSA"]).await.expect("retired again");
    let tenant = clients.tenants.get_tenant(GetTenantRequest { id: "acme".into() }).await.expect("there").into_inner();
    let same = keyward::grpc::proto::CreateTenantRequest { tenant: Some(tenant) };
    let refused = clients.tenants.create_tenant(same).await.expect_err("it is there");
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_algorithm_is_not_one_that_named_another() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["ES256", "EdDSA"], short_policy()).await;
    let named = RotateSigningKeyRequest {
        tenant: "acme".into(),
        algorithm: "EdDSA".into(),
        request_id: "incident-1".into(),
        force: true,
        ..Default::default()
    };
    clients.keys.rotate_signing_key(named.clone()).await.expect("rotated");
    let unnamed = RotateSigningKeyRequest { algorithm: String::new(), revoke_replaced: true, ..named };
    let answer = clients.keys.rotate_signing_key(unnamed).await.expect("rotated").into_inner();
    let previous = answer.previous.expect("the replaced key");
    assert_eq!((previous.algorithm.as_str(), previous.state()), ("ES256", KeyState::Revoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_algorithm_is_added_and_retired_across_restarts() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let issuer = clients.create_tenant("acme", &["EdDSA"], short_policy()).await.issuer;
    set_algorithms(&mut clients, &["EdDSA", "ES256"]).await.expect("added");
    server.terminate();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let jwt = sign_when_ready(&mut clients, &issuer, "ES256").await;
    set_algorithms(&mut clients, &["EdDSA"]).await.expect("retired");
    server.terminate();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    assert!(verify(&mut clients, &jwt).await.valid);
    let tenant = clients.tenants.get_tenant(GetTenantRequest { id: "acme".into() }).await.expect("there").into_inner();
    assert_eq!(tenant.algorithms, ["EdDSA"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hs256_signs_verifies_and_rotates_and_its_secret_is_shown_to_nobody() {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    let issuer = clients.create_tenant("acme", &["HS256", "ES256"], short_policy()).await.issuer;
    assert!(published(&server).iter().all(|(alg, ..)| alg == "ES256"), "{:?}", published(&server));
    assert_eq!(discovered(&server), json!(["ES256"]));

    // 1. The key shows how it is kept, and nothing of itself.
    let request = GetCurrentKeyRequest { tenant: "acme".into(), algorithm: "HS256".into() };
    let key = clients.signing.get_current_key(request).await.expect("a key").into_inner().key.expect("a key");
    assert_eq!(URL_SAFE_NO_PAD.decode(&key.kid).expect("base64url").len(), 32);
    let protection = key.protection.clone().expect("protection");
    assert!(protection.always_sensitive && protection.never_extractable && protection.local);
    for shown in [&key.public_key_pem, &key.certificate_pem, &key.pkcs7_pem, &key.fingerprint, &key.thumbprint] {
        assert!(shown.is_empty(), "{shown}");
    }

    // 2. It signs JWTs and messages; a digest is not what an HMAC takes.
    let signed = clients.sign_jwt("acme", "HS256", claims(&issuer, 3000)).await.expect("signed");
    let header = signed.jwt.split('.').next().expect("a header");
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).expect("base64url")).expect("JSON");
    assert_eq!(header, json!({"alg": "HS256", "kid": key.kid, "typ": "JWT"}));
    let sign = |input| SignRequest {
        tenant: "acme".into(),
        algorithm: "HS256".into(),
        input: Some(input),
        ..SignRequest::default()
    };
    let mac = async |clients: &mut Clients, message: &[u8]| {
        let answer = clients.signing.sign(sign(sign_request::Input::Message(message.to_vec()))).await;
        answer.expect("signed").into_inner().signature
    };
    let (signing_input, signature) = signed.jwt.rsplit_once('.').expect("a JWT");
    assert_eq!(
        mac(&mut clients, signing_input.as_bytes()).await,
        URL_SAFE_NO_PAD.decode(signature).expect("base64url")
    );
    assert_eq!(mac(&mut clients, b"").await.len(), 32);
    let refused = clients.signing.sign(sign(sign_request::Input::Digest(vec![0; 32]))).await.expect_err("a digest");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("send message"), "{refused:?}");

    // 3. VerifyJwt asks the token; nothing that was changed, cut or made without the secret is valid.
    let verified = verify(&mut clients, &signed.jwt).await;
    assert!(verified.valid, "{verified:?}");
    assert_eq!((verified.algorithm.as_str(), verified.key_state()), ("HS256", KeyState::Current));
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    for wrong in [
        format!("{signing_input}.{other}{}", &signature[1..]),
        format!("{signing_input}.{}", &signature[..40]),
        format!("{signing_input}."),
        format!("{signing_input}.{}", URL_SAFE_NO_PAD.encode([0; 32])),
    ] {
        let refused = verify(&mut clients, &wrong).await;
        assert!(!refused.valid && refused.claims_json.is_empty(), "{wrong}");
    }
    // Another algorithm's key under HS256 is refused before any MAC is made: the public key is no secret.
    let es256 = published(&server)[0].1.clone();
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{es256}"}}"#));
    let refused = verify(&mut clients, &format!("{header}.{}.{}", URL_SAFE_NO_PAD.encode("{}"), signature)).await;
    assert!(!refused.valid && refused.reason.contains("alg"), "{refused:?}");

    // 4. It rotates through the same states: the previous key verifies until it is revoked.
    let rotated = clients.rotate_when_allowed("acme", "HS256").await;
    assert_eq!(rotated.previous.as_ref().expect("previous").kid, key.kid);
    assert!(rotated.next.expect("next").kid != rotated.current.expect("current").kid);
    let verified = verify(&mut clients, &signed.jwt).await;
    assert!(verified.valid && verified.key_state() == KeyState::Previous, "{verified:?}");
    let request = RevokeSigningKeyRequest { tenant: "acme".into(), kid: key.kid.clone() };
    clients.keys.revoke_signing_key(request).await.expect("revoked");
    assert!(!verify(&mut clients, &signed.jwt).await.valid);
    assert!(published(&server).iter().all(|(alg, ..)| alg == "ES256"), "never published");
}
