use aws_lc_rs::digest as lc_digest;
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use rsa::pkcs1::EncodeRsaPublicKey as _;
use rsa::pkcs8::der::Encode as _;
use rsa::pkcs8::der::asn1::{SequenceOf, UintRef};
use rsa::pkcs8::der::pem::{LineEnding, encode_string};
use rsa::{BigUint, RsaPublicKey};

use crate::domain::{Algorithm, Curve, Digest, Family, PublicKey};

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
                let key = RsaPublicKey::new(BigUint::from_bytes_be(&n.0), BigUint::from_bytes_be(&e.0));
                key.ok().and_then(|key| key.to_pkcs1_der().ok()).map(|der| der.as_bytes().to_vec())
            }
            (Family::Ecdsa(curve), PublicKey::Ec { crv, x, y }) if curve == *crv => Some([&[4], &*x.0, &*y.0].concat()),
            (Family::Ed25519, PublicKey::Ed25519 { x, .. }) => Some(x.0.clone()),
            _ => None,
        };
        let key = octets.and_then(|octets| ParsedPublicKey::new(verification(algorithm), octets).ok());
        key.map(|key| Self { algorithm, key }).ok_or(bad)
    }

    /// Whether `signature` (ECDSA: r || s) is one over `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        self.key.verify_sig(message, signature).is_ok()
    }

    /// Whether `signature` (ECDSA: r || s) is one over the message with this digest. Never for EdDSA.
    #[must_use]
    pub fn verify_digest(&self, digest: &[u8], signature: &[u8]) -> bool {
        let Some(digest_algorithm) = self.algorithm.digest().map(lc_algorithm) else { return false };
        lc_digest::Digest::import_less_safe(digest, digest_algorithm)
            .and_then(|digest| self.key.verify_digest_sig(&digest, signature))
            .is_ok()
    }

    /// The key as SubjectPublicKeyInfo in DER (RFC 5280 section 4.1.2.7).
    fn spki_der(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = self.key.as_der().expect("a parsed key has an encoding");
        der.as_ref().to_vec()
    }
}

/// The public key as PEM (RFC 7468 section 13).
///
/// # Errors
/// As [`Verifier::new`].
pub fn public_key_pem(algorithm: Algorithm, public: &PublicKey) -> Result<String, BadPublicKey> {
    let der = Verifier::new(algorithm, public)?.spki_der();
    Ok(encode_string("PUBLIC KEY", LineEnding::LF, &der).expect("the label is a valid one"))
}

/// The digest of `message`.
#[must_use]
pub fn digest(digest: Digest, message: &[u8]) -> Vec<u8> {
    lc_digest::digest(lc_algorithm(digest), message).as_ref().to_vec()
}

/// An ECDSA signature of r || s as ECDSA-Sig-Value in DER (RFC 3279 section 2.2.3). `None` if it is not two halves.
#[must_use]
pub fn ecdsa_der(signature: &[u8], curve: Curve) -> Option<Vec<u8>> {
    let (r, s) = signature.split_at_checked(curve.coordinate_len())?;
    let mut value = SequenceOf::<UintRef<'_>, 2>::new();
    value.add(UintRef::new(r).ok()?).ok()?;
    value.add(UintRef::new(s).ok()?).ok()?;
    value.to_der().ok()
}

fn lc_algorithm(digest: Digest) -> &'static lc_digest::Algorithm {
    match digest {
        Digest::Sha256 => &lc_digest::SHA256,
        Digest::Sha384 => &lc_digest::SHA384,
        Digest::Sha512 => &lc_digest::SHA512,
    }
}

fn verification(algorithm: Algorithm) -> &'static dyn VerificationAlgorithm {
    match algorithm {
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
    }
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

    #[test]
    fn der_of_a_signature_drops_leading_zeros_and_keeps_the_sign_bit_clear() {
        let mut raw = [0_u8; 64];
        raw[31] = 1;
        raw[32] = 0x80;
        let der = ecdsa_der(&raw, Curve::P256).unwrap();
        assert_eq!(der[..8], [0x30, 38, 2, 1, 1, 2, 33, 0]);
    }
}
