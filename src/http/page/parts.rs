//! What the page shows, as the template takes it: a pure function of tenant, keyrings and time.

use askama::Template;

use super::words::{Moment, PolicyWords, between, span};
use crate::domain::{Algorithm, Family, KeyState, Keyring, RotationPolicy, SigningKey, Tenant, Timestamp, after};

/// How many previous keys of a keyring the page shows, the latest first. With rotation by schedule there are a few; who
/// needs more of them reads the JWKS, which has all.
const PREVIOUS_SHOWN_MAX: usize = 16;

/// A tenant's page.
#[derive(Template)]
#[template(path = "tenant.html")]
pub(super) struct TenantPage<'a> {
    style: &'static str,
    tenant: &'a Tenant,
    issuer: &'a str,
    /// Where the documents are, without a trailing slash.
    base: &'a str,
    as_of: Moment,
    keyrings: Vec<KeyringPart>,
    policy: PolicyWords,
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

/// One key on the timeline, or the place of one that is being generated.
struct KeyPart {
    state: &'static str,
    say: String,
    life: Vec<Milestone>,
    /// None for a secret, whose name is nobody's business, and for a key that is being generated.
    public: Option<PublicPart>,
}

/// One of the four moments in a key's life as verifiers see it.
struct Milestone {
    name: &'static str,
    reached: bool,
    at: At,
}

enum At {
    Time(Moment),
    Words(&'static str),
}

/// What names a published key.
struct PublicPart {
    kid: String,
    certificate: Option<CertificatePart>,
}

/// The fingerprints of a certificate, in pairs of digits: a narrow page breaks the line between two of them.
struct CertificatePart {
    sha1: Vec<String>,
    sha256: Vec<String>,
}

impl<'a> TenantPage<'a> {
    /// The page of `tenant` at `now`, under an issuer of its own whose documents are at `base`.
    pub(super) fn new(
        tenant: &'a Tenant,
        keyrings: &[Keyring],
        issuer: &'a str,
        base: &'a str,
        now: Timestamp,
    ) -> Self {
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
            issuer,
            base,
            as_of: now.into(),
            keyrings: shown.filter(|keyring| !keyring.keys.is_empty()).collect(),
            policy: PolicyWords::new(&tenant.binding_policy(now)),
        }
    }

    /// Whether every keyring has the key that signs.
    pub(super) fn is_settled(&self) -> bool {
        self.keyrings.iter().all(|keyring| matches!(keyring.rotation, Rotation::Ended) || keyring.has_current())
    }
}

impl KeyringPart {
    fn new(keyring: &Keyring, tenant: &Tenant, now: Timestamp) -> Self {
        let policy = tenant.binding_policy(now);
        let is_published = true;
        let part = |key: &SigningKey| KeyPart::new(key, &policy, tenant, is_published, now);
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

    fn has_current(&self) -> bool {
        self.keys.iter().any(|key| key.state == KeyState::Current.name())
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

impl KeyPart {
    fn new(key: &SigningKey, policy: &RotationPolicy, tenant: &Tenant, is_published: bool, now: Timestamp) -> Self {
        let known = |name, reached, time: Timestamp| Milestone { name, reached, at: At::Time(time.into()) };
        let open = |name, words| Milestone { name, reached: false, at: At::Words(words) };
        let reached = |name, time: Option<Timestamp>| match time {
            Some(time) => known(name, true, time),
            None => open(name, "unknown"),
        };
        let (entered, left) = if is_published { ("Published", "Leaves the JWKS") } else { ("Generated", "Ends") };
        let entered = known(entered, true, key.publish_time);
        let ready_time = Keyring::ready_time(key, policy);

        let (say, rest) = match key.state {
            KeyState::Next => {
                let say = match between(now, ready_time) {
                    Some(wait) if is_published => {
                        format!(
                            "Published, does not sign yet. It may in {}, when every verifier has had time to fetch it.",
                            span(wait)
                        )
                    }
                    Some(wait) => format!("Does not sign yet. It may in {}.", span(wait)),
                    None => "Ready: the next rotation makes it current.".to_owned(),
                };
                (say, [known("May sign", false, ready_time), open("Retires", "later"), open(left, "later")])
            }
            KeyState::Current => {
                let say = "Signs now: every new signature is made with this key.".to_owned();
                let retires = if policy.rotation_period.is_zero() { "by hand" } else { "by schedule" };
                (say, [reached("Signs since", key.activate_time), open("Retires", retires), open(left, "later")])
            }
            KeyState::Previous | KeyState::Revoked | KeyState::Destroyed => {
                let (say, leaves) = match key.retain_until.filter(|_| tenant.policy.auto_revoke) {
                    Some(end) => {
                        let rest = between(now, end).map_or("a moment".to_owned(), span);
                        (format!("Signs no more. What it signed stays verifiable for {rest}."), known(left, false, end))
                    }
                    None => {
                        let say = "Signs no more. What it signed stays verifiable until the key is revoked by hand.";
                        (say.to_owned(), open(left, "when revoked"))
                    }
                };
                (say, [reached("Signed from", key.activate_time), reached("Retired", key.retire_time), leaves])
            }
        };
        let mut life = vec![entered];
        life.extend(rest);
        let public = is_published.then(|| PublicPart::new(key));
        Self { state: key.state.name(), say, life, public }
    }

    /// The place of a key that is not there yet.
    fn generating(state: &'static str, say: &str) -> Self {
        Self { state, say: say.to_owned(), life: Vec::new(), public: None }
    }
}

impl PublicPart {
    fn new(key: &SigningKey) -> Self {
        Self { kid: key.kid.to_string(), certificate: None }
    }
}

/// What the algorithm is, as RFC 7518 section 3.1 names it.
fn scheme(algorithm: Algorithm) -> String {
    let scheme = match algorithm.family() {
        Family::RsaPkcs1 => "RSASSA-PKCS1-v1_5",
        Family::RsaPss => "RSASSA-PSS",
        Family::Ecdsa(crate::domain::Curve::P256) => "ECDSA on P-256",
        Family::Ecdsa(crate::domain::Curve::P384) => "ECDSA on P-384",
        Family::Ecdsa(crate::domain::Curve::P521) => "ECDSA on P-521",
        Family::Ed25519 => "Ed25519",
    };
    match algorithm.digest() {
        Some(digest) => format!("{scheme} with {}", digest.name()),
        None => scheme.to_owned(),
    }
}
