use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;

use super::{File, Unusable};
use crate::x509;

/// Authorities in one file: a company has a few, and two of each while one takes over from another.
const AUTHORITIES_MAX: usize = 64;

/// Who is believed to be a client.
pub(super) struct Clients {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// When the first of the revocation lists is out of date.
    pub(super) next_update_secs: Option<u64>,
}

impl Clients {
    /// Whoever has a certificate of these authorities, that is not on a list of theirs.
    ///
    /// With lists, a certificate counts as revoked as long as its state is not known: when the list of the authority that made
    /// it, or of one between, is not there or out of date.
    pub(super) fn parse(
        authorities: &[u8],
        revocation_lists: Option<&[u8]>,
        required: bool,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, Unusable> {
        let unusable = || {
            let problem = format!(
                "must name a PEM file with 1 to {AUTHORITIES_MAX} certificates of authorities that make clients' certificates"
            );
            File::ClientCa.at_fault(problem)
        };
        let certificates: Vec<CertificateDer<'_>> =
            CertificateDer::pem_slice_iter(authorities).collect::<Result<_, _>>().map_err(|_| unusable())?;
        if !(1..=AUTHORITIES_MAX).contains(&certificates.len()) {
            return Err(unusable());
        }
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|_| unusable())?;
        }
        let lists = revocation_lists.map(|lists| read_lists(lists, &roots)).transpose()?;
        let next_update_secs = lists.as_ref().and_then(|(_, next_update_secs)| *next_update_secs);
        let lists = lists.map(|(lists, _)| lists).unwrap_or_default();
        let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls(lists)
            .enforce_revocation_expiration();
        if !required {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier
            .build()
            .map_err(|error| File::RevocationLists.at_fault(format!("has a list that cannot be used: {error}")))?;
        Ok(Self { verifier, next_update_secs })
    }
}

type Lists = (Vec<CertificateRevocationListDer<'static>>, Option<u64>);

fn read_lists(pem: &[u8], authorities: &RootCertStore) -> Result<Lists, Unusable> {
    let unusable = || {
        File::RevocationLists.at_fault("must name a PEM file with certificate revocation lists of version 2 (X.509v2)")
    };
    let lists: Vec<CertificateRevocationListDer<'static>> =
        CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| unusable())?;
    let facts = lists.iter().map(|list| x509::RevocationList::read(list).map_err(|_| unusable()));
    let facts = facts.collect::<Result<Vec<_>, _>>()?;
    if facts.is_empty() {
        return Err(unusable());
    }
    for name in authorities.subjects() {
        if !facts.iter().any(|list| list.issuer == name.as_ref()) {
            let problem = "must have a list of each authority in the client CA file: without it, none of its clients \
                           would be believed";
            return Err(File::RevocationLists.at_fault(problem));
        }
    }
    Ok((lists, facts.iter().filter_map(|list| list.next_update_secs).min()))
}
