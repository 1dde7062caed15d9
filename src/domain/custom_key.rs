use serde::{Deserialize, Serialize};

use super::{Algorithm, CustomKid, Octets, PublicKey, WebUrl};

/// A public key that a tenant brought itself; Keyward only publishes it, on the tenant's custom domain.
///
/// Its JSON is the JWK that is published (RFC 7517 section 4). Whoever makes one from a caller's JWK checks what the types
/// do not: that the key is one, and that its certificate is of the same key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomKey {
    /// The public key.
    #[serde(flatten)]
    pub public: PublicKey,
    /// Always "sig".
    pub r#use: Signatures,
    /// Its name.
    pub kid: CustomKid,
    /// The algorithm that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alg: Option<Algorithm>,
    /// What it is for in other words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_ops: Option<[Verify; 1]>,
    /// Where its certificate is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x5u: Option<WebUrl>,
    /// Its certificate and those above it, each in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x5c: Option<Vec<String>>,
    /// SHA-1 of its certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x5t: Option<Octets>,
    /// SHA-256 of its certificate.
    #[serde(rename = "x5t#S256", skip_serializing_if = "Option::is_none")]
    pub x5t_s256: Option<Octets>,
}

/// The one `use` of keys here (RFC 7517 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signatures {
    /// Signatures.
    Sig,
}

/// The one operation of a public key that verifies (RFC 7517 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Verify signatures.
    Verify,
}
