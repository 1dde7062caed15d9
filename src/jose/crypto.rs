use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use aws_lc_rs::{constant_time, digest as lc_digest};
use rsa::pkcs1::EncodeRsaPublicKey as _;
use rsa::{BigUint, RsaPublicKey};

use crate::domain::{Algorithm, Digest, Family, PublicKey};

/// Longest RSA modulus that signatures are verified with: clients take no more.
const RSA_BITS_MAX: usize = 8192;

/// A public key that is not of its algorithm, or cannot be a key at all.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the public key is not a valid key for {0}")]
pub struct BadPublicKey(Algorithm);

/// Checks signatures of one key and algorithm. The key is parsed once.
#[derive(Debug)]
pub struct Verifier {
    algorithm: Algorithm,
    key: ParsedPublicKey,
}

impl Verifier {
    /// A verifier for signatures of `algorithm` by `public`.
    ///
    /// # Errors
    /// The key is of another type or curve, is no valid key, or is weaker than 2048 bits.
    pub fn new(algorithm: Algorithm, public: &PublicKey) -> Result<Self, BadPublicKey> {
        let bad = BadPublicKey(algorithm);
        let octets = match (algorithm.family(), public) {
            (Family::RsaPkcs1 | Family::RsaPss, PublicKey::Rsa { n, e }) => {
                let (n, e) = (BigUint::from_bytes_be(&n.0), BigUint::from_bytes_be(&e.0));
                let key = RsaPublicKey::new_with_max_size(n, e, RSA_BITS_MAX);
                key.ok().and_then(|key| key.to_pkcs1_der().ok()).map(|der| der.as_bytes().to_vec())
            }
            (Family::Ecdsa(curve), PublicKey::Ec { crv, x, y }) if curve == *crv => Some([&[4], &*x.0, &*y.0].concat()),
            (Family::Ed25519, PublicKey::Ed25519 { x, .. }) => Some(x.0.clone()),
            (Family::MlDsa(set), PublicKey::MlDsa { alg, r#pub }) => {
                // The length too: the library takes a SubjectPublicKeyInfo as well.
                (set == *alg && r#pub.0.len() == set.public_key_len()).then(|| r#pub.0.clone())
            }
            _ => None,
        };
        let key = octets.zip(verification(algorithm));
        let key = key.and_then(|(octets, verification)| ParsedPublicKey::new(verification, octets).ok());
        key.map(|key| Self { algorithm, key }).ok_or(bad)
    }

    /// The same for a key that has no public half if the algorithm has none.
    ///
    /// # Errors
    /// As [`Verifier::new`].
    pub fn of(algorithm: Algorithm, public: Option<&PublicKey>) -> Result<Option<Self>, BadPublicKey> {
        match public {
            None if !algorithm.has_public_keys() => Ok(None),
            None => Err(BadPublicKey(algorithm)),
            Some(public) => Self::new(algorithm, public).map(Some),
        }
    }

    /// Whether `signature` (ECDSA: r || s) is one over `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }

    /// Whether `signature` (ECDSA: r || s) is one over the message with this digest. Never for EdDSA and ML-DSA.
    #[must_use]
    pub fn verify_digest(&self, digest: &[u8], signature: &[u8]) -> bool {
        let Some(digest_algorithm) = self.algorithm.digest().map(lc_algorithm) else { return false };
        lc_digest::Digest::import_less_safe(digest, digest_algorithm)
            .and_then(|digest| self.key.verify_digest_sig(&digest, signature))
            .is_ok()
    }
}

/// Whether two MACs are the same, in a time that tells nothing of where they differ.
#[must_use]
pub fn same_mac(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// The digest of `message`.
#[must_use]
pub fn digest(digest: Digest, message: &[u8]) -> Vec<u8> {
    lc_digest::digest(lc_algorithm(digest), message).as_ref().to_vec()
}

fn lc_algorithm(digest: Digest) -> &'static lc_digest::Algorithm {
    match digest {
        Digest::Sha256 => &lc_digest::SHA256,
        Digest::Sha384 => &lc_digest::SHA384,
        Digest::Sha512 => &lc_digest::SHA512,
    }
}

/// How signatures are verified; none for HS256, whose MAC the token alone can make again.
fn verification(algorithm: Algorithm) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match algorithm {
        Algorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Algorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
        Algorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
        Algorithm::ES512 => &signature::ECDSA_P521_SHA512_FIXED,
        Algorithm::EdDSA => &signature::ED25519,
        Algorithm::MlDsa44 => &signature::ML_DSA_44,
        Algorithm::MlDsa65 => &signature::ML_DSA_65,
        Algorithm::MlDsa87 => &signature::ML_DSA_87,
        Algorithm::HS256 => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Octets;

    #[test]
    fn ed25519_verifies_the_signature_of_rfc_8037_appendix_a_4() {
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let verifier = Verifier::new(Algorithm::EdDSA, &serde_json::from_str(jwk).unwrap()).unwrap();
        let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature: Octets = serde_json::from_str(
            r#""hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg""#,
        )
        .unwrap();
        assert!(verifier.verify(message, &signature.0));
        assert!(!verifier.verify(b"another message", &signature.0));
    }

    #[test]
    fn a_key_of_another_algorithm_is_refused() {
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let public = serde_json::from_str(jwk).unwrap();
        for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| *algorithm != Algorithm::EdDSA) {
            assert_eq!(Verifier::new(algorithm, &public).unwrap_err(), BadPublicKey(algorithm));
        }
    }
}
