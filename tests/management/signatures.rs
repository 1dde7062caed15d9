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

use crate::common::http::get;
use crate::common::{Issuer, signing_input};
use crate::house::{ALL_SCOPES, House, assert_refused, now, wait_until};

const LIST: &str = "/keys/signing";

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

fn wait_for(house: &mut House, jwt: &str, status: u16) {
    wait_until("the JWKS is read again", || house.call("GET", "acme", LIST, jwt).status == status);
}
