//! The page for people: a tenant's keyrings as a timeline of next, current and previous.
//!
//! It is made for each request from the view that the snapshot holds; neither store nor token is asked. It has no script,
//! and all that it needs is in its one file. Its links are relative, so that they lead to the right place on the custom
//! domain and behind a proxy with a path of its own.

mod key;
mod parts;
#[cfg(test)]
mod tests;
mod words;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use askama::Template;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::address::Addressed;
use crate::domain::{Digest, Keyring};
use crate::jose;
use crate::keyring::Keyrings;
use parts::{Place, TenantPage};

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

/// `/{tenant}/` under the canonical base URL, and `/` on a tenant's custom domain.
pub(super) fn routes() -> Router<Arc<Keyrings>> {
    Router::new().route("/{tenant}/", get(show)).route("/", get(show)).route("/{tenant}", get(folder))
}

async fn show(State(keyrings): State<Arc<Keyrings>>, to: Result<Addressed, Response>) -> Response {
    let Ok(to) = to else { return absent() };
    let record = &to.view.record;
    let site = to.site();
    let place = Place {
        issuer: &site.issuer,
        base_url: &site.base_url,
        has_saml_metadata: to.view.has_saml_metadata(),
        custom_keys: to.custom_keys(),
    };
    let page = TenantPage::new(&record.tenant, &record.keyrings, place, keyrings.now());
    // A new tenant has its first keys in a moment: a page without them must not stay.
    let cache = if record.keyrings.iter().any(Keyring::is_starting) {
        "no-store".to_owned()
    } else {
        format!("public, max-age={}", MAX_AGE.min(record.tenant.policy.jwks_max_age).as_secs())
    };
    answer(StatusCode::OK, &page, &cache)
}

/// `/{tenant}`: the page's links are relative to a folder. A relative Location (RFC 9110 section 10.2.2) keeps the path
/// that a proxy may have put before it.
async fn folder(to: Result<Addressed, Response>) -> Response {
    let Ok(to) = to else { return absent() };
    let folder = HeaderValue::from_str(&format!("{}/", to.view.record.tenant.id));
    let folder = folder.expect("a tenant's id is a DNS label");
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, folder)]).into_response()
}

/// What is answered where no tenant is.
#[derive(Template)]
#[template(path = "absent.html")]
struct Absent {
    style: &'static str,
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
