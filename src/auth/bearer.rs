use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

use super::TrustedKeys;
use crate::domain::{Kid, Timestamp};
use crate::jose::{Claims, Jws};

/// Longest JWT taken, in octets: with a hundred scopes one is a third of it, and headers of 8 KiB pass every proxy.
const JWT_BYTES_MAX: usize = 8192;

/// How far the issuer's clock may be off, in seconds.
const CLOCK_SKEW_MAX_SECS: f64 = 30.0;

/// Types of JWT that may be a caller's (RFC 8725 section 3.11): RFC 9068's own, the general one, and none at all, which is
/// what most issuers write. A logout token or a DPoP proof is neither.
const TYPES: [&str; 2] = ["at+jwt", "jwt"];

/// Verifies Bearer JWTs (RFC 6750, RFC 9068) of one issuer.
#[derive(Clone, Debug)]
pub struct Bearer {
    issuer: String,
    keys: watch::Receiver<Arc<TrustedKeys>>,
}

/// What a verified JWT allows.
#[derive(Debug)]
pub struct Access {
    /// `sub`: whom the issuer let in, for the log.
    pub subject: Option<String>,
    scopes: Vec<String>,
}

/// Why a JWT is not believed, as a sentence for whoever sent it. It says nothing of keys and tenants.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(&'static str);

impl Bearer {
    /// Believes JWTs with exactly this `iss`, signed by one of the keys that `keys` holds at the time.
    #[must_use]
    pub fn new(issuer: String, keys: watch::Receiver<Arc<TrustedKeys>>) -> Self {
        Self { issuer, keys }
    }

    /// What `jwt` allows at `now` to whoever asks for `audience`; `None` is an audience that no JWT can have.
    ///
    /// `is_served` tells of a thumbprint whether Keyward itself signs for some tenant with that key. Such a key is never
    /// believed, even if it stands in the JWKS: an issuer that may have claims signed could write itself any scope.
    /// `jku`, `jwk`, `x5u` and `x5c` in the header are not looked at.
    ///
    /// # Errors
    /// The JWT is not one, is too long, is signed by nobody known or for somebody else, or its time is not now.
    pub fn verify(
        &self,
        jwt: &str,
        audience: Option<&str>,
        now: Timestamp,
        is_served: impl FnOnce(&Kid) -> bool,
    ) -> Result<Access, Refused> {
        if jwt.len() > JWT_BYTES_MAX {
            return Err(Refused("the JWT is longer than 8192 octets"));
        }
        let jws = Jws::parse(jwt).map_err(|_| Refused("this is not a JWT in the compact form, or it has crit"))?;
        if jws.typ.as_deref().is_some_and(|typ| !is_known_type(typ)) {
            return Err(Refused("the typ of the JWT is not at+jwt or JWT"));
        }
        let keys = Arc::clone(&self.keys.borrow());
        if !keys.knows_key_of(&jws) {
            return Err(Refused("no key of the issuer has the kid and alg of the JWT"));
        }
        let key = keys.signer_of(&jws).ok_or(Refused("the signature is not one by the issuer"))?;
        if is_served(&key.thumbprint) {
            tracing::warn!(thumbprint = %key.thumbprint, "a JWT was refused whose key is a tenant's; take that key out of the JWKS file");
            return Err(Refused("no key of the issuer has the kid and alg of the JWT"));
        }
        self.check_claims(&jws.payload, audience, now)
    }

    fn check_claims(&self, payload: &[u8], audience: Option<&str>, now: Timestamp) -> Result<Access, Refused> {
        let claims = Claims::parse(payload)
            .map_err(|_| Refused("the claims are not one JSON object with exp, nbf and iss of their types"))?;
        let access: AccessClaims = serde_json::from_slice(payload)
            .map_err(|_| Refused("aud must be a text or an array of texts, and scope and sub one text each"))?;
        if claims.iss.as_ref() != Some(&self.issuer) {
            return Err(Refused("iss is not the issuer that this service trusts"));
        }
        // Milliseconds since 1970 are whole numbers far below 2^53.
        #[allow(clippy::cast_precision_loss)]
        let now_secs = now.as_millisecond() as f64 / 1000.0;
        if now_secs >= claims.exp.ok_or(Refused("exp is missing"))? + CLOCK_SKEW_MAX_SECS {
            return Err(Refused("the JWT has expired"));
        }
        if claims.nbf.is_some_and(|nbf| now_secs < nbf - CLOCK_SKEW_MAX_SECS) {
            return Err(Refused("the JWT is not valid yet"));
        }
        if !audience.is_some_and(|audience| access.aud.is(audience)) {
            return Err(Refused("aud does not name this API of this tenant: its URL up to /api/v2/, slash included"));
        }
        Ok(Access { subject: access.sub, scopes: access.scope.split(' ').map(ToOwned::to_owned).collect() })
    }
}

impl Access {
    /// Whether the JWT has this scope, by its exact name.
    #[must_use]
    pub fn has(&self, scope: &str) -> bool {
        self.scopes.iter().any(|granted| granted == scope)
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
