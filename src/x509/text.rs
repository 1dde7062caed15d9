use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cms::content_info::ContentInfo;
use der::pem::{LineEnding, encode_string};
use der::{Decode as _, Encode as _};
use sha1::{Digest as _, Sha1};
use x509_cert::der;

use crate::domain::Certificate;

/// The certificate as PEM (RFC 7468 section 5).
#[must_use]
pub fn pem(certificate: &Certificate) -> String {
    encode_string("CERTIFICATE", LineEnding::LF, certificate.der()).expect("the label is a valid one")
}

/// The certificate in base64 alone, as in `x5c` (RFC 7517 section 4.7) and in XML Signature's X509Certificate.
#[must_use]
pub fn base64(certificate: &Certificate) -> String {
    STANDARD.encode(certificate.der())
}

/// The certificate in a PKCS#7 certs-only message (RFC 5652 section 5, RFC 8551 section 3.8) as PEM. Empty for what is no
/// certificate.
#[must_use]
pub fn pkcs7_pem(certificate: &Certificate) -> String {
    let parsed = x509_cert::Certificate::from_der(certificate.der());
    let message = parsed.and_then(ContentInfo::try_from).and_then(|message| message.to_der());
    let pem = message.ok().and_then(|der| encode_string("PKCS7", LineEnding::LF, &der).ok());
    pem.unwrap_or_default()
}

/// SHA-1 of the certificate: names it (`x5t`, RFC 7517 section 4.8), and protects nothing.
#[must_use]
pub fn sha1(certificate: &Certificate) -> [u8; 20] {
    Sha1::digest(certificate.der()).into()
}

/// SHA-1 of the certificate in hexadecimal with colons, as `openssl x509 -fingerprint` prints it.
#[must_use]
pub fn fingerprint(certificate: &Certificate) -> String {
    sha1(certificate).map(|octet| format!("{octet:02X}")).join(":")
}

/// The fingerprint without colons.
#[must_use]
pub fn thumbprint(certificate: &Certificate) -> String {
    sha1(certificate).map(|octet| format!("{octet:02X}")).concat()
}
