use std::net::SocketAddr;

use super::Reader;

/// The gRPC listener.
#[derive(Debug)]
pub struct GrpcSettings {
    /// Where gRPC is served. On loopback: callers are not authenticated yet.
    pub listen: SocketAddr,
    /// Longest message taken.
    pub message_bytes_max: usize,
}

impl Reader {
    /// The section `[grpc]`.
    pub(super) fn grpc(&mut self) -> GrpcSettings {
        let listen = self.address("grpc.listen", "127.0.0.1:50051");
        self.grpc_auth(listen);
        // 256 batch inputs of 4 KiB, or one claims set of the largest size many times over.
        let message_bytes_max = self.number("grpc.message_bytes_max", 1 << 20, 64 << 10..=16 << 20);
        GrpcSettings { listen, message_bytes_max }
    }

    /// Who may call.
    fn grpc_auth(&mut self, listen: SocketAddr) {
        match self.text("grpc.auth").as_deref() {
            Some("none") if listen.ip().is_loopback() => {}
            Some("none") => self.problem("grpc.listen", "must be a loopback address while grpc.auth is \"none\""),
            Some(_) => self.problem("grpc.auth", "must be \"none\", the one way there is so far"),
            None => self.problem("grpc.auth", "must be set: \"none\" lets every local process call"),
        }
    }
}
