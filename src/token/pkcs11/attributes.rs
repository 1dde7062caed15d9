//! The attributes that Keyward gives its objects, and what it reads back from them.

use cryptoki::object::{Attribute, AttributeType, KeyType, MlDsaParameterSetType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::failure::Failure;
use super::mechanism;
use crate::domain::{Algorithm, Curve, Family, ObjectId, Octets, ParameterSet, Protection, PublicKey};
use crate::token::{KeySpec, ObjectKind, TokenError, TokenIdentity, TokenObject};

/// 65537, the public exponent of every RSA key made here.
const PUBLIC_EXPONENT: [u8; 3] = [1, 0, 1];

/// Octets of an HS256 secret: as many as its MAC has (RFC 7518 section 3.2).
const SECRET_LEN: u64 = 32;

/// What a generation is asked for.
pub(super) enum Templates {
    /// C_GenerateKeyPair.
    Pair {
        /// The public key's attributes.
        public: Vec<Attribute>,
        /// The private key's.
        private: Vec<Attribute>,
    },
    /// C_GenerateKey.
    Secret(Vec<Attribute>),
}

/// Templates for the generation of a key.
///
/// Each usage is set, true or false, because tokens differ in what they take an absent one for.
pub(super) fn templates(object: ObjectId, spec: KeySpec) -> Result<Templates, TokenError> {
    let mut private = named(object);
    private.extend([
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ]);
    let mut public = named(object);
    public.extend([
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Verify(true),
        Attribute::VerifyRecover(false),
        Attribute::Encrypt(false),
        Attribute::Wrap(false),
        Attribute::Derive(false),
    ]);
    match spec.algorithm.family() {
        Family::RsaPkcs1 | Family::RsaPss if matches!(spec.rsa_bits, 2048 | 3072 | 4096) => public.extend([
            Attribute::ModulusBits(u64::from(spec.rsa_bits).into()),
            Attribute::PublicExponent(PUBLIC_EXPONENT.to_vec()),
        ]),
        Family::RsaPkcs1 | Family::RsaPss => {
            return Err(TokenError::Unsupported(format!("RSA keys of {} bits are not made here", spec.rsa_bits)));
        }
        Family::Ecdsa(curve) => public.push(Attribute::EcParams(curve_oid(curve).to_vec())),
        Family::Ed25519 => public.push(Attribute::EcParams(ED25519_OID.to_vec())),
        Family::MlDsa(set) => public.push(Attribute::ParameterSet(parameter_set(set).into())),
        Family::Hmac => {
            // A MAC is verified by making it again, so the secret need do nothing but that.
            private.extend([
                Attribute::ValueLen(SECRET_LEN.into()),
                Attribute::Verify(false),
                Attribute::Encrypt(false),
                Attribute::Wrap(false),
            ]);
            return Ok(Templates::Secret(private));
        }
    }
    private.push(Attribute::SignRecover(false));
    Ok(Templates::Pair { public, private })
}

/// Class of the object that signs.
pub(super) fn signing_class(algorithm: Algorithm) -> ObjectClass {
    if algorithm.has_public_keys() { ObjectClass::PRIVATE_KEY } else { ObjectClass::SECRET_KEY }
}

/// Finds every object under an id.
pub(super) fn under(object: ObjectId) -> Attribute {
    Attribute::Id(object.octets().to_vec())
}

/// Class and id of an object that has an id of our length; `None` of any other, and of one that shows nothing.
pub(super) fn read_place(session: &Session, handle: ObjectHandle) -> Option<(ObjectClass, ObjectId)> {
    let shown = session.get_attributes(handle, &[AttributeType::Class, AttributeType::Id]).ok()?;
    let [Attribute::Class(class), Attribute::Id(id)] = shown.as_slice() else { return None };
    Some((*class, ObjectId::new(id.as_slice().try_into().ok()?)))
}

/// Class and key type of an object, as far as it shows them: a write that was cut off leaves objects that show neither.
pub(super) fn read_kind(
    session: &Session,
    handle: ObjectHandle,
) -> Result<(Option<ObjectClass>, Option<KeyType>), Failure> {
    let mut kind = (None, None);
    for attribute in session.get_attributes(handle, &[AttributeType::Class, AttributeType::KeyType])? {
        match attribute {
            Attribute::Class(class) => kind.0 = Some(class),
            Attribute::KeyType(key_type) => kind.1 = Some(key_type),
            _ => {}
        }
    }
    Ok(kind)
}

/// What an object is, whosever it is.
pub(super) fn read_object(session: &Session, handle: ObjectHandle) -> Result<TokenObject, Failure> {
    let mut object = TokenObject { class: ObjectKind::Other, id: Vec::new(), label: String::new() };
    let wanted = [AttributeType::Class, AttributeType::Id, AttributeType::Label];
    for attribute in session.get_attributes(handle, &wanted)? {
        match attribute {
            Attribute::Class(ObjectClass::PRIVATE_KEY) => object.class = ObjectKind::PrivateKey,
            Attribute::Class(ObjectClass::PUBLIC_KEY) => object.class = ObjectKind::PublicKey,
            Attribute::Class(ObjectClass::SECRET_KEY) => object.class = ObjectKind::SecretKey,
            Attribute::Id(id) => object.id = id,
            Attribute::Label(label) => object.label = String::from_utf8_lossy(&label).into_owned(),
            _ => {}
        }
    }
    Ok(object)
}

/// The public key in a public key object, or `None` if it is not one that the algorithm verifies with.
pub(super) fn read_public(
    session: &Session,
    handle: ObjectHandle,
    algorithm: Algorithm,
) -> Result<Option<PublicKey>, Failure> {
    if read_kind(session, handle)?.1 != Some(mechanism::key_type(algorithm)) {
        return Ok(None);
    }
    let wanted = match algorithm.family() {
        Family::RsaPkcs1 | Family::RsaPss => [AttributeType::Modulus, AttributeType::PublicExponent],
        Family::Ecdsa(_) | Family::Ed25519 => [AttributeType::EcParams, AttributeType::EcPoint],
        // CKA_VALUE of a public key object is the public key.
        Family::MlDsa(_) => [AttributeType::ParameterSet, AttributeType::Value],
        Family::Hmac => return Ok(None),
    };
    let attributes = session.get_attributes(handle, &wanted)?;
    Ok(match (algorithm.family(), attributes.as_slice()) {
        (Family::RsaPkcs1 | Family::RsaPss, [Attribute::Modulus(n), Attribute::PublicExponent(e)]) => {
            Some(PublicKey::Rsa { n: Octets::unsigned(n), e: Octets::unsigned(e) })
        }
        (Family::Ecdsa(crv), [Attribute::EcParams(params), Attribute::EcPoint(point)]) if params == curve_oid(crv) => {
            let len = crv.coordinate_len();
            match octets(point, 1 + 2 * len) {
                Some([4, xy @ ..]) => {
                    Some(PublicKey::Ec { crv, x: Octets(xy[..len].to_vec()), y: Octets(xy[len..].to_vec()) })
                }
                _ => None,
            }
        }
        (Family::Ed25519, [Attribute::EcParams(params), Attribute::EcPoint(point)])
            if params == ED25519_OID || params == ED25519_NAME =>
        {
            octets(point, 32)
                .map(|x| PublicKey::Ed25519 { crv: crate::domain::Ed25519::Ed25519, x: Octets(x.to_vec()) })
        }
        (Family::MlDsa(alg), [Attribute::ParameterSet(shown), Attribute::Value(value)])
            if MlDsaParameterSetType::from(*shown) == parameter_set(alg) && value.len() == alg.public_key_len() =>
        {
            Some(PublicKey::MlDsa { alg, r#pub: Octets(value.clone()) })
        }
        _ => None,
    })
}

/// The modulus that an RSA private key object shows, without leading zeros.
pub(super) fn read_modulus(session: &Session, handle: ObjectHandle) -> Result<Option<Octets>, Failure> {
    Ok(match session.get_attributes(handle, &[AttributeType::Modulus])?.as_slice() {
        [Attribute::Modulus(n)] => Some(Octets::unsigned(n)),
        _ => None,
    })
}

/// Whether a secret has all its octets.
pub(super) fn is_whole_secret(session: &Session, handle: ObjectHandle) -> Result<bool, Failure> {
    let shown = session.get_attributes(handle, &[AttributeType::ValueLen])?;
    Ok(matches!(shown.as_slice(), [Attribute::ValueLen(len)] if **len == SECRET_LEN))
}

/// What the token says of a private key or secret. What it does not say counts as bad.
pub(super) fn read_protection(
    session: &Session,
    handle: ObjectHandle,
    token: &TokenIdentity,
) -> Result<Protection, Failure> {
    let mut protection = Protection {
        token_label: token.label.clone(),
        token_serial: token.serial.clone(),
        token_manufacturer: token.manufacturer.clone(),
        token_model: token.model.clone(),
        sensitive: false,
        always_sensitive: false,
        extractable: true,
        never_extractable: false,
        local: false,
    };
    let wanted = [
        AttributeType::Sensitive,
        AttributeType::AlwaysSensitive,
        AttributeType::Extractable,
        AttributeType::NeverExtractable,
        AttributeType::Local,
    ];
    for attribute in session.get_attributes(handle, &wanted)? {
        match attribute {
            Attribute::Sensitive(shown) => protection.sensitive = shown,
            Attribute::AlwaysSensitive(shown) => protection.always_sensitive = shown,
            Attribute::Extractable(shown) => protection.extractable = shown,
            Attribute::NeverExtractable(shown) => protection.never_extractable = shown,
            Attribute::Local(shown) => protection.local = shown,
            _ => {}
        }
    }
    Ok(protection)
}

fn named(object: ObjectId) -> Vec<Attribute> {
    vec![under(object), Attribute::Label(format!("keyward {object}").into_bytes())]
}

/// DER of id-Ed25519 (RFC 8410 section 3).
const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

/// The other form of the same (PKCS#11 v3.1 section 6.3.3): PrintableString "edwards25519".
const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";

/// DER of the curve's object identifier (RFC 5480 section 2.1.1.1).
fn curve_oid(curve: Curve) -> &'static [u8] {
    match curve {
        Curve::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        Curve::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
        Curve::P521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
    }
}

/// CKP_ML_DSA_..., which PKCS#11 v3.2 has.
fn parameter_set(set: ParameterSet) -> MlDsaParameterSetType {
    match set {
        ParameterSet::MlDsa44 => MlDsaParameterSetType::ML_DSA_44,
        ParameterSet::MlDsa65 => MlDsaParameterSetType::ML_DSA_65,
        ParameterSet::MlDsa87 => MlDsaParameterSetType::ML_DSA_87,
    }
}

/// The `len` octets of a CKA_EC_POINT: the standard wraps them in a DER OCTET STRING, and some modules do not.
fn octets(point: &[u8], len: usize) -> Option<&[u8]> {
    let inner = match point {
        bare if bare.len() == len => bare,
        [0x04, 0x81, count, inner @ ..] if usize::from(*count) == inner.len() => inner,
        [0x04, count, inner @ ..] if usize::from(*count) == inner.len() => inner,
        _ => return None,
    };
    (inner.len() == len).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_wrapped_and_bare() {
        let p521 = [vec![4], vec![7; 132]].concat();
        assert_eq!(octets(&p521, 133), Some(p521.as_slice()));
        assert_eq!(octets(&[vec![0x04, 0x81, 133], p521.clone()].concat(), 133), Some(p521.as_slice()));
        assert_eq!(octets(&[vec![0x04, 32], vec![9; 32]].concat(), 32), Some([9; 32].as_slice()));
        assert_eq!(octets(&[vec![0x04, 31], vec![9; 31]].concat(), 32), None);
        assert_eq!(octets(&[], 32), None);
    }

    #[test]
    fn only_the_three_rsa_lengths_are_made() {
        let object = ObjectId::new([0; 16]);
        assert!(templates(object, KeySpec { algorithm: Algorithm::RS256, rsa_bits: 1024 }).is_err());
        assert!(templates(object, KeySpec { algorithm: Algorithm::RS256, rsa_bits: 3072 }).is_ok());
        assert!(templates(object, KeySpec { algorithm: Algorithm::ES256, rsa_bits: 0 }).is_ok());
    }
}
