//! TLS of the listeners that have it: who this service is, and its side of a handshake.

mod roots;

pub use roots::Roots;

use std::fmt;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A connection after its handshake.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// A certificate chain and the key of its first certificate, ready for handshakes (TLS 1.2 and 1.3).
#[derive(Clone)]
pub struct Identity(Arc<ServerConfig>);

impl Identity {
    /// Reads chain and key from PEM (RFC 7468; PKCS#8, SEC1 or PKCS#1 for the key).
    ///
    /// # Errors
    /// One of them is not there, or they do not belong together; the text follows a file's key, and tells nothing of the key.
    pub fn parse(certificate_pem: &[u8], key_pem: &[u8]) -> Result<Self, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate_pem).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain =
            chain.ok_or("must name a PEM file with the certificate, and then those that lead to its authority")?;
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|_| "has no key: management.key_file must name a PEM file with a private key, not encrypted")?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
        let mut config = config.map_err(|error| format!("and management.key_file cannot be used: {error}"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// The server's side of the handshake.
    ///
    /// # Errors
    /// The client went away, or the two have no version or algorithm in common.
    pub async fn accept(&self, connection: TcpStream) -> std::io::Result<Stream> {
        TlsAcceptor::from(Arc::clone(&self.0)).accept(connection).await
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}
