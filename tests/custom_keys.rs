//! Public keys that a tenant brought itself: what is taken, what is refused and how it is said, and where it is published.

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::http::{get, send};
use common::{Clients, Server, short_policy};
use keyward::grpc::proto::{
    CreateTenantRequest, DeleteCustomSigningKeysRequest, GetCustomSigningKeysRequest, PutCustomSigningKeysRequest,
    Tenant,
};
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
        let server = Server::dev();
        let mut clients = Clients::connect(&server).await;
        let tenant = Tenant {
            id: "acme".into(),
            custom_domain: DOMAIN.into(),
            algorithms: vec!["ES256".into()],
            rotation_policy: Some(short_policy()),
            ..Tenant::default()
        };
        clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
        let mut foreign = keys(&get(&server.jwks_uri("demo")).json());
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
        let url = format!("{}/.well-known/jwks.json", self.server.public());
        keys(&send("GET", &url, &[("host", DOMAIN)]).json())
    }

    fn canonical(&self) -> Vec<Value> {
        keys(&get(&self.server.jwks_uri("acme")).json())
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
    let installation = common::Installation::prepare();
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
async fn ten_keys_are_taken_and_an_eleventh_is_refused_with_nothing_replaced() {
    let mut trial = Trial::begin().await;
    let many = |count: usize, trial: &Trial| -> Vec<Value> {
        (0..count).map(|number| trial.key("RSA", &format!("key-{number}"), &json!({}))).collect()
    };
    let ten = set(&many(10, &trial));
    trial.put(&ten).await.expect("ten are taken");
    let eleven = set(&many(11, &trial));
    refused(trial.put(&eleven).await, "", "at most 10 keys, not 11");
    let none = set(&[]);
    refused(trial.put(&none).await, "", "at least one key");
    // The last of ten is wrong: not one of them is put.
    let mut half = many(10, &trial);
    half.iter_mut().for_each(|key| key["kid"] = format!("new-{}", key["kid"]).replace('"', "").into());
    half[9]["n"] = octets(&[1; 128]).into();
    refused(trial.put(&set(&half)).await, "keys[9].n", "2048");
    assert_eq!(trial.stored().await, ten, "nothing was replaced");
    assert_eq!(trial.on_domain().len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_member_is_named() {
    let mut trial = Trial::begin().await;
    let good = set(&[trial.key("EC", "good", &json!({}))]);
    trial.put(&good).await.expect("taken");
    let own = trial.canonical()[0]["kid"].as_str().expect("a kid").to_owned();
    let other_x5c = trial.foreign.iter().filter(|key| key["kty"] == "RSA").nth(1).expect("a second")["x5c"].clone();
    let small = |bits: usize| {
        let mut modulus = vec![0xff; bits.div_ceil(8)];
        modulus[0] = 0xff >> (8 * modulus.len() - bits);
        octets(&modulus)
    };
    let y = trial.foreign.iter().find(|key| key["kty"] == "EC").expect("one")["y"].as_str().expect("y").to_owned();
    let mut off_curve = URL_SAFE_NO_PAD.decode(&y).expect("base64url");
    off_curve[31] ^= 1;
    let secret = "c2VjcmV0";

    // kty of a good key, what is changed in it, the member that is named, and words of what is said.
    let cases = [
        ("RSA", json!({"d": secret}), "d", "private"),
        ("RSA", json!({"p": secret}), "p", "private"),
        ("RSA", json!({"q": secret}), "q", "private"),
        ("RSA", json!({"dp": secret}), "dp", "private"),
        ("RSA", json!({"dq": secret}), "dq", "private"),
        ("RSA", json!({"qi": secret}), "qi", "private"),
        ("RSA", json!({"oth": [{"r": secret}]}), "oth", "private"),
        ("EC", json!({"d": secret}), "d", "private"),
        ("OKP", json!({"d": secret}), "d", "private"),
        ("OKP", json!({"kty": "oct", "k": secret}), "k", "symmetric"),
        ("OKP", json!({"kty": "oct"}), "kty", "RSA, EC or OKP"),
        ("RSA", json!({"kty": 7}), "kty", "must be a text"),
        ("RSA", json!({"kty": null}), "kty", "must be set"),
        ("RSA", json!({"kid": null}), "kid", "must be set"),
        ("RSA", json!({"kid": ""}), "kid", "1 to 255"),
        ("RSA", json!({"kid": "k".repeat(256)}), "kid", "1 to 255"),
        ("RSA", json!({"kid": "a b"}), "kid", "visible ASCII"),
        ("EC", json!({"kid": own}), "kid", "tenant's own keys"),
        ("RSA", json!({"use": "enc"}), "use", "sig"),
        ("RSA", json!({"use": 1}), "use", "must be a text"),
        ("RSA", json!({"key_ops": ["verify", "sign"]}), "key_ops", "[\"verify\"]"),
        ("RSA", json!({"alg": "ES256"}), "alg", "of this kty"),
        ("EC", json!({"alg": "ES384"}), "alg", "of this kty and crv"),
        ("RSA", json!({"alg": "HS256"}), "alg", "of this kty"),
        ("RSA", json!({"alg": "none"}), "alg", "is not an algorithm"),
        ("RSA", json!({"alg": "RSA-OAEP"}), "alg", "is not an algorithm"),
        ("RSA", json!({"n": small(2047), "x5c": null, "x5t": null, "x5t#S256": null}), "n", "2048"),
        ("RSA", json!({"n": small(1024), "x5c": null, "x5t": null, "x5t#S256": null}), "n", "1024"),
        ("RSA", json!({"n": small(8193), "x5c": null, "x5t": null, "x5t#S256": null}), "n", "8192"),
        ("RSA", json!({"n": octets(&[vec![0], vec![0xff; 256]].concat())}), "n", "leading zeros"),
        ("RSA", json!({"n": octets(&[vec![0xff; 255], vec![0xfe]].concat())}), "n", "odd"),
        ("RSA", json!({"n": "not base64url!"}), "n", "base64url"),
        ("RSA", json!({"n": null}), "n", "must be set"),
        ("RSA", json!({"e": octets(&[1])}), "e", "65537"),
        ("RSA", json!({"e": octets(&[3])}), "e", "65537"),
        ("RSA", json!({"e": octets(&[1, 0, 0])}), "e", "odd"),
        ("RSA", json!({"e": octets(&[0x80, 0, 0, 1])}), "e", "2147483647"),
        ("RSA", json!({"e": octets(&[1; 400])}), "e", "2147483647"),
        ("RSA", json!({"e": octets(&[0, 1, 0, 1])}), "e", "leading zeros"),
        ("RSA", json!({"crv": "P-256"}), "crv", "leave it out"),
        ("EC", json!({"crv": "secp256k1"}), "crv", "P-256, P-384 or P-521"),
        ("EC", json!({"crv": "P-384", "alg": null, "x5c": null, "x5t": null, "x5t#S256": null}), "x", "48 octets"),
        ("EC", json!({"y": octets(&off_curve)}), "x", "point on its curve"),
        ("EC", json!({"x": octets(&[0; 32])}), "x", "point on its curve"),
        ("EC", json!({"y": octets(&off_curve[1..])}), "y", "32 octets"),
        ("EC", json!({"y": null}), "y", "must be set"),
        ("OKP", json!({"crv": "Ed448"}), "crv", "Ed25519"),
        ("OKP", json!({"crv": "X25519"}), "crv", "Ed25519"),
        ("OKP", json!({"x": octets(&[2; 31])}), "x", "32 octets"),
        ("OKP", json!({"x": octets(&[[2; 1].as_slice(), &[0; 31]].concat())}), "x", "point on its curve"),
        ("OKP", json!({"x": octets(&[0; 32])}), "x", "point on its curve"),
        ("RSA", json!({"x5c": other_x5c}), "x5c[0]", "another key's"),
        ("RSA", json!({"x5c": []}), "x5c", "1 to 10 certificates"),
        ("RSA", json!({"x5c": "MIIB"}), "x5c", "1 to 10 certificates"),
        ("RSA", json!({"x5c": ["MIIB"]}), "x5c[0]", "certificate in DER"),
        ("RSA", json!({"x5c": ["-----BEGIN"]}), "x5c[0]", "base64"),
        ("RSA", json!({"x5t": octets(&[1; 20])}), "x5t", "hash of the first certificate"),
        ("RSA", json!({"x5t": octets(&[1; 19])}), "x5t", "20 octets"),
        ("RSA", json!({"x5t#S256": octets(&[1; 32])}), "x5t#S256", "hash of the first certificate"),
        ("RSA", json!({"x5u": "http://a.example/c"}), "x5u", "https"),
        ("RSA", json!({"state": "current"}), "state", "leave it out"),
    ];
    for (kty, changes, member, words) in cases {
        let wrong = trial.key(kty, "wrong", &changes);
        let right = trial.key("EC", "right", &json!({}));
        refused(trial.put(&set(&[right, wrong])).await, &format!("keys[1].{member}"), words);
    }

    // Two of one name; a member twice; what is no set at all.
    let twice = [trial.key("EC", "same", &json!({})), trial.key("OKP", "same", &json!({}))];
    refused(trial.put(&set(&twice)).await, "keys[1].kid", "another key of the set");
    for text in
        ["", "[]", "{}", "null", "{\"keys\": {}}", "{\"keys\": [1]}", "{\"keys\": [], \"more\": 1}", "{\"keys\": []} x"]
    {
        refused(trial.put_text(text).await, "", "");
    }
    let member_twice = r#"{"keys":[{"kty":"OKP","kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    refused(trial.put_text(member_twice).await, "", "each member once");
    let long = format!("{}{}", " ".repeat(128 * 1024), good);
    refused(trial.put_text(&long).await, "", "at most 131072 octets");
    assert_eq!(trial.stored().await, good, "nothing was replaced");

    // All problems are told at once; with another exponent the certificate is another key's.
    let wrong = trial.key("RSA", "wrong", &json!({"d": secret, "use": "enc", "e": octets(&[3])}));
    let status = trial.put(&set(&[wrong])).await.expect_err("refused");
    assert_eq!(status.get_details_bad_request().expect("BadRequest").field_violations.len(), 4);
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
