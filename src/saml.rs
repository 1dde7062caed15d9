//! SAML 2.0 metadata of a tenant as an identity provider (saml-metadata-2.0-os), signed as an enveloped XML Signature.
//!
//! The document is written in the form that Exclusive XML Canonicalization gives it, so that what is hashed and signed is
//! what is written: attributes in order, no empty-element tags, each namespace declared where it is first used.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::domain::{Algorithm, Certificate, Digest};
use crate::{jose, x509};

/// What the metadata says.
#[derive(Clone, Copy, Debug)]
pub struct Metadata<'a> {
    /// The identity provider's name: the issuer.
    pub entity_id: &'a str,
    /// Where it takes requests by HTTP redirect.
    pub sso_url: &'a str,
    /// The certificates of its signing keys: current, next, previous.
    pub certificates: &'a [&'a Certificate],
    /// How long a relying party may keep the document.
    pub cache_duration: Duration,
}

/// Metadata that lacks its signature: a key signs [`Unsigned::message`], and [`Unsigned::signed`] puts both together.
#[derive(Debug)]
pub struct Unsigned {
    opening: String,
    rest: String,
    signed_info: String,
}

/// How XML Signature names the signatures of an algorithm (RFC 9231 section 2.3), if the libraries of relying parties verify
/// them: they know RSA with PKCS #1 v1.5 and ECDSA.
#[must_use]
pub fn signature_method(algorithm: Algorithm) -> Option<&'static str> {
    Some(match algorithm {
        Algorithm::RS256 => "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
        Algorithm::RS384 => "http://www.w3.org/2001/04/xmldsig-more#rsa-sha384",
        Algorithm::RS512 => "http://www.w3.org/2001/04/xmldsig-more#rsa-sha512",
        Algorithm::ES256 => "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256",
        Algorithm::ES384 => "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
        Algorithm::ES512 => "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512",
        Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512
        | Algorithm::EdDSA
        | Algorithm::MlDsa44
        | Algorithm::MlDsa65
        | Algorithm::MlDsa87
        | Algorithm::HS256 => return None,
    })
}

const SIGNATURE: &str = "http://www.w3.org/2000/09/xmldsig#";
const EXCLUSIVE: &str = "http://www.w3.org/2001/10/xml-exc-c14n#";

impl Unsigned {
    /// The metadata, to be signed with this algorithm. `None` if XML Signature has no name for it.
    #[must_use]
    pub fn new(metadata: Metadata<'_>, algorithm: Algorithm) -> Option<Self> {
        let method = signature_method(algorithm)?;
        let rest = rest(metadata);
        // Named by what it says, so that no two documents of one name differ.
        let id = jose::digest(Digest::Sha256, format!("{} {rest}", metadata.entity_id).as_bytes());
        let id: String = id.iter().take(16).map(|octet| format!("{octet:02x}")).collect();
        let opening = format!(
            r#"<md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" ID="_{id}" cacheDuration="PT{}S" entityID="{}">"#,
            metadata.cache_duration.as_secs(),
            attribute(metadata.entity_id),
        );
        let digest = STANDARD.encode(jose::digest(Digest::Sha256, format!("{opening}{rest}").as_bytes()));
        let signed_info = format!(
            r##"<ds:SignedInfo xmlns:ds="{SIGNATURE}"><ds:CanonicalizationMethod Algorithm="{EXCLUSIVE}"></ds:CanonicalizationMethod><ds:SignatureMethod Algorithm="{method}"></ds:SignatureMethod><ds:Reference URI="#_{id}"><ds:Transforms><ds:Transform Algorithm="{SIGNATURE}enveloped-signature"></ds:Transform><ds:Transform Algorithm="{EXCLUSIVE}"></ds:Transform></ds:Transforms><ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmlenc#sha256"></ds:DigestMethod><ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"##
        );
        Some(Self { opening, rest, signed_info })
    }

    /// What the key signs: SignedInfo in its canonical form (XML Signature 1.1 section 4.4).
    #[must_use]
    pub fn message(&self) -> &[u8] {
        self.signed_info.as_bytes()
    }

    /// The document with this signature, ECDSA's as r || s, by the key of `certificate`.
    #[must_use]
    pub fn signed(self, signature: &[u8], certificate: &Certificate) -> String {
        let Self { opening, rest, signed_info } = self;
        let signature = STANDARD.encode(signature);
        let certificate = x509::base64(certificate);
        format!(
            r#"{opening}<ds:Signature xmlns:ds="{SIGNATURE}">{signed_info}<ds:SignatureValue>{signature}</ds:SignatureValue><ds:KeyInfo><ds:X509Data><ds:X509Certificate>{certificate}</ds:X509Certificate></ds:X509Data></ds:KeyInfo></ds:Signature>{rest}"#
        )
    }
}

/// The document after its opening tag.
fn rest(metadata: Metadata<'_>) -> String {
    let key = |certificate: &&Certificate| {
        let certificate = x509::base64(certificate);
        format!(
            r#"<md:KeyDescriptor use="signing"><ds:KeyInfo xmlns:ds="{SIGNATURE}"><ds:X509Data><ds:X509Certificate>{certificate}</ds:X509Certificate></ds:X509Data></ds:KeyInfo></md:KeyDescriptor>"#
        )
    };
    let keys: String = metadata.certificates.iter().map(key).collect();
    let location = attribute(metadata.sso_url);
    format!(
        r#"<md:IDPSSODescriptor protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol">{keys}<md:SingleSignOnService Binding="urn:oasis:names:tc:SAML:2.0:bindings:HTTP-Redirect" Location="{location}"></md:SingleSignOnService></md:IDPSSODescriptor></md:EntityDescriptor>"#
    )
}

/// An attribute's value as Canonical XML writes it (section 2.3); names here hold no control characters.
fn attribute(value: &str) -> String {
    value.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tenant_writes_stays_inside_its_attribute() {
        assert_eq!(attribute(r#"https://a.example/?a=1&b="<x>""#), "https://a.example/?a=1&amp;b=&quot;&lt;x>&quot;");
    }

    #[test]
    fn the_signed_part_names_the_document() {
        let certificate = Certificate::new(vec![1, 2, 3]);
        let metadata = Metadata {
            entity_id: "https://a.example",
            sso_url: "https://a.example/sso",
            certificates: &[&certificate],
            cache_duration: Duration::from_secs(300),
        };
        let unsigned = Unsigned::new(metadata, Algorithm::RS256).unwrap();
        let reference = String::from_utf8(unsigned.message().to_vec()).unwrap();
        let id = reference.split("URI=\"#").nth(1).unwrap().split('"').next().unwrap().to_owned();
        assert!(unsigned.signed(b"signature", &certificate).contains(&format!("ID=\"{id}\"")));
        assert!(Unsigned::new(metadata, Algorithm::EdDSA).is_none());
    }
}
