//! JWTs that are not what they should be, and an issuer's URL that does not give what it should: nothing of it lets anybody
//! in, and nothing is fetched from a place that a caller names.

#[path = "access/stand.rs"]
mod stand;

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::http::get;
use common::{Authority, Clients, Dial, Installation, Issuer, Server, short_policy, signing_input};
use keyward::grpc::proto::{CreateTenantRequest, ListTenantsRequest, RotateSigningKeyRequest, SignJwtRequest, Tenant};
use serde_json::{Value, json};
use stand::{AUDIENCE, ISSUER, claims, reason, with_jwts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// How long something may take that happens by itself, and how often to look.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A Keyward at loopback whose callers have JWTs, and its administrator's.
struct House {
    installation: Installation,
    server: Server,
    clients: Clients,
}

impl House {
    async fn open(installation: Installation) -> Self {
        let installation = installation.set("grpc.auth", r#""required""#);
        let server = installation.serve();
        let clients = Clients::over(Dial::tcp(server.grpc()).connect().await.expect("a connection"));
        Self { installation, server, clients }
    }

    /// ListTenants as the bearer of a JWT.
    async fn call(&self, jwt: &str) -> Result<(), Status> {
        let request = bearing(jwt, ListTenantsRequest::default());
        self.clients.clone().tenants.list_tenants(request).await.map(drop)
    }

    async fn assert_refused(&self, what: &str, jwt: &str) {
        let status = self.call(jwt).await.expect_err(what);
        assert_eq!((status.code(), &*reason(&status)), (Code::Unauthenticated, "JWT_REFUSED"), "{what}: {status:?}");
    }

    /// Waits until a call is answered like this.
    async fn wait_for(&self, what: &str, jwt: &str, wanted: impl Fn(&Result<(), Status>) -> bool) {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let answer = self.call(jwt).await;
            if wanted(&answer) {
                return;
            }
            assert!(Instant::now() < deadline, "not in {WAIT_MAX:?}: {what}; but {answer:?}");
            tokio::time::sleep(POLL).await;
        }
    }
}

fn bearing<T>(jwt: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {jwt}").parse().expect("ASCII"));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_headers_that_are_not_right_are_refused() {
    let issuer = Issuer::new();
    let house = House::open(with_jwts(Installation::prepare(), &issuer)).await;
    let good = claims("admin");
    house.call(&issuer.jwt(&good)).await.expect("in order");
    let now = good["exp"].as_u64().expect("a number") - 600;
    let with = |member: &str, value: Value| {
        let mut claims = good.clone();
        claims[member] = value;
        issuer.jwt(&claims)
    };
    for (what, jwt) in [
        ("expired", with("exp", json!(now - 60))),
        ("not valid yet", with("nbf", json!(now + 600))),
        ("for another audience", with("aud", json!("keyward2"))),
        ("for nobody", with("aud", json!([]))),
        ("of another issuer", with("iss", json!("https://issuer.example"))),
        ("of nobody", with("sub", json!(""))),
        ("with two subjects", with("sub", json!(["a", "b"]))),
        ("with scopes in an array", with("scope", json!(["admin"]))),
    ] {
        house.assert_refused(what, &jwt).await;
    }

    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    elsewhere.set_nonblocking(true).expect("so that nobody waits for it");
    let url = format!("http://{}/jwks.json", elsewhere.local_addr().expect("an address"));
    let forger = Issuer::new();
    let header = |member: &str, value: Value| {
        let mut header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "issuer-1"});
        header[member] = value;
        header
    };
    for (what, header) in [
        ("jku", header("jku", json!(url))),
        ("jwk", header("jwk", forger.jwk())),
        ("x5u", header("x5u", json!(url))),
        ("kid as a URL", header("kid", json!(url))),
    ] {
        house.assert_refused(what, &forger.jwt_with(&header, &good)).await;
    }
    house.assert_refused("crit", &issuer.jwt_with(&header("crit", json!(["exp"])), &good)).await;
    house.assert_refused("another type", &issuer.jwt_with(&header("typ", json!("logout+jwt")), &good)).await;
    let unsigned = signing_input(&json!({"alg": "none", "typ": "at+jwt"}), &good);
    for signature in ["", "AA"] {
        house.assert_refused("none", &format!("{unsigned}.{signature}")).await;
    }
    assert!(elsewhere.accept().is_err(), "a place that a caller named was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_is_nobody_s_secret_and_an_algorithm_must_be_allowed() {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let issuer = Issuer::new();
    let installation = with_jwts(Installation::prepare(), &issuer);
    let file = installation.dir().join("issuer.json");
    fs::write(&file, json!({ "keys": [rsa_jwk(&key), issuer.jwk()] }).to_string()).expect("the JWKS is written");
    let house = House::open(installation.set("grpc.jwt.algorithms", r#"["RS256"]"#)).await;
    let good = claims("admin");

    let input = signing_input(&json!({"alg": "RS256", "kid": "rsa-1"}), &good);
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature).expect("signed");
    house.call(&format!("{input}.{}", URL_SAFE_NO_PAD.encode(&signature))).await.expect("in order");

    let der = key.public_key().as_der().expect("an encoding").as_ref().to_vec();
    let base64 = base64::engine::general_purpose::STANDARD.encode(&der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n");
    for secret in [der, pem.into_bytes(), key.public_key().as_ref().to_vec()] {
        let input = signing_input(&json!({"alg": "HS256", "kid": "rsa-1"}), &good);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), input.as_bytes());
        house.assert_refused("HS256", &format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag))).await;
    }
    house.assert_refused("ES256, which is not allowed", &issuer.jwt(&good)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_scopes_that_are_exactly_a_role_s_name_are_roles() {
    let issuer = Issuer::new();
    let house = House::open(with_jwts(Installation::prepare(), &issuer)).await;
    for scope in [
        "",
        "xadmin",
        "admins",
        "admin:acme",
        "Admin",
        "admin,auditor",
        "read:admin",
        "auditor\tadmin",
        "issuer:*",
        "*",
    ] {
        let status = house.call(&issuer.jwt(&claims(scope))).await.expect_err(scope);
        assert_eq!((status.code(), &*reason(&status)), (Code::PermissionDenied, "ROLE_MISSING"), "{scope:?}");
    }
    for scope in ["auditor", "openid admin", "admin xadmin"] {
        house.call(&issuer.jwt(&claims(scope))).await.expect(scope);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_that_keyward_signed_itself_is_never_a_proof_whatever_the_jwks_says() {
    let issuer = Issuer::new();
    let house = House::open(with_jwts(Installation::prepare(), &issuer)).await;
    let admin = issuer.jwt(&claims("admin"));
    let mut clients = house.clients.clone();
    let tenant = Tenant {
        id: "acme".into(),
        issuer: ISSUER.into(),
        algorithms: vec!["ES256".into()],
        rotation_policy: Some(short_policy()),
        ..Tenant::default()
    };
    let request = bearing(&admin, CreateTenantRequest { tenant: Some(tenant) });
    clients.tenants.create_tenant(request).await.expect("created");
    let claims_json = claims("admin").to_string().into_bytes();
    let sign = SignJwtRequest { tenant: "acme".into(), claims_json, ..SignJwtRequest::default() };
    let own = clients.signing.sign_jwt(bearing(&admin, sign)).await.expect("signed").into_inner().jwt;
    house.assert_refused("a tenant's JWT", &own).await;

    let mut keys = get(&house.server.jwks_uri("acme")).json::<Value>()["keys"].as_array().expect("keys").clone();
    // So that it is seen when the file has been read.
    let second = Issuer::new();
    let mut second_jwk = second.jwk();
    second_jwk["kid"] = json!("issuer-2");
    keys.extend([issuer.jwk(), second_jwk]);
    let file = house.installation.dir().join("issuer.json");
    fs::write(file, json!({ "keys": keys }).to_string()).expect("the JWKS is written");
    let by_second = second.jwt_with(&json!({"alg": "ES256", "kid": "issuer-2"}), &claims("admin"));
    house.wait_for("the JWKS is read again", &by_second, Result::is_ok).await;
    house.assert_refused("a tenant's JWT, whose key is in the JWKS", &own).await;
    let rotate = RotateSigningKeyRequest {
        tenant: "acme".into(),
        force: true,
        revoke_replaced: true,
        ..RotateSigningKeyRequest::default()
    };
    clients.keys.rotate_signing_key(bearing(&admin, rotate)).await.expect("rotated");
    house.assert_refused("a tenant's JWT, whose key was revoked", &own).await;
}

/// What an issuer's URL does.
#[derive(Clone)]
enum Gives {
    Answer(String),
    Redirect,
    TooMuch,
    Nothing,
}

/// A web server that somebody else runs: it counts who asks for its JWKS, and who follows its redirect.
struct Web {
    address: std::net::SocketAddr,
    gives: Arc<Mutex<Gives>>,
    asked: Arc<AtomicUsize>,
    followed: Arc<AtomicUsize>,
}

impl Web {
    fn open(gives: Gives) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let web = Self { address, gives: Arc::new(Mutex::new(gives)), asked: Arc::default(), followed: Arc::default() };
        let (gives, asked, followed) = (Arc::clone(&web.gives), Arc::clone(&web.asked), Arc::clone(&web.followed));
        thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.expect("a connection");
                let mut request = [0; 4096];
                let read = connection.read(&mut request).unwrap_or_default();
                let counter = if request[..read].starts_with(b"GET /jwks.json ") { &asked } else { &followed };
                counter.fetch_add(1, Ordering::SeqCst);
                let gives = gives.lock().expect("nobody panics with it").clone();
                thread::spawn(move || {
                    let head =
                        |len: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n");
                    // Whoever leaves early is no failure of this server's.
                    let _ = match gives {
                        Gives::Answer(body) => connection.write_all(format!("{}{body}", head(body.len())).as_bytes()),
                        Gives::Redirect => {
                            let head = "HTTP/1.1 302 Found\r\nlocation: /elsewhere.json\r\ncontent-length: 0\r\n\r\n";
                            connection.write_all(head.as_bytes())
                        }
                        Gives::TooMuch => {
                            let body = " ".repeat(2 << 20);
                            connection.write_all(format!("{}{body}", head(body.len())).as_bytes())
                        }
                        // Until the client gives up.
                        Gives::Nothing => connection.read_to_end(&mut Vec::new()).map(drop),
                    };
                });
            }
        });
        web
    }

    fn set(&self, gives: Gives) {
        *self.gives.lock().expect("nobody panics with it") = gives;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn installation(&self, cooldown_secs: u32) -> Installation {
        Installation::prepare()
            .set("grpc.jwt.issuer", &format!("{ISSUER:?}"))
            .set("grpc.jwt.audience", &format!("{AUDIENCE:?}"))
            .set("grpc.jwt.jwks_url", &format!("\"http://{}/jwks.json\"", self.address))
            .set("grpc.jwt.jwks_cooldown_secs", &cooldown_secs.to_string())
    }
}

fn unavailable(answer: &Result<(), Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable && reason(status) == "JWKS_UNAVAILABLE")
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_make_one_fetch_in_a_cooldown_and_a_new_key_is_found_by_it() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let mut new_jwk = new.jwk();
    new_jwk["kid"] = json!("issuer-2");
    let by_new = new.jwt_with(&json!({"alg": "ES256", "kid": "issuer-2"}), &claims("admin"));
    let web = Web::open(Gives::Answer(old.jwks().to_string()));

    let house = House::open(web.installation(3600)).await;
    house.wait_for("the first fetch", &old.jwt(&claims("admin")), Result::is_ok).await;
    web.set(Gives::Answer(json!({ "keys": [old.jwk(), new_jwk] }).to_string()));
    let forged = Issuer::new().jwt(&claims("admin"));
    for jwt in [&by_new, &forged].into_iter().cycle().take(50) {
        // Whoever signed it may be the issuer with a new key: that is known when it may be asked again.
        let status = house.call(jwt).await.expect_err("an unknown key");
        assert_eq!((status.code(), &*reason(&status)), (Code::Unavailable, "JWKS_UNAVAILABLE"), "{status:?}");
        let pause = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("a time to come again");
        assert!((1000..=3600).contains(&pause.as_secs()), "{pause:?}");
    }
    assert_eq!(web.asked(), 1, "the cooldown is an hour");
    drop(house);

    web.set(Gives::Answer(old.jwks().to_string()));
    let house = House::open(web.installation(1)).await;
    house.wait_for("the first fetch", &old.jwt(&claims("admin")), Result::is_ok).await;
    web.set(Gives::Answer(json!({ "keys": [new_jwk] }).to_string()));
    house.wait_for("the new key", &by_new, Result::is_ok).await;
    let is_refused = |answer: &Result<(), Status>| {
        answer.as_ref().is_err_and(|status| (status.code(), &*reason(status)) == (Code::Unauthenticated, "JWT_REFUSED"))
    };
    house.wait_for("the old key is refused for good", &old.jwt(&claims("admin")), is_refused).await;
    web.set(Gives::Nothing);
    let none = Issuer::new().jwt_with(&json!({"alg": "ES256", "kid": "made-up"}), &claims("admin"));
    house.wait_for("nobody knows", &none, unavailable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_whose_keys_have_no_kid_or_always_the_same_may_rotate() {
    let without_kid = |issuer: &Issuer| {
        let mut jwk = issuer.jwk();
        jwk.as_object_mut().expect("an object").remove("kid");
        jwk
    };
    let [first, second, third] = [Issuer::new(), Issuer::new(), Issuer::new()];
    let web = Web::open(Gives::Answer(json!({ "keys": [without_kid(&first)] }).to_string()));
    let house = House::open(web.installation(1)).await;
    let header = json!({"alg": "ES256", "typ": "at+jwt"});
    house.wait_for("the first key", &first.jwt_with(&header, &claims("admin")), Result::is_ok).await;
    web.set(Gives::Answer(json!({ "keys": [without_kid(&first), without_kid(&second)] }).to_string()));
    house.wait_for("a new key without kid", &second.jwt_with(&header, &claims("admin")), Result::is_ok).await;
    web.set(Gives::Answer(second.jwks().to_string()));
    house.wait_for("the same key with a kid", &second.jwt(&claims("admin")), Result::is_ok).await;
    web.set(Gives::Answer(third.jwks().to_string()));
    house.wait_for("a new key with the same kid", &third.jwt(&claims("admin")), Result::is_ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_used_does_not_take_the_others_with_it() {
    let issuer = Issuer::new();
    let weak = json!({"kty": "RSA", "kid": "weak", "n": "4".repeat(171), "e": "AQAB"});
    let web = Web::open(Gives::Answer(json!({ "keys": [weak, issuer.jwk()] }).to_string()));
    let house = House::open(web.installation(1)).await;
    house.wait_for("the good key", &issuer.jwt(&claims("admin")), Result::is_ok).await;
    let told = |line: &String| line.contains("cannot be used") && line.contains("keys[0]");
    let deadline = Instant::now() + WAIT_MAX;
    while !house.server.log().iter().any(told) {
        assert!(Instant::now() < deadline, "it is not told: {:?}", house.server.log());
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_were_fetched_outlive_a_failed_fetch_until_they_are_too_old() {
    let issuer = Issuer::new();
    let admin = issuer.jwt(&claims("admin"));
    let web = Web::open(Gives::Answer(issuer.jwks().to_string()));
    let often = web.installation(1).set("grpc.jwt.jwks_refresh_secs", "1");
    let house = House::open(often.set("grpc.jwt.jwks_age_max_secs", "10")).await;
    house.wait_for("the keys", &admin, Result::is_ok).await;
    web.set(Gives::Redirect);
    // A fetch that is under way may yet be a good one; two that have failed are not.
    let (asked, deadline) = (web.asked(), Instant::now() + WAIT_MAX);
    while web.asked() < asked + 3 {
        assert!(Instant::now() < deadline, "it is not asked again");
        tokio::time::sleep(POLL).await;
    }
    assert!(house.server.metric(r#"keyward_jwks_usable{key="grpc.jwt.jwks_url"}"#) == 0.0, "a fetch has failed");
    house.call(&admin).await.expect("the old keys, which are some 3 s old");
    house.wait_for("they are too old", &admin, unavailable).await;
    web.set(Gives::Answer(issuer.jwks().to_string()));
    house.wait_for("new ones", &admin, Result::is_ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_https_url_must_have_a_certificate_of_the_authority_that_is_configured() {
    let (authority, stranger, issuer) = (Authority::new(), Authority::new(), Issuer::new());
    let identity = authority.issue("issuer");
    let chain = CertificateDer::pem_file_iter(&identity.certificate).expect("a file").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions that the provider has")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a certificate and its key")));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://localhost:{}/jwks.json", listener.local_addr().expect("an address").port());
    let body = issuer.jwks().to_string();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            // Who does not trust this server ends the handshake.
            let Ok(mut stream) = acceptor.accept(connection).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    let installation = |authority: &Authority| {
        let installation = Installation::prepare();
        installation.put("issuer-ca.pem", &authority.certificate());
        installation
            .set("grpc.jwt.issuer", &format!("{ISSUER:?}"))
            .set("grpc.jwt.audience", &format!("{AUDIENCE:?}"))
            .set("grpc.jwt.jwks_url", &format!("{url:?}"))
            .set("grpc.jwt.jwks_ca_file", r#""issuer-ca.pem""#)
            .set("grpc.jwt.jwks_cooldown_secs", "1")
    };
    let admin = issuer.jwt(&claims("admin"));
    let house = House::open(installation(&stranger)).await;
    let told = |line: &String| line.contains("cannot be fetched") && line.contains("TLS");
    let deadline = Instant::now() + WAIT_MAX;
    while !house.server.log().iter().any(told) {
        assert!(unavailable(&house.call(&admin).await), "keys of a server that nobody trusts");
        assert!(Instant::now() < deadline, "it is not told");
        tokio::time::sleep(POLL).await;
    }
    drop(house);
    let house = House::open(installation(&authority)).await;
    house.wait_for("the keys", &admin, Result::is_ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_gives_no_keys_makes_nobody_somebody_and_stops_nothing_else() {
    let issuer = Issuer::new();
    let web = Web::open(Gives::Redirect);
    let house = House::open(web.installation(1)).await;
    let admin = issuer.jwt(&claims("admin"));
    for (what, gives) in [("a redirect", Gives::Redirect), ("too much", Gives::TooMuch), ("nothing", Gives::Nothing)] {
        web.set(gives);
        let before = web.asked();
        let deadline = Instant::now() + WAIT_MAX;
        while web.asked() < before + 2 {
            assert!(unavailable(&house.call(&admin).await), "{what}");
            assert!(Instant::now() < deadline, "{what}: it is not asked again");
            tokio::time::sleep(POLL).await;
        }
    }
    assert_eq!(web.followed.load(Ordering::SeqCst), 0, "a redirect was followed");
    let readyz = get(&format!("{}/readyz", house.server.ops()));
    assert_eq!(readyz.status, 200, "{readyz:?}");
    assert!(readyz.json::<Value>()["warnings"]["grpc.jwt.jwks_url"].is_string(), "{readyz:?}");

    web.set(Gives::Answer(issuer.jwks().to_string()));
    house.wait_for("the keys", &admin, Result::is_ok).await;
    assert!(
        get(&format!("{}/readyz", house.server.ops())).json::<Value>()["warnings"]
            .as_object()
            .is_some_and(|all| all.is_empty())
    );
    // What was known stays for a time.
    web.set(Gives::Nothing);
    house.call(&admin).await.expect("the old keys");
}

fn rsa_jwk(key: &RsaKeyPair) -> Value {
    let encode = |octets: &[u8]| URL_SAFE_NO_PAD.encode(octets);
    let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
    let [n, e] = [n, e].map(|number| encode(number.big_endian_without_leading_zero()));
    json!({"kty": "RSA", "kid": "rsa-1", "use": "sig", "n": n, "e": e})
}
