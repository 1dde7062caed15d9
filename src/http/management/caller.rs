use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};

use super::peer::Certificate;
use super::record::Known;
use super::{Face, Problem};
use crate::auth::{Ours, Refused};
use crate::domain::{self, Principal, TenantId};
use crate::http::address::domain_of;

/// What the audience of a JWT must be, for whoever sent another.
const OTHER_AUDIENCE: &str = "aud does not name this API of this tenant: its URL up to /api/v2/, slash included";

/// Who calls, and for which tenant: the JWT was verified, and is for this tenant and no other.
pub(super) struct Caller {
    pub(super) tenant: TenantId,
    /// Whom the certificate names, where there is one, and whom the JWT.
    principals: Arc<[Principal]>,
    access: crate::auth::Access,
}

/// The name by which a request means a tenant, and by which its JWT must.
struct Named {
    /// `None` if the name is no name of a tenant.
    audience: Option<String>,
    /// `None` if there is no such tenant.
    tenant: Option<TenantId>,
}

impl Caller {
    /// The caller as audit logs name it.
    pub(super) fn by(&self, method: &'static str) -> domain::Caller {
        domain::Caller { principals: Arc::clone(&self.principals), method, request_id: None }
    }

    /// Goes on if the JWT has all of these scopes.
    pub(super) fn needs(&self, scopes: &[&str]) -> Result<(), Problem> {
        if scopes.iter().all(|scope| self.access.has(scope)) {
            return Ok(());
        }
        Err(Problem::insufficient_scope(scopes))
    }
}

impl FromRequestParts<Arc<Face>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, face: &Arc<Face>) -> Result<Self, Problem> {
        let named = named(parts, face).await?;
        let certificate = match parts.extensions.get::<Certificate>() {
            Some(Certificate(Ok(principal))) => Some(principal.clone()),
            Some(Certificate(Err(problem))) => return Err(Problem::certificate(&problem.to_string())),
            None => None,
        };
        let jwt = bearer(&parts.headers)?;
        let snapshot = face.keyrings.snapshot();
        let whose = |kid: &_| Ours::as_seen(snapshot.has_served(kid), snapshot.has_unseen());
        let access = face.bearer.verify(jwt, named.audience.as_deref(), face.keyrings.now(), whose);
        let access = access.map_err(|refused| {
            tracing::debug!(%refused, "a JWT was not believed");
            match refused {
                Refused::Audience => Problem::invalid_token(OTHER_AUDIENCE),
                refused @ (Refused::CannotTell | Refused::KeysAway | Refused::NotYet(_)) => {
                    Problem::away(&refused.to_string())
                }
                refused => Problem::invalid_token(&refused.to_string()),
            }
        })?;
        // Only to a caller whose JWT names this tenant: to all others it is the same whether there is one (R12).
        let tenant = named.tenant.ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, "there is no tenant of this name or domain (any more)")
        })?;
        let principals = certificate.into_iter().chain([access.principal.clone()]).collect();
        if let Some(known) = parts.extensions.get::<Known>() {
            known.tell(&principals, &tenant);
        }
        Ok(Self { tenant, principals, access })
    }
}

/// The JWT in the header (RFC 6750 section 2.1), the one place that it is looked for: URLs are logged.
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).into_iter();
    let (value, more) = (values.next(), values.next());
    if more.is_some() {
        return Err(Problem::invalid_request("there must be one Authorization header"));
    }
    let value = value.and_then(|value| value.to_str().ok()).ok_or_else(Problem::unauthenticated)?;
    match value.split_once(' ') {
        Some((scheme, jwt)) if scheme.eq_ignore_ascii_case("bearer") && !jwt.is_empty() => Ok(jwt.trim()),
        _ => Err(Problem::unauthenticated()),
    }
}

async fn named(parts: &mut Parts, face: &Arc<Face>) -> Result<Named, Problem> {
    let snapshot = face.keyrings.snapshot();
    let path = RawPathParams::from_request_parts(parts, face).await;
    let path = path.map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the path must be UTF-8"))?;
    let in_path = path.iter().find(|(name, _)| *name == "tenant");
    if let Some((_, text)) = in_path {
        let id = text.parse::<TenantId>().ok();
        let audience = id.as_ref().map(|id| format!("{}/{id}/api/v2/", face.base_url));
        return Ok(Named { audience, tenant: id.filter(|id| snapshot.tenant(id).is_some()) });
    }
    let domain = domain_of(&parts.uri, &parts.headers);
    let view = domain.as_ref().and_then(|domain| snapshot.tenant_of_domain(domain));
    let tenant = view.map(|view| view.record.tenant.id.clone());
    Ok(Named { audience: domain.map(|domain| format!("https://{domain}/api/v2/")), tenant })
}
