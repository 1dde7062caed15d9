//! The JWKS of an issuer whose JWTs are believed.
#![no_main]

use keyward::auth::TrustedKeys;
use keyward::jose::PRIVATE_MEMBERS;
use keyward_fuzz::SECRET;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|json: &[u8]| {
    match TrustedKeys::parse(json) {
        Err(problem) => assert!(!problem.is_empty() && !problem.contains(SECRET), "{problem}"),
        Ok(_) => {
            let set: Value = serde_json::from_slice(json).expect("a JWKS is JSON");
            let keys = set["keys"].as_array().expect("a JWKS has keys");
            assert!((1..=32).contains(&keys.len()));
            for key in keys {
                let is_private = |member: &&str| key.get(member).is_some();
                assert!(!PRIVATE_MEMBERS.iter().any(is_private), "a private or symmetric key is trusted");
            }
        }
    }
});
