use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{CallerSettings, Reader, Watched};
use crate::tls::{Identity, Terms};

/// The gRPC listeners.
#[derive(Debug)]
pub struct GrpcSettings {
    /// Where gRPC is served over TCP; `None`: at `unix_socket` alone.
    pub listen: Option<SocketAddr>,
    /// The path where it is served to processes of this machine.
    pub unix_socket: Option<PathBuf>,
    /// Certificate and key of `listen`, the authorities of its clients and what these revoked; `None`: without TLS.
    pub identity: Option<Arc<Watched<Identity>>>,
    /// Who may call.
    pub callers: CallerSettings,
    /// Longest message taken.
    pub message_bytes_max: usize,
    /// Connections of each listener at one time.
    pub connections_max: usize,
    /// How old a connection may become.
    pub connection_age_max: Duration,
}

impl Reader {
    /// The section `[grpc]`.
    pub(super) fn grpc(&mut self) -> GrpcSettings {
        let unix_socket = self.file("grpc.unix_socket");
        // Whoever asks for the socket alone gets the socket alone.
        let listens = unix_socket.is_none() || self.values.contains_key("grpc.listen");
        let listen = listens.then(|| self.address("grpc.listen", "127.0.0.1:50051"));
        let terms = Terms {
            protocols: &["h2"],
            tls_1_2: self.tls_1_2(),
            // Who has a JWT needs no certificate.
            client_certificate_required: !self.has_jwt(),
        };
        let client_ca = self.values.contains_key("grpc.client_ca_file");
        // Named and not usable is told by itself.
        let has_tls = self.values.contains_key("grpc.certificate_file");
        let identity = self.identity("grpc", terms, false);
        if identity.is_some() && listen.is_none() {
            self.problem("grpc.listen", "must be set where grpc.certificate_file is: there is no TLS on a Unix socket");
        }
        let callers = self.callers(listen, unix_socket.as_ref(), has_tls, client_ca);
        GrpcSettings {
            listen,
            unix_socket,
            identity,
            callers,
            // 256 batch inputs of 4 KiB, or one claims set of the largest size many times over.
            message_bytes_max: self.number("grpc.message_bytes_max", 1 << 20, 64 << 10..=16 << 20),
            // A few connections of each of some hundred issuers; some 100 MiB where all are in use.
            connections_max: self.number("grpc.connections_max", 1024, 1..=65_536),
            // A withdrawn certificate loses access by then; a handshake in ten minutes costs nobody anything.
            connection_age_max: Duration::from_secs(self.number("grpc.connection_age_max_secs", 600, 1..=24 * 60 * 60)),
        }
    }

    fn tls_1_2(&mut self) -> bool {
        match self.text("grpc.tls_min_version").as_deref() {
            None | Some("1.3") => false,
            Some("1.2") => true,
            Some(_) => {
                self.problem("grpc.tls_min_version", "must be \"1.3\" or \"1.2\"");
                false
            }
        }
    }
}
