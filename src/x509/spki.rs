use der::asn1::{Any, BitString, Null, ObjectIdentifier, SequenceOf, UintRef};
use der::oid::db::{rfc5912, rfc8410};
use der::pem::{LineEnding, encode_string};
use der::{Decode as _, Encode as _};
use pkcs1::RsaPublicKey;
use x509_cert::der;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::domain::{Curve, ParameterSet, PublicKey};

/// Why encoding does not fail: what it is made of was checked where it came in.
pub(super) const ENCODES: &str = "a public key's members fit DER";

/// The public key as PEM (RFC 7468 section 13).
#[must_use]
pub fn public_key_pem(public: &PublicKey) -> String {
    encode_string("PUBLIC KEY", LineEnding::LF, &public_key_der(public)).expect("the label is a valid one")
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

/// The signature in an ECDSA-Sig-Value as r || s. `None` if it is none of this curve.
#[must_use]
pub fn ecdsa_raw(der: &[u8], curve: Curve) -> Option<Vec<u8>> {
    let value = SequenceOf::<UintRef<'_>, 2>::from_der(der).ok().filter(|value| value.len() == 2)?;
    let halves = value.iter().map(|half| {
        let octets = half.as_bytes();
        let zeros = curve.coordinate_len().checked_sub(octets.len())?;
        Some([&vec![0; zeros], octets].concat())
    });
    halves.collect::<Option<Vec<_>>>().map(|halves| halves.concat())
}

/// SubjectPublicKeyInfo in DER.
#[must_use]
pub fn public_key_der(public: &PublicKey) -> Vec<u8> {
    spki(public).to_der().expect(ENCODES)
}

/// SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7) with the identifiers of RFC 3279, RFC 5480, RFC 8410 and
/// RFC 9881.
pub(super) fn spki(public: &PublicKey) -> SubjectPublicKeyInfoOwned {
    let (oid, parameters, key) = match public {
        PublicKey::Rsa { n, e } => {
            let modulus = UintRef::new(&n.0).expect(ENCODES);
            let key = RsaPublicKey { modulus, public_exponent: UintRef::new(&e.0).expect(ENCODES) };
            (rfc5912::RSA_ENCRYPTION, Some(Any::from(Null)), key.to_der().expect(ENCODES))
        }
        PublicKey::Ec { crv, x, y } => {
            let curve = Any::encode_from(&curve_oid(*crv)).expect(ENCODES);
            (rfc5912::ID_EC_PUBLIC_KEY, Some(curve), [&[4], &*x.0, &*y.0].concat())
        }
        PublicKey::Ed25519 { x, .. } => (rfc8410::ID_ED_25519, None, x.0.clone()),
        PublicKey::MlDsa { alg, r#pub } => (ml_dsa_oid(*alg), None, r#pub.0.clone()),
    };
    SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned { oid, parameters },
        subject_public_key: BitString::from_bytes(&key).expect(ENCODES),
    }
}

fn curve_oid(curve: Curve) -> ObjectIdentifier {
    match curve {
        Curve::P256 => rfc5912::SECP_256_R_1,
        Curve::P384 => rfc5912::SECP_384_R_1,
        Curve::P521 => rfc5912::SECP_521_R_1,
    }
}

/// id-ml-dsa-44, -65 and -87, of keys and signatures alike (RFC 9881 section 2).
pub(super) const fn ml_dsa_oid(set: ParameterSet) -> ObjectIdentifier {
    match set {
        ParameterSet::MlDsa44 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.17"),
        ParameterSet::MlDsa65 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.18"),
        ParameterSet::MlDsa87 => ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.19"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn der_of_a_signature_drops_leading_zeros_and_keeps_the_sign_bit_clear() {
        let mut raw = [0_u8; 64];
        raw[31] = 1;
        raw[32] = 0x80;
        let der = ecdsa_der(&raw, Curve::P256).unwrap();
        assert_eq!(der[..8], [0x30, 38, 2, 1, 1, 2, 33, 0]);
        assert_eq!(ecdsa_raw(&der, Curve::P256).unwrap(), raw);
        assert_eq!(ecdsa_raw(&der[..39], Curve::P256), None);
        assert_eq!(ecdsa_raw(&ecdsa_der(&[0xff; 96], Curve::P384).unwrap(), Curve::P256), None);
        assert_eq!(ecdsa_raw(&[0x30, 3, 2, 1, 1], Curve::P256), None);
    }

    #[test]
    fn an_ed25519_key_is_written_as_in_rfc_8410_section_10_1() {
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE"}"#;
        let pem = public_key_pem(&serde_json::from_str(jwk).unwrap());
        let text = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        assert_eq!(pem, text);
    }
}
