//! Bearer JWTs. What the fuzzer writes is offered as it stands, and once more after the trusted key has signed it: header and
//! claims up to the first line end and after it. So both sides of the signature are reached.
#![no_main]

use std::sync::{Arc, LazyLock};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use keyward::auth::{Bearer, IssuerKeys, Ours, TrustedKeys};
use keyward::domain::{Algorithm, Principal, Timestamp};
use keyward::jose::{Jws, encode_segment};
use keyward_fuzz::SECRET;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use tokio::sync::watch;

const ISSUER: &str = "https://issuer.example/";
const AUDIENCE: &str = "https://keyward.example/api/v2/";
const NOW: i64 = 2_000_000_000;
const SKEW_SECS: f64 = 30.0;

static KEY: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of 32 octets"));

static BEARER: LazyLock<Bearer> = LazyLock::new(|| {
    let x = encode_segment(KEY.public_key().as_ref());
    let jwks = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k", "use": "sig"}]});
    let keys = TrustedKeys::parse(jwks.to_string().as_bytes()).expect("a JWKS");
    let keys = IssuerKeys::File(watch::Sender::new(Arc::new(keys)).subscribe());
    Bearer::new(ISSUER.to_owned(), &Algorithm::ALL, keys)
});

fuzz_target!(|text: &str| {
    let now = Timestamp::from_second(NOW).expect("a time");
    let verify =
        |jwt: &str, is_served: bool| BEARER.verify(jwt, Some(AUDIENCE), now, |_| Ours::as_seen(is_served, false));

    // Nobody but the issuer signs. (The fuzzer cannot: it would have broken Ed25519.)
    let refused = verify(text, false).expect_err("a JWT is believed that the issuer did not sign");
    assert!(!refused.to_string().contains(SECRET));
    if let Ok(jws) = Jws::parse(text) {
        assert!(text.starts_with(jws.signing_input) && text.bytes().filter(|octet| *octet == b'.').count() == 2);
    }

    let Some((header, claims)) = text.split_once('\n') else { return };
    let signing_input = format!("{}.{}", encode_segment(header.as_bytes()), encode_segment(claims.as_bytes()));
    let mut signature = KEY.sign(signing_input.as_bytes()).as_ref().to_vec();
    let jwt = format!("{signing_input}.{}", encode_segment(&signature));
    match verify(&jwt, false) {
        Err(refused) => assert!(!refused.to_string().contains(SECRET)),
        Ok(access) => {
            assert!(jwt.len() <= 8192);
            assert_is_well_headed(header);
            // The other reader gives up where a surrogate stands alone in a member that nobody reads.
            let Ok(claims) = serde_json::from_str(claims) else { return };
            let scope = assert_is_meant_for_us(&claims);
            let subject = claims["sub"].as_str().expect("a subject").to_owned();
            assert!((1..=255).contains(&subject.len()));
            let principal = Principal::Jwt { issuer: ISSUER.to_owned(), subject };
            assert_eq!((&access.principal, principal.to_string().parse().as_ref()), (&principal, Ok(&principal)));
            for name in ["read:signing_keys", "update:signing_keys"] {
                assert_eq!(access.has(name), scope.split(' ').any(|granted| granted == name));
            }
            // The same JWT with one bit changed, and with a key that is a tenant's.
            signature[text.len() % 64] ^= 1;
            assert!(verify(&format!("{signing_input}.{}", encode_segment(&signature)), false).is_err());
            assert!(verify(&jwt, true).is_err());
        }
    }
});

fn assert_is_well_headed(header: &str) {
    let header: Value = serde_json::from_str(header).expect("a believed header is JSON");
    assert_eq!(header["alg"], "EdDSA");
    assert!(header.get("crit").is_none(), "an extension was demanded");
    assert!(header.get("kid").is_none_or(|kid| kid == "k"), "another key was named");
}

/// The scopes of claims that were believed.
fn assert_is_meant_for_us(claims: &Value) -> String {
    assert_eq!(claims["iss"], ISSUER);
    let now = NOW as f64;
    assert!(claims["exp"].as_f64().is_some_and(|exp| now < exp + SKEW_SECS), "expired");
    assert!(claims.get("nbf").is_none_or(|nbf| nbf.as_f64().is_some_and(|nbf| nbf - SKEW_SECS <= now)), "not yet");
    let is_for_us = match &claims["aud"] {
        Value::Array(all) => all.iter().any(|one| one == AUDIENCE),
        one => one == AUDIENCE,
    };
    assert!(is_for_us, "for somebody else");
    claims["scope"].as_str().unwrap_or_default().to_owned()
}
