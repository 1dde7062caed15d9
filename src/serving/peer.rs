use std::net::SocketAddr;
use std::sync::Arc;

/// What a connection shows of the client at its other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the client is; `None` at a Unix socket.
    pub address: Option<SocketAddr>,
    /// Whether what it sends and is sent can be read by nobody else: TLS.
    pub tls: bool,
    /// Who it has shown to be.
    pub proof: Proof,
}

/// What a client has shown about itself, before any call.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Nothing.
    None,
    /// A certificate in DER that one of the client authorities stands for, that is valid and not revoked as of the handshake,
    /// and whose key the client has.
    Certificate(Arc<[u8]>),
    /// The system says which user runs the process at the other end.
    UnixUser {
        /// Its effective user id when it connected.
        uid: u32,
    },
}

/// Who looks at new connections, for those who answer the calls.
pub trait Greeter: Send + Sync + 'static {
    /// Is called once for each connection. What it puts into `extensions` is in each request of the connection.
    fn greet(&self, peer: &Peer, extensions: &mut http::Extensions) {
        let _ = (peer, extensions);
    }

    /// Is called when a handshake ends because of what the client showed: `reason` in words without a name in them.
    fn refused(&self, address: SocketAddr, reason: &'static str) {
        let _ = (address, reason);
    }
}

/// For listeners that ask nobody who they are.
#[derive(Clone, Copy, Debug)]
pub struct NoGreeter;

impl Greeter for NoGreeter {}
