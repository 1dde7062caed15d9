//! What every implementation of `Token` does, for every algorithm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::{digest, signature};
use keyward::domain::{Algorithm, Curve, Digest, Family, ObjectId, ParameterSet, PublicKey};
use keyward::token::{Found, KeyRef, KeySpec, SignInput, Token, TokenError, TokenKey};

/// Runs the whole contract with one algorithm.
pub(crate) async fn holds(token: &dyn Token, algorithm: Algorithm) {
    let identity = token.probe().await.unwrap();

    // Nothing is there before, and a pair after.
    let object = fresh_object();
    assert_eq!(token.find(object, algorithm).await.unwrap(), Found::Absent);
    let made = token.generate(object, spec(algorithm)).await.unwrap();
    assert!(made.protection.holds(), "R1: {:?}", made.protection);
    assert_eq!(made.protection.token_serial, identity.serial);
    assert_eq!(token.find(object, algorithm).await.unwrap(), Found::Key(made.clone()));

    // It signs, in order, and what it signs verifies.
    let key = Arc::new(KeyRef { object, algorithm, public: made.public.clone(), tenant: None });
    let messages: Vec<String> = (0..5).map(|number| format!("message {number}")).collect();
    let inputs = messages.iter().map(|message| input(algorithm, message.as_bytes())).collect();
    let signatures = token.sign(&key, inputs, soon()).await.unwrap();
    assert_eq!(signatures.len(), messages.len());
    if algorithm.has_public_keys() {
        for (message, signature) in messages.iter().zip(&signatures) {
            verify(algorithm, made.public.as_ref(), message.as_bytes(), signature).unwrap();
        }
        verify(algorithm, made.public.as_ref(), b"message 0", &signatures[1]).unwrap_err();
    }
    assert!(token.sign(&key, Vec::new(), soon()).await.unwrap().is_empty());

    // Late is late, and nothing is signed over what the algorithm does not sign.
    let late = token.sign(&key, vec![input(algorithm, b"late")], Instant::now()).await;
    assert!(matches!(late, Err(TokenError::Late)), "{late:?}");
    let odd = token.sign(&key, vec![SignInput::Digest(vec![0; 20])], soon()).await;
    assert!(matches!(odd, Err(TokenError::Unsupported(_))), "{odd:?}");

    let second = fresh_object();
    let other = token.generate(second, spec(algorithm)).await.unwrap();
    if algorithm.has_public_keys() {
        a_pair_is_told_from_others(token, &key, &other, second).await;
    } else {
        a_secret_makes_its_own_macs(token, &key, second).await;
    }

    // What is destroyed is absent, can be destroyed again, and signs no more: neither what was used nor what was not.
    let unused = Arc::new(KeyRef { object: second, algorithm, public: other.public, tenant: None });
    for key in [&unused, &key] {
        token.destroy(key.object).await.unwrap();
        token.destroy(key.object).await.unwrap();
        assert_eq!(token.find(key.object, algorithm).await.unwrap(), Found::Absent);
        let gone = token.sign(key, vec![input(algorithm, b"gone")], soon()).await;
        assert!(matches!(gone, Err(TokenError::Unavailable(_))), "R8: {gone:?}");
    }
    assert_eq!(token.probe().await.unwrap(), identity);
}

/// `other` is what stands under `second`.
async fn a_pair_is_told_from_others(token: &dyn Token, key: &Arc<KeyRef>, other: &TokenKey, second: ObjectId) {
    let KeyRef { object, algorithm, ref public, .. } = **key;
    // Another key's public half is noticed, before and after the right one was used.
    for (object, public) in [(object, &other.public), (second, public)] {
        let wrong = Arc::new(KeyRef { object, algorithm, public: public.clone(), tenant: None });
        let refused = token.sign(&wrong, vec![input(algorithm, b"wrong")], soon()).await;
        assert!(matches!(refused, Err(TokenError::Mismatch(_))), "{refused:?}");
    }
    token.sign(key, vec![input(algorithm, b"still right")], soon()).await.unwrap();

    // A key of another kind is noticed too: the token itself might sign with it.
    let (kind, unlike) = if algorithm.is_rsa() { (Algorithm::ES256, "RSA") } else { (Algorithm::RS256, "not RSA") };
    let confused = Arc::new(KeyRef { object, algorithm: kind, public: public.clone(), tenant: None });
    let refused = token.sign(&confused, vec![input(kind, b"confused")], soon()).await;
    assert!(matches!(refused, Err(TokenError::Mismatch(_))), "{kind} with a key that is {unlike}: {refused:?}");
    assert_eq!(token.find(object, kind).await.unwrap(), Found::Remains);
}

/// Under `second` stands another secret.
async fn a_secret_makes_its_own_macs(token: &dyn Token, key: &Arc<KeyRef>, second: ObjectId) {
    let other = Arc::new(KeyRef { object: second, algorithm: key.algorithm, public: None, tenant: None });
    let mac = async |key: &Arc<KeyRef>, message: &[u8]| {
        token.sign(key, vec![input(key.algorithm, message)], soon()).await.unwrap().remove(0)
    };
    assert_eq!(mac(key, b"message").await, mac(key, b"message").await);
    assert_ne!(mac(key, b"message").await, mac(key, b"another").await);
    assert_ne!(mac(key, b"message").await, mac(&other, b"message").await);
    // A secret is no half of a pair.
    assert_eq!(token.find(key.object, Algorithm::RS256).await.unwrap(), Found::Remains);
}

/// An id that no other object has.
pub(crate) fn fresh_object() -> ObjectId {
    let mut octets = [0; 16];
    getrandom::fill(&mut octets).unwrap();
    ObjectId::new(octets)
}

/// The quickest key of the algorithm.
pub(crate) fn spec(algorithm: Algorithm) -> KeySpec {
    KeySpec { algorithm, rsa_bits: 2048 }
}

/// Far enough for anything.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// What the algorithm signs for `message`.
pub(crate) fn input(algorithm: Algorithm, message: &[u8]) -> SignInput {
    let digest = match algorithm.digest() {
        None => return SignInput::Message(message.to_vec()),
        Some(Digest::Sha256) => &digest::SHA256,
        Some(Digest::Sha384) => &digest::SHA384,
        Some(Digest::Sha512) => &digest::SHA512,
    };
    SignInput::Digest(digest::digest(digest, message).as_ref().to_vec())
}

/// Verifies as a client would: with another library, from the members of the JWK.
pub(crate) fn verify(
    algorithm: Algorithm,
    public: Option<&PublicKey>,
    message: &[u8],
    signature: &[u8],
) -> Result<(), aws_lc_rs::error::Unspecified> {
    match public.expect("a key pair") {
        PublicKey::Rsa { n, e } => {
            let parameters = match algorithm {
                Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                Algorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                Algorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                Algorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
                Algorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
                Algorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
                other => panic!("{other} has no RSA keys"),
            };
            signature::RsaPublicKeyComponents { n: &n.0, e: &e.0 }.verify(parameters, message, signature)
        }
        PublicKey::Ec { crv, x, y } => {
            let verification = match crv {
                Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED,
                Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED,
                Curve::P521 => &signature::ECDSA_P521_SHA512_FIXED,
            };
            assert_eq!(algorithm.family(), Family::Ecdsa(*crv));
            let point = [&[4], x.0.as_slice(), &y.0].concat();
            signature::UnparsedPublicKey::new(verification, point).verify(message, signature)
        }
        PublicKey::Ed25519 { x, .. } => {
            signature::UnparsedPublicKey::new(&signature::ED25519, &x.0).verify(message, signature)
        }
        PublicKey::MlDsa { alg, r#pub } => {
            let verification = match alg {
                ParameterSet::MlDsa44 => &signature::ML_DSA_44,
                ParameterSet::MlDsa65 => &signature::ML_DSA_65,
                ParameterSet::MlDsa87 => &signature::ML_DSA_87,
            };
            signature::UnparsedPublicKey::new(verification, &r#pub.0).verify(message, signature)
        }
    }
}
