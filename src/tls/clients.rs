use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;

use super::{File, Unusable};
use crate::x509::{ListEdition, ListSigner, RevocationList};

/// Authorities in one file: a company has a few, and two of each while one takes over from another.
const AUTHORITIES_MAX: usize = 64;

/// Who is believed to be a client.
pub(super) struct Clients {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) lists: Editions,
}

/// Which revocation lists are in use.
#[derive(Clone, Default)]
pub(super) struct Editions {
    /// The newest there was of each, since the process began.
    newest: Vec<ListEdition>,
    /// When the first of those in use is out of date.
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
        in_use: Option<&Editions>,
        now_secs: u64,
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
        let signers: Vec<ListSigner> =
            certificates.iter().map(|der| ListSigner::read(der)).collect::<Result<_, _>>().map_err(|_| unusable())?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|_| unusable())?;
        }
        let mut editions = in_use.cloned().unwrap_or_default();
        editions.next_update_secs = None;
        let lists = match revocation_lists {
            Some(pem) => editions.take(pem, &signers, &provider, now_secs)?,
            None => Vec::new(),
        };
        let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls(lists)
            .enforce_revocation_expiration();
        if !required {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier
            .build()
            .map_err(|error| File::RevocationLists.at_fault(format!("has a list that cannot be used: {error}")))?;
        Ok(Self { verifier, lists: editions })
    }
}

impl Editions {
    /// Takes up the lists in a file, if each of them may be used: it is its authority's, it is not out of date, and none that
    /// was in use is newer, because a list of before does not have what was revoked since.
    fn take(
        &mut self,
        pem: &[u8],
        signers: &[ListSigner],
        provider: &CryptoProvider,
        now_secs: u64,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, Unusable> {
        let unusable = |problem: &str| File::RevocationLists.at_fault(problem);
        let unreadable = || unusable("must name a PEM file with certificate revocation lists of version 2 (X.509v2)");
        let lists: Vec<CertificateRevocationListDer<'static>> =
            CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| unreadable())?;
        let read: Vec<RevocationList<'_>> =
            lists.iter().map(|list| RevocationList::read(list)).collect::<Result<_, _>>().map_err(|_| unreadable())?;
        if read.is_empty() {
            return Err(unreadable());
        }
        for signer in signers {
            if !read.iter().any(|list| list.edition.issuer == signer.name) {
                return Err(unusable(
                    "must have a list of each authority in the client CA file: without it, none of its clients would be \
                     believed",
                ));
            }
        }
        for (index, list) in read.iter().enumerate() {
            if read[..index].iter().any(|other| list.edition.replaces(&other.edition)) {
                return Err(unusable("has two lists for the same certificates: leave the newer one alone there"));
            }
            // That of an authority between is verified in the handshake, which brings the certificate.
            let mut of_name = signers.iter().filter(|signer| signer.name == list.edition.issuer).peekable();
            if of_name.peek().is_some() && !of_name.any(|signer| is_signed_by(list, signer, provider)) {
                return Err(unusable(
                    "has a list that was not signed by its authority, or by one that may not sign lists",
                ));
            }
            if list.next_update_secs.is_none_or(|next| next <= now_secs) {
                return Err(unusable("has a list that is out of date: its nextUpdate is past; fetch a new one"));
            }
            if self.newest.iter().any(|known| list.edition.replaces(known) && list.edition.is_older_than(known)) {
                return Err(unusable(
                    "has a list that is older than the one in use: what was revoked since would be good again",
                ));
            }
        }
        self.next_update_secs = read.iter().filter_map(|list| list.next_update_secs).min();
        for list in &read {
            // One that is left out for a time must not come back older.
            self.newest.retain(|known| !list.edition.replaces(known));
            self.newest.push(list.edition.clone());
        }
        Ok(lists)
    }
}

fn is_signed_by(list: &RevocationList<'_>, signer: &ListSigner, provider: &CryptoProvider) -> bool {
    let fits = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
        algorithm.public_key_alg_id().as_ref() == signer.key_algorithm
            && algorithm.signature_alg_id().as_ref() == list.signature_algorithm
    };
    let verifies = |algorithm: &&dyn SignatureVerificationAlgorithm| {
        algorithm.verify_signature(&signer.key, list.message, list.signature).is_ok()
    };
    signer.may_sign && provider.signature_verification_algorithms.all.iter().filter(fits).any(verifies)
}
