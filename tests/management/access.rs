use std::fs;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PSS_SHA384, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::common::http::{Answer, get, send};
use crate::common::{Issuer, signing_input};
use crate::house::{ALL_SCOPES, DOMAIN, House, now, wait_until};

const LIST: &str = "/keys/signing";

/// Every call with the scopes that it needs; the kid is one that no tenant has.
const CALLS: [(&str, &str, &str); 7] = [
    ("GET", "/keys/signing", "read:signing_keys"),
    ("GET", "/keys/signing/nobody", "read:signing_keys"),
    ("POST", "/keys/signing/rotate", "create:signing_keys update:signing_keys"),
    ("PUT", "/keys/signing/nobody/revoke", "update:signing_keys"),
    ("GET", "/keys/custom-signing", "read:custom_signing_keys"),
    ("PUT", "/keys/custom-signing", "create:custom_signing_keys update:custom_signing_keys"),
    ("DELETE", "/keys/custom-signing", "delete:custom_signing_keys"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_call_needs_its_own_scopes_and_all_of_them() {
    let mut house = House::open().await;
    for (method, path, needed) in CALLS {
        let needed: Vec<&str> = needed.split(' ').collect();
        assert_eq!(house.description.scopes(method, path), needed, "{method} {path} in docs/openapi.json");
        let granted = house.jwt("b2b", &needed.join(" "));
        let answer = house.call(method, "b2b", path, &granted);
        assert!(![401, 403].contains(&answer.status.as_u16()), "{method} {path}: {answer:?}");

        for missing in &needed {
            let others: Vec<&str> = ALL_SCOPES.split(' ').filter(|scope| scope != missing).collect();
            let near = [
                format!("x{missing}"),
                format!("{missing}s"),
                format!("{missing}:all"),
                missing.to_uppercase(),
                missing.replace(':', " "),
                "*".to_owned(),
            ];
            let jwt = house.jwt("b2b", &format!("{} {}", others.join(" "), near.join(" ")));
            let answer = house.call(method, "b2b", path, &jwt);
            assert_eq!(answer.status, 403, "{method} {path} without {missing}: {answer:?}");
            let challenge = answer.header("www-authenticate");
            assert!(challenge.contains(r#"error="insufficient_scope""#), "{challenge}");
            assert!(challenge.contains(&format!(r#"scope="{}""#, needed.join(" "))), "{challenge}");
            let body: Value = answer.json();
            assert_eq!(body["error"], "Forbidden");
            let message = body["message"].as_str().expect("a text");
            assert!(needed.iter().all(|scope| message.contains(scope)), "{message}");
        }
        let mut no_scope = house.claims("b2b", "");
        no_scope.as_object_mut().expect("an object").remove("scope");
        let jwt = house.issuer.jwt(&no_scope);
        assert_eq!(house.call(method, "b2b", path, &jwt).status, 403, "{method} {path} without scope");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_are_not_of_this_issuer_for_this_tenant_and_now_are_refused() {
    let mut house = House::open().await;
    let good = house.claims("acme", ALL_SCOPES);
    let other_tenant = house.audience("b2b");
    let audience = house.audience("acme");
    let with = |member: &str, value: Value| {
        let mut claims = good.clone();
        claims[member] = value;
        claims
    };
    let without = |member: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().expect("an object").remove(member);
        claims
    };
    for accepted in [
        good.clone(),
        with("aud", json!(["https://other.example/", audience])),
        with("nbf", json!(now() - 5)),
        // Clocks differ.
        with("nbf", json!(now() + 10)),
        with("exp", json!(now() - 10)),
        with("exp", json!(now() as f64 + 0.5)),
    ] {
        let jwt = house.issuer.jwt(&accepted);
        assert_eq!(house.call("GET", "acme", LIST, &jwt).status, 200, "{accepted}");
    }
    for refused in [
        with("exp", json!(now() - 60)),
        with("exp", json!("tomorrow")),
        without("exp"),
        with("nbf", json!(now() + 60)),
        with("iss", json!("https://issuer.example")),
        with("iss", json!("https://ISSUER.example/")),
        with("iss", json!(["https://issuer.example/"])),
        without("iss"),
        with("aud", json!(audience.trim_end_matches('/'))),
        with("aud", json!(format!("{audience}keys"))),
        with("aud", json!(audience.to_uppercase())),
        with("aud", json!(other_tenant)),
        with("aud", json!(format!("https://{DOMAIN}/api/v2/"))),
        with("aud", json!([])),
        with("aud", json!({ "aud": audience })),
        without("aud"),
        with("scope", json!(ALL_SCOPES.split(' ').collect::<Vec<_>>())),
        json!([good]),
        json!("claims"),
    ] {
        let jwt = house.issuer.jwt(&refused);
        assert_refused(&house.call("GET", "acme", LIST, &jwt), &refused.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_by_a_key_of_the_issuer_with_the_algorithm_of_that_key() {
    let mut house = House::open().await;
    let claims = house.claims("acme", ALL_SCOPES);
    let es256 = json!({"alg": "ES256", "kid": "issuer-1"});
    let with = |member: &str, value: Value| {
        let mut header = es256.clone();
        header[member] = value;
        header
    };
    for accepted in [
        es256.clone(),
        json!({ "alg": "ES256" }),
        with("typ", json!("JWT")),
        with("typ", json!("application/at+jwt")),
        // Not followed: neither fetched nor believed.
        with("jku", json!(format!("{}/acme/.well-known/jwks.json", house.server.public()))),
        with("x5u", json!("https://attacker.example/cert.pem")),
    ] {
        let jwt = house.issuer.jwt_with(&accepted, &claims);
        assert_eq!(house.call("GET", "acme", LIST, &jwt).status, 200, "{accepted}");
    }

    let attacker = Issuer::new();
    let mut forged = vec![
        attacker.jwt(&claims),
        attacker.jwt_with(&with("jwk", attacker.jwk()), &claims),
        attacker.jwt_with(&json!({"alg": "ES256", "kid": "attacker", "jwk": attacker.jwk()}), &claims),
        attacker.jwt_with(&with("jku", json!("https://attacker.example/jwks.json")), &claims),
        attacker.jwt_with(&with("x5c", json!(["AAAA"])), &claims),
        house.issuer.jwt_with(&with("kid", json!("issuer-2")), &claims),
        house.issuer.jwt_with(&with("kid", json!(1)), &claims),
        house.issuer.jwt_with(&with("crit", json!(["exp"])), &claims),
        house.issuer.jwt_with(&with("crit", json!([])), &claims),
        house.issuer.jwt_with(&with("typ", json!("logout+jwt")), &claims),
        house.issuer.jwt_with(&with("typ", json!("dpop+jwt")), &claims),
        house.issuer.jwt_with(&json!({ "kid": "issuer-1" }), &claims),
    ];
    for alg in ["none", "None", "RS256", "PS256", "ES384", "EdDSA", "HS256", "es256", ""] {
        forged.push(house.issuer.jwt_with(&with("alg", json!(alg)), &claims));
        let unsigned = signing_input(&with("alg", json!(alg)), &claims);
        forged.push(format!("{unsigned}."));
    }
    let public_jwk = house.issuer.jwk().to_string().into_bytes();
    for secret in [house.issuer.public_der(), public_jwk, Vec::new()] {
        let input = signing_input(&with("alg", json!("HS256")), &claims);
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), input.as_bytes());
        forged.push(format!("{input}.{}", URL_SAFE_NO_PAD.encode(mac)));
    }
    let good = house.issuer.jwt(&claims);
    let (input, signature) = good.rsplit_once('.').expect("a JWT");
    let (header, payload) = input.split_once('.').expect("a JWT");
    let more = house.claims("acme", &format!("{ALL_SCOPES} more"));
    let other_payload = signing_input(&es256, &more).rsplit_once('.').expect("two parts").1.to_owned();
    forged.extend([
        format!("{header}.{other_payload}.{signature}"),
        format!("{input}."),
        input.to_owned(),
        format!("{good}.{signature}"),
        format!("{header}.{payload}.{}", "A".repeat(86)),
        format!("{good}="),
        "garbage".to_owned(),
        "..".to_owned(),
        "e30.e30.".to_owned(),
        "a.b.c".to_owned(),
    ]);
    let long = house.claims("acme", &format!("{ALL_SCOPES} {}", "x".repeat(9000)));
    forged.push(house.issuer.jwt(&long));
    for jwt in forged {
        assert_refused(&house.call("GET", "acme", LIST, &jwt), &jwt);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_are_believed_each_with_its_one_algorithm() {
    let mut house = House::open().await;
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let other_rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
    let edwards = Ed25519KeyPair::generate().expect("a key");
    let jwks = json!({"keys": [
        rsa_jwk("plain", &rsa),
        rsa_jwk("pss", &other_rsa).as_object_mut().map(|jwk| { jwk.insert("alg".into(), json!("PS384")); jwk.clone() }),
        {"kty": "OKP", "crv": "Ed25519", "kid": "edwards", "x": URL_SAFE_NO_PAD.encode(edwards.public_key().as_ref())},
        {"kty": "RSA", "kid": "plain", "use": "enc", "n": "AQAB", "e": "AQAB"},
    ]});
    fs::write(house.installation.dir().join("jwks.json"), jwks.to_string()).expect("the JWKS is written");
    let claims = house.claims("acme", ALL_SCOPES);
    let rsa_signature = |key: &RsaKeyPair, encoding: &'static dyn RsaEncoding, input: &str| {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(encoding, &SystemRandom::new(), input.as_bytes(), &mut signature).expect("a signature");
        signature
    };
    let jwt = |kid: Option<&str>, alg: &str, sign: &dyn Fn(&str) -> Vec<u8>| {
        let header = kid.map_or(json!({ "alg": alg }), |kid| json!({"alg": alg, "kid": kid}));
        let input = signing_input(&header, &claims);
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(sign(&input)))
    };
    let plain = |encoding| move |input: &str| rsa_signature(&rsa, encoding, input);
    let pss = |input: &str| rsa_signature(&other_rsa, &RSA_PSS_SHA384, input);
    let by_edwards = |input: &str| edwards.sign(input.as_bytes()).as_ref().to_vec();
    let rs256 = plain(&RSA_PKCS1_SHA256);
    wait_for(&mut house, &jwt(Some("plain"), "RS256", &rs256), 200);
    for accepted in [
        jwt(None, "RS256", &rs256),
        jwt(Some("pss"), "PS384", &pss),
        jwt(Some("edwards"), "EdDSA", &by_edwards),
        jwt(None, "EdDSA", &by_edwards),
    ] {
        assert_eq!(house.call("GET", "acme", LIST, &accepted).status, 200, "{accepted}");
    }
    for refused in [
        jwt(Some("plain"), "PS384", &pss),
        jwt(Some("pss"), "RS256", &rs256),
        // Good signatures by a trusted key, with an algorithm that is not the key's.
        jwt(Some("pss"), "RS384", &|input| rsa_signature(&other_rsa, &RSA_PKCS1_SHA384, input)),
        jwt(None, "RS384", &|input| rsa_signature(&other_rsa, &RSA_PKCS1_SHA384, input)),
        jwt(Some("edwards"), "RS256", &rs256),
        house.issuer.jwt(&claims),
    ] {
        assert_refused(&house.call("GET", "acme", LIST, &refused), &refused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwt_that_keyward_signed_for_a_tenant_is_refused_even_if_its_key_is_trusted() {
    let mut house = House::open().await;
    let mut own: Value = get(&house.server.jwks_uri("acme")).json();
    own["keys"].as_array_mut().expect("keys").push(house.issuer.jwk());
    // As an operator might who took the wrong JWKS, and in a spelling that is not Keyward's.
    for key in own["keys"].as_array_mut().expect("keys") {
        key.as_object_mut().expect("a key").remove("kid");
    }
    fs::write(house.installation.dir().join("jwks.json"), own.to_string()).expect("the JWKS is written");
    let no_kid = house.issuer.jwt_with(&json!({ "alg": "ES256" }), &house.claims("acme", ALL_SCOPES));
    let other_kid = json!({"alg": "ES256", "kid": "whatever"});
    let read_again = house.issuer.jwt_with(&other_kid, &house.claims("acme", ALL_SCOPES));
    wait_for(&mut house, &read_again, 200);
    assert_eq!(house.call("GET", "acme", LIST, &no_kid).status, 200);

    let issuer = format!("{}/acme", house.server.public());
    for algorithm in ["ES256", "EdDSA"] {
        // SignJwt refuses another issuer's name; Sign signs whatever it is given.
        let header = json!({"alg": algorithm, "typ": "at+jwt"});
        let input = signing_input(&header, &house.claims("acme", ALL_SCOPES));
        let signature = house.sign("acme", algorithm, input.as_bytes()).await;
        let jwt = format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature));
        for tenant in ["acme", "b2b"] {
            assert_refused(&house.call("GET", tenant, LIST, &jwt), &jwt);
        }
        let claims = json!({"iss": issuer, "aud": house.audience("acme"), "scope": ALL_SCOPES, "exp": now() + 60});
        let signed = house.clients.sign_jwt("acme", algorithm, claims.to_string().into_bytes()).await.expect("signed");
        assert_refused(&house.call("GET", "acme", LIST, &signed.jwt), &signed.jwt);
    }
    let warned = house.server.log().iter().any(|line| line.contains("whose key is a tenant's"));
    assert!(warned, "the operator is not told");
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_tenant_exists_is_told_only_to_those_whose_jwt_is_for_it() {
    let mut house = House::open().await;
    let other = house.jwt("b2b", ALL_SCOPES);
    let exists = house.call("GET", "acme", LIST, &other);
    let unknown = house.call("GET", "nobody", LIST, &other);
    assert_refused(&exists, "another tenant's JWT");
    assert_eq!((exists.status, &exists.body), (unknown.status, &unknown.body));
    assert_eq!(exists.header("www-authenticate"), unknown.header("www-authenticate"));
    for name in ["ACME", "acme.", "-", "..%2facme", "acme%00"] {
        assert_eq!(house.call("GET", name, LIST, &other).body, exists.body, "{name}");
    }
    let on_domain = |host: &str| call_on(&house, host, &other);
    assert_eq!(on_domain(DOMAIN).body, on_domain("nobody.example.com").body);
    assert_eq!(on_domain(DOMAIN).status, 401);

    let own = house.jwt("nobody", ALL_SCOPES);
    let answer = house.call("GET", "nobody", LIST, &own);
    assert_eq!(answer.status, 404, "its caller may know: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_domain_has_its_own_audience_however_the_host_is_written() {
    let house = House::open().await;
    let mut claims = house.claims("acme", "read:signing_keys");
    claims["aud"] = json!(format!("https://{DOMAIN}/api/v2/"));
    let jwt = house.issuer.jwt(&claims);
    let expected = {
        let url = format!("{}/acme/api/v2{LIST}", house.server.management());
        let jwt = house.jwt("acme", "read:signing_keys");
        send("GET", &url, &[("authorization", &format!("Bearer {jwt}"))]).body
    };
    for host in [DOMAIN, "login.example.com:8443", "LOGIN.Example.COM", "login.example.com.", "Login.example.com.:443"]
    {
        let answer = call_on(&house, host, &jwt);
        assert_eq!((answer.status.as_u16(), &answer.body), (200, &expected), "{host}");
    }
    for host in ["example.com", "xlogin.example.com", "login.example.com.evil.example", "acme", "127.0.0.1:80"] {
        assert_eq!(call_on(&house, host, &jwt).status, 401, "{host}");
    }
    // The canonical path's JWT is not the domain's, nor the other way round.
    assert_eq!(call_on(&house, DOMAIN, &house.jwt("acme", ALL_SCOPES)).status, 401);
    let url = format!("{}/acme/api/v2{LIST}", house.server.management());
    let headers = [("authorization", format!("Bearer {jwt}")), ("host", DOMAIN.to_owned())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(send("GET", &url, &headers).status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_jwt_there_is_a_challenge_and_no_error_in_it() {
    let mut house = House::open().await;
    let url = format!("{}/acme/api/v2{LIST}", house.server.management());
    let jwt = house.jwt("acme", ALL_SCOPES);
    for headers in [
        vec![],
        vec![("authorization", "Bearer".to_owned())],
        vec![("authorization", "Bearer ".to_owned())],
        vec![("authorization", format!("Basic {jwt}"))],
        vec![("authorization", jwt.clone())],
        vec![("x-authorization", format!("Bearer {jwt}"))],
        vec![("cookie", format!("access_token={jwt}"))],
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = send("GET", &url, &headers);
        house.description.hold("GET", LIST, &answer);
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.header("www-authenticate"), r#"Bearer realm="keyward""#);
    }
    assert_eq!(send("GET", &format!("{url}?access_token={jwt}"), &[]).status, 401, "URLs are logged");
    let bearer = format!("bearer {jwt}");
    assert_eq!(send("GET", &url, &[("authorization", &bearer)]).status, 200, "the scheme has no case");
    let twice = send("GET", &url, &[("authorization", &bearer), ("authorization", &bearer)]);
    house.description.hold("GET", LIST, &twice);
    assert_eq!(twice.status, 400, "{twice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jwks_is_read_again_when_it_changes_and_kept_when_it_is_bad() {
    let mut house = House::open().await;
    let file = house.installation.dir().join("jwks.json");
    let (old, new) = (house.jwt("acme", ALL_SCOPES), Issuer::new());
    let by_new = new.jwt(&house.claims("acme", ALL_SCOPES));
    assert_eq!(house.call("GET", "acme", LIST, &by_new).status, 401);

    for bad in ["", "{", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#] {
        let told = house.server.log().len();
        fs::write(&file, bad).expect("the JWKS is written");
        wait_until("it is told", || {
            let log = house.server.log();
            log[told..].iter().any(|line| line.contains("management.jwks_file") && line.contains("the old one stays"))
        });
        assert!(!house.server.log().iter().any(|line| line.contains("c2VjcmV0")), "a secret is in the log");
        assert_eq!(house.call("GET", "acme", LIST, &old).status, 200, "after {bad:?}");
    }
    fs::remove_file(&file).expect("the JWKS is removed");
    assert_eq!(house.call("GET", "acme", LIST, &old).status, 200, "after its removal");

    fs::write(&file, new.jwks().to_string()).expect("the JWKS is written");
    wait_for(&mut house, &by_new, 200);
    assert_eq!(house.call("GET", "acme", LIST, &old).status, 401, "the old key is not trusted any more");
}

fn rsa_jwk(kid: &str, key: &RsaKeyPair) -> Value {
    let encode = |octets: &[u8]| URL_SAFE_NO_PAD.encode(octets);
    let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
    let [n, e] = [n, e].map(|number| encode(number.big_endian_without_leading_zero()));
    json!({"kty": "RSA", "kid": kid, "use": "sig", "n": n, "e": e})
}

fn call_on(house: &House, host: &str, jwt: &str) -> Answer {
    let url = format!("{}/api/v2{LIST}", house.server.management());
    send("GET", &url, &[("host", host), ("authorization", &format!("Bearer {jwt}"))])
}

fn assert_refused(answer: &Answer, what: &str) {
    assert_eq!(answer.status, 401, "{what}: {answer:?}");
    let challenge = answer.header("www-authenticate");
    assert!(
        challenge.starts_with(r#"Bearer realm="keyward", error="invalid_token", error_description=""#),
        "{challenge}"
    );
}

fn wait_for(house: &mut House, jwt: &str, status: u16) {
    wait_until("the JWKS is read again", || house.call("GET", "acme", LIST, jwt).status == status);
}
