use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::bounds::Bounds;
use super::places::{Leaving, Places};
use crate::tls::Identity;

/// What a connection is served with, and what ends it.
pub(super) struct Terms {
    pub(super) protocol: Arc<Builder<TokioExecutor>>,
    pub(super) router: Router,
    pub(super) bounds: Bounds,
    pub(super) places: Places,
    pub(super) shutdown: CancellationToken,
}

impl Terms {
    /// Serves one connection to its end, which comes within the bounds whatever the client does.
    pub(super) async fn attend(self, tcp: TcpStream, identity: Option<Arc<Identity>>) {
        let Some(identity) = identity else {
            return self.serve(tcp).await;
        };
        let stream = tokio::select! {
            stream = timeout(self.bounds.handshake_max, identity.accept(tcp)) => stream,
            () = self.places.wanted() => return,
            () = self.shutdown.cancelled() => return,
        };
        match stream {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
            Err(_) => tracing::debug!("no TLS handshake in time"),
        }
    }

    /// The rules look at calls and not at octets, because a client can always send an octet: a header or an HTTP/2 ping in
    /// pieces, or calls whose answers it does not read. hyper's own limit for headers knows HTTP/1.1 alone.
    async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: I) {
        let calls = Calls::default();
        let (router, counted) = (self.router.clone(), calls.clone());
        let service = tower::service_fn(move |request: Request<_>| {
            let call = counted.begin();
            let answer = router.clone().call(request);
            async move {
                let answer = answer.await;
                drop(call);
                answer
            }
        });
        let connection = self.protocol.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            ending = self.ending(&calls) => {
                // HTTP/1.1: no call after this one; HTTP/2: GOAWAY. An idle connection ends at once.
                connection.as_mut().graceful_shutdown();
                timeout(self.bounds.call_max, async {
                    tokio::select! {
                        ended = connection.as_mut() => Some(ended),
                        () = calls.rest(ending.drain_max) => None,
                    }
                })
                .await
                .unwrap_or_default()
            }
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
                _ => return self.places.leave(),
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

/// The calls of one connection, from the whole header to the head of the answer.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    under_way: usize,
    /// When the latest one began or ended.
    latest: Option<Instant>,
}

/// A call, until it is dropped.
struct Call(Calls);

impl Calls {
    fn begin(&self) -> Call {
        let mut state = self.state();
        state.under_way += 1;
        state.latest = Some(Instant::now());
        Call(self.clone())
    }

    fn are_under_way(&self) -> bool {
        self.state().under_way > 0
    }

    /// When a call was last under way.
    fn latest(&self) -> Option<Instant> {
        let state = self.state();
        if state.under_way > 0 { Some(Instant::now()) } else { state.latest }
    }

    /// Returns when no call has been under way for so long, counted from now at the earliest. It looks only when the time can
    /// have come: calls set no timer.
    async fn rest(&self, limit: Duration) {
        let begun = Instant::now();
        let mut until = begun + limit;
        loop {
            sleep_until(until).await;
            until = self.latest().unwrap_or(begun).max(begun) + limit;
            if until <= Instant::now() {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Two plain values: nobody can leave them half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        state.latest = Some(Instant::now());
    }
}
