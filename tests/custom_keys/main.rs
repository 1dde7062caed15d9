//! Public keys that a tenant brought itself: what is taken, what is refused and how it is said, and where it is published.

#[path = "../common/mod.rs"]
mod common;

mod members;
mod own;
mod published;
mod rotation;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::http::{get, send};
use common::{Clients, Server, short_policy};
use keyward::grpc::proto::{CreateTenantRequest, GetCustomSigningKeysRequest, PutCustomSigningKeysRequest, Tenant};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const DOMAIN: &str = "login.example.com";

/// A server with the tenant `acme`, and public keys of somebody else.
struct Trial {
    server: Server,
    clients: Clients,
    /// RS256, ES256 and EdDSA keys as JWKs with their certificates; no others are theirs.
    foreign: Vec<Value>,
}

impl Trial {
    async fn begin() -> Self {
        let wanted = Tenant { algorithms: vec!["ES256".into()], ..Tenant::default() };
        Self::on(Server::dev(), "demo", wanted).await
    }

    /// The same on a server of the test's own, with the keys of another of its tenants as somebody else's.
    async fn on(server: Server, other: &str, wanted: Tenant) -> Self {
        let mut clients = Clients::connect(&server).await;
        let tenant = Tenant {
            id: "acme".into(),
            custom_domain: DOMAIN.into(),
            rotation_policy: wanted.rotation_policy.or_else(|| Some(short_policy())),
            ..wanted
        };
        clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
        let mut foreign = keys(&get(&server.jwks_uri(other)).json());
        foreign.iter_mut().for_each(|key| drop(key.as_object_mut().expect("an object").remove("state")));
        Self { server, clients, foreign }
    }

    async fn put(&mut self, jwks: &Value) -> Result<Value, Status> {
        self.put_text(&jwks.to_string()).await
    }

    async fn put_text(&mut self, jwks_json: &str) -> Result<Value, Status> {
        let request = PutCustomSigningKeysRequest { tenant: "acme".into(), jwks_json: jwks_json.into() };
        let answer = self.clients.keys.put_custom_signing_keys(request).await?.into_inner();
        Ok(serde_json::from_str(&answer.jwks_json).expect("JSON"))
    }

    async fn stored(&mut self) -> Value {
        let request = GetCustomSigningKeysRequest { tenant: "acme".into() };
        let answer = self.clients.keys.get_custom_signing_keys(request).await.expect("the set").into_inner();
        serde_json::from_str(&answer.jwks_json).expect("JSON")
    }

    fn on_domain(&self) -> Vec<Value> {
        on_domain(self.server.public())
    }

    fn canonical(&self) -> Vec<Value> {
        canonical(self.server.public())
    }

    /// The key of this type, under another kid, with members changed; null removes one.
    fn key(&self, kty: &str, kid: &str, changes: &Value) -> Value {
        let mut key = self.foreign.iter().find(|key| key["kty"] == kty).expect("one of each type").clone();
        let members = key.as_object_mut().expect("an object");
        members.insert("kid".into(), kid.into());
        for (name, value) in changes.as_object().expect("an object") {
            members.insert(name.clone(), value.clone());
        }
        members.retain(|_, value| !value.is_null());
        key
    }
}

/// What the custom domain publishes.
fn on_domain(public: &str) -> Vec<Value> {
    keys(&send("GET", &format!("{public}/.well-known/jwks.json"), &[("host", DOMAIN)]).json())
}

/// What is published under the canonical base URL.
fn canonical(public: &str) -> Vec<Value> {
    keys(&get(&format!("{public}/acme/.well-known/jwks.json")).json())
}

fn keys(set: &Value) -> Vec<Value> {
    set["keys"].as_array().expect("keys").clone()
}

fn set(keys: &[Value]) -> Value {
    json!({ "keys": keys })
}

fn octets(value: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(value)
}

/// The refusal names the member, in words and in BadRequest, and quotes no value.
fn refused(outcome: Result<Value, Status>, member: &str, words: &str) {
    let status = outcome.err().unwrap_or_else(|| panic!("{member} ({words}) was taken"));
    assert_eq!(status.code(), Code::InvalidArgument, "{member}: {status:?}");
    let field = if member.is_empty() { "jwks_json".to_owned() } else { format!("jwks_json.{member}") };
    let details = status.get_details_bad_request().expect("BadRequest");
    let found = details.field_violations.iter().find(|one| one.field == field);
    let found = found.unwrap_or_else(|| panic!("{field} is not among {:?}", details.field_violations));
    assert!(found.description.contains(words), "{field}: {:?} does not say {words:?}", found.description);
    assert!(status.message().contains(&field), "{:?} does not name {field}", status.message());
    assert!(!format!("{status:?}").contains("c2VjcmV0"), "a value is quoted: {status:?}");
}
