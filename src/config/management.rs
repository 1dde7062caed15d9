use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Reader, Watched};
use crate::auth::TrustedKeys;
use crate::domain::Issuer;
use crate::tls::Identity;

/// The listener of the Management API, where there is to be one.
#[derive(Debug)]
pub struct ManagementSettings {
    /// Where it is served.
    pub listen: SocketAddr,
    /// Under which URL its clients reach it; `None`: the listener's own. The audience of each JWT begins with it.
    pub base_url: Option<String>,
    /// `iss` of the JWTs that are believed.
    pub issuer: String,
    /// The keys that sign them.
    pub jwks: Arc<Watched<TrustedKeys>>,
    /// Certificate and key; `None`: plain HTTP, on loopback.
    pub identity: Option<Arc<Watched<Identity>>>,
}

impl Reader {
    /// The section `[management]`; it is on when `listen` is set.
    pub(super) fn management(&mut self) -> Option<ManagementSettings> {
        const KEYS: [&str; 5] = ["base_url", "issuer", "jwks_file", "certificate_file", "key_file"];
        if !self.values.contains_key("management.listen") {
            // With everything else set, silence would be taken for a service.
            for key in KEYS.map(|key| format!("management.{key}")) {
                if self.values.remove(&key).is_some() {
                    self.problem(&key, "has no effect unless management.listen is set");
                }
            }
            return None;
        }
        let listen = self.address("management.listen", "127.0.0.1:8081");
        let base_url = self.base_url("management.base_url");
        if base_url.is_none() && !listen.ip().is_loopback() {
            let problem = "must be set to the URL of this listener, which JWTs name in aud, unless management.listen is a \
                           loopback address";
            self.problem("management.base_url", problem);
        }
        let issuer = self.management_issuer();
        let jwks = self.watched_file("management.jwks_file", |contents| TrustedKeys::parse(&contents[0]));
        let (certificate, key) = (self.file("management.certificate_file"), self.file("management.key_file"));
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                // A group may read it, as Debian's ssl-cert does; a file that is not there is told below.
                if std::fs::metadata(&key).is_ok_and(|key| key.mode() & 0o007 != 0) {
                    let problem = format!("must not be open to everybody: chmod 640 {}", key.display());
                    self.problem("management.key_file", problem);
                }
                let parse = |contents: &[Vec<u8>]| Identity::parse(&contents[0], &contents[1]);
                self.watched("management.certificate_file", vec![certificate, key], parse)
            }
            (None, None) => {
                if !listen.ip().is_loopback() {
                    let problem = "must be set, with management.key_file: without TLS, management.listen must be a \
                                   loopback address";
                    self.problem("management.certificate_file", problem);
                }
                None
            }
            (certificate, _) => {
                let missing = if certificate.is_none() { "certificate_file" } else { "key_file" };
                self.problem(&format!("management.{missing}"), "must be set: certificate and key go together");
                None
            }
        };
        // Without the JWKS there is a problem already, and no configuration comes of this.
        Some(ManagementSettings { listen, base_url, issuer, jwks: jwks?, identity })
    }

    fn management_issuer(&mut self) -> String {
        let issuer = self.required_text("management.issuer");
        if !issuer.is_empty()
            && let Err(problem) = issuer.parse::<Issuer>()
        {
            self.problem("management.issuer", problem.to_string());
        }
        issuer
    }

    fn watched_file<T>(&mut self, key: &str, parse: fn(&[Vec<u8>]) -> Result<T, String>) -> Option<Arc<Watched<T>>> {
        let given = self.values.contains_key(key);
        match self.file(key) {
            Some(file) => self.watched(key, vec![file], parse),
            None => {
                if !given {
                    self.problem(key, "must be set");
                }
                None
            }
        }
    }

    fn watched<T>(
        &mut self,
        key: &str,
        files: Vec<PathBuf>,
        parse: fn(&[Vec<u8>]) -> Result<T, String>,
    ) -> Option<Arc<Watched<T>>> {
        Watched::open(key, files, parse).map(Arc::new).map_err(|problem| self.problem(key, problem)).ok()
    }

    fn file(&mut self, key: &str) -> Option<PathBuf> {
        let path = self.text(key)?;
        Some(self.directory.join(path))
    }
}
