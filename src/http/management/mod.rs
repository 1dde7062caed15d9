//! The Management API (docs/openapi.json): the use cases of KeyService over HTTP, in the shapes that
//! clients of Auth0's Management API know.

mod body;
mod caller;
mod custom;
mod peer;
mod problem;
mod record;
mod signing;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::{get, post, put};

use crate::audit::CallLog;
use crate::auth::Bearer;
use crate::keyring::Keyrings;
use crate::serving::Greeter;
use caller::Caller;
use problem::Problem;

/// What every call has at hand.
struct Face {
    keyrings: Arc<Keyrings>,
    bearer: Bearer,
    base_url: String,
    log: CallLog,
}

/// The Management API of all tenants: by path prefix, where JWTs are for `{base_url}/{tenant}/api/v2/`, and on their
/// custom domains, where they are for `https://{domain}/api/v2/`. What is refused is recorded in `log`, handshakes
/// that the [`Greeter`] hears of included.
pub fn management_router(
    keyrings: Arc<Keyrings>,
    bearer: Bearer,
    base_url: String,
    log: CallLog,
) -> (Router, Arc<dyn Greeter>) {
    let face = Arc::new(Face { keyrings, bearer, base_url, log });
    let greeter: Arc<dyn Greeter> = Arc::<Face>::clone(&face);
    let router = Router::new()
        .nest("/{tenant}/api/v2", calls())
        .nest("/api/v2", calls())
        .fallback(async || {
            let message = "there is nothing here; a tenant's keys are at /{tenant}/api/v2/keys/signing";
            Problem::new(StatusCode::NOT_FOUND, message)
        })
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this is no method of this path; Allow lists those that are")
        })
        .layer(from_fn(body::heard_out))
        .layer(from_fn_with_state(Arc::clone(&face), record::told))
        .layer(map_response(not_to_be_stored))
        .with_state(face);
    (router, greeter)
}

fn calls() -> Router<Arc<Face>> {
    Router::new()
        .route("/keys/signing", get(signing::list))
        .route("/keys/signing/rotate", post(signing::rotate))
        .route("/keys/signing/{kid}", get(signing::one))
        .route("/keys/signing/{kid}/revoke", put(signing::revoke))
        .route("/keys/custom-signing", get(custom::get).put(custom::set).delete(custom::delete))
}

async fn not_to_be_stored(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
