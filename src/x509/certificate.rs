use std::time::Duration;

use der::asn1::{Any, BitString, GeneralizedTime, Null, OctetString, SetOfVec, UtcTime};
use der::oid::db::{rfc4519, rfc5912, rfc8410};
use der::{Decode as _, Encode as _, Tag};
use pkcs1::{RsaPssParams, TrailerField};
use sha1::{Digest as _, Sha1};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der;
use x509_cert::ext::AsExtension as _;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages, SubjectKeyIdentifier};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{
    AlgorithmIdentifier, AlgorithmIdentifierOwned, AlgorithmIdentifierRef, SubjectPublicKeyInfoOwned,
};
use x509_cert::time::{Time, Validity};
use x509_cert::{TbsCertificate, Version};

use super::spki::{ENCODES, ecdsa_der, ml_dsa_oid, spki};
use crate::domain::{Algorithm, Certificate, Digest, Family, ObjectId, PublicKey, Timestamp};

/// A self-signed certificate that lacks its signature: the key signs [`Unsigned::message`], and [`Unsigned::signed`] puts
/// both together.
#[derive(Debug)]
pub struct Unsigned {
    algorithm: Algorithm,
    tbs: TbsCertificate,
}

/// Octets that are no certificate in DER.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a certificate in DER")]
pub struct Unreadable;

impl Unsigned {
    /// The certificate of a key, for the name in `domain` from `from` on. `object` names the key on the token and, being
    /// drawn at random, makes the serial number. `None` for HS256, whose keys have no public half.
    ///
    /// It never ends (RFC 5280 section 4.1.2.5): a verifier that honoured an end of its own would refuse a key that the
    /// JWKS still publishes. It is no CA's, and its key is for signatures alone.
    #[must_use]
    pub fn of_key(
        algorithm: Algorithm,
        public: &PublicKey,
        object: ObjectId,
        domain: &str,
        from: Timestamp,
    ) -> Option<Self> {
        let name = common_name(domain);
        let key = spki(public);
        let key_id = Sha1::digest(key.subject_public_key.raw_bytes());
        let key_id = SubjectKeyIdentifier(OctetString::new(key_id.as_slice()).expect(ENCODES));
        let no_ca = BasicConstraints { ca: false, path_len_constraint: None };
        let usage = KeyUsage(KeyUsages::DigitalSignature.into());
        let extensions =
            [no_ca.to_extension(&name, &[]), usage.to_extension(&name, &[]), key_id.to_extension(&name, &[])];
        let extensions = extensions.into_iter().collect::<Result<Vec<_>, _>>().expect(ENCODES);
        let tbs = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(object.octets()).expect("16 octets are fewer than 20"),
            signature: signature_algorithm(algorithm)?,
            issuer: name.clone(),
            validity: Validity { not_before: time(from), not_after: Time::INFINITY },
            subject: name,
            subject_public_key_info: key,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(extensions),
        };
        Some(Self { algorithm, tbs })
    }

    /// What the key signs: TBSCertificate in DER (RFC 5280 section 4.1.1.1).
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        self.tbs.to_der().expect(ENCODES)
    }

    /// The certificate with this signature, ECDSA's as r || s. `None` if it cannot be one of the algorithm.
    #[must_use]
    pub fn signed(self, signature: &[u8]) -> Option<Certificate> {
        let signature = match self.algorithm.family() {
            Family::Ecdsa(curve) => ecdsa_der(signature, curve)?,
            Family::RsaPkcs1 | Family::RsaPss | Family::Ed25519 | Family::MlDsa(_) | Family::Hmac => signature.to_vec(),
        };
        let certificate = x509_cert::Certificate {
            signature_algorithm: self.tbs.signature.clone(),
            tbs_certificate: self.tbs,
            signature: BitString::from_bytes(&signature).ok()?,
        };
        certificate.to_der().ok().map(Certificate::new)
    }
}

/// A distinguished name of this common name alone (RFC 5280 section 4.1.2.4), whatever letters are in it.
fn common_name(name: &str) -> Name {
    let value = Any::new(Tag::Utf8String, name.as_bytes()).expect(ENCODES);
    let common_name = AttributeTypeAndValue { oid: rfc4519::COMMON_NAME, value };
    RdnSequence(vec![RelativeDistinguishedName(SetOfVec::from_iter([common_name]).expect("one is a set"))])
}

/// The key that a certificate certifies.
#[derive(Debug)]
pub struct CertifiedKey(SubjectPublicKeyInfoOwned);

/// The key of the certificate in `der`.
///
/// # Errors
/// [`Unreadable`].
pub fn public_key_of(der: &[u8]) -> Result<CertifiedKey, Unreadable> {
    let certificate = x509_cert::Certificate::from_der(der).map_err(|_| Unreadable)?;
    Ok(CertifiedKey(certificate.tbs_certificate.subject_public_key_info))
}

impl CertifiedKey {
    /// Whether it is this one.
    #[must_use]
    pub fn is(&self, public: &PublicKey) -> bool {
        let (shown, wanted) = (&self.0, spki(public));
        // Some write RSA's identifier without the NULL that RFC 3279 asks for; the key is the same.
        let same_parameters = shown.algorithm.parameters == wanted.algorithm.parameters
            || (shown.algorithm.oid == rfc5912::RSA_ENCRYPTION && shown.algorithm.parameters.is_none());
        shown.algorithm.oid == wanted.algorithm.oid
            && same_parameters
            && shown.subject_public_key == wanted.subject_public_key
    }
}

/// AlgorithmIdentifier of signatures (RFC 4055, RFC 5758, RFC 8410, RFC 9881). A key has one algorithm for life, so it signs its
/// certificate with that one too.
fn signature_algorithm(algorithm: Algorithm) -> Option<AlgorithmIdentifierOwned> {
    let (oid, parameters) = match (algorithm.family(), algorithm.digest()) {
        (Family::RsaPkcs1, Some(Digest::Sha256)) => (rfc5912::SHA_256_WITH_RSA_ENCRYPTION, Some(Any::from(Null))),
        (Family::RsaPkcs1, Some(Digest::Sha384)) => (rfc5912::SHA_384_WITH_RSA_ENCRYPTION, Some(Any::from(Null))),
        (Family::RsaPkcs1, Some(Digest::Sha512)) => (rfc5912::SHA_512_WITH_RSA_ENCRYPTION, Some(Any::from(Null))),
        (Family::RsaPss, Some(digest)) => (rfc5912::ID_RSASSA_PSS, Some(pss_parameters(digest))),
        (Family::Ecdsa(_), Some(Digest::Sha256)) => (rfc5912::ECDSA_WITH_SHA_256, None),
        (Family::Ecdsa(_), Some(Digest::Sha384)) => (rfc5912::ECDSA_WITH_SHA_384, None),
        (Family::Ecdsa(_), Some(Digest::Sha512)) => (rfc5912::ECDSA_WITH_SHA_512, None),
        (Family::Ed25519, _) => (rfc8410::ID_ED_25519, None),
        (Family::MlDsa(set), _) => (ml_dsa_oid(set), None),
        (Family::Hmac, _) | (_, None) => return None,
    };
    Some(AlgorithmIdentifierOwned { oid, parameters })
}

/// UTCTime until 2049 and GeneralizedTime from then on (RFC 5280 section 4.1.2.5).
fn time(time: Timestamp) -> Time {
    let since_1970 = Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default());
    match UtcTime::from_unix_duration(since_1970) {
        Ok(utc) => Time::UtcTime(utc),
        Err(_) => Time::GeneralTime(GeneralizedTime::from_unix_duration(since_1970).expect(ENCODES)),
    }
}

/// RSASSA-PSS-params of the PS algorithms (RFC 4055 section 3.1, RFC 7518 section 3.5).
fn pss_parameters(digest: Digest) -> Any {
    let oid = match digest {
        Digest::Sha256 => rfc5912::ID_SHA_256,
        Digest::Sha384 => rfc5912::ID_SHA_384,
        Digest::Sha512 => rfc5912::ID_SHA_512,
    };
    let hash = AlgorithmIdentifierRef { oid, parameters: Some(der::AnyRef::NULL) };
    let parameters = RsaPssParams {
        hash,
        mask_gen: AlgorithmIdentifier { oid: rfc5912::ID_MGF_1, parameters: Some(hash) },
        salt_len: u8::try_from(digest.octets()).expect("a digest is shorter than 256 octets"),
        trailer_field: TrailerField::default(),
    };
    Any::encode_from(&parameters).expect(ENCODES)
}
