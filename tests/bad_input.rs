//! Bad input: each kind has its code, names the field and the way out, tells nothing internal and changes nothing; and what
//! stands right beside it is taken.

mod common;

use std::collections::BTreeMap;

use common::{Clients, Server, claims, kept, short_policy};
use keyward::grpc::proto::{
    BatchSignInput, BatchSignRequest, CreateTenantRequest, DeleteTenantRequest, GetCurrentKeyRequest,
    GetSigningKeyRequest, GetTenantRequest, ListSigningKeysRequest, ListTenantsRequest, RevokeSigningKeyRequest,
    RotateSigningKeyRequest, SignJwtRequest, SignRequest, SignatureFormat, Tenant, UpdateTenantRequest,
    VerifyJwtRequest, batch_sign_input, sign_request,
};
use prost_types::FieldMask;
use serde_json::{Value, json};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Stands in every payload; no answer and no log line may hold it.
const PAYLOAD: &str = "payload-7f3a91";
/// A name that the server gives no tenant.
const NOBODY: &str = "nobody";

/// `keyward dev` with its own code's debug lines, what it had before, and clients.
struct Trial {
    server: Server,
    clients: Clients,
    before: Vec<String>,
}

impl Trial {
    async fn begin() -> Self {
        let server = Server::dev_that_tells_more();
        let clients = Clients::connect(&server).await;
        let before = kept::rows(&server).await;
        Self { server, clients, before }
    }

    /// The refusal has this code, names the field in words and (INVALID_ARGUMENT) in BadRequest, and says these words.
    fn refused(&self, code: Code, field: &str, words: &[&str], outcome: Result<(), Status>) {
        let status = outcome.err().unwrap_or_else(|| panic!("{field} ({words:?}) was taken"));
        self.told_well(code, &status);
        let message = status.message();
        assert!(message.contains(field), "{message:?} does not name {field}");
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
        if code == Code::InvalidArgument {
            let details = status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest: {status:?}"));
            let fields: Vec<&str> = details.field_violations.iter().map(|one| one.field.as_str()).collect();
            assert!(fields.contains(&field), "BadRequest names {fields:?}, not {field}");
        }
    }

    /// The code, ErrorInfo, and nothing that is not the caller's to know (R12).
    fn told_well(&self, code: Code, status: &Status) {
        assert_eq!(status.code(), code, "{status:?}");
        let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
        assert_eq!(info.domain, "keyward");
        assert!(!info.reason.is_empty());
        let pin = kept::pin(&self.server);
        let whole = format!("{} {}", status.message(), String::from_utf8_lossy(status.details()));
        for internal in [self.server.state_dir(), &pin, PAYLOAD, "CKR_", "sqlite", "softhsm", "/usr/"] {
            assert!(!whole.contains(internal), "{internal} is told in {whole:?}");
        }
    }

    /// Nothing that was refused left a trace in the store, and no payload or PIN is in the log.
    async fn end(self) {
        assert_eq!(kept::rows(&self.server).await, self.before);
        kept::is_not_logged(&self.server, PAYLOAD);
    }

    async fn jwt(&mut self, claims_json: &[u8], typ: &str) -> Result<(), Status> {
        let request = SignJwtRequest {
            tenant: "demo".into(),
            algorithm: "ES256".into(),
            claims_json: claims_json.into(),
            r#type: typ.into(),
        };
        self.clients.signing.sign_jwt(request).await.map(drop)
    }

    async fn sign(&mut self, request: SignRequest) -> Result<(), Status> {
        self.clients.signing.sign(SignRequest { tenant: "demo".into(), ..request }).await.map(drop)
    }

    async fn batch(&mut self, algorithm: &str, inputs: Vec<BatchSignInput>) -> Result<(), Status> {
        let request = BatchSignRequest {
            tenant: "demo".into(),
            algorithm: algorithm.into(),
            inputs,
            ..BatchSignRequest::default()
        };
        self.clients.signing.batch_sign(request).await.map(drop)
    }

    async fn create(&mut self, tenant: Tenant) -> Result<(), Status> {
        self.clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.map(drop)
    }

    async fn list(&mut self, request: ListSigningKeysRequest) -> Result<(), Status> {
        let request = ListSigningKeysRequest { tenant: "demo".into(), ..request };
        self.clients.keys.list_signing_keys(request).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_make_no_jwt_are_refused() {
    let mut trial = Trial::begin().await;
    let now = claims_member(&claims("https://a.example", 0), "iat").as_u64().expect("a number");
    let field = "claims_json";
    let with = |members: Value| members.to_string().into_bytes();
    let mut not_utf8 = format!("{{\"exp\":{},\"x\":\"{PAYLOAD}", now + 60).into_bytes();
    not_utf8.extend(b"\xff\"}");
    let twice = format!("{{\"exp\":{},\"x\":\"{PAYLOAD}\",\"exp\":{}}}", now + 60, now + 61);
    let huge = with(json!({ "exp": now + 60, "x": PAYLOAD.repeat(65_536 / PAYLOAD.len()) }));
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (Vec::new(), &["must be set"]),
        (with(json!([PAYLOAD])), &["one JSON object"]),
        (with(json!(PAYLOAD)), &["one JSON object"]),
        (b"null".to_vec(), &["one JSON object"]),
        (format!("{{\"{PAYLOAD}\"").into_bytes(), &["one JSON object"]),
        (format!("{{}} {PAYLOAD}").into_bytes(), &["one JSON object"]),
        (twice.into_bytes(), &["twice"]),
        (not_utf8, &["UTF-8"]),
        (huge, &["65536"]),
        (with(json!({ "sub": PAYLOAD })), &["exp", "3600"]),
        (with(json!({ "sub": PAYLOAD, "exp": null })), &["exp"]),
        (with(json!({ "exp": PAYLOAD })), &["exp"]),
        (with(json!({ "exp": now + 60, "nbf": PAYLOAD })), &["nbf"]),
        (with(json!({ "exp": now + 60, "iss": [PAYLOAD] })), &["iss"]),
        (with(json!({ "sub": PAYLOAD, "exp": now - 1 })), &["exp", "past"]),
        (with(json!({ "sub": PAYLOAD, "exp": -1 })), &["exp", "past"]),
        (with(json!({ "sub": PAYLOAD, "exp": now + 7200 })), &["exp", "max_token_ttl"]),
        (with(json!({ "sub": PAYLOAD, "exp": 1e300 })), &["exp", "max_token_ttl"]),
        (with(json!({ "exp": now + 60, "iss": format!("https://{PAYLOAD}.example") })), &["iss", "/demo"]),
    ];
    for (claims_json, words) in cases {
        let outcome = trial.jwt(&claims_json, "").await;
        trial.refused(Code::InvalidArgument, field, words, outcome);
    }
    let good = claims(trial.server.demo().1, 60);
    for typ in ["a b", "JWT\r\n", "JWT\"", "\u{e9}", "\0", &"x".repeat(65), &"x".repeat(100_000)] {
        let outcome = trial.jwt(&good, typ).await;
        trial.refused(Code::InvalidArgument, "type", &["media type", "at+jwt"], outcome);
    }
    for typ in ["", "JWT", "at+jwt", &"x".repeat(64)] {
        trial.jwt(&good, typ).await.expect("a type that is right");
    }
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_nothing_are_refused_by_every_method() {
    let mut trial = Trial::begin().await;
    let huge = "x".repeat(100_000);
    let tenants = [
        ("", Code::InvalidArgument),
        ("UPPER", Code::InvalidArgument),
        (&huge, Code::InvalidArgument),
        (NOBODY, Code::NotFound),
    ];
    for (tenant, code) in tenants {
        for (method, outcome) in everything_for(&mut trial.clients, tenant, "some-kid").await {
            let id = method.ends_with("Tenant");
            let field = match (code, method) {
                (Code::NotFound, _) => "there is no tenant",
                (_, "UpdateTenant") => "tenant.id",
                (_, _) if id => "id",
                _ => "tenant",
            };
            trial.refused(code, field, &[], outcome);
        }
    }
    for (algorithm, words) in [
        ("HS512", &["RS256", "ES512", "EdDSA"][..]),
        ("none", &["RS256", "ES512", "EdDSA"]),
        ("rs256", &["RS256"]),
        (huge.as_str(), &["RS256"]),
        ("ES384", &["RS256, ES256, EdDSA"]),
    ] {
        for (_, outcome) in everything_of(&mut trial.clients, algorithm).await {
            trial.refused(Code::InvalidArgument, "algorithm", words, outcome);
        }
        let tenant =
            Tenant { id: "new".into(), algorithms: vec!["RS256".into(), algorithm.into()], ..Tenant::default() };
        if algorithm != "ES384" {
            let outcome = trial.create(tenant).await;
            trial.refused(Code::InvalidArgument, "tenant.algorithms[1]", words, outcome);
        }
    }
    for kid in ["", "a kid", "../../etc/passwd", &huge] {
        for (_, outcome) in everything_about(&mut trial.clients, kid).await {
            trial.refused(Code::InvalidArgument, "kid", &[], outcome);
        }
    }
    for (_, outcome) in everything_about(&mut trial.clients, "unknown").await {
        trial.refused(Code::NotFound, "kid", &["ListSigningKeys"], outcome);
    }
    let input = Some(sign_request::Input::Message(PAYLOAD.into()));
    let outcome = trial.sign(SignRequest { kid: "unknown".into(), input, ..SignRequest::default() }).await;
    trial.refused(Code::FailedPrecondition, "kid", &["only the current key signs"], outcome);
    let request_id = "two words".to_owned();
    let request = RotateSigningKeyRequest { tenant: "demo".into(), request_id, ..RotateSigningKeyRequest::default() };
    let outcome = trial.clients.keys.rotate_signing_key(request).await.map(drop);
    trial.refused(Code::InvalidArgument, "request_id", &["64"], outcome);
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_cannot_be_signed_are_refused() {
    let mut trial = Trial::begin().await;
    let base = SignRequest::default;
    let digest = |algorithm: &str, octets: usize| SignRequest {
        algorithm: algorithm.into(),
        input: Some(sign_request::Input::Digest(vec![7; octets])),
        ..base()
    };
    for (algorithm, octets) in [("RS256", 31), ("RS256", 33), ("ES256", 0), ("ES256", 64), ("ES256", 1000)] {
        let outcome = trial.sign(digest(algorithm, octets)).await;
        trial.refused(Code::InvalidArgument, "digest", &["32 octets", &octets.to_string()], outcome);
    }
    let outcome = trial.sign(digest("EdDSA", 32)).await;
    trial.refused(Code::InvalidArgument, "digest", &["EdDSA", "message"], outcome);
    let outcome = trial.sign(base()).await;
    trial.refused(Code::InvalidArgument, "input", &["message", "digest"], outcome);

    let input = Some(sign_request::Input::Message(PAYLOAD.into()));
    let wrong = crc32c::crc32c(PAYLOAD.as_bytes()) ^ 1;
    let outcome = trial.sign(SignRequest { input: input.clone(), input_crc32c: Some(wrong), ..base() }).await;
    trial.refused(Code::InvalidArgument, "input_crc32c", &["send it again"], outcome);
    let der = SignatureFormat::Der.into();
    for algorithm in ["RS256", "EdDSA"] {
        let request =
            SignRequest { algorithm: algorithm.into(), input: input.clone(), signature_format: der, ..base() };
        let outcome = trial.sign(request).await;
        trial.refused(Code::InvalidArgument, "signature_format", &["DER", algorithm], outcome);
    }
    let outcome = trial.sign(SignRequest { input: input.clone(), signature_format: 99, ..base() }).await;
    trial.refused(Code::InvalidArgument, "signature_format", &["RAW", "DER"], outcome);

    let message = || BatchSignInput { input: Some(batch_sign_input::Input::Message(PAYLOAD.into())) };
    for count in [0, 257] {
        let outcome = trial.batch("ES256", vec![message(); count]).await;
        trial.refused(Code::InvalidArgument, "inputs", &["1 to 256", &count.to_string()], outcome);
    }
    let missing = vec![message(), BatchSignInput { input: None }];
    let outcome = trial.batch("ES256", missing).await;
    trial.refused(Code::InvalidArgument, "inputs[1].input", &["message", "digest"], outcome);
    let short = BatchSignInput { input: Some(batch_sign_input::Input::Digest(vec![7; 31])) };
    let outcome = trial.batch("ES256", vec![message(), message(), short.clone()]).await;
    trial.refused(Code::InvalidArgument, "inputs[2].digest", &["32 octets"], outcome);
    let outcome = trial.batch("EdDSA", vec![message(), short]).await;
    trial.refused(Code::InvalidArgument, "inputs[1].digest", &["EdDSA"], outcome);

    let over = SignRequest { input: Some(sign_request::Input::Message(vec![7; (1 << 20) + 1])), ..base() };
    let status = trial.sign(over).await.expect_err("a message over the limit");
    trial.told_well(Code::InvalidArgument, &status);
    assert!(status.message().contains("over the limit of 1048576 octets"), "{status:?}");
    let within = SignRequest { input: Some(sign_request::Input::Message(vec![7; (1 << 20) - 64])), ..base() };
    trial.sign(within).await.expect("a message within the limit");
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf_8_and_messages_that_are_none_are_refused() {
    let trial = Trial::begin().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", trial.server.grpc())).expect("the announced address");
    let channel = endpoint.connect().await.expect("the server accepts connections");
    let fields: [(&str, &[(u32, &str)]); 13] = [
        ("SigningService/SignJwt", &[(1, "tenant"), (2, "algorithm"), (4, "type")]),
        ("SigningService/Sign", &[(1, "tenant"), (2, "algorithm"), (3, "kid")]),
        ("SigningService/BatchSign", &[(1, "tenant"), (2, "algorithm"), (3, "kid")]),
        ("SigningService/VerifyJwt", &[(1, "tenant"), (2, "jwt")]),
        ("SigningService/GetCurrentKey", &[(1, "tenant"), (2, "algorithm")]),
        ("KeyService/ListSigningKeys", &[(1, "tenant"), (2, "algorithm"), (5, "page_token")]),
        ("KeyService/GetSigningKey", &[(1, "tenant"), (2, "kid")]),
        (
            "KeyService/RotateSigningKey",
            &[(1, "tenant"), (2, "algorithm"), (3, "expected_current_kid"), (4, "request_id")],
        ),
        ("KeyService/RevokeSigningKey", &[(1, "tenant"), (2, "kid")]),
        ("TenantService/GetTenant", &[(1, "id")]),
        ("TenantService/ListTenants", &[(2, "page_token")]),
        ("TenantService/DeleteTenant", &[(1, "id"), (2, "confirm_id")]),
        ("TenantService/CreateTenant", &[(1, "tenant")]),
    ];
    for (method, fields) in fields {
        for (tag, field) in fields {
            let status = send_octets(&channel, method, Octets::at(*tag, b"\xff\xfe")).await;
            trial.told_well(Code::InvalidArgument, &status);
            assert!(status.message().contains(field), "{method}: {status:?} does not name {field}");
        }
    }
    let tenant = [
        (1, "id"),
        (2, "issuer"),
        (3, "custom_domain"),
        (4, "saml_sso_url"),
        (5, "algorithms"),
        (6, "default_algorithm"),
    ];
    for (tag, field) in tenant {
        let inner = prost::Message::encode_to_vec(&Octets::at(tag, b"\xff\xfe"));
        let status = send_octets(&channel, "TenantService/CreateTenant", Octets::at(1, &inner)).await;
        trial.told_well(Code::InvalidArgument, &status);
        assert!(status.message().contains(field), "{status:?} does not name {field}");
    }
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_not_ours_are_refused() {
    let mut trial = Trial::begin().await;
    for page_size in [-1, 1001, i32::MIN, i32::MAX] {
        let outcome = trial.list(ListSigningKeysRequest { page_size, ..ListSigningKeysRequest::default() }).await;
        trial.refused(Code::InvalidArgument, "page_size", &["0 to 1000"], outcome);
        let request = ListTenantsRequest { page_size, page_token: String::new() };
        let outcome = trial.clients.tenants.list_tenants(request).await.map(drop);
        trial.refused(Code::InvalidArgument, "page_size", &["0 to 1000"], outcome);
    }
    let request = ListSigningKeysRequest { tenant: "demo".into(), page_size: 1, ..ListSigningKeysRequest::default() };
    let page = trial.clients.keys.list_signing_keys(request.clone()).await.expect("a page").into_inner();
    let ours = page.next_page_token;
    assert!(!ours.is_empty(), "six keys are more than one page of one");
    let huge = "x".repeat(100_000);
    for page_token in ["garbage", "====", "../../etc/passwd", &format!("{ours}x"), &huge] {
        let page_token = page_token.to_owned();
        let outcome = trial
            .list(ListSigningKeysRequest { page_token: page_token.clone(), ..ListSigningKeysRequest::default() })
            .await;
        trial.refused(Code::InvalidArgument, "page_token", &["next_page_token"], outcome);
        let request = ListTenantsRequest { page_size: 0, page_token };
        let outcome = trial.clients.tenants.list_tenants(request).await.map(drop);
        trial.refused(Code::InvalidArgument, "page_token", &["next_page_token"], outcome);
    }
    let other = ListSigningKeysRequest { algorithm: "EdDSA".into(), page_token: ours.clone(), ..request.clone() };
    let outcome = trial.list(other).await;
    trial.refused(Code::InvalidArgument, "page_token", &["same filters"], outcome);
    let request = ListTenantsRequest { page_size: 1, page_token: ours };
    let outcome = trial.clients.tenants.list_tenants(request).await.map(drop);
    trial.refused(Code::InvalidArgument, "page_token", &[], outcome);
    for state in [0, 8, -1] {
        let outcome =
            trial.list(ListSigningKeysRequest { states: vec![2, state], ..ListSigningKeysRequest::default() }).await;
        trial.refused(Code::InvalidArgument, "states[1]", &["KEY_STATE_CURRENT"], outcome);
    }
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_cannot_be_are_refused() {
    let mut trial = Trial::begin().await;
    let secs = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let good = || Tenant { id: "new".into(), algorithms: vec!["ES256".into()], ..Tenant::default() };
    let policy = |policy| Tenant { rotation_policy: Some(policy), ..good() };
    let label = "x".repeat(64);
    let cases: Vec<(&str, &[&str], Tenant)> = vec![
        ("tenant.id", &["DNS label"], Tenant { id: "-new".into(), ..good() }),
        ("tenant.id", &["DNS label"], Tenant { id: label, ..good() }),
        ("tenant.algorithms", &["at least one"], Tenant { algorithms: Vec::new(), ..good() }),
        ("tenant.algorithms", &["once"], Tenant { algorithms: vec!["ES256".into(), "ES256".into()], ..good() }),
        ("tenant.algorithms", &["once"], Tenant { algorithms: vec!["ES256".into(); 10_000], ..good() }),
        ("tenant.default_algorithm", &["one of algorithms"], Tenant { default_algorithm: "RS256".into(), ..good() }),
        ("tenant.issuer", &["https"], Tenant { issuer: "http://a.example".into(), ..good() }),
        ("tenant.issuer", &["letters, digits and hyphens"], Tenant { issuer: "https://a,b.example".into(), ..good() }),
        (
            "tenant.issuer",
            &["letters, digits and hyphens"],
            Tenant { issuer: "https://a+o=evil.example".into(), ..good() },
        ),
        ("tenant.custom_domain", &["no IP address"], Tenant { custom_domain: "127.0.0.1".into(), ..good() }),
        ("tenant.custom_domain", &["no IP address"], Tenant { custom_domain: "0x7f.0x1".into(), ..good() }),
        ("tenant.issuer", &["query"], Tenant { issuer: "https://a.example/?a=b".into(), ..good() }),
        ("tenant.custom_domain", &["domain name"], Tenant { custom_domain: "https://a.example".into(), ..good() }),
        ("tenant.saml_sso_url", &["https"], Tenant { saml_sso_url: "javascript:alert(1)".into(), ..good() }),
        (
            "tenant.rotation_policy.max_token_ttl",
            &["negative"],
            policy(keyward::grpc::proto::RotationPolicy { max_token_ttl: secs(-1), ..short_policy() }),
        ),
        (
            "tenant.rotation_policy.destroy_delay",
            &["negative"],
            policy(keyward::grpc::proto::RotationPolicy { destroy_delay: secs(i64::MIN), ..short_policy() }),
        ),
        (
            "tenant.rotation_policy.max_token_ttl",
            &["from 1 s to"],
            policy(keyward::grpc::proto::RotationPolicy { max_token_ttl: secs(i64::MAX), ..short_policy() }),
        ),
        (
            "tenant.rotation_policy.publish_lead",
            &["jwks_max_age + clock_skew", "15 s"],
            policy(keyward::grpc::proto::RotationPolicy {
                jwks_max_age: secs(10),
                clock_skew: secs(5),
                publish_lead: secs(14),
                ..short_policy()
            }),
        ),
        (
            "tenant.rotation_policy.rotation_period",
            &["publish_lead"],
            policy(keyward::grpc::proto::RotationPolicy {
                publish_lead: secs(10),
                rotation_period: secs(9),
                ..short_policy()
            }),
        ),
    ];
    for (field, words, tenant) in cases {
        let outcome = trial.create(tenant).await;
        trial.refused(Code::InvalidArgument, field, words, outcome);
    }
    let outcome = trial.clients.tenants.create_tenant(CreateTenantRequest { tenant: None }).await.map(drop);
    trial.refused(Code::InvalidArgument, "tenant", &["must be set"], outcome);
    let outcome = trial.create(Tenant { id: "demo".into(), ..good() }).await;
    trial.refused(Code::AlreadyExists, "id", &["taken"], outcome);
    let issuer = trial.server.demo().1.to_owned();
    let outcome = trial.create(Tenant { issuer, ..good() }).await;
    trial.refused(Code::AlreadyExists, "issuer", &["taken"], outcome);

    let masks: [(&str, &[&str]); 8] = [
        ("update_mask", &[]),
        ("update_mask", &["custom_domain"; 33]),
        ("update_mask", &["nonsense"]),
        ("update_mask", &["custom_domain", "create_time"]),
        ("tenant.algorithms", &["algorithms"]),
        ("update_mask", &["rotation_policy.nonsense"]),
        ("tenant.issuer", &["issuer"]),
        ("tenant.default_algorithm", &["default_algorithm"]),
    ];
    for (field, paths) in masks {
        let tenant = Some(Tenant { id: "demo".into(), ..Tenant::default() });
        let paths = paths.iter().map(ToString::to_string).collect();
        let request = UpdateTenantRequest { tenant, update_mask: Some(FieldMask { paths }) };
        let outcome = trial.clients.tenants.update_tenant(request).await.map(drop);
        trial.refused(Code::InvalidArgument, field, &[], outcome);
    }
    let short_lead = keyward::grpc::proto::RotationPolicy { publish_lead: secs(1), ..Default::default() };
    let tenant = Some(Tenant { id: "demo".into(), rotation_policy: Some(short_lead), ..Tenant::default() });
    let update_mask = Some(FieldMask { paths: vec!["rotation_policy.publish_lead".into()] });
    let request = UpdateTenantRequest { tenant, update_mask };
    let outcome = trial.clients.tenants.update_tenant(request).await.map(drop);
    trial.refused(Code::InvalidArgument, "tenant.rotation_policy.publish_lead", &["jwks_max_age"], outcome);
    let tenant = Some(Tenant { id: "demo".into(), revision: 77, ..Tenant::default() });
    let request = UpdateTenantRequest { tenant, update_mask: Some(FieldMask { paths: vec!["custom_domain".into()] }) };
    let outcome = trial.clients.tenants.update_tenant(request).await.map(drop);
    trial.refused(Code::Aborted, "revision", &["read the tenant again"], outcome);
    for confirm_id in ["", "dem", "DEMO"] {
        let request = DeleteTenantRequest { id: "demo".into(), confirm_id: confirm_id.into() };
        let outcome = trial.clients.tenants.delete_tenant(request).await.map(drop);
        trial.refused(Code::InvalidArgument, "confirm_id", &["the same as id"], outcome);
    }
    trial.end().await;
}

/// Every method that names a tenant, called for this one.
async fn everything_for(clients: &mut Clients, tenant: &str, kid: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let Clients { signing, keys, tenants } = clients;
    let (tenant, kid) = (tenant.to_owned(), kid.to_owned());
    let id = || tenant.clone();
    let input = Some(sign_request::Input::Message(PAYLOAD.into()));
    let inputs = vec![BatchSignInput { input: Some(batch_sign_input::Input::Message(PAYLOAD.into())) }];
    let claims_json = claims("https://a.example", 60);
    let update = UpdateTenantRequest {
        tenant: Some(Tenant { id: id(), ..Tenant::default() }),
        update_mask: Some(FieldMask { paths: vec!["custom_domain".into()] }),
    };
    vec![
        (
            "SignJwt",
            signing.sign_jwt(SignJwtRequest { tenant: id(), claims_json, ..Default::default() }).await.map(drop),
        ),
        ("Sign", signing.sign(SignRequest { tenant: id(), input, ..Default::default() }).await.map(drop)),
        (
            "BatchSign",
            signing.batch_sign(BatchSignRequest { tenant: id(), inputs, ..Default::default() }).await.map(drop),
        ),
        ("VerifyJwt", signing.verify_jwt(VerifyJwtRequest { tenant: id(), jwt: "a.b.c".into() }).await.map(drop)),
        (
            "GetCurrentKey",
            signing.get_current_key(GetCurrentKeyRequest { tenant: id(), algorithm: String::new() }).await.map(drop),
        ),
        (
            "ListSigningKeys",
            keys.list_signing_keys(ListSigningKeysRequest { tenant: id(), ..Default::default() }).await.map(drop),
        ),
        (
            "GetSigningKey",
            keys.get_signing_key(GetSigningKeyRequest { tenant: id(), kid: kid.clone() }).await.map(drop),
        ),
        (
            "RotateSigningKey",
            keys.rotate_signing_key(RotateSigningKeyRequest { tenant: id(), force: true, ..Default::default() })
                .await
                .map(drop),
        ),
        ("RevokeSigningKey", keys.revoke_signing_key(RevokeSigningKeyRequest { tenant: id(), kid }).await.map(drop)),
        ("GetTenant", tenants.get_tenant(GetTenantRequest { id: id() }).await.map(drop)),
        ("DeleteTenant", tenants.delete_tenant(DeleteTenantRequest { id: id(), confirm_id: id() }).await.map(drop)),
        ("UpdateTenant", tenants.update_tenant(update).await.map(drop)),
    ]
}

/// Every method that names an algorithm, called for this one.
async fn everything_of(clients: &mut Clients, algorithm: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let Clients { signing, keys, .. } = clients;
    let (tenant, algorithm) = (|| "demo".to_owned(), || algorithm.to_owned());
    let claims_json = claims("https://a.example", 60);
    let input = Some(sign_request::Input::Message(PAYLOAD.into()));
    let inputs = vec![BatchSignInput { input: Some(batch_sign_input::Input::Message(PAYLOAD.into())) }];
    let jwt = SignJwtRequest { tenant: tenant(), algorithm: algorithm(), claims_json, ..Default::default() };
    let sign = SignRequest { tenant: tenant(), algorithm: algorithm(), input, ..Default::default() };
    let batch = BatchSignRequest { tenant: tenant(), algorithm: algorithm(), inputs, ..Default::default() };
    let list = ListSigningKeysRequest { tenant: tenant(), algorithm: algorithm(), ..Default::default() };
    let rotate =
        RotateSigningKeyRequest { tenant: tenant(), algorithm: algorithm(), force: true, ..Default::default() };
    let current = GetCurrentKeyRequest { tenant: tenant(), algorithm: algorithm() };
    vec![
        ("SignJwt", signing.sign_jwt(jwt).await.map(drop)),
        ("Sign", signing.sign(sign).await.map(drop)),
        ("BatchSign", signing.batch_sign(batch).await.map(drop)),
        ("GetCurrentKey", signing.get_current_key(current).await.map(drop)),
        ("ListSigningKeys", keys.list_signing_keys(list).await.map(drop)),
        ("RotateSigningKey", keys.rotate_signing_key(rotate).await.map(drop)),
    ]
}

/// Every method that asks for one key, called for this one.
async fn everything_about(clients: &mut Clients, kid: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let keys = &mut clients.keys;
    let (tenant, kid) = ("demo".to_owned(), kid.to_owned());
    let get = GetSigningKeyRequest { tenant: tenant.clone(), kid: kid.clone() };
    vec![
        ("GetSigningKey", keys.get_signing_key(get).await.map(drop)),
        ("RevokeSigningKey", keys.revoke_signing_key(RevokeSigningKeyRequest { tenant, kid }).await.map(drop)),
    ]
}

/// A message whose fields may hold any octets, text or not.
#[derive(Clone, PartialEq, prost::Message)]
struct Octets {
    #[prost(bytes = "vec", tag = "1")]
    one: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    two: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    three: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    four: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    five: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    six: Vec<u8>,
}

impl Octets {
    fn at(tag: u32, octets: &[u8]) -> Self {
        let mut message = Self::default();
        let field = match tag {
            1 => &mut message.one,
            2 => &mut message.two,
            3 => &mut message.three,
            4 => &mut message.four,
            5 => &mut message.five,
            _ => &mut message.six,
        };
        *field = octets.to_vec();
        message
    }
}

async fn send_octets(channel: &Channel, method: &str, message: Octets) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("the connection is there");
    let path: PathAndQuery = format!("/keyward.v1.{method}").parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<Octets, ()>::default();
    client.unary(Request::new(message), path, codec).await.expect_err("octets that are no text were taken")
}

fn claims_member(claims: &[u8], name: &str) -> Value {
    let claims: BTreeMap<String, Value> = serde_json::from_slice(claims).expect("claims are JSON");
    claims[name].clone()
}
