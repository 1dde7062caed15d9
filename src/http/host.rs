use axum::http::{HeaderMap, Uri, header};

use crate::domain::Domain;

/// The domain that a request was made to, whatever the port, the case and a trailing dot.
pub(super) fn domain_of(uri: &Uri, headers: &HeaderMap) -> Option<Domain> {
    // HTTP/2 has the host in the request's target.
    let host = uri.host().or_else(|| headers.get(header::HOST)?.to_str().ok())?;
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    Domain::try_from(name).ok()
}
