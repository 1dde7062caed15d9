//! A JWK Set of keys that a tenant brings itself, which will be published.
#![no_main]

use std::collections::HashSet;

use keyward::domain::CustomKey;
use keyward::jose::{JwkProblem, PRIVATE_MEMBERS, jwks_json, parse_custom_keys, thumbprint};
use keyward::x509;
use keyward_fuzz::SECRET;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &str| {
    match parse_custom_keys(json) {
        Ok(keys) => assert_can_be_published(&keys),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused for no reason");
            for JwkProblem { member, problem } in problems {
                // The name of a member that is not known is told, shortened; a value never is.
                assert!(member.len() <= 128 && !problem.is_empty() && !problem.contains(SECRET), "{member} {problem}");
            }
        }
    }
});

fn assert_can_be_published(keys: &[CustomKey]) {
    assert!((1..=10).contains(&keys.len()));
    let published = jwks_json(&[], keys);
    let json = std::str::from_utf8(&published).expect("JSON is UTF-8");
    assert_eq!(parse_custom_keys(json).as_deref(), Ok(keys), "what is published is not what was taken");

    let shown: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let mut kids = HashSet::new();
    for jwk in shown["keys"].as_array().expect("a set") {
        let jwk = jwk.as_object().expect("a JWK");
        assert!(PRIVATE_MEMBERS.iter().all(|member| !jwk.contains_key(*member)), "a private member is published");
        assert_eq!(jwk["use"], "sig");
        assert!(kids.insert(jwk["kid"].as_str().expect("a kid").to_owned()), "a kid stands for two keys");
    }
    for key in keys {
        assert_eq!(thumbprint(&key.public).as_str().len(), 43);
        assert!(x509::public_key_pem(&key.public).starts_with("-----BEGIN PUBLIC KEY-----"));
    }
}
