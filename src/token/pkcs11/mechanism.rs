//! Which mechanism an algorithm signs with, over what, and what it returns.

use std::borrow::Cow;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::dsa::{HedgeType, SignAdditionalContext};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismInfo, MechanismType};
use cryptoki::object::KeyType;
use cryptoki::slot::Slot;

use super::failure::Failure;
use crate::domain::{Algorithm, Digest, Family, PublicKey};
use crate::token::{SignInput, TokenError};

/// CKM_... that signs. None with a key pair hashes: tokens differ in which hashing mechanisms they have, and share these.
pub(super) fn signing(algorithm: Algorithm) -> Mechanism<'static> {
    match (algorithm.family(), algorithm.digest()) {
        (Family::RsaPss, Some(digest)) => Mechanism::RsaPkcsPss(pss(digest)),
        (Family::Ecdsa(_), _) => Mechanism::Ecdsa,
        (Family::Ed25519, _) => Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure)),
        // No parameter: hedged if the token can, and with an empty context, as RFC 9964 demands.
        (Family::MlDsa(_), _) => Mechanism::MlDsa(SignAdditionalContext::new(HedgeType::Preferred, None)),
        (Family::Hmac, _) => Mechanism::Sha256Hmac,
        (Family::RsaPkcs1 | Family::RsaPss, _) => Mechanism::RsaPkcs,
    }
}

/// CKM_... that generates the key pair or the secret.
pub(super) fn generation(algorithm: Algorithm) -> Mechanism<'static> {
    match algorithm.family() {
        Family::RsaPkcs1 | Family::RsaPss => Mechanism::RsaPkcsKeyPairGen,
        Family::Ecdsa(_) => Mechanism::EccKeyPairGen,
        Family::Ed25519 => Mechanism::EccEdwardsKeyPairGen,
        Family::MlDsa(_) => Mechanism::MlDsaKeyPairGen,
        Family::Hmac => Mechanism::GenericSecretKeyGen,
    }
}

/// CKA_KEY_TYPE of the algorithm's keys.
pub(super) fn key_type(algorithm: Algorithm) -> KeyType {
    match algorithm.family() {
        Family::RsaPkcs1 | Family::RsaPss => KeyType::RSA,
        Family::Ecdsa(_) => KeyType::EC,
        Family::Ed25519 => KeyType::EC_EDWARDS,
        Family::MlDsa(_) => KeyType::ML_DSA,
        Family::Hmac => KeyType::GENERIC_SECRET,
    }
}

/// What C_Sign is given for `input`.
pub(super) fn data(algorithm: Algorithm, input: &SignInput) -> Result<Cow<'_, [u8]>, TokenError> {
    match (algorithm.digest(), input) {
        (None, SignInput::Message(message)) => Ok(Cow::Borrowed(message)),
        (Some(digest), SignInput::Digest(octets)) if octets.len() == digest.octets() => Ok(match algorithm.family() {
            Family::RsaPkcs1 => Cow::Owned(digest_info(digest, octets)),
            Family::RsaPss | Family::Ecdsa(_) | Family::Ed25519 | Family::MlDsa(_) | Family::Hmac => {
                Cow::Borrowed(octets)
            }
        }),
        (None, _) => Err(TokenError::Unsupported(format!("{algorithm} signs messages alone"))),
        (Some(digest), _) => Err(TokenError::Unsupported(format!("{algorithm} signs {} digests alone", digest.name()))),
    }
}

/// Octets of each signature by this key. A token that returns another number returned no signature: SoftHSM answers a
/// mechanism that does not fit the key with OK and nothing.
pub(super) fn signature_len(public: Option<&PublicKey>) -> usize {
    match public {
        Some(PublicKey::Rsa { n, .. }) => n.0.len(),
        Some(PublicKey::Ec { crv, .. }) => 2 * crv.coordinate_len(),
        Some(PublicKey::Ed25519 { .. }) => 64,
        Some(PublicKey::MlDsa { alg, .. }) => alg.signature_len(),
        // HS256.
        None => Digest::Sha256.octets(),
    }
}

/// Whether the token has what the algorithm needs, or in words what it lacks.
pub(super) fn support(pkcs11: &Pkcs11, slot: Slot, algorithm: Algorithm) -> Result<Result<(), String>, Failure> {
    let (generate, generate_name, sign, sign_name) = match algorithm.family() {
        Family::RsaPkcs1 => {
            (MechanismType::RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN", MechanismType::RSA_PKCS, "CKM_RSA_PKCS")
        }
        Family::RsaPss => (
            MechanismType::RSA_PKCS_KEY_PAIR_GEN,
            "CKM_RSA_PKCS_KEY_PAIR_GEN",
            MechanismType::RSA_PKCS_PSS,
            "CKM_RSA_PKCS_PSS",
        ),
        Family::Ecdsa(_) => (MechanismType::ECC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN", MechanismType::ECDSA, "CKM_ECDSA"),
        Family::Ed25519 => {
            (MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, "CKM_EC_EDWARDS_KEY_PAIR_GEN", MechanismType::EDDSA, "CKM_EDDSA")
        }
        Family::MlDsa(_) => (
            MechanismType::ML_DSA_KEY_PAIR_GEN,
            "CKM_ML_DSA_KEY_PAIR_GEN",
            MechanismType::ML_DSA,
            "CKM_ML_DSA (PKCS#11 v3.2)",
        ),
        Family::Hmac => (
            MechanismType::GENERIC_SECRET_KEY_GEN,
            "CKM_GENERIC_SECRET_KEY_GEN",
            MechanismType::SHA256_HMAC,
            "CKM_SHA256_HMAC",
        ),
    };
    let generates =
        if algorithm.has_public_keys() { MechanismInfo::generate_key_pair } else { MechanismInfo::generate };
    let listed = pkcs11.get_mechanism_list(slot)?;
    let can = |mechanism, use_of: fn(&MechanismInfo) -> bool| {
        Ok::<_, Failure>(listed.contains(&mechanism) && use_of(&pkcs11.get_mechanism_info(slot, mechanism)?))
    };
    let lacks: Vec<&str> = [
        (!can(generate, generates)?).then_some(generate_name),
        (!can(sign, MechanismInfo::sign)?).then_some(sign_name),
    ]
    .into_iter()
    .flatten()
    .collect();
    Ok(if lacks.is_empty() { Ok(()) } else { Err(format!("the token lacks {}", lacks.join(" and "))) })
}

/// RFC 7518 section 3.5: MGF1 over the same digest, and a salt of the digest's length.
fn pss(digest: Digest) -> PkcsPssParams {
    let (hash_alg, mgf) = match digest {
        Digest::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        Digest::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
        Digest::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
    };
    let s_len = digest.octets().try_into().expect("a digest's length fits a CK_ULONG");
    PkcsPssParams { hash_alg, mgf, s_len }
}

/// DER of DigestInfo (RFC 8017 section 9.2 note 1), which CKM_RSA_PKCS pads and signs as it stands.
fn digest_info(digest: Digest, octets: &[u8]) -> Vec<u8> {
    const SHA_256: [u8; 19] = [
        0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04,
        0x20,
    ];
    const SHA_384: [u8; 19] = [
        0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04,
        0x30,
    ];
    const SHA_512: [u8; 19] = [
        0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04,
        0x40,
    ];
    let prefix = match digest {
        Digest::Sha256 => &SHA_256,
        Digest::Sha384 => &SHA_384,
        Digest::Sha512 => &SHA_512,
    };
    [prefix, octets].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_the_algorithm_does_not_sign_never_reaches_the_token() {
        assert!(data(Algorithm::ES256, &SignInput::Digest(vec![0; 32])).is_ok());
        assert!(data(Algorithm::ES256, &SignInput::Digest(vec![0; 48])).is_err());
        assert!(data(Algorithm::ES256, &SignInput::Message(vec![0; 32])).is_err());
        assert!(data(Algorithm::EdDSA, &SignInput::Digest(vec![0; 32])).is_err());
    }
}
