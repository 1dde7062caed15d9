use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower::{Service as _, service_fn};

use super::address::{Addressed, not_found};
use super::{certificates, page};
use crate::domain::Keyring;
use crate::keyring::snapshot::{Document, TenantView};
use crate::keyring::{Error, Keyrings};

/// A document that verifiers fetch again and again: where it is, and what answers there.
type Fetched = (&'static str, fn(&Addressed, &HeaderMap) -> Response);

const JWKS: Fetched = ("/.well-known/jwks.json", jwks);
const DISCOVERY: Fetched = ("/.well-known/openid-configuration", discovery);

/// What verifiers fetch: the documents of each tenant, by path prefix under the canonical base URL and on its custom
/// domain. They are made of what the snapshot holds (R9): neither store nor token is asked, but for the signature of the SAML
/// metadata.
pub fn public_router(keyrings: Arc<Keyrings>) -> Router {
    let routes = routes(Arc::clone(&keyrings));
    Router::new().fallback_service(service_fn(move |request: Request| {
        let answer = fetched(&keyrings, &request).ok_or_else(|| routes.clone().call(request));
        async move {
            match answer {
                Ok(answer) => Ok(answer),
                Err(by_route) => by_route.await,
            }
        }
    }))
}

/// JWKS and discovery where they are asked for as all verifiers do: on the way by the routes a JWKS took 31 µs of the server's core,
/// without it 20. The routes answer whatever is unusual, such as an encoded path, with the same functions.
fn fetched(keyrings: &Keyrings, request: &Request) -> Option<Response> {
    if request.method() != Method::GET {
        return None;
    }
    let path = request.uri().path();
    let (before, answer) =
        [JWKS, DISCOVERY].into_iter().find_map(|(at, answer)| Some((path.strip_suffix(at)?, answer)))?;
    let tenant = match before {
        "" => None,
        before => Some(before.strip_prefix('/').filter(|tenant| !tenant.is_empty() && !tenant.contains(['/', '%']))?),
    };
    let to = Addressed::find(keyrings, tenant, request.uri(), request.headers());
    Some(to.map_or_else(IntoResponse::into_response, |to| answer(&to, request.headers())))
}

fn routes(keyrings: Arc<Keyrings>) -> Router {
    let fetched = |(at, answer): Fetched| {
        Router::new().route(at, get(async move |to: Addressed, headers: HeaderMap| answer(&to, &headers)))
    };
    let documents = fetched(JWKS)
        .merge(fetched(DISCOVERY))
        .route("/saml/metadata", get(saml_metadata))
        .merge(certificates::routes());
    Router::new()
        .nest("/{tenant}", documents.clone())
        .merge(documents)
        .merge(page::routes())
        .fallback(async || not_found("there is nothing here; a tenant's JWKS is at /{tenant}/.well-known/jwks.json"))
        .with_state(keyrings)
}

fn jwks(to: &Addressed, headers: &HeaderMap) -> Response {
    document(&to.view, to.late, &to.site().jwks, HeaderValue::from_static("application/jwk-set+json"), headers)
}

fn discovery(to: &Addressed, headers: &HeaderMap) -> Response {
    document(&to.view, to.late, &to.site().discovery, HeaderValue::from_static("application/json"), headers)
}

async fn saml_metadata(State(keyrings): State<Arc<Keyrings>>, to: Addressed, headers: HeaderMap) -> Response {
    let (tenant, on_domain, late) = (to.view.record.tenant.id.clone(), to.by_domain, to.late);
    // The view holds the keys that sign; nobody waits with it in hand (R10).
    drop(to);
    match keyrings.saml_metadata(&tenant, on_domain).await {
        Ok((view, metadata)) => {
            let content_type = HeaderValue::from_static("application/samlmetadata+xml");
            document(&view, late, &metadata, content_type, &headers)
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
    late: Option<Duration>,
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
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    // With those that a caller adds, and the date and the length that are added last.
    headers.reserve(8);
    headers.insert(header::CACHE_CONTROL, view.cache_control(late));
    headers.insert(header::ETAG, document.etag.clone());
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if is_fresh(&document.etag, request) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        headers.insert(header::CONTENT_TYPE, content_type);
        *response.body_mut() = Body::from(document.body.clone());
    }
    response
}

/// Whether the client has this very document already (RFC 9110 section 13.1.2).
fn is_fresh(etag: &HeaderValue, request: &HeaderMap) -> bool {
    let tags = request.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = tags.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}
