use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::domain::{CustomKey, Domain, TenantId};
use crate::keyring::Keyrings;
use crate::keyring::snapshot::{Site, TenantView};

/// The tenant that a request is made to, by the first segment of its path or by its `Host`.
///
/// Every route of a tenant is there twice: under `/{tenant}`, and at the root for custom domains.
pub(super) struct Addressed {
    /// The tenant.
    pub(super) view: Arc<TenantView>,
    /// Whether it was found by its custom domain.
    pub(super) by_domain: bool,
    /// How much later than usual the store confirmed it; `None`: nobody else changes it.
    pub(super) late: Option<Duration>,
}

/// Why there is no tenant.
pub(super) enum Missing {
    /// Nobody has this path or domain.
    NoTenant,
    /// Its record is not to be believed.
    OutOfService,
}

impl IntoResponse for Missing {
    fn into_response(self) -> Response {
        match self {
            Self::NoTenant => not_found("no tenant has this path or domain"),
            // 503 and not 404: caches may go on serving what they have (RFC 5861 section 4).
            Self::OutOfService => {
                let problem = "this tenant's keys are out of service for now";
                let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, problem);
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
                response
            }
        }
    }
}

impl Addressed {
    /// The tenant of this id, or without one that of the domain that the request was made to.
    ///
    /// # Errors
    /// There is none, or it is out of service.
    pub(super) fn find(
        keyrings: &Keyrings,
        in_path: Option<&str>,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Self, Missing> {
        // Before the snapshot: a newer one would be confirmed later.
        let late = keyrings.late();
        let snapshot = keyrings.snapshot();
        let (view, by_domain) = match in_path {
            Some(tenant) => {
                let id = tenant.parse::<TenantId>().ok();
                if id.as_ref().is_some_and(|id| snapshot.is_quarantined(id)) {
                    return Err(Missing::OutOfService);
                }
                (id.and_then(|id| snapshot.tenant(&id).cloned()), false)
            }
            None => {
                let domain = domain_of(uri, headers);
                let view = domain.as_ref().and_then(|domain| snapshot.tenant_of_domain(domain).cloned());
                if view.is_none() && domain.is_some_and(|domain| snapshot.is_quarantined_domain(&domain)) {
                    return Err(Missing::OutOfService);
                }
                (view, true)
            }
        };
        view.map(|view| Self { view, by_domain, late }).ok_or(Missing::NoTenant)
    }

    /// The keys of the tenant's own that this address publishes.
    pub(super) fn custom_keys(&self) -> &[CustomKey] {
        if self.by_domain { &self.view.record.tenant.custom_keys } else { &[] }
    }

    /// What this address serves.
    pub(super) fn site(&self) -> &Site {
        self.view.site(self.by_domain)
    }
}

impl FromRequestParts<Arc<Keyrings>> for Addressed {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, keyrings: &Arc<Keyrings>) -> Result<Self, Response> {
        let params =
            RawPathParams::from_request_parts(parts, keyrings).await.map_err(|_| Missing::NoTenant.into_response())?;
        let in_path = params.iter().find(|(name, _)| *name == "tenant").map(|(_, tenant)| tenant);
        Self::find(keyrings, in_path, &parts.uri, &parts.headers).map_err(Missing::into_response)
    }
}

/// The domain that the request was made to, whatever the port, the case and a trailing dot.
pub(super) fn domain_of(uri: &Uri, headers: &HeaderMap) -> Option<Domain> {
    // HTTP/2 has the host in the request's target.
    let host = uri.host().or_else(|| headers.get(header::HOST)?.to_str().ok())?;
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    Domain::try_from(name).ok()
}

/// 404, with a word on what would be found.
pub(super) fn not_found(problem: &str) -> Response {
    refusal(StatusCode::NOT_FOUND, problem)
}

fn refusal(status: StatusCode, problem: &str) -> Response {
    let body = serde_json::json!({"error": problem}).to_string();
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}
