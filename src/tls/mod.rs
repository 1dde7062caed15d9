//! TLS of the listeners that have it: who this service is, whom it believes to be its clients, and its side of a handshake.

mod clients;
mod roots;

pub use roots::Roots;

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{CertificateError, Error, ServerConfig, SupportedProtocolVersion};

use crate::x509::ServerUse;
use clients::{Clients, Editions};

/// A connection after its handshake.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// What is agreed upon in each handshake of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Protocols by ALPN (RFC 7301), the preferred one first.
    pub protocols: &'static [&'static str],
    /// TLS 1.2, for clients of some age; 1.3 in any case.
    pub tls_1_2: bool,
    /// Whether a client without a certificate is turned away where there are client authorities.
    pub client_certificate_required: bool,
}

/// The files of a listener, as octets.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The certificate, and then those that lead to its authority (PEM, RFC 7468).
    pub certificate: &'a [u8],
    /// Its key (PEM; PKCS#8, SEC1 or PKCS#1).
    pub key: &'a [u8],
    /// Certificates of those who make clients' certificates (PEM); `None`: no client is asked for one.
    pub client_ca: Option<&'a [u8]>,
    /// What they revoked (RFC 5280 section 5, PEM): a list of each of them, and of each authority between.
    pub revocation_lists: Option<&'a [u8]>,
}

/// Which file is at fault, and what it must be; the text follows the file's key, and tells nothing of a private key.
#[derive(Debug)]
pub struct Unusable {
    /// The file.
    pub file: File,
    /// What it must be.
    pub problem: String,
}

/// One of [`Files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// [`Files::certificate`].
    Certificate,
    /// [`Files::key`].
    Key,
    /// [`Files::client_ca`].
    ClientCa,
    /// [`Files::revocation_lists`].
    RevocationLists,
}

/// A certificate chain and the key of its first certificate, and who is believed to be a client, ready for handshakes.
#[derive(Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    not_after_secs: u64,
    lists: Editions,
}

/// How a handshake ended that made no connection.
#[derive(Debug)]
pub enum Failure {
    /// The client's certificate, or that it has none; why, in fixed words.
    Refused(&'static str),
    /// The client went away, or the two have no version or algorithm in common.
    Broken(io::Error),
}

impl File {
    fn at_fault(self, problem: impl Into<String>) -> Unusable {
        Unusable { file: self, problem: problem.into() }
    }
}

impl Identity {
    /// Reads the files, `now_secs` after 1970, where those of `in_use` are in use so far.
    ///
    /// # Errors
    /// One of them is not what it must be, or not at this time, or they do not belong together.
    pub fn parse(files: Files<'_>, terms: Terms, in_use: Option<&Self>, now_secs: u64) -> Result<Self, Unusable> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(files.certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| {
            let problem = "must name a PEM file with the certificate, and then those that lead to its authority";
            File::Certificate.at_fault(problem)
        })?;
        let usage = ServerUse::read(&chain[0])
            .map_err(|_| File::Certificate.at_fault("must name a PEM file whose first certificate can be read"))?;
        let problem = match usage {
            ServerUse { may_serve: false, .. } => Some("is not a server's: its extended key usage lacks serverAuth"),
            ServerUse { not_before_secs, .. } if now_secs < not_before_secs => Some("is not valid yet"),
            ServerUse { not_after_secs, .. } if now_secs > not_after_secs => Some("has expired"),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(File::Certificate.at_fault(format!("names a certificate that {problem}")));
        }
        let key = PrivateKeyDer::from_pem_slice(files.key)
            .map_err(|_| File::Key.at_fault("must name a PEM file with a private key, not encrypted"))?;
        let provider = Arc::new(default_provider());
        let versions: &[&SupportedProtocolVersion] = if terms.tls_1_2 { &[&TLS13, &TLS12] } else { &[&TLS13] };
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| File::Certificate.at_fault(format!("cannot be used: {error}")))?;
        let known = in_use.map(|identity| &identity.lists);
        let required = terms.client_certificate_required;
        let clients = files
            .client_ca
            .map(|authorities| Clients::parse(authorities, files.revocation_lists, required, provider, known, now_secs))
            .transpose()?;
        let lists = clients.as_ref().map(|clients| clients.lists.clone()).unwrap_or_default();
        let asks_clients = clients.is_some();
        let config = match clients {
            Some(clients) => config.with_client_cert_verifier(clients.verifier),
            None => config.with_no_client_auth(),
        };
        let mut config = config
            .with_single_cert(chain, key)
            .map_err(|error| File::Certificate.at_fault(format!("and its key cannot be used together: {error}")))?;
        config.alpn_protocols = terms.protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        if asks_clients {
            // A session that is taken up again is not looked at again: a certificate that has expired or was revoked since
            // would still be good.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Self { config: Arc::new(config), not_after_secs: usage.not_after_secs, lists })
    }

    /// The server's side of the handshake.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn accept(&self, connection: TcpStream) -> Result<Stream, Failure> {
        TlsAcceptor::from(Arc::clone(&self.config)).accept(connection).await.map_err(Failure::of)
    }

    /// When the certificate expires, in seconds since 1970.
    #[must_use]
    pub fn not_after_secs(&self) -> u64 {
        self.not_after_secs
    }

    /// When the first of the revocation lists is out of date, in seconds since 1970. From then on no certificate is believed
    /// that needs it.
    #[must_use]
    pub fn next_update_secs(&self) -> Option<u64> {
        self.lists.next_update_secs
    }

    /// Which of the files in use have run out, `now_secs` after 1970, and what follows.
    #[must_use]
    pub fn run_out(&self, now_secs: u64) -> Vec<Unusable> {
        let mut all = Vec::new();
        if now_secs > self.not_after_secs {
            all.push(File::Certificate.at_fault("has expired: clients refuse it"));
        }
        if self.lists.next_update_secs.is_some_and(|next| next <= now_secs) {
            all.push(File::RevocationLists.at_fault("is out of date: clients that need it are refused"));
        }
        all
    }
}

/// The certificate that a client has shown, in DER.
#[must_use]
pub fn client_certificate(stream: &Stream) -> Option<Arc<[u8]>> {
    stream.get_ref().1.peer_certificates()?.first().map(|certificate| Arc::from(certificate.as_ref()))
}

impl Failure {
    fn of(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::NoCertificatesPresented) => Self::Refused("no certificate"),
            Some(Error::InvalidCertificate(problem)) => Self::Refused(words(problem)),
            _ => Self::Broken(error),
        }
    }
}

fn words(problem: &CertificateError) -> &'static str {
    use CertificateError as E;
    match problem {
        E::UnknownIssuer | E::BadSignature => "unknown authority",
        E::Expired | E::ExpiredContext { .. } => "expired",
        E::NotValidYet | E::NotValidYetContext { .. } => "not yet valid",
        E::Revoked => "revoked",
        E::UnknownRevocationStatus => "no revocation list of its authority",
        E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => "the revocation list is out of date",
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => "not a client's certificate",
        _ => "not a certificate that can be verified",
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}
