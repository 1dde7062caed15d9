//! The one way in which anything is served, HTTP and gRPC: connections that are bounded in number, in idleness and in age,
//! and what they show of the client at their other end.

mod arriving;
mod bounds;
mod budget;
mod calls;
mod connection;
mod gathered;
mod listener;
mod peer;
mod places;
#[cfg(test)]
mod tests;
mod unix;

pub use arriving::Arriving;
pub use bounds::{Bounds, Protocol};
pub use listener::Listener;
pub use peer::{Greeter, NoGreeter, Peer, Proof};
pub use unix::bind_unix;

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::tls::Identity;
use budget::Budget;
use connection::Terms;
use places::Places;

/// What answers the calls of a listener. It is asked without being waited for: it must always be ready.
pub trait Face:
    Service<Request<Arriving<Incoming>>, Response = Response<Self::Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;
}

impl<S, B> Face for S
where
    S: Service<Request<Arriving<Incoming>>, Response = Response<B>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;
}

/// Serves `service` until `shutdown`, and then until the calls under way are answered. With an identity, TCP is under TLS, and
/// each handshake is with the identity of its moment. Who drops this cuts every connection.
pub async fn serve(
    service: impl Face,
    mut listener: Listener,
    identity: Option<watch::Receiver<Arc<Identity>>>,
    bounds: Bounds,
    shutdown: CancellationToken,
    greeter: Arc<dyn Greeter>,
) {
    let places = Places::new(bounds.connections_max);
    let budget = Budget::new(listener.name, bounds.arriving_bytes_max);
    let protocol = Arc::new(protocol(&bounds));
    let mut connections = JoinSet::new();
    let connected = metrics::gauge!("keyward_connections", "listener" => listener.name);
    connected.set(0.0);
    while !shutdown.is_cancelled() {
        let connection = tokio::select! {
            () = shutdown.cancelled() => break,
            // Only taken away: each has told what there was to tell.
            Some(_) = connections.join_next() => continue,
            connection = listener.accept() => connection,
        };
        // The client is there before anybody is asked for a place: as many clients as there are places all keep theirs.
        let mut taking = std::pin::pin!(places.take());
        let place = loop {
            tokio::select! {
                () = shutdown.cancelled() => break None,
                Some(_) = connections.join_next() => {}
                place = taking.as_mut() => break Some(place),
            }
        };
        let Some(place) = place else { break };
        let terms = Terms {
            listener: listener.name,
            protocol: Arc::clone(&protocol),
            service: service.clone(),
            bounds,
            budget: budget.clone(),
            places: places.clone(),
            shutdown: shutdown.clone(),
            identity: identity.as_ref().map(|identity| Arc::clone(&identity.borrow())),
            greeter: Arc::clone(&greeter),
        };
        let connected = connected.clone();
        connected.increment(1.0);
        connections.spawn(async move {
            terms.attend(connection).await;
            connected.decrement(1.0);
            drop(place);
        });
    }
    // New clients are refused from here on, and go elsewhere.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn protocol(bounds: &Bounds) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .max_concurrent_streams(bounds.streams_max)
        .max_header_list_size(bounds.header_bytes_max)
        .max_pending_accept_reset_streams(bounds::RESETS_PENDING_MAX)
        .max_local_error_reset_streams(bounds::RESETS_OF_ERRORS_MAX);
    match bounds.protocol {
        Protocol::Http => {
            builder.http1().max_buf_size(usize::try_from(bounds.header_bytes_max).expect("some thousand"));
            builder
        }
        Protocol::Grpc => {
            builder
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(bounds::KEEPALIVE_INTERVAL)
                .keep_alive_timeout(bounds::KEEPALIVE_TIMEOUT);
            builder.http2_only()
        }
    }
}
