use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use config::{Value, ValueKind};

use super::{Reader, Watched};
use crate::auth::{BadGrant, FetchTimes, GRANTS_MAX, Grants, ROLES_MAX, TrustedKeys};
use crate::domain::{Algorithm, Issuer, Principal, WebUrl};
use crate::tls::Roots;

/// What JWTs may be signed with unless the configuration says otherwise: what issuers use.
const ALGORITHMS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA];

/// Longest audience, in octets: a name or a URL.
const AUDIENCE_BYTES_MAX: usize = 255;

/// Who may call gRPC.
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
#[derive(Debug)]
pub enum CallerSettings {
    /// Everybody who reaches a listener: `grpc.auth = "none"`.
    Anybody,
    /// Whoever proves to be somebody with a role.
    Known {
        /// The roles of certificates and users.
        grants: Grants,
        /// Whether a certificate's common name may name a client.
        common_name: bool,
        /// JWTs, where they are proofs too.
        jwt: Option<JwtSettings>,
    },
}

/// Which JWTs are believed.
#[derive(Debug)]
pub struct JwtSettings {
    /// Their `iss`.
    pub issuer: String,
    /// Their `aud`, or one of them.
    pub audience: String,
    /// What they may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// The keys that sign them.
    pub keys: JwtKeys,
}

/// Where the keys of an issuer are.
#[derive(Debug)]
pub enum JwtKeys {
    /// In a file.
    File(Arc<Watched<TrustedKeys>>),
    /// At a URL.
    Url {
        /// Which.
        url: WebUrl,
        /// The authorities that its certificate may be of; `None`: those that the system trusts.
        roots: Option<Arc<Watched<Roots>>>,
        /// When it is asked.
        times: FetchTimes,
    },
}

impl Reader {
    /// Whether there is a section `[grpc.jwt]`.
    pub(super) fn has_jwt(&self) -> bool {
        self.values.keys().any(|key| key.starts_with("grpc.jwt."))
    }

    /// Who may call, and whether anybody could: `identity` is whether there is TLS, and `client_ca` whether clients are asked
    /// for certificates.
    pub(super) fn callers(
        &mut self,
        listen: Option<SocketAddr>,
        unix_socket: Option<&PathBuf>,
        identity: bool,
        client_ca: bool,
    ) -> CallerSettings {
        let loopback = listen.is_none_or(|address| address.ip().is_loopback());
        let auth = self.text("grpc.auth");
        match auth.as_deref() {
            Some("none") => {
                if !loopback {
                    self.problem("grpc.listen", "must be a loopback address while grpc.auth is \"none\"");
                }
                self.without_effect();
                return CallerSettings::Anybody;
            }
            Some("required") => {}
            Some(_) => self.problem("grpc.auth", "must be \"required\" or \"none\""),
            None => {
                let problem = "must be set: \"required\" asks callers for a client certificate (grpc.client_ca_file), a JWT \
                               ([grpc.jwt]) or a user (grpc.unix_socket); \"none\" lets every local process call";
                self.problem("grpc.auth", problem);
            }
        }
        let common_name = self.flag("grpc.common_name", false);
        let grants = self.grants();
        let has_jwt = self.has_jwt();
        let jwt = has_jwt.then(|| self.jwt()).flatten();
        if auth.as_deref() == Some("required") {
            if !loopback && !identity {
                let problem = "must be set, with grpc.key_file: without TLS, grpc.listen must be a loopback address";
                self.problem("grpc.certificate_file", problem);
            }
            if listen.is_some() && !client_ca && !has_jwt {
                let problem = "is \"required\", and nobody could call grpc.listen: set grpc.client_ca_file for client \
                               certificates, or [grpc.jwt] for JWTs, or grpc.unix_socket and no grpc.listen";
                self.problem("grpc.auth", problem);
            }
            self.grants_fit(&grants, unix_socket.is_some(), client_ca, common_name);
        }
        CallerSettings::Known { grants, common_name, jwt }
    }

    /// With everything else set, silence would be taken for protection.
    fn without_effect(&mut self) {
        let keys: Vec<String> = self.values.keys().filter(|key| is_of_callers(key)).cloned().collect();
        for key in keys {
            self.values.remove(&key);
            self.problem(&key, "has no effect while grpc.auth is \"none\"");
        }
    }

    /// A grant that nobody can prove to have, and a proof that no grant is for, are mistakes.
    fn grants_fit(&mut self, grants: &Grants, unix_socket: bool, client_ca: bool, common_name: bool) {
        let has = |wanted: fn(&Principal) -> bool| grants.principals().any(wanted);
        let user = has(|principal| matches!(principal, Principal::Unix(_)));
        let name = has(|principal| matches!(principal, Principal::CommonName(_)));
        let certificate = name || has(|principal| matches!(principal, Principal::Uri(_) | Principal::Dns(_)));
        for (wrong, problem) in [
            (user && !unix_socket, "must not name a user (unix:) unless grpc.unix_socket is set"),
            (unix_socket && !user, "must name the users (unix:UID) who may call at grpc.unix_socket"),
            (
                certificate && !client_ca,
                "must not name certificates (uri:, dns:, cn:) unless grpc.client_ca_file is set",
            ),
            (client_ca && !certificate, "must name the certificates (uri:, dns:) that grpc.client_ca_file lets in"),
            (name && !common_name, "must not name common names (cn:) unless grpc.common_name is true"),
        ] {
            if wrong {
                self.problem("grants", problem);
            }
        }
    }

    /// `[[grants]]`: principal and roles of each.
    fn grants(&mut self) -> Grants {
        let mut grants = Grants::default();
        let Some(value) = self.values.remove("grants") else { return grants };
        let ValueKind::Array(all) = value.kind else {
            self.problem("grants", "must be tables: [[grants]] with principal and roles");
            return grants;
        };
        if all.len() > GRANTS_MAX {
            self.problem("grants", format!("must be at most {GRANTS_MAX}"));
            return grants;
        }
        for (index, value) in all.into_iter().enumerate() {
            let key = format!("grants[{index}]");
            let ValueKind::Table(mut table) = value.kind else {
                self.problem(&key, "must be a table with principal and roles");
                continue;
            };
            let principal = table.remove("principal").and_then(|value| value.into_string().ok());
            let roles = table.remove("roles").and_then(texts);
            for unknown in table.into_keys() {
                self.problem(&format!("{key}.{unknown}"), "is not a key of Keyward; is it misspelt?");
            }
            if principal.is_none() {
                self.problem(&format!("{key}.principal"), "must be set: uri:URI, dns:NAME, cn:NAME or unix:UID");
            }
            if roles.is_none() {
                self.problem(&format!("{key}.roles"), format!("must be set: 1 to {ROLES_MAX} roles, each a text"));
            }
            let (Some(principal), Some(roles)) = (principal, roles) else { continue };
            match grants.add(&principal, &roles) {
                Ok(()) => {}
                Err(problem @ BadGrant::Principal(_)) => {
                    self.problem(&format!("{key}.principal"), problem.to_string());
                }
                Err(BadGrant::Roles(Some(place), problem)) => self.problem(&format!("{key}.roles[{place}]"), problem),
                Err(BadGrant::Roles(None, problem)) => self.problem(&format!("{key}.roles"), problem),
            }
        }
        grants
    }

    /// `[grpc.jwt]`.
    fn jwt(&mut self) -> Option<JwtSettings> {
        let issuer = self.required_text("grpc.jwt.issuer");
        if !issuer.is_empty()
            && let Err(problem) = issuer.parse::<Issuer>()
        {
            self.problem("grpc.jwt.issuer", problem.to_string());
        }
        let audience = self.required_text("grpc.jwt.audience");
        if audience.len() > AUDIENCE_BYTES_MAX {
            self.problem("grpc.jwt.audience", format!("must be at most {AUDIENCE_BYTES_MAX} octets"));
        }
        let algorithms = self.jwt_algorithms();
        Some(JwtSettings { issuer, audience, algorithms, keys: self.jwt_keys()? })
    }

    fn jwt_algorithms(&mut self) -> Vec<Algorithm> {
        const KEY: &str = "grpc.jwt.algorithms";
        let Some(value) = self.values.remove(KEY) else { return ALGORITHMS.to_vec() };
        let parse = |name: String| name.parse().ok().filter(|algorithm: &Algorithm| algorithm.has_public_keys());
        let algorithms: Option<Vec<Algorithm>> = texts(value).and_then(|names| names.into_iter().map(parse).collect());
        algorithms.filter(|algorithms| !algorithms.is_empty()).unwrap_or_else(|| {
            let asymmetric = Algorithm::ALL.iter().filter(|algorithm| algorithm.has_public_keys());
            let names: Vec<&str> = asymmetric.map(|algorithm| algorithm.name()).collect();
            self.problem(KEY, format!("must be an array of one or more of {}", names.join(", ")));
            Vec::new()
        })
    }

    fn jwt_keys(&mut self) -> Option<JwtKeys> {
        const URL_KEYS: [&str; 4] = ["jwks_ca_file", "jwks_refresh_secs", "jwks_cooldown_secs", "jwks_age_max_secs"];
        let has = |this: &Self, key: &str| this.values.contains_key(&format!("grpc.jwt.{key}"));
        match (has(self, "jwks_file"), has(self, "jwks_url")) {
            (true, false) => {
                for key in URL_KEYS.map(|key| format!("grpc.jwt.{key}")) {
                    if self.values.remove(&key).is_some() {
                        self.problem(&key, "has no effect unless grpc.jwt.jwks_url is set");
                    }
                }
                self.watched_file("grpc.jwt.jwks_file", TrustedKeys::parse).map(JwtKeys::File)
            }
            (false, true) => {
                let url = self.required_text("grpc.jwt.jwks_url").parse::<WebUrl>();
                let url = url.map_err(|problem| self.problem("grpc.jwt.jwks_url", problem.to_string())).ok();
                let own_roots = has(self, "jwks_ca_file");
                let roots = if own_roots { self.watched_file("grpc.jwt.jwks_ca_file", Roots::parse) } else { None };
                let mut secs = |key: &str, default, range| {
                    Duration::from_secs(self.number(&format!("grpc.jwt.{key}"), default, range))
                };
                let times = FetchTimes {
                    // As long as verifiers may keep Keyward's own sets.
                    refresh: secs("jwks_refresh_secs", 300, 1..=24 * 60 * 60),
                    // What anybody can bring about with made-up JWTs: a request to the issuer in so long.
                    cooldown: secs("jwks_cooldown_secs", 30, 1..=60 * 60),
                    // An issuer that is away for a day has other troubles.
                    age_max: secs("jwks_age_max_secs", 24 * 60 * 60, 1..=7 * 24 * 60 * 60),
                };
                if times.age_max < times.refresh {
                    self.problem("grpc.jwt.jwks_age_max_secs", "must be at least grpc.jwt.jwks_refresh_secs");
                }
                if own_roots && roots.is_none() {
                    return None;
                }
                Some(JwtKeys::Url { url: url?, roots, times })
            }
            (file, _) => {
                for key in ["jwks_file", "jwks_url"].into_iter().chain(URL_KEYS) {
                    self.values.remove(&format!("grpc.jwt.{key}"));
                }
                let together = if file { "must not be set together with" } else { "must be set, or" };
                self.problem("grpc.jwt.jwks_file", format!("{together} grpc.jwt.jwks_url"));
                None
            }
        }
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.values.remove(key) else { return default };
        value.into_bool().unwrap_or_else(|_| {
            self.problem(key, "must be true or false");
            default
        })
    }
}

fn is_of_callers(key: &str) -> bool {
    key == "grants" || key == "grpc.common_name" || key.starts_with("grpc.jwt.")
}

fn texts(value: Value) -> Option<Vec<String>> {
    let ValueKind::Array(all) = value.kind else { return None };
    all.into_iter().map(|value| value.into_string().ok()).collect()
}
