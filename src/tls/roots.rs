use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The authorities whose certificates are taken from servers that this service calls.
#[derive(Clone)]
pub struct Roots(Arc<ClientConfig>);

impl Roots {
    /// Those that the system trusts. There may be none, and then no server is believed.
    #[must_use]
    pub fn of_system() -> Self {
        // Some systems have one that cannot be read, and trust the others.
        let mut roots = RootCertStore::empty();
        if roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs).0 == 0 {
            tracing::warn!("this system has no certificates of authorities");
        }
        Self::new(roots)
    }

    /// Those in a PEM file.
    ///
    /// # Errors
    /// There are none in it; the text follows a file's key.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        const WANTED: &str = "must name a PEM file with certificates of authorities, and nothing that is none";
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let mut roots = RootCertStore::empty();
        if roots.add_parsable_certificates(certificates.map_err(|_| WANTED)?).0 == 0 {
            return Err(WANTED.to_owned());
        }
        Ok(Self::new(roots))
    }

    fn new(roots: RootCertStore) -> Self {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// The client's side of a handshake with the server of this name or address.
    ///
    /// # Errors
    /// The server is another, or shows no certificate of these authorities, or goes away.
    pub async fn connect(&self, name: &str, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).map_err(|error| io::Error::other(error.to_string()))?;
        TlsConnector::from(Arc::clone(&self.0)).connect(name, tcp).await
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Roots")
    }
}
