use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::host::domain_of;
use crate::domain::{RotationPolicy, TenantId};
use crate::keyring::Keyrings;
use crate::keyring::snapshot::{Document, TenantView};

/// What verifiers fetch: the documents of each tenant, by path prefix under the canonical base URL and on its custom
/// domain. They are bytes that the snapshot holds (R9): neither store nor token is asked.
pub fn public_router(keyrings: Arc<Keyrings>) -> Router {
    Router::new()
        .route("/{tenant}/.well-known/jwks.json", get(canonical_jwks))
        .route("/{tenant}/.well-known/openid-configuration", get(canonical_discovery))
        .route("/.well-known/jwks.json", get(custom_jwks))
        .route("/.well-known/openid-configuration", get(custom_discovery))
        .fallback(async || not_found("there is nothing here; a tenant's JWKS is at /{tenant}/.well-known/jwks.json"))
        .with_state(keyrings)
}

type Shared = State<Arc<Keyrings>>;

const JWKS_TYPE: HeaderValue = HeaderValue::from_static("application/jwk-set+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const JSON_TYPE: HeaderValue = HeaderValue::from_static("application/json");

async fn canonical_jwks(State(keyrings): Shared, Path(tenant): Path<String>, headers: HeaderMap) -> Response {
    match canonical(&keyrings, tenant) {
        Some(view) => document(&view, &view.jwks, JWKS_TYPE, &headers),
        None => no_tenant(),
    }
}

async fn canonical_discovery(State(keyrings): Shared, Path(tenant): Path<String>, headers: HeaderMap) -> Response {
    match canonical(&keyrings, tenant) {
        Some(view) => document(&view, &view.discovery, JSON_TYPE, &headers),
        None => no_tenant(),
    }
}

async fn custom_jwks(State(keyrings): Shared, uri: Uri, headers: HeaderMap) -> Response {
    match custom(&keyrings, &uri, &headers) {
        Some(view) => document(&view, &view.jwks, JWKS_TYPE, &headers),
        None => no_tenant(),
    }
}

async fn custom_discovery(State(keyrings): Shared, uri: Uri, headers: HeaderMap) -> Response {
    let view = custom(&keyrings, &uri, &headers);
    match view.as_ref().and_then(|view| Some((view, view.custom_discovery.as_ref()?))) {
        Some((view, discovery)) => document(view, discovery, JSON_TYPE, &headers),
        None => no_tenant(),
    }
}

fn canonical(keyrings: &Keyrings, tenant: String) -> Option<Arc<TenantView>> {
    keyrings.snapshot().tenant(&TenantId::try_from(tenant).ok()?).map(Arc::clone)
}

/// The tenant whose custom domain the request was made to.
fn custom(keyrings: &Keyrings, uri: &Uri, headers: &HeaderMap) -> Option<Arc<TenantView>> {
    keyrings.snapshot().tenant_of_domain(&domain_of(uri, headers)?).map(Arc::clone)
}

fn document(view: &TenantView, document: &Document, content_type: HeaderValue, request: &HeaderMap) -> Response {
    // A set without the first keys must not get into a cache: those keys sign as soon as they are there (R3).
    if view.record.keyrings.iter().any(|keyring| keyring.current().is_none()) {
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

fn no_tenant() -> Response {
    not_found("no tenant has this path or domain")
}

fn not_found(problem: &str) -> Response {
    let body = serde_json::json!({"error": problem}).to_string();
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, JSON_TYPE), (header::CACHE_CONTROL, NO_STORE)], body)
        .into_response()
}
