//! What the page shows, as the template takes it: a pure function of tenant, keyrings and time.

use askama::Template;

use super::key::{At, KeyPart, KeyReader};
use super::words::{Moment, PolicyWords, span};
use crate::domain::{
    Algorithm, Curve, CustomKey, Family, KeyState, Keyring, PublicKey, RotationPolicy, SigningKey, Tenant, Timestamp,
    after,
};

/// How many previous keys of a keyring the page shows, the latest first. With rotation by schedule there are a few; who
/// needs more of them reads the JWKS, which has all.
const PREVIOUS_SHOWN_MAX: usize = 16;

/// A tenant's page.
#[derive(Template)]
#[template(path = "tenant.html")]
pub(super) struct TenantPage<'a> {
    style: &'static str,
    tenant: &'a Tenant,
    place: Place<'a>,
    as_of: Moment,
    keyrings: Vec<KeyringPart>,
    custom_keys: Vec<CustomKeyPart<'a>>,
    policy: PolicyWords,
}

/// The address that a page stands at.
pub(super) struct Place<'a> {
    /// The issuer at this address.
    pub(super) issuer: &'a str,
    /// Where the documents are, without a trailing slash.
    pub(super) base_url: &'a str,
    /// Whether there is SAML metadata.
    pub(super) has_saml_metadata: bool,
    /// The keys of the tenant's own that are published here.
    pub(super) custom_keys: &'a [CustomKey],
}

/// One keyring.
struct KeyringPart {
    algorithm: Algorithm,
    scheme: String,
    is_default: bool,
    /// Whether verifiers get its keys at all.
    is_published: bool,
    rotation: Rotation,
    keys: Vec<KeyPart>,
    /// Previous keys beyond [`PREVIOUS_SHOWN_MAX`].
    older: usize,
}

/// When the keyring rotates.
enum Rotation {
    ByHand,
    Every { period: String, next: Option<Moment> },
    Ended,
}

/// A key that the tenant brought itself.
struct CustomKeyPart<'a> {
    kid: &'a str,
    kind: String,
    algorithm: Option<Algorithm>,
}

impl<'a> TenantPage<'a> {
    /// The page of `tenant` at `now`, as it stands at `place`.
    pub(super) fn new(tenant: &'a Tenant, keyrings: &[Keyring], place: Place<'a>, now: Timestamp) -> Self {
        let mut keyrings: Vec<&Keyring> = keyrings.iter().collect();
        // The default algorithm first, then as the tenant lists them; one that was retired comes last.
        keyrings.sort_by_key(|keyring| {
            let place = tenant.algorithms.iter().position(|algorithm| *algorithm == keyring.algorithm);
            (keyring.algorithm != tenant.default_algorithm, place.unwrap_or(usize::MAX))
        });
        let shown = keyrings.into_iter().map(|keyring| KeyringPart::new(keyring, tenant, now));
        Self {
            style: super::STYLE,
            tenant,
            as_of: now.into(),
            keyrings: shown.filter(|keyring| !keyring.keys.is_empty()).collect(),
            custom_keys: place.custom_keys.iter().map(CustomKeyPart::new).collect(),
            policy: PolicyWords::new(&tenant.binding_policy(now)),
            place,
        }
    }
}

impl KeyringPart {
    fn new(keyring: &Keyring, tenant: &Tenant, now: Timestamp) -> Self {
        let policy = tenant.binding_policy(now);
        let is_published = keyring.algorithm.has_public_keys();
        let reader = KeyReader { policy: &policy, is_first: keyring.current().is_none(), is_published, now };
        let part = |key: &SigningKey| reader.read(key);
        let mut previous: Vec<&SigningKey> = keyring.in_state(KeyState::Previous).collect();
        previous.sort_by_key(|key| std::cmp::Reverse(key.retire_time));
        let older = previous.len().saturating_sub(PREVIOUS_SHOWN_MAX);

        let mut keys = Vec::new();
        match (keyring.next(), keyring.current()) {
            (Some(next), _) => keys.push(part(next)),
            (None, Some(_)) if keyring.close_time.is_none() => keys.push(KeyPart::generating(
                "next",
                "Being generated on the token. It appears in a moment; what is current goes on signing.",
            )),
            (None, None) if keyring.close_time.is_none() => keys.push(KeyPart::generating(
                "first key",
                "Being generated on the token. Nothing is signed or published until it is there: look again in a moment.",
            )),
            (None, _) => {}
        }
        keys.extend(keyring.current().map(part));
        keys.extend(previous.into_iter().take(PREVIOUS_SHOWN_MAX).map(part));
        Self {
            algorithm: keyring.algorithm,
            scheme: scheme(keyring.algorithm),
            is_default: keyring.algorithm == tenant.default_algorithm,
            is_published,
            rotation: Rotation::new(keyring, &policy),
            keys,
            older,
        }
    }
}

impl Rotation {
    fn new(keyring: &Keyring, policy: &RotationPolicy) -> Self {
        if keyring.close_time.is_some() {
            return Self::Ended;
        }
        if policy.rotation_period.is_zero() {
            return Self::ByHand;
        }
        // As the plan says: when the period is over, and not before the next key may sign (R3).
        let over = keyring.current().and_then(|key| key.activate_time).map(|time| after(time, policy.rotation_period));
        let next = over.zip(keyring.next()).map(|(over, next)| over.max(Keyring::ready_time(next, policy)));
        Self::Every { period: span(policy.rotation_period), next: next.map(Moment::from) }
    }
}

impl<'a> CustomKeyPart<'a> {
    fn new(key: &'a CustomKey) -> Self {
        let kind = match &key.public {
            PublicKey::Rsa { n, .. } => format!("RSA, {} bits", n.0.len() * 8),
            PublicKey::Ec { crv, .. } => curve(*crv).to_owned(),
            PublicKey::Ed25519 { .. } => "Ed25519".to_owned(),
            PublicKey::MlDsa { alg, .. } => alg.name().to_owned(),
        };
        Self { kid: key.kid.as_str(), kind, algorithm: key.alg }
    }
}

/// What the algorithm is, as RFC 7518 section 3.1 names it.
fn scheme(algorithm: Algorithm) -> String {
    let scheme = match algorithm.family() {
        Family::RsaPkcs1 => "RSASSA-PKCS1-v1_5".to_owned(),
        Family::RsaPss => "RSASSA-PSS".to_owned(),
        Family::Ecdsa(on) => format!("ECDSA on {}", curve(on)),
        Family::Ed25519 => "Ed25519".to_owned(),
        Family::MlDsa(_) => "ML-DSA (FIPS 204)".to_owned(),
        Family::Hmac => "HMAC with SHA-256".to_owned(),
    };
    match algorithm.digest() {
        Some(digest) => format!("{scheme} with {}", digest.name()),
        None => scheme,
    }
}

fn curve(curve: Curve) -> &'static str {
    match curve {
        Curve::P256 => "P-256",
        Curve::P384 => "P-384",
        Curve::P521 => "P-521",
    }
}
