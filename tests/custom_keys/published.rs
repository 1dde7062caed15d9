//! Where custom keys are published, and until when.

use keyward::grpc::proto::{DeleteCustomSigningKeysRequest, GetCustomSigningKeysRequest, PutCustomSigningKeysRequest};
use serde_json::json;
use tonic::Code;

use crate::common::http::get;
use crate::common::{Clients, Installation, short_policy};
use crate::{Trial, keys, set};

#[tokio::test(flavor = "multi_thread")]
async fn custom_keys_are_published_on_the_custom_domain_alone_and_replaced_whole() {
    let mut trial = Trial::begin().await;
    let own = trial.canonical();
    assert_eq!(trial.stored().await, json!({"keys": []}));

    // 1. One of each type; what is published is what was sent, after the tenant's own keys.
    let first = [
        trial.key("RSA", "https://issuer.example/keys#1", &json!({"key_ops": ["verify"]})),
        trial.key("EC", "b", &json!({"alg": null, "use": null, "x5t": null})),
        trial.key("OKP", "c", &json!({"x5c": null, "x5t": null, "x5t#S256": null, "x5u": "https://a.example/c.pem"})),
    ];
    let put = trial.put(&set(&first)).await.expect("taken");
    let mut shown = first.clone();
    shown[1]["use"] = "sig".into();
    assert_eq!(keys(&put), shown);
    assert_eq!(trial.stored().await, put);
    assert_eq!(trial.on_domain(), [own.clone(), shown.to_vec()].concat(), "own keys first, then custom ones");
    assert_eq!(trial.canonical(), own, "never on the canonical path");

    // 2. Another set takes its place; a key of the first is gone.
    let second = [trial.key("EC", "d", &json!({}))];
    trial.put(&set(&second)).await.expect("taken");
    assert_eq!(trial.on_domain(), [own.clone(), second.to_vec()].concat());

    // 3. A rotation leaves them where they are.
    trial.clients.rotate_when_allowed("acme", "ES256").await;
    assert_eq!(trial.on_domain().last(), second.last());
    assert_eq!(trial.on_domain().len(), 4);

    // 4. Deleted, twice.
    for _ in 0..2 {
        let request = DeleteCustomSigningKeysRequest { tenant: "acme".into() };
        trial.clients.keys.delete_custom_signing_keys(request).await.expect("deleted");
    }
    assert_eq!(trial.stored().await, json!({"keys": []}));
    assert_eq!(trial.on_domain(), trial.canonical());
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_keys_outlive_a_restart() {
    let installation = Installation::prepare();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("acme", &["ES256"], short_policy()).await;
    clients.create_tenant("other", &["EdDSA"], short_policy()).await;
    let mut keys = keys(&get(&server.jwks_uri("other")).json());
    keys.iter_mut().for_each(|key| drop(key.as_object_mut().expect("an object").remove("state")));
    let request = PutCustomSigningKeysRequest { tenant: "acme".into(), jwks_json: set(&keys).to_string() };
    let put = clients.keys.put_custom_signing_keys(request).await.expect("taken").into_inner();
    server.terminate();
    let server = installation.serve();
    let mut clients = Clients::connect(&server).await;
    let request = GetCustomSigningKeysRequest { tenant: "acme".into() };
    let stored = clients.keys.get_custom_signing_keys(request).await.expect("the set").into_inner();
    assert_eq!(stored.jwks_json, put.jwks_json);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_not_there_has_no_custom_keys() {
    let mut trial = Trial::begin().await;
    let tenant = || "nobody".to_owned();
    let get = trial.clients.keys.get_custom_signing_keys(GetCustomSigningKeysRequest { tenant: tenant() }).await;
    assert_eq!(get.expect_err("refused").code(), Code::NotFound);
    let jwks_json = set(&[trial.key("EC", "a", &json!({}))]).to_string();
    let put = PutCustomSigningKeysRequest { tenant: tenant(), jwks_json };
    let put = trial.clients.keys.put_custom_signing_keys(put).await;
    assert_eq!(put.expect_err("refused").code(), Code::NotFound);
    let delete = DeleteCustomSigningKeysRequest { tenant: tenant() };
    let delete = trial.clients.keys.delete_custom_signing_keys(delete).await;
    assert_eq!(delete.expect_err("refused").code(), Code::NotFound);
}
