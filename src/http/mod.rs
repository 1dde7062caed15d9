//! The HTTP face: what verifiers fetch, what people look at, what orchestrators ask, and the Management API.

mod address;
mod certificates;
mod listener;
mod management;
mod ops;
mod page;
mod public;

pub use listener::BoundedListener;
pub use management::management_router;
pub use ops::ops_router;
pub use public::public_router;

use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `router` until `shutdown`, and then until the requests under way are answered.
///
/// # Errors
/// The listener could not be served.
pub async fn serve(router: Router, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
    // An answer must not wait for the client's delayed ACK.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
    });
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// The same for callers who are to be bounded, and over TLS where there is an identity.
///
/// # Errors
/// The listener could not be served.
pub async fn serve_bounded(
    router: Router,
    listener: BoundedListener,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
