use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tonic::transport::{Channel, Endpoint, Error};

use super::{Authority, Identity};

/// A call that takes longer hangs: twenty RSA keys on two busy cores are made in less.
const CALL_WAIT_MAX: Duration = Duration::from_secs(60);
/// A connection that is not there by then will not come.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(30);

/// How gRPC clients reach a server.
#[derive(Clone)]
pub(crate) enum Dial {
    Tcp(String),
    Tls { address: String, config: Arc<ClientConfig> },
    Unix(PathBuf),
}

impl Dial {
    /// Without TLS, at host:port.
    pub(crate) fn tcp(address: &str) -> Self {
        Self::Tcp(address.to_owned())
    }

    /// Over TLS 1.3, to a server of this authority, with a certificate if one is given.
    pub(crate) fn tls(address: &str, authority: &Authority, client: Option<&Identity>) -> Self {
        Self::tls_of(&tokio_rustls::rustls::version::TLS13, address, authority, client)
    }

    /// The same over TLS 1.2.
    pub(crate) fn tls_1_2(address: &str, authority: &Authority, client: Option<&Identity>) -> Self {
        Self::tls_of(&tokio_rustls::rustls::version::TLS12, address, authority, client)
    }

    /// At a Unix socket.
    pub(crate) fn unix(socket: &Path) -> Self {
        Self::Unix(socket.to_owned())
    }

    fn tls_of(
        version: &'static SupportedProtocolVersion,
        address: &str,
        authority: &Authority,
        client: Option<&Identity>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(authority.certificate()).expect("a certificate");
        roots.add(root).expect("an authority's certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version that the provider has")
            .with_root_certificates(roots);
        let mut config = match client {
            Some(identity) => {
                let chain = CertificateDer::pem_file_iter(&identity.certificate).expect("a file of certificates");
                let chain = chain.collect::<Result<_, _>>().expect("certificates");
                let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
                config.with_client_auth_cert(chain, key).expect("a certificate and its key")
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::Tls { address: address.to_owned(), config: Arc::new(config) }
    }

    /// A channel, which connects again by itself when its connection has ended. In TLS 1.3 a client is told only after its
    /// handshake that its certificate is refused: then the first call fails, and not this.
    ///
    /// # Errors
    /// There is no connection.
    pub(crate) async fn connect(&self) -> Result<Channel, Error> {
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_WAIT_MAX);
        let endpoint = endpoint.connect_timeout(CONNECT_WAIT_MAX);
        match self.clone() {
            Self::Tcp(address) => {
                let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
                endpoint.timeout(CALL_WAIT_MAX).connect_timeout(CONNECT_WAIT_MAX).connect().await
            }
            Self::Tls { address, config } => {
                let shake = move |_| {
                    let (address, config) = (address.clone(), Arc::clone(&config));
                    async move { shake_hands(&address, config).await.map(TokioIo::new) }
                };
                endpoint.connect_with_connector(tower::service_fn(shake)).await
            }
            Self::Unix(socket) => {
                let open = move |_| {
                    let socket = socket.clone();
                    async move { UnixStream::connect(socket).await.map(TokioIo::new) }
                };
                endpoint.connect_with_connector(tower::service_fn(open)).await
            }
        }
    }

    /// A TLS connection without a call.
    ///
    /// # Errors
    /// The server or its certificate is not to be had.
    pub(crate) async fn handshake(&self) -> io::Result<TlsStream<TcpStream>> {
        let Self::Tls { address, config } = self else { panic!("only TLS has a handshake") };
        shake_hands(address, Arc::clone(config)).await
    }
}

async fn shake_hands(address: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connection = TcpStream::connect(address).await?;
    connection.set_nodelay(true)?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(config).connect(name, connection).await
}
