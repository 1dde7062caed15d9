//! The HTTP face: what verifiers fetch, and what orchestrators ask.

mod ops;
mod public;

pub use ops::ops_router;
pub use public::public_router;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `router` until `shutdown`, and then until the requests under way are answered.
///
/// # Errors
/// The listener could not be served.
pub async fn serve(router: Router, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
