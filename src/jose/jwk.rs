use serde::Serialize;

use super::crypto;
use crate::domain::{Algorithm, CustomKey, Digest, KeyState, Kid, Octets, PublicKey, SigningKey};
use crate::x509;

/// A public signing key as the JWKS shows it (RFC 7517 section 4).
///
/// The rotation state stands in a member of Keyward's own, which RFC 7517 tells clients to ignore where they do not know
/// it; `use` stays what the registry says, because clients refuse anything else.
#[derive(Debug, Serialize)]
pub struct Jwk<'a> {
    #[serde(flatten)]
    public: &'a PublicKey,
    r#use: &'static str,
    /// Left out where `public` has it among its own members.
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<Algorithm>,
    kid: &'a Kid,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateMembers>,
    state: KeyState,
}

/// The members of a JWK that tell of its certificate (RFC 7517 sections 4.7 to 4.9).
#[derive(Debug, Serialize)]
struct CertificateMembers {
    x5c: [String; 1],
    x5t: Octets,
    #[serde(rename = "x5t#S256")]
    x5t_s256: Octets,
}

impl<'a> Jwk<'a> {
    /// The JWK of a signing key; none for HS256, whose keys are never published.
    #[must_use]
    pub fn new(algorithm: Algorithm, key: &'a SigningKey) -> Option<Self> {
        let certificate = key.certificate.as_ref().map(|certificate| CertificateMembers {
            x5c: [x509::base64(certificate)],
            x5t: Octets(x509::sha1(certificate).to_vec()),
            x5t_s256: Octets(crypto::digest(Digest::Sha256, certificate.der())),
        });
        let public = key.public.as_ref()?;
        let alg = (!matches!(public, PublicKey::MlDsa { .. })).then_some(algorithm);
        Some(Self { public, r#use: "sig", alg, kid: &key.kid, certificate, state: key.state })
    }

    /// Where the key stands in a set: current, then next, then previous.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self.state {
            KeyState::Current => 0,
            KeyState::Next => 1,
            KeyState::Previous | KeyState::Revoked | KeyState::Destroyed => 2,
        }
    }
}

/// The JWK Set (RFC 7517 section 5) of these keys, in their order; then the custom ones.
#[must_use]
pub fn jwks_json(own: &[Jwk<'_>], custom: &[CustomKey]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Key<'a> {
        Own(&'a Jwk<'a>),
        Custom(&'a CustomKey),
    }
    #[derive(Serialize)]
    struct Set<'a> {
        keys: Vec<Key<'a>>,
    }
    let keys = own.iter().map(Key::Own).chain(custom.iter().map(Key::Custom)).collect();
    serde_json::to_vec(&Set { keys }).expect("text and octets are always JSON")
}

/// The RFC 7638 SHA-256 thumbprint, which names the key.
#[must_use]
pub fn thumbprint(public: &PublicKey) -> Kid {
    // The required members alone, in lexicographic order, without white space (RFC 7638 section 3).
    let members = match public {
        PublicKey::Rsa { n, e } => format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#),
        PublicKey::Ec { crv, x, y } => {
            let crv = serde_json::to_string(crv).expect("a curve's name is JSON");
            format!(r#"{{"crv":{crv},"kty":"EC","x":"{x}","y":"{y}"}}"#)
        }
        PublicKey::Ed25519 { x, .. } => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#),
        PublicKey::MlDsa { alg, r#pub } => format!(r#"{{"alg":"{}","kty":"AKP","pub":"{pub}"}}"#, alg.name()),
    };
    let thumbprint = Octets(crypto::digest(Digest::Sha256, members.as_bytes()));
    thumbprint.to_string().parse().expect("base64url of 32 octets is a kid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprint_is_that_of_rfc_7638_section_3_1() {
        let jwk = r#"{"kty":"RSA","e":"AQAB","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}"#;
        let public: PublicKey = serde_json::from_str(jwk).unwrap();
        assert_eq!(thumbprint(&public).as_str(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn thumbprint_of_an_ed25519_key_is_that_of_rfc_8037_appendix_a_3() {
        let jwk = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let public: PublicKey = serde_json::from_str(jwk).unwrap();
        assert_eq!(thumbprint(&public).as_str(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
