//! The immutable view of all keyrings that this replica signs and publishes from.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::domain::{Algorithm, Domain, Keyring, Kid, SigningKey, Tenant, TenantId};
use crate::jose::{self, BadPublicKey, Jwk, Verifier};
use crate::store::TenantRecord;
use crate::token::KeyRef;

/// All tenants at one moment. Made anew when something changes; a change in one tenant shares the others' views.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    tenants: HashMap<TenantId, Arc<TenantView>>,
    domains: HashMap<Domain, TenantId>,
}

/// One tenant: its record, what signs, and the documents that verifiers fetch.
#[derive(Debug)]
pub struct TenantView {
    /// The record that this view was made from.
    pub record: TenantRecord,
    /// What signs, for each algorithm that has a current key.
    pub(super) signers: Vec<Arc<Signer>>,
    /// The JWKS.
    pub jwks: Document,
    /// OIDC discovery under the canonical base URL.
    pub discovery: Document,
    /// OIDC discovery on the custom domain, if there is one.
    pub custom_discovery: Option<Document>,
}

/// A current key, ready to sign: header and signature come from this one value (R5).
///
/// Exactly as long as a request holds one, that request may sign with the key: the fence of R10 waits for the last of them.
#[derive(Debug)]
pub struct Signer {
    /// The key on the token.
    pub key: Arc<KeyRef>,
    /// Its name.
    pub kid: Kid,
    /// Checks what the token returns (R11).
    pub verifier: Verifier,
    /// The encoded header of an ordinary JWT, with `typ` "JWT".
    pub jwt_header: String,
}

/// A document as it is served: bytes made once (R9).
#[derive(Clone, Debug)]
pub struct Document {
    /// The body.
    pub body: Bytes,
    /// Strong entity tag (RFC 9110 section 8.8.3), quotes included.
    pub etag: String,
}

impl Snapshot {
    /// Whether there is no tenant at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// The tenant of this id; one that is being deleted is not here.
    #[must_use]
    pub fn tenant(&self, id: &TenantId) -> Option<&Arc<TenantView>> {
        self.tenants.get(id).filter(|view| view.record.tenant.delete_time.is_none())
    }

    /// The tenant of this custom domain.
    #[must_use]
    pub fn tenant_of_domain(&self, domain: &Domain) -> Option<&Arc<TenantView>> {
        self.domains.get(domain).and_then(|id| self.tenant(id))
    }

    /// Every tenant, those that are being deleted included; in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<TenantView>> {
        self.tenants.values()
    }

    /// The view of this tenant, even if it is being deleted.
    #[must_use]
    pub fn view(&self, id: &TenantId) -> Option<&Arc<TenantView>> {
        self.tenants.get(id)
    }

    /// This snapshot with one tenant's view put in place of the old one.
    #[must_use]
    pub fn with(&self, view: TenantView) -> Self {
        let mut snapshot = self.without(&view.record.tenant.id);
        let tenant = &view.record.tenant;
        if let (Some(domain), None) = (&tenant.custom_domain, tenant.delete_time) {
            snapshot.domains.insert(domain.clone(), tenant.id.clone());
        }
        snapshot.tenants.insert(tenant.id.clone(), Arc::new(view));
        snapshot
    }

    /// This snapshot without one tenant.
    #[must_use]
    pub fn without(&self, id: &TenantId) -> Self {
        let mut snapshot = self.clone();
        snapshot.tenants.remove(id);
        snapshot.domains.retain(|_, tenant| tenant != id);
        snapshot
    }
}

impl TenantView {
    /// The view of `record`. Signers of `earlier` that are still current are kept, so that what they hold ready stays.
    ///
    /// # Errors
    /// A public key in the record is not one.
    pub fn new(record: TenantRecord, base_url: &str, earlier: Option<&Self>) -> Result<Self, BadPublicKey> {
        let mut signers = Vec::new();
        for keyring in &record.keyrings {
            if let Some(current) = keyring.current() {
                let kept = earlier.and_then(|view| view.signer(keyring.algorithm)).filter(|old| old.kid == current.kid);
                signers.push(match kept {
                    Some(signer) => Arc::clone(signer),
                    None => Arc::new(Signer::new(keyring.algorithm, current)?),
                });
            }
        }
        let tenant = &record.tenant;
        let canonical = format!("{base_url}/{}", tenant.id);
        let discovery = discovery(tenant, tenant.issuer.as_str(), &canonical);
        let custom_discovery = tenant.custom_issuer().map(|issuer| self::discovery(tenant, &issuer, &issuer));
        Ok(Self { jwks: jwks(&record.keyrings), discovery, custom_discovery, signers, record })
    }

    /// What signs for `algorithm` now.
    #[must_use]
    pub fn signer(&self, algorithm: Algorithm) -> Option<&Arc<Signer>> {
        self.signers.iter().find(|signer| signer.key.algorithm == algorithm)
    }

    /// The key of this name, with its keyring.
    #[must_use]
    pub fn key(&self, kid: &Kid) -> Option<(&Keyring, &SigningKey)> {
        self.record.keyrings.iter().find_map(|keyring| keyring.key(kid).map(|key| (keyring, key)))
    }
}

impl Signer {
    fn new(algorithm: Algorithm, key: &SigningKey) -> Result<Self, BadPublicKey> {
        Ok(Self {
            verifier: Verifier::new(algorithm, &key.public)?,
            jwt_header: jose::header_segment(algorithm, &key.kid, "JWT"),
            kid: key.kid.clone(),
            key: Arc::new(KeyRef { object: key.object, algorithm, public: key.public.clone() }),
        })
    }
}

impl Document {
    fn new(body: Vec<u8>) -> Self {
        let etag = format!("\"{}\"", jose::encode_segment(&jose::digest(crate::domain::Digest::Sha256, &body)));
        Self { body: body.into(), etag }
    }
}

fn jwks(keyrings: &[Keyring]) -> Document {
    let of = |keyring: &'_ Keyring| keyring.algorithm;
    let published = keyrings.iter().flat_map(|keyring| {
        let keys = keyring.keys.iter().filter(|key| key.state.is_published());
        keys.map(move |key| Jwk::new(of(keyring), key))
    });
    let mut keys: Vec<Jwk<'_>> = published.collect();
    keys.sort_by_key(Jwk::rank);
    Document::new(jose::jwks_json(&keys))
}

/// OpenID Connect Discovery 1.0 section 3: the members that a signer can state.
fn discovery(tenant: &Tenant, issuer: &str, base: &str) -> Document {
    let algorithms: Vec<&str> = tenant.algorithms.iter().map(|algorithm| algorithm.name()).collect();
    let document = serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{base}/.well-known/jwks.json"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    });
    Document::new(document.to_string().into_bytes())
}
