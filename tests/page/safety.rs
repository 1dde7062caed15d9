//! What cannot come into the page: scripts and other documents, by its headers or by names that tenants choose.

use keyward::grpc::proto::{PutCustomSigningKeysRequest, RotationPolicy, Tenant};
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::common::Clients;
use crate::common::http::{get, send};
use crate::{CONTRAST_MIN, acme, on_domain, page_of, policy_of_short_times, secs};

#[tokio::test(flavor = "multi_thread")]
async fn its_headers_let_nothing_else_in_and_keep_it_shortly() {
    let (server, _clients) = acme(Tenant::default()).await;
    let url = page_of(&server);
    let answer = get(&url);
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "text/html; charset=utf-8"));
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    assert_eq!(answer.header("cache-control"), "public, max-age=10");
    let policy = answer.header("content-security-policy");
    let (before, after) = policy.split_once("'sha256-").expect("a digest of the style");
    assert_eq!(before, "default-src 'none'; style-src ");
    let after = after.split_once('\'').expect("the digest's end").1;
    assert_eq!(after, "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");

    let head = send("HEAD", &url, &[]);
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    for name in ["content-type", "cache-control", "content-security-policy", "referrer-policy"] {
        assert_eq!(head.header(name), answer.header(name), "{name}");
    }
    assert_eq!(send("POST", &url, &[]).status, 405);

    // A page of a tenant whose JWKS may be kept for 3 s is kept no longer.
    let short = RotationPolicy { jwks_max_age: secs(3), ..policy_of_short_times() };
    let mut clients = Clients::connect(&server).await;
    clients.create_tenant("short", &["ES256"], short).await;
    assert_eq!(get(&format!("{}/short/", server.public())).header("cache-control"), "public, max-age=3");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_chooses_stays_text() {
    let issuer = "https://idp.example/a&copy;b'c&lt;i&gt;";
    let (server, _clients) = acme(Tenant { issuer: issuer.into(), ..Tenant::default() }).await;
    let seen = Browser::start().look(&page_of(&server));
    assert!(seen.text.contains(issuer), "{}", seen.text);
    let html = String::from_utf8(get(&page_of(&server)).body).expect("UTF-8");
    assert!(!html.contains("&copy;") && !html.contains("b'c"), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_keys_are_on_the_custom_domain_alone_and_their_names_stay_text() {
    let (server, mut clients) = acme(Tenant::default()).await;
    let jwks: Value = get(server.demo().2).json();
    let keys = jwks["keys"].as_array().expect("keys");
    let point = keys.iter().find(|key| key["kty"] == "EC").expect("a key of the demo tenant");
    let kid = r#"<b>bold</b><script>alert("1")</script>&amp;'x'"#;
    let custom = json!({"kty": "EC", "crv": point["crv"], "x": point["x"], "y": point["y"], "use": "sig", "kid": kid});
    let jwks_json = json!({"keys": [custom]}).to_string();
    let request = PutCustomSigningKeysRequest { tenant: "acme".into(), jwks_json };
    clients.keys.put_custom_signing_keys(request).await.expect("taken");

    let mut browser = Browser::start();
    let seen = browser.look(&on_domain(&server));
    let section = seen.keyring("custom-keys");
    assert!(section.text.contains(kid) && section.text.contains("P-256"), "{}", section.text);
    for element in ["b", "script"] {
        assert!(!seen.elements.iter().any(|name| name == element), "<{element}> came into the page by a kid");
    }
    let phone = browser.look_as(&on_domain(&server), "dark", 360, None);
    assert!(phone.scroll_width <= phone.inner_width, "{} px scroll sideways", phone.scroll_width);
    assert!(phone.contrast.ratio >= CONTRAST_MIN, "{:?}", phone.contrast);
    let canonical = browser.look(&page_of(&server));
    assert!(!canonical.text.contains("ustom keys") && !canonical.text.contains("bold"), "{}", canonical.text);
}
