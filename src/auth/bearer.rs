use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use super::{Fetched, Looked, TrustedKeys};
use crate::domain::{Algorithm, Kid, Principal, Timestamp};
use crate::jose::{Claims, Jws, NumericDate};

/// Longest JWT taken, in octets: with a hundred scopes one is a third of it, and headers of 8 KiB pass every proxy.
const JWT_BYTES_MAX: usize = 8192;

/// How far the issuer's clock may be off, in seconds.
const CLOCK_SKEW_MAX_SECS: f64 = 30.0;

/// Types of JWT that may be a caller's (RFC 8725 section 3.11): RFC 9068's own, the general one, and none at all, which is
/// what most issuers write. A logout token or a DPoP proof is neither.
const TYPES: [&str; 2] = ["at+jwt", "jwt"];

/// Longest `sub`, in octets (OpenID Connect Core 1.0 section 2): it stands in logs.
const SUBJECT_BYTES_MAX: usize = 255;

/// Verifies Bearer JWTs (RFC 6750, RFC 9068) of one issuer.
#[derive(Clone, Debug)]
pub struct Bearer {
    issuer: String,
    algorithms: Arc<[Algorithm]>,
    keys: IssuerKeys,
}

/// Where the keys of the issuer come from: always a place that the operator named, and never one that a JWT names.
#[derive(Clone, Debug)]
pub enum IssuerKeys {
    /// From a file.
    File(watch::Receiver<Arc<TrustedKeys>>),
    /// From a URL.
    Url(Arc<Fetched>),
}

/// What a verified JWT allows.
#[derive(Debug)]
pub struct Access {
    /// Whom the issuer let in: `iss` and `sub`.
    pub principal: Principal,
    /// The key that signed it, for as long as that is trusted.
    pub(super) signer: Signer,
    /// The keys that it was verified with.
    pub(super) keys: Arc<TrustedKeys>,
    nbf: Option<NumericDate>,
    exp: NumericDate,
    scopes: Vec<String>,
}

/// Whether Keyward itself signs, or ever signed, with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// For some tenant.
    Yes,
    /// For nobody.
    No,
    /// There is a tenant whose keys are not known: its record was damaged before this process could read it.
    CannotTell,
}

impl Ours {
    /// What follows for a key: `served` is whether some tenant is known to have or have had it, `unseen` whether there is a
    /// tenant whose keys are not known.
    #[must_use]
    pub fn as_seen(served: bool, unseen: bool) -> Self {
        match (served, unseen) {
            (true, _) => Self::Yes,
            (false, true) => Self::CannotTell,
            (false, false) => Self::No,
        }
    }
}

/// The key that signed a JWT.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    thumbprint: Kid,
    /// Whether its JWK has the thumbprint as kid, as every key has that Keyward publishes.
    named_like_ours: bool,
}

impl Signer {
    /// Goes on unless the key is a tenant's: an issuer that may have claims signed could write itself any scope.
    ///
    /// While there is a tenant whose keys are not known, a key is refused that could be one of them, by its kid. To refuse all
    /// would let one edited record keep every caller with a JWT out; to refuse none would make whoever edits a record, and
    /// waits for a restart, the administrator. The kid tells, because the JWKS is the operator's: whoever calls cannot rename
    /// the keys in it.
    pub(super) fn must_not_be_ours(&self, whose: impl FnOnce(&Kid) -> Ours) -> Result<(), Refused> {
        match whose(&self.thumbprint) {
            Ours::Yes => {
                tracing::warn!(thumbprint = %self.thumbprint, "a JWT was refused whose key is a tenant's; take that key out of the issuer's JWKS");
                Err(Refused::Wrong("no key of the issuer has the kid and alg of the JWT"))
            }
            Ours::CannotTell if self.named_like_ours => {
                tracing::warn!(thumbprint = %self.thumbprint, "a JWT was refused whose key may be that of a tenant that is quarantined since the start; restore its record");
                Err(Refused::CannotTell)
            }
            Ours::No | Ours::CannotTell => Ok(()),
        }
    }
}

/// Why a JWT is not believed, as a sentence for whoever sent it. It says nothing of keys and tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody can tell yet: the issuer's keys are not to be had.
    #[error("the keys of the issuer are not known at the moment; retry with a pause")]
    KeysAway,
    /// Nobody can tell yet: its key may be a tenant's.
    #[error("the key of the JWT cannot be judged at the moment; retry with a pause")]
    CannotTell,
    /// Its key is none that is known. A new key of the issuer's may be.
    #[error("no key of the issuer has the kid and alg of the JWT")]
    UnknownKey,
    /// No key that it may mean has signed it. A new key of the issuer's may have, where keys have no kid, or the same one.
    #[error("the signature is not one by the issuer")]
    Signature,
    /// Its key is none that was known a moment ago, and the issuer is asked again only in so long.
    #[error("the key of the JWT is not known yet; retry after the pause")]
    NotYet(Duration),
    /// It is for somebody else.
    #[error("aud does not name this service")]
    Audience,
    /// The rest.
    #[error("{0}")]
    Wrong(&'static str),
}

impl IssuerKeys {
    pub(super) fn latest(&self) -> Option<Arc<TrustedKeys>> {
        match self {
            Self::File(keys) => Some(Arc::clone(&keys.borrow())),
            Self::Url(fetched) => fetched.latest(),
        }
    }
}

impl Bearer {
    /// Believes JWTs with exactly this `iss`, signed in one of these algorithms by one of the keys that `keys` has at the time.
    /// Algorithms without public keys are left out: whoever could verify could sign.
    #[must_use]
    pub fn new(issuer: String, algorithms: &[Algorithm], keys: IssuerKeys) -> Self {
        let algorithms = algorithms.iter().copied().filter(|algorithm| algorithm.has_public_keys()).collect();
        Self { issuer, algorithms, keys }
    }

    /// What `jwt` allows at `now` to whoever asks for `audience`; `None` is an audience that no JWT can have.
    ///
    /// `whose` tells of a thumbprint whether Keyward itself signs for some tenant with that key, or did. Such a key is never
    /// believed, even if it stands in the JWKS.
    /// `jku`, `jwk`, `x5u` and `x5c` in the header are not looked at.
    ///
    /// # Errors
    /// The JWT is not one, is too long, is signed by nobody known or for somebody else, or its time is not now.
    pub fn verify(
        &self,
        jwt: &str,
        audience: Option<&str>,
        now: Timestamp,
        whose: impl FnOnce(&Kid) -> Ours,
    ) -> Result<Access, Refused> {
        if jwt.len() > JWT_BYTES_MAX {
            return Err(Refused::Wrong("the JWT is longer than 8192 octets"));
        }
        let jws =
            Jws::parse(jwt).map_err(|_| Refused::Wrong("this is not a JWT in the compact form, or it has crit"))?;
        if jws.typ.as_deref().is_some_and(|typ| !is_known_type(typ)) {
            return Err(Refused::Wrong("the typ of the JWT is not at+jwt or JWT"));
        }
        if !self.algorithms.iter().any(|algorithm| algorithm.name() == jws.alg) {
            return Err(Refused::Wrong("the alg of the JWT is none that this service takes"));
        }
        let keys = self.keys.latest().ok_or(Refused::KeysAway)?;
        if !keys.knows_key_of(&jws) {
            return Err(Refused::UnknownKey);
        }
        let key = keys.signer_of(&jws).ok_or(Refused::Signature)?;
        let signer = Signer { thumbprint: key.thumbprint.clone(), named_like_ours: key.is_named_by_thumbprint() };
        signer.must_not_be_ours(whose)?;
        self.check_claims(&jws.payload, audience, now, signer, keys)
    }

    /// Whether an access that was given before is still to be had at `now`: its keys are the ones that are trusted, and its
    /// time is not over.
    pub(super) fn still_allows(&self, access: &Access, now: Timestamp) -> bool {
        let same = self.keys.latest().is_some_and(|keys| Arc::ptr_eq(&keys, &access.keys));
        same && check_time(access.nbf, access.exp, now).is_ok()
    }

    /// Asks for the issuer's keys again because a JWT's is unknown.
    pub(super) async fn look_again(&self) -> Looked {
        match &self.keys {
            IssuerKeys::File(_) => Looked::Anew,
            IssuerKeys::Url(fetched) => fetched.look_again().await,
        }
    }

    /// Whether [`Bearer::look_again`] can make a difference.
    pub(super) fn can_look_again(&self) -> bool {
        matches!(self.keys, IssuerKeys::Url(_))
    }

    fn check_claims(
        &self,
        payload: &[u8],
        audience: Option<&str>,
        now: Timestamp,
        signer: Signer,
        keys: Arc<TrustedKeys>,
    ) -> Result<Access, Refused> {
        let claims = Claims::parse(payload)
            .map_err(|_| Refused::Wrong("the claims are not one JSON object with exp, nbf and iss of their types"))?;
        let access: AccessClaims = serde_json::from_slice(payload)
            .map_err(|_| Refused::Wrong("aud must be a text or an array of texts, and scope and sub one text each"))?;
        if claims.iss.as_ref() != Some(&self.issuer) {
            return Err(Refused::Wrong("iss is not the issuer that this service trusts"));
        }
        let exp = claims.exp.ok_or(Refused::Wrong("exp is missing"))?;
        check_time(claims.nbf, exp, now)?;
        if !audience.is_some_and(|audience| access.aud.is(audience)) {
            return Err(Refused::Audience);
        }
        let subject = access.sub.filter(|sub| (1..=SUBJECT_BYTES_MAX).contains(&sub.len()));
        let subject = subject.ok_or(Refused::Wrong("sub must be there, with 1 to 255 octets"))?;
        let principal = Principal::Jwt { issuer: self.issuer.clone(), subject };
        let scopes = access.scope.split(' ').map(ToOwned::to_owned).collect();
        Ok(Access { principal, signer, keys, nbf: claims.nbf, exp, scopes })
    }
}

fn check_time(nbf: Option<NumericDate>, exp: NumericDate, now: Timestamp) -> Result<(), Refused> {
    // Milliseconds since 1970 are whole numbers far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let now_secs = now.as_millisecond() as f64 / 1000.0;
    if now_secs >= exp + CLOCK_SKEW_MAX_SECS {
        return Err(Refused::Wrong("the JWT has expired"));
    }
    if nbf.is_some_and(|nbf| now_secs < nbf - CLOCK_SKEW_MAX_SECS) {
        return Err(Refused::Wrong("the JWT is not valid yet"));
    }
    Ok(())
}

impl Access {
    /// Whether the JWT has this scope, by its exact name.
    #[must_use]
    pub fn has(&self, scope: &str) -> bool {
        self.scopes.iter().any(|granted| granted == scope)
    }

    /// Every scope that it has.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scopes.iter().map(String::as_str)
    }
}

/// The claims that only access is about (RFC 9068 section 2.2).
#[derive(Deserialize)]
struct AccessClaims {
    #[serde(default)]
    aud: Audience,
    #[serde(default)]
    scope: String,
    sub: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    #[default]
    None,
    One(String),
    Some(Vec<String>),
}

impl Audience {
    fn is(&self, audience: &str) -> bool {
        match self {
            Self::None => false,
            Self::One(one) => one == audience,
            Self::Some(all) => all.iter().any(|one| one == audience),
        }
    }
}

/// Media types are compared without case, and without "application/" where there is no other slash (RFC 7515 section
/// 4.1.9).
fn is_known_type(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    TYPES.contains(&typ.strip_prefix("application/").unwrap_or(&typ))
}
