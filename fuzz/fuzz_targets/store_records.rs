//! Documents of the store, which is not trusted (R15): what can be read is shown and published without harm. A record whose
//! seal does not fit is refused before this; here the record is one that somebody could seal.
#![no_main]

use keyward::domain::{Keyring, Tenant, Timestamp};
use keyward::jose::{Jwk, Verifier, jwks_json};
use keyward::x509;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|document: &str| {
    let now = Timestamp::from_second(2_000_000_000).expect("a time");
    if let Ok(keyring) = serde_json::from_str::<Keyring>(document) {
        let written = serde_json::to_string(&keyring).expect("it was JSON");
        assert_eq!(serde_json::from_str::<Keyring>(&written).ok().as_ref(), Some(&keyring), "it is read as another");
        for key in &keyring.keys {
            // A key that is none of its algorithm verifies nothing, and so never signs (R11).
            let usable = Verifier::of(keyring.algorithm, key.public.as_ref()).is_ok();
            if let (Some(public), true) = (&key.public, usable) {
                assert!(x509::public_key_pem(public).starts_with("-----BEGIN PUBLIC KEY-----"));
            }
        }
        let jwks: Vec<Jwk<'_>> = keyring.keys.iter().filter_map(|key| Jwk::new(keyring.algorithm, key)).collect();
        assert!(serde_json::from_slice::<serde_json::Value>(&jwks_json(&jwks, &[])).is_ok());
    }
    if let Ok(tenant) = serde_json::from_str::<Tenant>(document) {
        let written = serde_json::to_string(&tenant).expect("it was JSON");
        assert_eq!(serde_json::from_str::<Tenant>(&written).ok().as_ref(), Some(&tenant), "it is read as another");
        assert!((1..=64).contains(&tenant.certificate_name().len()));
        if tenant.policy.check().is_ok() {
            let bound = tenant.binding_policy(now);
            assert!(tenant.policy_floor.is_some() || bound == tenant.policy);
        }
    }
});
