//! The page for people: a tenant's keyrings as a timeline of next, current and previous.
//!
//! It is made for each request from the view that the snapshot holds; neither store nor token is asked. It has no script,
//! and all that it needs is in its one file. Its links are relative, so that they lead to the right place on the custom
//! domain and behind a proxy with a path of its own.

mod parts;
#[cfg(test)]
mod tests;
mod words;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use askama::Template;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::public;
use crate::domain::{Digest, Timestamp};
use crate::jose;
use crate::keyring::Keyrings;
use crate::keyring::snapshot::TenantView;
use parts::TenantPage;

type Shared = State<Arc<Keyrings>>;

/// The page's one stylesheet, which stands in the page.
const STYLE: &str = include_str!("page.css");

/// Longest time that a page may be kept. A person who looks again wants what is now; a crowd costs one page in this time.
const MAX_AGE: Duration = Duration::from_secs(10);

/// CSP Level 3: nothing is loaded, run, embedded or sent; the stylesheet is allowed by its digest.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let digest = STANDARD.encode(jose::digest(Digest::Sha256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("base64 and words in ASCII")
});

/// `/{tenant}/` under the canonical base URL.
pub(super) async fn canonical(State(keyrings): Shared, Path(tenant): Path<String>) -> Response {
    match public::canonical(&keyrings, tenant) {
        Some(view) => {
            let base = format!("{}/{}", keyrings.base_url(), view.record.tenant.id);
            present(&view, view.record.tenant.issuer.as_str(), &base, keyrings.now())
        }
        None => absent(),
    }
}

/// `/` on a tenant's custom domain.
pub(super) async fn custom(State(keyrings): Shared, uri: Uri, headers: HeaderMap) -> Response {
    let view = public::custom(&keyrings, &uri, &headers);
    match view.as_ref().and_then(|view| Some((view, view.record.tenant.custom_issuer()?))) {
        Some((view, issuer)) => present(view, &issuer, &issuer, keyrings.now()),
        None => absent(),
    }
}

/// `/{tenant}`: the page's links are relative to a folder. A relative Location (RFC 9110 section 10.2.2) keeps the path
/// that a proxy may have put before it.
pub(super) async fn folder(State(keyrings): Shared, Path(tenant): Path<String>) -> Response {
    match public::canonical(&keyrings, tenant) {
        Some(view) => {
            let folder = HeaderValue::from_str(&format!("{}/", view.record.tenant.id));
            let folder = folder.expect("a tenant's id is a DNS label");
            (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, folder)]).into_response()
        }
        None => absent(),
    }
}

/// What is answered where no tenant is.
#[derive(Template)]
#[template(path = "absent.html")]
struct Absent {
    style: &'static str,
}

fn present(view: &TenantView, issuer: &str, base: &str, now: Timestamp) -> Response {
    let page = TenantPage::new(&view.record.tenant, &view.record.keyrings, issuer, base, now);
    // A tenant without its first keys has them in a moment: such a page must not stay.
    let cache = if page.is_settled() {
        format!("public, max-age={}", MAX_AGE.min(view.record.tenant.policy.jwks_max_age).as_secs())
    } else {
        "no-store".to_owned()
    };
    answer(StatusCode::OK, &page, &cache)
}

fn absent() -> Response {
    answer(StatusCode::NOT_FOUND, &Absent { style: STYLE }, "no-store")
}

fn answer(status: StatusCode, page: &impl Template, cache: &str) -> Response {
    let fixed = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_str(cache).expect("words and digits in ASCII")),
        fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        fixed(header::REFERRER_POLICY, "no-referrer"),
    ];
    match page.render() {
        Ok(html) => (status, headers, Html(html)).into_response(),
        Err(error) => {
            // A template fails when a value of it does: ours do not.
            tracing::error!(%error, "a page could not be written");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                [(header::CACHE_CONTROL, "no-store")],
                "the page could not be written\n",
            )
                .into_response()
        }
    }
}
