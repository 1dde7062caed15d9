use x509_cert::crl::CertificateList;
use x509_cert::der::{Decode as _, Encode as _};

use super::Unreadable;

/// When the certificate in `der` expires (RFC 5280 section 4.1.2.5), in seconds since 1970.
///
/// # Errors
/// [`Unreadable`].
pub fn not_after_secs(der: &[u8]) -> Result<u64, Unreadable> {
    let certificate = x509_cert::Certificate::from_der(der).map_err(|_| Unreadable)?;
    Ok(certificate.tbs_certificate.validity.not_after.to_unix_duration().as_secs())
}

/// What a certificate revocation list says of itself (RFC 5280 section 5.1.2). Its signature is not verified here.
#[derive(Debug)]
pub struct RevocationList {
    /// The name of whose list it is, in DER.
    pub issuer: Vec<u8>,
    /// When there will be a newer one, in seconds since 1970.
    pub next_update_secs: Option<u64>,
}

impl RevocationList {
    /// Reads the list in `der`.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let list = CertificateList::from_der(der).map_err(|_| Unreadable)?.tbs_cert_list;
        let issuer = list.issuer.to_der().map_err(|_| Unreadable)?;
        Ok(Self { issuer, next_update_secs: list.next_update.map(|time| time.to_unix_duration().as_secs()) })
    }
}
