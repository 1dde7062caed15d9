use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Face;
use super::bounds::{Bounds, Protocol};
use super::budget::Budget;
use super::calls::Calls;
use super::gathered::Gathered;
use super::listener::Connection;
use super::peer::{Greeter, Peer, Proof};
use super::places::{Leaving, Places};
use crate::tls::{self, Identity};

/// What a connection is served with, and what ends it.
pub(super) struct Terms<S> {
    pub(super) listener: &'static str,
    pub(super) protocol: Arc<Builder<TokioExecutor>>,
    pub(super) service: S,
    pub(super) bounds: Bounds,
    pub(super) budget: Budget,
    pub(super) places: Places,
    pub(super) shutdown: CancellationToken,
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) greeter: Arc<dyn Greeter>,
}

impl<S: Face> Terms<S> {
    /// Serves one connection to its end, which comes within the bounds whatever the client does.
    pub(super) async fn attend(self, connection: Connection) {
        match (connection, &self.identity) {
            (Connection::Tcp(tcp, address), Some(identity)) => {
                let Some(stream) = self.shake_hands(tcp, address, identity).await else { return };
                let proof = tls::client_certificate(&stream).map_or(Proof::None, Proof::Certificate);
                self.serve(stream, Peer { address: Some(address), tls: true, proof }).await;
            }
            (Connection::Tcp(tcp, address), None) => {
                self.serve(tcp, Peer { address: Some(address), tls: false, proof: Proof::None }).await;
            }
            (Connection::Unix(stream), _) => {
                let uid = match stream.peer_cred() {
                    Ok(credentials) => credentials.uid(),
                    Err(error) => return tracing::debug!(%error, "the system does not say who connects"),
                };
                self.serve(stream, Peer { address: None, tls: false, proof: Proof::UnixUser { uid } }).await;
            }
        }
    }

    async fn shake_hands(&self, tcp: TcpStream, address: SocketAddr, identity: &Identity) -> Option<tls::Stream> {
        let stream = tokio::select! {
            stream = timeout(self.bounds.handshake_max, identity.accept(tcp)) => stream,
            () = self.places.wanted() => {
                self.count_given_up();
                return None;
            }
            () = self.shutdown.cancelled() => return None,
        };
        match stream {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(tls::Failure::Refused(reason))) => {
                self.count_handshake(reason);
                self.greeter.refused(address, reason);
            }
            Ok(Err(tls::Failure::Broken(error))) => {
                self.count_handshake("broken");
                tracing::debug!(%error, "no TLS handshake");
            }
            Err(_) => {
                self.count_handshake("too slow");
                tracing::debug!("no TLS handshake in time");
            }
        }
        None
    }

    fn count_handshake(&self, reason: &'static str) {
        let labels = [("listener", self.listener), ("reason", reason)];
        metrics::counter!("keyward_handshakes_refused_total", &labels).increment(1);
    }

    /// One that goes because all places are taken.
    fn count_given_up(&self) {
        metrics::counter!("keyward_connections_refused_total", "listener" => self.listener).increment(1);
    }

    async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: I, peer: Peer) {
        match self.bounds.protocol {
            Protocol::Grpc => self.converse(Gathered::new(stream), peer).await,
            // Browsers and verifiers ask for one thing at a time: there is nothing to gather.
            Protocol::Http => self.converse(stream, peer).await,
        }
    }

    /// The rules look at calls and not at octets, because a client can always send an octet: a header or an HTTP/2 ping in
    /// pieces, or calls whose answers it does not read. hyper's own limit for headers knows HTTP/1.1 alone.
    async fn converse<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: I, peer: Peer) {
        let mut extensions = Extensions::new();
        self.greeter.greet(&peer, &mut extensions);
        let calls = Calls::new(self.budget.clone(), &self.bounds, peer.address);
        let (service, counted) = (self.service.clone(), calls.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (call, mut request) = counted.begin(request);
            request.extensions_mut().extend(extensions.clone());
            let mut service = service.clone();
            // Called when it is polled: with HTTP/2 that is in a task of the call's own, and not in the connection's.
            async move {
                let answer = service.call(request).await;
                drop(call);
                answer
            }
        });
        let connection = self.protocol.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let serving = async {
            let ending = tokio::select! {
                ended = connection.as_mut() => return Some(ended),
                ending = self.ending(&calls) => ending,
            };
            // HTTP/1.1: no call after this one; HTTP/2: GOAWAY. An idle connection ends at once.
            connection.as_mut().graceful_shutdown();
            let draining = async {
                tokio::select! {
                    ended = connection.as_mut() => Some(ended),
                    () = calls.rest(ending.drain_max) => None,
                }
            };
            timeout(self.bounds.call_max, draining).await.unwrap_or_default()
        };
        let ended = tokio::select! {
            ended = serving => ended,
            () = calls.cut() => None,
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(error, "a connection failed"),
            None => {
                tracing::debug!("a connection is cut: the client did not take its answers, or did not end its calls")
            }
        }
    }

    /// Returns when the connection is to take no more calls.
    async fn ending(&self, calls: &Calls) -> Ending {
        let orderly = Ending { drain_max: self.bounds.drain_max, _leaving: None };
        tokio::select! {
            () = self.shutdown.cancelled() => orderly,
            () = sleep(self.bounds.lifetime()) => orderly,
            () = self.unused(calls) => orderly,
            leaving = self.given_up(calls) => Ending { drain_max: self.bounds.leave_max, _leaving: Some(leaving) },
        }
    }

    async fn unused(&self, calls: &Calls) {
        sleep(self.bounds.first_call_max).await;
        if calls.latest().is_some() {
            calls.rest(self.bounds.idle_max).await;
        }
    }

    /// Returns when another client needs the place more.
    async fn given_up(&self, calls: &Calls) -> Leaving {
        loop {
            let waiting_since = Instant::now();
            self.places.wanted().await;
            match calls.latest() {
                // Used since it began to wait: back to the end of the queue. Where all were used, the question comes round,
                // and the first is taken at its word. A call under way lets the question drop; there will be another.
                Some(latest) if latest >= waiting_since => {
                    if !calls.are_under_way() {
                        self.places.ask();
                    }
                }
                _ => {
                    self.count_given_up();
                    return self.places.leave();
                }
            }
        }
    }
}

/// How a connection ends.
struct Ending {
    /// How long its answers may take to be read.
    drain_max: Duration,
    _leaving: Option<Leaving>,
}
