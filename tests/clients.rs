//! JWTs of every algorithm, verified by libraries that services use (PyJWT, joserfc, jose) against the live JWKS over HTTP:
//! before a rotation, after it, and after the revocation of the key.

mod common;

use std::collections::BTreeMap;

use common::{Clients, Installation, Interpreter, Module, Server, Verdict, claims, http, short_policy, tools};
use keyward::grpc::proto::{KeyState, RevokeSigningKeyRequest, RotationPolicy};
use serde_json::{Value, json};

const ALGORITHMS: [&str; 10] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];
const TENANT: &str = "every-algorithm";
/// An hour, as long as the policy allows: no JWT expires during the test.
const JWT_LIFE_SECS: u64 = 3600;

/// How each client says why it refuses a JWT.
const CLIENTS: [Client; 3] = [
    Client { name: "PyJWT", unknown_key: "PyJWKClientError", wrong_signature: "InvalidSignatureError" },
    Client { name: "joserfc", unknown_key: "InvalidKeyIdError", wrong_signature: "BadSignatureError" },
    Client {
        name: "jose",
        unknown_key: "ERR_JWKS_NO_MATCHING_KEY",
        wrong_signature: "ERR_JWS_SIGNATURE_VERIFICATION_FAILED",
    },
];

struct Client {
    name: &'static str,
    unknown_key: &'static str,
    wrong_signature: &'static str,
}

#[tokio::test]
async fn every_algorithm_is_verified_by_every_client_through_rotation_and_revocation() {
    through_rotation_and_revocation(Installation::bare_on(Module::SoftHsm)).await;
}

#[tokio::test]
async fn the_same_with_a_token_of_another_module() {
    through_rotation_and_revocation(Installation::bare_on(Module::Kryoptic)).await;
}

#[tokio::test]
async fn the_same_with_that_token_in_one_process() {
    let installation = Installation::bare_on(Module::Kryoptic).set("token.isolation", r#""thread""#);
    through_rotation_and_revocation(installation).await;
}

async fn through_rotation_and_revocation(installation: Installation) {
    let installation = installation.set("limits.manual_rotations_per_day", "1000").init();
    let server = installation.serve();
    let mut keyward = Clients::connect(&server).await;
    let hour = prost_types::Duration { seconds: 3600, nanos: 0 };
    let policy = RotationPolicy { destroy_delay: Some(hour), ..short_policy() };
    let tenant = keyward.create_tenant(TENANT, &ALGORITHMS, policy).await;
    let mut verifiers = Verifiers::start(server.jwks_uri(TENANT), tenant.issuer.clone());
    assert_rotation_states_are_published(&server);

    // 1. Each client verifies a JWT of each algorithm, and now holds the JWKS; a damaged one is refused.
    let mut signed_before = BTreeMap::new();
    for algorithm in ALGORITHMS {
        let jwt = sign(&mut keyward, &tenant.issuer, algorithm).await;
        verifiers.accept(algorithm, &jwt, Jwks::Kept);
        verifiers.refuse(algorithm, &with_another_signature(&jwt), Jwks::Kept, |client| client.wrong_signature);
        signed_before.insert(algorithm, jwt);
    }

    // 2. After a rotation the new key's JWT verifies with the JWKS of before it: the key was published first (R3).
    let (mut signed_after, mut replaced) = (BTreeMap::new(), BTreeMap::new());
    for algorithm in ALGORITHMS {
        let rotated = keyward.rotate_when_allowed(TENANT, algorithm).await;
        let jwt = sign(&mut keyward, &tenant.issuer, algorithm).await;
        verifiers.accept(algorithm, &jwt, Jwks::Kept);
        signed_after.insert(algorithm, jwt);
        replaced.insert(algorithm, rotated.previous.expect("the replaced key"));
    }

    // 3. The old key's JWT goes on verifying, with a JWKS of after the rotation too.
    for algorithm in ALGORITHMS {
        verifiers.accept(algorithm, &signed_before[algorithm], Jwks::Fetched);
    }

    // 4. After the revocation of the replaced key the old JWT is refused once the client fetches again; the new one is not.
    for algorithm in ALGORITHMS {
        let revoke = RevokeSigningKeyRequest { tenant: TENANT.into(), kid: replaced[algorithm].kid.clone() };
        let revoked =
            keyward.keys.revoke_signing_key(revoke).await.expect("a previous key can be revoked").into_inner();
        assert_eq!(revoked.state(), KeyState::Revoked);
        verifiers.refuse(algorithm, &signed_before[algorithm], Jwks::Fetched, |client| client.unknown_key);
        verifiers.accept(algorithm, &signed_after[algorithm], Jwks::Kept);
    }
    assert_rotation_states_are_published(&server);
}

async fn sign(keyward: &mut Clients, issuer: &str, algorithm: &str) -> String {
    let answer = keyward.sign_jwt(TENANT, algorithm, claims(issuer, JWT_LIFE_SECS)).await;
    answer.unwrap_or_else(|status| panic!("{algorithm}: {status:?}")).jwt
}

/// The same header and claims under a signature with its first octet changed.
fn with_another_signature(jwt: &str) -> String {
    let (signed, signature) = jwt.rsplit_once('.').expect("a compact JWT");
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    format!("{signed}.{other}{}", &signature[1..])
}

/// What the clients must put up with is really there: a current and a next key of each algorithm, each with its `state`.
fn assert_rotation_states_are_published(server: &Server) {
    let jwks: Value = http::get(&server.jwks_uri(TENANT)).json();
    let published: Vec<(&str, &str)> = jwks["keys"]
        .as_array()
        .expect("a JWK set")
        .iter()
        .map(|jwk| (jwk["alg"].as_str().expect("alg"), jwk["state"].as_str().expect("state")))
        .collect();
    assert_eq!(published.len(), 2 * ALGORITHMS.len(), "{published:?}");
    for algorithm in ALGORITHMS {
        assert!(published.contains(&(algorithm, "current")), "{algorithm}: {published:?}");
        assert!(published.contains(&(algorithm, "next")), "{algorithm}: {published:?}");
    }
}

/// Which JWKS a client is to verify with.
#[derive(Clone, Copy, PartialEq)]
enum Jwks {
    /// The one it has, as far as its own cache goes.
    Kept,
    /// One that it fetches now.
    Fetched,
}

/// The clients, in one interpreter per language that lives as long as the test.
struct Verifiers {
    interpreters: Vec<Interpreter>,
    jwks_uri: String,
    issuer: String,
}

impl Verifiers {
    fn start(jwks_uri: String, issuer: String) -> Self {
        let interpreters =
            vec![Interpreter::start(tools::python("verify.py")), Interpreter::start(tools::node("verify.mjs"))];
        Self { interpreters, jwks_uri, issuer }
    }

    fn accept(&mut self, algorithm: &str, jwt: &str, jwks: Jwks) {
        for (client, verdict) in self.verdicts(algorithm, jwt, jwks) {
            assert!(verdict.valid, "{client} refuses {algorithm}: {verdict:?}");
        }
    }

    /// All clients refuse, each with the `reason` that is its own.
    fn refuse(&mut self, algorithm: &str, jwt: &str, jwks: Jwks, reason: fn(&Client) -> &'static str) {
        let verdicts = self.verdicts(algorithm, jwt, jwks);
        for client in &CLIENTS {
            let verdict = &verdicts[client.name];
            let error = verdict.error.as_deref().unwrap_or_default();
            assert!(!verdict.valid && error.starts_with(reason(client)), "{} on {algorithm}: {verdict:?}", client.name);
        }
    }

    fn verdicts(&mut self, algorithm: &str, jwt: &str, jwks: Jwks) -> BTreeMap<String, Verdict> {
        let request = json!({
            "jwks_uri": self.jwks_uri,
            "issuer": self.issuer,
            "algorithm": algorithm,
            "jwt": jwt,
            "refetch": jwks == Jwks::Fetched,
        });
        let verdicts: BTreeMap<String, Verdict> =
            self.interpreters.iter_mut().flat_map(|interpreter| interpreter.ask(&request)).collect();
        assert_eq!(verdicts.len(), CLIENTS.len(), "every client has answered: {verdicts:?}");
        verdicts
    }
}
