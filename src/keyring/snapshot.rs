//! The immutable view of all keyrings that this replica signs and publishes from.

use std::collections::HashSet;
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use rpds::RedBlackTreeMapSync;

use super::Attended;
use crate::domain::{Algorithm, CustomKey, Domain, Keyring, Kid, RotationPolicy, SigningKey, TenantId};
use crate::jose::{self, BadPublicKey, Jwk, Verifier};
use crate::store::TenantRecord;
use crate::token::KeyRef;

/// All tenants at one moment. Made anew when something changes: a change in one tenant shares the others' views and, but for the
/// way to that tenant, the maps themselves, so that it costs the same beside ten thousand tenants as beside one.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    tenants: RedBlackTreeMapSync<TenantId, Arc<TenantView>>,
    domains: RedBlackTreeMapSync<Domain, TenantId>,
    /// Tenants whose records are not to be believed (R15), and the domain that each was served on.
    quarantined: RedBlackTreeMapSync<TenantId, Option<Domain>>,
    /// Those among them of which this process never had a view: nobody knows their keys.
    unseen: RedBlackTreeMapSync<TenantId, ()>,
    /// The keys that stand in a view, or stood in one for as long as the process runs. One set for all snapshots that were made
    /// from each other; it only grows, by some 150 octets a key: a hundred thousand rotations are 15 MB.
    served: Arc<RwLock<HashSet<Kid>>>,
}

/// One tenant: its record, what signs, and the documents that verifiers fetch.
#[derive(Debug)]
pub struct TenantView {
    /// The record that this view was made from.
    pub record: TenantRecord,
    /// The token that its keys are on.
    pub(super) token: Arc<Attended>,
    /// What signs, for each algorithm that has a current key.
    pub(super) signers: Vec<Arc<Signer>>,
    /// What is served under the canonical base URL.
    pub canonical: Site,
    /// What is served on the custom domain, if there is one.
    pub custom: Option<Site>,
    /// How long caches may keep all of that, of the one service of a store and of a replica.
    cache_control: [HeaderValue; 2],
}

/// The documents of a tenant as one of its addresses serves them.
#[derive(Debug)]
pub struct Site {
    /// The issuer at this address.
    pub issuer: String,
    /// Where the documents are, without a trailing slash.
    pub base_url: String,
    /// The JWKS; the tenant's custom keys are in that of the custom domain alone.
    pub jwks: Document,
    /// OIDC discovery.
    pub discovery: Document,
    /// SAML metadata, once somebody asked for it: it takes a signature.
    pub(super) saml_metadata: OnceLock<Document>,
}

/// A current key, ready to sign: header and signature come from this one value (R5).
///
/// Exactly as long as a request holds one, that request may sign with the key: the fence of R10 waits for the last of them.
#[derive(Debug)]
pub struct Signer {
    /// The token that the key is on.
    pub(super) token: Arc<Attended>,
    /// The key there.
    pub key: Arc<KeyRef>,
    /// Its name.
    pub kid: Kid,
    /// Checks what the token returns (R11); nothing but the token itself can for HS256.
    pub verifier: Option<Verifier>,
    /// The encoded header of an ordinary JWT, with `typ` "JWT".
    pub jwt_header: String,
}

/// A document as it is served: bytes made once (R9).
#[derive(Clone, Debug)]
pub struct Document {
    /// The body.
    pub body: Bytes,
    /// Strong entity tag (RFC 9110 section 8.8.3), quotes included: the value of ETag.
    pub etag: HeaderValue,
}

impl Snapshot {
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

    /// Every tenant, those that are being deleted included; ordered by id.
    pub fn all(&self) -> impl Iterator<Item = &Arc<TenantView>> {
        self.tenants.values()
    }

    /// Those whose ids come after this one; `None`: all.
    pub fn after(&self, id: Option<&TenantId>) -> impl Iterator<Item = &Arc<TenantView>> {
        let start = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.tenants.range((start, Bound::Unbounded)).map(|(_, view)| view)
    }

    /// The view of this tenant, even if it is being deleted.
    #[must_use]
    pub fn view(&self, id: &TenantId) -> Option<&Arc<TenantView>> {
        self.tenants.get(id)
    }

    /// This snapshot with one tenant's view put in place of the old one.
    #[must_use]
    pub fn with(&self, view: TenantView) -> Self {
        let tenant = &view.record.tenant;
        let mut snapshot = self.without(&tenant.id);
        if let Some(domain) = served_on(&view) {
            snapshot.domains.insert_mut(domain.clone(), tenant.id.clone());
        }
        let kids = view.record.keyrings.iter().flat_map(|keyring| &keyring.keys).map(|key| &key.kid);
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        for kid in kids {
            if !served.contains(kid) {
                served.insert(kid.clone());
            }
        }
        drop(served);
        snapshot.tenants.insert_mut(tenant.id.clone(), Arc::new(view));
        snapshot
    }

    /// This snapshot with one tenant out of service.
    #[must_use]
    pub fn quarantining(&self, id: &TenantId) -> Self {
        let view = self.tenants.get(id);
        let known = self.quarantined.get(id);
        let unseen = self.unseen.contains_key(id) || (known.is_none() && view.is_none());
        let mut snapshot = self.without(id);
        let served_on = view.and_then(|view| served_on(view).filter(|domain| self.domains.get(domain) == Some(id)));
        snapshot.quarantined.insert_mut(id.clone(), served_on.or(known.and_then(Option::as_ref)).cloned());
        if unseen {
            snapshot.unseen.insert_mut(id.clone(), ());
        }
        snapshot
    }

    /// Whether the tenant of this id is out of service, because its record is not to be believed.
    #[must_use]
    pub fn is_quarantined(&self, id: &TenantId) -> bool {
        self.quarantined.contains_key(id)
    }

    /// Whether a tenant that is out of service was served on this domain, as far as this process knows.
    #[must_use]
    pub fn is_quarantined_domain(&self, domain: &Domain) -> bool {
        // They are a handful, or the service has other troubles than this walk.
        self.quarantined.values().any(|served_on| served_on.as_ref() == Some(domain))
    }

    /// This snapshot without one tenant.
    #[must_use]
    pub fn without(&self, id: &TenantId) -> Self {
        let mut snapshot = self.clone();
        snapshot.quarantined.remove_mut(id);
        snapshot.unseen.remove_mut(id);
        if let Some(domain) = self.tenants.get(id).and_then(|view| served_on(view))
            && self.domains.get(domain) == Some(id)
        {
            snapshot.domains.remove_mut(domain);
        }
        snapshot.tenants.remove_mut(id);
        snapshot
    }

    /// Whether this process serves, or ever served, the key of this name for some tenant: also after the tenant was deleted, and
    /// while it is quarantined.
    #[must_use]
    pub fn has_served(&self, kid: &Kid) -> bool {
        self.served.read().unwrap_or_else(PoisonError::into_inner).contains(kid)
    }

    /// Whether there is a tenant whose keys nobody knows: it was quarantined when this process started.
    #[must_use]
    pub fn has_unseen(&self) -> bool {
        !self.unseen.is_empty()
    }
}

/// The domain that a tenant is served on, if it has one and is not being deleted.
fn served_on(view: &TenantView) -> Option<&Domain> {
    let tenant = &view.record.tenant;
    tenant.custom_domain.as_ref().filter(|_| tenant.delete_time.is_none())
}

impl TenantView {
    /// The view of `record`, whose keys are on `token`. Signers of `earlier` that are still current are kept, so that what they hold ready stays.
    ///
    /// # Errors
    /// A public key in the record is not one.
    pub fn new(
        record: TenantRecord,
        token: Arc<Attended>,
        base_url: &str,
        earlier: Option<&Self>,
    ) -> Result<Self, BadPublicKey> {
        let mut signers = Vec::new();
        for keyring in &record.keyrings {
            if let Some(current) = keyring.current() {
                let kept = earlier.and_then(|view| view.signer(keyring.algorithm)).filter(|old| old.kid == current.kid);
                signers.push(match kept {
                    Some(signer) => Arc::clone(signer),
                    None => Arc::new(Signer::new(&record.tenant.id, &token, keyring.algorithm, current)?),
                });
            }
        }
        let tenant = &record.tenant;
        let own = jwks(&record.keyrings, &[]);
        let site = |issuer: String, base_url: String, jwks: Document| {
            let discovery = discovery(&record.keyrings, &issuer, &base_url);
            Site::new(issuer, base_url, jwks, discovery)
        };
        let canonical = site(tenant.issuer.to_string(), format!("{base_url}/{}", tenant.id), own);
        let custom = tenant.custom_issuer().map(|issuer| {
            let all = jwks(&record.keyrings, &tenant.custom_keys);
            site(issuer.clone(), issuer, all)
        });
        Ok(Self {
            canonical,
            custom,
            token,
            signers,
            cache_control: [None, Some(Duration::ZERO)].map(|late| cache_control(&tenant.policy, late)),
            record,
        })
    }

    /// What is served on the custom domain, or under the canonical base URL.
    #[must_use]
    pub fn site(&self, on_domain: bool) -> &Site {
        self.custom.as_ref().filter(|_| on_domain).unwrap_or(&self.canonical)
    }

    /// How long caches may keep all of that: the value of Cache-Control. Of a replica, if the store last confirmed it so much later
    /// than usual; `None`: nobody else changes the store.
    #[must_use]
    pub fn cache_control(&self, late: Option<Duration>) -> HeaderValue {
        let [of_one, of_replica] = &self.cache_control;
        match late {
            None => of_one.clone(),
            Some(Duration::ZERO) => of_replica.clone(),
            Some(_) => cache_control(&self.record.tenant.policy, late),
        }
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
    fn new(
        tenant: &TenantId,
        token: &Arc<Attended>,
        algorithm: Algorithm,
        key: &SigningKey,
    ) -> Result<Self, BadPublicKey> {
        let reference =
            KeyRef { object: key.object, algorithm, public: key.public.clone(), tenant: Some(tenant.clone()) };
        Ok(Self {
            verifier: Verifier::of(algorithm, key.public.as_ref())?,
            jwt_header: jose::header_segment(algorithm, &key.kid, "JWT"),
            kid: key.kid.clone(),
            token: Arc::clone(token),
            key: Arc::new(reference),
        })
    }
}

impl Site {
    /// The site of these documents.
    #[must_use]
    pub fn new(issuer: String, base_url: String, jwks: Document, discovery: Document) -> Self {
        Self { issuer, base_url, jwks, discovery, saml_metadata: OnceLock::new() }
    }
}

impl Document {
    /// The document of these octets.
    #[must_use]
    pub fn new(body: Vec<u8>) -> Self {
        let etag = format!("\"{}\"", jose::encode_segment(&jose::digest(crate::domain::Digest::Sha256, &body)));
        let etag = HeaderValue::try_from(etag).expect("base64url");
        Self { body: body.into(), etag }
    }
}

/// RFC 9111 section 5.2.2 and RFC 5861. `publish_lead` covers max-age plus `clock_skew`, so a cache may be `clock_skew`
/// late at most; where this service is away, an old set is better than none, for as long as a new key takes to be used.
///
/// A replica that does not hear of the others is a cache itself: what it serves is fresh from when it last heard. And of
/// `clock_skew` replicas' clocks may use all, so that a cache may be late by what the lead has beyond that.
fn cache_control(policy: &RotationPolicy, late: Option<Duration>) -> HeaderValue {
    let RotationPolicy { jwks_max_age: max_age, clock_skew, publish_lead: lead, .. } = *policy;
    let stale = if late.is_some() { lead.saturating_sub(max_age + clock_skew) } else { clock_skew };
    let [max_age, stale, lead] =
        [max_age, stale, lead].map(|time| time.saturating_sub(late.unwrap_or_default()).as_secs());
    let value = format!("public, max-age={max_age}, stale-while-revalidate={stale}, stale-if-error={lead}");
    HeaderValue::try_from(value).expect("words and digits in ASCII")
}

/// The set of the keys that stand published: current, next, previous, custom.
fn jwks(keyrings: &[Keyring], custom: &[CustomKey]) -> Document {
    let published = keyrings.iter().flat_map(|keyring| {
        let keys = keyring.keys.iter().filter(|key| key.state.is_published());
        keys.filter_map(|key| Jwk::new(keyring.algorithm, key))
    });
    let mut keys: Vec<Jwk<'_>> = published.collect();
    keys.sort_by_key(Jwk::rank);
    Document::new(jose::jwks_json(&keys, custom))
}

/// OpenID Connect Discovery 1.0 section 3: the members that a signer can state. HS256 is not among the algorithms: its keys
/// are published nowhere, so no relying party could verify. A retired one is, for as long as what it signed may be in use (R4).
fn discovery(keyrings: &[Keyring], issuer: &str, base: &str) -> Document {
    let in_use = |keyring: &&Keyring| {
        let is_published = keyring.keys.iter().any(|key| key.state.is_published());
        keyring.algorithm.has_public_keys() && (keyring.close_time.is_none() || is_published)
    };
    let algorithms: Vec<&str> = keyrings.iter().filter(in_use).map(|keyring| keyring.algorithm.name()).collect();
    let document = serde_json::json!({
        "issuer": issuer,
        "jwks_uri": format!("{base}/.well-known/jwks.json"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    });
    Document::new(document.to_string().into_bytes())
}
