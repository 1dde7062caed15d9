use der::Decode as _;
use der::asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use der::oid::db::rfc4519;
use x509_cert::der;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::Unreadable;

/// The names that a certificate gives its subject, of the kinds that can name a client. Nothing is said of who certified them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SubjectNames {
    /// URIs among the subject alternative names (RFC 5280 section 4.2.1.6).
    pub uris: Vec<String>,
    /// DNS names among them.
    pub dns: Vec<String>,
    /// Common names of the subject (RFC 5280 section 4.1.2.6).
    pub common_names: Vec<String>,
}

impl SubjectNames {
    /// The names in a certificate in DER. Addresses, mailboxes and names of other kinds are passed over.
    ///
    /// # Errors
    /// It is no certificate, or its subject alternative names stand twice or cannot be read: whoever looks away then may take
    /// another name for the one that was certified.
    pub fn of_certificate(der: &[u8]) -> Result<Self, Unreadable> {
        let certificate = x509_cert::Certificate::from_der(der).map_err(|_| Unreadable)?.tbs_certificate;
        let mut names = Self::default();
        if let Some((_, alternatives)) = certificate.get::<SubjectAltName>().map_err(|_| Unreadable)? {
            for name in alternatives.0 {
                match name {
                    GeneralName::UniformResourceIdentifier(uri) => names.uris.push(uri.to_string()),
                    GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                    _ => {}
                }
            }
        }
        for attribute in certificate.subject.0.iter().flat_map(|names| names.0.iter()) {
            if attribute.oid == rfc4519::COMMON_NAME {
                names.common_names.push(text(&attribute.value).ok_or(Unreadable)?);
            }
        }
        Ok(names)
    }
}

/// A DirectoryString (RFC 5280 section 4.1.2.4) of a kind that is in use.
fn text(value: &der::Any) -> Option<String> {
    let text = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.to_string());
    let text = text.or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|text| text.to_string()));
    let text = text.or_else(|_| value.decode_as::<Ia5StringRef<'_>>().map(|text| text.to_string()));
    text.or_else(|_| value.decode_as::<TeletexStringRef<'_>>().map(|text| text.to_string())).ok()
}

/// A certificate with these names, for tests; nobody looks at its key and signature. Each alternative is the number of its
/// kind in GeneralName and its octets.
#[cfg(test)]
pub(crate) fn test_certificate(common_names: &[&str], alternatives: &[(u8, &[u8])]) -> Vec<u8> {
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let len = match u8::try_from(content.len()) {
            Ok(len @ ..128) => vec![len],
            Ok(len) => vec![0x81, len],
            Err(_) => [&[0x82][..], &u16::try_from(content.len()).expect("short").to_be_bytes()].concat(),
        };
        [&[tag], &*len, content].concat()
    }
    const SEQUENCE: u8 = 0x30;
    let oid = |octets: &[u8]| der(6, octets);
    let ed25519 = der(SEQUENCE, &oid(&[0x2b, 0x65, 0x70]));
    let name = |name: &&str| der(0x31, &der(SEQUENCE, &[oid(&[0x55, 4, 3]), der(0x0c, name.as_bytes())].concat()));
    let name = der(SEQUENCE, &common_names.iter().map(name).collect::<Vec<_>>().concat());
    let validity = der(SEQUENCE, &[der(0x17, b"250101000000Z"), der(0x17, b"250102000000Z")].concat());
    let key = der(SEQUENCE, &[ed25519.clone(), der(3, &[0; 33])].concat());
    let names: Vec<_> = alternatives.iter().map(|(kind, octets)| der(0x80 | kind, octets)).collect();
    let extension = der(SEQUENCE, &[oid(&[0x55, 0x1d, 0x11]), der(4, &der(SEQUENCE, &names.concat()))].concat());
    let extensions = if alternatives.is_empty() { vec![] } else { der(0xa3, &der(SEQUENCE, &extension)) };
    let version = der(0xa0, &der(2, &[2]));
    let tbs = [version, der(2, &[1]), ed25519.clone(), name.clone(), validity, name, key, extensions].concat();
    der(SEQUENCE, &[der(SEQUENCE, &tbs), ed25519, der(3, &[0; 65])].concat())
}
