use std::net::SocketAddr;
use std::sync::Arc;

use super::{Reader, Watched};
use crate::auth::TrustedKeys;
use crate::domain::Issuer;
use crate::tls::{Identity, Terms};

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
    /// Certificate and key, and who may connect at all; `None`: plain HTTP, on loopback.
    pub identity: Option<Arc<Watched<Identity>>>,
}

impl Reader {
    /// The section `[management]`; it is on when `listen` is set.
    pub(super) fn management(&mut self) -> Option<ManagementSettings> {
        const KEYS: [&str; 7] =
            ["base_url", "issuer", "jwks_file", "certificate_file", "key_file", "client_ca_file", "crl_file"];
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
        let jwks = self.watched_file("management.jwks_file", TrustedKeys::parse);
        let terms = Terms { protocols: &["h2", "http/1.1"], tls_1_2: true, client_certificate_required: true };
        let without_tls = listen.ip().is_loopback();
        let identity = self.identity("management", terms, !without_tls);
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
}
