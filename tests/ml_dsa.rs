//! ML-DSA (RFC 9964): JWTs by keys on a token that has it, for tenants that asked for it, and for no other.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Clients, Installation, Interpreter, Module, Server, Verdict, claims, http, short_policy, tools};
use keyward::grpc::proto::{
    BatchSignInput, BatchSignRequest, CreateTenantRequest, GetSigningKeyRequest, GetTenantRequest, SignRequest, Tenant,
    UpdateTenantRequest, VerifyJwtRequest, batch_sign_input, sign_request,
};
use prost_types::FieldMask;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const ALGORITHMS: [&str; 3] = ["ML-DSA-44", "ML-DSA-65", "ML-DSA-87"];
const JWT_LIFE_SECS: u64 = 3600;

/// A tenant of a server, and what verifiers need to know of it.
struct Place<'a> {
    server: &'a Server,
    tenant: &'a str,
    issuer: String,
}

impl<'a> Place<'a> {
    async fn new(server: &'a Server, keyward: &mut Clients, tenant: &'a str, algorithms: &[&str]) -> Self {
        let issuer = keyward.create_tenant(tenant, algorithms, short_policy()).await.issuer;
        Self { server, tenant, issuer }
    }

    async fn sign(&self, keyward: &mut Clients, algorithm: &str) -> String {
        let signed = keyward.sign_jwt(self.tenant, algorithm, claims(&self.issuer, JWT_LIFE_SECS)).await;
        signed.unwrap_or_else(|status| panic!("{algorithm}: {status:?}")).jwt
    }

    /// What the clients of a script say of a JWT, with a JWKS that they fetch now.
    fn ask(&self, script: &mut Interpreter, algorithm: &str, jwt: &str) -> BTreeMap<String, Verdict> {
        let jwks_uri = self.server.jwks_uri(self.tenant);
        script.ask(&json!({
            "jwks_uri": jwks_uri, "issuer": self.issuer, "algorithm": algorithm, "jwt": jwt, "refetch": true,
        }))
    }

    fn keys(&self) -> Vec<Value> {
        let jwks: Value = http::get(&self.server.jwks_uri(self.tenant)).json();
        jwks["keys"].as_array().expect("a JWK set").clone()
    }
}

fn all_agree(verdicts: &BTreeMap<String, Verdict>) -> bool {
    !verdicts.is_empty() && verdicts.values().all(|verdict| verdict.valid)
}

#[tokio::test]
async fn jwts_verify_in_other_libraries_through_a_rotation() {
    let installation = Installation::prepare_on(Module::Kryoptic).set("limits.manual_rotations_per_day", "1000");
    let server = installation.serve();
    let mut keyward = Clients::connect(&server).await;
    let place = Place::new(&server, &mut keyward, "lattice", &ALGORITHMS).await;
    let (mut jose, mut openssl) =
        (Interpreter::start(tools::node("verify.mjs")), Interpreter::start(tools::python("ml_dsa.py")));
    for algorithm in ALGORITHMS {
        let before = place.sign(&mut keyward, algorithm).await;
        keyward.rotate_when_allowed(place.tenant, algorithm).await;
        let after = place.sign(&mut keyward, algorithm).await;
        for jwt in [&before, &after] {
            // 1. jose believes it, by the JWKS.
            let verdicts = place.ask(&mut jose, algorithm, jwt);
            assert!(all_agree(&verdicts), "{algorithm}: {verdicts:?}");

            // 2. So does OpenSSL, which finds the same key in JWK, PEM and certificate.
            let kid = header(jwt)["kid"].as_str().expect("kid").to_owned();
            let jwk = place.keys().into_iter().find(|jwk| jwk["kid"] == *kid).expect("the signer is published");
            let shown = GetSigningKeyRequest { tenant: place.tenant.into(), kid };
            let shown = keyward.keys.get_signing_key(shown).await.expect("a key").into_inner();
            let request = json!({ "jwk": jwk, "jwt": jwt, "public_key_pem": shown.public_key_pem });
            let verdicts = openssl.ask(&request);
            assert!(all_agree(&verdicts), "{algorithm}: {verdicts:?}");
            // A `pub` that is another key's is noticed: the check can fail.
            let mut damaged = request;
            damaged["jwk"]["kid"] = json!("another");
            assert!(!all_agree(&openssl.ask(&damaged)), "{algorithm}");

            // 3. So does Keyward; and nobody believes another signature.
            assert!(verify(&mut keyward, place.tenant, jwt).await);
            let (signed, signature) = jwt.rsplit_once('.').expect("a compact JWT");
            let other = if signature.starts_with('A') { 'B' } else { 'A' };
            let forged = format!("{signed}.{other}{}", &signature[1..]);
            assert!(!verify(&mut keyward, place.tenant, &forged).await);
            assert!(!all_agree(&place.ask(&mut jose, algorithm, &forged)), "{algorithm}");
        }
        assert_ne!(header(&before)["kid"], header(&after)["kid"]);
    }
}

#[tokio::test]
async fn messages_are_signed_and_digests_refused() {
    let installation = Installation::prepare_on(Module::Kryoptic);
    let server = installation.serve();
    let mut keyward = Clients::connect(&server).await;
    let place = Place::new(&server, &mut keyward, "lattice", &["ML-DSA-65"]).await;
    let sign = |input| SignRequest { tenant: "lattice".into(), input: Some(input), ..SignRequest::default() };
    let signed = keyward.signing.sign(sign(sign_request::Input::Message(b"message".to_vec()))).await.expect("signed");
    let signed = signed.into_inner();
    // FIPS 204 table 2.
    assert_eq!((signed.algorithm.as_str(), signed.signature.len()), ("ML-DSA-65", 3309));

    let input = |message: &[u8]| BatchSignInput { input: Some(batch_sign_input::Input::Message(message.to_vec())) };
    let batch = BatchSignRequest {
        tenant: place.tenant.into(),
        inputs: vec![input(b"one"), input(b"two")],
        ..BatchSignRequest::default()
    };
    let signatures = keyward.signing.batch_sign(batch).await.expect("signed").into_inner().signatures;
    assert_eq!(signatures.iter().map(Vec::len).collect::<Vec<_>>(), [3309, 3309]);

    let refused = keyward.signing.sign(sign(sign_request::Input::Digest(vec![7; 32]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("ML-DSA-65 signs messages alone"), "{refused:?}");
}

/// A key of a type that a client does not know may cost it the whole set: it is in the sets of those who asked, and there
/// alone. What each of these clients makes of such a set stands in docs/tokens.md.
#[tokio::test]
async fn only_tenants_that_ask_for_it_publish_it() {
    let installation = Installation::prepare_on(Module::Kryoptic);
    let server = installation.serve();
    let mut keyward = Clients::connect(&server).await;
    let plain = Place::new(&server, &mut keyward, "plain", &["RS256", "ES256"]).await;
    let mixed = Place::new(&server, &mut keyward, "mixed", &["ES256", "ML-DSA-65"]).await;
    let types = |place: &Place<'_>| -> BTreeSet<String> {
        place.keys().iter().map(|key| key["kty"].as_str().expect("kty").to_owned()).collect()
    };
    assert_eq!(types(&plain), ["EC", "RSA"].map(ToOwned::to_owned).into());
    assert_eq!(types(&mixed), ["AKP", "EC"].map(ToOwned::to_owned).into());
    // A key of type AKP has its `alg` as a member of its own; there is no second one beside it.
    let text = String::from_utf8(http::get(&server.jwks_uri("mixed")).body).expect("text");
    assert_eq!(text.matches(r#""alg":"#).count(), mixed.keys().len(), "{text}");

    let (mut python, mut jose) =
        (Interpreter::start(tools::python("verify.py")), Interpreter::start(tools::node("verify.mjs")));
    let jwt = plain.sign(&mut keyward, "ES256").await;
    assert!(all_agree(&plain.ask(&mut python, "ES256", &jwt)));
    let jwt = mixed.sign(&mut keyward, "ES256").await;
    for script in [&mut python, &mut jose] {
        let verdicts = mixed.ask(script, "ES256", &jwt);
        assert!(all_agree(&verdicts), "{verdicts:?}");
    }
    // Those who do not know the type miss the key, and say so.
    let jwt = mixed.sign(&mut keyward, "ML-DSA-65").await;
    let verdicts = mixed.ask(&mut python, "ML-DSA-65", &jwt);
    assert!(verdicts.values().all(|verdict| !verdict.valid), "{verdicts:?}");
}

/// What is made for people and other protocols, where it is the default algorithm.
#[tokio::test]
async fn discovery_and_certificates_have_it_and_saml_metadata_has_not() {
    let installation = Installation::prepare_on(Module::Kryoptic);
    let server = installation.serve();
    let mut keyward = Clients::connect(&server).await;
    for (id, algorithms) in [("alone", &["ML-DSA-87"][..]), ("mixed", &["ES256", "ML-DSA-44"])] {
        let tenant = Tenant {
            id: id.into(),
            algorithms: algorithms.iter().map(ToString::to_string).collect(),
            default_algorithm: algorithms[algorithms.len() - 1].into(),
            saml_sso_url: "https://idp.example/sso".into(),
            rotation_policy: Some(short_policy()),
            ..Tenant::default()
        };
        keyward.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
        let fetch = |path: &str| http::get(&format!("{}/{id}/{path}", server.public()));
        let discovery: Value = fetch(".well-known/openid-configuration").json();
        assert_eq!(discovery["id_token_signing_alg_values_supported"], json!(algorithms));
        assert!(fetch("").status == 200 && fetch("cer").status == 200);

        let jwks: Value = fetch(".well-known/jwks.json").json();
        let jwks = jwks["keys"].as_array().expect("a JWK set");
        let certificates = |kty| jwks.iter().filter(move |key| key["kty"] == kty).map(|key| key["x5c"][0].as_str());
        let metadata = fetch("saml/metadata");
        let text = String::from_utf8(metadata.body).expect("text");
        let is_named = |certificate: Option<&str>| text.contains(certificate.expect("each has one"));
        assert!(!certificates("AKP").any(is_named), "{text}");
        match id {
            "alone" => assert!(metadata.status == 404 && text.contains("add RS256 or ES256"), "{text}"),
            _ => assert!(metadata.status == 200 && certificates("EC").all(is_named), "{text}"),
        }
    }
}

#[tokio::test]
async fn a_token_without_it_is_told_of_at_once() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut keyward = Clients::connect(&server).await;
    let tenant = Tenant {
        id: "lattice".into(),
        algorithms: vec!["ML-DSA-65".into()],
        rotation_policy: Some(short_policy()),
        ..Tenant::default()
    };
    let refused =
        keyward.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant.clone()) }).await.unwrap_err();
    assert_lacks(&refused);
    // Nothing was made: the id is free.
    let tenant = Tenant { algorithms: vec!["ES256".into()], ..tenant };
    let made = keyward.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.unwrap().into_inner();

    // Nor does a tenant come to an algorithm whose keys would never come.
    let tenant = Tenant { algorithms: vec!["ES256".into(), "ML-DSA-65".into()], ..made.clone() };
    let update_mask = Some(FieldMask { paths: vec!["algorithms".into()] });
    let refused =
        keyward.tenants.update_tenant(UpdateTenantRequest { tenant: Some(tenant), update_mask }).await.unwrap_err();
    assert_lacks(&refused);
    let request = GetTenantRequest { id: made.id.clone() };
    assert_eq!(keyward.tenants.get_tenant(request).await.unwrap().into_inner(), made);
}

fn assert_lacks(refused: &Status) {
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(refused.get_details_error_info().expect("a reason").reason, "TOKEN_MECHANISM");
    assert!(refused.message().contains("ML-DSA-65: leave it out; `keyward check`"), "{refused:?}");
}

fn header(jwt: &str) -> Value {
    use base64::Engine as _;
    let header = jwt.split('.').next().expect("a header");
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).expect("base64url");
    serde_json::from_slice(&header).expect("JSON")
}

async fn verify(keyward: &mut Clients, tenant: &str, jwt: &str) -> bool {
    let request = VerifyJwtRequest { tenant: tenant.into(), jwt: jwt.into() };
    keyward.signing.verify_jwt(request).await.expect("an answer").into_inner().valid
}
