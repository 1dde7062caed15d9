use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// A socket that clients connect to, and its name in metrics.
#[derive(Debug)]
pub struct Listener {
    pub(super) name: &'static str,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection as the system hands it over.
pub(super) enum Connection {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    /// At an address.
    #[must_use]
    pub fn tcp(name: &'static str, socket: TcpListener) -> Self {
        Self { name, socket: Socket::Tcp(socket) }
    }

    /// At a path of this machine. There is no TLS on it: the system itself says who is at the other end.
    #[must_use]
    pub fn unix(name: &'static str, socket: UnixListener) -> Self {
        Self { name, socket: Socket::Unix(socket) }
    }

    /// Nothing is lost when this is broken off: the system keeps the connection that was not taken. axum's own accept waits
    /// where the process has no file descriptor left.
    pub(super) async fn accept(&mut self) -> Connection {
        match &mut self.socket {
            Socket::Tcp(socket) => {
                let (tcp, address) = axum::serve::Listener::accept(socket).await;
                // An answer must not wait for the client's delayed ACK.
                if let Err(error) = tcp.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY could not be set");
                }
                Connection::Tcp(tcp, address)
            }
            Socket::Unix(socket) => Connection::Unix(axum::serve::Listener::accept(socket).await.0),
        }
    }
}
