use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use super::methods::Needs;
use super::{Access, Bearer, Grants, Looked, NamesNobody, Ours, Refused, Roles, principal_of};
use crate::domain::{Kid, Principal, Timestamp};

/// Verified JWTs that are remembered: callers bring the same one until it expires, and verifying it costs as much as a
/// signature does. Each is at most 8 KiB.
const REMEMBERED_MAX: usize = 1024;

/// Finds out who calls, and what they may do.
#[derive(Debug)]
pub struct Callers {
    /// Nobody is asked who they are: `grpc.auth = "none"`.
    open: bool,
    common_name: bool,
    grants: Grants,
    jwts: Option<Jwts>,
}

/// JWTs as proofs.
#[derive(Debug)]
pub struct Jwts {
    bearer: Bearer,
    audience: String,
    remembered: RwLock<HashMap<Box<str>, Arc<Remembered>>>,
}

#[derive(Debug)]
struct Remembered {
    access: Access,
    identity: Arc<Identity>,
}

/// Somebody who was proven, and what they may do.
#[derive(Debug)]
pub struct Identity {
    /// The one.
    principals: Arc<[Principal]>,
    roles: Roles,
}

/// What a connection shows of the client, once and for all its calls.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Where the client is, if that is an address.
    pub address: Option<SocketAddr>,
    proof: Proof,
}

#[derive(Clone, Debug, Default)]
enum Proof {
    #[default]
    Nothing,
    NamesNobody(NamesNobody),
    Of(Arc<Identity>),
}

/// What a call brings in its header.
#[derive(Clone, Copy, Debug)]
pub enum Presented<'a> {
    /// No Authorization.
    Nothing,
    /// One that cannot be read, or more than one.
    Malformed,
    /// A Bearer JWT.
    Jwt(&'a str),
}

/// Everybody who stands for one call, each on their own: all of them must allow what it asks for.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Their names.
    pub principals: Arc<[Principal]>,
    first: Arc<Identity>,
    second: Option<Arc<Identity>>,
}

/// Why a call goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It shows nothing.
    #[error("this call needs a client certificate or a JWT (Authorization: Bearer) of somebody who may make it")]
    NoCredentials,
    /// It comes with a certificate that proves nobody.
    #[error("{0}")]
    Certificate(NamesNobody),
    /// Its header cannot be read.
    #[error("there must be one Authorization, and it must be Bearer and a JWT")]
    Authorization,
    /// Its JWT is not believed.
    #[error("{0}")]
    Jwt(Refused),
    /// Somebody who stands for it may not make it.
    #[error("this call needs the role {}", .0.words)]
    Role(Needs),
}

impl Callers {
    /// Lets everybody do everything.
    #[must_use]
    pub fn anybody() -> Self {
        Self { open: true, common_name: false, grants: Grants::default(), jwts: None }
    }

    /// Asks for a proof. Certificates and users have the roles that `grants` says, JWTs those that stand in them.
    #[must_use]
    pub fn known(grants: Grants, common_name: bool, jwts: Option<Jwts>) -> Self {
        Self { open: false, common_name, grants, jwts }
    }

    /// A connection that shows nothing.
    #[must_use]
    pub fn nobody(&self, address: Option<SocketAddr>) -> Shown {
        let proof = if self.open { Self::everything(Principal::Anonymous) } else { Proof::Nothing };
        Shown { address, proof }
    }

    /// A connection with this client certificate, which was verified.
    #[must_use]
    pub fn certificate(&self, der: &[u8], address: Option<SocketAddr>) -> Shown {
        let proof = match principal_of(der, self.common_name) {
            Ok(principal) if self.open => Self::everything(principal),
            Ok(principal) => self.granted(principal),
            Err(_) if self.open => Self::everything(Principal::Anonymous),
            Err(problem) => Proof::NamesNobody(problem),
        };
        Shown { address, proof }
    }

    /// A connection through a Unix socket from a process of this user.
    #[must_use]
    pub fn user(&self, uid: u32) -> Shown {
        let principal = Principal::Unix(uid);
        let proof = if self.open { Self::everything(principal) } else { self.granted(principal) };
        Shown { address: None, proof }
    }

    fn everything(principal: Principal) -> Proof {
        Proof::Of(Arc::new(Identity::new(principal, Roles::admin())))
    }

    fn granted(&self, principal: Principal) -> Proof {
        let roles = self.grants.of(&principal);
        Proof::Of(Arc::new(Identity::new(principal, roles)))
    }

    /// Who stands for a call over this connection.
    ///
    /// # Errors
    /// [`Refusal`], but never [`Refusal::Role`]. With [`Callers::can_look_again`] it may not be the last word.
    pub fn authenticate(
        &self,
        shown: &Shown,
        presented: Presented<'_>,
        now: Timestamp,
        whose: impl FnOnce(&Kid) -> Ours,
    ) -> Result<Authenticated, Refusal> {
        let shown = match &shown.proof {
            Proof::Of(identity) => Some(Arc::clone(identity)),
            Proof::NamesNobody(problem) => return Err(Refusal::Certificate(*problem)),
            Proof::Nothing => None,
        };
        if self.open {
            return shown.map(Authenticated::one).ok_or(Refusal::NoCredentials);
        }
        let borne = match (presented, &self.jwts) {
            (Presented::Nothing, _) => None,
            (Presented::Malformed, _) => return Err(Refusal::Authorization),
            (Presented::Jwt(_), None) => return Err(Refusal::Jwt(Refused::Wrong("this service takes no JWTs"))),
            (Presented::Jwt(jwt), Some(jwts)) => Some(jwts.identity(jwt, now, whose).map_err(Refusal::Jwt)?),
        };
        match (shown, borne) {
            (None, None) => Err(Refusal::NoCredentials),
            (Some(one), None) | (None, Some(one)) => Ok(Authenticated::one(one)),
            (Some(first), Some(second)) => Ok(Authenticated::both(first, second)),
        }
    }

    /// Whether [`Callers::look_again`] may turn this refusal.
    #[must_use]
    pub fn can_look_again(&self, refusal: Refusal) -> bool {
        matches!(refusal, Refusal::Jwt(Refused::UnknownKey | Refused::Signature))
            && self.jwts.as_ref().is_some_and(|jwts| jwts.bearer.can_look_again())
    }

    /// Has the issuer asked for its keys, if that was not done a moment ago.
    ///
    /// # Errors
    /// What there is now is no newer than before; the caller may come again.
    pub async fn look_again(&self) -> Result<(), Refusal> {
        let Some(jwts) = &self.jwts else { return Ok(()) };
        match jwts.bearer.look_again().await {
            Looked::Anew => Ok(()),
            Looked::NotYet(pause) => Err(Refusal::Jwt(Refused::NotYet(pause))),
        }
    }
}

impl Jwts {
    /// JWTs that `bearer` believes, for this audience.
    #[must_use]
    pub fn new(bearer: Bearer, audience: String) -> Self {
        Self { bearer, audience, remembered: RwLock::default() }
    }

    fn identity(&self, jwt: &str, now: Timestamp, whose: impl FnOnce(&Kid) -> Ours) -> Result<Arc<Identity>, Refused> {
        let known = self.remembered.read().unwrap_or_else(PoisonError::into_inner).get(jwt).cloned();
        // What can change while a JWT lives is looked at each time: its time, the issuer's keys and the tenants'.
        if let Some(known) = known
            && self.bearer.still_allows(&known.access, now)
        {
            known.access.signer.must_not_be_ours(whose)?;
            return Ok(Arc::clone(&known.identity));
        }
        let access = self.bearer.verify(jwt, Some(&self.audience), now, whose)?;
        let roles = Roles::among_scopes(access.scopes());
        let identity = Arc::new(Identity::new(access.principal.clone(), roles));
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, known| self.bearer.still_allows(&known.access, now));
            // All in use: forgotten and verified anew, which is slower and nothing worse.
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
        }
        remembered.insert(jwt.into(), Arc::new(Remembered { access, identity: Arc::clone(&identity) }));
        Ok(identity)
    }
}

impl Identity {
    fn new(principal: Principal, roles: Roles) -> Self {
        Self { principals: Arc::from([principal]), roles }
    }
}

impl Shown {
    /// Who the connection has shown to be, whatever a call brings besides.
    #[must_use]
    pub fn principals(&self) -> Arc<[Principal]> {
        match &self.proof {
            Proof::Of(identity) => Arc::clone(&identity.principals),
            Proof::Nothing | Proof::NamesNobody(_) => Arc::from([]),
        }
    }
}

impl Authenticated {
    fn one(identity: Arc<Identity>) -> Self {
        Self { principals: Arc::clone(&identity.principals), first: identity, second: None }
    }

    fn both(first: Arc<Identity>, second: Arc<Identity>) -> Self {
        let principals = first.principals.iter().chain(&*second.principals).cloned().collect();
        Self { principals, first, second: Some(second) }
    }

    /// Goes on if all of them may do what `needs` says, for this tenant.
    ///
    /// # Errors
    /// [`Refusal::Role`], which is the same for every tenant, whether there is one or not (R12).
    pub fn allow(&self, needs: Needs, tenant: &str) -> Result<(), Refusal> {
        let all = [Some(&self.first), self.second.as_ref()];
        let allowed = all.into_iter().flatten().all(|identity| identity.roles.allow(needs, tenant));
        if allowed { Ok(()) } else { Err(Refusal::Role(needs)) }
    }
}
