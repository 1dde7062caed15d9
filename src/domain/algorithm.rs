use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A JOSE `alg` name (RFC 7518 section 3.1, RFC 8037 section 3.1, RFC 9964). A key has exactly one, for life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the registry's own.
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
    #[serde(rename = "ML-DSA-44")]
    MlDsa44,
    #[serde(rename = "ML-DSA-65")]
    MlDsa65,
    #[serde(rename = "ML-DSA-87")]
    MlDsa87,
    HS256,
}

/// How an algorithm signs, which decides the PKCS#11 mechanism and the form of the public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs1,
    /// RSASSA-PSS with MGF1 over the same digest and a salt of the digest's length (RFC 7518 section 3.5).
    RsaPss,
    /// ECDSA over the named curve.
    Ecdsa(Curve),
    /// Ed25519 (RFC 8037); signs the message itself, never a digest.
    Ed25519,
    /// ML-DSA (FIPS 204) with an empty context (RFC 9964); signs the message itself.
    MlDsa(ParameterSet),
    /// HMAC with a secret that nobody but the token has (RFC 7518 section 3.2); takes the message itself.
    Hmac,
}

/// The curves of RFC 7518 section 6.2.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Curve {
    /// NIST P-256.
    #[serde(rename = "P-256")]
    P256,
    /// NIST P-384.
    #[serde(rename = "P-384")]
    P384,
    /// NIST P-521.
    #[serde(rename = "P-521")]
    P521,
}

/// The parameter sets of ML-DSA (FIPS 204 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ParameterSet {
    /// Category 2, about as strong as SHA-256 is against collisions.
    #[serde(rename = "ML-DSA-44")]
    MlDsa44,
    /// Category 3, about as strong as AES-192.
    #[serde(rename = "ML-DSA-65")]
    MlDsa65,
    /// Category 5, about as strong as AES-256.
    #[serde(rename = "ML-DSA-87")]
    MlDsa87,
}

/// The digests that the algorithms sign over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the standard's own.
pub enum Digest {
    Sha256,
    Sha384,
    Sha512,
}

/// The text is not the name of an algorithm that Keyward signs with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, ML-DSA-44, \
     ML-DSA-65, ML-DSA-87, HS256"
)]
pub struct UnknownAlgorithm;

impl Algorithm {
    /// Every algorithm: those with public keys in the order of the JOSE registry, then the one without.
    pub const ALL: [Self; 14] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::EdDSA,
        Self::MlDsa44,
        Self::MlDsa65,
        Self::MlDsa87,
        Self::HS256,
    ];

    /// The name as it stands in a JOSE header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::EdDSA => "EdDSA",
            Self::MlDsa44 => ParameterSet::MlDsa44.name(),
            Self::MlDsa65 => ParameterSet::MlDsa65.name(),
            Self::MlDsa87 => ParameterSet::MlDsa87.name(),
            Self::HS256 => "HS256",
        }
    }

    /// How the algorithm signs.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::RS256 | Self::RS384 | Self::RS512 => Family::RsaPkcs1,
            Self::PS256 | Self::PS384 | Self::PS512 => Family::RsaPss,
            Self::ES256 => Family::Ecdsa(Curve::P256),
            Self::ES384 => Family::Ecdsa(Curve::P384),
            Self::ES512 => Family::Ecdsa(Curve::P521),
            Self::EdDSA => Family::Ed25519,
            Self::MlDsa44 => Family::MlDsa(ParameterSet::MlDsa44),
            Self::MlDsa65 => Family::MlDsa(ParameterSet::MlDsa65),
            Self::MlDsa87 => Family::MlDsa(ParameterSet::MlDsa87),
            Self::HS256 => Family::Hmac,
        }
    }

    /// The digest that is signed, or `None` for EdDSA, ML-DSA and HS256, which take the message itself.
    #[must_use]
    pub const fn digest(self) -> Option<Digest> {
        match self {
            Self::RS256 | Self::PS256 | Self::ES256 => Some(Digest::Sha256),
            Self::RS384 | Self::PS384 | Self::ES384 => Some(Digest::Sha384),
            Self::RS512 | Self::PS512 | Self::ES512 => Some(Digest::Sha512),
            Self::EdDSA | Self::MlDsa44 | Self::MlDsa65 | Self::MlDsa87 | Self::HS256 => None,
        }
    }

    /// Whether its keys have a public half: without one nothing can be published, and only the token can verify.
    #[must_use]
    pub const fn has_public_keys(self) -> bool {
        !matches!(self.family(), Family::Hmac)
    }

    /// Whether keys of this algorithm are RSA keys.
    #[must_use]
    pub const fn is_rsa(self) -> bool {
        matches!(self.family(), Family::RsaPkcs1 | Family::RsaPss)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == text).ok_or(UnknownAlgorithm)
    }
}

impl Curve {
    /// Octets of one coordinate, and of each half of an `r || s` signature (RFC 7518 section 3.4).
    #[must_use]
    pub const fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

impl ParameterSet {
    /// The name, which is the `alg` of keys and signatures too (RFC 9964).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MlDsa44 => "ML-DSA-44",
            Self::MlDsa65 => "ML-DSA-65",
            Self::MlDsa87 => "ML-DSA-87",
        }
    }

    /// The algorithm of keys of this set: there is one.
    #[must_use]
    pub const fn algorithm(self) -> Algorithm {
        match self {
            Self::MlDsa44 => Algorithm::MlDsa44,
            Self::MlDsa65 => Algorithm::MlDsa65,
            Self::MlDsa87 => Algorithm::MlDsa87,
        }
    }

    /// Octets of a public key (FIPS 204 table 2).
    #[must_use]
    pub const fn public_key_len(self) -> usize {
        match self {
            Self::MlDsa44 => 1312,
            Self::MlDsa65 => 1952,
            Self::MlDsa87 => 2592,
        }
    }

    /// Octets of a signature (FIPS 204 table 2).
    #[must_use]
    pub const fn signature_len(self) -> usize {
        match self {
            Self::MlDsa44 => 2420,
            Self::MlDsa65 => 3309,
            Self::MlDsa87 => 4627,
        }
    }
}

impl Digest {
    /// Octets of the digest.
    #[must_use]
    pub const fn octets(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The name as people write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        }
    }
}
