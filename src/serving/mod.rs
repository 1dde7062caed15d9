//! The one way in which HTTP is served: connections that are bounded in number, in idleness and in age.

mod bounds;
mod connection;
mod places;
#[cfg(test)]
mod tests;

pub use bounds::Bounds;

use std::sync::Arc;

use axum::Router;
use axum::serve::Listener;
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::tls::Identity;
use places::Places;

/// Octets of a header, and of what is read ahead: a JWT and cookies fit many times over, and all places together stay
/// within some hundred MiB.
const HEADER_BYTES_MAX: usize = 32 * 1024;

/// Calls under way on one HTTP/2 connection: the least that RFC 9113 section 6.5.2 recommends.
const STREAMS_PER_CONNECTION_MAX: u32 = 100;

/// Serves `router` in HTTP/1.1 and HTTP/2 until `shutdown`, and then until the calls under way are answered. With an
/// identity it is over TLS; each handshake is with the identity of its moment. Who drops this cuts every connection.
pub async fn serve(
    router: Router,
    mut listener: TcpListener,
    identity: Option<watch::Receiver<Arc<Identity>>>,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let places = Places::new(bounds.connections_max);
    let protocol = Arc::new(protocol());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            // Only taken away: each has told what there was to tell.
            Some(_) = connections.join_next() => {}
            (tcp, place) = accept(&mut listener, &places) => {
                let identity = identity.as_ref().map(|identity| Arc::clone(&identity.borrow()));
                let terms = connection::Terms {
                    protocol: Arc::clone(&protocol),
                    router: router.clone(),
                    bounds,
                    places: places.clone(),
                    shutdown: shutdown.clone(),
                };
                connections.spawn(async move {
                    terms.attend(tcp, identity).await;
                    drop(place);
                });
            }
        }
    }
    // New clients are refused from here on, and go elsewhere.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn protocol() -> Builder<TokioExecutor> {
    let mut protocol = Builder::new(TokioExecutor::new());
    protocol.http1().max_buf_size(HEADER_BYTES_MAX);
    let header_bytes_max = u32::try_from(HEADER_BYTES_MAX).expect("some thousand");
    protocol.http2().max_concurrent_streams(STREAMS_PER_CONNECTION_MAX).max_header_list_size(header_bytes_max);
    protocol
}

/// A connection and its place, once there are both. Nothing is lost when this is broken off: the system keeps the
/// connection that was not taken.
async fn accept(listener: &mut TcpListener, places: &Places) -> (TcpStream, OwnedSemaphorePermit) {
    let place = places.take().await;
    // axum's own accept, which waits where the process has no file descriptor left.
    let (tcp, _) = Listener::accept(listener).await;
    // An answer must not wait for the client's delayed ACK.
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    (tcp, place)
}
