use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::Face;
use super::peer::Certificate;
use crate::domain::{self, Event, Principal, TenantId};

/// Who was found to call, for the record of what becomes of it: [`super::Caller`] is not made where a call is refused.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<OnceLock<(Arc<[Principal]>, TenantId)>>);

impl Known {
    pub(super) fn tell(&self, principals: &Arc<[Principal]>, tenant: &TenantId) {
        // A call has one caller: a second time there is nothing new.
        let _ = self.0.set((Arc::clone(principals), tenant.clone()));
    }
}

/// Records what was refused or failed; the store tells of changes by itself.
pub(super) async fn told(State(face): State<Arc<Face>>, mut request: Request, next: Next) -> Response {
    let Some((path_tenant, rest)) = request.uri().path().split_once("/api/v2/") else { return next.run(request).await };
    let Some((method, action)) = call(request.method(), rest) else { return next.run(request).await };
    let path_tenant: Option<TenantId> = path_tenant.trim_start_matches('/').parse().ok();
    let known = Known::default();
    request.extensions_mut().insert(known.clone());
    let certificate = request.extensions().get::<Certificate>().and_then(|shown| shown.0.as_ref().ok()).cloned();
    let response = next.run(request).await;
    let Some(result) = result(response.status()) else { return response };
    let known = known.0.get();
    // Of a JWT that is not believed nobody is named; the certificate was.
    let principals = known.map_or_else(|| certificate.into_iter().collect(), |(principals, _)| Arc::clone(principals));
    let caller = domain::Caller { principals, method, request_id: None };
    let tenant = known.map(|(_, tenant)| tenant.clone()).or(path_tenant);
    let detail = format!("HTTP {}", response.status().as_u16());
    let event = Event { tenant, detail, ..Event::new(face.keyrings.now(), action, &caller) };
    face.log.record_soon(Event { result: Cow::Borrowed(result), ..event });
    response
}

/// The call, and the word for it, that method and path mean; those of nothing are no calls.
fn call(method: &Method, path: &str) -> Option<(&'static str, &'static str)> {
    let segments: Vec<&str> = path.split('/').collect();
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    Some(match (method, &*segments) {
        ("GET", ["keys", "signing"]) => ("GET /api/v2/keys/signing", "list_signing_keys"),
        ("POST", ["keys", "signing", "rotate"]) => ("POST /api/v2/keys/signing/rotate", "rotate"),
        ("GET", ["keys", "signing", _]) => ("GET /api/v2/keys/signing/{kid}", "get_signing_key"),
        ("PUT", ["keys", "signing", _, "revoke"]) => ("PUT /api/v2/keys/signing/{kid}/revoke", "revoke"),
        ("GET", ["keys", "custom-signing"]) => ("GET /api/v2/keys/custom-signing", "get_custom_keys"),
        ("PUT", ["keys", "custom-signing"]) => ("PUT /api/v2/keys/custom-signing", "put_custom_keys"),
        ("DELETE", ["keys", "custom-signing"]) => ("DELETE /api/v2/keys/custom-signing", "delete_custom_keys"),
        _ => return None,
    })
}

/// The gRPC code of a status that is no success, as audit logs have results.
fn result(status: StatusCode) -> Option<&'static str> {
    if status.is_success() || status.is_redirection() || status.is_informational() {
        return None;
    }
    Some(match status {
        StatusCode::UNAUTHORIZED => "UNAUTHENTICATED",
        StatusCode::FORBIDDEN => "PERMISSION_DENIED",
        StatusCode::NOT_FOUND => "NOT_FOUND",
        StatusCode::CONFLICT => "FAILED_PRECONDITION",
        StatusCode::TOO_MANY_REQUESTS => "RESOURCE_EXHAUSTED",
        StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
        status if status.is_client_error() => "INVALID_ARGUMENT",
        _ => "INTERNAL",
    })
}
