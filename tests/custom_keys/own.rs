//! The tenant's own keys, of whatever state: none of them can be a custom key too, by its name or by itself.

use keyward::grpc::proto::{
    KeyState, ListSigningKeysRequest, RevokeSigningKeyRequest, RotateSigningKeyRequest, RotationPolicy, SigningKey,
    Tenant, UpdateTenantRequest,
};
use prost_types::{Duration, FieldMask};
use serde_json::{Value, json};

use crate::common::{Clients, Server, short_policy};
use crate::{Trial, refused, set};

/// How often a test looks whether a key was destroyed, which follows its revocation at once.
const LOOKS_MAX: usize = 10_000;

/// A tenant with own keys of every state that lasts.
struct Own {
    trial: Trial,
    listed: Vec<SigningKey>,
    /// Each that ever was published, as it was.
    jwks: Vec<Value>,
}

impl Own {
    async fn of_every_state() -> Self {
        let wanted = Tenant {
            algorithms: ["ES256", "EdDSA", "HS256"].map(Into::into).to_vec(),
            rotation_policy: Some(destroying_after(0)),
            ..Tenant::default()
        };
        let mut trial = Trial::on(Server::dev(), "demo", wanted).await;
        let mut jwks = trial.canonical();
        let clients = &mut trial.clients;

        // 1. EdDSA is retired: its current key becomes previous, its next key is revoked and destroyed at once.
        let algorithms = ["ES256", "HS256"].map(Into::into).to_vec();
        update(clients, "algorithms", Tenant { algorithms, ..Tenant::default() }).await;
        let mut looks = 0;
        while !states(&list(clients).await, "EdDSA").contains(&KeyState::Destroyed) {
            looks += 1;
            assert!(looks < LOOKS_MAX, "not destroyed after {looks} looks");
        }
        // 2. ES256 is rotated twice; the first of its previous keys is revoked, and stays so.
        let rotation_policy = Some(destroying_after(3600));
        update(clients, "rotation_policy", Tenant { rotation_policy, ..Tenant::default() }).await;
        let mut replaced = Vec::new();
        for _ in 0..2 {
            let request = RotateSigningKeyRequest {
                tenant: "acme".into(),
                algorithm: "ES256".into(),
                force: true,
                ..RotateSigningKeyRequest::default()
            };
            let rotated = clients.keys.rotate_signing_key(request).await.expect("rotated").into_inner();
            replaced.push(rotated.previous.expect("the key that was current").kid);
        }
        let request = RevokeSigningKeyRequest { tenant: "acme".into(), kid: replaced.remove(0) };
        clients.keys.revoke_signing_key(request).await.expect("revoked");
        let listed = list(clients).await;
        let later = trial.canonical();
        jwks.extend(
            later.into_iter().filter(|key| !jwks.iter().any(|known| known["kid"] == key["kid"])).collect::<Vec<_>>(),
        );

        let es256 = [KeyState::Next, KeyState::Current, KeyState::Previous, KeyState::Revoked];
        assert_eq!(states(&listed, "ES256"), es256);
        assert_eq!(states(&listed, "EdDSA"), [KeyState::Previous, KeyState::Destroyed]);
        assert_eq!(states(&listed, "HS256"), [KeyState::Next, KeyState::Current]);
        assert_eq!(jwks.len(), 6);
        Self { trial, listed, jwks }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_custom_key_has_the_kid_of_one_of_the_tenants_own_keys() {
    let Own { mut trial, listed, .. } = Own::of_every_state().await;
    for key in &listed {
        // Printed with a failure: which one was taken.
        println!("{} {:?}", key.algorithm, key.state());
        let right = trial.key("RSA", "right", &json!({}));
        let wrong = trial.key("EC", &key.kid, &json!({}));
        refused(trial.put(&set(&[right, wrong])).await, "keys[1].kid", "one of the tenant's own keys");
    }
    let all: Vec<Value> = listed.iter().map(|key| trial.key("RSA", &key.kid, &json!({}))).collect();
    for index in 0..all.len() {
        refused(trial.put(&set(&all)).await, &format!("keys[{index}].kid"), "one of the tenant's own keys");
    }
    assert_eq!(trial.stored().await, json!({"keys": []}), "nothing was put");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_custom_key_is_one_of_the_tenants_own_keys_under_another_kid() {
    let Own { mut trial, listed, jwks } = Own::of_every_state().await;
    for own in &jwks {
        let key = listed.iter().find(|key| own["kid"] == *key.kid).expect("a listed key");
        println!("{} {:?}", key.algorithm, key.state());
        let mut whole = own.clone();
        whole["kid"] = "mine".into();
        whole.as_object_mut().expect("an object").remove("state");
        // The public members alone are the same key.
        let mut bare = whole.clone();
        bare.as_object_mut().expect("an object").retain(|name, _| !name.starts_with("x5") && name != "alg");
        for wrong in [whole, bare] {
            let right = trial.key("RSA", "right", &json!({}));
            refused(trial.put(&set(&[right, wrong])).await, "keys[1]", "one of the tenant's own keys");
        }
    }
    assert_eq!(trial.stored().await, json!({"keys": []}), "nothing was put");
}

async fn list(clients: &mut Clients) -> Vec<SigningKey> {
    let request = ListSigningKeysRequest { tenant: "acme".into(), page_size: 100, ..ListSigningKeysRequest::default() };
    clients.keys.list_signing_keys(request).await.expect("listed").into_inner().keys
}

/// The states of an algorithm's keys, in the order of their lives from the end.
fn states(keys: &[SigningKey], algorithm: &str) -> Vec<KeyState> {
    let mut states: Vec<KeyState> =
        keys.iter().filter(|key| key.algorithm == algorithm).map(SigningKey::state).collect();
    states.sort();
    states
}

async fn update(clients: &mut Clients, field: &str, tenant: Tenant) {
    let tenant = Some(Tenant { id: "acme".into(), ..tenant });
    let update_mask = Some(FieldMask { paths: vec![field.into()] });
    clients.tenants.update_tenant(UpdateTenantRequest { tenant, update_mask }).await.expect("updated");
}

fn destroying_after(seconds: i64) -> RotationPolicy {
    RotationPolicy { destroy_delay: Some(Duration { seconds, nanos: 0 }), ..short_policy() }
}
