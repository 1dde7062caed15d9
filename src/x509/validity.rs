use der::asn1::{AnyRef, BitStringRef};
use der::oid::AssociatedOid as _;
use der::oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_KP_SERVER_AUTH};
use der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::crl::CertificateList;
use x509_cert::der;
use x509_cert::ext::pkix::{CrlNumber, ExtendedKeyUsage, IssuingDistributionPoint, KeyUsage};

use super::Unreadable;

/// What the certificate of a server says of its use.
#[derive(Clone, Copy, Debug)]
pub struct ServerUse {
    /// From when it is valid (RFC 5280 section 4.1.2.5), in seconds since 1970.
    pub not_before_secs: u64,
    /// Until when, this second included.
    pub not_after_secs: u64,
    /// Whether it may be a TLS server's (RFC 5280 section 4.2.1.12): it says so, or says nothing of what it is for.
    pub may_serve: bool,
}

impl ServerUse {
    /// Reads the certificate in `der`.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let certificate = x509_cert::Certificate::from_der(der).map_err(|_| Unreadable)?.tbs_certificate;
        let usage = certificate.get::<ExtendedKeyUsage>().map_err(|_| Unreadable)?;
        let serves = |usage: &ExtendedKeyUsage| {
            usage.0.iter().any(|usage| [ID_KP_SERVER_AUTH, ANY_EXTENDED_KEY_USAGE].contains(usage))
        };
        Ok(Self {
            not_before_secs: certificate.validity.not_before.to_unix_duration().as_secs(),
            not_after_secs: certificate.validity.not_after.to_unix_duration().as_secs(),
            may_serve: usage.is_none_or(|(_, usage)| serves(&usage)),
        })
    }
}

/// An authority as the one who signs revocation lists.
#[derive(Debug)]
pub struct ListSigner {
    /// Its name, in DER.
    pub name: Vec<u8>,
    /// AlgorithmIdentifier of its key, without tag and length.
    pub key_algorithm: Vec<u8>,
    /// subjectPublicKey.
    pub key: Vec<u8>,
    /// Whether it may sign lists (cRLSign in RFC 5280 section 4.2.1.3).
    pub may_sign: bool,
}

impl ListSigner {
    /// The authority of the certificate in `der`.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        let read = || {
            let certificate = x509_cert::Certificate::from_der(der)?.tbs_certificate;
            let usage = certificate.get::<KeyUsage>()?;
            let key = &certificate.subject_public_key_info;
            Ok::<_, der::Error>(Self {
                name: certificate.subject.to_der()?,
                key_algorithm: AnyRef::from_der(&key.algorithm.to_der()?)?.value().to_vec(),
                key: key.subject_public_key.raw_bytes().to_vec(),
                may_sign: usage.is_none_or(|(_, usage)| usage.crl_sign()),
            })
        };
        read().map_err(|_| Unreadable)
    }
}

/// What a certificate revocation list says of itself (RFC 5280 section 5.1.2), and what verifies it.
#[derive(Debug)]
pub struct RevocationList<'a> {
    /// Which of the lists of its authority it is, and how new.
    pub edition: ListEdition,
    /// When there will be a newer one, in seconds since 1970.
    pub next_update_secs: Option<u64>,
    /// What was signed: tbsCertList in DER.
    pub message: &'a [u8],
    /// signatureAlgorithm, without tag and length.
    pub signature_algorithm: &'a [u8],
    /// signatureValue.
    pub signature: &'a [u8],
}

/// A list and its place among those before and after it.
#[derive(Clone, Debug)]
pub struct ListEdition {
    /// The name of whose list it is, in DER.
    pub issuer: Vec<u8>,
    /// Which certificates it is about, where that is not all (RFC 5280 section 5.2.5), in DER.
    pub scope: Option<Vec<u8>>,
    /// When it was made, in seconds since 1970.
    pub this_update_secs: u64,
    /// Its number (RFC 5280 section 5.2.3), in octets without leading zeros.
    pub number: Option<Vec<u8>>,
}

impl ListEdition {
    /// Whether it is about the same certificates.
    #[must_use]
    pub fn replaces(&self, other: &Self) -> bool {
        self.issuer == other.issuer && self.scope == other.scope
    }

    /// Whether it was made before the other one: by its time, or by its number, which never goes back.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        let order = |list: &Self| list.number.as_ref().map(|number| (number.len(), number.clone()));
        self.this_update_secs < other.this_update_secs || order(self) < order(other)
    }
}

impl<'a> RevocationList<'a> {
    /// Reads the list in `der`.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(der: &'a [u8]) -> Result<Self, Unreadable> {
        Self::decode(der).map_err(|_| Unreadable)
    }

    fn decode(der: &'a [u8]) -> der::Result<Self> {
        let list = CertificateList::from_der(der)?.tbs_cert_list;
        let extension = |oid| {
            let mut all = list.crl_extensions.iter().flatten();
            all.find(|extension| extension.extn_id == oid).map(|extension| extension.extn_value.as_bytes())
        };
        let number = extension(CrlNumber::OID).map(CrlNumber::from_der).transpose()?;
        // The octets that were signed, as they are: what is written anew may differ.
        let (message, algorithm, signature) = SliceReader::new(der)?
            .sequence(|reader| Ok((reader.tlv_bytes()?, AnyRef::decode(reader)?, BitStringRef::decode(reader)?)))?;
        Ok(Self {
            edition: ListEdition {
                issuer: list.issuer.to_der()?,
                scope: extension(IssuingDistributionPoint::OID).map(<[u8]>::to_vec),
                this_update_secs: list.this_update.to_unix_duration().as_secs(),
                number: number.map(|number| number.0.as_bytes().to_vec()),
            },
            next_update_secs: list.next_update.map(|time| time.to_unix_duration().as_secs()),
            message,
            signature_algorithm: algorithm.value(),
            signature: signature.raw_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_older_by_its_time_or_by_its_number() {
        let list = |this_update_secs, number: Option<&[u8]>| ListEdition {
            issuer: Vec::new(),
            scope: None,
            this_update_secs,
            number: number.map(<[u8]>::to_vec),
        };
        let in_use = list(10, Some(&[1, 0]));
        for (time, number, is_older) in [
            (10, Some(&[1, 0][..]), false),
            (11, Some(&[1, 1]), false),
            (9, Some(&[1, 1]), true),
            (11, Some(&[255]), true),
            (11, None, true),
        ] {
            assert_eq!(list(time, number).is_older_than(&in_use), is_older, "{time} {number:?}");
        }
        assert!(!list(10, None).is_older_than(&list(10, None)));
    }
}
