//! SAML metadata: signed by the current key, once for each state of the tenant's keys.

use std::sync::Arc;
use std::time::Instant;

use super::generate::token_input;
use super::snapshot::{Document, Signer, Site, TenantView};
use super::{Error, Keyrings};
use crate::domain::{Certificate, KeyState, Keyring, TenantId};
use crate::saml::{Metadata, Unsigned, signature_method};

impl Keyrings {
    /// The SAML metadata of a tenant at its canonical address or on its custom domain, with the view that it is of: the
    /// certificates of its current, next and previous keys, signed by a current one. It is made at the first request after a
    /// change, and kept.
    ///
    /// Requests take turns to make it, and each takes the view of its turn: none waits while it holds a key (R10).
    ///
    /// # Errors
    /// [`Error::NotFound`] without the tenant, its `saml_sso_url`, or an algorithm that XML Signature's libraries know;
    /// [`Error::Limit`], [`Error::DeadlineExceeded`] and those of the token when it has to be made.
    pub async fn saml_metadata(
        &self,
        tenant: &TenantId,
        on_domain: bool,
    ) -> Result<(Arc<TenantView>, Document), Error> {
        let deadline = Instant::now() + self.settings.sign_wait_max;
        if let Some(made) = self.made_metadata(tenant, on_domain)? {
            return Ok(made);
        }
        let in_turn = async {
            let _turn = self.metadata_turns.turn(tenant).await?;
            if let Some(made) = self.made_metadata(tenant, on_domain)? {
                return Ok(made);
            }
            let view = self.view_of(tenant)?;
            let site = view.site(on_domain);
            let document = self.sign_metadata(&view, site, deadline).await?;
            let document = site.saml_metadata.get_or_init(|| document).clone();
            Ok((view, document))
        };
        let answer = tokio::time::timeout_at(deadline.into(), in_turn).await;
        answer.unwrap_or(Err(Error::DeadlineExceeded))
    }

    fn made_metadata(&self, tenant: &TenantId, on_domain: bool) -> Result<Option<(Arc<TenantView>, Document)>, Error> {
        let view = self.view_of(tenant)?;
        let made = view.site(on_domain).saml_metadata.get().cloned();
        Ok(made.map(|document| (view, document)))
    }

    fn view_of(&self, tenant: &TenantId) -> Result<Arc<TenantView>, Error> {
        self.snapshot().tenant(tenant).cloned().ok_or_else(|| self.absent(tenant))
    }

    async fn sign_metadata(&self, view: &TenantView, site: &Site, deadline: Instant) -> Result<Document, Error> {
        let tenant = &view.record.tenant;
        let Some(sso_url) = &tenant.saml_sso_url else {
            return Err(Error::NotFound("the tenant has no saml_sso_url; UpdateTenant sets it".to_owned()));
        };
        let Some((signer, certificate)) = metadata_signer(view) else {
            let known = tenant.algorithms.iter().any(|algorithm| signature_method(*algorithm).is_some());
            let message = if known {
                "the tenant's current key has no certificate; the next one that is generated has"
            } else {
                "the tenant has no key that SAML libraries verify: add RS256 or ES256 to its algorithms"
            };
            return Err(Error::NotFound(message.to_owned()));
        };
        self.check_age()?;
        let certificates = certificates(&view.record.keyrings);
        let metadata = Metadata {
            entity_id: &site.issuer,
            sso_url: sso_url.as_str(),
            certificates: &certificates,
            cache_duration: tenant.policy.jwks_max_age,
        };
        let unsigned = Unsigned::new(metadata, signer.key.algorithm).expect("the signer was chosen for its algorithm");
        let input = token_input(signer.key.algorithm, unsigned.message().to_vec());
        let signature = self.sign_prepared(signer, vec![input], deadline).await?.remove(0);
        Ok(Document::new(unsigned.signed(&signature, certificate).into_bytes()))
    }
}

impl TenantView {
    /// Whether the tenant has SAML metadata: [`Keyrings::saml_metadata`] finds it.
    #[must_use]
    pub fn has_saml_metadata(&self) -> bool {
        self.record.tenant.saml_sso_url.is_some() && metadata_signer(self).is_some()
    }
}

/// The default algorithm's current key if XML Signature can name its signatures, else the first that it can.
fn metadata_signer(view: &TenantView) -> Option<(&Arc<Signer>, &Certificate)> {
    let tenant = &view.record.tenant;
    let default_first = std::iter::once(&tenant.default_algorithm).chain(&tenant.algorithms);
    let mut known = default_first.filter(|algorithm| signature_method(**algorithm).is_some());
    known.find_map(|algorithm| {
        let signer = view.signer(*algorithm)?;
        let (_, key) = view.key(&signer.kid)?;
        Some((signer, key.certificate.as_ref()?))
    })
}

/// The certificates that relying parties must know: what signs, what will sign next, and what signed before.
fn certificates(keyrings: &[Keyring]) -> Vec<&Certificate> {
    let known = || keyrings.iter().filter(|keyring| signature_method(keyring.algorithm).is_some());
    let in_order = [KeyState::Current, KeyState::Next, KeyState::Previous];
    let keys = in_order.into_iter().flat_map(|state| known().flat_map(move |keyring| keyring.in_state(state)));
    keys.filter_map(|key| key.certificate.as_ref()).collect()
}
