//! The proxy of docs/resigning.md, unchanged: JWTs of an outside issuer go in, the upstream sees JWTs of one custom domain.
//! The outside issuer is a tenant too, so that its keys can sign whatever a test wants to see refused.

#[path = "../common/mod.rs"]
mod common;
mod parties;
mod signer;

use common::Server;
use parties::{Answer, Proxy, ResourceServer, Upstream};
use serde_json::{Value, json};
use signer::{AUDIENCE, DOMAIN, INSIDE, OUTSIDE, OUTSIDE_DOMAIN, Signers, now, segment};

/// As long as a JWT for the upstream lives in these tests, at most.
const LIFE_SECS_MAX: u64 = 120;

/// Keyward with both tenants, the upstream, and the proxy between.
struct Scene {
    server: Server,
    signers: Signers,
    upstream: Upstream,
    proxy: Proxy,
}

impl Scene {
    async fn new(options: &[&str]) -> Self {
        let server = Server::dev();
        let signers = Signers::new(&server).await;
        let upstream = Upstream::start();
        let proxy = Proxy::start(&server, &signers.outside_issuer, upstream.address(), options);
        Self { server, signers, upstream, proxy }
    }

    /// GET with this JWT, which the upstream must see; what it saw.
    fn forwarded(&self, jwt: &str) -> String {
        let answer = self.proxy.get(jwt);
        assert_eq!((answer.status, answer.body.as_str()), (200, "from the upstream"), "{answer:?}");
        self.upstream.request()
    }

    /// The answer must be this 401, and the upstream must not have been asked.
    fn refused(&self, what: &str, jwt: &str, reason: &str) {
        let answer = self.proxy.get(jwt);
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Bearer error=\"invalid_token\", error_description=\""), "{what}: {challenge}");
        assert!(challenge.contains(reason), "{what}: not refused for {reason:?}: {challenge}");
        let body: Value = serde_json::from_str(&answer.body).expect("a body in JSON");
        assert!(body["error"].is_string(), "{what}: {body}");
        self.upstream.assert_silent(what);
    }
}

/// The JWT that the upstream was shown.
fn shown(request: &str) -> &str {
    let mut lines = request.lines().filter_map(|line| line.strip_prefix("Authorization: Bearer "));
    let jwt = lines.next().unwrap_or_else(|| panic!("no JWT in {request}"));
    assert_eq!(lines.next(), None, "one JWT: {request}");
    jwt
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_sees_one_issuer_and_nothing_that_the_client_made_up() {
    let scene =
        Scene::new(&["--subject-prefix", "outside|", "--forward-header", "X-Request-Id", "--forward-header", "X-Hop"])
            .await;
    let mut resource_server = ResourceServer::start(&scene.server);
    let claims = json!({"sub": "zoë", "scope": "read", "admin": true, "jti": "1", "exp": now() + 60});
    let jwt = scene.signers.outside_jwt(&claims).await;
    let body = r#"{"a":"zoë"}"#;
    let request = format!(
        "POST /orders?q=%2e%2e HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: Bearer {jwt}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nX-Forwarded-For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\n\
         X-User: root\r\nX_User: root\r\nCookie: session=1\r\nX-Request-Id: 7\r\nX-Hop: 7\r\nConnection: close, x-hop\r\n\r\n{body}",
        body.len()
    );
    let answer = scene.proxy.send(request.as_bytes());
    assert_eq!((answer.status, answer.body.as_str()), (200, "from the upstream"), "{answer:?}");
    assert_eq!(answer.header("x-upstream"), Some("yes"), "the upstream's headers come back");

    let seen = scene.upstream.request();
    assert!(seen.starts_with("POST /orders?q=%2e%2e HTTP/1.1\r\n") && seen.ends_with(body), "{seen}");
    assert!(seen.contains("Content-Type: application/json\r\n") && seen.contains("X-Request-Id: 7\r\n"), "{seen}");
    assert!(seen.contains(&format!("Host: {}\r\n", scene.upstream.address())), "{seen}");
    for made_up in ["10.0.0.1", "root", "session", "X-Hop", &jwt] {
        assert!(!seen.contains(made_up), "{made_up} reached the upstream: {seen}");
    }

    let resigned = resource_server.accept(shown(&seen));
    let mut names: Vec<&String> = resigned.as_object().expect("claims").keys().collect();
    names.sort();
    assert_eq!(names, ["aud", "exp", "iat", "iss", "sub"]);
    assert_eq!(resigned["sub"], "outside|zoë");
    assert_eq!((&resigned["iss"], &resigned["aud"]), (&json!(format!("https://{DOMAIN}")), &json!(AUDIENCE)));
    assert_eq!(resigned["exp"], claims["exp"], "never longer than what was shown");

    let before = now();
    let long = scene.signers.outside_jwt(&json!({"sub": "zoë", "exp": before + 3600})).await;
    let exp = resource_server.accept(shown(&scene.forwarded(&long)))["exp"].as_u64().expect("exp");
    assert!(
        (before + LIFE_SECS_MAX..=now() + LIFE_SECS_MAX).contains(&exp),
        "never longer than the proxy grants: {exp}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_is_carried_if_the_operator_says_so_and_the_proxy_s_own_claims_never_are() {
    let scene = Scene::new(&["--carry-claim", "scope", "--carry-claim", "iss", "--carry-claim", "jti"]).await;
    let claims = json!({"sub": "zoë", "scope": "read", "admin": true, "acr": "2", "jti": "1", "exp": now() + 60});
    let jwt = scene.signers.outside_jwt(&claims).await;
    let resigned = ResourceServer::start(&scene.server).accept(shown(&scene.forwarded(&jwt)));
    let mut names: Vec<&String> = resigned.as_object().expect("claims").keys().collect();
    names.sort();
    assert_eq!(names, ["acr", "aud", "exp", "iat", "iss", "scope", "sub"]);
    assert_eq!((&resigned["scope"], &resigned["iss"]), (&json!("read"), &json!(format!("https://{DOMAIN}"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_issuer_did_not_sign_for_this_audience_is_refused() {
    let scene = Scene::new(&[]).await;
    let signers = &scene.signers;
    let good = signers.good_claims();
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let header = signers.header(OUTSIDE).await;

    // The way that the tests craft JWTs makes good ones too.
    scene.forwarded(&signers.craft(OUTSIDE, &header, &good).await);

    for (what, claims, reason) in [
        ("another issuer", with("iss", json!("https://evil.example")), "Invalid issuer"),
        ("the issuer's other name", with("iss", json!(format!("https://{OUTSIDE_DOMAIN}"))), "Invalid issuer"),
        ("no issuer", with("iss", Value::Null), "iss"),
        ("another audience", with("aud", json!("https://other.example")), "Audience"),
        ("no audience", with("aud", Value::Null), "aud"),
        ("expired", with("exp", json!(now() - 1)), "expired"),
        ("no exp", with("exp", Value::Null), "exp"),
        ("not yet valid", with("nbf", json!(now() + 600)), "not yet valid"),
        ("no subject", with("sub", Value::Null), "sub"),
    ] {
        scene.refused(what, &signers.craft(OUTSIDE, &header, &claims).await, reason);
    }

    let unsigned = format!("{}.{}.", segment(&json!({"alg": "none", "typ": "JWT"})), segment(&good));
    scene.refused("alg none", &unsigned, "alg must be one of");
    scene.refused("a public key as a secret", &signers.hs256_with_the_public_key(&good).await, "alg must be one of");

    // A tenant that the proxy does not trust, with its own kid, and with the trusted issuer's.
    let strangers = signers.header("demo").await;
    scene.refused("a stranger's key", &signers.craft("demo", &strangers, &good).await, "kid names no key");
    scene.refused(
        "a stranger's signature",
        &signers.craft("demo", &header, &good).await,
        "Signature verification failed",
    );
    let insiders = signers.header(INSIDE).await;
    scene.refused("the proxy's own tenant", &signers.craft(INSIDE, &insiders, &good).await, "alg must be one of");

    let jwt = signers.craft(OUTSIDE, &header, &good).await;
    let (head, _) = jwt.rsplit_once('.').expect("a compact JWT");
    scene.refused("no signature", &format!("{head}."), "Signature verification failed");
    scene.refused("no JWT", "abc", "Not enough segments");
    scene.refused("too long", &format!("{jwt}{}", "A".repeat(8192)), "longer than");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_one_jwt_or_with_an_unclear_body_is_refused() {
    let scene = Scene::new(&[]).await;
    let jwt = scene.signers.outside_jwt(&scene.signers.good_claims()).await;
    let ask = |target: &str, headers: &str| -> Answer {
        let answer = scene.proxy.send(format!("POST {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n").as_bytes());
        scene.upstream.assert_silent(headers);
        answer
    };
    let bearer = format!("Authorization: Bearer {jwt}\r\n");
    for headers in ["", "Authorization: Basic YTpi\r\n", "Authorization: Bearer\r\n", &format!("{bearer}{bearer}")] {
        let answer = ask("/", headers);
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")), "{headers}: {answer:?}");
    }
    for (status, target, headers) in [
        (411, "/", "Transfer-Encoding: chunked\r\n"),
        (411, "/", "Content-Length: 0\r\nContent-Length: 5\r\n"),
        (413, "/", "Content-Length: 1048577\r\n"),
        (413, "/", "Content-Length: +1\r\n"),
        (400, "http://elsewhere.example/", "Content-Length: 0\r\n"),
    ] {
        assert_eq!(ask(target, &format!("{bearer}{headers}")).status, status, "{target} {headers}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_of_both_keys_go_unnoticed() {
    let mut scene = Scene::new(&["--jwks-cooldown-secs", "0"]).await;
    let mut resource_server = ResourceServer::start(&scene.server);
    let old = scene.signers.outside_jwt(&scene.signers.good_claims()).await;
    let first = scene.forwarded(&old);
    resource_server.accept(shown(&first));
    let first_kid = resource_server.kid().to_owned();

    // The proxy has the outside issuer's first and second key; for the third it must ask again.
    scene.signers.rotate(OUTSIDE).await;
    scene.signers.rotate(OUTSIDE).await;
    scene.signers.rotate(INSIDE).await;

    let new = scene.signers.outside_jwt(&scene.signers.good_claims()).await;
    for jwt in [&new, &old] {
        let seen = scene.forwarded(jwt);
        // It holds the JWKS of before the rotation.
        resource_server.accept(shown(&seen));
        assert_ne!(resource_server.kid(), first_kid, "the custom domain's new key signs");
    }
    resource_server.accept(shown(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_away_is_told_without_telling_what_it_is() {
    /// Nothing listens on a port that only root may take.
    const NOBODY: &str = "127.0.0.1:1";
    let scene = Scene::new(&[]).await;
    let jwt = scene.signers.outside_jwt(&scene.signers.good_claims()).await;
    let jwks_uri = format!("http://{NOBODY}/jwks.json");
    for (status, option, value, logged) in [
        (503, "--jwks-uri", jwks_uri.as_str(), "JWKS cannot be fetched"),
        (503, "--keyward", NOBODY, "did not sign: UNAVAILABLE"),
        (503, "--domain", "other.example.com", "did not sign: INVALID_ARGUMENT"),
        (502, "--upstream", NOBODY, "the upstream does not answer"),
    ] {
        let issuer = &scene.signers.outside_issuer;
        let proxy = Proxy::start(&scene.server, issuer, scene.upstream.address(), &[option, value]);
        let answer = proxy.get(&jwt);
        assert_eq!(answer.status, status, "{option}: {answer:?}");
        assert!(answer.body.contains("at the moment") && !answer.body.contains("127.0.0.1"), "{option}: {answer:?}");
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{option}: {answer:?}");
        let line = proxy.log_line();
        assert!(line.contains(logged), "{option}: the operator reads {line:?}");
        assert!(!line.contains(&jwt), "{option}: the JWT is in the log: {line}");
        scene.upstream.assert_silent(option);
    }
}
