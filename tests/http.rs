//! What verifiers fetch: the JWKS and discovery, on the canonical path and on the custom domain.

mod common;

use std::collections::BTreeSet;

use common::http::{Answer, get, send};
use common::{Clients, Server, short_policy};
use keyward::grpc::proto::{CreateTenantRequest, RotationPolicy, Tenant};
use serde_json::{Value, json};

const DOMAIN: &str = "login.example.com";
const JWKS: &str = "/.well-known/jwks.json";
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// The tenant `acme` with a domain of its own, `b2b` with another, and `demo` with none.
async fn tenants() -> (Server, Clients) {
    let server = Server::dev();
    let mut clients = Clients::connect(&server).await;
    let secs = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let policy = RotationPolicy { jwks_max_age: secs(7), clock_skew: secs(2), publish_lead: secs(9), ..short_policy() };
    for (id, domain) in [("acme", DOMAIN), ("b2b", "id.example.org")] {
        let tenant = Tenant {
            id: id.into(),
            custom_domain: domain.into(),
            algorithms: vec!["ES256".into(), "EdDSA".into()],
            rotation_policy: Some(policy),
            ..Tenant::default()
        };
        clients.tenants.create_tenant(CreateTenantRequest { tenant: Some(tenant) }).await.expect("created");
    }
    (server, clients)
}

fn with_host(server: &Server, path: &str, host: &str) -> Answer {
    send("GET", &format!("{}{path}", server.public()), &[("host", host)])
}

fn keys(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let jwks: Value = answer.json();
    jwks["keys"].as_array().expect("keys").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jwks_can_be_cached_and_fetched_from_a_browser() {
    let (server, mut clients) = tenants().await;
    let url = server.jwks_uri("acme");
    let answer = get(&url);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/jwk-set+json");
    let cache_control = answer.header("cache-control");
    assert!(cache_control.starts_with("public, max-age=7, "), "{cache_control}");
    assert!(cache_control.contains("stale-while-revalidate=") && cache_control.contains("stale-if-error="));
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    let etag = answer.header("etag");
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "{etag} is no strong entity tag");
    assert_eq!(get(&url).header("etag"), etag, "the same bytes have the same tag");

    for fresh in [etag, "*", &format!("W/{etag}"), &format!("\"other\", {etag}")] {
        let answer = send("GET", &url, &[("if-none-match", fresh)]);
        assert_eq!((answer.status.as_u16(), answer.body.len()), (304, 0), "{fresh}");
        assert_eq!(answer.header("etag"), etag);
        assert_eq!(answer.header("cache-control"), cache_control);
    }
    let stale = send("GET", &url, &[("if-none-match", "\"other\"")]);
    assert_eq!((stale.status.as_u16(), &stale.body), (200, &answer.body));

    let head = send("HEAD", &url, &[]);
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    for name in ["content-type", "cache-control", "etag", "content-length", "access-control-allow-origin"] {
        assert_eq!(head.header(name), answer.header(name), "{name}");
    }
    assert_eq!(send("DELETE", &url, &[]).status, 405);

    let before = etag.to_owned();
    clients.force_rotation("acme", "ES256").await;
    let changed = send("GET", &url, &[("if-none-match", &before)]);
    assert_eq!(changed.status, 200, "the set changed");
    assert_ne!(changed.header("etag"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stand_in_the_order_current_next_previous_and_show_public_members_alone() {
    let (server, mut clients) = tenants().await;
    for algorithm in ["ES256", "EdDSA", "ES256"] {
        clients.force_rotation("acme", algorithm).await;
    }
    let keys = keys(&get(&server.jwks_uri("acme")));
    let states: Vec<&str> = keys.iter().map(|key| key["state"].as_str().expect("a state")).collect();
    assert_eq!(states, ["current", "current", "next", "next", "previous", "previous", "previous"]);
    for key in &keys {
        assert_eq!(key["use"], "sig");
        let (kty, members): (_, &[&str]) = match key["alg"].as_str() {
            Some("ES256") => ("EC", &["crv", "x", "y"]),
            Some("EdDSA") => ("OKP", &["crv", "x"]),
            other => panic!("acme has no {other:?}"),
        };
        assert_eq!(key["kty"], kty);
        let present: BTreeSet<&str> = key.as_object().expect("an object").keys().map(String::as_str).collect();
        let all = ["alg", "kid", "kty", "state", "use", "x5c", "x5t", "x5t#S256"].iter().chain(members);
        assert_eq!(present, all.copied().collect());
    }
    let kids: BTreeSet<&str> = keys.iter().map(|key| key["kid"].as_str().expect("a kid")).collect();
    assert_eq!(kids.len(), keys.len(), "a kid stands twice");
    let rsa = self::keys(&get(server.demo().2));
    let rsa: Vec<&Value> = rsa.iter().filter(|key| key["kty"] == "RSA").collect();
    assert_eq!(rsa.len(), 2);
    for member in ["d", "p", "q", "dp", "dq", "qi", "k"] {
        assert!(rsa.iter().all(|key| key.get(member).is_none()), "{member} is private");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_names_the_issuer_and_the_jwks_of_where_it_was_fetched() {
    let (server, _clients) = tenants().await;
    let base = format!("{}/acme", server.public());
    let answer = get(&format!("{base}{DISCOVERY}"));
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    let document: Value = answer.json();
    assert_eq!(document["issuer"], json!(base));
    assert_eq!(document["jwks_uri"], json!(format!("{base}{JWKS}")));
    assert_eq!(document["id_token_signing_alg_values_supported"], json!(["ES256", "EdDSA"]));
    for required in ["response_types_supported", "subject_types_supported"] {
        assert!(document[required].is_array(), "OpenID Connect Discovery 1.0 requires {required}");
    }
    assert_eq!(get(document["jwks_uri"].as_str().expect("a URL")).status, 200, "jwks_uri leads to the set");

    let document: Value = with_host(&server, DISCOVERY, DOMAIN).json();
    assert_eq!(document["issuer"], json!(format!("https://{DOMAIN}")));
    assert_eq!(document["jwks_uri"], json!(format!("https://{DOMAIN}{JWKS}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_is_known_however_it_is_written() {
    let (server, _clients) = tenants().await;
    let canonical = get(&server.jwks_uri("acme"));
    for host in [DOMAIN, "login.example.com:8443", "LOGIN.Example.COM", "login.example.com.", "Login.example.com.:443"]
    {
        let answer = with_host(&server, JWKS, host);
        assert_eq!((answer.status.as_u16(), &answer.body), (200, &canonical.body), "{host}");
        assert_eq!(with_host(&server, DISCOVERY, host).status, 200, "{host}");
    }
    for host in ["example.com", "xlogin.example.com", "login.example.com.evil.example", "acme", "127.0.0.1:80"] {
        for path in [JWKS, DISCOVERY] {
            assert_eq!(with_host(&server, path, host).status, 404, "{host}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_known_however_it_is_written() {
    let (server, _clients) = tenants().await;
    for document in [JWKS, DISCOVERY] {
        let plain = get(&format!("{}/acme{document}", server.public()));
        assert_eq!(plain.status, 200, "{document}");
        // RFC 3986 section 2.3: the same address.
        for written in ["/%61cme", "/ac%6De", "/acme"] {
            let answer = get(&format!("{}{written}{document}?fresh=1", server.public()));
            assert_eq!((answer.status.as_u16(), &answer.body), (200, &plain.body), "{written}{document}");
            for name in ["content-type", "content-length", "cache-control", "etag", "access-control-allow-origin"] {
                assert_eq!(answer.header(name), plain.header(name), "{written}{document}: {name}");
            }
        }
        let refused = send("POST", &format!("{}/acme{document}", server.public()), &[]);
        assert_eq!((refused.status.as_u16(), refused.header("allow")), (405, "GET,HEAD"), "{document}");
        assert_eq!(get(&format!("{}/acme/acme{document}", server.public())).status, 404, "{document}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_tenants_is_found_and_nobody_sees_anothers_keys() {
    let (server, mut clients) = tenants().await;
    clients.force_rotation("acme", "EdDSA").await;
    for path in ["/nobody", "/ACME", "/acme.", "/..", "/%2e%2e", "/acme%00", "/demo/acme", ""] {
        for document in [JWKS, DISCOVERY] {
            let answer = get(&format!("{}{path}{document}", server.public()));
            assert_eq!(answer.status, 404, "{path}{document}");
            assert_eq!(answer.header("etag"), "");
        }
    }
    assert_eq!(get(server.public()).status, 404);
    assert_eq!(get(&format!("{}/healthz", server.public())).status, 404, "health is on its own listener");

    let kids = |answer: Answer| -> BTreeSet<String> {
        keys(&answer).iter().map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
    };
    let acme = kids(get(&server.jwks_uri("acme")));
    let b2b = kids(get(&server.jwks_uri("b2b")));
    let demo = kids(get(&server.jwks_uri("demo")));
    assert_eq!((acme.len(), b2b.len(), demo.len()), (5, 4, 6));
    assert!(acme.is_disjoint(&b2b) && acme.is_disjoint(&demo) && b2b.is_disjoint(&demo));
    assert_eq!(kids(with_host(&server, JWKS, DOMAIN)), acme);
    assert_eq!(kids(with_host(&server, JWKS, "id.example.org")), b2b);
}
