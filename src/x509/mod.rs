//! X.509: public keys and certificates as programs outside the JOSE world read them. Pure functions over public data.
//!
//! A certificate here says no more than a JWK does: that a key belongs to a tenant. Nothing is certified by anybody else,
//! and how long a key is in use is told by the JWKS and by the SAML metadata, never by the certificate.

mod certificate;
mod spki;
mod subject;
mod text;
mod validity;

pub use certificate::{CertifiedKey, Unreadable, Unsigned, public_key_of};
pub use spki::{ecdsa_der, ecdsa_raw, public_key_der, public_key_pem};
pub use subject::SubjectNames;
#[cfg(test)]
pub(crate) use subject::test_certificate;
pub use text::{base64, fingerprint, pem, pkcs7_pem, sha1, thumbprint};
pub use validity::{ListEdition, ListSigner, RevocationList, ServerUse};
