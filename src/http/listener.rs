use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use crate::tls::{Identity, Stream};

/// Connections at one time, handshakes included: administration is a few clients; more wait in the system's own queue.
const CONNECTIONS_MAX: usize = 256;

/// How long a handshake may take: round trips over a slow line, and not a client that holds a place.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long a client may say nothing: longer than any call takes to be answered, so that only idle ones are cut.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A listener whose connections are bounded in number and in silence, with TLS where there is an identity.
pub struct BoundedListener {
    tcp: TcpListener,
    identity: Option<watch::Receiver<Arc<Identity>>>,
    places: Arc<Semaphore>,
    handshakes: JoinSet<Option<(Connection, SocketAddr)>>,
}

impl BoundedListener {
    /// Accepts on `tcp`; each handshake is with the identity of its moment.
    #[must_use]
    pub fn new(tcp: TcpListener, identity: Option<watch::Receiver<Arc<Identity>>>) -> Self {
        Self { tcp, identity, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), handshakes: JoinSet::new() }
    }
}

impl Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let Self { tcp, identity, places, handshakes } = self;
        loop {
            tokio::select! {
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return connection;
                    }
                }
                (tcp, address, place) = connection(tcp, places) => {
                    let Some(identity) = identity else {
                        return (Connection::new(Wire::Plain(tcp), place), address);
                    };
                    // Side by side: one slow client must not keep the others out.
                    let identity = Arc::clone(&identity.borrow());
                    handshakes.spawn(async move {
                        let stream = tokio::time::timeout(HANDSHAKE_MAX, identity.accept(tcp)).await;
                        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                        let stream = stream.inspect_err(|error| tracing::debug!(%error, "no TLS handshake")).ok()?;
                        Some((Connection::new(Wire::Tls(Box::new(stream)), place), address))
                    });
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// A connection and its place, once there are both. Nothing is lost when this is broken off: the system keeps the
/// connection that was not taken.
async fn connection(tcp: &mut TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    // axum's own accept, which waits where the process has no file descriptor left.
    let (tcp, address) = Listener::accept(tcp).await;
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    (tcp, address, place)
}

/// A connection that holds its place until it ends, and ends when the client has been silent for too long.
pub struct Connection {
    wire: Wire,
    silence: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<Stream>),
}

impl Connection {
    fn new(wire: Wire, place: OwnedSemaphorePermit) -> Self {
        Self { wire, silence: Box::pin(tokio::time::sleep(SILENCE_MAX)), _place: place }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        };
        if read.is_ready() {
            self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
            return read;
        }
        self.silence.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write(cx, octets),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, octets),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
