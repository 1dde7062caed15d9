//! Checkpoints as signed notes: as they come, and after the log's key has signed what stands before the last empty line.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use keyward::domain::{Curve, Octets, PublicKey};
use keyward::tlog::{Checkpoint, Log, LogKey, Untrusted};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<(EcdsaKeyPair, LogKey)> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let public = PublicKey::Ec { crv: Curve::P256, x: Octets(x.to_vec()), y: Octets(y.to_vec()) };
    (pair, LogKey::new(&public).expect("a key for ES256"))
});

fuzz_target!(|input: &str| {
    let (pair, key) = &*KEY;
    // Nobody else signs for this log, and what is foreign is told apart from what is forged.
    assert!(Checkpoint::verified(input, key).is_err());

    for log in Log::ALL {
        let origin = key.origin(log);
        let text = format!("{origin}\n{input}");
        let signature = pair.sign(&SystemRandom::new(), text.as_bytes()).expect("a signature");
        let id =
            key.verifier_key(log).split('+').nth(1).and_then(|id| u32::from_str_radix(id, 16).ok()).expect("an id");
        let line = keyward_fuzz::base64(&[&id.to_be_bytes()[..], signature.as_ref()].concat());
        let note = |text: &str| format!("{text}\n\u{2014} {origin} {line}\n");
        match Checkpoint::verified(&note(&text), key) {
            Ok(checkpoint) => {
                assert_eq!(checkpoint.origin, origin);
                assert!(text.starts_with(&checkpoint.text()), "what is believed is not what was signed");
                // Another size under the same signature.
                let forged = Checkpoint { size: checkpoint.size ^ 1, ..checkpoint.clone() }.text();
                let forged = note(&text.replacen(&checkpoint.text(), &forged, 1));
                assert_eq!(Checkpoint::verified(&forged, key), Err(Untrusted::Signature));
            }
            Err(Untrusted::Malformed(_) | Untrusted::Foreign(_) | Untrusted::Signature) => {}
        }
    }
});
