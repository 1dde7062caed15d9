use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::address::{Addressed, not_found};
use super::{certificates, page};
use crate::domain::{Keyring, RotationPolicy};
use crate::keyring::snapshot::{Document, TenantView};
use crate::keyring::{Error, Keyrings};

/// What verifiers fetch: the documents of each tenant, by path prefix under the canonical base URL and on its custom
/// domain. They are made of what the snapshot holds (R9): neither store nor token is asked, but for the signature of the SAML
/// metadata.
pub fn public_router(keyrings: Arc<Keyrings>) -> Router {
    let documents = Router::new()
        .route("/.well-known/jwks.json", get(jwks))
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/saml/metadata", get(saml_metadata))
        .merge(certificates::routes());
    Router::new()
        .nest("/{tenant}", documents.clone())
        .merge(documents)
        .merge(page::routes())
        .fallback(async || not_found("there is nothing here; a tenant's JWKS is at /{tenant}/.well-known/jwks.json"))
        .with_state(keyrings)
}

async fn jwks(to: Addressed, headers: HeaderMap) -> Response {
    let content_type = HeaderValue::from_static("application/jwk-set+json");
    document(&to.view, &to.site().jwks, content_type, &headers)
}

async fn discovery(to: Addressed, headers: HeaderMap) -> Response {
    document(&to.view, &to.site().discovery, HeaderValue::from_static("application/json"), &headers)
}

async fn saml_metadata(State(keyrings): State<Arc<Keyrings>>, to: Addressed, headers: HeaderMap) -> Response {
    let (tenant, on_domain) = (to.view.record.tenant.id.clone(), to.by_domain);
    // The view holds the keys that sign; nobody waits with it in hand (R10).
    drop(to);
    match keyrings.saml_metadata(&tenant, on_domain).await {
        Ok((view, metadata)) => {
            let content_type = HeaderValue::from_static("application/samlmetadata+xml");
            document(&view, &metadata, content_type, &headers)
        }
        Err(Error::NotFound(problem)) => not_found(&problem),
        Err(error) => {
            match &error {
                // Anybody can ask, and a crowd must not fill the log.
                Error::Limit { .. }
                | Error::DeadlineExceeded
                | Error::Unavailable { retry_after: Some(_), .. }
                | Error::Precondition { .. } => tracing::debug!(%error, "no SAML metadata for now"),
                _ => tracing::warn!(error = error.for_log(), "the SAML metadata could not be signed"),
            }
            let headers = [(header::CACHE_CONTROL, "no-store"), (header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, headers, "the metadata cannot be signed at the moment\n").into_response()
        }
    }
}

/// A document of the tenant, with what caches and browsers need to know.
pub(super) fn document(
    view: &TenantView,
    document: &Document,
    content_type: HeaderValue,
    request: &HeaderMap,
) -> Response {
    // A set without the first keys must not get into a cache: those keys sign as soon as they are there (R3).
    if view.record.keyrings.iter().any(Keyring::is_starting) {
        let headers = [(header::CACHE_CONTROL, "no-store"), (header::RETRY_AFTER, "1")];
        return (StatusCode::SERVICE_UNAVAILABLE, headers, "the tenant's first keys are being generated\n")
            .into_response();
    }
    let mut headers = HeaderMap::with_capacity(6);
    let text = |value: &str| HeaderValue::from_str(value).expect("made of digits, letters and punctuation");
    headers.insert(header::CACHE_CONTROL, text(&cache_control(&view.record.tenant.policy)));
    headers.insert(header::ETAG, text(&document.etag));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if is_fresh(&document.etag, request) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    headers.insert(header::CONTENT_TYPE, content_type);
    (headers, Body::from(document.body.clone())).into_response()
}

/// RFC 9111 section 5.2.2 and RFC 5861. `publish_lead` covers max-age plus `clock_skew`, so a cache may be `clock_skew`
/// late at most; where this service is away, an old set is better than none, for as long as a new key takes to be used.
fn cache_control(policy: &RotationPolicy) -> String {
    let (max_age, late, lead) =
        (policy.jwks_max_age.as_secs(), policy.clock_skew.as_secs(), policy.publish_lead.as_secs());
    format!("public, max-age={max_age}, stale-while-revalidate={late}, stale-if-error={lead}")
}

/// Whether the client has this very document already (RFC 9110 section 13.1.2).
fn is_fresh(etag: &str, request: &HeaderMap) -> bool {
    let tags = request.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = tags.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
