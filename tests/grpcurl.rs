//! What an operator does with grpcurl, who has no proto file: reflection alone tells grpcurl everything.

mod common;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Server, claims, tools};
use serde_json::{Value, json};

/// How long a call may take, two RSA keyrings' generation included.
const CALL_WAIT_MAX_SECS: u64 = 60;
/// How long to ask again for a rotation that is allowed 1 s after the key's publication.
const ROTATION_WAIT_MAX_SECS: u64 = 30;
const ROTATION_POLL_MILLIS: u64 = 250;

#[test]
fn an_operator_finds_the_services_by_reflection() {
    let server = Server::dev();
    let services = grpcurl(&server, &["list"]).expect("reflection lists");
    for service in ["SigningService", "KeyService", "TenantService"] {
        assert!(services.lines().any(|line| line == format!("keyward.v1.{service}")), "{services}");
    }
    assert!(services.lines().any(|line| line == "grpc.health.v1.Health"), "{services}");

    let key_service = grpcurl(&server, &["describe", "keyward.v1.KeyService"]).expect("reflection describes");
    let rotate = "rpc RotateSigningKey ( .keyward.v1.RotateSigningKeyRequest )";
    assert!(key_service.contains(rotate), "{key_service}");
    let request = grpcurl(&server, &["describe", "keyward.v1.RotateSigningKeyRequest"]).expect("reflection describes");
    assert!(request.contains("string expected_current_kid"), "{request}");

    let health = call(&server, "grpc.health.v1.Health/Check", &json!({})).expect("health is served");
    assert_eq!(health["status"], "SERVING");
}

#[test]
fn an_operator_creates_a_tenant_signs_rotates_and_revokes() {
    let server = Server::dev();
    let tenant = json!({
        "id": "acme",
        "algorithms": ["RS256", "ES256"],
        "rotation_policy": {
            "max_token_ttl": "3600s", "jwks_max_age": "1s", "clock_skew": "0s", "publish_lead": "1s",
        },
    });
    let tenant = call(&server, "keyward.v1.TenantService/CreateTenant", &json!({ "tenant": tenant })).expect("created");
    assert_eq!(tenant["defaultAlgorithm"], "RS256");
    let issuer = tenant["issuer"].as_str().expect("an issuer");

    for algorithm in ["RS256", "ES256"] {
        let claims_json = STANDARD.encode(claims(issuer, 600));
        let request = json!({ "tenant": "acme", "algorithm": algorithm, "claims_json": claims_json });
        let signed = call(&server, "keyward.v1.SigningService/SignJwt", &request).expect("signed");
        assert_eq!(signed["algorithm"], algorithm);
        let request = json!({ "tenant": "acme", "jwt": signed["jwt"] });
        let verified = call(&server, "keyward.v1.SigningService/VerifyJwt", &request).expect("an answer");
        assert_eq!((&verified["valid"], &verified["kid"]), (&json!(true), &signed["kid"]), "{verified}");
        assert_eq!(verified["claimsJson"], claims_json);
    }

    for algorithm in ["RS256", "ES256"] {
        assert_eq!(states(&server, algorithm), ["KEY_STATE_CURRENT", "KEY_STATE_NEXT"], "{algorithm}");
    }

    let replaced = kid_in_state(&server, "ES256", "KEY_STATE_CURRENT");
    let rotated = rotate_when_allowed(&server, &replaced);
    assert_eq!(rotated["previous"]["kid"], json!(replaced));
    assert_eq!(kid_in_state(&server, "ES256", "KEY_STATE_CURRENT"), rotated["current"]["kid"]);

    // The error leads on: the current key cannot be revoked, and the text says what to do first.
    let revoke_current = json!({ "tenant": "acme", "kid": rotated["current"]["kid"] });
    let error = call(&server, "keyward.v1.KeyService/RevokeSigningKey", &revoke_current).expect_err("refused");
    assert!(error.contains("Code: FailedPrecondition"), "{error}");
    assert!(error.to_lowercase().contains("rotate"), "the way out is missing: {error}");

    let revoke_previous = json!({ "tenant": "acme", "kid": replaced });
    let revoked = call(&server, "keyward.v1.KeyService/RevokeSigningKey", &revoke_previous).expect("revoked");
    assert_eq!(revoked["state"], "KEY_STATE_REVOKED");
    assert!(revoked["revokeTime"].is_string(), "{revoked}");
}

#[test]
fn an_operator_who_mistypes_is_told_what() {
    let server = Server::dev();
    let request = json!({ "tenant": "no-such-tenant" });
    let error = call(&server, "keyward.v1.KeyService/ListSigningKeys", &request).expect_err("there is no such tenant");
    assert!(error.contains("Code: NotFound") && error.contains("no-such-tenant"), "{error}");

    let request = json!({ "tenant": "demo", "algorithm": "RS265", "claims_json": STANDARD.encode("{}") });
    let error = call(&server, "keyward.v1.SigningService/SignJwt", &request).expect_err("there is no such algorithm");
    assert!(error.contains("Code: InvalidArgument") && error.contains("algorithm"), "{error}");
}

/// Asks again while the refusal is that the next key has not been published for long enough.
fn rotate_when_allowed(server: &Server, current_kid: &str) -> Value {
    let request = json!({ "tenant": "acme", "algorithm": "ES256", "expected_current_kid": current_kid });
    let deadline = Instant::now() + Duration::from_secs(ROTATION_WAIT_MAX_SECS);
    loop {
        match call(server, "keyward.v1.KeyService/RotateSigningKey", &request) {
            Ok(rotated) => return rotated,
            Err(error) => {
                assert!(error.contains("Code: FailedPrecondition"), "{error}");
                assert!(Instant::now() < deadline, "not in {ROTATION_WAIT_MAX_SECS} s: {error}");
                std::thread::sleep(Duration::from_millis(ROTATION_POLL_MILLIS));
            }
        }
    }
}

/// The states of the keyring's keys, sorted.
fn states(server: &Server, algorithm: &str) -> Vec<String> {
    let mut states: Vec<String> = keys(server, algorithm).into_iter().map(|(state, _)| state).collect();
    states.sort();
    states
}

fn kid_in_state(server: &Server, algorithm: &str, state: &str) -> String {
    let key = keys(server, algorithm).into_iter().find(|key| key.0 == state);
    key.unwrap_or_else(|| panic!("no {algorithm} key in {state}")).1
}

/// State and kid of each key of the keyring.
fn keys(server: &Server, algorithm: &str) -> Vec<(String, String)> {
    let request = json!({ "tenant": "acme", "algorithm": algorithm });
    let listed = call(server, "keyward.v1.KeyService/ListSigningKeys", &request).expect("listed");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let keys = listed["keys"].as_array().expect("keys");
    keys.iter().map(|key| (text(&key["state"]), text(&key["kid"]))).collect()
}

/// Calls a method: its answer as JSON, or what grpcurl tells the operator instead.
fn call(server: &Server, method: &str, request: &Value) -> Result<Value, String> {
    let answer = grpcurl(server, &[method, &request.to_string()])?;
    Ok(serde_json::from_str(&answer).expect("grpcurl prints JSON"))
}

/// Runs grpcurl with a verb and its argument, or a method and its request.
fn grpcurl(server: &Server, arguments: &[&str]) -> Result<String, String> {
    let mut command = tools::grpcurl();
    command.args(["-plaintext", "-max-time", &CALL_WAIT_MAX_SECS.to_string()]);
    match arguments {
        [method, request] if method.contains('/') => command.args(["-d", request, server.grpc(), method]),
        _ => command.arg(server.grpc()).args(arguments),
    };
    let output = command.output().expect("grpcurl starts");
    let text = |bytes| String::from_utf8(bytes).expect("grpcurl prints UTF-8");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
