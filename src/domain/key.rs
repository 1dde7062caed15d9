use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Curve, Kid, ObjectId, ParameterSet, Timestamp};

/// Where a signing key stands in its life. The order is the order of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// Published, does not sign yet.
    Next,
    /// Published, signs.
    Current,
    /// Published, signs no more.
    Previous,
    /// Not published; the private key still stands on the token until `destroy_delay` has passed.
    Revoked,
    /// The private key is gone from the token; the history stays.
    Destroyed,
}

impl KeyState {
    /// Whether a key in this state is in the JWKS.
    #[must_use]
    pub const fn is_published(self) -> bool {
        matches!(self, Self::Next | Self::Current | Self::Previous)
    }

    /// The word for the state, as the JWKS and the API say it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Current => "current",
            Self::Previous => "previous",
            Self::Revoked => "revoked",
            Self::Destroyed => "destroyed",
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A signing key: its public facts. The private key, or the secret of HS256, is on the token under `object`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    /// The key's name.
    pub kid: Kid,
    /// CKA_ID of its objects on the token.
    pub object: ObjectId,
    /// Where it stands in its life.
    pub state: KeyState,
    /// The public key; none for HS256.
    pub public: Option<PublicKey>,
    /// The certificate that the key signed for itself; none for HS256.
    #[serde(default)]
    pub certificate: Option<Certificate>,
    /// What the token said of the private key when it was generated (R1).
    pub protection: Protection,
    /// When its intent was recorded.
    pub create_time: Timestamp,
    /// When it became next.
    pub publish_time: Timestamp,
    /// When it became current.
    pub activate_time: Option<Timestamp>,
    /// When it became previous.
    pub retire_time: Option<Timestamp>,
    /// Until when a JWT that it signed may be in use (R4); known once it is previous.
    pub retain_until: Option<Timestamp>,
    /// When it was revoked.
    pub revoke_time: Option<Timestamp>,
    /// When the intent to destroy the private key was recorded.
    pub destroy_begin_time: Option<Timestamp>,
    /// When the token confirmed that the private key is destroyed.
    pub destroy_time: Option<Timestamp>,
}

/// A public key in the members of a JWK (RFC 7518 section 6, RFC 8037 section 2, RFC 9964).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub enum PublicKey {
    /// An RSA key.
    #[serde(rename = "RSA")]
    Rsa {
        /// Modulus, big-endian, without leading zeros.
        n: Octets,
        /// Public exponent, big-endian, without leading zeros.
        e: Octets,
    },
    /// A point on a NIST curve.
    #[serde(rename = "EC")]
    Ec {
        /// The curve.
        crv: Curve,
        /// x, of the curve's full coordinate length.
        x: Octets,
        /// y, of the curve's full coordinate length.
        y: Octets,
    },
    /// An Ed25519 key.
    #[serde(rename = "OKP")]
    Ed25519 {
        /// Always Ed25519.
        crv: Ed25519,
        /// The 32 octets of the public key.
        x: Octets,
    },
    /// An ML-DSA key.
    #[serde(rename = "AKP")]
    MlDsa {
        /// Its parameter set: a key of this type names its algorithm itself.
        alg: ParameterSet,
        /// The octets of the public key, as many as its parameter set has.
        r#pub: Octets,
    },
}

/// The one curve of OKP keys here (RFC 8037 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ed25519 {
    /// Its name.
    Ed25519,
}

/// Octets that are written as base64url without padding (RFC 7515 section 2).
#[derive(Clone, PartialEq, Eq)]
pub struct Octets(pub Vec<u8>);

impl Octets {
    /// The big-endian number in these octets, without leading zeros.
    #[must_use]
    pub fn unsigned(octets: &[u8]) -> Self {
        let zeros = octets.iter().take_while(|octet| **octet == 0).count();
        Self(octets[zeros..].to_vec())
    }
}

impl fmt::Display for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(&self.0))
    }
}

impl fmt::Debug for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Octets {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        URL_SAFE_NO_PAD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// An X.509 certificate (RFC 5280) in DER.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Certificate(Octets);

impl Certificate {
    /// The certificate in these octets, which are DER.
    #[must_use]
    pub const fn new(der: Vec<u8>) -> Self {
        Self(Octets(der))
    }

    /// The octets.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0.0
    }
}

/// What the token said of a private key right after it was generated, and of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// CK_TOKEN_INFO.label.
    pub token_label: String,
    /// CK_TOKEN_INFO.serialNumber.
    pub token_serial: String,
    /// CK_TOKEN_INFO.manufacturerID.
    pub token_manufacturer: String,
    /// CK_TOKEN_INFO.model.
    pub token_model: String,
    /// CKA_SENSITIVE.
    pub sensitive: bool,
    /// CKA_ALWAYS_SENSITIVE.
    pub always_sensitive: bool,
    /// CKA_EXTRACTABLE.
    pub extractable: bool,
    /// CKA_NEVER_EXTRACTABLE.
    pub never_extractable: bool,
    /// CKA_LOCAL: generated on the token.
    pub local: bool,
}

impl Protection {
    /// Whether the private key was made on the token and has never been able to leave it (R1).
    #[must_use]
    pub const fn holds(&self) -> bool {
        self.sensitive && self.always_sensitive && !self.extractable && self.never_extractable && self.local
    }
}
